"""What pre-fill costs with pruned tokens: tokens, seconds and bytes of the cache of keys and values, in one run.

- pre-fill is everything before the first token of an answer: vision tower, selection of tokens, language model on the prompt
- counts and bytes are exact; seconds are medians of rounds in which all variants take turns, so that a machine that slows down
  slows all of them. On a CPU they are seconds of the process, which other programs on the machine do not lengthen
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vau_lib.compression import token_pruning
from vau_lib.compression.token_selection import keep_mask

PLACES = {True: "before the tower", False: "after the tower"}


@torch.inference_mode()
def cost(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    keep_ratios: Sequence[float],
    after_tower: Sequence[float] = (),
    rule: Callable = keep_mask,
    repeats: int = 3,
) -> pd.DataFrame:
    """Measure pre-fill of one prompt, whole and with a part of its visual tokens; the first row is the model alone.

    Columns: place, keep_ratio, tokens_before and tokens_after (of the prompt, words too), seconds (median), ratio (to the model
    alone), cache_bytes. A warm-up is left out. ValueError for repeats below 1.

    Args:
        model: with a vision tower.
        inputs: of one prompt, as `chat.encode` makes them.
        keep_ratios: pruned before the tower.
        after_tower: keep ratios pruned after it.
        rule: which tokens are kept.
        repeats: rounds.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    wanted = [*((PLACES[True], ratio) for ratio in keep_ratios), *((PLACES[False], ratio) for ratio in after_tower)]
    variants = {("whole prompt", 1.0): model}
    for place, ratio in wanted:
        early = place == PLACES[True]
        variants[place, ratio] = token_pruning.prune_tokens(model, keep_ratio=ratio, rule=rule, before_tower=early)
    seconds, caches = {key: [] for key in variants}, {}
    model(**inputs, use_cache=True, logits_to_keep=1)  # warm-up
    for _ in range(repeats):
        for key, variant in variants.items():
            began = _clock(model)
            caches[key] = variant(**inputs, use_cache=True, logits_to_keep=1).past_key_values
            seconds[key].append(_clock(model) - began)
    alone = float(np.median(seconds["whole prompt", 1.0]))
    rows = [
        {
            "place": place, "keep_ratio": ratio, "tokens_before": inputs["input_ids"].numel(),
            "tokens_after": cache.get_seq_length(), "seconds": float(np.median(seconds[place, ratio])),
            "ratio": float(np.median(seconds[place, ratio])) / alone, "cache_bytes": _cache_bytes(cache),
        }
        for (place, ratio), cache in caches.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _clock(model: nn.Module) -> float:
    """Return seconds: of this process where the model is on the CPU, else of the clock, after what the device was given."""
    if model.device.type == "cpu":
        return time.process_time()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _cache_bytes(cache) -> int:
    return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))

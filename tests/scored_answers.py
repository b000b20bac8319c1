"""Questions about pictures and a video, and the log-probabilities of answers by a model's own forward on pixels."""

import numpy as np
import torch

from vau_lib.vlm import chat


def frames_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, 56, 56, 3), dtype=np.uint8)


def samples_of(vlm):
    """Three questions: two pictures, a video where the family has one, four pictures."""
    times_s = [0.0, 1.0, 2.0, 3.0]
    video = vlm.family != "internvl"
    return [
        chat.encode(vlm, frames_of(2, 1), "What is it?"),
        chat.encode(vlm, frames_of(4, 2), "Why, and when did it begin?", times_s=times_s, as_video=video),
        chat.encode(vlm, frames_of(4, 3), "Who?"),
    ]


def plain_logprobs(vlm, sample, ids):
    """Of these answer tokens, by the model's own forward on pixels; tokens of images and videos cannot be sampled."""
    whole = {**sample, "input_ids": torch.cat([sample["input_ids"], ids[None]], 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = torch.cat([sample["mm_token_type_ids"], torch.zeros_like(ids[None])], 1)
    with torch.no_grad():
        odds = vlm.model(**whole).logits[0, -len(ids) - 1 : -1].double().exp()
    odds[:, vlm.visual_token_ids] = 0
    return (odds / odds.sum(-1, keepdim=True)).log().float().gather(1, ids[:, None])[:, 0]

"""Key clips of a stream: which clips LSHMA remembers, as intended and as released (Han et al.).

- intended (default): a clip is kept when its mean feature lies further from the last key clip's than a running bar. The bar is
  made of the video itself: how far the halves of a clip lie apart (local) and how far neighbouring clips do (global), so
  the noise of a still camera stays below it and a cut stands far above it. One clip in every `every` is kept whatever
  happens; padding is ignored; the decision uses the past only, so it works on a stream
- as released: the similarity of a clip's halves is compared with that of the clip before, by a rule that has no scale.
  It keeps 59 % of pure noise and drops what does not change by exactly nothing; used in training only
Source: LSHMA's training scripts (MIT; read for facts), "temporal local and global similarities" in its README's figure.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8  # channels compared at a time by the released rule
WARM_UP = 4  # clips the released rule keeps before it decides
STRICT = 1.5  # the bar over the mean of the two running distances: a steady pan of one clip's length is just below it
FADE = 0.9  # of the running distances, per clip
SPIKE = 3.0  # a distance counts at most this many times the running one, so that a cut does not raise the bar for long
ROUNDING = 1e-6  # of a feature's size: means of fewer equal features differ by as much in float32


class KeyState(NamedTuple):
    """State of B streams: mean feature of the last key clip and of the last clip, and three numbers each."""

    key_mean: Tensor  # (B, D)
    last_mean: Tensor  # (B, D)
    local: Tensor  # (B,) running distance between a clip's halves
    wide: Tensor  # (B,) running distance between neighbouring clips
    since: Tensor  # (B,) clips since the last key clip; negative before the first clip

    @classmethod
    def empty(cls, batch: int, width: int, like: Tensor) -> "KeyState":
        """Return the state of streams that have not begun."""
        features, numbers = like.new_zeros(batch, width), like.new_zeros(batch)
        return cls(features, features, numbers, numbers, torch.full((batch,), -1, device=like.device))


def decide(clip: Tensor, state: KeyState, valid: Tensor, *, every: int) -> tuple[Tensor, Tensor, KeyState]:
    """Return which clips to keep (B,) bool, how far each stands over its bar (B,), and the new state.

    clip (B, N, D); valid (B,) is how many of its N features are real: 0 leaves a stream alone. A ratio over 1 is kept; it is
    infinite for a stream's first clip and for a change after perfect stillness.
    """
    clip = clip.detach().float()
    place = torch.arange(clip.shape[1], device=clip.device)
    half = (valid // 2)[:, None]
    mean = _mean(clip, place < valid[:, None])
    halves = _gap(_mean(clip, place < half), _mean(clip, (place >= valid[:, None] - half) & (place < valid[:, None])))
    step, moved = _gap(mean, state.last_mean), _gap(mean, state.key_mean)
    here, first, halved = valid > 0, state.since < 0, valid > 1
    bare = first | (state.local + state.wide == 0)  # nothing has moved yet: there is no bar to raise step by step

    bar = STRICT * (state.local + state.wide) / 2
    ratio = torch.where(moved > 0, moved / bar.clamp_min(1e-12), torch.zeros_like(moved))
    ratio = torch.where(first, torch.full_like(ratio, torch.inf), ratio)
    keep = here & ((ratio > 1) | (state.since + 1 >= every))

    local = torch.where(halved, torch.where(bare, halves, _running(state.local, halves)), state.local)
    wide = torch.where(bare, halves / 2**0.5, _running(state.wide, step))  # what noise alone would give
    since = torch.where(keep, torch.zeros_like(state.since), state.since + 1)
    new = KeyState(torch.where(keep[:, None], mean, state.key_mean), mean, local, wide, since)
    changed = (torch.where(here.view(-1, *[1] * (old.ndim - 1)), now, old) for now, old in zip(new, state, strict=True))
    return keep, ratio, KeyState(*changed)


def decide_all(clips: Tensor, state: KeyState, valid: Tensor, *, every: int) -> tuple[Tensor, KeyState]:
    """Return which clips (B, C, N, D) to keep, (B, C) bool, and the new state; valid (B, C), as in `decide`."""
    kept = []
    for clip, real in zip(clips.unbind(1), valid.unbind(1), strict=True):
        keep, _, state = decide(clip, state, real, every=every)
        kept.append(keep)
    return torch.stack(kept, 1), state


def key_clips(
    features: np.ndarray | Tensor, *, window: int, released: bool = False, every: int = 8, half_precision: bool = False
) -> np.ndarray:
    """Return which clips of `window` features are kept, bool (ceil(T / window),), of features (T, D).

    `released` takes the released rule (D a multiple of 8, window even), `half_precision` computes it in float16 as the
    released training did: a padded last clip is then not a number and never kept after the fourth.
    """
    x = torch.as_tensor(features)
    if x.ndim != 2 or not len(x) or window < 2:
        raise ValueError(f"need features (T, D) with T at least 1 and a window of 2 or more, got {tuple(x.shape)}, {window}")
    if released:
        return _released(half_similarity(x, window=window, half_precision=half_precision))
    return trace(x, window=window, every=every)[0]


def trace(features: np.ndarray | Tensor, *, window: int, every: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return which clips are kept (C,) and how far each stood over its bar (C,), as `key_clips` decides it."""
    x = torch.as_tensor(features).float()
    state = KeyState.empty(1, x.shape[1], x)
    kept, ratios = [], []
    for start in range(0, len(x), window):
        clip = x[start : start + window]
        valid = torch.tensor([len(clip)], device=x.device)
        padded = F.pad(clip, (0, 0, 0, window - len(clip)))[None]
        keep, ratio, state = decide(padded, state, valid, every=every)
        kept.append(bool(keep))
        ratios.append(float(ratio))
    return np.array(kept), np.array(ratios)


def half_similarity(features: np.ndarray | Tensor, *, window: int, half_precision: bool = False) -> Tensor:
    """Return the released similarity of each clip's halves, (ceil(T / window),) in [0, 1].

    The lowest, over blocks of 8 channels, of the mean over places of (cosine + 1) / 2; features are padded with zeros.
    """
    x = torch.as_tensor(features)
    if x.shape[1] % BLOCK or window % 2:
        raise ValueError(f"the released rule needs D a multiple of {BLOCK} and an even window, got {x.shape[1]}, {window}")
    x = F.pad(x.half() if half_precision else x.float(), (0, 0, 0, -len(x) % window))
    first, last = x.view(-1, 2, window // 2, x.shape[1] // BLOCK, BLOCK).unbind(1)  # (C, N/2, D/8, 8) each
    if half_precision:  # the guard of 1e-8 underflows to zero in float16: padding gives 0 / 0
        length = (first.square().sum(-1) * last.square().sum(-1)).sqrt()
        cosine = (first * last).sum(-1) / length
    else:
        cosine = F.cosine_similarity(first, last, dim=-1)
    return ((cosine + 1) / 2).mean(1).amin(-1).float()  # over places, then over blocks


def _released(similarity: Tensor) -> np.ndarray:
    """Keep n > 3 iff the last step of similarity exceeds the standard deviation of the last two, which is not 0."""
    kept = np.ones(len(similarity), bool)
    for n in range(WARM_UP, len(similarity)):
        steps = similarity[n - 2 : n + 1].diff()
        std = steps.std(correction=0)
        kept[n] = bool((std != 0) & (steps[1].abs() > std))  # nan compares false: not kept
    return kept


def _mean(clip: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean feature (B, D) of the chosen (B, N) ones of clip (B, N, D), 0 where none is."""
    return clip.where(chosen[..., None], 0).sum(1) / chosen.sum(1, keepdim=True).clamp_min(1)


def _gap(a: Tensor, b: Tensor) -> Tensor:
    gap = (a - b).square().mean(-1).sqrt()
    return gap.where(gap > ROUNDING * a.square().mean(-1).sqrt(), 0)


def _running(before: Tensor, now: Tensor) -> Tensor:
    return FADE * before + (1 - FADE) * torch.minimum(now, SPIKE * before.clamp_min(1e-12))

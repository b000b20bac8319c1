"""A camera that hangs still films the same wall all day; what moves, or was not there before, is a tenth of the picture.

Which tokens of a video say something new, from features alone: rules on (T, H, W, D) arrays, nothing is trained.
- ours: a token is kept where it moves (differs from the same place a moment before) or stands out from the scene's
  background: from the median of its stretch and from the stretch's first frame, which is kept whole, so that what looks
  as it did then is no news; differing from the first alone counts less (a parcel left behind, or the place of who left)
- light and gain change everywhere at once, so they are fitted per moment on the calm half of the tokens and taken away;
  averaging over small blocks of pixels (`patches`) takes most of the noise before anything is compared
- a hard cut or a long time begins another stretch with a background of its own; where nothing stays (a moving camera) every
  moment is a stretch and the rule becomes "differs from the moment before"
- peers with the same signature: keep all, random, uniform frames, down-sampling, EVS, DTD, VidCom²
T counts temporal patches (two frames each in Qwen2.5-VL), H x W the tokens of one, D their width.
Sources: EVS arXiv 2510.14624, DTD (TimeChat-Online) 2504.17343, VidCom² EMNLP 2025; rules restated, no code taken.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 28  # pixels of a token's side in Qwen2.5-VL: two patches of 14

GRAIN = 7  # pixels averaged before comparing; noise falls by as much

STRETCH = 64  # temporal patches that share a background; a minute at two frames per second

MAX_TOKENS = 2**20  # of one video; its medians would not fit a small machine

CALM = 0.5  # share of a moment's tokens that tell its light

CUT = 0.5  # two moments of one scene resemble each other more than this (correlation)

FIRST = 0.4  # weight of differing from the first frame only (at 1, who leaves haunts the place); chosen on drawn scenes

MOVE = 0.1  # weight of differing from the moment before; chosen on drawn scenes

ORDINARY = 2.0  # times the usual change, below which a token is noise and its moment decides

Array = np.ndarray | Tensor


def redundancy(features: Array) -> Array:
    """Return how little each token adds, (T, H, W) in [0, 1], of features (T, H, W, D): 1 repeats, 0 is new.

    .5 is what an ordinary token of the scene differs by (noise), .25 three times that. The first frame and the first of
    every stretch are 0: nothing came before. Numpy in, numpy out. ValueError for no tokens, too many, or NaN.
    """
    tokens = _tokens(features)
    change, starts = _novelty(tokens)
    usual = _usual(change, starts).clamp_min(
        1e-3 * tokens.std(correction=0) + 1e-12
    )  # at least a thousandth of the contrast
    scores = usual / (usual + change)
    scores[_anchors(change, starts, 1.0)] = 0
    return _like(scores, features)


def keep_mask(features: Array, *, share: float | None = None, threshold: float | None = None) -> Array:
    """Choose tokens to keep, bool (T, H, W), of features (T, H, W, D).

    `share` in (0, 1] keeps max(H * W, floor(share * T * H * W)) tokens, known before anything is computed; `threshold` in
    [0, 1] keeps every token whose `redundancy` is at most that. The first frame is always whole, and so is the first
    of later stretches while they take less than half of what is kept.
    """
    if (share is None) == (threshold is None):
        raise ValueError(f"give either share or threshold, got share={share} and threshold={threshold}")
    tokens = _tokens(features)
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        return _like(torch.as_tensor(redundancy(tokens)) <= threshold, features)
    count = budget(tokens.shape[:3], share)
    change, starts = _novelty(tokens)
    change = _gathered(change, ORDINARY * _usual(change, starts))
    change[_anchors(change, starts, count / change.numel())] = math.inf
    return _like(_largest(change, count), features)


def budget(shape: tuple[int, int, int], share: float) -> int:
    """Return how many tokens of a (T, H, W) video `share` keeps, at least one whole frame; ValueError outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    # 1e-9: .3 of 10 tokens are 3, whatever binary fractions say
    return max(shape[1] * shape[2], math.floor(share * math.prod(shape) + 1e-9))


def stretches(tokens: Tensor) -> list[int]:
    """Return where stretches begin, of tokens (T, H, W, D): at 0, at hard cuts, and so that none is longer than STRETCH.

    A cut: the picture's likeness to the moment before is below CUT, and most places changed. Likeness is a correlation over
    all places, so light does not cut.
    """
    flat = tokens.flatten(1, 2)  # (T, N, D)
    parted = flat - flat.mean((1, 2), keepdim=True)
    size = parted.square().sum((1, 2)).sqrt()
    alike = (parted[1:] * parted[:-1]).sum((1, 2)) / (size[1:] * size[:-1]).clamp_min(1e-12)
    typical = _gap(flat[1:], flat[:-1]).median(1).values  # (T - 1,), what the middle place changed by
    cut = (alike < CUT) & (typical > 0.25 * parted.square().mean().sqrt())
    cuts = [0, *(cut.nonzero().flatten() + 1).tolist(), len(tokens)]
    begins = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        parts = math.ceil((end - start) / STRETCH)  # equal parts, none a scrap
        begins += [start + (end - start) * part // parts for part in range(parts)]
    return begins


def _novelty(tokens: Tensor) -> tuple[Tensor, list[int]]:
    """Return how much is new in each token, (T, H, W) >= 0 in the features' unit, and where stretches begin."""
    starts = stretches(tokens)
    change = torch.zeros(tokens.shape[:3], dtype=tokens.dtype, device=tokens.device)
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        seen = _steady(tokens[start:end])
        first = _gap(seen, seen[:1])
        away = torch.maximum(torch.minimum(_gap(seen, _middle(seen)), first), FIRST * first)
        moved = _gap(seen[1:], seen[:-1])
        change[start + 1 : end] = away[1:] + MOVE * moved
        if start:  # a new scene is judged by what it replaced
            change[start] = _gap(tokens[start], tokens[start - 1])
    return change, starts


def _usual(change: Tensor, starts: list[int]) -> Tensor:
    """Return what an ordinary token of the scene changes by, a scalar: the median outside the stretches' firsts, 0 if none."""
    later = torch.ones(len(change), dtype=torch.bool, device=change.device)
    later[starts] = False
    return change[later].median() if later.any() else change.new_tensor(0.0)


def _gathered(change: Tensor, noise: Tensor) -> Tensor:
    """Rank what is below `noise` by its moment: what the budget leaves over goes where something happens.

    Quiet moments then lose all their tokens, and a tower need not encode them.
    """
    busiest = change.flatten(1).amax(1)[:, None, None]
    by_moment = noise * (busiest / busiest.max().clamp_min(1e-12)).clamp(max=0.99)
    return torch.where(change < noise, by_moment + 0.01 * change, change)


def _steady(tokens: Tensor) -> Tensor:
    """Return the tokens (T, H, W, D) of one stretch in the light of its background: gain and offset per moment undone.

    Least squares on the calm half, twice: first all places vote, then those that already fit.
    """
    scene = _middle(tokens).flatten(0, 1)  # (N, D)
    flat = tokens.flatten(1, 2)  # (T, N, D)
    weight = torch.ones_like(flat[..., :1])  # (T, N, 1)
    for _ in range(3):
        share = weight / weight.sum(1, keepdim=True) / flat.shape[-1]
        centre, level = ((share * x).sum((1, 2), keepdim=True) for x in (scene, flat))  # (T, 1, 1)
        spread = (share * (scene - centre).square()).sum((1, 2), keepdim=True)
        gain = (share * (scene - centre) * (flat - level)).sum((1, 2), keepdim=True) / spread.clamp_min(1e-12)
        gain = torch.where((gain > 0.5) & (gain < 2), gain, torch.ones_like(gain))  # beyond, it is no light
        offset = level - gain * centre
        error = _gap(flat, gain * scene + offset)[..., None]
        weight = (error <= error.quantile(CALM, dim=1, keepdim=True)).to(flat.dtype)
    return ((flat - offset) / gain).view_as(tokens)


def _middle(tokens: Tensor) -> Tensor:
    """Return the median over time, (H, W, D); of an even number of moments, halfway between the two in the middle."""
    return (tokens.median(0).values - (-tokens).median(0).values) / 2


def _gap(one: Tensor, other: Tensor) -> Tensor:
    """Return the root mean square difference over the last axis: a small strong change counts more than a faint wide one."""
    return (one - other).square().mean(-1).sqrt()


def _anchors(change: Tensor, starts: list[int], share: float) -> list[int]:
    """Return the moments kept whole: the first, and stretches' firsts while they fill less than half of the budget."""
    room = math.floor(share * len(change) / 2)
    return starts[: max(1, room)]


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` largest scores (T, H, W); earlier tokens win ties, so the same video gives the same."""
    order = scores.flatten().argsort(descending=True, stable=True)[:count]
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order] = True
    return mask.view(scores.shape)


def _tokens(features: Array) -> Tensor:
    """Return features (T, H, W, D) as floats, checked."""
    if getattr(features, "ndim", 0) != 4 or 0 in features.shape:
        raise ValueError(f"a video needs tokens (T, H, W, D), at least one, got shape {tuple(np.shape(features))}")
    if math.prod(features.shape[:3]) > MAX_TOKENS:
        raise ValueError(
            f"{math.prod(features.shape[:3])} tokens in one video, at most {MAX_TOKENS}: read fewer frames"
        )
    tokens = torch.as_tensor(features).detach()
    tokens = tokens.to(tokens.dtype if tokens.dtype == torch.float64 else torch.float32)
    if not tokens.isfinite().all():
        raise ValueError(f"features of shape {tuple(features.shape)} hold NaN or infinity")
    return tokens


def _like(result: Tensor, features: Array) -> Array:
    return result if isinstance(features, Tensor) else result.numpy()


# Peers


def keep_all(features: Array, *, share: float = 1.0) -> Array:
    """Keep every token, whatever the share."""
    return _like(torch.ones(_tokens(features).shape[:3], dtype=torch.bool), features)


def random_tokens(features: Array, *, share: float, seed: int = 0) -> Array:
    """Keep tokens by lot; a share of each kind of content survives, no more."""
    shape = _tokens(features).shape[:3]
    lot = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return _like(_largest(lot, budget(shape, share)), features)


def random_ratio(least: float) -> Callable[..., Array]:
    """Return a rule for tuning: `keep_mask` at a share drawn by torch for every film, log-uniform in [least, share]."""
    return lambda features, *, share: keep_mask(features, share=least * (share / least) ** float(torch.rand(())))


def uniform_frames(features: Array, *, share: float) -> Array:
    """Keep whole temporal patches at equal distances, the first among them, as many as fit the share (at least one)."""
    shape = _tokens(features).shape[:3]
    count = budget(shape, share) // (shape[1] * shape[2])
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[torch.arange(count) * shape[0] // count] = True
    return _like(mask, features)


def down_sampling(features: Array, *, share: float) -> Array:
    """Keep the same sparse lattice of places in every frame: how far a lower resolution gets with as many tokens.

    Real down-sampling averages pixels before the tower (`smaller` gives the size); a mask can only choose. A lattice has no
    exact share: rows and columns are those nearest to its square root.
    """
    frames, height, width = _tokens(features).shape[:3]
    budget((frames, height, width), share)
    rows = min(height, max(1, round(height * share**0.5)))
    columns = min(width, max(1, round(width * share * height / rows)))
    places = [(torch.arange(n) * 2 + 1) * size // (2 * n) for n, size in ((rows, height), (columns, width))]
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    mask[:, places[0][:, None], places[1][None]] = True
    return _like(mask, features)


def smaller(height: int, width: int, share: float, *, cell: int = CELL) -> tuple[int, int]:
    """Return the pixel size whose frames have about `share` as many tokens as (height, width), whole cells each way."""
    budget((1, 1, 1), share)
    return tuple(max(1, round(side * share**0.5 / cell)) * cell for side in (height, width))


def evs(features: Array, *, share: float) -> Array:
    """EVS: keep what differs most, by 1 - cosine, from the same place one moment before; the first frame whole.

    One budget for the whole video, max(H * W, floor(share * T * H * W)), as its vLLM version has it.
    """
    tokens = _tokens(features)
    change = 1 - F.cosine_similarity(tokens[1:], tokens[:-1], dim=-1)
    change = torch.cat([torch.full_like(tokens[:1, ..., 0], math.inf), change])
    return _like(_largest(change, budget(tokens.shape[:3], share)), features)


def dtd(features: Array, *, share: float | None = None, threshold: float | None = None) -> Array:
    """DTD: drop a token whose cosine with the same place one moment before is above `threshold`; the first frame whole.

    With `share`, every later frame keeps as many as the others (its per-frame top-k), those that changed most.
    """
    if (share is None) == (threshold is None):
        raise ValueError(f"give either share or threshold, got share={share} and threshold={threshold}")
    tokens = _tokens(features)
    frames, height, width = tokens.shape[:3]
    alike = F.cosine_similarity(tokens[1:], tokens[:-1], dim=-1)
    first = torch.ones_like(tokens[:1, ..., 0], dtype=torch.bool)
    if threshold is not None:
        return _like(torch.cat([first, alike <= threshold]), features)
    rest = budget((frames, height, width), share) - height * width
    counts = [rest * (t + 1) // (frames - 1) - rest * t // (frames - 1) for t in range(frames - 1)]
    later = [_largest(-moment, count) for moment, count in zip(alike, counts, strict=True)]
    return _like(torch.cat([first, torch.stack(later)]) if later else first, features)


def vidcom2(features: Array, *, share: float) -> Array:
    """VidCom²: keep what is least like the video's mean and its own frame's; frames unlike the video get more tokens.

    On the half of the channels that vary least, tokens scaled to length 1; likeness is a sum of five Gaussians. A frame's
    share is share * (1 + softmax over frames of minus its mean likeness / .01 - 1 / T), at most 1; counts are made to add
    up to floor(share * T * H * W), one token at least.
    """
    tokens = _tokens(features)
    budget(tokens.shape[:3], share)
    frames, places = len(tokens), tokens.shape[1] * tokens.shape[2]
    flat = tokens.flatten(1, 2)  # (T, N, D)
    calm = flat.flatten(0, 1).var(0, correction=0).argsort(stable=True)[: max(1, (flat.shape[-1] + 1) // 2)]
    unit = F.normalize(flat[..., calm], dim=-1)
    to_video, to_frame = (_kernel(unit, unit.mean(axes, keepdim=True)) for axes in ((0, 1), (1,)))  # (T, N)
    unusual = (-to_video.mean(1) / 0.01).softmax(0)
    wanted = (share * (1 + unusual - 1 / frames)).clamp(max=1) * places
    counts = _rounded(wanted, max(1, math.floor(share * frames * places + 1e-9)), places)
    chosen = [_largest(-row, count) for row, count in zip(to_video + to_frame, counts, strict=True)]
    return _like(torch.stack(chosen).view(tokens.shape[:3]), features)


def _kernel(unit: Tensor, centre: Tensor) -> Tensor:
    far = (unit - centre).square().sum(-1)
    return sum((-far / (2 * width)).exp() for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))


def _rounded(wanted: Tensor, total: int, most: int) -> list[int]:
    """Return whole numbers near `wanted` that add up to `total`, none above `most`: what is left goes to the neediest."""
    counts = wanted.floor().clamp(max=most)
    while (missing := total - int(counts.sum())) != 0:
        step = 1 if missing > 0 else -1
        need = (wanted - counts) * step
        need[counts >= most if step > 0 else counts <= 0] = -math.inf
        counts[need.topk(min(abs(missing), int(need.isfinite().sum()))).indices] += step
    return [int(count) for count in counts]


RULES: dict[str, Callable[..., Array]] = {
    "moves or stands out (ours)": keep_mask, "keep all": keep_all, "random": random_tokens, "uniform frames": uniform_frames,
    "down-sampling": down_sampling, "EVS": evs, "DTD": dtd, "VidCom²": vidcom2,
}  # fmt: skip


# Pixels as tokens


def patches(frames: np.ndarray, *, cell: int = CELL, grain: int = GRAIN, temporal: int = 2) -> np.ndarray:
    """Return frames uint8 (N, H, W, 3) as plain tokens, float32 (N // temporal, H / cell, W / cell, D): averaged pixels.

    What a rule can look at before any network runs: blocks of `grain` x `grain` pixels, mean over `temporal` frames, levels
    0 to 255. Sides are resized to whole cells, as a processor does; a last odd frame is left out.
    """
    _whole(frames, cell, grain, temporal)
    count, height, width = (len(frames) // temporal, *(max(1, round(side / cell)) for side in frames.shape[1:3]))
    tokens = np.empty((count, height, width, 3 * (cell // grain) ** 2), np.float32)
    for moment in range(count):  # one at a time: a film as floats would be four times its size
        part = torch.from_numpy(frames[moment * temporal : (moment + 1) * temporal]).permute(0, 3, 1, 2).float()
        part = _resized(part, (height * cell, width * cell), mode="bilinear", antialias=True).mean(0)
        tokens[moment] = cells(F.avg_pool2d(part[None], grain), height, width)[0].numpy()
    return tokens


def covered(masks: np.ndarray, *, cell: int = CELL, temporal: int = 2) -> np.ndarray:
    """Return which share of each token's pixels a mask (N, H, W) covers, (N // temporal, H / cell, W / cell) in [0, 1]."""
    _whole(masks, cell, 1, temporal)
    count, height, width = (len(masks) // temporal, *(max(1, round(side / cell)) for side in masks.shape[1:3]))
    shares = np.empty((count, height, width), np.float32)
    for moment in range(count):
        part = torch.from_numpy((masks[moment * temporal : (moment + 1) * temporal] > 0).astype(np.float32))[:, None]
        shares[moment] = _resized(part, (height, width), mode="area").mean((0, 1)).numpy()
    return shares


def cells(picture: Tensor, height: int, width: int) -> Tensor:
    """Cut pictures (T, C, h * height, w * width) into tokens (T, height, width, C * h * w)."""
    tall, wide = picture.shape[2] // height, picture.shape[3] // width
    cut = picture.reshape(len(picture), -1, height, tall, width, wide)  # (T, C, H, h, W, w)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3)


def disturbed(
    frames: np.ndarray, rng: np.random.Generator, *, noise: float = 6.0, flicker: float = 0.04, sway: float = 2.5
) -> np.ndarray:
    """Return frames uint8 (N, H, W, 3) as a worse camera in worse weather films them; what is where stays exact.

    `noise` levels of white noise, light that flickers by a share of `flicker`, and the upper left ninth of the picture
    swaying like leaves by `sway` pixels. For studies on drawn scenes.
    """
    tall, wide = frames.shape[1] // 3, frames.shape[2] // 3
    rows, columns = np.mgrid[:tall, :wide]
    phase, worse = rng.uniform(0, 2 * np.pi, 2), np.empty_like(frames)
    for number, frame in enumerate(frames):
        film = frame.astype(np.float32)
        at = np.clip(columns + sway * np.sin(0.55 * number + phase[0] + rows / 9), 0, frames.shape[2] - 2)
        left = at.astype(int)
        part = (at - left)[..., None].astype(np.float32)
        film[:tall, :wide] = film[rows, left] * (1 - part) + film[rows, left + 1] * part
        film *= 1 + flicker * np.sin(2.1 * number + phase[1]) * rng.uniform(0.5, 1)
        worse[number] = np.clip(film + rng.normal(0, noise, film.shape), 0, 255)
    return worse


def survived(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the tokens in `truth` bool (T, H, W) that `mask` keeps; NaN where there are none."""
    return float(mask[truth].mean()) if truth.any() else math.nan


def _whole(film: np.ndarray, cell: int, grain: int, temporal: int) -> None:
    if len(film) < temporal or 0 in film.shape:
        raise ValueError(f"a video needs {temporal} frames or more, got shape {film.shape}")
    if cell % grain:
        raise ValueError(f"cell must be a multiple of grain, got {cell} and {grain}")


def _resized(picture: Tensor, size: tuple[int, int], **how) -> Tensor:
    return picture if picture.shape[-2:] == size else F.interpolate(picture, size, **how)

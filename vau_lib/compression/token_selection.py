"""Training-free selection of video tokens: two rules of ours, EVS, DTD, VidCom² and simple baselines.

Every rule takes features (T, H, W, D) and a keep ratio and returns a mask (T, H, W). T counts temporal patches (two frames
each in Qwen2.5-VL), here called moments; H x W are the tokens of one moment, D is their width.

Our rule keeps what moves and what was not there before:
- a token scores high where it differs from the same place one moment earlier, or from the background. The background is the
  median over a segment and the segment's first moment, which is kept whole. A difference from the first moment alone counts
  less: it is a parcel left behind, or the place of somebody who left.
- light and gain change everywhere at once. They are fitted per moment on the stable half of the tokens and removed.
- averaging blocks of pixels (`pixel_tokens`) removes most of the noise before anything is compared.
- a hard cut or a long time begins a new segment with its own background. With a moving camera every moment is a segment, and
  the rule becomes the difference from the moment before.
Its tokens lie in nearly every moment, so that a vision tower encodes all of them. `few_moments` chooses moments first: where what
is new adds up to equal parts of a video (as ATS chooses frames by scores), and only then tokens inside them.
Sources: EVS arXiv 2510.14624, DTD (TimeChat-Online) arXiv 2504.17343, VidCom² EMNLP 2025. Rules restated, no code taken.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TOKEN_PX = 28  # side of a token in Qwen2.5-VL: two patches of 14
BLOCK_PX = 7  # side of the blocks that are averaged before comparing; noise falls by as much
SEGMENT_LENGTH = 64  # moments that have one background; a minute at two frames per second
MAX_TOKENS = 2**20  # of one video; its medians would not fit a small machine
STABLE_FRACTION = 0.5  # of a moment's tokens, on which its light is fitted
CUT_CORRELATION = 0.5  # two moments of one scene correlate by more than this
FIRST_MOMENT_WEIGHT = 0.4  # of a difference from the first moment only (at 1, who leaves is kept); chosen on synthetic scenes
MOTION_WEIGHT = 0.1  # of the difference from the moment before; chosen on synthetic scenes
ENCODED_PER_READ = (1.0, 1.5)  # moments encoded per moment's worth of tokens read, up to the first keep ratio and from the second
ENCODED_RATIOS = (0.3, 0.5)  # between them in proportion; chosen on drawn near places (training and validation videos), see LAB
EVEN_MASS = 0.1  # of the greatest newness of a moment, that every moment counts with
NOISE_FACTOR = 2.0  # times the median novelty: below it a token is noise, and its moment decides
Array = np.ndarray | Tensor


def redundancy(features: Array) -> Array:
    """Return how little each token adds, (T, H, W) in [0, 1], of features (T, H, W, D): 1 repeats, 0 is new.

    A token at noise level scores .5, one with three times as much novelty .25. Moments that are kept whole score 0. Numpy in,
    numpy out. ValueError for no tokens, too many, or NaN.
    """
    tokens = _checked(features)
    novelty, starts = _novelty(tokens)
    # at least a thousandth of the contrast, for scenes without noise
    noise = _noise_level(novelty, starts).clamp_min(1e-3 * tokens.std(correction=0) + 1e-12)
    scores = noise / (noise + novelty)
    scores[_whole_moments(novelty, starts, 1.0)] = 0
    return _same_type(scores, features)


def keep_mask(features: Array, *, keep_ratio: float | None = None, threshold: float | None = None) -> Array:
    """Choose tokens to keep by our rule, bool (T, H, W), of features (T, H, W, D).

    `keep_ratio` in (0, 1] keeps max(H * W, floor(keep_ratio * T * H * W)) tokens, a number known beforehand. `threshold` in
    [0, 1] keeps every token whose `redundancy` is at most that. The first moment is always whole, and so is the first of later
    segments while these take less than half of the budget.
    """
    check_amount(keep_ratio, threshold)
    tokens = _checked(features)
    if threshold is not None:
        return _same_type(torch.as_tensor(redundancy(tokens)) <= threshold, features)
    count = token_budget(tokens.shape[:3], keep_ratio)
    novelty, starts = _novelty(tokens)
    novelty = _noise_by_moment(novelty, NOISE_FACTOR * _noise_level(novelty, starts))
    novelty[_whole_moments(novelty, starts, count / novelty.numel())] = math.inf
    return _same_type(_top_k(novelty, count), features)


def encoded_per_read(keep_ratio: float) -> float:
    """Return how many moments are encoded per moment's worth of tokens: few tokens stand in as few moments as can hold them."""
    return float(np.interp(keep_ratio, ENCODED_RATIOS, ENCODED_PER_READ))


def few_moments(features: Array, *, keep_ratio: float, encoded: float | None = None, even_mass: float = EVEN_MASS) -> Array:
    """Choose few moments and the newest tokens inside them, bool (T, H, W), of features (T, H, W, D).

    At most max(1, floor(encoded * keep_ratio * T)) moments keep tokens, so a tower's work shrinks with the ratio; `encoded` is
    `encoded_per_read(keep_ratio)` if it is not given. At most max(H * W, floor(keep_ratio * T * H * W)) tokens are kept, and no
    more than the moments hold. Moments stand in the middles of equal parts of a mass: how much is new in each, plus `even_mass` of
    the largest, so that a quiet video is read at even steps.
    """
    check_amount(keep_ratio, None)
    tokens = _checked(features)
    encoded = encoded_per_read(keep_ratio) if encoded is None else encoded
    moments = min(len(tokens), max(1, math.floor(encoded * keep_ratio * len(tokens) + 1e-9)))
    novelty, starts = _novelty(tokens)
    noise = NOISE_FACTOR * _noise_level(novelty, starts)
    chosen = _equal_parts((novelty - noise).clamp_min(0).flatten(1).sum(1), moments, even_mass)
    outside = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    outside[chosen] = False
    novelty[outside] = -math.inf
    count = min(token_budget(tokens.shape[:3], keep_ratio), moments * novelty[0].numel())
    return _same_type(_top_k(novelty, count), features)


def _equal_parts(newness: Tensor, count: int, even_mass: float) -> list[int]:
    """Return `count` different moments in the middles of equal parts of the mass of `newness` (T,), then the newest others."""
    newness = newness.cpu().double()
    mass = (newness / newness.max().clamp_min(1e-12) + even_mass).cumsum(0)
    middles = (torch.arange(count, dtype=mass.dtype) + 0.5) / count * mass[-1]
    chosen = dict.fromkeys(torch.searchsorted(mass, middles).clamp(max=len(mass) - 1).tolist())
    chosen |= dict.fromkeys(newness.argsort(descending=True, stable=True).tolist())  # the first of these fill up
    return list(chosen)[:count]


def check_amount(keep_ratio: float | None, threshold: float | None) -> None:
    """Raise ValueError unless exactly one of both is given, `keep_ratio` in (0, 1] or `threshold` in [0, 1]."""
    if (keep_ratio is None) == (threshold is None):
        raise ValueError(f"give either keep_ratio or threshold, got keep_ratio={keep_ratio} and threshold={threshold}")
    if keep_ratio is not None and not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be above 0 and at most 1, got {keep_ratio}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")


def token_budget(shape: tuple[int, int, int], keep_ratio: float) -> int:
    """Return how many tokens of a (T, H, W) video are kept, at least one whole moment; ValueError for a ratio outside (0, 1]."""
    check_amount(keep_ratio, None)
    # 1e-9: .3 of 10 tokens are 3, whatever binary fractions say
    return max(shape[1] * shape[2], math.floor(keep_ratio * math.prod(shape) + 1e-9))


def segment_starts(tokens: Tensor) -> list[int]:
    """Return where segments begin, of tokens (T, H, W, D): at 0, at hard cuts, and so that none exceeds SEGMENT_LENGTH.

    A cut: the correlation with the moment before is below CUT_CORRELATION and most places changed. A correlation over all
    places does not react to light.
    """
    flat = tokens.flatten(1, 2)  # (T, N, D)
    centred = flat - flat.mean((1, 2), keepdim=True)
    norm = centred.square().sum((1, 2)).sqrt()
    correlation = (centred[1:] * centred[:-1]).sum((1, 2)) / (norm[1:] * norm[:-1]).clamp_min(1e-12)
    median_change = _rms_difference(flat[1:], flat[:-1]).median(1).values  # (T - 1,), over places
    is_cut = (correlation < CUT_CORRELATION) & (median_change > 0.25 * centred.square().mean().sqrt())
    cuts = [0, *(is_cut.nonzero().flatten() + 1).tolist(), len(tokens)]
    starts = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        parts = math.ceil((end - start) / SEGMENT_LENGTH)  # equal parts, no short rest
        starts += [start + (end - start) * part // parts for part in range(parts)]
    return starts


def _novelty(tokens: Tensor) -> tuple[Tensor, list[int]]:
    """Return how much is new in each token, (T, H, W) >= 0 in the features' unit, and where segments begin."""
    starts = segment_starts(tokens)
    novelty = torch.zeros(tokens.shape[:3], dtype=tokens.dtype, device=tokens.device)
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        segment = _normalise_light(tokens[start:end])
        from_first = _rms_difference(segment, segment[:1])
        from_both = torch.minimum(_rms_difference(segment, _median(segment)), from_first)
        from_background = torch.maximum(from_both, FIRST_MOMENT_WEIGHT * from_first)
        motion = _rms_difference(segment[1:], segment[:-1])
        novelty[start + 1 : end] = from_background[1:] + MOTION_WEIGHT * motion
        if start:  # a new scene is compared with what it replaced
            novelty[start] = _rms_difference(tokens[start], tokens[start - 1])
    return novelty, starts


def _noise_level(novelty: Tensor, starts: list[int]) -> Tensor:
    """Return the median novelty outside the segments' first moments, a scalar; 0 if there are no others."""
    later = torch.ones(len(novelty), dtype=torch.bool, device=novelty.device)
    later[starts] = False
    return novelty[later].median() if later.any() else novelty.new_tensor(0.0)


def _noise_by_moment(novelty: Tensor, noise: Tensor) -> Tensor:
    """Rank tokens below `noise` by the largest novelty of their moment, so that spare budget goes where something happens.

    Quiet moments then lose all their tokens, and a vision tower need not encode them.
    """
    peak = novelty.flatten(1).amax(1)[:, None, None]
    by_moment = noise * (peak / peak.max().clamp_min(1e-12)).clamp(max=0.99)
    return torch.where(novelty < noise, by_moment + 0.01 * novelty, novelty)


def _normalise_light(tokens: Tensor) -> Tensor:
    """Return the tokens (T, H, W, D) of a segment in the light of its background: gain and offset per moment removed.

    Least squares on all places first, then twice on the half that fits best.
    """
    background = _median(tokens).flatten(0, 1)  # (N, D)
    flat = tokens.flatten(1, 2)  # (T, N, D)
    weight = torch.ones_like(flat[..., :1])  # (T, N, 1)
    for _ in range(3):
        weight = weight / weight.sum(1, keepdim=True) / flat.shape[-1]
        centre, level = ((weight * x).sum((1, 2), keepdim=True) for x in (background, flat))  # (T, 1, 1)
        variance = (weight * (background - centre).square()).sum((1, 2), keepdim=True)
        gain = (weight * (background - centre) * (flat - level)).sum((1, 2), keepdim=True) / variance.clamp_min(1e-12)
        gain = torch.where((gain > 0.5) & (gain < 2), gain, torch.ones_like(gain))  # beyond, it is no change of light
        offset = level - gain * centre
        error = _rms_difference(flat, gain * background + offset)[..., None]
        weight = (error <= error.quantile(STABLE_FRACTION, dim=1, keepdim=True)).to(flat.dtype)
    return ((flat - offset) / gain).view_as(tokens)


def _median(tokens: Tensor) -> Tensor:
    """Return the median over time, (H, W, D); halfway between the two middle values of an even number of moments."""
    return (tokens.median(0).values - (-tokens).median(0).values) / 2


def _rms_difference(a: Tensor, b: Tensor) -> Tensor:
    """Return the root mean square difference over the last axis: a small strong change counts more than a faint wide one."""
    return (a - b).square().mean(-1).sqrt()


def _whole_moments(novelty: Tensor, starts: list[int], keep_ratio: float) -> list[int]:
    """Return the moments kept whole: the first, and segments' firsts while they fill less than half of the budget."""
    return starts[: max(1, math.floor(keep_ratio * len(novelty) / 2))]


def _top_k(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` largest scores; earlier tokens win ties, so that the result is deterministic."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view(scores.shape)


def _checked(features: Array) -> Tensor:
    """Return features (T, H, W, D) as floats, checked."""
    if getattr(features, "ndim", 0) != 4 or 0 in features.shape:
        raise ValueError(f"a video needs tokens (T, H, W, D), at least one, got shape {tuple(np.shape(features))}")
    if math.prod(features.shape[:3]) > MAX_TOKENS:
        raise ValueError(f"{math.prod(features.shape[:3])} tokens in one video, at most {MAX_TOKENS}: read fewer frames")
    tokens = torch.as_tensor(features).detach()
    tokens = tokens.to(tokens.dtype if tokens.dtype == torch.float64 else torch.float32)
    if not tokens.isfinite().all():
        raise ValueError(f"features of shape {tuple(features.shape)} hold NaN or infinity")
    return tokens


def _same_type(result: Tensor, features: Array) -> Array:
    return result.to(features.device) if isinstance(features, Tensor) else result.cpu().numpy()


# Baselines


def keep_all(features: Array, *, keep_ratio: float = 1.0) -> Array:
    """Keep every token, whatever `keep_ratio` is."""
    return _same_type(torch.ones(_checked(features).shape[:3], dtype=torch.bool), features)


def random_tokens(features: Array, *, keep_ratio: float, seed: int = 0) -> Array:
    """Keep random tokens: of each kind of content about `keep_ratio` survives."""
    shape = _checked(features).shape[:3]
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return _same_type(_top_k(scores, token_budget(shape, keep_ratio)), features)


def random_ratio(least: float, rule: Callable[..., Array] = keep_mask) -> Callable[..., Array]:
    """Return a rule for fine-tuning: `rule` at a ratio drawn by torch for every video, log-uniform in [least, keep_ratio]."""

    def random_rule(features: Array, *, keep_ratio: float) -> Array:
        return rule(features, keep_ratio=least * (keep_ratio / least) ** float(torch.rand(())))

    return random_rule


def uniform_frames(features: Array, *, keep_ratio: float) -> Array:
    """Keep whole moments at equal distances, the first among them, as many as the budget allows (at least one)."""
    shape = _checked(features).shape[:3]
    count = token_budget(shape, keep_ratio) // (shape[1] * shape[2])
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[torch.arange(count) * shape[0] // count] = True
    return _same_type(mask, features)


def down_sampling(features: Array, *, keep_ratio: float) -> Array:
    """Keep the same sparse lattice of places in every moment, as a lower resolution would.

    Real down-sampling averages pixels before the tower; a mask can only choose. A lattice meets no ratio exactly: rows and
    columns are those nearest to its square root.
    """
    frames, height, width = _checked(features).shape[:3]
    check_amount(keep_ratio, None)
    rows = min(height, max(1, round(height * keep_ratio**0.5)))
    columns = min(width, max(1, round(width * keep_ratio * height / rows)))
    places = [(torch.arange(n) * 2 + 1) * size // (2 * n) for n, size in ((rows, height), (columns, width))]
    mask = torch.zeros(frames, height, width, dtype=torch.bool)
    mask[:, places[0][:, None], places[1][None]] = True
    return _same_type(mask, features)


def evs(features: Array, *, keep_ratio: float) -> Array:
    """EVS: keep what differs most, by 1 - cosine, from the same place one moment before; the first moment whole.

    One budget for the whole video, max(H * W, floor(keep_ratio * T * H * W)), as in its vLLM version.
    """
    tokens = _checked(features)
    change = 1 - F.cosine_similarity(tokens[1:], tokens[:-1], dim=-1)
    change = torch.cat([torch.full_like(tokens[:1, ..., 0], math.inf), change])
    return _same_type(_top_k(change, token_budget(tokens.shape[:3], keep_ratio)), features)


def dtd(features: Array, *, keep_ratio: float | None = None, threshold: float | None = None) -> Array:
    """DTD: drop a token whose cosine with the same place one moment before is above `threshold`; the first moment whole.

    With `keep_ratio` every later moment keeps equally many (its per-frame top-k), those that changed most.
    """
    check_amount(keep_ratio, threshold)
    tokens = _checked(features)
    frames, height, width = tokens.shape[:3]
    similarity = F.cosine_similarity(tokens[1:], tokens[:-1], dim=-1)
    first = torch.ones_like(tokens[:1, ..., 0], dtype=torch.bool)
    if threshold is not None:
        return _same_type(torch.cat([first, similarity <= threshold]), features)
    rest = token_budget((frames, height, width), keep_ratio) - height * width
    counts = [rest * (t + 1) // (frames - 1) - rest * t // (frames - 1) for t in range(frames - 1)]
    later = [_top_k(-moment, count) for moment, count in zip(similarity, counts, strict=True)]
    return _same_type(torch.cat([first, torch.stack(later)]) if later else first, features)


def vidcom2(features: Array, *, keep_ratio: float) -> Array:
    """VidCom²: keep what is least similar to the video's mean and its own frame's; frames unlike the video get more tokens.

    On the half of the channels that vary least, tokens scaled to length 1; similarity is a sum of five Gaussians. A frame's
    ratio is keep_ratio * (1 + softmax over frames of minus its mean similarity / .01 - 1 / T), at most 1; counts are made to
    add up to floor(keep_ratio * T * H * W), one token at least.
    """
    tokens = _checked(features)
    check_amount(keep_ratio, None)
    frames, places = len(tokens), tokens.shape[1] * tokens.shape[2]
    flat = tokens.flatten(1, 2)  # (T, N, D)
    stable = flat.flatten(0, 1).var(0, correction=0).argsort(stable=True)[: max(1, (flat.shape[-1] + 1) // 2)]
    unit = F.normalize(flat[..., stable], dim=-1)
    to_video, to_frame = (_gaussians(unit, unit.mean(axes, keepdim=True)) for axes in ((0, 1), (1,)))  # (T, N)
    unusual = (-to_video.mean(1) / 0.01).softmax(0)
    quotas = (keep_ratio * (1 + unusual - 1 / frames)).clamp(max=1) * places
    counts = _round_to_total(quotas, max(1, math.floor(keep_ratio * frames * places + 1e-9)), places)
    chosen = [_top_k(-row, count) for row, count in zip(to_video + to_frame, counts, strict=True)]
    return _same_type(torch.stack(chosen).view(tokens.shape[:3]), features)


def _gaussians(unit: Tensor, centre: Tensor) -> Tensor:
    distance = (unit - centre).square().sum(-1)
    return sum((-distance / (2 * width)).exp() for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))


def _round_to_total(quotas: Tensor, total: int, most: int) -> list[int]:
    """Return whole numbers near `quotas` that add up to `total`, none above `most`; the largest remainders change first."""
    counts = quotas.floor().clamp(max=most)
    while (missing := total - int(counts.sum())) != 0:
        step = 1 if missing > 0 else -1
        need = (quotas - counts) * step
        need[counts >= most if step > 0 else counts <= 0] = -math.inf
        counts[need.topk(min(abs(missing), int(need.isfinite().sum()))).indices] += step
    return [int(count) for count in counts]


TOKEN_RULES = {"few moments": few_moments, "spread": keep_mask}  # by the names that `vau guard` and `vau tune` know


def token_rule(name: str) -> Callable[..., Array]:
    """Return one of TOKEN_RULES; ValueError for another name."""
    if name not in TOKEN_RULES:
        raise ValueError(f"token_rule must be one of {', '.join(TOKEN_RULES)}, got {name!r}")
    return TOKEN_RULES[name]


RULES: dict[str, Callable[..., Array]] = {
    "moves or stands out (ours)": keep_mask,
    "few moments (ours)": few_moments,
    "keep all": keep_all,
    "random": random_tokens,
    "uniform frames": uniform_frames,
    "down-sampling": down_sampling,
    "EVS": evs,
    "DTD": dtd,
    "VidCom²": vidcom2,
}


# Pixels as tokens, and truth per token


def pixel_tokens(frames: np.ndarray, *, token_px: int = TOKEN_PX, block_px: int = BLOCK_PX, temporal: int = 2) -> np.ndarray:
    """Return frames uint8 (N, H, W, 3) as float32 tokens (N // temporal, H / token_px, W / token_px, D): averaged pixels.

    A rule can look at these before any network runs: means of `block_px` squares over `temporal` frames, levels 0 to 255.
    Sides are resized to whole tokens, as a processor does; a last odd frame is left out.
    """
    if token_px % block_px:
        raise ValueError(f"token_px must be a multiple of block_px, got {token_px} and {block_px}")
    count, height, width = _token_grid(frames, token_px, temporal)
    tokens = np.empty((count, height, width, 3 * (token_px // block_px) ** 2), np.float32)
    for moment in range(count):  # one at a time: a video as floats would be four times its size
        part = torch.from_numpy(frames[moment * temporal : (moment + 1) * temporal]).permute(0, 3, 1, 2).float()
        part = _resize(part, (height * token_px, width * token_px), mode="bilinear", antialias=True).mean(0)
        tokens[moment] = patchify(F.avg_pool2d(part[None], block_px), height, width)[0].numpy()
    return tokens


def mask_coverage(masks: np.ndarray, *, token_px: int = TOKEN_PX, temporal: int = 2) -> np.ndarray:
    """Return the fraction of each token's pixels that masks (N, H, W) cover, (N // temporal, H / token_px, W / token_px)."""
    count, height, width = _token_grid(masks, token_px, temporal)
    coverage = np.empty((count, height, width), np.float32)
    for moment in range(count):
        part = torch.from_numpy((masks[moment * temporal : (moment + 1) * temporal] > 0).astype(np.float32))[:, None]
        coverage[moment] = _resize(part, (height, width), mode="area").mean((0, 1)).numpy()
    return coverage


def foreground_recall(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return the fraction of the tokens in `truth` bool (T, H, W) that `mask` keeps; NaN where there are none."""
    return float(mask[truth].mean()) if truth.any() else math.nan


def patchify(images: Tensor, height: int, width: int) -> Tensor:
    """Cut images (T, C, h * height, w * width) into tokens (T, height, width, C * h * w)."""
    tall, wide = images.shape[2] // height, images.shape[3] // width
    parts = images.reshape(len(images), -1, height, tall, width, wide)  # (T, C, H, h, W, w)
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(3)


def degrade_frames(
    frames: np.ndarray, rng: np.random.Generator, *, noise: float = 6.0, flicker: float = 0.04, sway: float = 2.5
) -> np.ndarray:
    """Return frames uint8 (N, H, W, 3) as a cheap camera records them; objects stay exactly where they are.

    White noise of `noise` levels, light that flickers by up to the fraction `flicker`, and an upper left ninth of the image
    that sways like leaves by `sway` pixels. For studies on synthetic scenes.
    """
    tall, wide = frames.shape[1] // 3, frames.shape[2] // 3
    rows, columns = np.mgrid[:tall, :wide]
    phase, result = rng.uniform(0, 2 * np.pi, 2), np.empty_like(frames)
    for number, frame in enumerate(frames):
        image = frame.astype(np.float32)
        source = np.clip(columns + sway * np.sin(0.55 * number + phase[0] + rows / 9), 0, frames.shape[2] - 2)
        left = source.astype(int)
        part = (source - left)[..., None].astype(np.float32)
        image[:tall, :wide] = image[rows, left] * (1 - part) + image[rows, left + 1] * part
        image *= 1 + flicker * np.sin(2.1 * number + phase[1]) * rng.uniform(0.5, 1)
        result[number] = np.clip(image + rng.normal(0, noise, image.shape), 0, 255)
    return result


def _token_grid(frames: np.ndarray, token_px: int, temporal: int) -> tuple[int, int, int]:
    if len(frames) < temporal or 0 in frames.shape:
        raise ValueError(f"a video needs {temporal} frames or more, got shape {frames.shape}")
    return len(frames) // temporal, *(max(1, round(side / token_px)) for side in frames.shape[1:3])


def _resize(images: Tensor, size: tuple[int, int], **options) -> Tensor:
    return images if images.shape[-2:] == size else F.interpolate(images, size, **options)

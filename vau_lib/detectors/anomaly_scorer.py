"""Holmes-VAU's anomaly scorer, UR-DMU over features of sampled frames (Zhang et al.; Zhou et al.).

- it reads one frame in 16; the scorer is UR-DMU's test branch: a convolution, two layers of attention to everything and
  to what is near, and two memories, one of normal and one of anomalous features; their answers are added
  to the features
- dropout is for training only: `forward` never drops, whatever mode the module is in. The published scorer was never put
  in evaluation mode and answers differently every time; `ScorerConfig(dropout_at_inference=True)` is that
- its nearness is divided by the wrong sums, so that its weights do not add up to 1; kept, because the published
  weights were trained so
- neither the training code nor the labels were released: the objective here is UR-DMU's plus cross-entropy with the
  annotated events at the sampled frames, positive in videos that have a label only (HIVAU-70k lists events in normal ones too)
`frame_sampling` chooses frames by its scores; `features.frame_features` makes the features.
Sources: Zhang et al., Holmes-VAU, CVPR 2025, sections 4.2, 4.3 and appendix B; Zhou, Yu and Yang, Dual Memory Units with
Uncertainty Regulation for Weakly Supervised Video Anomaly Detection (UR-DMU), AAAI 2023, and its repository (MIT; for facts).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vau_lib.data import records
from vau_lib.data.records import SNIPPET_FRAMES
from vau_lib.detectors import training
from vau_lib.detectors.preprocessing import Preprocessing
from vau_lib.features import checkpoints
from vau_lib.workspace import artifacts

NEAR_ROWS = 64  # e^(-64 / e) is 6e-11: what is farther adds nothing to a float32
LOSS_WEIGHTS = {  # the weight of each part of the training loss
    "bag": 1.0, "abnormal_recalled": 0.1, "abnormal_unknown": 0.1, "normal_recalled": 0.1, "normal_unknown": 0.1,
    "triplet": 0.1, "kl": 1e-3, "distance": 1e-4, "frames": 1.0,
}  # fmt: skip
MARGIN = 100.0  # how much larger the norm of an anomalous answer should be than that of a normal one


@dataclass(frozen=True)
class ScorerConfig:
    """Sizes; the defaults are the published 6,492,929 parameters. `width` is that of the features.

    `dropout_at_inference` is the release's defect: scores are random.
    """

    width: int = 1024
    hidden: int = 512
    layers: int = 2
    heads: int = 4
    head_width: int = 128
    slots: int = 60
    dropout: float = 0.5
    dropout_at_inference: bool = False


@dataclass
class ScorerOutput:
    """Output for training, of B videos of T sampled frames."""

    scores: Tensor  # (B, T) in [0, 1], as at inference but for dropout
    noisy_scores: Tensor  # (B, T) with the normal answer drawn, not its mean
    features: Tensor  # (B, T, H) after attention
    abnormal: Tensor  # (B, T) in (0, 1): how well the anomalous memory matches
    normal: Tensor  # (B, T) the same, normal memory
    abnormal_answer: Tensor  # (B, T, H)
    normal_answer: Tensor  # (B, T, H), drawn from N(mean, exp(log_variance))
    mean: Tensor  # (B, T, H)
    log_variance: Tensor  # (B, T, H)

    @property
    def logit(self) -> Tensor:
        """Return each bag's probability as a logit (B,): the mean of its highest scores."""
        return _top(self.scores, self.scores).logit(1e-6)


class Attention(nn.Module):
    """Attend by similarity and by distance in time: x (B, T, H) -> (B, T, H); UR-DMU's GL-MHSA."""

    def __init__(self, config: ScorerConfig):
        super().__init__()
        inner = config.heads * config.head_width
        self.heads, self.norm = config.heads, nn.LayerNorm(config.hidden)
        self.to_qkv = nn.Linear(config.hidden, 4 * inner, bias=False)
        self.out = nn.Linear(2 * inner, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(self.norm(x)).chunk(4, dim=-1)
        query, key, value, nearby = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        by_similarity = F.scaled_dot_product_attention(query, key, value)  # (B, heads, T, d); never holds (T, T) at once
        heads = torch.cat([by_similarity, near(nearby)], dim=-1)  # per head: by similarity, then by distance in time
        return self.out(heads.transpose(1, 2).flatten(2))


def near(values: Tensor) -> Tensor:
    """Return sum_j exp(-|i - j| / e) / w_j values_j at each i, of values (..., T, d), with w_j = sum_k exp(-|j - k| / e).

    A normalised weight would divide by w_i; the published code divides column j by the sum of row j, which near the ends of
    a video is another number. Its weights were trained so. Memory grows with T, not T^2.
    """
    sums = _decayed_sum(values.new_ones(values.shape[-2], 1))  # (T, 1)
    return _decayed_sum(values / sums)


def _decayed_sum(values: Tensor) -> Tensor:
    """Return sum_j exp(-|i - j| / e) values_j, of values (..., T, d), block by block: each needs itself and its neighbours."""
    count, block = values.shape[-2], NEAR_ROWS
    blocks = F.pad(values, (0, 0, block, block + -count % block)).unfold(-2, 3 * block, block)  # (..., T / 64, d, 192)
    apart = torch.arange(3 * block, device=values.device)[:, None] - block - torch.arange(block, device=values.device)
    sums = blocks @ (-apart.abs().to(values.dtype) / math.e).exp()  # (..., T / 64, d, 64)
    return sums.mT.flatten(-3, -2)[..., :count, :]


class Memory(nn.Module):
    """Memory of K slots: x (B, T, H) -> how well each feature matches (B, T), the memory's answer (B, T, H)."""

    def __init__(self, config: ScorerConfig):
        super().__init__()
        bound = config.hidden**-0.5
        self.slots = nn.Parameter(torch.empty(config.slots, config.hidden).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        similarity = (x @ self.slots.T * x.shape[-1] ** -0.5).sigmoid()  # (B, T, K): each slot for itself, no softmax
        return similarity.topk(len(self.slots) // 16 + 1, dim=-1).values.mean(-1), similarity @ self.slots


class AnomalyScorer(nn.Module):
    """Score features: `scorer(features (B, T, D)) -> (B, T)` in [0, 1]; of crops (B, n, T, D) the mean."""

    def __init__(self, config: ScorerConfig | None = None):
        super().__init__()
        self.settings = config = config or ScorerConfig()  # not `config`: Trainer takes that for its own kind
        hidden = config.hidden
        self.embed = nn.Conv1d(config.width, hidden, 3, padding=1)
        self.attention = nn.ModuleList(Attention(config) for _ in range(config.layers))
        self.feed_forward = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(hidden), "in": nn.Linear(hidden, hidden), "out": nn.Linear(hidden, hidden)})
            for _ in range(config.layers)
        )
        self.abnormal, self.normal = Memory(config), Memory(config)
        self.mean, self.log_variance = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.classifier = nn.Sequential(nn.Linear(2 * hidden, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Score features; no dropout unless the config says so, in training mode either."""
        features = self._checked(features)
        x = self._encode(features.flatten(0, -3), drop=self.settings.dropout_at_inference)  # (B n, T, H)
        answers = self.mean(self.abnormal(x)[1]) + self.mean(self.normal(x)[1])
        scores = self.classifier(torch.cat([x, answers], dim=-1))[..., 0].sigmoid()
        return scores.view(features.shape[:-1]).mean(1) if features.ndim == 4 else scores

    @torch.inference_mode()
    def score_video(self, features: np.ndarray, preprocessing: Preprocessing) -> tuple[float, np.ndarray]:
        """Return the video's score, the mean of its highest snippets (a sixteenth), and every snippet's, (T,)."""
        scores = self(preprocessing(features).mT[None].to(self.embed.weight.device))[0]
        return training.top_mean(scores), scores.cpu().numpy()

    def for_training(self, labels: Tensor, *, loss_weights: Mapping[str, float] = LOSS_WEIGHTS) -> tuple[nn.Module, Callable]:
        """Return the network and the objective that `training.fit` takes."""
        return training.TimeLast(self, self.learn), lambda output, _, y: scorer_loss(output, y, weights=loss_weights)["total"]

    def learn(self, features: Tensor) -> ScorerOutput:
        """Return all that `scorer_loss` needs of features (B, T, D), with dropout in training mode and gradients."""
        x = self._encode(self._checked(features, crops=False), drop=self.training)
        (abnormal, bad), (normal, good) = self.abnormal(x), self.normal(x)
        bad, mean, log_variance = self.mean(bad), self.mean(good), self.log_variance(good)
        noisy = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        scores = [self.classifier(torch.cat([x, bad + answer], -1))[..., 0].sigmoid() for answer in (mean, noisy)]
        return ScorerOutput(*scores, x, abnormal, normal, bad, noisy, mean, log_variance)

    def _encode(self, features: Tensor, *, drop: bool) -> Tensor:
        """Return features after attention: (B, T, D) -> (B, T, H)."""

        def dropped(x: Tensor) -> Tensor:
            return F.dropout(x, self.settings.dropout, training=drop)

        x = self.embed(features.mT).relu().mT  # convolution wants time last
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            x = x + dropped(attention(x))
            x = x + dropped(feed_forward["out"](dropped(F.gelu(feed_forward["in"](feed_forward["norm"](x))))))
        return x

    def _checked(self, features: Tensor, *, crops: bool = True) -> Tensor:
        kinds, width = ("(B, T, {0}) or (B, n, T, {0})" if crops else "(B, T, {0})"), self.settings.width
        if features.ndim not in (3, 4)[: 1 + crops] or features.shape[-1] != width or 0 in features.shape:
            raise ValueError(f"features must be {kinds.format(width)}, none empty, got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError(f"features hold {features[~features.isfinite()][0]:g}, first in a batch of {len(features)}")
        return features.float()


def _top(values: Tensor, by: Tensor) -> Tensor:
    """Return the mean of values (B, T[, H]) over the T // 16 + 1 places where `by` (B, T) is highest."""
    count = min(by.shape[1], by.shape[1] // training.SNIPPETS_PER_CHOICE + 1)
    place = by.topk(count, dim=1).indices
    place = place if values.ndim == 2 else place[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, place).mean(1)


def scorer_loss(output: ScorerOutput, targets: Tensor, *, weights: Mapping[str, float] = LOSS_WEIGHTS) -> dict[str, Tensor]:
    """Return the named parts of the training loss and "total", their sum weighted by `weights`; targets (B, T) in {0, 1}.

    A video is anomalous where a target is 1. UR-DMU's: bag, cross-entropy of the mean of the highest scores; four of
    the memories: an anomalous video's best matching features known to the anomalous memory (abnormal_recalled) and its least known
    ones unknown to the normal one (abnormal_unknown), a normal video's features all known to the normal memory
    (normal_recalled) and unknown to the other (normal_unknown); triplet between the features chosen so; KL of the normal answer,
    summed over time as in the reference; distance between the lengths of answers. Ours, after Holmes-VAU's
    L_AS: frames, cross-entropy of every score with its target, the mean. Parts of a kind that is not in the batch are 0.
    """
    if targets.shape != output.scores.shape or not ((targets == 0) | (targets == 1)).all():
        raise ValueError(f"targets must be 0 or 1, {tuple(output.scores.shape)}, got shape {tuple(targets.shape)}")
    targets = targets.to(output.scores.dtype)
    labels = targets.amax(1)
    bad, good = labels == 1, labels == 0
    scores = torch.where(good[:, None], output.noisy_scores, output.scores)  # normal videos are scored with their uncertainty
    parts = {"bag": _bce(_top(scores, scores), labels), "frames": _bce(scores, targets)}
    parts |= {
        "abnormal_recalled": _towards(1, _top(output.abnormal[bad], output.abnormal[bad])),
        "abnormal_unknown": _towards(1, _top(1 - output.normal[bad], 1 - output.normal[bad])),
        "normal_recalled": _towards(1, output.normal[good]),
        "normal_unknown": _towards(0, output.abnormal[good]),
    }
    known, variance = output.mean[good], output.log_variance[good]
    parts["kl"] = -0.5 * (1 + variance - known**2 - variance.exp()).sum(1).mean() if good.any() else scores.sum() * 0
    parts |= _contrast(output, bad, good)
    return parts | {"total": sum(weight * parts[name] for name, weight in weights.items())}


def _contrast(output: ScorerOutput, bad: Tensor, good: Tensor) -> dict[str, Tensor]:
    """Return triplet and distance of as many pairs of a normal and an anomalous video as the batch has."""
    pairs = int(min(bad.sum(), good.sum()))
    if not pairs:
        return dict.fromkeys(("triplet", "distance"), output.scores.sum() * 0)
    bad, good = bad.nonzero()[:pairs, 0], good.nonzero()[:pairs, 0]
    anchor = _top(output.features[good], output.normal[good])  # (P, H)
    alike, unlike = (_top(output.features[bad], by[bad]) for by in (output.normal, output.abnormal))
    unit = [F.normalize(x, dim=-1) for x in (anchor, alike, unlike)]
    far = _top(output.abnormal_answer[bad], output.abnormal[bad]).norm(dim=-1)
    close = _top(output.normal_answer[good], output.normal[good]).norm(dim=-1)
    return {"triplet": F.triplet_margin_loss(*unit), "distance": (MARGIN - far + close).relu().mean()}


def _bce(chances: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy(chances.clamp(0, 1), targets)


def _towards(target: int, chances: Tensor) -> Tensor:
    return _bce(chances, torch.full_like(chances, target)) if len(chances) else chances.sum()


# Where the release keeps what is named otherwise here; UR-DMU's own checkpoints say `selfatt`.
_RELEASED_NAMES = (
    (r"^module\.", ""),
    (r"^embedding\.conv_1\.0\.", "embed."),
    (r"^self_?attn?\.layers\.(\d+)\.0\.norm\.", r"attention.\1.norm."),
    (r"^self_?attn?\.layers\.(\d+)\.0\.fn\.to_qkv\.", r"attention.\1.to_qkv."),
    (r"^self_?attn?\.layers\.(\d+)\.0\.fn\.to_out\.0\.", r"attention.\1.out."),
    (r"^self_?attn?\.layers\.(\d+)\.1\.norm\.", r"feed_forward.\1.norm."),
    (r"^self_?attn?\.layers\.(\d+)\.1\.fn\.net\.0\.", r"feed_forward.\1.in."),
    (r"^self_?attn?\.layers\.(\d+)\.1\.fn\.net\.3\.", r"feed_forward.\1.out."),
    (r"^cls_head\.mlp\.", "classifier."),
    (r"^([AN])memory\.memory_block$", lambda match: {"A": "abnormal", "N": "normal"}[match[1]] + ".slots"),
    (r"^encoder_mu\.0\.", "mean."),
    (r"^encoder_var\.0\.", "log_variance."),
)


@artifacts.reader()
def load_released(source: str | Path | Mapping[str, Tensor], config: ScorerConfig | None = None) -> AnomalyScorer:
    """Return a scorer in eval mode with the release's 34 tensors (a state dict or a file of one), strictly; else StoreError.

    Without `config` the sizes are those of the tensors (four heads, as published).
    """
    weights = source if isinstance(source, Mapping) else checkpoints.load_weights(source)
    renamed = {}
    for key, value in weights.items():
        for theirs, ours in _RELEASED_NAMES:
            key = re.sub(theirs, ours, key)
        renamed[key] = value.float()
    scorer = AnomalyScorer(config or _sizes(renamed))
    checkpoints.load_strictly(scorer, renamed, "the state dict" if isinstance(source, Mapping) else source)
    return scorer.eval()


def _sizes(weights: Mapping[str, Tensor]) -> ScorerConfig:
    """Return the sizes that tensors have, the published ones where they do not tell."""
    try:
        hidden, width, _ = weights["embed.weight"].shape
        heads, layers = ScorerConfig.heads, len({name.split(".")[1] for name in weights if name.startswith("attention.")})
        head_width = len(weights["attention.0.to_qkv.weight"]) // (4 * heads)
        return ScorerConfig(width, hidden, layers, heads, head_width, slots=len(weights["abnormal.slots"]))
    except (KeyError, ValueError, TypeError):
        return ScorerConfig()


def frame_targets(record: records.VideoRecord, count: int, *, stride: int = SNIPPET_FRAMES) -> np.ndarray:
    """Return the ground truth of `count` sampled frames, uint8 (count,), of frame stride * i; all 0 in a video without the label.

    RecordError when the video is too short. An event between two sampled frames is in none.
    """
    last = stride * (count - 1)
    if count < 1 or not 0 <= last < record.num_frames:
        raise records.RecordError(f"{record.id}: {count} frames at stride {stride} for {record.num_frames} frames")
    return records.frame_labels(record)[: last + 1 : stride] * np.uint8(record.label > 0)


def published_plan(**changes: object) -> training.TrainingPlan:
    """Return the published recipe (Adam, 1e-4, as many anomalous as normal videos), with `changes`."""
    ours = {"learning_rate": 1e-4, "weight_decay": 5e-5, "batch_size": 128, "balanced": True}
    return training.TrainingPlan(**(ours | {"curriculum_epochs": 0, "augment_probability": 0.0} | changes))

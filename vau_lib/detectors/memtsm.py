"""MemTSM-Net, a detector with temporal shift and a memory of normal patterns (Mem-TSM report).

The head over XFeat features: temporal shift in residual blocks, a gate over time, squeeze and excitation, a bank of learned
slots, a decoder that rebuilds the features, a scorer. One vector per video gives the video's score; the same memory and
scorer, before pooling, give the score of every snippet.
- default is what the report describes: shift by one step, replacing, inside the residual branch; memory addressed with a
  temperature, so that slots differ; the whole sequence rebuilt; a batch of one works
- `as_released=True` is what the published checkpoint computes (shift by five, added; no activation after the first
  convolution; residual outside the GELU; uniform memory; only the centre 16 of 32 steps rebuilt)
- per snippet, the error of rebuilding is a score that needs no anomaly in training: `rebuild_error`
Source: Mem-TSM report (MemTSM-Net repository, III.C-E; read for facts) and Lin et al., TSM, ICCV 2019, for the shift.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from vau_lib.detectors.preprocessing import Preprocessing, step_of_row
from vau_lib.features import checkpoints
from vau_lib.workspace import artifacts

RELEASED_STEPS = 32  # time steps the published model is fed; its decoder rebuilds steps 8 to 24
RELEASED_CENTRE = slice(8, 24)
BATCH_WINDOWS = 64  # windows of a video scored in one pass
SEGMENTS_PER_CHOICE = 4  # of a video's steps a quarter, its highest, is judged by the video's label (`segment_weight`)
MIRROR_STEPS = 4  # of a causal window, seen again in reverse order after its last step


@dataclass(frozen=True)
class MemTSMConfig:
    """Sizes and choices; the sizes are the report's. `in_channels` is the width D of a feature.

    Of the intended loss: `smoothing` e makes targets y (1 - e) + e / 2 (the report's "smoothened" targets: .1), `alpha` is the
    anomalous class's weight in the focal loss (the report's: .85); None is the fraction of normal training videos;
    `segment_weight` weighs a multiple-instance loss on the segments' scores (ours: the report judges whole videos only, 0).
    """

    in_channels: int = 128
    width: int = 64
    fold_div: int = 8
    slots: int = 100
    temperature: float = 0.1
    dropout: float = 0.3
    as_released: bool = False
    smoothing: float = 0.0
    alpha: float | None = None
    segment_weight: float = 0.0

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not 0 <= self.smoothing < 1 or (self.alpha is not None and not 0 <= self.alpha <= 1):
            raise ValueError(f"smoothing must be in [0, 1) and alpha in [0, 1], got {self.smoothing} and {self.alpha}")
        if self.segment_weight < 0:
            raise ValueError(f"segment_weight must be 0 or more, got {self.segment_weight}")
        if self.as_released and (self.smoothing or self.alpha is not None or self.segment_weight):
            raise ValueError("smoothing, alpha and segment_weight are of the intended model; the released loss has its own")

    @classmethod
    def released(cls) -> "MemTSMConfig":
        """The published checkpoint: 3 channels, memory without a temperature."""
        return cls(in_channels=3, temperature=1.0, as_released=True)


@dataclass
class MemTSMOutput:
    """Output of one pass: B videos, T steps, D channels, K slots. Released models give no per-segment scores (None)."""

    logit: Tensor  # (B,)
    reconstruction: Tensor  # (B, D, T); as released: (B, D, 16), the centre
    embedding: Tensor  # (B, 128), after squeeze and excitation
    attention: Tensor  # (B, K), rows sum to 1
    segment_logit: Tensor | None  # (B, T)
    bank: Tensor  # (K, 128), the slots themselves, for the memory term of the loss

    @property
    def score(self) -> Tensor:
        """Probability of an anomaly, (B,) in [0, 1]."""
        return self.logit.sigmoid()


def temporal_shift(x: Tensor, *, fold_div: int = 8, stride: int = 1, additive: bool = False) -> Tensor:
    """Move a part of the channels in time; x (B, C, T) -> (B, C, T). Costs no multiplication.

    With f = C // fold_div, channels [0, f) take the value `stride` steps ahead, [f, 2f) the value `stride` steps behind,
    the rest stay; what would come from outside is 0 (Lin et al. 2019, Fig. 2b). `additive` adds instead of replacing, in
    the opposite directions, and does nothing when T <= stride: the released MemTSM code.
    """
    if x.ndim != 3 or fold_div < 2 or stride < 1:
        raise ValueError(f"need x (B, C, T), fold_div >= 2, stride >= 1, got {tuple(x.shape)}, {fold_div}, {stride}")
    fold = x.shape[1] // fold_div
    out = x.clone() if additive else torch.cat([torch.zeros_like(x[:, : 2 * fold]), x[:, 2 * fold :]], dim=1)
    if x.shape[2] <= stride:
        return out
    ahead, behind = (slice(fold, 2 * fold), slice(0, fold)) if additive else (slice(0, fold), slice(fold, 2 * fold))
    out[:, ahead, :-stride] += x[:, ahead, stride:]
    out[:, behind, stride:] += x[:, behind, :-stride]
    return out


class ShiftBlock(nn.Module):
    """Shift, convolve over time, gate every step, add the input: (B, C, T) -> (B, C_out, T)."""

    def __init__(self, channels: int, out: int, config: MemTSMConfig):
        super().__init__()
        self.settings = config
        self.conv = nn.Conv1d(channels, out, 3, padding=1)
        self.norm = nn.BatchNorm1d(out)
        reach = 1 if config.as_released else 3  # the report says "localized": a step is judged with its neighbours
        self.gate = nn.Sequential(nn.Conv1d(out, out // 4, reach, padding=reach // 2), nn.GELU(), nn.Conv1d(out // 4, 1, 1))
        self.skip = nn.Identity() if channels == out else nn.Conv1d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        as_released = self.settings.as_released
        shifted = temporal_shift(x, fold_div=self.settings.fold_div, stride=5 if as_released else 1, additive=as_released)
        x_out = self.norm(self.conv(shifted))
        x_out = x_out * self.gate(x_out).sigmoid()
        if as_released:
            return F.gelu(x_out) + self.skip(x)
        return F.gelu(x_out + self.skip(x))


class MemoryBank(nn.Module):
    """K learned slots; a query is answered by the slots it resembles: (..., D) -> read (..., D), attention (..., K)."""

    def __init__(self, slots: int, width: int, temperature: float):
        super().__init__()
        self.slots = nn.Parameter(torch.randn(slots, width))
        self.combine = nn.Linear(2 * width, width)
        self.temperature = temperature

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        similarity = F.normalize(query, dim=-1) @ F.normalize(self.slots, dim=-1).mT  # cosine, (..., K)
        attention = (similarity / self.temperature).softmax(-1)  # over slots, not time: a segment is explained alone
        return self.combine(torch.cat([query, attention @ self.slots], dim=-1)), attention


class MemTSM(nn.Module):
    """Score sequences of features, (B, D, T) -> MemTSMOutput. State dict is safe to save and load strictly."""

    def __init__(self, config: MemTSMConfig | None = None):
        super().__init__()
        self.settings = config = config or MemTSMConfig()  # not `config`: Trainer takes that for its own kind
        wide = 2 * config.width
        self.stem = nn.Conv1d(config.in_channels, config.width, 3, padding=1)
        self.first = ShiftBlock(config.width, config.width, config)
        self.pool = nn.Sequential(nn.MaxPool1d(2, ceil_mode=not config.as_released), nn.Dropout(config.dropout))
        self.second = ShiftBlock(config.width, wide, config)
        self.excite = nn.Sequential(nn.Linear(wide, wide // 4), nn.GELU(), nn.Linear(wide // 4, wide), nn.Sigmoid())
        self.memory = MemoryBank(config.slots, wide, config.temperature)
        rebuilt = config.in_channels * (RELEASED_CENTRE.stop - RELEASED_CENTRE.start if config.as_released else 1)
        self.decoder = nn.Sequential(nn.Linear(wide, 2 * wide), nn.GELU(), nn.Linear(2 * wide, rebuilt))
        self.scorer = nn.Sequential(nn.Linear(wide, wide // 2), nn.GELU(), nn.Linear(wide // 2, 1))

    def forward(self, x: Tensor) -> MemTSMOutput:
        """x (B, D, T), features with time last; ValueError for another width."""
        if x.ndim != 3 or x.shape[1] != self.settings.in_channels:
            raise ValueError(f"input must be (B, {self.settings.in_channels}, T), got {tuple(x.shape)}")
        steps = self.encode(x)  # (B, 128, ceil(T / 2))
        pooled = steps.mean(-1)
        weight = self.excite(pooled)
        embedding = pooled * weight
        read, attention = self.memory(embedding)
        logit = self.scorer(read).squeeze(-1)  # (B,), for a batch of one too
        if self.settings.as_released:
            rebuilt = self.decoder(read).view(len(x), x.shape[1], -1)
            return MemTSMOutput(logit, rebuilt, embedding, attention, None, self.memory.slots)
        segments, _ = self.memory((steps * weight[..., None]).mT)  # (B, ceil(T / 2), 128)
        rebuilt = self.decoder(segments).mT.repeat_interleave(2, dim=-1)[..., : x.shape[2]]
        segment_logit = self.scorer(segments).squeeze(-1).repeat_interleave(2, dim=-1)[:, : x.shape[2]]
        return MemTSMOutput(logit, rebuilt, embedding, attention, segment_logit, self.memory.slots)

    @torch.inference_mode()
    def score_video(
        self, features: np.ndarray, preprocessing: Preprocessing, *, hop: int | None = None, causal: bool = False
    ) -> tuple[float, np.ndarray]:
        """Return the video's score and every snippet's, (T,), in [0, 1], of features (T, D).

        The first reads the whole video as one sequence, as in training; the second reads windows: see `row_values`.
        """
        video = float(self(preprocessing(features, preprocessing.steps)[None].to(self.device)).score)
        if self.settings.as_released:  # one score per video is all the released model gives
            return video, np.full(len(features), video, np.float32)
        return video, row_values(lambda x: self._outputs(x).segment_logit.sigmoid(), features, preprocessing, hop, causal)

    @torch.inference_mode()
    def video_error(
        self, features: np.ndarray, preprocessing: Preprocessing, *, hop: int | None = None, causal: bool = False
    ) -> np.ndarray:
        """Return how badly each snippet of features (T, D) is rebuilt, (T,), mean square in standard units; by windows."""
        return row_values(lambda x: rebuild_error(self._outputs(x), x.to(self.device)), features, preprocessing, hop, causal)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.stem.weight.device

    def _outputs(self, x: Tensor) -> MemTSMOutput:
        return self(x.to(self.device))

    def for_training(self, labels: Tensor) -> tuple[nn.Module, Callable]:
        """Return the network and the objective that `training.fit` takes; labels (N,) of the training videos balance the loss."""
        if self.settings.as_released:
            return self, released_loss
        alpha = self.settings.alpha
        alpha = float(1 - labels.mean()) if alpha is None else alpha  # normal videos' fraction: both classes weigh the same
        return self, partial(loss, alpha=alpha, smoothing=self.settings.smoothing, segments=self.settings.segment_weight)

    def encode(self, x: Tensor) -> Tensor:
        """Return the embedding of every second step, (B, 128, ceil(T / 2)), of x (B, D, T)."""
        x = self.stem(x)
        if not self.settings.as_released:
            x = F.relu(x)
        return self.second(self.pool(self.first(x)))


def row_values(
    read: Callable[[Tensor], Tensor],
    features: np.ndarray,
    preprocessing: Preprocessing,
    hop: int | None = None,
    causal: bool = False,
) -> np.ndarray:
    """Return one value per row, (T,) float32, of features (T, D), read in windows; memory for the network does not grow with T.

    A row's value is the mean over the windows that hold it. A video no longer than a window is read whole, as in training.

    Args:
        read: windows (N, D, steps) -> values (N, steps).
        features: (T, D) of one video.
        preprocessing: as fitted; says how long a window is.
        hop: rows from one window to the next, by default a twentieth of a window, 1.6 steps: neighbouring windows cut the
            video into steps at other places, so that a value is finer than a step. Causal: a sixty-fourth, half a step.
        causal: a row has the last value of the last window that ends with it or before it; nothing later is read. The
            window goes on with its last steps mirrored, since the network was never asked about the edge of what it sees.
    """
    count, window, steps = len(features), preprocessing.window or preprocessing.steps, preprocessing.steps
    hop = max(1, window // (64 if causal else 20)) if hop is None else hop
    if hop < 1:
        raise ValueError(f"hop must be 1 row or more, got {hop}")
    ends = np.arange(1, count + 1, hop) if causal else np.unique([*range(min(window, count), count, hop), count])
    total, windows_of = np.zeros(count), np.zeros(count)
    for first in range(0, len(ends), BATCH_WINDOWS):
        batch = ends[first : first + BATCH_WINDOWS]
        x = preprocessing.windows(features, batch)  # (N, D, steps)
        if causal:
            x = _mirrored(x)
        for end, values in zip(batch, read(x).cpu().numpy(), strict=True):
            size = min(window, end)
            rows = slice(end - 1, end - 1 + hop) if causal else slice(end - size, end)
            total[rows] += values[-1 - MIRROR_STEPS] if causal else values[step_of_row(size, steps)]
            windows_of[rows] += 1
    return (total / windows_of).astype(np.float32)


def newest_value(read: Callable[[Tensor], Tensor], features: np.ndarray, preprocessing: Preprocessing) -> float:
    """Return the causal value of the last row of a stream, of its newest features (n, D): a window and one more, or all so far.

    `read` and `preprocessing` as in `row_values`, whose causal value it is at hop 1.
    """
    return float(read(_mirrored(preprocessing.windows(features, [len(features)])))[0, -1 - MIRROR_STEPS])


def _mirrored(x: Tensor) -> Tensor:
    """Return windows (N, D, steps) that go on with their last steps mirrored; as many of the first are left out."""
    return torch.cat([x[..., MIRROR_STEPS:], x[..., -1 - MIRROR_STEPS : -1].flip(-1)], dim=-1)


def loss(
    output: MemTSMOutput,
    x: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    smoothing: float = 0.0,
    rebuild: float = 0.5,
    bank: float = 0.01,
    segments: float = 0.0,
) -> Tensor:
    """Return the training loss, a scalar: focal + `rebuild` * MSE + `bank` * memory term + `segments` * focal of segments.

    The memory term is the squared distance between an embedding's direction and the read made of slot directions, so it
    moves the bank. The last term judges the mean of a video's highest quarter of segment scores by the video's label (multiple
    instances, Sultani et al., CVPR 2018).

    Args:
        output: of the model.
        x: (B, D, T), the input to rebuild, without noise.
        labels: (B,) in {0, 1}.
        alpha: weight of the anomalous class in [0, 1]; the fraction of normal videos balances the two.
        smoothing: e of the targets y (1 - e) + e / 2; the rebuilding does not see it.
        rebuild, bank, segments: weights of the other parts.
    """
    target = x[..., RELEASED_CENTRE] if output.segment_logit is None else x
    rebuilt = F.mse_loss(output.reconstruction, target)
    soft = labels.to(output.logit.dtype) * (1 - smoothing) + smoothing / 2
    focal = sigmoid_focal_loss(output.logit, soft, alpha=alpha, gamma=2.0, reduction="mean")
    if segments:
        count = -(-output.segment_logit.shape[1] // SEGMENTS_PER_CHOICE)
        highest = output.segment_logit.sigmoid().topk(count, dim=1).values.mean(1).logit(1e-6)
        focal = focal + segments * sigmoid_focal_loss(highest, soft, alpha=alpha, gamma=2.0, reduction="mean")
    return focal + rebuild * rebuilt + bank * memory_gap(output)


def memory_gap(output: MemTSMOutput) -> Tensor:
    """Return how far embeddings point from the slots that answered them, mean square, a scalar; its gradient moves the bank."""
    answer = output.attention @ F.normalize(output.bank, dim=-1)  # (B, 128)
    return (F.normalize(output.embedding, dim=-1) - answer).square().sum(-1).mean()


def rebuild_error(output: MemTSMOutput, x: Tensor) -> Tensor:
    """Return the mean square rebuilding error of every snippet, (B, T) in the squared unit of x (B, D, T)."""
    return (output.reconstruction - x).square().mean(1)


def released_loss(output: MemTSMOutput, x: Tensor, labels: Tensor) -> Tensor:
    """Return the released code's loss: constant alpha .85, targets .05/.95, memory term that leaves the bank alone."""
    bce = F.binary_cross_entropy_with_logits(output.logit, 0.9 * labels + 0.05, reduction="none")
    focal = (0.85 * (1 - (-bce).exp()) ** 2 * bce).mean()
    similarity = (output.embedding @ output.embedding.mT).mean()
    return focal + 0.5 * F.mse_loss(output.reconstruction, x[..., RELEASED_CENTRE]) + 0.01 * similarity


def released_fusion(score: Tensor, error: Tensor) -> Tensor:
    """Return the released fusion (0.6 + 0.2 e) s + (0.4 - 0.2 e) e of scores and errors (N,), each scaled over the whole set.

    The scaling reads every test video at once: a score of one video alone means nothing. Kept to check published numbers.
    """
    score, error = ((v - v.min()) / (v.max() - v.min()).clamp_min(1e-12) for v in (score, error))
    return (0.6 + 0.2 * error) * score + (0.4 - 0.2 * error) * error


# Where the published checkpoint keeps what is named otherwise here; the longest match is tried first.
_RELEASED_NAMES = {
    "encoder.0.": "stem.",
    "encoder.1.attention.attn.": "first.gate.",
    "encoder.4.attention.attn.": "second.gate.",
    "encoder.1.bn.": "first.norm.",
    "encoder.4.bn.": "second.norm.",
    "encoder.1.": "first.",
    "encoder.4.": "second.",
    "se.fc1.": "excite.0.",
    "se.fc2.": "excite.2.",
    "memory.memory": "memory.slots",
    "memory.fc.": "memory.combine.",
}


def released_input(features: np.ndarray) -> Tensor:
    """Return features (T, 128) as the published model's (3, 32). The layout is a guess: its extraction was never released.

    The mean feature's first 96 values in three rows of 32, as the released reader reshapes a flat file.
    """
    return torch.from_numpy(features.mean(0)[: 3 * RELEASED_STEPS].reshape(3, RELEASED_STEPS).astype(np.float32))


@artifacts.reader()
def load_released(path: str | Path) -> MemTSM:
    """Return the published model (159,347 parameters) in eval mode, its weights loaded strictly; StoreError otherwise."""
    model = MemTSM(MemTSMConfig.released())
    weights = checkpoints.load_weights(path)
    renamed = {_ours(name): value for name, value in weights.items()}
    checkpoints.load_strictly(model, renamed, path)
    return model.eval()


def _ours(name: str) -> str:
    """Return our name of a tensor of the published checkpoint."""
    for theirs, ours in _RELEASED_NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name

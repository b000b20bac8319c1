"""LSHMA, a streaming detector with hierarchical memory attention (Han et al., StreamVAD).

A clip of N features passes L blocks; each attends to the clip and to what that block stored of the M - 1 clips before,
compressed to half the width. Depth widens the context: 1 + L (M - 1) clips reach a score.
- state goes in and comes out; `forward`, `push` and `score` are `step` in a loop, so training and streaming are one code path
- default is what the paper intends: the oldest clip leaves the memory; every depth is trained to answer, so that a stream may
  leave early, each of B streams for itself; nothing looks ahead
- `.xd(released=True)`, `.ucf(released=True)` set every quirk of the published code, each a boolean of its own below: its memory
  never forgets its first clips, its attention is read back in the wrong order, its test head is not the one trained
Source: Han et al., StreamVAD (LSHMA), Neurocomputing 2025, and its repository (MIT; read for facts); Wu et al., MeMViT, CVPR 2022.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vau_lib.detectors import training
from vau_lib.detectors.key_clips import decide, key_clips
from vau_lib.detectors.lshma_state import LSHMAConfig, StreamState
from vau_lib.detectors.preprocessing import Preprocessing
from vau_lib.detectors.training import mil_loss
from vau_lib.evaluation import online_metrics
from vau_lib.features import checkpoints


class Block(nn.Module):
    """Attend to the clip and its past, then two linear layers: x (B, N, D), past -> x (B, N, D), the clip's own entry."""

    def __init__(self, config: LSHMAConfig):
        super().__init__()
        n, width, compressed = config.window, config.width, -(-config.width // 2)
        self.settings = config
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # the places of a clip are the channels: a feature's neighbours are mixed and halved, time is not
        self.q_proj = nn.Conv1d(n, n, 3, stride=2, padding=1, bias=False)
        self.k_proj = nn.Conv1d(n, n, 3, stride=2, padding=1, bias=False)
        self.out_proj = nn.Linear(compressed, width)
        self.unused = nn.Linear(width, width)  # in the published weights, without effect
        self.mlp = _mlp(width)

    def forward(self, x: Tensor, past: Tensor, filled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """past (B, M - 1, N, C) of which the last `filled` (B,) count. Returns x, entry (B, N, C), its mean before compression."""
        stream, x = x, self.norm1(x)
        query = self.q_proj(x)  # (B, N, C)
        new = filled == 0
        if new.all():
            attended = self._alone(x)
        elif not new.any():
            attended = self._with_past(query, x, past, filled)
        else:
            attended = torch.where(new[:, None, None], self._alone(x), self._with_past(query, x, past, filled))
        mean, stream = x.detach().mean((1, 2)), (x if self.settings.normalised_stream else stream) + attended
        return stream + self.mlp(self.norm2(stream)), query.detach(), mean

    def _alone(self, x: Tensor) -> Tensor:
        return (1 + self.settings.self_weight) * self._attend(x, x)

    def _with_past(self, query: Tensor, x: Tensor, past: Tensor, filled: Tensor) -> Tensor:
        batch, slots, n, width = past.shape
        keys = torch.cat([past.reshape(batch, slots * n, width), self.k_proj(x)], dim=1)  # (B, M N, C)
        age = torch.arange(slots, 0, -1, device=x.device).repeat_interleave(n)  # 1 is the clip before
        known = torch.cat([age <= filled[:, None], torch.ones_like(query[..., 0], dtype=torch.bool)], dim=1)
        attended = self._attend(query, keys, known)
        if self.settings.self_weight:
            attended = attended + self.settings.self_weight * self._attend(query, query)
        return self.out_proj(attended)

    def _attend(self, query: Tensor, keys: Tensor, known: Tensor | None = None) -> Tensor:
        """softmax(q k^T / sqrt(d)) k + q: keys are values too, one head (MeMViT's residual pooling)."""
        similarity = query @ keys.mT * query.shape[-1] ** -0.5  # (B, N, K)
        if known is not None:
            similarity = similarity.masked_fill(~known[:, None], -torch.inf)
        out = similarity.softmax(-1) @ keys + query
        return out.mT.reshape(out.shape) if self.settings.scrambled else out


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), CLIP's."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width))


@dataclass
class LSHMAOutput:
    """Output for training, of B videos of T snippets."""

    logit: Tensor  # (B,) of the bag: the mean probability of its highest snippets, as a logit
    logits: Tensor  # (B, T)
    levels: Tensor  # (B, L, T): at every depth
    counted: Tensor | None  # (B, T) bool: snippets that are in the bag, all when None
    lengths: Tensor  # (B,)


class LSHMA(nn.Module):
    """Score features as they come. `step` is the model; everything else calls it."""

    def __init__(self, config: LSHMAConfig | None = None):
        super().__init__()
        self.settings = config = config or LSHMAConfig()  # not `config`: Trainer takes that for its own kind
        self.position = nn.Embedding(config.window, config.width)  # inside a clip only
        nn.init.normal_(self.position.weight, std=0.01)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.linear, self.mlp = nn.Linear(config.width, config.width), _mlp(config.width)
        self.classifier = nn.Linear(config.width, 1)

    def step(self, clip: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Score one complete clip (B, N, D) of each of B streams: logits (B, N) and the new state; None begins streams."""
        state = self._checked(clip, state)
        if clip.shape[1] != self.settings.window or state.waiting.shape[1]:
            raise ValueError(
                f"step takes clips of {self.settings.window} features, got {clip.shape[1]} with "
                f"{state.waiting.shape[1]} waiting; push takes any number"
            )
        valid = torch.full((len(clip),), self.settings.window, device=clip.device)
        state = self._advance(clip.float(), state, valid)
        return state.levels[:, -1], state

    def push(self, features: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Take any number of features (B, n, D); return logits (B, m) of the clips they complete, m a multiple of N or 0."""
        state, n = self._checked(features, state), self.settings.window
        x = torch.cat([state.waiting, features.float()], dim=1)
        whole = x.shape[1] // n * n
        state, scored = replace(state, waiting=x[:, :0]), []
        for start in range(0, whole, n):
            logits, state = self.step(x[:, start : start + n], state)
            scored.append(logits)
        logits = torch.cat(scored, dim=1) if scored else x.new_zeros(len(x), 0)
        return logits, replace(state, waiting=x[:, whole:].clone())

    def flush(self, state: StreamState) -> Tensor:
        """Return logits (B, n) of the n features still waiting when a stream ends; the clip is padded with zeros."""
        x, n = state.waiting, state.waiting.shape[1]
        if not n:
            return x.new_zeros(len(x), 0)
        clip = F.pad(x, (0, 0, 0, self.settings.window - n))
        state = self._advance(clip, replace(state, waiting=x[:, :0]), torch.full((len(x),), n, device=x.device))
        return state.levels[:, -1, :n]

    @torch.inference_mode()
    def score(self, features: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Return the probability of an anomaly at every snippet, (T,) in [0, 1], of features (T, D); the same type."""
        x = torch.as_tensor(features)
        if x.ndim != 2:
            raise ValueError(f"features must be (T, {self.settings.width}), got {tuple(x.shape)}")
        logits, state = self.push(x[None])
        logits = torch.cat([logits, self.flush(state)], dim=1)[0]
        if self.settings.looks_ahead:
            logits = _smoothed(logits, self.settings)
        scores = logits.sigmoid()
        return scores if isinstance(features, Tensor) else scores.numpy()

    def score_video(self, features: np.ndarray, preprocessing: Preprocessing) -> tuple[float, np.ndarray]:
        """Return the video's score, the mean of its highest snippets as in training, and every snippet's, (T,)."""
        scores = self.score(preprocessing(features).mT)
        return training.top_mean(scores), scores.numpy()

    def for_training(self, labels: Tensor) -> tuple[nn.Module, Callable]:
        """Return the network and the objective that `training.fit` takes."""
        return training.TimeLast(self, self.forward), lambda output, _, y: loss(output, y)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> LSHMAOutput:
        """Score whole videos (B, T, D) of which the first `lengths` (B,) are real, clip by clip, with gradients."""
        state = self._checked(features, None)
        (batch, count, _), n = features.shape, self.settings.window
        lengths = torch.full((batch,), count, device=features.device) if lengths is None else lengths
        x = F.pad(features.float(), (0, 0, 0, -count % n))
        allowed = self._allowed(features, lengths) if self.training else None
        levels, kept = [], []
        for start in range(0, count, n):
            valid = (lengths - start).clamp(0, n)
            may = None if allowed is None else allowed[:, start // n]
            state = self._advance(x[:, start : start + n], state, valid, may, every_depth=True)
            levels.append(state.levels)
            kept.append((state.depth > 0)[:, None].expand(batch, n))
        levels, kept = torch.cat(levels, dim=2)[..., :count], torch.cat(kept, dim=1)[:, :count]
        logits = levels[:, -1]
        counted = kept if self.settings.shortened_bags and self.training else None
        bag = training.bag_probability(logits, lengths, counted)
        return LSHMAOutput(bag.logit(1e-6), logits, levels, counted, lengths)

    def _advance(
        self, clip: Tensor, state: StreamState, valid: Tensor, allowed: Tensor | None = None, *, every_depth: bool = False
    ) -> StreamState:
        """Take one clip (B, N, D) of which `valid` (B,) are real; streams with none, or not allowed, stay as they are.

        Depths answer where somebody asks: in training (`every_depth`), where a stream may leave, and the last one.
        """
        config, keys, active = self.settings, state.keys, valid > 0
        exits = config.exit_threshold < 1 and not self.training
        if config.key_clips:
            active, _, keys = decide(clip, keys, valid, every=config.key_every)
        if allowed is not None:
            active = active & allowed
        going = active.nonzero()[:, 0]
        depth = torch.zeros_like(state.depth)
        memory, filled, previous, levels = state.memory.clone(), state.filled.clone(), state.levels[:, -1], []
        x = clip[going] + self.position.weight
        raw = [self.linear(x)] if config.head_over_scales and self.training else []
        for level, block in enumerate(self.blocks):
            answers = torch.where(active[:, None], previous, state.levels[:, level])
            if len(going):
                x, entry, mean = block(x, memory[going, level], filled[going, level])
                memory[going, level] = self._remember(memory[going, level], filled[going, level], entry, mean)
                filled[going, level] = (filled[going, level] + 1).clamp(max=config.memory - 1)
                depth[going] = level + 1
                if every_depth or exits or level + 1 == config.layers:
                    y = self.linear(x)
                    if raw:
                        raw.append(y)
                        y = torch.stack(raw).amax(0)
                    logits = self.classifier(y + self.mlp(y))[..., 0]  # (b, N)
                    answers = answers.index_copy(0, going, logits)
                if exits and level + 1 < config.layers:
                    sure = logits.sigmoid().amax(1) > config.exit_threshold
                    filled[going[sure], level + 1 :] = 0  # deeper blocks did not see this clip: they begin again
                    going, x = going[~sure], x[~sure]
            levels.append(answers)
            previous = answers
        if raw or not (every_depth or exits):  # as released one answer trains all depths; nobody asked the others
            levels = [levels[-1]] * len(levels)
        return replace(state, memory=memory, filled=filled, levels=torch.stack(levels, 1), depth=depth, keys=keys)

    def _remember(self, past: Tensor, filled: Tensor, entry: Tensor, mean: Tensor) -> Tensor:
        """Return the memory (b, M - 1, N, C) with the clip's entry in it and one clip less: the oldest, or as released."""
        every = torch.cat([past, entry[:, None]], dim=1)  # (b, M, N, C)
        if not self.settings.frozen_memory or past.shape[1] == 0:
            return every[:, 1:]
        # as released: retention exp(-t / s) with t rising towards the newest, so that the newest is the least retained;
        # s = sigmoid(mean), of the compressed clips and of the newest one before compression
        salience = torch.cat([past.mean((2, 3)), mean[:, None]], dim=1).sigmoid()  # (b, M)
        retention = (-torch.linspace(0, 1, every.shape[1], device=past.device) / salience).exp()
        gone = torch.where(filled == past.shape[1], retention.argmin(1), 0)  # with room left, an empty place goes
        kept = torch.arange(every.shape[1], device=past.device) != gone[:, None]
        return every[kept].view_as(past)

    def _allowed(self, features: Tensor, lengths: Tensor) -> Tensor | None:
        """Return the released generator's choice (B, C), or None when it is off."""
        if not self.settings.released_key_clips:
            return None
        half, n = self.settings.half_precision_key_clips, self.settings.window
        allowed = torch.zeros(len(features), -(-features.shape[1] // n), dtype=torch.bool)
        for video, rows, length in zip(allowed, features.detach().cpu(), lengths.tolist(), strict=True):
            chosen = key_clips(rows[:length], window=n, released=True, half_precision=half)
            video[: len(chosen)] = torch.from_numpy(chosen)
        return allowed.to(features.device)

    def _checked(self, features: Tensor, state: StreamState | None) -> StreamState:
        """Return the state to go on with; ValueError, one line, for features or a state that do not fit."""
        if features.ndim != 3 or features.shape[2] != self.settings.width or not features.shape[0] or not features.shape[1]:
            raise ValueError(f"features must be (B, n, {self.settings.width}) with B and n at least 1, got {tuple(features.shape)}")
        if not features.is_floating_point():
            raise ValueError(f"features must be floating point, got {features.dtype}")
        if not features.isfinite().all():
            raise ValueError(
                f"features hold {features[~features.isfinite()][0]:g} at place {int((~features.isfinite()).nonzero()[0, 1])}"
            )
        if state is None:
            return StreamState.empty(self.settings, len(features), self.position.weight.detach())
        ours, theirs = asdict(self.settings), asdict(state.config)
        if odd := [name for name in ours if ours[name] != theirs[name]]:
            raise ValueError(f"the state has {odd[0]} {theirs[odd[0]]}, this model {ours[odd[0]]}")
        if len(state.depth) != len(features):
            raise ValueError(f"the state is of {len(state.depth)} streams, the features of {len(features)}")
        return state


def _smoothed(logits: Tensor, config: LSHMAConfig) -> Tensor:
    """Return logits (T,) smoothed as released: with the next ones (UCF), or by whole blocks (XD)."""
    smooth = online_metrics.smooth_blocks if config.smooths_blocks else online_metrics.smooth_ahead
    return torch.from_numpy(smooth(logits.detach().cpu().numpy(), config.smoothing)).to(logits)


def loss(output: LSHMAOutput, labels: Tensor) -> Tensor:
    """Return the training loss, a scalar: the bag's loss at every depth, so that each may answer; labels (B,)."""
    each = [mil_loss(level, output.lengths, labels, output.counted) for level in output.levels.unbind(1)]
    return torch.stack(each).mean()


# Where the reference keeps what is named otherwise here.
_RELEASED_NAMES = (
    (r"^module\.", ""),
    (r"^frame_position_embeddings\.", "position."),
    (r"^(blocks\.\d+)\.(resblock\.)?(attn\.)?", r"\1."),
    (r"\.(ln_|ln|norm_|norm)([12])\.", r".norm\2."),
    (r"\.conv_k\.", ".q_proj."),
    (r"\.conv_cur\.", ".k_proj."),
    (r"\.attenproj\.", ".out_proj."),
    (r"\.proj\.", ".unused."),
    (r"(^|\.)mlp2?\.(c_fc|fc1)\.", r"\1mlp.0."),
    (r"(^|\.)mlp2?\.(c_proj|fc2)\.", r"\1mlp.2."),
    (r"^mlp2\.", "mlp."),
)


def load_released(source: str | Path | Mapping[str, Tensor], config: LSHMAConfig) -> LSHMA:
    """Return a model in eval mode with a reference state dict (or a file of one) loaded strictly; StoreError otherwise."""
    weights = source if isinstance(source, Mapping) else checkpoints.load_weights(source)
    name = "the state dict" if isinstance(source, Mapping) else source
    renamed = {}
    for key, value in weights.items():
        for theirs, ours in _RELEASED_NAMES:
            key = re.sub(theirs, ours, key)
        renamed[key] = value.float()
    model = LSHMA(config)
    checkpoints.load_strictly(model, renamed, name)
    return model.eval()


_PUBLISHED = training.TrainingPlan(15, 1e-5, 0.01, 1, milestones=(3, 6, 10), curriculum_epochs=0, augment_probability=0.0)
RECIPES = {  # as published: whole videos one by one, a step down at three (two) epochs
    "xd": _PUBLISHED,
    "ucf": replace(_PUBLISHED, learning_rate=2e-5, milestones=(3, 5), balanced=True),
}

"""LSHMA, a streaming detector with hierarchical memory attention (Han et al., StreamVAD).

A clip of N features passes L blocks; each attends to the clip and to what that block stored of the M - 1 clips before,
compressed to half the width. Depth widens the context: 1 + L (M - 1) clips reach a score.
- state goes in and comes out; `forward`, `push`, `score` and `step` are one function of any number of clips of any number of
  streams, so training and streaming are one code path
- memory holds no gradients, so all clips of all videos pass a block together, and padding costs nothing
- default is what the paper intends: the oldest clip leaves the memory; every depth is trained to answer, so that a stream may
  leave early, each of B streams for itself; nothing looks ahead
- `.xd(released=True)`, `.ucf(released=True)` set every quirk of the published code, each a boolean of its own below: its memory
  never forgets its first clips, its attention is read back in the wrong order, its test head is not the one trained
Source: Han et al., StreamVAD (LSHMA), Neurocomputing 2025, and its repository (MIT; read for facts); Wu et al., MeMViT, CVPR 2022.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vau_lib.detectors import training
from vau_lib.detectors.key_clips import decide_all, key_clips
from vau_lib.detectors.lshma_state import LSHMAConfig, StreamState, frozen, latest
from vau_lib.detectors.preprocessing import Preprocessing
from vau_lib.detectors.training import mil_loss
from vau_lib.evaluation import online_metrics
from vau_lib.features import checkpoints
from vau_lib.workspace import artifacts

PART_ROWS = 4096  # features scored at once, of all streams together: memory does not depend on a video's length
ROWS_AT_ONCE = 16_384  # the same in training, 240 KB of activations each (UCF-Crime's sizes)


class Block(nn.Module):
    """Attend to the clip and its past, then two linear layers: `compress`, then `forward`, of any number of clips at once."""

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

    def compress(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (K, N, D) normalised, and compressed (K, N, C): a clip's query, and what memory keeps of it."""
        x = self.norm1(x)
        return x, self.q_proj(x)

    def forward(self, stream: Tensor, x: Tensor, query: Tensor, past: Tensor, filled: Tensor) -> Tensor:
        """Return K clips after the block; stream (K, N, D) came in, x and query are of `compress`.

        past (K, M - 1, N, C), oldest first, of which the last `filled` (K,) count; a clip without one attends to itself only.
        """
        new = filled == 0
        attended, first, later = torch.empty_like(x), new.nonzero()[:, 0], (~new).nonzero()[:, 0]
        if len(first):
            attended = attended.index_copy(0, first, self._alone(x[first]))
        if len(later):
            attended = attended.index_copy(0, later, self._with_past(query[later], x[later], past[later], filled[later]))
        stream = (x if self.settings.normalised_stream else stream) + attended
        return stream + self.mlp(self.norm2(stream))

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
    logits: Tensor  # (B, T); with padded bags T is of whole clips
    levels: Tensor  # (B, L, T): at every depth
    counted: Tensor | None  # (B, T) bool: snippets that are in the bag, all real ones when None
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
        clip, state = self._checked(clip, state)
        if clip.shape[1] != self.settings.window or state.waiting.shape[1]:
            raise ValueError(
                f"step takes clips of {self.settings.window} features, got {clip.shape[1]} with "
                f"{state.waiting.shape[1]} waiting; push takes any number"
            )
        state = self._advance(clip[:, None], state, torch.full((len(clip), 1), self.settings.window, device=clip.device))[0]
        return state.levels[:, -1], self._kept(state)

    def push(self, features: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """Take any number of features (B, n, D); return logits (B, m) of the clips they complete, m a multiple of N or 0."""
        (features, state), n = self._checked(features, state), self.settings.window
        x = torch.cat([state.waiting, features], dim=1)
        whole = x.shape[1] // n * n
        state, waiting = replace(state, waiting=x[:, :0]), x[:, whole:].clone()
        scored = [x.new_zeros(len(x), 0)]
        for part in x[:, :whole].unflatten(1, (-1, n)).split(self._clips_at_once(len(x)), dim=1) if whole else ():
            state, levels, _ = self._advance(part, state, torch.full(part.shape[:2], n, device=x.device))
            scored.append(levels[:, -1].flatten(1))
        return torch.cat(scored, dim=1), self._kept(replace(state, waiting=waiting))

    def _kept(self, state: StreamState) -> StreamState:
        """Return what the next clip is given: without gradients, else every clip's graph hangs on it while the stream runs."""
        return state if self.training else state.detached()

    def flush(self, state: StreamState) -> Tensor:
        """Return logits (B, n) of the n features still waiting when a stream ends; the clip is padded with zeros."""
        state = state.to(self.position.weight.device)
        x, n = state.waiting, state.waiting.shape[1]
        if not n:
            return x.new_zeros(len(x), 0)
        clip = F.pad(x, (0, 0, 0, self.settings.window - n))[:, None]
        valid = torch.full((len(x), 1), n, device=x.device)
        return self._advance(clip, replace(state, waiting=x[:, :0]), valid)[0].levels[:, -1, :n]

    @torch.inference_mode()
    def score(self, features: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Return the probability of an anomaly at every snippet, (T,) in [0, 1], of features (T, D); the same type."""
        if features.ndim != 2:
            raise ValueError(f"features must be (T, {self.settings.width}), got {tuple(features.shape)}")
        parts = (features[start : start + PART_ROWS] for start in range(0, max(1, len(features)), PART_ROWS))
        scores = self._score_parts(torch.as_tensor(part if isinstance(part, Tensor) else np.array(part)) for part in parts)
        return scores.to(features.device) if isinstance(features, Tensor) else scores.cpu().numpy()

    def _score_parts(self, parts: Iterable[Tensor]) -> Tensor:
        """Return the probabilities (T,) of one video given in parts (n, D); memory does not grow with their number."""
        logits = self.raw_logits(part[None] for part in parts)[0]
        return (released_smoothing(logits, self.settings) if self.settings.looks_ahead else logits).sigmoid()

    @torch.inference_mode()
    def score_video(self, features: np.ndarray, preprocessing: Preprocessing) -> tuple[float, np.ndarray]:
        """Return the video's score, the mean of its highest snippets as in training, and every snippet's, (T,)."""
        scores = self._score_parts(preprocessing.parts(features, PART_ROWS))
        return training.top_mean(scores, every=self.settings.rows_per_choice), scores.cpu().numpy()

    def for_training(self, labels: Tensor) -> tuple[nn.Module, Callable]:
        """Return the network and the objective that `training.fit` takes."""
        return training.TimeLast(self, self.forward), lambda output, _, y: loss(output, y, every=self.settings.rows_per_choice)

    @torch.inference_mode()
    def raw_logits(self, features: Tensor | Iterable[Tensor]) -> Tensor:
        """Return raw logits (B, T) of whole videos (B, T, D): the first of a model's two results; nothing is smoothed.

        Given their parts (B, n, D) in order, memory does not grow with T.
        """
        scored, state = [], None
        for part in [features] if isinstance(features, Tensor) else features:
            logits, state = self.push(part, state)
            scored.append(logits)
        return torch.cat([*scored, self.flush(state)], dim=1)

    def smoothed_logits(self, features: Tensor) -> Tensor:
        """Return logits (B, T) smoothed as the test scripts do before they measure: the second of a model's two results.

        A mean of logits, not of probabilities, over the next scores (UCF-Crime) or whole blocks (XD-Violence), with zeros past
        the end; both look ahead. `settings.smoothing` scores are averaged.
        """
        return torch.stack([released_smoothing(logits, self.settings) for logits in self.raw_logits(features)])

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> LSHMAOutput:
        """Score whole videos (B, T, D) of which the first `lengths` (B,) are real, with gradients.

        Past a number of rows the clips are taken in parts, whose activations are computed again in the backward pass: the
        same scores and gradients, in bounded memory.
        """
        features, state = self._checked(features, None)
        (batch, count, _), n = features.shape, self.settings.window
        lengths = torch.full((batch,), count, device=features.device) if lengths is None else lengths.to(features.device)
        allowed = self._allowed(features, lengths) if self.training else None
        clips = F.pad(features, (0, 0, 0, -count % n)).unflatten(1, (-1, n))  # (B, C, N, D)
        valid = (lengths[:, None] - n * torch.arange(clips.shape[1], device=features.device)).clamp(0, n)  # (B, C)
        levels, kept, at_once = [], [], self._clips_at_once(batch)
        for start in range(0, clips.shape[1], at_once):
            part = slice(start, start + at_once)
            given = clips[:, part], state, valid[:, part], None if allowed is None else allowed[:, part]
            if torch.is_grad_enabled() and clips.shape[1] > at_once:
                state, scored, depth = checkpoint(self._advance, *given, True, use_reentrant=False, preserve_rng_state=False)
            else:
                state, scored, depth = self._advance(*given, True)
            levels.append(scored)
            kept.append(depth > 0)
        kept = torch.cat(kept, dim=1).repeat_interleave(n, dim=1)
        levels, counted = self._bag_rows(torch.cat(levels, dim=2).flatten(2), kept, lengths, count)
        logits = levels[:, -1]
        bag = training.bag_probability(logits, lengths, counted, every=self.settings.rows_per_choice)
        return LSHMAOutput(bag.logit(1e-6), logits, levels, counted, lengths)

    def _clips_at_once(self, streams: int) -> int:
        rows = ROWS_AT_ONCE if torch.is_grad_enabled() else PART_ROWS
        return max(1, rows // (streams * self.settings.window))

    def _bag_rows(self, levels: Tensor, kept: Tensor, lengths: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """Return levels (B, L, T) and which snippets are in the bag (B, T), all real ones when None; inputs are of whole clips."""
        if not (self.settings.shortened_bags and self.training):
            return levels[..., :count], None
        if self.settings.padded_bags:  # kept clips in a row, of which the first `lengths` places count, padding or not
            return levels, kept & (kept.cumsum(1) <= lengths[:, None])
        kept = kept[:, :count]
        return levels[..., :count], kept & (torch.arange(count, device=kept.device) < lengths[:, None])

    def _advance(
        self, clips: Tensor, state: StreamState, valid: Tensor, allowed: Tensor | None = None, every_depth: bool = False
    ) -> tuple[StreamState, Tensor, Tensor]:
        """Take clips (B, C, N, D) of which `valid` (B, C) features are real; return the state, logits (B, L, C, N), depth (B, C).

        Clips with nothing real, or not allowed, inherit. Level by level, all clips at once: what a block remembers is what its
        own input was, without gradients, so no clip waits for the one before. Depths answer where somebody asks: in training
        (`every_depth`), where a stream may leave, and the last one.
        """
        config, keys, active = self.settings, state.keys, valid > 0
        exits = config.exit_threshold < 1 and not self.training
        if config.key_clips:
            active, keys = decide_all(clips, keys, valid, every=config.key_every)
        if allowed is not None:
            active = active & allowed
        x, going, depth = clips[active] + self.position.weight, active, torch.zeros_like(valid)  # x (K, N, D)
        place = torch.arange(len(x), device=x.device)  # of a clip that goes on, among the active ones
        raw = [self.linear(x)] if config.head_over_scales and self.training else []
        memory, filled, levels, answers = [], [], [], None
        for level, block in enumerate(self.blocks):
            normal, query = block.compress(x)
            known = torch.cat([state.memory[:, level].flatten(0, 1), query.detach()])  # (B (M - 1) + K, N, C)
            past, count, last, filled_now = self._places(going, active & ~going, state, level, known, normal.detach())
            x = block(x, normal, query, known[past], count)
            memory.append(known[last])
            filled.append(filled_now)
            depth = depth + going
            if raw:
                raw.append(self.linear(x))
            if level + 1 == config.layers or exits or (every_depth and not raw):
                y = torch.stack(raw).amax(0) if raw else self.linear(x)
                logits = self.classifier(y + self.mlp(y))[..., 0]  # (K, N)
                answers = logits if answers is None else answers.index_copy(0, place, logits)
                levels.append(_inherited(answers, active, state.levels[:, level]))
            if exits and level + 1 < config.layers:
                chances = logits.sigmoid()
                if not config.padding_votes:
                    places = torch.arange(config.window, device=x.device)
                    chances = chances.masked_fill(places >= valid[going][:, None], 0.0)
                sure = chances.amax(1) > config.exit_threshold  # deeper blocks do not see this clip and begin again
                going = going.clone().masked_scatter(going, ~sure)
                x, place = x[~sure], place[~sure]
        # as released one answer trains all depths; elsewhere nobody asked the others
        levels = torch.stack(levels if len(levels) == config.layers else levels * config.layers, 1)  # (B, L, C, N)
        memory, filled = torch.stack(memory, 1), torch.stack(filled, 1)
        state = replace(state, memory=memory, filled=filled, levels=levels[:, :, -1], depth=depth[:, -1], keys=keys)
        return state, levels, depth

    def _places(
        self, going: Tensor, resets: Tensor, state: StreamState, level: int, known: Tensor, normal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return where in `known` the past of each clip is (K, M - 1), how much of it counts (K,); the same after all, (B, ...)."""
        filled, slots = state.filled[:, level], self.settings.memory - 1
        if not self.settings.frozen_memory or not slots:
            return latest(going, resets, filled, slots)
        entry, mean = known.mean((1, 2)), torch.cat([known.new_zeros(len(known) - len(normal)), normal.mean((1, 2))])
        return frozen(going, resets, filled, slots, entry, mean)

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

    def _checked(self, features: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Return features and the state to go on with, on the model's device; ValueError, one line, where they do not fit."""
        if features.ndim != 3 or features.shape[2] != self.settings.width or not features.shape[0] or not features.shape[1]:
            raise ValueError(f"features must be (B, n, {self.settings.width}) with B and n at least 1, got {tuple(features.shape)}")
        if not features.is_floating_point():
            raise ValueError(f"features must be floating point, got {features.dtype}")
        if not features.isfinite().all():
            raise ValueError(
                f"features hold {features[~features.isfinite()][0]:g} at place {int((~features.isfinite()).nonzero()[0, 1])}"
            )
        features = features.to(self.position.weight.device).float()
        if state is None:
            return features, StreamState.empty(self.settings, len(features), self.position.weight.detach())
        ours, theirs = asdict(self.settings), asdict(state.config)
        if odd := [name for name in ours if ours[name] != theirs[name]]:
            raise ValueError(f"the state has {odd[0]} {theirs[odd[0]]}, this model {ours[odd[0]]}")
        if len(state.depth) != len(features):
            raise ValueError(f"the state is of {len(state.depth)} streams, the features of {len(features)}")
        return features, state.to(features.device)


def _inherited(answers: Tensor, active: Tensor, before: Tensor) -> Tensor:
    """Return (B, C, N): answers (K, N) of the active clips (B, C), the others take the last one's or `before` (B, N)."""
    first = torch.arange(len(active), device=active.device)[:, None]
    number = torch.where(active, active.flatten().cumsum(0).view_as(active) - 1 + len(active), first)
    return torch.cat([before, answers])[number.cummax(1).values]


def released_smoothing(logits: Tensor, config: LSHMAConfig) -> Tensor:
    """Return logits (T,) smoothed as released: with the next ones (UCF), or by whole blocks (XD)."""
    smooth = online_metrics.smooth_blocks if config.smooths_blocks else online_metrics.smooth_ahead
    return torch.from_numpy(smooth(logits.detach().cpu().numpy(), config.smoothing)).to(logits)


def loss(output: LSHMAOutput, labels: Tensor, *, every: int = training.SNIPPETS_PER_CHOICE) -> Tensor:
    """Return the training loss, a scalar: the bag's loss at every depth, so that each may answer; labels (B,)."""
    each = [mil_loss(level, output.lengths, labels, output.counted, every=every) for level in output.levels.unbind(1)]
    return torch.stack(each).mean()


_IN_BLOCK = {  # the published name of each part of a block, and ours
    "ln_1": "norm1", "ln_2": "norm2", "compress_k": "q_proj", "compress_cur": "k_proj", "attenproj": "out_proj",
    "mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2", "proj": "unused",  # the last one is in the file and no code reads it
}  # fmt: skip
_OUTSIDE = {
    "frame_position_embeddings": "position", "linear": "linear", "mlp2.c_fc": "mlp.0", "mlp2.c_proj": "mlp.2",
    "classifier": "classifier",
}  # fmt: skip


def published_names(layers: int) -> dict[str, str]:
    """Return {name of a tensor in the published state dict: its name here} of a model of so many blocks."""
    parts = dict(_OUTSIDE)
    for level in range(layers):
        parts |= {f"blocks.{level}.resblock.{theirs}": f"blocks.{level}.{ours}" for theirs, ours in _IN_BLOCK.items()}
    bare = ("compress_k", "compress_cur", "frame_position_embeddings")  # without a bias
    kinds = {theirs: ("weight",) if theirs.endswith(bare) else ("weight", "bias") for theirs in parts}
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in parts.items() for kind in kinds[theirs]}


def published_config(weights: Mapping[str, Tensor], name: str | Path = "the state dict") -> LSHMAConfig:
    """Return the released configuration that a published state dict belongs to, by its window and its number of blocks.

    8 and 2 are XD-Violence's, 4 and 4 UCF-Crime's (and the long-term list's); StoreError for anything else.
    """
    position = weights.get("frame_position_embeddings.weight")
    window = tuple(position.shape)[:1] if position is not None else ()
    layers = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    makers = {((8,), 2): LSHMAConfig.xd, ((4,), 4): LSHMAConfig.ucf}
    if (window, layers) not in makers:
        raise artifacts.StoreError(
            f"{Path(name).name} is no published LSHMA: frame_position_embeddings of {window[0] if window else 'no'} places and "
            f"{layers} blocks, expected 8 and 2 (XD-Violence) or 4 and 4 (UCF-Crime)"
        )
    return makers[window, layers](released=True, width=position.shape[-1])


@artifacts.reader()
def load_released(source: str | Path | Mapping[str, Tensor], config: LSHMAConfig | None = None) -> LSHMA:
    """Return a model in eval mode with the published weights in it; every tensor has to fit by name and shape.

    `source` is a state dict or a file of one, bare or as the training scripts write it (`{"epoch", "model_state_dict",
    "optimizer_state_dict", "ap"}`); `config` is by default the released one its shapes belong to. StoreError names what lacks,
    what is unknown, or whose shape differs, as it is called in the file.
    """
    weights = source if isinstance(source, Mapping) else checkpoints.load_weights(source)
    name = "the state dict" if isinstance(source, Mapping) else Path(source).name
    model = LSHMA(config or published_config(weights, name))
    ours, names = model.state_dict(), published_names(model.settings.layers)
    if odd := sorted(names.keys() ^ weights.keys()):
        missing = len(names.keys() - weights.keys())
        raise artifacts.StoreError(
            f"{name} does not fit LSHMA: {odd[0]} is {'unknown' if odd[0] in weights else 'missing'} "
            f"({missing} missing, {len(odd) - missing} unknown)"
        )
    for key in names:
        found, wanted = tuple(weights[key].shape), tuple(ours[names[key]].shape)
        if found != wanted:
            raise artifacts.StoreError(f"{name} does not fit LSHMA: {key} is {found}, expected {wanted}")
    model.load_state_dict({names[key]: value.float() for key, value in weights.items()})
    return model.eval()


_PUBLISHED = training.TrainingPlan(15, 1e-5, 0.01, 1, milestones=(3, 6, 10), curriculum_epochs=0, augment_probability=0.0)
RECIPES = {  # as published: whole videos one by one, a step down at three (two) epochs
    "xd": _PUBLISHED,
    "ucf": replace(_PUBLISHED, learning_rate=2e-5, milestones=(3, 5), balanced=True),
}
# ours, for the full size: 16 videos a step, the rate by the square root of that, the same number of videos seen
RECIPES |= {f"{name} batched": replace(r, batch_size=16, learning_rate=4 * r.learning_rate) for name, r in RECIPES.items()}

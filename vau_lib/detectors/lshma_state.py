"""LSHMA's configuration and the state of its streams, a value that goes in and comes out.

- a state holds everything between two calls, so that two videos in turn equal each alone, by construction
- it is of one size for ever, can be saved, loaded, stacked with others and taken apart again
- as released, the memory hung on the modules and videos were told apart by their place in a list: normal, anomalous and test
  lists all count from 0, so one video's memory could reach another
Source: as in `lshma`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vau_lib.detectors.key_clips import KeyState
from vau_lib.workspace import artifacts, formats


@dataclass(frozen=True)
class LSHMAConfig:
    """Sizes, choices, and the published code's quirks, off by default. `width` is the D of a feature.

    `memory` is the paper's M: M - 1 past clips are kept. `exit_threshold` 1 never leaves early. `smoothing` is the number of
    scores the released smoothing averages, used only with `looks_ahead`. A video's score is the mean of its T // `rows_per_choice`
    + 1 highest rows, in training too: 16 as published, where a video has hundreds; fewer suit short videos with long events.
    """

    width: int = 512
    window: int = 8
    layers: int = 2
    memory: int = 2
    self_weight: float = 1.0
    exit_threshold: float = 0.6
    key_clips: bool = False
    key_every: int = 8
    smoothing: int = 8
    rows_per_choice: int = 16
    normalised_stream: bool = False  # blocks add to the normalised features: their norm never reaches the head
    scrambled: bool = False  # attention's output is re-read column by column: positions and channels mix
    frozen_memory: bool = False  # "forgetting" with the wrong sign: the newest clip is evicted, the first ones stay
    head_over_scales: bool = False  # training answers from the maximum over depths and the raw clip, testing from one depth
    looks_ahead: bool = False  # scores are averaged with the next ones before they are reported
    smooths_blocks: bool = False  # that average is one value per block (XD) instead of one per snippet (UCF)
    released_key_clips: bool = False  # the released rule, in training only
    half_precision_key_clips: bool = False  # computed in float16, where a padded clip gives 0 / 0
    shortened_bags: bool = False  # dropped clips are missing from the bag instead of inheriting (XD training)
    padded_bags: bool = False  # in such a bag padded places of the last clip count, where clips before it were dropped
    padding_votes: bool = False  # padded places of the last clip can end it early

    def __post_init__(self):
        if min(self.width, self.window, self.layers, self.memory, self.smoothing, self.key_every, self.rows_per_choice) < 1:
            raise ValueError(f"sizes must be 1 or more, got {self}")
        if self.window < 2 and (self.key_clips or self.released_key_clips):
            raise ValueError("key clips need a window of 2 features or more, got 1")

    @classmethod
    def xd(cls, *, released: bool = False, **changes: object) -> "LSHMAConfig":
        """The XD-Violence model: clips of 8 features, 2 blocks, 1 past clip."""
        quirks = dict.fromkeys([*_QUIRKS, "smooths_blocks", "shortened_bags", "padded_bags"], released)
        return cls(**{"window": 8, "layers": 2, "memory": 2, "self_weight": 1.0, **quirks, **changes})

    @classmethod
    def ucf(cls, *, released: bool = False, **changes: object) -> "LSHMAConfig":
        """The UCF-Crime model: clips of 4 features, 4 blocks, 3 past clips."""
        quirks = dict.fromkeys(_QUIRKS, released)
        return cls(**{"window": 4, "layers": 4, "memory": 4, "self_weight": 0.0, **quirks, **changes})

    @property
    def reach_snippets(self) -> int:
        """Snippets that can reach a score: (1 + L (M - 1)) N."""
        return (1 + self.layers * (self.memory - 1)) * self.window


_QUIRKS = (
    "normalised_stream",
    "scrambled",
    "frozen_memory",
    "head_over_scales",
    "looks_ahead",
    "released_key_clips",
    "half_precision_key_clips",
    "padding_votes",
)


@dataclass(frozen=True)
class StreamState:
    """Everything B streams remember, batch first; its size does not depend on how long they have run."""

    config: LSHMAConfig
    memory: Tensor  # (B, L, M - 1, N, ceil(D / 2)), oldest first, filled from the right
    filled: Tensor  # (B, L) clips in each memory
    waiting: Tensor  # (B, n, D), n < N features of a clip that is not complete yet
    levels: Tensor  # (B, L, N) logits of the last clip at every depth; past an exit, the exit's
    depth: Tensor  # (B,) blocks the last clip passed, 0 when it was dropped
    keys: KeyState

    @classmethod
    def empty(cls, config: LSHMAConfig, batch: int, like: Tensor) -> "StreamState":
        """Return the state of B streams that have not begun, on the device of `like`."""
        n, width, compressed = config.window, config.width, -(-config.width // 2)
        memory = like.new_zeros(batch, config.layers, config.memory - 1, n, compressed)
        none = torch.zeros(batch, config.layers, dtype=torch.long, device=like.device)
        levels, keys = like.new_zeros(batch, config.layers, n), KeyState.empty(batch, width, like)
        return cls(config, memory, none, like.new_zeros(batch, 0, width), levels, none[:, 0], keys)

    def to(self, device: torch.device | str) -> "StreamState":
        """Return the state on a device."""
        return self._of(self.config, {name: value.to(device) for name, value in self._tensors().items()})

    def detached(self) -> "StreamState":
        """Return the state without the graph that made it."""
        return self._of(self.config, {name: value.detach() for name, value in self._tensors().items()})

    def num_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(value.nelement() * value.element_size() for value in self._tensors().values())

    def save(self, path: str | Path) -> None:
        """Write everything to a safetensors file, whole or not at all."""
        with artifacts.replacing(Path(path)) as temporary:
            values = {name: value.clone(memory_format=torch.contiguous_format) for name, value in self._tensors().items()}
            save_file(values, temporary, metadata={"lshma": json.dumps(asdict(self.config))})

    @classmethod
    @artifacts.reader()
    def load(cls, path: str | Path) -> "StreamState":
        """Return a saved state; StoreError for any other file."""
        try:
            with formats.safetensors_file(path) as file:
                config = LSHMAConfig(**artifacts.parse_json(file.metadata()["lshma"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            keys = KeyState(*(tensors.pop(f"keys.{name}") for name in KeyState._fields))
            return cls(config, **tensors, keys=keys)
        except Exception as error:  # a broken file can fail in any way; whichever, it is refused by name
            raise artifacts.StoreError(f"{Path(path).name} is no stream state ({type(error).__name__})") from error

    @classmethod
    def stack(cls, states: "Sequence[StreamState]") -> "StreamState":
        """Return streams that waited alone as one batch; all must hold as many waiting features."""
        parts = [state._tensors() for state in states]
        return cls._of(states[0].config, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def of(self, stream: int) -> "StreamState":
        """Return one stream of the batch."""
        return self._of(self.config, {name: value[stream : stream + 1] for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("config", "keys")}
        return own | {f"keys.{name}": value for name, value in self.keys._asdict().items()}

    @classmethod
    def _of(cls, config: LSHMAConfig, tensors: dict[str, Tensor]) -> "StreamState":
        keys = KeyState(*(tensors.pop(f"keys.{name}") for name in KeyState._fields))
        return cls(config, **tensors, keys=keys)


def latest(going: Tensor, resets: Tensor, filled: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the places of a queue's clips: of what came before each of K clips, (K, slots), and how many count, (K,).

    And the same after all clips, (B, slots) and (B,). Places count the `slots` old entries of every stream, then the clips
    that are `going` (B, C) into the memory, in order. At `resets` (B, C) a memory is emptied; `filled` (B,) are in it at first.
    """
    rank = going.cumsum(1)  # (B, C) clips that went in so far, this one too
    total, back = rank[:, -1], torch.arange(slots, 0, -1, device=going.device)
    base = torch.where(resets, rank, -filled[:, None]).cummax(1).values  # rank since when the memory counts
    stream = torch.arange(len(going), device=going.device)
    begin = slots * len(going) + total.cumsum(0) - total  # (B,) the place of a stream's first clip

    def places(rank: Tensor, stream: Tensor) -> Tensor:
        """Places of the `slots` clips before the one of that rank, counted from 0; old entries have ranks below 0."""
        before = rank[:, None] - back
        return torch.where(before < 0, (slots * (stream + 1))[:, None] + before, begin[stream][:, None] + before)

    rows, clips = going.nonzero().unbind(1)
    own = rank[rows, clips] - 1
    counts = (own - base[rows, clips]).clamp(max=slots)
    return places(own, rows), counts, places(total, stream), (total - base[:, -1]).clamp(max=slots)


def frozen(
    going: Tensor, resets: Tensor, filled: Tensor, slots: int, entry: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `latest` does, of the released memory, which drops one clip by its retention, clip after clip.

    Retention is exp(-t / s) with t rising towards the newest, so that the newest is the least retained; s = sigmoid(mean), of
    the compressed clips (`entry`, by place) and of the newest one before compression (`mean`). With room left, an empty
    place goes.
    """
    device, streams = going.device, np.arange(len(going))
    going, resets, filled, entry, mean = (value.cpu().numpy() for value in (going, resets, filled, entry, mean))
    filled, held = filled.copy(), slots * streams[:, None] + np.arange(slots)  # (B, slots) places held
    number = slots * len(going) + going.reshape(-1).cumsum().reshape(going.shape) - 1  # the place of each clip that goes in
    age = np.linspace(0, 1, slots + 1, dtype=np.float32)
    places, counts = np.zeros((*going.shape, slots), np.int64), np.zeros(going.shape, np.int64)
    for clip in range(going.shape[1]):
        here = going[:, clip].nonzero()[0]
        places[here, clip], counts[here, clip] = held[here], filled[here]
        every = np.concatenate([held[here], number[here, clip, None]], axis=1)  # (b, M)
        salience = 1 / (1 + np.exp(-np.concatenate([entry[held[here]], mean[number[here, clip], None]], axis=1)))
        gone = np.where(filled[here] == slots, np.exp(-age / salience).argmin(1), 0)
        held[here] = every[np.arange(slots + 1) != gone[:, None]].reshape(len(here), slots)
        filled[here] = np.minimum(filled[here] + 1, slots)
        filled[resets[:, clip]] = 0
    found = places[going], counts[going], held, filled
    return tuple(torch.from_numpy(value).to(device) for value in found)

"""Features and visual tokens of sampled frames, one in 16, each frame encoded once (Zhang et al., Holmes-VAU).

- frames are sampled at a stride; a cap on their number widens the stride, so that an hour costs no more than was agreed
- frames are decoded and encoded in small batches: what stays in memory is one feature per frame, not pixels (the release
  holds all frames of a video as floats, 16 GB for an hour)
- frames are chosen after all are scored; until then the visual tokens of candidates wait in memory, in the number format of the
  model, and a chosen frame that was no candidate is encoded again (the release encodes all chosen frames again)
- any `FrameEncoder` will do: CLIP, SqueezeNet, XFeat, or the vision tower of a language model
Source: Zhang et al., Holmes-VAU, CVPR 2025, section 4.2 and Fig. 4 (token selection).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vau_lib.data import video
from vau_lib.data.records import SNIPPET_FRAMES

BATCH_FRAMES = 16  # frames decoded and encoded at a time
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # RGB mean and standard deviation of values in [0, 1]


class FrameEncoder(Protocol):
    """What describes single frames."""

    def encode_frames(self, frames: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Return features (t, D), and visual tokens (t, N, C) or None, of frames uint8 (t, H, W, 3)."""


class TransformerEncoder:
    """Encode frames with a vision transformer: its class token is the feature, the rest are the tokens.

    `net(pixel_values=(t, 3, side, side)).last_hidden_state` must be (t, 1 + N, C). `project` makes of the patches (t, N, C)
    what is kept (InternVL: pixel shuffle and projector, so that the language model can take them). Frames are resized
    without regard to their shape, as released. The computation runs where `net` is, in its dtype.
    """

    def __init__(
        self, net: nn.Module, *, side: int, mean: Sequence[float] = IMAGENET[0], std: Sequence[float] = IMAGENET[1],
        project: Callable[[Tensor], Tensor] | None = None,
    ):  # fmt: skip
        self.net, self.side, self.mean, self.std, self.project = net.eval(), side, mean, std, project

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return features (t, C) and tokens (t, N', C'), of frames (t, H, W, 3)."""
        weight = next(self.net.parameters())
        size, pixels = (self.side, self.side), torch.from_numpy(frames).to(weight.device).permute(0, 3, 1, 2)
        pixels = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True).clamp(0, 255) / 255
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        hidden = self.net(pixel_values=((pixels - mean) / std).to(weight.dtype)).last_hidden_state
        return hidden[:, 0], hidden[:, 1:] if self.project is None else self.project(hidden[:, 1:])


@dataclass(frozen=True)
class Candidates:
    """How many sampled frames' tokens may wait in memory, and which: `choose(features (n, D), count)` of the frames so far.

    Once more than `limit` frames or `most_bytes` wait, half as many are chosen anew; `choose` returns at most `count` places
    in [0, n).
    """

    limit: int
    choose: Callable[[np.ndarray, int], np.ndarray]
    most_bytes: int = 2**30


class FrameFeatures:
    """The frames of a video file at a stride, each encoded once, when its features are first needed.

    `index` (T,) are their frame numbers, T = ceil(frames / stride); with a `cap`, the stride grows until T <= cap.
    `times_s` (T,) is when each is shown (true at a variable frame rate), `frame_count` how many frames were encoded.
    With `candidates` the tokens of some frames are kept in memory, with `tokens_file`, a scratch file the caller removes, those
    of all frames on disk, as the encoder gives them; `most_token_bytes` is what that came to. VideoError names a broken file.
    """

    def __init__(
        self, path: str | Path, encoder: FrameEncoder, *, stride: int = SNIPPET_FRAMES, cap: int | None = None,
        tokens_file: str | Path | None = None, candidates: Candidates | None = None,
    ):  # fmt: skip
        if stride < 1 or (cap is not None and cap < 1):
            raise ValueError(f"stride and cap must be 1 or more, got {stride} and {cap}")
        times = video.frame_times(path)
        self.stride = max(stride, -(-len(times) // cap)) if cap else stride
        self.path, self.encoder, self.frame_count = Path(path), encoder, 0
        self.index = np.arange(0, len(times), self.stride)
        self.times_s, self.num_frames = times[self.index], len(times)
        self._features: np.ndarray | None = None  # (T, D)
        self._stored = np.full(len(self.index), -1)  # which row of the file holds a frame's tokens; -1 not encoded
        self._file = None if tokens_file is None else Path(tokens_file)
        self._token_shape: tuple[int, ...] = ()
        self._token_dtype = torch.float32
        self._candidates, self._kept = candidates, {}  # place -> tokens (N, C)
        self.most_token_bytes = 0
        if self._file is not None:
            self._file.write_bytes(b"")

    def __len__(self) -> int:
        return len(self.index)

    def features(self, places: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return features (n, D) float32 of sampled frames, all by default; none is encoded a second time."""
        places = np.arange(len(self)) if places is None else self._checked(places)
        new = np.unique(places[self._stored[places] < 0])
        for first in range(0, len(new), BATCH_FRAMES):
            batch = new[first : first + BATCH_FRAMES]
            features, tokens = self._encode(batch)
            if self._features is None:
                self._features = np.zeros((len(self), features.shape[1]), np.float32)
            if self._file is not None:
                self._write(self._needed(tokens), self._stored.max() + 1)
            self._features[batch], self._stored[batch] = features, self._stored.max() + 1 + np.arange(len(batch))
            if self._candidates is not None:
                self._keep(batch, self._needed(tokens))
        return self._features[places]

    def tokens(self, places: Sequence[int] | np.ndarray) -> Tensor:
        """Return tokens (n, N, C) of sampled frames: those that were kept, others by encoding again; ValueError without tokens."""
        places = self._checked(places)
        if self._file is not None:
            self.features(places)
            stored = np.memmap(self._file, np.uint8, mode="r").reshape(self._stored.max() + 1, -1)
            rows = torch.from_numpy(stored[self._stored[places]])  # a copy: the file may go
            return rows.view(self._token_dtype).view(len(places), *self._token_shape)
        new = np.array([place for place in places if place not in self._kept], int)
        batches = np.split(new, range(BATCH_FRAMES, len(new), BATCH_FRAMES)) if len(new) else []
        again = [part for batch in batches for part in self._needed(self._encode(batch)[1])]
        found = self._kept | dict(zip(new.tolist(), again, strict=True))
        return torch.stack([found[place] for place in places.tolist()])

    def _keep(self, batch: np.ndarray, tokens: Tensor) -> None:
        """Keep a batch's tokens; with more than the limit, of all frames so far only those that `choose` names."""
        self._kept |= {int(place): part.clone() for place, part in zip(batch, tokens, strict=True)}  # not a view of the batch
        size = sum(part.nbytes for part in self._kept.values())
        self.most_token_bytes = max(self.most_token_bytes, size)
        if len(self._kept) > self._candidates.limit or size > self._candidates.most_bytes:
            done = np.flatnonzero(self._stored >= 0)
            count = max(1, min(self._candidates.limit, len(self._kept)) // 2)
            best = done[self._candidates.choose(self._features[done], count)]
            self._kept = {int(place): self._kept[place] for place in best if place in self._kept}

    def frames(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return sampled frames, uint8 (n, H, W, 3), decoded again: for figures."""
        return video.read_frames(self.path, self.index[self._checked(places)])

    def _encode(self, places: np.ndarray) -> tuple[np.ndarray, Tensor | None]:
        """Return features (t, D) and tokens, if any, of a batch of sampled frames; counts them."""
        features, tokens = self.encoder.encode_frames(video.read_frames(self.path, self.index[places]))
        self.frame_count += len(places)
        features = features.float().cpu().numpy()
        if features.ndim != 2 or len(features) != len(places) or not np.isfinite(features).all():
            name = type(self.encoder).__name__
            raise ValueError(f"{self.path.name}: {name} gave {features.shape} for {len(places)} frames")
        return features, None if tokens is None else tokens.cpu()

    def _needed(self, tokens: Tensor | None) -> Tensor:
        if tokens is None:
            raise ValueError(f"{type(self.encoder).__name__} gives no visual tokens")
        return tokens

    def _write(self, tokens: Tensor, first: int) -> None:
        self._token_shape, self._token_dtype = tuple(tokens.shape[1:]), tokens.dtype
        with self._file.open("r+b") as file:
            file.seek(first * tokens[0].nbytes)
            file.write(tokens.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.most_token_bytes = self._file.stat().st_size

    def _checked(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        places = np.asarray(places)
        if places.ndim != 1 or not places.size or places.dtype.kind not in "iu":
            raise ValueError(f"places must be a list of whole numbers, got shape {places.shape} of {places.dtype}")
        if places.min() < 0 or places.max() >= len(self):
            odd = places[(places < 0) | (places >= len(self))][0]
            raise ValueError(f"{self.path.name}: sampled frame {odd} is outside its {len(self)}")
        return places

"""Look at a video once, one frame in 16, a few frames at a time; what a frame showed is never computed twice.

- a glance is one frame at a stride; a cap on their number widens the stride, so that hours cost what was agreed
- frames are decoded and encoded in small batches: what stays in memory is one row per glance, not pixels (the release holds
  all frames of a video as floats, 16 GB for an hour)
- frames are chosen after all are scored, so the patch tokens of every glance wait in a scratch FILE until then; the release
  drops them and encodes the chosen frames again
- any encoder will do: `each(frames) -> (t, D)` (CLIP, SqueezeNet), `see(frames) -> (t, D), (t, N, C)` with tokens (a tower),
  or XFeat's call; frames are uint8 (t, H, W, 3)
Source: Zhang et al., Holmes-VAU, CVPR 2025, section 4.2 and Fig. 4 (token selection).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vau_lib.data import video
from vau_lib.data.records import SNIPPET_FRAMES

BATCH_FRAMES = 16  # frames decoded and encoded at a time

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # RGB mean and deviation of values in [0, 1]


class FrameEncoder:
    """See frames with a vision transformer that was passed in: its class token is the feature, the rest are the tokens.

    `net(pixel_values=(t, 3, side, side)).last_hidden_state` must be (t, 1 + N, C). `project` makes of the patches (t, N, C)
    what is kept (InternVL: pixel shuffle and projector, so that the language model can take them). Frames are resized
    without regard to their shape, as released. The computation runs where `net` is, in its dtype.
    """

    def __init__(
        self, net: nn.Module, *, side: int, mean: Sequence[float] = IMAGENET[0], deviation: Sequence[float] = IMAGENET[1],
        project: Callable[[Tensor], Tensor] | None = None,
    ):  # fmt: skip
        self.net, self.side, self.mean, self.deviation, self.project = net.eval(), side, mean, deviation, project

    @torch.inference_mode()
    def see(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return features (t, C) and tokens (t, N', C'), of frames (t, H, W, 3)."""
        weight = next(self.net.parameters())
        size, pixels = (self.side, self.side), torch.from_numpy(frames).to(weight.device).permute(0, 3, 1, 2)
        pixels = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True).clamp(0, 255) / 255
        mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        hidden = self.net(pixel_values=((pixels - mean) / deviation).to(weight.dtype)).last_hidden_state
        return hidden[:, 0], hidden[:, 1:] if self.project is None else self.project(hidden[:, 1:])


class FrameFeatures:
    """The frames of a video file at a stride, each seen at most once, when its features are first asked for.

    `index` (T,) are their frame numbers, T = ceil(frames / stride); with a `cap`, the stride grows until T <= cap.
    `times_s` (T,) is when each is shown (true at a variable frame rate), `seen` how many frames went through the encoder.
    With `tokens_file`, a scratch file the caller removes, tokens are kept there (float32). VideoError names a broken file.
    """

    def __init__(
        self, path: str | Path, encoder: object, *, stride: int = SNIPPET_FRAMES, cap: int | None = None,
        tokens_file: str | Path | None = None,
    ):  # fmt: skip
        if stride < 1 or (cap is not None and cap < 1):
            raise ValueError(f"stride and cap must be 1 or more, got {stride} and {cap}")
        times = video.frame_times(path)
        self.stride = max(stride, -(-len(times) // cap)) if cap else stride
        self.path, self.encoder, self.seen = Path(path), encoder, 0
        self.index = np.arange(0, len(times), self.stride)
        self.times_s, self.num_frames = times[self.index], len(times)
        self._rows: np.ndarray | None = None  # (T, D)
        self._kept = np.full(len(self.index), -1)  # which row of the file holds a glance's tokens; -1 not seen
        self._file = None if tokens_file is None else Path(tokens_file)
        self._token_shape: tuple[int, ...] = ()
        if self._file is not None:
            if not hasattr(encoder, "see"):
                raise ValueError(f"{type(encoder).__name__} gives no tokens to keep: it has no `see`")
            self._file.write_bytes(b"")

    def __len__(self) -> int:
        return len(self.index)

    def features(self, places: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return rows (n, D) float32 of glances, all by default; those seen before are not seen again."""
        places = np.arange(len(self)) if places is None else self._checked(places)
        new = np.unique(places[self._kept[places] < 0])
        for first in range(0, len(new), BATCH_FRAMES):
            batch = new[first : first + BATCH_FRAMES]
            rows, tokens = self._see(batch)
            if self._rows is None:
                self._rows = np.zeros((len(self), rows.shape[1]), np.float32)
            if self._file is not None:
                self._write(tokens, self._kept.max() + 1)
            self._rows[batch], self._kept[batch] = rows, self._kept.max() + 1 + np.arange(len(batch))
        return self._rows[places]

    def tokens(self, places: Sequence[int] | np.ndarray) -> Tensor:
        """Return tokens (n, N, C) float32 of glances: from the file, or where none is kept by seeing them again."""
        places = self._checked(places)
        if self._file is None:
            if not hasattr(self.encoder, "see"):
                raise ValueError(f"{type(self.encoder).__name__} gives no tokens: it has no `see`")
            return torch.cat(
                [self._see(part)[1] for part in np.split(places, range(BATCH_FRAMES, len(places), BATCH_FRAMES))]
            )
        self.features(places)
        kept = np.memmap(self._file, np.float32, mode="r").reshape(-1, *self._token_shape)
        return torch.from_numpy(kept[self._kept[places]])  # a copy: the file may go

    def frames(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the pictures of glances, uint8 (n, H, W, 3); decoded again, for eyes only."""
        return video.read_frames(self.path, self.index[self._checked(places)])

    def _see(self, places: np.ndarray) -> tuple[np.ndarray, Tensor | None]:
        """Return rows (t, D) and tokens, if any, of a batch of glances; counts them."""
        frames, tokens = video.read_frames(self.path, self.index[places]), None
        self.seen += len(places)
        if hasattr(self.encoder, "see"):
            rows, tokens = self.encoder.see(frames)
            tokens = tokens.float().cpu()
        else:
            rows = (
                self.encoder.each(frames) if hasattr(self.encoder, "each") else self.encoder(frames, snippet_frames=1)
            )
        rows = torch.as_tensor(rows).float().cpu().numpy()
        if rows.ndim != 2 or len(rows) != len(places) or not np.isfinite(rows).all():
            raise ValueError(
                f"{self.path.name}: {type(self.encoder).__name__} gave {rows.shape} for {len(places)} frames"
            )
        return rows, tokens

    def _write(self, tokens: Tensor, first: int) -> None:
        self._token_shape = tuple(tokens.shape[1:])
        with self._file.open("r+b") as file:
            file.seek(first * tokens[0].numel() * 4)
            file.write(tokens.contiguous().numpy().tobytes())

    def _checked(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        places = np.asarray(places)
        if places.ndim != 1 or not places.size or places.dtype.kind not in "iu":
            raise ValueError(f"places must be a list of whole numbers, got shape {places.shape} of {places.dtype}")
        if places.min() < 0 or places.max() >= len(self):
            odd = places[(places < 0) | (places >= len(self))][0]
            raise ValueError(f"{self.path.name}: glance {odd} is outside its {len(self)}")
        return places

"""XFeat descriptors as features of snippets (Potje et al., CVPR 2024; kornia's port, Apache-2.0).

- XFeat was trained to match points between views; its descriptors cost 0.39 GFLOP a frame, a fortieth of a ResNet-50's
  video cousins, and need only gray. Only the descriptor map is computed, never the key-point and reliability heads
- the same features, faster: gray without colour pixels, channels-last convolutions, bfloat16 where it is faster
- two summaries of the map: `pooled`, as in the Mem-TSM report, says what a place looks like; `local_change` (ours) says how much
  the places change, and the few that change most are kept apart, so that a small person is not averaged away
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from kornia.feature import XFeat
from torch import Tensor, nn

from vau_lib.data import download, fetch, video
from vau_lib.data.records import SNIPPET_FRAMES
from vau_lib.data.video import chunks
from vau_lib.features import devices, runtimes, xfeat_ncnn
from vau_lib.features.checkpoints import find_weights, load_strictly, load_weights
from vau_lib.features.local_change import LAGS, TOP_FRACTION, check_options, local_change
from vau_lib.workspace import artifacts, presets

BATCH_FRAMES, GPU_BATCH_FRAMES = 16, 128  # frames per pass through the network; larger is slower on a CPU (page faults)
XFEAT_GRID = 32  # pixels; height and width must be multiples of it


class XFeatEncoder(devices.OnDevice):
    """Describe frames by XFeat's dense descriptors.

    `weights` is None (search), a path, or "random" (seeded; every result must then say so). `bfloat16` None means where
    it is faster than float32 (`devices.bfloat16_pays`).

    - pooling "pooled" (the report's): features (128,), mean | max of L2-normalised descriptors over a snippet's frames and
      places; with `sampled_frames`, over that many frames spread evenly over it (the report's uniform temporal sampling)
    - pooling "local_change" (ours): features (128 L,), the mean over a snippet's frames of `local_change` at the L `lags`. They
      are causal and already say what changes: a detector reads them without a temporal difference

    Args:
        weights: see above.
        side: pixels a frame is shrunk to, height and width.
        bfloat16: see above.
        sampled_frames: None takes all frames; not for local change, whose lags count frames of the video.
        pooling: one of `POOLINGS`.
        lags: frames, for local change.
        top_fraction: of the places, in (0, 1], for local change.
        device: where the network runs, see `devices.choose`.
        runtime: "torch", or on the CPU "onnx", "openvino" or "ncnn" (float32 only, the fastest at it): the network is exported once
            below data/models/exported.
        compiled: let torch.compile build kernels of the network first; `benchmarks/extraction.py` prints after how many frames
            that pays.
    """

    name = "xfeat"

    def __init__(
        self, weights: str | Path | None = None, *, side: int = 224, bfloat16: bool | None = None,
        sampled_frames: int | None = None, pooling: str = "pooled", lags: Sequence[int] = LAGS, top_fraction: float = TOP_FRACTION,
        device: str | torch.device = "auto", runtime: str = "torch", compiled: bool = False,
    ):  # fmt: skip
        check_options(pooling, lags, top_fraction)
        if pooling == "local_change" and sampled_frames is not None:
            raise ValueError(f"local_change compares frames at lags and needs all of them, got sampled_frames {sampled_frames}")
        self.pooling, self.lags, self.top_fraction = pooling, tuple(lags), top_fraction
        self.width = 128 if pooling == "pooled" else 128 * len(self.lags)
        if side % XFEAT_GRID or not XFEAT_GRID <= side <= 4096:
            raise ValueError(f"side must be a multiple of {XFEAT_GRID} pixels, at most 4,096, got {side}")
        if sampled_frames is not None and sampled_frames < 1:
            raise ValueError(f"sampled_frames must be 1 or more, or None for all, got {sampled_frames}")
        self.side, self.sampled_frames = side, sampled_frames
        place = devices.choose(device if runtime == "torch" else "cpu")
        if runtime == "ncnn" and bfloat16:
            raise ValueError("runtime ncnn computes in float32 only, got bfloat16 True")
        self.bfloat16 = devices.bfloat16_pays(place) and runtime != "ncnn" if bfloat16 is None else bfloat16
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = XFeat().net.eval().requires_grad_(False)  # kornia hands it over in training mode
        self.weights = "random"
        if str(weights) != "random":
            path = find_xfeat(weights)
            load_strictly(self.net, load_weights(path), path)
            self.weights = artifacts.sha256(path)
        self.net = devices.folded(self.net).to(place, memory_format=torch.channels_last)
        self._session, self._torch = None, torch.compile(self._network) if compiled else self._network
        self._run = devices.Together(self._maps, self.batch_frames)
        if runtime == "ncnn":
            path = exported_path(self.weights, side).with_suffix(".param")
            if not path.is_file():
                xfeat_ncnn.write(self.net, partial(descriptor_map, self.net), path)
            self._session = xfeat_ncnn.Session(path)
        elif runtime != "torch":
            path = exported_path(self.weights, side)
            if not path.is_file():
                export(self, path)
            self._session = runtimes.Session(path, runtime, bfloat16=self.bfloat16)

    @property
    def batch_frames(self) -> int:
        """Frames per pass through the network where it is."""
        return GPU_BATCH_FRAMES if self.on_gpu else BATCH_FRAMES

    @property
    def ahead(self) -> int:
        """Frames decoded ahead of the network."""
        return 3 * self.batch_frames

    @torch.inference_mode()
    def dense(self, frames: np.ndarray) -> Tensor:
        """Return the raw descriptor map (T, 64, H/8, W/8) float32 of frames (T, H, W, 3) or gray (T, H, W).

        H and W must be multiples of 32; values of any scale (each image is normalised first, in float32).
        """
        pixels = devices.placed(torch.as_tensor(frames), self.device)
        if pixels.ndim == 4:
            pixels = pixels.float().mean(-1)
        if pixels.ndim != 3 or pixels.shape[1] % XFEAT_GRID or pixels.shape[2] % XFEAT_GRID:
            raise ValueError(f"frames must be (T, H, W[, 3]), H and W multiples of {XFEAT_GRID}, got {tuple(frames.shape)}")
        return self._run(pixels)

    def _maps(self, pixels: Tensor) -> Tensor:
        if self._session is not None and pixels.shape[1:] == (self.side, self.side):
            return torch.from_numpy(self._session(gray=pixels.float().numpy())["dense"])
        return self._torch(pixels)

    def _network(self, pixels: Tensor) -> Tensor:
        return descriptor_map(self.net, pixels, bfloat16=self.bfloat16)

    def encode_frames(self, frames: np.ndarray) -> tuple[Tensor, None]:
        """Return one feature per frame, (T, 128) float32, of frames (T, H, W, 3) of any size; no tokens."""
        if self.pooling != "pooled":
            raise ValueError(f"single frames have no {self.pooling}: it needs the frames before; use pooling 'pooled'")
        return torch.from_numpy(self(frames, snippet_frames=1)), None

    def __call__(self, frames: np.ndarray, *, snippet_frames: int = SNIPPET_FRAMES) -> np.ndarray:
        """Return one feature per snippet, float32 (ceil(T / snippet_frames), `width`), of frames (T, H, W, 3) of any size."""
        if np.ndim(frames) != 4 or len(frames) == 0:
            raise ValueError(f"frames must be (T, H, W, 3) with T at least 1, got shape {np.shape(frames)}")
        return np.stack(list(self.snippet_features(map(gray_of, frames), snippet_frames)))

    def snippet_features(self, gray: Iterable[np.ndarray], snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield (`width`,) per snippet of a stream of gray frames (H, W) that begins a video; the last may be short."""
        if self.sampled_frames is not None and self.sampled_frames < snippet_frames:
            gray, snippet_frames = _spread(gray, snippet_frames, self.sampled_frames), self.sampled_frames
        past = None
        for batch in chunks(gray, max(snippet_frames, self.batch_frames // snippet_frames * snippet_frames)):
            rows, past = self._frame_rows(torch.stack(batch) if isinstance(batch[0], Tensor) else np.stack(batch), past)
            for first in range(0, len(batch), snippet_frames):
                yield self._snippet_row(rows[first : first + snippet_frames])

    def next_snippet(self, frames: np.ndarray, past: Tensor | None = None) -> tuple[np.ndarray, Tensor | None]:
        """Return the feature (`width`,) of a live stream's next snippet, frames (n, H, W, 3), and the `past` of the one after.

        A stream begins with None. For pooled features `past` stays None: a snippet stands alone.
        """
        rows, past = self._frame_rows(np.stack([gray_of(frame) for frame in frames]), past)
        return self._snippet_row(rows), past

    def _frame_rows(self, gray: np.ndarray | Tensor, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what is kept of each frame of gray (T, H, W), (T, `width`), and the maps that later frames need."""
        rows = []
        for part in resized(gray, self.side).split(self.batch_frames):
            dense = self.dense(part)
            if self.pooling == "pooled":
                rows.append(torch.cat(_pool(dense), dim=1))
            else:
                row, past = local_change(dense, past, lags=self.lags, top_fraction=self.top_fraction)
                rows.append(row)
        return torch.cat(rows), past

    def _snippet_row(self, rows: Tensor) -> np.ndarray:
        if self.pooling == "local_change":
            return rows.mean(0).cpu().numpy()
        return torch.cat([rows[:, :64].mean(0), rows[:, 64:].amax(0)]).cpu().numpy()

    def source(self, path: Path) -> Iterator[np.ndarray]:
        """Yield a video file's frames as `snippet_features` takes them, gray and shrunk, (side, side).

        On CUDA they are decoded and shrunk on the card where torchcodec or DALI can (see `video.device_frames`).
        """
        decoded = video.device_frames(path, str(self.device)) if self.device.type == "cuda" else None
        if decoded is not None:
            return (gray for frames in decoded for gray in resized(frames.float().mean(-1), self.side))
        return self.from_gray(video.gray_frames(path))

    def from_gray(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield gray frames (H, W) of a file as `snippet_features` takes them, shrunk."""
        return (resized(frame[None], self.side)[0].numpy() for frame in frames)

    def encode(self, path: Path, snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield the features of a video file, decoding as it goes."""
        return self.snippet_features(self.source(path), snippet_frames)

    def made_by(self) -> dict:
        """Return what a reader must agree on."""
        change = {"lags": list(self.lags), "top_fraction": self.top_fraction}
        return {
            "encoder": self.name, "weights_sha256": self.weights, "side": self.side, "sampled_frames": self.sampled_frames,
            "local_change": change if self.pooling == "local_change" else None,  # None is pooled, as in folders made before
        }  # fmt: skip


def descriptor_map(net: nn.Module, pixels: Tensor, *, bfloat16: bool = False) -> Tensor:
    """Return the raw descriptors (T, 64, H/8, W/8) float32 of gray (T, H, W), of any scale, by kornia's `XFeatModel`."""
    gray = net.norm(pixels.float()[:, None] / 255)  # (T, 1, H, W)
    with torch.autocast(pixels.device.type, torch.bfloat16) if bfloat16 else nullcontext():
        skipped = net.skip1(gray).contiguous(memory_format=torch.channels_last)  # of one channel a convolution keeps no order
        quarter = net.block2(net.block1(gray) + skipped)  # (T, 24, H/4, W/4)
        eighth = net.block3(quarter)  # (T, 64, H/8, W/8)
        sixteenth = net.block4(eighth)
        coarse = net.block5(sixteenth)
        size = eighth.shape[-2:]
        levels = (F.interpolate(level, size, mode="bilinear", align_corners=False) for level in (sixteenth, coarse))
        return net.block_fusion(eighth + sum(levels)).float()


class DenseMap(torch.nn.Module):
    """gray (T, side, side) -> XFeat's descriptor map (T, 64, side/8, side/8), in float32: what is exported."""

    def __init__(self, encoder: XFeatEncoder):
        super().__init__()
        self.net, self.encoder = encoder.net, encoder

    def forward(self, gray: Tensor) -> Tensor:
        return self.encoder._network(gray)


def exported_path(weights: str, side: int) -> Path:
    """Return where the exported network of weights (their sha256, or "random") is kept."""
    return presets.project() / "data" / "models" / "exported" / f"xfeat_{weights[:16]}_{side}.onnx"


def export(encoder: XFeatEncoder, path: Path) -> dict[str, float]:
    """Write an encoder's network as an ONNX file, float32; return {runtime: largest difference from torch}."""
    before, encoder.bfloat16 = encoder.bfloat16, False
    try:
        frames = 255 * torch.rand(3, encoder.side, encoder.side, generator=torch.Generator().manual_seed(0))
        return runtimes.write_onnx(DenseMap(encoder), {"gray": frames}, ["dense"], path, free={"gray": (0,)})
    finally:
        encoder.bfloat16 = before


def find_xfeat(weights: str | Path | None = None) -> Path:
    """Return XFeat's weights file, fetched from its authors' page when nothing nearer has it (6 MB, once, checked)."""
    try:
        return find_weights("xfeat", weights)
    except artifacts.MissingWeights as error:
        if weights:
            raise
        missing = error
    try:  # kornia's own download reads the file before anybody compared its checksum
        target = artifacts.torch_cache() / "xfeat.pt"
        source = fetch.SOURCES["xfeat"]
        download.download(source.address, target, sha256=source.sha256, tries=2, progress=False)
    except (OSError, download.DownloadError) as error:
        raise artifacts.MissingWeights(f"{missing}; the download failed too: {artifacts.one_line(error, 300)}") from error
    return target


def resized(gray: np.ndarray | Tensor, side: int) -> Tensor:
    """Shrink gray (T, H, W) to (T, side, side), averaging what it drops (antialiased)."""
    size = (side, side)
    gray = torch.as_tensor(gray)
    if gray.shape[1:] == size:
        return gray
    return F.interpolate(gray[:, None], size, mode="bilinear", antialias=True)[:, 0]


def _spread(frames: Iterable[np.ndarray], snippet_frames: int, count: int) -> Iterator[np.ndarray]:
    """Yield `count` frames of each snippet, spread evenly; of a last snippet with fewer frames, all."""
    for part in chunks(frames, snippet_frames):
        yield from (part[place] for place in video.sample_index(len(part), min(count, len(part))))


def gray_of(frame: np.ndarray) -> np.ndarray:
    """Return the mean over colours of a frame (H, W, 3), float32 (H, W): NumPy's own to the bit, in a fifth of its time."""
    if frame.dtype != np.uint8:
        return frame.mean(-1, dtype=np.float32)
    return (frame[..., 0].astype(np.uint16) + frame[..., 1] + frame[..., 2]).astype(np.float32) / np.float32(3)


def _pool(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and max over places, (T, 64) each, of a map (T, 64, h, w) of descriptors made unit length."""
    unit = dense / dense.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)  # F.normalize, a quarter of its time on a CPU
    return unit.mean((2, 3)), unit.amax((2, 3))

"""Turn frames into one small row per segment, once, and remember what made them.

- a row summarises a segment of frames (16 unless told): it is what every scorer here reads
- XFeat was trained to match points between views; its descriptors cost 0.39 GFLOP a frame, a fortieth of a ResNet-50's
  video cousins, and need only gray. Only the descriptor map is computed, never the key-point and reliability heads
- equal features, faster: gray without colour pixels, channels-last convolutions, bfloat16 where the CPU has it
- flow rows say how things move and need no training; they are the peer a learned score must beat
- CLIP and SqueezeNet rows come from `towers`; rows that others released are read by `released`
Weights: an explicit path, the folder $VAU_WEIGHTS, torch hub's cache, then the hub; random only when asked for by name.
Sources: Potje et al., XFeat, CVPR 2024, and kornia's port (Apache-2.0); Kroeger et al., DIS flow, ECCV 2016 (OpenCV).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from kornia.feature import XFeat
from torch import Tensor

from vau_lib import cluster, records, store, video
from vau_lib.released import read_rows as read_rows  # passed on, like the next two
from vau_lib.released import released_list as released_list
from vau_lib.released import released_rows as released_rows
from vau_lib.towers import SNIPPET_FRAMES, CLIPEncoder, SqueezeNetEncoder
from vau_lib.weights import load_strictly, load_weights

BATCH_FRAMES = 16  # frames per pass through the network; larger is slower on a CPU (page faults)
XFEAT_GRID = 32  # pixels; height and width must be multiples of it
XFEAT_FILE = "xfeat/xfeat.pt"  # as released; the batch-norm-folded copy works too


class XFeatEncoder:
    """Describe frames by XFeat's dense descriptors.

    `weights` is None (search), a path, or "random" (seeded; every result must then say so). `bfloat16` None means where
    the processor has it. Rows are (128,): mean | max of L2-normalised descriptors over a segment's frames and places.
    """

    name, width = "xfeat", 128

    def __init__(self, weights: str | Path | None = None, *, side: int = 224, bfloat16: bool | None = None):
        if side % XFEAT_GRID or side < XFEAT_GRID:
            raise ValueError(f"side must be a multiple of {XFEAT_GRID} pixels, got {side}")
        self.side = side
        self.bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported() if bfloat16 is None else bfloat16
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = XFeat().net.eval().requires_grad_(False)  # kornia hands it over in training mode
        self.weights = "random"
        if str(weights) != "random":
            path = find_xfeat(weights)
            load_strictly(self.net, load_weights(path), path)
            self.weights = store.sha256(path)
        self.net = self.net.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def dense(self, frames: np.ndarray) -> Tensor:
        """Return the raw descriptor map (T, 64, H/8, W/8) float32 of frames (T, H, W, 3) or gray (T, H, W).

        H and W must be multiples of 32; values of any scale (each image is normalised first, in float32).
        """
        pixels = torch.as_tensor(frames)
        if pixels.ndim == 4:
            pixels = pixels.float().mean(-1)
        if pixels.ndim != 3 or pixels.shape[1] % XFEAT_GRID or pixels.shape[2] % XFEAT_GRID:
            raise ValueError(
                f"frames must be (T, H, W[, 3]), H and W multiples of {XFEAT_GRID}, got {tuple(frames.shape)}"
            )
        net = self.net
        gray = net.norm(pixels.float()[:, None] / 255)  # (T, 1, H, W)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            quarter = net.block2(net.block1(gray) + net.skip1(gray))  # (T, 24, H/4, W/4)
            eighth = net.block3(quarter)  # (T, 64, H/8, W/8)
            sixteenth = net.block4(eighth)
            coarse = net.block5(sixteenth)
            size = eighth.shape[-2:]
            levels = (F.interpolate(level, size, mode="bilinear", align_corners=False) for level in (sixteenth, coarse))
            return net.block_fusion(eighth + sum(levels)).float()

    def __call__(self, frames: np.ndarray, *, snippet_frames: int = SNIPPET_FRAMES) -> np.ndarray:
        """Return one row per segment, float32 (ceil(T / snippet_frames), 128), of frames (T, H, W, 3) of any size."""
        if np.ndim(frames) != 4 or len(frames) == 0:
            raise ValueError(f"frames must be (T, H, W, 3) with T at least 1, got shape {np.shape(frames)}")
        return np.stack(list(self.rows((frame.mean(-1, dtype=np.float32) for frame in frames), snippet_frames)))

    def rows(self, gray: Iterable[np.ndarray], snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield (128,) per segment of a stream of gray frames (H, W); the last segment may be short."""
        for batch in _chunks(gray, max(snippet_frames, BATCH_FRAMES // snippet_frames * snippet_frames)):
            small = _resized(np.stack(batch), self.side)
            means, peaks = zip(*(_pool(self.dense(part)) for part in small.split(BATCH_FRAMES)), strict=True)
            mean, peak = torch.cat(means), torch.cat(peaks)  # (frames, 64) each
            for first in range(0, len(batch), snippet_frames):
                segment = slice(first, first + snippet_frames)
                yield torch.cat([mean[segment].mean(0), peak[segment].amax(0)]).numpy()

    def encode(self, path: Path, snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield the rows of a video file, decoding as it goes."""
        return self.rows(video.gray_frames(path), snippet_frames)

    def made_by(self) -> dict:
        """What a reader must agree on."""
        return {"encoder": self.name, "weights_sha256": self.weights, "side": self.side}


class FlowEncoder:
    """Describe how a frame moves: box means of optical-flow magnitude, the strongest place kept.

    Dense inverse-search flow between neighbouring frames, magnitude on a quarter-size grid, averaged in squares of
    `boxes` cells; a row is (len(boxes) * 2,): for each square the maximum and the mean over places, in pixels per frame.
    Training-free. The first frame of a video takes the second's flow.
    """

    name = "flow"

    def __init__(self, *, boxes: Sequence[int] = (1, 3, 5), height: int = 240, width: int = 360):
        self.boxes, self.height, self.width = tuple(boxes), height, width

    def magnitudes(self, gray: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the flow magnitude (height/4, width/4), pixels per frame, of each frame of a gray stream."""
        flow, before, waiting = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM), None, 0
        for frame in gray:
            now = cv2.resize(frame, (self.width, self.height), interpolation=cv2.INTER_AREA).astype(np.uint8)
            if before is None:
                before, waiting = now, 1
                continue
            moved = flow.calc(before, now, None)  # (height, width, 2)
            speed = cv2.resize(
                np.hypot(moved[..., 0], moved[..., 1]), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA
            )
            for _ in range(1 + waiting):
                yield speed
            before, waiting = now, 0
        if waiting:  # a single frame: nothing moved
            yield np.zeros((self.height // 4, self.width // 4), np.float32)

    def encode(self, path: Path, snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield the rows of a video file; a segment keeps the largest of its frames' values."""
        for part in _chunks(self.magnitudes(video.gray_frames(path)), snippet_frames):
            smooth = [[cv2.blur(speed, (box, box)) for box in self.boxes] for speed in part]
            values = [[value for square in frame for value in (square.max(), square.mean())] for frame in smooth]
            yield np.asarray(values, np.float32).max(0)

    def made_by(self) -> dict:
        """What a reader must agree on."""
        return {"encoder": self.name, "boxes": list(self.boxes), "size": [self.height, self.width]}


@dataclass(frozen=True)
class Recipe:
    """How to build an encoder in any process: `encoder` is a key of ENCODERS, `options` its arguments."""

    encoder: str = "xfeat"
    snippet_frames: int = SNIPPET_FRAMES
    options: tuple[tuple[str, object], ...] = ()

    def made_by(self) -> dict:
        """What the rows are made with; two folders with the same answer hold the same features."""
        return {**_built(self).made_by(), "snippet_frames": self.snippet_frames}


ENCODERS = {"xfeat": XFeatEncoder, "flow": FlowEncoder, "clip": CLIPEncoder, "squeezenet": SqueezeNetEncoder}


@dataclass(frozen=True)
class Extraction:
    """What one extraction did: videos encoded now, found done before, skipped with their reason; rows, frames, seconds."""

    encoded: int
    kept: int
    skipped: tuple[str, ...]
    rows: int
    frames: int
    seconds: float


def extract(
    found: Sequence[records.VideoRecord],
    root: Path,
    folder: Path,
    recipe: Recipe,
    *,
    engine: str = "serial",
    workers: int = 2,
) -> Extraction:
    """Write `<folder>/<id>.npy`, (T, D) float32, for every record, and `made_by.json`; go on where a run was killed.

    Finished videos are kept when the folder was made the same way (StoreError otherwise), so at most the videos in flight
    are done again. A video that cannot be read is listed in `skipped` with its one-line reason; the rest goes on.
    """
    wanted = recipe.made_by()
    if (folder / "made_by.json").exists():
        store.check_made_by(folder, **wanted)
    else:
        store.write_made_by(folder, **wanted)
    started = time.perf_counter()
    tasks = [_Task(record, Path(root), Path(folder), recipe) for record in found]
    todo = [task for task in tasks if not _has_rows(task.folder, task.record.id)]
    encoded, rows, frames, skipped = 0, 0, 0, []
    for task, done, error in cluster.map_videos(
        _extract_one, todo, engine=engine, workers=workers, desc=recipe.encoder
    ):
        if error:
            skipped.append(error if task.record.id in error else f"{task.record.id}: {error}")
        else:
            encoded, rows, frames = encoded + 1, rows + done[0], frames + done[1]
    seconds = time.perf_counter() - started
    return Extraction(encoded, len(tasks) - len(todo), tuple(sorted(skipped)), rows, frames, seconds)


def load(folder: Path, found: Sequence[records.VideoRecord], **wanted: object) -> dict[str, np.ndarray]:
    """Return {id: (T, D)} of the records that have rows; StoreError when the folder was made otherwise than `wanted`."""
    store.check_made_by(folder, **wanted)
    return {r.id: store.load_array(row_path(folder, r.id)) for r in found if _has_rows(folder, r.id)}


def row_path(folder: Path, video_id: str) -> Path:
    """Return where a video's rows stand; ids may hold folders ("Robbery/Robbery102") but may not climb."""
    place = Path(folder) / f"{video_id}.npy"
    if not place.resolve().is_relative_to(Path(folder).resolve()):
        raise records.RecordError(f"{video_id}: the id leaves the feature folder")
    return place


def _has_rows(folder: Path, video_id: str) -> bool:
    try:
        return row_path(folder, video_id).exists()
    except records.RecordError:  # told when its turn to be encoded comes, so that one bad id does not end the batch
        return False


def find_xfeat(weights: str | Path | None = None) -> Path:
    """Return XFeat's weights file, fetched from its authors' page when nothing nearer has it (6 MB, once)."""
    for name in (XFEAT_FILE, "xfeat/xfeat_bnfolded.pt"):
        try:
            return store.find_weights(name, weights)
        except store.StoreError as error:
            missing = error
    if weights:
        raise missing
    try:
        XFeat.from_pretrained()  # leaves xfeat.pt in torch hub's cache
        return store.find_weights(XFEAT_FILE)
    except (OSError, RuntimeError) as error:
        raise store.StoreError(f"{missing}; the download failed too") from error


@dataclass(frozen=True)
class _Task:
    record: records.VideoRecord
    root: Path
    folder: Path
    recipe: Recipe

    @property
    def target(self) -> Path:
        return row_path(self.folder, self.record.id)


@lru_cache(maxsize=2)
def _built(recipe: Recipe) -> XFeatEncoder | FlowEncoder | CLIPEncoder | SqueezeNetEncoder:
    if recipe.encoder not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {recipe.encoder!r}")
    return ENCODERS[recipe.encoder](**dict(recipe.options))


def _extract_one(task: _Task) -> tuple[int, int]:
    torch.set_num_threads(1)  # parallel over videos, not inside one
    path = records.locate(task.record, task.root)
    num_frames = video.probe(path).num_frames
    if num_frames < 2:
        raise video.VideoError(f"{task.record.id}: {num_frames} frame, nothing can move in it")
    rows = np.stack(list(_built(task.recipe).encode(path, task.recipe.snippet_frames)))
    store.save_array(task.target, rows.astype(np.float32))
    return len(rows), num_frames


def _resized(gray: np.ndarray, side: int) -> Tensor:
    """Shrink gray (T, H, W) to (T, side, side), averaging what it drops (antialiased)."""
    size = (side, side)
    return F.interpolate(torch.from_numpy(gray)[:, None], size, mode="bilinear", antialias=True)[:, 0]


def _pool(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and max over places, (T, 64) each, of a map (T, 64, h, w) of descriptors made unit length."""
    unit = F.normalize(dense, dim=1)
    return unit.mean((2, 3)), unit.amax((2, 3))


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    part = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def summary(done: Extraction) -> dict:
    """Return an extraction as a flat row for a table."""
    rate = done.frames / done.seconds if done.seconds else 0.0
    return {**asdict(done), "skipped": len(done.skipped), "frames_per_s": round(rate, 1)}

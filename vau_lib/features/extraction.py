"""Features of whole data sets, one per snippet, extracted once by parallel workers and resumable.

- a feature summarises a snippet of frames (16 by default); it is what every detector here reads
- optical flow says how things move and needs no training: a baseline that a learned score must beat
- the folder's made_by.json says which encoder and weights made the features; another recipe is refused
- sources.jsonl says of which bytes a video's features are; where the video is another one now, they are made again
Weights: an explicit path, the folder $VAU_WEIGHTS, torch hub's cache, then the hub; random only when asked for by name.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from vau_lib.data import records, video
from vau_lib.data.records import SNIPPET_FRAMES
from vau_lib.features.augmentation import Augmentation
from vau_lib.features.image_encoders import CLIPEncoder, EfficientNetLiteEncoder, SqueezeNetEncoder
from vau_lib.features.optical_flow import FlowEncoder
from vau_lib.features.xfeat import XFeatEncoder
from vau_lib.workspace import artifacts, parallel

SOURCES = "sources.jsonl"


@dataclass(frozen=True)
class Recipe:
    """How to build an encoder in any process: `encoder` is a key of ENCODERS, `options` its arguments.

    `augmentation` changes the pixels of training videos (records of split "train") before XFeat sees them.
    """

    encoder: str = "xfeat"
    snippet_frames: int = SNIPPET_FRAMES
    options: tuple[tuple[str, object], ...] = ()
    augmentation: Augmentation | None = None

    def __post_init__(self):
        if self.augmentation and self.encoder != "xfeat":
            raise ValueError(f"augmentation is for xfeat, got encoder {self.encoder!r}")

    def made_by(self) -> dict:
        """Return what the features are made with; two folders with the same answer hold the same features."""
        changed = self.augmentation.made_by() if self.augmentation else None
        return {**_built(self).made_by(), "snippet_frames": self.snippet_frames, "augmentation": changed}


ENCODERS = {
    "xfeat": XFeatEncoder, "flow": FlowEncoder, "clip": CLIPEncoder, "squeezenet": SqueezeNetEncoder,
    "efficientnet-lite0": EfficientNetLiteEncoder,
}  # fmt: skip


TITLES = {"xfeat": "XFeat", "squeezenet": "SqueezeNet", "efficientnet-lite0": "EfficientNet-Lite0", "clip": "CLIP", "flow": "flow"}
TITLES |= {f"{name}_local_change": title for name, title in TITLES.items()}  # folders of features: what a table calls them


@dataclass(frozen=True)
class Extraction:
    """What one extraction did: videos encoded now, already done, skipped with their reason; features, frames, seconds."""

    encoded: int
    already_done: int
    skipped: tuple[str, ...]
    features: int
    frames: int
    seconds: float


def extract(
    video_records: Sequence[records.VideoRecord],
    root: Path,
    folder: Path,
    recipe: Recipe,
    *,
    engine: str = "serial",
    workers: int = 2,
) -> Extraction:
    """Write `<folder>/<id>.npy`, (T, D) float32, for every record, and `made_by.json`; go on where a run was killed.

    Finished videos are kept when the folder was made the same way (StoreError otherwise) and the video holds the same bytes, so
    at most the videos in flight are done again. A video that cannot be read is listed in `skipped` with its one-line reason; the
    rest goes on.
    """
    wanted = recipe.made_by()
    if (folder / "made_by.json").exists():
        artifacts.check_made_by(folder, **wanted)
    else:
        artifacts.write_made_by(folder, **wanted)
    started = time.perf_counter()
    tasks = [_Task(record, Path(root), Path(folder), recipe) for record in video_records]
    made_of = _sources(Path(folder))
    todo = [task for task in tasks if not _is_done(task, made_of)]
    encoded, features, frames, skipped = 0, 0, 0, []
    for task, done, error in parallel.map_videos(_extract_one, todo, engine=engine, workers=workers, desc=recipe.encoder):
        if error:
            skipped.append(error if task.record.id in error else f"{task.record.id}: {error}")
        else:
            encoded, features, frames = encoded + 1, features + done[0], frames + done[1]
            artifacts.append_json_line(Path(folder) / SOURCES, {"id": task.record.id, **done[2]})
    seconds = time.perf_counter() - started
    return Extraction(encoded, len(tasks) - len(todo), tuple(sorted(skipped)), features, frames, seconds)


def load(folder: Path, video_records: Sequence[records.VideoRecord], **wanted: object) -> dict[str, np.ndarray]:
    """Return {id: (T, D)} of the records that have features; StoreError when the folder was made otherwise than `wanted`."""
    artifacts.check_made_by(folder, **wanted)
    return {r.id: artifacts.load_array(feature_path(folder, r.id)) for r in video_records if _has_features(folder, r.id)}


def feature_path(folder: Path, video_id: str) -> Path:
    """Return the file of a video's features; ids may hold folders ("Robbery/Robbery102") but may not climb."""
    try:
        return artifacts.inside(folder, f"{video_id}.npy")
    except artifacts.StoreError as error:
        raise records.RecordError(
            f"{artifacts.one_line(video_id, 80)}: the id leaves the feature folder, or names no file: {error}"
        ) from None


def _has_features(folder: Path, video_id: str) -> bool:
    try:
        return feature_path(folder, video_id).exists()
    except (records.RecordError, OSError):  # it climbs, or is too long for a file: an error when it is encoded, not of the batch
        return False


@dataclass(frozen=True)
class _Task:
    record: records.VideoRecord
    root: Path
    folder: Path
    recipe: Recipe

    @property
    def target(self) -> Path:
        return feature_path(self.folder, self.record.id)

    @property
    def augmented(self) -> bool:
        return bool(self.recipe.augmentation) and self.record.split == "train"


def _sources(folder: Path) -> dict[str, dict] | None:
    """Return {id: what its features were made of}, None for a folder older than that note."""
    path = folder / SOURCES
    rows = [row for _, row in artifacts.json_lines(path, cut_off=True)] if path.is_file() else None
    return rows if rows is None else {row["id"]: row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)}


def _is_done(task: _Task, made_of: dict[str, dict] | None) -> bool:
    """Return whether a video has features of the bytes it holds now; without the video, whether it has any."""
    if not _has_features(task.folder, task.record.id):
        return False
    try:
        path = records.locate(task.record, task.root)
        if not path.exists():
            return True
        if made_of is None:  # the change of a file's place in time cannot be forged, unlike its date
            return task.target.stat().st_mtime > path.stat().st_ctime
        note = made_of.get(task.record.id, {})
        if note.get("augmented") != task.augmented:
            return False
        return note.get("stat") == _stat(path) or note.get("sha256") == _content(path)
    except (ValueError, OSError):
        return False


def _stat(path: Path) -> list:
    """Return what changes with a file's bytes: size, both times, number; for a folder of images of all of them together."""
    parts = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
    found = [(part.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for part in parts for status in [part.stat()]]
    return list(found[0]) if len(found) == 1 else [hashlib.sha256(repr(found).encode()).hexdigest()]


def _content(path: Path) -> str:
    """Return the sha256 of a video's bytes; of a folder of images, of their names and sha256."""
    if not path.is_dir():
        return artifacts.sha256(path)
    lines = [f"{artifacts.sha256(part)}  {part.name}\n" for part in sorted(path.iterdir()) if part.is_file()]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


@lru_cache(maxsize=2)
def _built(recipe: Recipe) -> XFeatEncoder | FlowEncoder | CLIPEncoder | SqueezeNetEncoder:
    if recipe.encoder not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {recipe.encoder!r}")
    return ENCODERS[recipe.encoder](**dict(recipe.options))


def _extract_one(task: _Task) -> tuple[int, int, dict]:
    torch.set_num_threads(1)  # parallel over videos, not inside one
    path = records.locate(task.record, task.root)
    task.target.unlink(missing_ok=True)  # of another video, or a kill came before its note
    num_frames = video.probe(path).num_frames
    source = {"sha256": _content(path), "stat": _stat(path), "augmented": task.augmented}
    if num_frames < 2:
        raise video.VideoError(f"{task.record.id}: {num_frames} frame, nothing can move in it")
    encoder, recipe = _built(task.recipe), task.recipe
    if task.augmented:
        changed = recipe.augmentation.gray_frames(path, task.record.id)
        features = np.stack(list(encoder.snippet_features(changed, recipe.snippet_frames)))
    else:
        features = np.stack(list(encoder.encode(path, recipe.snippet_frames)))
    if _stat(path) != source["stat"] and _content(path) != source["sha256"]:
        raise video.VideoError(f"{task.record.id}: it was changed while it was read")
    artifacts.save_array(task.target, features.astype(np.float32))
    return len(features), num_frames, source


def summary(done: Extraction) -> dict:
    """Return an extraction as a flat row for a table."""
    rate = done.frames / done.seconds if done.seconds else 0.0
    return {**asdict(done), "skipped": len(done.skipped), "frames_per_s": round(rate, 1)}

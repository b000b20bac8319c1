"""Features of whole data sets, one per snippet, extracted once by parallel workers and resumable.

- a feature summarises a snippet of frames (16 by default); it is what every detector here reads
- optical flow says how things move and needs no training: a baseline that a learned score must beat
- the folder's made_by.json says which encoder and weights made the features; another recipe is refused
- sources.jsonl says of which bytes a video's features are; where the video is another one now, they are made again
- a job may be cut into shards that write into one folder, or into folders that `merge` brings together
- decoding runs ahead of the encoder in a thread where a second processor is free for it: on a GPU, and with engine "serial"
- on a GPU several videos are read at once and fill a batch together, so short clips do not leave it half empty
Weights: an explicit path, the folder $VAU_WEIGHTS, torch hub's cache, then the hub; random only when asked for by name.
"""

import hashlib
import itertools
import os
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from vau_lib.data import records, video, video_worker
from vau_lib.data.records import SNIPPET_FRAMES
from vau_lib.features import devices
from vau_lib.features.augmentation import Augmentation
from vau_lib.features.image_encoders import CLIPEncoder, EfficientNetLiteEncoder, SqueezeNetEncoder
from vau_lib.features.optical_flow import FlowEncoder
from vau_lib.features.xfeat import XFeatEncoder
from vau_lib.workspace import artifacts, parallel, presets

GPU_VIDEOS = 8  # read at once by engine "serial" where a GPU encodes: each in a thread, with a decoding process of its own
CHECKED_ROWS = 2**16  # features looked at at once: of a map, no more are in memory
SOURCES = "sources.jsonl"  # of shard 2 of 8: sources.2-of-8.jsonl


@dataclass(frozen=True)
class Recipe:
    """How to build an encoder in any process: `encoder` is a key of ENCODERS, `options` its arguments.

    `augmentation` changes the pixels of training videos (records of split "train") before XFeat sees them. `device` is where the
    network runs, see `devices.choose`; it is no part of what the features are.
    """

    encoder: str = "xfeat"
    snippet_frames: int = SNIPPET_FRAMES
    options: tuple[tuple[str, object], ...] = ()
    augmentation: Augmentation | None = None
    device: str = "auto"

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
    """What one extraction did: videos encoded now, already done, skipped with their reason; features, frames, seconds.

    `decode_s` and `encode_s` are summed over the `workers`, which had `seconds` each.
    """

    encoded: int
    already_done: int
    skipped: tuple[str, ...]
    features: int
    frames: int
    seconds: float
    decode_s: float = 0.0
    encode_s: float = 0.0
    workers: int = 1

    def rates(self) -> str:
        """Return frames per second, and which share of the workers' time went into decoding and encoding."""
        time_s = max(self.seconds * self.workers, 1e-9)
        shares = f"decode {self.decode_s / time_s:.0%}, encode {self.encode_s / time_s:.0%} of the time"
        return f"{self.frames / max(self.seconds, 1e-9):,.0f} frames/s, {shares}"


def extract(
    video_records: Sequence[records.VideoRecord],
    root: Path,
    folder: Path,
    recipe: Recipe,
    *,
    engine: str = "serial",
    workers: int = 2,
    shard: tuple[int, int] = (1, 1),
    **cluster: object,
) -> Extraction:
    """Write `<folder>/<id>.npy`, (T, D) float32, for every record, and `made_by.json`; go on where a run was killed.

    Finished videos are kept when the folder was made the same way (StoreError otherwise) and the video holds the same bytes, so
    at most the videos in flight are done again. A video that cannot be read is listed in `skipped` with its one-line reason; the
    rest goes on.

    Args:
        video_records: the videos.
        root: folder their paths are relative to.
        folder: where features go.
        recipe: encoder and its options.
        engine: see `parallel.map_videos`.
        workers: processes, or actors of Ray.
        shard: (i, n), from 1: of every n videos the i-th; the n shards may run at once on machines that share `folder`.
        cluster: `num_gpus` and `address` of engine "ray".
    """
    options = {"engine": engine, "workers": workers, "shard": shard, **cluster}
    return extract_together(video_records, root, {folder: recipe}, **options)[Path(folder)]


def extract_together(
    video_records: Sequence[records.VideoRecord], root: Path, recipes: Mapping[Path, Recipe], *,
    left_out: Mapping[Path, Collection[str]] | None = None, engine: str = "serial", workers: int = 2,
    shard: tuple[int, int] = (1, 1), **cluster: object,
) -> dict[Path, Extraction]:  # fmt: skip
    """Do what `extract` does for several kinds of features, {folder: recipe}; return {folder: what was done}.

    Those that read the same gray frames (XFeat on the CPU, flow) have each video decoded once; the seconds are those of all.
    `left_out` names, by folder, the ids of videos that get no features there.
    """
    number, shards = shard
    if not 1 <= number <= shards:
        raise ValueError(f"a shard is i of n, i from 1 to n, got {number} of {shards}")
    recipes = {Path(folder): recipe for folder, recipe in recipes.items()}
    for folder, recipe in recipes.items():
        wanted = recipe.made_by()
        if (folder / "made_by.json").exists():
            artifacts.check_made_by(folder, **wanted)
        else:
            artifacts.write_made_by(folder, **wanted)
    if engine == "serial":
        together = any(getattr(_built(recipe), "on_gpu", False) for recipe in recipes.values())
        engine, workers = ("threads", min(GPU_VIDEOS, os.cpu_count() or 1)) if together else ("serial", 1)
    notes = SOURCES if shards == 1 else SOURCES.replace(".jsonl", f".{number}-of-{shards}.jsonl")
    started, mine, todo, totals = time.perf_counter(), video_records[number - 1 :: shards], {}, {}
    chosen = {folder: {r.id for r in mine} - set((left_out or {}).get(folder, ())) for folder in recipes}
    for folder, recipe in recipes.items():
        made_of = _sources(folder)
        tasks = [_Task(record, Path(root), folder, recipe, engine == "serial") for record in mine]
        tasks = [(place, task) for place, task in enumerate(tasks) if task.record.id in chosen[folder]]
        waiting = {place: task for place, task in tasks if not _is_done(task, made_of)}
        for place, task in waiting.items():
            todo.setdefault(place, []).append(task)
        totals[folder] = _Totals([task.record for task in waiting.values()], workers)
    skipped: dict[Path, list[str]] = {folder: [] for folder in recipes}
    desc, note = " + ".join(recipe.encoder for recipe in recipes.values()), next(iter(totals.values())).note
    options = {"engine": engine, "workers": workers, "desc": desc, "note": note, **cluster}
    order = sorted(todo.items())
    if workers > 1:  # long videos first, so that the workers end together
        order.sort(key=lambda item: -item[1][0].record.num_frames)
    for tasks, done, error in parallel.map_videos(_extract_one, [tasks for _, tasks in order], **options):
        for task, made in zip(tasks, done or [None] * len(tasks), strict=True):
            totals[task.folder].left_frames -= task.record.num_frames
            if error:
                line = error if task.record.id in error else f"{task.record.id}: {error}"
                skipped[task.folder].append(artifacts.one_line(line, 600))
            else:
                totals[task.folder].add(made)
                artifacts.append_json_line(task.folder / notes, {"id": task.record.id, **made.source})
    seconds = time.perf_counter() - started
    return {f: total.extraction(len(chosen[f]) - total.todo, tuple(sorted(skipped[f])), seconds) for f, total in totals.items()}


@dataclass(frozen=True)
class _Done:
    """What became of one video."""

    features: int
    frames: int
    source: dict
    decode_s: float
    encode_s: float


class _Totals:
    """Sums of an extraction, and what its progress bar says."""

    def __init__(self, todo: Sequence[records.VideoRecord], workers: int):
        self.workers, self.started, self.todo = workers, time.perf_counter(), len(todo)
        self.encoded = self.features = self.frames = self.decode_s = self.encode_s = 0
        known = all(record.num_frames > 0 for record in todo)
        self.left_frames = sum(record.num_frames for record in todo) if known else float("nan")

    def add(self, done: _Done) -> None:
        """Add a video."""
        self.encoded += 1
        for name in ("features", "frames", "decode_s", "encode_s"):
            setattr(self, name, getattr(self, name) + getattr(done, name))

    def extraction(self, already_done: int, skipped: tuple[str, ...], seconds: float) -> Extraction:
        """Return the sums."""
        sums = self.features, self.frames, seconds, self.decode_s, self.encode_s, self.workers
        return Extraction(self.encoded, already_done, skipped, *sums)

    def note(self) -> str:
        """Return rates, shares and, where the records know how long their videos are, the minutes left by frames."""
        so_far = self.extraction(0, (), time.perf_counter() - self.started)
        left_s = self.left_frames * so_far.seconds / so_far.frames if so_far.frames else float("nan")
        return so_far.rates() + (f", {left_s / 60:.1f} min left" if left_s >= 0 else "")


def merge(folders: Sequence[Path], into: Path) -> int:
    """Copy what shards made on machines without a common disk into one folder; return the number of new videos.

    All folders must have been made the same way (StoreError otherwise); what `into` has already stays.
    """
    new, into = 0, Path(into)
    for folder in map(Path, folders):
        facts = artifacts.check_made_by(folder)
        if (into / "made_by.json").exists():
            artifacts.check_made_by(into, **facts)
        else:
            artifacts.write_made_by(into, **facts)
        for video_id, note in (_sources(folder) or {}).items():
            source, target = feature_path(folder, video_id), feature_path(into, video_id)
            if not source.exists() or target.exists():
                continue
            with artifacts.replacing(target) as temporary:
                shutil.copyfile(source, temporary)
            artifacts.append_json_line(into / SOURCES, note)
            new += 1
    return new


def job_lines(
    records_file: Path, encoder: str, *, options: Mapping[str, object], root: Path | None = None, out: Path | None = None,
    snippet_frames: int = SNIPPET_FRAMES, engine: str = "serial", workers: int = 2, device: str = "auto", shard: str = "1/1",
    merge_from: Sequence[Path] = (), **cluster: object,
) -> Iterator[str]:  # fmt: skip
    """Do what `vau extract` does and yield what it prints; ValueError at the end where videos were skipped.

    Args:
        records_file: a records.jsonl.
        encoder: a key of `ENCODERS`.
        options: arguments of the encoder; texts become numbers or lists where its argument is one.
        root: folder of the records' paths, by default the file's own.
        out: folder to write to, by default data/features/DATASET/ENCODER.
        snippet_frames: frames a feature summarises.
        engine: see `parallel.map_videos`.
        workers: processes, or actors of Ray.
        device: where the network runs.
        shard: "i/n", see `extract`.
        merge_from: folders of other shards, brought in first.
        cluster: `num_gpus` and `address` of engine "ray".
    """
    found, part = records.read_records(records_file), shard.split("/")
    if not found:
        raise ValueError(f"{records_file} holds no record")
    if len(part) != 2 or not all(number.isdecimal() for number in part):
        raise ValueError(f"a shard is I/N, as 3/8, got {shard!r}")
    out = out or presets.project() / "data" / "features" / found[0].dataset / encoder
    given = {name: _plain(value) for name, value in options.items()}
    recipe = Recipe(encoder, snippet_frames, tuple(given.items()), device=device)
    if merge_from:
        yield f"{merge(merge_from, out)} videos from {', '.join(map(str, merge_from))}"
    done = extract(
        found, root or Path(records_file).parent, out, recipe,
        engine=engine, workers=workers, shard=(int(part[0]), int(part[1])), **cluster,
    )  # fmt: skip
    yield f"{out}: {done.encoded} videos encoded, {done.already_done} were there, {done.features:,} features"
    if done.frames:
        yield f"{done.frames:,} frames in {done.seconds:.1f} s: {done.rates()} of {done.workers} worker{'s' * (done.workers > 1)}"
    yield from (f"skipped: {line}" for line in done.skipped)
    if done.skipped:
        raise ValueError(f"{len(done.skipped)} of {done.encoded + done.already_done + len(done.skipped)} videos were skipped")


def _plain(value: object) -> object:
    """Return a value from the command line as a number, a truth value or a list where it looks like one; lists as tuples."""
    value = artifacts.parse_yaml(str(value)) if isinstance(value, str) else value
    return tuple(value) if isinstance(value, list) else value


def made_folders(folder: str | Path, names: Iterable[str]) -> dict[str, dict]:
    """Return {name: what made it} of the feature folders below `folder`; StoreError names the notebook that makes them."""
    there = [name for name in names if (Path(folder) / name / "made_by.json").exists()]
    return {name: artifacts.check_made_by(Path(folder) / name) for name in there} or artifacts.check_made_by(folder)


@artifacts.reader()
def load(folder: Path, video_records: Sequence[records.VideoRecord], **wanted: object) -> dict[str, np.ndarray]:
    """Return {id: (T, D)} of the records that have features; StoreError when the folder was made otherwise than `wanted`, and
    for what are no features: no table of finite numbers, or of another width than the others."""
    artifacts.check_made_by(folder, **wanted)
    found = {r.id: artifacts.load_array(feature_path(folder, r.id)) for r in video_records if _has_features(folder, r.id)}
    widths = Counter(rows.shape[1] for rows in found.values() if rows.ndim == 2)
    for name, rows in found.items():
        if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "fiu" or rows.shape[1] != widths.most_common(1)[0][0]:
            raise artifacts.StoreError(f"{name}.npy holds no features like the others': {rows.dtype} {rows.shape}")
        if not all(np.isfinite(rows[start : start + CHECKED_ROWS]).all() for start in range(0, len(rows), CHECKED_ROWS)):
            raise artifacts.StoreError(f"{name}.npy holds features that are no finite numbers")
    return found


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
    alone: bool = False  # no other worker wants the processors

    @property
    def target(self) -> Path:
        return feature_path(self.folder, self.record.id)

    @property
    def augmented(self) -> bool:
        return bool(self.recipe.augmentation) and self.record.split == "train"


def _sources(folder: Path) -> dict[str, dict] | None:
    """Return {id: what its features were made of}, of all shards, None for a folder older than that note."""
    paths = sorted(folder.glob(SOURCES.replace(".", "*.")), key=lambda path: path.stat().st_mtime_ns)  # the latest counts
    if not paths:
        return None
    rows = [row for path in paths for _, row in artifacts.json_lines(path, cut_off=True)]
    return {row["id"]: row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)}


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
    options = dict(recipe.options)
    if recipe.encoder != "flow":  # which has no network
        options.setdefault("device", recipe.device)
    try:
        return ENCODERS[recipe.encoder](**options)
    except TypeError as error:
        raise ValueError(f"{recipe.encoder} takes no such options: {artifacts.one_line(error, 160)}") from error


@video_worker.apart()
def _extract_one(tasks: Sequence[_Task]) -> list[_Done]:
    """Encode one video for every task, all of one record."""
    torch.set_num_threads(1)  # parallel over videos, not inside one
    record = tasks[0].record
    path = records.locate(record, tasks[0].root)
    for task in tasks:
        task.target.unlink(missing_ok=True)  # of another video, or a kill came before its note
    num_frames = video.probe(path).num_frames
    source = {"sha256": _content(path), "stat": _stat(path)}
    if num_frames < 2:
        raise video.VideoError(f"{record.id}: {num_frames} frame, nothing can move in it")
    streams = _streams(tasks, path)
    features = _in_step(streams)
    if _stat(path) != source["stat"] and _content(path) != source["sha256"]:
        raise video.VideoError(f"{record.id}: it was changed while it was read")
    done = []
    for task, (frames, _), (rows, seconds) in zip(tasks, streams, features, strict=True):
        artifacts.save_array(task.target, np.stack(rows).astype(np.float32))
        done.append(_Done(len(rows), num_frames, source | {"augmented": task.augmented}, frames.source_s, seconds))
    return done


Stream = tuple[devices.Ahead, Iterator[np.ndarray]]  # frames as they are decoded, and the features made of them


def _streams(tasks: Sequence[_Task], path: Path) -> list[Stream]:
    """Return a stream for every task; those whose encoder takes a file's gray frames share one decoding."""
    encoders = [_built(task.recipe) for task in tasks]
    on_gpu = [getattr(encoder, "on_gpu", False) for encoder in encoders]
    depths = [encoder.ahead if tasks[0].alone or there else 0 for encoder, there in zip(encoders, on_gpu, strict=True)]
    shares = [
        hasattr(encoder, "from_gray") and not there and not task.augmented
        for task, encoder, there in zip(tasks, encoders, on_gpu, strict=True)
    ]
    common = devices.Ahead(video.gray_frames(path), max(depths)) if any(shares) else None
    copies, streams = iter(itertools.tee(common, sum(shares)) if any(shares) else ()), []
    for task, encoder, share, depth in zip(tasks, encoders, shares, depths, strict=True):
        recipe = task.recipe
        if share:
            frames, given = common, encoder.from_gray(next(copies))
        else:
            own = recipe.augmentation.gray_frames(path, task.record.id) if task.augmented else encoder.source(path)
            frames = given = devices.Ahead(own, depth)
        streams.append((frames, encoder.snippet_features(given, recipe.snippet_frames)))
    return streams


def _in_step(streams: Sequence[Stream]) -> list[tuple[list[np.ndarray], float]]:
    """Return the features of every stream, and the seconds it worked without waiting for frames.

    Each is asked for one feature in turn, so that a frame that is shared waits in memory only until all have read it.
    """
    rows, seconds, unfinished = [[] for _ in streams], [0.0] * len(streams), list(range(len(streams)))
    while unfinished:
        for place in tuple(unfinished):
            frames, features = streams[place]
            started, waited_s = time.perf_counter(), frames.waited_s
            row = next(features, None)
            seconds[place] += time.perf_counter() - started - (frames.waited_s - waited_s)
            if row is None:
                unfinished.remove(place)
            else:
                rows[place].append(row)
    return list(zip(rows, seconds, strict=True))


def summary(done: Extraction) -> dict:
    """Return an extraction as a flat row for a table."""
    rate = done.frames / done.seconds if done.seconds else 0.0
    seconds = {name: round(getattr(done, name), 2) for name in ("decode_s", "encode_s")}
    return {**asdict(done), **seconds, "skipped": len(done.skipped), "frames_per_s": round(rate, 1)}

"""Cutting HIVAU-70k's clip, event and video files out of the source videos, and checking every file (Holmes-VAU).

- needed only by tools that read one file per clip; the rest of this project reads seconds of the source
- H.264 in yuv420p, which browsers and notebooks play; the release writes MPEG-4 part 2, which they do not
- a file is whole or not there, what is there and right is kept, so a stopped run goes on where it was
- a segment without a frame, a missing source, a video that does not decode: a line in the report, never a lost worker
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from vau_lib.data import hivau, video
from vau_lib.data.hivau import HivauVideo, Instruction
from vau_lib.data.records import RecordError, Span, VideoRecord, locate
from vau_lib.workspace import artifacts, parallel

CHUNK_FRAMES = 64  # decoded at once while cutting: memory stays flat however long a segment is
UNAVAILABLE = {  # named by HIVAU-70k, but nobody has found it (issue 10 of its repository)
    "NewAdd.NDA-2017.12.25_CLE@GSW__#01-08-34_01-40-09_label_A": "in no public copy of XD-Violence"
}


@dataclass(frozen=True)
class Piece:
    """One file to cut: its path below the folder of HIVAU's `videos`, and the seconds of the source it shows."""

    file: str
    level: str
    span: Span


@dataclass(frozen=True)
class Outcome:
    """The result for one file: `status` is written, kept, right, empty, missing, broken or wrong; `why` is one line."""

    file: str
    level: str
    split: str
    status: str
    why: str = ""
    num_frames: int = 0


def pieces(record: HivauVideo, levels: Sequence[str] = ("event", "clip")) -> list[Piece]:
    """Return the files a video is cut into, with their seconds, in HIVAU's order."""
    found = []
    for event, span in enumerate(record.segments):
        if "event" in levels:
            found.append(Piece(hivau.segment_file(record, event), "event", span))
        if "clip" in levels:
            clips = enumerate(record.clips[event])
            found += [Piece(hivau.segment_file(record, event, c), "clip", clip) for c, clip in clips]
    return found


def segment_frames(span: Span, fps: float, num_frames: int, *, released: bool = False) -> range:
    """Return the frames of a span, half-open, cut to the video, with the rounding of `records.frame_labels`.

    `released` counts as the released script does: start and end rounded down, and the last frame of a video never part.
    """
    if released:
        return range(int(span.start_s * fps), min(int(span.end_s * fps), num_frames - 1))
    return range(round(span.start_s * fps), min(round(span.end_s * fps), num_frames))


def split(
    records: Iterable[HivauVideo], root: str | Path, out: str | Path, *, levels: Sequence[str] = ("event", "clip"),
    released: bool = False, crf: int = 20, engine: str = "serial", workers: int = 2,
) -> list[Outcome]:  # fmt: skip
    """Cut events and clips of videos into H.264 files; return one outcome per file.

    A file is written, kept (was there, with the right number of frames), empty (no frame lies in its span), missing (no
    source) or broken (does not decode). Odd pixel rows and columns are left out, as 4:2:0 needs. RuntimeError names what is
    unfinished when a worker process dies.

    Args:
        records: the annotated videos
        root: folder that holds them
        out: folder of the cut files; may be `root`
        levels: "event", "clip" or both
        released: count frames as the released script does (`segment_frames`)
        crf: x264's quality, lower is better
        engine: see `parallel.map_videos`
        workers: processes at once
    """
    if unknown := set(levels) - {"event", "clip"}:
        raise ValueError(f"levels are event and clip, got {', '.join(sorted(unknown))}")
    items = [(record, pieces(record, levels)) for record in records]
    work = partial(_split_one, root=Path(root), out=Path(out), released=released, crf=crf)
    found: dict[str, list[Outcome]] = {}
    try:
        for (record, wanted), done, error in parallel.map_videos(work, items, engine=engine, workers=workers, desc="cut"):
            found[record.id] = done if error is None else [_outcome(record, p, "broken", error) for p in wanted]
    except BrokenExecutor as error:
        left = [record.id for record, _ in items if record.id not in found]
        raise RuntimeError(f"a worker died, {len(left)} videos are unfinished ({left[0]}, …); run again") from error
    facts = dict(levels=list(levels), released=released, crf=crf, rounding="down" if released else "nearest")
    artifacts.write_made_by(out, content="HIVAU-70k segments", **facts)
    return [outcome for record, _ in items for outcome in found[record.id]]


def check(
    instructions: Iterable[Instruction], root: str | Path, *, videos: Iterable[HivauVideo] = (),
    released: bool = False, engine: str = "serial", workers: int = 2,
) -> list[Outcome]:  # fmt: skip
    """Return one outcome per file that the instructions name: right, or why not.

    A right file decodes at its first and its last frame and has the annotated number of frames, where that is known.

    Args:
        instructions: rows with `file`
        root: folder that holds the files
        videos: the raw annotation, for the number of frames
        released: count frames as the released script does
        engine: see `parallel.map_videos`
        workers: processes at once
    """
    files: dict[str, Instruction] = {}
    for row in instructions:
        files.setdefault(row.file or row.video, row)
    known = {record.id: record for record in videos}
    items = [(file, row, _expected(row, known.get(row.video_id), released)) for file, row in files.items()]
    found, work = {}, partial(_check_one, root=Path(root))
    for (file, row, _), done, error in parallel.map_videos(work, items, engine=engine, workers=workers, desc="check"):
        found[file] = done or Outcome(file, row.level, row.split, "broken", error)
    return [found[file] for file in files]


def summary(outcomes: Iterable[Outcome]) -> list[dict]:
    """Return one row per split and level: how many files, how many of each status, the first reason that is no success."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.split, outcome.level), []).append(outcome)
    rows = []
    for (part, level), found in groups.items():
        why = next((o.why for o in found if o.why), "")
        rows.append({"split": part, "level": level, "files": len(found), **Counter(o.status for o in found), "why": why})
    return rows


def _split_one(item: tuple[HivauVideo, list[Piece]], *, root: Path, out: Path, released: bool, crf: int) -> list[Outcome]:
    record, wanted = item
    source, why = _place(record, root)
    if why:
        return [_outcome(record, piece, "missing", why) for piece in wanted]
    info = video.probe(source)
    done = []
    for piece in wanted:
        frames = _source_frames(record, source, info, piece.span, released)
        if not frames:
            why = f"no frame in {piece.span.start_s:g}-{piece.span.end_s:g} s"
            done.append(_outcome(record, piece, "empty", why))
            continue
        target = locate(replace(record, path=piece.file), out)
        try:
            status = "kept" if _has(target, len(frames)) else "written"
            if status == "written":
                video.write_video(target, _even(source, frames), fps=info.fps, crf=crf)
        except ValueError as error:  # VideoError: this piece does not decode, the next may
            done.append(_outcome(record, piece, "broken", str(error)))
            continue
        done.append(_outcome(record, piece, status, num_frames=len(frames)))
    return done


def _source_frames(record: VideoRecord, source: Path, info: video.VideoInfo, span: Span, released: bool) -> range:
    """Return the frames of a span: by the annotation's clock if it counted this very file, else by presentation time."""
    if released or info.num_frames == record.num_frames:
        return segment_frames(span, record.fps, info.num_frames, released=released)
    first, last = video.index_at(source, [span.start_s, span.end_s])
    return range(int(first), int(last) + (span.end_s >= info.duration_s))


def _even(source: Path, frames: range) -> Iterator[np.ndarray]:
    for start in range(frames.start, frames.stop, CHUNK_FRAMES):
        for frame in video.read_frames(source, range(start, min(start + CHUNK_FRAMES, frames.stop))):
            yield frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]


def _has(path: Path, num_frames: int) -> bool:
    """Whether the file is there and whole; what is there and broken is written again."""
    try:
        return path.exists() and video.probe(path).num_frames == num_frames
    except video.VideoError:
        return False


def _expected(row: Instruction, record: HivauVideo | None, released: bool) -> tuple[int | None, str]:
    """Return how many frames a row's file should have (None: not known), and why it cannot exist, if so."""
    if record is None:
        return None, ""
    if row.level == "video":
        return record.num_frames, ""
    try:
        span = record.segments[row.event] if row.level == "event" else record.clips[row.event][row.clip]
    except IndexError:
        return None, f"{row.video_id} has no event {row.event} clip {row.clip} in the raw annotation"
    frames = len(segment_frames(span, record.fps, record.num_frames, released=released))
    return frames, "" if frames else f"no frame in {span.start_s:g}-{span.end_s:g} s"


def _check_one(item: tuple[str, Instruction, tuple[int | None, str]], *, root: Path) -> Outcome:
    file, row, (expected, impossible) = item
    place = VideoRecord(row.video_id, file, row.dataset, row.split, 0)
    if impossible:
        return Outcome(file, row.level, row.split, "empty", impossible)
    path, why = _place(place, root)
    if why:
        source, no_source = _place(replace(place, path=row.video), root)
        if row.level != "video" and not no_source:
            why = f"not cut yet, its source {source.name} is there"
        return Outcome(file, row.level, row.split, "missing", why)
    found = video.probe(path).num_frames
    video.read_frames(path, [0, found - 1])
    if expected is not None and found != expected:
        return Outcome(file, row.level, row.split, "wrong", f"{found} frames, annotated {expected}", found)
    return Outcome(file, row.level, row.split, "right", num_frames=found)


def _place(record: VideoRecord, root: Path) -> tuple[Path, str]:
    """Return where a record's file is below `root`, and why it is not there, "" when it is."""
    path = root / record.path
    if any(place.is_symlink() and not place.exists() for place in (path, *path.parents)):
        return path, "a link to nowhere: the release links `videos` to a folder of its author's machine"
    try:
        path = locate(record, root)
    except RecordError as error:
        return path, str(error)
    return path, "" if path.exists() else UNAVAILABLE.get(record.id, f"no file {record.path}")


def _outcome(record: VideoRecord, piece: Piece, status: str, why: str = "", num_frames: int = 0) -> Outcome:
    return Outcome(piece.file, piece.level, record.split, status, why or "", num_frames)

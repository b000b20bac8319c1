"""Anomaly records: a video, its label, event spans and split; the one format every data set is turned into.

- time is in seconds and spans are half-open, so a video re-encoded at another rate keeps its truth
- frame labels are made here and nowhere else, so that their lengths always fit
- a path is relative and may not leave the folder it is read from: data set files come from strangers
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from vau_lib.workspace import artifacts

SNIPPET_FRAMES = 16  # frames per feature vector, in every system here
ROW_S = SNIPPET_FRAMES / 30  # seconds per snippet at 30 frames a second
MOST = 10**9  # frames of a video, and frames a second: a year at 30 frames a second


class RecordError(ValueError):
    """A record that cannot be used; the message names it."""


@dataclass(frozen=True)
class Span:
    """Something between two moments of a video, half-open, in seconds."""

    start_s: float
    end_s: float
    label: str = ""
    text: str = ""

    def __post_init__(self):
        if not 0 <= self.start_s <= self.end_s:
            raise RecordError(f"a span runs from start to end, got [{self.start_s}, {self.end_s})")


@dataclass(frozen=True)
class VideoRecord:
    """One video: where it is, which class it has, when its events are.

    `path` is relative to its data set's root; `label` is 1 for an anomalous video; `group` names the source the clip
    was cut from (clips of one source may never be split), the id where every video is its own source.
    """

    id: str
    path: str
    dataset: str
    split: str
    label: int
    classes: tuple[str, ...] = ()
    events: tuple[Span, ...] = ()
    fps: float = 30.0
    num_frames: int = 0
    group: str = ""

    @property
    def source(self) -> str:
        """What must stay in one split."""
        return self.group or self.id

    def moved(self, split: str) -> "VideoRecord":
        """Return the same video in another split."""
        return replace(self, split=split)


def frame_labels(record: VideoRecord, num_frames: int | None = None) -> np.ndarray:
    """Return the truth of every frame, uint8 (num_frames,): 1 inside an event, 0 elsewhere.

    An event covers frames round(start_s * fps) up to, not including, round(end_s * fps), cut to the video's length.
    `num_frames` defaults to the record's; pass the decoded count where the container lies. RecordError for an event
    past the end (see `overrun`).
    """
    length = record.num_frames if num_frames is None else num_frames
    if length <= 0:
        raise RecordError(f"{record.id}: frame labels need a number of frames, got {length}")
    if wrong := overrun(record, length):
        raise RecordError(wrong)
    labels = np.zeros(length, np.uint8)
    for event in record.events:
        labels[round(event.start_s * record.fps) : round(event.end_s * record.fps)] = 1
    return labels


def overrun(record: VideoRecord, num_frames: int) -> str:
    """Return what is wrong with events beyond a video of `num_frames` frames, "" where all fit.

    Published lists drop the last, partial snippet, so an event may end up to one snippet late; of the 290 and 800 test videos
    of UCF-Crime and XD-Violence none ends later.
    """
    for event in record.events:
        start, end = round(event.start_s * record.fps), round(event.end_s * record.fps)
        if end > num_frames + SNIPPET_FRAMES or (start >= num_frames and end > start):
            return f"{record.id}: an event of frames {start} to {end} in a video of {num_frames} frames"
    return ""


def locate(record: VideoRecord, root: str | Path) -> Path:
    """Return the video's place under `root`; RecordError when its path leaves the root (`..`, absolute, a link out)."""
    try:
        return inside(record.path, root)
    except RecordError as error:
        raise RecordError(f"{record.id}: {error}") from None


def inside(path: str, root: str | Path) -> Path:
    """Return a path's place under `root`; RecordError when it leaves the root (`..`, absolute, a link out)."""
    try:
        return artifacts.inside(Path(root).resolve(), path)
    except artifacts.StoreError as error:
        raise RecordError(str(error)) from None


def leaks(records: Iterable[VideoRecord]) -> list[str]:
    """Return the sources found in more than one split, sorted; an honest data set has none."""
    splits = defaultdict(set)
    for record in records:
        splits[record.source].add(record.split)
    return sorted(source for source, found in splits.items() if len(found) > 1)


def write_records(path: str | Path, records: Iterable[VideoRecord]) -> None:
    """Write one JSON object per line, whole or not at all."""
    artifacts.write_json_lines(path, map(asdict, records))


@artifacts.reader(RecordError)
def read_records(path: str | Path) -> list[VideoRecord]:
    """Read a records.jsonl; RecordError names the file and the line that is not a record."""
    path = Path(path)
    if not path.is_file():
        raise RecordError(
            f"no records at {path}: notebook 01 (08 for close-ups) writes them (vau run PRESET NN --with-needs runs it first)"
        )
    found = {}
    for number, line in enumerate(artifacts.text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = _record(artifacts.parse_json(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise RecordError(f"{path.name} line {number} is not a record: {artifacts.one_line(error, 160)}") from error
        if found.setdefault(record.id, record) is not record:
            raise RecordError(f"{path.name} line {number}: the id {artifacts.one_line(record.id, 80)} is there twice")
    return list(found.values())


def _record(row: dict) -> VideoRecord:
    """Return the record of a row of JSON; TypeError or ValueError where a value is of another type than the record's."""
    row["events"], classes = tuple(Span(**event) for event in row.get("events", ())), row.get("classes", ())
    row["classes"] = tuple(classes)
    record = VideoRecord(**row)
    for name, kind in {"id": str, "path": str, "dataset": str, "split": str, "group": str, "label": int, "num_frames": int}.items():
        if not isinstance(value := getattr(record, name), kind):
            raise TypeError(f"{name} must be {kind.__name__}, got {value!r:.40}")
    texts = all(isinstance(text, str) for text in (*record.classes, *(text for e in record.events for text in (e.label, e.text))))
    if not texts or isinstance(classes, str):
        raise TypeError("classes, labels and texts must be texts")
    numbers = {"fps": 0 < record.fps <= MOST, "num_frames": 0 <= record.num_frames <= MOST, "label": record.label in (0, 1)}
    if wrong := next((name for name, fits in numbers.items() if not fits), ""):
        raise ValueError(f"{wrong} cannot be {getattr(record, wrong)!r:.40}")
    if any(event.end_s * record.fps > MOST for event in record.events):
        raise ValueError("an event ends after more frames than a video has")
    return record


def write_coverage(path: str | Path, listed: Iterable[VideoRecord], present: Iterable[VideoRecord]) -> None:
    """Write beside records how many videos each split lists and how many of them are there, {split: {expected, videos}}."""
    expected, videos = (Counter(record.split for record in part) for part in (listed, present))
    artifacts.write_json(_coverage(path), {split: {"expected": n, "videos": videos[split]} for split, n in expected.items()})


@artifacts.reader(RecordError)
def expected_videos(path: str | Path, split: str = "test") -> int:
    """Return how many videos the lists behind a records.jsonl name in a split; without that note, how many it holds."""
    if _coverage(path).exists():
        return int(artifacts.read_json(_coverage(path), dict).get(split, {}).get("expected", 0))
    return sum(record.split == split for record in read_records(path))


def _coverage(path: str | Path) -> Path:
    return Path(path).with_suffix(".coverage.json")


@dataclass(frozen=True, eq=False)
class LongStream:
    """Hours of features (T, D) float32 with labels (T,) uint8; `events` are half-open spans of rows, `row_s` s each."""

    id: str
    features: np.ndarray
    labels: np.ndarray
    events: tuple[tuple[int, int], ...]
    row_s: float = ROW_S

    @property
    def spans_s(self) -> list[tuple[float, float]]:
        """Return the events in seconds, as `detection_report` wants them."""
        return [(start * self.row_s, end * self.row_s) for start, end in self.events]

    def after(self, seconds: float) -> np.ndarray:
        """Return (T,) bool: rows that begin at `seconds` or later and are in no event that began earlier."""
        kept = np.arange(len(self.features)) * self.row_s >= seconds
        for start, end in self.events:
            if start * self.row_s < seconds:
                kept[start:end] = False
        return kept


def story(found: Iterable[VideoRecord], *, split: str = "test") -> list[VideoRecord]:
    """Return the videos that every notebook shows: of each class of a split the first by id, then the first without an event."""
    chosen: dict[str, VideoRecord] = {}
    for record in sorted((r for r in found if r.split == split), key=lambda r: r.id):
        chosen.setdefault(record.classes[0] if record.classes else ("anomalous" if record.label else ""), record)
    return sorted(chosen.values(), key=lambda r: (not r.label, r.classes))

"""Readers of data sets: UCF-Crime, XD-Violence, UCSD Ped2 and folders of clips become records; checks and splits.

- an annotation `a b` is frames a up to, not including, b, counted from 0, cut to the video: read so, the frame labels
  published for UCF-Crime and XD-Violence come out equal on every frame
- a list is all or nothing: a line that does not read as its format is one error naming file and line, never a guess
- a video that is missing or broken is no error here: `check` names it, says why, and goes on with the rest
- clips cut from one film carry its name as `group`; XD-Violence's official lists have sources on both sides, and an official
  split is used as it is, its overlap counted
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from csv import DictReader
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path, PurePosixPath

import numpy as np

from vau_lib.data import video, video_worker
from vau_lib.data.records import MOST, RecordError, Span, VideoRecord, frame_labels, leaks, locate, overrun
from vau_lib.workspace import artifacts, parallel

UCF_FPS = 30.0
XD_FPS = 24.0  # measured: frames over the seconds in the names of the film clips
UCF_CLASSES = {
    "Abuse": "abuse", "Arrest": "arrest", "Arson": "arson", "Assault": "assault", "Burglary": "burglary",
    "Explosion": "explosion", "Fighting": "fighting", "RoadAccidents": "road accident", "Robbery": "robbery",
    "Shooting": "shooting", "Shoplifting": "shoplifting", "Stealing": "stealing", "Vandalism": "vandalism",
}  # fmt: skip
XD_CLASSES = dict(B1="fighting", B2="shooting", B4="riot", B5="abuse", B6="car accident", G="explosion")
TEST_SETS = {  # test videos, frames and anomalous frames of the published per-frame ground truth (I3D's lengths)
    "ucf_crime": (290, 1_109_680, 84_128),  # UR-DMU's gt-ucf.npy
    "xd_violence": (800, 2_330_384, 537_805),  # XDVioDet's gt.npy
}
UCF_NORMAL = {"Normal", "Testing_Normal_Videos_Anomaly", "Training_Normal_Videos_Anomaly"}


@dataclass(frozen=True)
class Report:
    """The result of `check`; `missing` and `broken` are {id: one line why}, of the `readable` a frame was decoded."""

    videos: int
    events: int
    readable: tuple[VideoRecord, ...]
    missing: dict[str, str]
    broken: dict[str, str]
    repeated: tuple[str, ...]  # ids that name more than one record
    leaks: tuple[str, ...]  # sources in more than one split
    unlabelled: tuple[str, ...]  # anomalous videos without event spans

    def summary(self) -> str:
        """Return one line of counts, then one line per video that has to be skipped."""
        counts = {name: len(getattr(self, name)) for name in ("missing", "broken", "repeated", "leaks", "unlabelled")}
        head = f"{self.videos} videos, {self.events} events, " + ", ".join(f"{n} {name}" for name, n in counts.items())
        return "\n".join([head, *(f"skipped {line}" for line in [*self.missing.values(), *self.broken.values()])])


def ucf_crime(
    annotation: str | Path, *, train_list: str | Path | None = None, test_list: str | Path | None = None,
    num_frames: str | Path | Mapping[str, int] | None = None, root: str | Path | None = None, fps: float = UCF_FPS,
) -> list[VideoRecord]:  # fmt: skip
    """Return UCF-Crime's annotated test videos, then those of `train_list`, as records; RecordError names file and line.

    Args:
        annotation: either official form, `Arson/Arson022_x264.mp4 8640 Arson 3500 4000 -1 -1` or
            `Abuse028_x264  Abuse  165  240  -1  -1`
        train_list: training videos; they get video labels only
        test_list: names, or VadCLIP's csv; sets choice and order of the test videos
        num_frames: see `frame_counts`; replaces the annotation's counts, which are one short of the files
        root: folder of the videos; paths, rates and counts then come from the files found below it
        fps: rate of the annotation's frame numbers
    """
    annotated = _unique((where, _ucf_row(where, line, fps)) for where, line in _lines(annotation))
    if test_list is not None:
        names = {name: where for where, _, name in _listed(test_list)}
        if unknown := [name for name in names if name not in annotated]:
            raise RecordError(f"{names[unknown[0]]}: {unknown[0]} has no line in {Path(annotation).name}")
        annotated = {name: annotated[name] for name in names}
    listed = [] if train_list is None else _listed(train_list)
    train = [_ucf_record(where, folder, name, folder.name, (), "train", fps) for where, folder, name in listed]
    return _placed([*annotated.values(), *train], root, frame_counts(num_frames))


def xd_violence(
    annotation: str | Path, *, train_list: str | Path | None = None, test_list: str | Path | None = None,
    num_frames: str | Path | Mapping[str, int] | None = None, root: str | Path | None = None, fps: float = XD_FPS,
) -> list[VideoRecord]:  # fmt: skip
    """Return XD-Violence's test videos, then those of `train_list`, as records; RecordError names file and line.

    A name has its source before `__#`, its classes after `label_` (`B1-B2-0`; normal: `A`).

    Args:
        annotation: one line per anomalous video, `name a b a b …` or VadCLIP's multi-class `name B4 a b G a b …`
        train_list: training videos; they get video labels only
        test_list: all test videos; without it normal ones come from the names in `num_frames`, or are left out
        num_frames: see `frame_counts`
        root: folder of the videos; paths, rates and counts then come from the files found below it
        fps: rate of the annotation's frame numbers
    """
    counts = frame_counts(num_frames)
    annotated = _unique((where, _xd_row(where, line, fps)) for where, line in _lines(annotation))
    names = dict.fromkeys([*counts, *annotated], "num_frames")
    if test_list is not None:
        names = {name: where for where, _, name in _listed(test_list)}
    for name, where in names.items():
        if name not in annotated and _xd_classes(name, where):
            raise RecordError(f"{where}: {name} is anomalous and has no line in {Path(annotation).name}")
    test = [annotated.get(name) or _xd_record(where, name, (), "test", fps) for name, where in names.items()]
    listed = [] if train_list is None else _listed(train_list)
    train = [_xd_record(where, name, (), "train", fps) for where, _, name in listed]
    return _placed([*test, *train], root, counts)


def ucsd_ped2(root: str | Path) -> list[VideoRecord]:
    """Return UCSD Ped2's 16 training and 12 testing folders of frames as records.

    In `frame_gt.npz` each run of positive frames is one event. RecordError when folder and labels differ in length.
    """
    root = Path(root)
    truth = _arrays(root / "frame_gt.npz")
    found = []
    for split, part in (("train", "training"), ("test", "testing")):
        folders = sorted(path for path in (root / part / "frames").glob("*") if path.is_dir())
        if not folders:
            raise RecordError(f"no folders of frames under {root.name}/{part}/frames")
        named = {root / part / "frames" / _inside("frame_gt.npz", PurePosixPath(name)) for name in truth} if split == "test" else ()
        for folder in sorted({*folders, *named}):  # a folder that labels name and nobody has stays listed: `check` misses it
            present = folder.is_dir()
            num_frames = sum(path.suffix.lower() in video.IMAGE_SUFFIXES for path in folder.iterdir()) if present else 0
            labels = truth.get(folder.name, ()) if split == "test" else np.zeros(num_frames)
            if present and num_frames != len(labels):
                raise RecordError(f"{part}/frames/{folder.name}: {num_frames} frames for {len(labels)} labels")
            events = tuple(Span(start / video.FOLDER_FPS, stop / video.FOLDER_FPS) for start, stop in runs(labels))
            found.append(VideoRecord(
                id=f"{part}_{folder.name}", path=f"{part}/frames/{folder.name}", dataset="ucsd_ped2", split=split,
                label=int(bool(events)), events=events, fps=video.FOLDER_FPS, num_frames=len(labels),
            ))  # fmt: skip
    return found


@artifacts.reader(RecordError)
def clip_folder(root: str | Path, csv: str | Path, *, test_fold: int | str | None = None) -> list[VideoRecord]:
    """Return one record per row of a csv with the columns clip and label (0 or 1); the files lie anywhere below `root`.

    Optional columns: source_group, class, split, fold. `clip` is a path, a file name or its stem. With
    `test_fold` the clips of that fold are the test split, the others train; else the column split decides, else train.
    Rates and counts come from the files that open. The data set is named after `root`. RecordError names csv and line.
    """
    root, csv = Path(root), Path(csv)
    lines = [line for _, line in _lines(csv, blank=True)]
    above = next(number for number, line in enumerate(lines) if line)  # blank lines before the header
    reader = DictReader(lines[above:])
    rows = [(f"{csv.name} line {above + reader.line_num}", row) for row in reader]
    wanted = {"clip", "label"} | ({"fold"} if test_fold is not None else set())
    if absent := wanted - set(reader.fieldnames or ()):
        raise RecordError(f"{csv.name} has no column {', '.join(sorted(absent))}")
    folds = sorted({str(row.get("fold")) for _, row in rows})
    if test_fold is not None and str(test_fold) not in folds:
        raise RecordError(f"{csv.name} has no fold {test_fold}, only {', '.join(folds)}")
    found = _unique((where, _clip(where, row, test_fold, root.name)) for where, row in rows)
    return _placed(list(found.values()), root, {})


@artifacts.reader(RecordError)
def frame_counts(source: str | Path | Mapping[str, int] | None) -> dict[str, int]:
    """Return {video id: frames} from a mapping, a JSON object of the same, or a .npz of per-video frame labels."""
    if source is None:
        return {}
    if not isinstance(source, Mapping):
        path = Path(source)
        source = {k: len(v) for k, v in _arrays(path).items()} if path.suffix == ".npz" else artifacts.read_json(path)
        if not isinstance(source, Mapping):
            raise RecordError(f"{path.name}: expected an object of video names and numbers of frames")
    for name, count in source.items():
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or not 0 < count <= MOST:
            raise RecordError(f"number of frames of {name} must be a positive whole number, got {count!r}")
    return {name.removesuffix(".mp4"): int(count) for name, count in source.items()}


@video_worker.apart()
def measured(records: Iterable[VideoRecord], root: str | Path) -> list[VideoRecord]:
    """Return the records with path, frame rate and number of frames as found below `root`; events keep their frames.

    A file lying in another folder than listed is found by its name (the first in sorted order where several have it).
    What is missing or does not open stays as it was: `check` reports it.
    """
    root = Path(root).resolve()  # as `locate` does
    files = sorted(path for path in root.rglob("*") if video.is_video_name(path))
    places = {key: path for path in reversed(files) for key in (path.stem, path.name)}
    found = []
    for record in records:
        try:
            path = locate(record, root)
            path = path if path.exists() else places.get(path.name, path)
            record = replace(record, path=path.relative_to(root).as_posix())
            info = video.probe(path)
        except ValueError:  # RecordError, VideoError
            found.append(record)
            continue
        slower = record.fps / info.fps  # lists count frames, so another clock moves the seconds, not the frames
        events = tuple(replace(e, start_s=e.start_s * slower, end_s=e.end_s * slower) for e in record.events)
        found.append(replace(record, fps=info.fps, num_frames=info.num_frames, events=events))
    return found


def check(
    records: Sequence[VideoRecord], root: str | Path, *, counts: Mapping[str, int] | None = None, engine: str = "serial",
    workers: int = 2,
) -> Report:  # fmt: skip
    """Open every video and decode its last frame; return what is missing, broken, leaking, repeated or unlabelled.

    With `counts` (frames of released features, see `frame_counts`) no video is opened: one that they do not name is missing.
    A video that ends before one of its events is broken.
    """
    missing, broken = {}, {}
    if counts is None:
        items = [(record, Path(root)) for record in records]
        for (record, _), found, error in parallel.map_videos(_opens, items, engine=engine, workers=workers, desc="check"):
            if error:
                broken[record.id] = f"{record.id}: {error.removeprefix(f'{record.id}: ')}"
            elif not found:
                missing[record.id] = f"{record.id}: no file {record.path}"
    else:
        missing = {record.id: f"{record.id}: no features" for record in records if record.id not in counts}
    for record in records:
        late = overrun(record, record.num_frames) if record.num_frames and record.id not in missing else ""
        if late:
            broken.setdefault(record.id, late)
    readable = tuple(record for record in records if record.id not in missing and record.id not in broken)
    repeated = tuple(name for name, count in Counter(record.id for record in records).items() if count > 1)
    unlabelled = tuple(record.id for record in records if record.label and not record.events)
    events = sum(len(record.events) for record in records)
    return Report(len(records), events, readable, missing, broken, repeated, tuple(leaks(records)), unlabelled)


def test_set_notes(records: Sequence[VideoRecord], dataset: str) -> list[str]:
    """Return how the test videos stand beside the published ground truth: videos, frames, anomalous frames; a line each.

    Lengths have two conventions: I3D's lists drop a video's last whole snippet in places, decoders count every frame.
    """
    if dataset not in TEST_SETS:
        return []
    test = [record for record in records if record.split == "test" and record.num_frames]
    have = (len(test), sum(r.num_frames for r in test), sum(int(frame_labels(r).sum()) for r in test))
    names = ("test videos", "test frames", "anomalous test frames")
    lines = [f"{number:,} of {published:,} {name}" for number, published, name in zip(have, TEST_SETS[dataset], names, strict=True)]
    if have[0] == TEST_SETS[dataset][0] and have[1] != TEST_SETS[dataset][1]:
        lines.append(f"{have[1] - TEST_SETS[dataset][1]:+,} frames: these lengths are not the published ground truth's")
    return lines


def truth_differences(records: Iterable[VideoRecord], truth: str | Path) -> dict[str, tuple[int, int, int]]:
    """Return {video: (frames here, frames there, labels that differ)} for test videos that differ from per-video labels (.npz).

    Labels are compared over the frames both have. A video that the file does not name counts as 0 frames there.
    """
    published, different = _arrays(Path(truth)), {}
    for record in records:
        if record.split != "test" or not record.num_frames:
            continue
        ours, theirs = frame_labels(record), published.get(record.id, np.zeros(0))
        both = min(len(ours), len(theirs))
        wrong = int((ours[:both] != (theirs[:both] > 0)).sum())
        if wrong or len(ours) != len(theirs):
            different[record.id] = (len(ours), len(theirs), wrong)
    return different


def split_by_group(
    records: Sequence[VideoRecord], *, val_fraction: float, rng: np.random.Generator, official: bool = False
) -> list[VideoRecord]:
    """Move about `val_fraction` of the train videos to val, whole sources at a time, each label in proportion.

    Order and every other split stay. A source with both labels counts under its more frequent one. ValueError when a
    source is in two splits already, or when a label has too few sources to stand on both sides. An `official` split is used
    as published although it shares sources (see `leaks`); a source that is in its test set too then stays in train, so that
    what validation chooses was not chosen on the test set's films.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    shared = leaks(records)
    if shared and not official:
        raise ValueError(f"source {shared[0]} is in more than one split already; {len(shared)} such sources")
    train = [record for record in records if record.split == "train"]
    sources, listed = defaultdict(list), Counter(record.label for record in train)
    for record in train:
        if record.source not in shared:
            sources[record.source].append(record.label)
    chosen: set[str] = set()
    for label in (0, 1):
        names = sorted(name for name, of in sources.items() if (2 * sum(of) > len(of)) == label)
        if len(names) == 1 and len(sources[names[0]]) == listed[label]:
            raise ValueError(f"label {label} has one source, {names[0]}; it cannot be in train and val both")
        wanted, filled = val_fraction * (listed[label] if shared else sum(len(sources[name]) for name in names)), 0
        for name in rng.permutation(names)[:-1].tolist():  # one source of each label stays in train
            if not filled or abs(filled + len(sources[name]) - wanted) < abs(filled - wanted):
                chosen.add(name)
                filled += len(sources[name])
    return [r.moved("val") if r.split == "train" and r.source in chosen else r for r in records]


def runs(labels: np.ndarray) -> list[tuple[int, int]]:
    """Return the half-open runs (start, stop) of positive entries of labels (T,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(labels) > 0, [0]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _ucf_row(where: str, line: str, fps: float) -> VideoRecord:
    words = line.split()
    counted = len(words) > 1 and words[1].isdigit()  # the form that carries the number of frames
    if len(words) < 4 + counted:
        raise RecordError(f"{where}: expected `name [frames] class start end …`, got {line!r}")
    kind, numbers = words[1 + counted], words[2 + counted :]
    place = PurePosixPath(words[0])
    if len(place.parts) == 1:
        place = PurePosixPath("Testing_Normal_Videos_Anomaly" if kind in UCF_NORMAL else kind) / place
    name = place.name.removesuffix(".mp4")
    events = _events(where, numbers, repeat(UCF_CLASSES.get(kind, "")), fps)
    record = _ucf_record(where, place.parent, name, kind, events, "test", fps)
    return replace(record, num_frames=int(words[1])) if counted else record


def _ucf_record(
    where: str, folder: PurePosixPath, name: str, kind: str, events: tuple[Span, ...], split: str, fps: float
) -> VideoRecord:
    place = _inside(where, folder / f"{name}.mp4")
    if kind not in UCF_CLASSES and kind not in UCF_NORMAL:
        raise RecordError(f"{where}: {kind!r} is no class of UCF-Crime")
    if kind in UCF_NORMAL and events:
        raise RecordError(f"{where}: {name} is normal and has an event")
    classes = () if kind in UCF_NORMAL else (UCF_CLASSES[kind],)
    return VideoRecord(name, str(place), "ucf_crime", split, len(classes), classes, events, fps)


def _xd_row(where: str, line: str, fps: float) -> VideoRecord:
    name, *words = line.split()
    name = name.removesuffix(".mp4")
    classes = _xd_classes(name, where)
    if words and words[0] in XD_CLASSES:  # VadCLIP's form: a class before each pair
        if len(words) % 3 or not XD_CLASSES.keys() >= set(words[::3]):
            raise RecordError(f"{where}: expected `name class start end …`, got {line!r}")
        labels = [XD_CLASSES[code] for code in words[::3]]
        words = [word for place, word in enumerate(words) if place % 3]
    else:
        labels = repeat(classes[0] if len(classes) == 1 else "")  # which of several a span has is not said here
    if not classes:
        raise RecordError(f"{where}: {name} is normal and has an event")
    return _xd_record(where, name, _events(where, words, labels, fps), "test", fps)


def _xd_record(where: str, name: str, events: tuple[Span, ...], split: str, fps: float) -> VideoRecord:
    place = _inside(where, PurePosixPath(f"{name}.mp4"))
    classes = _xd_classes(name, where)
    source = name.split("__#")[0]  # the film or the web video the clip was cut from
    return VideoRecord(name, str(place), "xd_violence", split, int(bool(classes)), classes, events, fps, group=source)


def _xd_classes(name: str, where: str) -> tuple[str, ...]:
    _, _, codes = name.rpartition("label_")
    # `B1-0-0`: up to three, the first the main one
    found = [] if codes == "A" else [code for code in codes.split("-") if code != "0"]
    coded = set(found) <= XD_CLASSES.keys() and (found or codes == "A")
    if "/" in name or "label_" not in name or not coded:
        raise RecordError(f"{where}: {name!r} does not end in `label_` and XD-Violence's class codes")
    return tuple(XD_CLASSES[code] for code in found)


def _clip(where: str, row: Mapping[str, str], test_fold: int | str | None, dataset: str) -> VideoRecord:
    if None in row or None in row.values():
        raise RecordError(f"{where}: more or fewer values than the header has")
    if row["label"] not in ("0", "1"):
        raise RecordError(f"{where}: label must be 0 or 1, got {row['label']!r}")
    split = row.get("split") or "train"
    if test_fold is not None:
        split = "test" if row["fold"] == str(test_fold) else "train"
    if split not in ("train", "val", "test"):
        raise RecordError(f"{where}: split must be train, val or test, got {split!r}")
    place = _inside(where, PurePosixPath(row["clip"]))
    name = place.stem if place.suffix.lower() in video.VIDEO_SUFFIXES else place.name
    classes = (row["class"],) if row.get("class") else ()
    return VideoRecord(name, str(place), dataset, split, int(row["label"]), classes, group=row.get("source_group", ""))


def _events(where: str, numbers: Sequence[str], labels: Iterable[str], fps: float) -> tuple[Span, ...]:
    """Turn words, start and end by turns, into spans; `-1 -1` pads a short line."""
    try:
        values = [int(number) for number in numbers]
    except ValueError as error:
        raise RecordError(f"{where}: expected frame numbers, got {' '.join(numbers)!r}") from error
    if not values or len(values) % 2:
        raise RecordError(f"{where}: expected pairs of frame numbers, got {' '.join(numbers)!r}")
    events = []
    for label, start, end in zip(labels, values[::2], values[1::2], strict=False):
        if (start, end) == (-1, -1):
            continue
        if not 0 <= start < end:
            raise RecordError(f"{where}: an event runs from a frame to a later one, got {start} {end}")
        events.append(Span(start / fps, end / fps, label))
    return tuple(events)


def _lines(path: str | Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (`file line n`, text) of a text file; blank lines only on request."""
    path = Path(path)
    try:
        lines = artifacts.text_lines(path)
    except artifacts.StoreError as error:
        raise RecordError(f"{path}: not a readable list ({error})") from error
    if not any(map(str.strip, lines)):
        raise RecordError(f"{path.name} is empty")
    for number, line in enumerate(lines, start=1):
        if blank or line.strip():
            yield f"{path.name} line {number}", line.strip()


def _listed(path: str | Path) -> Iterator[tuple[str, PurePosixPath, str]]:
    """Yield (where, folder, video name) of a list of videos or of VadCLIP's feature files, each video once."""
    lines = list(_lines(path))
    features = lines[0][1] == "path,label"  # VadCLIP's lists: one feature file per row, `<video>__<crop>.npy`
    seen = set()
    for where, line in lines[features:]:
        place = PurePosixPath(line)
        if features:  # absolute on someone's machine: the class folder and the name are what we read
            place = PurePosixPath(*PurePosixPath(line.rpartition(",")[0].replace("\\", "/")).parts[-2:])
        name = re.sub(r"__\d+\.npy$", "", place.name) if features else place.name.removesuffix(".mp4")
        if not name or (features and name == place.name):
            raise RecordError(f"{where}: expected a video{' as <video>__<crop>.npy' if features else ''}, got {line!r}")
        _inside(where, place)
        if name not in seen:  # a video has one row per crop
            yield where, place.parent, name
        seen.add(name)


def _inside(where: str, place: PurePosixPath) -> PurePosixPath:
    if place.is_absolute() or ".." in place.parts or not place.name:
        raise RecordError(f"{where}: path {str(place)!r} leaves its root")
    return place


def _unique(found: Iterable[tuple[str, VideoRecord]]) -> dict[str, VideoRecord]:
    records = {}
    for where, record in found:
        if record.id in records:
            raise RecordError(f"{where}: {record.id} is there twice")
        records[record.id] = record
    return records


def _placed(records: list[VideoRecord], root: str | Path | None, counts: Mapping[str, int]) -> list[VideoRecord]:
    """Measure the files below `root`, then let explicit counts win; counts that name no test video are refused."""
    test = [record.id for record in records if record.split == "test"]
    if counts and test and not counts.keys() & set(test):
        raise RecordError(f"{test[0]}: num_frames does not name it, nor any other of {len(test)} test videos")
    records = records if root is None else measured(records, root)
    return [replace(record, num_frames=counts.get(record.id, record.num_frames)) for record in records]


@video_worker.apart()
def _opens(item: tuple[VideoRecord, Path]) -> bool:
    path = locate(*item)
    if not path.exists():
        return False
    video.read_frames(path, [video.probe(path).num_frames - 1], reader="pyav")
    return True


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return artifacts.load_arrays(path)
    except artifacts.StoreError as error:
        raise RecordError(f"{path.name} holds no plain arrays: {error}") from error

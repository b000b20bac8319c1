"""HIVAU-70k's annotation: captions, judgements, descriptions and analyses of clips, events and videos (Holmes-VAU).

- a clip is a range of seconds of its source video; nothing has to be cut before it is used (`hivau_clips` cuts)
- normal videos carry `events` too, random crops: only the events of a video with a label are ever positive
- the data set's spelling ends here: `anwser`, `type`, `<video>\\n`, two schemas of rows, folders with a split inside
- a row that cannot be used is one line in `problems`, with its number; the rest goes on, unless `strict`
- the released test set repeats files: 2,207 caption rows are 943 clips, so every count says rows or files
Source: Holmes-VAU (arXiv 2412.06171, section 3, appendix A) and the released annotation files.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vau_lib.data.answer_parsing import parse_verdict
from vau_lib.data.datasets import UCF_CLASSES, XD_CLASSES
from vau_lib.data.records import MOST, RecordError, Span, VideoRecord
from vau_lib.workspace import artifacts

TASKS = {"clip": ("caption",), "event": ("judgement", "description", "analysis"), "video": ("judgement", "description", "analysis")}
LEVELS = tuple(TASKS)
FOLDERS = {"clip": "clips", "event": "events", "video": "videos"}
DATASETS = {"ucf-crime": "ucf_crime", "xd-violence": "xd_violence"}  # HIVAU's folder -> this project's name
RAW_NAMES = {"ucf": "ucf-crime", "xd": "xd-violence"}  # `ucf_database_test.json`
NUMBERED = re.compile(r"(?P<video>.+?)(?:_E(?P<event>\d+)(?:C(?P<clip>\d+))?)?\.mp4")


class RecordList(list):
    """The records that could be read, in order; `problems` holds one line for each that could not."""

    def __init__(self, rows: Iterable = (), problems: Sequence[str] = ()):
        super().__init__(rows)
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Instruction:
    """One question about one stretch of one video, and the answer to learn.

    `video` is the source's path below its root, `span` its seconds (None: not known, or the whole video); `file` is the
    path of the cut-out file HIVAU names, which need not exist. `event` and `clip` count from 0 within the video and
    within the event. `origin` names the writer of the answer.
    """

    id: str
    level: str
    task: str
    question: str
    answer: str
    video: str
    video_id: str
    dataset: str = ""
    split: str = ""
    event: int | None = None
    clip: int | None = None
    span: Span | None = None
    file: str = ""
    origin: str = ""

    def __post_init__(self):
        if self.level not in TASKS:
            raise RecordError(f"{self.id}: level must be one of {', '.join(LEVELS)}, got {self.level!r}")
        if self.task not in TASKS[self.level]:
            raise RecordError(f"{self.id}: a {self.level} has {', '.join(TASKS[self.level])}, got task {self.task!r}")
        for name in ("question", "answer"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise RecordError(f"{self.id}: the {name} is empty")

    @property
    def place(self) -> tuple:
        """The clip, event or video in question; rows of one place and task repeat one another."""
        return self.file or self.video, self.level, self.event, self.clip


@dataclass(frozen=True)
class HivauVideo(VideoRecord):
    """A record with all texts about it; `events` holds what is positive, as in every record.

    `segments` are HIVAU's events, in normal videos too, each with its summary as text; `clips` are per segment, their
    text the caption; `parts` (per segment) and `part` (of the video) are {judgement, description[, analysis]}.
    """

    segments: tuple[Span, ...] = ()
    clips: tuple[tuple[Span, ...], ...] = ()
    parts: tuple[Mapping[str, str], ...] = ()
    summary: str = ""
    part: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Quality:
    """What is inconsistent in the annotation; every entry names where, so that a person can look."""

    clips_outside_event: tuple[str, ...]
    events_outside_video: tuple[str, ...]
    empty_segments: tuple[str, ...]
    anomalous_judged_normal: tuple[str, ...]
    normal_judged_anomalous: tuple[str, ...]
    events_judged_normal: tuple[str, ...]  # within anomalous videos
    judged_neither: tuple[str, ...]  # the video's judgement gives no verdict
    without_instructions: tuple[str, ...]
    clip_rows: int
    clip_files: int

    def table(self) -> list[dict]:
        """Return one row per finding: how many, and the first few names."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, tuple)}
        rows = [
            {"finding": name.replace("_", " "), "count": len(found), "first": ", ".join(found[:3])} for name, found in named.items()
        ]
        repeated = {"finding": "clip rows that repeat a file", "count": self.clip_rows - self.clip_files}
        return [*rows, repeated | {"first": f"{self.clip_rows} rows are {self.clip_files} files"}]


@artifacts.reader(RecordError)
def hivau_instructions(path: str | Path, *, strict: bool = False) -> RecordList:
    """Read an instruction file, train rows (`conversations`) or test rows (`prompt`, `anwser`), as Instructions.

    `.problems` numbers the lines that are no instruction and says why; with `strict` the first one is a RecordError.
    Spans are not in this file: `with_spans` takes them from the raw annotation.
    """
    path, rows, problems, seen = Path(path), [], [], set()
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = _instruction(line)
            if row.id in seen:
                raise RecordError(f"id {row.id} is there twice")
        except RecordError as error:
            _note(f"{path.name} line {number}: {error}", problems, strict)
            continue
        seen.add(row.id)
        rows.append(row)
    return RecordList(rows, problems)


@artifacts.reader(RecordError)
def hivau_raw(path: str | Path, *, subset: str = "", split: str = "", strict: bool = False) -> RecordList:
    """Read a raw annotation json as HivauVideos; `.problems` names the videos that could not be read and says why.

    `subset` (ucf-crime or xd-violence) and `split` come from the file's name (`ucf_database_test.json`) when not given.
    """
    path = Path(path)
    named = re.fullmatch(r"(ucf|xd)_database_(train|test)\.json", path.name)
    subset = subset or (RAW_NAMES[named[1]] if named else "")
    split = split or (named[2] if named else "")
    if subset not in DATASETS or not split:
        raise RecordError(f"{path.name}: say subset ({' or '.join(DATASETS)}) and split; the name does not")
    content, rows, problems = artifacts.read_json(path), [], []
    if not isinstance(content, dict):
        raise RecordError(f"{path.name}: expected an object of video names, got {type(content).__name__}")
    for name, entry in content.items():
        try:
            rows.append(_video(name, entry, subset, split))
        except (RecordError, KeyError, TypeError, ValueError, IndexError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else error
            _note(f"{path.name}, {name}: {why}", problems, strict)
    return RecordList(rows, problems)


def with_spans(instructions: Iterable[Instruction], videos: Iterable[VideoRecord]) -> RecordList:
    """Return the instructions as virtual clips: each knows the seconds of its source. What has none is a problem."""
    known, rows, problems = {video.id: video for video in videos}, [], []
    for row in instructions:
        try:
            rows.append(replace(row, span=_span_of(row, known[row.video_id])))
        except KeyError:
            problems.append(f"{row.id}: video {row.video_id} has no raw annotation")
        except IndexError:
            problems.append(f"{row.id}: {row.video_id} has no event {row.event} clip {row.clip}")
    return RecordList(rows, problems)


def segment_file(video: HivauVideo, event: int, clip: int | None = None) -> str:
    """Return the path HIVAU gives to a cut-out event or clip, below its `videos` folder."""
    subset = PurePosixPath(video.path).parts[0]
    level, suffix = ("event", f"_E{event}") if clip is None else ("clip", f"_E{event}C{clip}")
    return f"{subset}/{FOLDERS[level]}/{video.split}/{video.id}{suffix}.mp4"


def distinct(instructions: Iterable[Instruction]) -> list[Instruction]:
    """Return the first row of each file and task; further rows ask the same in other words."""
    first: dict[tuple, Instruction] = {}
    for row in instructions:
        first.setdefault((row.place, row.task), row)
    return list(first.values())


def counts(instructions: Iterable[Instruction]) -> Counter:
    """Return how many rows each (level, task) has."""
    return Counter((row.level, row.task) for row in instructions)


def statistics(instructions: Iterable[Instruction]) -> list[dict]:
    """Return one row per instruction: level, task, words of the answer, seconds of the span (nan when not known)."""
    rows = []
    for row in instructions:
        seconds = row.span.end_s - row.span.start_s if row.span else float("nan")
        rows.append({"level": row.level, "task": row.task, "words": len(row.answer.split()), "seconds": seconds})
    return rows


def quality(videos: Sequence[HivauVideo], instructions: Sequence[Instruction] = (), *, slack_s: float = 1e-6) -> Quality:
    """Return what is inconsistent: clips that leave their event, videos judged against their label, repeated rows.

    A clip or an event may leave its frame by `slack_s` seconds without being named.
    """
    outside = [
        f"{v.id} E{e}C{c}"
        for v in videos
        for e, (event, clips) in enumerate(zip(v.segments, v.clips, strict=True))
        for c, clip in enumerate(clips)
        if clip.start_s < event.start_s - slack_s or clip.end_s > event.end_s + slack_s
    ]
    judged = {v.id: parse_verdict(v.part["judgement"]) for v in videos}
    denied = _within(videos, lambda v, e: v.label and parse_verdict(v.parts[e]["judgement"]) == 0)
    instructed = {row.video_id for row in instructions if row.level == "video"}
    captions = [row for row in instructions if row.level == "clip"]
    return Quality(
        clips_outside_event=tuple(outside),
        events_outside_video=_within(videos, lambda v, e: v.segments[e].end_s > v.num_frames / v.fps + slack_s),
        empty_segments=_empty(videos),
        anomalous_judged_normal=tuple(v.id for v in videos if v.label and judged[v.id] == 0),
        normal_judged_anomalous=tuple(v.id for v in videos if not v.label and judged[v.id] == 1),
        events_judged_normal=denied,
        judged_neither=tuple(v.id for v in videos if judged[v.id] is None),
        without_instructions=tuple(v.id for v in videos if instructions and v.id not in instructed),
        clip_rows=len(captions),
        clip_files=len(distinct(captions)),
    )


def as_sample(row: Instruction) -> dict:
    """Return the row as it is written for training: id, level, task, video, span_s, question, answer, split, and more."""
    span = None if row.span is None else [round(row.span.start_s, 3), round(row.span.end_s, 3)]
    fields = ("id", "level", "task", "video", "question", "answer", "split", "video_id", "dataset", "event", "clip")
    return {name: getattr(row, name) for name in fields} | {"span_s": span, "origin": row.origin}


def write_samples(path: str | Path, instructions: Iterable[Instruction]) -> None:
    """Write one JSON object per line (`as_sample`), whole or not at all."""
    artifacts.write_json_lines(path, map(as_sample, instructions))


@artifacts.reader(RecordError)
def read_samples(path: str | Path, *, strict: bool = False) -> RecordList:
    """Read what `write_samples` wrote; problems as in `hivau_instructions`."""
    path, rows, problems = Path(path), [], []
    if not path.exists():
        raise RecordError(f"{path} is not made yet: notebook 08 makes it (vau run PRESET NN --with-needs runs it first)")
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = _object(line)
            span = row.pop("span_s")
            rows.append(Instruction(**row | {"span": None if span is None else Span(*span)}))
        except (RecordError, KeyError, TypeError) as error:
            _note(f"{path.name} line {number}: {error}", problems, strict)
    return RecordList(rows, problems)


def _lines(path: Path) -> list[str]:
    try:
        lines = artifacts.text_lines(path)
    except artifacts.StoreError as error:
        raise RecordError(f"{path}: not a readable instruction file ({error})") from error
    if not any(map(str.strip, lines)):
        raise RecordError(f"{path.name} is empty")
    return lines


def _note(problem: str, problems: list[str], strict: bool) -> None:
    if strict:
        raise RecordError(problem)
    problems.append(problem)


def _object(line: str) -> dict:
    try:
        row = artifacts.parse_json(line)
    except ValueError as error:
        raise RecordError(f"broken json ({error})") from error
    if not isinstance(row, dict):
        raise RecordError(f"expected an object, got {type(row).__name__}")
    return row


def _instruction(line: str) -> Instruction:
    row = _object(line)
    if missing := [key for key in ("id", "type", "task", "video") if key not in row]:
        raise RecordError(f"no {missing[0]!r}, only {', '.join(row)}")
    question, answer = _question_and_answer(row)
    file = str(row["video"])
    parts, named = PurePosixPath(file).parts, NUMBERED.fullmatch(PurePosixPath(file).name)
    if len(parts) != 4 or parts[0] not in DATASETS or ".." in parts or not named:
        raise RecordError(f"{row['id']}: expected <subset>/<level>s/<split>/<name>.mp4, got {file!r}")
    event, clip = (None if named[part] is None else int(named[part]) for part in ("event", "clip"))
    level = row["type"]
    if level in FOLDERS and (parts[1] != FOLDERS[level] or (event is None, clip is None) != _unnumbered(level)):
        raise RecordError(f"{row['id']}: type {level!r} does not fit its file {file!r}")
    return Instruction(
        id=str(row["id"]), level=level, task=row["task"], question=question, answer=answer,
        video=f"{parts[0]}/videos/{parts[2]}/{named['video']}.mp4", video_id=named["video"], dataset=DATASETS[parts[0]],
        split=parts[2], event=event, clip=clip, file=file, origin="HIVAU-70k",
    )  # fmt: skip


def _unnumbered(level: str) -> tuple[bool, bool]:
    return level == "video", level != "clip"


def _question_and_answer(row: Mapping) -> tuple[object, object]:
    """Return question and answer of either schema; Instruction refuses what is empty or no text."""
    if "conversations" not in row:
        return row.get("prompt", row.get("question")), row.get("anwser", row.get("answer"))  # HIVAU-70k's spelling
    messages = row["conversations"]
    if not isinstance(messages, list) or [isinstance(m, dict) and m.get("from") for m in messages] != ["human", "gpt"]:
        raise RecordError(f"{row['id']}: expected one message of human and one of gpt")
    question, answer = (message.get("value") for message in messages)
    return question.replace("<video>", "", 1).strip() if isinstance(question, str) else question, answer


def _video(name: str, entry: Mapping, subset: str, split: str) -> HivauVideo:
    spans = [Span(*map(float, pair)) for pair in entry["events"]]
    parts, summaries = entry["events_summary_split"], entry["events_summary"]
    sizes = {key: len(entry[key]) for key in ("events", "clips", "clips_caption")}
    sizes |= {"events_summary": len(summaries), "events_summary_split": len(parts)}
    if len(set(sizes.values())) > 1:
        raise RecordError(f"lists of different lengths: {', '.join(f'{k} {n}' for k, n in sizes.items())}")
    clips = []
    for number, (pairs, captions) in enumerate(zip(entry["clips"], entry["clips_caption"], strict=True)):
        if len(pairs) != len(captions):
            raise RecordError(f"event {number} has {len(pairs)} clips and {len(captions)} captions")
        clips.append(tuple(Span(float(s), float(e), text=text) for (s, e), text in zip(pairs, captions, strict=True)))
    for part in [*parts, entry["video_summary_split"]]:
        if not part["judgement"].strip():
            raise RecordError("a judgement is empty")
    classes, fps, num_frames = _classes(entry["label"]), float(entry["fps"]), int(entry["n_frames"])
    if not 0 < fps <= MOST or not 0 < num_frames <= MOST:
        raise RecordError(f"{num_frames} frames at {fps:g} a second are no video")
    segments = tuple(replace(span, text=text) for span, text in zip(spans, summaries, strict=True))
    return HivauVideo(
        id=name, path=f"{subset}/videos/{split}/{name}.mp4", dataset=DATASETS[subset], split=split,
        label=int(bool(classes)), classes=classes, fps=fps, num_frames=num_frames,
        events=tuple(replace(span, label=classes[0] if len(classes) == 1 else "") for span in spans) if classes else (),
        segments=segments, clips=tuple(clips), parts=tuple(parts), summary=entry["video_summary"],
        part=entry["video_summary_split"],
    )  # fmt: skip


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    return tuple((UCF_CLASSES | XD_CLASSES).get(label, label.lower()) for label in labels)


def _span_of(row: Instruction, video: VideoRecord) -> Span:
    if row.level == "video":
        return Span(0.0, video.num_frames / video.fps)
    return video.segments[row.event] if row.level == "event" else video.clips[row.event][row.clip]


def _within(videos: Sequence[HivauVideo], odd: Callable) -> tuple[str, ...]:
    return tuple(f"{v.id} E{e}" for v in videos for e in range(len(v.segments)) if odd(v, e))


def _empty(videos: Sequence[HivauVideo]) -> tuple[str, ...]:
    """Name the events and clips that hold not one frame at the video's rate."""
    spans = [(f"{v.id} E{e}", v, span) for v in videos for e, span in enumerate(v.segments)]
    spans += [(f"{v.id} E{e}C{c}", v, span) for v in videos for e, of in enumerate(v.clips) for c, span in enumerate(of)]
    return tuple(name for name, v, s in spans if round(s.end_s * v.fps) <= round(s.start_s * v.fps))

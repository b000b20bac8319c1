"""Annotation of videos with instructions: hierarchical captions, question pools, human review (Holmes-VAU, section 3.2).

- a video is divided first: events from their spans, clips inside events, so that every text has its seconds
- texts are made bottom-up: clips are captioned from frames, events are summarised from captions, videos from events
- the writer is an argument, any function; `synthetic.captions.CaptionTemplates` writes from the ground truth of synthetic videos
- one rule cuts a summary into judgement, description and analysis; it was checked on the released annotation
- the instructions of a video are written together or not at all, and a person reviews them in a table before they are used
Source: Holmes-VAU (arXiv 2412.06171), section 3.2 and appendix A; no code of this part was released.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vau_lib.data import video
from vau_lib.data.answer_parsing import parse_verdict
from vau_lib.data.hivau import Instruction
from vau_lib.data.records import RecordError, Span, VideoRecord
from vau_lib.workspace import artifacts, formats

# question pools, of the sizes of HIVAU-70k's (24, 10, 10, 10) and worded here; `read_prompt_pools` reads the released ones
PROMPT_POOLS: dict[str, tuple[str, ...]] = {
    "caption": (
        "What does this clip show?", "Say in a sentence or two what happens here.", "Who appears in the clip, and what do they do?",
        "Write a caption for this clip.", "Tell me what is going on in these seconds.", "Which actions can be seen?",
        "Give a short account of the scene.", "What are the people in view doing?", "Put the content of the clip into words.",
        "Note what moves in this clip and how.", "What would a guard write down about this clip?", "Report what the camera sees.",
        "Name the main figures and their actions.", "How would you sum up this short clip?", "What takes place from start to end?",
        "Caption these frames briefly.", "What is the scene and what happens in it?",
        "List what can be observed here, in one sentence.",
        "Explain shortly what the clip is about.", "What do you notice in this clip?", "Retell the clip in few words.",
        "Which subjects are visible and what are they up to?", "State plainly what is filmed.", "What is the main activity?",
    ),
    "judgement": (
        "Is anything abnormal going on?", "Does this video contain an anomaly, and which?", "Judge whether the footage is normal.",
        "Should a guard be alerted, and by what?", "Is there an unusual event here? Name it.",
        "Normal or anomalous? Say which kind.",
        "What sort of anomaly happens, if any?", "Decide whether something is wrong in this video.",
        "Has any abnormal event been filmed?", "Tell whether this is an anomaly and what it is called.",
    ),
    "description": (
        "Describe the event in question.", "What exactly happens in the event?", "Recount the incident, or the ordinary scene.",
        "Give the details of what takes place.", "How does the event unfold?", "Summarise what the video shows of the event.",
        "Write down the course of events.", "What can be seen of the incident?", "Depict the event from beginning to end.",
        "Which actions make up the event?",
    ),
    "analysis": (
        "What makes this an anomaly?", "On what grounds is the event abnormal?", "Why would this not happen on an ordinary day?",
        "Justify the judgement.", "Which observation supports calling it abnormal?", "Explain the reason for the alarm.",
        "How does the event differ from normal behaviour?", "What evidence speaks for an anomaly?",
        "Why does the event deserve attention?", "Give the basis of this decision.",
    ),
}  # fmt: skip
ENGINE_PROMPTS = {  # what a captioner and a language model are asked while annotating
    "clip": "In one or two short sentences, say who or what is in the clip and what they do.",
    "event": "Captions of the clips, in order: {texts}. It is known that {truth}. Answer in three parts. First one sentence: does "
    "an anomaly exist, and what is it called. Then: a summary of the event. Last, if there is an anomaly, one sentence that starts "
    "with 'The basis for judging this anomaly is'.",
    "video": "Summaries of the events of a video, in order: {texts}. It is known that {truth}. Answer in three parts. First one "
    "sentence: does an anomaly exist, and what is it called. Then: what happens, from the start to the end of the video. Last, if "
    "there is an anomaly, one sentence that starts with 'The basis for judging this anomaly is'.",
}


@artifacts.reader(RecordError)
def read_prompt_pools(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read pools from a JSON object {task: [question, ...]}; other keys are left alone. RecordError names what lacks."""
    content = artifacts.read_json(path)
    if not isinstance(content, Mapping):
        raise RecordError(f"{Path(path).name}: expected an object of tasks, got {type(content).__name__}")
    for task in PROMPT_POOLS:
        found = content.get(task)
        if not isinstance(found, list) or not found or not all(isinstance(q, str) and q.strip() for q in found):
            raise RecordError(f"{Path(path).name}: {task} must be a list of questions, got {found!r:.60}")
    return {task: tuple(content[task]) for task in PROMPT_POOLS}


BASIS = re.compile(r"(?:^|(?<=[.!?;]) )(?=The basis for judging)")
BASIS_LEAD = re.compile(r"The basis for judging (?:this|the) anomaly is\s+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s")
DECISIONS = ("accept", "edit", "drop")
REVIEW_COLUMNS = "id level task video start_s end_s question answer flag decision edited_answer".split()


@dataclass(frozen=True)
class Event:
    """Seconds of a video and the clips they are divided into; `label` is "" where nothing anomalous is known."""

    span: Span
    clips: tuple[Span, ...]

    @property
    def label(self) -> str:
        return self.span.label


@dataclass(frozen=True)
class AnnotationRequest:
    """One text to write: the video, the seconds, the texts one level below, and the prompt that holds all of it."""

    record: VideoRecord
    level: str
    span: Span
    label: str
    texts: tuple[str, ...]
    prompt: str


Writer = Callable[[AnnotationRequest], str]


def decouple(
    record: VideoRecord, *, clip_s: float = 6.0, boundaries: Sequence[Span] = (), rng: np.random.Generator,
    normal_events: int = 1, normal_fraction: tuple[float, float] = (0.3, 0.8),
) -> list[Event]:  # fmt: skip
    """Divide a video into events, or a normal one into random stretches, and each of them into clips.

    Args:
        record: the video; RecordError where it has no frames, or is anomalous without events
        clip_s: seconds of a clip, approximately: an event is divided into equal parts
        boundaries: clips that are known already; they are cut to the event (80 released ones are not)
        rng: draws the stretches of a normal video
        normal_events: number of stretches of a normal video
        normal_fraction: shortest and longest stretch, as fractions of the video
    """
    if clip_s <= 0:
        raise ValueError(f"clip_s must be positive, got {clip_s}")
    length = record.num_frames / record.fps
    if length <= 0:
        raise RecordError(f"{record.id}: no frames to take apart")
    spans = [Span(e.start_s, min(e.end_s, length), e.label or "anomaly") for e in record.events if e.start_s < length]
    if not record.label:
        fractions = rng.uniform(*normal_fraction, normal_events)
        starts = rng.uniform(0, 1 - fractions)
        spans = [Span(round(a * length, 3), round((a + s) * length, 3)) for a, s in sorted(zip(starts, fractions, strict=True))]
    spans = [span for span in spans if span.end_s > span.start_s]
    if not spans:
        raise RecordError(f"{record.id}: anomalous, but no event says when")
    return [Event(span, tuple(_inside(span, boundaries) or _uniform(span, clip_s))) for span in spans]


def parse_summary(text: str, *, released: bool = False) -> dict[str, str]:
    """Cut a summary into judgement, description and, where it has one, analysis.

    The judgement is the first sentence, the analysis what follows "The basis for judging this anomaly is", the description
    what lies between; quotation marks go, and where an analysis follows, the description's final period.
    `released` adds what the released data did to texts: semicolons become periods, an analysis loses its capitals.
    ValueError for a text without two sentences.
    """
    head, *basis = BASIS.split(" ".join(text.replace('"', "").split()), maxsplit=1)
    head = head.replace("; ", ". ") if released else head
    judgement, *rest = SENTENCE_END.split(head, maxsplit=1)
    if not rest or not rest[0].strip():
        raise ValueError(f"a summary needs a judgement and a description, got {text!r:.80}")
    if not basis:
        return {"judgement": judgement, "description": rest[0]}
    analysis = BASIS_LEAD.sub("", basis[0])
    analysis = analysis.capitalize() if released else analysis[:1].upper() + analysis[1:]
    return {"judgement": judgement, "description": rest[0].removesuffix("."), "analysis": analysis}


def annotate(
    record: VideoRecord, events: Sequence[Event], *, caption: Writer, summarise: Writer, rng: np.random.Generator,
    pools: Mapping[str, Sequence[str]] = PROMPT_POOLS, engine: Mapping[str, str] = ENGINE_PROMPTS,
    origin: str = "", folder: str = "",
) -> list[Instruction]:  # fmt: skip
    """Return a video's instructions: a caption per clip; judgement, description, analysis per event and for the video.

    Args:
        record: the video
        events: its events with their clips, from `decouple`
        caption: writes the text of a clip (`sample_clip_frames` gives it frames)
        summarise: writes the text of an event or a video from the texts one level below
        rng: draws a question from its pool for every text
        pools: {task: questions}
        engine: {level: prompt of the writer}
        origin: who wrote the texts
        folder: put before the record's path
    """
    rows, summaries = [], []
    path = f"{folder.rstrip('/')}/{record.path}" if folder else record.path

    def add(level, task, answer, span, event=None, clip=None):
        number = "".join(f"{mark}{n}" for mark, n in (("_E", event), ("C", clip)) if n is not None)
        question = str(rng.choice(list(pools[task])))
        rows.append(Instruction(
            id=f"{record.id}{number}_{task}", level=level, task=task, question=question, answer=answer, video=path,
            video_id=record.id, dataset=record.dataset, split=record.split, event=event, clip=clip,
            span=Span(span.start_s, span.end_s), origin=origin,
        ))  # fmt: skip

    def add_parts(level, text, span, event=None):
        try:
            parts = parse_summary(text)
        except ValueError as error:
            raise RecordError(f"{record.id}, {level} {'' if event is None else event}: {error}") from error
        for task, answer in parts.items():
            add(level, task, answer, span, event)

    for number, event in enumerate(events):
        captions = []
        for place, clip in enumerate(event.clips):
            captions.append(caption(_request(record, "clip", clip, event.label, (), engine)))
            add("clip", "caption", captions[-1], clip, number, place)
        summaries.append(summarise(_request(record, "event", event.span, event.label, tuple(captions), engine)))
        add_parts("event", summaries[-1], event.span, number)
    whole = Span(0.0, round(record.num_frames / record.fps, 3))
    label = ", ".join(dict.fromkeys(event.label for event in events if event.label))
    add_parts("video", summarise(_request(record, "video", whole, label, tuple(summaries), engine)), whole)
    return rows


def sample_clip_frames(request: AnnotationRequest, root: str | Path, *, num_frames: int = 8) -> np.ndarray:
    """Return frames uint8 (num_frames, H, W, 3) spread evenly over the seconds of a request."""
    path = Path(root) / request.record.path
    moments = request.span.start_s + (np.arange(num_frames) + 0.5) / num_frames * (request.span.end_s - request.span.start_s)
    return video.read_frames(path, video.index_at(path, moments))


def run(
    records: Iterable[VideoRecord], out: str | Path, work: Callable[[VideoRecord], list[Instruction]], **facts: object
) -> dict[str, str]:
    """Annotate every record into `out`/<id>.json, whole or not at all; return {id: error line} of those that failed.

    A video done before with the same `facts` (writer, seeds) and the same record is kept. Failures end their own video only.
    """
    out, failed = Path(out), {}
    known = json.loads(json.dumps(facts))
    for record in records:
        try:
            place = artifacts.inside(out, f"{record.id}.json")
            made_of = {"facts": known, "record": json.loads(json.dumps(asdict(record)))}
            if place.exists() and artifacts.read_json(place, dict).items() >= made_of.items():
                continue
            rows = work(record)
            artifacts.write_json(place, made_of | {"rows": [asdict(row) for row in rows]})
        except (ValueError, OSError) as error:
            failed[record.id] = artifacts.one_line(error)
    return failed


def collect(out: str | Path, records: Iterable[VideoRecord]) -> list[Instruction]:
    """Return the rows `run` wrote for these records, in their order; what is not there yet is left out."""
    rows = []
    for record in records:
        place = artifacts.inside(out, f"{record.id}.json")
        if place.exists():
            rows += _rows_of(place)
    return rows


@artifacts.reader()
def _rows_of(place: Path) -> list[Instruction]:
    return [_instruction(content) for content in artifacts.read_json(place, dict)["rows"]]


def flags(rows: Sequence[Instruction], records: Iterable[VideoRecord]) -> dict[str, str]:
    """Return {instruction id: reason to review it}: judged against the label, anomalous without a reason, repeated text."""
    labels = {record.id: record.label for record in records}
    reasons = {(row.video_id, row.event) for row in rows if row.task == "analysis"}
    seen, found = Counter(row.answer for row in rows if row.level == "clip"), {}
    for row in rows:
        if row.task == "judgement":
            verdict = parse_verdict(row.answer)
            if verdict is None:
                found[row.id] = "a judgement without a verdict"
            elif row.level == "video" and verdict != labels.get(row.video_id, verdict):
                found[row.id] = f"judged {'anomalous' if verdict else 'normal'}, labelled otherwise"
            elif verdict and (row.video_id, row.event) not in reasons:
                found[row.id] = "judged anomalous without a reason"
        elif row.level == "clip" and seen[row.answer] > 3:
            found[row.id] = f"the same caption {seen[row.answer]} times"
    return found


def review_table(rows: Iterable[Instruction], flagged: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Return the table a person goes through: fill `decision` (accept, edit, drop) and, for edit, `edited_answer`."""
    table = [
        {"id": r.id, "level": r.level, "task": r.task, "video": r.video, "start_s": r.span.start_s if r.span else None,
         "end_s": r.span.end_s if r.span else None, "question": r.question, "answer": r.answer,
         "flag": (flagged or {}).get(r.id, ""), "decision": "", "edited_answer": ""}
        for r in rows
    ]  # fmt: skip
    return pd.DataFrame(table, columns=REVIEW_COLUMNS)


def write_review(path: str | Path, table: pd.DataFrame) -> None:
    """Write the table as csv for a spreadsheet, whole or not at all; no cell is a formula there."""
    artifacts.write_table(path, table)


def apply_review(
    rows: Sequence[Instruction], csv: str | Path | pd.DataFrame, *, undecided: str = "refuse"
) -> tuple[list[Instruction], Counter]:
    """Return the rows that a reviewed table keeps, edited where it says so, and how many were decided how.

    `undecided` rows are refused, or taken as "accept" or "drop". Only the columns id, decision and edited_answer are
    believed: a spreadsheet may have changed others. ValueError names the first row that does not fit.
    """
    if undecided not in ("refuse", "accept", "drop"):
        raise ValueError(f"undecided must be refuse, accept or drop, got {undecided!r}")
    table = csv if isinstance(csv, pd.DataFrame) else read_review(csv)
    if missing := {"id", "decision", "edited_answer"} - set(table.columns):
        raise ValueError(f"the review has no column {', '.join(sorted(missing))}")
    if table["id"].duplicated().any():
        raise ValueError(f"row {table['id'][table['id'].duplicated()].iloc[0]} is reviewed twice")
    decided = dict(zip(table["id"], zip(table["decision"], table["edited_answer"], strict=True), strict=True))
    if strange := [name for name in decided if name not in {row.id for row in rows}]:
        raise ValueError(f"the review names {strange[0]!r}, which is no row here")
    kept, tally = [], Counter()
    for row in rows:
        decision, text = decided.get(row.id, ("", ""))
        decision = decision.strip().lower() or ("" if undecided == "refuse" else undecided)
        if decision not in DECISIONS:
            raise ValueError(f"row {row.id}: decision must be {', '.join(DECISIONS)}, got {decision!r}")
        tally[decision] += 1
        if decision == "edit":
            row = replace(row, answer=text.strip(), origin=f"{row.origin}, edited".lstrip(", "))
        if decision != "drop":
            kept.append(row)
    return kept, tally


@artifacts.reader(RecordError)
def read_review(path: str | Path) -> pd.DataFrame:
    """Return a review sheet as it was written, all cells texts; RecordError names a file that is none."""
    return formats.read_table(path, dtype=str, keep_default_na=False)


def _request(record, level, span, label, texts, engine) -> AnnotationRequest:
    truth = f"there is an anomaly ({label})" if label else "there is no anomaly"
    # not str.format: a caption, or a released prompt, may hold braces of its own
    prompt = engine[level].replace("{texts}", " ".join(texts)).replace("{truth}", truth)
    return AnnotationRequest(record, level, span, label, texts, prompt)


def _inside(event: Span, boundaries: Sequence[Span]) -> list[Span]:
    cut = [(max(b.start_s, event.start_s), min(b.end_s, event.end_s), b.text) for b in boundaries]
    return [Span(start, end, text=text) for start, end, text in cut if end > start]


def _uniform(event: Span, clip_s: float) -> list[Span]:
    parts = max(1, round((event.end_s - event.start_s) / clip_s))
    edges = np.linspace(event.start_s, event.end_s, parts + 1).round(3).tolist()
    return [Span(start, end) for start, end in zip(edges, edges[1:], strict=False)]


def _instruction(content: Mapping) -> Instruction:
    span = content["span"]
    return Instruction(**dict(content) | {"span": None if span is None else Span(**span)})

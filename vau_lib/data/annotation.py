"""From a video and the seconds of its events to instructions: caption what is short, sum up what is long, ask, let a person check.

- a video is taken apart first: events from their spans, clips inside events, so that a text always has its seconds
- texts grow upwards: clips are captioned by looking, events summed up from captions, videos from events, with the known label
- who writes is an argument: any function; here, templates that speak the truth of a drawn world (`Templates`)
- a summary is cut into judgement, description and analysis by one rule, checked on the released annotation
- a video's rows are written together or not at all; nothing is exported that a person could not have seen in the table
Source: Holmes-VAU (arXiv 2412.06171), section 3.2 and appendix A; no code of this part was released.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vau_lib import prompt_pools, store, synthesis, video
from vau_lib.hivau import Instruction, says_anomaly
from vau_lib.records import RecordError, Span, VideoRecord

BASIS = re.compile(r"(?:^|(?<=[.!?;]) )(?=The basis for judging)")
BASIS_LEAD = re.compile(r"The basis for judging (?:this|the) anomaly is\s+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s")
DECISIONS = ("accept", "edit", "drop")
REVIEWED = [
    "id",
    "level",
    "task",
    "video",
    "start_s",
    "end_s",
    "question",
    "answer",
    "flag",
    "decision",
    "edited_answer",
]


@dataclass(frozen=True)
class Event:
    """Seconds of a video and the clips they are divided into; `label` is "" where nothing anomalous is known."""

    span: Span
    clips: tuple[Span, ...]

    @property
    def label(self) -> str:
        return self.span.label


@dataclass(frozen=True)
class Asked:
    """What a writer is given: the record, the seconds, the texts one level below, and the prompt that says it all."""

    record: VideoRecord
    level: str
    span: Span
    label: str
    texts: tuple[str, ...]
    prompt: str


Writer = Callable[[Asked], str]


def decouple(
    record: VideoRecord, *, clip_s: float = 6.0, boundaries: Sequence[Span] = (), rng: np.random.Generator,
    normal_events: int = 1, normal_share: tuple[float, float] = (0.3, 0.8),
) -> list[Event]:  # fmt: skip
    """Take a video apart: its events, or `normal_events` random stretches of a normal one, each divided into clips.

    Clips are the parts of `boundaries` inside the event (cut to it: 80 released clips are not), else equal parts as
    near to `clip_s` seconds as can be. A random stretch lasts a `normal_share` of the video.
    """
    if clip_s <= 0:
        raise ValueError(f"clip_s must be positive, got {clip_s}")
    length = record.num_frames / record.fps
    if length <= 0:
        raise RecordError(f"{record.id}: no frames to take apart")
    spans = [Span(e.start_s, min(e.end_s, length), e.label or "anomaly") for e in record.events if e.start_s < length]
    if not record.label:
        shares = rng.uniform(*normal_share, normal_events)
        starts = rng.uniform(0, 1 - shares)
        spans = [
            Span(round(a * length, 3), round((a + s) * length, 3)) for a, s in sorted(zip(starts, shares, strict=True))
        ]
    spans = [span for span in spans if span.end_s > span.start_s]
    if not spans:
        raise RecordError(f"{record.id}: anomalous, but nobody says when")
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
    pools: Mapping[str, Sequence[str]] = prompt_pools.POOLS, engine: Mapping[str, str] = prompt_pools.ENGINE,
    origin: str = "", folder: str = "",
) -> list[Instruction]:  # fmt: skip
    """Return a video's instructions: a caption per clip; judgement, description, analysis per event and for the video.

    `caption` looks at seconds (`see` makes frames of them), `summarise` reads texts; `origin` says who wrote. `folder` is put
    before the record's path. A question is drawn from its pool for every text.
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
            captions.append(caption(_asked(record, "clip", clip, event.label, (), engine)))
            add("clip", "caption", captions[-1], clip, number, place)
        summaries.append(summarise(_asked(record, "event", event.span, event.label, tuple(captions), engine)))
        add_parts("event", summaries[-1], event.span, number)
    whole = Span(0.0, round(record.num_frames / record.fps, 3))
    label = ", ".join(dict.fromkeys(event.label for event in events if event.label))
    add_parts("video", summarise(_asked(record, "video", whole, label, tuple(summaries), engine)), whole)
    return rows


def see(asked: Asked, root: str | Path, *, num_frames: int = 8) -> np.ndarray:
    """Return frames uint8 (num_frames, H, W, 3) spread over the seconds asked about, for a captioner that looks."""
    path = Path(root) / asked.record.path
    moments = asked.span.start_s + (np.arange(num_frames) + 0.5) / num_frames * (asked.span.end_s - asked.span.start_s)
    return video.read_frames(path, video.index_at(path, moments))


def run(
    records: Iterable[VideoRecord], out: str | Path, work: Callable[[VideoRecord], list[Instruction]], **facts: object
) -> dict[str, str]:
    """Annotate every record into `out`/<id>.json, whole or not at all; return {id: why not} of those that failed.

    A video done before with the same `facts` (who wrote, seeds) is kept. Failures end their own video only.
    """
    out, failed = Path(out), {}
    known = json.loads(json.dumps(facts))
    for record in records:
        place = out / f"{record.id}.json"
        try:
            if place.exists() and store.read_json(place).get("facts") == known:
                continue
            rows = work(record)
        except (ValueError, OSError) as error:
            failed[record.id] = " ".join(str(error).split())
            continue
        store.write_json(place, {"facts": known, "rows": [_plain(row) for row in rows]})
    return failed


def collect(out: str | Path, records: Iterable[VideoRecord]) -> list[Instruction]:
    """Return the rows `run` wrote for these records, in their order; what is not there yet is left out."""
    rows = []
    for record in records:
        place = Path(out) / f"{record.id}.json"
        if place.exists():
            rows += [_row(found) for found in store.read_json(place)["rows"]]
    return rows


def flags(rows: Sequence[Instruction], records: Iterable[VideoRecord]) -> dict[str, str]:
    """Return {row id: what a person should look at}: judged against the label, judged anomalous and no reason, repeated text."""
    labels = {record.id: record.label for record in records}
    reasons = {(row.video_id, row.event) for row in rows if row.task == "analysis"}
    seen, found = Counter(row.answer for row in rows if row.level == "clip"), {}
    for row in rows:
        if row.task == "judgement":
            claims = says_anomaly(row.answer)
            if row.level == "video" and claims != bool(labels.get(row.video_id, claims)):
                found[row.id] = f"judged {'anomalous' if claims else 'normal'}, labelled otherwise"
            elif claims and (row.video_id, row.event) not in reasons:
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
    return pd.DataFrame(table, columns=REVIEWED)


def write_review(path: str | Path, table: pd.DataFrame) -> None:
    """Write the table as csv for a spreadsheet, whole or not at all."""
    with store.replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def apply_review(
    rows: Sequence[Instruction], csv: str | Path | pd.DataFrame, *, undecided: str = "refuse"
) -> tuple[list[Instruction], Counter]:
    """Return the rows that a reviewed table keeps, edited where it says so, and how many were decided how.

    `undecided` rows are refused, or taken as "accept" or "drop". Only the columns id, decision and edited_answer are
    believed: a spreadsheet may have changed others. ValueError names the first row that does not fit.
    """
    if undecided not in ("refuse", "accept", "drop"):
        raise ValueError(f"undecided must be refuse, accept or drop, got {undecided!r}")
    table = csv if isinstance(csv, pd.DataFrame) else pd.read_csv(csv, dtype=str, keep_default_na=False)
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
            row = Instruction(**_fields(row) | {"answer": text.strip(), "origin": f"{row.origin}, edited".lstrip(", ")})
        if decision != "drop":
            kept.append(row)
    return kept, tally


class Templates:
    """Write the truth of a drawn world: `caption` and `summarise` for `annotate`. Synthetic, exact, and a little dull.

    `root` is the folder `synthesis.make_dataset` wrote; `rng` chooses among a few wordings.
    """

    origin = "synthetic truth by templates"
    DOES = {
        "fall": "a person falls and stays on the ground", "fight": "two people hit each other",
        "intrusion": "a person climbs into a place that is closed off",
        "left_package": "a person leaves a bag behind and walks away",
        "vandalism": "a person beats a machine", "crash": "a vehicle crashes",
    }  # fmt: skip
    REASON = {
        "fall": "somebody who stays on the ground may need help", "fight": "hitting somebody is violence",
        "intrusion": "nobody is allowed in there", "left_package": "a bag without its owner may be a danger",
        "vandalism": "the machine is damaged on purpose", "crash": "vehicles collide and people may be hurt",
    }  # fmt: skip
    NAMES = {"left_package": "left package"}

    def __init__(self, root: str | Path, rng: np.random.Generator):
        self.root, self.rng = Path(root), rng

    def caption(self, asked: Asked) -> str:
        """Say who is seen, where, and the event where the clip shows half a second or a third of it."""
        boxes, kinds, scenario = self._truth(asked.record)
        first = int(asked.span.start_s * asked.record.fps)
        last = max(first + 1, int(asked.span.end_s * asked.record.fps))
        seen = ~np.isnan(boxes[first:last, :, 0]).all(axis=0)
        people = sum(kind == "person" for kind in kinds[seen])
        things = _count(int(seen.sum()) - people, "vehicle or other thing", "vehicles or other things")
        who = f"{_count(people, 'person', 'people')} and {things}"
        where = f"{_article(scenario['scene'].replace('_', ' '))}, {scenario['lighting'].replace('_', ' ')}"
        shown = [e for e in asked.record.events if _shared(e, asked.span) >= min(0.5, (e.end_s - e.start_s) / 3)]
        what = " Then ".join(self.DOES[e.label] for e in shown) or f"people {self._usual(scenario)}"
        opening = self.rng.choice(["The scene is", "The camera shows", "We see"])
        return f"{opening} {where}, with {who} in view; {what}."

    def summarise(self, asked: Asked) -> str:
        """Say judgement, description, and, for an anomaly, its basis."""
        scene = self._truth(asked.record)[2]
        place = _article(scene["scene"].replace("_", " "))
        if not asked.label:
            judged = self.rng.choice(["No anomaly exists in the video.", "There is no anomaly in the video."])
            return f"{judged} In {place}, people {self._usual(scene)} and nothing out of the ordinary happens."
        labels = asked.label.split(", ")
        names = " and ".join(self.NAMES.get(label, label) for label in labels)
        judged = self.rng.choice(
            [f"An anomaly exists, specifically a {names}.", f"The anomaly exists and its name is {names}."]
        )
        does = " and ".join(self.DOES[label] for label in labels)
        when = self._when(asked)
        return (
            f"{judged} In {place}, {does}{when}. "
            f"The basis for judging this anomaly is that {' and '.join(self.REASON[label] for label in labels)}."
        )

    def _when(self, asked: Asked) -> str:
        if asked.level != "video":
            return ""
        spans = ", ".join(f"{e.start_s:.1f} to {e.end_s:.1f} s" for e in asked.record.events)
        return f" (from {spans}), while others walk by"

    def _usual(self, scenario: Mapping) -> str:
        """What the normal event of this video is; its name is known, the word for an anomaly is never used here."""
        return {"run": "walk and one runs", "loiter": "walk and some linger"}.get(scenario["event"], "walk by")

    def _truth(self, record: VideoRecord) -> tuple[np.ndarray, np.ndarray, dict]:
        path = self.root / "truth" / f"{record.id}.npz"
        truth = synthesis.read_truth(path)
        with np.load(path, allow_pickle=False) as file:
            return truth["boxes"], truth["kinds"], json.loads(str(file["scenario"]))


def _asked(record, level, span, label, texts, engine) -> Asked:
    truth = f"there is an anomaly ({label})" if label else "there is no anomaly"
    # not str.format: a caption, or a released prompt, may hold braces of its own
    prompt = engine[level].replace("{texts}", " ".join(texts)).replace("{truth}", truth)
    return Asked(record, level, span, label, texts, prompt)


def _inside(event: Span, boundaries: Sequence[Span]) -> list[Span]:
    cut = [(max(b.start_s, event.start_s), min(b.end_s, event.end_s), b.text) for b in boundaries]
    return [Span(start, end, text=text) for start, end, text in cut if end > start]


def _uniform(event: Span, clip_s: float) -> list[Span]:
    parts = max(1, round((event.end_s - event.start_s) / clip_s))
    edges = np.linspace(event.start_s, event.end_s, parts + 1).round(3).tolist()
    return [Span(start, end) for start, end in zip(edges, edges[1:], strict=False)]


def _shared(one: Span, other: Span) -> float:
    return max(0.0, min(one.end_s, other.end_s) - max(one.start_s, other.start_s))


def _count(number: int, one: str, many: str) -> str:
    return f"{number or 'no'} {one if number == 1 else many}"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def _fields(row: Instruction) -> dict:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _plain(row: Instruction) -> dict:
    return asdict(row)


def _row(found: Mapping) -> Instruction:
    span = found["span"]
    return Instruction(**dict(found) | {"span": None if span is None else Span(**span)})

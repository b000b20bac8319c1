"""Shuffle a video's events and ask for their order: who can put them back has understood what leads to what.

- cuts are at event boundaries and on even frames, for two frames share a token in a video model and motion inside the pair
  would give the order away; pieces keep their inner order, and no time is told with them
- an order is worth 1 when exact, a part of the pairs in the right order otherwise, and nothing when it is no order at all
- a judgement earns more where the film in order is judged better than the shuffled one, strictly
- judgements stay among the questions, so that what was learned before is not forgotten
Sources: Memories-S0 names "event-based temporal shuffling" and reinforcement, without formulas. Related: Video-R1 (T-GRPO), Visual
Jigsaw (arXiv 2509.25190), Time-R1 (temporal IoU); rewards restated, ours where said.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from vau_lib.data import records, video
from vau_lib.data.answer_parsing import parse_order, parse_span, parse_verdict
from vau_lib.vlm import grpo
from vau_lib.vlm.chat import encode
from vau_lib.vlm.finetuning import LoraPlan, fit
from vau_lib.vlm.grpo import GRPOPlan
from vau_lib.vlm.instruction_data import InstructionSamples
from vau_lib.vlm.models import VLM

PARTIAL = 0.3  # what all pairs in the right order but one are worth at most; below the exact order's 1

FORM = 0.1  # for an answer that is an order at all

CONTRAST = 0.3  # for a right judgement of a film that is judged better in order

FRAMES = 6  # of one question

QUESTION = "The film was cut into {count} pieces of {each} frames and shuffled. In which order did they happen?"

SHUFFLED = "Was this film shuffled?"

SHUFFLED_ANSWERS = {True: "Yes, it was shuffled.", False: "No, it is in order."}

NEVER = "No anomaly exists in the video."

WHEN = "From when to when does an anomaly happen?"

Event = TypeVar("Event")


def shuffle(events: Sequence[Event], rng: np.random.Generator) -> tuple[list[Event], list[int]]:
    """Return the events in an order drawn at random, and the order: `order[n]` is the place, from 1, of what happened as n-th.

    Every order is as likely, the true one too: were it left out, two pieces would always be the wrong way round.
    """
    places = rng.permutation(len(events))
    shuffled = [events[int(place)] for place in places]
    return shuffled, [int(np.flatnonzero(places == n)[0]) + 1 for n in range(len(events))]


def unshuffle(shuffled: Sequence[Event], order: Sequence[int]) -> list[Event]:
    """Return the events as they happened; ValueError where `order` is no permutation of 1..n."""
    if sorted(order) != list(range(1, len(shuffled) + 1)):
        raise ValueError(f"an order of {len(shuffled)} pieces holds 1 to {len(shuffled)} once each, got {list(order)}")
    return [shuffled[place - 1] for place in order]


def order_reward(answer: str, order: Sequence[int]) -> float:
    """Return 1 for the exact order, else PARTIAL times what Kendall's tau is above 0, and 0 for an answer that is no order."""
    try:
        said = parse_order(answer, len(order))
    except ValueError:
        return 0.0
    if said == list(order):
        return 1.0
    places = [said.index(one) for one in order]
    pairs = list(combinations(range(len(order)), 2))
    tau = sum(1 if places[a] < places[b] else -1 for a, b in pairs) / len(pairs)
    return PARTIAL * max(0.0, tau)


def format_reward(answer: str, count: int) -> float:
    """Return FORM for an answer that is an order of `count` pieces, and nothing else."""
    try:
        parse_order(answer, count)
    except ValueError:
        return 0.0
    return FORM


def temporal_reward(said: tuple[float, float] | None, truth: tuple[float, float] | None) -> float:
    """Return the temporal IoU of two spans in seconds; 1 where both say that nothing happens, 0 where one does."""
    if said is None or truth is None:
        return float(said is None and truth is None)
    for name, (start, end) in (("said", said), ("true", truth)):
        if not end > start:
            raise ValueError(f"the {name} span must end after it starts, got {start} to {end}")
    shared = max(0.0, min(said[1], truth[1]) - max(said[0], truth[0]))
    return shared / (max(said[1], truth[1]) - min(said[0], truth[0]))


def span_reward(answer: str, truth: tuple[float, float] | None) -> float:
    """Return `temporal_reward` of what an answer names, and 0 where it names nothing."""
    try:
        return temporal_reward(parse_span(answer), truth)
    except ValueError:
        return 0.0


def judgement_reward(answer: str, truth: str) -> float:
    """Return 1 for a judgement that agrees with the true one, 0 otherwise and where it says neither."""
    return float(parse_verdict(answer) == parse_verdict(truth))


def contrast(ordered: Sequence[float], shuffled: Sequence[float]) -> list[float]:
    """Return the ordered answers' rewards, CONTRAST more for each right one where the group in order beats the shuffled, strictly.

    Rewards are 1 for right answers; both groups are answers to the same question.
    """
    better = np.mean([value >= 1 for value in ordered]) > np.mean([value >= 1 for value in shuffled])
    return [value + CONTRAST * (better and value >= 1) for value in ordered]


# Pieces of a video


def boundaries(record: records.VideoRecord, *, count: int, least: int = 4) -> list[int]:
    """Return the frames a video is cut at, count - 1 of them, even, at event boundaries first, pieces of `least` frames or more.

    Where events give fewer cuts the longest piece is halved. ValueError where the video is too short.
    """
    total = record.num_frames
    if count < 2 or total < count * least:
        raise ValueError(f"{record.id}: {total} frames cannot be cut into {count} pieces of {least} or more")
    wanted = [round(t * record.fps) for span in record.events for t in (span.start_s, span.end_s)]
    cuts: list[int] = []
    for place in (2 * round(frame / 2) for frame in wanted):
        edges = sorted([0, *cuts, total])
        if len(cuts) < count - 1 and place not in edges and all(abs(place - edge) >= least for edge in edges):
            cuts.append(place)
    while len(cuts) < count - 1:
        edges = sorted([0, *cuts, total])
        start, end = max(zip(edges, edges[1:], strict=False), key=lambda pair: pair[1] - pair[0])
        middle = 2 * round((start + end) / 4)
        if min(middle - start, end - middle) < min(least, 2):
            raise ValueError(f"{record.id}: {total} frames cannot be cut into {count} pieces on even frames")
        cuts.append(middle)
    return sorted(cuts)


def pieces(record: records.VideoRecord, *, count: int, frames: int = FRAMES, least: int = 2) -> list[np.ndarray]:
    """Return the places of frames / count frames of each piece, in order, from the middles of equal parts of it."""
    edges = [0, *boundaries(record, count=count, least=least), record.num_frames]
    each = frames // count
    return [start + video.sample_index(end - start, each) for start, end in zip(edges, edges[1:], strict=False)]


def order_rows(
    found: Sequence[records.VideoRecord], *, counts: Sequence[int] = (2, 3), frames: int = FRAMES, seed: int = 0
) -> list[dict]:
    """Return one order question per video and number of pieces: instruction rows with the frames to show and the order.

    Only videos with an event: without one nothing says what was first.
    """
    rows = []
    for number, record in enumerate(record for record in found if record.events):
        for count in counts:
            shown, order = shuffle(
                pieces(record, count=count, frames=frames), np.random.default_rng([seed, number, count])
            )
            rows.append({
                "id": f"{record.id}_{count}", "level": "video", "task": "order", "video": record.path, "span_s": None,
                "pieces": count,
                "question": QUESTION.format(count=count, each=frames // count), "answer": " ".join(map(str, order)),
                "order": order, "frames": np.concatenate(shown), "split": record.split, "event": record.events[0].label,
            })  # fmt: skip
    return rows


def shuffled_rows(
    found: Sequence[records.VideoRecord], *, count: int = 2, frames: int = FRAMES, seed: int = 0
) -> list[dict]:
    """Return "was this shuffled?" twice per video with an event: its pieces in order, and in another order."""
    rows = []
    for number, record in enumerate(record for record in found if record.events):
        parts, rng = pieces(record, count=count, frames=frames), np.random.default_rng([seed, number, 5])
        for was in (False, True):
            rows.append({
                "id": f"{record.id}_{'shuffled' if was else 'ordered'}", "level": "video", "task": "shuffled", "video": record.path,
                "span_s": None, "pieces": count, "question": SHUFFLED, "answer": SHUFFLED_ANSWERS[was], "split": record.split,
                "frames": np.concatenate(wrong_order(parts, rng) if was else parts), "event": record.events[0].label,
            })  # fmt: skip
    return rows


def when_rows(found: Sequence[records.VideoRecord]) -> list[dict]:
    """Return "when does it happen?" once per video; the answer names the seconds of its first event, or denies.

    Anomalous videos whose event spans nobody knows are left out.
    """
    rows = []
    for record in (record for record in found if record.events or not record.label):
        span = (record.events[0].start_s, record.events[0].end_s) if record.events else None
        rows.append({
            "id": f"{record.id}_when", "level": "video", "task": "when", "video": record.path, "span_s": None, "truth_s": span,
            "question": WHEN, "answer": f"From {span[0]:.1f}s to {span[1]:.1f}s." if span else NEVER, "split": record.split,
        })  # fmt: skip
    return rows


def wrong_order(parts: Sequence[Event], rng: np.random.Generator) -> list[Event]:
    """Return two parts or more in an order drawn among all but the true one."""
    if len(parts) < 2:
        raise ValueError("one piece has one order only")
    while (places := rng.permutation(len(parts))).tolist() == list(range(len(parts))):
        pass
    return [parts[int(place)] for place in places]


class OrderPrompts:
    """Questions as turns, without clocks unless they ask when; pictures of a video are decoded once and kept."""

    def __init__(self, vlm: VLM, root: str | Path, frames: int = FRAMES):
        self.vlm, self.root, self.frames, self._kept = vlm, Path(root), frames, {}

    def __call__(self, row: Mapping, answer: str | None = None) -> dict:
        """Return a row as `encode` does, its frames in the order they are to be shown; `answer` adds labels."""
        if row["video"] not in self._kept:
            path = self.root / row["video"]
            self._kept[row["video"]] = video.read_frames(path, range(video.probe(path).num_frames))
        film = self._kept[row["video"]]
        index = row["frames"] if "frames" in row else video.sample_index(len(film), self.frames)
        times = video.frame_times(self.root / row["video"])[index].tolist() if row["task"] == "when" else None
        return encode(self.vlm, film[index], row["question"], times_s=times, answer=answer)


class OrderSamples(InstructionSamples):
    """Rows of both tasks for supervised tuning, shown as they will be asked in reinforcement."""

    def __init__(self, rows: Sequence[Mapping], root: str | Path, vlm: VLM, *, frames: int = FRAMES):
        super().__init__(rows, root, vlm, random=False, num_frames=frames)
        self.shown = OrderPrompts(vlm, root, frames)

    def turn(self, place: int, answer: str | None) -> dict:
        return self.shown(self.rows[place], answer)


def supervised_start(
    vlm: VLM, rows: Sequence[Mapping], root: str | Path, *, plan: LoraPlan, progress: bool = False
) -> pd.DataFrame:
    """Tune on order and judgement rows by supervision, in place, and stop early: reinforcement needs a start above chance."""
    return fit(vlm, OrderSamples(rows, root, vlm), plan=plan, progress=progress)


def reward_parts(row: Mapping, answer: str) -> dict[str, float]:
    """Return what an answer to a row is worth, in parts: order and form, or judgement, or shuffled, or when."""
    if row["task"] == "order":
        return {"order": order_reward(answer, row["order"]), "form": format_reward(answer, len(row["order"]))}
    if row["task"] == "shuffled":
        said, true = (re.findall(r"\w+", text.lower())[:1] for text in (answer, row["answer"]))
        return {"shuffled": float(said == true)}
    if row["task"] == "when":
        return {"when": span_reward(answer, row["truth_s"])}
    return {"judgement": judgement_reward(answer, row["answer"])}


def reward(row: Mapping, answer: str) -> float:
    """Return the sum of `paid`."""
    return sum(reward_parts(row, answer).values())


def train(
    vlm: VLM, rows: Sequence[Mapping], root: str | Path, *, plan: GRPOPlan | None = None, judgements: float = 0.5,
    dealt: bool = False, contrasted: bool = False, folder: Path | None = None, progress: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Reinforce on all rows, and on judgement rows in a share `judgements` of the questions; return the curves.

    `dealt` gives every question the truth of another of its task and number of pieces: what rises then is no understanding.
    `contrasted` asks judgements of a shuffled film too, where a row has `cut` (the frames of its pieces), and pays `contrast`.
    ValueError for rows without an order question.
    """
    plan = plan or GRPOPlan()
    if not any(row["task"] == "order" for row in rows):
        raise ValueError("no order question among the rows")
    sides = [[row for row in rows if (row["task"] == "judgement") == judging] for judging in (False, True)]
    truth, shown = _truths(rows, plan.seed if dealt else None), OrderPrompts(vlm, root)

    def questions(step: int, rng: np.random.Generator) -> list:
        asked = []
        for _ in range(plan.questions):
            side = sides[int(bool(sides[1]) and rng.random() < judgements)]
            row = side[int(rng.integers(len(side)))]
            rival = ()
            if contrasted and row["task"] == "judgement" and row.get("cut") is not None:
                rival = (shown({**row, "frames": np.concatenate(wrong_order(row["cut"], rng))}),)
            asked.append((shown(row), truth[id(row)], *rival))
        return asked

    return grpo.train(
        vlm, questions, lambda text, row: reward_parts(row, text), plan=plan, bonus=contrast if contrasted else None,
        folder=folder, progress=progress,
    )  # fmt: skip


def _truths(rows: Sequence[Mapping], seed: int | None) -> dict[int, Mapping]:
    """Return {id(row): the row that holds its truth}: itself, or with a seed another of its task and number of pieces."""
    truth = {id(row): row for row in rows}
    if seed is None:
        return truth
    rng = np.random.default_rng(seed)
    for key in dict.fromkeys((row["task"], row.get("pieces")) for row in rows):
        same = [row for row in rows if (row["task"], row.get("pieces")) == key]
        truth |= {id(row): same[int(other)] for row, other in zip(same, rng.permutation(len(same)), strict=True)}
    return truth


def with_cuts(
    rows: Sequence[Mapping], found: Sequence[records.VideoRecord], *, count: int = 2, frames: int = FRAMES
) -> list[dict]:
    """Return judgement rows with `cut`, the frames of the pieces, where the video holds an event: its order may matter there."""
    known = {record.path: record for record in found if record.events}
    return [
        {**row, "cut": pieces(known[row["video"]], count=count, frames=frames)} if row["video"] in known else dict(row)
        for row in rows
    ]

"""Putting a video's shuffled events in order, by supervised tuning and then GRPO: questions, rewards, training.

- cuts are at event boundaries and on even frames, because two frames share a token in a video model and motion inside the
  pair would give the order away; pieces keep their inner order, and the prompt gives no times
- the exact order earns 1, an order with some pairs right earns a part, a text that is no order earns nothing
- a judgement earns more where the video in order is judged better than the shuffled one, strictly
- judgement questions stay in the training set, so that what was learned before is not forgotten
Sources: Memories-S0 names "event-based temporal shuffling" and reinforcement, without formulas. Related: Video-R1 (T-GRPO), Visual
Jigsaw (arXiv 2509.25190), Time-R1 (temporal IoU). The rewards are ours.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from vau_lib.data import records, video
from vau_lib.data.answer_parsing import parse_order, parse_span, parse_verdict
from vau_lib.vlm import grpo
from vau_lib.vlm.instruction_data import InstructionSamples
from vau_lib.vlm.models import VLM

PARTIAL = 0.3  # reward of an order per Kendall's tau; below the exact order's 1
FORM = 0.1  # reward of an answer that is an order at all
CONTRAST = 0.3  # bonus of a right judgement where the video in order is judged better
FRAMES = 6  # of one question
QUESTION = "The film was cut into {count} pieces of {each} frames and shuffled. In which order did they happen?"
SHUFFLED = "Was this film shuffled?"
SHUFFLED_ANSWERS = {True: "Yes, it was shuffled.", False: "No, it is in order."}
NEVER = "No anomaly exists in the video."
WHEN = "From when to when does an anomaly happen?"
Event = TypeVar("Event")


def shuffle(events: Sequence[Event], rng: np.random.Generator) -> tuple[list[Event], list[int]]:
    """Return the events in a random order, and the order: `order[n]` is the place, from 1, of the n-th event.

    Every order is equally likely, the true one too: without it, two pieces would always be the wrong way round.
    """
    places = rng.permutation(len(events))
    shuffled = [events[int(place)] for place in places]
    return shuffled, [int(np.flatnonzero(places == n)[0]) + 1 for n in range(len(events))]


def unshuffle(shuffled: Sequence[Event], order: Sequence[int]) -> list[Event]:
    """Return the events in time order; ValueError where `order` is no permutation of 1..n."""
    if sorted(order) != list(range(1, len(shuffled) + 1)):
        raise ValueError(f"an order of {len(shuffled)} pieces holds 1 to {len(shuffled)} once each, got {list(order)}")
    return [shuffled[place - 1] for place in order]


def order_reward(answer: str, order: Sequence[int]) -> float:
    """Return 1 for the exact order, else PARTIAL times Kendall's tau where it is above 0, and 0 for no order."""
    try:
        predicted = parse_order(answer, len(order))
    except ValueError:
        return 0.0
    if predicted == list(order):
        return 1.0
    places = [predicted.index(piece) for piece in order]
    return PARTIAL * max(0.0, float(kendalltau(places, range(len(order))).statistic))


def format_reward(answer: str, count: int) -> float:
    """Return FORM for an answer that is an order of `count` pieces, and nothing else."""
    try:
        parse_order(answer, count)
    except ValueError:
        return 0.0
    return FORM


def temporal_reward(predicted: tuple[float, float] | None, truth: tuple[float, float] | None) -> float:
    """Return the temporal IoU of two spans in seconds; 1 where both are None (no anomaly), 0 where one is."""
    if predicted is None or truth is None:
        return float(predicted is None and truth is None)
    for name, (start, end) in (("predicted", predicted), ("true", truth)):
        if not end > start:
            raise ValueError(f"the {name} span must end after it starts, got {start} to {end}")
    overlap = max(0.0, min(predicted[1], truth[1]) - max(predicted[0], truth[0]))
    return overlap / (max(predicted[1], truth[1]) - min(predicted[0], truth[0]))


def span_reward(answer: str, truth: tuple[float, float] | None) -> float:
    """Return `temporal_reward` of the span an answer names, and 0 where it names none and denies nothing."""
    try:
        return temporal_reward(parse_span(answer), truth)
    except ValueError:
        return 0.0


def judgement_reward(answer: str, truth: str) -> float:
    """Return 1 for a judgement that agrees with the true one, 0 otherwise and for no judgement."""
    return float(parse_verdict(answer) == parse_verdict(truth))


def contrast(ordered: Sequence[float], shuffled: Sequence[float]) -> list[float]:
    """Return the ordered group's rewards, CONTRAST more for each right answer if it beats the shuffled group, strictly.

    Right answers have a reward of 1; both groups answer the same question.
    """
    better = np.mean([value >= 1 for value in ordered]) > np.mean([value >= 1 for value in shuffled])
    return [value + CONTRAST * (better and value >= 1) for value in ordered]


# Pieces of a video


def boundaries(record: records.VideoRecord, *, count: int, min_frames: int = 4) -> list[int]:
    """Return the count - 1 even frames a video is cut at: event boundaries first, then the middle of the longest piece.

    Pieces have `min_frames` frames or more. ValueError where the video is too short.
    """
    total = record.num_frames
    if count < 2 or total < count * min_frames:
        raise ValueError(f"{record.id}: {total} frames cannot be cut into {count} pieces of {min_frames} or more")
    wanted = [round(t * record.fps) for span in record.events for t in (span.start_s, span.end_s)]
    cuts: list[int] = []
    for place in (2 * round(frame / 2) for frame in wanted):
        edges = sorted([0, *cuts, total])
        if len(cuts) < count - 1 and place not in edges and all(abs(place - edge) >= min_frames for edge in edges):
            cuts.append(place)
    while len(cuts) < count - 1:
        edges = sorted([0, *cuts, total])
        start, end = max(zip(edges, edges[1:], strict=False), key=lambda pair: pair[1] - pair[0])
        middle = 2 * round((start + end) / 4)
        if min(middle - start, end - middle) < min(min_frames, 2):
            raise ValueError(f"{record.id}: {total} frames cannot be cut into {count} pieces on even frames")
        cuts.append(middle)
    return sorted(cuts)


def pieces(record: records.VideoRecord, *, count: int, frames: int = FRAMES, min_frames: int = 2) -> list[np.ndarray]:
    """Return frames / count frames of each piece, in time order, from the middles of equal parts of it."""
    edges = [0, *boundaries(record, count=count, min_frames=min_frames), record.num_frames]
    each = frames // count
    return [start + video.sample_index(end - start, each) for start, end in zip(edges, edges[1:], strict=False)]


def _row(record: records.VideoRecord, suffix: object, task: str, question: str, answer: str, **more) -> dict:
    row = {"id": f"{record.id}_{suffix}", "level": "video", "task": task, "video": record.path, "span_s": None}
    return row | {"question": question, "answer": answer, "split": record.split, **more}


def order_rows(
    videos: Sequence[records.VideoRecord], *, counts: Sequence[int] = (2, 3), frames: int = FRAMES, seed: int = 0
) -> list[dict]:
    """Return one order question per video and number of pieces: instruction rows with the frames to show and the order.

    Only videos with an event: without one nothing says what was first.
    """
    rows = []
    for number, record in enumerate(record for record in videos if record.events):
        for count in counts:
            rng = np.random.default_rng([seed, number, count])
            parts, order = shuffle(pieces(record, count=count, frames=frames), rng)
            question, answer = QUESTION.format(count=count, each=frames // count), " ".join(map(str, order))
            facts = dict(pieces=count, order=order, frames=np.concatenate(parts), event=record.events[0].label)
            rows.append(_row(record, count, "order", question, answer, **facts))
    return rows


def shuffled_rows(videos: Sequence[records.VideoRecord], *, count: int = 2, frames: int = FRAMES, seed: int = 0) -> list[dict]:
    """Return "was this shuffled?" twice per video with an event: its pieces in order, and in another order."""
    rows = []
    for number, record in enumerate(record for record in videos if record.events):
        parts, rng = pieces(record, count=count, frames=frames), np.random.default_rng([seed, number, 5])
        for name, order in (("ordered", parts), ("shuffled", wrong_order(parts, rng))):
            facts = dict(pieces=count, frames=np.concatenate(order), event=record.events[0].label)
            answer = SHUFFLED_ANSWERS[name == "shuffled"]
            rows.append(_row(record, name, "shuffled", SHUFFLED, answer, **facts))
    return rows


def when_rows(videos: Sequence[records.VideoRecord]) -> list[dict]:
    """Return "when does it happen?" once per video; the answer names the seconds of its first event, or denies.

    Anomalous videos with unknown event spans are left out.
    """
    rows = []
    for record in (record for record in videos if record.events or not record.label):
        span = (record.events[0].start_s, record.events[0].end_s) if record.events else None
        answer = f"From {span[0]:.1f}s to {span[1]:.1f}s." if span else NEVER
        rows.append(_row(record, "when", "when", WHEN, answer, truth_s=span))
    return rows


def wrong_order(parts: Sequence[Event], rng: np.random.Generator) -> list[Event]:
    """Return two parts or more in a random order other than the given one."""
    if len(parts) < 2:
        raise ValueError("one piece has one order only")
    while (places := rng.permutation(len(parts))).tolist() == list(range(len(parts))):
        pass
    return [parts[int(place)] for place in places]


def order_samples(
    vlm: VLM, rows: Sequence[Mapping], root: str | Path, *, frames: int = FRAMES, answers: bool = True, **shown
) -> InstructionSamples:
    """Return rows as samples: times in the prompt only of questions that ask when; `answers` False leaves them out.

    `shown` may be `as_video`, `fps` and `max_pixels` of `InstructionSamples`.
    """
    rows = [{**row, "show_times": row["task"] == "when"} for row in rows]
    return InstructionSamples(rows, root, vlm, random=False, num_frames=frames, answers=answers, **shown)


def reward_parts(row: Mapping, answer: str) -> dict[str, float]:
    """Return the reward of an answer to a row, in parts: order and form, or judgement, or shuffled, or when."""
    if row["task"] == "order":
        return {"order": order_reward(answer, row["order"]), "form": format_reward(answer, len(row["order"]))}
    if row["task"] == "shuffled":
        first, truth = (re.findall(r"\w+", text.lower())[:1] for text in (answer, row["answer"]))
        return {"shuffled": float(first == truth)}
    if row["task"] == "when":
        return {"when": span_reward(answer, row["truth_s"])}
    return {"judgement": judgement_reward(answer, row["answer"])}


def train(
    vlm: VLM,
    rows: Sequence[Mapping],
    root: str | Path,
    *,
    plan: grpo.GRPOPlan | None = None,
    judgement_fraction: float = 0.5,
    shuffled_labels: bool = False,
    contrast_bonus: bool = False,
    frames: int = FRAMES,
    as_video: bool = False,
    fps: float | None = None,
    max_pixels: int | None = None,
    folder: Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Reinforce on rows by GRPO; return the curves of `grpo.train`.

    Args:
        vlm: the model, trained in place.
        rows: questions, at least one of them an order question or a judgement.
        root: folder of the videos.
        plan: how to optimise.
        judgement_fraction: fraction of the questions that are judgements, where there are any.
        shuffled_labels: give every question the truth of another of its task and number of pieces, as a control.
        contrast_bonus: ask judgements of a shuffled video too, where a row has `pieces_index`, and add `contrast`.
        frames: shown per question that names none itself.
        as_video: show them as one video (Qwen).
        fps: of such a video, up to `frames`, for questions that name no frames themselves.
        max_pixels: largest area of a frame (Qwen).
        folder: where the checkpoint is kept.
        progress: show a bar.

    Raises ValueError for rows without either.
    """
    plan = plan or grpo.GRPOPlan()
    if not any(row["task"] in ("order", "judgement") for row in rows):
        raise ValueError("no order question among the rows")  # and no judgement
    samples = order_samples(vlm, rows, root, frames=frames, answers=False, as_video=as_video, fps=fps, max_pixels=max_pixels)
    labels = _shuffled_labels(rows, plan.seed) if shuffled_labels else rows
    sides = [[n for n, row in enumerate(rows) if (row["task"] == "judgement") == side] for side in (False, True)]

    def prompts(step: int, rng: np.random.Generator) -> list[tuple]:
        questions = []
        for _ in range(plan.questions):
            side = sides[int(bool(sides[1]) and (not sides[0] or rng.random() < judgement_fraction))]
            place = side[int(rng.integers(len(side)))]
            question, row = (samples[place], labels[place]), samples.rows[place]
            if contrast_bonus and row["task"] == "judgement" and row.get("pieces_index") is not None:
                spoilt = np.concatenate(wrong_order(row["pieces_index"], rng))
                question += (samples.with_rows([{**row, "frames": spoilt}])[0],)
            questions.append(question)
        return questions

    return grpo.train(
        vlm,
        prompts,
        lambda text, row: reward_parts(row, text),
        plan=plan,
        bonus=contrast if contrast_bonus else None,
        folder=folder,
        progress=progress,
    )


def _shuffled_labels(rows: Sequence[Mapping], seed: int) -> list[Mapping]:
    """Return for each row another of its task and number of pieces, whose truth it gets."""
    rng, labels = np.random.default_rng(seed), list(rows)
    kinds = [(row["task"], row.get("pieces")) for row in rows]
    for kind in dict.fromkeys(kinds):
        same = [n for n, other in enumerate(kinds) if other == kind]
        for place, source in zip(same, rng.permutation(len(same)), strict=True):
            labels[place] = rows[same[int(source)]]
    return labels


def with_pieces(
    rows: Sequence[Mapping], videos: Sequence[records.VideoRecord], *, count: int = 2, frames: int = FRAMES
) -> list[dict]:
    """Return judgement rows with `pieces_index`, the frames of each piece, where the video holds an event."""
    by_path = {record.path: record for record in videos if record.events}
    return [
        {**row, "pieces_index": pieces(by_path[row["video"]], count=count, frames=frames)} if row["video"] in by_path else dict(row)
        for row in rows
    ]

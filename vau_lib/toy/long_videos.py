"""Long videos of the toy data set: short ones joined, one of which may hold an event, and ways to choose frames of them.

- every long video has a counterpart of the same parts, with that place's normal video where the other has the event: nothing
  but the event tells them apart, and a constant answer is right half of the time
- a video is asked about from frames chosen in several ways; intervals are over worlds, whose two videos stay together
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from vau_lib.data import answer_parsing, records, video
from vau_lib.data.records import VideoRecord
from vau_lib.detectors import frame_sampling, trained_detector
from vau_lib.evaluation import metrics
from vau_lib.features import frame_features
from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm import inference, instruction_data
from vau_lib.vlm.models import VLM
from vau_lib.workspace import artifacts

PARTS = 15  # short videos in a long one
STRIDE = 2  # from one sampled frame to the next; close-ups have two a second


def join(
    root: str | Path, found: Sequence[VideoRecord], *, parts: int = PARTS, num_worlds: int | None = None, seed: int = 2
) -> list[dict]:
    """Write root/long/*.mp4, two for each world that has both classes; return a judgement row each.

    A row has besides what an instruction row has: world, label, event (its frames, int) and events (spans in its seconds). The
    part that may be anomalous lies in the middle half; the others are normal videos of other worlds.

    Args:
        root: folder of the short videos and of the long ones.
        found: their records.
        parts: short videos in a long one.
        num_worlds: how many worlds get a pair; None is all.
        seed: of the parts, their order and the questions.
    """
    root, rng, rows = Path(root), np.random.default_rng(seed), []
    by_world: dict[str, list[VideoRecord]] = {}
    for record in found:
        by_world.setdefault(record.group, []).append(record)
    paired = [world for world in sorted(by_world) if {record.label for record in by_world[world]} == {0, 1}][:num_worlds]
    for world in paired:
        normal = [record for record in found if not record.label and record.group != world]
        if len(normal) < parts - 1:
            raise ValueError(f"{len(normal)} normal videos of other worlds are too few for {parts} parts")
        others = [normal[n] for n in rng.permutation(len(normal))[: parts - 1]]
        place = int(rng.integers(parts // 4, parts - parts // 4))
        question = str(rng.choice(toy_dataset.QUESTIONS["judgement"]))
        pair = [next(record for record in by_world[world] if record.label == label) for label in (1, 0)]
        for middle in pair:
            path = Path("long") / f"{middle.id}_{parts}.mp4"
            chosen = [*others[:place], middle, *others[place:]]
            if not (root / path).exists():
                frames = [video.read_frames(root / part.path, range(part.num_frames)) for part in chosen]
                video.write_video(root / path, np.concatenate(frames), fps=middle.fps, crf=12)
            before = sum(part.num_frames for part in chosen[:place])
            event, begin_s = np.flatnonzero(records.frame_labels(middle)) + before, before / middle.fps
            rows.append(dict(
                id=middle.id, level="video", task="judgement", video=str(path), span_s=None, question=question,
                answer=toy_dataset.answer("judgement", toy_dataset.event_of(middle)), world=world, label=middle.label,
                event=event, events=[replace(e, start_s=e.start_s + begin_s, end_s=e.end_s + begin_s) for e in middle.events],
            ))  # fmt: skip
    return rows


def evenly(root: str | Path, row: Mapping, num_frames: int) -> np.ndarray:
    """Return the middles of equal parts of a row's video, int (N,)."""
    return video.sample_index(video.probe(Path(root) / row["video"]).num_frames, num_frames)


def by_scores(
    root: str | Path, row: Mapping, num_frames: int, *, tower, score: Callable[[np.ndarray], np.ndarray], tau: float
) -> np.ndarray:
    """Return the frames that ATS chooses by a scorer of the tower's features of every second frame, int (N,)."""
    sampled = frame_features.FrameFeatures(Path(root) / row["video"], tower, stride=STRIDE)
    return frame_sampling.choose_frames(score(sampled.features()), sampled.num_frames, num_frames, stride=STRIDE, tau=tau)


def true_span(root: str | Path, row: Mapping, num_frames: int) -> np.ndarray:
    """Return frames of the event, evenly; of a video without one, as `evenly`: what a perfect choice would show."""
    event = row["event"]
    return event[video.sample_index(len(event), num_frames)] if len(event) else evenly(root, row, num_frames)


def with_frames(rows: Sequence[Mapping], choose: Callable[[Mapping], np.ndarray]) -> list[dict]:
    """Return rows that show the frames of `choose(row)`."""
    return [{**row, "frames": choose(row)} for row in rows]


def judge(vlm: VLM, root: str | Path, rows: Sequence[Mapping], ways: Mapping[str, Callable]) -> pd.DataFrame:
    """Ask about rows of `join` from the frames of each way; return a line per way and video.

    Columns: frames (the way), id, world, label, answer, right, named (the event, rightly), inside (fraction of the frames
    shown that lie in the event, NaN without one).

    Args:
        vlm: the model.
        root: folder of the videos.
        rows: of `join`.
        ways: {name: `way(row)` returns the frames to show}.
    """
    lines = []
    for name, way in ways.items():
        shown = with_frames(rows, way)
        texts = inference.answers(vlm, instruction_data.InstructionSamples(shown, root, vlm, answers=False))
        for row, text in zip(shown, texts, strict=True):
            inside = np.isin(row["frames"], row["event"]).mean() if row["label"] else np.nan
            right = answer_parsing.parse_verdict(text) == row["label"]
            lines.append(dict(frames=name, id=row["id"], world=row["world"], label=row["label"], answer=text, right=right,
                              named=text.strip() == row["answer"], inside=inside))  # fmt: skip
    return pd.DataFrame(lines)


def summary(judged: pd.DataFrame) -> pd.DataFrame:
    """Return a line per way of a table of `judge`: judgement with low and high, found, no_false_alarm, inside, gain.

    The gain, with its interval, is over the first way's answers to the same videos; intervals are 95 % over worlds.
    """
    lines, first = [], judged[judged["frames"] == judged["frames"].iloc[0]]["right"].to_numpy(float)
    for name, part in judged.groupby("frames", sort=False):
        right, events = part["right"].to_numpy(float), part["label"] == 1
        judgement, low, high = world_interval(right, part["world"])
        gain, gain_low, gain_high = world_interval(right - first, part["world"])
        lines.append(dict(
            frames=name, judgement=judgement, low=low, high=high, found=part["right"][events].mean(),
            no_false_alarm=part["right"][~events].mean(), named=part["named"].mean(), inside=part["inside"].mean(), gain=gain,
            gain_low=gain_low, gain_high=gain_high, videos=len(part),
        ))  # fmt: skip
    return pd.DataFrame(lines)


def world_interval(values: np.ndarray, worlds: Sequence[str]) -> tuple[float, float, float]:
    """Return a mean and its 95 % interval over resampled worlds, whose videos stay together."""
    return metrics.grouped_mean(values, worlds, rng=np.random.default_rng(0))[:3]


@artifacts.reader()
def load_scorer(folder: str | Path) -> tuple[trained_detector.TrainedDetector, float]:
    """Return the kept anomaly scorer and its tau, chosen on the videos that chose its epoch."""
    return trained_detector.load(folder), float(artifacts.read_json(Path(folder) / "made_by.json", dict)["tau"])

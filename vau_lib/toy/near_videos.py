"""Videos of near places as tokens: encoded once, joined to long ones, asked about from moments that were chosen.

A moment is a pair of frames (`near_world`), and Qwen2.5-VL's tower attends within a pair: the tokens of joined videos are the
joined tokens, so that a long video is neither written nor encoded again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vau_lib.data import answer_parsing, records, video
from vau_lib.data.records import Span, VideoRecord
from vau_lib.detectors import frame_sampling
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import near_world
from vau_lib.vlm import chat, inference
from vau_lib.vlm.models import VLM

STRIDE = 5  # frames from one moment to the next: two moments a second
GRID = 1000  # points of the plotted curve
PARTS = 8  # short videos in a long one, as in notebook 07
QUESTION = toy_dataset.QUESTIONS["judgement"][0]
Choose = Callable[["Moments"], np.ndarray]


@dataclass(frozen=True)
class Moments:
    """Moments of one video, or of several one after another.

    `tokens` (T, N, C) are their visual tokens, `times_s` (T,) when they begin, `inside` (T,) whether in an event of `events`;
    `source` (T, 2) is which of `parts` and which of its frames.
    """

    parts: tuple[VideoRecord, ...]
    tokens: Tensor
    times_s: np.ndarray
    inside: np.ndarray
    source: np.ndarray
    events: tuple[Span, ...]
    end_s: float
    shape: tuple[int, int]  # pixels of a picture

    @property
    def label(self) -> int:
        """1 where one of the parts is anomalous."""
        return max(part.label for part in self.parts)


@torch.inference_mode()
def encode(vlm: VLM, root: str | Path, record: VideoRecord) -> Moments:
    """Return the moments of a video, one in STRIDE frames; its tower reads every pair once."""
    index = np.arange(0, record.num_frames, STRIDE)
    frames = video.read_frames(records.locate(record, Path(root)), near_world.pairs(index, record.num_frames))
    sample = chat.encode(vlm, frames, QUESTION, times_s=near_world.clock(len(frames)), as_video=True, max_frames=len(frames))
    tokens = chat.visual_tokens(vlm, sample)[0]
    inside = records.frame_labels(record)[index] > 0
    source = np.stack([np.zeros_like(index), index], 1)
    tokens = tokens.reshape(len(index), -1, tokens.shape[-1]).clone()
    return Moments(
        (record,), tokens, index / record.fps, inside, source, record.events, record.num_frames / record.fps, frames.shape[1:3]
    )


def join(videos: Sequence[Moments]) -> Moments:
    """Return videos one after another as one."""
    starts = np.cumsum([0.0, *(one.end_s for one in videos)])
    events = [
        replace(e, start_s=e.start_s + s, end_s=e.end_s + s) for one, s in zip(videos, starts, strict=False) for e in one.events
    ]
    source = np.concatenate([one.source + [[place, 0]] for place, one in enumerate(videos)])
    times_s = np.concatenate([one.times_s + start for one, start in zip(videos, starts, strict=False)])
    return Moments(
        tuple(part for one in videos for part in one.parts), torch.cat([one.tokens for one in videos]), times_s,
        np.concatenate([one.inside for one in videos]), source, tuple(events), float(starts[-1]), videos[0].shape,
    )  # fmt: skip


def long_pairs(videos: Mapping[str, Moments], *, parts: int = PARTS, seed: int = 2) -> list[Moments]:
    """Return two long videos for each world that has both classes.

    One holds the anomalous video between normal ones of other worlds, the other that world's normal video instead. ValueError
    where there are too few normal ones.
    """
    rng, by_world, chosen = np.random.default_rng(seed), {}, []
    for one in videos.values():
        by_world.setdefault(one.parts[0].group, {})[one.label] = one
    for world in sorted(w for w, both in by_world.items() if len(both) == 2):
        normal = [one for one in videos.values() if not one.label and one.parts[0].group != world]
        if len(normal) < parts - 1:
            raise ValueError(f"{len(normal)} normal videos of other worlds are too few for {parts} parts")
        others = [normal[n] for n in rng.permutation(len(normal))[: parts - 1]]
        place = int(rng.integers(1, parts - 1))
        chosen += [join([*others[:place], by_world[world][label], *others[place:]]) for label in (1, 0)]
    return chosen


def features(one: Moments) -> np.ndarray:
    """Return mean and largest visual token of every moment, float32 (T, 2 C): what the scorer reads."""
    return torch.cat([one.tokens.mean(1), one.tokens.amax(1)], 1).float().numpy()


def evenly(one: Moments, count: int = near_world.MOMENTS) -> np.ndarray:
    """Return the moments in the middles of equal parts, int (count,)."""
    return video.sample_index(len(one.times_s), count)


def by_scores(
    one: Moments, count: int = near_world.MOMENTS, *, score: Callable[[np.ndarray], np.ndarray], tau: float
) -> np.ndarray:
    """Return the moments that ATS chooses by a scorer of `features`, int (count,)."""
    return frame_sampling.density_aware_sample(score(features(one)), count, tau=tau)


@torch.inference_mode()
def ask(
    vlm: VLM, question: str, shown: Sequence[Tensor], *, shape: tuple[int, int], batch_size: int = 32, max_new_tokens: int = 24
) -> list[str]:
    """Return the greedy answers to one question about chosen moments, each (moments, N, C), of pictures of one shape."""
    texts = []
    for first in range(0, len(shown), batch_size):
        batch = shown[first : first + batch_size]
        blank = np.zeros((2 * len(batch[0]), *shape, 3), np.uint8)
        prompt = chat.encode(vlm, blank, question, times_s=near_world.clock(len(blank)), as_video=True)
        prompts = chat.collate_prompts(vlm, [{k: v for k, v in prompt.items() if k != "pixel_values_videos"}] * len(batch))
        tokens = [one.flatten(0, 1) for one in batch]
        texts += near_world.answer_tokens(vlm, prompts, tokens, max_new_tokens=max_new_tokens)
    return texts


def judge(vlm: VLM, videos: Sequence[Moments], ways: Mapping[str, Choose]) -> pd.DataFrame:
    """Ask for a judgement of videos from the moments of each way; return a line per way and video, as `long_videos.judge` does."""
    lines = []
    for name, way in ways.items():
        chosen = [way(one) for one in videos]
        shown = [one.tokens[torch.from_numpy(index)] for one, index in zip(videos, chosen, strict=True)]
        for one, index, text in zip(videos, chosen, ask(vlm, vlm.question or QUESTION, shown, shape=videos[0].shape), strict=True):
            middle = next((part for part in one.parts if part.label), one.parts[0])
            event = next((span.label for span in one.events), "")
            truth = toy_dataset.answer("judgement", event) if event else toy_dataset.NEGATIVE
            lines.append(dict(
                frames=name, id=middle.id, world=middle.group, label=one.label, answer=text, named=text.strip() == truth,
                right=answer_parsing.parse_verdict(text) == one.label,
                inside=one.inside[index].mean() if one.label else np.nan,
            ))  # fmt: skip
    return pd.DataFrame(lines)


def explain(
    vlm: VLM, root: str | Path, one: Moments, *, score: Callable[[np.ndarray], np.ndarray], choose: Choose, title: str = ""
) -> tuple[dict, str]:
    """Ask the three questions about chosen moments of a video; return what `timeline.scores` draws, and the answers as lines.

    Args:
        vlm: the model.
        root: folder of the videos.
        one: moments of a video, or of joined ones.
        score: features -> scores (T,) in [0, 1].
        choose: which moments the model gets.
        title: instead of the video's id.
    """
    index, scores = choose(one), score(features(one))
    tokens = [one.tokens[torch.from_numpy(index)]]
    answers = {"judgement": ask(vlm, vlm.question or QUESTION, tokens, shape=one.shape)[0]}
    verdict = answer_parsing.parse_verdict(answers["judgement"])
    for name in ("description", "analysis") if verdict != 0 else ("description",):
        answers[name] = ask(vlm, inference.QUESTIONS[name], tokens, shape=one.shape)[0]
    shown = [(records.locate(one.parts[part], Path(root)), frame) for part, frame in one.source[index]]
    grid = np.searchsorted(one.times_s, np.linspace(0, one.end_s, GRID), side="right").clip(1) - 1  # a score holds to the next
    verdict = {1: "judged anomalous", 0: "judged normal", None: "no judgement in the answer"}[verdict]
    options = dict(
        scores={"score": scores[grid]}, fps=(GRID - 1) / one.end_s, events=one.events, shown_s=one.times_s[index],
        frames=np.concatenate([video.read_frames(path, [frame]) for path, frame in shown]),
        title=f"{title or one.parts[0].id}: {verdict}",
    )  # fmt: skip
    return options, "\n".join([*(f"{name}: {text}" for name, text in answers.items()), f"by {vlm.label}"])

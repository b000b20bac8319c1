"""Instruction rows as training samples: which frames a question shows, and files of rows.

- a frame is drawn from each of equal intervals, so that the same video shows other frames an epoch later; evaluation takes
  the intervals' middles; a row may name its frames itself
- `as_video` gives evenly spaced frames as one video to models that have it, which takes half the tokens
- decoded videos are kept within a limit, the ones used last
Source: Holmes-VAU code, internvl_chat/finetune.py:424-486 and dataset.py:35-130. The released code cannot take frames that
a sampler chose; here a row can.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from vau_lib.data import answer_parsing, records, video
from vau_lib.vlm.chat import MAX_FRAMES, encode
from vau_lib.vlm.models import VLM
from vau_lib.workspace import artifacts

CLIP_FRAMES = range(6, 13)  # number of frames of a clip, drawn every time; events and whole videos show the last
CACHE_BYTES = 2**28  # of decoded frames a data set keeps; the video used longest ago leaves first
VIDEO_FPS = 2.0  # of a video made of frames that a row names, Qwen's own rate
MAX_CACHED_VIDEO_BYTES = 2**24  # of a longer video only the frames to show are read


def interval_frames(first: int, last: int, count: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return `count` sorted frames, one from each of equal intervals of [first, last); repeats where there are fewer.

    `rng` draws them; without it they are the middles. The released code never draws an interval's last frame.
    """
    if last <= first or count < 1:
        raise ValueError(f"need frames to choose from and a count, got [{first}, {last}) and {count}")
    edges = np.linspace(first, last, count + 1)
    fraction = 0.5 if rng is None else rng.random(count)
    return np.minimum((edges[:-1] + fraction * np.diff(edges)).astype(int), last - 1)


def even_frames(first: int, last: int, count: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return up to `count` frames of [first, last) at one distance, as a video needs them; `rng` draws where they begin."""
    if last <= first or count < 1:
        raise ValueError(f"need frames to choose from and a count, got [{first}, {last}) and {count}")
    total = last - first
    count, step = min(count, total), max(1, total // count)
    slack = total - 1 - (count - 1) * step
    return first + (slack // 2 if rng is None else int(rng.integers(slack + 1))) + step * np.arange(count)


class InstructionSamples(torch.utils.data.Dataset):
    """Instruction rows as samples of `chat.encode`, with labels.

    A row holds level (clip, event, video), video, question and answer; and where wanted span_s ([start, end) seconds),
    frames (places in the video, instead of drawn ones) and show_times (False leaves the times out of the prompt).

    Args:
        rows: instruction rows.
        root: folder of the videos.
        vlm: the model whose processor encodes.
        random: draw a frame per interval; False takes the middles.
        num_frames: frames per row; None is 6 to 12 for clips and 12 for the rest.
        released: the released training prompt.
        answers: False leaves the answers out, to ask.
        blind: black frames, to measure what language alone can guess.
        as_video: give evenly spaced frames as one video; frames a row names itself run at VIDEO_FPS.
        max_pixels: largest area of a frame (Qwen).
        fps: with `as_video`, frames per second, at most `num_frames`; None spreads `num_frames` over the span.
        seed: of the frames; with the epoch and the row's place it decides them.
    """

    def __init__(
        self,
        rows: Sequence[Mapping],
        root: str | Path,
        vlm: VLM,
        *,
        random: bool = True,
        num_frames: int | None = None,
        released: bool = False,
        answers: bool = True,
        blind: bool = False,
        as_video: bool = False,
        fps: float | None = None,
        max_pixels: int | None = None,
        seed: int = 0,
    ):
        self.rows, self.root, self.vlm = [_checked(row) for row in rows], Path(root), vlm
        if not self.rows:
            raise ValueError("no instruction rows to train on")
        self.random, self.num_frames, self.answers, self.blind = random, num_frames, answers, blind
        self.released, self.seed, self.epoch = "train" if released else None, seed, 0
        if (as_video and (vlm.family == "internvl" or released)) or (fps is not None and not (as_video and fps > 0)):
            raise ValueError(f"as_video is for Qwen and unreleased prompts, fps above 0 for it alone; got {vlm.family}, fps {fps}")
        self.as_video, self.fps = as_video, fps
        self.options = {"max_pixels": max_pixels} if max_pixels else {}  # more for `chat.encode`
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.rows)

    def with_rows(self, rows: Sequence[Mapping]) -> "InstructionSamples":
        """Return a copy with other rows; decoded videos are shared."""
        other = copy.copy(self)
        other.rows = [_checked(row) for row in rows]
        return other

    def index(self, place: int) -> np.ndarray:
        """Return the frames a row shows in this epoch, int (N,), places in its video."""
        row = self.rows[place]
        if row.get("frames") is not None:
            return np.asarray(row["frames"], int)
        info = video.probe(self.root / row["video"])
        start_s, end_s = row.get("span_s") or (0.0, info.duration_s)
        first, last = (min(round(t * info.fps), info.num_frames) for t in (start_s, end_s))
        rng = np.random.default_rng([self.seed, self.epoch, place]) if self.random else None
        count = CLIP_FRAMES[-1]
        if self.num_frames:
            count = self.num_frames
        elif row["level"] == "clip" and rng is not None:
            count = int(rng.choice(CLIP_FRAMES))
        first = min(first, info.num_frames - 1)
        last = max(last, first + 1)
        if not self.as_video:
            return interval_frames(first, last, count, rng)
        if self.fps and (last - first) / info.fps * self.fps < count:
            count = max(2, round((last - first) / info.fps * self.fps))
        return even_frames(first, last, count, rng)

    def frames(self, place: int) -> tuple[np.ndarray, list[float]]:
        """Return (frames uint8 (N, H, W, 3), their times in seconds)."""
        path, index = self.root / self.rows[place]["video"], self.index(place)
        times_s = video.frame_times(path)[index].tolist()
        return self._decoded(path)(index), times_s

    def _decoded(self, path: Path) -> Callable[[np.ndarray], np.ndarray]:
        """Return what gives frames of a video by their places: from memory where it fits."""
        name = str(path)
        if name not in self._cache:
            info = video.probe(path)
            size = info.num_frames * info.height * info.width * 3
            if size > min(MAX_CACHED_VIDEO_BYTES, CACHE_BYTES):
                return partial(video.read_frames, path)
            while self._cache and sum(frames.nbytes for frames in self._cache.values()) + size > CACHE_BYTES:
                self._cache.popitem(last=False)
            self._cache[name] = video.read_frames(path, range(info.num_frames))
        self._cache.move_to_end(name)
        return self._cache[name].__getitem__

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return self.sample(place, self.rows[place]["answer"] if self.answers else None)

    def sample(self, place: int, answer: str | None) -> dict[str, torch.Tensor]:
        """Return a row's question with another answer, or none."""
        row, (frames, times_s) = self.rows[place], self.frames(place)
        as_video = self.as_video and len(frames) > 1
        if as_video and row.get("frames") is not None:  # a shuffled video's own clock would give its order away
            times_s = (np.arange(len(frames)) / VIDEO_FPS).tolist()
        return encode(
            self.vlm,
            np.zeros_like(frames) if self.blind else frames,
            row["question"],
            times_s=times_s if as_video or row.get("show_times", True) else None,
            answer=answer,
            released=self.released,
            max_frames=max(MAX_FRAMES, len(frames)),  # a row says how many; the context still counts
            as_video=as_video,
            **self.options,
        )


def _checked(row: Mapping) -> Mapping:
    missing = [key for key in ("level", "video", "question", "answer") if not row.get(key)]
    if missing:
        raise ValueError(f"instruction {row.get('id', row)!r} has no {missing[0]}")
    return row


class EpochCallback(TrainerCallback):
    """Gives the samples the epoch, so that other frames are drawn, and the same ones when a stopped run goes on."""

    def __init__(self, samples):
        self.samples = samples

    def on_epoch_begin(self, args, state, control, **_):
        self.samples.epoch = int(state.epoch or 0)


def shuffle_answers(rows: Sequence[Mapping], *, seed: int) -> list[dict]:
    """Return the rows with the answers of each task shuffled among them: what is learned from these is no knowledge."""
    rng, shuffled = np.random.default_rng(seed), [dict(row) for row in rows]
    for task in dict.fromkeys(row["task"] for row in rows):
        places = [n for n, row in enumerate(rows) if row["task"] == task]
        for place, source in zip(places, rng.permutation(places), strict=True):
            shuffled[place]["answer"] = rows[source]["answer"]
    return shuffled


def balanced(rows: Sequence[Mapping], *, seed: int = 0) -> list[dict]:
    """Return the rows with as many judgements of anomalies as of normal videos: those of the rarer verdict are repeated.

    Each is repeated as often, and the rest is drawn by `seed`. Rows without a verdict stay as they are, and so do rows where one of
    the two is missing: there is nothing to repeat.
    """
    found = [answer_parsing.parse_verdict(row["answer"]) if row.get("task") == "judgement" else None for row in rows]
    sides = [[row for row, verdict in zip(rows, found, strict=True) if verdict == side] for side in (0, 1)]
    rarer, other = sorted(sides, key=len)
    if not rarer:
        return [dict(row) for row in rows]
    rounds, rest = divmod(len(other) - len(rarer), len(rarer))
    drawn = np.random.default_rng([seed, 17]).permutation(len(rarer))[:rest]
    return [dict(row) for row in (*rows, *rarer * rounds, *(rarer[place] for place in drawn))]


def judgement_question(rows: Sequence[Mapping]) -> str:
    """Return the question that most rows ask whose answer is a verdict, the first of equals; "" where none is one."""
    rows = [row for row in rows if row.get("task", "judgement") == "judgement"]  # a description may deny something too
    asked = Counter(row["question"] for row in rows if answer_parsing.parse_verdict(row["answer"]) is not None)
    return max(asked, key=asked.get) if asked else ""


def read_rows(files: Mapping[Path, Path], *, split: str = "train") -> list[dict]:
    """Return the instruction rows of a split from {file of JSON lines: folder of its videos}, `video` made a whole path.

    ValueError in one line for a line that is no row, a file without rows of the split, and videos that are missing.
    """
    return [row for file, root in files.items() for row in _rows_of(file, root, split)]


@artifacts.reader(ValueError)
def _rows_of(file: Path, root: Path, split: str) -> list[dict]:
    chosen, lines = [], artifacts.text_lines(file)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = artifacts.parse_json(line)
            if row["split"] == split:
                chosen.append({**row, "video": str(records.inside(row["video"], root).resolve())})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} line {number} is no instruction row: {error!r}") from error
    if not chosen:
        raise ValueError(f"{file}: none of {len(lines)} rows is of split {split!r}")
    missing = sorted({row["video"] for row in chosen if not Path(row["video"]).is_file()})
    if missing:
        raise ValueError(f"{file}: {len(missing)} videos are not under {root}, the first is {missing[0]}")
    return chosen

"""TODO header."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from vau_lib.data import video
from vau_lib.vlm.chat import encode
from vau_lib.vlm.models import VLM

CLIP_FRAMES = range(6, 13)  # drawn anew every time; events and whole videos get the last

KEPT_BYTES = 2**30  # of decoded frames a data set keeps; what does not fit is decoded again

KEPT_WHOLE = (
    2**24
)  # bytes up to which a video is decoded whole and kept; of a longer one only the chosen frames are read


def interval_frames(first: int, last: int, count: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return `count` frame places, one from each of equal intervals of [first, last), sorted; repeats where there are fewer.

    Drawn by `rng`; the middles without. The released code never draws an interval's last frame; every one can come here.
    """
    if last <= first or count < 1:
        raise ValueError(f"need frames to choose from and a count, got [{first}, {last}) and {count}")
    edges = np.linspace(first, last, count + 1)
    share = 0.5 if rng is None else rng.random(count)
    return np.minimum((edges[:-1] + share * np.diff(edges)).astype(int), last - 1)


class InstructionSamples(torch.utils.data.Dataset):
    """Instruction rows as turns of a conversation, with labels; an item is what `chat.encode` returns.

    A row holds id, level (clip, event, video), task, video, span_s ([start, end) or None), question, answer. `root` is
    where videos lie. Frames are random, one per equal interval; `random` False takes the middles, `picks(row)` gives their
    places. `answers` False leaves the answer out (to ask), `blind` shows black frames (what language alone can guess).
    """

    def __init__(
        self,
        rows: Sequence[Mapping],
        root: str | Path,
        vlm: VLM,
        *,
        random: bool = True,
        picks: Callable[[Mapping], np.ndarray] | None = None,
        num_frames: int | None = None,
        released: bool = False,
        answers: bool = True,
        blind: bool = False,
        seed: int = 0,
    ):
        self.rows, self.root, self.vlm = [_checked(row) for row in rows], Path(root), vlm
        if not self.rows:
            raise ValueError("no instruction rows to train on")
        self.random, self.picks, self.num_frames = random, picks, num_frames
        self.answers, self.blind = answers, blind
        self.released, self.seed, self.epoch = "train" if released else None, seed, 0
        self._kept: dict[str, np.ndarray] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.rows)

    def index(self, place: int) -> np.ndarray:
        """Return the frames a row shows in this epoch, int (N,), places in its video."""
        row = self.rows[place]
        if self.picks is not None:
            return np.asarray(self.picks(row), int)
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
        return interval_frames(first, max(last, first + 1), count, rng)

    def frames(self, place: int) -> tuple[np.ndarray, list[float]]:
        """Return (frames uint8 (N, H, W, 3), their times in seconds)."""
        path, index = self.root / self.rows[place]["video"], self.index(place)
        times_s = video.frame_times(path)[index].tolist()
        if str(path) not in self._kept:
            info = video.probe(path)
            size = info.num_frames * info.height * info.width * 3
            if size > KEPT_WHOLE or self._bytes + size > KEPT_BYTES:
                return video.read_frames(path, index), times_s
            self._kept[str(path)] = video.read_frames(path, range(info.num_frames))
            self._bytes += size
        return self._kept[str(path)][index], times_s

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return self.turn(place, self.rows[place]["answer"] if self.answers else None)

    def turn(self, place: int, answer: str | None) -> dict[str, torch.Tensor]:
        """Return a row's question with another answer, or none."""
        frames, times_s = self.frames(place)
        frames = np.zeros_like(frames) if self.blind else frames
        asked = dict(times_s=times_s, answer=answer, released=self.released)
        return encode(self.vlm, frames, self.rows[place]["question"], **asked)


def _checked(row: Mapping) -> Mapping:
    missing = [key for key in ("level", "video", "question", "answer") if not row.get(key)]
    if missing:
        raise ValueError(f"instruction {row.get('id', row)!r} has no {missing[0]}")
    return row


class EpochCallback(TrainerCallback):
    """Tells the data which epoch it is, so that other frames are drawn, the same ones when a stopped run goes on."""

    def __init__(self, data):
        self.data = data

    def on_epoch_begin(self, args, state, control, **_):
        self.data.epoch = int(state.epoch or 0)

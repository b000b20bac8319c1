"""Optical flow as features that need no training (Kroeger et al., DIS flow, ECCV 2016; OpenCV)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from vau_lib.data import video
from vau_lib.data.video import chunks


class FlowEncoder:
    """Describe how a frame moves: box means of optical-flow magnitude, the strongest place kept.

    Dense inverse-search flow between neighbouring frames, magnitude on a quarter-size grid, averaged in squares of
    `boxes` cells; a feature is (len(boxes) * 2,): for each square the maximum and the mean over places, in pixels per frame.
    Training-free. The first frame of a video takes the second's flow.
    """

    name, ahead = "flow", 8  # frames decoded ahead

    def __init__(self, *, boxes: Sequence[int] = (1, 3, 5), height: int = 240, width: int = 360):
        self.boxes, self.height, self.width = tuple(boxes), height, width

    def magnitudes(self, gray: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the flow magnitude (height/4, width/4), pixels per frame, of each frame of a gray stream."""
        flow, before, waiting = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM), None, 0
        for frame in gray:
            now = cv2.resize(frame, (self.width, self.height), interpolation=cv2.INTER_AREA).astype(np.uint8)
            if before is None:
                before, waiting = now, 1
                continue
            moved = flow.calc(before, now, None)  # (height, width, 2)
            speed = cv2.resize(np.hypot(moved[..., 0], moved[..., 1]), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
            for _ in range(1 + waiting):
                yield speed
            before, waiting = now, 0
        if waiting:  # a single frame: nothing moved
            yield np.zeros((self.height // 4, self.width // 4), np.float32)

    def source(self, path: Path) -> Iterator[np.ndarray]:
        """Yield a video file's frames as `snippet_features` takes them: gray, (H, W)."""
        return video.gray_frames(path)

    def from_gray(self, frames: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
        """Return gray frames (H, W) of a file as `snippet_features` takes them."""
        return frames

    def encode(self, path: Path, snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield the features of a video file, decoding as it goes."""
        return self.snippet_features(self.source(path), snippet_frames)

    def snippet_features(self, gray: Iterable[np.ndarray], snippet_frames: int) -> Iterator[np.ndarray]:
        """Yield the features of a gray stream (H, W); a snippet keeps the largest of its frames' values."""
        for part in chunks(self.magnitudes(gray), snippet_frames):
            smooth = [[cv2.blur(speed, (box, box)) for box in self.boxes] for speed in part]
            values = [[value for square in frame for value in (square.max(), square.mean())] for frame in smooth]
            yield np.asarray(values, np.float32).max(0)

    def made_by(self) -> dict:
        """Return what a reader must agree on."""
        return {"encoder": self.name, "boxes": list(self.boxes), "size": [self.height, self.width]}


def frame_difference(path: str | Path, snippet_frames: int) -> np.ndarray:
    """Return the largest mean absolute gray difference between neighbouring frames in each snippet, (T,), a baseline.

    Every second pixel each way is compared. The first frame of a video takes the second's difference; one frame alone has 0.
    """
    differences, before = [], None
    for frame in video.gray_frames(path):
        now = frame[::2, ::2]
        if before is not None:
            differences += [float(np.abs(now - before).mean())] * (1 if differences else 2)
        before = now
    return np.array([max(part) for part in chunks(differences or [0.0], snippet_frames)])

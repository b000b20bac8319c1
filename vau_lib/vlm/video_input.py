"""Video input: which frames a model that reads videos gets, by frames per second, and what they cost.

- how many frames a second, at most how many and how large is the model's own: its processor's configuration says it
- frames are on screen at even steps of time, at a variable frame rate too, because such a model counts time in steps
- the count is a whole number of temporal patches (two frames share tokens)
Source: Qwen2.5-VL report (arXiv 2502.13923), section 2.1; sampling as the authors' reader (qwen-vl-utils) does it, restated.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vau_lib.data import video
from vau_lib.vlm.models import VLM

FPS, MIN_FRAMES, MAX_FRAMES = 2.0, 4, 768  # of the authors' reader, where a configuration does not say


@dataclass(frozen=True)
class VideoInput:
    """How a video is sampled: frames per second, fewest and most frames, frames that share tokens, largest area of a frame.

    `num_frames` takes that many, whatever the video's length; `max_pixels` None is the processor's own.
    """

    fps: float = FPS
    min_frames: int = MIN_FRAMES
    max_frames: int = MAX_FRAMES
    patch_frames: int = 2
    max_pixels: int | None = None
    num_frames: int | None = None

    def __post_init__(self):
        if not self.fps > 0 or self.max_frames < self.patch_frames or (self.max_pixels is not None and self.max_pixels < 1):
            raise ValueError(
                f"fps and max_pixels must be positive and max_frames {self.patch_frames} or more, "
                f"got {self.fps}, {self.max_pixels}, {self.max_frames}"
            )


def reads_video(vlm: VLM) -> bool:
    """Return whether a model takes frames as one video here."""
    return vlm.family != "internvl" and getattr(vlm.processor, "video_processor", None) is not None


def defaults(vlm: VLM, **given: float | None) -> VideoInput:
    """Return the sampling of a model's own processor configuration, with what is `given` and not None in its place."""
    if not reads_video(vlm):
        raise ValueError(f"{vlm.name} ({vlm.family}) reads frames as pictures, not videos")
    processor = vlm.processor.video_processor
    own = {name: getattr(processor, name, None) for name in ("fps", "min_frames", "max_frames")}
    own["patch_frames"] = getattr(processor, "temporal_patch_size", None)
    return VideoInput(**{key: value for key, value in (own | given).items() if value is not None})


def sample_times(duration_s: float, frames: int, plan: VideoInput) -> np.ndarray:
    """Return the times (N,) in seconds of the frames to read of `duration_s` that hold `frames`: even steps from 0.

    N = fps x duration, within the plan's fewest and most and the frames there are, a multiple of `patch_frames` (at least one).
    """
    count = plan.num_frames
    if count is None:
        count = min(max(math.floor(duration_s * plan.fps + 1e-9), plan.min_frames), plan.max_frames, frames)
        count = count // plan.patch_frames * plan.patch_frames
    count = max(count, plan.patch_frames)
    return np.arange(count) * (duration_s / count)


def read(path: str | Path, plan: VideoInput, span_s: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return frames uint8 (N, H, W, 3) of a video, or of [start, end) seconds of it, and their times (N,) in seconds.

    A frame is what is on screen at its time.
    """
    starts, (first_s, last_s) = video.frame_times(path), span_s or span_of(path)
    there = max(1, int(((starts >= first_s) & (starts < last_s)).sum()))
    times_s = first_s + sample_times(last_s - first_s, there, plan)
    return video.read_frames(path, video.index_at(path, times_s)), times_s.round(3)


def span_of(path: str | Path) -> tuple[float, float]:
    """Return [0, end) of a video in seconds; its last frame stays as long as frames do in the middle."""
    starts = video.frame_times(path)
    step = float(np.median(np.diff(starts))) if len(starts) > 1 else 1 / FPS
    return 0.0, float(starts[-1]) + step


def windows(duration_s: float, length_s: float, step_s: float) -> list[tuple[float, float]]:
    """Return sliding windows [start, end) that cover a video of `duration_s`: one every `step_s`, the last ends with it.

    A rest shorter than half a window is part of the last one.
    """
    if not length_s > 0 or not 0 < step_s <= length_s:
        raise ValueError(f"a window must be longer than 0 s and its step at most as long, got {length_s} and {step_s} s")
    result, start = [], 0.0
    while duration_s - start - length_s >= (length_s / 2 if step_s == length_s else 1e-6):
        result.append((start, start + length_s))
        start += step_s
    return [*result, (start, duration_s)]

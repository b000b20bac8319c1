"""Tokens and time to first token of `vau guard`: frames as pictures and as one video, at keep ratio 1, .3 and .1, in one run.

Qwen2.5-VL at its true widths with few layers and RANDOM weights: the work is real, answers mean nothing. The time is that of a
row of `guard` for one new token: decoding, preparing, choosing tokens, vision tower, pre-fill, in seconds of the process (two
threads count twice), which other programs on a shared machine lengthen little. The scenes are drawn: a fixed camera, one event; in
the still one nothing moves but for two seconds, in the quiet one somebody walks and falls, in the busy one people and a car move
all the time, with noise and sway.
    python benchmarks/guard_video.py [still] [quiet] [busy] [LAYERS] [FRAMES]
"""

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vau_lib import guard
from vau_lib.data import video
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.toy import few_layers

KEEP_RATIOS = (1.0, 0.3, 0.1)
FRAME_PX = 336  # side of a square of a frame's area
SECONDS, FPS = 16.0, 8.0


EASY = dict(num_people=0, num_vehicles=0, difficulty="easy")
SCENES = {"still": EASY, "quiet": EASY, "busy": dict(num_people=3, num_vehicles=1, difficulty="hard")}
STILL_S = (7.0, 9.0)  # seconds in which the still scene moves


def scene(path: Path, kind: str) -> None:
    """Write a drawn scene, large enough that pictures and video are made smaller to the same size."""
    scenario = synthetic_dataset.scenario_for(901, event="fall", duration_s=SECONDS, fps=FPS, **SCENES[kind])
    frames = synthetic_dataset.render(scenario).frames
    if kind == "still":
        seconds = np.arange(len(frames)) / FPS
        frames = np.where(((seconds >= STILL_S[0]) & (seconds < STILL_S[1]))[:, None, None, None], frames, frames[:1])
    times = int(np.ceil(2 * FRAME_PX / min(frames.shape[1:3]) / 2))
    video.write_video(path, frames.repeat(times, 1).repeat(times, 2), fps=FPS)


def measure(layers: int, count: int, kind: str) -> None:
    """Print tokens and seconds per input and keep ratio."""
    vlm = few_layers.few_layers(scale=1, layers=layers, frame_px=FRAME_PX)
    print(
        f"{vlm.label}; {count} frames, {torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    first: dict[bool, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.mp4"
        scene(path, kind)
        plan = guard.GuardPlan(num_frames=count, max_new_tokens=1, max_pixels=FRAME_PX**2)
        guard.guard(vlm, path, plan=replace(plan, num_frames=2), log=None, progress=False)  # first calls are slower
        for as_video in (False, True):
            for keep_ratio in KEEP_RATIOS:
                asked = replace(plan, as_video=as_video, keep_ratio=keep_ratio)
                began = time.process_time()
                (row,) = guard.guard(vlm, path, plan=asked, log=None, progress=False)
                seconds, tokens = time.process_time() - began, row["prompt_tokens"]
                first.setdefault(as_video, seconds)
                kind, ratio = ("one video" if as_video else "pictures"), first[as_video] / seconds
                print(f"  {kind:9}  keep {keep_ratio:<3g}  {tokens:6,} tokens  {seconds:6.2f} s  {ratio:5.1f} x", flush=True)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:] if word not in SCENES]
    for kind in [word for word in sys.argv[1:] if word in SCENES] or SCENES:
        measure(*(given + [1, 32][len(given) :]), kind)

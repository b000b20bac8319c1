"""Time to first token of `vau guard`, and accuracy of its answer, from a part of the visual tokens. Two studies.

time: Qwen2.5-VL at its true widths with few layers and RANDOM weights: the work is real, answers mean nothing. As many layers of
the tower as of the language model stand for the 3B model's 32 and 36. A row of `guard` for one new token: decoding, preparing,
choosing tokens, vision tower, pre-fill, in seconds of the process (two threads count twice), which other programs on a shared
machine lengthen little. `gflop` are counted operations of one pass of the model, scaled by layers to full depth (28 blocks of the
tower attend within windows, 4 within a moment). The scenes are drawn, a fixed camera: in the still one nothing moves but for two
seconds, in the quiet one somebody walks and falls, in the busy one people and a car move all the time, with noise and sway.
accuracy: the tiny model of data/toy_models/near, which judges drawn near places and was not tuned for pruning, through `guard` with
twelve moments of each video. The rules' numbers were chosen on the training and validation videos of the demo's world (seed 0).
choice: how many moments `few_moments` should encode per moment's worth of tokens, each against the widest, on those tuning videos.
    python benchmarks/guard_video.py time [still] [quiet] [busy] [--layers 2] [--frames 32] [--pictures] [--write]
    python benchmarks/guard_video.py accuracy ROOT [--splits test] [--write]      ROOT as notebook 02 or `vau generate` leaves it
    python benchmarks/guard_video.py choice ROOT [ROOT ...] --splits train,val [--write]
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from vau_lib import guard
from vau_lib.compression import token_selection
from vau_lib.data import answer_parsing, records, video
from vau_lib.evaluation import metrics, result_tables
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.toy import few_layers, near_world
from vau_lib.vlm import models
from vau_lib.workspace import presets

FRAME_PX = 336  # side of a square of a frame's area
SECONDS, FPS = 16.0, 8.0
DEPTHS = {"layers": 36, "windowed": 28, "full": 4}  # of Qwen2.5-VL-3B: language model, the tower's blocks by kind of attention
ENCODED = (1.5, 1.25, 1.0)  # moments per moment's worth of tokens, the widest first
WHOLE = ("keep all", "few moments", 1.0)
WAYS = [WHOLE, *((rule, rule, ratio) for rule in token_selection.TOKEN_RULES for ratio in (0.3, 0.1))]

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


def full_depth(counts: dict, layers: int) -> float:
    """Return operations (billions) of a pass at full depth, counted with `layers` of each, the last block full."""
    of = {name: sum(part.values()) / 1e9 for name, part in counts.items()}
    text, tower = (next(name for name in of if name.endswith(end)) for end in (".layers.0", ".blocks.0"))
    block = tower.removesuffix("0")
    known = layers * of[text] + sum(of[f"{block}{n}"] for n in range(layers))
    once = of["Global"] - known
    return once + DEPTHS["layers"] * of[text] + DEPTHS["windowed"] * of[tower] + DEPTHS["full"] * of[f"{block}{layers - 1}"]


def measure(layers: int, count: int, kinds: list[str], inputs: list[bool]) -> pd.DataFrame:
    """Print and return tokens, seconds and operations per scene, input, rule and keep ratio."""
    vlm, lines = few_layers.few_layers(scale=1, layers=layers, frame_px=FRAME_PX), []
    vlm.model.model.visual.fullatt_block_indexes = [layers - 1]
    print(f"{vlm.label}; {count} frames, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scene.mp4"
            scene(path, kind)
            plan = guard.GuardPlan(num_frames=count, max_new_tokens=1, max_pixels=FRAME_PX**2)
            guard.guard(vlm, path, plan=replace(plan, num_frames=2), log=None, progress=False)  # first calls are slower
            for as_video in inputs:
                first = None
                for name, rule, keep_ratio in WAYS:
                    asked = replace(plan, as_video=as_video, keep_ratio=keep_ratio, token_rule=rule)
                    began = time.process_time()
                    with FlopCounterMode(display=False) as counter:
                        (row,) = guard.guard(vlm, path, plan=asked, log=None, progress=False)
                    seconds = time.process_time() - began
                    line = dict(scene=kind, input="one video" if as_video else "pictures", rule=name, keep_ratio=keep_ratio)
                    line |= dict(tokens=row["prompt_tokens"], seconds=seconds, gflop=full_depth(counter.get_flop_counts(), layers))
                    first = first or line
                    line |= {f"times_{key}": first[key] / line[key] for key in ("seconds", "gflop")}
                    lines.append(line)
                    print(pd.DataFrame([line]).round(2).to_string(index=False, header=len(lines) == 1), flush=True)
    return pd.DataFrame(lines).assign(model=vlm.label, frames=count)


def even_moments(features, *, keep_ratio: float):
    """Keep moments in the middles of equal parts of time: the control of `few_moments`."""
    return token_selection.few_moments(features, keep_ratio=keep_ratio, even_mass=1e6)


def accuracy(root: Path, splits: list[str]) -> pd.DataFrame:
    """Print and return how often the verdict is right, per rule and keep ratio; intervals over worlds."""
    vlm = models.load(presets.project() / "data" / "toy_models" / "near", dtype=torch.float32, local_only=True)
    found = [record for record in records.read_records(root / "records.jsonl") if record.split in splits]
    token_selection.TOKEN_RULES["even moments"] = even_moments
    plan = guard.GuardPlan(num_frames=2 * near_world.MOMENTS, as_video=True, max_new_tokens=24, batch_size=32)
    worlds, lines, whole = [record.group for record in found], [], None
    listed = root / f"records_{'_'.join(splits)}.jsonl"
    records.write_records(listed, found)
    try:
        for name, rule, ratio in [
            WHOLE,
            *((rule, rule, ratio) for rule in token_selection.TOKEN_RULES for ratio in (0.5, 0.3, 0.1)),
        ]:
            rows = guard.guard(vlm, listed, plan=replace(plan, keep_ratio=ratio, token_rule=rule), log=None, progress=False)
            right = np.array([row["anomaly"] == record.label for row, record in zip(rows, found, strict=True)], float)
            whole = right if whole is None else whole
            mean = metrics.grouped_mean(right, worlds, rng=np.random.default_rng(0))
            fall = metrics.grouped_mean(whole - right, worlds, rng=np.random.default_rng(0))
            line = dict(rule=name, keep_ratio=ratio, judgement=mean.value, low=mean.low, high=mean.high)
            line |= dict(fall=fall.value, fall_low=fall.low, fall_high=fall.high)
            line |= dict(tokens=float(np.mean([row["prompt_tokens"] for row in rows])), videos=len(rows))
            lines.append(line)
            print(pd.DataFrame([line]).round(3).to_string(index=False, header=len(lines) == 1), flush=True)
    finally:
        listed.unlink()
    return pd.DataFrame(lines).assign(model=vlm.label)


def choice(roots: list[Path], splits: list[str], ratios: list[float]) -> pd.DataFrame:
    """Print and return the judgement per keep ratio and moments encoded, and its paired gap to the widest; over worlds."""
    vlm = models.load(presets.project() / "data" / "toy_models" / "near", dtype=torch.float32, local_only=True)
    plan = guard.GuardPlan(num_frames=2 * near_world.MOMENTS, as_video=True, max_new_tokens=24, batch_size=32)
    found = [(root, record) for root in roots for record in records.read_records(root / "records.jsonl") if record.split in splits]
    worlds, lines = [f"{root} {record.group}" for root, record in found], []
    clips = [next(guard.clips(records.locate(record, root), vlm, plan)) for root, record in found]  # decoded once
    labels = np.array([record.label for _, record in found])
    token_selection.TOKEN_RULES |= {str(wide): partial(token_selection.few_moments, encoded=wide) for wide in ENCODED}

    def right(asked: guard.GuardPlan) -> np.ndarray:
        batches = [clips[n : n + plan.batch_size] for n in range(0, len(clips), plan.batch_size)]
        texts = [answer.text for batch in batches for answer in guard.ask(vlm, batch, asked)]
        return np.array([answer_parsing.parse_report(text)["anomaly"] for text in texts]) == labels

    for ratio in ratios:
        widest = None
        for wide in ENCODED if ratio < 1 else ENCODED[:1]:
            found_right = right(replace(plan, keep_ratio=ratio, token_rule=str(wide))).astype(float)
            widest = found_right if widest is None else widest
            mean = metrics.grouped_mean(found_right, worlds, rng=np.random.default_rng(0))
            gap = metrics.grouped_mean(found_right - widest, worlds, rng=np.random.default_rng(0))
            line = dict(keep_ratio=ratio, encoded_per_read=wide, judgement=mean.value, low=mean.low, high=mean.high)
            line |= dict(gap=gap.value, gap_low=gap.low, gap_high=gap.high, videos=len(found))
            lines.append(line)
            print(pd.DataFrame([line]).round(3).to_string(index=False, header=len(lines) == 1), flush=True)
    return pd.DataFrame(lines).assign(model=vlm.label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=["time", "accuracy", "choice"])
    parser.add_argument("what", nargs="*", help="scenes, or the folder of the videos")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--pictures", action="store_true", help="frames as pictures too")
    parser.add_argument("--splits", default="test")
    parser.add_argument("--ratios", nargs="*", type=float, default=[1.0, 0.5, 0.4, 0.3, 0.2, 0.1], help="keep ratios of the choice")
    parser.add_argument("--write", action="store_true", help="keep the table for RESULTS.md")
    options = parser.parse_args()
    if options.study == "time":
        inputs = [True, False] if options.pictures else [True]
        table = measure(options.layers, options.frames, options.what or list(SCENES), inputs)
    else:
        torch.set_num_threads(1)
        roots, splits = [Path(root) for root in options.what], options.splits.split(",")
        table = accuracy(roots[0], splits) if options.study == "accuracy" else choice(roots, splits, options.ratios)
    if options.write:
        place = presets.project() / "data" / "results" / "studies" / "curves" / f"guard_{options.study}.csv"
        result_tables.write_curve(place, table.round(4))


if __name__ == "__main__":
    main()

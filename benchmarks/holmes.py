"""Cost of explaining a video by stage, with and without reuse of visual tokens (Holmes-VAU). One run, ratios.

- stages: features (decode and vision tower, one frame in 16), score, sample, encode (visual tokens of the chosen frames),
  prompt (decode the chosen frames, words and pixels of three questions), generate
- the chosen frames' tokens reused, against encoded again as released: frames through the vision tower, seconds of the stage
  encode, and whether the answers are equal
- resident memory for a short video and one eight times as long
The model is the TOY of data/toy_models/internvl; the scorer has the published layout at its width, with RANDOM weights unless
data/models/holmes_scorer holds a trained one. Videos: videos/demo of VAU_REAL_DATA where set, else SYNTHETIC noise.
    python benchmarks/holmes.py
"""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from ats import Peak, frames  # the script beside this one

from vau_lib import explain
from vau_lib.data import video
from vau_lib.detectors import trained_detector
from vau_lib.detectors.anomaly_scorer import AnomalyScorer
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.vlm import inference, models
from vau_lib.workspace import presets

STAGES = ("features", "score", "sample", "encode", "prompt", "generate")
ROUNDS, NEW_TOKENS = 3, 32


def videos(scratch: Path) -> dict[str, Path]:
    """Return the real demo videos, or one of noise."""
    if real := os.environ.get("VAU_REAL_DATA"):
        paths = sorted((Path(real) / "videos" / "demo").glob("*.mp4"))
        return {path.stem.removeprefix("holmesvau_"): path for path in paths}
    return {"SYNTHETIC noise": noise_video(scratch, 2000)}


def noise_video(scratch: Path, count: int) -> Path:
    path = scratch / f"{count}.mp4"
    if not path.exists():
        video.write_video(path, frames(count), crf=40)
    return path


def scorer_of(width: int) -> explain.Scorer:
    folder = presets.project() / "data" / "models" / "holmes_scorer"
    if folder.is_dir():
        return explain.Scorer(trained_detector.load(folder, AnomalyScorer).score, f"scorer of {folder.name}")
    return explain.random_scorer(width)


def timed(path: Path, vlm: models.VLM, scorer: explain.Scorer, *, reuse: bool) -> tuple[explain.ExplainedVideo, dict]:
    """Explain a video; return it with seconds by stage, generating apart from the rest of "ask"."""
    generate, spent = inference.generate, []

    def timed_generate(*arguments, **options):
        started = time.perf_counter()
        try:
            return generate(*arguments, **options)
        finally:
            spent.append(time.perf_counter() - started)

    inference.generate = timed_generate
    try:
        explained = explain.explain_video(path, vlm, scorer, reuse=reuse, max_new_tokens=NEW_TOKENS)
    finally:
        inference.generate = generate
    return explained, explained.seconds | {"prompt": explained.seconds["ask"] - sum(spent), "generate": sum(spent)}


def stages(vlm: models.VLM, scorer: explain.Scorer, paths: dict[str, Path]) -> None:
    print(f"\nSeconds by stage, median of {ROUNDS} interleaved rounds, fraction of the whole in brackets")
    for name, path in paths.items():
        runs = {True: [], False: []}
        for _ in range(ROUNDS):
            for reuse, explained in runs.items():
                explained.append(timed(path, vlm, scorer, reuse=reuse))
        seconds = {}
        for reuse, explained in runs.items():
            seconds[reuse] = {stage: np.median([run[stage] for _, run in explained]) for stage in STAGES}
            whole = sum(seconds[reuse].values())
            stages = ", ".join(f"{stage} {s:.3f} ({s / whole:.0%})" for stage, s in seconds[reuse].items())
            print(f"  {name:16} {'reused' if reuse else 'encoded again':13}: {explained[0][0].vision_frames:3} encoded; {stages}")
        reused, again = (runs[reuse][0][0] for reuse in (True, False))
        short = reused.vision_frames > len(reused.index)  # too short for a choice of sampled frames: others were shown
        answers = [(e.judgement, e.description, e.analysis) for e in (reused.explanation, again.explanation)]
        print(
            f"  {'':16} {len(reused.index)} frames sampled, {len(reused.chosen_index)} shown; encode reused / again "
            f"{seconds[True]['encode'] / seconds[False]['encode']:.4f}; answers equal: {answers[0] == answers[1]}"
            + ("; a short video, frames between the sampled ones are encoded anyhow" if short else "")
        )


def memory(vlm: models.VLM, scorer: explain.Scorer, scratch: Path) -> None:
    print("\nResident memory above what is held before (320 x 240 noise, tokens in a scratch file)")
    explain.explain_video(noise_video(scratch, 200), vlm, scorer, max_new_tokens=NEW_TOKENS)  # warm-up
    risen = {}
    for count in (800, 6400):
        path = noise_video(scratch, count)
        video.frame_times(path)
        with Peak() as peak:
            explained = explain.explain_video(path, vlm, scorer, max_new_tokens=NEW_TOKENS)
        risen[count] = peak.mb
        print(f"  {count:5} frames: {explained.vision_frames:3} frames encoded, +{peak.mb:5.1f} MB, {peak.seconds:5.2f} s")
    print(f"  eight times the video: {risen[6400] - risen[800]:+.1f} MB; its pixels alone {6400 * 240 * 320 * 3 / 2**20:.0f} MB")


def main() -> None:
    torch.set_num_threads(1)
    vlm = toy_benchmark.load_pretrained(presets.project() / "data" / "toy_models" / "internvl")
    scorer = scorer_of(vlm.model.config.vision_config.hidden_size)
    print(f"{vlm.label}; {scorer.label}; {inference.NUM_FRAMES} frames, {torch.get_num_threads()} thread")
    with TemporaryDirectory() as scratch:
        stages(vlm, scorer, videos(Path(scratch)))
        memory(vlm, scorer, Path(scratch))


if __name__ == "__main__":
    main()

"""What does explaining a video cost, stage by stage, and what is saved by not looking twice? One run, ratios.

- stages: look (decode and vision tower, one frame in 16), score, sample, encode (tokens of the chosen frames), prompt (decode
  the chosen frames, words and pixels of three questions), generate
- the chosen frames' tokens reused, against encoded again as released: frames through the tower, seconds of the stage encode,
  and whether the answers are the same
- resident memory, short and eight times as long
The model is the kept TOY of data/toy_models/internvl; the scorer is of the published layout on its width, RANDOM unless
data/models/holmes_scorer holds a trained one. Videos: videos/demo of VAU_REAL_DATA where set, else a SYNTHETIC film.
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
from vau_lib.detectors import anomaly_scorer
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.vlm import inference, models
from vau_lib.workspace import presets

STAGES = ("look", "score", "sample", "encode", "prompt", "generate")
ROUNDS, NEW_TOKENS = 3, 32


def films(scratch: Path) -> dict[str, Path]:
    """Return the real demo videos, or a made film."""
    if real := os.environ.get("VAU_REAL_DATA"):
        found = sorted((Path(real) / "videos" / "demo").glob("*.mp4"))
        return {path.stem.removeprefix("holmesvau_"): path for path in found}
    return {"SYNTHETIC noise": film(scratch, 2000)}


def film(scratch: Path, count: int) -> Path:
    path = scratch / f"{count}.mp4"
    if not path.exists():
        video.write_video(path, frames(count), crf=40)
    return path


def scorer_of(width: int) -> explain.Scorer:
    folder = presets.project() / "data" / "models" / "holmes_scorer"
    if folder.is_dir():
        return explain.trained_scorer(anomaly_scorer.load_trained(folder), f"scorer of {folder.name}")
    return explain.random_scorer(width)


def timed(path: Path, vlm: models.VLM, scorer: explain.Scorer, *, reuse: bool) -> tuple[explain.ExplainedVideo, dict]:
    """Explain a video; return it with seconds by stage, generating apart from the rest of "ask"."""
    generate, spent = inference.generate, []

    def watched(*given, **how):
        started = time.perf_counter()
        try:
            return generate(*given, **how)
        finally:
            spent.append(time.perf_counter() - started)

    inference.generate = watched
    try:
        found = explain.explain_video(path, vlm, scorer, reuse=reuse, max_new_tokens=NEW_TOKENS)
    finally:
        inference.generate = generate
    return found, found.seconds | {"prompt": found.seconds["ask"] - sum(spent), "generate": sum(spent)}


def stages(vlm: models.VLM, scorer: explain.Scorer, found: dict[str, Path]) -> None:
    print(f"\nSeconds by stage, median of {ROUNDS} interleaved rounds, share of the whole in brackets")
    for name, path in found.items():
        runs = {True: [], False: []}
        for _ in range(ROUNDS):
            for reuse, kept in runs.items():
                kept.append(timed(path, vlm, scorer, reuse=reuse))
        seconds = {}
        for reuse, kept in runs.items():
            seconds[reuse] = {stage: np.median([run[stage] for _, run in kept]) for stage in STAGES}
            whole = sum(seconds[reuse].values())
            told = ", ".join(f"{stage} {s:.3f} ({s / whole:.0%})" for stage, s in seconds[reuse].items())
            print(
                f"  {name:16} {'reused' if reuse else 'encoded again':13}: {kept[0][0].vision_frames:3} frames seen; {told}"
            )
        kept, again = (runs[reuse][0][0] for reuse in (True, False))
        short = kept.vision_frames > len(kept.index)  # too short for a choice of glances: other frames were shown
        said = [(run.said.judgement, run.said.description, run.said.analysis) for run in (kept, again)]
        print(
            f"  {'':16} {len(kept.index)} glances, {len(kept.said.index)} shown; encode reused / again "
            f"{seconds[True]['encode'] / seconds[False]['encode']:.4f}; answers equal: {said[0] == said[1]}"
            + ("; a short video, frames between glances are encoded anyhow" if short else "")
        )


def memory(vlm: models.VLM, scorer: explain.Scorer, scratch: Path) -> None:
    print("\nResident memory above what is held before (320 x 240 noise, tokens in a scratch file)")
    explain.explain_video(film(scratch, 200), vlm, scorer, max_new_tokens=NEW_TOKENS)  # warm-up
    risen = {}
    for count in (800, 6400):
        path = film(scratch, count)
        video.frame_times(path)
        with Peak() as peak:
            found = explain.explain_video(path, vlm, scorer, max_new_tokens=NEW_TOKENS)
        risen[count] = peak.mb
        print(f"  {count:5} frames: {found.vision_frames:3} frames seen, +{peak.mb:5.1f} MB, {peak.seconds:5.2f} s")
    print(
        f"  eight times the video: {risen[6400] - risen[800]:+.1f} MB; its pixels alone {6400 * 240 * 320 * 3 / 2**20:.0f} MB"
    )


def main() -> None:
    torch.set_num_threads(1)
    vlm = toy_benchmark.taught(presets.project() / "data" / "toy_models" / "internvl")
    scorer = scorer_of(vlm.model.config.vision_config.hidden_size)
    print(f"{vlm.label}; {scorer.label}; {inference.NUM_FRAMES} frames, {torch.get_num_threads()} thread")
    with TemporaryDirectory() as scratch:
        stages(vlm, scorer, films(Path(scratch)))
        memory(vlm, scorer, Path(scratch))


if __name__ == "__main__":
    main()

"""How much faster are our XFeat rows than kornia's network fed by decord, at equal features? One run, ratios.

Stock: decord (default), frames to float32 RGB, antialiased resize, kornia's forward pass in eager float32, pooled.
Ours: summed gray planes, channels-last, descriptor map only, bfloat16 where the processor has it.
Both on one thread, then ours as the workspace runs it: two processes over several videos.
    python benchmarks/extraction.py [video ...]      real weights: set VAU_WEIGHTS (or VAU_REAL_DATA)
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from kornia.feature import XFeat

from vau_lib.data import records, video
from vau_lib.detectors import training
from vau_lib.features import checkpoints, extraction, xfeat
from vau_lib.synthetic import dataset as synthetic_dataset

SNIPPET, BATCH, SIDE, ROUNDS = records.SNIPPET_FRAMES, 16, 224, 3


def stock_rows(net, path: Path) -> np.ndarray:
    """Return rows the plain way: decode colour, resize, whole network, pool."""
    num_frames, rows = video.probe(path).num_frames, []
    for start in range(0, num_frames, SNIPPET):
        frames = video.read_frames(path, range(start, min(start + SNIPPET, num_frames)), reader="decord")
        pixels = torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            dense, _, _ = net(F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True))
        unit = F.normalize(dense, dim=1)
        rows.append(torch.cat([unit.mean((0, 2, 3)), unit.amax((0, 2, 3))]).numpy())
    return np.stack(rows)


def timed(work) -> tuple[float, np.ndarray]:
    """Return the best of a few interleaved rounds' seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def weights() -> str:
    """Return real weights when there are any, else the word random (speed is the same)."""
    if real := os.environ.get("VAU_REAL_DATA"):
        os.environ.setdefault("VAU_WEIGHTS", str(Path(real) / "weights"))
    return checkpoints.given_weights("xfeat", "random unless found")


def videos(scratch: Path) -> list[Path]:
    """Return the videos named, else a real one, else a synthetic one."""
    if len(sys.argv) > 1:
        return [Path(name) for name in sys.argv[1:]]
    real = Path(os.environ.get("VAU_REAL_DATA", "")) / "videos" / "ucf_crime" / "Robbery102_x264.mp4"
    if real.is_file():
        return [real]
    scenario = synthetic_dataset.scenario_for(0, event="fight", duration_s=20.0)
    video.write_video(scratch / "synthetic.mp4", synthetic_dataset.render(scenario).frames, fps=scenario.fps)
    return [scratch / "synthetic.mp4"]


def main() -> None:
    torch.set_num_threads(1)
    found = weights()
    stock = XFeat().eval()
    encoder, exact = xfeat.XFeatEncoder(found), xfeat.XFeatEncoder(found, bfloat16=False)
    stock.net.load_state_dict(encoder.net.state_dict())
    kind = "RANDOM weights" if found == "random" else Path(found).name
    print(f"XFeat rows, {kind}; torch {torch.__version__}, bfloat16 here: {encoder.bfloat16}")
    with TemporaryDirectory() as folder:
        paths = videos(Path(folder))
        for path in paths:
            compare(path, stock.net, encoder, exact)
        scale(paths[0], found, Path(folder))


def compare(path: Path, net, encoder, exact) -> None:
    ways = {
        "stock kornia eager float32 + decord": lambda: stock_rows(net, path),
        "ours, float32": lambda: np.stack(list(exact.encode(path, SNIPPET))),
        "ours, as shipped": lambda: np.stack(list(encoder.encode(path, SNIPPET))),
    }
    best, rows = {}, {}
    for _ in range(ROUNDS):  # interleaved: a busy neighbour disturbs all alike
        for name, work in ways.items():
            seconds, rows[name] = timed(work)
            best[name] = min(best.get(name, seconds), seconds)
    first = next(iter(ways))
    num_frames = video.probe(path).num_frames
    print(f"\n{path.name}: {num_frames} frames, one thread, best of {ROUNDS} interleaved rounds")
    for name in ways:
        error = np.linalg.norm(rows[name] - rows[first]) / np.linalg.norm(rows[first])
        print(f"  {name:38} {num_frames / best[name]:7.0f} frames/s   x{best[first] / best[name]:5.2f}   pooled error {error:.1e}")


def scale(path: Path, found: Path | str, folder: Path) -> None:
    """Compare one process with two on eight copies of the video."""
    copies = [records.VideoRecord(f"copy{n}", path.name, "bench", "train", 0) for n in range(8)]
    recipe = extraction.Recipe("xfeat", SNIPPET, (("weights", str(found)),))
    seconds = {}
    for engine in ("serial", "processes"):
        done = extraction.extract(copies, path.parent, folder / engine, recipe, engine=engine, workers=2)
        seconds[engine] = done.seconds
    print(f"\neight videos: two processes x{seconds['serial'] / seconds['processes']:.2f} over one (start-up included)")


if __name__ == "__main__":
    training.seed_everything(0)
    main()

"""How much faster are our XFeat features than kornia's network fed by decord, at equal features? One run, ratios, limits.

Stock: decord (default), frames to float32 RGB, antialiased resize, kornia's forward pass in eager float32, pooled.
Ours: summed gray planes, channels-last, descriptor map only, bfloat16 where the processor has it, OpenVINO where it is installed.
Each on one thread; then as `vau extract` runs: decoding ahead of the network, and one worker process against two on 32 videos.
Limits beside it: the codec alone, and what the network's operations would take at the peak that a matrix product reaches here.
    python benchmarks/extraction.py [video ...]      real weights: set VAU_WEIGHTS (or VAU_REAL_DATA)
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pandas as pd
import timing
import torch
import torch.nn.functional as F
from kornia.feature import XFeat
from torch.utils.flop_counter import FlopCounterMode

from vau_lib.data import records, video
from vau_lib.evaluation import result_tables
from vau_lib.features import checkpoints, extraction, xfeat
from vau_lib.workspace import presets
from vau_lib.workspace.seeds import seed_everything

SNIPPET, SIDE, ROUNDS, FRAMES, VIDEOS, SHORT = records.SNIPPET_FRAMES, 224, 3, 128, 32, 64


def stock_rows(net, path: Path, num_frames: int) -> np.ndarray:
    """Return rows the plain way: decode colour, resize, whole network, pool."""
    rows = []
    for start in range(0, num_frames, SNIPPET):
        frames = video.read_frames(path, range(start, min(start + SNIPPET, num_frames)), reader="decord")
        pixels = torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            dense, _, _ = net(F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True))
        unit = F.normalize(dense, dim=1)
        rows.append(torch.cat([unit.mean((0, 2, 3)), unit.amax((0, 2, 3))]).numpy())
    return np.stack(rows)


def codec_only(path: Path) -> None:
    """Decode every frame and look at none."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        for _ in container.decode(video=0):
            pass


def weights() -> str:
    """Return real weights when there are any, else the word random (speed is the same)."""
    if real := os.environ.get("VAU_REAL_DATA"):
        os.environ.setdefault("VAU_WEIGHTS", str(Path(real) / "weights"))
    return checkpoints.given_weights("xfeat", "random unless found")


def stock_network(found: str) -> XFeat:
    """Return kornia's whole network with the weights that ours has."""
    torch.manual_seed(0)  # as XFeatEncoder makes random ones
    stock = XFeat().eval()
    if found != "random":
        checkpoints.load_strictly(stock.net, checkpoints.load_weights(found), Path(found))
    return stock


def videos(scratch: Path) -> list[Path]:
    """Return the first frames of the videos named, else of a real one, else drawn ones."""
    real = Path(os.environ.get("VAU_REAL_DATA", "")) / "videos" / "ucf_crime" / "Robbery102_x264.mp4"
    given = [Path(name) for name in sys.argv[1:] if not name.startswith("--")] or ([real] if real.is_file() else [])
    found = []
    for path in given:
        found.append(scratch / f"{path.stem}.mp4")
        frames = video.read_frames(path, range(min(FRAMES, video.probe(path).num_frames)))
        video.write_video(found[-1], frames, fps=30)
    if not found:
        found.append(scratch / "drawn.mp4")
        noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
        video.write_video(found[-1], (np.roll(noise, place, axis=1) for place in range(FRAMES)), fps=30)
    return found


def encoders(found: str) -> dict[str, xfeat.XFeatEncoder]:
    """Return our ways by name; OpenVINO only where it is installed."""
    made = {
        "ours, float32": xfeat.XFeatEncoder(found, bfloat16=False, device="cpu"),
        "ours, as shipped": xfeat.XFeatEncoder(found, device="cpu"),
    }
    for name, bfloat16 in (("ours, OpenVINO float32", False), ("ours, OpenVINO bfloat16", True)):
        try:
            made[name] = xfeat.XFeatEncoder(found, bfloat16=bfloat16, device="cpu", runtime="openvino")
        except ValueError as error:
            print(error)
    return made


def compare(path: Path, net, ours: dict[str, xfeat.XFeatEncoder]) -> pd.DataFrame:
    """Return a row per way: frames per second, the ratio to stock, the difference of the features."""
    num_frames, first, rows = video.probe(path).num_frames, "stock: kornia eager float32, decord", {}

    def keep(name: str, work) -> None:
        rows[name] = work()

    ways = {first: lambda: keep(first, lambda: stock_rows(net, path, num_frames))}
    for name, encoder in ours.items():
        ways[name] = lambda name=name, encoder=encoder: keep(name, lambda: np.stack(list(encoder.encode(path, SNIPPET))))
    source = next(iter(ours.values()))
    ways |= {
        "limit: gray and shrunk, no network": lambda: sum(1 for _ in source.source(path)),
        "limit: codec": lambda: codec_only(path),
    }
    table = timing.interleaved(ways, ROUNDS, 1)
    stock = table.set_index("way").loc[first]
    size = {n: np.linalg.norm(r - rows[first]) / np.linalg.norm(rows[first]) for n, r in rows.items()}
    table["frames_per_cpu_s"] = 1e3 * num_frames / table["best_cpu_ms"]
    table["times_stock"] = stock["best_cpu_ms"] / table["best_cpu_ms"]
    table["times_stock_by_wall"] = stock["best_ms"] / table["best_ms"]
    table["difference"] = table["way"].map(size)
    return table.assign(video=path.name, frames=num_frames)


def network_share(encoder: xfeat.XFeatEncoder) -> None:
    """Print what share of the measured peak the network reaches."""
    frames = 255 * torch.rand(SNIPPET, SIDE, SIDE)
    with FlopCounterMode(display=False) as counter:
        encoder._network(frames)
    flops = counter.get_total_flops() / SNIPPET
    ms = timing.interleaved({"network": lambda: encoder.dense(frames)}, 8)["best_cpu_ms"].iloc[0] / SNIPPET
    peak = timing.peak_gflops(torch.float32)
    share = flops / ms / 1e6 / peak
    print(f"  {flops / 1e9:.2f} GFLOP a frame in {ms:.2f} ms is {share:.0%} of a float32 matrix product's {peak:.0f} GFLOP/s")


def scale(path: Path, found: str, folder: Path) -> pd.DataFrame:
    """Return wall and shares of 32 copies: one process, decoding ahead; one worker; two workers."""
    video.write_video(folder / "short.mp4", video.read_frames(path, range(SHORT)), fps=30)
    path = folder / "short.mp4"
    copies = [records.VideoRecord(f"copy{n}", path.name, "bench", "train", 0) for n in range(VIDEOS)]
    recipe = extraction.Recipe("xfeat", SNIPPET, (("weights", str(found)),), device="cpu")
    rows = []
    for name, engine, workers in (("ahead", "serial", 1), ("one worker", "processes", 1), ("two workers", "processes", 2)):
        done = extraction.extract(copies, path.parent, folder / name, recipe, engine=engine, workers=workers)
        print(f"  {name}: {done.seconds:.1f} s, {done.rates()}; {timing.machine()}")
        slower = max(done.decode_s, done.encode_s) / workers
        rows.append({"way": name, **extraction.summary(done), "wall_over_slower_stage": done.seconds / slower})
    one, two = rows[1]["seconds"], rows[2]["seconds"]
    busy = [row["decode_s"] + row["encode_s"] for row in rows[1:]]
    ratio, work = one / two, busy[1] / busy[0]
    print(f"  two workers: x{ratio:.2f} by the wall, efficiency {ratio / 2:.2f}; their work {work:.2f} of one's")
    return pd.DataFrame(rows)


def main() -> None:
    torch.set_num_threads(1)
    found = weights()
    stock, ours = stock_network(found), encoders(found)
    kind = "RANDOM weights" if found == "random" else Path(found).name
    print(
        f"XFeat features, {kind}; torch {torch.__version__}, bfloat16 here: {ours['ours, as shipped'].bfloat16}; {timing.machine()}"
    )
    studies, started = presets.project() / "data" / "results" / "studies", time.perf_counter()
    with TemporaryDirectory() as folder:
        paths = videos(Path(folder))
        table = pd.concat([compare(path, stock.net, ours) for path in paths])
        print(table.round(3).to_string(index=False))
        result_tables.write_curve(studies / "extraction.csv", table.assign(load=timing.machine()).round(5))
        network_share(ours["ours, float32"])
        if "--no-scale" not in sys.argv:
            result_tables.write_curve(studies / "extraction_workers.csv", scale(paths[0], found, Path(folder)).round(3))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    seed_everything(0)
    main()

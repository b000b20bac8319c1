"""How much faster are our XFeat features than kornia's network fed by decord, at equal features? One run, ratios, limits.

Stock: decord (default), frames to float32 RGB, antialiased resize, kornia's forward pass in eager float32, pooled.
Ours: summed gray planes, channels-last, descriptor map only, bfloat16 where it is faster, OpenVINO, ncnn.
Each on one thread; then as `vau extract` runs: decoding ahead of the network, and one worker process against two on 32 videos.
Limits beside it: the codec alone, and what the network's operations would take at the peak that a matrix product reaches here;
`two_processes.py` has that of two workers.
    python benchmarks/extraction.py [video ...]      real weights: set VAU_WEIGHTS (or VAU_REAL_DATA)
    --no-single, --no-scale: leave out the first, or the second
"""

import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import decord
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

SNIPPET, SIDE, ROUNDS = records.SNIPPET_FRAMES, 224, 3
VIDEOS, SHORT, LONG, PLAIN = 32, 192, 600, 5  # copies; frames of the one and of each copy; times the plain script reads one
WAYS = (
    ("ahead", "serial", 1), ("one worker", "processes", 1), ("one worker, one processor", "processes", 1),
    ("two workers", "processes", 2),
)  # fmt: skip


def stock_rows(net, path: Path, num_frames: int) -> np.ndarray:
    """Return rows the plain way: decode colour, resize, whole network, pool."""
    rows, reader = [], decord.VideoReader(str(path))
    for start in range(0, num_frames, SNIPPET):
        frames = reader.get_batch(range(start, min(start + SNIPPET, num_frames))).asnumpy()
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


def videos(scratch: Path, count: int) -> list[Path]:
    """Return the first `count` frames of the videos named, else of a real one, else drawn ones."""
    real = Path(os.environ.get("VAU_REAL_DATA", "")) / "videos" / "ucf_crime" / "Robbery102_x264.mp4"
    given = [Path(name) for name in sys.argv[1:] if not name.startswith("--")] or ([real] if real.is_file() else [])
    found = []
    for path in given:
        found.append(scratch / f"{path.stem}_{count}.mp4")
        frames = video.read_frames(path, range(min(count, video.probe(path).num_frames)))
        video.write_video(found[-1], frames, fps=30)
    if not found:
        found.append(scratch / f"drawn_{count}.mp4")
        noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
        video.write_video(found[-1], (np.roll(noise, place, axis=1) for place in range(count)), fps=30)
    return found


def installed() -> list[str]:
    """Return the faster runtimes beside torch that can be used here."""
    return [name for name in ("openvino", "ncnn") if find_spec(name)]


def encoders(found: str) -> dict[str, xfeat.XFeatEncoder]:
    """Return our ways by name; OpenVINO only where it is installed."""
    made = {
        "ours, float32": xfeat.XFeatEncoder(found, bfloat16=False, device="cpu"),
        "ours, as shipped": xfeat.XFeatEncoder(found, device="cpu"),
        "ours, bfloat16": xfeat.XFeatEncoder(found, bfloat16=True, device="cpu"),
    }
    others = {"OpenVINO float32": ("openvino", False), "OpenVINO bfloat16": ("openvino", True), "ncnn float32": ("ncnn", False)}
    for name, (runtime, bfloat16) in others.items():
        try:
            made[f"ours, {name}"] = xfeat.XFeatEncoder(found, bfloat16=bfloat16, device="cpu", runtime=runtime)
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


def compiling(found: str) -> None:
    """Print what torch.compile costs once and saves a frame, and after how many frames it pays (`-p compiled=true`)."""
    frames = 255 * torch.rand(SNIPPET, SIDE, SIDE)
    plain, built = (xfeat.XFeatEncoder(found, bfloat16=False, device="cpu", compiled=compiled) for compiled in (False, True))
    started = time.perf_counter()
    try:
        built.dense(frames)
    except Exception as error:  # no compiler, or one that fails
        print(f"  torch.compile: {str(error).splitlines()[0][:160]}")
        return
    once_s = time.perf_counter() - started
    table = timing.interleaved({"plain": lambda: plain.dense(frames), "compiled": lambda: built.dense(frames)}, 8)
    before, after = table["best_cpu_ms"] / SNIPPET
    pays = f"pays after {once_s / (before - after) * 1e3:,.0f} frames" if after < before else "never pays"
    print(f"  torch.compile: {once_s:.1f} s once, then {after:.2f} ms a frame instead of {before:.2f}: {pays}")


def scale(path: Path, found: str, stock, folder: Path) -> pd.DataFrame:
    """Return wall and shares of 32 copies, by every way a user has: the plain script with all processors, then `vau extract`.

    Decoding ahead in one process, one worker, two workers, each as shipped (bfloat16) and in float32 by the fastest runtime. The
    efficiency is that of two workers against one, and against one that has a single processor for itself and its decoder.
    """
    frames, threads = video.probe(path).num_frames, torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())  # what torch takes by itself
    table = timing.interleaved({"stock": lambda: stock_rows(stock, path, frames)}, PLAIN, 1)
    plain = 1e3 * frames / table["best_ms"].iloc[0]
    torch.set_num_threads(threads)
    print(f"  stock with {os.cpu_count()} threads: {plain:.1f} frames/s")
    copies = [records.VideoRecord(f"copy{n}", path.name, "bench", "train", 0) for n in range(VIDEOS)]
    recipes = {"as shipped": (("weights", str(found)),)}
    for runtime in installed()[-1:]:
        recipes[f"{runtime} float32"] = (("weights", str(found)), ("bfloat16", False), ("runtime", runtime))
    rows, all_of = [{"way": "stock", "recipe": "float32", "frames_per_s": plain, "times_stock": 1.0}], os.sched_getaffinity(0)
    for kind, options in recipes.items():
        recipe, seconds = extraction.Recipe("xfeat", SNIPPET, options, device="cpu"), {}
        for name, engine, workers in WAYS:
            os.sched_setaffinity(0, {0} if "one processor" in name else all_of)  # of worker processes too
            done = extraction.extract(copies, path.parent, folder / f"{kind} {name}", recipe, engine=engine, workers=workers)
            os.sched_setaffinity(0, all_of)
            print(f"  {kind}, {name}: {done.seconds:.1f} s, {done.rates()}; {timing.machine()}", flush=True)
            seconds[name], slower = done.seconds, max(done.decode_s, done.encode_s) / workers
            ratios = {"wall_over_slower_stage": done.seconds / slower, "times_stock": done.frames / done.seconds / plain}
            rows.append({"way": name, "recipe": kind, **extraction.summary(done), **ratios})
        for row in rows[-3:-1]:
            row["efficiency_of_two"] = seconds[row["way"]] / seconds["two workers"] / 2
            print(f"  {kind}: {row['way']} to two workers, efficiency {row['efficiency_of_two']:.2f}")
    return pd.DataFrame(rows)


def main() -> None:
    torch.set_num_threads(1)
    found = weights()
    stock, ours = stock_network(found), encoders(found)
    kind = "RANDOM weights" if found == "random" else Path(found).name
    print(f"XFeat features, {kind}; torch {torch.__version__}, bfloat16: {ours['ours, as shipped'].bfloat16}; {timing.machine()}")
    studies, started = presets.project() / "data" / "results" / "studies", time.perf_counter()
    with TemporaryDirectory() as folder:
        if "--no-single" not in sys.argv:
            table = pd.concat([compare(path, stock.net, ours) for path in videos(Path(folder), SHORT)])
            print(table.round(3).to_string(index=False))
            result_tables.write_curve(studies / "extraction.csv", table.assign(load=timing.machine()).round(5))
            network_share(ours["ours, float32"])
            compiling(found)
        path = videos(Path(folder), LONG)[0]
        if "--no-scale" not in sys.argv:
            result_tables.write_curve(studies / "extraction_workers.csv", scale(path, found, stock.net, Path(folder)).round(3))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    seed_everything(0)
    main()

"""What does LSHMA cost a clip, alone and with 16 or 64 cameras in a call, by torch and by exported networks? One run.

torch is the model as it trains; torch packed is what `vau watch` runs on a CPU (`exports.packed`), in float32 and with bfloat16
products (`--bfloat16`); exported networks run in float32, by OpenVINO in bfloat16 too, by ONNX Runtime with 8-bit weights too.
Beside each: times one stream of the same way, times one float32 stream as `vau watch` runs it on one thread, and the share of what
a matrix product reaches here (none for 8 bits). 64 float32 streams of XD-Violence are 5.7 GFLOP.
The published code took 6.2 ms (XD-Violence) and 12.0 ms (UCF-Crime) a clip on a machine of this kind, no early exit. Weights do
not change the time, so they are random.
    python benchmarks/streaming.py [--clip] [--hour]    adds the CLIP tower that makes its features; an hour of clips, for memory
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import timing
import torch
from torch.utils.flop_counter import FlopCounterMode

from vau_lib.data import records
from vau_lib.detectors import exports, lshma, lshma_state, stream_profiling, trained_detector
from vau_lib.evaluation import result_tables
from vau_lib.features import runtimes
from vau_lib.features.image_encoders import CLIPEncoder
from vau_lib.workspace import presets

REFERENCE_MS = {"XD-Violence": 6.2, "UCF-Crime": 12.0}  # per clip, measured on the published code
MAKERS = {"XD-Violence": lshma_state.LSHMAConfig.xd, "UCF-Crime": lshma_state.LSHMAConfig.ucf}
STREAMS = (1, 16, 64)


def ways(name: str, folder: Path | None) -> dict:
    """Return {(runtime, streams): one step} of a model whose memory is full; exported ones with a folder."""
    torch.manual_seed(0)
    model, found = lshma.LSHMA(MAKERS[name](exit_threshold=1.0)).eval(), {}
    config, trained = model.settings, trained_detector.TrainedDetector(model, None, None)
    exported = sessions(model, folder / "step.onnx") if folder else {}
    packed = {"torch packed": exports.packed(trained), "torch packed bfloat16": exports.packed(trained, bfloat16=True)}
    for streams in STREAMS:
        clip, state = torch.randn(streams, config.window, config.width), None
        for _ in range(config.memory):
            _, state = model.step(clip, state)
        found[f"torch, {streams}"] = lambda clip=clip, state=state: model.step(clip, state)
        for runtime, ours in packed.items():
            state = None
            for _ in range(config.memory):
                _, state = ours.model.push(clip, state)
            found[f"{runtime}, {streams}"] = lambda clip=clip, state=state, ours=ours: ours.model.push(clip, state)
        given = {"clip": clip.numpy(), "valid": np.full(streams, config.window), **exports.empty_state(config, streams)}
        given["filled"][:] = config.memory - 1
        for runtime, session in exported.items():
            found[f"{runtime}, {streams}"] = lambda session=session, given=given: session(**given)
    return found


def sessions(model: lshma.LSHMA, path: Path) -> dict[str, runtimes.Session]:
    """Return {runtime: the exported step}, with OpenVINO's bfloat16 and ONNX Runtime's 8-bit weights where they are installed."""
    found = timing.sessions(model, path)
    if "openvino" in found:
        found["openvino bfloat16"] = runtimes.Session(path, "openvino", bfloat16=True)
    if "onnx" in found:
        small = path.with_name("int8.onnx")
        shutil.copy(path, small)
        runtimes.quantise(small)
        found["onnx int8"] = runtimes.Session(small, "onnx")
    return found


def gflop(name: str) -> float:
    """Return the operations of one stream's clip, in 10^9, as the exported step computes them."""
    model = lshma.LSHMA(MAKERS[name](exit_threshold=1.0)).eval()
    made = exports.graph(trained_detector.TrainedDetector(model, None, None))
    with FlopCounterMode(display=False) as counter:
        made.module(*made.example.values())
    return counter.get_total_flops() / exports.EXAMPLE_STREAMS / 1e9


def measure(rounds: int = 30) -> pd.DataFrame:
    """Return a row per data set, runtime, threads and number of streams: milliseconds a call."""
    tables, peak = [], {kind: timing.peak_gflops(kind) for kind in (torch.float32, torch.bfloat16)}
    print(
        ", ".join(f"a product of {str(kind).removeprefix('torch.')} matrices: {value:.0f} GFLOP/s" for kind, value in peak.items())
    )
    with TemporaryDirectory() as folder, torch.inference_mode():
        for name in MAKERS:
            one = timing.interleaved(ways(name, Path(folder)), rounds, hot=True).assign(threads=1)
            torch.set_num_threads(2)  # by the wall: the exported networks keep to one
            two = timing.interleaved(ways(name, None), rounds, hot=True).assign(threads=2, best_cpu_ms=float("nan"))
            torch.set_num_threads(1)
            table = pd.concat([one, two])
            table[["runtime", "streams"]] = table.pop("way").str.split(", ", expand=True).to_numpy()
            table = table.assign(dataset=name, streams=table["streams"].astype(int), reference_ms=REFERENCE_MS[name])
            table["ms"] = table["best_cpu_ms"].fillna(table["best_ms"])
            alone = table[(table["streams"] == 1) & (table["threads"] == 1)].set_index("runtime")["ms"]
            table["times_one_stream"] = table["ms"] / table["runtime"].map(alone)
            table["times_one_float32"] = table["ms"] / alone["torch packed"]
            most = table["runtime"].map(lambda way: peak[torch.bfloat16 if "bfloat16" in way else torch.float32]) * table["threads"]
            table["share_of_peak"] = (gflop(name) * table["streams"] / table["ms"] * 1e3 / most).mask(
                table["runtime"] == "onnx int8"
            )
            tables.append(table.drop(columns="ms"))
    order = ["dataset", "runtime", "threads", "streams", "median_ms", "best_ms", "best_cpu_ms", "times_one_stream"]
    return pd.concat(tables)[[*order, "times_one_float32", "share_of_peak", "reference_ms"]].sort_values(
        order[:4], ascending=[False, True, True, True]
    )


def main() -> None:
    torch.set_num_threads(1)
    table = measure()
    print(f"LSHMA, milliseconds a call of one clip a stream; {timing.machine()}")
    print(table.round(3).to_string(index=False))
    place = presets.project() / "data" / "results" / "studies" / "streaming.csv"
    result_tables.write_curve(place, table.assign(load=timing.machine()).round(4))
    if "--clip" in sys.argv:
        encoder = CLIPEncoder(weights="random", device="cpu")
        frames = np.random.default_rng(0).integers(0, 256, (16, 256, 340, 3), dtype=np.uint8)
        row = timing.interleaved({"CLIP": lambda: encoder(frames)}, 3, 1).iloc[0]
        print(f"CLIP ViT-B/16, one row of 16 frames ({records.ROW_S:.2f} s of video): {row.best_ms:,.0f} ms")
    for name, made in MAKERS.items() if "--hour" in sys.argv else ():
        model = lshma.LSHMA(made(exit_threshold=1.0)).eval()
        n, clip_s = model.settings.window, model.settings.window * records.ROW_S
        table, slope = stream_profiling.endure(model.step, (1, n, 512), clips=int(3600 / clip_s), clip_s=clip_s)
        print(f"{name}, an hour: state {set(table['state_bytes'])} bytes, process {slope / 1e6:+.3f} MB per hour")


if __name__ == "__main__":
    main()

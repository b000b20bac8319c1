"""What does an hour of LSHMA cost, alone, beside other cameras, and with the rows it reads? One run, one thread, ratios.

The published code took 6.2 ms (XD-Violence) and 12.0 ms (UCF-Crime) a clip on a machine of this kind, no early exit. Weights do
not change the time, so they are random here, and so are CLIP's (the real ViT-B/16 architecture).
    python benchmarks/streaming.py [hours]
"""

import sys
import time

import numpy as np
import torch

from vau_lib.data import records
from vau_lib.detectors import lshma, lshma_state, stream_profiling, training
from vau_lib.features.image_encoders import CLIPEncoder

REFERENCE_MS = {"XD-Violence": 6.2, "UCF-Crime": 12.0}  # per clip, measured on the published code
MAKERS = {"XD-Violence": lshma_state.LSHMAConfig.xd, "UCF-Crime": lshma_state.LSHMAConfig.ucf}


def main(hours: float) -> None:
    torch.set_num_threads(1)
    eye = CLIPEncoder(weights="random")
    frames = np.random.default_rng(0).integers(0, 256, (16, 256, 340, 3), dtype=np.uint8)
    eye(frames)
    row_ms = 1000 * min(_timed(lambda: eye(frames)) for _ in range(3))
    print(f"CLIP ViT-B/16 (random weights), one row of 16 frames: {row_ms:,.0f} ms")
    for name, made in MAKERS.items():
        model = lshma.LSHMA(made(exit_threshold=1.0)).eval()
        n = model.settings.window
        one, many = (stream_profiling.latency(model.step, (batch, n, 512), calls=120) for batch in (1, 16))
        print(f"\n{name}: clips of {n} rows, {sum(p.numel() for p in model.parameters()):,} parameters")
        for streams, told in ((1, one), (16, many)):
            times = "  ".join(f"{key[:-3]} {told[key]:6.2f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
            print(f"  {streams:2} stream(s)  {times} ms a clip and stream")
        clip_s, share = n * records.ROW_S, one["p50_ms"] / (n * row_ms)
        slower, shared = one["p50_ms"] / REFERENCE_MS[name], one["p50_ms"] / many["p50_ms"]
        print(f"  x{slower:.2f} of the published {REFERENCE_MS[name]} ms; x{shared:.2f} faster by sharing a call")
        print(f"  with CLIP {n * row_ms + one['p50_ms']:,.0f} ms a clip of {clip_s:.2f} s; LSHMA adds {share:.2%} to its rows")
        print(f"  a clip fills in {clip_s:.2f} s; the released smoothing would wait {7 * records.ROW_S:.2f} s more")
        table, slope = stream_profiling.endure(model.step, (1, n, 512), clips=int(hours * 3600 / clip_s), clip_s=clip_s)
        print(f"  {hours:g} h of video: {table['clips'].iloc[-1]:,} clips, state {set(table['state_bytes'])} bytes,"
              f" process {slope / 1e6:+.3f} MB per hour")  # fmt: skip
    small = lshma.LSHMA(lshma_state.LSHMAConfig.xd(width=16, exit_threshold=1.0)).eval()
    table, _ = stream_profiling.endure(small.step, (1, 8, 16), clips=100_000, clip_s=8 * records.ROW_S)
    shown = table[table["clips"].isin([10, 1000, 100_000])]
    print(f"\nstate after 10, 1,000 and 100,000 clips (width 16): {shown['state_bytes'].tolist()} bytes")


def _timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    training.seed_everything(0)
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 6.0)

"""How small and fast is MemTSM-Net's head beside STEAD-Fast's published size? One run, ratios.

STEAD-Fast (github.com/agao8/STEAD, MIT) is not rebuilt here: its 17,441 parameters and 53.0 MFLOP per video were measured on the
published file. Latency is compared within one run with a stand-in of known size: one matrix product of as many operations,
the least any head of 53 MFLOP can cost on the same machine.
    python benchmarks/head.py
"""

import time

import numpy as np
import torch

from vau_lib.detectors import memtsm, training

STEAD_FAST = {"parameters": 17_441, "mflop": 53.0}
ROUNDS = 200


def latency_ms(model, x: torch.Tensor) -> np.ndarray:
    """Return milliseconds of each round after a warm-up."""
    taken = []
    with torch.inference_mode():
        for _ in range(ROUNDS + 20):
            start = time.perf_counter()
            model(x)
            taken.append(1000 * (time.perf_counter() - start))
    return np.array(taken[20:])


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    configs = {
        "MemTSM as released, (3, 32)": memtsm.MemTSMConfig.released(),
        "MemTSM as intended, (128, 32)": memtsm.MemTSMConfig(),
    }
    side = round((STEAD_FAST["mflop"] * 1e6 / 2) ** (1 / 3))
    print(f"STEAD-Fast as published: {STEAD_FAST['parameters']:,} parameters, {STEAD_FAST['mflop']:.1f} MFLOP per video")
    for name, config in configs.items():
        model = memtsm.MemTSM(config).eval()
        x = torch.randn(1, config.in_channels, 32)
        macs = training.count_macs(model, x)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"\n{name}: {parameters:,} parameters (x{parameters / STEAD_FAST['parameters']:.1f} of STEAD-Fast's)")
        print(
            f"  {macs / 1e6:.3f} M MACs, {2 * macs / 1e6:.2f} MFLOP (x{2 * macs / 1e6 / STEAD_FAST['mflop']:.3f} of STEAD-Fast's)"
        )
        for batch in (1, 32):
            ours = latency_ms(model, torch.randn(batch, config.in_channels, 32)) / batch
            square = torch.randn(batch, side, side)
            floor = latency_ms(lambda a: a @ a, square) / batch
            bare, mine = np.median(floor), np.median(ours)
            print(f"  batch {batch:2}: {mine:.3f} ms a video (best {ours.min():.3f}); 53 MFLOP bare {bare:.3f}, x{bare / mine:.2f}")


if __name__ == "__main__":
    main()

"""How small and fast is MemTSM-Net's head beside STEAD's two networks? One run, one thread, in turn.

STEAD (video features of X3D-L to a score) is built from its authors' repository in stead.py; weights are random, which changes no
time. Both heads read features that are already there. With the extra `export` the head runs by ONNX Runtime and OpenVINO as well.
    python benchmarks/head.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import stead
import timing
import torch

from vau_lib.detectors import memtsm, training
from vau_lib.evaluation import result_tables
from vau_lib.workspace import presets

STEPS, BATCHES = 32, (1, 32)


def heads() -> dict[str, tuple[torch.nn.Module, tuple[int, ...]]]:
    """Return {name: (network, shape of one video)}."""
    released = memtsm.MemTSMConfig.released()
    return {
        "MemTSM-Net as intended": (memtsm.MemTSM().eval(), (128, STEPS)),
        "MemTSM-Net as released": (memtsm.MemTSM(released).eval(), (released.in_channels, STEPS)),
        "STEAD-Fast": (stead.built("fast"), stead.INPUT),
        "STEAD-Base": (stead.built("base"), stead.INPUT),
    }


def measure(rounds: int = 60) -> pd.DataFrame:
    """Return a row per head, runtime and batch."""
    tables = []
    with TemporaryDirectory() as folder, torch.inference_mode():
        networks = heads()
        exported = timing.sessions(networks["MemTSM-Net as intended"][0], Path(folder) / "head.onnx", steps=STEPS)
        for batch in BATCHES:
            ways = {}
            for name, (network, shape) in networks.items():
                if name == "STEAD-Base" and batch > 1:
                    continue  # seconds a pass
                x = torch.randn(batch, *shape)
                ways[f"{name}, torch"] = lambda network=network, x=x: network(x)
            x = torch.randn(batch, 128, STEPS).numpy()
            for runtime, session in exported.items():
                ways[f"MemTSM-Net as intended, {runtime}"] = lambda session=session, x=x: session(x=x)
            table = timing.interleaved(ways, rounds if batch == 1 else max(3, rounds // 6), hot=True)
            columns = ["median_ms", "best_ms", "best_cpu_ms"]
            tables.append(table.assign(**{name: table[name] / batch for name in columns}, batch=batch))
        table = pd.concat(tables)
        sizes = {
            name: (sum(p.numel() for p in network.parameters()), training.count_macs(network, torch.randn(1, *shape)))
            for name, (network, shape) in networks.items()
        }
    table["parameters"] = [sizes[way.partition(",")[0]][0] for way in table["way"]]
    table["mmacs"] = [sizes[way.partition(",")[0]][1] / 1e6 for way in table["way"]]
    for batch in BATCHES:
        part = table["batch"] == batch
        base = table[part].set_index("way").loc["STEAD-Fast, torch", "best_cpu_ms"]
        table.loc[part, "times_faster_than_stead_fast"] = base / table[part]["best_cpu_ms"]
    return table


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = measure()
    print(f"one thread, milliseconds a video; {timing.machine()}")
    print(table.round(3).to_string(index=False))
    place = presets.project() / "data" / "results" / "studies" / "head.csv"
    result_tables.write_curve(place, table.assign(load=timing.machine()).round(4))


if __name__ == "__main__":
    main()

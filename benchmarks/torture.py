"""The torture campaign, bounded and seeded: kills, damaged media and data, strangers' files, surroundings, streams, networks.

    python benchmarks/torture.py [PART]... [--seed 0] [--count N] [--only JOB]

`make torture` runs it whole (kills 60, media 520, data 1,500, 20,000 clips of stream); tests/test_torture.py runs a short one. Each
fault is a line with the seed and the number of its mutant. What it needs of the tests (fakes, tiny models) it takes from there.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
    os.environ.pop(name, None)  # everything is on this machine
COUNTS = {
    "kills": 60,
    "media": 520,
    "data": 1500,
    "strangers": 0,
    "surroundings": 0,
    "streams": 20_000,
    "networks": 0,
    "protections": 0,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(COUNTS), help="which parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="kills, mutants or clips of each part")
    parser.add_argument("--only", action="append", default=[], help="kills: of this job; may be repeated")
    options = parser.parse_args()
    if unknown := set(options.parts) - COUNTS.keys():
        parser.error(f"no part {min(unknown)}; there are {', '.join(COUNTS)}")
    import torch

    torch.set_num_threads(1)
    print(f"seed {options.seed}", flush=True)
    faults, rows = [], []
    for part in options.parts:
        count, module = options.count or COUNTS[part], importlib.import_module(f"torture.{part}")
        given = {"kills": {"count": count}, "media": {"count": count}, "data": {"count": count}, "streams": {"clips": count}}.get(
            part, {}
        )
        if part in ("kills", "media", "data"):
            given["seed"] = options.seed
        if part == "kills":
            given["only"] = options.only
        began = time.time()
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            tallies = module.run(Path(folder), **given)
        for tally in tallies:
            rows.append(tally.row() | {"outcomes": ", ".join(f"{count:,} {name}" for name, count in tally.outcomes.items())})
            faults += [f"{tally.kind}: {fault}" for fault in tally.faults]
        print(f"{part}: {time.time() - began:.0f} s", flush=True)
    print(f"| {'kind':50} | tried | survived | seconds | outcomes\n|---|---|---|---|---")
    for row in rows:
        print(f"| {row['kind']:50} | {row['tried']:,} | {row['survived']:,} | {row['seconds']} | {row['outcomes']}")
    print("\n".join(faults) or "no fault")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

"""LoRA in two processes on the CPU against one: `python benchmarks/two_processes.py` starts itself under torchrun (gloo).

Says how many processes trained together, whether they ended with the same weights, and seconds per step. Two processes share
this machine's cores, so on two cores the ratio says what the exchange costs, not what a second GPU would bring.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

PROCESSES = 2


def train(steps: int, processes: int) -> None:
    """Tune a random tiny model for some steps on two made-up videos; print what rank 0 knows."""
    from vau_lib.data import video
    from vau_lib.toy import tiny_vlm
    from vau_lib.vlm import finetuning, instruction_data

    torch.set_num_threads(1)
    toy_vlm = tiny_vlm.tiny("internvl")
    tuned = toy_vlm.replace(model=finetuning.lora(toy_vlm.model))
    with TemporaryDirectory() as place:
        rows = []
        for number in range(16):
            frames = np.random.default_rng(number).integers(0, 255, (8, 56, 56, 3), dtype=np.uint8)
            video.write_video(Path(place) / f"{number}.mp4", frames, fps=4)
            rows.append(dict(id=number, level="event", task="judgement", video=f"{number}.mp4", question="Anything odd?",
                             answer="No anomaly exists in the video."))  # fmt: skip
        data = instruction_data.InstructionSamples(rows, place, tuned, num_frames=6)
        plan = finetuning.LoraPlan(max_steps=steps, learning_rate=1e-3, batch_size=16 // processes, log_steps=1)
        started = time.perf_counter()
        finetuning.fit(tuned, data, plan=plan, expect_processes=processes)
        seconds = time.perf_counter() - started
    mine = torch.cat([p.detach().flatten() for p in tuned.model.parameters() if p.requires_grad])
    same = True
    if processes > 1:
        theirs = [torch.empty_like(mine) for _ in range(processes)]
        torch.distributed.all_gather(theirs, mine)
        same = all(torch.equal(mine, other) for other in theirs)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"{processes} processes: {seconds / steps:.2f} s per step of 16 rows, same weights: {same}", flush=True)
    if processes > 1:
        torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    steps = parser.parse_args().steps
    if "RANK" in os.environ:
        train(steps, int(os.environ["WORLD_SIZE"]))
        return
    train(steps, 1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    subprocess.run([*launcher, __file__, "--steps", str(steps)], check=True)


if __name__ == "__main__":
    main()

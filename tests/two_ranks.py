"""Tune random tiny models for some steps and write losses and adapters; alone, or as a rank of torchrun (gloo)."""

import json
import os
import sys
from pathlib import Path

import torch

from vau_lib.toy import tiny_vlm
from vau_lib.vlm import finetuning, instruction_data


def train(family: str, rows_file: Path, out: Path, processes: int, **options) -> None:
    """Take four steps of eight rows in all; write FAMILY.RANK.json (losses) and FAMILY.RANK.pt (the adapter) into `out`."""
    torch.set_num_threads(1)
    toy_vlm = tiny_vlm.tiny(family, sizes=tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1))
    tuned = toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=4, alpha=8, dropout=0.0))
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    samples = instruction_data.InstructionSamples(rows, rows_file.parent, tuned, num_frames=2)
    plan = finetuning.LoraPlan(max_steps=4, learning_rate=1e-2, batch_size=8 // processes, log_steps=1, **options)
    curve = finetuning.fit(tuned, samples, plan=plan, expect_processes=processes)
    name = f"{family}.{os.environ.get('RANK', '0')}"
    (out / f"{name}.json").write_text(json.dumps(curve["loss"].tolist()))
    torch.save([part.detach() for part in tuned.model.parameters() if part.requires_grad], out / f"{name}.pt")


if __name__ == "__main__":
    rows_file, out = map(Path, sys.argv[1:3])
    for family in sys.argv[3:]:
        train(family, rows_file, out, int(os.environ["WORLD_SIZE"]), workers=1)
    torch.distributed.destroy_process_group()

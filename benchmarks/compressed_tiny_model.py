"""How small may a toy become before it no longer judges? SYNTHETIC close-ups, accuracy over parameters, one run.

- the whole model: the kept InternVL twin with a LoRA adapter trained here and merged; all its parameters count, embeddings too
- each method alone and together, cut on 64 training questions, before and after healing on the whole model's own answers to
  training questions (no labels); strengths are not chosen, the frontier shows all
- bytes on disk and in memory and pre-fill latency are ratios to the whole model in this run, toy width
    python benchmarks/compressed_tiny_model.py [test]      without "test": validation worlds, where rate and passes were chosen
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from vau_lib.compression import distillation, pruning
from vau_lib.evaluation import result_tables
from vau_lib.toy import benchmark as toy_benchmark
from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm import chat, finetuning, inference, instruction_data, models
from vau_lib.workspace import presets

SETS = {"train": (480, 0), "val": (160, 5001), "test": (240, 21001)}  # close-ups, seed
CALIBRATION, HEALING, BATCH, EPOCHS, RATE = 4, 30, 16, 8, 2e-3  # batches, batches, rows, passes, learning rate
ROUNDS = 9


def batches_of(vlm: models.VLM, root: Path, rows: list[dict], count: int) -> list[dict]:
    """Return `count` batches of training questions with their answers, without labels."""
    data = instruction_data.InstructionSamples(rows, root, vlm, num_frames=toy_benchmark.NUM_FRAMES, seed=1)
    order = np.random.default_rng(0).permutation(len(data))[: count * BATCH].reshape(-1, BATCH)
    found = [chat.collate(vlm, [data[int(n)] for n in part]) for part in order]
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in found]


def cuts(model: nn.Module, data: list) -> dict[str, nn.Module]:
    """Return the model cut by each method alone and together, name -> model."""
    found = {"whole": model}
    found |= {f"prune channels {ratio:.0%}": pruning.prune(model, ratio, data) for ratio in (0.3, 0.6, 0.9)}
    found |= {
        f"factorise to {keep_ratio:.0%}": pruning.factorise(model, keep_ratio, data) for keep_ratio in (0.7, 0.5, 0.3)
    }
    found["drop a layer"] = pruning.prune(model, 0, data, layers=1)
    found["prune heads 40%"] = pruning.prune(model, 0, data, heads=0.4)
    for ratio, keep_ratio in ((0.3, 0.7), (0.5, 0.6), (0.6, 0.5), (0.65, 0.45), (0.7, 0.4)):
        found[f"prune {ratio:.0%}, factorise to {keep_ratio:.0%}"] = pruning.factorise(
            pruning.prune(model, ratio, data), keep_ratio, data
        )
    return found


@torch.inference_mode()
def latency(tiny_models: list[nn.Module], batch: dict) -> list[float]:
    """Return each model's median seconds of a pre-fill, rounds interleaved, a warm-up left out."""
    taken = [[] for _ in tiny_models]
    for _ in range(ROUNDS + 1):
        for times, one in zip(taken, tiny_models, strict=True):
            started = time.perf_counter()
            one(**batch)
            times.append(time.perf_counter() - started)
    return [float(np.median(times[1:])) for times in taken]


def on_disk(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        pruning.save(model, folder)
        return (Path(folder) / "model.safetensors").stat().st_size


def reloaded(model: nn.Module, batch: dict) -> float:
    """Return the largest difference of a logit after a fresh process has loaded the saved model."""
    with tempfile.TemporaryDirectory() as folder:
        pruning.save(model, folder)
        with torch.inference_mode():
            torch.save((batch, model(**batch).logits), Path(folder) / "said.pt")
        code = (
            "import sys, torch; from vau_lib.compression import pruning; f = sys.argv[1]; batch, said = torch.load(f + '/said.pt');"
            "torch.set_grad_enabled(False); print(float((pruning.load(f)(**batch).logits - said).abs().max()))"
        )
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])


def main() -> None:
    torch.set_num_threads(1)
    project, part = presets.project(), "test" if "test" in sys.argv else "val"
    folder, found = project / "data" / "synthetic" / "token_accuracy", {}
    for name, (count, seed) in SETS.items():
        found[name] = toy_dataset.make_dataset(
            folder / name, num_videos=count, seed=seed, splits={name: 1.0}, engine="processes"
        )
    rows = toy_dataset.instructions(found["train"])
    asked = [row for row in toy_dataset.instructions(found[part]) if row["task"] == "judgement"]
    twin = toy_benchmark.load_pretrained(project / "data" / "toy_models" / "internvl")
    tuned, _ = finetuning.tune_lora(
        twin, rows, folder / "train", plan=toy_benchmark.TUNING, num_frames=toy_benchmark.NUM_FRAMES
    )
    whole = tuned.replace(model=finetuning.merge(tuned.model).eval())
    embedded = whole.model.get_input_embeddings().weight.numel()
    everything = sum(part.numel() for part in whole.model.parameters())
    print(f"{whole.label}: {everything:,} parameters, {embedded / everything:.0%} of them word vectors")
    calibration = batches_of(whole, folder / "train", rows, CALIBRATION)
    healing = batches_of(whole, folder / "train", rows, HEALING)

    def accuracy(model: nn.Module) -> dict:
        return inference.judge(whole.replace(model=model), asked, folder / part, num_frames=toy_benchmark.NUM_FRAMES)[0]

    small, lines = cuts(whole.model, calibration), []
    seconds = dict(zip(small, latency(list(small.values()), calibration[0]), strict=True))
    for name, one in small.items():
        sizes, cut = pruning.report(whole.model, one), accuracy(one)
        healed = cut
        if name != "whole":
            distillation.distil(one, whole.model, healing, epochs=EPOCHS, learning_rate=RATE)
            healed = accuracy(one)
        kept = healed["judgement"] / lines[0]["healed"] if lines else 1.0
        cost = dict(parameters=sizes["parameters"], bytes=sizes["bytes"], disk=on_disk(one) / on_disk(whole.model))
        cost |= dict(latency=seconds[name] / seconds["whole"], reload_gap=reloaded(one, calibration[0]))
        right = dict(
            cut=cut["judgement"], healed=healed["judgement"], low=healed["low"], high=healed["high"], kept=kept
        )
        lines.append({"method": name} | cost | right)
        print(f"  {name:32}", "  ".join(f"{key} {value:.3g}" for key, value in (cost | right).items()), flush=True)
    table = pd.DataFrame(lines).assign(model=whole.label, videos=len(asked))
    if part == "test":
        result_tables.write_curve(
            project / "data" / "results" / "studies" / "curves" / "compressed_tiny_model.csv", table.round(4)
        )


if __name__ == "__main__":
    main()

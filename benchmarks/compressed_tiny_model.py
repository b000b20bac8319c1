"""Accuracy over size of a tiny model, pruned and factorised, before and after distillation: SYNTHETIC close-ups, one run.

- The whole model is the saved InternVL of data/toy_models with a LoRA adapter tuned here and merged. All its parameters count,
  embeddings too.
- Each method alone and together, calibrated on 64 training questions, before and after distillation on the whole model's logits
  for training questions (no labels). No ratio is chosen; the frontier shows all.
- Bytes on disk and in memory and pre-fill latency are ratios to the whole model in this run, at toy width.
    python benchmarks/compressed_tiny_model.py [test]      without "test": validation worlds, where rate and epochs were chosen
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
CALIBRATION_BATCHES, DISTILLATION_BATCHES, BATCH_SIZE, EPOCHS, LEARNING_RATE = 4, 30, 16, 8, 2e-3
ROUNDS = 9


def batches_of(vlm: models.VLM, root: Path, rows: list[dict], count: int) -> list[dict]:
    """Return `count` batches of training questions with their answers, without labels."""
    data = instruction_data.InstructionSamples(rows, root, vlm, num_frames=toy_benchmark.NUM_FRAMES, seed=1)
    order = np.random.default_rng(0).permutation(len(data))[: count * BATCH_SIZE].reshape(-1, BATCH_SIZE)
    batches = [chat.collate(vlm, [data[int(n)] for n in part]) for part in order]
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]


def compressed_models(model: nn.Module, data: list) -> dict[str, nn.Module]:
    """Return the model compressed by each method alone and together, name -> model."""
    result = {"whole": model}
    for ratio in (0.3, 0.6, 0.9):
        result[f"prune channels {ratio:.0%}"] = pruning.prune(model, ratio, data)
    for keep_ratio in (0.7, 0.5, 0.3):
        result[f"factorise to {keep_ratio:.0%}"] = pruning.factorise(model, keep_ratio, data)
    result["drop a layer"] = pruning.prune(model, 0, data, num_layers=1)
    result["prune heads 40%"] = pruning.prune(model, 0, data, head_ratio=0.4)
    for ratio, keep_ratio in ((0.3, 0.7), (0.5, 0.6), (0.6, 0.5), (0.65, 0.45), (0.7, 0.4)):
        pruned = pruning.prune(model, ratio, data)
        result[f"prune {ratio:.0%}, factorise to {keep_ratio:.0%}"] = pruning.factorise(pruned, keep_ratio, data)
    return result


@torch.inference_mode()
def latency(small: list[nn.Module], batch: dict) -> list[float]:
    """Return each model's median seconds of a pre-fill, rounds interleaved, a warm-up left out."""
    seconds = [[] for _ in small]
    for _ in range(ROUNDS + 1):
        for times, model in zip(seconds, small, strict=True):
            started = time.perf_counter()
            model(**batch)
            times.append(time.perf_counter() - started)
    return [float(np.median(times[1:])) for times in seconds]


def bytes_on_disk(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        pruning.save(model, folder)
        return (Path(folder) / "model.safetensors").stat().st_size


def reload_gap(model: nn.Module, batch: dict) -> float:
    """Return the largest difference of a logit after a fresh process has loaded the saved model."""
    with tempfile.TemporaryDirectory() as folder:
        pruning.save(model, folder)
        with torch.inference_mode():
            torch.save((batch, model(**batch).logits), Path(folder) / "logits.pt")
        code = (
            "import sys, torch; from vau_lib.compression import pruning; f = sys.argv[1];"
            "batch, logits = torch.load(f + '/logits.pt'); torch.set_grad_enabled(False);"
            "print(float((pruning.load(f)(**batch).logits - logits).abs().max()))"
        )
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])


def main() -> None:
    torch.set_num_threads(1)
    project, part = presets.project(), "test" if "test" in sys.argv else "val"
    folder, sets, num_frames = project / "data" / "synthetic" / "token_accuracy", {}, toy_benchmark.NUM_FRAMES
    for name, (count, seed) in SETS.items():
        options = dict(num_videos=count, seed=seed, splits={name: 1.0}, engine="processes")
        sets[name] = toy_dataset.make_dataset(folder / name, **options)
    rows = toy_dataset.instructions(sets["train"])
    questions = [row for row in toy_dataset.instructions(sets[part]) if row["task"] == "judgement"]
    vlm = toy_benchmark.load_pretrained(project / "data" / "toy_models" / "internvl")
    tuned, _ = finetuning.tune_lora(vlm, rows, folder / "train", plan=toy_benchmark.TUNING, num_frames=num_frames)
    whole = tuned.replace(model=finetuning.merge(tuned.model).eval())
    embeddings = whole.model.get_input_embeddings().weight.numel()
    parameters = sum(parameter.numel() for parameter in whole.model.parameters())
    print(f"{whole.label}: {parameters:,} parameters, {embeddings / parameters:.0%} of them word embeddings")
    calibration = batches_of(whole, folder / "train", rows, CALIBRATION_BATCHES)
    distillation_data = batches_of(whole, folder / "train", rows, DISTILLATION_BATCHES)

    def accuracy(model: nn.Module) -> dict:
        return inference.judge(whole.replace(model=model), questions, folder / part, num_frames=num_frames)[0]

    small, lines = compressed_models(whole.model, calibration), []
    seconds = dict(zip(small, latency(list(small.values()), calibration[0]), strict=True))
    for name, model in small.items():
        sizes, before = pruning.report(whole.model, model), accuracy(model)
        after = before
        if name != "whole":
            distillation.distil(model, whole.model, distillation_data, epochs=EPOCHS, learning_rate=LEARNING_RATE)
            after = accuracy(model)
        relative = after["judgement"] / lines[0]["distilled"] if lines else 1.0
        line = dict(parameters=sizes["parameters"], bytes=sizes["bytes"])
        line |= dict(disk=bytes_on_disk(model) / bytes_on_disk(whole.model), latency=seconds[name] / seconds["whole"])
        line |= dict(reload_gap=reload_gap(model, calibration[0]), pruned=before["judgement"])
        line |= dict(distilled=after["judgement"], low=after["low"], high=after["high"], relative_accuracy=relative)
        lines.append({"method": name} | line)
        print(f"  {name:32}", "  ".join(f"{key} {value:.3g}" for key, value in line.items()), flush=True)
    table = pd.DataFrame(lines).assign(model=whole.label, videos=len(questions))
    if part == "test":
        result_tables.write_curve(project / "data" / "results" / "studies" / "curves" / "compressed_tiny_model.csv", table.round(4))


if __name__ == "__main__":
    main()

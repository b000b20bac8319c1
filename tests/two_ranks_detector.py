"""Train a small LSHMA for two epochs and write its losses and weights; alone or as a rank of torchrun (gloo)."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from vau_lib.detectors import lshma_state, trained_detector, training


def train(out: Path) -> None:
    """Train on 16 videos, 8 a step in all; rank 0 writes out.json and out.pt."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    features = {f"v{k}": rng.normal(k % 2, 1, (10 + k, 8)).astype(np.float32) for k in range(20)}
    labels = {name: k % 2 for k, name in enumerate(features)}
    plan = training.TrainingPlan(epochs=2, batch_size=8, learning_rate=1e-2, curriculum_epochs=0, augment_probability=0.0)
    config = lshma_state.LSHMAConfig.xd(width=8, exit_threshold=1.0)
    val = list(features)[16:]
    trained = trained_detector.train(features, labels, val, config=config, plan=plan, steps=None, temporal_difference=False)
    if int(os.environ.get("RANK", "0")) == 0:
        out.with_suffix(".json").write_text(json.dumps(trained.curves[["train_loss", "val_loss"]].to_numpy().tolist()))
        torch.save([part.detach() for part in trained.model.parameters()], out.with_suffix(".pt"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    train(Path(sys.argv[1]))

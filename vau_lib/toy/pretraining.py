"""Pretraining of a tiny vision-language model on synthetic close-ups: vision first, then captions.

A random tiny model that is trained on answers alone learns the language and ignores the images: its loss stops at the entropy
of the classes. Hence two stages:
1. The vision tower and its projector classify every cell of a frame (truth of the masks) through a linear head that is thrown
   away. After it, each visual token holds linearly what the language model needs.
2. Projector and language model learn captions, with the tower frozen.
All data are the synthetic close-ups, and the model's label says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer

from vau_lib.data import video
from vau_lib.data.records import VideoRecord
from vau_lib.toy import dataset as toy_dataset
from vau_lib.vlm import chat
from vau_lib.vlm.finetuning import LoraPlan, fit, loss_curve, training_arguments
from vau_lib.vlm.instruction_data import InstructionSamples
from vau_lib.vlm.models import VLM
from vau_lib.workspace import artifacts

PRETRAINED = "toy, trained on drawn close-ups"  # the model's kind
CLASSES = toy_dataset.FIRST_EVENT + len(toy_dataset.LEADING)
EMPTY_CLASS_WEIGHT = 0.3  # three cells in four are empty; at full weight only the empty class is learned
FRAME_BATCH, CAPTION_BATCH = 48, 16


@dataclass(frozen=True)
class PretrainingPlan:
    """Length and learning rates of both stages; `num_frames` per caption. The defaults made `data/toy_models`."""

    frame_epochs: float = 9.0
    frame_learning_rate: float = 2e-3
    caption_steps: int = 350
    caption_learning_rate: float = 2e-3
    num_frames: int = 6
    seed: int = 0


class EventClassifier(nn.Module):
    """Vision tower and projector with a linear head per visual token: frames -> the class of each of 16 cells."""

    def __init__(self, vlm: VLM):
        super().__init__()
        self.core = vlm.model.model
        self.head = nn.Linear(vlm.model.config.get_text_config().hidden_size, CLASSES)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, image_grid_thw: Tensor | None = None) -> dict:
        """Labels (N, 16) -> {"loss", "logits" (N, 16, classes)}; the image inputs are the processor's own."""
        images = {"pixel_values": pixel_values} | ({} if image_grid_thw is None else {"image_grid_thw": image_grid_thw})
        tokens = torch.stack(list(chat.encode_images(self.core, images).pooler_output))
        logits = self.head(tokens)
        if labels is None:
            return {"logits": logits}
        weight = torch.ones(CLASSES, device=logits.device)
        weight[toy_dataset.NOTHING] = EMPTY_CLASS_WEIGHT
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight), "logits": logits}


class FrameSamples(torch.utils.data.Dataset):
    """Every frame of some videos as an image with the classes of its cells; mirrored half of the time in training."""

    def __init__(self, frames: np.ndarray, truth: np.ndarray, vlm: VLM, *, mirror: bool = True):
        self.frames = torch.from_numpy(frames.reshape(-1, *frames.shape[-3:])).permute(0, 3, 1, 2)  # (N, 3, H, W)
        self.truth = torch.from_numpy(truth.astype(np.int64).reshape(-1, *truth.shape[-2:]))  # (N, 4, 4)
        self.vlm, self.mirror = vlm, mirror

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        frame, truth = self.frames[index], self.truth[index]
        if self.mirror and torch.rand(()) < 0.5:
            return frame.flip(-1), truth.flip(-1).flatten()
        return frame, truth.flatten()

    def collate(self, items: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return frames as the processor prepares them, with labels (N, 16)."""
        images = chat.prepare_images(self.vlm, [frame for frame, _ in items])
        return images | {"labels": torch.stack([truth for _, truth in items])}


def read_frames_and_truth(root: str | Path, records: Sequence[VideoRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Return close-ups as (frames uint8 (V, T, H, W, 3), truth uint8 (V, T, 4, 4))."""
    root = Path(root)
    frames = np.stack([video.read_frames(root / r.path, range(r.num_frames)) for r in records])
    truth = np.stack([artifacts.load_array(root / "truth" / f"{r.id}.npy") for r in records])
    return frames, truth


def pretrain_vision(
    vlm: VLM, train: FrameSamples, val: FrameSamples, *, plan: PretrainingPlan
) -> tuple[EventClassifier, pd.DataFrame]:
    """Train the model's tower and projector in place on frames; return the classifier and the loss curve."""
    torch.manual_seed(plan.seed)
    classifier = EventClassifier(vlm)
    for name, parameter in classifier.named_parameters():
        parameter.requires_grad_("language_model" not in name)
    settings = LoraPlan(
        epochs=plan.frame_epochs, learning_rate=plan.frame_learning_rate, weight_decay=0.05, warmup_ratio=0.1,
        batch_size=FRAME_BATCH, log_steps=max(1, len(train) // FRAME_BATCH), save_steps=10**9, seed=plan.seed,
    )  # fmt: skip
    with TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=classifier,
            args=training_arguments(scratch, settings, progress=False, evaluate=True),
            train_dataset=train,
            eval_dataset=val,
            data_collator=train.collate,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return classifier.eval(), loss_curve(trainer.state.log_history)


def pretrain(
    vlm: VLM, root: str | Path, records: Sequence[VideoRecord], *, plan: PretrainingPlan | None = None
) -> tuple[VLM, dict[str, pd.DataFrame]]:
    """Train a random tiny model on the splits train and val: frames, then captions. Return it and the loss curves.

    The model is changed in place and ends with every parameter trainable.
    """
    plan, parts = plan or PretrainingPlan(), {s: [r for r in records if r.split == s] for s in ("train", "val")}
    frames = {s: FrameSamples(*read_frames_and_truth(root, part), vlm, mirror=s == "train") for s, part in parts.items()}
    _, vision_curve = pretrain_vision(vlm, frames["train"], frames["val"], plan=plan)
    vlm.model.requires_grad_(True)
    vision_tower(vlm).requires_grad_(False)
    rows = {s: toy_dataset.instructions(part, ["caption"], seed=plan.seed) for s, part in parts.items()}
    samples = {
        s: InstructionSamples(r, root, vlm, random=s == "train", num_frames=plan.num_frames, seed=plan.seed)
        for s, r in rows.items()
    }
    settings = LoraPlan(
        max_steps=plan.caption_steps, learning_rate=plan.caption_learning_rate, batch_size=CAPTION_BATCH,
        warmup_ratio=0.1, log_steps=50, save_steps=10**9, seed=plan.seed,
    )  # fmt: skip
    caption_curve = fit(vlm, samples["train"], samples["val"], plan=settings, progress=False)
    vlm.model.requires_grad_(True).eval()
    return replace(vlm, kind=PRETRAINED), {"frames": vision_curve, "captions": caption_curve}


def vision_tower(vlm: VLM) -> nn.Module:
    """Return InternVL's vision tower without its projector, or Qwen's tower with its merger."""
    core = vlm.model.model
    return core.vision_tower if vlm.family == "internvl" else core.visual

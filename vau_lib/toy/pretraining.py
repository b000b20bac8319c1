"""Teach a toy to see before it learns to speak: an eye first, then words for what it sees, then (elsewhere) judgement.

A random toy trained on answers alone learns the language and ignores the picture: its loss stops at the entropy of the
classes. So
1. the vision tower and its projector tell, for every cell of a still, who or what is there (truth of the masks), through a
   linear head that is thrown away; after it, each picture token says linearly what the language model needs
2. projector and language model learn captions, the tower frozen
All of it is the close-up world: what comes out is a toy and its label says so.
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

TAUGHT = "toy, trained on drawn close-ups"

CLASSES = toy_dataset.FIRST_EVENT + len(toy_dataset.LEADING)

NOTHING_WEIGHS = 0.3  # three cells in four are empty; at full weight "nothing" is the first thing learned and the last

STILLS, TURNS = 48, 16  # batch sizes


@dataclass(frozen=True)
class CaptionSamples:
    """How long to teach; `frames` are how many a caption shows. The defaults took a twin to what `data/toy_models` says."""

    still_epochs: float = 9.0
    still_rate: float = 2e-3
    caption_steps: int = 350
    caption_rate: float = 2e-3
    frames: int = 6
    seed: int = 0


class EventClassifier(nn.Module):
    """Vision tower and projector with a linear head per picture token: stills -> what is in each of 16 cells."""

    def __init__(self, vlm: VLM):
        super().__init__()
        self.core = vlm.model.model
        self.head = nn.Linear(vlm.model.config.get_text_config().hidden_size, CLASSES)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, image_grid_thw: Tensor | None = None) -> dict:
        """labels (N, 16) -> {"loss", "logits" (N, 16, classes)}; the picture inputs are the processor's own."""
        images = {"pixel_values": pixel_values} | ({} if image_grid_thw is None else {"image_grid_thw": image_grid_thw})
        tokens = torch.stack(list(chat.encode_images(self.core, images).pooler_output))
        logits = self.head(tokens)
        if labels is None:
            return {"logits": logits}
        weight = torch.ones(CLASSES, device=logits.device)
        weight[toy_dataset.NOTHING] = NOTHING_WEIGHS
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight), "logits": logits}


class Stills(torch.utils.data.Dataset):
    """Every frame of some videos as a picture of its own, with its cells' truth; mirrored half of the time to train."""

    def __init__(self, frames: np.ndarray, truth: np.ndarray, vlm: VLM, *, mirror: bool = True):
        self.frames = torch.from_numpy(frames.reshape(-1, *frames.shape[-3:])).permute(0, 3, 1, 2)  # (N, 3, H, W)
        self.truth = torch.from_numpy(truth.astype(np.int64).reshape(-1, *truth.shape[-2:]))  # (N, 4, 4)
        self.vlm, self.mirror = vlm, mirror

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        frame, truth = self.frames[place], self.truth[place]
        if self.mirror and torch.rand(()) < 0.5:
            return frame.flip(-1), truth.flip(-1).flatten()
        return frame, truth.flatten()

    def collate(self, items: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return stills as the processor prepares them, with labels (N, 16)."""
        seen = chat.prepare_images(self.vlm, [frame for frame, _ in items])
        return seen | {"labels": torch.stack([truth for _, truth in items])}


def read(root: str | Path, found: Sequence[VideoRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Return close-ups as (frames uint8 (V, T, H, W, 3), truth uint8 (V, T, 4, 4))."""
    root = Path(root)
    frames = np.stack([video.read_frames(root / r.path, range(r.num_frames)) for r in found])
    truth = np.stack([artifacts.load_array(root / "truth" / f"{r.id}.npy") for r in found])
    return frames, truth


def warm_up(vlm: VLM, train: Stills, val: Stills, *, lessons: CaptionSamples) -> tuple[EventClassifier, pd.DataFrame]:
    """Train the model's tower and projector in place on stills; return the eye with its head, and the loss curve."""
    torch.manual_seed(lessons.seed)
    eye = EventClassifier(vlm)
    for name, part in eye.named_parameters():
        part.requires_grad_("language_model" not in name)
    steps = max(1, len(train) // STILLS)
    plan = LoraPlan(
        epochs=lessons.still_epochs, learning_rate=lessons.still_rate, weight_decay=0.05, warmup_ratio=0.1,
        batch_size=STILLS, log_steps=steps, save_steps=10**9, seed=lessons.seed,
    )  # fmt: skip
    with TemporaryDirectory() as scratch:
        engine = Trainer(
            model=eye, args=training_arguments(scratch, plan, progress=False, evaluate=True), train_dataset=train,
            eval_dataset=val, data_collator=train.collate,
        )  # fmt: skip
        engine.remove_callback(PrinterCallback)
        engine.train()
    return eye.eval(), loss_curve(engine.state.log_history)


@torch.inference_mode()
def alarm(eye: EventClassifier, vlm: VLM, frames: np.ndarray) -> np.ndarray:
    """Return how sure the eye is that some cell shows an event, (V, T) in [0, 1], of frames (V, T, H, W, 3)."""
    stills = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).flatten(0, 1)
    parts = [eye(**chat.prepare_images(vlm, list(part)))["logits"].softmax(-1) for part in stills.split(STILLS)]
    events = torch.cat(parts)[..., toy_dataset.FIRST_EVENT :].sum(-1).amax(-1)
    return events.view(frames.shape[:2]).numpy()


def teach(
    vlm: VLM, root: str | Path, found: Sequence[VideoRecord], *, lessons: CaptionSamples | None = None
) -> tuple[VLM, dict[str, pd.DataFrame]]:
    """Teach a random twin on the close-ups of the splits train and val: stills, then captions. Return it and the curves.

    Its model is changed in place and ends with everything trainable again.
    """
    lessons, parts = lessons or CaptionSamples(), {s: [r for r in found if r.split == s] for s in ("train", "val")}
    stills = {s: Stills(*read(root, part), vlm, mirror=s == "train") for s, part in parts.items()}
    _, seen = warm_up(vlm, stills["train"], stills["val"], lessons=lessons)
    vlm.model.requires_grad_(True)
    tower(vlm).requires_grad_(False)
    rows = {s: toy_dataset.instructions(part, ["caption"], seed=lessons.seed) for s, part in parts.items()}
    samples = {
        s: InstructionSamples(r, root, vlm, random=s == "train", num_frames=lessons.frames, seed=lessons.seed)
        for s, r in rows.items()
    }
    plan = LoraPlan(
        max_steps=lessons.caption_steps, learning_rate=lessons.caption_rate, batch_size=TURNS, warmup_ratio=0.1,
        log_steps=50, save_steps=10**9, seed=lessons.seed,
    )  # fmt: skip
    spoken = fit(vlm, samples["train"], samples["val"], plan=plan, progress=False)
    vlm.model.requires_grad_(True).eval()
    return replace(vlm, kind=TAUGHT), {"stills": seen, "captions": spoken}


def tower(vlm: VLM) -> nn.Module:
    """Return the part that looks: the vision tower without InternVL's projector, Qwen's with its merger."""
    core = vlm.model.model
    return core.vision_tower if vlm.family == "internvl" else core.visual

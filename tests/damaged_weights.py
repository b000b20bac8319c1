"""Damage done to a folder's model.safetensors, by name: what a loader has to refuse in one line."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FAULTS = ("12 fewer", "one more", "other shape", "half the bytes", "no bytes")


def damage(path: Path, fault: str) -> None:
    """Change the file: tensors are taken away, added or of another shape, or the file is cut."""
    stored, whole = load_file(path), path.read_bytes()
    names = sorted(stored)
    changed = {
        "12 fewer": {name: stored[name] for name in names[12:]},
        "one more": stored | {"language_model.unknown": torch.zeros(2)},
        "other shape": stored | {names[0]: torch.zeros(3, 3)},
    }
    if fault in changed:
        save_file(changed[fault], path, metadata={"format": "pt"})
    else:
        path.write_bytes({"half the bytes": whole[: len(whole) // 2], "no bytes": b""}[fault])

"""One seed for all that draws without a generator of its own; light, so that a notebook without training loads no engine."""

import random

import numpy as np


def seed_everything(seed: int) -> np.random.Generator:
    """Seed Python, NumPy and torch once per notebook; return a generator for what is drawn explicitly."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of every device
    return np.random.default_rng(seed)

"""What several tests share: real data when there is any, a small video made on the spot."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; processes that tests start share the cores with other tests

from pathlib import Path

import numpy as np
import pytest
import torch

from vau_lib.data import video

BESIDE = Path(__file__).parents[2] / "shared" / "data"  # where a checkout for CI finds it


def pytest_collection_modifyitems(items: list) -> None:
    """Begin with the files that hold slow tests, so that two processes end at about the same time (`make test`)."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real videos, labels and weights; tests that ask for it are skipped without."""
    folder = Path(os.environ.get("VAU_REAL_DATA") or BESIDE)
    if not folder.is_dir():
        pytest.skip("needs real data: set VAU_REAL_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def xfeat_weights(real_data) -> Path:
    return real_data / "weights" / "xfeat" / "xfeat_bnfolded.pt"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)  # toy sizes are slower with more


def moving_square(num_frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames whose content tells their place: a bright square steps right over noise."""
    rng = np.random.default_rng(0)
    frames = rng.integers(40, 80, (num_frames, height, width, 3), dtype=np.uint8)
    for place in range(num_frames):
        frames[place, 20:36, place % (width - 16) : place % (width - 16) + 16] = 230
    return frames


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """A 50-frame H.264 video of 64 x 96 pixels at 25 frames per second."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    video.write_video(path, moving_square(50), fps=25)
    return path

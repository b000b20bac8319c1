"""Frames decoded on a GPU: taken where times, sizes and colours are the CPU's, else the CPU decodes and one line says why."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vau_lib.data import video, video_readers
from vau_lib.features import xfeat


@dataclass
class Batch:
    data: torch.Tensor
    pts_seconds: torch.Tensor


def decoder_with(colour: int = 0, late_s: float = 0.0):
    """A stand-in for torchcodec's decoder on a card, which reads by PyAV and is off by a colour or a time."""

    class Decoder:
        def __init__(self, path, *, stream_index, dimension_order, device):
            assert dimension_order == "NHWC" and device == "cpu"  # the test's card
            times = video.frame_times(path)
            frames = video.read_frames(path, range(len(times)), reader="pyav").astype(int) + colour
            self.frames, self.times = torch.from_numpy(frames.clip(0, 255).astype(np.uint8)), torch.from_numpy(times + late_s)

        def __len__(self):
            return len(self.frames)

        def get_frames_at(self, places):
            return Batch(self.frames[places], self.times[places])

    return lambda: Decoder


def test_frames_of_the_card_are_taken_within_the_tolerance(clip, monkeypatch):
    for colour in (0, 2):
        monkeypatch.setattr(video_readers, "_torchcodec", decoder_with(colour))
        frames = torch.cat(list(video.device_frames(clip, "cpu"))).numpy().astype(int)
        apart = np.abs(frames - video.read_frames(clip, range(50)))
        assert frames.shape == (50, 64, 96, 3) and apart.max() <= colour and apart.mean() >= 0.9 * colour


@pytest.mark.parametrize(
    "wrong, why",
    [(dict(colour=5), "its colours are 5.0 of 255 from the CPU's"), (dict(late_s=0.02), "its frames have other times")],
)
def test_what_is_further_off_is_decoded_on_the_cpu_with_a_line(clip, monkeypatch, wrong, why):
    monkeypatch.setattr(video_readers, "_torchcodec", decoder_with(**wrong))
    with pytest.warns(UserWarning, match=f"clip.mp4 is decoded on the CPU: {why}"):
        assert video.device_frames(clip, "cpu") is None


def test_without_torchcodec_the_cpu_decodes_with_a_line(clip, monkeypatch):
    def missing():
        raise video.VideoError("reader 'torchcodec' needs the extra video-torchcodec")

    monkeypatch.setattr(video_readers, "_torchcodec", missing)
    with pytest.warns(UserWarning, match="decoded on the CPU: reader 'torchcodec' needs the extra"):
        assert video.device_frames(clip, "cpu") is None


def test_features_of_tensors_are_those_of_arrays(clip):
    encoder = xfeat.XFeatEncoder("random", side=64, bfloat16=False, device="cpu")
    frames = torch.from_numpy(video.read_frames(clip, range(50)))
    gray = xfeat.resized(frames.float().mean(-1), 64)
    rows = np.stack(list(encoder.snippet_features(iter(gray), 16)))
    np.testing.assert_allclose(rows, np.stack(list(encoder.encode(clip, 16))), atol=1e-5)

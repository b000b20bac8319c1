"""Frames decoded on a GPU: taken where times, sizes and colours are the CPU's, else the CPU decodes and one line says why."""

import importlib.util
import sys
from dataclasses import dataclass

import av
import numpy as np
import pytest
import torch

from vau_lib.data import video, video_readers
from vau_lib.features import xfeat

DALI = importlib.util.find_spec("nvidia.dali") if importlib.util.find_spec("nvidia") else None
with_dali = pytest.mark.skipif(DALI is None, reason="needs the extra video-dali")


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
        assert video.device_frames(clip, "cpu", ["torchcodec"]) is None


def dali_with(colour: int = 0, late_s: float = 0.0, skipped: int = 0, lost: int = 0):
    """A stand-in for DALI's batches, which reads by PyAV and is off by a colour, a time, a frame left out or the last ones lost."""

    def batches(track, device, batch):
        frames = video.read_frames(track.path, range(len(track.pts) - lost), reader="pyav").astype(int) + colour
        places, times = np.arange(len(frames)), video.frame_times(track.path)[: len(frames)] + late_s
        places[1:] += skipped
        filled = -len(frames) % batch  # DALI fills its last batch up with frames of number -1, at second -1
        frames = np.pad(frames.clip(0, 255).astype(np.uint8), [(0, filled), (0, 0), (0, 0), (0, 0)])
        places, times = (np.pad(values, (0, filled), constant_values=-1) for values in (places, times))
        for first in range(0, len(frames), batch):
            part = slice(first, first + batch)
            yield torch.from_numpy(frames[part]), places[part], times[part]

    return batches


def test_dali_is_taken_where_torchcodec_is_not(clip, monkeypatch):
    def missing():
        raise video.VideoError("reader 'torchcodec' needs the extra video-torchcodec")

    monkeypatch.setattr(video_readers, "_torchcodec", missing)
    monkeypatch.setattr(video_readers, "_dali", dali_with(colour=1))
    frames = torch.cat(list(video.device_frames(clip, "cpu"))).numpy().astype(int)
    apart = np.abs(frames - video.read_frames(clip, range(50)))
    assert frames.shape == (50, 64, 96, 3) and apart.max() == 1  # what fills the last batch up is not given away


@pytest.mark.parametrize(
    "wrong, why",
    [
        (dict(colour=5), "its colours are 5.0 of 255 from the CPU's"),
        (dict(late_s=0.02), "its frames have other times"),
        (dict(skipped=1), "it counts other frames"),
    ],
)
def test_what_dali_has_further_off_is_decoded_on_the_cpu_with_a_line(clip, monkeypatch, wrong, why):
    monkeypatch.setattr(video_readers, "_dali", dali_with(**wrong))
    with pytest.warns(UserWarning, match=f"clip.mp4 is decoded on the CPU: {why}"):
        assert video.device_frames(clip, "cpu", ["dali"]) is None


def test_frames_that_dali_loses_at_the_end_are_an_error(clip, monkeypatch):
    monkeypatch.setattr(video_readers, "_dali", dali_with(lost=3))
    with pytest.raises(video.VideoError, match="clip.mp4: it has 47 of 50 frames"):
        list(video.device_frames(clip, "cpu", ["dali"]))


@pytest.fixture
def photo_like(tmp_path):
    """A function of a name and a codec: 50 frames of slow waves of gray and some colour, as DALI's own codecs read them."""

    def make(name, codec, pixels):
        y, x = np.mgrid[:64, :96] / 16
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
            for shift in np.arange(50) / 10:
                wave = np.stack([np.sin(x + shift), np.sin(x + 0.5 + shift), np.sin(x + y / 4 + shift)], -1)
                frame = av.VideoFrame.from_ndarray((128 + 60 * wave).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return tmp_path / name

    return make


@with_dali
@pytest.mark.parametrize("name, codec, pixels", [("a.webm", "libvpx-vp9", "yuv420p"), ("a.avi", "mjpeg", "yuvj420p")])
def test_dali_itself_reads_all_frames_in_order(photo_like, name, codec, pixels):
    """On the CPU, where DALI has VP8, VP9 and MJPEG; on a card it takes the same operator of its own decoder."""
    path = photo_like(name, codec, pixels)
    frames = torch.cat(list(video.device_frames(path, "cpu", ["dali"]))).numpy().astype(int)
    expected = video.read_frames(path, range(50), reader="pyav").astype(int)
    apart = np.abs(frames - expected).mean((1, 2, 3))
    others = np.abs(frames[:-1] - expected[1:]).mean((1, 2, 3))
    assert frames.shape == (50, 64, 96, 3) and apart.max() <= video_readers.COLOUR_TOLERANCE < others.min()


@with_dali
def test_a_codec_that_dali_does_not_know_is_one_line(clip):
    with pytest.warns(UserWarning, match="clip.mp4: dali cannot read it: it finds no stream of a codec that it knows here"):
        assert video.device_frames(clip, "cpu", ["dali"]) is None


def test_without_both_the_cpu_decodes_with_a_line(clip, monkeypatch):
    for absent in ("torchcodec", "torchcodec.decoders", "nvidia.dali"):
        monkeypatch.setitem(sys.modules, absent, None)  # what an import of a missing package finds
    both = "decoded on the CPU: torchcodec: reader 'torchcodec' needs the extra .+; dali: reader 'dali' needs the extra video-dali"
    with pytest.warns(UserWarning, match=both):
        assert video.device_frames(clip, "cpu") is None


def test_features_of_tensors_are_those_of_arrays(clip):
    encoder = xfeat.XFeatEncoder("random", side=64, bfloat16=False, device="cpu")
    frames = torch.from_numpy(video.read_frames(clip, range(50)))
    gray = xfeat.resized(frames.float().mean(-1), 64)
    rows = np.stack(list(encoder.snippet_features(iter(gray), 16)))
    np.testing.assert_allclose(rows, np.stack(list(encoder.encode(clip, 16))), atol=1e-5)

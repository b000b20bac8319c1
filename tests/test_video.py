"""Frames are named by presentation order and every bad file is one clear line."""

import os
import shutil
import signal
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import moving_square
from PIL import Image

from vau_lib.data import video


def test_probe_counts_frames_and_knows_the_clock(clip):
    info = video.probe(clip)
    assert (info.num_frames, info.height, info.width, info.fps, info.duration_s) == (50, 64, 96, 25.0, 2.0)


def test_readers_agree_bit_for_bit_in_any_order(clip):
    index = [49, 0, 7, 7, 31]
    by_decord, by_av = (video.read_frames(clip, index, reader=reader) for reader in ("decord", "pyav"))
    assert by_decord.dtype == np.uint8 and by_decord.shape == (5, 64, 96, 3)
    assert np.array_equal(by_decord, by_av)
    assert np.array_equal(by_decord[2], by_decord[3])


def test_a_frame_is_the_frame_asked_for(clip):
    for place in (3, 24, 47):
        bright = video.read_frames(clip, [place])[0, 28].mean(-1) > 180
        assert abs(np.flatnonzero(bright)[0] - place) <= 1  # the square starts at column `place`


def test_gray_is_the_mean_of_the_colours(clip):
    gray = np.stack(list(video.gray_frames(clip)))
    colour = video.read_frames(clip, range(50))
    assert np.allclose(gray, colour.mean(-1), atol=1e-3)


def test_a_folder_of_images_is_a_video(tmp_path):
    for place, frame in enumerate(moving_square(4)):
        Image.fromarray(frame).save(tmp_path / f"{place:03d}.png")
    assert video.probe(tmp_path).num_frames == 4
    assert np.array_equal(video.read_frames(tmp_path, [2, 0]), moving_square(4)[[2, 0]])
    assert len(list(video.gray_frames(tmp_path))) == 4


def _write(path, pts, *, rate=30):
    """Frames shown at `pts` milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for moment, frame in zip(pts, moving_square(len(pts)), strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = moment, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def test_variable_rate_maps_by_presentation_time(tmp_path):
    _write(tmp_path / "vfr.mkv", [0, 40, 80, 1080, 2080, 2120])
    assert np.allclose(video.frame_times(tmp_path / "vfr.mkv"), [0, 0.04, 0.08, 1.08, 2.08, 2.12])
    assert video.index_at(tmp_path / "vfr.mkv", [0.0, 0.5, 1.09, 9.0]).tolist() == [0, 2, 3, 5]


def test_a_container_without_a_frame_count_is_counted(tmp_path):
    _write(tmp_path / "clip.mkv", range(0, 400, 40))
    with av.open(str(tmp_path / "clip.mkv")) as container:
        assert container.streams.video[0].frames == 0  # Matroska does not say
    assert video.probe(tmp_path / "clip.mkv").num_frames == 10


def test_a_wrong_extension_is_read_by_content(clip, tmp_path):
    shutil.copy(clip, tmp_path / "clip.txt")
    assert video.probe(tmp_path / "clip.txt").num_frames == 50


def test_what_is_written_is_reproducible_and_whole(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        video.write_video(tmp_path / name, moving_square(20), fps=12.5)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert video.probe(tmp_path / "a.mp4").fps == 12.5
    with pytest.raises(video.VideoError, match="even"):
        video.write_video(tmp_path / "odd.mp4", np.zeros((2, 15, 16, 3), np.uint8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def _audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _no_frames(path):
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()


BAD = {
    "missing": (lambda path, good: None, "no such file"),
    "empty": (lambda path, good: path.write_bytes(b""), "empty"),
    "truncated": (lambda path, good: path.write_bytes(good[: len(good) // 2]), "not a readable video|cut short"),
    "text": (lambda path, good: path.write_text("not a video\n" * 200), "not a readable video|text"),
    "image": (lambda path, good: Image.new("RGB", (64, 64)).save(path, format="png"), "still image"),
    "audio": (lambda path, good: _audio(path), "no video stream"),
    "zero": (lambda path, good: _no_frames(path), "no frames|not a readable"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_one_line_that_names_them(kind, clip, tmp_path):
    path = tmp_path / f"{kind}.mp4"
    make, reason = BAD[kind]
    make(path, clip.read_bytes())
    for use in (video.probe, lambda p: video.read_frames(p, [0]), lambda p: list(video.gray_frames(p))):
        with pytest.raises(video.VideoError, match=reason) as caught:
            use(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_data_cut_off_behind_a_whole_header_is_noticed(tmp_path):
    whole = tmp_path / "whole.mp4"
    with av.open(str(whole), "w", options={"movflags": "faststart"}) as container:  # header first, data after
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in moving_square(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
    with pytest.raises(video.VideoError, match=r"cut\.mp4: cut short"):
        video.probe(cut)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_reads_after_its_parent_has_read(clip):
    """As a DataLoader's worker does; FFmpeg's converter waits for threads that a fork does not have."""
    expected = video.read_frames(clip, [1, 7], reader="pyav")
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(video.read_frames(clip, [1, 7], reader="pyav"), expected) else 1)
    for _ in range(300):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError("it waits for ever")
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("index", [[50], [-1], [0, 999]])
def test_a_frame_outside_the_video_is_refused(index, clip):
    with pytest.raises(video.VideoError, match="outside its 50 frames"):
        video.read_frames(clip, index)


def test_sampling_takes_the_middles_of_equal_parts():
    assert video.sample_index(100, 4).tolist() == [12, 37, 62, 87]
    assert video.sample_index(3, 6).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.real
def test_real_containers_read_alike_by_both_readers(real_data):
    for path in sorted((real_data / "videos" / "demo").glob("*.mp4")):  # HEVC, variable rate, H.264
        index = video.sample_index(video.probe(path).num_frames, 5)
        both = [video.read_frames(path, index, reader=reader) for reader in ("decord", "pyav")]
        assert np.array_equal(*both), path.name


@pytest.mark.real
def test_robbery102_is_what_its_annotation_says(real_data):
    info = video.probe(real_data / "videos" / "ucf_crime" / "Robbery102_x264.mp4")
    assert (info.num_frames, info.height, info.width) == (1827, 240, 320)


@pytest.mark.parametrize(("width", "height"), [(856, 480), (854, 480), (360, 202), (131, 96), (128, 101), (96, 64)])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p"])
def test_gray_has_the_bits_of_the_colours_at_every_size(width, height, pixels, tmp_path):
    """FFmpeg's planes have other bits than its packed colours at widths that leave its vector code a rest, and at odd heights."""
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    with av.open(str(tmp_path / "noise.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    colours = video.read_frames(tmp_path / "noise.mkv", [0, 1])
    assert np.array_equal(np.stack(list(video.gray_frames(tmp_path / "noise.mkv"))), colours.mean(-1, dtype=np.float32))

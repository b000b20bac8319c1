"""A frame is the one its own number says, in every container and codec we can write, however it is asked and whoever reads.

The truth is in the pictures: each spells its number in eight bars, which no reader of ours has a say in.
"""

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vau_lib.data import video, video_index

PLACE = Path(__file__).parents[1] / "benchmarks" / "video_readers.py"
SPEC = importlib.util.spec_from_file_location("video_readers_benchmark", PLACE)
numbers = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = numbers  # dataclasses look their module up
SPEC.loader.exec_module(numbers)
ENCODINGS = numbers.ENCODINGS
BY_DECORD = {
    "h264.mp4", "h264.mov", "h264.mkv", "h264 one group.mp4", "h264 full range.mp4", "h264 fragmented.mp4",
    "h264 variable rate.mkv", "h264 variable rate.mp4", "hevc closed.mp4",
}  # fmt: skip


@pytest.fixture(scope="session")
def numbered_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbered")

    def file(name: str) -> Path:
        path = folder / name
        return path if path.exists() else numbers.write(path, ENCODINGS[name])

    return file


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_frame_is_what_its_number_says(name, numbered_files):
    path, encoding = numbered_files(name), ENCODINGS[name]
    truth, count = list(encoding.numbers), len(encoding.numbers)
    assert video.probe(path).num_frames == count
    shuffled = random.Random(0).sample(range(count), count)
    questions = [
        list(range(count)),
        shuffled,
        list(range(count))[::-7],
        list(range(0, count, 4)),
        *([p] for p in range(count - 1, -1, -9)),
    ]
    together = None
    for reader in ("decord", "pyav", "auto"):
        for question in questions:
            frames = video.read_frames(path, question, reader=reader)
            assert [numbers.number_of(numbers.upright(frame, encoding)) for frame in frames] == [truth[p] for p in question], reader
            together = frames if together is None else together
            assert np.array_equal(frames, together[question]), reader  # the same bits, alone, together, by any reader
    gray = np.stack(list(video.gray_frames(path)))
    assert np.array_equal(gray, together.mean(-1, dtype=np.float32))


@pytest.mark.parametrize("name", ENCODINGS)
def test_times_rise_at_the_rate_of_the_recording(name, numbered_files):
    path, encoding = numbered_files(name), ENCODINGS[name]
    times = video.frame_times(path)
    expected = np.arange(len(encoding.numbers)) / numbers.FPS
    if encoding.kind == "variable":
        expected = np.array([40 * n + 300 * (n > 20) + 7 * (n % 3) for n in range(numbers.FRAMES)]) / 1000
    assert np.allclose(times, expected, atol=0.002) and (np.diff(times) > 0).all()
    assert video.index_at(path, times + 0.004).tolist() == list(range(len(times)))
    live_times, frames = zip(*video.live(path), strict=True)
    assert np.allclose(live_times, times)
    assert [numbers.number_of(numbers.upright(frame, encoding)) for frame in frames] == list(encoding.numbers)


def test_without_decord_pyav_reads_and_says_so(numbered_files, monkeypatch):
    """As on macOS and on Linux with ARM, where decord has no wheel."""
    path, places = numbered_files("h264.mp4"), [40, 3, 41]
    expected = video.read_frames(path, places, reader="pyav")
    monkeypatch.setitem(sys.modules, "decord", None)  # its import fails
    video.video_readers._decord.cache_clear()
    for reader in ("auto", "decord"):
        assert np.array_equal(video.read_frames(path, places, reader=reader), expected)
        by, why = video.reader_of(path, reader)
        assert by == "pyav" and why.startswith("decord cannot be imported")


def test_decord_reads_where_it_is_exact_and_nowhere_else(numbered_files):
    pytest.importorskip("decord")
    assert {name for name in ENCODINGS if video.reader_of(numbered_files(name))[0] == "decord"} == BY_DECORD
    assert video.reader_of(numbered_files("hevc open.mp4"), "decord") == ("pyav", "an open group of pictures")


def test_decord_whose_first_sought_frame_is_another_is_not_asked_again(numbered_files, tmp_path, monkeypatch):
    path = shutil.copy(numbered_files("h264.mp4"), tmp_path / "copy.mp4")
    decord = pytest.importorskip("decord")
    real = decord.VideoReader

    class Shifted(real):
        def get_batch(self, places):
            return super().get_batch([max(int(place) - 1, 0) for place in places])

    monkeypatch.setattr(decord, "VideoReader", Shifted)
    assert numbers.number_of(video.read_frames(path, [40])[0]) == 40
    assert "frame 16 is not the one" in video.reader_of(path)[1]


def test_seeking_that_lands_wrong_is_noticed_and_the_file_is_read_from_the_start(numbered_files, tmp_path, monkeypatch):
    path = shutil.copy(numbered_files("h264 open.ts"), tmp_path / "copy.ts")
    real = video.video_readers._from_keyframe
    monkeypatch.setattr(video.video_readers, "_from_keyframe", lambda *a: ((p - 1, f) for p, f in real(*a)))
    assert [numbers.number_of(frame) for frame in video.read_frames(path, [5, 33, 58])] == [5, 33, 58]


def test_a_wanted_frame_costs_its_group_not_the_file(numbered_files, tmp_path, monkeypatch):
    """600 frames of MPEG-TS, eight of them: fewer than a third is decoded."""
    encoding = replace(ENCODINGS["h264.ts"], options=ENCODINGS["h264.ts"].options | {"g": "25"})
    path = tmp_path / "camera.ts"
    numbers._encode(path, encoding, (numbers.numbered(n % 256) for n in range(600)))
    decoded, real = [], video_index.decoded
    monkeypatch.setattr(video_index, "decoded", lambda *a: (decoded.append(1) or frame for frame in real(*a)))
    places = video.sample_index(600, 8)
    assert [numbers.number_of(frame) for frame in video.read_frames(path, places)] == [p % 256 for p in places]
    assert len(decoded) < 200


def _resized(path, suffix):
    """Two streams of 30 frames, 128x96 then 256x192, in one."""
    codec = {"mpg": "mpeg2 B.mpg", "ts": "h264.ts"}.get(suffix, "raw.h264")
    encoding, raw = replace(ENCODINGS[codec], options=ENCODINGS[codec].options | {"bf": "0"}), b""
    for height, width in ((96, 128), (192, 256)):
        part = path.with_name(f"{height}.{encoding.suffix}")
        numbers._encode(part, encoding, (numbers.numbered(n, height, width) for n in range(30)))
        raw += part.read_bytes()
    if suffix in ("mpg", "ts", "h264"):
        path.write_bytes(raw)
        return path
    (path.parent / "both.h264").write_bytes(raw)
    with av.open(str(path.parent / "both.h264"), format="h264") as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            packet.pts = packet.dts = place
            packet.time_base, packet.stream = Fraction(1, 30), stream
            new.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["ts", "mpg", "h264", "mp4", "mkv"])
@pytest.mark.parametrize("reader", ["auto", "decord", "pyav"])
def test_pictures_that_change_size_are_one_line_for_every_reader(suffix, reader, tmp_path):
    path = _resized(tmp_path / f"sizes.{suffix}", suffix)
    for use in (lambda: video.read_frames(path, range(60), reader=reader), lambda: list(video.gray_frames(path))):
        with pytest.raises(video.VideoError, match=rf"sizes\.{suffix}: pictures change from 128x96 to 256x192 at frame \d+$"):
            use()


def test_the_cover_picture_of_a_file_is_not_its_video(tmp_path, numbered_files):
    path, cover = tmp_path / "cover.mp4", tmp_path / "cover.avi"
    numbers._encode(cover, ENCODINGS["mjpeg.avi"], [numbers.numbered(255, 64, 96)])
    with av.open(str(cover)) as picture, av.open(str(numbered_files("h264.mkv"))) as film, av.open(str(path), "w") as new:
        first = new.add_stream_from_template(picture.streams.video[0])
        first.disposition = av.stream.Disposition.attached_pic
        second = new.add_stream_from_template(film.streams.video[0])
        for source, stream in ((picture, first), (film, second)):
            for packet in (packet for packet in source.demux(video=0) if packet.size):
                packet.stream = stream
                new.mux(packet)
    assert video.probe(path).num_frames == 60
    for reader in ("auto", "pyav"):
        assert [numbers.number_of(frame) for frame in video.read_frames(path, [0, 31, 59], reader=reader)] == [0, 31, 59]


def test_times_of_decoding_in_place_of_times_of_showing_do_not_shuffle_frames(numbered_files, tmp_path):
    """A bare stream with B-frames put into mp4 by a tool that counts packets."""
    path = tmp_path / "counted.mp4"
    with av.open(str(numbered_files("raw.h264")), format="h264") as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            packet.pts = packet.dts = place
            packet.time_base, packet.stream = Fraction(1, 30), stream
            new.mux(packet)
    for reader in ("decord", "pyav"):
        assert [numbers.number_of(frame) for frame in video.read_frames(path, range(60), reader=reader)] == list(range(60))
    assert np.allclose(video.frame_times(path), np.arange(60) / 30, atol=1e-3)


def test_a_hole_in_a_file_costs_the_frames_in_it_and_shifts_no_other(numbered_files, tmp_path):
    for name in ("h264.mp4", "h264.ts", "hevc open.mkv", "mpeg2 B.mpg"):
        path, raw = tmp_path / name, bytearray(numbered_files(name).read_bytes())
        hole = len(raw) * 2 // 5
        raw[hole : hole + 400] = bytes(400)
        path.write_bytes(raw)
        last = video.probe(path).num_frames - 1
        for reader in ("decord", "pyav"):
            try:
                first_frame, last_frame = video.read_frames(path, [0, last], reader=reader)
            except video.VideoError as error:
                assert name in str(error) and "\n" not in str(error)
                continue
            assert (numbers.number_of(first_frame), numbers.number_of(last_frame)) == (0, 59), (name, reader)


LOAD = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("numbered", sys.argv[1])
numbers = importlib.util.module_from_spec(spec); sys.modules["numbered"] = numbers; spec.loader.exec_module(numbers)
import numpy as np
from vau_lib.data import video
from torchcodec.decoders import VideoDecoder
try:
    VideoDecoder(sys.argv[2] + "/h264.mp4")
except Exception as error:
    sys.exit("NO " + str(error)[:200].replace(chr(10), " "))
for name, encoding in numbers.ENCODINGS.items():
    path = Path(sys.argv[2]) / name
    count, _, by = numbers.right(path, encoding, "torchcodec")
    places = range(len(encoding.numbers))
    same = np.array_equal(video.read_frames(path, places, reader="torchcodec"), video.read_frames(path, places, reader="pyav"))
    print(name, count == len(encoding.numbers), same, by, sep="|")
"""


def test_torchcodec_gives_the_same_frames_and_bits(numbered_files, tmp_path):
    if importlib.util.find_spec("torchcodec") is None:
        pytest.skip("torchcodec is not installed: pip install vau-lib[video-torchcodec]")
    folder = {numbered_files(name).parent for name in ENCODINGS}.pop()
    environment = dict(os.environ)
    if (bundled := Path(av.__file__).parents[1] / "av.libs").is_dir():  # PyAV's own FFmpeg by its true names, for want of another
        for library in bundled.iterdir():
            stem, _, version = library.name.partition(".so.")
            (tmp_path / f"{stem.rpartition('-')[0]}.so.{version.split('.')[0]}").symlink_to(library)
        environment["LD_LIBRARY_PATH"] = f"{tmp_path}:{bundled}"
    command = [sys.executable, "-c", LOAD, str(PLACE), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if "NO " in done.stderr:
        pytest.skip(f"torchcodec does not load here: {done.stderr.strip()[:120]}")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(ENCODINGS)
    assert [row for row in rows if row[1:3] != ["True", "True"]] == []
    assert sum(row[3] == "torchcodec" for row in rows) >= 20  # elsewhere PyAV: MPEG-TS, where its exact mode is not exact, ...


def test_torchcodec_missing_is_one_line_that_says_what_to_do(numbered_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # what an import of a missing package finds
    with pytest.raises(video.VideoError, match="needs the extra video-torchcodec and FFmpeg's shared libraries") as caught:
        video.read_frames(numbered_files("h264.mp4"), [0], reader="torchcodec")
    assert "\n" not in str(caught.value)

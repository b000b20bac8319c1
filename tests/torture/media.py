"""Damaged videos of every container through probe, frames, gray, live and analyse: no crash, no hang, one VideoError."""

import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from random import Random

import av
import numpy as np

from torture.common import HANG_S, Tally, limited, refused
from torture.kill_models import small_detector
from torture.mutants import damaged_bytes
from vau_lib import analyse, cascade
from vau_lib.data import video, video_worker

KINDS = [  # suffix, codec, pixel format, options
    (".mp4", "libx264", "yuv420p", {}), (".mp4", "libx265", "yuv420p", {"x265-params": "log-level=none"}),
    (".mp4", "mpeg4", "yuv420p", {}), (".mkv", "libx264", "yuv420p", {"bf": "2"}), (".avi", "mpeg4", "yuv420p", {}),
    (".avi", "mjpeg", "yuvj420p", {}), (".mov", "libx264", "yuv420p", {}), (".webm", "libvpx", "yuv420p", {}),
    (".webm", "libvpx-vp9", "yuv420p", {}), (".ts", "libx264", "yuv420p", {}), (".mpg", "mpeg1video", "yuv420p", {}),
    (".mpg", "mpeg2video", "yuv420p", {}),
]  # fmt: skip
FORMATS = {".mkv": "matroska", ".ts": "mpegts", ".mpg": "mpeg"}
BOXES = [
    b"stts",
    b"stsz",
    b"stsc",
    b"stco",
    b"ctts",
    b"stss",
    b"tkhd",
    b"mdhd",
    b"mvhd",
    b"avcC",
    b"elst",
    b"hdrl",
    b"strh",
    b"strf",
    b"idx1",
]


def films(root: Path) -> list[Path]:
    """Write a small video of every kind that this build of FFmpeg writes."""
    made = []
    for number, (suffix, codec, pixels, options) in enumerate(KINDS):
        path = root / f"{number:02}_{codec}{suffix}"
        try:
            with av.open(str(path), "w", format=FORMATS.get(suffix)) as container:
                stream = container.add_stream(codec, rate=Fraction(25), options={"g": "8", **options})
                stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
                for place in range(20):
                    frame = np.random.default_rng(place).integers(0, 255, (64, 96, 3), dtype=np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
            video.probe(path)
            made.append(path)
        except (av.error.FFmpegError, ValueError, OSError):
            path.unlink(missing_ok=True)
    return made


def damaged(data: bytes, rng: Random) -> bytes:
    """Return a video damaged anywhere, or in a box of its header: huge and negative counts, sizes and clocks, zero rates."""
    places = [(data.find(box), box) for box in BOXES if box in data]
    if not places or rng.random() < 0.4:
        return damaged_bytes(data, rng)
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2])):
        place, _box = rng.choice(places)
        at = place + rng.choice([-4, 4, 8, 12, 16, 20, 24, 28])
        value = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 7, rng.randrange(2**32)])
        out[at : at + 4] = struct.pack(rng.choice([">I", "<I"]), value)
    return bytes(out)


@video_worker.apart()
def read_all(path: Path) -> None:
    info = video.probe(path)
    video.read_frames(path, [0, info.num_frames - 1])
    video.read_frames(path, [info.num_frames // 2], reader="pyav")
    sum(1 for _ in video.gray_frames(path)), sum(1 for _ in video.live(path))


def look(detector: cascade.Detector, folder: Path, path: Path) -> None:
    try:
        analyse.analyse(path, detector, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(root: Path, *, count: int, seed: int, seconds: float = 20.0) -> list[Tally]:
    """Damage `count` videos; tallies by container, and one of `vau analyse`."""
    rng, tallies, made = Random(seed), {}, films(root)
    detector = cascade.load_detector(small_detector(root / "detector"), threshold=0.5)
    before, video_worker.SECONDS = video_worker.SECONDS, seconds
    try:
        for number in range(count + len(made)):
            film = made[number % len(made)]
            bad = root / f"bad_{number}{film.suffix}"
            bad.write_bytes(film.read_bytes() if number < len(made) else damaged(film.read_bytes(), rng))
            for kind, read in ((film.suffix, read_all), ("analyse", partial(look, detector, root / "report"))):
                tally = tallies.setdefault(kind, Tally(f"media: {kind}"))
                with tally.one(f"{film.name}, mutant {number} of seed {seed}"), limited(2 * HANG_S):
                    _read_or_refused(tally, read, bad, good=number < len(made))
            bad.unlink()
    finally:
        video_worker.SECONDS = before
        while video_worker._waiting:
            video_worker._waiting.pop().stop()
    return list(tallies.values())


def _read_or_refused(tally: Tally, read: Callable[[Path], None], path: Path, *, good: bool) -> None:
    try:
        read(path)
        tally.outcomes["read"] += 1
    except Exception as error:
        assert not good, f"a good video is refused: {error}"
        refused(error, path.name)
        assert isinstance(error, video.VideoError), f"not a VideoError: {error!r:.200}"
        ended = "the process that read it ended" in str(error) or "takes longer" in str(error)
        tally.outcomes["the worker died or was stopped" if ended else "refused"] += 1  # the next one is read all the same

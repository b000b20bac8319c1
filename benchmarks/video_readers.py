"""Frames right of 60 and seconds, by container, codec and reader; every frame spells its own number in eight bars.

python benchmarks/video_readers.py
"decord alone" is decord without our list of frames, as a caller of decord would use it; torchcodec stands where it loads.
"""

import multiprocessing
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vau_lib.data import video

FRAMES, HEIGHT, WIDTH, FPS, GROUP = 60, 96, 128, 30, 15
PATIENCE_S = 20


@dataclass(frozen=True)
class Encoding:
    """How a file of numbered frames is written: its suffix, codec, options, and what is done to the finished file."""

    suffix: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    kind: str = ""
    numbers: tuple[int, ...] = tuple(range(FRAMES))


X264 = {"crf": "12", "g": str(GROUP), "bf": "2", "preset": "veryfast"}
X265 = {"crf": "12", "preset": "veryfast", "x265-params": f"keyint={GROUP}:min-keyint={GROUP}:bframes=3:open-gop=1:log-level=none"}
X265_CLOSED = X265 | {"x265-params": X265["x265-params"].replace("open-gop=1", "open-gop=0")}
MPEG = {"b": "3000000", "g": "12", "bf": "2"}
PLAIN = {"b": "3000000", "g": "12", "bf": "0"}
VPX = {"crf": "15", "b": "0", "g": str(GROUP), "deadline": "realtime", "cpu-used": "8"}
INTERLACED = X264 | {"flags": "+ildct+ilme", "x264-params": "interlaced=1:tff=1"}
OPEN_X264 = X264 | {"x264-params": f"open-gop=1:keyint={GROUP}:min-keyint={GROUP}:bframes=2:scenecut=0"}
ENCODINGS = {
    "h264.mp4": Encoding("mp4", "libx264", X264),
    "h264.mov": Encoding("mov", "libx264", X264),
    "h264.mkv": Encoding("mkv", "libx264", X264),
    "h264.flv": Encoding("flv", "libx264", X264),
    "h264.avi": Encoding("avi", "libx264", X264),
    "h264.ts": Encoding("ts", "libx264", X264),
    "h264 without B.avi": Encoding("avi", "libx264", X264 | {"bf": "0"}),
    "h264 one group.mp4": Encoding("mp4", "libx264", X264 | {"g": "250"}),
    "h264 open.mp4": Encoding("mp4", "libx264", OPEN_X264),
    "h264 open.mkv": Encoding("mkv", "libx264", OPEN_X264),
    "h264 open.ts": Encoding("ts", "libx264", OPEN_X264),
    "h264 full range.mp4": Encoding("mp4", "libx264", X264, pixels="yuvj420p"),
    "h264 4:4:4.mp4": Encoding("mp4", "libx264", X264, pixels="yuv444p"),
    "h264 10 bit.mp4": Encoding("mp4", "libx264", X264, pixels="yuv420p10le"),
    "h264 interlaced.mp4": Encoding("mp4", "libx264", INTERLACED),
    "h264 interlaced.ts": Encoding("ts", "libx264", INTERLACED),
    "h264 fragmented.mp4": Encoding("mp4", "libx264", X264, kind="fragmented"),
    "h264 variable rate.mkv": Encoding("mkv", "libx264", X264, kind="variable"),
    "h264 variable rate.mp4": Encoding("mp4", "libx264", X264, kind="variable"),
    "h264 turned 90.mp4": Encoding("mp4", "libx264", X264, kind="turned"),
    "h264 mirrored.mp4": Encoding("mp4", "libx264", X264, kind="mirrored"),
    "h264 edit list.mp4": Encoding("mp4", "libx264", X264, kind="edited", numbers=tuple(range(21, FRAMES))),
    "h264 joined.ts": Encoding("ts", "libx264", X264, kind="joined", numbers=(*range(FRAMES), *range(FRAMES))),
    "h264 begins late.ts": Encoding("ts", "libx264", X264, kind="late", numbers=tuple(range(GROUP, FRAMES))),
    "hevc open.mp4": Encoding("mp4", "libx265", X265),
    "hevc open.mkv": Encoding("mkv", "libx265", X265),
    "hevc open.ts": Encoding("ts", "libx265", X265),
    "hevc closed.mp4": Encoding("mp4", "libx265", X265_CLOSED),
    "hevc 10 bit.mp4": Encoding("mp4", "libx265", X265, pixels="yuv420p10le"),
    "hevc 10 bit.mkv": Encoding("mkv", "libx265", X265, pixels="yuv420p10le"),
    "mpeg4 B.avi": Encoding("avi", "mpeg4", MPEG),
    "mpeg4 packed B.avi": Encoding("avi", "mpeg4", MPEG | {"bf": "1"}, kind="packed"),
    "mpeg4.avi": Encoding("avi", "mpeg4", PLAIN),
    "mpeg4 B.mp4": Encoding("mp4", "mpeg4", MPEG),
    "mpeg4 B.mkv": Encoding("mkv", "mpeg4", MPEG),
    "msmpeg4.avi": Encoding("avi", "msmpeg4v3", PLAIN),
    "mjpeg.avi": Encoding("avi", "mjpeg", {"q:v": "3", "b": "4000000"}, pixels="yuvj420p"),
    "mjpeg.mov": Encoding("mov", "mjpeg", {"b": "4000000"}, pixels="yuvj420p"),
    "mpeg2 B.mpg": Encoding("mpg", "mpeg2video", MPEG),
    "mpeg2 B.ts": Encoding("ts", "mpeg2video", MPEG),
    "mpeg2 B.mkv": Encoding("mkv", "mpeg2video", MPEG),
    "mpeg1 B.mpg": Encoding("mpg", "mpeg1video", MPEG),
    "vp8.webm": Encoding("webm", "libvpx", VPX | {"b": "2000000", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9.webm": Encoding("webm", "libvpx-vp9", VPX | {"lag-in-frames": "16", "auto-alt-ref": "1"}),
    "av1.mp4": Encoding("mp4", "libsvtav1", {"crf": "15", "preset": "8", "svtav1-params": "enable-tf=0", "g": str(GROUP)}),
    "av1.webm": Encoding("webm", "libsvtav1", {"crf": "15", "preset": "8", "svtav1-params": "enable-tf=0", "g": str(GROUP)}),
    "wmv2.wmv": Encoding("wmv", "wmv2", PLAIN),
    "ffv1.mkv": Encoding("mkv", "ffv1", {}),
    "raw.h264": Encoding("h264", "libx264", X264),
}
FORMATS = {"ts": "mpegts", "mkv": "matroska", "mpg": "mpeg", "wmv": "asf"}


def numbered(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return an RGB frame (H, W, 3) whose lower half spells its number: bar b is bright when bit b is set."""
    frame, bar = np.full((height, width, 3), 90, np.uint8), width // 8
    frame[: height // 4, : width // 4] = 200, 30, 30
    frame[height // 2 :] = 16
    for bit in range(8):
        if number >> bit & 1:
            frame[height // 2 :, bit * bar : (bit + 1) * bar] = 235
    return frame


def number_of(frame: np.ndarray) -> int:
    """Read the number of a frame, colour (H, W, 3) or gray (H, W)."""
    rows, bar = slice(frame.shape[0] * 5 // 8, frame.shape[0] * 7 // 8), frame.shape[1] // 8
    return sum(1 << bit for bit in range(8) if frame[rows, bit * bar + 4 : (bit + 1) * bar - 4].mean() > 140)


def write(path: Path, encoding: Encoding) -> Path:
    """Write numbered frames as `encoding` says; its own `numbers` are what a player shows."""
    kind = encoding.kind
    moments = [40 * n + 300 * (n > 20) + 7 * (n % 3) for n in range(FRAMES)] if kind == "variable" else None
    _encode(path, encoding, (numbered(n) for n in range(FRAMES)), moments)
    raw = path.read_bytes()
    if kind == "joined":
        path.write_bytes(raw + raw)
    if kind == "late":  # the first packets of the stream are gone: what remains begins inside a group of pictures
        path.write_bytes(raw[len(raw) // 12 // 188 * 188 :])
    if kind in ("turned", "mirrored"):
        matrix = (0, 1, 0, -1, 0, 0, 0, 0, 16384) if kind == "turned" else (-1, 0, 0, 0, 1, 0, 0, 0, 16384)
        at = raw.index(b"tkhd") + 4 + 40
        path.write_bytes(raw[:at] + struct.pack(">9i", *(v << 16 for v in matrix[:8]), 1 << 30) + raw[at + 36 :])
    if kind == "edited":
        _remux(path, _cut)
    if kind == "packed":
        _remux(path, _packed)
    return path


def _encode(path: Path, encoding: Encoding, frames: Iterable[np.ndarray], moments: list[int] | None = None) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if encoding.kind == "fragmented" else {}
    with av.open(str(path), "w", format=FORMATS.get(encoding.suffix), options=options) as container:
        stream = container.add_stream(encoding.codec, rate=FPS, options=dict(encoding.options))
        stream.codec_context.thread_count = 1
        for place, pixels in enumerate(frames):
            if not place:
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], encoding.pixels
                if moments:
                    stream.codec_context.time_base = Fraction(1, 1000)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = (moments[place], Fraction(1, 1000)) if moments else (place, Fraction(1, FPS))
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _remux(path: Path, change) -> None:
    source = path.rename(path.with_name("source." + path.name))
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in change([packet for packet in old.demux(video=0) if packet.size]):
            packet.stream = stream
            new.mux(packet)
    source.unlink()


def _cut(packets: list[av.Packet]) -> Iterator[av.Packet]:
    """Begin at the second keyframe and show from frame 21 on: a trimmer that does not encode again hides the six before."""
    step = packets[0].time_base.denominator // FPS
    start = [place for place, packet in enumerate(packets) if packet.is_keyframe][1]
    for packet in packets[start:]:
        packet.pts, packet.dts = packet.pts - 21 * step, packet.dts - 21 * step
        yield packet


def _packed(packets: list[av.Packet]) -> Iterator[av.Packet]:
    """Put each B-frame into the chunk of the frame it refers to, and an empty picture where it was, as DivX 5 does."""
    parts, chunks = [bytes(packet) for packet in packets], []
    for part in parts:
        chunks += [[part]] if _kind(part) != 2 else []
        if _kind(part) == 2:
            chunks[-1].append(part)
            chunks.append([b"\x00\x00\x01\xb6\x50\x00\x7f"])  # vop_coded 0
    head = b"\x00\x00\x01\xb2DivX503b1393p"
    for place, chunk in enumerate(chunks):
        packet = av.Packet((head if not place else b"") + b"".join(chunk))
        packet.pts = packet.dts = place
        packet.time_base, packet.is_keyframe = Fraction(1, FPS), _kind(chunk[0]) == 0
        yield packet


def _kind(part: bytes) -> int:
    """Return vop_coding_type: 0 I, 1 P, 2 B."""
    return part[part.index(b"\x00\x00\x01\xb6") + 4] >> 6


def upright(frame: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Return a frame as it was drawn, undoing the display matrix `write` gave the file."""
    return {"turned": lambda: np.rot90(frame), "mirrored": lambda: frame[:, ::-1]}.get(encoding.kind, lambda: frame)()


def ask(path: Path, places: list[int], reader: str) -> np.ndarray:
    """Return frames by one of our readers, or by decord alone."""
    if reader != "decord alone":
        return video.read_frames(path, places, reader=reader)
    import decord  # only here: it has no wheel for every machine

    return decord.VideoReader(str(path), num_threads=1).get_batch(places).asnumpy()


def right(path: Path, encoding: Encoding, reader: str) -> tuple[int, float, str]:
    """Return frames that are what their numbers say, asked spread out, then alone from the end; seconds per question; who read."""
    places, started, count = list(range(0, len(encoding.numbers), 4)), time.perf_counter(), 0
    alone = [place for place in reversed(range(len(encoding.numbers))) if place % 4]
    for question in [places, *([place] for place in alone)]:
        for place, frame in zip(question, ask(path, question, reader), strict=True):
            count += number_of(upright(frame, encoding)) == encoding.numbers[place]
    seconds = (time.perf_counter() - started) / (1 + len(alone))
    return count, seconds, reader if reader == "decord alone" else video.reader_of(path, reader)[0]


def row(path: Path, encoding: Encoding, readers: Iterable[str]) -> str:
    """Return a line of the table; each reader in a process of its own, for decord alone may never come back."""
    cells = []
    for reader in readers:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            try:
                count, seconds, by = pool.apply_async(right, (path, encoding, reader)).get(PATIENCE_S)
                cells.append(f"{count}, {1000 * seconds:.1f} ms" + (f" ({by})" if by != reader else ""))
            except multiprocessing.TimeoutError:
                cells.append(f"none in {PATIENCE_S} s")
            except Exception as error:  # decord's own error is a plain one
                cells.append(type(error).__name__)
    return f"| {path.name} | {len(encoding.numbers)} | " + " | ".join(cells) + " |"


def main(folder: Path) -> None:
    """Print the table of all encodings."""
    readers = ["decord alone", "decord", "pyav"]
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(str(write(folder / "probe.mp4", ENCODINGS["h264.mp4"])))
        readers.append("torchcodec")
    except (ImportError, RuntimeError, OSError):
        print("torchcodec does not load here, its column is left out")
    print("| file | frames | " + " | ".join(readers) + " |")
    print("|---" * (len(readers) + 2) + "|")
    for name, encoding in ENCODINGS.items():
        print(row(write(folder / name, encoding), encoding, readers), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))

"""The list of frames a video file shows, in order: what every reader is held to.

- a file is opened with the demuxers of real containers and the `file` protocol only: a playlist cannot open other files
- where packets alone are certain (H.264, HEVC, AV1, VP9 with unique presentation times, a keyframe first), they are the list
- elsewhere (AVI, MPEG program streams, MPEG-4 with packed B-frames, joined recordings, cut recordings) the file is decoded once
- packets an edit list hides are no frames; the display matrix of a phone is applied; times rise although a clock starts again
- a keyframe is a place to seek to when no frame shown after it is decoded before it
"""

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vau_lib.workspace import artifacts

FOLDER_FPS = 10.0  # a folder of images carries no clock; UCSD's were taken at 10 frames per second
CONTAINERS = "mov mp4 matroska webm avi mpegts mpeg flv asf ogg mxf nut ivf yuv4mpegpipe dv gxf rm wtv dhav".split()
SOUGHT_BY_PTS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "nut"}  # the others by decode time
BARE = {"h264", "hevc", "m4v", "mpegvideo", "obu", "vc1", "mjpeg"}  # streams without a container, and so without a clock
OPTIONS = {"format_whitelist": ",".join([*CONTAINERS, *sorted(BARE)]), "protocol_whitelist": "file"}
STILLS = {"mjpeg", "prores", "dnxhd", "huffyuv", "rawvideo", "png", "ffv1"}  # no frame waits for a later packet
CERTAIN = {"h264", "hevc", "av1", "vp9"} | STILLS  # a packet, a frame
INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv", "mpegts", "nut"}  # every packet has its presentation time
COVERS = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails | av.stream.Disposition.still_image
DECORD_CODECS, DECORD_FORMATS = {"h264", "hevc"}, {"yuv420p", "yuvj420p"}


class VideoError(ValueError):
    """A file that cannot be read as a video; the message is one line and names it."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video is: mean frames per second, frames, pixels, seconds from the first frame's start to the last's end."""

    fps: float
    num_frames: int
    height: int
    width: int
    duration_s: float


@dataclass(frozen=True, eq=False)
class Track:
    """The frames shown, T of them, and how they may be reached.

    `pts` is the stream's clock as the decoder gives it (None where it gives none), `ticks` the same made to rise from 0, both in
    units of `time_base`. `keyframes` holds (place, clock to seek to) of every keyframe that decodes all frames from its place on.
    `turn` is (transpose, flip rows, flip columns). `not_decord` says why decord may find other frames, "" where it cannot.
    """

    path: str
    info: VideoInfo
    stream: int
    pts: tuple[int | None, ...]
    ticks: tuple[int, ...]
    time_base: Fraction
    keyframes: tuple[tuple[int, int], ...]
    turn: tuple[bool, bool, bool]
    not_decord: str

    @cached_property
    def places(self) -> dict[int | None, int]:
        """Place of each frame by its clock."""
        return {moment: place for place, moment in enumerate(self.pts)}

    @property
    def unique(self) -> bool:
        """Whether the clock alone tells the frames apart."""
        return None not in self.places and len(self.places) == len(self.pts)


@dataclass(frozen=True)
class _Packet:
    """What the list needs of a packet; `anew` is whether it brings parameter sets, and so perhaps a size, of its own."""

    pts: int | None
    dts: int | None
    key: bool
    hidden: bool
    corrupt: bool
    anew: bool = False


def track(path: str | Path) -> Track:
    """Return the frames a file shows, remembered until the file changes; VideoError for what is no video, empty, or cut short."""
    path = Path(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise VideoError(f"{short_name(path)}: no such file") from error
    if found.st_size == 0:
        raise VideoError(f"{short_name(path)}: the file is empty")
    return _track(os.path.abspath(path), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _track(path: str, changed_ns: int, size: int) -> Track:
    with opened(path) as container:
        stream = video_stream(container, path)
        promised = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if promised > size:
            raise VideoError(f"{short_name(path)}: cut short, {size:,} of at least {promised:,} bytes are there")
        if stream.frames > size:  # a frame has a byte at least; decord reserves memory for what is claimed here
            raise VideoError(f"{short_name(path)}: damaged, its header claims {stream.frames:,} frames in {size:,} bytes")
        packets, first = _packets(container, stream)
        facts = _Facts.of(container, stream, first)
    if not packets or first is None:
        raise VideoError(f"{short_name(path)}: it has no frames")
    pts = tuple(sorted(packet.pts for packet in packets if not packet.hidden)) if _certain(packets, facts) else None
    why = ""
    if pts is None or first.pts != pts[0]:
        pts, why = _decoded_pts(path, first), "its packets do not tell its frames"
    ticks = _rising(pts, facts, restarts=_restarts(packets))
    info = _info(ticks, first, facts)
    return Track(
        path, info, facts.stream, pts, ticks, facts.time_base, _keyframes(packets, pts, facts.container), facts.turn,
        why or _not_decord(path, packets, facts),
    )  # fmt: skip


@contextmanager
def opened(path: str) -> Iterator[av.container.InputContainer]:
    """Open a local file, whatever its name, as a real container; every failure inside becomes a VideoError."""
    try:
        with av.open(f"file:{os.path.abspath(path)}", metadata_errors="ignore", container_options=OPTIONS) as container:
            yield container
    except av.error.ArgumentError as error:  # what a container outside the list gives
        raise VideoError(f"{short_name(path)}: not a readable video: {_looks_like(path)}") from error
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{short_name(path)}: not a readable video: {artifacts.one_line(error.strerror or error, 160)}") from error


def video_stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
    """Return the first video stream that is no cover picture; its codec runs on one thread."""
    streams = [stream for stream in container.streams.video if not stream.disposition & COVERS]
    if not streams:
        raise VideoError(f"{short_name(path)}: it has no video stream")
    known = [stream for stream in streams if stream.codec_context is not None and stream.width and stream.height]
    if not known:
        raise VideoError(f"{short_name(path)}: damaged, its video stream has no picture size or an unknown codec")
    known[0].codec_context.thread_count = 1
    return known[0]


def decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield frames in the order shown; a packet that does not decode is passed over."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        yield from frames


def short_name(path: str | Path) -> str:
    """Return a file's name and folder for a message, always printable."""
    return os.fsencode("/".join(Path(path).parts[-2:])).decode(errors="backslashreplace")


def turned(pixels: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """Return an image (H, W, ...) as it is meant to be seen."""
    transpose, rows, columns = turn
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def turn_of(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return (transpose, flip rows, flip columns) of a frame's display matrix; a tilt that is no right angle is left alone."""
    entry = next((entry for entry in frame.side_data if entry.type.name == "DISPLAYMATRIX"), None)
    if entry is None:
        return False, False, False
    a, b, _, c, d = struct.unpack("=5i", bytes(entry)[:20])  # x' = a x + c y, y' = b x + d y
    if b == c == 0:
        return False, d < 0, a < 0
    return (True, b < 0, c < 0) if a == d == 0 else (False, False, False)


@dataclass(frozen=True)
class _Facts:
    """What a stream's header and first frame say."""

    container: str
    codec: str
    stream: int
    streams: int
    claimed: int
    rate: float
    time_base: Fraction
    interlaced: bool
    reorders: bool
    pixel_format: str
    turn: tuple[bool, bool, bool]

    @classmethod
    def of(cls, container, stream: av.VideoStream, first: av.VideoFrame | None) -> "_Facts":
        try:
            guessed, mean = stream.guessed_rate or 0, stream.average_rate or 0  # a bare stream's mean is FFmpeg's default, 25
            rate = float(guessed or mean if container.format.name in BARE else mean or guessed)
        except (ZeroDivisionError, OverflowError):
            rate = 0.0
        # 1 is FFmpeg's AV_FIELD_PROGRESSIVE, 0 unknown
        interlaced = stream.codec_context.field_order not in (0, 1) or (first is not None and first.interlaced_frame)
        turn = turn_of(first) if first else (False, False, False)
        context, turn = stream.codec_context, turn_of(first) if first else (False, False, False)
        return cls(
            container.format.name, context.codec.canonical_name, stream.index, len(container.streams.video), stream.frames, rate,
            stream.time_base, interlaced, bool(context.has_b_frames), first.format.name if first else "", turn,
        )  # fmt: skip


def _packets(container, stream: av.VideoStream) -> tuple[list[_Packet], av.VideoFrame | None]:
    """Return all packets in decode order and the first frame shown."""
    packets, first = [], None
    for packet in container.demux(stream):
        if packet.size:
            anew = packet.is_keyframe and _brings_parameters(packet, stream)
            packets.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, packet.is_corrupt, anew))
        if first is None:
            try:
                first = next(iter(packet.decode()), None)
            except av.error.FFmpegError:
                continue
    return packets, first


def _brings_parameters(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Return whether a keyframe of H.264 or HEVC holds a sequence parameter set that the header has not."""
    if packet.has_sidedata("new_extradata"):
        return True
    header, data, at = stream.codec_context.extradata or b"", memoryview(packet), 0
    wanted, slices = {"h264": (7, range(1, 6)), "hevc": (33, range(32))}.get(stream.codec_context.codec.canonical_name, (None, ()))
    while wanted and header[:1] == b"\x01" and at + 5 <= len(data):  # 1: units are preceded by their length, as in mp4 and Matroska
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4] & 31 if wanted == 7 else data[at + 4] >> 1 & 63
        if kind in slices:
            break
        if kind == wanted and bytes(data[at + 4 : at + 4 + size]) not in header:
            return True
        at += 4 + size
    return False


def _certain(packets: list[_Packet], facts: _Facts) -> bool:
    """Return whether every packet is exactly one frame shown at its own time."""
    if facts.codec not in CERTAIN or facts.container not in (INDEXED | {"avi"} if facts.codec in STILLS else INDEXED):
        return False
    if facts.container == "mpegts" and (facts.interlaced or facts.codec not in ("h264", "hevc")):
        return False  # a field may have a packet of its own
    pts = [packet.pts for packet in packets]
    if None in pts or len(set(pts)) < len(pts) or any(packet.corrupt for packet in packets) or _restarts(packets):
        return False
    if facts.reorders and pts == sorted(pts):
        return False  # the decoder waits for B-frames, the times know of none: they are those of decoding
    first = packets[0]
    return first.key and (first.hidden or min(packet.pts for packet in packets if not packet.hidden) == first.pts)


def _restarts(packets: list[_Packet]) -> bool:
    """Return whether the decoding clock ever falls, as where two recordings are joined."""
    dts = [packet.dts for packet in packets if packet.dts is not None]
    return any(now < before for before, now in zip(dts, dts[1:], strict=False))


def _decoded_pts(path: str, first: av.VideoFrame) -> tuple[int | None, ...]:
    with opened(path) as container:
        stream, pts = video_stream(container, path), []
        for frame in decoded(container, stream):
            if (frame.width, frame.height) != (first.width, first.height):
                raise VideoError(size_change(path, len(pts), frame, first.width, first.height))
            pts.append(frame.pts)
    return tuple(pts)


def size_change(path: str, place: int, frame: av.VideoFrame, width: int, height: int) -> str:
    """Return the line about a stream whose pictures change size."""
    return f"{short_name(path)}: pictures change from {width}x{height} to {frame.width}x{frame.height} at frame {place}"


def _rising(pts: tuple[int | None, ...], facts: _Facts, *, restarts: bool) -> tuple[int, ...]:
    """Return the clock made to rise from 0: where it falls, stands or is missing, the usual distance follows."""
    if not restarts and None not in pts and len(set(pts)) == len(pts):
        pts = sorted(pts)  # AVI numbers its chunks, not its pictures: the moments are right, their order is that of decoding
    steps = [b - a for a, b in zip(pts, pts[1:], strict=False) if a is not None and b is not None and b > a]
    usual = 1 / (facts.rate or FOLDER_FPS) / facts.time_base if facts.time_base else 1
    step = sorted(steps)[len(steps) // 2] if steps else max(1, round(usual))
    ticks = [0]
    for before, now in zip(pts, pts[1:], strict=False):
        rises = before is not None and now is not None and now > before
        ticks.append(ticks[-1] + (now - before if rises else step))
    return tuple(ticks)


def _info(ticks: tuple[int, ...], first: av.VideoFrame, facts: _Facts) -> VideoInfo:
    between_s = float(ticks[-1] * facts.time_base) / max(len(ticks) - 1, 1)
    fps = 1 / between_s if between_s > 0 else facts.rate or FOLDER_FPS
    if facts.rate and abs(fps - facts.rate) < 0.02 * facts.rate:
        fps = facts.rate  # keep 29.97 as the container writes it; distrust it only when the times contradict it
    size = (first.width, first.height) if facts.turn[0] else (first.height, first.width)
    return VideoInfo(fps, len(ticks), *size, len(ticks) / fps)


def _keyframes(packets: list[_Packet], pts: tuple[int | None, ...], container: str) -> tuple[tuple[int, int], ...]:
    """Return (place, clock to seek to) of keyframes after which nothing is shown that was decoded before."""
    if None in pts or any(later <= before for before, later in zip(pts, pts[1:], strict=False)):
        return ()
    if any(packet.pts is None for packet in packets):
        return ()
    place, latest, found = {moment: place for place, moment in enumerate(pts)}, None, []
    for packet in packets:
        if packet.key and packet.pts in place and (latest is None or latest < packet.pts):
            by_pts = container in SOUGHT_BY_PTS or packet.dts is None
            found.append((place[packet.pts], packet.pts if by_pts else packet.dts))
        latest = packet.pts if latest is None else max(latest, packet.pts)
    return tuple(found)


def _not_decord(path: str, packets: list[_Packet], facts: _Facts) -> str:
    """Return why decord's seeking is not certain here, "" where it is: every group of pictures closed, nothing hidden or turned."""
    with open(path, "rb") as file:
        head = file.read(12)
    if not (head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3"):
        return f"a container it does not seek exactly ({facts.container})"
    if facts.codec not in DECORD_CODECS or facts.pixel_format not in DECORD_FORMATS:
        return f"{facts.codec} in {facts.pixel_format}"
    checks = {
        "an interlaced stream, whose colours it mixes": facts.interlaced,
        "a display matrix": any(facts.turn),
        "an edit list that hides packets": any(packet.hidden for packet in packets),
        "several video streams": facts.streams > 1,
        "a header with another count": facts.claimed not in (0, len(packets)),
        "a name that is not UTF-8": not _is_text(path),
        "a keyframe with another size, perhaps": any(packet.anew for packet in packets),
        "an open group of pictures": not _closed(packets),
    }
    return next((reason for reason, holds in checks.items() if holds), "")


def _closed(packets: list[_Packet]) -> bool:
    """Return whether at every keyframe all packets before are shown before, and all packets after, after."""
    latest_from_end, smallest = [None] * len(packets), None
    for place in range(len(packets) - 1, -1, -1):
        latest_from_end[place] = smallest
        smallest = packets[place].pts if smallest is None else min(smallest, packets[place].pts)
    latest = None
    for packet, after in zip(packets, latest_from_end, strict=True):
        if packet.key and not ((latest is None or latest < packet.pts) and (after is None or after > packet.pts)):
            return False
        latest = packet.pts if latest is None else max(latest, packet.pts)
    return True


def _looks_like(path: str) -> str:
    try:
        with Image.open(path):
            return "a still image, not a video"
    except (OSError, ValueError, Image.DecompressionBombError):
        pass
    with open(path, "rb") as file:
        head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    playlist = re.match(rb"#EXTM3U|ffconcat|v=0|<\?xml|<MPD|\[playlist\]", head)
    return "a playlist or a text that names other files" if playlist else "a text or an unknown container"


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Reading and writing video: frames by their place in presentation order, the same bits from decord and PyAV.

- headers may give wrong counts and rates; the list of packets and their presentation times is used instead
- colour goes through decord; PyAV reads what decord cannot (AV1, some broken files)
- gray frames (for XFeat) are made without colour pixels: PyAV's planes are summed, half of decord's time, the same bits
- a wanted frame costs the frames since its keyframe; seek only when a keyframe lies between here and there
- one codec thread per video: at surveillance sizes more threads are slower, so parallelism is over videos
A folder of numbered images is a video too (UCSD Ped2, Avenue, ShanghaiTech come so).
"""

import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import decord
import numpy as np
from PIL import Image, UnidentifiedImageError

from vau_lib.workspace import artifacts

FOLDER_FPS = 10.0  # a folder of images carries no clock; UCSD's were taken at 10 frames per second
VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".bmp"}
READERS = ("auto", "decord", "pyav")
CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}:none", "avfoundation"), "win32": ("video={}", "dshow")}


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


@dataclass(frozen=True)
class _Track:
    """Presentation order of one video: `pts` sorted, the place of each keyframe in it, and the clock."""

    info: VideoInfo
    pts: tuple[int, ...]
    keyframes: tuple[int, ...]
    time_base: Fraction


def probe(path: str | Path) -> VideoInfo:
    """Return rate, size and length of a video, counted from its packets; VideoError for what is no video, empty, or cut short."""
    if Path(path).is_dir():
        images = _images(path)
        with _open_image(images[0]) as first:
            width, height = first.size
        return VideoInfo(FOLDER_FPS, len(images), height, width, len(images) / FOLDER_FPS)
    return _track(path).info


def frame_times(path: str | Path) -> np.ndarray:
    """Return when each frame is shown, seconds from the first, float64 (T,); rises even at a variable rate."""
    if Path(path).is_dir():
        return np.arange(len(_images(path))) / FOLDER_FPS
    track = _track(path)
    return (np.array(track.pts) - track.pts[0]) * float(track.time_base)


def index_at(path: str | Path, times_s: Sequence[float]) -> np.ndarray:
    """Return the frame on screen at each moment (seconds from the first frame), int (N,), cut to the video."""
    starts = frame_times(path)
    place = np.searchsorted(starts, np.asarray(times_s, float) + 1e-6, side="right") - 1
    return np.clip(place, 0, len(starts) - 1)


def sample_index(num_frames: int, count: int) -> np.ndarray:
    """Return `count` frame places spread evenly, the middles of equal parts, int (count,); repeats when count is larger."""
    if num_frames < 1 or count < 1:
        raise ValueError(f"need at least one frame to sample from and one to take, got {num_frames} and {count}")
    return ((np.arange(count) + 0.5) / count * num_frames).astype(int)


def read_frames(path: str | Path, index: Sequence[int], *, reader: str = "auto") -> np.ndarray:
    """Return the frames at `index` in the order asked, repeats allowed: RGB uint8 (T, H, W, 3).

    `reader` is "auto" (decord, then PyAV where decord fails), "decord" or "pyav"; the bits are the same.
    VideoError names the file for a place outside it and for a file that does not decode.
    """
    if reader not in READERS:
        raise ValueError(f"reader must be one of {', '.join(READERS)}, got {reader!r}")
    index = np.asarray(index)
    if index.ndim != 1 or not index.size or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"index must be a list of whole numbers, got shape {index.shape} of {index.dtype}")
    info = probe(path)
    if index.min() < 0 or index.max() >= info.num_frames:
        wrong = index[(index < 0) | (index >= info.num_frames)][0]
        raise VideoError(f"{_name(path)}: frame {wrong} is outside its {info.num_frames} frames")
    wanted, order = np.unique(index, return_inverse=True)
    if Path(path).is_dir():
        images = _images(path)
        return np.stack([_pixels(images[place]) for place in wanted])[order]
    if reader != "pyav":
        try:
            return _read_decord(path, wanted)[order]
        except (decord.DECORDError, RuntimeError) as error:
            if reader == "decord":
                first_line = artifacts.one_line(str(error).split("\n")[0], 160)  # below it decord prints its stack
                raise VideoError(f"{_name(path)}: decord cannot read it: {first_line}") from error
    return np.stack([frame.to_ndarray(format="rgb24") for frame in _read_av(path, wanted)])[order]


def gray_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Yield every frame as gray, float32 (H, W) in [0, 255], in order: the mean of R, G and B (what XFeat takes).

    The colours are the bits `read_frames` gives; planes are summed before anything becomes float, which costs a fraction
    of making (H, W, 3) frames first. VideoError as `read_frames`.
    """
    if Path(path).is_dir():
        for image in _images(path):
            yield _pixels(image).mean(-1, dtype=np.float32)
        return
    for frame in _read_av(path, range(probe(path).num_frames)):
        channels = [_plane(plane) for plane in frame.reformat(format="gbrp").planes]
        total = np.add(channels[0], channels[1], dtype=np.uint16)
        yield np.add(total, channels[2], out=total).astype(np.float32) / 3


def live(source: str | Path, *, timeout_s: float = 10.0) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds since the first frame, RGB uint8 (H, W, 3)) as frames arrive.

    `source` is a file or folder of images (read once, the bits of `read_frames`), the number of a camera ("0"), or an address
    (rtsp://, http://, udp://, tcp://). VideoError when nothing opens or nothing comes for `timeout_s`; a camera or an
    address that closes ends the stream.
    """
    source = str(source)
    if not (source.isdigit() or "://" in source):
        frames = map(_pixels, _images(source)) if Path(source).is_dir() else _rgb_frames(source)
        yield from zip(frame_times(source).tolist(), frames, strict=True)
        return
    url, options = source, {"rtsp_transport": "tcp"} if source.startswith("rtsp") else {}
    name, kind = re.sub(r"//[^/@]*@", "//", source), None  # a password stays out of messages
    if source.isdigit():
        url, kind = CAMERAS.get(sys.platform, CAMERAS["linux"])
        url, name = url.format(source), f"camera {source}"
    try:
        with av.open(url, format=kind, options=options, timeout=timeout_s) as container:
            if not container.streams.video:
                raise VideoError(f"{name}: it has no video stream")
            first = None
            for frame in container.decode(video=0):
                moment = frame.time or 0.0
                first = moment if first is None else first
                yield moment - first, frame.to_ndarray(format="rgb24")
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{name}: no pictures from there: {artifacts.one_line(error.strerror or error, 160)}") from error


def write_video(path: str | Path, frames: Iterable[np.ndarray], *, fps: float = 30.0, crf: int = 20) -> VideoInfo:
    """Write RGB uint8 (H, W, 3) frames as H.264 mp4, whole or not at all; same frames give the same file.

    H and W must be even (4:2:0). `crf` is x264's quality, lower is better. Returns what was written.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise VideoError(f"{_name(path)}: no frames to write")
    height, width = first.shape[:2]
    if first.dtype != np.uint8 or first.shape[2:] != (3,) or height % 2 or width % 2:
        raise VideoError(f"{_name(path)}: frames must be uint8 (H, W, 3), H and W even, got {first.dtype} {first.shape}")
    count = 0
    with artifacts.replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # frame threads change the bits
        # x264's macroblock tree was measured to differ from run to run (its SIMD code), even on one thread
        stream.options = {"crf": str(crf), "preset": "veryfast", "g": "48", "x264-params": "mbtree=0"}
        for pixels in chain([first], frames):
            count += 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    return VideoInfo(float(fps), count, height, width, count / fps)


def _track(path: str | Path) -> _Track:
    """Read the packet list of a file, remembered until the file changes."""
    path = Path(path)
    try:
        found = path.stat()
    except OSError as error:
        raise VideoError(f"{_name(path)}: no such file") from error
    if found.st_size == 0:
        raise VideoError(f"{_name(path)}: the file is empty")
    return _index(str(path), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _index(path: str, changed_ns: int, size: int) -> _Track:
    try:
        with av.open(path) as container:
            if container.format.name.endswith("_pipe") or container.format.name in {"image2", "tty"}:
                raise VideoError(f"{_name(path)}: a still image or text, not a video")
            if not container.streams.video:
                raise VideoError(f"{_name(path)}: it has no video stream")
            stream = container.streams.video[0]
            promised = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
            if promised > size:
                raise VideoError(f"{_name(path)}: cut short, {size:,} of at least {promised:,} bytes are there")
            packets = [(p.pts if p.pts is not None else p.dts, p.is_keyframe) for p in container.demux(stream) if p.size]
            height, width, time_base = stream.height, stream.width, stream.time_base
            rate = float(stream.average_rate or stream.guessed_rate or 0)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{_name(path)}: not a readable video: {artifacts.one_line(error.strerror or error, 160)}") from error
    packets = sorted((pts, key) for pts, key in packets if pts is not None)
    if not packets or not height or not width:
        raise VideoError(f"{_name(path)}: it has no frames")
    pts = tuple(moment for moment, _ in packets)
    between_s = float((pts[-1] - pts[0]) * time_base) / max(len(pts) - 1, 1)
    fps = 1 / between_s if between_s > 0 else rate or FOLDER_FPS
    if rate and abs(fps - rate) < 0.02 * rate:
        fps = rate  # keep 29.97 as the container writes it; distrust it only when the times contradict it
    keyframes = tuple(place for place, (_, key) in enumerate(packets) if key)
    return _Track(VideoInfo(fps, len(pts), height, width, len(pts) / fps), pts, keyframes, time_base)


def _read_decord(path: str | Path, wanted: np.ndarray) -> np.ndarray:
    reader = decord.VideoReader(str(path), num_threads=1)
    if len(reader) <= wanted[-1]:
        raise RuntimeError(f"decord counts {len(reader)} frames")
    frames = reader.get_batch(wanted).asnumpy()
    reader.seek(0)  # drops decord's decoded queue, which otherwise holds hundreds of megabytes
    return frames


def _read_av(path: str | Path, wanted: Sequence[int]) -> Iterator[av.VideoFrame]:
    """Yield the frames at sorted, distinct places, decoding as few others as possible."""
    track = _track(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        decoded, here = container.decode(stream), -1  # here: the place of the frame decoded last
        for place in wanted:
            keyframe = track.keyframes[max(bisect_right(track.keyframes, place) - 1, 0)] if track.keyframes else 0
            if keyframe > here + 1:
                container.seek(track.pts[keyframe], stream=stream)
                decoded = container.decode(stream)
            frame = _decode_to(decoded, track.pts[place])
            if frame is None:
                raise VideoError(f"{_name(path)}: frame {place} does not decode; the file is damaged or cut short")
            here = place
            yield frame


def _rgb_frames(path: str) -> Iterator[np.ndarray]:
    return (frame.to_ndarray(format="rgb24") for frame in _read_av(path, range(probe(path).num_frames)))


def _decode_to(decoded: Iterator[av.VideoFrame], pts: int) -> av.VideoFrame | None:
    try:
        for frame in decoded:
            if frame.pts is None or frame.pts >= pts:
                return frame
    except av.error.FFmpegError:
        return None
    return None


def _plane(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """View one 8-bit plane as (H, W), without its padding."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _images(folder: str | Path) -> list[Path]:
    found = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise VideoError(f"{_name(folder)}: a folder without images is no video")
    return found


def _open_image(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise VideoError(f"{_name(path)}: not a readable image") from error


def _pixels(path: Path) -> np.ndarray:
    with _open_image(path) as image:
        return np.asarray(image.convert("RGB"))


def _name(path: str | Path) -> str:
    return "/".join(Path(path).parts[-2:])


def chunks(items: Iterable, size: int) -> Iterator[list]:
    part = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part

"""Reading and writing video: frames by their place in presentation order, the same frames from decord, PyAV and torchcodec.

- headers may give wrong counts and rates; `video_index` makes the list of frames shown, every reader is held to it
- decord reads where it is certain to find a frame (closed groups of pictures in mp4 and Matroska), PyAV reads the rest
- decord, which brings an FFmpeg of 2018 along, is the default for data sets that are known; what anybody may send (`vau guard`,
  `explain`, `check`, a service's video) is read by PyAV, with the same bits
- gray frames (for XFeat) are made without colour pixels: PyAV's planes are summed, half of decord's time, the same bits
A folder of numbered images is a video too (UCSD Ped2, Avenue, ShanghaiTech come so).
"""

import errno
import os
import re
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from vau_lib.data import video_index, video_readers, video_worker
from vau_lib.data.video_index import FOLDER_FPS, VideoError, VideoInfo
from vau_lib.workspace import artifacts

VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".bmp"}
READERS = ("auto", "decord", "pyav", "torchcodec")
CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}:none", "avfoundation"), "win32": ("video={}", "dshow")}
ADDRESSES = {"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "http", "https", "udp", "tcp"}
ADDRESS_OPTIONS = {"protocol_whitelist": "rtsp,rtsps,rtmp,rtmps,rtp,srtp,srt,http,https,httpproxy,tls,tcp,udp,crypto,data"}


@video_worker.reads
def probe(path: str | Path) -> VideoInfo:
    """Return rate, size and length of a video, counted from its packets; VideoError for what is no video, empty, or cut short."""
    if Path(path).is_dir():
        images = _images(path)
        with _open_image(images[0]) as first:
            width, height = first.size
        return VideoInfo(FOLDER_FPS, len(images), height, width, len(images) / FOLDER_FPS)
    return video_index.track(path).info


def is_video_name(path: Path) -> bool:
    """Return whether a file is called as a video; what a killed copy or download left (.name-x3f.mp4) is not."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


@video_worker.reads
def frame_times(path: str | Path) -> np.ndarray:
    """Return when each frame is shown, seconds from the first, float64 (T,); rises even at a variable rate."""
    if Path(path).is_dir():
        return np.arange(len(_images(path))) / FOLDER_FPS
    track = video_index.track(path)
    return np.array(track.ticks) * float(track.time_base)


@video_worker.reads
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


@video_worker.reads
def read_frames(path: str | Path, index: Sequence[int], *, reader: str = "auto") -> np.ndarray:
    """Return the frames at `index` in the order asked, repeats allowed: RGB uint8 (T, H, W, 3).

    `reader` is "decord", "pyav", "torchcodec" (an extra) or "auto": decord, and PyAV where decord fails; the bits are the same.
    decord and torchcodec read only files in which they are certain to find a frame; the others, whatever is asked, PyAV reads, and
    `reader_of` says why: decord leaves it open groups of pictures, edit lists, MPEG-TS, AVI, turned pictures, and interlaced and
    10-bit ones, to which it and torchcodec give colours of their own.
    VideoError names the file for a place outside it, for a file that does not decode and for pictures that change size.
    """
    if reader not in READERS:
        raise ValueError(f"reader must be one of {', '.join(READERS)}, got {reader!r}")
    index = np.asarray(index)
    if index.ndim != 1 or not index.size or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"index must be a list of whole numbers, got shape {index.shape} of {index.dtype}")
    info = probe(path)
    if index.min() < 0 or index.max() >= info.num_frames:
        wrong = index[(index < 0) | (index >= info.num_frames)][0]
        raise VideoError(f"{video_index.short_name(path)}: frame {wrong} is outside its {info.num_frames} frames")
    wanted, order = np.unique(index, return_inverse=True)
    if Path(path).is_dir():
        images = _images(path)
        return np.stack(list(_all_pixels([images[place] for place in (0, *wanted)]))[1:])[order]
    return _read(video_index.track(path), wanted, reader)[0][order]


@video_worker.reads
def reader_of(path: str | Path, reader: str = "auto") -> tuple[str, str]:
    """Return who reads a file's last frame when `reader` is asked, and why it is another ("" if it is the one asked)."""
    if Path(path).is_dir():
        return "pillow", "a folder of images"
    track = video_index.track(path)
    return _read(track, np.array([len(track.pts) - 1]), reader)[1:]


def _read(track: video_index.Track, wanted: np.ndarray, reader: str) -> tuple[np.ndarray, str, str]:
    """Return frames at sorted, distinct places, who read them, and why it was not the reader asked."""
    why = ""
    if reader != "pyav":
        read = video_readers.read_torchcodec if reader == "torchcodec" else video_readers.read_decord
        try:
            return read(track, wanted), "decord" if reader == "auto" else reader, ""
        except video_readers.Uncertain as error:
            why = str(error)
        except VideoError as error:
            if reader != "auto":
                raise
            why = str(error)
    return np.stack([video_readers.rgb(frame, track) for frame in video_readers.read_av(track, wanted)]), "pyav", why


def gray_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Yield every frame as gray, float32 (H, W) in [0, 255], in order: the mean of R, G and B (what XFeat takes).

    The colours are the bits `read_frames` gives; planes are summed before anything becomes float, which costs a fraction
    of making (H, W, 3) frames first. VideoError as `read_frames`.
    """
    return (np.divide(total, 3, dtype=np.float32) for total in gray_sums(path))


@video_worker.reads_frames
def gray_sums(path: str | Path) -> Iterator[np.ndarray]:
    """Yield R + G + B of every frame, uint16 (H, W), in order: `gray_frames` in half the bytes, for a worker's pipe."""
    if Path(path).is_dir():
        for pixels in _all_pixels(_images(path)):
            yield pixels.sum(-1, dtype=np.uint16)
        return
    track = video_index.track(path)
    for frame in video_readers.read_av(track, range(len(track.pts))):
        yield video_readers.gray_sum(frame, track)


def device_frames(path: str | Path, device: str, readers: Sequence[str] = tuple(video_readers.DEVICE_READERS)) -> Iterator | None:
    """Return an iterator of all frames as torch tensors uint8 (t, H, W, 3) decoded on a GPU, or None where that is not possible.

    The first of `readers` ("torchcodec", "dali") that can is taken. Where none can one warning says why, and the caller decodes on
    the CPU. Colours are the CPU's within `video_readers.COLOUR_TOLERANCE`, checked on the first frame of every file.
    """
    if Path(path).is_dir():
        return None
    track, reasons = video_index.track(path), []
    for reader in readers:
        frames = video_readers.device_frames(track, device, reader)
        try:
            return _rest(path, next(frames), frames)
        except (video_readers.Uncertain, VideoError) as error:
            reasons.append(f"{reader}: {error}" if len(readers) > 1 else str(error))
    warnings.warn(f"{video_index.short_name(path)} is decoded on the CPU: {'; '.join(reasons)}", stacklevel=2)
    return None


def _rest(path: str | Path, first, frames: Iterator) -> Iterator:
    yield first
    try:
        yield from frames
    except video_readers.Uncertain as error:
        raise VideoError(f"{video_index.short_name(path)}: {error}") from error


def live(source: str | Path, *, timeout_s: float = 10.0) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds since the first frame, RGB uint8 (H, W, 3)) as frames arrive.

    `source` is a file or folder of images (read once, the bits of `read_frames`), the number of a camera ("0"), or an address
    (rtsp://, http://, udp://, tcp://, ...). VideoError when nothing opens or nothing comes for `timeout_s`, and where HTTP closes
    before the bytes that it announced; a camera or an address that closes ends the stream.
    """
    source = os.fspath(source)
    if not (source.isdigit() or "://" in source):
        with video_worker.apart():
            times_s, frames = frame_times(source).tolist(), rgb_frames(source)
        yield from zip(times_s, frames, strict=True)
        return
    name, problem, moment = source_name(source), None, None
    try:
        with _open_address(source, timeout_s) as container:
            if not container.streams.video:
                raise VideoError(f"{name}: it has no video stream")
            clock = _rising_clock()
            next(clock)
            for frame in _pictures(container):
                moment = clock.send(frame.time)
                yield moment, video_index.turned(frame.to_ndarray(format="rgb24"), video_index.turn_of(frame))
    except av.error.ExitError:
        problem = f"nothing came for {timeout_s:g} s"
    except (av.error.FFmpegError, OSError) as error:
        problem = artifacts.one_line(error.strerror or type(error).__name__, 160)
    if problem:  # outside `except`: the cause would carry the address, and with it the password, into a traceback
        raise VideoError(f"{name}: no {'pictures' if moment is None else 'more pictures'} from there: {problem}")


def _pictures(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """Yield decoded pictures. HTTP that announces no length ends where it closes, which FFmpeg calls an Input/output error."""
    came = False
    try:
        for frame in container.decode(video=0):
            came = True
            yield frame
    except OSError as error:
        if error.errno != errno.EIO or not came or not container.name.lower().startswith("http"):
            raise
        if container.size > 0:
            raise OSError(errno.EIO, f"it closed before the end of its {container.size:,} bytes") from None
        yield from container.streams.video[0].decode(None)  # those that waited for later ones


def _rising_clock() -> Generator[float, float | None, None]:
    """Take a stream's moments, give seconds since the first; where the clock starts again or is missing, the usual step follows."""
    given, before, seconds, step = (yield 0.0), None, 0.0, 1 / FOLDER_FPS
    while True:
        if given is not None and before is not None and given > before:
            step = given - before
            seconds += step
        elif before is not None or seconds:
            seconds += step
        before = given if given is not None else before
        given = yield seconds


def source_name(source: str | Path) -> str:
    """Return what may be shown of a source: a file's path; of an address neither user, password, query nor `key=value`."""
    source = os.fspath(source)
    if source.isdigit():
        return f"camera {source}"
    if "://" not in source:
        return os.fsencode(source).decode(errors="backslashreplace")
    return re.split(r"[?#]", artifacts.address_shown(source))[0]


def _open_address(source: str, timeout_s: float) -> av.container.InputContainer:
    if source.isdigit():
        url, kind = CAMERAS.get(sys.platform, CAMERAS["linux"])
        return av.open(url.format(source), format=kind, timeout=timeout_s)
    scheme = source.partition("://")[0].lower()
    if scheme not in ADDRESSES:
        raise VideoError(f"{source_name(source)}: an address begins with one of {', '.join(sorted(ADDRESSES))}")
    options = ADDRESS_OPTIONS | ({"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {})
    return av.open(source, metadata_errors="ignore", options=options, timeout=timeout_s)


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], *, fps: float = 30.0, crf: int = 20, preset: str = "veryfast"
) -> VideoInfo:
    """Write RGB uint8 (H, W, 3) frames as H.264 mp4, whole or not at all; same frames give the same file.

    H and W must be even (4:2:0). `crf` is x264's quality, lower is better, `preset` how long it looks for a small file. Returns
    what was written.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise VideoError(f"{video_index.short_name(path)}: no frames to write")
    height, width = first.shape[:2]
    if first.dtype != np.uint8 or first.shape[2:] != (3,) or height % 2 or width % 2:
        name = video_index.short_name(path)
        raise VideoError(f"{name}: frames must be uint8 (H, W, 3), H and W even, got {first.dtype} {first.shape}")
    count = 0
    with artifacts.replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # frame threads change the bits
        # x264's macroblock tree was measured to differ from run to run (its SIMD code), even on one thread
        stream.options = {"crf": str(crf), "preset": preset, "g": "48", "x264-params": "mbtree=0"}
        for pixels in chain([first], frames):
            count += 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    return VideoInfo(float(fps), count, height, width, count / fps)


@video_worker.reads_frames
def rgb_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Yield every frame in order, RGB uint8 (H, W, 3), by PyAV."""
    if Path(path).is_dir():
        yield from _all_pixels(_images(path))
        return
    track = video_index.track(path)
    for frame in video_readers.read_av(track, range(len(track.pts))):
        yield video_readers.rgb(frame, track)


def _images(folder: str | Path) -> list[Path]:
    try:
        paths = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]  # what a killed copy left
    except OSError as error:
        raise VideoError(f"{video_index.short_name(folder)}: cannot be read: {error.strerror}") from error
    found = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    found.sort(key=lambda path: [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", path.name)])  # 2 before 10
    if not found:
        raise VideoError(f"{video_index.short_name(folder)}: a folder without images is no video")
    return found


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image; a broken one fails in any way Pillow has (OSError, SyntaxError, a bomb), and always as a VideoError here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.format != "PNG":  # whose notes stand behind the pixels: all would be decoded for a size
                    ImageOps.exif_transpose(image, in_place=True)
                yield image
    except Exception as error:
        reason = "more pixels than a picture has" if "Bomb" in type(error).__name__ else "not a readable image"
        raise VideoError(f"{video_index.short_name(path)}: {reason}") from error


def _pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return an image (H, W, 3); VideoError where it has another `size` (W, H) than its folder's first."""
    with _open_image(path) as image:
        found, pixels = image.size, _eight_bits(image) if size in (None, image.size) else None
    if pixels is None:
        raise VideoError(f"{video_index.short_name(path)}: pictures change from {size[0]}x{size[1]} to {found[0]}x{found[1]}")
    return pixels


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Return an image's pixels uint8 (H, W, 3); of 16 bits the upper eight, where Pillow would cut all above 255."""
    if image.mode.startswith("I"):
        return np.stack([(np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)] * 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def _all_pixels(images: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yield images of one size, that of the folder's first."""
    with _open_image(images[0]) as first:
        size = first.size
    return (_pixels(image, size) for image in images)


def chunks(items: Iterable, size: int) -> Iterator[list]:
    part = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part

"""Three readers of one list of frames: decord, PyAV, torchcodec; no frame is given away whose clock was not compared.

- PyAV: from the start, or from a keyframe that decodes all that follows; the frame's clock must equal the list's
- decord (where it is installed: it has no wheels for macOS and for Linux on ARM): only where `Track.not_decord` is empty and its
  own times equal the list's
- torchcodec (optional): exact mode; the times of its frames equal the list's
- on a GPU: torchcodec or DALI (optional), where times and sizes are the list's and the first frame's colours nearly the CPU's
- all three: the picture at the first place a file is sought at must have the bits that decoding from the start gives; this costs
  one group of pictures per file
- a wanted frame costs the frames since its keyframe; seek only when a keyframe lies between here and there
- one codec thread per video: at surveillance sizes more threads are slower, so parallelism is over videos
"""

import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, lru_cache
from itertools import chain
from types import ModuleType
from weakref import WeakKeyDictionary

import av
import numpy as np

from vau_lib.data import video_index
from vau_lib.data.video_index import Track, VideoError
from vau_lib.workspace import artifacts

COLOUR_TOLERANCE = 2.0  # of 255, mean over the first frame: NVDEC's conversion to RGB rounds otherwise than FFmpeg's
SEEK_TRIES = 4  # keyframes tried one before the other: a container without an index lands late
Placed = Iterator[tuple[int, av.VideoFrame]]  # (place in the list, frame)
_of_thread = threading.local()  # FFmpeg's converter of pixels: not for two threads at once
_of_parent: list[dict] = []


def _after_fork() -> None:
    """Take new converters: the parent's wait for threads that a fork does not have, when they convert and when they are freed."""
    _of_parent.append(_of_thread.__dict__.pop("converters", {}))


os.register_at_fork(after_in_child=_after_fork) if hasattr(os, "register_at_fork") else None
_agreed: WeakKeyDictionary[Track, dict[str, bool]] = WeakKeyDictionary()  # what a file's check said, by reader


class Uncertain(RuntimeError):
    """Why a reader is not certain to find a file's frames; the caller takes PyAV."""


def read_av(track: Track, wanted: Sequence[int]) -> Iterator[av.VideoFrame]:
    """Yield the frames at sorted, distinct places, decoding as few others as possible; VideoError where one does not decode."""
    with ExitStack() as files:
        container, stream = _open(track, files)
        frames, here, may_seek = _placed(track, _decoded(container, stream), -1), -1, True
        for place in wanted:
            if may_seek and _keyframe(track, place) > here + 1 and _seek_agrees(track):
                ahead = _from_keyframe(track, container, stream, place)
                if ahead is None:  # opened anew is the one sure way to the start
                    container, stream = _open(track, files)
                    ahead, may_seek = _placed(track, _decoded(container, stream), -1), False
                frames = ahead
            here, frame = _forward(track, frames, place)
            yield frame


def rgb(frame: av.VideoFrame, track: Track) -> np.ndarray:
    """Return a frame as RGB uint8 (H, W, 3), as it is meant to be seen."""
    return video_index.turned(_converted(frame, "rgb24").to_ndarray(), track.turn)


def gray_sum(frame: av.VideoFrame, track: Track) -> np.ndarray:
    """Return R + G + B, uint16 (H, W): from planes, where their bits are those of `rgb`."""
    parts = frame.format.components
    by_planes = len(parts) >= 3 and parts[0].bits <= 8 and not frame.interlaced_frame
    if not (by_planes and _planes_agree(frame.format.name, frame.width, frame.height)):
        return rgb(frame, track).sum(-1, dtype=np.uint16)
    channels = [_plane(plane) for plane in _converted(frame, "gbrp").planes]
    total = np.add(channels[0], channels[1], dtype=np.uint16)
    return video_index.turned(np.add(total, channels[2], out=total), track.turn)


def _converted(frame: av.VideoFrame, pixels: str) -> av.VideoFrame:
    """Return a frame in another pixel format: `frame.reformat` prepares a converter for each frame, half a small frame's time."""
    if not hasattr(_of_thread, "converters"):
        _of_thread.converters = {}
    kind = pixels, frame.format.name, frame.width, frame.height
    if kind not in _of_thread.converters:
        _of_thread.converters.clear()  # a file's frames are alike; one that changes size is refused
        _of_thread.converters[kind] = av.video.reformatter.VideoReformatter()
    return _of_thread.converters[kind].reformat(frame, format=pixels)


@lru_cache(maxsize=64)
def _planes_agree(pixels: str, width: int, height: int) -> bool:
    """Return whether FFmpeg makes planes and packed colours of the same bits, tried on noise.

    It does not at widths that leave its vector code a rest (854, 856, 360) and at odd heights, where it changes code.
    """
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    try:
        frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=pixels)
        planes = [_plane(plane) for plane in frame.reformat(format="gbrp").planes]
    except (av.error.FFmpegError, OSError, ValueError):
        return False
    return np.array_equal(frame.to_ndarray(format="rgb24"), np.stack([planes[2], planes[0], planes[1]], -1))


def read_decord(track: Track, wanted: np.ndarray) -> np.ndarray:
    """Return frames (T, H, W, 3) by decord; Uncertain where it may find others, VideoError where it fails."""
    if track.not_decord:
        raise Uncertain(track.not_decord)
    decord = _decord()
    try:
        reader = decord.VideoReader(track.path, num_threads=1)
        if not _agrees(track, "decord times", lambda: _same_times(track, reader)):
            raise Uncertain("decord gives its frames other times")
        _check_picture(track, "decord", wanted, lambda places: reader.get_batch(places).asnumpy())
        frames = reader.get_batch(wanted).asnumpy()
        reader.seek(0)  # drops decord's decoded queue, which otherwise holds hundreds of megabytes
    except decord.DECORDError as error:
        raise VideoError(_failure(track, "decord", error)) from error
    return frames


@cache
def _decord() -> ModuleType:
    """Return decord, imported when a file is first read with it; Uncertain where there is none, and PyAV reads."""
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:  # absent, or a library of another machine
        raise Uncertain(f"decord cannot be imported ({artifacts.one_line(error, 100)})") from error
    return decord


def read_torchcodec(track: Track, wanted: np.ndarray) -> np.ndarray:
    """Return frames (T, H, W, 3) by torchcodec in exact mode; Uncertain where their times are not those of the list.

    VideoError where torchcodec or FFmpeg's shared libraries are missing.
    """
    video_decoder = _torchcodec()
    if not track.unique or list(track.pts) != sorted(track.pts):
        raise Uncertain("the clock starts again or is missing")
    try:
        decoder = video_decoder(track.path, stream_index=track.stream, dimension_order="NHWC", num_ffmpeg_threads=1)
        _check_picture(track, "torchcodec", wanted, lambda places: _by_time(track, decoder, places))
        return _by_time(track, decoder, wanted)
    except Uncertain:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # a codec or a name it does not take
        raise Uncertain(_failure(track, "torchcodec", error)) from error


def device_frames(track: Track, device: str, by: str = "torchcodec", batch: int = 32) -> Iterator:
    """Yield all frames of a file as torch tensors uint8 (t, H, W, 3) on a GPU, decoded there (NVDEC) by one of `DEVICE_READERS`.

    Uncertain where times or sizes are not those of the list, or where the first frame's colours are further from the CPU's than
    `COLOUR_TOLERANCE`; VideoError where the reader is missing. `device="cpu"`: DALI reads VP8, VP9 and MJPEG there.
    """
    if not track.unique or list(track.pts) != sorted(track.pts):
        raise Uncertain("the clock starts again or is missing")
    for place, frames in enumerate(DEVICE_READERS[by](track, device, batch)):
        if not place:
            apart = np.abs(frames[0].cpu().numpy().astype(np.int16) - _expected(track, 0)).mean()
            if apart > COLOUR_TOLERANCE:
                raise Uncertain(f"its colours are {apart:.1f} of 255 from the CPU's, at most {COLOUR_TOLERANCE:g} is allowed")
        yield frames


def _torchcodec_batches(track: Track, device: str, batch: int) -> Iterator:
    video_decoder = _torchcodec()
    try:
        decoder = video_decoder(track.path, stream_index=track.stream, dimension_order="NHWC", device=device)
        for first in range(0, len(track.pts), batch):
            yield _tensor_by_time(track, decoder, np.arange(first, min(first + batch, len(track.pts))))
    except Uncertain:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # a codec the card does not know
        raise Uncertain(_failure(track, "torchcodec", error)) from error


def _dali_batches(track: Track, device: str, batch: int) -> Iterator:
    seconds, step = _seconds(track, range(len(track.pts)))
    ended = 0
    for frames, places, times in _dali(track, device, batch):
        count = int((places >= 0).sum())  # the last batch is filled up with frames of number -1
        expected = seconds[ended : ended + count]
        if not np.array_equal(places[:count], np.arange(ended, ended + len(expected))):
            raise Uncertain("it counts other frames")
        _check_times_and_size(track, frames, times[:count], expected, step)
        ended += count
        yield frames[:count]
    if ended != len(track.pts):
        raise Uncertain(f"it has {ended} of {len(track.pts)} frames")


def _dali(track: Track, device: str, batch: int) -> Iterator[tuple]:
    """Yield DALI's batches: frames (batch, H, W, 3) as a tensor on the device, their numbers and their seconds."""
    try:
        from nvidia.dali import Pipeline, fn
        from nvidia.dali.plugin.pytorch import DALIGenericIterator
    except (ImportError, RuntimeError, OSError) as error:
        raise VideoError(f"reader 'dali' needs the extra video-dali: {artifacts.one_line(error, 100)}") from error
    kind, _, number = device.partition(":")
    names = ["frames", "places", "seconds"]
    try:
        pipeline = Pipeline(batch_size=1, num_threads=1, device_id=int(number or 0) if kind == "cuda" else None)
        with pipeline:
            read = fn.experimental.readers.video(
                name="film", device="gpu" if kind == "cuda" else "cpu", filenames=[os.path.abspath(track.path)],
                sequence_length=batch, pad_mode="constant", enable_timestamps=True, enable_frame_num="sequence",
            )  # fmt: skip
            pipeline.set_outputs(*read)
        for (found,) in DALIGenericIterator([pipeline], names, reader_name="film"):
            yield found["frames"][0], *(found[name][0].cpu().numpy() for name in names[1:])
    except (RuntimeError, ValueError) as error:  # no card, or a codec it does not know; what it is about stands behind a stack
        reason = str(error).rpartition("encountered:")[2].strip()
        if "number of input samples: 0" in reason:
            reason = "it finds no stream of a codec that it knows here"
        raise Uncertain(_failure(track, "dali", reason)) from error


DEVICE_READERS = {"torchcodec": _torchcodec_batches, "dali": _dali_batches}  # in this order


def _by_time(track: Track, decoder, wanted: np.ndarray) -> np.ndarray:
    return _tensor_by_time(track, decoder, wanted).numpy()


def _tensor_by_time(track: Track, decoder, wanted: np.ndarray):
    seconds, step = _seconds(track, wanted)
    if len(decoder) == len(track.pts):
        batch = decoder.get_frames_at(wanted.tolist())
    else:  # it counts what an edit list hides
        batch = decoder.get_frames_played_at((seconds + step / 2).tolist())
    _check_times_and_size(track, batch.data, batch.pts_seconds.cpu().numpy(), seconds, step)
    return batch.data


def _seconds(track: Track, places: Sequence[int]) -> tuple[np.ndarray, float]:
    """Return the seconds at which frames are shown, and the shortest time between two frames of the file."""
    step = float(min(np.diff(track.ticks), default=1) * track.time_base)
    return np.array([float(track.pts[place] * track.time_base) for place in places]), step


def _check_times_and_size(track: Track, frames, times: np.ndarray, expected: np.ndarray, step: float) -> None:
    if len(times) != len(expected) or np.abs(times - expected).max(initial=0) > step / 4:
        raise Uncertain("its frames have other times")
    if tuple(frames.shape[1:3]) != (track.info.height, track.info.width):
        raise Uncertain("its frames have another size")


def _torchcodec():
    try:
        from torchcodec.decoders import VideoDecoder

        return VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        reason = artifacts.one_line(next((line for line in str(error).splitlines() if line.strip()), ""), 100)
        raise VideoError(f"reader 'torchcodec' needs the extra video-torchcodec and FFmpeg's shared libraries: {reason}") from error


def _open(track: Track, files: ExitStack) -> tuple[av.container.InputContainer, av.VideoStream]:
    container = files.enter_context(video_index.opened(track.path))
    return container, video_index.video_stream(container, track.path)


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    return video_index.decoded(container, stream)


def _keyframe(track: Track, place: int) -> int:
    """Return the place of the last keyframe at or before `place`, 0 for none."""
    last = bisect_right(track.keyframes, place, key=lambda keyframe: keyframe[0]) - 1
    return track.keyframes[last][0] if last >= 0 else 0


def _forward(track: Track, frames: Placed, place: int) -> tuple[int, av.VideoFrame]:
    here, frame = next((found for found in frames if found[0] >= place), (-1, None))
    if here != place:
        raise VideoError(f"{video_index.short_name(track.path)}: frame {place} does not decode; the file is damaged or cut short")
    return here, frame


def _placed(track: Track, frames: Iterator[av.VideoFrame], here: int) -> Placed:
    """Yield (place, frame) by the frame's clock; `here` is the place of the frame before."""
    name = video_index.short_name(track.path)
    height, width = (track.info.width, track.info.height) if track.turn[0] else (track.info.height, track.info.width)
    for frame in frames:
        if here + 1 < len(track.pts) and frame.pts == track.pts[here + 1]:
            here += 1
        elif track.unique and track.places.get(frame.pts, -1) > here:
            here = track.places[frame.pts]  # frames between did not decode
        else:
            raise VideoError(f"{name}: after frame {here} comes one at {frame.pts}, which is not in its list of frames")
        if (frame.height, frame.width) != (height, width):
            raise VideoError(video_index.size_change(track.path, here, frame, width, height))
        yield here, frame


def _from_keyframe(track: Track, container, stream: av.VideoStream, place: int) -> Placed | None:
    """Seek, and return frames from a keyframe at or before `place` on; None where no such keyframe is met."""
    last = bisect_right(track.keyframes, place, key=lambda keyframe: keyframe[0]) - 1
    starts = {track.pts[at] for at, _ in track.keyframes}
    for back in range(min(SEEK_TRIES, last)):  # keyframe 0 is the start
        try:
            container.seek(track.keyframes[last - back][1], stream=stream)
            frames = _decoded(container, stream)
            # what is shown before the keyframe may lack what it refers to
            first = next((frame for frame in frames if frame.key_frame and frame.pts in starts), None)
        except av.error.FFmpegError:
            return None
        if first is not None and track.places[first.pts] <= place:
            return _placed(track, chain([first], frames), track.places[first.pts] - 1)
    return None


def _check_place(track: Track) -> int:
    """Return the first place worth seeking to: behind the second keyframe, where decoding goes on from it."""
    return min(track.keyframes[1][0] + 1, len(track.pts) - 1) if len(track.keyframes) > 1 else 0


@lru_cache(maxsize=4)
def _expected(track: Track, place: int) -> np.ndarray:
    """Return the picture at `place`, decoded from the start, without a seek.

    Where every group of pictures is closed nothing in the first group matters to the second, so only its keyframe is decoded.
    """
    with ExitStack() as files:
        container, stream = _open(track, files)
        frames = _decoded(container, stream)
        if not track.not_decord and place:
            frames = _second_group(container, stream, track.pts[track.keyframes[1][0]])
        return rgb(_forward(track, _placed(track, frames, -1), place)[1], track)


def _second_group(container, stream: av.VideoStream, begins: int) -> Iterator[av.VideoFrame]:
    """Yield the frames of a stream, of its first group of pictures only the keyframe."""
    stream.codec_context.skip_frame = "NONKEY"
    for packet in container.demux(stream):
        if packet.pts == begins:
            stream.codec_context.skip_frame = "DEFAULT"
        yield from packet.decode()


def _agrees(track: Track, check: str, compare: Callable[[], bool]) -> bool:
    """Return what `compare` says of a file, asked once."""
    known = _agreed.setdefault(track, {})
    if check not in known:
        known[check] = bool(compare())
    return known[check]


def _check_picture(track: Track, reader: str, wanted: np.ndarray, read: Callable[[np.ndarray], np.ndarray]) -> None:
    """Refuse a reader whose picture is another: behind the second keyframe where `wanted` reaches it, else the first."""
    seeks = len(track.keyframes) > 1 and wanted[-1] >= track.keyframes[1][0]
    place = _check_place(track) if seeks else 0
    if not _agrees(track, f"{reader} {place}", lambda: np.array_equal(read(np.array([place]))[0], _expected(track, place))):
        raise Uncertain(f"{reader}'s frame {place} is not the one that decoding from the start gives")


def _seek_agrees(track: Track) -> bool:
    """Return whether PyAV, seeking, finds the picture that decoding from the start gives."""

    def compare() -> bool:
        place = _check_place(track)
        with ExitStack() as files:
            frames = _from_keyframe(track, *_open(track, files), place)
            try:
                return frames is not None and np.array_equal(rgb(_forward(track, frames, place)[1], track), _expected(track, place))
            except VideoError:
                return False

    return _agrees(track, "pyav", compare)


def _same_times(track: Track, reader) -> bool:
    """Return whether decord's list of frames has the times of ours."""
    if len(reader) != len(track.ticks):
        return False
    times, begins = np.array(track.ticks) * float(track.time_base), reader.get_frame_timestamp(range(len(reader)))[:, 0]
    return np.abs(begins - begins[0] - times).max() < min(np.diff(times), default=1.0) / 2


def _plane(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """View one 8-bit plane as (H, W), without its padding."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _failure(track: Track, reader: str, error: Exception | str) -> str:
    first_line = artifacts.one_line(str(error).split("\n")[0], 160)  # below it decord prints its stack
    return f"{video_index.short_name(track.path)}: {reader} cannot read it: {first_line}"

"""What do 16 frames, spread evenly over a video, cost each reader, by distance of keyframes? One run, one thread, with the limit.

A drawn film of 600 frames, 240 x 320, H.264, a keyframe every 12, 48 or 250 frames. "first" opens a file that was never read, with
all that a reader does to be certain of its frames; "again" is the next question to the same file. "decord alone" and "PyAV alone"
are these libraries without our list of frames. The limit is the codec alone: the frames from each wanted one's keyframe on, decoded
and not looked at. torchcodec stands where it loads.
    python benchmarks/decoding.py
"""

from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import decord
import numpy as np
import pandas as pd
import timing

from vau_lib.data import video
from vau_lib.evaluation import result_tables
from vau_lib.workspace import presets

FRAMES, WANTED, GROUPS, ROUNDS = 600, 16, (12, 48, 250), 5


def film(path: Path, group: int) -> Path:
    """Write a drifting picture with a keyframe every `group` frames."""
    still = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    still = (still // 4 + np.linspace(0, 190, 320, dtype=np.uint8)[:, None]).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast", "g": str(group), "x264-params": f"keyint={group}:scenecut=0"}
        for place in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(still, place, axis=1)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decord_alone(path: Path, places: np.ndarray) -> np.ndarray:
    return decord.VideoReader(str(path), num_threads=1).get_batch(places).asnumpy()


def pyav_alone(path: Path, places: np.ndarray) -> np.ndarray:
    wanted = set(places.tolist())
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return np.stack([f.to_ndarray(format="rgb24") for place, f in enumerate(container.decode(video=0)) if place in wanted])


def codec_only(path: Path, places: np.ndarray, group: int) -> None:
    """Decode what the wanted frames need, each group from its keyframe to the last wanted frame of it."""
    until = {int(place) // group: int(place) for place in places}  # the last one of each group
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for number, last in until.items():
            container.seek(int(number * group / 30 / stream.time_base), stream=stream)
            frames = container.decode(stream)
            for _ in range(last - number * group + 1):
                next(frames)


def main(folder: Path) -> None:
    places, rows, number = video.sample_index(FRAMES, WANTED), [], count()
    readers = ["auto", "pyav"]
    for group in GROUPS:
        path = film(folder / f"{group}.mp4", group)
        expected = pyav_alone(path, places)
        if group == GROUPS[0]:
            try:
                video.read_frames(path, [0], reader="torchcodec")
                readers.append("torchcodec")
            except video.VideoError as error:
                print(error)

        def fresh(path=path) -> Path:
            copy = folder / f"{path.stem}-{next(number)}.mp4"
            copy.write_bytes(path.read_bytes())
            return copy

        ways = {"codec alone": lambda p=path, g=group: codec_only(p, places, g)}
        ways |= {"decord alone": lambda p=path: decord_alone(p, places), "PyAV alone": lambda p=path: pyav_alone(p, places)}
        for reader in readers:
            assert np.array_equal(video.read_frames(path, places, reader=reader), expected)
            ways[f"ours by {reader}, first"] = lambda r=reader, f=fresh: video.read_frames(f(), places, reader=r)
            ways[f"ours by {reader}, again"] = lambda r=reader, p=path: video.read_frames(p, places, reader=r)
        table = timing.interleaved(ways, ROUNDS, 1)
        limit = table.set_index("way").loc["codec alone", "best_cpu_ms"]
        rows.append(table.assign(keyframe_every=group, share_of_limit=limit / table["best_cpu_ms"]))
    table = pd.concat(rows)
    print(f"milliseconds for {WANTED} of {FRAMES} frames; {timing.machine()}")
    print(table.round(3).to_string(index=False))
    result_tables.write_curve(presets.project() / "data" / "results" / "studies" / "decoding.csv", table.round(4))


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        main(Path(scratch))

"""Hours of a camera through a stream model: memory stays flat; sources that stall, close, change size or send garbage end."""

import gc
import socket
import threading
import time
from pathlib import Path

import numpy as np
import torch

from torture.common import Tally, limited, refused
from torture.networks import RawServer
from vau_lib.data import video
from vau_lib.detectors import lshma, lshma_state
from vau_lib.workspace import artifacts

SECRETS = ("admin", "t0p", "s3cret")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory_slope(clips: int, *, width: int, window: int) -> float:
    """Return bytes a clip that resident memory grows by over the last two thirds of a stream of random features."""
    config = lshma_state.LSHMAConfig.ucf(width=width, window=window)
    model, state, seen = lshma.LSHMA(config).eval(), None, []
    generator = torch.Generator().manual_seed(0)
    for clip in range(clips):
        _, state = model.push(torch.rand(1, window, width, generator=generator), state)
        if clip % max(1, clips // 60) == 0:
            gc.collect()
            seen.append((clip, resident_bytes()))
    places, values = np.array(seen[len(seen) // 3 :], float).T
    return float(np.polyfit(places, values, 1)[0])


def run(root: Path, *, clips: int, width: int = 512, window: int = 16, timeout_s: float = 1.0) -> list[Tally]:
    memory, sources = Tally(f"streams: memory, {clips:,} clips of width {width}"), Tally("streams: sources")
    with memory.one("slope"):
        slope = memory_slope(clips, width=width, window=window)
        memory.outcomes["bytes a clip"] = round(slope)
        assert slope < 2000, f"{slope:.0f} bytes a clip"
    good = root / "good.ts"
    frames = np.random.default_rng(0).integers(0, 255, (40, 64, 96, 3), dtype=np.uint8)
    video.write_video(root / "good.mp4", frames, fps=10)
    import av

    def as_stream(width: int, height: int, path: Path) -> bytes:
        with av.open(str(path), "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=10, options={"g": "5"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for place in range(40):
                picture = np.full((height, width, 3), place * 5, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()

    data, large = as_stream(96, 64, good), as_stream(160, 120, root / "large.ts")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\n\r\n"

    def stall():
        yield head + data[: len(data) // 2]
        time.sleep(30)

    kinds = {
        "closes": lambda: iter([head + data]),
        "closes in the middle": lambda: iter([head + data[: len(data) // 2]]), "stalls": stall,
        "size changes": lambda: iter([head + data + large]), "garbage": lambda: iter([head + bytes(range(256)) * 400]),
        "garbage in the middle": lambda: iter([head + data[: len(data) // 2] + bytes(range(256)) * 100 + data[len(data) // 2 :]]),
        "joined again, the clock restarts": lambda: iter([head + data + data]), "no HTTP": lambda: iter([b"\x00" * 1000]),
        "404": lambda: iter([b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]), "nothing": lambda: iter([]),
    }  # fmt: skip
    for name, answer in kinds.items():
        server = RawServer(answer)
        try:
            address = server.url.replace("http://", "http://admin:t0p@") + "/live?token=s3cret"
            with sources.one(name), limited(30):
                moments, error = [], None
                try:
                    for moment, frame in video.live(address, timeout_s=timeout_s):
                        assert frame.dtype == np.uint8 and frame.shape[2] == 3
                        moments.append(moment)
                except Exception as caught:
                    error = caught
                    refused(caught, "127.0.0.1")
                    assert isinstance(caught, video.VideoError)
                    parts = f"{caught!r} {caught.__cause__!r} {caught.__context__!r}"
                    assert not any(secret in parts for secret in SECRETS), f"a secret is in {parts}"
                assert error or moments, "neither a picture nor an error"
                assert all(b > a for a, b in zip(moments, moments[1:], strict=False)), "the clock falls"
                sources.outcomes["ended with a line" if error else "ended"] += 1
        finally:
            server.close()
    with sources.one("a camera that never answers"), limited(30):
        silent = socket.create_server(("127.0.0.1", 0))
        try:
            next(video.live(f"rtsp://admin:t0p@127.0.0.1:{silent.getsockname()[1]}/s3cret@x", timeout_s=timeout_s))
            raise AssertionError("a picture came")
        except video.VideoError as error:
            refused(error, "rtsp://")
            assert not any(secret in f"{error!r}{error.__cause__!r}" for secret in SECRETS), str(error)
        finally:
            silent.close()
    for text in (
        "http://h/s3cret@x",
        "rtsp://admin:t0p@h/x",
        "rtsp://h/x?password=s3cret",
        "https://us/er/s3cret@h/x",
        "admin:t0p@10.0.0.1",
    ):
        with sources.one(f"shown: {text}"):
            assert not any(secret in artifacts.one_line(text) for secret in SECRETS), artifacts.one_line(text)
    assert threading.active_count() < 100
    return [memory, sources]

"""Hours of a camera through a stream model: memory stays flat; sources that stall, close, change size or send garbage end."""

import ctypes
import dataclasses
import gc
import itertools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from typer.testing import CliRunner

from torture.common import Tally, limited, refused
from torture.kill_models import small_detector
from torture.networks import RawServer
from vau_lib import cascade, cli, watch
from vau_lib.data import records, video
from vau_lib.detectors import lshma, lshma_state, preprocessing, trained_detector
from vau_lib.features import xfeat
from vau_lib.synthetic import dataset
from vau_lib.workspace import artifacts

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\n\r\n"
FPS = 10
SECRETS = ("admin", "t0p", "s3cret")


class _Malloc(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t) for name in "arena ordblks smblks hblks mapped usmblks fsmblks in_use free keepcost".split()
    ]


def bytes_held() -> tuple[int, int]:
    """Return the resident bytes of this process, and those of them that somebody holds (0 where the C library does not say): what
    is resident and held by nobody are holes between pieces, which glibc keeps for the next ones."""
    ask, held = getattr(ctypes.CDLL(None), "mallinfo2", None), 0
    if ask:
        ask.restype = _Malloc
        held = (found := ask()).in_use + found.mapped
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096, held


def slope(states: Iterable, clips: int) -> list[tuple[float, float]]:
    """Return bytes a clip that resident memory and what is held of it grow by over the last two thirds of a stream, each with the
    half of its 95 % interval."""
    seen = []
    gc.freeze()  # what other tests left is no part of a stream, and reading it each time costs a second
    for clip, _ in enumerate(itertools.islice(states, clips)):
        if clip % max(1, clips // 60) == 0:
            gc.collect()
            seen.append((clip, *bytes_held()))
    gc.unfreeze()
    places, *values = np.array(seen[len(seen) // 3 :], float).T
    fits = [np.polyfit(places, each, 1, cov=True) for each in values]
    return [(float(rise), 1.96 * float(spread[0, 0]) ** 0.5) for (rise, _), spread in fits]


def features(*, width: int, window: int):
    """Yield the states of a stream of random features, without end."""
    model, state = lshma.LSHMA(lshma_state.LSHMAConfig.ucf(width=width, window=window)).eval(), None
    generator = torch.Generator().manual_seed(0)
    while True:
        _, state = model.push(torch.rand(1, window, width, generator=generator), state)
        yield state


def camera(data: bytes, width: int):
    """Yield a camera's clips without end, from its bytes to what watch and analyse keep: decoder, XFeat, LSHMA, events."""
    server = RawServer(lambda: itertools.chain([HEAD], itertools.repeat(data)), patience_s=600.0)
    encoder, rng = xfeat.XFeatEncoder("random", side=64), np.random.default_rng(0)
    fitted = preprocessing.Preprocessing.fit({"a": rng.random((40, width))}, steps=None, temporal_difference=True)
    model = lshma.LSHMA(lshma_state.LSHMAConfig.ucf(width=width)).eval()
    trained = trained_detector.TrainedDetector(model, fitted, None)
    of = cascade.Detector(Path(), trained, None, 0.5, "by hand", "", "LSHMA", True)
    kept = watch.KEPT_SCORES, cascade.KEPT_EVENTS, cascade.KEPT_DELAYS
    watch.KEPT_SCORES, cascade.KEPT_EVENTS, cascade.KEPT_DELAYS = 200, 10, 10  # the last hour, sooner full
    events, report = cascade.Cascade(of, cascade.AnalysisPlan(), live=True, send=lambda message: None), watch.StreamReport(0.5)
    try:
        frames = events.frames(video.live(server.url, timeout_s=600))
        for clip in watch.watch(frames, trained, lambda part: np.resize(encoder(part)[0], width), snippet_frames=16):
            scores = np.where(rng.random(len(clip.scores)) < 0.1, 0.9, 0.1)  # some events
            clip = dataclasses.replace(clip, scores=scores.astype(np.float32))
            events.push(clip)
            report.add(clip)
            yield clip
    finally:
        watch.KEPT_SCORES, cascade.KEPT_EVENTS, cascade.KEPT_DELAYS = kept
        server.close()


def scenes(root: Path) -> list[np.ndarray]:
    """Draw eight small videos of people, with and without an event; return their frames one after the other."""
    found = dataset.make_dataset(root, num_videos=8, seed=0, height=72, width=96, splits={"train": 1.0})
    return [frame for record in found for frame in video.rgb_frames(records.locate(record, root))]


def as_stream(frames: Sequence[np.ndarray], path: Path) -> bytes:
    """Return frames (H, W, 3) as MPEG-TS at `FPS`."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "5"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def run(root: Path, *, clips: int, width: int = 512, window: int = 16, timeout_s: float = 1.0) -> list[Tally]:
    memory, sources = Tally(f"streams: memory, {clips:,} clips of width {width}"), Tally("streams: sources")
    typed = Tally("streams: sources through vau watch and vau analyse")
    filmed = Tally(f"streams: a camera through watch and analyse, {clips // 10:,} clips of width {width}")
    with memory.one("slope"):
        _is_flat(memory, slope(features(width=width, window=window), clips))
    lit = [np.full((64, 96, 3), place * 5, np.uint8) for place in range(40)]
    large = [np.full((120, 160, 3), place * 5, np.uint8) for place in range(40)]
    data, large = as_stream(lit, root / "good.ts"), as_stream(large, root / "large.ts")
    if clips >= 1000:  # below, what is kept is still filling up
        seen, drawn = deque(maxlen=1), as_stream(scenes(root / "drawn"), root / "drawn.ts")
        with filmed.one("slope"):
            clips_seen = (seen.append(clip.ends_s[-1]) or clip for clip in camera(drawn, width))
            _is_flat(filmed, slope(clips_seen, clips // 10))
        filmed.outcomes["minutes of camera"] = round(seen[0] / 60)

    def stall():
        yield HEAD + data[: len(data) // 2]
        time.sleep(30)

    kinds = {
        "closes": lambda: iter([HEAD + data]),
        "closes in the middle": lambda: iter([HEAD + data[: len(data) // 2]]), "stalls": stall,
        "closes before its length": lambda: iter([HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999999\r\n\r\n") + data]),
        "size changes": lambda: iter([HEAD + data + large]), "garbage": lambda: iter([HEAD + bytes(range(256)) * 400]),
        "garbage in the middle": lambda: iter([HEAD + data[: len(data) // 2] + bytes(range(256)) * 100 + data[len(data) // 2 :]]),
        "joined again, the clock restarts": lambda: iter([HEAD + data + data]), "no HTTP": lambda: iter([b"\x00" * 1000]),
        "404": lambda: iter([b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]), "nothing": lambda: iter([]),
    }  # fmt: skip
    for name, answer in kinds.items():
        server = RawServer(answer)
        try:
            with sources.one(name), limited(30):
                moments, error = [], None
                try:
                    for moment, frame in video.live(secret(server.url), timeout_s=timeout_s):
                        assert frame.dtype == np.uint8 and frame.shape[2] == 3
                        moments.append(moment)
                except Exception as caught:
                    error = caught
                    refused(caught, "127.0.0.1")
                    assert isinstance(caught, video.VideoError)
                    parts = f"{caught!r} {caught.__cause__!r} {caught.__context__!r}"
                    assert not any(secret in parts for secret in SECRETS), f"a secret is in {parts}"
                assert error or moments, "neither a picture nor an error"
                if name.startswith("closes"):  # without a length HTTP ends where its connection closes, with one it is cut
                    assert ("closed before the end" in str(error)) == (name == "closes before its length"), repr(error)
                    assert name != "closes" or len(moments) == len(lit), f"{len(moments)} of {len(lit)} pictures"
                assert all(b > a for a, b in zip(moments, moments[1:], strict=False)), "the clock falls"
                sources.outcomes["ended with a line" if error else "ended"] += 1
        finally:
            server.close()
    if clips >= 1000:
        _commands(root, kinds, typed)
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
    return [memory, filmed, sources, typed]


def _commands(root: Path, kinds: dict[str, Callable[[], Iterator[bytes]]], tally: Tally) -> None:
    """Look at each source by the commands: they end well or in one line, and no secret is in what they print and write."""
    detector, runner = str(small_detector(root / "detector")), CliRunner()
    for (name, answer), command in itertools.product(kinds.items(), ("watch", "analyse")):
        server, out = RawServer(answer), root / f"{command} {name}"
        out.mkdir()
        words = {"watch": ["--model", detector, "--csv", str(out / "w.csv"), "--plot", str(out / "w.svg")],
                 "analyse": ["--detector", detector, "--threshold", ".5", "--out", str(out), "--every", ".1"]}[command]  # fmt: skip
        try:
            with tally.one(f"vau {command}, {name}"), limited():
                done = runner.invoke(cli.app, [command, secret(server.url), *words])
                texts = [done.output.encode(), done.stderr.encode(), repr(done.exception).encode()]
                texts += [path.read_bytes() for path in out.rglob("*.*")]
                assert not any(hidden.encode() in text for text in texts for hidden in SECRETS), f"a secret is in {texts[:3]}"
                assert done.exit_code == 0 or isinstance(done.exception, SystemExit), f"raw {done.exception!r}"
                assert done.exit_code == 0 or len(done.stderr.strip().splitlines()) == 1, done.stderr
                if name not in ("garbage", "no HTTP", "404", "nothing"):  # what came before the end is kept
                    kept = out / "w.csv" if command == "watch" else out / "report.html"
                    assert kept.exists(), "what came is lost"
                tally.outcomes["ended" if done.exit_code == 0 else "ended with a line"] += 1
        finally:
            server.close()


def secret(url: str) -> str:
    return url.replace("http://", "http://admin:t0p@") + "/live?token=s3cret"


def _is_flat(tally: Tally, found: Sequence[tuple[float, float]]) -> None:
    for (rise, half), what, most in zip(found, ("resident", "held"), (2000, 200), strict=True):
        tally.outcomes[f"{what} bytes a clip, ± {half:.0f}"] = round(rise)
        assert rise - half < most, f"{rise:.0f} ± {half:.0f} {what} bytes a clip"

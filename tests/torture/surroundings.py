"""A full disk, folders that cannot be written, no home, another language, odd names, files and clocks that change."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

from torture.common import Tally, refused
from vau_lib.data import records, video
from vau_lib.features import extraction
from vau_lib.workspace import artifacts

RECIPE = extraction.Recipe("xfeat", options=(("weights", "random"), ("side", 64)))


def _film(path: Path, seed: int = 0, frames: int = 34) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write_video(path, np.random.default_rng(seed).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8), fps=10)
    return path


@contextmanager
def full_disk(most_bytes: int):
    """Let no file of this process grow beyond so many bytes: a write past it fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def writers(folder: Path) -> dict:
    """Return {what is written: (function, its file)}; every one is of `artifacts` or goes through it."""
    import pandas as pd
    import torch

    from vau_lib.features import checkpoints

    frames = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    big = [{"n": n, "text": "x" * 100} for n in range(200)]
    return {
        "json": (lambda: artifacts.write_json(folder / "a.json", big), folder / "a.json"),
        "json lines": (lambda: artifacts.write_json_lines(folder / "a.jsonl", big), folder / "a.jsonl"),
        "array": (lambda: artifacts.save_array(folder / "a.npy", np.zeros(9000)), folder / "a.npy"),
        "table": (lambda: artifacts.write_table(folder / "a.csv", pd.DataFrame(big)), folder / "a.csv"),
        "video": (lambda: video.write_video(folder / "a.mp4", frames), folder / "a.mp4"),
        "model": (lambda: checkpoints.save_model(folder / "m", torch.nn.Linear(64, 64), {}), folder / "m" / "model.safetensors"),
    }  # fmt: skip


def run(root: Path, *, slow: bool = True) -> list[Tally]:
    tallies = [Tally("surroundings: full disk"), Tally("surroundings: read-only"), Tally("surroundings: names, language, home"),
               Tally("surroundings: files and clocks that change")]  # fmt: skip
    disk, locked, odd, change = tallies
    (root / "disk").mkdir()
    for old in (False, True):
        for name, (write, path) in writers(root / "disk").items():
            with disk.one(f"{name}{', over an old one' * old}"):
                if old:
                    write()
                before = path.read_bytes() if path.exists() else None
                try:
                    with full_disk(2000):
                        write()
                    raise AssertionError("it was written to a full disk")
                except (OSError, ValueError, RuntimeError) as error:
                    assert "\n" not in str(error), f"several lines: {error}"
                    assert isinstance(error, OSError | ValueError), f"a raw {type(error).__name__}: {error}"
                assert (path.read_bytes() if path.exists() else None) == before, "half a file has the name"
                left = [file.name for file in (root / "disk").rglob(".*")]
                assert not left, f"left over: {left}"
    _film(root / "films" / "a.mp4")
    found = [records.VideoRecord("a", "a.mp4", "own", "test", 0, fps=10.0, num_frames=34)]
    blocked = root / "file"
    blocked.write_text("not a folder")  # root may write anywhere, so a file stands in a folder's place
    for name, write in {
        "extraction": lambda: extraction.extract(found, root / "films", blocked / "out", RECIPE),
        "records": lambda: records.write_records(blocked / "records.jsonl", found),
        "lock": lambda: artifacts.only_one(blocked / "x.lock").__enter__(),
        "append": lambda: artifacts.append_json_line(blocked / "a.jsonl", {}),
    }.items():
        with locked.one(name):
            try:
                write()
            except Exception as error:
                refused(error, "file")
            else:
                raise AssertionError("it was written")
    strange = root / "my völlig – nöt plain ‮dir" / "a'b\"c $HOME %s {x}"
    with odd.one("blanks, unicode and quotes in every path"):
        _film(strange / "fílm one.mp4")
        rows = [records.VideoRecord("fílm one", "fílm one.mp4", "own", "test", 0, fps=10.0, num_frames=34)]
        records.write_records(strange / "records.jsonl", rows)
        assert records.read_records(strange / "records.jsonl") == rows
        assert extraction.extract(rows, strange, strange / "out", RECIPE).encoded == 1
        assert extraction.extract(rows, strange, strange / "out", RECIPE).already_done == 1
    if slow:
        code = (
            "import sys; from pathlib import Path; from vau_lib.data import records, video\n"
            "from vau_lib.workspace import artifacts\nplace = Path(sys.argv[1])\n"
            "found = records.read_records(place); print(len(found)); assert found[0].id.startswith('f')\n"
            "artifacts.write_json(place.parent / 'o.json', {'é': 'ü'}); print(video.probe(place.parent / found[0].path).num_frames)"
        )
        for name, changes in {"LC_ALL=C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "no HOME": {"HOME": None},
                              "a HOME that is none": {"HOME": "/nonexistent"}}.items():  # fmt: skip
            with odd.one(name):
                env = {key: value for key, value in (os.environ | changes).items() if value is not None}
                done = subprocess.run(
                    [sys.executable, "-c", code, strange / "records.jsonl"], env=env, capture_output=True, text=True
                )
                assert done.returncode == 0, done.stderr[-300:]
    with change.one("a video that grows while it is read"):
        path, stop = _film(root / "grow" / "a.mp4", frames=60), threading.Event()

        def grow() -> None:
            while not stop.wait(0.005):
                with path.open("ab") as file:
                    file.write(b"x" * 100)

        thread = threading.Thread(target=grow)
        thread.start()
        try:
            done = extraction.extract(found, root / "grow", root / "grow" / "out", RECIPE)
        finally:
            stop.set()
            thread.join()
        assert done.encoded == 0 and "changed while it was read" in done.skipped[0], done
        assert not (root / "grow" / "out" / "a.npy").exists()
    with change.one("a video that is replaced by another while it is read"):
        path, real = _film(root / "swap" / "a.mp4", frames=60), extraction._stat
        other = _film(root / "swap" / "other" / "b.mp4", seed=1, frames=60).read_bytes()
        calls = []

        def swap(where: Path) -> list:
            calls.append(where)
            if len(calls) == 2:
                path.write_bytes(other)
            return real(where)

        with mock.patch.object(extraction, "_stat", swap):
            done = extraction.extract(found, root / "swap", root / "swap" / "out", RECIPE)
        assert done.encoded == 0 and len(done.skipped) == 1, done
    with change.one("the clock goes back"):
        ticks = iter(range(10**6, 0, -1000))
        with mock.patch.object(time, "time", lambda: float(next(ticks))):
            done = extraction.extract(found, root / "films", root / "back", RECIPE)
        os.utime(root / "films" / "a.mp4", (1, 1))
        assert done.encoded == 1 and extraction.extract(found, root / "films", root / "back", RECIPE).already_done == 1
    return tallies


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(run(Path(folder)))

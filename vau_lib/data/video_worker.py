"""A process of its own for videos that anybody may have made, with limits: a codec that crashes, hangs or fills the memory there
costs one video, and is one VideoError.

- `with apart():` sends what `video` reads of files in this block to a worker; the bits are the same
- a worker lives on for the next file (a start took 1.4 to 1.9 s on a busy machine) and is replaced when it died or was stopped
- memory is limited where the system can (RLIMIT_AS, not on Windows), seconds by both sides
- what comes back is numbers and texts, no pickles: a worker that was taken over cannot run code here
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vau_lib.data.video_index import VideoError, VideoInfo, short_name
from vau_lib.workspace import artifacts

MEMORY = 4 * 2**30  # bytes for frames and codecs, on top of what the worker's libraries map
SECONDS = 60.0  # for an answer, or the next frame of a stream, of a small file
SECONDS_PER_MB = 1.0  # more for a large one: hours of a recording are decoded before they are understood
CLOCK_S = 0.1  # how often it is looked whether a worker is late
START_S = 120.0  # until a worker is there, on a busy machine
SERVE = """import os, threading, time
def end_with_parent(parent={}):  # before the imports, which take seconds: a decoder would go on for as long as it may
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
from vau_lib.data import video, video_worker; video_worker.serve()"""
READS: dict[str, Callable] = {}  # what a worker can do
_blocks: list[bool] = []  # one for each `apart` that is open; of all threads: one that decodes ahead is in its block too
_waiting: list["_Worker"] = []
os.register_at_fork(after_in_child=_waiting.clear) if hasattr(os, "register_at_fork") else None


@contextmanager
def apart() -> Iterator[None]:
    """Read files in a worker in this block."""
    _blocks.append(True)
    try:
        yield
    finally:
        _blocks.pop()


def reads(function: Callable) -> Callable:
    """Mark a function of a path and plain values that a worker runs inside `apart`; it returns an array, texts or VideoInfo."""
    READS[function.__name__] = function

    @wraps(function)
    def here_or_apart(path, *args, **options):
        if not _blocks:
            return function(path, *args, **options)
        return _ask(function.__name__, path, [_plain(value) for value in args], options)

    return here_or_apart


def reads_frames(function: Callable) -> Callable:
    """Mark a function of a path that yields arrays: `reads` for a stream."""
    READS[function.__name__] = function

    @wraps(function)
    def here_or_apart(path):
        return _stream(function.__name__, path) if _blocks else function(path)

    return here_or_apart


def _plain(value: object) -> object:
    return np.asarray(value).tolist() if isinstance(value, np.ndarray | range | tuple) else value


def _ask(name: str, path: str | Path, args: list, options: dict) -> object:
    worker = _Worker.get(path)
    answer = worker.answer([name, os.path.abspath(path), args, options], path)
    _waiting.append(worker)
    return _value(answer)


def _stream(name: str, path: str | Path) -> Iterator[np.ndarray]:
    worker = _Worker.get(path)
    answer = worker.answer([name, os.path.abspath(path), [], {}], path)
    try:
        while isinstance(answer, np.ndarray):
            yield answer
            answer = worker.answer(None, path)
    except BaseException:  # also a caller that wants no more
        worker.stop()
        raise
    _waiting.append(worker)
    if answer != {"end": True}:
        _value(answer)


def _value(answer: object) -> object:
    if not isinstance(answer, dict):
        return answer
    if "error" in answer:
        raise (VideoError if answer["kind"] == "VideoError" else ValueError)(answer["error"])
    return VideoInfo(**answer["info"]) if "info" in answer else tuple(answer["value"])


class _Worker:
    """A process that answers; two lines of JSON and the bytes of an array go through its pipes."""

    def __init__(self):
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
        env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(  # -P: a stranger's av.py in the working directory is not imported
            [sys.executable, "-P", "-c", SERVE.format(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            pipesize=2**20,
        )
        self.late, self.until = False, float("inf")
        threading.Thread(target=self._watch, daemon=True, name="video worker's clock").start()
        self.answer(None, "", START_S)  # it is there

    @classmethod
    def get(cls, path: str | Path) -> "_Worker":
        with suppress(IndexError):  # also where another thread takes the last one
            while (worker := _waiting.pop()).process.poll() is not None:
                continue
            return worker
        try:
            return cls()
        except OSError as error:
            raise VideoError(f"{short_name(path)}: no process to read it in: {artifacts.one_line(error)}") from error

    def answer(self, question: list | None, path: str | Path, seconds: float | None = None) -> object:
        """Send a question (None: no new one) and return its answer; VideoError where the process dies or takes too long."""
        self.until = time.monotonic() + (seconds or allowed_s(path))
        try:
            if question is not None:
                self.process.stdin.write(json.dumps(question).encode() + b"\n")
                self.process.stdin.flush()
            head = json.loads(self.process.stdout.readline() or b"null")
            if head is None:
                raise EOFError
            if isinstance(head, dict) and "array" in head:
                kind, shape = head["array"]
                head = np.empty(shape, np.dtype(kind))
                view = memoryview(head).cast("B") if head.size else b""
                while len(view):
                    if not (count := self.process.stdout.readinto(view)):
                        raise EOFError
                    view = view[count:]
            return head
        except (OSError, EOFError, ValueError) as error:
            self.stop()
            raise VideoError(f"{short_name(path)}: {self._death(path)}") from error
        finally:
            self.until = float("inf")

    def _watch(self) -> None:
        """Kill the process when it is late: one thread a worker, since a timer each frame cost as much as decoding it."""
        while self.process.poll() is None:
            if time.monotonic() > self.until:
                self.late = True
                self.process.kill()
                return
            time.sleep(CLOCK_S)

    def _death(self, path: str | Path) -> str:
        code = self.process.returncode
        if self.late or code == -getattr(signal, "SIGXCPU", 0):
            return f"reading it takes longer than {allowed_s(path):,.0f} s"
        return f"damaged, the process that read it ended ({f'signal {-code}' if code and code < 0 else f'code {code}'})"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()


def allowed_s(path: str | Path) -> float:
    """Return the seconds a worker has for an answer about a file."""
    try:
        return SECONDS + SECONDS_PER_MB * os.stat(path).st_size / 1e6
    except (OSError, ValueError):
        return SECONDS


# In the worker


def serve() -> None:
    """Answer questions from standard input on standard output until it closes; what libraries print goes nowhere."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit_memory()
    _say(answers, "here")
    for line in questions:
        name, path, args, options = json.loads(line)
        _limit_seconds(allowed_s(path))
        try:
            found = READS[name](path, *args, **options)
            if isinstance(found, Iterator):
                for frame in found:
                    _say(answers, frame)
                    _limit_seconds(allowed_s(path))
                found = {"end": True}
            _say(answers, found)
        except BrokenPipeError:
            return
        except MemoryError:
            _fail(answers, VideoError(f"{short_name(path)}: it needs more than {MEMORY / 2**30:g} GiB of memory"))
        except Exception as error:  # in whatever way: it is one video's
            _fail(answers, error if isinstance(error, ValueError | OSError) else VideoError(f"{short_name(path)}: {error!r:.160}"))


def _fail(answers: BinaryIO, error: Exception) -> None:
    kind = "VideoError" if isinstance(error, VideoError | OSError) else "ValueError"
    _say(answers, {"error": artifacts.one_line(error, 600), "kind": kind})


def _say(answers: BinaryIO, value: object) -> None:
    if isinstance(value, np.ndarray):
        value = np.ascontiguousarray(value)
        answers.write(json.dumps({"array": [value.dtype.str, value.shape]}).encode() + b"\n")
        answers.write(memoryview(value).cast("B") if value.size else b"")
    else:
        value = {"info": asdict(value)} if isinstance(value, VideoInfo) else {"value": value} if isinstance(value, tuple) else value
        answers.write(json.dumps(value).encode() + b"\n")
    answers.flush()


def _limit_memory() -> None:
    try:
        import resource

        mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass  # Windows, and systems without /proc: the seconds remain


def _limit_seconds(seconds: float) -> None:
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, most))
    except (ImportError, OSError, ValueError):
        pass

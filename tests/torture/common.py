"""What every part of the campaign shares: a tally of what was tried, and what may come back from a bad input."""

import hashlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HANG_S = 60.0
ANY = "parent", "worker", "all"  # of a job's processes: whom a kill may hit


@dataclass
class Tally:
    """Tried and survived of one kind, seconds, and each fault as a line."""

    kind: str
    tried: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    outcomes: Counter = field(default_factory=Counter)

    def row(self) -> dict:
        return {
            "kind": self.kind,
            "tried": self.tried,
            "survived": self.tried - len(self.faults),
            "seconds": round(self.seconds, 1),
        }

    @contextmanager
    def one(self, name: str):
        """Count one try; whatever is raised in it but AssertionError's line is a fault too."""
        self.tried += 1
        began = time.perf_counter()
        try:
            yield
        except (Exception, Hang) as error:
            self.faults.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        finally:
            self.seconds += time.perf_counter() - began


def content(folder: Path) -> dict[str, str]:
    """Return {file: digest}, without what differs from run to run by its nature: seconds, times, places."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        if name.endswith("sources.jsonl") or path.name == "file.bin.part.json":
            continue  # holds times of files
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            data = json.dumps(sorted([{k: v for k, v in row.items() if k != "seconds"} for row in rows], key=str)).encode()
        if path.name == "made_by.json":  # somebody may commit meanwhile
            data = json.dumps({k: v for k, v in json.loads(data).items() if k != "commit"}).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


@dataclass(frozen=True)
class Job:
    """What is done in a folder, and what of the folder must be as after an undisturbed run."""

    work: Callable[[Path], None]
    content: Callable[[Path], dict[str, str]] = content
    begin: Callable[[], None] = lambda: None  # before it is started in a new folder
    check: Callable[[int], None] = lambda kills: None  # after it ended; raises AssertionError
    whom: tuple[str, ...] = ("parent",)  # which are killed: "parent" alone, one "worker", "all"
    lock: str = ""  # file of its folder by which it keeps others out


class Hang(BaseException):
    """A reader that did not come back; no handler takes it."""


@contextmanager
def limited(seconds: float = HANG_S):
    """Raise Hang after so many seconds."""

    def late(*_):
        raise Hang(f"no answer after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused(error: BaseException, *names: str) -> None:
    """Assert that an error is how bad input may end: a ValueError or OSError of one line, which names the file."""
    text = str(error)
    assert isinstance(error, ValueError | OSError), f"a raw {type(error).__name__}: {text[:200]}"
    assert text and "\n" not in text and len(text) < 1000, f"{len(text.splitlines())} lines: {text[:200]}"
    assert not isinstance(error, UnicodeError) and type(error) is not OSError or names, f"raw {type(error).__name__}: {text[:200]}"
    assert not names or any(name in text for name in names), f"names no file ({', '.join(names[:3])}): {text[:200]}"

"""What a generated video is, what a refused one is, and what a paid job must not forget."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vau_lib import records, video
from vau_lib.grammar import Scenario

TRUTH = frozenset({"pixels", "boxes", "tracks", "masks", "events"})
PIXELS = frozenset({"pixels"})


class GenerationError(RuntimeError):
    """A video that could not be made; the message is one line and holds no key."""


@dataclass(frozen=True)
class Clip:
    """A verified video: where it is, who made it, event spans in seconds where the backend knows them."""

    path: Path
    backend: str
    events: tuple[records.Span, ...] = ()
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A scenario that the backend refused, with the reasons it gave."""

    backend: str
    reasons: tuple[str, ...]
    facts: dict = field(default_factory=dict)


class Memo:
    """What a job must not forget, such as the name of a paid operation; every change is written down at once."""

    def __init__(self, known: dict | None = None, write: Callable[[dict], object] = lambda _: None):
        self.known, self._write = dict(known or {}), write

    def get(self, name: str, default: Any = None) -> Any:
        return self.known.get(name, default)

    def note(self, **facts: Any) -> None:
        """Add facts; None takes one away."""
        self.known = {name: value for name, value in (self.known | facts).items() if value is not None}
        self._write(self.known)


class Generator(Protocol):
    """What `run` needs of a backend. `price` is per video in the service's currency, 0 for free."""

    name: str
    provides: frozenset[str]

    def price(self, scenario: Scenario) -> float: ...

    def generate(self, scenario: Scenario, path: Path, *, seed: int, memo: Memo) -> Clip | Rejected: ...


def verified(path: Path) -> video.VideoInfo:
    """Return what a video is; GenerationError where it is missing, cut off, or its first or last frame cannot be decoded."""
    try:
        info = video.probe(path)
        video.read_frames(path, [0, info.num_frames - 1])
    except (video.VideoError, OSError) as error:
        raise GenerationError(f"{path.name} cannot be read to its end: {error}") from error
    return info

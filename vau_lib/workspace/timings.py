"""How long notebooks take: what is stated, what a run took, and how much of the cores others used meanwhile.

- params/seconds.yaml holds the seconds of quiet runs; the notebooks' first cells and the README state them
- a run says where it took much longer or shorter than stated; `state` writes the last run's seconds, if it was quiet
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from vau_lib.workspace import artifacts, notebook_runs, presets
from vau_lib.workspace.presets import RunError

FACTOR, SLACK_S = 2.0, 10.0  # a notebook differs where it took FACTOR times more or less, and SLACK_S more or less
QUIET = 0.1  # a run is quiet where others used at most this fraction of the cores
WHOLE = "all"  # the whole run's line in params/seconds.yaml
HEADER = "# Seconds of quiet runs, written by `vau times PRESET --write`; what a run is compared with, and begins first by.\n"


@dataclass
class Timing:
    """What a run took: notebooks executed, seconds on the clock, fraction of all cores that other processes used."""

    notebooks: list[str]
    workers: int
    wall_s: float = 0.0
    others: float = 0.0

    def __str__(self) -> str:
        number, took = len(self.notebooks), round(self.wall_s)
        plural = "" if number == 1 else "s"
        return (
            f"{number} notebook{plural} executed in {took // 60} min {took % 60} s; "
            f"others used {self.others:.0%} of {os.cpu_count()} cores meanwhile"
        )


def _processor_s() -> tuple[float, float]:
    """Return the seconds of processor time used so far: by everybody, and by this process and its ended children."""
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "nice", 0.0), sum(os.times()[:4])


@contextmanager
def timed(preset: str, notebooks: Iterable[str], workers: int) -> Iterator[Timing]:
    """Time a run of notebooks and note it in timing.json beside their copies, if it came to its end."""
    timing = Timing(list(notebooks), workers)
    began, (everybody, own) = time.monotonic(), _processor_s()
    yield timing
    timing.wall_s = time.monotonic() - began
    everybody, own = (now - before for now, before in zip(_processor_s(), (everybody, own), strict=True))
    timing.others = min(1.0, max(0.0, everybody - own) / (timing.wall_s * (os.cpu_count() or 1)))
    if timing.notebooks:
        artifacts.write_json(_note(preset), vars(timing))


def _note(preset: str) -> Path:
    return notebook_runs.copies(preset) / "timing.json"


def seconds(preset: str) -> dict[str, float]:
    """Return {notebook: seconds} of the copies of a preset that ran to their end."""
    own = {name: notebook_runs.facts(notebook_runs.copies(preset) / f"{name}.ipynb")["own"] for name in presets.members(preset)}
    return {name: float(facts["seconds"]) for name, facts in own.items() if facts["failed"] == "" and facts["seconds"] is not None}


def differences(preset: str, notebooks: Iterable[str]) -> list[str]:
    """Return "03: 412 s, stated 216" for each of the notebooks whose copy took much longer or shorter than stated."""
    took, stated = seconds(preset), presets.usual_seconds(preset)
    pairs = {name: (took[name], stated[name]) for name in notebooks if name in took and name in stated}
    far = {n: (a, b) for n, (a, b) in pairs.items() if max(a, b) > FACTOR * min(a, b) and abs(a - b) > SLACK_S}
    return [f"{name[:2]}: {a:.0f} s, stated {b:.0f}" for name, (a, b) in far.items()]


def rounded(seconds: float) -> str:
    """Return a time as prose states it: "42 s", "3 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def state(preset: str) -> list[Path]:
    """Write the last run's seconds into params/seconds.yaml, the notebooks' first cells and the README; return these files.

    RunError where the last run was not of the whole preset, or others used more than QUIET of the cores.
    """
    if not _note(preset).is_file():
        raise RunError(f"{preset}: no run has been timed; vau run {preset} --fresh times one")
    note = artifacts.read_json(_note(preset), dict)
    timing = Timing(**{key: note.get(key) for key in Timing.__dataclass_fields__})
    if missing := sorted(set(presets.members(preset)) - set(timing.notebooks)):
        raise RunError(f"{preset}: {missing[0]} was not part of the last run; vau run {preset} --fresh times all")
    if timing.others > QUIET:
        raise RunError(f"{preset}: others used {timing.others:.0%} of the cores during the last run, more than {QUIET:.0%}")
    took = {name[:2]: round(value) for name, value in seconds(preset).items()} | {WHOLE: round(timing.wall_s)}
    file = presets.project() / "params" / "seconds.yaml"
    stated = (artifacts.read_yaml(file) if file.is_file() else None) or {}
    stated[preset] = took
    lines = [f"{name}:\n" + "".join(f'  "{key}": {value}\n' for key, value in part.items()) for name, part in stated.items()]
    texts = {file: HEADER + "".join(lines)}
    for name, path in presets.notebooks().items():
        value = rounded(took[name[:2]])
        line = rf"(\*\*Time\*\*[^\n]*?\b{preset} )\d+ (?:s|min)\b"
        texts[path] = re.sub(line, lambda found, value=value: found[1] + value, artifacts.read_text(path))
    readme = presets.project() / "README.md"
    if preset == "demo" and readme.is_file():
        text = artifacts.read_text(readme)
        texts[readme] = re.sub(r"(the demo took )\d+( minutes)", rf"\g<1>{took[WHOLE] / 60:.0f}\2", text)
    for path, text in texts.items():
        with artifacts.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(texts)

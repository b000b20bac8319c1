"""Notebook runs with papermill: execute a preset, resume, sweep parameters, and tabulate what was recorded.

- the executed copy is the record: parameters, figures, metrics, commit and timings in one file
- a notebook is done when its copy finished with the same code and parameters, after those it needs (params/needs.yaml)
- a copy is finished by the stamp put on it after its last cell; papermill's own marks say "completed" after Ctrl-C too
- notebooks run as in JupyterLab: kernel python3, working directory notebooks/, the caller's environment. MPLBACKEND is
  left out, since a foreign backend loses inline figures; how many threads to use is each notebook's own parameter
"""

import hashlib
import itertools
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from vau_lib.workspace import artifacts, parallel, presets
from vau_lib.workspace.presets import KERNEL, RunError, declared, load_preset, notebooks, project

if TYPE_CHECKING:
    import pandas as pd

COPIES = "vau-copy://"  # papermill writes executed copies through `_CopyWriter`
PAUSE = 20  # writing a copy takes at most about a twentieth of a run
RECORD = "application/vnd.vau.record+json"  # how recorded metrics lie among a cell's outputs
KEPT_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}  # bytes; what glibc reads as it starts
OWN_COLUMNS = ("preset", "notebook", "seconds", "failed", "commit")


@dataclass(frozen=True)
class Step:
    """One notebook of a run: its parameters, where its copy lands, and `why` it has to run ("" when it is done)."""

    preset: str
    notebook: str
    parameters: dict
    output: Path
    why: str


def copies(preset: str) -> Path:
    """Return the folder of a preset's executed copies."""
    return project() / "data" / "runs" / preset


def _copy_name(notebook: str, point: Mapping) -> str:
    """Return NN_name@key=value,….ipynb, the copy of a notebook at `point`: the parameters that make it another one."""
    label = ",".join(key + "=" + re.sub(r"[^\w.+-]", "_", str(artifacts.without_secrets(value))) for key, value in point.items())
    return f"{notebook}@{label}.ipynb" if label else f"{notebook}.ipynb"


def plan(preset: str, selection: Iterable[str | int] = (), overrides: Mapping | None = None, fresh: bool = False) -> list[Step]:
    """Return the steps of a run in order, each with its parameters and why it has to run; executes nothing.

    Chosen notebooks always run. Otherwise a notebook is done when its copy finished with the same code and parameters
    and no notebook it needs runs, or ran, after it. The copy of a run on a `video_file` is named after that video.
    RunError for any parameter that will not do.
    """
    selection, overrides = list(selection), overrides or {}
    names = presets.members(preset, selection)
    presets.check_names(overrides, {key: None for name in names for key in declared(name)}, "-p")
    reason = "asked for" if selection else "fresh" if fresh else ""
    steps, ended = [], {}
    for name in names:
        own = presets.checked({key: value for key, value in overrides.items() if key in declared(name)}, declared(name), "-p")
        parameters = load_preset(preset, name) | own
        video = {key: Path(own[key]).stem for key in ("video_file",) if own.get(key)}  # a video of yours has a copy of its own
        output, needed = copies(preset) / _copy_name(name, video), presets.needs(name, preset)
        before = next((step.notebook for step in steps if step.why and step.notebook in needed), None)
        why = reason or (f"{before[:2]} runs before it" if before else "")
        if not why:
            why, ended[name] = _why(output, name, parameters, max((ended[n] for n in needed & ended.keys()), default=None))
        steps.append(Step(preset, name, parameters, output, why))
    return steps


def run(
    preset: str,
    selection: Iterable[str | int] = (),
    overrides: Mapping | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    workers: int = 1,
    log: Callable[[str], None] = tqdm.write,
) -> list[Step]:
    """Execute a preset's notebooks in order into data/runs/<preset>/, resuming where the last run stopped.

    RunError names the notebook and cell that failed; its executed copy stays and later notebooks do not run. Ctrl-C leaves
    the copy too. StoreError where another run of the preset is at work.

    Args:
        preset: folder of params/, or demo
        selection: run only these notebooks, by number or name
        overrides: parameters that replace the preset's
        dry_run: only return the plan
        fresh: run finished notebooks again
        workers: notebooks that run at once, where none needs another; the longest chain begins first
        log: takes one line per notebook that ended: which of how many, its seconds
    """
    steps = plan(preset, selection, overrides, fresh)
    waiting = {} if dry_run else {step.notebook: step for step in steps if step.why}
    if not waiting:
        return steps
    with artifacts.only_one(copies(preset) / ".lock"):  # two runs at once would overwrite each other's copies and data
        _run_waiting(preset, waiting, workers, log)
    return steps


def _run_waiting(preset: str, waiting: dict[str, Step], workers: int, log: Callable[[str], None]) -> None:
    if workers < 2:
        for number, step in enumerate(waiting.values(), start=1):
            try:
                execute(step)
            finally:
                log(_ended(step, number, len(waiting)))
        return
    failed = []
    with tqdm(total=len(waiting), unit="notebook", desc=preset) as bar, _fewer_threads(workers):
        needs, seconds = {n: presets.needs(n, preset) for n in waiting}, presets.usual_seconds(preset) or presets.usual_seconds()
        work = partial(_execute_quietly, warm=len(waiting) > 2 * workers)
        for name, error in parallel.in_order(work, waiting, needs, workers=workers, seconds=seconds):
            bar.update()
            log(_ended(waiting[name], bar.n, len(waiting), error))
            failed += [error] if error else []
    if failed:
        raise RunError(failed[0])


def _ended(step: Step, number: int, total: int, error: str | None = None) -> str:
    """Return the line of a notebook that ended: which of how many, its seconds, where it stopped if it did."""
    copy = _copy(step.output)
    seconds = _timing(copy).get("duration")
    took = "" if seconds is None else f" ({seconds:.0f} s)"
    return f"{number} of {total}: {step.output.stem}{took}: {error or _failed(copy) or 'done'}"


@contextmanager
def _fewer_threads(workers: int) -> Iterator[None]:
    """Share the cores among kernels that run at once, unless the caller has said how many threads there are."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads or str(max(1, (os.cpu_count() or 1) // workers))
    try:
        yield
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]


def sweep(
    preset: str, notebook: str | int, grid: Mapping[str, list], *, engine: str = "serial", workers: int = 2
) -> list[tuple[Step, str | None]]:
    """Execute one notebook at every combination of the grid's values; return (step, None or its error line) of each.

    Copies are NN_name@key=value,….ipynb; finished ones are kept. Points share the folders their parameters name: where
    the notebook writes, sweep that folder along.
    """
    name = presets.full_name(notebook)
    parameters, steps = load_preset(preset, name), {}
    if empty := [key for key, values in grid.items() if not values]:
        raise RunError(f"sweep: no values for {empty[0]}, give {empty[0]}=V1,V2")
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        point = presets.checked(point, declared(name), "sweep")
        output = copies(preset) / _copy_name(name, point)
        if output in steps:
            raise RunError(f"sweep: two points would both be {output.name}")
        steps[output] = Step(preset, name, parameters | point, output, _why(output, name, parameters | point, None)[0])
    done = [(step, None) for step in steps.values() if not step.why]
    waiting = [step for step in steps.values() if step.why]
    if waiting:
        work = partial(_execute_quietly, warm=engine == "processes" and len(waiting) > 2 * workers)
        ran = parallel.map_videos(work, waiting, engine=engine, workers=workers, desc=name)
        done += [(step, error) for step, _, error in ran]
    return done


def execute(step: Step, *, progress: bool = True, manager: type | None = None) -> None:
    """Execute one step; RunError says in which cell it stopped. Its copy is stamped last, whatever happened.

    `manager` is the class that starts the kernel, jupyter_client's own unless given.
    """
    import papermill
    import zmq
    from traitlets.config import Config

    source = notebooks()[step.notebook]
    code = _code(presets.read_notebook(source))  # before it runs: an edit meanwhile must show as one
    step.output.parent.mkdir(parents=True, exist_ok=True)
    step.output.unlink(missing_ok=True)  # a copy of an earlier run must not pass for this one's
    writer = _CopyWriter()
    papermill.iorw.papermill_io.register(COPIES, writer)
    places = (str(source), COPIES + str(step.output))
    paths = [place.replace("{", "{{").replace("}", "}}") for place in places]  # papermill formats
    bar = {"desc": step.notebook} if progress else False
    secrecy = "auto" if zmq.has("curve") else "disabled"  # on a shared machine others can listen to a kernel's ports
    config = Config(KernelManager={"transport_encryption": secrecy})
    quiet = ["--log-level=CRITICAL"]  # a kernel that is stopped in a cell would print how its socket closed
    for name in ("papermill", "asyncio"):
        logging.getLogger(name).addFilter(_no_dead_kernel)
    failed = None
    try:
        with closing(writer), _inline_figures(), _kept_pages():
            papermill.execute_notebook(
                *paths, step.parameters, kernel_name=KERNEL, language="python", cwd=source.parent, progress_bar=bar, config=config,
                extra_arguments=quiet, **({"kernel_manager_class": manager} if manager else {}),
            )  # fmt: skip
        failed = ""
    except Exception as error:  # a failing cell, a dead kernel, a full disk: one line each, and the copy stays
        failed = _stop(_copy(step.output), error)
        raise RunError(f"{step.notebook} stopped at {failed} (see {presets.display_path(step.output)})") from error
    finally:
        _stamp(step, code, failed)


def _no_dead_kernel(record: logging.LogRecord) -> bool:
    """Leave a dead kernel to the one line that names its cell: libraries log it again, with tracebacks, after Ctrl-C too."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "DeadKernelError" and not record.getMessage().startswith("Kernel died")


def _execute_quietly(step: Step, warm: bool = False) -> None:
    """Execute one of many steps in a worker; where `warm`, its kernels begin with the libraries imported."""
    from vau_lib.workspace import warm_kernels

    if not (warm and warm_kernels.possible()):
        return execute(step, progress=False)
    with _inline_figures(), _kept_pages():
        warm_kernels.prepare()  # the first kernel waits for the libraries, which it would import itself
    return execute(step, progress=False, manager=warm_kernels.WarmKernelManager)


@contextmanager
def _inline_figures() -> Iterator[None]:
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


@contextmanager
def _kept_pages() -> Iterator[None]:
    """Let kernels keep the memory of large arrays (glibc; the caller's own settings win): pages given back are cleared anew."""
    new = {name: value for name, value in KEPT_PAGES.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


# Executed copies


class _CopyWriter:
    """How papermill writes an executed copy: whole, and without the user, password or token of a camera's address.

    Papermill writes twice a cell, a copy of many figures takes a tenth of a second each time: what comes sooner than
    `PAUSE` times that is kept until the next write or `close`.
    """

    def __init__(self):
        self.kept: tuple[str, str] | None = None
        self.next = 0.0

    def write(self, text: str, path: str) -> None:
        """Write a notebook's JSON to `path`, which begins with COPIES, now or soon."""
        self.kept = text, path
        if time.monotonic() >= self.next:
            self.close()

    def close(self) -> None:
        """Write what is kept."""
        if self.kept is None:
            return
        (text, path), self.kept, began = self.kept, None, time.monotonic()
        path, copy = Path(path.removeprefix(COPIES)), artifacts.without_secrets(artifacts.parse_json(text))
        copy["metadata"].setdefault("papermill", {})["output_path"] = str(path)
        artifacts.write_json(path, copy)
        now = time.monotonic()
        self.next = now + PAUSE * (now - began)

    def pretty_path(self, path: str) -> str:
        """Return what papermill shows of a path."""
        return path.removeprefix(COPIES)


def _copy(path: Path) -> dict:
    """Return an executed copy, {} where there is none or its writing was cut short."""
    try:
        return presets.read_notebook(path)
    except RunError:
        return {}


def _timing(copy_or_cell: dict) -> dict:
    return copy_or_cell.get("metadata", {}).get("papermill", {})


def _code(notebook: dict) -> str:
    """Return the sha256 of what a notebook executes: code and tags, not prose, which needs no second run."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = [["".join(cell["source"]), cell["metadata"].get("tags", [])] for cell in cells]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def _stamp(step: Step, code: str, failed: str | None) -> None:
    if copy := _copy(step.output):
        failed = f"interrupted at {_stop(copy)}" if failed is None else failed
        facts = {
            "preset": step.preset,
            "parameters": artifacts.without_secrets(step.parameters),
            "code": code,
            "commit": artifacts.commit(),
            "versions": artifacts.versions(),
        }
        copy["metadata"]["vau"] = {**facts, "failed": failed, "ended": _timing(copy).get("end_time")}
        artifacts.write_json(step.output, copy)


def _stamp_of(copy: dict) -> dict:
    """Return the stamp of this very execution, {} where there is none."""
    stamp = copy.get("metadata", {}).get("vau", {})
    kinds = {"failed": str, "code": str, "parameters": dict, "ended": str, "commit": str, "versions": dict}
    whole = all(isinstance(stamp.get(name), kind) for name, kind in kinds.items())
    return stamp if whole and stamp["ended"] and stamp["ended"] == _timing(copy).get("end_time") else {}


def _why(output: Path, name: str, parameters: dict, latest: datetime | None) -> tuple[str, datetime | None]:
    """Return why a notebook has to run, or "" and when its copy ended; `latest` is when the one before it ended."""
    copy = _copy(output)
    stamp = _stamp_of(copy)
    if not stamp:
        return ("was not finished" if output.exists() else "has not run"), None
    if stamp["failed"]:
        return f"stopped last time: {stamp['failed']}", None
    if stamp["code"] != _code(presets.read_notebook(notebooks()[name])):
        return "its code changed", None
    if stamp["parameters"] != artifacts.without_secrets(parameters):
        return "its parameters changed", None
    try:
        started, ended = (datetime.fromisoformat(_timing(copy)[key]) for key in ("start_time", "end_time"))
    except (KeyError, TypeError, ValueError):
        return "its copy does not say when it ran", None
    return ("an earlier notebook ran after it", None) if latest and started < latest else ("", ended)


def _stop(copy: dict, error: BaseException | None = None) -> str:
    """Say where an executed copy stopped and why: at the cell with an error, else at the last one begun."""
    cells = [cell for cell in copy.get("cells", []) if cell["cell_type"] == "code"]
    failing = [(cell, output) for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    begun = [(cell, None) for cell in cells if _timing(cell).get("start_time")]
    cell, output = failing[0] if failing else begun[-1] if begun else (None, None)
    where = "its start"
    if cell:
        first_line = "".join(cell["source"]).strip().split("\n")[0]
        number = cell.get("execution_count") or len(begun)  # a kernel may die before it tells the number
        where = f"In [{number}] `{first_line}`"
    if output:
        where += f": {output['ename']}: {output['evalue']}"
    elif error:
        where += f": {type(error).__name__}: {error}"
    return artifacts.one_line(where)


def _recorded(output: dict) -> dict:
    found = output.get("data", {}).get(RECORD, {})
    return {key: value for key, value in found.items() if isinstance(value, str | int | float)} if isinstance(found, dict) else {}


def _outputs(copy: dict) -> list[dict]:
    return [output for cell in copy.get("cells", []) for output in cell.get("outputs", [])]


def _failed(copy: dict) -> str:
    """Return "" for a copy that ran to its end, "unfinished", or where and why it stopped."""
    if stamp := _stamp_of(copy):
        return stamp["failed"]
    if any(output["output_type"] == "error" for output in _outputs(copy)):
        return _stop(copy)
    # plain papermill's own copy is finished when every cell began; one that runs or was killed is not
    begun = copy and all(_timing(cell).get("start_time") for cell in copy["cells"])
    return "" if begun and _timing(copy).get("end_time") else "unfinished"


# Records


class _Recorded(dict):
    """What was recorded; `record` has shown it, so a cell that ends with it does not show it again."""

    def _ipython_display_(self) -> None:
        return None


def record(**metrics: object) -> dict:
    """Keep a notebook's results, one scalar each, in its own executed copy; call it in the last executed cell.

    Takes str, bool, int and finite floats, numpy's and one-element tensors too; RunError names anything else.
    """
    kept = _Recorded({name: _scalar(name, value) for name, value in metrics.items()})
    if "IPython" in sys.modules:
        from IPython import display, get_ipython

        if get_ipython():
            width = max(map(len, kept), default=0)
            text = "\n".join(f"{name:{width}}  {value}" for name, value in kept.items())
            display.display({RECORD: dict(kept), "text/plain": text}, raw=True)
    return kept


def _scalar(name: str, value: object) -> str | bool | int | float:
    if name in OWN_COLUMNS:
        raise RunError(f"record: {name} is a column of the table itself; give the metric another name")
    if getattr(value, "ndim", None) == 0:  # numpy's scalars, tensors of no axis
        value = value.item()
    if not isinstance(value, str | bool | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise RunError(f"record: {name} must be text, a bool, an int or a finite float, got {artifacts.one_line(value)}")
    return value


def state(preset: str, notebook: str) -> str:
    """Return how far a notebook of a preset is: "to run", "done", "failed" or "unfinished"."""
    path = copies(preset) / f"{notebook}.ipynb"
    failed = _failed(_copy(path)) if path.exists() else "to run"
    return failed if failed in ("to run", "unfinished") else "failed" if failed else "done"


def not_run(preset: str, selection: Iterable[str | int] = ()) -> list[str]:
    """Return the notebooks that a selection reads from and that neither belong to it nor have finished in this preset."""
    chosen = presets.members(preset, selection)
    wanted = set().union(*(presets.needs(name, preset) for name in chosen)) & set(presets.members(preset)) - set(chosen)
    return sorted(name for name in wanted if state(preset, name) != "done")


def table(preset: str | None = None) -> "pd.DataFrame":
    """Return one row per executed copy: preset, notebook, parameters that differ from their defaults, metrics, seconds,
    failed ("" or where and how it stopped), commit. A sweep's rows show what was swept even at its default."""
    import pandas as pd

    if preset is not None and not copies(preset).is_dir():
        presets.preset_folder(preset)  # an unknown name is refused; a preset that has not run is an empty table
    found = sorted((project() / "data" / "runs").glob(f"{preset or '*'}/[0-9]*_*.ipynb"))
    rows = [facts(path) for path in found]
    middle = {key: None for part in ("parameters", "metrics") for row in rows for key in row[part]}
    columns = [*OWN_COLUMNS[:2], *(key for key in middle if key not in OWN_COLUMNS), *OWN_COLUMNS[2:]]
    merged = [{**row["parameters"], **row["metrics"], **row["own"]} for row in rows]
    return pd.DataFrame(merged, columns=columns, dtype=object).convert_dtypes()  # a gap makes no float of an int


def facts(path: Path) -> dict:
    """Return what an executed copy says of its run: `parameters` that differ, recorded `metrics`, preset, notebook, seconds,
    failed and commit under `own`, `versions` of the libraries, and when it `ended` ("" where it does not say)."""
    copy = _copy(path)
    stamp, timing, outputs = _stamp_of(copy), _timing(copy), _outputs(copy)
    name, _, point = path.stem.partition("@")
    swept = {part.split("=")[0] for part in point.split(",")}
    try:
        defaults = {key: default for key, (_, default) in presets.assignments(presets.tagged(copy)).items()}
    except (SyntaxError, RunError, ValueError):  # a copy that was changed by hand
        defaults = {}
    given = timing.get("parameters")
    parameters = stamp.get("parameters") or (given if isinstance(given, dict) else {})
    own = {"preset": path.parent.name, "notebook": name, "seconds": timing.get("duration")}
    return {
        "parameters": {key: value for key, value in parameters.items() if key in swept or value != defaults.get(key, value)},
        "metrics": {key: value for output in outputs for key, value in _recorded(output).items()},
        "own": {**own, "failed": _failed(copy), "commit": stamp.get("commit", "")},
        "versions": stamp.get("versions", {}),
        "ended": timing.get("end_time") or "",
    }

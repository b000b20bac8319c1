"""`vau`: run, resume, compare; whatever goes wrong is one line, and the traceback is a flag away.

- every command is a few calls into `runs`; nothing can be done here that a notebook could not do
- `list`, `table` and `run --dry-run` never import torch; only `doctor` looks at the heavy libraries
"""

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vau_lib.workspace import artifacts, notebook_runs, presets

PACKAGES = ("torch", "torchvision", "transformers", "kornia", "decord", "av", "numpy", "scikit-learn", "papermill")

WEIGHTS = {
    "XFeat": "xfeat/xfeat_bnfolded.pt", "SqueezeNet": "squeezenet/squeezenet1_0_torchvision_keys_fp16.pt",
    "MemTSM-Net": "memtsm/best_model.pth",
}  # fmt: skip

WATCHED = Path("data/models/lshma/synthetic/intended/fold0_seed0")  # what the demo trains

SPOKEN = "data/toy_models/internvl"  # a toy that speaks of drawn close-ups; give a real one

WIDE = 10_000  # columns of a console that is no terminal: nothing is cut


class OneLine(typer.core.TyperGroup):
    """Commands whose errors are one line on stderr and exit code 1; --debug shows the traceback."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, ImportError) as error:  # RunError, StoreError; a full disk, a missing extra
            if ctx.params.get("debug"):
                raise
            typer.echo(f"vau: {artifacts.one_line(error, limit=600)}", err=True)
        except KeyboardInterrupt as error:
            typer.echo("vau: stopped; the same command goes on from here", err=True)
            raise typer.Exit(130) from error
        raise typer.Exit(1)


app = typer.Typer(cls=OneLine, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Preset = Annotated[str, typer.Argument(metavar="PRESET", help="a folder of params/, or demo")]

Chosen = Annotated[list[str] | None, typer.Argument(metavar="[NN]...", help="only these notebooks, always executed")]

Given = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="a parameter; may be repeated")]


@app.callback()
def main(debug: Annotated[bool, typer.Option("--debug", envvar="VAU_DEBUG", help="show tracebacks")] = False) -> None:
    """Notebooks for video anomaly understanding, run headlessly."""


@app.command("run")
def run_(
    preset: Preset,
    notebooks: Chosen = None,
    parameters: Given = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would run, and with what")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="run again what is done")] = False,
    workers: Annotated[int, typer.Option(help="notebooks at once, where none needs another")] = 1,
) -> None:
    """Execute a preset's notebooks into data/runs/PRESET/, going on where the last run stopped."""
    overrides = presets.parse_values(parameters or [])
    steps = notebook_runs.run(preset, notebooks or (), overrides, dry_run=True, fresh=fresh)
    for step in steps:
        typer.echo(f"{step.notebook}: {step.why or 'done'}")
        for key, value in step.parameters.items() if dry_run else ():
            typer.echo(f"    {key} = {value!r}")
    if not dry_run:
        notebook_runs.run(preset, notebooks or (), overrides, fresh=fresh, workers=workers)
        typer.echo(f"{presets.shown(notebook_runs.copies(preset))}: {sum(bool(step.why) for step in steps)} executed")


@app.command()
def sweep(
    preset: Preset,
    notebook: Annotated[str, typer.Argument(metavar="NN")],
    grid: Annotated[list[str], typer.Argument(metavar="NAME=V1,V2...", help="values to combine")],
    engine: Annotated[str, typer.Option(help="serial, processes or ray")] = "serial",
    workers: Annotated[int, typer.Option(help="processes at once")] = 2,
) -> None:
    """Execute one notebook at every combination of values; the rows are in `vau table PRESET`."""
    tried = notebook_runs.sweep(
        preset, notebook, presets.parse_values(grid, split=True), engine=engine, workers=workers
    )
    failed = [error for _, error in tried if error]
    for error in failed:
        typer.echo(f"vau: {error}", err=True)
    typer.echo(f"{len(tried) - len(failed)} of {len(tried)} points in {presets.shown(notebook_runs.copies(preset))}")
    if failed:
        raise typer.Exit(1)


@app.command()
def watch(
    source: Annotated[str, typer.Argument(help="a video, a camera's number, or an address (rtsp://...)")],
    model: Annotated[Path, typer.Option(help="folder of a trained LSHMA model")] = WATCHED,
    weights: Annotated[
        str | None, typer.Option(help="weights of the model's encoder; searched for if not given")
    ] = None,
    threshold: Annotated[float, typer.Option(help="scores from here on are marked; choose it on validation")] = 0.5,
    seconds: Annotated[float, typer.Option(help="stop after this much video; 0 goes on")] = 0.0,
    plot: Annotated[Path | None, typer.Option(help="keep a picture of the scores here, renewed as they arrive")] = None,
    csv: Annotated[Path | None, typer.Option(help="write second, score at the end")] = None,
) -> None:
    """Print a trained stream's scores as frames arrive, a line per clip; Ctrl-C ends it and keeps what was seen."""
    from vau_lib import watch  # torch, only here

    model = presets.project_path(model)
    for line in watch.lines(source, model, weights, threshold=threshold, seconds=seconds, plot=plot, csv=csv):
        typer.echo(line)


@app.command()
def guard(
    source: Annotated[Path, typer.Argument(help="a video, a folder of videos, or a records.jsonl")],
    model: Annotated[str, typer.Option(help="folder or hub name of InternVL or Qwen2.5-VL")] = SPOKEN,
    adapter: Annotated[Path | None, typer.Option(help="what `vau tune` left")] = None,
    out: Annotated[
        Path | None, typer.Option(help="append a JSON line per video; those it holds are not asked again")
    ] = None,
    frames: Annotated[int, typer.Option(help="frames a video shows")] = 16,
    share: Annotated[float, typer.Option(help="share of the picture tokens that is read")] = 1.0,
    tokens: Annotated[int, typer.Option(help="tokens an answer may have")] = 768,
    batch: Annotated[int, typer.Option(help="videos per call; text is shown as it is made with 1")] = 1,
) -> None:
    """Ask a security model about videos: what happens, and is it an anomaly?"""
    from vau_lib import guard
    from vau_lib.vlm import finetuning, models  # torch, only here

    vlm = models.load(_place(model))
    if adapter is not None:
        merged = finetuning.merge(vlm.model, presets.project_path(str(adapter)))
        vlm = vlm.replace(model=merged, kind=f"{vlm.kind}, tuned: {adapter}")
    plan = guard.GuardPlan(num_frames=frames, share=share, max_new_tokens=tokens, batch_size=batch)
    stream = (lambda text: typer.echo(text, nl=False)) if batch == 1 else None
    answers = guard.guard(vlm, source, out, plan=plan, stream=stream, log=lambda line: typer.echo(line, err=True))
    for row in answers:
        verdict = row["error"] or {1: "anomaly", 0: "normal", None: "no verdict in the answer"}[row["anomaly"]]
        typer.echo(f"\n{row['id']}: {verdict}")
    typer.echo(f"by {vlm.label}")


@app.command()
def rows(
    lists: Annotated[list[Path], typer.Argument(help="released csv lists, path,label: training and test")],
    source: Annotated[Path, typer.Option("--from", help="folder that holds the released .npy files, anywhere below")],
    target: Annotated[Path, typer.Option("--to", help="where rows are written: data/features/DATASET/released")],
    crops: Annotated[str, typer.Option(help="crops to average, like 0,1,2; nothing takes all that a list names")] = "",
    width: Annotated[int, typer.Option(help="numbers per row")] = 512,
) -> None:
    """Bring features that others released to where the notebooks read rows; goes on where it was stopped."""
    from vau_lib.features import released

    chosen = presets.parse_values([f"crops={crops}"], split=True)["crops"] if crops else []
    counts = released.imported(lists, source, presets.project_path(target), crops=chosen, width=width)
    typer.echo(f"{target}: {len(counts):,} videos, {sum(counts.values()):,} rows")


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="where videos, ledger and records.jsonl go, like data/generated")],
    number: Annotated[int, typer.Option(help="videos, an anomaly and its everyday counterpart in turn")] = 200,
    seed: Annotated[int, typer.Option(help="of the sentences")] = 0,
    backend: Annotated[str, typer.Option(help="procedural, veo, or a diffusers model's name or folder")] = "procedural",
    fixed: Annotated[list[str] | None, typer.Option("-p", metavar="FACTOR=VALUE", help="hold a factor")] = None,
    price: Annotated[float | None, typer.Option(help="of a second, where it costs something; look it up")] = None,
    confirm: Annotated[float | None, typer.Option(help="the exact sum, instead of being asked")] = None,
    workers: Annotated[int, typer.Option(help="processes that draw")] = 2,
) -> None:
    """Make videos of scenarios in which every pair of factors occurs; goes on where it was stopped."""
    from vau_lib.synthetic import scenarios, text_to_video

    held = presets.parse_values(fixed or [])
    if wrong := sorted(held.keys() - scenarios.FACTORS.keys()):
        raise ValueError(f"no factor {wrong[0]!r}; there are {', '.join(scenarios.FACTORS)}")
    if backend == "veo" and not price:
        raise ValueError("veo costs money: give --price, what a second costs now")
    chosen = scenarios.covering_scenarios(number, seed, **held)
    makers = {"procedural": text_to_video.procedural, "veo": lambda: text_to_video.Veo(price_per_second=price)}
    maker = makers.get(backend, lambda: text_to_video.diffusers(backend))()
    made = text_to_video.run(
        maker, chosen, presets.project_path(str(folder)), seed=seed, confirm=typer.confirm if confirm is None else confirm,
        splits={"train": 0.6, "val": 0.2, "test": 0.2}, workers=workers,
    )  # fmt: skip
    missing = scenarios.coverage(chosen)[1]
    said = ", ".join(f"{count} {status}" for status, count in made["status"].value_counts().items())
    typer.echo(f"{folder}: {said}; {int(made['label'].sum())} anomalous; {len(missing)} pairs of factors never occur")
    for row in made[made["status"] != "done"].itertuples():
        typer.echo(f"  {row.id}: {row.status}: {row.detail}")


@app.command()
def tune(
    files: Annotated[list[Path], typer.Argument(help="instruction rows, like data/generated/instructions.jsonl")],
    out: Annotated[Path, typer.Option(help="where checkpoints and the adapter go, like data/models/vlm/security")],
    roots: Annotated[
        list[Path] | None, typer.Option("--root", help="folder of each file's videos; its own folder if not given")
    ] = None,
    model: Annotated[str, typer.Option(help="folder or hub name of InternVL or Qwen2.5-VL")] = SPOKEN,
    share: Annotated[float, typer.Option(help="films show a share of their tokens, drawn from here to 1")] = 1.0,
    frames: Annotated[int, typer.Option(help="frames a row shows")] = 16,
    steps: Annotated[int, typer.Option(help="steps; -1 is one pass over the rows")] = -1,
    rate: Annotated[float, typer.Option(help="learning rate")] = 4e-5,
    batch: Annotated[int, typer.Option(help="rows a step")] = 4,
    rank: Annotated[int, typer.Option(help="of the adapter")] = 64,
    seed: Annotated[int, typer.Option(help="of frames, adapter, shares")] = 0,
) -> None:
    """Tune a language model on instruction rows by LoRA and TRL; goes on where it was stopped."""
    from vau_lib.compression import token_pruning, token_selection
    from vau_lib.vlm import finetuning, instruction_data, models  # torch, only here

    if not 0 < share <= 1:
        raise ValueError(f"--share must be above 0 and at most 1, got {share}")
    if roots and len(roots) != len(files):
        raise ValueError(f"{len(files)} files and {len(roots)} folders of videos: give --root once per file, or never")
    places = dict(zip(files, roots or [file.parent for file in files], strict=True))
    rows = instruction_data.read_rows(
        {presets.project_path(str(f)): presets.project_path(str(r)) for f, r in places.items()}
    )
    vlm = models.load(_place(model))
    vlm = vlm.replace(model=finetuning.lora(vlm.model, r=rank, alpha=2 * rank, seed=seed))
    plan = finetuning.LoraPlan(
        max_steps=steps, learning_rate=rate, batch_size=batch, seed=seed, save_steps=50, log_steps=max(1, min(10, steps))
    )  # fmt: skip
    rule = token_selection.random_ratio(share)
    losses = finetuning.fit(
        vlm,
        instruction_data.InstructionSamples(rows, "/", vlm, num_frames=frames, seed=seed),
        plan=plan,
        folder=presets.project_path(str(out)),
        wrap_model=partial(token_pruning.compressed, share=1.0, rule=rule) if share < 1 else None,
        facts={"share": share, "rank": rank, "frames": frames},
        progress=True,
    )
    first, last = losses["loss"].iloc[[0, -1]]
    typer.echo(f"{out}: {len(rows):,} rows of {len(files)} files, loss {first:.2f} to {last:.2f}; by {vlm.label}")


@app.command("list")
def list_() -> None:
    """Show which notebooks each preset runs, and how far it is."""
    shown = _table("notebook", "question", *presets.presets())
    member = {preset: presets.members(preset) for preset in presets.presets()}
    for name in presets.notebooks():
        marks = [notebook_runs.state(preset, name) if name in names else "" for preset, names in member.items()]
        shown.add_row(name, presets.question(name), *marks)
    _console().print(shown)


@app.command()
def table(
    preset: Annotated[str | None, typer.Argument(metavar="[PRESET]")] = None,
    csv: Annotated[Path | None, typer.Option(help="write the whole table here instead")] = None,
) -> None:
    """Show one row per executed notebook: parameters that differ, metrics, seconds, where it failed, commit."""
    rows = notebook_runs.table(preset)
    if csv:
        with artifacts.replacing(csv) as temporary:
            rows.to_csv(temporary, index=False)
        typer.echo(f"{csv}: {len(rows)} rows")
        return
    for name, part in rows.groupby("notebook"):  # each notebook measures other things
        part = part.drop(columns="notebook")
        part = part.loc[:, (part.notna() & (part != "")).any()]
        shown = _table(*part.columns, title=name)
        for row in part.astype(object).where(part.notna(), "").itertuples(index=False):
            shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
        _console().print(shown)
    if rows.empty:
        typer.echo("nothing has run yet: vau run demo")


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, accelerator, codecs, weights, data, disk."""
    shown = _table("what", "found")
    for what, look in _looks():
        try:
            found = str(look())
        except Exception as error:  # a broken library may raise anything; telling so is what a doctor is for
            found = f"no: {type(error).__name__}: {artifacts.one_line(error)}"
        shown.add_row(what, found)
    _console().print(shown)


def _place(model: str) -> Path | str:
    """Return a model's folder in the project, or what was given: a name on the hub."""
    place = presets.project_path(model)
    return place if place.is_dir() else model


def _looks() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield (what, function that says what it finds or raises)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "python", lambda: f"{sys.version.split()[0]} in {sys.prefix}"
    yield "project", lambda: f"{presets.project()}, commit {artifacts.commit()}"
    for name, version in artifacts.versions(PACKAGES).items():
        yield name, lambda version=version: version
    yield "imports", _imports
    yield "accelerator", _accelerator
    yield "H.264", _codecs
    for name, filename in WEIGHTS.items():
        yield f"{name} weights", lambda filename=filename: _weights(filename)
    yield "VAU_REAL_DATA", _real_data
    yield "data/raw", lambda: ", ".join(sorted(p.name for p in (presets.project() / "data/raw").glob("*/"))) or "empty"
    yield "free disk", lambda: f"{shutil.disk_usage(presets.project()).free / 2**30:.1f} GiB"
    yield "cores", lambda: cores


def _imports() -> str:
    broken = []
    for name in ("torch", "torchvision", "kornia", "decord", "av", "sklearn", "papermill"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a wrong build fails as OSError, RuntimeError and others
            broken.append(f"{name} ({type(error).__name__}: {artifacts.one_line(error, 120)})")
    return "broken: " + ", ".join(broken) if broken else "all well"


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
    return "Apple MPS" if torch.backends.mps.is_available() else "none, everything runs on the processor"


def _codecs() -> str:
    """Write a small video and read it back through both readers."""
    import numpy as np

    from vau_lib.data import video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        video.write_video(path, np.zeros((8, 64, 64, 3), np.uint8))
        found = {"written by PyAV": "yes"}
        for reader in ("decord", "pyav"):
            try:
                found[f"read by {reader}"] = f"{len(video.read_frames(path, range(8), reader=reader))} of 8 frames"
            except (ValueError, RuntimeError) as error:
                found[f"read by {reader}"] = f"no: {artifacts.one_line(error)}"
    return ", ".join(f"{what}: {said}" for what, said in found.items())


def _weights(filename: str) -> Path:
    beside_data = Path(os.environ.get("VAU_REAL_DATA", "")) / "weights" / filename
    return beside_data if beside_data.is_file() else artifacts.find_weights(filename)


def _real_data() -> str:
    folder = os.environ.get("VAU_REAL_DATA")
    if not folder:
        return "not set: tests and presets on real videos need it, see data/README.md"
    path = presets.project_path(folder)
    return f"{path}: {', '.join(sorted(p.name for p in path.iterdir() if p.is_dir()))}"


def _table(*columns: str, title: str | None = None) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False)

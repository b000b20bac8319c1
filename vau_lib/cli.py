"""`vau`, the command line: run presets, compare their results, and use the systems on videos.

- every command is a few calls into the library; nothing can be done here that a notebook could not do
- whatever goes wrong is one line and exit code 1; --debug shows the traceback
- commands of language models (guard, explain, tune, ...) stand in cli_models.py
- `list`, `table` and `run --dry-run` never import torch; only `doctor` looks at the heavy libraries
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vau_lib import cli_models
from vau_lib.publish import commands
from vau_lib.workspace import artifacts, gallery, notebook_runs, presets, timings, tracking

PACKAGES = ("torch", "torchvision", "transformers", "kornia", "decord", "av", "numpy", "scikit-learn", "papermill")
WEIGHTS = {"XFeat": "xfeat", "SqueezeNet": "squeezenet", "EfficientNet-Lite0": "efficientnet-lite0", "MemTSM-Net": "memtsm"}
PLAIN_WIDTH = 10_000  # columns of a console that is no terminal: nothing is cut


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
Notebooks = Annotated[
    list[str] | None, typer.Argument(metavar="[NN]...", help="run only these notebooks, even where they are done")
]
Overrides = Annotated[list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="set a notebook parameter; may be repeated")]


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", envvar="VAU_DEBUG", help="show tracebacks")] = False,
    report_to: Annotated[
        str, typer.Option(envvar="VAU_REPORT_TO", help="where trainings report to: tensorboard, trackio, wandb or none")
    ] = "",
) -> None:
    """Notebooks for video anomaly understanding, run headlessly."""
    if tracking.check(report_to):
        os.environ[tracking.VARIABLE] = report_to


@app.command("run")
def run_(
    preset: Preset,
    notebooks: Notebooks = None,
    parameters: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would run, with its parameters")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="run finished notebooks again")] = False,
    workers: Annotated[int, typer.Option(help="notebooks that run at once, where none needs another")] = 1,
    with_needs: Annotated[bool, typer.Option("--with-needs", help="run what they read from as well, where it has not run")] = False,
) -> None:
    """Run the notebooks of a preset into data/runs/PRESET/; a stopped run is resumed."""
    overrides = presets.parse_values(parameters or [])
    if missing := notebook_runs.not_run(preset, notebooks or ()):
        chosen = presets.members(preset, notebooks or ())
        if with_needs:
            notebooks = sorted([*missing, *chosen])
        else:
            before, after = (", ".join(name[:2] for name in names) for names in (missing, chosen))
            typer.echo(f"not run yet in {preset}, and read by {after}: {before}; --with-needs runs what has not run")
    steps = notebook_runs.run(preset, notebooks or (), overrides, dry_run=True, fresh=fresh)
    for step in steps:
        typer.echo(f"{step.output.stem}: {step.why or 'done'}")
        for key, value in step.parameters.items() if dry_run else ():
            typer.echo(f"    {key} = {artifacts.without_secrets(value)!r}")
    if dry_run:
        return
    executed = [step.notebook for step in steps if step.why]
    try:
        with timings.timed(preset, executed, workers) as timing:
            notebook_runs.run(preset, notebooks or (), overrides, fresh=fresh, workers=workers)
        typer.echo(timing)
        if not overrides and (far := timings.differences(preset, executed)):
            typer.echo(f"other times than params/seconds.yaml states ({'; '.join(far)}): another machine, or others used it")
    except BaseException:  # what stopped, by an error or by Ctrl-C, is on the page too
        with suppress(OSError, ValueError):
            typer.echo(f"look at {presets.display_path(gallery.write(preset))}")
        raise
    typer.echo(f"look at {presets.display_path(gallery.write(preset))}")


@app.command()
def sweep(
    preset: Preset,
    notebook: Annotated[str, typer.Argument(metavar="NN")],
    grid: Annotated[list[str], typer.Argument(metavar="NAME=V1,V2...", help="the values of each parameter")],
    engine: Annotated[str, typer.Option(help="serial, processes or ray")] = "serial",
    workers: Annotated[int, typer.Option(help="processes at once")] = 2,
) -> None:
    """Run one notebook at every combination of parameter values; `vau table PRESET` shows the results."""
    results = notebook_runs.sweep(preset, notebook, presets.parse_values(grid, split=True), engine=engine, workers=workers)
    failed = [error for _, error in results if error]
    for error in failed:
        typer.echo(f"vau: {error}", err=True)
    typer.echo(f"{len(results) - len(failed)} of {len(results)} points in {presets.display_path(notebook_runs.copies(preset))}")
    if failed:
        raise typer.Exit(1)


@app.command()
def watch(
    source: Annotated[str, typer.Argument(help="a video, a camera's number, or an address (rtsp://...)")],
    model: Annotated[Path, typer.Option(help="folder of a trained LSHMA model")] = cli_models.DEMO_LSHMA,
    weights: Annotated[str | None, typer.Option(help="weights of the feature encoder; searched for if not given")] = None,
    threshold: Annotated[float, typer.Option(help="mark scores at or above it; choose it on validation data")] = 0.5,
    seconds: Annotated[float, typer.Option(help="stop after this many seconds of video; 0: never")] = 0.0,
    plot: Annotated[Path | None, typer.Option(help="draw the scores into this image file while they arrive")] = None,
    csv: Annotated[Path | None, typer.Option(help="write second and score of every clip to this csv at the end")] = None,
    device: Annotated[str, typer.Option(help="where the networks run: auto, cpu, cuda, mps")] = "auto",
    runtime: Annotated[str, typer.Option(help="torch, or onnx or openvino with a folder of `vau export`")] = "torch",
    bfloat16: Annotated[
        bool,
        typer.Option(
            "--bfloat16", help="LSHMA's products in bfloat16, by torch on a processor that has it: faster, scores differ a little"
        ),
    ] = False,
) -> None:
    """Print LSHMA's anomaly scores while frames arrive, one line per clip; Ctrl-C ends it and keeps the results."""
    from vau_lib import watch  # torch, only here

    model = presets.project_path(model)
    options = {"threshold": threshold, "seconds": seconds, "plot": plot, "csv": csv, "device": device, "runtime": runtime}
    options["bfloat16"] = bfloat16
    for line in watch.report_lines(source, model, weights, **options):
        typer.echo(line)


app.add_typer(cli_models.commands)
app.add_typer(commands.commands)


@app.command()
def extract(
    records_file: Annotated[Path, typer.Argument(metavar="RECORDS", help="a records.jsonl")],
    encoder: Annotated[str, typer.Option(help="xfeat, flow, clip, squeezenet or efficientnet-lite0")] = "xfeat",
    root: Annotated[Path | None, typer.Option(help="folder of the records' paths; by default that of RECORDS")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write to; by default data/features/DATASET/ENCODER")] = None,
    snippet_frames: Annotated[int, typer.Option(help="frames a feature summarises")] = 16,
    options: Annotated[
        list[str] | None, typer.Option("-p", metavar="NAME=VALUE", help="an argument of the encoder, as weights=FILE; repeatable")
    ] = None,
    engine: Annotated[str, typer.Option(help="serial (on a GPU some videos at once), threads, processes or ray")] = "serial",
    workers: Annotated[int, typer.Option(help="threads, processes, or actors of Ray")] = 2,
    device: Annotated[str, typer.Option(help="where the network runs: auto, cpu, cuda, cuda:1, mps")] = "auto",
    runtime: Annotated[str, typer.Option(help="of xfeat: torch, onnx, openvino or ncnn")] = "torch",
    shard: Annotated[str, typer.Option(metavar="I/N", help="the I-th of every N videos, I from 1; for job arrays")] = "1/1",
    gpus: Annotated[float, typer.Option(help="with ray: GPUs of each actor; .5 lets two share one")] = 0.0,
    address: Annotated[str | None, typer.Option(help="with ray: a running cluster; else $RAY_ADDRESS or this machine")] = None,
    merge: Annotated[list[Path] | None, typer.Option(help="first take what this folder's shards made; may be repeated")] = None,
) -> None:
    """Extract features of all videos of a records.jsonl, one file each; the same command goes on where it was stopped."""
    from vau_lib.features import extraction  # torch, only here

    chosen = presets.parse_values(options or []) | ({"runtime": runtime} if runtime != "torch" else {})
    for line in extraction.job_lines(
        records_file, encoder, options=chosen, root=root, out=out and presets.project_path(out),
        snippet_frames=snippet_frames, engine=engine, workers=workers, device=device, shard=shard,
        merge_from=merge or (), **({"num_gpus": gpus, "address": address} if engine == "ray" else {}),
    ):  # fmt: skip
        typer.echo(line)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="folder of a trained detector, or xfeat")],
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("data/models/exported"),
    weights: Annotated[str | None, typer.Option(help="with xfeat: its weights; searched for if not given")] = None,
    side: Annotated[int, typer.Option(help="with xfeat: pixels a frame is shrunk to")] = 224,
    int8: Annotated[bool, typer.Option("--int8", help="a detector's weights as 8-bit numbers, for ONNX Runtime")] = False,
) -> None:
    """Write a detector or XFeat for ONNX Runtime and OpenVINO, refused where their numbers are not torch's within 1e-4."""
    from vau_lib.detectors import exports  # torch, only here

    for line in exports.command_lines(model, presets.project_path(out), weights=weights, side=side, int8=int8):
        typer.echo(line)


@app.command("import-features")
def import_features(
    lists: Annotated[list[Path], typer.Argument(help="released lists of both sets: csv path,label (CLIP), or a file a line")],
    source: Annotated[Path, typer.Option("--from", help="folder with the released .npy or .txt files, at any depth")],
    target: Annotated[Path, typer.Option("--to", help="folder to write to: data/features/DATASET/released")],
    crops: Annotated[str, typer.Option(help="csv: crops to average, like 0,1,2, all if not given; lists: mean or samples")] = "",
    width: Annotated[int, typer.Option(help="of a feature: 512 CLIP, 1024 or 2048 I3D, 4096 C3D, 192 X3D")] = 512,
    crop_axis: Annotated[int | None, typer.Option(help="axis of the crops, 0 or 1, where arrays do not tell")] = None,
    num_frames: Annotated[Path | None, typer.Option(help="json {video: frames}, for features of 32 equal parts")] = None,
    anomalous_first: Annotated[int | None, typer.Option(help="number of anomalous videos that begin each list")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="csv: go on without the videos whose files are missing")] = False,
) -> None:
    """Convert features that others released to this project's layout (CLIP csv, or I3D, C3D and X3D feature lists)."""
    from vau_lib.features import feature_lists, released

    if all(path.suffix == ".csv" for path in lists):
        chosen = [presets.typed(part, "int") for part in presets.parse_values([f"crops={crops}"], split=True)["crops"]]
        counts = released.import_features(lists, source, presets.project_path(target), crops=chosen, width=width, partial=partial)
    else:
        options = {"crop_axis": crop_axis, "anomalous_first": anomalous_first}
        options["num_frames"] = artifacts.read_json(num_frames) if num_frames else None
        place = presets.project_path(target)
        counts = feature_lists.import_lists(lists, source, place, width=width, crops=crops or "mean", **options)
    typer.echo(f"{target}: {len(counts):,} {'samples' if crops == 'samples' else 'videos'}, {sum(counts.values()):,} snippets")


@app.command()
def evaluate(
    weights: Annotated[Path, typer.Argument(help="a published LSHMA checkpoint, like 8744_ucf.pth or 8168_xd.pth")],
    features: Annotated[Path, typer.Argument(help="folder with the released .npy features, at any depth")],
    test_list: Annotated[Path, typer.Argument(metavar="LIST", help="official csv (path,label) of the test set")],
    annotation: Annotated[Path | None, typer.Option(help="temporal annotation of the data set")] = None,
    gt: Annotated[
        Path | None, typer.Option(help="a .npy of all frame labels in the list's order, in place of --annotation")
    ] = None,
    frames: Annotated[Path | None, typer.Option(help="json {video: frames}, where they are not 16 per feature")] = None,
    crops: Annotated[str, typer.Option(help="all that every video has, or list: the one that the list names")] = "all",
    threshold: Annotated[
        float | None, typer.Option(help="of the early exit; .6 if not given, 1 (none) for the long-term list")
    ] = None,
    smoothing: Annotated[int, typer.Option(help="scores the released smoothing averages; StreamVAD's XD takes 15")] = 8,
    partial: Annotated[bool, typer.Option("--partial", help="go on without the videos whose features are missing")] = False,
    resamples: Annotated[int, typer.Option(help="of the bootstrap over videos")] = 500,
    seed: Annotated[int, typer.Option(help="random seed of the bootstrap and of shuffled labels")] = 0,
    device: Annotated[str, typer.Option(help="where the model runs: cpu or cuda")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="write the whole table to this csv")] = None,
) -> None:
    """Measure a published LSHMA checkpoint on released features: frame AUC and AP beside the published number."""
    from vau_lib.detectors import released_evaluation  # torch, only here

    table, notes = released_evaluation.evaluate(
        weights, features, test_list, annotation=annotation, gt=gt, num_frames=frames, crops=crops, exit_threshold=threshold,
        smoothing=smoothing, partial=partial, resamples=resamples, seed=seed, device=device,
    )  # fmt: skip
    same = [column for column in ("dataset", "weights", "input", "videos", "expected", "frames") if column in table]
    title = ", ".join(f"{column} {table[column].iloc[0]}" for column in same)
    shown = _table(*table.columns.drop([*same, "kind"]), title=title)
    for row in table.drop(columns=[*same, "kind"]).astype(object).where(table.notna(), "").itertuples(index=False):
        shown.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    _console().print(shown)
    for note in notes:
        typer.echo(f"note: {note}")
    if out:
        artifacts.write_table(out, table)
        typer.echo(f"{out}: {len(table)} rows")


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="ped2, fights, xfeat, clip, ...; see --list")] = None,
    list_: Annotated[bool, typer.Option("--list", help="show what there is: address, size, licence, checksum")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask before a large download")] = False,
    given: Annotated[str | None, typer.Option("--from", help="a file downloaded by hand, or another address")] = None,
    labels: Annotated[Path | None, typer.Option(help="fights: a csv (clip, label, source_group, fold) to use instead")] = None,
) -> None:
    """Bring a data set or weights from their official page into data/raw; a stopped download is resumed."""
    from vau_lib.data import fetch

    if list_ or name is None:
        typer.echo("\n".join(line for name in fetch.SOURCES for line in fetch.facts(name)))
        return

    def tower(model: str) -> Path:
        from vau_lib.features import image_encoders  # torch, only here

        return image_encoders.find_tower(model)

    place = fetch.fetch(
        name, presets.project_path("data/raw"), agree=lambda question: yes or typer.confirm(question), given=given,
        labels=labels, hub=tower, log=typer.echo,
    )  # fmt: skip
    typer.echo(f"{name} is at {presets.display_path(place)}")


@app.command("list")
def list_() -> None:
    """Show the notebooks, and for each preset which of them it runs and which are done."""
    shown = _table("notebook", "question", *presets.presets())
    member = {preset: presets.members(preset) for preset in presets.presets()}
    for name in presets.notebooks():
        marks = [notebook_runs.state(preset, name) if name in names else "" for preset, names in member.items()]
        shown.add_row(name, presets.question(name), *marks)
    _console().print(shown)


@app.command()
def table(
    preset: Annotated[str | None, typer.Argument(metavar="[PRESET]")] = None,
    csv: Annotated[Path | None, typer.Option(help="write the whole table to this file instead")] = None,
) -> None:
    """Show one row per executed notebook: changed parameters, metrics, seconds, where it failed, commit."""
    rows = notebook_runs.table(preset)
    if csv:
        artifacts.write_table(csv, rows)
        typer.echo(f"{csv}: {len(rows)} rows")
        return
    for name, part in rows.groupby("notebook"):  # each notebook measures other things
        part = part.drop(columns="notebook")
        part = part.loc[:, (part.notna() & (part != "")).any()]
        cells = part.astype(object).where(part.notna(), "").map(lambda v: f"{v:.4g}" if isinstance(v, float) else str(v))
        for shown in _fitting(cells.to_dict("list"), name, _console().width):
            _console().print(shown)
    if rows.empty:
        typer.echo("nothing has run yet: vau run demo")


@app.command()
def times(
    preset: Preset = "demo",
    write: Annotated[bool, typer.Option("--write", help="state the last run's, which must have been quiet and whole")] = False,
) -> None:
    """Show the seconds of a preset's notebooks beside those that their first cells state."""
    written = [presets.display_path(path) for path in timings.state(preset)] if write else []
    shown, took, stated = _table("notebook", "took", "stated"), timings.seconds(preset), presets.usual_seconds(preset)
    for name in presets.members(preset):
        shown.add_row(name, *(f"{part[name]:.0f}" if name in part else "" for part in (took, stated)))
    _console().print(shown)
    for path in written:
        typer.echo(f"written: {path}")


@app.command()
def doctor() -> None:
    """Show what this machine has: versions, accelerator, codecs, weights, data, disk."""
    shown = _table("what", "found")
    for what, check in _checks():
        try:
            found = str(check())
        except Exception as error:  # a broken library may raise anything; the report names it and goes on
            found = f"no: {type(error).__name__}: {artifacts.one_line(error)}"
        shown.add_row(what, found)
    _console().print(shown)


def _checks() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield (name, function that returns what it finds or raises)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "python", lambda: f"{sys.version.split()[0]} in {sys.prefix}"
    yield "project", lambda: f"{presets.project()}, commit {artifacts.commit()}"
    for name, version in artifacts.versions(PACKAGES).items():
        yield name, lambda version=version: version
    yield "imports", _imports
    yield "accelerator", _accelerator
    yield "H.264", _codecs
    for name, kind in WEIGHTS.items():
        yield f"{name} weights", lambda kind=kind: _weights(kind)
    yield "VAU_REAL_DATA", _real_data
    yield "data/raw", lambda: ", ".join(sorted(p.name for p in (presets.project() / "data/raw").glob("*/"))) or "empty"
    yield "free disk", lambda: f"{shutil.disk_usage(presets.project()).free / 2**30:.1f} GiB"
    yield "cores", lambda: cores


def _imports() -> str:
    broken, names = [], ["torch", "torchvision", "kornia", "av", "sklearn", "papermill"]
    if importlib.util.find_spec("decord"):  # it has no wheel for every machine; without it PyAV reads
        names.append("decord")
    for name in names:
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
    """Write a small video and read it back through every reader."""
    import numpy as np

    from vau_lib.data import video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        video.write_video(path, np.zeros((8, 64, 64, 3), np.uint8))
        found = {"written by PyAV": "yes"}
        for reader in video.READERS[1:]:
            try:
                count, (by, why) = len(video.read_frames(path, range(8), reader=reader)), video.reader_of(path, reader)
                found[f"read by {reader}"] = f"{count} of 8 frames" + (f" (by {by}: {why})" if why else "")
            except (ValueError, RuntimeError) as error:
                found[f"read by {reader}"] = f"no: {artifacts.one_line(error)}"
    return ", ".join(f"{what}: {result}" for what, result in found.items())


def _weights(kind: str) -> Path:
    from vau_lib.features import checkpoints  # torch, only here

    for filename in checkpoints.NEARBY[kind]:
        beside_data = Path(os.environ.get("VAU_REAL_DATA", "")) / "weights" / filename
        if beside_data.is_file():
            return beside_data
    return checkpoints.find_weights(kind)


def _real_data() -> str:
    folder = os.environ.get("VAU_REAL_DATA")
    if not folder:
        return "not set: tests and presets on real videos need it, see data/README.md"
    path = presets.project_path(folder)
    return f"{path}: {', '.join(sorted(p.name for p in path.iterdir() if p.is_dir()))}"


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _fitting(columns: dict[str, list[str]], title: str, width: int) -> Iterator[Table]:
    """Yield a table of runs, one a row, where it fits into `width` columns, else a line a field and the runs side by side."""
    widest = {name: max(map(len, [str(name), *cells])) for name, cells in columns.items()}
    if sum(widest.values()) + 2 * (len(widest) - 1) <= width:
        shown = _table(*columns, title=title)
        for row in zip(*columns.values(), strict=True):
            shown.add_row(*row)
        yield shown
        return
    names, left = max(map(len, columns)), max((len(cells) for cells in columns.values()), default=0)
    room, first = width - names - 2, 0
    while first < left:
        sizes = [min(room, max(len(cells[k]) for cells in columns.values())) for k in range(first, left)]
        fits = [k for k in range(1, len(sizes) + 1) if sum(sizes[:k]) + 2 * (k - 1) <= room]
        last = first + (fits[-1] if fits else 1)
        shown = _table(*[""] * (1 + last - first), title=title if not first else f"{title}, further runs")
        shown.show_header = False
        for name, cells in columns.items():
            shown.add_row(str(name), *cells[first:last])
        yield shown
        first = last


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False, markup=False)

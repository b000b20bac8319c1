"""`vau`'s commands of language models: guard, explain, convert, tune and the videos to tune on (generate).

- each is a few calls into the library; torch is imported inside a command, so that `vau list` stays quick
- `toy` stands for the tiny model that the course trains, wherever a model is asked for
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vau_lib.workspace import artifacts, presets

TOY_VLM = "data/toy_models/internvl"  # knows the toy data set only; give a real model
TOY_SCORER = Path("data/toy_models/scorer")  # of the same world
TOY_JUDGE = "data/toy_models/judge"  # its adapter that judges

commands = typer.Typer()


@commands.command()
def guard(
    source: Annotated[Path, typer.Argument(help="a video, a folder of videos, or a records.jsonl")],
    model: Annotated[str, typer.Option(help="folder or hub name of InternVL or Qwen2.5-VL")] = TOY_VLM,
    adapter: Annotated[Path | None, typer.Option(help="folder of a LoRA adapter that `vau tune` wrote")] = None,
    out: Annotated[
        Path | None, typer.Option(help="append one JSON line per video; videos that it already holds are skipped")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="frames sampled per video; as in the model's tuning, else 16")] = None,
    keep_ratio: Annotated[float, typer.Option(help="fraction of the visual tokens that is kept, in (0, 1]")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 768,
    batch: Annotated[int, typer.Option(help="videos per batch; with 1 the answer is shown while it is generated")] = 1,
) -> None:
    """Ask a vision-language model about videos: what happens, and is it an anomaly?"""
    from vau_lib import guard
    from vau_lib.vlm import models  # torch, only here

    if adapter is None and _model_path(model) == _model_path(TOY_VLM):
        adapter = Path(TOY_JUDGE)  # the toy alone describes and does not judge
    vlm = _with_adapter(models.load(_model_path(model)), adapter)
    frames = frames or vlm.num_frames or guard.GuardPlan.num_frames
    plan = guard.GuardPlan(num_frames=frames, keep_ratio=keep_ratio, max_new_tokens=max_new_tokens, batch_size=batch)
    stream = (lambda text: typer.echo(text, nl=False)) if batch == 1 else None
    answers = guard.guard(vlm, source, out, plan=plan, stream=stream, log=lambda line: typer.echo(line, err=True))
    for row in answers:
        verdict = row["error"] or {1: "anomaly", 0: "normal", None: "no verdict in the answer"}[row["anomaly"]]
        typer.echo(f"\n{row['id']}: {verdict}")
    typer.echo(f"by {vlm.label}")


@commands.command()
def convert(
    kind: Annotated[str, typer.Argument(metavar="holmesvau", help="holmesvau: HolmesVAU-2B or InternVL2-2B")],
    folder: Annotated[Path, typer.Argument(help="released folder: config.json, weights, tokenizer.model")],
    out: Annotated[Path, typer.Argument(help="folder to write; give it to --model")],
) -> None:
    """Convert a released model, once, to one that runs without code that comes with the weights."""
    from vau_lib.vlm import holmesvau  # torch, only here

    if kind != "holmesvau":
        raise ValueError(f"cannot convert {kind!r}, there is only holmesvau")
    facts = holmesvau.convert(presets.project_path(str(folder)), presets.project_path(str(out)))
    merged = f", LoRA of rank {facts['lora_rank']} merged" if facts["lora_rank"] else ""
    typer.echo(f"{facts['name']}: {facts['tensors']} tensors{merged}; in {out}")


@commands.command()
def explain(
    video: Annotated[Path, typer.Argument(help="a video file")],
    model: Annotated[str, typer.Option(help="folder or hub name of a model; toy: the tiny one, which knows its own world only")],
    scorer: Annotated[
        Path | None, typer.Option(help="anomaly_scorer.pth as published, or the folder of a trained anomaly scorer")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the result; data/explained/NAME if not given")] = None,
    adapter: Annotated[Path | None, typer.Option(help="folder of a LoRA adapter that `vau tune` wrote")] = None,
    frames: Annotated[int, typer.Option(help="frames the model is shown")] = 12,
    stride: Annotated[int, typer.Option(help="frames from one scored frame to the next")] = 16,
    cap: Annotated[int | None, typer.Option(help="most scored frames of a long video: the stride grows")] = None,
    tau: Annotated[float | None, typer.Option(help="how evenly frames are chosen; the scorer's own, else 0.1")] = None,
    released: Annotated[bool, typer.Option("--released", help="choose frames as the published sampler does")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 256,
) -> None:
    """Score a video, choose frames by score, ask for judgement, description and analysis: JSON, figure and one HTML page."""
    from vau_lib import explain
    from vau_lib.plots import style
    from vau_lib.vlm import models  # torch, only here

    if scorer is None and model != "toy":
        raise ValueError("--scorer is needed: anomaly_scorer.pth as published, or the folder of a trained anomaly scorer")
    vlm = _with_adapter(models.load(_model_path(model)), adapter)
    place = presets.project_path(str(scorer or TOY_SCORER))
    found, tower = explain.load_scorer(place, explain.VisionTower(vlm))
    made_by = artifacts.read_json(place / "made_by.json") if (place / "made_by.json").is_file() else {}
    explained = explain.explain_video(
        presets.project_path(str(video)), vlm, found, num_frames=frames, stride=stride, cap=cap, released=released, tower=tower,
        tau=float(made_by.get("tau", 0.1)) if tau is None else tau, max_new_tokens=max_new_tokens,
        log=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    style.use()
    paths = explain.write(explained, presets.project_path(str(out or Path("data/explained") / video.stem)))
    typer.echo(f"{video.name}: {explain.VERDICTS[explained.explanation.anomalous]}")
    for name in ("judgement", "description", "analysis"):
        typer.echo(f"{name}: {artifacts.one_line(getattr(explained.explanation, name), 2000)}")
    typer.echo(f"by {explained.label}")
    for path in paths.values():
        typer.echo(f"look at {presets.display_path(path)}")


@commands.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="folder for videos, job ledger and records.jsonl, like data/generated")],
    number: Annotated[int, typer.Option(help="videos, an anomaly and its everyday counterpart in turn")] = 200,
    seed: Annotated[int, typer.Option(help="random seed of the scenarios")] = 0,
    backend: Annotated[str, typer.Option(help="procedural, veo, or a diffusers model's name or folder")] = "procedural",
    factors: Annotated[list[str] | None, typer.Option("-p", metavar="FACTOR=VALUE", help="fix a factor")] = None,
    price: Annotated[float | None, typer.Option(help="price of one second of video; needed by paid backends")] = None,
    confirm: Annotated[float | None, typer.Option(help="agree to this exact total price instead of being asked")] = None,
    workers: Annotated[int, typer.Option(help="processes of the procedural backend")] = 2,
) -> None:
    """Make videos of scenarios in which every pair of factors occurs; a stopped run is resumed."""
    from vau_lib.synthetic import scenarios, text_to_video, veo

    fixed = {key: presets.typed(value, "") for key, value in presets.parse_values(factors or []).items()}
    if wrong := sorted(fixed.keys() - scenarios.FACTORS.keys()):
        raise ValueError(f"no factor {wrong[0]!r}; there are {', '.join(scenarios.FACTORS)}")
    if backend == "veo" and not price:
        raise ValueError("veo costs money: give --price, what a second costs now")
    chosen = scenarios.covering_scenarios(number, seed, **fixed)
    makers = {"procedural": text_to_video.Procedural, "veo": lambda: veo.Veo(price_per_second=price)}
    maker = makers.get(backend, lambda: text_to_video.Diffusers(backend))()
    jobs = text_to_video.run(
        maker, chosen, presets.project_path(str(folder)), seed=seed, confirm=typer.confirm if confirm is None else confirm,
        splits={"train": 0.6, "val": 0.2, "test": 0.2}, workers=workers,
    )  # fmt: skip
    missing = scenarios.coverage(chosen)[1]
    statuses = ", ".join(f"{count} {status}" for status, count in jobs["status"].value_counts().items())
    typer.echo(f"{folder}: {statuses}; {int(jobs['label'].sum())} anomalous; {len(missing)} pairs of factors never occur")
    for row in jobs[jobs["status"] != "done"].itertuples():
        typer.echo(f"  {row.id}: {row.status}: {row.detail}")


@commands.command()
def tune(
    files: Annotated[list[Path], typer.Argument(help="instruction files, like data/generated/instructions.jsonl")],
    out: Annotated[Path, typer.Option(help="folder for checkpoints and the adapter, like data/models/vlm/security")],
    roots: Annotated[
        list[Path] | None, typer.Option("--root", help="folder of each file's videos; its own folder if not given")
    ] = None,
    model: Annotated[str, typer.Option(help="folder or hub name of InternVL or Qwen2.5-VL")] = TOY_VLM,
    keep_ratio: Annotated[
        float, typer.Option(help="train on videos with a random fraction of their visual tokens, from this to 1")
    ] = 1.0,
    frames: Annotated[int, typer.Option(help="frames sampled per video")] = 16,
    steps: Annotated[int, typer.Option(help="optimizer steps; -1: one epoch")] = -1,
    rate: Annotated[float, typer.Option(help="learning rate")] = 4e-5,
    batch: Annotated[int, typer.Option(help="batch size")] = 4,
    rank: Annotated[int, typer.Option(help="rank of the adapter")] = 64,
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
) -> None:
    """Fine-tune a vision-language model on instruction files with LoRA; a stopped training is resumed."""
    from vau_lib.compression import token_pruning, token_selection
    from vau_lib.vlm import finetuning, instruction_data, models  # torch, only here

    if not 0 < keep_ratio <= 1:
        raise ValueError(f"--keep-ratio must be above 0 and at most 1, got {keep_ratio}")
    if roots and len(roots) != len(files):
        raise ValueError(f"{len(files)} files and {len(roots)} folders of videos: give --root once per file, or never")
    places = dict(zip(files, roots or [file.parent for file in files], strict=True))
    rows = instruction_data.read_rows({presets.project_path(str(f)): presets.project_path(str(r)) for f, r in places.items()})
    vlm = models.load(_model_path(model))
    vlm = vlm.replace(model=finetuning.lora(vlm.model, r=rank, alpha=2 * rank, seed=seed))
    plan = finetuning.LoraPlan(
        max_steps=steps, learning_rate=rate, batch_size=batch, seed=seed, save_steps=50, log_steps=max(1, min(10, steps))
    )
    rule = token_selection.random_ratio(keep_ratio)
    losses = finetuning.fit(
        vlm,
        instruction_data.InstructionSamples(rows, "/", vlm, num_frames=frames, seed=seed),
        plan=plan,
        folder=presets.project_path(str(out)),
        wrap_model=partial(token_pruning.prune_tokens, keep_ratio=1.0, rule=rule) if keep_ratio < 1 else None,
        facts={"keep_ratio": keep_ratio, "rank": rank, "frames": frames},
        progress=True,
    )
    first, last = losses["loss"].iloc[[0, -1]]
    typer.echo(f"{out}: {len(rows):,} rows of {len(files)} files, loss {first:.2f} to {last:.2f}; by {vlm.label}")


def _with_adapter(vlm, adapter: Path | None):
    """Return the model with an adapter's changes, and a kind that says so."""
    from vau_lib.vlm import finetuning

    if adapter is None:
        return vlm
    kind = f"{vlm.kind}, tuned: {adapter}".removeprefix(", ")
    return finetuning.with_adapter(vlm, presets.project_path(str(adapter)), kind=kind)


def _model_path(model: str) -> Path | str:
    """Return a model's folder in the project, `toy` for the tiny one, or the name on the hub unchanged."""
    folder = presets.project_path(TOY_VLM if model == "toy" else model)
    return folder if folder.is_dir() else model

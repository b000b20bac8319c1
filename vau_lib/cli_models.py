"""`vau`'s commands of language models: guard, explain, convert, tune, reinforce and the videos to tune on (generate).

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
DEMO_LSHMA = Path("data/models/lshma/synthetic/intended/fold0_seed0")  # what the demo trains
TOY_STREAM = Path("data/toy_models/stream")  # the demo's MemTSM-Net, kept
TOY_NEAR = "data/toy_models/near"  # sees motion in pairs of frames, knows the near places only
TOY_JUDGE = "data/toy_models/judge"  # its adapter that judges

commands = typer.Typer()


TokenRule = Annotated[
    str, typer.Option(help="which tokens are kept: 'few moments' (the tower reads no others) or 'spread' over all moments")
]


@commands.command()
def guard(
    source: Annotated[Path, typer.Argument(help="a video, a folder of videos, or a records.jsonl")],
    model: Annotated[
        str | None,
        typer.Option(help="folder or hub name of InternVL, Qwen2.5-VL or Qwen3-VL, or toy; with --server the served name"),
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="folder of a LoRA adapter that `vau tune` wrote")] = None,
    out: Annotated[
        Path | None, typer.Option(help="append one JSON line per video; what was asked of the same bytes is not asked again")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="ask again about videos whose line is an error")] = False,
    frames: Annotated[int | None, typer.Option(help="frames of a video; as in the model's tuning, else 16, or by --fps")] = None,
    as_video: Annotated[
        bool | None, typer.Option("--as-video/--pictures", help="frames as one video; the default where the model reads videos")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="frames per second of video input; the model's own if not given")] = None,
    max_frames: Annotated[int | None, typer.Option(help="most frames of video input; the model's own if not given")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="largest area of a frame; the model's own if not given")] = None,
    window: Annotated[float | None, typer.Option(help="ask about windows of this many seconds, one by one")] = None,
    step: Annotated[float | None, typer.Option(help="seconds from one window to the next; side by side if not given")] = None,
    scorer: Annotated[Path | None, typer.Option(help="choose frames by this anomaly scorer: a .pth or a folder")] = None,
    stride: Annotated[int, typer.Option(help="with --scorer: frames from one scored frame to the next")] = 16,
    cap: Annotated[int | None, typer.Option(help="with --scorer: most scored frames; the stride grows")] = None,
    keep_ratio: Annotated[float, typer.Option(help="fraction of the visual tokens that is kept, in (0, 1]")] = 1.0,
    token_rule: TokenRule = "few moments",
    question: Annotated[str, typer.Option(help="asked instead of the model's own question")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 768,
    batch: Annotated[int, typer.Option(help="videos per batch; with 1 the answer is shown while it is generated")] = 1,
    server: Annotated[str | None, typer.Option(help="ask this OpenAI-compatible service instead: http(s)://host:port/v1")] = None,
    key_env: Annotated[str, typer.Option(help="with --server: environment variable that holds its key")] = "VAU_API_KEY",
    timeout: Annotated[float, typer.Option(help="with --server: seconds to wait for one answer")] = 120.0,
    engine: Annotated[str, typer.Option(help="serial, processes or ray: workers load the model")] = "serial",
    workers: Annotated[int, typer.Option(help="processes, or actors of Ray")] = 2,
    gpus: Annotated[float, typer.Option(help="of a GPU, for each of Ray's actors")] = 0.0,
    address: Annotated[str | None, typer.Option(help="of a running Ray cluster")] = None,
) -> None:
    """Ask a vision-language model about videos: what happens, and is it an anomaly?"""
    from vau_lib import guard
    from vau_lib.vlm import clients

    if not model:
        raise ValueError("--model is needed: a folder, a name on the hub, or toy (the tiny one, which knows its own world only)")
    guard.sources(source)  # before a model is loaded
    guard.check_writable(out)
    if server and (adapter or scorer):
        raise ValueError("--adapter and --scorer need a model that runs here, not --server")
    if server:
        vlm = clients.Endpoint(server, model, key_env=key_env, timeout_s=timeout)
        as_video, chooser = bool(as_video or fps or max_frames), None
    else:
        vlm, as_video = _guard_model(model, adapter, as_video, pictures=scorer is not None, video=bool(fps or max_frames))
        chooser = _chooser(vlm, scorer, stride, cap) if scorer else None
    plan = guard.GuardPlan(
        num_frames=frames, keep_ratio=keep_ratio, token_rule=token_rule, max_new_tokens=max_new_tokens, batch_size=batch,
        question=question,
        as_video=as_video, fps=fps, max_frames=max_frames, max_pixels=max_pixels, window_s=window, step_s=step,
    )  # fmt: skip
    stream = (lambda text: typer.echo(text, nl=False)) if batch == 1 and engine == "serial" else None
    log, options = partial(typer.echo, err=True), {}
    if engine != "serial":
        used = adapter or (TOY_JUDGE if _model_path(model) == _model_path(TOY_VLM) else None)
        named = guard.Loading(_model_path(model), presets.project_path(str(used)) if used else None, vlm.kind if not server else "")
        options = {"engine": engine, "workers": workers, "loading": None if server else named}
        options |= {"num_gpus": gpus, "address": address} if engine == "ray" else {}
    answers = guard.guard(vlm, source, out, plan=plan, chooser=chooser, retry=retry, stream=stream, log=log, **options)
    for row in answers:
        verdict = row["error"] or {1: "anomaly", 0: "normal", None: "no verdict in the answer"}[row["anomaly"]]
        sure = "" if row["confidence"] is None else f" ({row['confidence']:.2f})"
        when = "" if row["from_s"] is None else f", {row['from_s']:g} to {row['to_s']:g} s"
        typer.echo(f"\n{row['id']}: {verdict}{sure}{': ' + row['kind'] if row['kind'] else ''}{when}")
    typer.echo(f"by {vlm.label}")


@commands.command()
def hello() -> None:
    """Draw three clips and let the tiny model judge them, with the truth beside it: what `make hello` shows after notebook 00."""
    from vau_lib import guard
    from vau_lib.data import records
    from vau_lib.synthetic import dataset as synthetic_dataset
    from vau_lib.toy import dataset as toy_dataset

    folder = presets.project_path("data/synthetic/hello")
    found = synthetic_dataset.make_dataset(folder, num_videos=6, seed=770, duration_s=6.0, splits={"test": 1.0})
    three = [*[r for r in found if r.label][:2], next(r for r in found if not r.label)]  # the first of each class
    records.write_records(folder / "three.jsonl", three)
    vlm, as_video = _guard_model(TOY_NEAR, None, None, pictures=False, video=False)
    plan = guard.GuardPlan(max_new_tokens=32, batch_size=3, as_video=as_video)
    for row in guard.guard(vlm, folder / "three.jsonl", plan=plan, log=None, progress=False):
        record = next(r for r in three if r.id == row["id"])
        verdict = {1: "anomaly", 0: "normal", None: "no verdict"}[row["anomaly"]]
        place = presets.display_path(records.locate(record, folder))
        typer.echo(f"{place}: {verdict} (in truth {toy_dataset.event_of(record)}): {row['text']}")
    typer.echo(f"by {vlm.label}: it knows drawn places near the camera only, and may be wrong about them too")


def _guard_model(model: str, adapter: Path | None, as_video: bool | None, *, pictures: bool, video: bool, device: str = "auto"):
    """Return the model, and whether it gets frames as one video: as in its tuning, else wherever it reads videos."""
    from vau_lib.vlm import models  # torch, only here

    if adapter is None and _model_path(model) == _model_path(TOY_VLM):
        adapter = Path(TOY_JUDGE)  # the toy alone describes and does not judge
    vlm = _with_adapter(models.load(_model_path(model), device=device), adapter)
    if as_video is None:
        as_video = video or (not pictures and _as_video(vlm, None, adapter, _model_path(model)))
    return vlm, as_video


def _as_video(vlm, given: bool | None, adapter: Path | None = None, model: str | Path | None = None) -> bool:
    """Return whether frames go in as one video: as `given`, else as the adapter, or the model, says of its tuning.

    Where none says it, pictures for a model that was tuned on a question or has an adapter, else a video for a model that reads it.
    """
    from vau_lib.vlm import video_input

    if given is not None:
        return given
    places = [presets.project_path(str(folder)) / "made_by.json" for folder in (adapter, model) if folder]
    known = [artifacts.read_json(place) for place in places if place.is_file()]
    noted = [facts["as_video"] for facts in known if "as_video" in facts]
    tuned_so = bool(noted[0]) if noted else not (adapter or vlm.question)
    return tuned_so and video_input.reads_video(vlm)


def _chooser(vlm, scorer: Path, stride: int, cap: int | None):
    from vau_lib import explain, guard

    found, tower = explain.load_scorer(presets.project_path(str(scorer)), explain.VisionTower(vlm))
    choose = partial(explain.choose_frames, scorer=found, tower=tower, stride=stride, cap=cap)
    return guard.FrameChooser(choose, f"{found.label}, stride {stride}, cap {cap}")


@commands.command()
def analyse(
    source: Annotated[str, typer.Argument(help="a video, a folder of videos, a camera's number, or an address (rtsp://...)")],
    detector: Annotated[
        Path | None, typer.Option(help="folder of a trained LSHMA or MemTSM-Net; the demo's, where it has run, else a kept toy")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="language model that explains events: a folder, a hub name, toy, near; none if not given")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="folder of a LoRA adapter that `vau tune` wrote")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the report; data/analysed/NAME if not given")] = None,
    threshold: Annotated[float | None, typer.Option(help="of a score; from the detector's validation videos if not given")] = None,
    events: Annotated[str, typer.Option(help="known events: records.jsonl, UCF-Crime annotation, or like 36-52,60-71 (s)")] = "",
    weights: Annotated[str | None, typer.Option(help="weights of the feature encoder; searched for if not given")] = None,
    device: Annotated[str, typer.Option(help="where the networks run: auto, cpu, cuda, mps")] = "auto",
    frames: Annotated[int | None, typer.Option(help="frames the language model gets of an event; its own, else 12")] = None,
    as_video: Annotated[bool | None, typer.Option("--as-video/--pictures", help="frames as one video")] = None,
    question: Annotated[str, typer.Option(help="asked instead of the model's own question")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 256,
    embed: Annotated[float, typer.Option(help="MiB; a larger video lies beside the report")] = 8.0,
    seconds: Annotated[float, typer.Option(help="stop after this many seconds of video; 0: never")] = 0.0,
    every: Annotated[float, typer.Option(help="a camera's report is written again after so many seconds")] = 10.0,
    webhook: Annotated[str | None, typer.Option(help="post each alarm and explanation as JSON to this address")] = None,
    server: Annotated[str | None, typer.Option(help="ask this OpenAI-compatible service instead: http(s)://host:port/v1")] = None,
    key_env: Annotated[str, typer.Option(help="with --server: environment variable that holds its key")] = "VAU_API_KEY",
    timeout: Annotated[float, typer.Option(help="with --server: seconds to wait for one answer")] = 120.0,
) -> None:
    """Look at a video: scores, events, explanations, and a page (report.html) of them; a camera's alarms as JSON lines."""
    from vau_lib import analyse, cascade
    from vau_lib.vlm import clients  # torch, only here

    log, live = partial(typer.echo, err=True), source.isdigit() or "://" in source
    place = Path(source) if live or Path(source).exists() else presets.project_path(source)
    usual = DEMO_LSHMA if presets.project_path(str(DEMO_LSHMA / "scores.json")).exists() else TOY_STREAM
    found = cascade.load_detector(presets.project_path(str(detector or usual)), weights, threshold, device=device)
    post = cascade.webhook(webhook, log=log) if webhook else None
    vlm, near = None, model == "near"
    if server:
        vlm, as_video = clients.Endpoint(server, model or "default", key_env=key_env, timeout_s=timeout), False
    elif model:
        vlm, as_video = _guard_model(TOY_NEAR if near else model, adapter, as_video, pictures=False, video=False, device=device)
    plan = cascade.AnalysisPlan(
        num_frames=frames or getattr(vlm, "num_frames", 0) or 12, max_new_tokens=max_new_tokens, question=question,
        as_video=bool(as_video), pair_lag_s=0.2 if near else None, embed_mb=embed,
    )  # fmt: skip

    def send(message: dict) -> None:
        typer.echo(artifacts.json_line(message), nl=False)
        if post:
            post(message)

    options = dict(plan=plan, vlm=vlm, events=events, seconds=seconds, send=send if live else post)
    folder = presets.project_path(str(out or Path("data/analysed") / ("camera" if live else place.stem)))
    if not live and (place.suffix == ".jsonl" or (place.is_dir() and analyse.holds_videos(place))):
        rows = analyse.analyse_folder(place, found, folder, log=typer.echo, **options)
        count = sum(bool(row["report"]) for row in rows)
        typer.echo(f"{count} of {len(rows)} videos; look at {presets.display_path(folder / 'index.html')}")
        return
    content = analyse.analyse(source if live else place, found, folder, every_s=every, **options)
    for line in () if live else analyse.lines(content):
        typer.echo(line)
    typer.echo(f"look at {presets.display_path(folder / 'report.html')}", err=live)


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
    facts = holmesvau.convert(folder if folder.exists() else presets.project_path(str(folder)), presets.project_path(str(out)))
    merged = f", LoRA of rank {facts['lora_rank']} merged" if facts["lora_rank"] else ""
    typer.echo(f"{facts['name']}: {facts['tensors']} tensors{merged}; in {out}")


@commands.command()
def merge(
    model: Annotated[str, typer.Argument(help="folder or hub name of a model, or toy")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    adapter: Annotated[Path | None, typer.Option(help="folder of a LoRA adapter that `vau tune` wrote")] = None,
    keep_ratio: Annotated[float, typer.Option(help="fraction of the visual tokens a server should keep, in (0, 1]")] = 1.0,
) -> None:
    """Write a model with its adapter merged as a plain folder, and print how vLLM serves it."""
    from vau_lib.compression import pruning
    from vau_lib.vlm import models

    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be in (0, 1], got {keep_ratio}")
    vlm = _with_adapter(models.load(_model_path(model)), adapter)
    if pruning.is_compressed(vlm.model):
        raise ValueError(f"{model} has layers of unlike sizes: `vau` reads it, vLLM does not")
    shown = dict(as_video=_as_video(vlm, None, adapter, _model_path(model)), num_frames=vlm.num_frames)
    place = models.save(vlm, presets.project_path(str(out)), **shown)
    typer.echo(f"{place}: {sum(p.numel() for p in vlm.model.parameters()):,} parameters, adapter {adapter or 'none'}")
    pruned = f" --video-pruning-rate {1 - keep_ratio:.4g}" if keep_ratio < 1 else ""  # vLLM's EVS, of video input only
    typer.echo(f"vllm serve {place}{pruned}")


@commands.command()
def explain(
    video: Annotated[Path, typer.Argument(help="a video file")],
    model: Annotated[str, typer.Option(help="folder or hub name of a model; toy: the tiny one, which knows its own world only")],
    scorer: Annotated[
        Path | None, typer.Option(help="anomaly_scorer.pth as published, or the folder of a trained anomaly scorer")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the result; data/explained/NAME if not given")] = None,
    adapter: Annotated[Path | None, typer.Option(help="folder of a LoRA adapter that `vau tune` wrote")] = None,
    frames: Annotated[int | None, typer.Option(help="frames the model is shown; as many as in its tuning, else 12")] = None,
    stride: Annotated[int | None, typer.Option(help="frames from one scored frame to the next; 16 if not given")] = None,
    fps: Annotated[float | None, typer.Option(help="scored frames per second, instead of --stride")] = None,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", "--cap", help="most scored frames of a long video: the stride grows")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(help="largest area of a frame; the model's own if not given")] = None,
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
    if stride and fps:
        raise ValueError(f"give --stride or --fps, got {stride} and {fps}")
    file = video if video.exists() else presets.project_path(str(video))
    adapter = adapter or (Path(TOY_JUDGE) if _model_path(model) == _model_path(TOY_VLM) else None)  # alone it does not judge
    vlm = _with_adapter(models.load(_model_path(model)), adapter)
    place = presets.project_path(str(scorer or TOY_SCORER))
    found, tower = explain.load_scorer(place, explain.VisionTower(vlm, max_pixels=max_pixels))
    made_by = artifacts.read_json(place / "made_by.json") if (place / "made_by.json").is_file() else {}
    explained = explain.explain_video(
        file, vlm, found, num_frames=frames or vlm.num_frames or 12,
        stride=explain.stride_of(file, fps) if fps else stride or 16, cap=max_frames,
        released=released, tower=tower,
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
    parallel: Annotated[int, typer.Option(help="most jobs open at a service at once (veo)")] = 1,
    home: Annotated[
        bool, typer.Option("--home", help="homes, pets, children, wildlife (SmartHome-Bench); nothing draws them")
    ] = False,
) -> None:
    """Make videos of scenarios in which every pair of factors occurs; a stopped run is resumed."""
    from vau_lib.synthetic import scenarios, text_to_video, veo

    fixed = {key: presets.typed(value, "") for key, value in presets.parse_values(factors or []).items()}
    if wrong := sorted(fixed.keys() - scenarios.FACTORS.keys()):
        raise ValueError(f"no factor {wrong[0]!r}; there are {', '.join(scenarios.FACTORS)}")
    if backend == "veo" and not price:
        raise ValueError("veo costs money: give --price, what a second costs now")
    if home and (fixed or backend == "procedural"):
        raise ValueError("--home has no factors to fix, and is for text-to-video models: --backend veo or a diffusers model")
    chosen = scenarios.home_scenarios(number, seed) if home else scenarios.covering_scenarios(number, seed, **fixed)
    makers = {"procedural": text_to_video.Procedural, "veo": lambda: veo.Veo(price_per_second=price)}
    maker = makers.get(backend, lambda: text_to_video.Diffusers(backend))()
    jobs = text_to_video.run(
        maker, chosen, presets.project_path(str(folder)), seed=seed, confirm=typer.confirm if confirm is None else confirm,
        splits={"train": 0.6, "val": 0.2, "test": 0.2}, workers=workers,
        jobs_at_once=parallel,
    )  # fmt: skip
    statuses = ", ".join(f"{count} {status}" for status, count in jobs["status"].value_counts().items())
    missing = "" if home else f"; {len(scenarios.coverage(chosen)[1])} pairs of factors never occur"
    typer.echo(f"{folder}: {statuses}; {int(jobs['label'].sum())} anomalous{missing}")
    for row in jobs[jobs["status"] != "done"].itertuples():
        typer.echo(f"  {row.id}: {row.status}: {row.detail}")


Files = Annotated[list[Path], typer.Argument(help="instruction files, like data/generated/instructions.jsonl")]
Roots = Annotated[list[Path] | None, typer.Option("--root", help="folder of each file's videos; its own folder if not given")]
TuneModel = Annotated[str, typer.Option(help="folder or hub name of InternVL or Qwen-VL")]
Frames = Annotated[int, typer.Option(help="frames sampled per video, or the most of them with --fps")]
AsVideo = Annotated[
    bool | None,
    typer.Option("--video/--pictures", help="frames as one video, for half the tokens; the default where the model can"),
]
Fps = Annotated[float | None, typer.Option(help="frames a second of a video, up to --frames; with --video")]
MaxPixels = Annotated[int | None, typer.Option(help="largest area of a frame; the model's own if not given (Qwen-VL)")]
KeepRatio = Annotated[float, typer.Option(help="train on a random fraction of the visual tokens, from this to 1")]
Bits = Annotated[int | None, typer.Option(help="load the model in 4 or 8 bits (bitsandbytes, CUDA)")]


@commands.command()
def tune(
    files: Files,
    out: Annotated[Path, typer.Option(help="folder for checkpoints and the adapter, like data/models/vlm/security")],
    roots: Roots = None,
    model: TuneModel = TOY_VLM,
    keep_ratio: KeepRatio = 1.0,
    token_rule: TokenRule = "few moments",
    frames: Frames = 16,
    as_video: AsVideo = None,
    fps: Fps = None,
    max_pixels: MaxPixels = None,
    steps: Annotated[int, typer.Option(help="optimizer steps; -1: --epochs")] = -1,
    epochs: Annotated[float, typer.Option(help="passes over the rows")] = 1.0,
    rate: Annotated[float, typer.Option(help="learning rate")] = 4e-5,
    batch: Annotated[int, typer.Option(help="rows per device at once")] = 4,
    accumulation: Annotated[int, typer.Option(help="batches per step")] = 1,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="recompute activations to save memory")] = False,
    bits: Bits = None,
    deepspeed: Annotated[str | None, typer.Option(help="DeepSpeed's configuration file")] = None,
    fsdp: Annotated[str | None, typer.Option(help="FSDP's configuration file (JSON, keys of fsdp_config)")] = None,
    workers: Annotated[int, typer.Option(help="processes that read and encode videos")] = 0,
    save_steps: Annotated[int, typer.Option(help="steps between checkpoints")] = 50,
    balance: Annotated[bool, typer.Option("--balance/--as-is", help="repeat judgements of the rarer verdict")] = True,
    rank: Annotated[int, typer.Option(help="rank of the adapter")] = 64,
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
) -> None:
    """Fine-tune a vision-language model on instruction files with LoRA; a stopped training is resumed.

    On several GPUs: torchrun --no-python --nproc-per-node=4 vau tune ...
    """
    from vau_lib import tune as tuning
    from vau_lib.vlm import finetuning, models  # torch, only here

    plan = finetuning.LoraPlan(
        epochs=epochs, max_steps=steps, learning_rate=rate, batch_size=batch, accumulation=accumulation, seed=seed,
        checkpointing=checkpointing, deepspeed=deepspeed, fsdp=fsdp, workers=workers, save_steps=save_steps,
        log_steps=max(1, min(10, steps)),
    )  # fmt: skip
    places = _places(files, roots)
    vlm = models.load(_model_path(model), bits=bits)
    as_video = _as_video(vlm, as_video, model=_model_path(model))
    shown = tuning.Shown(frames, as_video, fps, max_pixels, keep_ratio, token_rule)
    options = dict(plan=plan, shown=shown, rank=rank, balance=balance, progress=True)
    tuned, losses, count = tuning.tune(vlm, places, presets.project_path(str(out)), **options)
    first, last = losses["loss"].iloc[[0, -1]]
    typer.echo(f"{out}: {count:,} rows of {len(files)} files, loss {first:.2f} to {last:.2f}; by {tuned.label}")


@commands.command()
def reinforce(
    files: Files,
    out: Annotated[Path, typer.Option(help="folder for the checkpoint, the adapter, exam.csv and rewards.csv")],
    roots: Roots = None,
    model: TuneModel = TOY_VLM,
    adapter: Annotated[Path | None, typer.Option(help="adapter of `vau tune` to go on from; a fresh one if not given")] = None,
    pieces: Annotated[list[int] | None, typer.Option(help="numbers of shuffled pieces to order; 0: judgements only")] = None,
    judgements: Annotated[float, typer.Option(help="fraction of the questions that are judgements")] = 0.5,
    keep_ratio: Annotated[float, typer.Option(help="fraction of the visual tokens that is kept, in (0, 1]")] = 1.0,
    token_rule: TokenRule = "few moments",
    frames: Annotated[int, typer.Option(help="frames shown per question, or the most of them with --fps")] = 6,
    as_video: AsVideo = None,
    fps: Fps = None,
    max_pixels: MaxPixels = None,
    steps: Annotated[int, typer.Option(help="roll-outs")] = 150,
    questions: Annotated[int, typer.Option(help="questions per roll-out")] = 8,
    group: Annotated[int, typer.Option(help="answers sampled per question")] = 8,
    updates: Annotated[int, typer.Option(help="optimisation steps per roll-out")] = 2,
    rate: Annotated[float, typer.Option(help="learning rate")] = 1e-5,
    temperature: Annotated[float, typer.Option(help="of the sampling")] = 1.0,
    beta: Annotated[float, typer.Option(help="weight of the KL to the start")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 32,
    micro_batch: Annotated[int, typer.Option(help="answers scored at once; 0: all")] = 8,
    rollout_batch: Annotated[int, typer.Option(help="answers sampled at once; 0: all")] = 0,
    exam: Annotated[str, typer.Option(help="split whose videos the exams before and after are on")] = "test",
    bits: Bits = None,
    rank: Annotated[int, typer.Option(help="rank of a fresh adapter")] = 64,
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
) -> None:
    """Reinforce a model by rewards (GRPO): right judgements, right orders of shuffled events; a stopped run is resumed."""
    from vau_lib import tune as tuning
    from vau_lib.vlm import finetuning, grpo, models  # torch, only here

    plan = grpo.GRPOPlan(
        steps=steps, questions=questions, group_size=group, updates=updates, learning_rate=rate, temperature=temperature, beta=beta,
        max_new_tokens=max_new_tokens, micro_batch=micro_batch, rollout_batch=rollout_batch, seed=seed, save_steps=10,
    )  # fmt: skip
    places, vlm = _places(files, roots), models.load(_model_path(model), bits=bits)
    if adapter is None:
        vlm = vlm.replace(model=finetuning.lora(vlm.model, r=rank, alpha=2 * rank, seed=seed))
    else:
        vlm = finetuning.trainable_adapter(vlm, presets.project_path(str(adapter)))
    shown = tuning.Shown(frames, _as_video(vlm, as_video, adapter, _model_path(model)), fps, max_pixels, keep_ratio, token_rule)
    table = tuning.reinforce(
        vlm, places, presets.project_path(str(out)), plan=plan, shown=shown,
        counts=[count for count in pieces or [2] if count], judgement_fraction=judgements, exam_split=exam, progress=True,
    )  # fmt: skip
    for row in table.itertuples():
        interval = f"{row.accuracy:.3f} [{row.low:.3f}, {row.high:.3f}]"
        typer.echo(f"{row.question}, {row.method}: {interval} of {row.questions} questions on {row.videos} videos")
    typer.echo(f"{out}: adapter, exam.csv, rewards.csv; by {vlm.label}")


def _places(files: list[Path], roots: list[Path] | None) -> dict[Path, Path]:
    """Return {instruction file: folder of its videos} in the project; ValueError where they are not one to one."""
    if roots and len(roots) != len(files):
        raise ValueError(f"{len(files)} files and {len(roots)} folders of videos: give --root once per file, or never")
    places = zip(files, roots or [file.parent for file in files], strict=True)
    return {presets.project_path(str(file)): presets.project_path(str(root)) for file, root in places}


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

"""Text-to-video generation: scenarios rendered with truth, by Veo (paid) or by an open diffusers model (Memories-S0's data step).

- only the renderer knows boxes, tracks, masks and event spans; a text-to-video model returns pixels, and no truth is invented:
  detections on its videos are marked `pseudo`, and instructions say that their source is the prompt (look at them: `review_sheet`)
- `run` keeps a ledger: a submitted job is not paid twice, a verified video is not made again, a stopped run goes on
- a video counts when its first and last frame can be decoded; refusals are results and stand in the report
- spending needs a confirmed sum
Sources: Memories-S0 names Veo and "scenario-driven generation"; interface and ledger are ours.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from vau_lib.data import records, video
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.synthetic import export, scenarios
from vau_lib.synthetic.scenarios import Scenario
from vau_lib.workspace import artifacts, formats, parallel

TRUTH = frozenset({"pixels", "boxes", "tracks", "masks", "events"})
PIXELS = frozenset({"pixels"})
VERDICTS = ("", "accept", "reject", "edit")
ALL_TRAIN = {"train": 1.0}
VERDICT_TEXTS = ("No anomaly exists in the video.", "An anomaly exists.")
MIN_OVERLAP = 0.3  # IoU from which a box may continue a track


class GenerationError(RuntimeError):
    """A video that could not be made; the message is one line and holds no key."""


@dataclass(frozen=True)
class GeneratedVideo:
    """A video that a backend wrote, with its event spans in seconds where the backend knows them."""

    events: tuple[records.Span, ...] = ()
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A scenario that the backend refused, with the reasons it gave."""

    reasons: tuple[str, ...]
    facts: dict = field(default_factory=dict)


class JobRecord:
    """The facts of one job, such as the name of a paid operation; every change is written to the ledger at once."""

    def __init__(self, known: dict | None = None, write: Callable[[dict], object] = lambda _: None):
        self.known, self._write = dict(known or {}), write

    def get(self, name: str, default: Any = None) -> Any:
        return self.known.get(name, default)

    def note(self, **facts: Any) -> None:
        """Add facts; None takes one away."""
        self.known = {name: value for name, value in (self.known | facts).items() if value is not None}
        self._write(self.known)


class Generator(Protocol):
    """What `run` needs of a backend. `price` is per video in the service's currency, 0 for free.

    A backend that only waits for a service says so by `waits = True`: its jobs may be open side by side.
    """

    name: str
    provides: frozenset[str]

    def price(self, scenario: Scenario) -> float: ...

    def generate(self, scenario: Scenario, path: Path, *, seed: int, job: JobRecord) -> GeneratedVideo | Refusal: ...


def verify(path: Path) -> video.VideoInfo:
    """Return what a video is; GenerationError where it is missing, cut off, or its first or last frame cannot be decoded."""
    try:
        info = video.probe(path)
        video.read_frames(path, [0, info.num_frames - 1], reader="pyav")
    except (video.VideoError, OSError) as error:
        raise GenerationError(f"{path.name} cannot be read to its end: {error}") from error
    return info


class Procedural:
    """The renderer as a backend: offline, free, with truth beside each video (.npz). The scenario's own seeds decide."""

    name, provides = "procedural", TRUTH

    def price(self, scenario: Scenario) -> float:
        return 0.0

    def generate(self, scenario: Scenario, path: Path, *, seed: int, job: JobRecord) -> GeneratedVideo:
        return GeneratedVideo(synthetic_dataset.render_to_file(scenario, path), {"edition": synthetic_dataset.EDITION})


class Diffusers:
    """An open text-to-video model: a hub name or folder for the package `diffusers`, or a pipeline already loaded.

    A named model is loaded in bfloat16 on a GPU where there is one, else in float32; `device` and `dtype` say otherwise. A pipeline
    stays where and as it is. Seeds are drawn on the pipeline's own device. `options` go to the pipeline's call (height, width,
    num_frames, guidance_scale, ...). ImportError in one line without diffusers.
    """

    provides = PIXELS

    def __init__(
        self, model: Any, *, prompt: Callable[[Scenario], str] = scenarios.prompt, fps: float = 16.0, device: Any = None,
        dtype: Any = None, **options: Any,
    ):  # fmt: skip
        self.name = f"diffusers {model if isinstance(model, str) else type(model).__name__}"
        if isinstance(model, str):
            try:
                from diffusers import DiffusionPipeline
            except ImportError as error:
                raise ImportError("open video models need the package diffusers: pip install 'vau-lib[generate]'") from error
            import torch

            device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
            model = DiffusionPipeline.from_pretrained(model, torch_dtype=dtype).to(device)
        elif (device is not None or dtype is not None) and hasattr(model, "to"):
            model = model.to(**{name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None})
        self.pipeline, self.prompt, self.fps, self.options = model, prompt, fps, options

    def price(self, scenario: Scenario) -> float:
        return 0.0

    def generate(self, scenario: Scenario, path: Path, *, seed: int, job: JobRecord) -> GeneratedVideo:
        import torch

        device = getattr(self.pipeline, "_execution_device", None) or getattr(self.pipeline, "device", "cpu")
        prompt, generator = self.prompt(scenario), torch.Generator(device).manual_seed(seed)
        try:
            output = self.pipeline(prompt=prompt, generator=generator, output_type="np", **self.options)
        except (RuntimeError, ValueError) as error:  # out of memory, sizes a model cannot take
            raise GenerationError(f"{self.name}: {artifacts.one_line(error, 200)}") from error
        frames = np.asarray(output.frames[0])
        frames = frames if frames.dtype == np.uint8 else np.clip(frames * 255, 0, 255).round().astype(np.uint8)
        video.write_video(path, frames, fps=self.fps)
        return GeneratedVideo(facts={"prompt": prompt, "seed": seed, "frames": len(frames)})


def run(
    generator: Generator, scenarios: Sequence[Scenario], folder: str | Path, *, seed: int = 0,
    confirm: float | Callable[[str], bool] | None = None, splits: Mapping[str, float] = ALL_TRAIN, workers: int = 1,
    jobs_at_once: int = 1, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Make a video of each scenario under `folder`; return the report (`report`), a row per scenario.

    Writes records.jsonl of the verified videos and instructions.jsonl for fine-tuning; where the backend does not know the events,
    these are of whole videos and their `source` is the prompt.
    What ledger.jsonl calls done or rejected is not made again; a failed job is tried again.

    Args:
        generator: the backend: `Procedural()`, `Diffusers(...)` or `veo.Veo(...)`.
        scenarios: one video each.
        folder: gets videos/, ledger.jsonl, records.jsonl.
        seed: passed on to the backend; the renderer follows the scenario's own seeds.
        confirm: where it costs something, the exact sum, or a function that is shown it and returns True.
        splits: {name: fraction}; each world gets a split by its seed alone.
        workers: processes of the renderer.
        jobs_at_once: most jobs that are open at a service at the same time (a backend that waits: Veo).
        progress: show a progress bar.

    ValueError for no scenarios, jobs_at_once below 1 or above it for a backend that computes here, and an unconfirmed sum.
    """
    if not scenarios:
        raise ValueError("no scenarios to make videos of")
    if jobs_at_once < 1 or (jobs_at_once > 1 and not getattr(generator, "waits", False)):
        raise ValueError(f"{generator.name} makes one video at a time here, a service 1 or more: got jobs_at_once={jobs_at_once}")
    with artifacts.only_one(Path(folder) / "ledger.lock"):  # two runs at once would pay everything twice
        return _run(generator, scenarios, Path(folder), seed, confirm, splits, workers, jobs_at_once, progress)


def _run(
    generator, scenarios, folder: Path, seed: int, confirm, splits, workers: int, jobs_at_once: int, progress: bool
) -> pd.DataFrame:
    jobs = {f"{seed}_{n:04d}_{s.scene}_{s.event}_{_short_hash(generator, s)}": s for n, s in enumerate(scenarios)}
    ledger = _Ledger(folder / "ledger.jsonl")
    open_jobs = [name for name in jobs if ledger.facts(name).get("status") not in ("done", "rejected")]
    unpaid = [jobs[name] for name in open_jobs if not ledger.facts(name).get("operation")]
    _check_confirmed(generator, unpaid, confirm)
    render_s: dict[str, float] = {}
    if workers > 1 and isinstance(generator, Procedural):  # the loop below finds these videos; their errors come up there
        work = [(jobs[name], folder / "videos" / f"{name}.mp4") for name in open_jobs]
        results = parallel.map_videos(_render, work, engine="processes", workers=workers, desc="rendering")
        render_s = {path.stem: seconds or 0.0 for (_, path), seconds, _ in results}

    def make(name: str) -> None:
        started = time.perf_counter()
        job = JobRecord(ledger.facts(name), lambda facts: ledger.write(name, facts))
        path = folder / "videos" / f"{name}.mp4"
        try:
            result = generator.generate(jobs[name], path, seed=seed + 1000 * list(jobs).index(name), job=job)
            if isinstance(result, GeneratedVideo):
                info, spans = verify(path), [[span.start_s, span.end_s, span.label] for span in result.events]
                job.note(status="done", detail="", fps=info.fps, frames=info.num_frames, events=spans, facts=result.facts)
            else:
                job.note(status="rejected", detail="; ".join(result.reasons), facts=result.facts)
        except GenerationError as error:
            job.note(status="failed", detail=str(error))
        job.note(event=jobs[name].event, seconds=round(render_s.get(name, 0.0) + time.perf_counter() - started, 2))

    with tqdm(total=len(open_jobs), desc=generator.name, unit="video", disable=not progress) as bar:
        for _ in _side_by_side(make, open_jobs, jobs_at_once, getattr(generator, "stopped", None) or threading.Event()):
            bar.update()
    _write_records(folder, generator, jobs, ledger, splits)
    return report(folder, jobs)


def _side_by_side(make: Callable[[str], None], names: Sequence[str], at_once: int, stopped: threading.Event) -> Iterator[None]:
    """Make the videos in order, or that many at once; after an error nothing new is begun, and `stopped` tells what is open."""
    stopped.clear()
    if at_once == 1:
        yield from map(make, names)
        return
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(make, name) for name in names]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:  # a stop by the user too
            stopped.set()
            for future in futures:
                future.cancel()
            raise


def _short_hash(generator: Generator, scenario: Scenario) -> str:
    """Return what tells a job from others at its position: another scenario or backend is another video."""
    return hashlib.sha256(repr((generator.name, asdict(scenario))).encode()).hexdigest()[:6]


def _render(item: tuple[Scenario, Path]) -> float:
    started = time.perf_counter()
    synthetic_dataset.render_to_file(*item)
    return time.perf_counter() - started


def cost(generator: Generator, scenarios: Sequence[Scenario]) -> float:
    """Return what making these videos costs once each; a refused one is not charged, but tried again up to twice."""
    return round(sum(generator.price(scenario) for scenario in scenarios), 2)


def _check_confirmed(generator: Generator, scenarios: Sequence[Scenario], confirm: float | Callable[[str], bool] | None) -> None:
    total = cost(generator, scenarios)
    offer = f"{len(scenarios)} videos by {generator.name} cost {total:.2f}"
    if callable(confirm):
        agreed = not total or confirm(f"{offer}. Go on?") is True
    else:
        agreed = not total or (confirm is not None and abs(confirm - total) < 0.005)
    if not agreed:
        raise ValueError(f"{offer}: pass confirm={total:.2f}, or a function that asks")


class _Ledger:
    """The newest facts of each job; the file only grows, and the last line of a job counts."""

    def __init__(self, path: Path):
        self.path, self.rows, self.lock = path, {}, threading.Lock()
        for _, row in artifacts.json_lines(path, skip_broken=True) if path.is_file() else ():
            if isinstance(row, dict) and isinstance(row.get("id"), str):
                self.rows[row["id"]] = row
        path.parent.mkdir(parents=True, exist_ok=True)

    def facts(self, name: str) -> dict:
        return {key: value for key, value in self.rows.get(name, {}).items() if key != "id"}

    def write(self, name: str, facts: dict) -> None:
        with self.lock:  # jobs that are open side by side write here
            self.rows[name] = {"id": name, **facts}
            artifacts.append_json_line(self.path, self.rows[name])


@artifacts.reader()
def report(folder: str | Path, jobs: dict[str, Scenario]) -> pd.DataFrame:
    """Return a row per job of a folder: id, event, label, status (done, rejected, failed, not made), detail, seconds."""
    ledger, rows = _Ledger(Path(folder) / "ledger.jsonl"), []
    for name, scenario in jobs.items():
        row = {"id": name, "event": scenario.event, "label": scenario.label, "status": "not made", "detail": "", "seconds": None}
        rows.append(row | {key: value for key, value in ledger.facts(name).items() if key in row})
    return pd.DataFrame(rows)


def _write_records(folder: Path, generator: Generator, jobs: dict[str, Scenario], ledger: _Ledger, splits) -> None:
    names, probabilities = list(splits), np.array(list(splits.values())) / sum(splits.values())
    worlds = {scenario.world_seed for scenario in jobs.values()}
    split = {world: names[np.random.default_rng([world, 13]).choice(len(names), p=probabilities)] for world in worlds}
    written, rows = [], []
    for name, scenario in jobs.items():
        row = ledger.facts(name)
        if row.get("status") == "done":
            events = tuple(records.Span(*span) for span in row["events"])  # spans only where the backend knew them
            written.append(records.VideoRecord(
                id=name, path=f"videos/{name}.mp4", dataset=f"generated: {generator.name}", split=split[scenario.world_seed],
                label=scenario.label, classes=(scenario.event,) if scenario.label else (), events=events, fps=row["fps"],
                num_frames=row["frames"], group=f"world-{scenario.world_seed}",
            ))  # fmt: skip
            truth = SimpleNamespace(scenario=scenario, events=events, known="events" in generator.provides)
            rows += export.instructions(name, truth, video=written[-1].path, split=written[-1].split)
    if written:
        records.write_records(folder / "records.jsonl", written)
    if rows:
        artifacts.write_json_lines(folder / "instructions.jsonl", rows)
    else:
        (folder / "instructions.jsonl").unlink(missing_ok=True)  # of an earlier run
    artifacts.write_made_by(
        folder, backend=generator.name, provides=sorted(generator.provides), jobs=len(jobs), verified=len(written)
    )


# Detections on videos without truth, and review by a person

Detections = tuple[np.ndarray, Sequence[str], np.ndarray]  # boxes (N, 4) x0 y0 x1 y1, labels, scores (N,)


def detect_and_track(
    path: str | Path, detector: Callable[[np.ndarray], Sequence[Detections]],
    tracker: Callable[[Sequence[Detections]], Sequence[np.ndarray]] | None = None, *, batch: int = 32,
) -> dict:  # fmt: skip
    """Return detections and tracks of a video by any detector, marked `source: pseudo`: they are guesses, not truth.

    `detector(frames uint8 (n, H, W, 3))` gives one (boxes, labels, scores) per frame; `tracker` a track number per box and frame
    (default: `track_by_overlap`).
    """
    info, detections = video.probe(path), []
    for start in range(0, info.num_frames, batch):
        detections += detector(video.read_frames(path, range(start, min(start + batch, info.num_frames))))
    if len(detections) != info.num_frames:
        raise ValueError(f"the detector gave {len(detections)} results for {info.num_frames} frames of {Path(path).name}")
    ids = (tracker or track_by_overlap)(detections)
    frames = [
        {"boxes": np.asarray(boxes).round(1).tolist(), "labels": list(labels), "scores": np.asarray(scores).round(3).tolist(),
         "track_ids": np.asarray(tracks).tolist()} for (boxes, labels, scores), tracks in zip(detections, ids, strict=True)
    ]  # fmt: skip
    return {"video": Path(path).name, "source": "pseudo", "frames": frames}


def track_by_overlap(detections: Sequence[Detections], *, min_overlap: float = MIN_OVERLAP) -> list[np.ndarray]:
    """Return track numbers (N,) per frame: a box continues its label's track of largest IoU, at least `min_overlap`."""
    import torch  # only here: scenarios load without it
    from torchvision.ops import box_iou

    last, ids, next_id, tracks = np.zeros((0, 4)), np.zeros(0, int), 1, []
    names: list[str] = []
    for boxes, labels, _ in detections:
        boxes, current = np.asarray(boxes, float).reshape(-1, 4), np.zeros(len(labels), int)
        if len(boxes) and len(last):
            overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(last)).nan_to_num().numpy()
            fits = overlap * np.array([[label == name for name in names] for label in labels])
            for new, old in zip(*linear_sum_assignment(-fits), strict=True):
                if fits[new, old] >= min_overlap:
                    current[new] = ids[old]
        for place in np.flatnonzero(current == 0):
            current[place], next_id = next_id, next_id + 1
        last, ids, names = boxes, current, list(labels)
        tracks.append(current)
    return tracks


@artifacts.reader()
def review_sheet(folder: str | Path) -> pd.DataFrame:
    """Return the folder's review.csv (id, event, label, verdict, note), made where there is none; a person fills it in."""
    folder = Path(folder)
    if not (folder / "review.csv").is_file():
        ledger = _Ledger(folder / "ledger.jsonl")
        rows = [
            {"id": r.id, "event": ledger.facts(r.id).get("event", ""), "label": r.label, "verdict": "", "note": ""}
            for r in records.read_records(folder / "records.jsonl")
        ]
        artifacts.write_table(folder / "review.csv", pd.DataFrame(rows))
    return formats.read_table(folder / "review.csv", keep_default_na=False)


@artifacts.reader()
def apply_review(folder: str | Path) -> tuple[list[records.VideoRecord], dict[str, int]]:
    """Return the records a person did not reject, labels as edited, and how many had which verdict ("" is not reviewed).

    ValueError for a verdict that is none of accept, reject, edit, and a label that is not 0 or 1.
    """
    sheet, accepted = review_sheet(folder), []
    if absent := sorted({"id", "verdict", "label"} - set(sheet.columns)):
        raise ValueError(f"{Path(folder) / 'review.csv'} has no column {absent[0]}")
    verdicts = {row["id"]: row for row in sheet.to_dict("records")}
    if odd := [row["verdict"] for row in verdicts.values() if row["verdict"] not in VERDICTS]:
        raise ValueError(f"a verdict is accept, reject or edit, got {odd[0]!r}")
    for record in records.read_records(Path(folder) / "records.jsonl"):
        row = verdicts.get(record.id, {"verdict": "", "label": record.label})
        if int(row["label"]) not in (0, 1):
            raise ValueError(f"{record.id}: a label is 0 or 1, got {row['label']!r}")
        if row["verdict"] != "reject":
            edited = row["verdict"] == "edit" and int(row["label"]) != record.label
            accepted.append(records.replace(record, label=int(row["label"]), events=(), classes=()) if edited else record)
    return accepted, sheet["verdict"].value_counts().to_dict()


@artifacts.reader()
def reviewed_instructions(folder: str | Path) -> list[dict]:
    """Return the folder's instruction rows of the videos that a person did not reject.

    Of a video whose label was edited its judgements stay, with the other verdict, and what describes the event goes.
    """
    folder, rows = Path(folder), []
    accepted = {record.path: record for record in apply_review(folder)[0]}
    labels = {record.path: record.label for record in records.read_records(folder / "records.jsonl")}
    for _, row in artifacts.json_lines(folder / "instructions.jsonl"):
        record = accepted.get(row["video"])
        if record is not None and record.label == labels[row["video"]]:
            rows.append(row)
        elif record is not None and (row["task"], row["level"]) == ("judgement", "video"):
            rows.append({**row, "answer": VERDICT_TEXTS[record.label], "source": "review"})
    return rows

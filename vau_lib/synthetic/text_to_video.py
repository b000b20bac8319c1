"""Text-to-video generation: scenarios rendered with truth, by Veo (paid) or by an open diffusers model (Memories-S0's data step).

- only the renderer knows boxes, tracks, masks and event spans; a text-to-video model returns pixels, and no truth is invented:
  detections on its videos are marked `pseudo`
- `run` keeps a ledger: a submitted job is not paid twice, a verified video is not made again, a stopped run goes on
- a video counts when its first and last frame can be decoded; refusals are results and stand in the report
- spending needs a confirmed sum; keys come from the environment and are in no file, message or log
- Veo: enterprise mode (an API key in express mode, or a project's own credentials); a refusal is tried twice with another seed;
  rate limits and server errors are retried with growing pauses; after a deadline the operation's name stays in the ledger, so
  that the next run fetches what was paid; sound is off, since its filter refuses without a reason
Sources: Memories-S0 names Veo and "scenario-driven generation", interface and ledger are ours; google-genai 3.4 (read for its
protocol): models.generate_videos, operations.get.
"""

import hashlib
import importlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
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
from vau_lib.workspace import artifacts, parallel

TRUTH = frozenset({"pixels", "boxes", "tracks", "masks", "events"})

PIXELS = frozenset({"pixels"})


class GenerationError(RuntimeError):
    """A video that could not be made; the message is one line and holds no key."""


@dataclass(frozen=True)
class GeneratedVideo:
    """A verified video: where it is, who made it, event spans in seconds where the backend knows them."""

    path: Path
    backend: str
    events: tuple[records.Span, ...] = ()
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A scenario that the backend refused, with the reasons it gave."""

    backend: str
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
    """What `run` needs of a backend. `price` is per video in the service's currency, 0 for free."""

    name: str
    provides: frozenset[str]

    def price(self, scenario: Scenario) -> float: ...

    def generate(self, scenario: Scenario, path: Path, *, seed: int, job: JobRecord) -> GeneratedVideo | Refusal: ...


def verify(path: Path) -> video.VideoInfo:
    """Return what a video is; GenerationError where it is missing, cut off, or its first or last frame cannot be decoded."""
    try:
        info = video.probe(path)
        video.read_frames(path, [0, info.num_frames - 1])
    except (video.VideoError, OSError) as error:
        raise GenerationError(f"{path.name} cannot be read to its end: {error}") from error
    return info


VERDICTS = ("", "accept", "reject", "edit")

ALL_TRAIN = {"train": 1.0}

OVERLAP = 0.3  # IoU from which a box may continue a track


class _Procedural:
    name, provides = "procedural", TRUTH

    def price(self, scenario: Scenario) -> float:
        return 0.0

    def generate(self, scenario: Scenario, path: Path, *, seed: int, job: JobRecord) -> GeneratedVideo:
        return GeneratedVideo(
            path,
            self.name,
            events=synthetic_dataset.render_to_file(scenario, path),
            facts={"edition": synthetic_dataset.EDITION},
        )


def procedural() -> Generator:
    """Return the drawn backend: offline, free, with truth beside each video (.npz). The scenario's own seeds decide."""
    return _Procedural()


class _Diffusers:
    provides = PIXELS

    def __init__(self, pipeline: Any, name: str, prompt: Callable[[Scenario], str], fps: float, options: dict):
        self.pipeline, self.name, self.prompt, self.fps, self.options = pipeline, name, prompt, fps, options

    def price(self, scenario: Scenario) -> float:
        return 0.0

    def generate(self, scenario: Scenario, path: Path, *, seed: int, job: JobRecord) -> GeneratedVideo:
        import torch

        generator = torch.Generator("cpu").manual_seed(seed)
        try:
            out = self.pipeline(prompt=self.prompt(scenario), generator=generator, output_type="np", **self.options)
        except (RuntimeError, ValueError) as error:  # out of memory, sizes a model cannot take
            raise GenerationError(f"{self.name}: {artifacts.one_line(error, 200)}") from error
        frames = np.asarray(out.frames[0])
        frames = frames if frames.dtype == np.uint8 else np.clip(frames * 255, 0, 255).round().astype(np.uint8)
        video.write_video(path, frames, fps=self.fps)
        return GeneratedVideo(
            path, self.name, facts={"prompt": self.prompt(scenario), "seed": seed, "frames": len(frames)}
        )


def diffusers(
    model: Any, *, prompt: Callable[[Scenario], str] = scenarios.prompt, fps: float = 16.0, **options: Any
) -> Generator:
    """Return an open text-to-video backend: a hub name or folder for `diffusers`, or a pipeline already loaded.

    `options` go to the pipeline's call (height, width, num_frames, guidance_scale, ...). ImportError in one line without diffusers.
    """
    name = model if isinstance(model, str) else type(model).__name__
    if isinstance(model, str):
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise ImportError(
                "open video models need the package diffusers: pip install 'vau-lib[generate]'"
            ) from error
        model = DiffusionPipeline.from_pretrained(model)
    return _Diffusers(model, f"diffusers {name}", prompt, fps, options)


# The paid service Veo

MODEL = "veo-3.1-fast-generate-001"

DURATIONS_S = (4, 6, 8)

LONGEST_PROMPT = 2000  # characters

API_KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")

RETRY_STATUS = (408, 429, 500, 502, 503, 504)  # answers worth another try

TRIES, REFUSALS = 6, 2  # of one request; of another seed after a refusal

WHAT = "Veo"


class Veo:
    """The service as a `text_to_video.Generator`. `price_per_second` has no default: prices change, look yours up."""

    provides = PIXELS

    def __init__(
        self, *, price_per_second: float, model: str = MODEL, prompt: Callable[[Scenario], str] = scenarios.prompt,
        duration_s: int | None = None, aspect_ratio: str = "16:9", resolution: str = "720p", poll_s: float = 10.0,
        deadline_s: float = 900.0, timeout_s: float = 60.0, base_url: str | None = None,
        sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        if duration_s is not None and duration_s not in DURATIONS_S:
            raise ValueError(f"a video lasts {', '.join(map(str, DURATIONS_S))} s, got {duration_s}")
        if not price_per_second >= 0:
            raise ValueError(f"price_per_second must be 0 or more, got {price_per_second}")
        self.name, self.model, self.prompt, self.duration_s = f"{WHAT} {model}", model, prompt, duration_s
        self.rate, self.look = price_per_second, {"aspect_ratio": aspect_ratio, "resolution": resolution}
        self.poll_s, self.deadline_s, self.sleep, self.clock = poll_s, deadline_s, sleep, clock
        self.client, self._secret = _client(base_url, timeout_s)

    def price(self, scenario: Scenario) -> float:
        return self.rate * self.seconds(scenario)

    def seconds(self, scenario: Scenario) -> int:
        """Return the length asked for: the given one, else the shortest that holds the scenario, else the longest."""
        return self.duration_s or next((s for s in DURATIONS_S if s >= scenario.duration_s), DURATIONS_S[-1])

    def generate(self, scenario: Scenario, path: Path, *, seed: int, job: JobRecord) -> GeneratedVideo | Refusal:
        """Make one video at `path`; the operation's name is in `job` from the moment it is paid until it is fetched."""
        text = self.prompt(scenario)
        if len(text) > LONGEST_PROMPT:
            raise GenerationError(f"a prompt has at most {LONGEST_PROMPT} characters, got {len(text)}")
        facts = {"prompt": text, "model": self.model, "seconds": self.seconds(scenario)}
        reasons: list[str] = []
        while len(reasons) <= REFUSALS:
            name = job.get("operation")
            if not name:
                name = self._start(text, scenario, seed + len(reasons))
                job.note(operation=name, seed=seed + len(reasons))
            done = self._wait(name)
            if done.error:
                job.note(operation=None)
                raise GenerationError(self._clean(f"the service failed: {done.error.get('message', done.error)}"))
            videos = (done.response and done.response.generated_videos) or []
            if videos:
                self._keep(videos[0], name, path)
                job.note(operation=None)
                return GeneratedVideo(path, self.name, facts=facts | {"seed": job.get("seed"), "operation": name})
            said = (done.response and done.response.rai_media_filtered_reasons) or ["no reason given"]
            reasons.append(self._clean("; ".join(said)))
            job.note(operation=None, refusals=len(reasons))
        return Refusal(self.name, tuple(reasons), facts)

    def _start(self, text: str, scenario: Scenario, seed: int) -> str:
        from google.genai import types

        config = types.GenerateVideosConfig(
            number_of_videos=1, duration_seconds=self.seconds(scenario), seed=seed, generate_audio=False, **self.look
        )
        source = types.GenerateVideosSource(prompt=text)
        return self._patiently(
            lambda: self.client.models.generate_videos(model=self.model, source=source, config=config)
        ).name

    def _wait(self, name: str) -> Any:
        from google.genai import types

        until = self.clock() + self.deadline_s
        while True:
            operation = self._patiently(lambda: self.client.operations.get(types.GenerateVideosOperation(name=name)))
            if operation.done:
                return operation
            if self.clock() >= until:
                raise GenerationError(
                    f"not done after {self.deadline_s:.0f} s; the next run asks for it again, it is not paid twice"
                )
            self.sleep(self.poll_s)

    def _keep(self, generated: Any, name: str, path: Path) -> None:
        """Write the video's bytes; a cut-off download is fetched again, twice."""
        for fetch in range(REFUSALS + 1):
            data = generated.video.video_bytes
            if not data:
                raise GenerationError(
                    f"{name.rpartition('/')[2]}: the answer holds no bytes ({generated.video.uri or 'no address'})"
                )
            with artifacts.replacing(path) as temporary:
                Path(temporary).write_bytes(data)
            try:
                verify(path)
                return
            except GenerationError:
                if fetch == REFUSALS:
                    path.unlink(missing_ok=True)
                    raise
            self.sleep(self.poll_s)
            generated = self._wait(name).response.generated_videos[0]

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask until answered, pauses doubling from one second with a little chance; GenerationError when it is no use."""
        from google.genai import errors

        broken = (
            OSError,
            *(importlib.import_module(name).HTTPError for name in ("httpx", "httpx2") if find_spec(name)),
        )

        for number in range(TRIES):
            try:
                return ask()
            except errors.APIError as error:
                problem, again = f"the service says {error.code}: {error.message}", error.code in RETRY_STATUS
            except broken as error:
                problem, again = f"the service cannot be reached ({type(error).__name__}: {error})", True
            if not again:
                break
            self.sleep(2**number * (1 + random.random() / 4))  # noqa: S311 (only keeps clients from asking in step)
        raise GenerationError(self._clean(problem)) from None

    def _clean(self, text: str) -> str:
        """Return a message as one line without the key, whatever the service put into it."""
        text = artifacts.one_line(text, 400)
        return text.replace(self._secret, "***") if self._secret else text


def _client(base_url: str | None, timeout_s: float) -> tuple[Any, str]:
    """Return the SDK's client and the secret it holds, "" for a project's own credentials."""
    try:
        from google import genai
    except ImportError as error:
        raise ImportError("Veo needs the package google-genai: pip install 'vau-lib[generate]'") from error
    key = next((os.environ[name] for name in API_KEYS if os.environ.get(name)), "")
    project = os.environ.get("GOOGLE_CLOUD_PROJECT", "")
    if not key and not project:
        raise ValueError(f"no key for {WHAT}: set {API_KEYS[0]}, or GOOGLE_CLOUD_PROJECT with its own credentials")
    options = {"http_options": {"timeout": round(1000 * timeout_s)} | ({"base_url": base_url} if base_url else {})}
    if key:
        return genai.Client(enterprise=True, api_key=key, **options), key
    location = os.environ.get("GOOGLE_CLOUD_LOCATION", "us-central1")
    return genai.Client(enterprise=True, project=project, location=location, **options), ""


# Making the videos


def run(
    generator: Generator, scenarios: Sequence[Scenario], folder: str | Path, *, seed: int = 0,
    confirm: float | Callable[[str], bool] | None = None, splits: Mapping[str, float] = ALL_TRAIN, workers: int = 1,
    progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Make a video of each scenario under `folder`, and records.jsonl of the verified ones; return the report, a row each.

    Where the backend knows what happens when, instructions.jsonl too: rows to tune a language model on.

    Columns: id, event, label, status (done, rejected, failed), detail, seconds. What ledger.jsonl calls done or rejected is
    not made again; a failed one is tried again. Where it costs something, `confirm` must be the exact sum or a function that is
    told it and says True. `splits` {name: share} draws a side for each world, by its seed alone; `workers` processes
    draw, where the backend draws. ValueError for no scenarios and an unconfirmed sum.
    """
    if not scenarios:
        raise ValueError("no scenarios to make videos of")
    folder = Path(folder)
    jobs = {f"{seed}_{n:04d}_{s.scene}_{s.event}_{_mark(generator, s)}": s for n, s in enumerate(scenarios)}
    ledger = _Ledger(folder / "ledger.jsonl")
    left = [name for name in jobs if ledger.of(name).get("status") not in ("done", "rejected")]
    _confirmed(generator, [jobs[name] for name in left if not ledger.of(name).get("operation")], confirm)
    spent: dict[str, float] = {}
    if workers > 1 and isinstance(generator, _Procedural):  # films found below are kept, their errors come up there
        work = [(jobs[name], folder / "videos" / f"{name}.mp4") for name in left]
        drawn = parallel.map_videos(_render, work, engine="processes", workers=workers, desc="drawing")
        spent = {path.stem: seconds or 0.0 for (_, path), seconds, _ in drawn}
    for name in tqdm(left, desc=generator.name, unit="video", disable=not progress):
        started = time.perf_counter()
        job = JobRecord(ledger.of(name), lambda known, name=name: ledger.write(name, known))
        path = folder / "videos" / f"{name}.mp4"
        try:
            made = generator.generate(jobs[name], path, seed=seed + 1000 * list(jobs).index(name), job=job)
            if isinstance(made, GeneratedVideo):
                info = verify(path)
                spans = [[span.start_s, span.end_s, span.label] for span in made.events]
                job.note(status="done", detail="", fps=info.fps, frames=info.num_frames, events=spans, facts=made.facts)
            else:
                job.note(status="rejected", detail="; ".join(made.reasons), facts=made.facts)
        except GenerationError as error:
            job.note(status="failed", detail=str(error))
        job.note(event=jobs[name].event, seconds=round(spent.get(name, 0.0) + time.perf_counter() - started, 2))
    _write_records(folder, generator, jobs, ledger, splits)
    return report(folder, jobs)


def _mark(generator: Generator, scenario: Scenario) -> str:
    """Return what tells a job from others of its place: another scenario or backend is another video."""
    return hashlib.sha256(repr((generator.name, asdict(scenario))).encode()).hexdigest()[:6]


def _render(item: tuple[Scenario, Path]) -> float:
    begun = time.perf_counter()
    synthetic_dataset.render_to_file(*item)
    return time.perf_counter() - begun


def cost(generator: Generator, scenarios: Sequence[Scenario]) -> float:
    """Return what making these videos costs once each; a refused one is not charged, but tried again up to twice."""
    return round(sum(generator.price(scenario) for scenario in scenarios), 2)


def _confirmed(
    generator: Generator, scenarios: Sequence[Scenario], confirm: float | Callable[[str], bool] | None
) -> None:
    total = cost(generator, scenarios)
    if not total:
        return
    said = f"{len(scenarios)} videos by {generator.name} cost {total:.2f}"
    agreed = (
        confirm(f"{said}. Go on?") is True
        if callable(confirm)
        else confirm is not None and abs(confirm - total) < 0.005
    )
    if not agreed:
        raise ValueError(f"{said}: pass confirm={total:.2f}, or a function that asks")


class _Ledger:
    """The last word on each job, in a file of lines that only grows until it is read again."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut off by a stop: the line before it still counts
            self.rows[row["id"]] = row
        path.parent.mkdir(parents=True, exist_ok=True)

    def of(self, name: str) -> dict:
        return {key: value for key, value in self.rows.get(name, {}).items() if key != "id"}

    def write(self, name: str, facts: dict) -> None:
        self.rows[name] = {"id": name, **facts}
        with self.path.open("a") as file:
            file.write(json.dumps(self.rows[name]) + "\n")
            file.flush()


def report(folder: str | Path, jobs: dict[str, Scenario]) -> pd.DataFrame:
    """Return what became of each job of a folder, a row each."""
    ledger = _Ledger(Path(folder) / "ledger.jsonl")
    rows = [(name, s.event, s.label, ledger.of(name)) for name, s in jobs.items()]
    return pd.DataFrame([
        {"id": name, "event": event, "label": label, "status": row.get("status", "not made"), "detail": row.get("detail", ""),
         "seconds": row.get("seconds")} for name, event, label, row in rows
    ])  # fmt: skip


def _write_records(folder: Path, generator: Generator, jobs: dict[str, Scenario], ledger: _Ledger, splits) -> None:
    names, shares = list(splits), np.array(list(splits.values())) / sum(splits.values())
    worlds = {scenario.world_seed for scenario in jobs.values()}
    side = {world: names[np.random.default_rng([world, 13]).choice(len(names), p=shares)] for world in worlds}
    made, rows = [], []
    for name, scenario in jobs.items():
        row = ledger.of(name)
        if row.get("status") == "done":
            events = tuple(records.Span(*span) for span in row["events"])  # spans only where the backend knew them
            made.append(records.VideoRecord(
                id=name, path=f"videos/{name}.mp4", dataset=f"generated: {generator.name}", split=side[scenario.world_seed],
                label=scenario.label, classes=(scenario.event,) if scenario.label else (), events=events, fps=row["fps"],
                num_frames=row["frames"], group=f"world-{scenario.world_seed}",
            ))  # fmt: skip
            if "events" in generator.provides:
                known = SimpleNamespace(scenario=scenario, events=events)
                rows += export.instructions(name, known, video=made[-1].path, split=made[-1].split)
    if made:
        records.write_records(folder / "records.jsonl", made)
    if not rows:
        (folder / "instructions.jsonl").unlink(missing_ok=True)  # of an earlier run
    else:
        with artifacts.replacing(folder / "instructions.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    artifacts.write_made_by(
        folder, backend=generator.name, provides=sorted(generator.provides), jobs=len(jobs), verified=len(made)
    )


# Detections on videos without truth, and a person's word on it

Detections = tuple[np.ndarray, Sequence[str], np.ndarray]  # boxes (N, 4) x0 y0 x1 y1, labels, scores (N,)


def annotate(
    path: str | Path, detector: Callable[[np.ndarray], Sequence[Detections]],
    tracker: Callable[[Sequence[Detections]], Sequence[np.ndarray]] | None = None, *, batch: int = 32,
) -> dict:  # fmt: skip
    """Return detections and tracks of a video by any detector, marked `source: pseudo`: they are guesses, not truth.

    `detector(frames uint8 (n, H, W, 3))` gives one (boxes, labels, scores) per frame; `tracker` a track number per box and frame
    (default: `track_by_overlap`).
    """
    info, found = video.probe(path), []
    for start in range(0, info.num_frames, batch):
        found += detector(video.read_frames(path, range(start, min(start + batch, info.num_frames))))
    if len(found) != info.num_frames:
        raise ValueError(f"the detector gave {len(found)} results for {info.num_frames} frames of {Path(path).name}")
    ids = (tracker or track_by_overlap)(found)
    frames = [
        {"boxes": np.asarray(boxes).round(1).tolist(), "labels": list(labels), "scores": np.asarray(scores).round(3).tolist(),
         "track_ids": np.asarray(tracks).tolist()} for (boxes, labels, scores), tracks in zip(found, ids, strict=True)
    ]  # fmt: skip
    return {"video": Path(path).name, "source": "pseudo", "frames": frames}


def track_by_overlap(found: Sequence[Detections], *, least: float = OVERLAP) -> Iterator[np.ndarray]:
    """Return track numbers (N,) per frame: boxes of one label continue the track they overlap most, at least by `least` (IoU)."""
    import torch  # only here: scenarios load without it
    from torchvision.ops import box_iou

    last, ids, fresh, out = np.zeros((0, 4)), np.zeros(0, int), 1, []
    names: list[str] = []
    for boxes, labels, _ in found:
        boxes, mine = np.asarray(boxes, float).reshape(-1, 4), np.zeros(len(labels), int)
        if len(boxes) and len(last):
            overlap = box_iou(torch.from_numpy(boxes), torch.from_numpy(last)).nan_to_num().numpy()
            fits = overlap * np.array([[label == name for name in names] for label in labels])
            for one, other in zip(*linear_sum_assignment(-fits), strict=True):
                if fits[one, other] >= least:
                    mine[one] = ids[other]
        for place in np.flatnonzero(mine == 0):
            mine[place], fresh = fresh, fresh + 1
        last, ids, names = boxes, mine, list(labels)
        out.append(mine)
    return out


def review_sheet(folder: str | Path) -> pd.DataFrame:
    """Return the folder's review.csv (id, event, label, verdict, note), made where there is none; a person fills it in."""
    folder = Path(folder)
    if not (folder / "review.csv").is_file():
        found = records.read_records(folder / "records.jsonl")
        ledger = _Ledger(folder / "ledger.jsonl")
        rows = [
            {"id": r.id, "event": ledger.of(r.id).get("event", ""), "label": r.label, "verdict": "", "note": ""}
            for r in found
        ]
        with artifacts.replacing(folder / "review.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
    return pd.read_csv(folder / "review.csv", keep_default_na=False)


def apply_review(folder: str | Path) -> tuple[list[records.VideoRecord], dict[str, int]]:
    """Return the records a person did not reject, labels as edited, and how many had which verdict ("" is not reviewed).

    ValueError for a verdict that is none of accept, reject, edit, and a label that is not 0 or 1.
    """
    sheet, kept = review_sheet(folder), []
    words = {row["id"]: row for row in sheet.to_dict("records")}
    if odd := [row["verdict"] for row in words.values() if row["verdict"] not in VERDICTS]:
        raise ValueError(f"a verdict is accept, reject or edit, got {odd[0]!r}")
    for record in records.read_records(Path(folder) / "records.jsonl"):
        row = words.get(record.id, {"verdict": "", "label": record.label})
        if int(row["label"]) not in (0, 1):
            raise ValueError(f"{record.id}: a label is 0 or 1, got {row['label']!r}")
        if row["verdict"] != "reject":
            edited = row["verdict"] == "edit" and int(row["label"]) != record.label
            kept.append(records.replace(record, label=int(row["label"]), events=(), classes=()) if edited else record)
    return kept, sheet["verdict"].value_counts().to_dict()

"""One look at a video: a trained stream scores every clip, a language model explains where it is high, a page shows it.

- one pass over frames as they arrive: a file is a camera that ends; `cascade` says what is kept of a stream
- on footage unlike the training videos the report says so first, and adds curves that need no training
- a folder gets a report per video and an index; what is done is kept, a broken video is a line
"""

import hashlib
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from vau_lib import guard, watch
from vau_lib.cascade import AnalysisPlan, Cascade, Detector, Send
from vau_lib.data import datasets, records, video, video_worker
from vau_lib.detectors import baselines, trained_detector
from vau_lib.evaluation import metrics
from vau_lib.features import optical_flow
from vau_lib.plots import player, report
from vau_lib.vlm import clients, inference, models
from vau_lib.workspace import artifacts, presets

BEGINNING = 0.25  # of a video, that the training-free curves compare with
LIVE_STRIP_S = 150.0  # seconds from one picture of a live source's filmstrip to the next: the last hour


# Footage of another kind, and curves that need no training


class Familiarity:
    """How far a stream's mean feature is from that of the training videos; `rows` are kept of a file only."""

    def __init__(self, detector: Detector, keep: bool):
        self.fitted, self.keep = detector.trained.preprocessing, keep
        self.rows, self.total, self.count, self.before = [], 0.0, 0, None

    def add(self, row: np.ndarray) -> np.ndarray:
        """Take a raw feature (D,) and return it."""
        step = row if not self.fitted.temporal_difference else None if self.before is None else abs(row - self.before)
        if step is not None:
            self.total, self.count = self.total + step.astype(np.float64), self.count + 1
        self.before = row
        if self.keep:
            self.rows.append(row)
        return row

    def notes(self, detector: Detector, source: str) -> list[str]:
        """Return in what the footage differs from the training videos, a sentence each; [] where nothing says so."""
        notes, farthest = [], self.fitted.farthest
        distance = self.fitted.distance(self.total / self.count) if self.count else None
        if farthest and distance is not None and distance > farthest:
            notes.append(
                f"The features of this footage lie {distance:.2f} standard deviations from those of the training videos; "
                f"no training video lies farther than {farthest:.2f}."
            )
        if detector.drawn and not _is_drawn(source):
            notes.append("The detector was trained on drawn videos only, and nothing says that this one is drawn.")
        elif _is_drawn(source) and not detector.drawn:
            notes.append("This video is drawn, and the detector was not trained on drawn videos.")
        return notes


@artifacts.reader()
def _is_drawn(source: str) -> bool:
    """Return whether a file lies in a folder that this workspace's renderer wrote, or beside the truth it writes."""
    path = Path(source)
    folders = [path.parent, *list(path.parent.parents)[:1]]
    for folder in folders if path.is_file() else ():
        made_by = folder / "made_by.json"
        if made_by.is_file() and {"edition", "dataset"} <= artifacts.read_json(made_by, dict).keys():
            return True
    return path.is_file() and path.with_suffix(".npz").is_file()


def training_free(source: str, rows: Sequence[np.ndarray], snippet_frames: int) -> dict[str, np.ndarray]:
    """Return curves (T,) that need no training: distance from the video's own beginning, 1 is the beginning's own largest.

    As in notebook 00: of the detector's features, and of optical flow. {} for fewer than eight rows.
    """
    flow = np.stack(list(optical_flow.FlowEncoder().encode(Path(source), snippet_frames)))
    curves = {}
    for name, values in (("appearance, the detector's features", np.stack(rows)), ("motion, optical flow", flow)):
        start = max(6, int(BEGINNING * len(values)))
        if len(values) < start + 2:
            return {}
        usual = baselines.own_distance(values[:start], neighbours=3).max()
        curves[name] = baselines.neighbour_distance(values[:start], values, neighbours=3) / max(usual, 1e-9)
    return curves


# True events, where they are known


def true_events(given: str, source: str, fps: float) -> tuple[records.Span, ...]:
    """Return the known events of a video: of a records.jsonl, of a UCF-Crime annotation, or "36-52,60-71" in seconds.

    ValueError where the file does not name the video.
    """
    path, name = Path(given), Path(source).name
    if not path.is_file():
        try:
            parts = [part.partition("-") for part in given.split(",")]
            return tuple(records.Span(float(start), float(end), "event") for start, _, end in parts)
        except ValueError as error:
            raise ValueError(f"--events is a file or seconds like 36-52,60-71, got {artifacts.one_line(given, 80)!r}") from error
    found = records.read_records(path) if path.suffix == ".jsonl" else datasets.ucf_crime(path, fps=fps)
    named = [record for record in found if Path(record.path).stem == Path(name).stem]
    if not named:
        raise ValueError(f"{path.name} names no video {name}")
    return named[0].events


def measure(cascade: Cascade, events: Sequence[records.Span], curves: Mapping[str, np.ndarray]) -> dict:
    """Return how the alarms meet the known events of a whole video: recall, delay, false alarms an hour, AUC of rows.

    `row_auc` is of the score and of each of `curves`, {name: (T,)}, a row that overlaps an event counting as anomalous.
    """
    rows = list(cascade.rows)
    ends, scores = np.array([row[1] for row in rows]), np.array([row[3] for row in rows])
    starts, known = np.array([row[0] for row in rows]), np.array([row[2] for row in rows])
    inside = np.zeros(len(rows), bool)
    delays, hot = [], scores >= cascade.detector.threshold
    for span in events:
        mine = (starts < span.end_s) & (ends > span.start_s)
        inside |= mine
        delays.append(float(known[mine & hot].min() - span.start_s) if (mine & hot).any() else None)
    alone = [e for e in cascade.events if not any(e.start_s < span.end_s and e.end_s > span.start_s for span in events)]
    hours = float((ends - starts)[~inside].sum()) / 3600
    facts = {
        "events": len(events), "detected": sum(delay is not None for delay in delays), "delays_s": delays,
        "false_alarms": len(alone), "normal_hours": round(hours, 4), "false_alarms_per_hour": len(alone) / hours if hours else None,
    }  # fmt: skip
    areas = {"anomaly score": scores, **curves} if 0 < inside.mean() < 1 else {}
    truth = {name: inside[: len(values)].astype(int) for name, values in areas.items()}
    facts["row_auc"] = {
        name: round(metrics.frame_auc({"x": values[: len(rows)]}, {"x": truth[name]}), 4)
        for name, values in areas.items() if 0 < truth[name].mean() < 1
    }  # fmt: skip
    return facts


# A source, looked at


@video_worker.apart()
def analyse(
    source: str | Path,
    detector: Detector,
    folder: str | Path,
    *,
    plan: AnalysisPlan | None = None,
    vlm: models.VLM | clients.Endpoint | None = None,
    events: str = "",
    send: Send | None = None,
    seconds: float = 0.0,
    every_s: float = 10.0,
    title: str = "",
    asked: dict | None = None,
) -> dict:
    """Look at a video, a camera or an address; write report.html, report.json and scores.csv to a folder; return the report.

    Args:
        source: a file, a folder of images, a camera's number or an address.
        detector: of `cascade.load_detector`.
        folder: where the report goes.
        plan: how to look.
        vlm: explains events; None: nothing is explained.
        events: known events, see `true_events`.
        send: gets a message for each alarm and each explanation, as it comes.
        seconds: stop after so many of the stream; 0 never.
        every_s: a live source's report is written again so often.
        title: shown instead of the source's name.
        asked: kept in the report; a folder of videos is resumed by it.

    Raises VideoError where nothing can be read. Ctrl-C ends a live source, and its report is written; where it fails, too, and
    then its VideoError is raised.
    """
    source, folder, plan = os.fspath(source), Path(folder), plan or AnalysisPlan()
    live = source.isdigit() or "://" in source
    info = None if live else video.probe(source)
    truth = true_events(events, source, info.fps) if events and info else ()
    encode, size = watch.live_encoder(detector.folder, detector.weights, device=detector.device)
    familiar = Familiarity(detector, keep=not live)
    strip_s = LIVE_STRIP_S if live else max(info.duration_s / player.THUMBS, 1e-3)
    name = video.source_name(source)
    name = name if live else Path(name).name  # a page that is mailed says nothing of the folders here
    cascade = Cascade(detector, plan, vlm, send=send, live=live, strip_s=strip_s)
    lost: list[video.VideoError] = []
    frames = cascade.frames(watch.until_lost(video.live(source), lost) if live else video.live(source))
    frames = itertools.takewhile(lambda timed: timed[0] < seconds, frames) if seconds else frames
    facts = dict(title=title or name, truth=truth, asked=asked or {}, size=size)
    written = time.perf_counter()
    try:
        for clip in watch.watch(frames, detector.trained, lambda part: familiar.add(encode(part)), snippet_frames=size):
            cascade.push(clip)
            if live and time.perf_counter() - written > every_s:
                _write(folder, cascade, familiar, source, facts, rolling=True)
                written = time.perf_counter()
    except KeyboardInterrupt:
        if not live:
            raise
    cascade.finish()
    if not cascade.rows:
        raise lost[0] if lost else video.VideoError(f"{video.source_name(source)}: not one frame came")
    content = _write(folder, cascade, familiar, source, facts)
    if lost:
        raise video.VideoError(f"{lost[0]}; the report holds what came before")
    return content


def _write(folder: Path, cascade: Cascade, familiar: Familiarity, source: str, facts: dict, *, rolling: bool = False) -> dict:
    """Write the three files; the page last: where it is, all are."""
    detector, plan, rows = cascade.detector, cascade.plan, list(cascade.rows)
    notes, free = familiar.notes(detector, source), {}
    if notes and familiar.keep and not rolling:
        free = training_free(source, familiar.rows, facts["size"])
    events, random = list(cascade.events), trained_detector.features_of(detector.folder).get("weights_sha256") == "random"
    marks = ["RANDOM encoder weights: the scores mean nothing"] * random
    content = {
        "source": facts["title"], "live": cascade.live, "rolling": rolling, "notes": notes, "marks": marks,
        "detector": {name: getattr(detector, name) for name in ("system", "trained_on", "kind")}
        | {"folder": presets.display_path(detector.folder)},
        "threshold": detector.threshold, "threshold_from": detector.threshold_from,
        "language_model": "none" if cascade.vlm is None else cascade.vlm.label, "settings": asdict(plan),
        "events": [event.as_row() for event in events], "truth": [asdict(span) for span in facts["truth"]],
        "measured": measure(cascade, facts["truth"], free) if facts["truth"] else None, "cost": cascade.cost(),
        "asked": facts["asked"],
    }  # fmt: skip
    table = pd.DataFrame(rows, columns=["start_s", "end_s", "known_s", "score"])
    for name, values in free.items():
        table[name] = pd.Series(values).reindex(table.index)
    table["event"] = [next((e.number for e in events if e.start_s <= row[0] < e.end_s), "") for row in rows]
    texts = {e.number: " ".join((e.answer or {}).get("texts", {}).values()) for e in events}
    table["answer"] = [texts.get(number, "") for number in table["event"]]
    artifacts.write_table(folder / "scores.csv", table, float_format="%.8g")
    artifacts.write_json(folder / "report.json", content)
    media = "" if cascade.live or rolling else player.media(source, folder, limit_mb=plan.embed_mb)
    pictures = {event.number: event.picture for event in events}
    curves = {"anomaly score": table[["start_s", "end_s", "score"]].to_numpy()}
    below = {name: table[["start_s", "end_s", name]].dropna().to_numpy() for name in free}
    page = report.page(content, curves, below, media=media, strip=list(cascade.strip), pictures=pictures)
    with artifacts.replacing(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return content


# A folder of videos


def analyse_folder(
    where: str | Path, detector: Detector, folder: str | Path, *, log: inference.Log = print, plan: AnalysisPlan | None = None,
    vlm: models.VLM | clients.Endpoint | None = None, events: str = "", send: Send | None = None, seconds: float = 0.0,
) -> list[dict]:  # fmt: skip
    """Look at every video of a folder or a records.jsonl; write a report each and index.html; return a row each.

    A video whose report was made of the same bytes by the same detector, model and settings is kept; a broken one is a line.
    Options as in `analyse`; `log` gets a line per video.
    """
    folder, plan, rows = Path(folder), plan or AnalysisPlan(), []
    made = artifacts.sha256(detector.folder / "model.safetensors")[:16]
    label = "none" if vlm is None else vlm.label
    weights = models.fingerprint(vlm.model) if isinstance(vlm, models.VLM) else ""
    for name, path in guard.sources(where):
        plain = "".join(letter if letter.isascii() and letter.isalnum() or letter in "-_" else "_" for letter in Path(name).stem)
        place = folder / f"{plain[:60]}_{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:6]}"
        asked = {
            "id": name, "video_sha256": guard.video_digest(path), "detector_sha256": made, "threshold": detector.threshold,
            "language_model": label, "language_model_weights": weights, "plan": asdict(plan), "events": events, "seconds": seconds,
        }  # fmt: skip
        try:
            done = _done(place, asked)
            content = done or analyse(
                path, detector, place, plan=plan, vlm=vlm, events=events, send=send, seconds=seconds, title=name, asked=asked
            )
            row = {"id": name, "report": f"{place.name}/report.html", "error": "", "content": content}
            log(f"{name}: {len(content['events'])} events in {content['cost']['seconds']:.0f} s{', kept' if done else ''}")
        except (ValueError, OSError) as error:
            row = {"id": name, "report": "", "error": artifacts.one_line(error), "content": None}
            log(f"{name}: {row['error']}")
        rows.append(row)
        with artifacts.replacing(folder / "index.html") as temporary:
            temporary.write_text(report.index(rows), encoding="utf-8", errors="backslashreplace")
    return rows


def _done(place: Path, asked: dict) -> dict | None:
    if not (place / "report.html").exists() or not (place / "report.json").exists():
        return None
    try:
        content = artifacts.read_json(place / "report.json", dict)
    except artifacts.StoreError:
        return None
    return content if content.get("asked") == asked and not content.get("rolling") else None


def holds_videos(folder: Path) -> bool:
    """Return whether a folder holds videos at any depth; a folder of images is one video."""
    return any(video.is_video_name(path) for path in folder.rglob("*"))


def lines(content: dict) -> list[str]:
    """Return a report as a few lines of text."""
    shown = [*content["marks"], *content["notes"]]
    for event in content["events"]:
        answer = event["answer"] or {}
        words = artifacts.one_line(answer.get("error") or " ".join(answer.get("texts", {}).values()), 200)
        span = f"{event['start_s']:8.1f} to {event['end_s']:.1f} s"
        shown.append(f"{event['number']:3d} {span}, highest {event['peak']:.3f}{': ' + words if words else ''}")
    cost = content["cost"]
    shown.append(
        f"{cost['alarms']} events at or above {content['threshold']:.6g} in {cost['seconds']:.1f} s of video, "
        f"{cost['wall_s']:.1f} s here; language model: {content['language_model']}, {cost['language_model_s']:.1f} s"
    )
    return shown

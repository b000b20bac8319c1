"""The cascade on one stream: scored clips in, alarms out, each event explained by a language model when it is over.

- the threshold comes from normal validation videos, whose scores lie in the detector's folder; nothing is chosen on the stream
- rows at or above it make an event; the frames the language model gets are chosen by score inside it (ATS)
- what is kept is bounded: an hour of scores of a live source, the last minute of small frames, counts; so memory does not grow
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from vau_lib import guard, watch
from vau_lib.data import answer_parsing
from vau_lib.detectors import experiments, frame_sampling, lshma, memtsm, trained_detector
from vau_lib.plots import player
from vau_lib.vlm import clients, inference, models
from vau_lib.workspace import artifacts

ALLOWED = 0.05  # fraction of the normal validation videos that may reach the threshold
REEL_FPS, REEL_SIDE = 10.0, 768  # frames kept for the language model: at most so many a second, so large
KEPT_EVENTS, KEPT_DELAYS = 200, 10_000
BEHIND = 4  # events that may wait for the language model of a live source; more are not explained
UNSENT, LAST_SENDS_S = 100, 30.0  # messages of a live source that may wait to be sent, and how long the last are waited for
SYNTHETIC = ("synthetic", "smoke")  # data sets of drawn videos, as the folders of detectors name them
Send = Callable[[dict], None]


@dataclass(frozen=True)
class AnalysisPlan:
    """How to look.

    Args:
        threshold: of a score; None takes `validation_threshold`.
        merge_s: an event goes on where the next hot row begins less than this after the last.
        pad_s: shown before and after an event.
        window_s: the longest stretch that is explained; a longer event is explained when it has lasted so long.
        num_frames: frames the language model gets.
        tau: how evenly they are chosen, see `frame_sampling`.
        max_new_tokens: longest answer.
        question: asked instead of the model's own, or of `guard.QUESTION`.
        as_video: frames go in as one video.
        pair_lag_s: frames go in as pairs so far apart, as the toy `near` was trained.
        embed_mb: a larger video lies beside the report, not in it.
    """

    threshold: float | None = None
    merge_s: float = 10.0
    pad_s: float = 2.0
    window_s: float = 45.0
    num_frames: int = 12
    tau: float = frame_sampling.TAU
    max_new_tokens: int = 256
    question: str = ""
    as_video: bool = False
    pair_lag_s: float | None = None
    embed_mb: float = 8.0


@dataclass(frozen=True)
class Detector:
    """A trained detector with what its folder says: threshold and where it is from, the data it was trained on."""

    folder: Path
    trained: trained_detector.TrainedDetector
    weights: str | Path | None
    threshold: float
    threshold_from: str
    trained_on: str
    system: str
    drawn: bool  # trained on drawn videos
    kind: str = ""  # what its folder says it is worth
    device: str = "auto"  # where its encoder's network runs, too


@artifacts.reader()
def load_detector(
    folder: str | Path, weights: str | Path | None = None, threshold: float | None = None, *, device: str = "auto"
) -> Detector:
    """Return a trained LSHMA or MemTSM-Net of a folder; StoreError for another, and for one without its features' facts."""
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise artifacts.StoreError(f"no trained detector in {folder}: `vau run demo 01 03 06` trains one, --detector names another")
    trained = trained_detector.load(folder, device=device)
    systems = {lshma.LSHMA: "LSHMA", memtsm.MemTSM: "MemTSM-Net"}
    if type(trained.model) not in systems:
        raise artifacts.StoreError(f"{folder} holds {type(trained.model).__name__}: a stream is LSHMA or MemTSM-Net")
    made_by = artifacts.read_json(folder / "made_by.json", dict)
    facts, kind = made_by.get("facts"), str(made_by.get("kind") or "")
    videos = facts.get("videos") if isinstance(facts, dict) else None
    counts = Counter(row[0] for row in videos.values()) if isinstance(videos, dict) else {}
    drawn = any(part in SYNTHETIC for part in folder.parts) or "drawn" in kind
    features = trained_detector.features_of(folder)
    note = experiments.features_note(features) if "encoder" in features else "unknown features"
    trained_on = f"{counts.get('train', 'an unknown number of')} {'drawn ' if drawn else ''}videos, {note}"
    given = (threshold, "given by hand") if threshold is not None else validation_threshold(folder)
    if threshold is None and isinstance(trained.model, memtsm.MemTSM) and not _is_causal(folder):
        given = given[0], f"{given[1]}; those scores are of whole windows, a stream's know the past only"
    return Detector(folder, trained, weights, *given, trained_on, systems[type(trained.model)], drawn, kind, device)


@artifacts.reader()
def validation_threshold(folder: str | Path) -> tuple[float, str]:
    """Return the lowest threshold that at most ALLOWED of the normal validation videos ever reach, and words that say so.

    It is 0.5 where the folder holds no scores of normal validation videos.
    """
    rows = experiments.read_scores(folder).values() if (Path(folder) / "scores.json").exists() else ()
    highest = {label: sorted(max(r["scores"]) for r in rows if r["split"] == "val" and r["label"] == label) for label in (0, 1)}
    if not highest[0]:
        return 0.5, "0.5 for want of validation scores in the detector's folder"
    if outside := [score for r in rows if r["split"] == "val" for score in r["scores"] if not 0 <= score <= 1]:
        raise artifacts.StoreError(f"{folder}/scores.json: scores of validation videos must be in [0, 1], got {outside[0]:g}")
    kept = len(highest[0]) - int(ALLOWED * len(highest[0]))
    threshold = float(np.nextafter(highest[0][kept - 1], np.inf))
    reached = {label: sum(value >= threshold for value in values) for label, values in highest.items()}
    return threshold, (
        f"validation: {reached[0]} of {len(highest[0])} normal and {reached[1]} of {len(highest[1])} anomalous validation videos "
        "reach it (scores.json in the detector's folder)"
    )


@artifacts.reader()
def _is_causal(folder: Path) -> bool:
    """Return whether the scores in a MemTSM-Net's folder are those of a stream."""
    rows = experiments.read_scores(folder).values() if (Path(folder) / "scores.json").exists() else ()
    return all(row.get("causal") for row in rows)


@dataclass
class Event:
    """A stretch of rows at or above the threshold, in seconds of the stream, and what was answered about it.

    `known_s` is when its first hot row's clip was over; `delay_s` from that row's beginning to the alarm, computing included;
    `explained_s` from there to the answer.
    """

    number: int
    start_s: float
    end_s: float
    known_s: float
    delay_s: float
    peak_s: float
    peak: float
    shown_s: tuple[float, ...] = ()
    answer: dict | None = None
    explained_s: float | None = None
    picture: bytes = field(default=b"", repr=False)

    def as_row(self) -> dict:
        """Return it as one JSON object, without its picture."""
        return {key: value for key, value in asdict(self).items() if key != "picture"}


class Reel:
    """The last seconds of a stream as small JPEG pictures: what the language model may be shown, and thumbnails."""

    def __init__(self, seconds: float):
        self.seconds, self.kept = seconds, deque()

    def add(self, moment: float, frame: np.ndarray) -> None:
        """Keep a frame (H, W, 3) unless one of the same tenth of a second is there."""
        if self.kept and moment - self.kept[-1][0] < 1 / REEL_FPS - 1e-3:
            return
        self.kept.append((moment, player.jpeg(frame, REEL_SIDE, 92)))
        while self.kept[0][0] < moment - self.seconds:
            self.kept.popleft()

    def at(self, seconds: float) -> bytes:
        """Return the picture nearest to a moment."""
        return min(self.kept, key=lambda item: abs(item[0] - seconds))[1]

    def between(self, start_s: float, end_s: float) -> list[tuple[float, bytes]]:
        """Return (second, picture) of a stretch."""
        return [item for item in self.kept if start_s <= item[0] <= end_s]


class Cascade:
    """Events of one stream: clips in, alarms out, each event explained when it is over.

    A live source's language model and webhook run beside the stream, one call at a time; a file waits for them.
    """

    def __init__(
        self, detector: Detector, plan: AnalysisPlan, vlm: models.VLM | clients.Endpoint | None = None, *, send: Send | None = None,
        live: bool = False, strip_s: float = 1.0,
    ):  # fmt: skip
        self.detector, self.plan, self.vlm, self.send, self.live = detector, plan, vlm, send, live
        self.reel = Reel(plan.window_s + plan.merge_s + 4 * plan.pad_s)
        self.strip, self.strip_s = deque(maxlen=player.THUMBS), strip_s
        kept = watch.KEPT_SCORES if live else None  # a file's scores are all drawn
        self.rows = deque(maxlen=kept)  # (start_s, end_s, known_s, score)
        self.events, self.delays, self.explained = deque(maxlen=KEPT_EVENTS), deque(maxlen=KEPT_DELAYS), deque(maxlen=KEPT_DELAYS)
        self.counts = Counter()
        self.open, self.seconds, self.model_s, self.began = None, 0.0, 0.0, time.perf_counter()
        self.workers = {name: ThreadPoolExecutor(1) for name in ("model", "send")} if live else {}
        self.waiting: list[Future] = []
        self.sending: list[Future] = []

    def frames(self, source: Iterable[tuple[float, np.ndarray]]) -> Iterator[tuple[float, np.ndarray]]:
        """Pass (second, frame) on and keep what is shown later."""
        for moment, frame in source:
            self.reel.add(moment, frame)
            if not self.strip or moment - self.strip[-1][0] >= self.strip_s - 1e-6:
                self.strip.append((moment, player.jpeg(frame, player.THUMB_SIDE, 75)))
            yield moment, frame

    def push(self, clip: watch.ScoredClip) -> None:
        """Take a scored clip: begin, go on with or end an event."""
        known, computed = float(clip.ends_s[-1]), max(clip.lag_s, 0.0) if self.live else clip.compute_ms / 1000
        for end, score in zip(clip.ends_s.tolist(), clip.scores.tolist(), strict=True):
            start, self.seconds = self.seconds, end
            self.rows.append((start, end, known, score))
            self.counts["rows"] += 1
            if score >= self.detector.threshold:
                self._hot(start, end, known, score, computed)
            elif self.open and end - self.open.end_s >= self.plan.merge_s:
                self._close()
        if self.open and not self.open.shown_s and self.seconds - self.open.start_s >= self.plan.window_s:
            self._explain(self.open)

    def finish(self) -> None:
        """End the last event and wait for what is still asked."""
        if self.open:
            self._close()
        for name, pool in self.workers.items():
            if name == "send":  # a slow receiver, each of whose messages takes its time-out, holds nothing up for ever
                self.counts["unsent"] += sum(not job.done() for job in wait(self.sending, timeout=LAST_SENDS_S).not_done)
            pool.shutdown(wait=name != "send", cancel_futures=True)

    def _hot(self, start: float, end: float, known: float, score: float, computed: float) -> None:
        event = self.open
        if event is None or start - event.end_s >= self.plan.merge_s:
            if event:
                self._close()
            delay = known - start + computed
            self.counts["events"] += 1
            event = self.open = Event(self.counts["events"], start, end, known, round(delay, 3), start, -1.0)
            self.events.append(event)
            self.delays.append(delay)
            facts = dict(start_s=start, known_s=known, delay_s=delay, score=score, threshold=self.detector.threshold)
            self._tell({"message": "alarm", "event": event.number, **{key: round(value, 4) for key, value in facts.items()}})
        event.end_s = end
        if score > event.peak:
            event.peak, event.peak_s = score, (start + end) / 2
            event.picture = player.jpeg(player.picture(self.reel.at(event.peak_s)), player.THUMB_SIDE, 80)

    def _close(self) -> None:
        event, self.open = self.open, None
        if not event.shown_s:
            self._explain(event)

    def _explain(self, event: Event) -> None:
        """Choose frames of an event and ask about them."""
        start = max(0.0, event.start_s - self.plan.pad_s)
        span = start, min(event.end_s + self.plan.pad_s, start + self.plan.window_s)
        shown = choose(self.reel.between(*span), list(self.rows), self.plan)
        event.shown_s = tuple(round(second, 3) for second, _ in shown)
        if self.vlm is None or not shown:
            return
        self.waiting = [job for job in self.waiting if not job.done()]
        if self.live and len(self.waiting) >= BEHIND:
            self.counts["unexplained"] += 1
            event.answer = {"error": "not asked: the language model is behind"}
        elif self.live:
            job = self.workers["model"].submit(self._ask, event, shown, self.seconds - event.start_s, time.perf_counter())
            self.waiting.append(job)
        else:
            self._ask(event, shown, self.seconds - event.start_s, time.perf_counter())

    def _ask(self, event: Event, shown: Sequence[tuple[float, bytes]], waited: float, since: float) -> None:
        began, frames = time.perf_counter(), np.stack([player.picture(data) for _, data in shown])
        try:
            answer = explain(self.vlm, frames, [second for second, _ in shown], self.plan)
            self.counts[f"judged {answer['anomaly']}"] += 1
        except (ValueError, OSError, RuntimeError) as error:  # a service is away, a prompt too long: the stream goes on
            answer = {"error": artifacts.one_line(error)}
            self.counts["unexplained"] += 1
        now = time.perf_counter()
        self.model_s += now - began
        event.explained_s = round(waited + now - since, 3)
        self.explained.append(event.explained_s)
        event.answer = answer
        self._tell({"message": "explained", "event": event.number, "explained_s": event.explained_s, **answer})

    def _tell(self, message: dict) -> None:
        if self.send is None:
            return
        if not self.live:
            self.send(message)
            return
        self.sending = [job for job in self.sending if not job.done()]
        if len(self.sending) >= UNSENT:
            self.counts["unsent"] += 1
            return
        self.sending.append(self.workers["send"].submit(self.send, message))

    def cost(self) -> dict:
        """Return what the stream took and how late it was: seconds, share of the language model, alarms an hour, delays."""
        wall, hours = time.perf_counter() - self.began, max(self.seconds, 1e-9) / 3600
        counts = {name: self.counts[f"judged {value}"] for name, value in (("anomaly", 1), ("normal", 0), ("unclear", None))}
        facts = {
            "seconds": round(self.seconds, 3), "wall_s": round(wall, 2), "rows": self.counts["rows"],
            "language_model_s": round(self.model_s, 2), "language_model_share_of_time": round(self.model_s / max(wall, 1e-9), 4),
            "language_model_share_of_video": round(self.model_s / max(self.seconds, 1e-9), 4), "alarms": self.counts["events"],
            "alarms_per_hour": round(self.counts["events"] / hours, 2), "judged": counts if self.vlm is not None else None,
            "not_explained": self.counts["unexplained"], "not_sent": self.counts["unsent"],
        }  # fmt: skip
        for name, values in (("alarm_delay", self.delays), ("explained_after", self.explained)):
            for share in (50, 99) if values else ():
                facts[f"{name}_p{share}_s"] = round(float(np.percentile(list(values), share)), 3)
        return facts


def choose(
    frames: Sequence[tuple[float, bytes]], rows: Sequence[tuple[float, float, float, float]], plan: AnalysisPlan
) -> list[tuple[float, bytes]]:
    """Return the frames (second, picture) the language model gets: each of an equal part of the anomaly mass (ATS).

    With `pair_lag_s` half as many moments, each with the frame so much later.
    """
    if not frames:
        return []
    seconds = np.array([second for second, _ in frames])
    ends = np.array([row[1] for row in rows])
    scores = np.array([row[3] for row in rows])[np.searchsorted(ends, seconds).clip(0, len(rows) - 1)]
    count = plan.num_frames if plan.pair_lag_s is None else max(1, plan.num_frames // 2)
    # of fewer frames than are asked for each goes in once: one shown twice is wasted
    index = frame_sampling.density_aware_sample(scores, min(count, len(frames)), tau=plan.tau)
    if plan.pair_lag_s is not None:
        later = [int(abs(seconds - second - plan.pair_lag_s).argmin()) for second in seconds[index]]
        index = np.stack([index, later], 1).reshape(-1)
    return [frames[place] for place in index]


def explain(vlm: models.VLM | clients.Endpoint, frames: np.ndarray, times_s: Sequence[float], plan: AnalysisPlan) -> dict:
    """Return what a model answers about frames uint8 (N, H, W, 3): verdict, kind, from_s, to_s, confidence, texts.

    `texts` is {what: answer}. A model that carries a question of its own judges in a word and is asked for description and
    analysis as well; `guard.QUESTION` asks for all at once. Frames that were chosen have no even clock: as one video they get a
    nominal one, and the seconds of its answer are not used.
    """
    first = float(times_s[0])
    clock = np.arange(len(frames)) / 2.0 if plan.as_video else np.asarray(times_s) - first
    clip = guard.Clip((0.0, float(clock[-1])), frames, clock)

    def asked(question: str) -> inference.Answer:
        limits = guard.GuardPlan(max_new_tokens=plan.max_new_tokens, question=question, as_video=plan.as_video)
        return guard.ask(vlm, [clip], limits)[0]

    judgement = asked(plan.question)
    found, texts = answer_parsing.parse_report(judgement.text), {"judgement": judgement.text}
    if getattr(vlm, "question", "") or plan.question:
        for name in ("description", "analysis") if found["anomaly"] != 0 else ("description",):
            texts[name] = asked(inference.QUESTIONS[name]).text
    for key in ("from_s", "to_s"):
        found[key] = None if plan.as_video or found[key] is None else round(found[key] + first, 3)
    return {**found, "confidence": judgement.confidence, "texts": texts, "model": vlm.label}


def webhook(address: str, *, log: inference.Log, timeout_s: float = 10.0) -> Send:
    """Return a function that posts a message as JSON to an address; one that fails is a line in `log`, the stream goes on.

    No redirect is followed and no proxy of the environment used (`clients`).
    """
    clients.check_address(address)

    def send(message: dict) -> None:
        try:
            status = clients.post(address, message, timeout_s=timeout_s)
            if not 200 <= status < 300:
                log(f"webhook: HTTP {status}")
        except clients.AnswerError as error:
            log(f"webhook: {artifacts.one_line(error, 160)}")

    return send

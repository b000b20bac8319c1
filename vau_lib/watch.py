"""Live anomaly scores of a camera or a video file by a trained LSHMA or MemTSM-Net, with bounded memory.

- a model's folder says which features it was trained on; the same encoder is built again, other weights are refused
- the scores equal those of the whole video at once: features, temporal difference, clips and state in one pass
- a file is a camera that ends; for a live source the lag says how far the score is behind the picture
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vau_lib.data import video
from vau_lib.detectors import exports, lshma, memtsm, preprocessing, trained_detector
from vau_lib.features import devices, extraction, image_encoders, xfeat
from vau_lib.plots import style, timeline
from vau_lib.workspace import artifacts

KEPT_SCORES = 7200  # scores kept for the figure: an hour at two a second
MAX_FRAMES, BAR, REDRAW_S = 6, 20, 5.0  # frames in the figure; characters of a full bar; seconds between figures
Encode = Callable[[np.ndarray], np.ndarray]  # frames (n, H, W, 3) of one snippet -> feature (D,)


@dataclass(frozen=True)
class ScoredClip:
    """A scored clip: seconds its snippets end at (N,), their scores (N,) in [0, 1], blocks passed, time it took, last frame."""

    ends_s: np.ndarray
    scores: np.ndarray
    depth: int
    compute_ms: float
    lag_s: float
    frame: np.ndarray


def live_encoder(
    folder: str | Path, weights: str | Path | None = None, *, device: str = "auto", runtime: str = "torch"
) -> tuple[Encode, int]:
    """Return the encoder of the features the model in `folder` was trained on, and the number of frames in a snippet.

    `weights` is where that encoder's weights are, searched for when None; for CLIP a hub name or a folder. StoreError for
    weights that are not those of the training features, and for encoders that need more than one snippet. An encoder of local
    change remembers the frames before: it is for one stream. `device` is where its network runs; `runtime` is torch, or for XFeat
    onnx or openvino.
    """
    trained_on = trained_detector.features_of(folder)
    with artifacts.reading(Path(folder) / "made_by.json"):
        return _live_encoder(folder, trained_on, weights, {"device": device, "runtime": runtime})


def _live_encoder(folder: str | Path, trained_on: dict, weights: str | Path | None, place: dict) -> tuple[Encode, int]:
    kind, random = trained_on.get("encoder"), trained_on.get("weights_sha256") == "random"
    if kind in ("xfeat", "squeezenet", "efficientnet-lite0"):
        change = trained_on.get("local_change") or {}
        options = {"side": trained_on["side"], **({"pooling": "local_change", **change} if change else {})}
        options |= place if kind == "xfeat" else {"device": place["device"]}
        encoder = extraction.ENCODERS[kind]("random" if random else weights, **options)
    elif kind == "clip" and not random:
        options = {"crops": trained_on["crops"], "drop_last": trained_on["drop_last"], "device": place["device"]}
        encoder = image_encoders.CLIPEncoder(*([weights] if weights else []), **options)
    else:
        raise artifacts.StoreError(f"{folder}: features of {kind or 'no known encoder'} cannot be made live")
    if odd := [key for key, value in encoder.made_by().items() if trained_on.get(key) != value]:
        raise artifacts.StoreError(
            f"{folder}: its features have {odd[0]} {trained_on.get(odd[0])}, here it is {encoder.made_by()[odd[0]]}"
        )
    frames = trained_on["snippet_frames"]
    if trained_on.get("local_change"):
        return _with_past(encoder), frames
    return lambda segment: encoder(segment, snippet_frames=frames)[0], frames


def _with_past(encoder: xfeat.XFeatEncoder) -> Encode:
    """Return an encoder of the snippets of one stream, in order: local change looks back past a snippet's first frame."""
    past = None

    def encode(segment: np.ndarray) -> np.ndarray:
        nonlocal past
        row, past = encoder.next_snippet(segment, past)
        return row

    return encode


def watch(
    frames: Iterable[tuple[float, np.ndarray]], trained: trained_detector.TrainedDetector, encode: Encode, *, snippet_frames: int
) -> Iterator[ScoredClip]:
    """Yield a `ScoredClip` as each clip of (seconds, RGB frame (H, W, 3)) completes, the last one with what is left.

    `lag_s` is how long after the clip's last frame was due its score is there, taking the first frame as on time: near 0
    while the machine keeps up, below 0 for a file that is read faster than it plays. MemTSM-Net gives a clip for every snippet, the
    causal score of the window that ends with it.
    """
    if isinstance(trained.model, memtsm.MemTSM):
        yield from _watch_windows(frames, trained, encode, snippet_frames)
        return
    source, state, model, ends = _Source(frames), None, trained.model, []
    segments = _segments(source, snippet_frames, ends)
    for features in _preprocess((encode(segment) for segment in segments), trained.preprocessing):
        with torch.inference_mode():  # otherwise every clip's graph hangs on the state for as long as the stream runs
            logits, state = model.push(features[None], state)
        if logits.shape[1]:
            yield source.scored_clip(ends, logits[0], int(state.depth))
    if state is None:
        return
    with torch.inference_mode():
        left = model.flush(state)
    if left.shape[1]:
        yield source.scored_clip(ends, left[0], model.settings.layers)


def _watch_windows(frames, trained, encode, snippet_frames) -> Iterator[ScoredClip]:
    model, fitted = trained.model, trained.preprocessing
    if model.settings.as_released:
        raise artifacts.StoreError("MemTSM-Net as released gives one score per video: it cannot be watched")
    source, ends, rows = _Source(frames), [], deque(maxlen=(fitted.window or fitted.steps) + 1)
    for segment in _segments(source, snippet_frames, ends):
        rows.append(encode(segment))
        with torch.inference_mode():
            logit = memtsm.newest_value(lambda x: model(x.to(model.device)).segment_logit, np.stack(rows), fitted)
        yield source.scored_clip(ends, torch.tensor([logit]), 1)


class _Source:
    """Pass frames on and measure the time spent waiting for them."""

    def __init__(self, frames: Iterable[tuple[float, np.ndarray]]):
        self.frames, self.began, self.waited, self.since = frames, None, 0.0, time.perf_counter()
        self.moment, self.frame = 0.0, None

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        since = time.perf_counter()
        for moment, frame in self.frames:
            now = time.perf_counter()
            self.began = now - moment if self.began is None else self.began
            self.waited, self.moment, self.frame = self.waited + now - since, moment, frame
            yield moment, frame
            since = time.perf_counter()

    def scored_clip(self, ends: list[float], logits: Tensor, depth: int) -> ScoredClip:
        """Return the clip that is over now, and take its snippets off `ends`."""
        now, ends_s = time.perf_counter(), np.array([ends.pop(0) for _ in logits])
        compute_s, self.since, self.waited = now - self.since - self.waited, now, 0.0
        scores = logits.sigmoid().detach().cpu().numpy()
        return ScoredClip(ends_s, scores, depth, 1000 * compute_s, now - self.began - self.moment, self.frame)


def _segments(source: _Source, size: int, ends: list[float]) -> Iterator[np.ndarray]:
    """Yield snippets (n, H, W, 3), the last may be short; note when each ended. A change of size begins a new one."""
    segment = []
    for moment, frame in source:
        segment = [*segment, frame] if not segment or segment[0].shape == frame.shape else [frame]
        if len(segment) == size:
            ends.append(moment)
            yield np.stack(segment)
            segment = []
    if segment:
        ends.append(source.moment)
        yield np.stack(segment)


def _preprocess(features: Iterable[np.ndarray], fitted: preprocessing.Preprocessing) -> Iterator[Tensor]:
    """Yield features (n, D), together `fitted` of all features at once; the first temporal difference needs the second one."""
    before, first = None, True
    for feature in features:
        if not fitted.temporal_difference:
            yield fitted(feature[None]).mT
        elif before is not None:
            both = fitted(np.stack([before, feature])).mT
            yield both if first else both[1:]
            first = False
        before = feature
    if fitted.temporal_difference and first and before is not None:
        yield fitted(before[None]).mT


def report_lines(
    source: str, model: Path, weights: str | Path | None = None, *, threshold: float = 0.5, seconds: float = 0.0,
    plot: Path | None = None, csv: Path | None = None, device: str = "auto", runtime: str = "torch",
    bfloat16: bool = False,
) -> Iterator[str]:  # fmt: skip
    """Yield what `vau watch` prints, a line per clip, then a summary; Ctrl-C stops the stream, not the summary.

    Where the source fails, its VideoError comes after the summary.

    Args:
        source: a video, a camera or an address.
        model: folder of a trained stream; with a runtime, of an exported one.
        weights: of the encoder, see `live_encoder`.
        threshold: scores at or above it are alarms.
        seconds: of video after which to stop, 0 for never.
        plot: an image file of the scores.
        csv: a table of the scores.
        device: where torch's networks run.
        runtime: torch, onnx or openvino.
        bfloat16: the large products of torch's stream in bfloat16, on a processor that has it.
    """
    if not (model / "config.json").exists():
        raise artifacts.StoreError(
            f"{model.name}: no trained stream in {model}: `vau run demo 06` trains one, --model names another"
        )
    if bfloat16:
        refuse_bfloat16(runtime)
    if runtime == "torch":
        loaded = trained_detector.load(model, lshma.LSHMA, device=device)
        trained = exports.packed(loaded, bfloat16=bfloat16)
        if bfloat16 and trained is loaded:
            where = loaded.model.position.weight.device.type
            why = f"it runs on {where}" if where != "cpu" else "its decisions go row by row"
            raise ValueError(f"bfloat16 is not for the stream in {model}: {why}")
    else:
        trained = exports.load(model, runtime, lshma.LSHMA)
    encode, snippet_frames = live_encoder(model, weights, device=device, runtime=runtime)
    trained_on = trained_detector.features_of(model)
    untrained = trained_on.get("weights_sha256") == "random"
    note = "; RANDOM encoder weights, the scores mean nothing: no alarms" if untrained else ""
    window = trained.model.settings.window
    name = video.source_name(source)  # a camera's password goes to the camera only
    yield f"{name}: {trained_on.get('encoder')} features of {snippet_frames} frames, clips of {window} snippets{note}"
    lost: list[video.VideoError] = []
    frames = until_lost(video.live(source), lost)
    frames = itertools.takewhile(lambda timed: timed[0] < seconds, frames) if seconds else frames
    report, drawn = StreamReport(None if untrained else threshold), 0.0
    name += " (RANDOM encoder weights: the scores mean nothing)" if untrained else ""
    try:
        for clip in watch(frames, trained, encode, snippet_frames=snippet_frames):
            report.add(clip)
            yield report.line(clip)
            if plot and time.perf_counter() - drawn > REDRAW_S:
                report.draw(plot, name)
                drawn = time.perf_counter()
    except KeyboardInterrupt:
        yield "stopped"
    if not report.ends_s:
        raise lost[0] if lost else video.VideoError(f"{name}: not one frame came")
    if plot:
        yield f"figure: {', '.join(map(str, report.draw(plot, name)))}"
    if csv:
        artifacts.write_table(csv, pd.DataFrame({"known_at_s": report.known_s, "score": report.scores}))
        yield f"table: {csv}"
    yield report.summary()
    if lost:
        raise lost[0]


def refuse_bfloat16(runtime: str) -> None:
    """Raise ValueError where a stream's products cannot be asked for in bfloat16."""
    if runtime != "torch":
        raise ValueError(f"bfloat16 is for runtime torch, not for {runtime}; `vau export --int8` makes onnx faster")
    if not devices.has_bfloat16(torch.device("cpu")):
        raise ValueError("bfloat16: this processor has none and would be slower by it")


def until_lost(frames: Iterable[tuple[float, np.ndarray]], lost: list[video.VideoError]) -> Iterator[tuple[float, np.ndarray]]:
    """Yield frames until their source fails; its error goes into `lost`: what came before is scored and written first."""
    try:
        yield from frames
    except video.VideoError as error:
        lost.append(error)


class StreamReport:
    """The last hour of scores, its frames that scored highest, and totals of the whole stream; no threshold, no alarms."""

    def __init__(self, threshold: float | None):
        self.threshold, self.clips, self.alarms, self.spent_ms, self.worst_ms = threshold, 0, 0, 0.0, 0.0
        self.ends_s, self.known_s, self.scores = (deque(maxlen=KEPT_SCORES), deque(maxlen=KEPT_SCORES), deque(maxlen=KEPT_SCORES))
        self.top_frames = []  # (second, score, frame): the highest

    def add(self, clip: ScoredClip) -> None:
        """Add a clip."""
        self.clips, self.spent_ms = self.clips + 1, self.spent_ms + clip.compute_ms
        self.alarms += self._is_alarm(clip)
        self.worst_ms = max(self.worst_ms, clip.compute_ms)
        self.ends_s.extend(clip.ends_s)
        self.known_s.extend([clip.ends_s[-1]] * len(clip.scores))
        self.scores.extend(clip.scores)
        item = (float(clip.ends_s[-1]), float(clip.scores.max()), _small(clip.frame))
        kept = [old for old in self.top_frames if old[0] >= self.ends_s[0]]  # of the hour that is drawn
        self.top_frames = sorted([*kept, item], key=lambda item: -item[1])[:MAX_FRAMES]

    def line(self, clip: ScoredClip) -> str:
        """Return the clip as a line."""
        top = float(clip.scores.max())
        bar = "█" * round(BAR * top) + "·" * (BAR - round(BAR * top))
        mark = "  ALARM" if self._is_alarm(clip) else ""
        lag = f"  lag {clip.lag_s:.1f} s" if clip.lag_s > 1 else ""
        return f"{clip.ends_s[-1]:9.1f} s  {top:.3f} {bar}  depth {clip.depth}  {clip.compute_ms:6.1f} ms{lag}{mark}"

    def _is_alarm(self, clip: ScoredClip) -> bool:
        return self.threshold is not None and bool(clip.scores.max() >= self.threshold)

    def summary(self) -> str:
        """Return the totals as a line."""
        alarms = "no alarms" if self.threshold is None else f"{self.alarms} at or above {self.threshold:g}"
        return (
            f"{self.clips} clips to {self.ends_s[-1]:.1f} s, {alarms}; "
            f"{self.spent_ms / self.clips:.1f} ms a clip with its features, at most {self.worst_ms:.1f}"
        )

    def draw(self, path: Path, title: str) -> list[Path]:
        """Write the last hour as a figure: scores over time under the frames that scored highest; return the files."""
        first = self.ends_s[0]
        shown = sorted(self.top_frames, key=lambda item: item[0])
        row_s = (self.ends_s[-1] - first) / max(len(self.ends_s) - 1, 1) or 1.0
        figure = timeline.scores(
            {"score": np.array(self.scores)}, fps=1 / row_s, frames=np.stack([frame for *_, frame in shown]),
            shown_s=[second - first for second, *_ in shown], threshold=self.threshold, title=f"{title}: highest moments",
        )  # fmt: skip
        return style.save(figure, path)


def _small(frame: np.ndarray, height: int = 108, width: int = 192) -> np.ndarray:
    """Return (height, width, 3): whole, on black, every k-th pixel."""
    step = max(1, -(-frame.shape[0] // height), -(-frame.shape[1] // width))
    small, out = frame[::step, ::step], np.zeros((height, width, 3), np.uint8)
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    out[top : top + small.shape[0], left : left + small.shape[1]] = small
    return out

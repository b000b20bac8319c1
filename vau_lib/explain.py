"""Explaining a long video (Holmes-VAU): anomaly scores of sampled frames, frames chosen by score, three questions, a figure.

- one vision tower serves both models: a sampled frame's feature goes to the scorer, its visual tokens wait for the language model
  while the frame is a candidate: by the scores of what was seen so far it may still be chosen
- frames are prepared by the model's own processor, so that stored tokens equal those the model would compute
- results carry their worth in their label: a toy's name says toy, a scorer without training says RANDOM
Source: Zhang et al., Holmes-VAU, CVPR 2025, section 4.2, Fig. 4; its release encodes the chosen frames twice.
"""

import base64
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vau_lib.data import records, video, video_worker
from vau_lib.detectors import anomaly_scorer, frame_sampling, trained_detector
from vau_lib.features import frame_features
from vau_lib.plots import timeline
from vau_lib.vlm import chat, inference, models
from vau_lib.workspace import artifacts, gallery

STAGES = ("features", "score", "sample", "encode", "ask")
PICTURE_SIDE = 240  # pixels of the longer side of a frame in the figure
VERDICTS = {True: "judged anomalous", False: "judged normal", None: "no judgement in the answer"}
PAGE_STYLE = """
:root { color-scheme: light; } body { font: 15px/1.5 system-ui, sans-serif; color: #22303c; margin: 0 auto; max-width: 1100px;
  padding: 24px; overflow-wrap: anywhere; } h1 { font-size: 22px; } h2 { font-size: 16px; margin: 22px 0 4px; } p { margin: 0; }
img { max-width: 100%; border: 1px solid #dbe1e6; } table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: right; padding: 2px 12px 2px 0; border-bottom: 1px solid #dbe1e6; }
dt { color: #5b6873; float: left; clear: left; width: 260px; } dd { margin: 0 0 0 270px; }
"""
GRID = 4000  # points of the plotted curve
CANDIDATES = 16  # sampled frames whose tokens may wait, per frame that is chosen; half of them after each choice


class VisionTower:
    """A model's vision tower as an encoder of `frame_features.FrameFeatures`; `frame_count` counts the encoded frames.

    A frame's feature is the class token where the tower has one (InternVL), else the mean of its visual tokens;
    `describe(feature (t, D), tokens (t, N, C)) -> (t, D')` makes another of both. `max_pixels` makes frames smaller (Qwen only).
    """

    def __init__(
        self, vlm: models.VLM, *, describe: Callable[[Tensor, Tensor], Tensor] | None = None, max_pixels: int | None = None
    ):
        chat.check_max_pixels(vlm, max_pixels)
        if not hasattr(vlm.model, "get_image_features"):
            raise ValueError(f"{vlm.name} ({vlm.family}) does not give its visual tokens")
        self.vlm, self.describe, self.max_pixels, self.frame_count = vlm, describe, max_pixels, 0

    @torch.inference_mode()
    def encode_frames(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return features (t, D) and visual tokens (t, N, C) of frames uint8 (t, H, W, 3)."""
        inputs = chat.to_model(self.vlm, chat.prepare_images(self.vlm, chat.to_images(frames), max_pixels=self.max_pixels))
        output = chat.encode_images(self.vlm.model, inputs)
        self.frame_count += len(frames)
        tokens, own = torch.stack(chat.image_tokens(output)), torch.stack(list(output.pooler_output))
        feature = output.last_hidden_state[:, 0] if self.vlm.family == "internvl" else own.mean(1)
        return (feature if self.describe is None else self.describe(feature, own)), tokens

    def widths(self) -> tuple[int, int]:
        """Return the widths of a frame's own feature and of a visual token."""
        config = self.vlm.model.config
        token = config.get_text_config().hidden_size
        return (config.vision_config.hidden_size if self.vlm.family == "internvl" else token), token


def mean_and_max_tokens(feature: Tensor, tokens: Tensor) -> Tensor:
    """Describe a frame by the mean and maximum of its visual tokens, (t, 2 C): for a tower with an untrained class token."""
    return torch.cat([tokens.mean(1), tokens.amax(1)], 1)


@dataclass(frozen=True)
class Scorer:
    """Features (T, D) of sampled frames -> scores (T,) in [0, 1], with a label that says what they are worth."""

    score: Callable[[np.ndarray], np.ndarray]
    label: str


def random_scorer(width: int, *, seed: int = 0) -> Scorer:
    """Return an untrained scorer of features of that width, for where nobody trained one. Its scores mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = anomaly_scorer.AnomalyScorer(anomaly_scorer.ScorerConfig(width=width)).eval()

    return Scorer(partial(_score, net), "scorer with RANDOM weights")


@artifacts.reader()
def load_scorer(source: str | Path, tower: VisionTower) -> tuple[Scorer, VisionTower]:
    """Return a scorer and the tower that makes its features, of the published anomaly_scorer.pth or a trained detector's folder.

    A frame's feature is the tower's own, or mean and maximum of its visual tokens, whichever is as wide as the scorer reads.
    StoreError for a file that is no scorer; ValueError where neither fits: a scorer belongs to the tower it was trained on.
    """
    source = Path(source)
    if source.is_dir():
        trained = trained_detector.load(source, anomaly_scorer.AnomalyScorer)
        net, score = trained.model, trained.score
    else:
        net = anomaly_scorer.load_released(source)
        score = partial(_score, net)
    wanted, kind = net.settings.width, _kind(source)
    plain, tokens = tower.widths()
    if wanted == 2 * tokens != plain:
        tower = VisionTower(tower.vlm, describe=mean_and_max_tokens, max_pixels=tower.max_pixels)
    elif wanted != plain:
        raise ValueError(
            f"{source.name} reads features of {wanted}, the vision tower of {tower.vlm.name} gives {plain}: "
            "a scorer belongs to the tower it was trained on"
        )
    kind = ", ".join(part for part in (kind, "RANDOM weights" if models.untrained(net) else "") if part)
    return Scorer(score, f"scorer {source.name}" + (f" ({kind})" if kind else "")), tower


def _kind(source: Path) -> str:
    """Return what a detector's folder says its scores are worth."""
    path = source / "made_by.json"
    facts = artifacts.read_json(path, dict) if source.is_dir() and path.is_file() else {}
    return str(facts.get("kind", ""))


@torch.inference_mode()
def _score(net: anomaly_scorer.AnomalyScorer, features: np.ndarray) -> np.ndarray:
    return net(torch.from_numpy(features)[None].to(net.embed.weight.device))[0].cpu().numpy()


@dataclass(frozen=True)
class ExplainedVideo:
    """A video, explained: the answers, every sampled frame and its score, the chosen frames, the cost.

    `index`, `times_s` and `scores` (T,) are of all sampled frames, `chosen_index` (N,) of the frames the language model
    got. `seconds` by stage: features (decode and vision tower), score, sample, encode (visual tokens of the chosen
    frames), ask (prompts and generating). `vision_frames` went through the vision tower, `token_bytes` of visual tokens waited.
    """

    path: Path
    explanation: inference.Explanation
    scorer: str
    index: np.ndarray
    times_s: np.ndarray
    scores: np.ndarray
    chosen_index: np.ndarray
    end_s: float
    seconds: dict[str, float]
    vision_frames: int
    token_bytes: int = 0

    @property
    def label(self) -> str:
        """Model and scorer, with what they are worth."""
        return f"{self.explanation.model}; {self.scorer}"

    def as_row(self) -> dict:
        """Return it as one JSON object."""
        row = {**asdict(self), "path": self.path.name}
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()}


@video_worker.apart()
def explain_video(
    path: str | Path,
    vlm: models.VLM,
    scorer: Scorer,
    *,
    num_frames: int = inference.NUM_FRAMES,
    stride: int = records.SNIPPET_FRAMES,
    cap: int | None = None,
    tau: float = 0.1,
    tower: VisionTower | None = None,
    reuse: bool = True,
    released: bool = False,
    max_new_tokens: int = 128,
    log: inference.Log | None = None,
) -> ExplainedVideo:
    """Score every `stride`-th frame, choose frames by anomaly mass, ask three questions about them.

    A video of at most stride * num_frames frames is read evenly, at frames that were not sampled; they are encoded then.

    Args:
        path: the video.
        vlm: the model that is asked.
        scorer: features of sampled frames -> scores.
        num_frames: frames the language model gets.
        stride: frames from one sampled frame to the next.
        cap: most sampled frames of a long video; the stride grows.
        tau: how evenly frames are chosen, see `frame_sampling.choose_frames`.
        tower: makes features and visual tokens; by default the model's own.
        reuse: keep the visual tokens of candidates; False encodes the chosen frames again, as released.
        released: choose frames as the published sampler does.
        max_new_tokens: tokens an answer may have.
        log: gets a line with the cost of each call of generate.

    Raises VideoError for a broken file; ValueError for scores that are none (NaN, outside [0, 1], not one per frame) and
    for more frames than the model takes.
    """
    path, tower = Path(path), tower or VisionTower(vlm)
    if num_frames > chat.MAX_FRAMES:
        raise ValueError(f"{num_frames} frames are more than max_frames={chat.MAX_FRAMES}: choose fewer")
    encoded, clock = tower.frame_count, [time.perf_counter()]
    sampled = frame_features.FrameFeatures(
        path, tower, stride=stride, cap=cap, candidates=candidates(scorer, num_frames, tau) if reuse else None
    )
    features = sampled.features()
    clock.append(time.perf_counter())
    scores = np.asarray(scorer.score(features), np.float64)
    clock.append(time.perf_counter())
    index = _choose(path, scores, sampled, num_frames, tau, released)
    clock.append(time.perf_counter())
    tokens = _visual_tokens(sampled, tower, index, reuse=reuse)
    clock.append(time.perf_counter())
    frames, times_s = video.read_frames(path, index, reader="pyav"), video.frame_times(path)
    options = dict(tokens=tokens, max_new_tokens=max_new_tokens, max_pixels=tower.max_pixels, log=log)
    explanation = inference.explain(vlm, frames, times_s[index].round(3), **options)
    clock.append(time.perf_counter())
    return ExplainedVideo(
        path=path,
        explanation=explanation,
        scorer=scorer.label,
        index=sampled.index,
        times_s=sampled.times_s,
        scores=scores,
        chosen_index=index,
        end_s=float(times_s[-1]),
        seconds=dict(zip(STAGES, np.diff(clock).tolist(), strict=True)),
        vision_frames=tower.frame_count - encoded,
        token_bytes=sampled.most_token_bytes,
    )


@video_worker.apart()
def stride_of(path: str | Path, fps: float) -> int:
    """Return the stride that scores about `fps` frames of a video's second, at least 1."""
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    return max(1, round(video.probe(path).fps / fps))


def choose_frames(
    path: str | Path,
    num_frames: int,
    *,
    scorer: Scorer,
    tower: VisionTower,
    stride: int = records.SNIPPET_FRAMES,
    cap: int | None = None,
    tau: float = 0.1,
) -> np.ndarray:
    """Return frames of a video chosen by anomaly mass, int (num_frames,), places in the video; nothing is asked.

    Args:
        path: the video.
        num_frames: frames to choose.
        scorer: features of sampled frames -> scores.
        tower: makes features of frames.
        stride: frames from one sampled frame to the next.
        cap: most sampled frames of a long video; the stride grows.
        tau: how evenly frames are chosen, see `frame_sampling.choose_frames`.
    """
    sampled = frame_features.FrameFeatures(path, tower, stride=stride, cap=cap)
    scores = np.asarray(scorer.score(sampled.features()), np.float64)
    return _choose(Path(path), scores, sampled, num_frames, tau, False)


def candidates(scorer: Scorer, num_frames: int, tau: float) -> frame_features.Candidates:
    """Return which frames' tokens wait: those of equal parts of the mass seen so far, some for every frame that is asked for."""

    def choose(features: np.ndarray, count: int) -> np.ndarray:
        scores = np.asarray(scorer.score(features), np.float64)
        if scores.shape != (len(features),) or not ((scores >= 0) & (scores <= 1)).all():
            scores = np.zeros(len(features))  # the whole video's scores will be refused by name
        return np.unique(frame_sampling.density_aware_sample(scores, count, tau=tau))

    return frame_features.Candidates(CANDIDATES * num_frames, choose)


def _choose(
    path: Path, scores: np.ndarray, sampled: frame_features.FrameFeatures, num_frames: int, tau: float, released: bool
) -> np.ndarray:
    try:
        return frame_sampling.choose_frames(
            scores, sampled.num_frames, num_frames, stride=sampled.stride, tau=tau, released=released
        )
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _visual_tokens(sampled: frame_features.FrameFeatures, tower: VisionTower, index: np.ndarray, *, reuse: bool) -> Tensor:
    """Return the visual tokens of chosen frames (N, tokens, C): stored ones where all of them were sampled."""
    if reuse and not (index % sampled.stride).any():
        tokens = sampled.tokens(index // sampled.stride)
        return tokens.to(tower.vlm.model.device, tower.vlm.model.dtype)
    return tower.encode_frames(video.read_frames(sampled.path, index, reader="pyav"))[1]


@video_worker.apart()
def figure(explained: ExplainedVideo, *, events: Sequence[records.Span] = (), note: str = ""):
    """Draw the chosen frames over the score curve, in the container's own time, with the three answers; a Figure.

    `events` are the true spans, drawn as amber bands where they are known; `note` is put into the title.
    """
    explanation, end_s = explained.explanation, max(explained.end_s, 1e-3)  # a single frame ends at 0
    grid_s = np.linspace(0, end_s, GRID)
    places = np.searchsorted(explained.times_s, grid_s, side="right").clip(1) - 1  # a score holds to the next
    frames = video.read_frames(explained.path, explained.chosen_index, reader="pyav")
    step = max(1, max(frames.shape[1:3]) // PICTURE_SIDE)
    counts = f"{len(explained.index)} frames scored, {len(frames)} shown"
    plot = timeline.scores(
        {"score": explained.scores[places]},
        fps=(GRID - 1) / end_s,
        events=events,
        frames=frames[:, ::step, ::step],
        shown_s=explanation.times_s,
        title=f"{_warning(explained.label)}{explained.path.name}: {VERDICTS[explanation.anomalous]}{note}, {counts}",
    )
    plot.axes[0].set_ylim(-0.02, 1.05)  # noise must not look like a curve
    answers = [f"{name}: {_answer(explanation, name)}" for name in ("judgement", "description", "analysis")]
    plot.supxlabel("\n".join([*map(_short, answers), f"by {explained.label}"]), x=0.01, ha="left", fontsize=8)
    return plot


def _answer(explanation: inference.Explanation, name: str) -> str:
    if name == "analysis" and explanation.anomalous is False:
        return "(not asked: nothing to explain)"
    return getattr(explanation, name) or "(the model answered nothing)"


def _warning(label: str) -> str:
    marks = [mark for mark in ("TOY", "RANDOM") if mark.lower() in label.lower()]
    return f"[{', '.join(marks)}] " if marks else ""


def _short(text: str, width: int = 170) -> str:
    text = " ".join(gallery.TERMINAL.sub("", text).split()).replace("$", r"\$")  # a pair of dollars would be read as a formula
    return text if len(text) <= width else text[: width - 1] + "…"


# What is left behind


def write(explained: ExplainedVideo, folder: str | Path) -> dict[str, Path]:
    """Write explanation.json, .png and .html (one page with the figure in it) into a folder; return their paths.

    Each file is whole or as it was before.
    """
    folder = Path(folder)
    paths = {kind: folder / f"explanation.{kind}" for kind in ("json", "png", "html")}
    drawing, plot = io.BytesIO(), figure(explained)
    plot.set_layout_engine("constrained")  # outside a notebook nobody has set the style
    plot.savefig(drawing, format="png", dpi=110)
    artifacts.write_json(paths["json"], explained.as_row())
    for kind, content in {"png": drawing.getvalue(), "html": page(explained, drawing.getvalue()).encode()}.items():
        with artifacts.replacing(paths[kind]) as temporary:
            temporary.write_bytes(content)
    return paths


def page(explained: ExplainedVideo, drawing: bytes) -> str:
    """Return one HTML page of an explained video that needs nothing else; every text of video and model is escaped."""
    explanation, seconds = explained.explanation, sum(explained.seconds.values())
    verdict = VERDICTS[explanation.anomalous]
    title = gallery.text(f"{explained.path.name}: {verdict}")
    answers = [(name, _answer(explanation, name)) for name in ("judgement", "description", "analysis")]
    scored = dict(zip(explained.index.tolist(), explained.scores.tolist(), strict=True))
    rows = [
        (str(frame), f"{time_s:.2f}", f"{scored[frame]:.3f}" if frame in scored else "not scored")
        for frame, time_s in zip(explained.chosen_index.tolist(), explanation.times_s, strict=True)
    ]
    facts = {
        "model and scorer": explained.label, "frames scored": len(explained.index), "frames shown": len(explained.chosen_index),
        "frames through the vision tower": explained.vision_frames, "tokens read": explanation.prompt_tokens,
        "visual tokens kept, MiB": round(explained.token_bytes / 2**20, 1), "seconds": round(seconds, 1),
    }  # fmt: skip
    picture = base64.b64encode(drawing).decode()
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{gallery.POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{PAGE_STYLE}</style>\n</head>\n<body>\n<h1>{gallery.text(_warning(explained.label))}{title}</h1>\n"
        f'<img alt="scores and chosen frames" src="data:image/png;base64,{picture}">\n'
        + "".join(f"<h2>{name}</h2>\n<p>{gallery.text(answer, 20_000)}</p>\n" for name, answer in answers)
        + "<h2>frames that were shown</h2>\n<table><tr><th>frame</th><th>second</th><th>score</th></tr>\n"
        + "".join(f"<tr>{''.join(f'<td>{gallery.text(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
        + "</table>\n<h2>how</h2>\n<dl>\n"
        + "".join(f"<dt>{gallery.text(key)}</dt><dd>{gallery.text(value)}</dd>\n" for key, value in facts.items())
        + "</dl>\n</body>\n</html>\n"
    )

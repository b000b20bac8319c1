"""From file to figure: score every glance, spend the frames where the mass lies, ask about what was already seen.

- one tower serves both: a glance's row goes to the scorer, its picture tokens wait in a scratch file for the language model
- pictures are prepared by the model's own processor, so that tokens kept are the tokens it would have made itself
- what a result is worth is printed on it: a toy's name says toy, a scorer without training says RANDOM
Source: Zhang et al., Holmes-VAU, CVPR 2025, section 4.2, Fig. 4; its release encodes the chosen frames twice.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from vau_lib.data import records, video
from vau_lib.detectors import anomaly_scorer, frame_sampling
from vau_lib.features import frame_features
from vau_lib.plots import timeline
from vau_lib.vlm import chat, inference, models

PICTURE_SIDE = 240  # pixels of the longer side of a frame in the figure

GRID = 4000  # points of the drawn curve


class VisionTower:
    """A model's vision tower as an encoder of `frame_features.FrameFeatures`; `seen` counts the frames that went through it.

    A row is the class token where the tower has one (InternVL), else the mean of the frame's picture tokens; `describe(row,
    tokens (t, N, C)) -> (t, D)` makes another of it.
    """

    def __init__(self, vlm: models.VLM, *, describe: Callable[[Tensor, Tensor], Tensor] | None = None):
        if not hasattr(vlm.model, "get_image_features"):
            raise ValueError(f"{vlm.name} ({vlm.family}) does not show its picture tokens")
        self.vlm, self.describe, self.seen = vlm, describe, 0

    @torch.inference_mode()
    def see(self, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return rows (t, D) and picture tokens (t, N, C) as the language model reads them, of frames (t, H, W, 3)."""
        model, pictures = self.vlm.model, torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        given = {key: value.to(model.device) for key, value in chat.prepare_images(self.vlm, list(pictures)).items()}
        given["pixel_values"] = given["pixel_values"].to(model.dtype)
        found = model.get_image_features(**given)
        self.seen += len(frames)
        tokens = torch.stack(list(found.pooler_output))
        row = found.last_hidden_state[:, 0] if self.vlm.family == "internvl" else tokens.mean(1)
        return (row if self.describe is None else self.describe(row, tokens)), tokens


def mean_and_max_tokens(row: Tensor, tokens: Tensor) -> Tensor:
    """Describe a frame by the mean and the largest of its picture tokens, (t, 2 C): for a tower whose class token nobody taught."""
    return torch.cat([tokens.mean(1), tokens.amax(1)], 1)


@dataclass(frozen=True)
class Scorer:
    """Rows (T, D) of glances -> scores (T,) in [0, 1], with a label that says what they are worth."""

    score: Callable[[np.ndarray], np.ndarray]
    label: str


def trained_scorer(trained: anomaly_scorer.Trained, label: str) -> Scorer:
    """Return a scorer that `anomaly_scorer.train` or `anomaly_scorer.load_trained` gave."""
    return Scorer(trained.score, label)


def random_scorer(width: int, *, seed: int = 0) -> Scorer:
    """Return an untrained scorer of rows of that width: what runs where nobody trained one. Its scores mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = anomaly_scorer.AnomalyScorer(anomaly_scorer.ScorerConfig(width=width)).eval()

    @torch.inference_mode()
    def score(rows: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(rows)[None])[0].numpy()

    return Scorer(score, "scorer with RANDOM weights")


@dataclass(frozen=True)
class ExplainedVideo:
    """A video, explained: what was said of which frames, every glance's frame and score, what it cost.

    `index`, `times_s` and `scores` are of all glances, (T,). `seconds` by stage: look (decode and vision tower), score,
    sample, encode (tokens of the chosen frames), ask (prompts and generating). `vision_frames` went through the tower.
    """

    path: Path
    said: inference.Explanation
    scorer: str
    index: np.ndarray
    times_s: np.ndarray
    scores: np.ndarray
    end_s: float
    seconds: dict[str, float]
    vision_frames: int

    @property
    def label(self) -> str:
        """Model and scorer, with what they are worth."""
        return f"{self.said.model}; {self.scorer}"

    def as_row(self) -> dict:
        """Return it as one JSON object."""
        row = {**asdict(self), "path": self.path.name}
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()}


def explain_video(
    path: str | Path,
    vlm: models.VLM,
    scorer: Scorer,
    *,
    num_frames: int = inference.NUM_FRAMES,
    stride: int = records.SNIPPET_FRAMES,
    cap: int | None = None,
    tau: float = 0.1,
    eye: VisionTower | None = None,
    reuse: bool = True,
    max_new_tokens: int = 128,
    tell: Callable[[str], object] | None = None,
) -> ExplainedVideo:
    """Look at every `stride`-th frame, score, choose `num_frames` by anomaly mass, ask three questions about them.

    `cap` bounds the glances of a long video. With `reuse` the chosen frames' tokens are those of the glances; without, they
    are encoded again, as released. A video of at most stride * num_frames frames is read evenly, at frames that were no
    glances, which are encoded then. VideoError names a broken file; ValueError for scores that are none (NaN, outside
    [0, 1], not one per glance) and for more frames than the model takes.
    """
    path, eye, clock = Path(path), eye or VisionTower(vlm), _Clock()
    before, started = eye.seen, time.perf_counter()
    with TemporaryDirectory() as scratch:
        glances = frame_features.FrameFeatures(
            path, eye, stride=stride, cap=cap, tokens_file=Path(scratch) / "tokens" if reuse else None
        )
        scores = np.empty(0)

        def choose(_, count):
            nonlocal scores
            with clock("look"):
                rows = glances.features()
            with clock("score"):
                scores = np.asarray(scorer.score(rows), np.float64)
            with clock("sample"):
                index = _chosen(path, scores, glances, count, tau)
            return index, scores[index // glances.stride]

        def look(index):
            with clock("encode"):
                return _tokens(glances, eye, index, reuse=reuse)

        said = inference.explain(
            path, vlm, choose=choose, look=look, num_frames=num_frames, max_new_tokens=max_new_tokens, tell=tell
        )
    seconds = clock.seconds | {"ask": time.perf_counter() - started - sum(clock.seconds.values())}
    return ExplainedVideo(
        path=path, said=said, scorer=scorer.label, index=glances.index, times_s=glances.times_s, scores=scores,
        end_s=float(video.frame_times(path)[-1]), seconds=seconds, vision_frames=eye.seen - before,
    )  # fmt: skip


class _Clock:
    """Adds up seconds by stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str):
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def _chosen(
    path: Path, scores: np.ndarray, glances: frame_features.FrameFeatures, count: int, tau: float
) -> np.ndarray:
    try:
        return frame_sampling.choose_frames(scores, glances.num_frames, count, stride=glances.stride, tau=tau)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _tokens(glances: frame_features.FrameFeatures, eye: VisionTower, index: np.ndarray, *, reuse: bool) -> Tensor:
    """Return the picture tokens of chosen frames (N, tokens, C), those of glances where all of them are glances."""
    if reuse and not (index % glances.stride).any():
        kept = glances.tokens(index // glances.stride)
        return kept.to(eye.vlm.model.device, eye.vlm.model.dtype)
    return eye.see(video.read_frames(glances.path, index))[1]


def figure(found: ExplainedVideo):
    """Draw the chosen frames over the curve of scores, in the container's own time, with the three answers; a Figure."""
    said, end_s = found.said, max(found.end_s, 1e-3)  # of a single frame 0
    grid_s = np.linspace(0, end_s, GRID)
    curve = found.scores[np.searchsorted(found.times_s, grid_s, side="right").clip(1) - 1]  # a score holds to the next
    frames = video.read_frames(found.path, said.index)
    step = max(1, max(frames.shape[1:3]) // PICTURE_SIDE)
    verdict = {True: "judged anomalous", False: "judged normal", None: "no judgement in the answer"}[said.anomalous]
    drawn = timeline.scores(
        {"score": curve}, fps=(GRID - 1) / end_s, frames=frames[:, ::step, ::step], shown_s=said.times_s,
        title=f"{_warning(found.label)}{said.video}: {verdict}, {len(found.index)} glances, {len(said.index)} frames shown",
    )  # fmt: skip
    drawn.axes[0].set_ylim(-0.02, 1.05)  # noise must not look like a curve
    answers = [f"{name}: {_answer(said, name)}" for name in ("judgement", "description", "analysis")]
    drawn.supxlabel("\n".join([*map(_short, answers), f"by {found.label}"]), x=0.01, ha="left", fontsize=8)
    return drawn


def _answer(said: inference.Explanation, name: str) -> str:
    if name == "analysis" and said.anomalous is False:
        return "(not asked: nothing to explain)"
    return getattr(said, name) or "(the model said nothing)"


def _warning(label: str) -> str:
    marks = [mark for mark in ("TOY", "RANDOM") if mark.lower() in label.lower()]
    return f"[{', '.join(marks)}] " if marks else ""


def _short(text: str, width: int = 170) -> str:
    text = " ".join(text.split()).replace("$", r"\$")  # a pair of dollars would be read as a formula
    return text if len(text) <= width else text[: width - 1] + "…"

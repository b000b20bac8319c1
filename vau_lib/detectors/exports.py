"""Detectors as ONNX and OpenVINO files, with their streams' state as inputs and outputs, and the same interface when run.

- LSHMA is exported as one step: a clip and the state in, logits and the state out; all streams of a call go through every block
  and what a stream that left early should not see is masked, since a graph has no shorter batches; products of weights are
  multiplied out before
- the same step runs by torch, `packed` for a CPU: `vau watch` takes it where no other runtime is asked
- an exported folder holds the network, what `vau export` compared, the preprocessing and what the model's features are:
  `vau watch --runtime` needs nothing else of the model
Sources: as in `lshma`, `memtsm` and `anomaly_scorer`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vau_lib.detectors import trained_detector
from vau_lib.detectors.anomaly_scorer import AnomalyScorer
from vau_lib.detectors.lshma import LSHMA
from vau_lib.detectors.lshma_state import LSHMAConfig
from vau_lib.detectors.memtsm import MemTSM
from vau_lib.features import runtimes, xfeat
from vau_lib.workspace import artifacts

NETWORK, EXAMPLE_STREAMS = "network.onnx", 3
STEP_OUTPUTS = ("logits", "depth", "memory_out", "filled_out")
GELU_SLOPE = 1.702  # QuickGELU(x) is SiLU(1.702 x) / 1.702
UNEXPORTED = ("frozen_memory", "head_over_scales", "key_clips")  # of LSHMA: what runs row by row, or in training only


class LSHMAStep(nn.Module):
    """One clip of B streams: clip (B, N, D), valid (B,), memory (B, L, M - 1, N, C), filled (B, L) -> logits (B, N), depth (B,),
    memory, filled.

    `valid` features of a clip are real, the rest of its places hold zeros: N but for a stream's last clip.
    """

    def __init__(self, model: LSHMA, linear: Callable[[Tensor, Tensor], nn.Module] | None = None):
        super().__init__()
        linear = linear or _linear
        self.settings, self.model, self.head = model.settings, deepcopy(model), _Head(model, linear)
        for block in self.model.blocks:
            up, _, down = block.mlp
            block.mlp = nn.Sequential(linear(GELU_SLOPE * up.weight, GELU_SLOPE * up.bias), nn.SiLU())
            block.mlp.append(linear(down.weight / GELU_SLOPE, down.bias))
            block.out_proj = linear(block.out_proj.weight, block.out_proj.bias)

    def forward(self, clip: Tensor, valid: Tensor, memory: Tensor, filled: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        model, config = self.model, self.settings
        x, going, depth = clip + model.position.weight, valid > 0, torch.zeros_like(valid)
        answers, kept, counts = torch.zeros_like(clip[..., 0]), [], []
        places = torch.arange(config.window, device=clip.device)
        for level, block in enumerate(model.blocks):
            normal, query = block.compress(x)
            past, count, on = memory[:, level], filled[:, level], going[:, None, None]
            alone, with_past = block._alone(normal), block._with_past(query, normal, past, count)
            stream = (normal if config.normalised_stream else x) + torch.where((count == 0)[:, None, None], alone, with_past)
            x = torch.where(on, stream + block.mlp(block.norm2(stream)), x)
            if config.memory > 1:
                kept.append(torch.where(on[..., None], torch.cat([past[:, 1:], query[:, None]], dim=1), past))
                counts.append(torch.where(going, (count + 1).clamp(max=config.memory - 1), torch.zeros_like(count)))
            depth = depth + going.to(depth.dtype)
            if level + 1 < config.layers and config.exit_threshold >= 1:
                continue
            logits = self.head(x)
            answers = torch.where(going[:, None], logits, answers)
            if level + 1 < config.layers:
                chances = logits.sigmoid()
                if not config.padding_votes:
                    chances = torch.where(places < valid[:, None], chances, torch.zeros_like(chances))
                going = going & (chances.amax(1) <= config.exit_threshold)
        if not kept:
            return answers, depth, memory, filled
        return answers, depth, torch.stack(kept, 1), torch.stack(counts, 1)


def _linear(weight: Tensor, bias: Tensor) -> nn.Module:
    """Return a linear layer of given weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = (nn.Parameter(value.detach().clone(), requires_grad=False) for value in (weight, bias))
    return layer


class _Head(nn.Module):
    """LSHMA's answer, w (y + W2 g(W1 y + b1) + b2) + b of y = L x + l, multiplied out: a fifth of an XD-Violence step's operations
    are products of weights."""

    def __init__(self, model: LSHMA, linear: Callable[[Tensor, Tensor], nn.Module]):
        super().__init__()
        (up, _, down), first, last = model.mlp, model.linear, model.classifier
        parts = (up.weight, up.bias, down.weight, down.bias, first.weight, first.bias, last.weight[0], last.bias)
        w1, b1, w2, b2, w0, b0, w, b = (value.detach().double() for value in parts)
        self.up = linear((GELU_SLOPE * w1 @ w0).float(), (GELU_SLOPE * (w1 @ b0 + b1)).float())
        for name, value in {"skip": w @ w0, "down": w @ w2 / GELU_SLOPE, "bias": w @ (b0 + b2) + b[0]}.items():
            self.register_buffer(name, value.float())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, N) of x (B, N, D)."""
        return x @ self.skip + nn.functional.silu(self.up(x)) @ self.down + self.bias


class _Packed(nn.Module):
    """A linear layer whose weight oneDNN has laid out for this processor: half the time of a few rows, a seventh less for many."""

    def __init__(self, weight: Tensor, bias: Tensor, kind: torch.dtype = torch.float32):
        super().__init__()
        self.kind, self.bias = kind, bias.detach().to(kind)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(kind).contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.kind), self.weight, self.bias, "none", [], "").to(x.dtype)


class MemTSMScores(nn.Module):
    """x (B, D, steps) -> the videos' logits (B,) and, of the intended model, their steps' (B, steps)."""

    def __init__(self, model: MemTSM):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        output = self.model(x)
        return (output.logit,) if output.segment_logit is None else (output.logit, output.segment_logit)


class _WholeAttention(nn.Module):
    """The scorer's attention with weights by distance in time as one (T, T) matrix: the same numbers, of any length."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.heads, self.norm, self.to_qkv, self.out = attention.heads, attention.norm, attention.to_qkv, attention.out

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(self.norm(x)).chunk(4, dim=-1)
        query, key, value, nearby = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        place = torch.arange(x.shape[1], device=x.device)
        decay = (-(place[:, None] - place).abs().to(x.dtype) / math.e).exp()
        alike = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value
        heads = torch.cat([alike, decay @ (nearby / decay.sum(-1, keepdim=True))], dim=-1)
        return self.out(heads.transpose(1, 2).flatten(2))


class ScorerScores(nn.Module):
    """features (B, T, D) -> scores (B, T), without the check of the values, which a graph cannot make."""

    def __init__(self, model: AnomalyScorer):
        super().__init__()
        for name in ("embed", "abnormal", "normal", "mean", "classifier"):
            setattr(self, name, getattr(model, name))
        self.attention = nn.ModuleList(map(_WholeAttention, model.attention))
        # "in" is no name that exported code may hold
        layers = list(model.feed_forward)
        self.norms, self.ups, self.downs = (nn.ModuleList(layer[name] for layer in layers) for name in ("norm", "in", "out"))

    def forward(self, features: Tensor) -> Tensor:
        x = self.embed(features.mT).relu().mT
        for attention, norm, up, down in zip(self.attention, self.norms, self.ups, self.downs, strict=True):
            x = x + attention(x)
            x = x + down(nn.functional.gelu(up(norm(x))))
        answers = self.mean(self.abnormal(x)[1]) + self.mean(self.normal(x)[1])
        return self.classifier(torch.cat([x, answers], dim=-1))[..., 0].sigmoid()


@dataclass(frozen=True)
class Graph:
    """What is exported of a detector: the module, its inputs, its outputs' names, and the axes of any size."""

    module: nn.Module
    example: dict[str, Tensor]
    outputs: tuple[str, ...]
    free: dict[str, tuple[int, ...]]
    width: int  # of a feature


def graph(trained: trained_detector.TrainedDetector) -> Graph:
    """Return the graph of a detector; ValueError for what has none."""
    model, generator = trained.model.cpu().eval(), torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if isinstance(model, MemTSM):
        x = draw(EXAMPLE_STREAMS, model.settings.in_channels, trained.preprocessing.steps)
        names = ("logit",) if model.settings.as_released else ("logit", "segment_logit")
        return Graph(MemTSMScores(model), {"x": x}, names, {"x": (0,)}, model.settings.in_channels)
    if isinstance(model, AnomalyScorer):
        features = draw(EXAMPLE_STREAMS, 70, model.settings.width)
        return Graph(ScorerScores(model), {"features": features}, ("scores",), {"features": (0, 1)}, model.settings.width)
    config = model.settings
    if odd := [name for name in UNEXPORTED if getattr(config, name)]:
        raise ValueError(f"a stream with {odd[0]} is not exported: its decisions go row by row")
    state = empty_state(config, EXAMPLE_STREAMS)
    full = torch.tensor([0, config.memory - 1, min(1, config.memory - 1)])  # streams of every kind: new, old, in between
    example = {
        "clip": draw(EXAMPLE_STREAMS, config.window, config.width), "valid": torch.tensor([config.window, config.window, 1]),
        "memory": draw(*state["memory"].shape), "filled": full[:, None].expand(-1, config.layers).contiguous(),
    }  # fmt: skip
    return Graph(LSHMAStep(model).eval(), example, STEP_OUTPUTS, dict.fromkeys(example, (0,)), config.width)


def empty_state(config: LSHMAConfig, streams: int) -> dict[str, np.ndarray]:
    """Return memory (B, L, M - 1, N, C) and filled (B, L) of streams that have not begun."""
    shape = streams, config.layers, config.memory - 1, config.window, -(-config.width // 2)
    return {"memory": np.zeros(shape, np.float32), "filled": np.zeros((streams, config.layers), np.int64)}


def export(folder: str | Path, out: str | Path, *, int8: bool = False) -> dict[str, float]:
    """Write a trained detector's folder as an exported one; return {runtime: largest difference from torch}.

    `out` gets network.onnx, with OpenVINO installed network.xml and network.bin, config.json and made_by.json. With `int8` the
    network's weights are 8-bit numbers (ONNX Runtime's dynamic quantisation): a quarter of its bytes; the difference returned is
    that of a drawn video's scores, which nothing limits.
    """
    folder, out = Path(folder), Path(out)
    trained = trained_detector.load(folder, device="cpu")
    made = graph(trained)
    for name in ("made_by.json", "config.json", NETWORK, "network.xml", "network.bin"):  # of another detector
        (out / name).unlink(missing_ok=True)
    found = runtimes.write_onnx(made.module, made.example, made.outputs, out / NETWORK, free=made.free)
    artifacts.write_json(out / "config.json", artifacts.read_json(folder / "config.json"))
    _compare(trained, out, found)
    if int8:
        runtimes.quantise(out / NETWORK)
        found = {"onnx": 0.0}
        _compare(trained, out, found, limit=math.inf)
    if "openvino" in found:
        runtimes.write_openvino(out / NETWORK, out / "network.xml")
    facts = {"features": trained_detector.features_of(folder), "model_sha256": artifacts.sha256(folder / "model.safetensors")}
    artifacts.write_made_by(out, **facts, largest_difference=found, int8=int8)
    return found


def _compare(trained: trained_detector.TrainedDetector, out: Path, found: dict[str, float], limit: float = runtimes.PARITY) -> None:
    """Compare the scores of a drawn video with the detector's own; ValueError, and no network, where they differ."""
    features = np.random.default_rng(0).normal(size=(67, graph(trained).width)).astype(np.float32)
    expected = trained.score(features)
    for runtime in found:
        worst = float(np.abs(load(out, runtime).score(features) - expected).max())
        found[runtime] = max(found[runtime], worst)
        if not worst <= limit:
            (out / NETWORK).unlink()
            raise ValueError(f"{out} is not written: by {runtime} its scores are {worst:.1e} from torch's")


def command_lines(model: Path, out: Path, *, weights: str | None = None, side: int = 224, int8: bool = False) -> Iterator[str]:
    """Do what `vau export` does and yield what it prints; `model` is a trained detector's folder, or xfeat."""
    if str(model) == "xfeat" and not model.is_dir():
        if int8:
            raise ValueError("int8 is for detectors: XFeat's convolutions take bfloat16")
        encoder = xfeat.XFeatEncoder(weights, side=side, device="cpu")
        path = out / "xfeat.onnx"
        found = xfeat.export(encoder, path)
        if "openvino" in found:
            runtimes.write_openvino(path, out / "xfeat.xml")
        artifacts.write_made_by(out, **encoder.made_by(), largest_difference=found)
    else:
        found = export(model, out, int8=int8)
    yield f"{out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}"
    yield "largest difference from torch: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items())


def packed(trained: trained_detector.TrainedDetector, *, bfloat16: bool = False) -> trained_detector.TrainedDetector:
    """Return a stream made ready for a CPU by torch alone: the same scores within 1e-4, about half the time a clip.

    Later changes of its weights do not reach it. With `bfloat16` its large products are computed so: scores within about .01. What
    is no LSHMA, stands on a GPU or cannot be exported is returned as it is.
    """
    model = trained.model
    if not isinstance(model, LSHMA) or model.position.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return trained
    if any(getattr(model.settings, name) for name in UNEXPORTED):
        return trained
    kind = torch.bfloat16 if bfloat16 else torch.float32
    step = LSHMAStep(model, partial(_Packed, kind=kind)).eval()

    @torch.inference_mode()
    def session(**given: np.ndarray) -> dict[str, np.ndarray]:
        found = step(*(torch.from_numpy(given[name]) for name in ("clip", "valid", "memory", "filled")))
        return dict(zip(STEP_OUTPUTS, (value.numpy() for value in found), strict=True))

    return replace(trained, model=RuntimeLSHMA(session, model))


def load(folder: str | Path, runtime: str = "onnx", kind: type[nn.Module] | None = None) -> trained_detector.TrainedDetector:
    """Return an exported detector whose model is run by a runtime; StoreError for anything else, and for another than `kind`."""
    folder = Path(folder)
    trained = trained_detector.untrained(folder)
    if kind is not None and type(trained.model) is not kind:
        raise artifacts.StoreError(f"{folder} holds {type(trained.model).__name__}, not {kind.__name__}")
    session = runtimes.Session(folder / NETWORK, runtime)
    made = {LSHMA: RuntimeLSHMA, MemTSM: RuntimeMemTSM, AnomalyScorer: RuntimeScorer}[type(trained.model)]
    return replace(trained, model=made(session, trained.model))


class _Runtime:
    """A detector whose network is a session; what surrounds it is the torch model's own code."""

    def __init__(self, session: Callable[..., dict[str, np.ndarray]], model: nn.Module):
        self.session, self.shell, self.settings = session, model, model.settings


class RuntimeMemTSM(_Runtime):
    """MemTSM-Net by a runtime: `score_video` as the torch model's."""

    def score_video(self, features: np.ndarray, preprocessing, **options: object) -> tuple[float, np.ndarray]:
        """Return the video's score and every snippet's, (T,), in [0, 1], of features (T, D)."""
        from vau_lib.detectors.memtsm import row_values

        whole = preprocessing(features, preprocessing.steps)[None].numpy()
        video = float(torch.from_numpy(self.session(x=whole)["logit"]).sigmoid())
        if self.settings.as_released:
            return video, np.full(len(features), video, np.float32)
        read = lambda x: torch.from_numpy(self.session(x=x.numpy())["segment_logit"]).sigmoid()  # noqa: E731
        return video, row_values(read, features, preprocessing, **options)


class RuntimeScorer(_Runtime):
    """Holmes-VAU's anomaly scorer by a runtime: `score_video` as the torch model's."""

    def score_video(self, features: np.ndarray, preprocessing) -> tuple[float, np.ndarray]:
        """Return the video's score, the mean of its highest snippets, and every snippet's, (T,)."""
        from vau_lib.detectors.training import top_mean

        scores = self.session(features=preprocessing(features).mT[None].contiguous().numpy())["scores"][0]
        return top_mean(torch.from_numpy(scores)), scores


@dataclass(frozen=True)
class RuntimeState:
    """What B streams remember: the arrays of `empty_state`, features that wait for a whole clip, the last clip's depth."""

    arrays: Mapping[str, np.ndarray]
    waiting: Tensor  # (B, n, D), n < N
    depth: Tensor  # (B,)


class RuntimeLSHMA(_Runtime):
    """LSHMA by a runtime: `push`, `flush` and `score_video` as the torch model's; its state is a `RuntimeState`."""

    def push(self, features: Tensor, state: RuntimeState | None = None) -> tuple[Tensor, RuntimeState]:
        """Take any number of features (B, n, D); return logits (B, m) of the clips they complete, and the state."""
        state = state or self._begin(len(features))
        x, n = torch.cat([state.waiting, features.float()], dim=1), self.settings.window
        whole, logits = x.shape[1] // n * n, [x.new_zeros(len(x), 0)]
        for clip in x[:, :whole].split(n, dim=1) if whole else ():
            scored, state = self._step(clip, n, state)
            logits.append(scored)
        return torch.cat(logits, dim=1), replace(state, waiting=x[:, whole:])

    def flush(self, state: RuntimeState) -> Tensor:
        """Return logits (B, n) of the n features still waiting when a stream ends."""
        count = state.waiting.shape[1]
        if not count:
            return state.waiting.new_zeros(len(state.waiting), 0)
        clip = torch.nn.functional.pad(state.waiting, (0, 0, 0, self.settings.window - count))
        return self._step(clip, count, state)[0][:, :count]

    def score_video(self, features: np.ndarray, preprocessing) -> tuple[float, np.ndarray]:
        """Return the video's score, the mean of its highest snippets, and every snippet's, (T,)."""
        from vau_lib.detectors.lshma import PART_ROWS, released_smoothing
        from vau_lib.detectors.training import top_mean

        parts, state = [], self._begin(1)
        for part in preprocessing.parts(features, PART_ROWS):
            logits, state = self.push(part[None], state)
            parts.append(logits)
        logits = torch.cat([*parts, self.flush(state)], dim=1)[0]
        scores = (released_smoothing(logits, self.settings) if self.settings.looks_ahead else logits).sigmoid()
        return top_mean(scores, every=self.settings.rows_per_choice), scores.numpy()

    def _begin(self, streams: int) -> RuntimeState:
        waiting = torch.zeros(streams, 0, self.settings.width)
        return RuntimeState(empty_state(self.settings, streams), waiting, torch.zeros(streams, dtype=torch.long))

    def _step(self, clip: Tensor, valid: int, state: RuntimeState) -> tuple[Tensor, RuntimeState]:
        real = np.full(len(clip), valid, np.int64)
        found = self.session(clip=np.ascontiguousarray(clip.numpy()), valid=real, **state.arrays)
        arrays = {"memory": found["memory_out"], "filled": found["filled_out"]}
        return torch.from_numpy(found["logits"]), replace(state, arrays=arrays, depth=torch.from_numpy(found["depth"]))

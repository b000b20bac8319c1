"""Every detector and encoder follows its weights to another device: a stand-in that refuses what CUDA refuses, and a GPU if any.

Trained here as `Trainer` does it: the network and each batch moved, everything else left to the code under test.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from second_device import second_device, there
from transformers import CLIPVisionConfig, CLIPVisionModel

from vau_lib import watch
from vau_lib.compression import token_selection
from vau_lib.data import records
from vau_lib.detectors import key_clips, preprocessing, stream_profiling, trained_detector, training
from vau_lib.detectors.anomaly_scorer import AnomalyScorer, ScorerConfig
from vau_lib.detectors.lshma import LSHMA
from vau_lib.detectors.lshma_state import LSHMAConfig, StreamState
from vau_lib.detectors.memtsm import MemTSM, MemTSMConfig
from vau_lib.features import devices, frame_features, image_encoders, xfeat

WIDTH = 16
STREAMS = {  # name: sizes of LSHMA
    "lshma xd": LSHMAConfig.xd(width=WIDTH),
    "lshma ucf": LSHMAConfig.ucf(width=WIDTH, exit_threshold=0.5),
    "lshma keys": LSHMAConfig.xd(width=WIDTH, key_clips=True),
    "lshma xd released": LSHMAConfig.xd(width=WIDTH, released=True),
    "lshma ucf released": LSHMAConfig.ucf(width=WIDTH, released=True),
}
CONFIGS = STREAMS | {
    "memtsm": MemTSMConfig(in_channels=WIDTH, width=16, slots=8),
    "memtsm released": MemTSMConfig(in_channels=WIDTH, width=16, slots=8, temperature=1.0, as_released=True),
    "anomaly scorer": ScorerConfig(width=WIDTH, hidden=16, heads=2, head_width=8),
}
MODELS = {MemTSMConfig: MemTSM, LSHMAConfig: LSHMA, ScorerConfig: AnomalyScorer}


@pytest.fixture()
def device():
    with second_device() as device:
        yield device


def videos() -> tuple[dict, dict]:
    rng = np.random.default_rng(0)
    features = {f"v{n}": rng.normal(size=(40 + 3 * n, WIDTH)).astype(np.float32) for n in range(6)}
    return features, {name: n % 2 for n, name in enumerate(features)}


def prepared(name: str) -> tuple[torch.nn.Module, preprocessing.Sequences]:
    config, (features, labels) = CONFIGS[name], videos()
    steps = None if name in STREAMS else 32
    if name == "anomaly scorer":
        labels = {k: np.arange(len(features[k])) < 10 * label for k, label in labels.items()}
    fitted = preprocessing.Preprocessing.fit(features, steps=steps, temporal_difference=True)
    torch.manual_seed(0)
    return MODELS[type(config)](config), preprocessing.Sequences(features, labels, fitted)


def train(model, videos, device, tmp_path, steps: int = 3) -> tuple[list[float], dict]:
    """Losses of some updates with augmentation, and the gradients of the last."""
    network, objective = model.for_training(videos.labels)
    plan = training.TrainingPlan(batch_size=6, learning_rate=1e-2)
    engine = training._Engine(
        model=network, objective=objective, plan=plan, videos=videos, args=training._arguments(tmp_path, plan), eval_dataset=[1]
    )
    network.to(device).train()
    items = [videos[k] for k in range(len(videos))]
    collate = torch.utils.data.default_collate if videos.preprocessing.steps else preprocessing.pad_collate
    batch = {key: value.to(device) for key, value in collate(items).items()}
    optimiser, losses = torch.optim.AdamW(network.parameters(), lr=1e-2), []
    for _ in range(steps):
        torch.manual_seed(3)
        value = engine.compute_loss(network, batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_detector_trains_on_its_device_as_on_the_cpu(name, device, tmp_path):
    model, sequences = prepared(name)
    other = deepcopy(model)
    expected, _ = train(other, sequences, "cpu", tmp_path)
    losses, gradients = train(model, sequences, device, tmp_path)
    assert there(model) and all(g.device == device for g in gradients.values())
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-1] != losses[0]


@pytest.mark.parametrize(
    "cpu, pays",
    [
        ({"cpu_name": "Intel Xeon", "avx512_fp16": True, "amx_bf16": True}, True),  # Sapphire Rapids and later
        ({"cpu_name": "Intel Xeon", "avx512_fp16": True, "amx_bf16": False}, False),  # the same behind a hypervisor without AMX
        ({"cpu_name": "Intel Xeon", "avx512_fp16": False, "amx_bf16": False}, True),  # Cooper Lake
        ({"cpu_name": "AMD EPYC", "avx512_fp16": False, "amx_bf16": False}, True),  # Zen 4
    ],
)
def test_bfloat16_is_taken_where_the_processor_multiplies_it_faster(monkeypatch, cpu, pays):
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    assert devices.bfloat16_pays(torch.device("cpu")) == pays
    assert xfeat.XFeatEncoder("random", side=32, device="cpu").bfloat16 == pays
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    assert not devices.bfloat16_pays(torch.device("cpu"))


class _Draws(torch.overrides.TorchFunctionMode):
    """Counts what is drawn with a generator, and refuses it without the generator's device, as torch does on a GPU."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if (generator := (kwargs or {}).get("generator")) is not None and function in (torch.rand, torch.randn, torch.randint):
            assert kwargs.get("device") == generator.device, f"{function.__name__} draws where its generator may not be"
            self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("augment", [training.augment, training.released_augment])
def test_noise_is_drawn_on_the_generators_device(augment):
    with _Draws() as draws:
        augment(torch.ones(8, WIDTH, 32), generator=torch.Generator().manual_seed(0))
    assert draws.count > 8


@pytest.mark.parametrize("name", CONFIGS)
def test_a_detector_scores_features_of_the_cpu_on_its_device(name, device):
    model, sequences = prepared(name)
    fitted, features = sequences.preprocessing, videos()[0]["v3"]
    detector = trained_detector.TrainedDetector(model.eval(), fitted, None)
    video, scores = detector.score_video(features)
    model.to(device)
    moved, values = detector.score_video(features)
    assert there(model) and moved == pytest.approx(video, abs=1e-6) and isinstance(values, np.ndarray)
    np.testing.assert_allclose(values, scores, atol=1e-6)
    np.testing.assert_allclose(detector.score(features), scores, atol=1e-6)
    if name == "memtsm":
        assert model.video_error(features, fitted).shape == (len(features),)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_goes_on_from_a_saved_state_on_another_device(name, device, tmp_path):
    model = prepared(name)[0].eval()
    features = torch.from_numpy(videos()[0]["v5"])
    with torch.inference_mode():
        expected, left = model.push(features[None])
        expected = torch.cat([expected, model.flush(left)], dim=1)
        first, state = model.push(features[None, :21])
        state.save(tmp_path / "state.safetensors")
        model.to(device)
        second, state = model.push(features[None, 21:40], StreamState.load(tmp_path / "state.safetensors"))
        third, state = model.push(features[None, 40:].to(device), state)
        last = model.flush(state)
    parts = [first, *(part.cpu() for part in (second, third, last))]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=0)
    assert all(value.device == device for value in state._tensors().values())
    assert key_clips.key_clips(features.to(device), window=8, released="released" in name).shape == (-(-len(features) // 8),)


def test_a_stream_is_profiled_and_watched_on_its_device(device):
    model, sequences = prepared("lshma xd")
    detector = trained_detector.TrainedDetector(model.eval().to(device), sequences.preprocessing, None)
    features = videos()[0]["v5"]
    stream = records.LongStream("a", features, np.zeros(len(features), np.uint8), ())
    assert stream_profiling.scores(detector, [stream], memory=3)["a"].shape == (len(features),)
    assert len(stream_profiling.exit_depths(detector, [stream], [0.5, 1.0])) == 2
    assert stream_profiling.latency(model.step, (2, 8, WIDTH), calls=12)["streams"] == 2
    frames = ((n / 25, np.full((8, 8, 3), n, np.uint8)) for n in range(64))
    clips = watch.watch(frames, detector, lambda frames: np.full(WIDTH, frames.mean(), np.float32), snippet_frames=4)
    assert sum(len(clip.scores) for clip in clips) == 16


def encoders() -> dict[str, Callable]:
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}

    def tower():
        torch.manual_seed(0)
        return frame_features.TransformerEncoder(CLIPVisionModel(CLIPVisionConfig(image_size=24, **tiny)), side=24)

    return {
        "xfeat": lambda: xfeat.XFeatEncoder("random", side=64, bfloat16=False),
        "squeezenet": lambda: image_encoders.SqueezeNetEncoder("random", side=64),
        "clip": lambda: image_encoders.CLIPEncoder(weights="random", config=CLIPVisionConfig(image_size=32, **tiny), crops=(0, 9)),
        "transformer": tower,
    }


@pytest.mark.parametrize("name", encoders())
def test_an_encoder_follows_its_network(name, device):
    encoder = encoders()[name]()
    frames = np.random.default_rng(0).integers(0, 255, (5, 64, 85, 3), dtype=np.uint8)
    expected = encoder.encode_frames(frames)[0]
    encoder.net.to(device)
    assert there(encoder.net)
    np.testing.assert_allclose(encoder.encode_frames(frames)[0].cpu().numpy(), expected.numpy(), atol=1e-5)


def test_a_device_of_its_own_gets_more_frames_a_pass(device, monkeypatch):
    encoder, sizes = xfeat.XFeatEncoder("random", side=32, bfloat16=False), []
    frames = np.random.default_rng(0).integers(0, 255, (150, 32, 32, 3), dtype=np.uint8)
    expected, run = encoder(frames), encoder._run
    encoder.net.to(device)
    encoder._run = lambda pixels: sizes.append(len(pixels)) or run(pixels)
    np.testing.assert_allclose(encoder(frames), expected, atol=1e-5)
    assert sizes == [128, 22]


def test_local_change_keeps_its_past_where_the_network_is(device):
    encoder = xfeat.XFeatEncoder("random", side=64, bfloat16=False, pooling="local_change")
    frames = np.random.default_rng(0).integers(0, 255, (9, 64, 85, 3), dtype=np.uint8)
    expected = encoder(frames, snippet_frames=3)
    encoder.net.to(device)
    past, rows = None, []
    for first in (0, 3, 6):
        row, past = encoder.next_snippet(frames[first : first + 3], past)
        rows.append(row)
    assert past.device == device
    np.testing.assert_allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize(
    "rule", ["keep_all", "random_tokens", "uniform_frames", "down_sampling", "evs", "dtd", "vidcom2", "keep_mask"]
)
def test_a_mask_of_tokens_lies_where_the_tokens_lie(rule, device):
    tokens, choose = torch.randn(4, 3, 3, 5, generator=torch.Generator().manual_seed(0)), getattr(token_selection, rule)
    mask = choose(tokens.to(device), keep_ratio=0.5)
    assert mask.device == device and torch.equal(mask.cpu(), choose(tokens, keep_ratio=0.5))


def test_the_second_device_refuses_what_cuda_refuses(device):
    x = torch.ones(3).to(device)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=device, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()
    assert float((x * 2).sum()) == 6 and (x + torch.tensor(1.0)).tolist() == [2, 2, 2]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_a_detector_trains_and_scores_on_a_gpu(name, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    features, labels = videos()
    if name == "anomaly scorer":
        labels = {k: np.arange(len(features[k])) < 10 * label for k, label in labels.items()}
    plan = training.TrainingPlan(epochs=2, batch_size=3, learning_rate=1e-3)
    steps = None if name in STREAMS else 32
    trained = trained_detector.train(features, labels, ["v0", "v1"], config=CONFIGS[name], plan=plan, steps=steps)
    assert next(trained.model.parameters()).is_cuda
    trained_detector.save(tmp_path, trained)
    again = trained_detector.load(tmp_path)
    for key in features:
        np.testing.assert_allclose(again.score(features[key]), trained.score(features[key]), atol=1e-3)


def test_the_gpu_benchmark_runs_dry(capsys, monkeypatch):
    """benchmarks/gpu.py at tiny sizes: every table has its rows, and the detectors' scores are the CPU's."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import gpu

    config = ScorerConfig(width=WIDTH, hidden=32, heads=2, head_width=8, slots=16)
    monkeypatch.setattr(gpu, "MODELS", {"anomaly scorer": (lambda: AnomalyScorer(config), WIDTH, 4, 40, 16)})
    gpu.main("cpu")
    said = capsys.readouterr().out
    assert "a dry run of small sizes" in said and "stock kornia, float32" in said and "keep ratio" in said
    (row,) = [line.split() for line in said.splitlines() if line.strip().startswith("anomaly scorer")]
    assert float(row[-1]) < 1e-4

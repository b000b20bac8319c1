"""Exported networks give torch's numbers, keep a stream's state, and are refused where they would not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vau_lib import cli
from vau_lib.detectors import anomaly_scorer, exports, lshma, lshma_state, memtsm, preprocessing, trained_detector
from vau_lib.features import runtimes, xfeat
from vau_lib.workspace import artifacts

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason='needs the extra: pip install -e ".[export]"')
WIDTH = 16
CONFIGS = {
    "memtsm": memtsm.MemTSMConfig(in_channels=WIDTH, width=16, slots=8),
    "memtsm as released": replace(memtsm.MemTSMConfig.released(), in_channels=WIDTH, width=16, slots=8),
    "lshma xd": lshma_state.LSHMAConfig.xd(width=WIDTH, exit_threshold=1.0),
    "lshma ucf, leaving early": lshma_state.LSHMAConfig.ucf(width=WIDTH, exit_threshold=0.95),
    "anomaly scorer": anomaly_scorer.ScorerConfig(width=WIDTH, hidden=32, heads=2, head_width=8, slots=16),
}


def detector(config) -> trained_detector.TrainedDetector:
    """A detector with random weights that are large enough for scores on both sides of .5."""
    torch.manual_seed(1)
    model = next(made for made, sizes in trained_detector.DETECTORS.values() if type(config) is sizes)(config).eval()
    with torch.no_grad():
        for name, part in model.named_parameters():
            if name.startswith("classifier") and part.ndim == 2:
                part.mul_(8)
    stream = isinstance(config, lshma_state.LSHMAConfig)
    rows = {"a": np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)}
    steps = 32 if isinstance(config, memtsm.MemTSMConfig) else None
    fitted = preprocessing.Preprocessing.fit(rows, steps=steps, temporal_difference=not stream)
    return trained_detector.TrainedDetector(model, fitted, None)


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request, tmp_path_factory):
    """(torch's detector, the folder of the exported one)."""
    trained, folder = detector(CONFIGS[request.param]), tmp_path_factory.mktemp("exported") / request.param
    trained_detector.save(folder / "torch", trained, features={"encoder": "xfeat"})
    found = exports.export(folder / "torch", folder / "out")
    assert found["onnx"] <= 1e-4
    return trained, folder / "out"


def installed() -> list[str]:
    names = ["onnx"]
    try:
        import openvino  # noqa: F401

        names.append("openvino")
    except ImportError:
        pass
    return names


@pytest.mark.parametrize("runtime", installed())
def test_an_exported_detector_scores_as_torch_does(exported, runtime):
    trained, folder = exported
    features = np.random.default_rng(1).normal(size=(83, WIDTH)).astype(np.float32)  # no whole number of clips
    video, scores = trained.score_video(features)
    found, other = exports.load(folder, runtime).score_video(features)
    assert found == pytest.approx(video, abs=1e-4) and (np.ptp(scores) > 1e-3 or folder.parent.name == "memtsm as released")
    np.testing.assert_allclose(other, scores, atol=1e-4)


@pytest.mark.parametrize("name", ["lshma xd", "lshma ucf, leaving early"])
def test_streams_of_one_call_go_on_each_from_its_own_state(name, tmp_path):
    trained = detector(CONFIGS[name])
    trained_detector.save(tmp_path / "torch", trained)
    exports.export(tmp_path / "torch", tmp_path / "out")
    ours, model = exports.load(tmp_path / "out").model, trained.model
    streams = torch.randn(5, 61, WIDTH, generator=torch.Generator().manual_seed(2))
    state, other, depths = None, None, set()
    with torch.inference_mode():
        for part in streams.split([3, 20, 1, 37], dim=1):
            expected, state = model.push(part, state)
            found, other = ours.push(part, other)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
            if expected.shape[1]:
                assert other.depth.tolist() == state.depth.tolist()
                depths |= set(state.depth.tolist())
        torch.testing.assert_close(ours.flush(other), model.flush(state), atol=1e-4, rtol=0)
    assert len(depths) > 1 if "early" in name else depths == {2}


def test_what_a_graph_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="a stream with frozen_memory is not exported"):
        exports.graph(detector(lshma_state.LSHMAConfig.xd(width=WIDTH, released=True)))


def test_a_network_with_other_numbers_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "PARITY", -1.0)
    with pytest.raises(ValueError, match="x.onnx is not written: its numbers are"):
        runtimes.write_onnx(torch.nn.Linear(2, 2).eval(), {"x": torch.ones(2, 2)}, ["y"], tmp_path / "x.onnx", free={"x": (0,)})
    assert not list(tmp_path.iterdir())


def test_an_export_that_was_stopped_does_not_stand_under_the_name_of_the_one_before(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    trained_detector.save(tmp_path / "new", detector(lshma_state.LSHMAConfig.xd(width=WIDTH)), facts={"features": {}})
    for name in ("network.onnx", "network.xml", "made_by.json"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("{}")
    monkeypatch.setattr(runtimes, "write_onnx", stopped)
    with pytest.raises(KeyboardInterrupt):
        exports.export(tmp_path / "new", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_runtime_that_is_none_and_a_file_that_is_none_are_named(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match="runtime must be torch, onnx or openvino, got 'tensorrt'"):
        runtimes.Session(tmp_path / "x.onnx", "tensorrt")
    for runtime in installed():
        with pytest.raises(artifacts.StoreError, match="x.onnx does not load"):
            runtimes.Session(tmp_path / "x.onnx", runtime)
    with pytest.raises(artifacts.StoreError, match="no exported network at"):
        runtimes.Session(tmp_path / "y.onnx")


@pytest.mark.parametrize("runtime", installed())
@pytest.mark.parametrize("pooling", ["pooled", "local_change"])
def test_xfeat_by_a_runtime_gives_torchs_features(runtime, pooling, tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(tmp_path))
    options = {"side": 64, "bfloat16": False, "pooling": pooling, "device": "cpu"}
    frames = np.random.default_rng(0).integers(0, 255, (19, 64, 85, 3), dtype=np.uint8)
    expected = xfeat.XFeatEncoder("random", **options)
    ours = xfeat.XFeatEncoder("random", **options, runtime=runtime)
    np.testing.assert_allclose(ours(frames), expected(frames), atol=1e-4)
    assert ours.made_by() == expected.made_by()


def test_the_command_says_what_it_wrote_and_how_far_it_is_off(tmp_path):
    trained_detector.save(tmp_path / "torch", detector(CONFIGS["memtsm"]))
    said = CliRunner().invoke(cli.app, ["export", str(tmp_path / "torch"), "--out", str(tmp_path / "out")])
    assert said.exit_code == 0 and "network.onnx" in said.output and "largest difference from torch: onnx" in said.output
    said = CliRunner().invoke(cli.app, ["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")])
    assert said.exit_code == 1 and said.output.startswith("vau: ")


def test_eight_bit_weights_take_a_quarter_of_the_bytes_and_say_how_far_they_are_off(tmp_path):
    config = lshma_state.LSHMAConfig.xd(width=128, exit_threshold=1.0)
    torch.manual_seed(0)
    rows = {"a": np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)}
    fitted = preprocessing.Preprocessing.fit(rows, steps=None, temporal_difference=False)
    trained = trained_detector.TrainedDetector(lshma.LSHMA(config).eval(), fitted, None)
    trained_detector.save(tmp_path / "torch", trained)
    words = ["export", str(tmp_path / "torch"), "--out"]
    assert CliRunner().invoke(cli.app, [*words, str(tmp_path / "whole")]).exit_code == 0
    said = CliRunner().invoke(cli.app, [*words, str(tmp_path / "few"), "--int8"])
    sizes = [(tmp_path / name / exports.NETWORK).stat().st_size for name in ("whole", "few")]
    assert said.exit_code == 0 and sizes[1] < 0.4 * sizes[0] and not (tmp_path / "few" / "network.xml").exists()
    apart = np.abs(exports.load(tmp_path / "few").score(rows["a"]) - trained.score(rows["a"])).max()
    assert 1e-4 < apart < 0.05 and artifacts.read_json(tmp_path / "few" / "made_by.json")["int8"] is True
    said = CliRunner().invoke(cli.app, ["export", "xfeat", "--out", str(tmp_path / "x"), "--int8"])
    assert said.exit_code == 1 and "int8 is for detectors" in said.output


def test_openvino_leaves_the_processor_open(tmp_path, monkeypatch):
    """By itself it ties a process's thread to processor 0, and two workers were as fast as one."""
    openvino = pytest.importorskip("openvino", reason='needs the extra: pip install -e ".[export]"')
    made, compiler = [], openvino.Core.compile_model
    monkeypatch.setattr(openvino.Core, "compile_model", lambda *args, **more: made.append(compiler(*args, **more)) or made[-1])
    runtimes.write_onnx(torch.nn.Linear(2, 2).eval(), {"x": torch.ones(2, 2)}, ["y"], tmp_path / "x.onnx", free={"x": (0,)})
    assert made and not any(model.get_property("ENABLE_CPU_PINNING") for model in made)

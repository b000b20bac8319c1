"""A watched video gets the scores of the whole video at once, and a source that gives nothing is one line."""

import dataclasses
import socket

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import moving_square
from PIL import Image
from typer.testing import CliRunner

from vau_lib import cli, watch
from vau_lib.data import video
from vau_lib.detectors import lshma, lshma_state, preprocessing, trained_detector
from vau_lib.features import devices, extraction, xfeat
from vau_lib.workspace import artifacts

ROW_FRAMES = 4


@pytest.fixture(scope="module", params=[True, False], ids=["on change", "raw rows"])
def model(request, tmp_path_factory):
    """Folder of an untrained stream over XFeat rows with random weights, small pictures."""
    folder = tmp_path_factory.mktemp("model")
    recipe = extraction.Recipe("xfeat", ROW_FRAMES, (("weights", "random"), ("side", 64)))
    rng = np.random.default_rng(0)
    fitted = preprocessing.Preprocessing.fit({"a": rng.random((40, 128))}, steps=None, temporal_difference=request.param)
    made = lshma.LSHMA(lshma_state.LSHMAConfig.xd(width=128, window=2)).eval()
    trained_detector.save(folder, trained_detector.TrainedDetector(made, fitted, None), facts={"features": recipe.made_by()})
    return folder


def whole(model, path):
    """Scores of all rows of a video, made at once."""
    rows = np.stack(list(xfeat.XFeatEncoder("random", side=64).encode(path, ROW_FRAMES)))
    return trained_detector.load(model).score(rows)


def test_watched_scores_are_those_of_the_whole_video(model, clip):
    encode, size = watch.live_encoder(model)
    trained = trained_detector.load(model)
    seen = list(watch.watch(video.live(clip), trained, encode, snippet_frames=size))
    np.testing.assert_allclose(np.concatenate([s.scores for s in seen]), whole(model, clip), atol=2e-3)  # gray by RGB
    ends = np.concatenate([s.ends_s for s in seen])
    np.testing.assert_allclose(ends[:3], (np.arange(1, 4) * ROW_FRAMES - 1) / 25, atol=1e-6)
    assert len(seen) == -(-len(ends) // 2) and all(s.compute_ms > 0 for s in seen)


def test_a_watched_stream_keeps_no_graph(model, clip, monkeypatch):
    """The state of every clip would hold all clips before it: 160 KB a clip and more, until memory is full."""
    states, push = [], lshma.LSHMA.push

    def recorded(self, *arguments):
        logits, state = push(self, *arguments)
        states.append(state)
        return logits, state

    monkeypatch.setattr(lshma.LSHMA, "push", recorded)
    encode, size = watch.live_encoder(model)
    list(watch.watch(video.live(clip), trained_detector.load(model), encode, snippet_frames=size))
    assert len(states) > 10 and not any(value.requires_grad for state in states for value in state._tensors().values())


def test_the_command_prints_a_line_per_clip_and_leaves_picture_and_table(model, clip, tmp_path, monkeypatch):
    draw, titles = watch.timeline.scores, []
    monkeypatch.setattr(watch.timeline, "scores", lambda *a, title, **k: titles.append(title) or draw(*a, title=title, **k))
    words = ["watch", str(clip), "--model", str(model), "--plot", str(tmp_path / "w.png"), "--csv", str(tmp_path / "w.csv")]
    said = CliRunner().invoke(cli.app, [*words, "--threshold", "0"])
    assert said.exit_code == 0, said.stderr
    lines = said.stdout.splitlines()
    assert "RANDOM encoder weights" in lines[0] and not any("ALARM" in line for line in lines)  # scores that mean nothing
    assert lines[-1].startswith("7 clips to 2.0 s, no alarms") and titles and all("mean nothing" in t for t in titles)
    assert Image.open(tmp_path / "w.png").size[0] > 500
    table = np.genfromtxt(tmp_path / "w.csv", delimiter=",", names=True)
    assert len(table) == 13 and (np.diff(table["known_at_s"]) >= 0).all()


def test_a_clip_at_the_threshold_is_an_alarm():
    report, frame = watch.StreamReport(0.5), np.zeros((4, 4, 3), np.uint8)
    clips = [watch.ScoredClip(np.array([s]), np.array([score]), 1, 1.0, 0.0, frame) for s, score in ((1.0, 0.5), (2.0, 0.4))]
    for clip in clips:
        report.add(clip)
    assert ["ALARM" in report.line(clip) for clip in clips] == [True, False]
    assert report.summary().startswith("2 clips to 2.0 s, 1 at or above 0.5; ")


def test_seconds_end_a_stream(model, clip):
    lines = list(watch.report_lines(str(clip), model, seconds=1.0))
    assert lines[-1].startswith("4 clips to 1.0 s") or lines[-1].startswith("4 clips to 0.9")  # 25 frames, 7 rows


def processor_with(monkeypatch, has):
    monkeypatch.setattr(watch.devices, "has_bfloat16", lambda device: has)


@pytest.mark.skipif(not devices.has_bfloat16(torch.device("cpu")), reason="needs a processor with bfloat16")
def test_bfloat16_reaches_the_stream_and_its_scores_are_near(model, clip, tmp_path):
    tables = []
    for words in ([], ["--bfloat16"]):
        table = tmp_path / f"{len(words)}.csv"
        done = CliRunner().invoke(cli.app, ["watch", str(clip), "--model", str(model), "--csv", str(table), *words])
        assert done.exit_code == 0, done.stderr
        tables.append(pd.read_csv(table)["score"])
    assert 0 < np.abs(tables[0] - tables[1]).max() < 0.02


@pytest.mark.parametrize("runtime, has, why", [("onnx", True, "for runtime torch, not for onnx"), ("torch", False, "has none")])
def test_bfloat16_is_refused_where_it_would_do_nothing(model, clip, monkeypatch, runtime, has, why):
    processor_with(monkeypatch, has)
    done = CliRunner().invoke(cli.app, ["watch", str(clip), "--model", str(model), "--bfloat16", "--runtime", runtime])
    assert done.exit_code == 1 and why in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_a_stream_that_goes_row_by_row_has_no_bfloat16(tmp_path, clip, model, monkeypatch):
    processor_with(monkeypatch, True)
    trained = trained_detector.load(model)
    config = lshma_state.LSHMAConfig.xd(width=128, window=2, key_clips=True)
    frozen = dataclasses.replace(trained, model=lshma.LSHMA(config).eval())
    trained_detector.save(tmp_path, frozen, facts={"features": trained_detector.features_of(model)})
    with pytest.raises(ValueError, match="bfloat16 is not for the stream in .*: its decisions go row by row"):
        list(watch.report_lines(str(clip), tmp_path, bfloat16=True))


@pytest.mark.real
def test_other_weights_than_the_training_rows_are_refused(model, tmp_path, xfeat_weights):
    facts = artifacts.read_json(model / "made_by.json")["facts"]["features"]
    artifacts.write_json(tmp_path / "made_by.json", {"facts": {"features": {**facts, "weights_sha256": "0" * 64}}})
    with pytest.raises(artifacts.StoreError, match="its features have weights_sha256 0000"):
        watch.live_encoder(tmp_path, xfeat_weights)


def test_rows_that_a_live_picture_cannot_give_are_refused(tmp_path):
    artifacts.write_json(tmp_path / "made_by.json", {"facts": {"features": {"encoder": "flow"}}})
    with pytest.raises(artifacts.StoreError, match="features of flow cannot be made live"):
        watch.live_encoder(tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [("nowhere.mp4", "nowhere.mp4"), ("77", "camera 77: no pictures from there"), ("{closed}", "rtsp://127.0.0.1")],
)
def test_a_source_that_gives_nothing_is_one_line(model, source, said):
    with socket.socket() as free:  # a port nobody listens on
        free.bind(("127.0.0.1", 0))
        closed = f"rtsp://name:secret@127.0.0.1:{free.getsockname()[1]}/x"
    done = CliRunner().invoke(cli.app, ["watch", source.format(closed=closed), "--model", str(model)])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert said in done.stderr and "secret" not in done.stderr


def test_a_password_is_in_nothing_that_watch_writes(model, clip, tmp_path, monkeypatch):
    frames = list(video.live(clip))
    monkeypatch.setattr(video, "live", lambda source: iter(frames))
    words = ["--plot", str(tmp_path / "w.svg"), "--csv", str(tmp_path / "w.csv")]
    done = CliRunner().invoke(cli.app, ["watch", "rtsp://admin:se/cr@et@10.0.0.1/ch1?pwd=secret", "--model", str(model), *words])
    assert done.exit_code == 0 and done.output.startswith("rtsp://10.0.0.1/ch1: ")
    written = [done.output.encode(), *(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())]
    assert len(written) >= 3 and not any(word in text for text in written for word in (b"se/cr", b"cr@et", b"secret", b"admin"))


def test_what_came_is_kept_where_a_camera_goes_away(model, clip, tmp_path, monkeypatch):
    frames, table = list(video.live(clip)), tmp_path / "w.csv"
    whole, rows = list(watch.report_lines(str(clip), model))[-1].partition(";")[0], -(-len(frames) // ROW_FRAMES)

    def fails(source):
        yield from frames
        raise video.VideoError("rtsp://x: no pictures from there: nothing came for 10 s")

    monkeypatch.setattr(video, "live", fails)
    done = CliRunner().invoke(cli.app, ["watch", "rtsp://x", "--model", str(model), "--csv", str(table)])
    assert done.exit_code == 1 and done.stderr.endswith("nothing came for 10 s\n") and done.stderr.count("\n") == 1
    assert whole in done.stdout and len(pd.read_csv(table)) == rows  # also of the last clip, which was not full
    out = tmp_path / "out"
    done = CliRunner().invoke(cli.app, ["analyse", "rtsp://x", "--detector", str(model), "--threshold", "0.5", "--out", str(out)])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1 and "the report holds what came before" in done.stderr
    assert not artifacts.read_json(out / "report.json", dict)["rolling"] and len(pd.read_csv(out / "scores.csv")) == rows


def test_no_model_says_how_to_train_one(tmp_path):
    done = CliRunner().invoke(cli.app, ["watch", "x.mp4", "--model", str(tmp_path)])
    assert done.exit_code == 1 and "vau run demo 06" in done.stderr


def test_live_gives_every_frame_of_a_file_and_of_a_folder(clip, tmp_path):
    times, frames = zip(*video.live(clip), strict=True)
    assert np.array_equal(np.stack(frames), video.read_frames(clip, range(50))) and times[1] == pytest.approx(1 / 25)
    for place, frame in enumerate(moving_square(3)):
        Image.fromarray(frame).save(tmp_path / f"{place:03}.png")
    assert len(list(video.live(tmp_path))) == 3


def test_local_change_is_watched_as_it_was_learned(tmp_path, clip):
    """A snippet is compared with the frames before it, also across snippets and across the clips a stream is scored in."""
    options = {"side": 64, "pooling": "local_change", "lags": (1, 6), "top_fraction": 0.1}  # 6 is longer than a snippet
    recipe = extraction.Recipe("xfeat", ROW_FRAMES, (("weights", "random"), *options.items()))
    encoder = xfeat.XFeatEncoder("random", **options)
    rows = np.stack(list(encoder.encode(clip, ROW_FRAMES)))
    fitted = preprocessing.Preprocessing.fit({"a": rows}, steps=None, temporal_difference=False)
    made = lshma.LSHMA(lshma_state.LSHMAConfig.xd(width=256, window=2)).eval()
    trained_detector.save(tmp_path, trained_detector.TrainedDetector(made, fitted, None), facts={"features": recipe.made_by()})
    trained = trained_detector.load(tmp_path)
    for _ in range(2):  # the second stream knows nothing of the first
        encode, size = watch.live_encoder(tmp_path)
        seen = list(watch.watch(video.live(clip), trained, encode, snippet_frames=size))
        np.testing.assert_allclose(np.concatenate([s.scores for s in seen]), trained.score(rows), atol=5e-3)  # gray by RGB

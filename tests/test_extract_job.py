"""`vau extract`: shards, merging, decoding ahead, Ray's actors; whoever works, the files are the same bytes."""

import os
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_square
from safetensors.torch import load_file
from typer.testing import CliRunner

from vau_lib import cli, cli_models
from vau_lib.data import records, video
from vau_lib.features import devices, extraction, xfeat
from vau_lib.workspace import artifacts, parallel

RECIPE = extraction.Recipe("xfeat", 16, (("weights", "random"), ("side", 32)), device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Eight small videos and their records.jsonl."""
    root = tmp_path_factory.mktemp("clips")
    found = []
    for n in range(8):
        video.write_video(root / f"{n}.mp4", moving_square(20 + n, 32, 48))
        found.append(records.VideoRecord(f"clip{n}", f"{n}.mp4", "toy", "train", 0, num_frames=20 + n))
    records.write_records(root / "records.jsonl", found)
    return root


@pytest.fixture(scope="module")
def serial_folder(clips, tmp_path_factory):
    """The features of one process."""
    folder = tmp_path_factory.mktemp("serial")
    done = extraction.extract(records.read_records(clips / "records.jsonl"), clips, folder, RECIPE)
    assert done.encoded == 8 and done.decode_s > 0 and done.encode_s > 0
    return folder


@pytest.fixture(scope="module")
def serial(serial_folder):
    """{name: bytes} of them."""
    return files(serial_folder)


def files(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def run(*words) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["extract", *map(str, words)])
    return result.exit_code, result.output


def test_shards_make_together_what_one_job_makes(clips, serial, tmp_path):
    words = ["--device", "cpu", "-p", "weights=random", "-p", "side=32"]
    for shard in ("1/3", "2/3"):
        code, said = run(clips / "records.jsonl", *words, "--out", tmp_path / "shared", "--shard", shard)
        assert code == 0 and "3 videos encoded, 0 were there" in said and "frames/s, decode" in said
    code, said = run(clips / "records.jsonl", *words, "--out", tmp_path / "apart", "--shard", "3/3")
    assert code == 0 and "2 videos encoded" in said
    code, said = run(clips / "records.jsonl", *words, "--out", tmp_path / "shared", "--merge", tmp_path / "apart")
    assert code == 0 and said.startswith("2 videos from") and "0 videos encoded, 8 were there" in said
    assert files(tmp_path / "shared") == serial


def test_a_video_of_a_shard_that_changed_is_made_again_by_any_job(clips, tmp_path):
    root = tmp_path / "root"
    video.write_video(root / "a.mp4", moving_square(20, 32, 48))
    found = [records.VideoRecord("a", "a.mp4", "toy", "train", 0)]
    assert extraction.extract(found, root, tmp_path / "out", RECIPE, shard=(1, 2)).encoded == 1
    assert extraction.extract(found, root, tmp_path / "out", RECIPE).already_done == 1
    video.write_video(root / "a.mp4", moving_square(30, 32, 48))
    for shard, encoded in (((1, 1), 1), ((1, 1), 0), ((1, 2), 0)):
        assert extraction.extract(found, root, tmp_path / "out", RECIPE, shard=shard).encoded == encoded


def test_folders_made_otherwise_are_not_merged(clips, tmp_path):
    for name, side in (("a", 32), ("b", 64)):
        recipe = replace(RECIPE, options=(("weights", "random"), ("side", side)))
        extraction.extract(records.read_records(clips / "records.jsonl")[:1], clips, tmp_path / name, recipe)
    with pytest.raises(artifacts.StoreError, match="side"):
        extraction.merge([tmp_path / "b"], tmp_path / "a")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--shard", "0/3"], "a shard is i of n, i from 1 to n, got 0 of 3"),
        (["--shard", "3"], "a shard is I/N, as 3/8, got '3'"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--encoder", "resnet"], "encoder must be one of xfeat, flow, clip"),
        (["-p", "sides=3"], "xfeat takes no such options: "),
        (["--engine", "cluster"], "engine must be one of serial, threads, processes, ray, got 'cluster'"),
    ],
)
def test_a_wrong_job_is_one_line(clips, tmp_path, words, message):
    code, said = run(clips / "records.jsonl", "-p", "weights=random", "--out", tmp_path, *words)
    (line,) = [line for line in said.splitlines() if line.startswith("vau:")]
    assert code == 1 and message in line


def test_a_video_that_cannot_be_read_is_a_line_and_the_exit_code(clips, tmp_path):
    found = [
        replace(records.read_records(clips / "records.jsonl")[0], num_frames=0),
        records.VideoRecord("x", "x.mp4", "t", "train", 0),
    ]
    records.write_records(tmp_path / "two.jsonl", found)
    words = ["--encoder", "flow", "--root", clips, "--out", tmp_path / "out"]
    code, said = run(tmp_path / "two.jsonl", *words)
    assert code == 1 and "1 videos encoded" in said and "skipped: clips" in said.replace(clips.name, "clips")
    assert "vau: 1 of 2 videos were skipped" in said


def test_the_source_works_while_the_reader_does_and_no_further_than_its_depth():
    made = []

    def source():
        for n in range(10):
            made.append(n)
            yield n

    items = iter(devices.Ahead(source(), 2))
    assert next(items) == 0
    until = time.monotonic() + 30
    while len(made) < 4 and time.monotonic() < until:  # the reader is busy: two wait, one is held by the thread
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    assert [*items] == list(range(1, 10))


def test_without_a_thread_the_reader_waits_as_long_as_the_source_works():
    ahead = devices.Ahead(iter(range(5)))
    assert [*ahead] == list(range(5)) and ahead.waited_s == ahead.source_s > 0


def test_an_error_of_the_source_comes_where_its_item_would_have_come():
    def source():
        yield 1
        raise ValueError("broken")

    for depth in (0, 4):
        seen = []
        with pytest.raises(ValueError, match="broken"):
            seen.extend(devices.Ahead(source(), depth))
        assert seen == [1]


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    for item in devices.Ahead(iter(range(1000)), 2):
        if item == 3:
            break
    assert threading.active_count() == before


def test_what_waits_while_a_batch_is_computed_is_the_next_batch():
    sizes, begun, go_on = [], threading.Event(), threading.Event()

    def double(frames):
        sizes.append(len(frames))
        begun.set()
        assert go_on.wait(30)
        return 2 * frames

    shared, found = devices.Together(double, 8), {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: shared(torch.full((n, 2), n))})) for n in (2, 1, 3, 4)]
    threads[0].start()
    assert begun.wait(30)
    for waiting, thread in enumerate(threads[1:], 1):
        thread.start()
        while len(shared._waiting) < waiting:
            time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert sizes == [2, 8] and all(torch.equal(rows, torch.full((n, 2), 2 * n)) for n, rows in found.items()) and len(found) == 4


def test_frames_of_other_sizes_or_too_many_are_another_batch_and_an_error_is_the_caller_s():
    def refuse(frames):
        raise RuntimeError(f"no memory for {len(frames)}")

    sizes = []
    shared = devices.Together(lambda frames: sizes.append(tuple(frames.shape)) or frames, 8)
    shared._waiting = [(torch.ones(size), Future()) for size in ((5, 2), (3, 2), (1, 2), (1, 3))]
    while shared._waiting:
        shared._answer()
    assert sizes == [(8, 2), (1, 2), (1, 3)]
    with pytest.raises(RuntimeError, match="no memory for 3"):
        devices.Together(refuse, 8)(torch.ones(3, 2))


def test_videos_that_share_batches_give_the_features_of_each_alone(clips, serial_folder, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = records.VideoRecord("broken", str(tmp_path / "broken.mp4"), "toy", "train", 0)
    found = records.read_records(clips / "records.jsonl")
    done = extraction.extract([broken, *found], clips, tmp_path / "out", RECIPE, engine="threads", workers=4)
    assert done.encoded == 8 and len(done.skipped) == 1 and done.skipped[0].startswith("broken") and done.workers == 4
    for path in serial_folder.glob("*.npy"):
        np.testing.assert_allclose(np.load(tmp_path / "out" / path.name), np.load(path), atol=1e-6)


def test_several_videos_are_read_at_once_only_for_a_gpu(clips, tmp_path, monkeypatch):
    found = records.read_records(clips / "records.jsonl")[:2]
    assert extraction.extract(found, clips, tmp_path / "cpu", RECIPE).workers == 1
    monkeypatch.setattr(xfeat.XFeatEncoder, "on_gpu", True)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert extraction.extract(found, clips, tmp_path / "gpu", RECIPE).workers == 3


def test_a_worker_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    for number, place in (("0", "cuda:0"), ("5", "cuda:1")):
        monkeypatch.setenv("VAU_WORKER", number)
        assert str(devices.choose("auto")) == place


def worker_number(_) -> str:
    time.sleep(0.5)
    return os.environ["VAU_WORKER"]


def test_worker_processes_know_their_number():
    found = {result for _, result, _ in parallel.map_videos(worker_number, range(4), engine="processes", workers=2)}
    assert found == {"0", "1"}


def test_gpus_are_asked_of_ray_only():
    with pytest.raises(ValueError, match="num_gpus: for engine ray, got 'processes'"):
        list(parallel.map_videos(worker_number, [1], engine="processes", num_gpus=1))


def test_frames_shrunk_one_by_one_give_the_bits_of_a_batch(clips):
    from vau_lib.features import xfeat

    encoder, path = xfeat.XFeatEncoder("random", side=32, device="cpu"), clips / "3.mp4"
    whole = np.stack(list(encoder.snippet_features(video.gray_frames(path), 16)))
    assert np.array_equal(np.stack(list(encoder.encode(path, 16))), whole)


def test_a_merged_model_is_a_plain_folder_and_the_server_is_told_what_to_drop(tmp_path, capsys):
    """A tensor of the folder is the base's plus B A of the adapter, and no adapter is left in it."""
    cli_models.merge("toy", tmp_path / "merged", Path("data/toy_models/judge"), 0.25)
    assert f"vllm serve {tmp_path / 'merged'} --video-pruning-rate 0.75" in capsys.readouterr().out.splitlines()
    toys = Path(__file__).parents[1] / "data" / "toy_models"
    base, merged = (load_file(folder / "model.safetensors") for folder in (toys / "internvl", tmp_path / "merged"))
    adapter = load_file(toys / "judge" / "adapter_model.safetensors")
    settings = artifacts.read_json(toys / "judge" / "adapter_config.json")
    assert base.keys() == merged.keys() and not (tmp_path / "merged" / "adapter_config.json").exists()
    scale = settings["lora_alpha"] / settings["r"]
    downs = [key for key in adapter if key.endswith("lora_A.weight")]
    expected = [float((scale * adapter[key.replace("lora_A", "lora_B")] @ adapter[key]).float().norm()) for key in downs]
    found = [float((merged[key].float() - base[key].float()).norm()) for key in base]
    np.testing.assert_allclose(sorted(found)[-len(downs) :], sorted(expected), rtol=0.02)
    assert sorted(found)[: -len(downs)] == [0.0] * (len(base) - len(downs)) and min(expected) > 0

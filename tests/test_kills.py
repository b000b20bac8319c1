"""A job may die at any write: what is there then is the old result, none, or the new one, and a second run ends as a fresh one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vau_lib.data.records import VideoRecord
from vau_lib.detectors import experiments, preprocessing, trained_detector
from vau_lib.detectors.memtsm import MemTSM, MemTSMConfig
from vau_lib.features import checkpoints
from vau_lib.vlm import models
from vau_lib.workspace import artifacts, leftovers

VIDEOS = [VideoRecord(name, f"{name}.mp4", "own", split, k % 2) for k, (name, split) in enumerate([("a", "val"), ("b", "test")])]
FEATURES = {name: np.random.default_rng(k).random((40, 128), dtype=np.float32) for k, name in enumerate("ab")}


class Killed(BaseException):
    """No handler of ours takes it, as none takes a kill."""


def train(place: Path, seed: int) -> bool:
    """What a detector's notebook does with one training, in its order; say whether it had to be done."""
    facts = {"seed": seed}
    if experiments.is_done(place, facts):
        return False
    torch.manual_seed(seed)
    fitted = preprocessing.Preprocessing.fit(FEATURES, steps=32, temporal_difference=True)
    trained = trained_detector.TrainedDetector(MemTSM(MemTSMConfig()).eval(), fitted, None)
    trained_detector.save(place, trained, facts=facts)
    experiments.write_scores(place, trained.score_video, VIDEOS, FEATURES)
    return True


def kept(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_training_killed_at_any_write_ends_as_a_fresh_one(when, tmp_path, monkeypatch):
    train(tmp_path / "fresh" / "fold0_seed0", 1)
    replace, place, number = os.replace, tmp_path / "killed" / "fold0_seed0", 0
    while True:
        left = [number]

        def dying(source, target, left=left):
            if when == "after":
                replace(source, target)
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            if when == "before":
                replace(source, target)

        monkeypatch.setattr(os, "replace", replace)
        train(place, 0)  # the old result
        monkeypatch.setattr(os, "replace", dying)
        try:
            train(place, 1)
        except Killed:
            monkeypatch.setattr(os, "replace", replace)
            stale = experiments.is_done(place, {"seed": 0})
            assert not stale or kept(place)["model.safetensors"] != kept(tmp_path / "fresh" / "fold0_seed0")["model.safetensors"]
            train(place, 1)
            assert kept(place) == kept(tmp_path / "fresh" / "fold0_seed0"), f"died at write {number}"
            number += 1
        else:
            break
    assert number >= 4  # weights, config, made_by, scores


def test_what_made_a_model_goes_before_its_weights(tmp_path, monkeypatch):
    checkpoints.save_model(tmp_path, torch.nn.Linear(2, 2), {}, seed=0)

    def killed(path):
        raise Killed

    monkeypatch.setattr(artifacts, "replacing", killed)
    with pytest.raises(Killed):
        checkpoints.save_model(tmp_path, torch.nn.Linear(2, 2), {}, seed=1)
    assert not (tmp_path / "made_by.json").exists()


@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_model_before_stands_until_the_new_one_does(step, tmp_path, monkeypatch):
    def write(text: str) -> None:
        with models.new_folder(tmp_path / "model") as scratch:
            (scratch / "weights").write_text(text)
            (scratch / "made_by.json").write_text("{}")

    write("old")
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == step + 1:
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    if step < 2:
        with pytest.raises(OSError, match="no space left"):
            write("new")
    monkeypatch.undo()
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    write("new")
    assert (tmp_path / "model" / "weights").read_text() == "new"


KILLED = """
import os, signal, sys
from pathlib import Path
from vau_lib.vlm import models
replace, calls, folder = os.replace, [], Path(sys.argv[1])
def dying(source, target):
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(target)
    replace(source, target)
os.replace = dying
with models.new_folder(folder / "model") as scratch:
    (scratch / "weights").write_text("new")
    (scratch / "made_by.json").write_text("{}")
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_model_whose_successor_was_killed_is_there_and_nothing_else(tmp_path):
    """Killed between the two renames the old one has no name; the next process that looks gives it back."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("old")
    (model / "made_by.json").write_text("{}")
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "1"]).returncode < 0
    assert not model.exists() and len(list(tmp_path.iterdir())) == 2
    leftovers.sweep.cache_clear()
    leftovers.sweep(str(tmp_path))
    assert (model / "weights").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["model"]


RUN = """
import sys
from vau_lib.workspace import notebook_runs
if __name__ == "__main__":
    notebook_runs.run("tiny", workers=int(sys.argv[1]))
"""
CELL = "import os, time, pathlib\npathlib.Path('../data/pid').write_text(str(os.getpid()))\ntime.sleep(60)"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_no_kernel_outlives_a_killed_run(tmp_path):
    from tiny_project import make_project, write_notebook, write_params

    make_project(tmp_path)
    write_params(tmp_path, "tiny", "_shared", "notebooks: [01]")
    write_notebook(tmp_path, "01_first", "count: int = 1", CELL)
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "data").mkdir(exist_ok=True)
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), "1"], env={**os.environ, "VAU_PROJECT": str(tmp_path)})
    mark = tmp_path / "data" / "pid"

    def ended() -> bool:
        try:
            return Path(f"/proc/{mark.read_text()}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def wait_for(condition) -> None:
        until = time.monotonic() + 40
        while not condition() and time.monotonic() < until:
            time.sleep(0.1)
        assert condition()

    wait_for(lambda: mark.exists() and mark.read_text())
    assert not ended()
    run.kill()
    run.wait()
    wait_for(ended)

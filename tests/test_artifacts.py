"""A file is whole or absent, and what made a folder is checked."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from vau_lib.workspace import artifacts


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x.json"
    artifacts.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), artifacts.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert artifacts.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["x.json"]


def test_a_killed_write_leaves_no_half_file(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from vau_lib.workspace import artifacts\n"
        "with artifacts.replacing(Path(sys.argv[1])) as t:\n t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.npy")])
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "x.npy").exists()


def test_arrays_with_objects_are_refused(tmp_path):
    with (tmp_path / "bad.npy").open("wb") as file:
        np.lib.format.write_array(file, np.array([{"a": 1}], dtype=object))
    with pytest.raises(artifacts.StoreError, match="bad.npy is not a plain array"):
        artifacts.load_array(tmp_path / "bad.npy")
    with pytest.raises(artifacts.StoreError, match="no array"):
        artifacts.load_array(tmp_path / "none.npy")


def test_a_folder_made_otherwise_is_refused(tmp_path):
    artifacts.write_made_by(tmp_path, encoder="xfeat", side=224)
    assert artifacts.check_made_by(tmp_path, encoder="xfeat")["side"] == 224
    with pytest.raises(artifacts.StoreError, match="encoder='xfeat', asked for 'clip'"):
        artifacts.check_made_by(tmp_path, encoder="clip")
    with pytest.raises(artifacts.StoreError, match="no file"):
        artifacts.check_made_by(tmp_path / "elsewhere")


def test_weights_are_looked_for_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("VAU_WEIGHTS", raising=False)
    with pytest.raises(artifacts.StoreError, match="no weights a/w.pt: put the file there under the folder named by VAU_WEIGHTS"):
        artifacts.find_weights("a/w.pt")
    cached = tmp_path / "hub" / "hub" / "checkpoints" / "w.pt"
    own = tmp_path / "own" / "a" / "w.pt"
    for path in (cached, own):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    assert artifacts.find_weights("a/w.pt") == cached
    monkeypatch.setenv("VAU_WEIGHTS", str(tmp_path / "own"))
    assert artifacts.find_weights("a/w.pt") == own
    with pytest.raises(artifacts.StoreError, match="no weights at"):
        artifacts.find_weights("a/w.pt", tmp_path / "nothing.pt")

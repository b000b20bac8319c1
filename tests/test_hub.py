"""Models and features go to a hub and come back the same, with a card that says what was measured; nothing else ever leaves."""

import json

import numpy as np
import pytest
import torch
from fake_hub import Hub
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.testing import CliRunner

from vau_lib.cli import app
from vau_lib.publish import hub as sharing

TOKEN = "hf_" + "x" * 30
SCORES = {"a": (1, 0.9), "b": (0, 0.2), "c": (1, 0.3), "d": (0, 0.4), "e": (0, 0.1)}


@pytest.fixture(scope="module")
def server():
    return Hub()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    from huggingface_hub import constants

    server.__dict__.update(repos={}, private={}, tokens=set(), requests=[], refuse=0)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    address = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("VAU_PROJECT", str(tmp_path))
    return server


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "data" / "models" / "memtsm" / "fold0_seed3"
    folder.mkdir(parents=True)
    save_file({"weight": torch.arange(6.0)}, folder / "model.safetensors")
    facts = {"rows": {"encoder": "xfeat", "snippet_frames": 5}, "plan": "Plan(epochs=3, seed=3)"}
    made_by = {"facts": facts, "commit": "abc1234", "versions": {"torch": "9.9"}}
    rows = {name: {"split": "test", "label": label, "video": score, "rows": [score]} for name, (label, score) in SCORES.items()}
    rows["v"] = {"split": "val", "label": 1, "video": 0.0, "rows": [0.0]}  # validation is not in the numbers
    for name, content in (("config", {"detector": "memtsm"}), ("made_by", made_by), ("scores", rows)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def vau(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_model_goes_to_the_hub_and_comes_back(hub, model, tmp_path):
    done = vau("push", model, "--repo", "me/fights", "--note", "Trained on a Friday.")
    assert done.exit_code == 0 and done.stdout.strip().startswith(f"{hub.url}/me/fights/commit/"), done.stderr
    kept = hub.repos["models", "me/fights"]
    assert set(kept) == {"README.md", "config.json", "made_by.json", "model.safetensors", "scores.json"}
    assert hub.private["models", "me/fights"] is True
    done = vau("pull", "me/fights")
    assert done.exit_code == 0 and done.stdout.strip() == "me/fights is at data/models/hub/me/fights", done.stderr
    for name in ("model.safetensors", "config.json", "made_by.json", "scores.json"):
        assert (tmp_path / "data/models/hub/me/fights" / name).read_bytes() == (model / name).read_bytes()
    assert vau("pull", "me/fights").exit_code == 0  # again, over itself
    assert all(TOKEN not in data.decode(errors="replace") for data in kept.values()) and TOKEN not in done.stdout


def test_a_download_that_stopped_goes_on(hub, model, tmp_path, monkeypatch):
    import huggingface_hub

    vau("push", model, "--repo", "me/fights")

    def stopped(repo, *, local_dir, **options):
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / "config.json").write_text("{}")
        raise ConnectionError("the line is cut")

    with monkeypatch.context() as patched:
        patched.setattr(huggingface_hub, "snapshot_download", stopped)
        assert vau("pull", "me/fights").exit_code
    done = vau("pull", "me/fights")
    place = tmp_path / "data/models/hub/me/fights"
    assert done.exit_code == 0 and (place / "config.json").read_bytes() == (model / "config.json").read_bytes(), done.stderr


def test_the_card_says_what_was_measured_and_no_more(model):
    card = sharing.card(model, "me/fights", note="Trained on a Friday.")
    labels, scores = zip(*SCORES.values(), strict=True)
    assert f"- video_auc: {roc_auc_score(labels, scores):.4f}" in card
    assert f"- video_ap: {average_precision_score(labels, scores):.4f}" in card and "on 5 test videos" in card
    for words in (
        "Trained on a Friday.",
        "encoder",
        "xfeat",
        "## Seeds\n\n3\n",
        "commit abc1234",
        "torch 9.9",
        "## Limits",
        "vau pull me/fights",
    ):
        assert words in card, words
    (model / "scores.json").unlink()
    assert "None was measured" in sharing.card(model, "me/fights")


def test_features_are_a_data_set(hub, tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    np.save(folder / "v.npy", np.eye(3, dtype=np.float32))
    (folder / "made_by.json").write_text(json.dumps({"encoder": "flow", "commit": "abc1234", "versions": {}}))
    assert vau("push", folder, "--repo", "me/flow", "--public").exit_code == 0
    assert hub.private["datasets", "me/flow"] is not True and "v.npy" in hub.repos["datasets", "me/flow"]
    assert vau("pull", "me/flow", "--kind", "features", "--to", "back").exit_code == 0
    assert np.array_equal(np.load(tmp_path / "back" / "v.npy"), np.eye(3))


def test_nothing_is_sent_without_a_name_or_in_a_dry_run(hub, model):
    assert vau("push", model).exit_code == 2  # --repo is required
    for name in ("me", "me/a/b", "", "../x/y", "me/ x"):
        done = vau("push", model, "--repo", name)
        assert done.exit_code == 1 and "OWNER/NAME" in done.stderr and repr(name) in done.stderr
    done = vau("push", model, "--repo", "me/fights", "--dry-run")
    assert done.exit_code == 0 and "video_auc" in done.stdout and "model.safetensors" in done.stdout
    assert not hub.requests


@pytest.mark.parametrize("name", ["model.pt", "model.pkl", "run.py", "sub/x.bin"])
def test_a_file_that_could_run_code_is_refused_before_anything_is_sent(hub, model, name):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"x")
    done = vau("push", model, "--repo", "me/fights")
    assert done.exit_code == 1 and name in done.stderr and not hub.requests


def test_a_link_out_of_the_folder_and_half_a_training_stay_here(hub, model, tmp_path):
    (model / "unfinished" / "checkpoint-3").mkdir(parents=True)
    (model / "unfinished" / "checkpoint-3" / "optimizer.pt").write_bytes(b"x")
    (model / ".env").write_text("SECRET=1")
    assert vau("push", model, "--repo", "me/fights").exit_code == 0
    assert not [name for name in hub.repos["models", "me/fights"] if "unfinished" in name or name.startswith(".env")]
    (tmp_path / "secret.json").write_text("{}")
    (model / "more.json").symlink_to(tmp_path / "secret.json")
    done = vau("push", model, "--repo", "me/fights")
    assert done.exit_code == 1 and "more.json is a link out of" in done.stderr


def test_what_goes_wrong_is_one_line(hub, model, tmp_path):
    assert "me/none" in vau("pull", "me/none").stderr
    hub.repos["models", "me/other"] = {"config.json": b"{}", "evil.pkl": b"x", "run.py": b"x"}
    done = vau("pull", "me/other", "--to", "other")
    assert done.exit_code == 1 and "no made_by.json" in done.stderr
    assert not list((tmp_path / "other").rglob("*.pkl")) and not list((tmp_path / "other").rglob("*.py"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    assert "holds something else" in vau("pull", "me/other", "--to", "full").stderr
    hub.refuse = 403
    done = vau("push", model, "--repo", "me/fights")
    assert done.exit_code == 1 and done.stderr.startswith("vau: me/fights: ") and done.stderr.count("\n") == 1
    assert TOKEN not in done.stderr
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "no made_by.json" in vau("push", bare, "--repo", "me/x").stderr

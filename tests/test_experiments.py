"""Trials see the labels they may see, and leave scores another notebook can check."""

import numpy as np

from vau_lib.data import records
from vau_lib.detectors import experiments
from vau_lib.features import checkpoints
from vau_lib.features.checkpoints import given_weights
from vau_lib.workspace import artifacts

FOUND = [
    records.VideoRecord(f"v{n:02}", f"v{n}.mp4", "toy", split, n % 2)
    for n, split in enumerate(["train"] * 20 + ["val"] * 6 + ["test"] * 6)
]


def test_test_labels_are_never_handed_out_and_shuffling_keeps_the_counts():
    labels = experiments.training_labels(FOUND)
    assert len(labels) == 26 and all(int(name[1:]) < 26 and label == int(name[1:]) % 2 for name, label in labels.items())
    shuffled = experiments.training_labels(FOUND, shuffled=3)
    assert (
        sum(shuffled.values()) == sum(labels.values())
        and shuffled != labels
        and shuffled == experiments.training_labels(FOUND, shuffled=3)
    )
    assert set(experiments.training_labels(FOUND, one_class=True).values()) == {0}


def test_scores_are_read_back_for_the_test_part_only(tmp_path):
    rows = {r.id: np.full((4, 3), n, float) for n, r in enumerate(FOUND)}
    experiments.write_scores(tmp_path, lambda x: (x[0, 0], x[:, 0]), FOUND, rows)
    scores, labels = experiments.test_scores(tmp_path)
    assert scores == {f"v{n:02}": float(n) for n in range(26, 32)} and labels["v27"] == 1
    assert artifacts.read_json(tmp_path / "scores.json")["v20"]["scores"] == [20.0] * 4  # validation is kept, training is not
    assert "v00" not in artifacts.read_json(tmp_path / "scores.json")


def test_a_trial_is_done_only_with_its_own_facts(tmp_path):
    assert not experiments.is_done(tmp_path, {"seed": 0})
    artifacts.write_json(tmp_path / "scores.json", {})
    artifacts.write_made_by(tmp_path, facts={"seed": 0})
    assert experiments.is_done(tmp_path, {"seed": 0}) and not experiments.is_done(tmp_path, {"seed": 1})


def test_weights_are_what_the_parameter_says(tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delitem(checkpoints.PACKAGED, "xfeat")
    assert given_weights("xfeat", "random") == "random" and given_weights("xfeat", "") is None
    assert given_weights("xfeat", "random unless found") == "random" == given_weights("clip", "random unless found")
    (tmp_path / "xfeat").mkdir()
    (tmp_path / "xfeat" / "xfeat_bnfolded.pt").touch()
    assert given_weights("xfeat", "random unless found") == str(tmp_path / "xfeat" / "xfeat_bnfolded.pt")
    assert given_weights("xfeat", str(tmp_path / "own.pt")) == str(tmp_path / "own.pt")

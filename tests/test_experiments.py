"""Trials see the labels they may see, and leave scores another notebook can check."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vau_lib.data import records
from vau_lib.detectors import experiments, memtsm, preprocessing, trained_detector
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


def test_the_mean_of_trainings_is_of_their_scores_and_the_rest_is_kept(tmp_path):
    for seed, (video, scores) in enumerate([(0.25, [0.0, 1.0]), (0.75, [0.5, 0.5])]):
        row = {"split": "test", "label": 1, "video": video, "scores": scores}
        artifacts.write_json(tmp_path / f"fold0_seed{seed}" / "scores.json", {"v": row})
    assert experiments.mean_scores(tmp_path, (0, 1)) == {"v": {"split": "test", "label": 1, "video": 0.5, "scores": [0.25, 0.75]}}


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


def facts_of(found=FOUND, made_by=None, features=None, **choices):
    features = features or {r.id: np.full((20, 3), n, float) for n, r in enumerate(FOUND)}
    return experiments.training_facts(made_by or {"encoder": "xfeat", "weights_sha256": "a"}, found, features, **choices)


def kept(place, facts):
    artifacts.write_json(place / "scores.json", {})
    artifacts.write_made_by(place, facts=facts)


def changed(what):
    """FOUND with its first three videos changed."""
    return [replace(r, **what) if n < 3 else r for n, r in enumerate(FOUND)]


OTHER = {r.id: np.full((20, 3), n + 9.0 * (n == 4)) for n, r in enumerate(FOUND)}
STALE = {  # what changed: the facts now, the line
    "labels": (facts_of(changed({"label": 7})), "label of 3 videos changed: v00, v01, v02"),
    "split": (facts_of(changed({"split": "test"})), "split of 3 videos changed: v00, v01, v02"),
    "events": (facts_of(changed({"events": (records.Span(0, 1),)})), "events of 3 videos changed: v00, v01, v02"),
    "fewer": (facts_of(FOUND[:-2]), "2 videos removed"),
    "features": (facts_of(features=OTHER), "features of 1 videos changed: v04"),
    "weights": (facts_of(made_by={"encoder": "xfeat", "weights_sha256": "b"}), "features made by other weights"),
    "plan": (facts_of(plan=[2]), "plan changed"),
}


@pytest.mark.parametrize("what", STALE)
def test_a_finished_training_is_stale_when_what_it_used_changed_and_the_line_says_what(what, tmp_path, capsys):
    now, line = STALE[what]
    kept(tmp_path / "fold0_seed0", facts_of())
    assert experiments.is_done(tmp_path / "fold0_seed0", facts_of()) and not capsys.readouterr().out
    assert not experiments.is_done(tmp_path / "fold0_seed0", now)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and f"fold0_seed0 is trained again: {line}" in printed


def test_added_videos_are_counted_and_old_facts_are_not_trusted(tmp_path, capsys):
    kept(tmp_path, facts_of(FOUND[:20]))
    assert not experiments.is_done(tmp_path, facts_of()) and "12 videos added" in capsys.readouterr().out
    kept(tmp_path, {"features": {"encoder": "xfeat", "weights_sha256": "a"}})  # as written before
    assert not experiments.is_done(tmp_path, facts_of()) and "does not say which videos" in capsys.readouterr().out


def test_scores_of_the_model_before_go_before_a_new_model_is_written(tmp_path, monkeypatch):
    """A kill between the model and its scores left the old scores under the new facts."""
    kept(tmp_path, facts_of())
    fitted = preprocessing.Preprocessing(4, False, (0.0,), (1.0,))
    model = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=1, width=16, slots=4))
    now = facts_of(plan=[2])
    trained_detector.save(tmp_path, trained_detector.TrainedDetector(model, fitted, None), facts=now)
    assert not experiments.is_done(tmp_path, now) and experiments.is_done(tmp_path, now, file="model.safetensors")


def test_checkpoints_of_other_facts_are_not_gone_on_from(tmp_path, capsys):
    folder = experiments.unfinished(tmp_path, facts_of())
    (folder / "checkpoint-3").mkdir()
    assert (experiments.unfinished(tmp_path, facts_of()) / "checkpoint-3").exists() and not capsys.readouterr().out
    assert not (experiments.unfinished(tmp_path, STALE["labels"][0]) / "checkpoint-3").exists()
    assert "begins anew: label of 3 videos" in capsys.readouterr().out


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


def test_a_variant_says_what_is_trained_on_which_input():
    assert experiments.parse_variant("intended") == ("intended", None, "")
    assert experiments.parse_variant("intended_raw@clip") == ("intended", False, "clip")
    assert experiments.parse_variant("released_difference@released") == ("released", True, "released")
    for wrong in ("intended_both", "published", "raw"):
        with pytest.raises(ValueError, match=f"got '{wrong}'"):
            experiments.parse_variant(wrong)


def test_the_input_is_what_the_trainings_saved(tmp_path):
    """Not what the variant is called: a published recipe reads raw features as `intended` too."""
    for seed, difference in ((0, False), (1, False)):
        saved = {"preprocessing": {"temporal_difference": difference}}
        artifacts.write_json(tmp_path / "intended" / f"fold0_seed{seed}" / "config.json", saved)
    assert experiments.input_of(tmp_path / "intended") == "raw features"
    artifacts.write_json(tmp_path / "other" / "fold0_seed0" / "config.json", {"preprocessing": {"temporal_difference": True}})
    assert experiments.input_of(tmp_path / "other") == "on temporal differences"
    with pytest.raises(artifacts.StoreError, match="nothing: no trained detector"):
        experiments.input_of(tmp_path / "nothing")


def test_scores_made_from_other_records_or_features_are_named(tmp_path):
    features = {"xfeat": {r.id: np.full((20, 3), n, float) for n, r in enumerate(FOUND)}}
    made_by = {"xfeat": {"encoder": "xfeat", "weights_sha256": "a"}}
    kept(tmp_path / "intended" / "fold0_seed0", facts_of(plan=[1]))  # what else was chosen does not matter here
    assert experiments.outdated(tmp_path / "intended", [FOUND], features, made_by) == []
    relabelled = experiments.outdated(tmp_path / "intended", [changed({"label": 7})], features, made_by)
    assert relabelled == ["intended/fold0_seed0: label of 3 videos changed: v00, v01, v02"]
    (other,) = experiments.outdated(tmp_path / "intended", [FOUND], {"xfeat": OTHER}, made_by)
    assert other.endswith("features of 1 videos changed: v04")
    assert experiments.outdated(tmp_path / "intended", [FOUND], {}, {})[0].endswith("there are no xfeat features of fold 0")
    kept(tmp_path / "old" / "fold0_seed0", {})
    assert "there are no None features" in experiments.outdated(tmp_path / "old", [FOUND], features, made_by)[0]


def test_an_empty_file_of_features_is_named(tmp_path):
    features = {r.id: np.ones((4, 3)) for r in FOUND} | {"v03": np.ones((0, 3))}
    with pytest.raises(artifacts.StoreError, match="v03: its file of features holds no row"):
        facts_of(features=features)


def test_features_are_those_of_the_folder_after_the_at_sign(tmp_path):
    """Two folders of one encoder, pooled and local change: a training is compared with the one it read."""
    rows = {
        name: {r.id: np.full((20, 3), n + shift, float) for n, r in enumerate(FOUND)}
        for name, shift in (("xfeat", 5), ("xfeat_local_change", 0))
    }
    made_by = {"xfeat": {"encoder": "xfeat"}, "xfeat_local_change": {"encoder": "xfeat", "local_change": {"lags": [1]}}}
    place = tmp_path / "intended_raw@xfeat_local_change"
    kept(place / "fold0_seed0", facts_of(made_by=made_by["xfeat_local_change"], plan=[1]))
    artifacts.write_json(place / "fold0_seed0" / "config.json", {"preprocessing": {"temporal_difference": False}})
    assert experiments.outdated(place, [FOUND], rows, made_by) == []
    assert experiments.input_of(place) == "on local change"


def test_local_change_is_known_by_what_made_it_where_no_folder_is_named(tmp_path):
    """Notebooks 04 and 06 read it by default: what made the features says so, and notebook 12 looks in its own folder."""
    made_by, place = {"encoder": "xfeat", "local_change": {"lags": [1, 2, 4]}}, tmp_path / "intended"
    rows = {"xfeat_local_change": {r.id: np.full((20, 3), n, float) for n, r in enumerate(FOUND)}}
    facts = experiments.training_facts(made_by, FOUND, rows["xfeat_local_change"], plan=[1])
    kept(place / "fold0_seed0", facts)
    artifacts.write_json(place / "fold0_seed0" / "config.json", {"preprocessing": {"temporal_difference": False}})
    assert experiments.features_note(made_by) == "XFeat local change"
    assert experiments.features_note({"encoder": "clip", "weights_sha256": "random"}) == "CLIP features, RANDOM weights"
    assert experiments.is_change(made_by) and not experiments.is_change({"encoder": "xfeat", "local_change": None})
    assert experiments.input_of(place) == "on local change"
    assert experiments.outdated(place, [FOUND], rows, {"xfeat_local_change": made_by}) == []
    assert "there are no xfeat_local_change features" in experiments.outdated(place, [FOUND], {}, {})[0]


def test_fused_scores_are_means_of_log_odds_in_units_of_validation():
    """By hand: log-odds are 0 and ln 9, validation has mean 0 and std ln 9 (first), mean ln 3 and std ln 3 (second)."""
    val = {"v": (0.9, 1), "w": (0.1, 0)}
    first = ({0: {"a": (0.9, np.array([0.5, 0.9])), "b": (0.5, np.array([0.5]))}}, {(0, 0): val})
    second = ({0: {"a": (0.5, np.array([0.9, 0.5])), "b": (0.9, np.array([0.9]))}, 1: {}}, {(0, 0): {"v": (0.9, 1), "w": (0.5, 0)}})
    fused = experiments.fuse([first, second], {"a": 0, "b": 0})
    assert list(fused) == [0], "only seeds that both have"
    assert fused[0]["a"][0] == pytest.approx((1 - 1) / 2) and fused[0]["b"][0] == pytest.approx((0 + 1) / 2)
    np.testing.assert_allclose(fused[0]["a"][1], [(0 + 1) / 2, (1 - 1) / 2], atol=1e-12)


def _clip(name, split, label, frames=40):
    events = (records.Span(1.0, 2.0, "fight"),) if label else ()
    return records.VideoRecord(name, f"{name}.mp4", "toy", split, label, ("fight",) if label else (), events, 10.0, frames)


def test_long_videos_join_rows_and_keep_where_the_event_is():
    found = [
        _clip("bad", "test", 1),
        *(_clip(f"n{k}", "test", 0) for k in range(5)),
        _clip("other", "val", 1),
        _clip("v", "val", 0),
    ]
    rows = {r.id: np.full((8, 2), number, np.float32) for number, r in enumerate(found)}
    (stream,) = experiments.long_videos(found, rows, snippet_frames=5, normal=3)
    assert stream.features.shape == (32, 2) and stream.row_s == 0.5
    at = np.flatnonzero(stream.features[:, 0] == 0)  # the anomalous video's rows, all 8 of them, in one piece
    assert len(at) == 8 and at[-1] - at[0] == 7
    assert stream.events == ((at[0] + 2, at[0] + 4),)  # 1.0 to 2.0 s at 2 rows a second
    assert np.flatnonzero(stream.labels).tolist() == [at[0] + 2, at[0] + 3]
    assert len(set(stream.features[:, 0].tolist())) == 4 and not {6.0, 7.0} & set(stream.features[:, 0].tolist())
    again = experiments.long_videos(found, rows, snippet_frames=5, normal=3)
    assert np.array_equal(stream.features, again[0].features)
    with pytest.raises(ValueError, match="9 normal videos of one rate, got 5"):
        experiments.long_videos(found, rows, snippet_frames=5, normal=9)


def test_frame_aucs_of_saved_scores_and_of_what_a_camera_knows(tmp_path):
    """Rows of 2 frames, clips of 2 rows. Own scores are perfect; known ones come 3 frames late (frames 3 and 7 end clips)."""
    videos = [
        records.VideoRecord("a", "a.mp4", "toy", "test", 1, events=(records.Span(0.4, 0.8),), fps=10.0, num_frames=8),
        records.VideoRecord("b", "b.mp4", "toy", "test", 0, fps=10.0, num_frames=4),
    ]
    records.write_records(tmp_path / "records.jsonl", videos)
    place = tmp_path / "fold0_seed0"
    artifacts.write_json(place / "config.json", {"sizes": {"window": 2}})
    artifacts.write_json(place / "made_by.json", {"facts": {"features": {"snippet_frames": 2}}})
    scores = {"a": {"split": "test", "scores": [0.1, 0.1, 0.9, 0.9]}, "b": {"split": "test", "scores": [0.2, 0.2]}}
    artifacts.write_json(place / "scores.json", scores)
    own, causal, smoothed = experiments.frame_aucs(place, str(tmp_path / "records.jsonl"), 0)
    # known of a: 0 0 0 .1 .1 .1 .1 .9, truth 0 0 0 0 1 1 1 1; of b: 0 0 0 .2, all normal
    pairs = [(p > n) + (p == n) / 2 for p in (0.1, 0.1, 0.1, 0.9) for n in (0, 0, 0, 0.1, 0, 0, 0, 0.2)]
    assert own == 1.0 and causal == pytest.approx(np.mean(pairs)) == smoothed  # no validation video, no smoothing
    records.write_records(tmp_path / "records.jsonl", videos[1:])
    assert np.isnan(experiments.frame_aucs(place, str(tmp_path / "records.jsonl"), 0)).all()


def test_validation_chooses_how_a_camera_smooths(tmp_path):
    """Scores that flicker in an event: a small loop and scikit-learn's AUC choose the half-life on the validation video."""
    rng = np.random.default_rng(0)
    saved, videos = {}, []
    for name, split in (("v", "val"), ("t", "test")):
        scores = np.concatenate([rng.random(20) * 0.4, (rng.random(20) > 0.5) * 0.9, rng.random(20) * 0.4])
        saved[name] = {"split": split, "scores": scores.tolist()}
        videos.append(
            records.VideoRecord(name, f"{name}.mp4", "toy", split, 1, events=(records.Span(2, 4),), fps=10.0, num_frames=60)
        )
    records.write_records(tmp_path / "records.jsonl", videos)
    place = tmp_path / "fold0_seed0"
    artifacts.write_json(place / "config.json", {"sizes": {"window": 1}})
    artifacts.write_json(place / "made_by.json", {"facts": {"features": {"snippet_frames": 1}}})
    artifacts.write_json(place / "scores.json", saved)
    truth = np.repeat([0, 1, 0], 20)

    def auc(name, half_life):
        values = [saved[name]["scores"][0]]
        for score in saved[name]["scores"][1:]:
            old = 0.5 ** (1 / half_life) if half_life else 0.0
            values.append(old * values[-1] + (1 - old) * score)
        return roc_auc_score(truth, values)

    best = max(experiments.HALF_LIVES, key=lambda half_life: auc("v", half_life))
    assert best > 0 and auc("t", best) > auc("t", 0)
    assert experiments.frame_aucs(place, str(tmp_path / "records.jsonl"), 0)[1:] == pytest.approx((auc("t", 0), auc("t", best)))

"""Metrics by class: segments matched by hand, VadCLIP's cap with its official segments, sklearn on real scores."""

import csv
import pickle

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from vau_lib.data import records
from vau_lib.evaluation import class_metrics, metrics
from vau_lib.workspace import artifacts

TWO = ("Normal", "Fighting")


def by_hand():
    """Two events in a, one normal video that looks like a fight: (scores, segments); frames are places."""
    scores = {"a": np.zeros((20, 2)), "n": np.zeros((20, 2))}
    scores["a"][4:8, 1], scores["a"][12:14, 1] = 0.9, 0.5  # above .9 - .6 * .9 = .36; scores .9 + .63 and .5 + .63
    scores["n"][:4, 1] = 0.95  # .95 + .665, the highest: a false alarm
    scores["n"][1:, 0] = 1.0  # frames 1 to 19 of 20: IoU .95
    return scores, {"a": [("Fighting", 4, 8), ("Fighting", 12, 16)], "n": [("A", 0, 20)]}


def test_segments_are_matched_as_counted_by_hand():
    """Proposals in order: false, right (IoU 1), right at IoU .5 and no more: AP (1/2 + 2/3) / 2, then (1/2) / 2."""
    scores, segments = by_hand()
    found = class_metrics.segment_map(scores, segments, classes=TWO, ious=(0.5, 0.6))
    low, high = (1 + (1 / 2 + 2 / 3) / 2) / 2, (1 + 1 / 4) / 2  # the mean with class Normal, which is perfect
    assert found == pytest.approx({"segment_map_0.5": low, "segment_map_0.6": high, "segment_map": (low + high) / 2})
    capped = class_metrics.segment_map(scores, segments, classes=TWO, ious=(0.5,), released=True)
    assert capped["segment_map"] == pytest.approx((1 / 2 + 2 / 3) / 4)  # "A" is no class there: Normal has AP 0


def test_a_segment_is_matched_once_and_by_the_best_overlap():
    """Two proposals on one event: the second is false. One proposal over two events takes the one it overlaps more."""
    scores = {"a": np.zeros((40, 1))}
    scores["a"][2:10, 0], scores["a"][12:20, 0] = 0.9, 0.8
    one = class_metrics.segment_map(scores, {"a": [("x", 0, 20)]}, classes=("x",), ious=(0.3,))
    assert one["segment_map"] == 1.0  # precision 1 at the only right one
    scores["a"][12:20, 0] = 0.95
    swapped = class_metrics.segment_map(scores, {"a": [("x", 2, 10), ("x", 30, 40)]}, classes=("x",), ious=(0.3,))
    assert swapped["segment_map"] == pytest.approx(1 / 2 / 2)
    wide = {"a": np.zeros((40, 1))}
    wide["a"][0:20, 0] = 0.9
    both = class_metrics.segment_map(wide, {"a": [("x", 0, 6), ("x", 6, 20)]}, classes=("x",), ious=(0.1, 0.5, 0.8))
    assert both == pytest.approx({"segment_map_0.1": 0.5, "segment_map_0.5": 0.5, "segment_map_0.8": 0, "segment_map": 1 / 3})


def test_proposals_of_several_thresholds_go_through_nms():
    """Thresholds .81 and .36 on a step of .9 upon .8: runs 4:8 and 2:10 have IoU .5 and both stay; with 3:9 it is .67."""
    for margin, spans in ((2, [[4, 8], [2, 10]]), (1, [[4, 8]])):
        scores = np.zeros(32)
        scores[4 - margin : 8 + margin], scores[4:8] = 0.8, 0.9
        assert class_metrics._proposals([scores], (0.1, 0.6), released=False)[:, 1:3].tolist() == spans


def test_flat_scores_and_absent_classes():
    segments = {"n": [("Normal", 0, 32)]}
    flat = {"n": np.full((32, 2), 0.5) * [1, 0]}  # Normal everywhere, Fighting nowhere
    assert class_metrics.segment_ap(flat, segments, classes=TWO, ious=(0.5,))["Normal"] == {0.5: 1.0}
    assert np.isnan(class_metrics.segment_ap(flat, segments, classes=TWO, ious=(0.5,))["Fighting"][0.5])  # no segment
    assert class_metrics.segment_map(flat, segments, classes=TWO)["segment_map"] == 1.0
    assert class_metrics.segment_map(flat, segments, classes=TWO, released=True)["segment_map"] == 0.0


@pytest.mark.parametrize(
    "scores, segments, said",
    [
        ({"a": np.ones((4, 2))}, {"b": []}, "video a has scores but no segments"),
        ({"a": np.ones((2, 4))}, {"a": []}, r"video a: class scores must be \(T, 2\) finite numbers, got \(2, 4\)"),
        ({"a": np.full((4, 2), np.nan)}, {"a": []}, "video a: class scores must be"),
        ({"a": np.ones((4, 2))}, {"a": [("Fighting", 3, 3)]}, r"a segment starts at 0 .* got \('Fighting', 3, 3\)"),
        ({}, {}, "no videos to evaluate"),
    ],
)
def test_what_does_not_fit_is_refused(scores, segments, said):
    with pytest.raises(ValueError, match=said):
        class_metrics.segment_map(scores, segments, classes=TWO)


def test_records_become_segments():
    spans = (records.Span(1, 2), records.Span(3, 4, label="Shooting"))
    found = [
        records.VideoRecord("a", "a.mp4", "x", "test", 1, ("Fighting",), spans, fps=30.0, num_frames=200),
        records.VideoRecord("n", "n.mp4", "x", "test", 0, num_frames=64),
    ]
    assert class_metrics.record_segments(found) == {"a": [("Fighting", 30, 60), ("Shooting", 90, 120)], "n": [("Normal", 0, 64)]}
    with pytest.raises(ValueError, match="video b: the event at 1 s has no class"):
        class_metrics.record_segments([records.VideoRecord("b", "b", "x", "test", 1, ("F", "G"), spans[:1])])


def test_lists_of_segments_run_no_code(tmp_path):
    spans, labels = np.empty(2, object), np.empty(2, object)
    spans[:], labels[:] = [[["5", "9"], [12, 20]], [[0, 32]]], [["Abuse", "Arson"], ["A"]]
    np.save(tmp_path / "s.npy", spans, allow_pickle=True)
    np.save(tmp_path / "l.npy", labels, allow_pickle=True)
    found = class_metrics.released_segments(tmp_path / "s.npy", tmp_path / "l.npy", ["v", "n"])
    assert found == {"v": [("Abuse", 5, 9), ("Arson", 12, 20)], "n": [("A", 0, 32)]}
    with pytest.raises(artifacts.StoreError, match="s.npy: 2 videos, 2 labels, 3 names"):
        class_metrics.released_segments(tmp_path / "s.npy", tmp_path / "l.npy", ["v", "n", "m"])

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    with (tmp_path / "evil.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
        pickle.dump(Evil(), file)
    with pytest.raises(artifacts.StoreError, match="evil.npy: a list of segments holds .*open, which is not read"):
        class_metrics.released_segments(tmp_path / "evil.npy", tmp_path / "l.npy", ["v"])
    assert not (tmp_path / "ran").exists()
    np.save(tmp_path / "plain.npy", np.ones(3))
    with pytest.raises(artifacts.StoreError, match="plain.npy: an array of lists is needed"):
        class_metrics.released_segments(tmp_path / "plain.npy", tmp_path / "l.npy", ["v"])


def test_a_class_is_ranked_alone_and_beside_normal_videos():
    scores = {"f": [0.1, 0.9, 0.2], "s": [0.5, 0.4, 0.5], "b": [0.3, 0.3, 0.3], "n": [0.0, 0.45, 0.0]}
    labels = {"f": [0, 1, 0], "s": [0, 1, 0], "b": [1, 1, 1], "n": [0, 0, 0]}
    classes = {"f": ("F",), "s": ("S",), "b": ("B", "F"), "n": ("Normal",)}
    rows = {row["class"]: row for row in class_metrics.by_class(scores, labels, classes)}
    assert list(rows) == ["B", "F", "S"] and rows["F"]["videos"] == 2 and rows["S"]["normal_videos"] == 1
    assert rows["S"]["frame_auc_anomalous_only"] == 0.0 and rows["S"]["frame_auc"] == pytest.approx(2 / 5)
    assert np.isnan(rows["B"]["frame_auc_anomalous_only"]) and rows["B"]["frame_auc"] == pytest.approx(2 / 3)
    truth, values = [0, 1, 0, 1, 1, 1], [0.1, 0.9, 0.2, 0.3, 0.3, 0.3]  # videos f and b
    assert rows["F"]["frame_auc_anomalous_only"] == roc_auc_score(truth, values)
    assert rows["F"]["frame_ap_anomalous_only"] == average_precision_score(truth, values)
    assert rows["F"]["frame_ap"] == pytest.approx(average_precision_score(truth + [0] * 3, values + [0.0, 0.45, 0.0]))
    assert rows["F"]["chance_ap"] == 4 / 9 and {row["scores"] for row in rows.values()} == {"class-agnostic"}
    with pytest.raises(ValueError, match="video f is anomalous and has no class"):
        class_metrics.by_class(scores, labels, {})


def test_class_scores_rank_each_class_by_its_own_column():
    labels, classes = {"f": [0, 1], "s": [1, 0]}, {"f": ("F",), "s": ("S",)}
    scores = {"f": np.array([[0.9, 0.1], [0.1, 0.9]]), "s": np.array([[0.8, 0.5], [0.2, 0.6]])}
    rows = {row["class"]: row for row in class_metrics.by_class(scores, labels, classes, columns=("S", "F"))}
    assert (rows["F"]["frame_auc"], rows["S"]["frame_auc"], rows["S"]["scores"]) == (1.0, 1.0, "own class")
    with pytest.raises(ValueError, match="class S has no column among F, G"):
        class_metrics.by_class(scores, labels, classes, columns=("F", "G"))


def test_a_models_class_scores_go_from_a_file_to_a_report(tmp_path):
    """Snippets of 16 frames, published class names: one video of each class right, the other wrong by half."""
    spans = (records.Span(16 / 30, 32 / 30),)
    found = [
        records.VideoRecord("r", "r.mp4", "x", "test", 1, ("road accident",), spans, num_frames=60),
        records.VideoRecord("dir/f", "f.mp4", "x", "test", 1, ("fighting",), spans, num_frames=60),
        records.VideoRecord("n", "n.mp4", "x", "test", 0, num_frames=60),
    ]
    columns = ("Normal", "Fighting", "RoadAccidents")
    scores = {name: np.full((4, 3), 0.1) for name in ("r", "dir/f", "n")}
    scores["r"][1, 2], scores["dir/f"][1:3, 1], scores["n"][:, 0] = 0.9, 0.9, 0.8
    class_metrics.write_class_scores(tmp_path / "class_scores.npz", scores, columns)
    rows, mean = class_metrics.class_report(tmp_path / "class_scores.npz", found)
    rows = {row["class"]: row for row in rows}
    assert rows["road accident"]["frame_auc"] == 1.0 and rows["road accident"]["scores"] == "own class"
    assert rows["fighting"]["frame_auc_anomalous_only"] == pytest.approx((28 + 16 / 2) / 44)  # 16 of 44 normal frames are tied
    # flat .1 is a proposal as well, after the right one; fighting's has IoU 16 / 32
    assert mean["segment_map_0.5"] == 1.0 and mean["segment_map_released"] == 0.0  # Normal is flat: no proposal there
    with pytest.raises(ValueError, match="class_scores.npz: video n has no scores"):
        class_metrics.write_class_scores(tmp_path / "class_scores.npz", {k: scores[k] for k in ("r", "dir/f")}, columns)
        class_metrics.class_report(tmp_path / "class_scores.npz", found)
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(artifacts.StoreError, match="bad.npz holds no class scores"):
        class_metrics.read_class_scores(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=r"video n: class scores must be \(n, 2\), got \(4, 3\)"):
        class_metrics.write_class_scores(tmp_path / "bad.npz", {"n": scores["n"]}, columns[:2])


# Official segments, real scores.


@pytest.fixture(scope="module")
def official(real_data):
    """Return VadCLIP's segments of a data set by video name, and its classes."""

    def read(which, ending, classes):
        folder = real_data / "gt" / "vadclip_list"
        with (folder / f"{which}_CLIP_rgbtest.csv").open(encoding="utf-8") as file:
            names = [row[0].rsplit("/", 1)[-1].rsplit("__", 1)[0] for row in list(csv.reader(file))[1:]]
        files = (folder / f"gt_segment{ending}.npy", folder / f"gt_label{ending}.npy")
        return class_metrics.released_segments(*files, names), classes

    return read


def oracle(segments, classes, extra):
    """Return {video: (T, C)}: 1 where the class is, over `extra` frames more than the last segment's end."""
    found = {}
    for name, rows in segments.items():
        found[name] = np.zeros((max(end for *_, end in rows) + extra, len(classes)))
        for kind, start, end in rows:
            found[name][start:end, classes.index(kind) if kind in classes else classes.index("Normal")] = 1
    return found


@pytest.mark.real
def test_a_perfect_oracle_of_ucf_crime_passes_13_of_14_only_as_intended(official):
    segments, classes = official("ucf", "_ucf", class_metrics.UCF_CLASSES)
    assert len(segments) == 290 and sum(rows[0][0] == "A" for rows in segments.values()) == 150
    for extra in (0, 16):
        assert class_metrics.segment_map(oracle(segments, classes, extra), segments, classes=classes)["segment_map"] == 1.0
    capped = class_metrics.segment_map(oracle(segments, classes, 16), segments, classes=classes, released=True)
    assert capped == pytest.approx(dict.fromkeys(capped, 13 / 14)) and round(100 * capped["segment_map"], 2) == 92.86
    half = {name: rows if rows[0][0] != "Shooting" else [("Shooting", 0, 4)] for name, rows in segments.items()}
    less = class_metrics.segment_map(oracle(half, classes, 6000), segments, classes=classes)
    assert less["segment_map_0.5"] < 13.1 / 14  # shootings are elsewhere now


@pytest.mark.real
def test_xd_violence_has_no_cap_for_its_normal_class_is_called_a(official):
    segments, classes = official("xd", "", class_metrics.XD_CLASSES)
    assert len(segments) == 800 and {row[0] for rows in segments.values() for row in rows} <= set(classes)
    scores = oracle(segments, classes, 16)
    ap = class_metrics.segment_ap(scores, segments, classes=classes, ious=(0.5,), released=True)
    assert ap["A"] == {0.5: 1.0}
    both = [class_metrics.segment_map(scores, segments, classes=classes, released=kind) for kind in (False, True)]
    assert both[0] == pytest.approx(both[1])


@pytest.fixture(scope="module")
def ucf(real_data):
    """Per-frame scores of a 32-segment model, the truth and the class of UCF-Crime's 290 test videos."""
    with np.load(real_data / "predictions" / "ucf_sultani_style_scores_32seg.npz") as rows:
        table = [rows[key] for key in ("video", "scores", "n_frames", "intervals")]
    scores, labels, classes = {}, {}, {}
    for name, segments, frames, spans in zip(*table, strict=True):
        name, bounds = str(name), np.round(np.linspace(0, int(frames), 33)).astype(int)
        scores[name] = np.repeat(segments, np.diff(bounds))
        labels[name] = np.zeros(frames, int)
        for start, stop in spans.reshape(-1, 2):
            labels[name][max(start, 0) : max(stop, 0)] = 1
        classes[name] = (name.split("_")[0].rstrip("0123456789"),)
    return scores, labels, classes


@pytest.mark.real
def test_classes_of_ucf_crime_on_real_scores_agree_with_sklearn(ucf):
    scores, labels, classes = ucf
    abnormal = [name for name in labels if not name.startswith("Normal")]
    joined = [np.concatenate([kind[name] for name in abnormal]) for kind in (labels, scores)]
    assert metrics.frame_auc_anomalous_only(scores, labels) == pytest.approx(roc_auc_score(*joined), abs=1e-12)
    assert metrics.frame_ap_anomalous_only(scores, labels) == pytest.approx(average_precision_score(*joined), abs=1e-12)
    rows = {row["class"]: row for row in class_metrics.by_class(scores, labels, classes)}
    assert set(rows) == set(class_metrics.UCF_CLASSES[1:]) and sum(row["videos"] for row in rows.values()) == 140
    normal = [name for name in labels if name.startswith("Normal")]
    for one, row in rows.items():
        members = [name for name in abnormal if classes[name] == (one,)]
        for names, auc, ap in (
            (members, "frame_auc_anomalous_only", "frame_ap_anomalous_only"),
            (members + normal, "frame_auc", "frame_ap"),
        ):
            joined = [np.concatenate([kind[name] for name in names]) for kind in (labels, scores)]
            assert row[auc] == pytest.approx(roc_auc_score(*joined), abs=1e-12)
            assert row[ap] == pytest.approx(average_precision_score(*joined), abs=1e-12)


@pytest.mark.real
def test_classes_of_xd_violence_on_real_scores_agree_with_sklearn(real_data):
    """A video of several classes ("B1-B2-G") counts for each of them."""
    with np.load(real_data / "gt" / "xd_violence" / "xd_violence_test_gt_per_video.npz") as file:
        labels = {name: file[name] for name in file.files}
    stored = np.load(real_data / "predictions" / "c2fpl_xd_pred_raw_seg.npy")[:, 0]
    parts = np.split(stored, np.cumsum([len(truth) // 16 for truth in labels.values()])[:-1])
    scores = {name: np.repeat(part, 16) for (name, part) in zip(labels, parts, strict=True)}
    classes = {name: [code for code in name.rsplit("label_", 1)[1].split("-") if code != "0"] for name in labels}
    truth, values = np.concatenate(list(labels.values())), np.concatenate(list(scores.values()))
    assert roc_auc_score(truth, values) == pytest.approx(0.6656061807880673, abs=1e-9)
    abnormal = np.repeat([bool(video.any()) for video in labels.values()], [len(video) for video in labels.values()])
    assert metrics.frame_auc_anomalous_only(scores, labels) == pytest.approx(roc_auc_score(truth[abnormal], values[abnormal]))
    rows = {row["class"]: row for row in class_metrics.by_class(scores, labels, classes)}
    assert set(rows) == set(class_metrics.XD_CLASSES[1:]) and rows["G"]["videos"] == sum("G" in found for found in classes.values())
    names = [name for name in labels if "B4" in classes[name]]
    joined = [np.concatenate([kind[name] for name in names]) for kind in (labels, scores)]
    assert rows["B4"]["frame_auc_anomalous_only"] == pytest.approx(roc_auc_score(*joined), abs=1e-12)
    assert rows["B4"]["frame_ap_anomalous_only"] == pytest.approx(average_precision_score(*joined), abs=1e-12)

"""Feature lists of other families, in files written as their authors publish them, and real C3D features."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from vau_lib import cli
from vau_lib.data import records
from vau_lib.features import extraction, feature_lists
from vau_lib.workspace import artifacts

D = 6


def rng(seed=0):
    return np.random.default_rng(seed)


def written(folder, name, array):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    np.save(folder / name, array)
    return array


def listed(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def rtfm(tmp_path):
    """RTFM: one (T, 10, D) file a video, Windows paths, UCF-Crime names."""
    arrays = {}
    for place, name in enumerate(("Abuse001_x264", "RoadAccidents002_x264", "Normal_Videos_003_x264")):
        arrays[name] = written(tmp_path / "npy" / "Test", f"{name}_i3d.npy", rng(place).random((7 + place, 10, D), np.float32))
    listed(tmp_path / "ucf-i3d-test.list", *(rf"G:\UCF_Test_ten_crop_i3d\{name}_i3d.npy" for name in arrays))
    return tmp_path, arrays


def test_rtfm_ten_crops_inside_one_file(rtfm):
    folder, arrays = rtfm
    found = feature_lists.feature_list(folder / "ucf-i3d-test.list", folder / "npy")
    assert [(v.name, v.label) for v in found] == [
        ("Abuse001_x264", "Abuse"),
        ("RoadAccidents002_x264", "RoadAccidents"),
        ("Normal_Videos_003_x264", "Normal"),
    ]
    counts = feature_lists.import_lists([folder / "ucf-i3d-test.list"], folder / "npy", folder / "ucf" / "released", width=D)
    assert counts == {"Abuse001_x264": 7, "RoadAccidents002_x264": 8, "Normal_Videos_003_x264": 9}
    written_records = records.read_records(folder / "ucf" / "released" / "records.jsonl")
    assert [(r.id, r.label, r.classes, r.split, r.num_frames) for r in written_records] == [
        ("Abuse001_x264", 1, ("abuse",), "test", 112),
        ("RoadAccidents002_x264", 1, ("road accident",), "test", 128),
        ("Normal_Videos_003_x264", 0, (), "test", 144),
    ]
    rows = extraction.load(folder / "ucf" / "released", written_records)
    for name, features in arrays.items():
        by_hand = sum(features[:, k].astype(np.float64) for k in range(10)) / 10
        np.testing.assert_allclose(rows[name], by_hand, atol=1e-6)
        assert rows[name].dtype == np.float32


def test_crops_as_samples_are_ten_training_samples_of_one_source(rtfm):
    folder, arrays = rtfm
    out = folder / "ucf" / "samples"
    counts = feature_lists.import_lists([folder / "ucf-i3d-test.list"], folder / "npy", out, width=D, crops="samples")
    assert len(counts) == 30 and counts["Abuse001_x264__9"] == 7
    np.testing.assert_array_equal(np.load(out / "Abuse001_x264__9.npy"), arrays["Abuse001_x264"][:, 9])
    found = records.read_records(out / "records.jsonl")
    assert {r.source for r in found} == set(arrays) and not records.leaks(found)  # a video's crops stay in one split
    scores = {name: np.load(out / f"{name}.npy")[:, 0] for name in counts}
    mean = feature_lists.mean_over_crops(scores)
    np.testing.assert_allclose(mean["Abuse001_x264"], arrays["Abuse001_x264"][:, :, 0].mean(1), atol=1e-6)
    with pytest.raises(ValueError, match="Abuse001_x264: crops must be .* of one length, got"):
        feature_lists.mean_over_crops(scores | {"Abuse001_x264__9": np.ones(3)})
    with pytest.raises(ValueError, match="abc is no sample"):
        feature_lists.mean_over_crops({"abc": np.ones(3)})


@pytest.mark.parametrize("sign, crops", [("__", 10), ("__", 5), ("_", 10)])
def test_ur_dmu_and_xdviodet_have_a_file_per_crop(sign, crops, tmp_path):
    names = [
        "Bad.Boys.1995__#00-26-51_00-27-53_label_B2-0-0",
        "v=ab=c__#1_label_A",
        "Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6",
    ]
    arrays = {n: rng(k).random((crops, 4 + k, D), np.float32) for k, n in enumerate(names)}
    for name, array in arrays.items():
        for k in range(crops):
            written(tmp_path / "RGB", f"{name}{sign}{k}.npy", array[k])
    lines = {n: [f"E:/DLCode/i3d-features/RGB/{n}{sign}{k}.npy" for k in range(crops)] for n in names}
    lists = [
        listed(tmp_path / "XD_Train.list", *lines[names[0]], *lines[names[1]]),
        listed(tmp_path / "XD_Test.list", *lines[names[2]]),
    ]
    out = tmp_path / "xd" / "released"
    assert feature_lists.import_lists(lists, tmp_path / "RGB", out, width=D) == {n: 4 + k for k, n in enumerate(names)}
    for name, array in arrays.items():
        np.testing.assert_allclose(np.load(out / f"{name}.npy"), array.mean(0), atol=1e-6)
    found = {r.id: (r.split, r.label, r.classes, r.group) for r in records.read_records(out / "records.jsonl")}
    assert found == {
        names[0]: ("train", 1, ("shooting",), "Bad.Boys.1995"),
        names[1]: ("train", 0, (), "v=ab=c"),
        names[2]: ("test", 1, ("explosion", "shooting", "car accident"), "Bad.Boys.1995"),
    }
    (tmp_path / "RGB" / f"{names[2]}{sign}3.npy").unlink()
    with pytest.raises(artifacts.StoreError, match=rf"XD_Test.list: 1 of {crops} files missing, first: RGB/.*{sign}3.npy is not"):
        feature_lists.feature_list(lists[1], tmp_path / "RGB")
    few = listed(tmp_path / "few.list", *lines[names[0]], *lines[names[1]][:-1])
    with pytest.raises(artifacts.StoreError, match=f"few.list: v=ab=c.* has {crops - 1} crops where others have {crops}"):
        feature_lists.feature_list(few, tmp_path / "RGB")


def test_names_that_end_in_one_digit_are_no_crops(tmp_path):
    for k in (1, 2):
        written(tmp_path, f"Cam{k}_1.npy", np.ones((3, D)))
        written(tmp_path, f"Cam{k}_2.npy", np.ones((3, D)))
    path = listed(tmp_path / "l.list", *(f"/a/Cam{k}_{j}.npy" for k in (1, 2) for j in (1, 2)))
    assert [v.name for v in feature_lists.feature_list(path, tmp_path)] == ["Cam1_1", "Cam1_2", "Cam2_1", "Cam2_2"]


@pytest.mark.parametrize(
    "shape, axis, crops",
    [
        ((7, 10, D), None, 1),
        ((10, 7, D), None, 0),
        ((10, 10, D), 1, 1),
        ((10, 10, D), 0, 0),
        ((5, 10, D), 1, 1),
        ((12, 5, D), None, 1),
    ],
)
def test_the_axis_of_the_crops(shape, axis, crops, tmp_path):
    array = written(tmp_path, "a.npy", rng().random(shape, np.float32))
    found = feature_lists.read_crops([tmp_path / "a.npy"], width=D, crop_axis=axis)
    assert found.shape == (shape[crops], shape[1 - crops], D)
    np.testing.assert_array_equal(found[3, 2], array[2, 3] if crops == 1 else array[3, 2])


@pytest.mark.parametrize(
    "array, axis, said",
    [
        (np.ones((7, 10, D)), 0, "axis 0 is to be the crops and must have 5 or 10"),
        (np.ones((10, 7, D)), 1, "axis 1 is to be the crops and must have 5 or 10"),
        (np.ones((10, 10, D)), None, "either axis may be the crops, name crop_axis"),
        (np.ones((5, 10, D)), None, "either axis may be the crops, name crop_axis"),
        (np.ones((7, 9, D)), None, "no axis has 5 or 10 crops"),
        (np.ones((7, D, 10)), None, "the last axis must be the 6 channels"),
        (np.ones((D, 7)), None, "the last axis must be the 6 channels"),
        (np.ones((16, 10, 10, D)), None, "the first of four axes must be the 6 channels"),
        (np.ones((7, 10, D), int), None, "features must be floats"),
        (np.ones(D), None, "features must be floats"),
        (np.full((7, D), np.nan), None, "NaN or infinity"),
    ],
)
def test_a_wrong_axis_is_refused(array, axis, said, tmp_path):
    written(tmp_path, "a.npy", array)
    with pytest.raises(artifacts.StoreError, match=f"a.npy: {said}") as caught:
        feature_lists.read_crops([tmp_path / "a.npy"], width=D, crop_axis=axis)
    assert "\n" not in str(caught.value)


def test_shanghaitech_names_tell_no_label(tmp_path):
    names = ["01_0015", "12_0149", "01_002"]
    for name in names:
        written(tmp_path, f"{name}_i3d.npy", np.ones((4, 10, D)))
    path = listed(tmp_path / "shanghai-i3d-train-10crop.list", *(f"/home/yu/SH_Train_ten_crop_i3d/{n}_i3d.npy" for n in names))
    with pytest.raises(artifacts.StoreError, match="the name 01_0015 does not tell its label"):
        feature_lists.feature_list(path, tmp_path)
    found = feature_lists.feature_list(path, tmp_path, anomalous_first=2)
    assert [(v.name, v.label) for v in found] == [("01_0015", "Anomalous"), ("12_0149", "Anomalous"), ("01_002", "Normal")]


def test_x3d_of_stead_is_channels_first_and_has_no_moments(tmp_path):
    array = written(tmp_path / "X3D_Videos" / "Abuse", "Abuse028_x264.npy", rng().random((192, 16, 3, 3), np.float32))
    path = listed(tmp_path / "ucf_x3d_test.txt", "X3D_Videos/Abuse/Abuse028_x264.npy")
    out = tmp_path / "ucf" / "x3d"
    assert feature_lists.import_lists([path], tmp_path / "X3D_Videos", out, width=192) == {"Abuse028_x264": 16}
    np.testing.assert_allclose(np.load(out / "Abuse028_x264.npy")[5], array[:, 5].mean((1, 2)), atol=1e-6)
    assert artifacts.read_json(out / "frames.json") == {} and records.read_records(out / "records.jsonl")[0].num_frames == 0


def test_parts_become_snippets_where_the_frames_are_known(tmp_path):
    """Sultani's text files: part p holds frames round(F p / 32) on; a snippet takes the part of its middle frame."""
    parts = np.repeat(np.arange(32.0)[:, None], 3, 1)
    np.savetxt(tmp_path / "Abuse001_x264_C.txt", parts, fmt="%.6f")
    path = listed(tmp_path / "Anomaly_Test_list.txt", "C3D/Abuse/Abuse001_x264_C.txt")
    kept = feature_lists.import_lists([path], tmp_path, tmp_path / "u" / "parts", width=3)
    assert kept == {"Abuse001_x264": 32} and artifacts.read_json(tmp_path / "u" / "parts" / "frames.json") == {}
    out = tmp_path / "u" / "snippets"
    assert feature_lists.import_lists([path], tmp_path, out, width=3, num_frames={"Abuse001_x264": 330}) == {"Abuse001_x264": 21}
    bounds = np.round(np.linspace(0, 330, 33))
    middles = [(start + min(start + 16, 330) - 1) / 2 for start in range(0, 330, 16)]
    by_hand = [max(p for p in range(32) if bounds[p] <= middle) for middle in middles]
    assert np.load(out / "Abuse001_x264.npy")[:, 0].tolist() == by_hand and by_hand[:3] == [0, 2, 3]
    with pytest.raises(artifacts.StoreError, match="Abuse001_x264: 32 parts and no number of frames"):
        feature_lists.import_lists([path], tmp_path, tmp_path / "u" / "none", width=3, num_frames={})


def test_lists_that_do_not_read_are_refused(tmp_path, rtfm):
    folder, _ = rtfm
    for text, said in (
        ("\n", "l.list lists no file"),
        ("a/b.mat\n", "l.list line 1: a file .npy or .txt is needed, got a/b.mat"),
        ("x/Abuse001_x264_i3d.npy\nx/Abuse001_x264_i3d.npy\n", "l.list line 2: .* is listed twice"),
    ):
        (tmp_path / "l.list").write_text(text)
        with pytest.raises(artifacts.StoreError, match=said):
            feature_lists.feature_list(tmp_path / "l.list", folder / "npy")
    listed(tmp_path / "train.list", "x/Abuse001_x264_i3d.npy")
    with pytest.raises(artifacts.StoreError, match="Abuse001_x264 is in ucf-i3d-test.list and in train.list"):
        feature_lists.import_lists([folder / "ucf-i3d-test.list", tmp_path / "train.list"], folder / "npy", tmp_path / "o", width=D)
    with pytest.raises(ValueError, match="crops must be one of mean, samples, got 'best'"):
        feature_lists.import_lists([tmp_path / "train.list"], folder / "npy", tmp_path / "p", width=D, crops="best")


def test_the_command_reads_lists(rtfm):
    folder, _ = rtfm
    arguments = ["import-features", str(folder / "ucf-i3d-test.list"), "--from", str(folder / "npy"), "--width", str(D)]
    result = CliRunner().invoke(cli.app, [*arguments, "--to", str(folder / "u" / "r")])
    assert result.exit_code == 0 and result.stdout.strip().endswith("3 videos, 24 snippets"), result.stderr
    result = CliRunner().invoke(cli.app, [*arguments, "--to", str(folder / "u" / "s"), "--crops", "samples"])
    assert result.exit_code == 0 and result.stdout.strip().endswith("30 samples, 240 snippets"), result.stderr
    result = CliRunner().invoke(cli.app, [*arguments, "--to", str(folder / "u" / "r"), "--crops", "samples"])
    assert result.exit_code == 1 and "made with crops" in result.stderr


@pytest.mark.real
def test_real_c3d_features_of_ucf_crime(real_data, tmp_path):
    names = ["Explosion008_x264", "Normal_Videos_006_x264", "RoadAccidents002_x264", "Shooting008_x264"]
    source = real_data / "features" / "ucf_c3d_32seg"
    path = listed(tmp_path / "c3d_test.list", *(f"/data/C3D/{name}.npy" for name in names))
    kept = feature_lists.import_lists([path], source, tmp_path / "u" / "parts", width=4096)
    assert kept == dict.fromkeys(names, 32)
    frames = json.loads((real_data / "gt" / "ucf_crime" / "ucf_crime_test_num_frames.json").read_text())
    out = tmp_path / "u" / "snippets"
    counts = feature_lists.import_lists([path], source, out, width=4096, num_frames=frames)
    for name in names:
        assert counts[name] == -(-frames[name] // 16)
        original, rows = np.load(source / f"{name}.npy"), np.load(out / f"{name}.npy")
        np.testing.assert_array_equal(rows[[0, -1]], original[[0, -1]].astype(np.float32))
    found = {r.id: (r.label, r.classes) for r in records.read_records(out / "records.jsonl")}
    assert found[names[2]] == (1, ("road accident",)) and found[names[1]] == (0, ())


@pytest.mark.real
@pytest.mark.parametrize("which", ["ucf", "xd"])
def test_official_names_tell_their_labels(which, real_data):
    """The labels VadCLIP's lists give are those the file names of UR-DMU's lists tell."""
    lines = (real_data / "gt" / "vadclip_list" / f"{which}_CLIP_rgbtest.csv").read_text(encoding="utf-8").splitlines()[1:]
    for line in lines:
        path, _, label = line.rpartition(",")
        name = path.rsplit("/", 1)[-1].rsplit("__", 1)[0]
        assert feature_lists._label(real_data, name, 0, None).replace("-0", "") == label.replace("-0", "")

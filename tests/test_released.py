"""Released features become this project's rows, with the ground truth that fits them."""

import numpy as np
import pytest
from typer.testing import CliRunner

from vau_lib import cli
from vau_lib.data import datasets, records
from vau_lib.features import extraction, released
from vau_lib.workspace import artifacts

NAMES = ["v=abc__#1_label_B1-0-0", "Film__#00-01-02_00-02-00_label_A", "Other__#00-01-02_00-02-00_label_G-0-0"]
ROWS = {name: 5 + place for place, name in enumerate(NAMES)}


@pytest.fixture
def set_(tmp_path):
    """Two lists over three videos, two crops each; the third is for training."""
    for name, count in ROWS.items():
        for which in (0, 5):
            artifacts.save_array(tmp_path / "npy" / f"{name}__{which}.npy", np.full((count, 8), which, np.float16))
    for csv, chosen in (("test", NAMES[:2]), ("train", NAMES[2:])):
        lines = [f"/x/y/{name}__{which}.npy,{name.rpartition('label_')[2]}" for name in chosen for which in (0, 5)]
        (tmp_path / f"{csv}.csv").write_text("\n".join(["path,label", *lines, ""]))
    (tmp_path / "annotations.txt").write_text(f"{NAMES[0]} 16 40\n")
    return tmp_path


def test_rows_and_truth_fit_together(set_):
    lists = [set_ / "train.csv", set_ / "test.csv"]
    assert released.import_features(lists, set_ / "npy", set_ / "rows", width=8) == {n: ROWS[n] for n in (NAMES[2], *NAMES[:2])}
    found = datasets.xd_violence(
        set_ / "annotations.txt", train_list=lists[0], test_list=lists[1], num_frames=set_ / "rows" / "frames.json"
    )
    rows = extraction.load(set_ / "rows", found)
    assert {r.id: len(rows[r.id]) * 16 for r in found} == {r.id: r.num_frames for r in found}
    assert records.frame_labels(found[0]).tolist() == [0] * 16 + [1] * 24 + [0] * 40
    assert rows[NAMES[1]].mean() == 2.5 and rows[NAMES[1]].dtype == np.float32  # both crops, averaged


def test_a_crop_is_chosen_once_and_another_choice_is_refused(set_):
    result = CliRunner().invoke(
        cli.app,
        [
            "import-features",
            str(set_ / "test.csv"),
            "--from",
            str(set_ / "npy"),
            "--to",
            str(set_ / "r"),
            "--crops",
            "5",
            "--width",
            "8",
        ],
    )
    assert result.exit_code == 0 and result.stdout.strip().endswith("2 videos, 11 snippets"), result.stderr
    assert np.load(set_ / "r" / f"{NAMES[0]}.npy").mean() == 5
    with pytest.raises(artifacts.StoreError, match="made with crops"):
        released.import_features([set_ / "test.csv"], set_ / "npy", set_ / "r", crops=[0], width=8)
    with pytest.raises(artifacts.StoreError, match=r"none of the crops \[3\] among its 2 files"):
        released.import_features([set_ / "test.csv"], set_ / "npy", set_ / "other", crops=[3], width=8)
    with pytest.raises(artifacts.StoreError, match=r"features must be \(T, 512\) floats"):
        released.import_features([set_ / "test.csv"], set_ / "npy", set_ / "wide")

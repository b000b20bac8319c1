"""UCF-Crime and XD-Violence in the official layout with the official lists as they are: the presets run to the end.

A tree of a researcher who has begun: most of the listed videos are absent. Footage and features are real but stand-ins:
clips of other data sets under official names, long enough for the official events.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import BESIDE
from published_lshma import published_tree

from vau_lib.data import datasets, records, video
from vau_lib.features import released
from vau_lib.workspace import artifacts, notebook_runs

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.real
SMALL = ["world_videos=32", "stream_hours=0.6", "seeds=[0]", "recipe=ours", "ours={epochs: 2, rate: 0.0003}", "resamples=20"]
UCF_TEST = {  # official test videos whose events come early; frames of the stand-in
    "Explosion039_x264": 170, "RoadAccidents021_x264": 155, "Explosion027_x264": 200,
    "Normal_Videos_345_x264": 209, "Normal_Videos_881_x264": 224, "Normal_Videos_003_x264": 96,
}  # fmt: skip
ANNOTATED = {"Explosion039_x264": (60, 150), "RoadAccidents021_x264": (30, 90), "Explosion027_x264": (105, 180)}
LONG = pytest.mark.skipif("VAU_LONG" not in os.environ, reason="takes three minutes: `make testlong` runs it")


@pytest.fixture(scope="module")
def lists(real_data):
    return real_data / "gt" / "vadclip_list"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project of its own: notebooks, presets and published tables of this checkout, no data."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(ROOT / "data" / "results", folder / "data" / "results")  # notebooks show published tables beside their own
    return folder


def vau(folder: Path, *words) -> str:
    """Run the command a user types; return what it prints."""
    place = {"VAU_PROJECT": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    place |= {"VAU_WEIGHTS": str(Path(os.environ.get("VAU_REAL_DATA") or BESIDE) / "weights")}
    command = [Path(sys.executable).with_name("vau"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | place, cwd=folder)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stderr[-1500:]}"
    return done.stdout


def ran(folder: Path, preset: str, monkeypatch) -> pd.DataFrame:
    """Return what the notebooks of a preset recorded, a row each."""
    monkeypatch.setenv("VAU_PROJECT", str(folder))
    table = notebook_runs.table(preset).set_index(notebook_runs.table(preset)["notebook"].str[:2])
    assert set(table["failed"]) <= {""}
    return table


def overrides(*given: str) -> list[str]:
    return [word for value in (*SMALL, *given) for word in ("-p", value)]


# Stand-ins


def cut(frames: list[np.ndarray], path: Path, number: int) -> None:
    """Write so many frames of real footage, end to end, of one size."""
    height, width = (min(part.shape[axis] for part in frames) // 2 * 2 for axis in (1, 2))
    joined = np.concatenate([part[:, :height, :width] for part in frames])
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write_video(path, joined[np.arange(number) % len(joined)], fps=30)


def footage(path: Path, limit: int = 90) -> np.ndarray:
    """The first frames of a real video, a quarter of the pixels."""
    return video.read_frames(path, range(min(limit, video.probe(path).num_frames)))[:, ::2, ::2]


def features(real_data: Path, folder: Path, places: dict[str, int], crops) -> None:
    """Write half precision (T, 512) files: rows of real clips under official names, a little other in every crop."""
    with np.load(real_data / "features" / "fight_surv_squeezenet_32x512.npz") as file:
        rows, labels = file["x"].astype(np.float32), file["labels"] if "labels" in file.files else file["y"]
    for number, (name, count) in enumerate(places.items()):
        anomalous = not ("Normal" in name or name.endswith("label_A"))
        own = rows[np.flatnonzero(labels == anomalous)[3 * number : 3 * number + 3]].reshape(-1, 512)
        for crop in crops(name):
            seen = np.roll(np.resize(own, (count, 512)), crop, axis=0) * (1 + 0.01 * crop)
            artifacts.save_array(folder / f"{name}__{crop}.npy", seen.astype(np.float16))


def official_csv(path: Path, labelled: dict[str, str]) -> None:
    """Write a training list as VadCLIP's: an absolute path of their machine, ten crops a video."""
    lines = [f"/home/xbgydx/Desktop/Features/{name}__{crop}.npy,{label}" for name, label in labelled.items() for crop in range(10)]
    path.write_text("\n".join(["path,label", *lines, ""]))


# UCF-Crime


@pytest.fixture(scope="module")
def ucf(project, lists):
    """data/raw/ucf_crime with the official lists and annotation."""
    raw = project / "data" / "raw" / "ucf_crime"
    raw.mkdir(parents=True)
    for name in ("Anomaly_Train.txt", "Anomaly_Test.txt", "Temporal_Anomaly_Annotation.txt", "ucf_CLIP_rgbtest.csv"):
        shutil.copyfile(lists / name, raw / name)
    train = (raw / "Anomaly_Train.txt").read_text().split()
    official_csv(raw / "ucf_CLIP_rgb.csv", {n.removesuffix(".mp4"): re.sub(".*Normal.*", "Normal", n.split("/")[0]) for n in train})
    return raw


@pytest.fixture(scope="module")
def ucf_videos(ucf, real_data):
    """Five clips of either class for training, three of either for test, where UCF-Crime has them."""
    clips, train = real_data / "fight_surv", (ucf / "Anomaly_Train.txt").read_text().split()
    sources = {1: sorted((clips / "fight").glob("*.mp4"))[::9], 0: sorted((clips / "noFight").glob("*.mp4"))[::9]}
    events = [real_data / "videos" / "ucf_crime" / n for n in ("RoadAccidents133_x264_270_451.mp4", "Robbery102_x264.mp4")]
    chosen = {1: train[:3] + train[800:802], 0: [n for n in train if "Normal" in n][:5]}
    for label, names in chosen.items():
        for name, source in zip(names, sources[label], strict=False):
            cut([footage(source)], ucf / "videos" / name, 64)
    for number, (name, frames) in enumerate(UCF_TEST.items()):
        (place,) = [line for line in (ucf / "Anomaly_Test.txt").read_text().split() if name in line]
        parts = [footage(events[number % 2])] if "Normal" not in name else []
        cut([*parts, *(footage(p) for p in sources["Normal" not in name][5:8])], ucf / "videos" / place, frames)


def tiny_clip(folder: Path) -> Path:
    """A CLIP of the real class, two layers."""
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=24)
    torch.manual_seed(0)
    seen = transformers.CLIPVisionConfig(**sizes, image_size=224, patch_size=32)
    transformers.CLIPVisionModelWithProjection(seen).save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)
    return folder


@LONG
@pytest.mark.slow
def test_ucf_crime_from_videos(project, ucf, ucf_videos, monkeypatch, tmp_path):
    numbers = ["01", "03", "04", "05", "06", "12", "13"]
    vau(project, "run", "ucf_crime", *numbers, *overrides(f"model={tiny_clip(tmp_path / 'clip')}", "engine=serial"))
    table = ran(project, "ucf_crime", monkeypatch)
    assert list(table.index) == numbers
    assert table.loc["01", "videos"] == 1900 and table.loc["01", "skipped"] == 1900 - 16 and table.loc["01", "leaks"] == 0
    found = records.read_records(ucf / "records.jsonl")
    spans = {r.id: (round(r.events[0].start_s * r.fps), round(r.events[0].end_s * r.fps)) for r in found if r.events}
    assert spans == ANNOTATED and {r.id: r.num_frames for r in found if r.split == "test"} == UCF_TEST
    assert {r.split for r in found if r.id not in UCF_TEST} == {"train", "val"}
    result = pd.read_csv(project / "data/results/ucf_crime/ucf_crime.csv")
    assert set(result["videos"]) == {6} and set(result["expected"]) == {290} and set(result["dataset"]) == {"ucf_crime"}
    assert set(result["level"]) == {"video", "frame"} and set(result["kind"]) == {"ours", "released", "baseline", "sanity"}
    assert table.loc["13", "figures"] > 4


def checkpoint(folder: Path, kind: str, csv: Path, annotation: Path) -> dict[str, Path]:
    """Write a checkpoint of the published names and shapes; return the files that measure it."""
    torch.save({"epoch": 2, "model_state_dict": published_tree(kind).state_dict()}, folder / f"{kind}.pth")
    return {"weights": folder / f"{kind}.pth", "folder": csv.parent / "clip", "test_list": csv, "annotation": annotation}


def published_row(table: pd.DataFrame, videos: int, expected: int) -> pd.Series:
    """Return the row of the published way of testing, of a table that says how much of the list it saw."""
    assert set(table["videos"]) == {videos} and set(table["expected"]) == {expected}
    assert (table["kind"] == "released").sum() >= 4 and table["frame_auc"].between(0, 1).all()
    return table[table["method"].str.endswith("the published way")].iloc[0]


@LONG
@pytest.mark.slow
def test_ucf_crime_from_released_rows(project, ucf, real_data, monkeypatch, tmp_path):
    train = [n.removesuffix(".mp4") for n in (ucf / "Anomaly_Train.txt").read_text().split()]
    known = artifacts.read_json(real_data / "gt" / "ucf_crime" / "ucf_crime_test_num_frames.json")
    csvs = [ucf / "ucf_CLIP_rgb.csv", ucf / "ucf_CLIP_rgbtest.csv"]
    test = {line.split("/")[-2] + "/" + line.split("/")[-1].split("__")[0] for line in csvs[1].read_text().split()[1:]}
    chosen = {n: 20 + 3 * k for k, n in enumerate(train[:4] + train[802:804] + [n for n in train if "Normal" in n][:6])}
    chosen |= {n: known[n.split("/")[1]] // 16 for n in sorted(test) if n.split("/")[1] in UCF_TEST}
    features(real_data, ucf / "clip", chosen, lambda name: [5] if name in test else range(10))
    target = "data/features/ucf_crime_released/released"
    assert "18 videos" in vau(project, "import-features", *csvs, "--from", ucf / "clip", "--to", target, "--partial")
    files = checkpoint(tmp_path, "ucf", csvs[1], ucf / "Temporal_Anomaly_Annotation.txt")
    given = ", ".join(f"{key}: '{path}'" for key, path in files.items())
    vau(project, "run", "ucf_crime_released", *overrides(f"published_lshma={{{given}}}"))
    table = ran(project, "ucf_crime_released", monkeypatch)
    assert list(table.index) == ["01", "06", "12", "13"]
    assert table.loc["01", "videos"] == 1900 and table.loc["01", "skipped"] == 1900 - 18
    results = project / "data/results/ucf_crime_released"
    result = pd.read_csv(results / "ucf_crime_released.csv")
    assert set(result["videos"]) == {6} and set(result["expected"]) == {290}
    assert result["method"].str.startswith("LSHMA").sum() == 6 and set(result["features"]) == {"released CLIP"}
    row = published_row(pd.read_csv(results / "curves" / "lshma_published.csv"), 6, 290)
    assert row["published_frame_auc"] == 0.8744
    options = ["--annotation", files["annotation"], "--partial", "--resamples", "20", "--out", tmp_path / "published.csv"]
    printed = vau(project, "evaluate", files["weights"], files["folder"], files["test_list"], *options)
    again = published_row(pd.read_csv(tmp_path / "published.csv"), 6, 290)
    assert "6 of 290 videos" in printed and again["frame_auc"] == pytest.approx(row["frame_auc"], abs=1e-4)


# XD-Violence


@pytest.mark.slow
def test_xd_violence_from_released_rows(project, real_data, lists, tmp_path, monkeypatch):
    raw = project / "data" / "raw" / "xd_violence"
    raw.mkdir(parents=True)
    for name in ("annotations.txt", "xd_CLIP_rgbtest.csv"):
        shutil.copyfile(lists / name, raw / name)
    glance = (real_data / "gt" / "xd_glance_annotations.csv").read_text().splitlines()[1:]
    anomalous = list(dict.fromkeys(line.rpartition(",")[0] for line in glance))
    # the normal names are not at hand: other cuts of the same sources
    normal = list(dict.fromkeys(re.sub("_label_.*", "0_label_A", name) for name in anomalous))
    csvs = [raw / "xd_CLIP_rgb.csv", raw / "xd_CLIP_rgbtest.csv"]
    official_csv(csvs[0], {n: n.rpartition("label_")[2] for n in (*anomalous, *normal)})
    truth = np.load(real_data / "gt" / "xd_violence" / "xd_violence_test_gt_per_video.npz")
    short = sorted((len(truth[name]), name) for name in truth.files)
    test = [name for _, name in short if not name.endswith("_A")][:5] + [name for _, name in short if name.endswith("_A")][:4]
    shared = {n.split("__#")[0] for n in anomalous} & {n.split("__#")[0] for n in truth.files}
    alone = [n for n in anomalous if n.split("__#")[0] not in shared]
    train = anomalous[:3] + alone[:4] + normal[:3] + [re.sub("_label_.*", "0_label_A", n) for n in alone[10:14]]
    chosen = {n: 18 + 2 * k for k, n in enumerate(train)} | {n: len(truth[n]) // 16 for n in test}
    features(real_data, raw / "clip", chosen, lambda name: [0] if name in test else range(10))
    target = "data/features/xd_violence/released"
    vau(project, "import-features", *csvs, "--from", raw / "clip", "--to", target, "--partial")
    files = checkpoint(tmp_path, "xd", csvs[1], raw / "annotations.txt")
    given = ", ".join(f"{key}: '{path}'" for key, path in files.items())
    vau(project, "run", "xd_violence", *overrides(f"published_lshma={{{given}}}"))
    table = ran(project, "xd_violence", monkeypatch)
    assert list(table.index) == ["01", "06", "12", "13"]
    assert table.loc["01", "leaks"] == len(shared) == 139
    found = records.read_records(raw / "records.jsonl")
    assert {r.id for r in found if r.split == "test"} == set(test)
    assert any(r.split == "val" for r in found) and not {r.source for r in found if r.split == "val"} & shared
    results = project / "data/results/xd_violence"
    result = pd.read_csv(results / "xd_violence.csv")
    assert set(result["videos"]) == {9} and set(result["expected"]) == {800}
    assert result["method"].str.startswith("LSHMA").sum() == 6
    assert published_row(pd.read_csv(results / "curves" / "lshma_published.csv"), 9, 800)["published_frame_ap"] == 0.8168


# The lists as editors and archives leave them

WRITTEN = {
    "windows line ends": lambda lines: "\r\n".join(lines) + "\r\n",
    "byte order mark": lambda lines: "\ufeff" + "\n".join(lines) + "\n",
    "trailing blanks": lambda lines: "".join(f"{line} \t \n" for line in lines),
    "blank lines": lambda lines: "\n" + "\n\n".join(lines) + "\n\n \n",
    "no last newline": lambda lines: "\n".join(lines),
    "all at once": lambda lines: "\ufeff\r\n" + " \r\n\r\n".join(lines) + "\t\r\n\r\n",
}


@pytest.mark.parametrize("way", WRITTEN)
def test_the_official_lists_read_the_same_however_their_lines_end(lists, tmp_path, way):
    for path in lists.iterdir():
        if path.suffix in (".txt", ".csv"):
            text = WRITTEN[way](path.read_text().splitlines())
            (tmp_path / path.name).write_bytes(text.encode())

    def ucf(folder, test):
        names = {"train_list": folder / "Anomaly_Train.txt", "test_list": folder / test}
        return datasets.ucf_crime(folder / "Temporal_Anomaly_Annotation.txt", **names)

    def xd(folder, annotation):
        return datasets.xd_violence(folder / annotation, test_list=folder / "xd_CLIP_rgbtest.csv")

    for test in ("Anomaly_Test.txt", "ucf_CLIP_rgbtest.csv"):
        found = ucf(tmp_path, test)
        assert found == ucf(lists, test)
        assert [sum(r.split == part for r in found) for part in ("test", "train")] == [290, 1610]
        assert [sum(r.label for r in found if r.split == part) for part in ("test", "train")] == [140, 810]
    for annotation in ("annotations.txt", "annotations_multiclasses.txt"):
        found = xd(tmp_path, annotation)
        assert found == xd(lists, annotation) and len(found) == 800 and sum(r.label for r in found) == 500
    for csv, count in (("ucf_CLIP_rgbtest.csv", 290), ("xd_CLIP_rgbtest.csv", 800)):
        videos = released.list_videos(tmp_path / csv)
        assert videos == released.list_videos(lists / csv) and len(videos) == count


def test_names_with_and_without_mp4_are_one_video(lists, tmp_path):
    """14 official lines carry it; all of them or none change nothing. Names hold `#` and `=`, several `.`."""
    lines = (lists / "annotations.txt").read_text().splitlines()
    carrying = [line.split()[0] for line in lines if line.split()[0].endswith(".mp4")]
    assert len(lines) == 500 and len(carrying) == 14
    plain = datasets.xd_violence(lists / "annotations.txt", test_list=lists / "xd_CLIP_rgbtest.csv")
    ids = {r.id for r in plain}
    assert {name.removesuffix(".mp4") for name in carrying} <= ids and not any(name.endswith(".mp4") for name in ids)
    assert all("__#" in name for name in ids) and sum("=" in name for name in ids) > 100
    for mp4 in ("", ".mp4"):
        words = [line.split() for line in lines]
        text = "\n".join(" ".join([name.removesuffix(".mp4") + mp4, *spans]) for name, *spans in words)
        (tmp_path / "annotations.txt").write_text(text)
        assert datasets.xd_violence(tmp_path / "annotations.txt", test_list=lists / "xd_CLIP_rgbtest.csv") == plain
    text = (lists / "Temporal_Anomaly_Annotation.txt").read_text().splitlines()
    (tmp_path / "ucf.txt").write_text("\n".join(line.replace("_x264 ", "_x264.mp4 ") for line in text))
    (tmp_path / "test.txt").write_text((lists / "Anomaly_Test.txt").read_text().replace(".mp4", ""))
    named = datasets.ucf_crime(tmp_path / "ucf.txt", test_list=tmp_path / "test.txt")
    assert named == datasets.ucf_crime(lists / "Temporal_Anomaly_Annotation.txt", test_list=lists / "Anomaly_Test.txt")

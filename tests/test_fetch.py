"""Data sets fetched from a server on this machine come out as their readers read them."""

import io
import json
import os
import re
import tarfile
import zipfile
from collections import Counter
from csv import DictReader
from dataclasses import replace

import numpy as np
import pytest
from fake_file_server import CONTENT, SHA256, FileServer
from PIL import Image
from typer.testing import CliRunner

from vau_lib import cli
from vau_lib.data import datasets, fetch, records
from vau_lib.data.download import DownloadError
from vau_lib.features import checkpoints

QUICK = {"pause_s": 0.0, "progress": False, "tries": 2}


@pytest.fixture
def server():
    running = FileServer()
    yield running
    running.close()


@pytest.fixture
def official(server, monkeypatch):
    """The address of every source is the server's, with the name the official file has."""
    for name, of in fetch.SOURCES.items():
        if of.address:
            address = server.url.replace("file.bin", of.address.rsplit("/", 1)[1])
            monkeypatch.setitem(fetch.SOURCES, name, replace(of, address=address, sha256=""))
    return server


def brought(name, root, said=None, **options):
    said = [] if said is None else said
    return fetch.fetch(name, root, **{"agree": lambda question: True, "log": said.append, **QUICK, **options})


# What is known of the sources


def test_every_source_says_where_it_is_from_and_what_it_may_be_used_for():
    for name, of in fetch.SOURCES.items():
        text = "\n".join(fetch.facts(name))
        assert of.page in text and of.licence in text and all(f"{key}: " in text for key in ("address", "size", "sha256"))
        assert bool(of.address) + bool(of.by_hand) + (name == "clip") == 1
        assert re.fullmatch("[0-9a-f]{64}|", of.sha256)
    with pytest.raises(ValueError, match="nothing to fetch is called 'ped3'.*nearest is 'ped2'"):
        fetch.source("ped3")


def test_what_has_no_address_says_what_to_do(tmp_path):
    with pytest.raises(
        DownloadError, match=r"ucf_crime has no address to fetch: see https://www.crcv.ucf.edu.*data/raw/ucf_crime/"
    ):
        brought("ucf_crime", tmp_path)


def test_only_large_downloads_are_asked_about(official, tmp_path):
    questions = []

    def no(question):
        questions.append(question)
        return False

    official.content = bytes(21_000_000)
    with pytest.raises(DownloadError, match="ped2 was not fetched"):
        brought("ped2", tmp_path, agree=no)
    assert questions == ["fetch 21 MB for ped2?"] and not list(tmp_path.rglob("*.part"))
    official.content = CONTENT
    assert brought("xfeat", tmp_path, agree=no).read_bytes() == CONTENT and len(questions) == 1
    with pytest.raises(DownloadError, match="clip was not fetched"):
        brought("clip", tmp_path, agree=no, hub=lambda model: pytest.fail("asked the hub"))
    assert brought("clip", tmp_path, hub=lambda model: tmp_path / model) == tmp_path / "openai/clip-vit-base-patch16"


# XFeat


def test_fetched_weights_are_where_the_encoder_looks(official, tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(tmp_path))
    monkeypatch.delenv("VAU_WEIGHTS", raising=False)
    place = brought("xfeat", tmp_path / "data" / "raw")
    assert place.read_bytes() == CONTENT and checkpoints.find_weights("xfeat") == place
    said, before = [], len(official.requests)
    assert brought("xfeat", tmp_path / "data" / "raw", said) == place and len(official.requests) == before
    assert said[-1] == f"already there: {place}"


def test_weights_with_another_checksum_are_refused_downloaded_or_given(official, tmp_path, monkeypatch):
    monkeypatch.setitem(fetch.SOURCES, "xfeat", replace(fetch.SOURCES["xfeat"], sha256="0" * 64))
    with pytest.raises(DownloadError, match=f"sha256 {SHA256}, expected 0000.*removed .or download it from https://.*--from FILE"):
        brought("xfeat", tmp_path)
    own = tmp_path / "own.pt"
    own.write_bytes(CONTENT)
    with pytest.raises(ValueError, match=f"own.pt is refused: sha256 {SHA256}, expected 0000"):
        brought("xfeat", tmp_path, given=own)
    assert not (tmp_path / "weights" / "xfeat" / "xfeat.pt").exists()
    monkeypatch.setitem(fetch.SOURCES, "xfeat", replace(fetch.SOURCES["xfeat"], sha256=SHA256))
    assert brought("xfeat", tmp_path, given=own).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=r"^no file at /no/xfeat.pt; --from takes a file, or an address that starts with http"):
        brought("xfeat", tmp_path / "other", given="/no/xfeat.pt")


# UCSD Ped2

MATLAB = """TestVideoFile = {};
% TestVideoFile{end+1}.gt_frame = [1:2];
TestVideoFile{end+1}.gt_frame = [3:4];
TestVideoFile{end+1}.gt_frame = [1, 3 : 5];
"""


def picture(suffix):
    held = io.BytesIO()
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(held, {".tif": "TIFF", ".bmp": "BMP"}[suffix])
    return held.getvalue()


def ped2_archive(train, test, matlab):
    """Pack frames as the official archive has them, with Ped1 and the system files it also holds."""
    frame, mask, held = picture(".tif"), picture(".bmp"), io.BytesIO()
    top = "UCSD_Anomaly_Dataset.v1p2"
    members = {f"{top}/README.txt": b"read me", f"{top}/UCSDped1/Train/Train001/001.tif": frame}
    members |= {f"{top}/UCSDped2/Train/.DS_Store": b"x", f"{top}/UCSDped2/Test/UCSDped2.m": matlab.encode()}
    for part, lengths in (("Train", train), ("Test", test)):
        for number, length in enumerate(lengths, start=1):
            folder = f"{top}/UCSDped2/{part}/{part}{number:03}"
            members |= {f"{folder}/{place:03}.tif": frame for place in range(1, length + 1)}
            members |= {f"{folder}/._001.tif": b"x", f"{folder}/.DS_Store": b"x"}
            if part == "Test":
                members |= {f"{folder}_gt/{place:03}.bmp": mask for place in range(1, length + 1)}
    with tarfile.open(fileobj=held, mode="w:gz", compresslevel=1) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return held.getvalue()


@pytest.fixture
def small_ped2(monkeypatch):
    monkeypatch.setattr(fetch, "PED2_FRAMES", {"train": 7, "test": 9})


def test_ped2_comes_in_the_layout_its_reader_reads(official, small_ped2, tmp_path):
    official.content, official.cuts = ped2_archive([3, 4], [4, 5], MATLAB), [200]
    said = []
    root = brought("ped2", tmp_path, said)
    assert root == tmp_path / "ucsd_ped2" and sorted(p.name for p in root.iterdir()) == [
        "UCSDped2.m", "frame_gt.npz", "testing", "training",
    ]  # fmt: skip
    found = {record.path: record for record in datasets.ucsd_ped2(root)}
    assert {path: record.num_frames for path, record in found.items()} == {
        "training/frames/01": 3, "training/frames/02": 4, "testing/frames/01": 4, "testing/frames/02": 5,
    }  # fmt: skip
    assert records.frame_labels(found["testing/frames/01"]).tolist() == [0, 0, 1, 1]
    assert records.frame_labels(found["testing/frames/02"]).tolist() == [1, 0, 1, 1, 1]
    assert len(list((root / "testing" / "masks" / "02").iterdir())) == 5
    assert not [path for path in (tmp_path / ".downloads").rglob("*") if path.is_file()]  # the archive is removed
    assert json.loads((tmp_path / "checksums.json").read_text())[fetch.SOURCES["ped2"].address]["bytes"] == len(official.content)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"train": [3, 3]}, "is not whole: frames {'train': 6, 'test': 9}, expected"),
        ({"test": [4, 4]}, "UCSDped2.m: frames 3:5 of video 02, which has 4"),
        ({"test": [9]}, "UCSDped2.m has labels of 2 videos, there are 1"),
        ({"matlab": MATLAB.replace("[3:4]", "[x]")}, "'x' is no range of frames"),
    ],
)
def test_ped2_that_is_not_whole_leaves_nothing(official, small_ped2, tmp_path, change, match):
    official.content = ped2_archive(**{"train": [3, 4], "test": [4, 5], "matlab": MATLAB, **change})
    with pytest.raises(ValueError, match=match):
        brought("ped2", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".downloads"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # not the archive either, and no checksum


def full_disk(*_, **__):
    raise DownloadError("no space") from OSError(28, "No space left on device")


def test_a_failed_unpacking_does_not_download_again_and_a_changed_file_is_noticed(official, small_ped2, tmp_path, monkeypatch):
    official.content = ped2_archive([3, 4], [4, 5], MATLAB)
    with monkeypatch.context() as broken:
        broken.setattr(fetch, "unpack", full_disk)
        with pytest.raises(DownloadError, match="no space"):
            brought("ped2", tmp_path)
    assert brought("ped2", tmp_path).is_dir() and len(official.requests) == 1
    os.rename(tmp_path / "ucsd_ped2", tmp_path / "elsewhere")
    official.content = ped2_archive([3, 4], [4, 5], MATLAB + "%\n")
    with pytest.raises(DownloadError, match="sha256 .*, expected .*; the file was removed"):
        brought("ped2", tmp_path)
    assert not (tmp_path / "ucsd_ped2").exists()


@pytest.mark.real
def test_ped2_from_the_official_labels_has_the_known_truth(official, tmp_path, real_data):
    """Frames of the official counts, the official UCSDped2.m: all 2,010 labels as stored (four sources agree on them)."""
    stored = real_data / "ucsd_ped2"
    lengths = {
        part: [len(list(folder.iterdir())) for folder in sorted((stored / part / "frames").iterdir())]
        for part in ("training", "testing")
    }
    official.content = ped2_archive(lengths["training"], lengths["testing"], (stored / "UCSDped2.m").read_text())
    root = brought("ped2", tmp_path)
    with np.load(stored / "frame_gt.npz") as expected, np.load(root / "frame_gt.npz") as found:
        assert set(found.files) == set(expected.files) and sum(int(found[name].sum()) for name in found.files) == 1648
        for name in expected.files:
            np.testing.assert_array_equal(found[name], expected[name])


# Fights

VIDEOS = """https://www.youtube.com/watch?v=b
fi001: 0.13 - 0.15
nofi001: 2.34 - 2.37
https://www.youtube.com/watch?v=a
fi002: 0.14 - 0.17
https://www.youtube.com/watch?v=c
fi003: 0.1 - 0.2
nofi002: 0.1 - 0.2
https://www.youtube.com/watch?v=d
nofi002: 0.3 - 0.4
fi004: 0.5 - 0.7

nofi003 - nofi004 : CamNet Dataset
"""
CLIPS = ("fi001", "fi002", "fi003", "fi004", "nofi001", "nofi002", "nofi003", "nofi004")


def fights_archive(videos=VIDEOS, clips=CLIPS, packing=zipfile.ZIP_STORED):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", packing) as file:
        for name, content in {"LICENSE": "MIT", "README.md": "read", "videos.txt": videos, "code/x.py": "x"}.items():
            file.writestr(f"fight-detection-surv-dataset-ff83b7c/{name}", content)
        for clip in clips:
            folder = "noFight" if clip.startswith("no") else "fight"
            file.writestr(f"fight-detection-surv-dataset-ff83b7c/{folder}/{clip}.mp4", clip * 100)
    return held.getvalue()


def test_fights_come_with_the_source_of_every_clip(official, tmp_path, monkeypatch):
    official.content = fights_archive()
    with pytest.raises(DownloadError, match="is refused: its clips have sha256 .*, expected 1ef9181d"):
        brought("fights", tmp_path)  # from the official address the clips must be the known ones
    assert not (tmp_path / "fight_surv").exists() and not [path for path in tmp_path.rglob("*") if path.is_file()]
    with monkeypatch.context() as known:
        known.setattr(fetch, "clips_sha256", lambda folder: fetch.FIGHT_CLIPS)
        root = brought("fights", tmp_path)
    assert sorted(p.name for p in root.iterdir()) == ["LICENSE", "fight", "labels.csv", "noFight", "videos.txt"]
    found = {r.id: r for r in datasets.clip_folder(root, root / "labels.csv")}
    assert {name: r.group for name, r in found.items()} == {
        "fi001": "3", "nofi001": "3", "fi002": "2", "fi003": "5", "nofi002": "5", "fi004": "5", "nofi003": "0", "nofi004": "0",
    }  # fmt: skip
    assert all(r.label == (not name.startswith("no")) for name, r in found.items())
    with (root / "labels.csv").open() as file:
        folds = {(row["source_group"], row["fold"]) for row in DictReader(file)}
    assert len(folds) == 4  # a source lies in one fold


def test_the_content_counts_not_how_it_is_packed(tmp_path):
    sums = []
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        (tmp_path / "a.zip").write_bytes(fights_archive(packing=packing))
        fetch.arrange_fights(tmp_path / "a.zip", tmp_path / str(packing))
        sums.append(fetch.clips_sha256(tmp_path / str(packing)))
    assert sums[0] == sums[1]
    (tmp_path / "0" / "fight" / "fi001.mp4").write_bytes(b"other")
    assert fetch.clips_sha256(tmp_path / "0") != sums[0]


def test_another_address_is_compared_with_its_first_download(server, tmp_path):
    server.content = fights_archive()
    said = []
    root = brought("fights", tmp_path, said, given=server.url)
    assert any("none was published" in line for line in said) and root.is_dir()
    os.rename(root, tmp_path / "elsewhere")
    server.content = fights_archive(videos=VIDEOS + "\n")
    with pytest.raises(DownloadError, match="sha256 .*, expected .*"):
        brought("fights", tmp_path, given=server.url)


def test_fights_by_hand_and_with_own_labels(tmp_path):
    (tmp_path / "a.zip").write_bytes(fights_archive())
    (tmp_path / "own.csv").write_text("clip,label,source_group,fold\nfi001,1,7,0\n")
    root = brought("fights", tmp_path / "raw", given=tmp_path / "a.zip", labels=tmp_path / "own.csv")
    assert (tmp_path / "a.zip").exists() and (root / "labels.csv").read_text() == (tmp_path / "own.csv").read_text()
    (tmp_path / "bad.csv").write_text("clip\nfi001\n")
    with pytest.raises(ValueError, match="bad.csv|labels.csv has no column label"):
        brought("fights", tmp_path / "raw2", given=tmp_path / "a.zip", labels=tmp_path / "bad.csv")
    assert not (tmp_path / "raw2" / "fight_surv").exists()
    (tmp_path / "b.zip").write_bytes(fights_archive(clips=(*CLIPS, "fi150")))
    with pytest.raises(DownloadError, match="videos.txt does not name fi150; 1 such clips"):
        brought("fights", tmp_path / "raw2", given=tmp_path / "b.zip")


@pytest.mark.real
def test_the_sources_of_the_real_fights_are_those_known(real_data):
    """labels.csv of the real data was made elsewhere: source_group of all 207 clips comes out of videos.txt."""
    stored = list(DictReader((real_data / "fight_surv" / "labels.csv").open()))
    found = fetch.fight_labels((real_data / "fight_surv" / "videos.txt").read_text(), [row["clip"] for row in stored])
    assert [(str(f["label"]), str(f["source_group"])) for f in found] == [(s["label"], s["source_group"]) for s in stored]
    sizes = Counter((row["fold"], row["label"]) for row in found)
    assert len(sizes) == 8 and min(sizes.values()) >= 15
    assert len({(row["source_group"], row["fold"]) for row in found}) == len({row["source_group"] for row in found})


# The command


def test_the_command_lists_asks_and_fails_in_one_line(official, tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(tmp_path))

    def vau(*words, **options):
        return CliRunner().invoke(cli.app, ["fetch", *words], **options)

    listed = vau("--list")
    assert listed.exit_code == 0 and all(f"{name}: " in listed.stdout for name in fetch.SOURCES)
    done = vau("xfeat")
    assert done.exit_code == 0 and "xfeat is at data/raw/weights/xfeat/xfeat.pt" in done.stdout
    official.content = CONTENT * 8
    no = vau("ped2", input="n\n")
    assert no.exit_code == 1 and "fetch 24 MB for ped2?" in no.output and "vau: ped2 was not fetched" in no.stderr
    silent = vau("ped2")  # nobody answers
    assert silent.exit_code == 1 and not (tmp_path / "data/raw/ucsd_ped2").exists()
    bad = vau("ped2", "--yes")
    assert bad.exit_code == 1 and bad.stderr.splitlines()[-1].startswith("vau: UCSD_Anomaly_Dataset.tar.gz is neither a zip nor")
    official.status = 404
    gone = vau("fights", "--yes")
    assert gone.exit_code == 1 and "404" in gone.stderr and "vau fetch fights --from FILE" in gone.stderr
    by_hand = vau("xd_violence")
    assert by_hand.exit_code == 1 and "take lists, annotations and features from the page" in by_hand.stderr

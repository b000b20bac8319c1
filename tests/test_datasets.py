"""Foreign lists become records on every frame, and a line that does not fit is named, never guessed."""

import hashlib
import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import moving_square
from PIL import Image

from vau_lib.data import datasets, records, video
from vau_lib.data.records import RecordError, Span, VideoRecord

COUNTED = """Arson/Arson022_x264.mp4 8640 Arson 3500 4000 -1 -1
Vandalism/Vandalism017_x264.mp4 930 Vandalism 270 330 780 940
Testing_Normal_Videos_Anomaly/Normal_Videos_872_x264.mp4 530 Normal -1 -1 -1 -1
"""
PLAIN = """Arson022_x264  Arson  3500  4000  -1  -1
Vandalism017_x264.mp4  Vandalism  270  330  780  940

Normal_Videos_872_x264  Normal  -1  -1  -1  -1
"""
XD = """v=S-7r__#1_label_B4-0-0 0 1517 1970 3038
Fast.Five.2011__#01-20_01-25_label_B2-G-0.mp4 310 515 790 1045"""  # the last line has no newline


def text(tmp_path, content, name="list.txt"):
    path = tmp_path / name
    path.write_text(content)
    return path


def positives(record, num_frames=None):
    """The positive frames of a record as a set, from the one place that makes frame labels."""
    return set(np.flatnonzero(records.frame_labels(record, num_frames)).tolist())


def test_both_forms_of_ucf_crime_say_the_same(tmp_path):
    counted = datasets.ucf_crime(text(tmp_path, COUNTED, "counted.txt"))
    plain = datasets.ucf_crime(text(tmp_path, PLAIN, "plain.txt"), num_frames={"Arson022_x264": 8640,
        "Vandalism017_x264.mp4": 930, "Normal_Videos_872_x264": 530})  # fmt: skip
    assert counted == plain
    arson, vandalism, normal = counted
    assert arson.path == "Arson/Arson022_x264.mp4" and arson.classes == ("arson",) and arson.split == "test"
    assert positives(arson) == set(range(3500, 4000))  # half-open, counted from 0
    assert positives(vandalism) == {*range(270, 330), *range(780, 930)}  # cut to its 930 frames
    assert (normal.label, normal.classes, normal.events) == (0, (), ())
    assert normal.path == "Testing_Normal_Videos_Anomaly/Normal_Videos_872_x264.mp4"


def test_a_list_orders_the_test_videos_and_train_videos_carry_no_events(tmp_path):
    wanted = text(tmp_path, "Vandalism/Vandalism017_x264.mp4\nArson/Arson022_x264.mp4\n", "test.txt")
    train = text(tmp_path, "Abuse/Abuse001_x264.mp4\nTraining_Normal_Videos_Anomaly/N1_x264.mp4\n", "train.txt")
    found = datasets.ucf_crime(text(tmp_path, PLAIN), test_list=wanted, train_list=train)
    assert [(r.id, r.split, r.label) for r in found] == [
        ("Vandalism017_x264", "test", 1),
        ("Arson022_x264", "test", 1),
        ("Abuse001_x264", "train", 1),
        ("N1_x264", "train", 0),
    ]
    assert not found[2].events and found[2].classes == ("abuse",)


@pytest.mark.parametrize(
    "line, said",
    [
        ("Arson022_x264 Arson 3500 3600 7", "pairs of frame numbers"),
        ("Arson022_x264 Arson 3500 x", "expected frame numbers, got '3500 x'"),
        ("Arson022_x264 Arson 4000 3500", "got 4000 3500"),
        ("Arson022_x264 Arson -1 3500", "got -1 3500"),
        ("Arson022_x264 Arsony 1 2", "'Arsony' is no class"),
        ("Arson022_x264", "expected `name"),
        ("Normal_1 Normal 3 4", "is normal and has an event"),
        ("../../etc/passwd 10 Arson 1 2", "leaves its root"),
        ("/etc/passwd Arson 1 2", "leaves its root"),
        ("Arson/Abuse028_x264 Abuse 1 2", "is there twice"),
    ],
)
def test_a_malformed_ucf_line_names_file_and_line(line, said, tmp_path):
    path = text(tmp_path, "Abuse028_x264  Abuse  165  240  -1  -1\n" + line + "\n")
    with pytest.raises(RecordError, match="list.txt line 2: ") as caught:
        datasets.ucf_crime(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_lists_that_do_not_fit_are_refused(tmp_path):
    annotation = text(tmp_path, PLAIN)
    with pytest.raises(RecordError, match="test.txt line 1: Robbery001 has no line in list.txt"):
        datasets.ucf_crime(annotation, test_list=text(tmp_path, "Robbery/Robbery001.mp4", "test.txt"))
    with pytest.raises(RecordError, match="Arson022_x264: num_frames does not name it, nor any other of 3 test videos"):
        datasets.ucf_crime(annotation, num_frames={"Arson023_x264": 10})
    with pytest.raises(RecordError, match="positive whole number, got 'ten'"):
        datasets.ucf_crime(annotation, num_frames={"Arson022_x264": "ten"})
    with pytest.raises(RecordError, match="train.txt line 1: path .* leaves its root"):
        datasets.ucf_crime(annotation, train_list=text(tmp_path, "Abuse/../../x.mp4", "train.txt"))
    with pytest.raises(RecordError, match="nowhere.txt"):
        datasets.ucf_crime(tmp_path / "nowhere.txt")
    with pytest.raises(RecordError, match="empty.txt is empty"):
        datasets.ucf_crime(text(tmp_path, "\n", "empty.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="bytes.txt: not a readable list"):
        datasets.ucf_crime(tmp_path / "bytes.txt")


def test_xd_names_lose_mp4_and_keep_their_signs(tmp_path):
    riot, both = datasets.xd_violence(text(tmp_path, XD))
    assert (riot.id, riot.path) == ("v=S-7r__#1_label_B4-0-0", "v=S-7r__#1_label_B4-0-0.mp4")
    assert riot.classes == ("riot",) and {e.label for e in riot.events} == {"riot"} and riot.group == "v=S-7r"
    assert both.id.endswith("B2-G-0") and both.path == both.id + ".mp4" and both.classes == ("shooting", "explosion")
    assert {e.label for e in both.events} == {""}  # which of the two, the file does not say
    assert positives(both, 1030) == {*range(310, 515), *range(790, 1030)}


def test_normal_xd_videos_come_from_the_list_or_the_counts(tmp_path):
    annotation = text(tmp_path, XD)
    names = [line.split()[0].removesuffix(".mp4") for line in XD.splitlines()]
    rows = [f"/home/someone/XDTest/{name}__{crop}.npy,x" for name in ["n__#1_label_A", *names] for crop in (0, 1)]
    listed = datasets.xd_violence(annotation, test_list=text(tmp_path, "\n".join(["path,label", *rows]), "test.csv"))
    assert [(r.id, r.label) for r in listed] == [("n__#1_label_A", 0), (names[0], 1), (names[1], 1)]
    train = datasets.xd_violence(annotation, train_list=tmp_path / "test.csv")[2:]
    assert [(r.id, r.split, len(r.events)) for r in train] == [(name, "train", 0) for name in ["n__#1_label_A", *names]]
    counted = datasets.xd_violence(annotation, num_frames={names[0]: 32, "n__#1_label_A": 16, names[1]: 48})
    assert [(r.label, r.num_frames) for r in counted] == [(1, 32), (0, 16), (1, 48)]
    with pytest.raises(RecordError, match="v=x__#1_label_G-0-0 is anomalous and has no line in list.txt"):
        datasets.xd_violence(annotation, test_list=text(tmp_path, "v=x__#1_label_G-0-0.mp4", "more.txt"))
    partial = datasets.xd_violence(annotation, num_frames={names[0]: 1520})  # features of the second are not there
    report = datasets.check(partial, tmp_path, counts={names[0]: 1520})
    assert report.missing == {names[1]: f"{names[1]}: no features"} and not report.readable
    assert report.broken == {names[0]: f"{names[0]}: an event of frames 1970 to 3038 in a video of 1520 frames"}


def test_the_multi_class_form_names_each_event(tmp_path):
    (found,) = datasets.xd_violence(text(tmp_path, "f__#1_label_B2-G-0 B2 24 48 G 72 96"))
    seen = [(event.start_s, event.end_s, event.label) for event in found.events]
    assert seen == [(1, 2, "shooting"), (3, 4, "explosion")]  # 24 frames a second


@pytest.mark.parametrize(
    "line",
    [
        "f__#1_label_B9-0-0 1 2",
        "f__#1 1 2",
        "f__#1_label_B1-0-0 1",
        "f_label_A 1 2",
        "f_label_B1 B1 1 2 B2 3",
        "f_label_B1",
        "../f_label_B1 1 2",
        "f_label_0-0 1 2",
    ],
)
def test_a_malformed_xd_line_names_file_and_line(line, tmp_path):
    with pytest.raises(RecordError, match="list.txt line 3: "):
        datasets.xd_violence(text(tmp_path, XD + "\n" + line))


def pedestrians(tmp_path, labels):
    frames = moving_square(12)
    for part in ("training", "testing"):
        folder = tmp_path / part / "frames" / "01"
        folder.mkdir(parents=True)
        for place, pixels in enumerate(frames):
            Image.fromarray(pixels).save(folder / f"{place:03}.jpg")
    np.savez(tmp_path / "frame_gt.npz", **{"01": np.array(labels, np.uint8)})
    return tmp_path


def test_each_run_of_positive_frames_is_one_event(tmp_path):
    labels = [1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    train, test = datasets.ucsd_ped2(pedestrians(tmp_path, labels))
    assert (train.split, train.label, train.num_frames, train.id != test.id) == ("train", 0, 12, True)
    assert [(e.start_s, e.end_s) for e in test.events] == [(0, 0.1), (0.3, 0.6), (1.0, 1.2)]  # 10 frames a second
    assert records.frame_labels(test).tolist() == labels
    assert video.probe(records.locate(test, tmp_path)).num_frames == 12


def test_labels_of_another_length_are_refused(tmp_path):
    with pytest.raises(RecordError, match="testing/frames/01: 12 frames for 11 labels"):
        datasets.ucsd_ped2(pedestrians(tmp_path, [0] * 11))


def test_object_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "frame_gt.npz", **{"01": np.array([{}], object)})
    with pytest.raises(ValueError, match="frame_gt.npz"):
        datasets.ucsd_ped2(tmp_path)


@pytest.fixture
def clips(tmp_path, clip):
    """Three clips of two sources (one broken, one absent) and their csv."""
    for folder in ("fight", "calm"):
        (tmp_path / folder).mkdir()
    (tmp_path / "fight" / "a.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "calm" / "b.mp4").write_bytes(b"not a video")
    rows = "clip,label,source_group,fold\na,1,7,0\nb,0,7,0\ncalm/c.mp4,0,8,1\n"
    return tmp_path, text(tmp_path, rows, "labels.csv")


def test_clips_are_found_wherever_they_lie(clips):
    found = {record.id: record for record in datasets.clip_folder(*clips, test_fold=1)}
    assert {name: (r.split, r.label, r.group) for name, r in found.items()} == {
        "a": ("train", 1, "7"), "b": ("train", 0, "7"), "c": ("test", 0, "8"),
    }  # fmt: skip
    assert (found["a"].path, found["a"].num_frames, found["a"].fps) == ("fight/a.mp4", 50, 25.0)


def test_check_names_what_is_missing_or_broken_and_goes_on(clips):
    root, csv = clips
    found = [*datasets.clip_folder(root, csv), VideoRecord("d", "../d.mp4", "x", "test", 1, group="7")]
    report = datasets.check(found, root)
    assert [record.id for record in report.readable] == ["a"]
    assert set(report.missing) == {"c"} and set(report.broken) == {"b", "d"}
    assert "leaves its root" in report.broken["d"] and "not a readable video" in report.broken["b"]
    assert report.leaks == ("7",) and report.unlabelled == ("a", "d") and not report.repeated
    lines = report.summary().splitlines()
    assert lines[0] == "4 videos, 0 events, 1 missing, 2 broken, 0 repeated, 1 leaks, 2 unlabelled"
    assert len(lines) == 4 and all(line.startswith("skipped ") for line in lines[1:])


@pytest.mark.parametrize(
    "rows, said",
    [
        ("clip,label\na,2\n", "labels.csv line 2: label must be 0 or 1, got '2'"),
        ("clip,label\n\na,1,3\n", "labels.csv line 3: more or fewer values"),
        ("clip,label\na\n", "labels.csv line 2: more or fewer values"),
        ("clip,label\na,1\n../a,0\n", "labels.csv line 3: path '../a' leaves its root"),
        ("clip,label,split\na,1,dev\n", "labels.csv line 2: split must be"),
        ("clip,label\na,1\na,0\n", "labels.csv line 3: a is there twice"),
        ("name,label\na,1\n", "labels.csv has no column clip"),
    ],
)
def test_a_malformed_csv_row_names_file_and_line(rows, said, tmp_path):
    with pytest.raises(RecordError) as caught:
        datasets.clip_folder(tmp_path, text(tmp_path, rows, "labels.csv"))
    assert str(caught.value).startswith(said)


def test_an_unknown_fold_is_refused(clips):
    with pytest.raises(RecordError, match="labels.csv has no fold 5, only 0, 1"):
        datasets.clip_folder(*clips, test_fold=5)


def test_another_clock_moves_the_seconds_and_not_the_frames(tmp_path, clip):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "Arson022_x264.mp4").write_bytes(clip.read_bytes())  # 50 frames at 25 a second
    annotation = text(tmp_path, "Arson022_x264 Arson 10 20 -1 -1")
    (found,) = datasets.ucf_crime(annotation, root=tmp_path)
    assert (found.path, found.fps, found.num_frames) == ("elsewhere/Arson022_x264.mp4", 25.0, 50)
    assert found.events[0].start_s == pytest.approx(0.4) and positives(found) == set(range(10, 20))


def toy(sources):
    """Records of {source: (label, clips)}."""
    return [VideoRecord(f"{s}_{n}", "x", "toy", "train", y, group=s) for s, (y, clips) in sources.items() for n in range(clips)]


def test_a_split_keeps_sources_whole_and_labels_in_proportion():
    found = toy({**{f"n{k}": (0, 3) for k in range(20)}, **{f"a{k}": (1, 2) for k in range(10)}})
    held = replace(found[0], id="t", group="t", split="test")
    split = datasets.split_by_group([*found, held], val_fraction=0.25, rng=np.random.default_rng(0))
    assert [r.id for r in split] == [r.id for r in found] + ["t"] and split[-1] == held and not records.leaks(split)
    taken = Counter(r.label for r in split if r.split == "val")
    assert abs(taken[0] - 15) <= 2 and abs(taken[1] - 5) <= 1  # a quarter of 60 and of 20, up to half a source
    again = datasets.split_by_group([*found, held], val_fraction=0.25, rng=np.random.default_rng(0))
    other = datasets.split_by_group([*found, held], val_fraction=0.25, rng=np.random.default_rng(1))
    assert again == split and other != split


def test_a_large_share_leaves_one_source_of_each_label_in_train():
    found = toy({"n0": (0, 1), "n1": (0, 1), "a0": (1, 1), "a1": (1, 1)})
    split = datasets.split_by_group(found, val_fraction=0.95, rng=np.random.default_rng(0))
    assert Counter((r.split, r.label) for r in split) == {(s, y): 1 for s in ("train", "val") for y in (0, 1)}


def test_a_split_that_would_leak_or_starve_is_refused():
    rng = np.random.default_rng(0)
    leaking = toy({"a": (1, 2), "b": (0, 2), "c": (0, 1), "d": (1, 1)})
    leaking[0] = leaking[0].moved("test")
    with pytest.raises(ValueError, match="source a is in more than one split already"):
        datasets.split_by_group(leaking, val_fraction=0.5, rng=rng)
    with pytest.raises(ValueError, match="label 1 has one source, a"):
        datasets.split_by_group(toy({"a": (1, 9), "b": (0, 2), "c": (0, 1)}), val_fraction=0.5, rng=rng)
    with pytest.raises(ValueError, match="val_fraction must lie between 0 and 1, got 1.5"):
        datasets.split_by_group(leaking, val_fraction=1.5, rng=rng)


def test_an_official_split_is_used_as_given_and_validation_takes_none_of_its_test_sources():
    rng = np.random.default_rng(0)
    found = toy({**{f"a{k}": (1, 3) for k in range(8)}, **{f"n{k}": (0, 3) for k in range(8)}})
    found = [r.moved("test") if r.id.endswith("_0") and r.source[1] in "012" else r for r in found]  # six sources on both sides
    split = datasets.split_by_group(found, val_fraction=0.3, rng=rng, official=True)
    assert [r.id for r in split if r.split == "test"] == [r.id for r in found if r.split == "test"]
    chosen = {r.source for r in split if r.split == "val"}
    assert chosen and {s[0] for s in chosen} == {"a", "n"} and not chosen & set(records.leaks(found))
    assert records.leaks(split) == records.leaks(found)  # nothing new is shared


def test_an_event_past_the_end_of_its_video_is_an_error():
    """Up to one snippet late is the rounding of published lists; more is another video or a cut file."""
    late = VideoRecord("v", "v.mp4", "toy", "test", 1, events=(Span(1.0, 4.0),), fps=10.0, num_frames=30)
    assert records.frame_labels(late).sum() == 20  # frames 10 to 40 of 30: cut
    with pytest.raises(RecordError, match="v: an event of frames 10 to 40 in a video of 20 frames"):
        records.frame_labels(late, 20)
    with pytest.raises(RecordError, match="v: an event of frames 10 to 12 in a video of 8 frames"):
        records.frame_labels(replace(late, events=(Span(1.0, 1.2),)), 8)
    report = datasets.check([replace(late, num_frames=20)], ".", counts={"v": 20})
    assert list(report.broken) == ["v"] and not report.readable


def test_how_much_of_a_data_set_is_there_stands_beside_its_records(tmp_path):
    listed = [VideoRecord(f"t{k}", "x", "toy", "test", k % 2) for k in range(5)] + [VideoRecord("a", "x", "toy", "train", 0)]
    path = tmp_path / "records.jsonl"
    records.write_records(path, listed[:2])
    assert records.expected_videos(path) == 2  # no note: as many as there are
    records.write_coverage(path, listed, listed[:2])
    assert [records.expected_videos(path, split) for split in ("test", "train", "val")] == [5, 1, 0]


def test_runs_are_half_open():
    assert datasets.runs(np.array([1, 1, 0, 1])) == [(0, 2), (3, 4)] and datasets.runs(np.zeros(3)) == []


# On real lists: the arrays in the data folder are, concatenated as float32, the published gt files bit for bit.


def blob(arrays):
    """Git's name for the .npy file of the arrays, joined as float32."""
    file = io.BytesIO()
    np.save(file, np.concatenate(list(arrays)).astype(np.float32))
    return hashlib.sha1(b"blob %d\0" % len(file.getvalue()) + file.getvalue()).hexdigest()


def truth(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


UCF_TRUTH, XD_TRUTH = "ucf_crime/ucf_crime_test_gt_per_video.npz", "xd_violence/xd_violence_test_gt_per_video.npz"


@pytest.mark.real
@pytest.mark.parametrize(
    "annotation", ["ucf_crime/UCF_Annotation_with_nframes.txt", "vadclip_list/Temporal_Anomaly_Annotation.txt"]
)
def test_ucf_truth_is_rebuilt_on_every_frame(annotation, real_data):
    gt = real_data / "gt"
    published, expected = truth(gt / UCF_TRUTH), json.loads((real_data / "expected.json").read_text())["ucf_gt"]
    found = datasets.ucf_crime(
        gt / annotation, test_list=gt / "vadclip_list" / "ucf_CLIP_rgbtest.csv", num_frames=gt / UCF_TRUTH,
        train_list=gt / "vadclip_list" / "Anomaly_Train.txt",
    )  # fmt: skip
    rebuilt = {record.id: records.frame_labels(record) for record in found if record.split == "test"}
    assert list(rebuilt) == list(published)
    for name, labels in published.items():
        np.testing.assert_array_equal(rebuilt[name], labels, err_msg=name)
    assert sum(map(len, rebuilt.values())) == expected["frames"] == 1_109_680
    assert sum(int(labels.sum()) for labels in rebuilt.values()) == expected["positives"] == 84_128
    assert blob(rebuilt.values()) == expected["git_blob_sha1_float32_npy"]
    assert Counter((r.split, r.label) for r in found) == {("train", 0): 800, ("train", 1): 810, ("test", 0): 150, ("test", 1): 140}
    assert records.leaks(found) == []


@pytest.mark.real
def test_the_counts_of_the_annotation_are_the_true_ones(real_data):
    found = datasets.ucf_crime(real_data / "gt" / "ucf_crime" / "UCF_Annotation_with_nframes.txt")
    assert sum(record.num_frames for record in found) == 1_111_808  # evaluation.md, section 4
    counted = datasets.frame_counts(real_data / "gt" / "ucf_crime" / "ucf_crime_test_num_frames.json")
    assert {record.id: record.num_frames for record in found} == counted


@pytest.mark.real
@pytest.mark.parametrize("annotation", ["xd_violence/XD_Annotation.txt", "vadclip_list/annotations.txt"])
def test_xd_truth_is_rebuilt_on_every_frame(annotation, real_data):
    gt = real_data / "gt"
    published, expected = truth(gt / XD_TRUTH), json.loads((real_data / "expected.json").read_text())["xd_gt"]
    found = datasets.xd_violence(gt / annotation, test_list=gt / "vadclip_list" / "xd_CLIP_rgbtest.csv", num_frames=gt / XD_TRUTH)
    rebuilt = {record.id: records.frame_labels(record) for record in found}
    assert list(rebuilt) == list(published)
    for name, labels in published.items():
        np.testing.assert_array_equal(rebuilt[name], labels, err_msg=name)
    assert sum(map(len, rebuilt.values())) == expected["frames"] == 2_330_384
    assert sum(int(labels.sum()) for labels in rebuilt.values()) == expected["positives"] == 537_805
    assert blob(rebuilt.values()) == expected["git_blob_sha1_float32_npy"]
    assert Counter(record.label for record in found) == {0: 300, 1: 500}
    assert datasets.xd_violence(gt / annotation, num_frames=gt / XD_TRUTH) == found  # the counts name the normals too


@pytest.mark.real
def test_the_multi_class_form_of_xd_is_another_truth(real_data):
    """It is not the same annotation with classes added: five videos differ, so never score one against the other."""
    gt = real_data / "gt"
    plain = datasets.xd_violence(gt / "xd_violence" / "XD_Annotation.txt", num_frames=gt / XD_TRUTH)
    classed = datasets.xd_violence(gt / "vadclip_list" / "annotations_multiclasses.txt", num_frames=gt / XD_TRUTH)
    differing = [
        int((records.frame_labels(one) != records.frame_labels(other)).sum()) for one, other in zip(plain, classed, strict=True)
    ]
    assert sorted(count for count in differing if count) == [1, 1, 1, 1, 129]


@pytest.mark.real
def test_xd_runs_at_24_frames_a_second(real_data):
    """A film clip's name says when it starts and ends in the film; frames over seconds give the clock."""
    rates = []
    for name, labels in truth(real_data / "gt" / XD_TRUTH).items():
        start, _, end = name.partition("__#")[2].partition("_label_")[0].partition("_")
        if end.count("-") == 2:
            seconds = [sum(int(part) * 60**power for power, part in enumerate(t.split("-")[::-1])) for t in (start, end)]
            rates.append(len(labels) / (seconds[1] - seconds[0]))
    assert len(rates) > 100 and np.median(rates) == pytest.approx(datasets.XD_FPS, abs=0.5)


@pytest.mark.real
def test_the_official_xd_lists_share_sources(real_data):
    """3,954 training videos as in VadCLIP's list (the glance file names 1,905, the anomalous ones)."""
    gt = real_data / "gt"
    lines = (gt / "xd_glance_annotations.csv").read_text().splitlines()[1:]
    train = [VideoRecord(name, "x", "xd_violence", "train", 1, group=name.split("__#")[0])
             for name in {line.rpartition(",")[0] for line in lines}]  # fmt: skip
    found = datasets.xd_violence(gt / "xd_violence" / "XD_Annotation.txt", num_frames=gt / XD_TRUTH)
    shared = records.leaks([*train, *found])
    assert len(shared) == 139 and "Bad.Boys.1995" in shared
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="139 such sources"):
        datasets.split_by_group([*train, *found], val_fraction=0.1, rng=rng)
    split = datasets.split_by_group([*train, *found], val_fraction=0.1, rng=rng, official=True)
    assert records.leaks(split) == shared and sum(r.split == "test" for r in split) == 800
    held_out = [r for r in split if r.split == "val"]
    assert 150 < len(held_out) < 230 and not {r.source for r in held_out} & {r.source for r in found}


@pytest.mark.real
@pytest.mark.parametrize(
    "name, annotation, truth",
    [("ucf_crime", "Temporal_Anomaly_Annotation.txt", UCF_TRUTH), ("xd_violence", "annotations.txt", XD_TRUTH)],
)
def test_totals_of_the_test_sets_are_those_of_the_published_arrays(name, annotation, truth, real_data):
    gt = real_data / "gt"
    arrays = np.load(gt / truth)
    labels = np.concatenate([arrays[video] for video in arrays.files])
    assert datasets.TEST_SETS[name] == (len(arrays.files), len(labels), labels.sum())
    found = getattr(datasets, name)(gt / "vadclip_list" / annotation, num_frames=gt / truth)
    assert not datasets.truth_differences(found, gt / truth)
    videos, frames, positive = datasets.TEST_SETS[name]
    assert datasets.test_set_notes(found, name) == [f"{videos} of {videos} test videos", f"{frames:,} of {frames:,} test frames",
                                                    f"{positive:,} of {positive:,} anomalous test frames"]  # fmt: skip
    shorter = [replace(found[0], num_frames=found[0].num_frames - 16), *found[1:8]]
    assert datasets.truth_differences(shorter, gt / truth) == {found[0].id: (found[0].num_frames - 16, found[0].num_frames, 0)}
    assert datasets.test_set_notes(shorter, name)[0] == f"8 of {videos} test videos"


@pytest.mark.real
def test_ped2_comes_out_complete(real_data):
    root = real_data / "ucsd_ped2"
    found = datasets.ucsd_ped2(root)
    frames, labels = Counter(), {}
    for record in found:
        frames[record.split] += record.num_frames
        labels[record.path] = records.frame_labels(record)
    assert Counter(record.split for record in found) == {"train": 16, "test": 12}
    assert frames == {"train": 2550, "test": 2010} and sum(int(y.sum()) for y in labels.values()) == 1648
    for name, expected in truth(root / "frame_gt.npz").items():
        np.testing.assert_array_equal(labels[f"testing/frames/{name}"], expected)
    assert records.leaks(found) == []


@pytest.mark.real
def test_the_fights_are_whole_and_split_by_source(real_data):
    root = real_data / "fight_surv"
    found = datasets.clip_folder(root, root / "labels.csv", test_fold=0)
    report = datasets.check(found[::6], root)  # opening all 207 says no more of our reader
    assert Counter(record.label for record in found) == {1: 110, 0: 97} and len({r.id for r in found}) == 207
    assert not (report.missing or report.broken or report.repeated or report.leaks) and len(report.readable) == 35
    assert all((root / record.path).is_file() for record in found) and records.leaks(found) == []
    split = datasets.split_by_group(found, val_fraction=0.2, rng=np.random.default_rng(0))
    counted = Counter(record.split for record in split)
    assert records.leaks(split) == [] and counted["test"] == 54 and 20 <= counted["val"] <= 42
    mixed = [record.moved("test") if place % 4 == 0 else record for place, record in enumerate(found)]
    assert records.leaks(mixed)  # a split of clips, not of sources, is seen


@pytest.mark.real
def test_a_full_video_takes_its_clock_from_the_file(real_data):
    annotation = real_data / "gt" / "ucf_crime" / "UCF_Annotation_with_nframes.txt"
    found = {record.id: record for record in datasets.ucf_crime(annotation, root=real_data / "videos" / "ucf_crime")}
    robbery = found["Robbery102_x264"]
    assert (robbery.path, robbery.num_frames, robbery.fps) == ("Robbery102_x264.mp4", 1827, 30.0)
    assert positives(robbery) == set(range(1080, 1560))
    report = datasets.check([robbery, found["Arson022_x264"]], real_data / "videos" / "ucf_crime")
    assert report.readable == (robbery,) and list(report.missing) == ["Arson022_x264"]

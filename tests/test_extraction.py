"""Rows are small, exact, resumable, and say what made them."""

import copy
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import moving_square
from kornia.feature import XFeat
from PIL import Image

from vau_lib.data import download, records, video
from vau_lib.features import augmentation, checkpoints, devices, extraction, optical_flow, released, xfeat
from vau_lib.workspace import artifacts


@pytest.fixture(scope="module")
def encoder():
    return xfeat.XFeatEncoder("random", side=64, bfloat16=False)


def test_dense_is_kornias_descriptor_map_and_nothing_else():
    ours = xfeat.XFeatEncoder("random", bfloat16=False)
    stock = XFeat().eval()
    for part in stock.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    ours.net = devices.folded(copy.deepcopy(stock.net))  # batch norms in the convolutions
    frames = moving_square(3, 64, 96)
    pixels = torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected, _, _ = stock.net(pixels)  # kornia 0.9's own forward pass
    assert ours.dense(frames).shape == (3, 64, 8, 12)
    assert torch.allclose(ours.dense(frames), expected, atol=1e-4)


def test_a_row_is_mean_and_max_over_a_segment(encoder):
    frames = moving_square(20, 64, 64)
    rows = encoder(frames)
    assert rows.shape == (2, 128) and rows.dtype == np.float32
    unit = F.normalize(encoder.dense(frames[16:]), dim=1)  # the short last segment
    assert np.allclose(rows[1, :64], unit.mean((0, 2, 3)), atol=1e-5)
    assert np.allclose(rows[1, 64:], unit.amax((0, 2, 3)), atol=1e-5)


def test_gray_colour_and_brightness_do_not_matter(encoder):
    frames = moving_square(4, 64, 64)
    gray = frames.mean(-1, dtype=np.float32)
    assert torch.allclose(encoder.dense(frames), encoder.dense(gray), atol=1e-4)
    assert torch.allclose(encoder.dense(gray), encoder.dense(gray * 0.5 + 10), atol=2e-2)


def test_batches_do_not_change_rows(encoder):
    frames = moving_square(40, 64, 64)
    for size in (1, 5, 16, 40):
        alone = [encoder(frames[i : i + size], snippet_frames=size)[0] for i in range(0, 40, size)]
        assert np.allclose(encoder(frames, snippet_frames=size), alone, atol=1e-4)


def test_frames_of_a_wrong_shape_are_refused(encoder):
    with pytest.raises(ValueError, match="multiples of 32"):
        encoder.dense(np.zeros((2, 60, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(T, H, W, 3\)"):
        encoder(np.zeros((0, 64, 64, 3), np.uint8))


def test_weights_are_never_random_by_accident(tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delitem(checkpoints.PACKAGED, "xfeat")
    monkeypatch.setattr(download, "download", _no_network)
    with pytest.raises(artifacts.StoreError, match=r"no weights .*xfeat.*the download failed"):
        xfeat.XFeatEncoder()
    assert xfeat.XFeatEncoder("random").made_by()["weights_sha256"] == "random"


def _no_network(*_, **__):
    raise OSError("no network")


def test_flow_sees_motion_and_only_motion(tmp_path):
    still = np.repeat(moving_square(1, 64, 96), 12, axis=0)
    flow = optical_flow.FlowEncoder(height=64, width=96)
    moving = moving_square(12, 64, 96)
    for name, frames in (("still", still), ("moving", moving)):
        video.write_video(tmp_path / f"{name}.mp4", frames)
    quiet, busy = (np.stack(list(flow.encode(tmp_path / f"{name}.mp4", 1))) for name in ("still", "moving"))
    assert quiet.shape == busy.shape == (12, 6)
    assert quiet.max() < 0.3 and busy[:, 4].min() > 0.3  # pixels per frame; the square moves by one


@pytest.fixture()
def batch(tmp_path):
    """Five good videos, three bad ones and a record that climbs out."""
    root = tmp_path / "root"
    found = []
    for name in "abcde":
        video.write_video(root / f"{name}.mp4", moving_square(36 + ord(name) % 3, 64, 96))
        found.append(records.VideoRecord(name, f"{name}.mp4", "toy", "train", 0))
    (root / "empty.mp4").write_bytes(b"")
    video.write_video(root / "one.mp4", moving_square(1, 64, 96))
    bad = {"missing": "missing.mp4", "empty": "empty.mp4", "one": "one.mp4", "climber": "../elsewhere.mp4"}
    bad["../id_climber"] = "a.mp4"
    return root, found, [records.VideoRecord(name, path, "toy", "train", 0) for name, path in bad.items()]


RECIPE = extraction.Recipe("xfeat", 16, (("weights", "random"), ("side", 64)))


def test_the_batch_goes_on_and_lists_what_it_skipped(batch, tmp_path):
    root, good, bad = batch
    done = extraction.extract([*bad, *good], root, tmp_path / "rows", RECIPE)
    assert done.encoded == 5 and len(done.skipped) == 5
    for record in bad:
        (line,) = [line for line in done.skipped if line.startswith((f"{record.id}:", f"root/{record.path}:"))]
        assert "\n" not in line
    rows = extraction.load(tmp_path / "rows", [*bad, *good], **RECIPE.made_by())
    assert sorted(rows) == list("abcde") and rows["a"].shape == (3, 128)


def test_a_second_run_keeps_what_is_there_and_other_settings_are_refused(batch, tmp_path):
    root, good, _ = batch
    extraction.extract(good[:2], root, tmp_path / "rows", RECIPE)
    again = extraction.extract(good, root, tmp_path / "rows", RECIPE, engine="processes")
    assert (again.already_done, again.encoded) == (2, 3)
    with pytest.raises(artifacts.StoreError, match="snippet_frames=16, asked for 8"):
        extraction.extract(good, root, tmp_path / "rows", extraction.Recipe("xfeat", 8, RECIPE.options))


def test_killed_midway_it_redoes_at_most_the_video_in_flight(batch, tmp_path):
    root, good, _ = batch
    many = [records.VideoRecord(f"{r.id}{n}", r.path, "toy", "train", 0) for n in range(3) for r in good]
    records.write_records(tmp_path / "many.jsonl", many)
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from vau_lib.data import records
        from vau_lib.features import extraction
        from vau_lib.workspace import artifacts

        replacing, written = artifacts.replacing, []
        def killed_while_the_sixth_is_written(path):
            written.append(Path(path))
            if sum(path.suffix == ".npy" for path in written) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return replacing(path)
        artifacts.replacing = killed_while_the_sixth_is_written
        recipe = extraction.Recipe("xfeat", 16, (("weights", "random"), ("side", 64)))
        extraction.extract(records.read_records(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), recipe)
    """
    folder = tmp_path / "killed"
    job = subprocess.run([sys.executable, "-c", code, str(tmp_path / "many.jsonl"), str(root), str(folder)])
    assert job.returncode == -signal.SIGKILL
    there = sorted(path.name for path in folder.glob("[a-e]*.npy"))
    assert len(there) == 5
    done = extraction.extract(many, root, folder, RECIPE)
    assert done.already_done == len(there) and done.encoded == len(many) - len(there)
    whole = tmp_path / "whole"
    extraction.extract(many, root, whole, RECIPE)
    for record in many:
        assert extraction.feature_path(folder, record.id).read_bytes() == extraction.feature_path(whole, record.id).read_bytes()


def test_an_id_may_not_leave_the_folder(tmp_path):
    with pytest.raises(records.RecordError, match="leaves the feature folder"):
        extraction.feature_path(tmp_path, "../x")


LITE = ("efficientnet-lite0", {"weights": "random", "side": 32})


def test_clip_squeezenet_and_efficientnet_rows_are_extracted(batch, tmp_path):
    root, good, bad = batch
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, "projection_dim": 24}
    artifacts.write_json(tmp_path / "tiny" / "config.json", sizes)  # a recipe holds plain values, a folder the sizes
    tiny = {"model": str(tmp_path / "tiny"), "weights": "random", "crops": (0, 5)}
    for name, options in (("clip", tiny), ("squeezenet", {"weights": "random", "side": 32}), LITE):
        recipe = extraction.Recipe(name, 16, tuple(options.items()))
        done = extraction.extract([*good[:2], bad[0]], root, tmp_path / name, recipe)
        assert done.encoded == 2 and len(done.skipped) == 1 and recipe.made_by()["weights_sha256"] == "random"
        rows, encoder = extraction.load(tmp_path / name, good, **recipe.made_by()), extraction.ENCODERS[name](**options)
        for record in good[:2]:  # 37 and 38 frames
            frames = video.read_frames(root / record.path, range(video.probe(root / record.path).num_frames))
            parts = np.split(frames, [16, 32])[: 2 if name == "clip" else 3]  # CLIP drops what does not fill a row
            expected = [encoder.encode_frames(part)[0].numpy().mean(0) for part in parts]
            assert rows[record.id].dtype == np.float32
            np.testing.assert_allclose(rows[record.id], expected, atol=2e-3, rtol=1e-5)
    with pytest.raises(ValueError, match="one of xfeat, flow, clip, squeezenet, efficientnet-lite0, got 'resnet'"):
        extraction.Recipe("resnet").made_by()


def test_sampled_frames_of_a_snippet_are_spread_evenly_and_stand_in_made_by():
    frames = np.random.default_rng(0).integers(0, 256, (13, 40, 48, 3), dtype=np.uint8)
    options = {"weights": "random", "side": 32}
    every, two = (extraction.ENCODERS[LITE[0]](**options, **more) for more in ({}, {"sampled_frames": 2}))
    each = every.encode_frames(frames)[0].numpy()
    expected = [each[[1, 3]].mean(0), each[[6, 8]].mean(0), each[[10, 12]].mean(0)]  # middles of halves of 5, 5 and 3 frames
    rows = list(two.snippet_features([frames[:7], frames[7:]], 5))
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert two.made_by() == {**every.made_by(), "sampled_frames": 2} and "sampled_frames" not in every.made_by()
    with pytest.raises(ValueError, match="sampled_frames must be 1 or more and is for pooled features, got 2 for local_change"):
        extraction.ENCODERS[LITE[0]](**options, sampled_frames=2, pooling="local_change")


def released_file(path, rows) -> np.ndarray:
    artifacts.save_array(path, np.asarray(rows))
    return rows


def listed(path, *lines: str):
    path.write_text("\n".join(["path,label", *lines, ""]))
    return path


def test_released_rows_are_found_by_name_and_crops_averaged(tmp_path):
    name = "v=a.b__#1_label_B1-0-0"  # XD-Violence's names hold such signs
    one = released_file(tmp_path / "deep" / "er" / f"{name}__0.npy", np.full((3, 4), 0.3, np.float16))
    two = released_file(tmp_path / f"{name}__5.npy", np.full((3, 4), 0.5, np.float16))
    np.testing.assert_array_equal(released.released_features(tmp_path, name, width=4), one)
    both = released.released_features(tmp_path, name, (0, 5), width=4)
    np.testing.assert_allclose(both, (one.astype(np.float32) + two) / 2, atol=1e-7, strict=True)
    late = released_file(tmp_path / "late.npy", two + 1)  # written after the folder was first read
    np.testing.assert_array_equal(released.released_features(tmp_path, "late", (), width=4), late)
    with pytest.raises(artifacts.StoreError, match="v=a.b.*__1.npy is not below"):
        released.released_features(tmp_path, name, (0, 1), width=4)


def test_a_name_that_is_there_twice_needs_its_folder(tmp_path):
    for place, kind in enumerate(("bad", "normal")):
        rows = released_file(tmp_path / kind / "39.npy", np.full((2, 4), place, np.float32))
        np.testing.assert_array_equal(released.released_features(tmp_path, f"{kind}/39", (), width=4), rows)
    with pytest.raises(artifacts.StoreError, match="39.npy is more than once below"):
        released.released_features(tmp_path, "39", (), width=4)
    csv = listed(tmp_path / "lt.csv", "/x/bad/39.npy,Stealing", "/x/normal/39.npy,Normal")
    found = {key: files for key, _, files in released.released_list(csv, tmp_path)}
    assert found == {"bad/39": [tmp_path / "bad" / "39.npy"], "normal/39": [tmp_path / "normal" / "39.npy"]}
    (tmp_path / "bad" / "39.npy").unlink()  # the other 39 must not stand in for it
    with pytest.raises(artifacts.StoreError, match=r"lt.csv: 1 of 2 files missing, first: .*39.npy"):
        released.released_list(csv, tmp_path)
    with pytest.raises(artifacts.StoreError, match="bad/39.npy is not below"):
        released.released_features(tmp_path, "bad/39", (), width=4)


@pytest.mark.parametrize(
    "rows, said",
    [
        (np.ones((5, 3)), r"b.npy: features must be \(T, 4\) floats, got \(5, 3\) of float64"),
        (np.ones((5, 4), int), "got .* of int64"),
        (np.ones((0, 4)), r"got \(0, 4\)"),
        (np.ones((6, 4)), "b.npy: 6 features where a.npy has 5"),
        (np.where(np.arange(20).reshape(5, 4) == 13, np.nan, 1), "b.npy: NaN or infinity, first in snippet 3"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_refused_by_name(rows, said, tmp_path):
    for name, content in (("a", np.ones((5, 4), np.float16)), ("b", rows)):
        released_file(tmp_path / f"{name}.npy", content)
    with pytest.raises(artifacts.StoreError, match=said) as caught:
        released.read_features([tmp_path / "a.npy", tmp_path / "b.npy"], width=4)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="at least one file"):
        released.read_features([])


def test_a_list_names_other_machines_paths(tmp_path):
    for name in ("Abuse/Abuse1__1.npy", "Abuse/Abuse1__0.npy", "flat/N_2__0.npy"):
        released_file(tmp_path / name, np.ones((5, 4)))
    lines = ["/a/N/N_2__0.npy,Normal", "/a/Abuse/Abuse1__1.npy,Abuse", "/a/Abuse/Abuse1__0.npy,Abuse"]
    assert released.released_list(csv := listed(tmp_path / "l.csv", *lines), tmp_path) == [
        ("N_2", "Normal", [tmp_path / "flat" / "N_2__0.npy"]),
        ("Abuse1", "Abuse", [tmp_path / "Abuse" / f"Abuse1__{which}.npy" for which in (0, 1)]),
    ]
    more = [f"/x/gone/gone{k}__0.npy,Abuse" for k in range(1500)]
    with pytest.raises(artifacts.StoreError, match=r"^l.csv: 1,500 of 1,503 files missing, first: gone/gone0__0.npy .*$"):
        released.released_list(listed(csv, *lines, *more), tmp_path)
    for bad in (lines[0], "/x/N_2__1.npy,Abuse", "/x/N_2.txt,Normal", "/x/N_3__0.npy,", ",Normal"):
        with pytest.raises(artifacts.StoreError, match="l.csv line 5: expected a new file of a video and its one label"):
            released.released_list(listed(csv, *lines, bad), tmp_path)
    csv.write_text("name,label\n")
    with pytest.raises(artifacts.StoreError, match="l.csv: a list starts with path,label, got"):
        released.released_list(csv, tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("name, videos", [("vadclip_list/ucf", 290), ("vadclip_list/xd", 800), ("lshma_list/lt", 100)])
def test_official_lists_and_real_rows_are_read(name, videos, real_data, tmp_path):
    (csv,) = (real_data / "gt").glob(f"{name}_CLIP_*test.csv")
    lines = [line.rsplit("/", 2)[1:] for line in csv.read_text().splitlines()[1:]]  # folder, "file,label"
    with pytest.raises(artifacts.StoreError, match=f"{csv.name}: {videos} of {videos} files missing"):
        released.released_list(csv, tmp_path)
    for folder, line in lines:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / line.rpartition(",")[0]).touch()
    found = released.released_list(csv, tmp_path)
    assert [[file.parent.name, f"{file.name},{label}"] for _, label, (file,) in found] == lines
    assert len({key for key, *_ in found}) == videos
    rows = released.released_features(real_data / "features", "Explosion008_x264", (), width=4096)
    np.testing.assert_array_equal(rows, np.load(real_data / "features" / "ucf_c3d_32seg" / "Explosion008_x264.npy"))


@pytest.mark.real
def test_dense_agrees_with_rows_made_elsewhere(real_data, xfeat_weights):
    """The stored rows (fp16) pool raw descriptors of 32 evenly spread frames: mean and max over places."""
    stored = np.load(real_data / "features" / "fight_surv_xfeat_32x128.npz")
    reference = stored["x"][list(stored["names"]).index("fi001")].astype(np.float32)
    path = real_data / "fight_surv" / "fight" / "fi001.mp4"
    frames = video.read_frames(path, np.linspace(0, video.probe(path).num_frames - 1, 32).round().astype(int))
    gray = xfeat.resized(frames.mean(-1, dtype=np.float32), 224)
    dense = xfeat.XFeatEncoder(xfeat_weights, bfloat16=False).dense(gray.numpy())
    ours = torch.cat([dense.mean((2, 3)), dense.amax((2, 3))], dim=1).numpy()
    assert np.linalg.norm(ours - reference) / np.linalg.norm(reference) < 0.05


@pytest.mark.real
def test_fast_rows_equal_stock_rows(real_data, xfeat_weights):
    """Stock: decord, float32, kornia's forward pass, antialiased resize. Ours: summed planes, bfloat16 where it is."""
    path = real_data / "videos" / "ucf_crime" / "Robbery102_x264.mp4"
    stock = XFeat().eval()
    stock.net.load_state_dict(checkpoints.load_weights(xfeat_weights))
    pixels = torch.as_tensor(video.read_frames(path, range(64), reader="decord")).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        dense, _, _ = stock.net(F.interpolate(pixels, (224, 224), mode="bilinear", antialias=True))
    unit = F.normalize(dense, dim=1)
    expected = torch.stack([torch.cat([part.mean((0, 2, 3)), part.amax((0, 2, 3))]) for part in unit.split(16)]).numpy()
    ours = [row for row, _ in zip(xfeat.XFeatEncoder(xfeat_weights).encode(path, 16), range(4), strict=False)]
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) <= 1e-2


def colours(count=3, side=32):
    """Frames of one red, a little noise on it, so that a crop shows."""
    frames = np.zeros((count, side, side, 3), np.uint8)
    frames[..., 0] = np.random.default_rng(0).integers(180, 220, (side, side))
    return frames


def test_hue_turns_red_into_green_and_blue():
    """A third of the colour circle is 120 degrees (HSV); a fixed range leaves nothing to the draw."""
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    frames[..., 0] = 200
    for turn, colour in ((1 / 3, [0, 200, 0]), (-1 / 3, [0, 0, 200])):
        assert augmentation.Augmentation(hue=(turn, turn))(frames, "a")[1, 3, 3].tolist() == colour


def test_brightness_contrast_and_saturation_do_what_their_names_say():
    frames = colours()
    dark = augmentation.Augmentation(brightness=(0.5, 0.5))(frames, "a")
    assert np.abs(dark[..., 0] - frames[..., 0] / 2).max() <= 1
    flat = augmentation.Augmentation(contrast=(0, 0))(frames, "a")
    assert flat.std(axis=(1, 2)).max() == 0
    gray = augmentation.Augmentation(saturation=(0, 0))(frames, "a")
    assert np.ptp(gray.astype(int), axis=-1).max() == 0 and gray.max() > 0


def test_one_draw_for_a_video_the_same_with_the_same_seed():
    frames, strong = colours(4), augmentation.Augmentation(0.4, 0.4, 0.4, 0.4, crop=0.5)
    assert np.array_equal(strong(frames, "a"), strong(frames, "a"))
    assert np.array_equal(strong(frames[:1], "a")[0], strong(frames, "a")[3]), "every frame of a video alike, however read"
    others = [strong(frames, "b"), augmentation.Augmentation(0.4, 0.4, 0.4, 0.4, crop=0.5, seed=1)(frames, "a")]
    assert all(o.shape != strong(frames, "a").shape or not np.array_equal(o, strong(frames, "a")) for o in others)
    state = torch.random.get_rng_state()
    strong(frames, "c")
    assert torch.equal(state, torch.random.get_rng_state()), "nobody else's draws move"


def test_a_crop_is_a_part_of_the_picture():
    ramp = np.arange(64 * 64, dtype=np.int64).reshape(64, 64)
    frames = np.stack([ramp // 64, ramp % 64, np.zeros_like(ramp)], -1).astype(np.uint8)[None]  # a pixel says where it is
    areas = []
    for n in range(40):
        (crop,) = augmentation.Augmentation(crop=0.3)(frames, f"v{n}")
        assert np.array_equal(np.diff(crop[:, 0, 0].astype(int)), np.ones(len(crop) - 1))
        assert np.array_equal(np.diff(crop[0, :, 1].astype(int)), np.ones(crop.shape[1] - 1))
        areas.append(crop[..., 0].size / 64**2)
    assert 0.27 < min(areas) < 0.5 and 0.7 < max(areas) <= 1
    assert np.array_equal(augmentation.Augmentation()(frames, "a"), frames), "off: bit-equal"


@pytest.mark.parametrize("bad", [dict(crop=0.0), dict(crop=1.5), dict(hue=0.7), dict(brightness=-1.0)])
def test_amounts_out_of_range_are_refused(bad):
    with pytest.raises(ValueError):
        augmentation.Augmentation(**bad)


def test_augmentation_changes_training_videos_only_and_stands_in_made_by(batch, tmp_path):
    root, good, _ = batch
    two = [good[0], replace(good[1], split="test")]
    names = [r.id for r in two]
    jitter = augmentation.Augmentation(brightness=(0.3, 0.3), contrast=(0.4, 0.4), crop=0.4)
    plain, nothing, strong = (replace(RECIPE, augmentation=a) for a in (None, augmentation.Augmentation(), jitter))
    for name, recipe in (("plain", plain), ("nothing", nothing), ("strong", strong)):
        extraction.extract(two, root, tmp_path / name, recipe)
    train, test = ([np.load(tmp_path / kind / f"{name}.npy") for kind in ("plain", "nothing", "strong")] for name in names)
    assert np.array_equal(train[0], train[1]) and np.abs(train[0] - train[2]).max() > 5e-4
    assert np.array_equal(test[0], test[2]) and np.array_equal(test[0], test[1])
    assert artifacts.check_made_by(tmp_path / "strong")["augmentation"]["brightness"] == [0.3, 0.3]
    extraction.extract(two, root, tmp_path / "strong", strong)
    for folder, recipe in (("strong", plain), ("plain", strong)):
        with pytest.raises(artifacts.StoreError, match="augmentation"):
            extraction.extract(two, root, tmp_path / folder, recipe)
    with pytest.raises(ValueError, match="augmentation is for xfeat, got encoder 'flow'"):
        extraction.Recipe("flow", 16, (), jitter)


def test_frames_are_spread_evenly_over_a_segment(batch, tmp_path):
    """Four of 16 frames: each row is what those four frames alone give; all 16 is bit-equal to not sampling."""
    root, good, _ = batch
    encoder = xfeat.XFeatEncoder("random", side=64, sampled_frames=4)
    whole, every = (xfeat.XFeatEncoder("random", side=64, sampled_frames=n) for n in (None, 16))
    path = root / good[0].path
    rows, frames = list(encoder.encode(path, 16)), list(video.gray_frames(path))
    assert len(rows) == len(list(whole.encode(path, 16))) == 3
    chosen = [frames[16 + n] for n in (2, 6, 10, 14)]  # the middle of each quarter, the later of two
    (alone,) = whole.snippet_features(chosen, 4)
    assert np.allclose(rows[1], alone, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(every.encode(path, 16), whole.encode(path, 16), strict=True))
    assert encoder.made_by()["sampled_frames"] == 4 and whole.made_by()["sampled_frames"] is None


def test_an_id_too_long_for_a_file_is_one_skipped_row(tmp_path):
    video.write_video(tmp_path / "a.mp4", moving_square(20, 64, 64))
    rows = [records.VideoRecord(name, "a.mp4", "own", "test", 0) for name in ("x" * 260, "good", "odd..", "a/b")]
    recipe = extraction.Recipe("xfeat", options=(("weights", "random"), ("side", 64)))
    for _ in range(2):  # a second run goes on
        done = extraction.extract(rows, tmp_path, tmp_path / "out", recipe)
        (line,) = done.skipped
        assert "name too long" in line and "x" * 200 in line and "\n" not in line
    assert done.already_done == 3 and set(extraction.load(tmp_path / "out", rows)) == {"good", "odd..", "a/b"}


def test_frame_difference_is_the_largest_of_each_snippet(tmp_path):
    """Images of gray 0, 10, 30, 30, 90: neighbours differ by 10, 20, 0, 60; the first frame takes the second's."""
    for number, level in enumerate((0, 10, 30, 30, 90)):
        Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / f"{number}.png")
    assert optical_flow.frame_difference(tmp_path, 2).tolist() == [10.0, 20.0, 60.0]
    assert optical_flow.frame_difference(tmp_path, 1).tolist() == [10.0, 10.0, 20.0, 0.0, 60.0]
    for number in range(1, 5):
        (tmp_path / f"{number}.png").unlink()
    assert optical_flow.frame_difference(tmp_path, 2).tolist() == [0.0]


def test_kinds_made_together_are_those_made_alone_and_each_video_is_decoded_once(batch, tmp_path, monkeypatch):
    root, good, bad = batch
    flow, pooled = (
        extraction.Recipe("flow", 16, (("height", 32), ("width", 48))),
        extraction.Recipe("squeezenet", 16, (("weights", "random"), ("side", 32))),
    )
    recipes = {tmp_path / "x": RECIPE, tmp_path / "f": flow, tmp_path / "s": pooled}
    for folder, recipe in recipes.items():
        extraction.extract(good, root, tmp_path / "alone" / folder.name, recipe)
    extraction.extract(good[:1], root, tmp_path / "f", flow)  # one kind of one video is there
    opened, usual = [], video.gray_sums
    monkeypatch.setattr(video, "gray_sums", lambda path: opened.append(path.stem) or usual(path))
    done = extraction.extract_together([*good, bad[1]], root, recipes)
    assert sorted(opened) == list("abcde")
    assert [(d.encoded, d.already_done, len(d.skipped)) for d in done.values()] == [(5, 0, 1), (4, 1, 1), (5, 0, 1)]
    for folder in recipes:
        for name in "abcde":
            alone = artifacts.load_array(tmp_path / "alone" / folder.name / f"{name}.npy")
            assert np.array_equal(alone, artifacts.load_array(folder / f"{name}.npy"))


def test_a_video_may_be_left_out_of_one_kind(batch, tmp_path):
    root, good, _ = batch
    small = extraction.Recipe("flow", 16, (("height", 32), ("width", 48)))
    recipes, without = {tmp_path / "x": RECIPE, tmp_path / "f": small}, {tmp_path / "f": {"a", "c"}}
    for expected in ([(5, 0), (3, 0)], [(0, 5), (0, 3)]):
        done = extraction.extract_together(good, root, recipes, left_out=without)
        assert [(d.encoded, d.already_done) for d in done.values()] == expected
    assert sorted(path.stem for path in (tmp_path / "f").glob("*.npy")) == ["b", "d", "e"]

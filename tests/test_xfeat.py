"""Local change of XFeat's descriptor maps: what it is, however a video is cut, and what is refused."""

import numpy as np
import pytest
import torch
from conftest import moving_square
from kornia.feature import XFeat

from vau_lib.data import records, video
from vau_lib.features import devices, extraction, xfeat, xfeat_ncnn
from vau_lib.workspace import artifacts

LOCAL = {"pooling": "local_change", "lags": (1, 2, 4), "top_fraction": 0.1}


@pytest.fixture(scope="module")
def encoder():
    return xfeat.XFeatEncoder("random", side=64, bfloat16=False, **LOCAL)


def assert_close(rows, expected):
    """Random weights change little from frame to frame (1e-4 of 1): compared by relative distance."""
    rows, expected = np.asarray(rows), np.asarray(expected)
    assert rows.shape == expected.shape
    assert np.linalg.norm(rows - expected) < 2e-3 * np.linalg.norm(expected)


def brute_force(maps, lags, top_fraction):
    """Rows (T, 128 L) of maps (T, 64, h, w), one frame, lag and place after the other, in double precision."""
    maps = np.asarray(maps, np.float64)
    count, channels, height, width = maps.shape
    unit = maps / np.sqrt((maps**2).sum(1, keepdims=True))
    top, rows = max(1, round(top_fraction * height * width)), []
    for t in range(count):
        row = []
        for lag in lags:
            before = unit[max(t - lag, 0)]
            places = [np.abs(unit[t, :, i, j] - before[:, i, j]) for i in range(height) for j in range(width)]
            longest = sorted(places, key=lambda change: -np.sqrt((change**2).sum()))[:top]
            row += [np.mean(places, axis=0), np.mean(longest, axis=0)]
        rows.append(np.concatenate(row))
    return np.stack(rows)


@pytest.mark.parametrize(("lags", "top_fraction"), [((1,), 0.02), ((1, 2, 4), 0.1), ((4, 1), 1.0), ((9,), 0.5)])
def test_local_change_is_what_its_docstring_says(lags, top_fraction):
    maps = torch.randn(7, 64, 4, 5, generator=torch.Generator().manual_seed(0))
    rows, past = xfeat.local_change(maps, lags=lags, top_fraction=top_fraction)
    assert rows.shape == (7, 128 * len(lags)) and past.shape == (max(lags), 64, 4, 5)
    np.testing.assert_allclose(rows.numpy(), brute_force(maps, lags, top_fraction), atol=1e-6)


def test_however_the_maps_are_cut_the_rows_are_the_same():
    maps = torch.randn(23, 64, 4, 4, generator=torch.Generator().manual_seed(1))
    whole, _ = xfeat.local_change(maps, lags=(2, 5))
    for sizes in ([1] * 23, [10, 13], [13, 10], [2, 3, 18], [18, 2, 3], [22, 1]):
        past, rows = None, []
        for part in maps.split(sizes):
            row, past = xfeat.local_change(part, past, lags=(2, 5))
            rows.append(row)
            assert past.untyped_storage().nbytes() == 5 * 64 * 16 * 4, "what is kept does not grow with what came"
        assert torch.equal(torch.cat(rows), whole)


def test_rows_of_frames_equal_those_of_their_maps(encoder):
    frames = moving_square(21, 64, 64)
    by_hand = brute_force(encoder.dense(frames), LOCAL["lags"], LOCAL["top_fraction"])
    for snippet_frames in (1, 2, 4, 16, 40):
        expected = [by_hand[a : a + snippet_frames].mean(0) for a in range(0, 21, snippet_frames)]
        rows = encoder(frames, snippet_frames=snippet_frames)
        assert rows.shape == (len(expected), encoder.width) and encoder.width == 384 and rows.dtype == np.float32
        assert_close(rows, expected)


def test_snippet_after_snippet_equals_the_whole(encoder):
    frames, past, rows = moving_square(21, 64, 64), None, []
    for first in range(0, 21, 3):
        row, past = encoder.next_snippet(frames[first : first + 3], past)
        rows.append(row)
    assert_close(rows, encoder(frames, snippet_frames=3))


def test_a_row_knows_no_later_frame(encoder):
    frames = moving_square(24, 64, 64)
    later = frames.copy()
    later[12:] = 255 - later[12:, ::-1]
    before, after = encoder(frames, snippet_frames=4), encoder(later, snippet_frames=4)
    assert_close(after[:3], before[:3])
    assert np.linalg.norm(before[3:] - after[3:]) > 0.1 * np.linalg.norm(before[3:])


def test_a_still_video_gives_zeros_and_a_moving_one_does_not(encoder):
    still = np.repeat(moving_square(1, 64, 64), 40, axis=0)
    moving = encoder(moving_square(40, 64, 64), snippet_frames=8)
    assert np.abs(encoder(still, snippet_frames=8)).max() < 1e-3 * moving.max()  # batches of 16 and 8 may round differently


def test_folding_batch_norms_changes_no_map():
    net = XFeat().net.eval().requires_grad_(False)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    gray, quarter = torch.rand(2, 1, 64, 96), torch.ones(1, 24, 8, 8)

    def maps():
        return [net.block1(gray), net.skip1(gray), net.block3(quarter)]

    expected = maps()
    assert devices.folded(net) is net and not any(isinstance(part, torch.nn.BatchNorm2d) for part in net.block1.modules())
    for map_, before in zip(maps(), expected, strict=True):
        torch.testing.assert_close(map_, before, atol=1e-5, rtol=1e-5)


def test_few_places_that_change_stay_visible():
    """Two of 196 places turn to the opposite: the mean over all places is 2/196 of the change, that over the top 1 % all of it."""
    maps = torch.zeros(2, 64, 14, 14)
    maps[:, 5] = 3.0
    maps[1, 5, 2, [3, 9]] = -3.0
    rows, _ = xfeat.local_change(maps, lags=(1,), top_fraction=0.01)
    assert rows[1, 5].item() == pytest.approx(2 * 2 / 196) and rows[1, 64 + 5].item() == pytest.approx(2)
    assert rows[0].abs().max() == 0


def test_device_and_dtype_are_those_of_the_maps():
    maps = torch.randn(3, 64, 4, 4, dtype=torch.float64)
    rows, past = xfeat.local_change(maps)
    assert rows.dtype == past.dtype == torch.float64
    rows, past = xfeat.local_change(maps.to("meta"))
    assert rows.device.type == past.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "median"}, "one of pooled, local_change, got 'median'"),
        ({"lags": ()}, r"lags .* got \(\)"),
        ({"lags": (0, 1)}, r"got \(0, 1\)"),
        ({"lags": (1.5,)}, r"got \(1.5,\)"),
        ({"top_fraction": 0}, "got 0"),
        ({"sampled_frames": 4}, "sampled_frames 4"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        xfeat.XFeatEncoder("random", side=64, **{**LOCAL, **options})


def test_maps_of_another_size_and_single_frames_are_refused(encoder):
    _, past = xfeat.local_change(torch.randn(3, 64, 4, 4))
    for maps, before in ((torch.randn(2, 64, 4, 6), past), (torch.zeros(0, 64, 4, 4), past), (torch.randn(64, 4, 4), None)):
        with pytest.raises(ValueError, match="maps must be"):
            xfeat.local_change(maps, before)
    with pytest.raises(ValueError, match="single frames have no local_change"):
        encoder.encode_frames(moving_square(2, 64, 64))


def test_the_folder_says_which_summary_it_holds(tmp_path):
    video.write_video(tmp_path / "a.mp4", moving_square(40, 64, 64))
    found = [records.VideoRecord("a", "a.mp4", "own", "test", 0)]
    plain = (("weights", "random"), ("side", 64))
    pooled, local = (extraction.Recipe("xfeat", 8, options) for options in (plain, (*plain, *LOCAL.items())))
    for name, recipe, width in (("pooled", pooled, 128), ("local", local, 384)):
        extraction.extract(found, tmp_path, tmp_path / name, recipe)
        assert extraction.load(tmp_path / name, found, **recipe.made_by())["a"].shape == (5, width)
    assert artifacts.check_made_by(tmp_path / "local")["local_change"] == {"lags": [1, 2, 4], "top_fraction": 0.1}
    other = extraction.Recipe("xfeat", 8, (*plain, *{**LOCAL, "lags": (1,)}.items()))
    for folder, recipe in (("local", pooled), ("pooled", local), ("local", other)):
        with pytest.raises(artifacts.StoreError, match="was made with local_change"):
            extraction.extract(found, tmp_path, tmp_path / folder, recipe)
    facts = artifacts.read_json(tmp_path / "pooled" / "made_by.json")
    facts.pop("local_change")  # a folder made before there was a choice
    artifacts.write_json(tmp_path / "pooled" / "made_by.json", facts)
    assert extraction.extract(found, tmp_path, tmp_path / "pooled", pooled).already_done == 1


@pytest.mark.real
def test_real_fights_change_more_than_what_is_no_fight(real_data, xfeat_weights):
    """The first five clips of either kind, real weights: a fight's places change more, in the mean over clips."""
    encoder, means = xfeat.XFeatEncoder(xfeat_weights, pooling="local_change"), {}
    for kind in ("fight", "noFight"):
        paths = sorted((real_data / "fight_surv" / kind).glob("*.mp4"))[:5]
        means[kind] = np.mean([np.mean(list(encoder.encode(path, 2))) for path in paths])
    assert means["fight"] > 1.1 * means["noFight"] > 0


def test_gray_is_numpy_s_mean_to_the_bit():
    frame = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    for given in (frame, frame / 255):
        assert np.array_equal(xfeat.gray_of(given), given.mean(-1, dtype=np.float32))


def test_a_compiled_network_gives_the_same_features(monkeypatch):
    """By dynamo with its eager backend: building kernels takes half a minute."""
    built, compiler = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: built.append(network) or compiler(network, backend="eager"))
    frames = np.random.default_rng(0).integers(0, 255, (19, 40, 52, 3), dtype=np.uint8)
    options = {"side": 32, "bfloat16": False, "device": "cpu"}
    plain = xfeat.XFeatEncoder("random", **options)
    assert not built
    np.testing.assert_allclose(xfeat.XFeatEncoder("random", **options, compiled=True)(frames), plain(frames), atol=1e-5)
    assert len(built) == 1


@pytest.fixture
def by_ncnn(tmp_path, monkeypatch):
    """An encoder by ncnn, and the file that it wrote."""
    pytest.importorskip("ncnn", reason='needs the extra: pip install -e ".[export]"')
    monkeypatch.setattr(xfeat, "exported_path", lambda weights, side: tmp_path / f"{weights}_{side}.onnx")
    return xfeat.XFeatEncoder("random", side=64, runtime="ncnn"), tmp_path / "random_64.param"


def test_ncnn_gives_torch_s_float32_map(by_ncnn):
    encoder, _ = by_ncnn
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    frames[1] = 7  # nothing to normalise by
    expected = xfeat.XFeatEncoder("random", side=64, bfloat16=False).dense(frames)
    np.testing.assert_allclose(encoder.dense(frames), expected, atol=1e-4)


def test_a_network_that_ncnn_computes_otherwise_is_not_written(by_ncnn, tmp_path):
    encoder, path = by_ncnn
    with pytest.raises(ValueError, match="wrong.param is not written: its numbers are"):
        xfeat_ncnn.write(encoder.net, lambda gray: 2 * xfeat.descriptor_map(encoder.net, gray), tmp_path / "wrong.param")
    assert not list(tmp_path.glob("wrong.*"))
    with pytest.raises(ValueError, match="float32 only, got bfloat16 True"):
        xfeat.XFeatEncoder("random", side=64, runtime="ncnn", bfloat16=True)
    path.write_text("no network")
    with pytest.raises(artifacts.StoreError, match=r"random_64\.param does not load"):
        xfeat_ncnn.Session(path)

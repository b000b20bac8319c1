"""Key clips: still scenes are thinned, cuts are kept, the past alone decides; the released rule is written a second time."""

import numpy as np
import pytest
import torch

from vau_lib.detectors import key_clips
from vau_lib.detectors.lshma import LSHMA
from vau_lib.detectors.lshma_state import LSHMAConfig

WINDOWS = [4, 8]  # rows per clip, as UCF-Crime and XD-Violence have them


def scene(clips: int, *, window: int = 8, noise: float = 0.1, seed: int = 0, width: int = 64) -> np.ndarray:
    """Rows (clips * window, width) of one place of size 1 seen with noise."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=width) + noise * rng.normal(size=(clips * window, width))).astype(np.float32)


def wander(clips: int, *, window: int = 8, seed: int = 0, width: int = 64) -> np.ndarray:
    """Rows whose speed changes, so that both answers are common."""
    rng = np.random.default_rng(seed)
    speed = np.repeat(rng.lognormal(0, 2, clips), window)[:, None]
    return (0.3 * (speed * rng.normal(size=(clips * window, width))).cumsum(0) + rng.normal(size=width)).astype(np.float32)


# Share kept


@pytest.mark.parametrize("window", WINDOWS)
def test_a_scene_that_stands_exactly_still_is_kept_once_in_every(window):
    still = scene(400, window=window, noise=0)
    kept = key_clips.key_clips(still, window=window)
    assert np.flatnonzero(kept).tolist() == list(range(0, 400, 8))
    assert key_clips.key_clips(still, window=window, released=True).sum() == 4  # the warm-up and nothing more, ever


@pytest.mark.parametrize("window", WINDOWS)
def test_noise_on_a_still_scene_is_not_news_but_was_as_released(window):
    rows = scene(400, window=window)
    assert 0.12 <= key_clips.key_clips(rows, window=window).mean() < 0.14  # 1/8 whatever happens
    assert 0.54 < key_clips.key_clips(rows, window=window, released=True).mean() < 0.66  # the description measured .59


@pytest.mark.parametrize("lead", [1, 8])
def test_a_still_lead_in_does_not_make_the_noise_behind_it_news(lead):
    """The first distance over nothing sets the bar; raised from nothing step by step it would take 140 clips."""
    kept = key_clips.key_clips(np.concatenate([scene(lead, noise=0), scene(200, seed=1)]), window=8)
    assert kept[lead] and 0.12 <= kept[lead:].mean() < 0.15


@pytest.mark.parametrize("rest", range(1, 8))
def test_rounding_is_not_movement(rest):
    """The mean of three equal rows is not the mean of eight, by one part in ten million."""
    still = np.repeat(scene(1, noise=0)[:1], 16 + rest, axis=0)
    assert key_clips.key_clips(still, window=8).tolist() == [True, False, False]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_slow_pan_is_kept_every_other_clip(window):
    """A step of one clip lies at 1 / 1.125 of the bar, two steps above it; a slower pan is lost in noise for longer."""
    across = np.random.default_rng(3).normal(size=64)
    places = np.arange(400 * window)[:, None]
    pan = (1 + places * 0.05 * across).astype(np.float32)
    kept = key_clips.key_clips(pan, window=window)
    assert kept[100:].mean() == 0.5 and not (kept[100:-1] & kept[101:]).any()
    slow = (scene(400, window=window) + 0.01 * 4 / window * places * across).astype(np.float32)
    assert 0.2 < key_clips.key_clips(slow, window=window).mean() < 0.5


def test_one_clip_in_every_is_kept():
    rows = scene(100)
    for every in (1, 3, 8, 20):
        kept = np.flatnonzero(key_clips.key_clips(rows, window=8, every=every))
        assert kept[0] == 0 and np.diff(kept).max() == every


# A cut


@pytest.mark.parametrize("late", [0, 4])  # rows of the old scene in the clip of the cut
def test_the_clip_of_a_cut_is_kept(late):
    for seed in range(20):
        rows = np.concatenate([scene(21, seed=seed)[: 20 * 8 + late], scene(40, seed=99)])
        kept, ratios = key_clips.trace(rows[: 60 * 8], window=8, every=1000)
        assert kept[20] and ratios[20] > 3 and ratios[:20][1:].max() < 1
        assert not kept[22:].any()  # and the new scene is soon as still as the old one


def test_batch_and_stream_keep_the_same_clips():
    videos = [np.concatenate([scene(11, seed=1), scene(20, seed=2)]), wander(31), scene(31, noise=1.0, seed=4)]
    alone = np.stack([key_clips.key_clips(rows, window=8) for rows in videos])
    clips = torch.from_numpy(np.stack(videos)).view(3, 31, 8, 64)
    state, together = key_clips.KeyState.empty(3, 64, clips), []
    for clip in clips.unbind(1):
        keep, _, state = key_clips.decide(clip, state, torch.tensor([8, 8, 8]), every=8)
        together.append(keep.numpy())
    np.testing.assert_array_equal(np.stack(together, 1), alone)
    assert alone[0, 11] and 0.2 < alone[1].mean() < 0.9


def test_inference_keeps_the_clips_that_the_whole_video_keeps():
    rows = np.concatenate([scene(11, seed=1, width=16), scene(10, seed=2, width=16)])
    model, state, depths = LSHMA(LSHMAConfig.xd(width=16, key_clips=True, exit_threshold=1.0)).eval(), None, []
    with torch.inference_mode():
        for clip in torch.from_numpy(rows).split(8):
            _, state = model.step(clip[None], state)
            depths.append(int(state.depth))
    kept = key_clips.key_clips(rows, window=8, every=model.settings.key_every)
    assert kept[11] and not kept.all()
    assert [depth > 0 for depth in depths] == kept.tolist()


# Padding, time, scale


@pytest.mark.parametrize("padding", [0.0, 1e6, torch.nan, torch.inf])
@pytest.mark.parametrize("real", range(9))
def test_padded_rows_are_not_looked_at(padding, real):
    clips = torch.from_numpy(wander(3, seed=5)).view(3, 8, 64)
    short, state = clips[2].clone(), key_clips.KeyState.empty(1, 64, clips)
    for clip in clips[:2]:
        state = key_clips.decide(clip[None], state, torch.tensor([8]), every=8)[2]
    short[real:] = padding
    expected = key_clips.decide(clips[2][None, : max(real, 1)], state, torch.tensor([real]), every=8)
    found = key_clips.decide(short[None], state, torch.tensor([real]), every=8)
    assert torch.equal(found[0], expected[0]) and (real or not found[0])
    for now, alone, before in zip(found[2], expected[2], state, strict=True):
        torch.testing.assert_close(now, alone)
        assert real or torch.equal(now, before)  # a stream with no rows is left alone


def test_the_future_does_not_change_what_was_kept():
    for rows in (wander(60), scene(60)):
        kept, ratios = key_clips.trace(rows, window=8)
        other, others = key_clips.trace(np.concatenate([rows[: 8 * 30], 50 * wander(30, seed=8)]), window=8)
        assert (other[:30] == kept[:30]).all() and (others[:30] == ratios[:30]).all()
        assert (others[30:] != ratios[30:]).any()


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])  # powers of two: not a bit is rounded
def test_the_scale_of_features_does_not_matter(scale):
    rows = wander(80)
    kept, ratios = key_clips.trace(rows, window=8)
    other, others = key_clips.trace(np.float32(scale) * rows, window=8)
    assert 0.2 < kept.mean() < 0.9 and (other == kept).all()
    np.testing.assert_array_equal(others, ratios)


def test_the_bar_by_hand():
    """Clips of two rows and one channel: 0 2 | 1 3 | 7 9, all kept.

    Halves lie 2 apart, so local is 2 and wide 2 / sqrt 2: the first bar is 1.5 (2 + 1.414) / 2. The second mean lies 1
    from the first: wide is .9 * 1.414 + .1. The third lies 7 from the last kept one, which is the first.
    """
    kept, ratios = key_clips.trace(torch.tensor([[0.0], [2.0], [1.0], [3.0], [7.0], [9.0]]), window=2)
    assert kept.tolist() == [True, False, True] and ratios[0] == np.inf
    assert ratios[1:] == pytest.approx([1 / (0.75 * (2 + 2**0.5)), 7 / (0.75 * (2 + 0.9 * 2**0.5 + 0.1))])


def test_a_spike_counts_three_times_the_running_distance():
    _, _, state = key_clips.decide(
        torch.tensor([[[0.0], [2.0]]]), key_clips.KeyState.empty(1, 1, torch.zeros(1)), torch.tensor([2]), every=8
    )
    _, _, state = key_clips.decide(torch.tensor([[[100.0], [900.0]]]), state, torch.tensor([2]), every=8)
    assert state.local.item() == pytest.approx(0.9 * 2 + 0.1 * 6)
    assert state.wide.item() == pytest.approx(1.2 * 2**0.5)


# The released rule, a second time: numpy and float64, from its closed form


def closed_form(rows: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which clips are kept, and how near a clip's r = d[n-1] / d[n] lies to a bound: kept iff -1 < r < 3, r != 1."""
    rows = np.pad(rows.astype(float), ((0, -len(rows) % window), (0, 0)))
    like = []
    for clip in rows.reshape(-1, window, rows.shape[1]):
        blocks = []
        for channel in range(0, rows.shape[1], 8):
            places = []
            for place in range(window // 2):
                a, b = clip[place, channel : channel + 8], clip[place + window // 2, channel : channel + 8]
                lengths = np.linalg.norm(a) * np.linalg.norm(b)
                places.append((a @ b / lengths + 1) / 2 if lengths else 0.5)
            blocks.append(np.mean(places))
        like.append(min(blocks))
    kept, near = np.ones(len(like), bool), np.ones(len(like))
    for n in range(4, len(like)):
        before, now = like[n - 1] - like[n - 2], like[n] - like[n - 1]
        r = before / now
        kept[n], near[n] = -1 < r < 3 and r != 1, min(abs(r + 1), abs(r - 3), abs(r - 1))
    return kept, near


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rows", [scene, wander])
def test_the_released_rule_is_its_closed_form(rows, window):
    video = rows(150, window=window, seed=6)[:-3]  # the last clip is padded with zeros
    expected, near = closed_form(video, window)
    sure = near > 1e-2
    assert sure.mean() > 0.9 and 0.3 < expected.mean() < 0.9
    found = key_clips.key_clips(video, window=window, released=True)
    np.testing.assert_array_equal(found[sure], expected[sure])


def test_the_released_rule_by_hand():
    """Steps of similarity .5 .125 .125 .25 0 0 after three zeros, so r = d[n-1] / d[n] is 4, 1, .5, infinite, none."""
    like = torch.tensor([0, 0, 0, 0.5, 0.625, 0.75, 1, 1, 1])
    assert key_clips._released(like).tolist() == [True] * 4 + [False, False, True, False, False]


def test_half_precision_loses_a_padded_last_clip():
    for seed in range(10):
        video = scene(20, seed=seed)[:-3]
        assert not key_clips.key_clips(video, window=8, released=True, half_precision=True)[-1]
        assert key_clips.key_clips(video, window=8, released=True)[-1]  # half of it is unlike nothing: a large step
    assert key_clips.half_similarity(video, window=8, half_precision=True).isnan().tolist() == [False] * 19 + [True]
    assert key_clips.half_similarity(video, window=8).isfinite().all()
    assert key_clips.key_clips(scene(4)[:-3], window=8, released=True, half_precision=True).all()  # warm-up


@pytest.mark.parametrize(
    "rows, options, said",
    [
        (np.zeros((0, 8)), {"window": 8}, r"T at least 1 .* got \(0, 8\), 8"),
        (np.zeros(8), {"window": 8}, r"features \(T, D\).* got \(8,\)"),
        (np.zeros((9, 8)), {"window": 1}, "window of 2 or more"),
        (np.zeros((9, 12)), {"window": 8, "released": True}, "multiple of 8 and an even window, got 12, 8"),
        (np.zeros((9, 16)), {"window": 5, "released": True}, "multiple of 8 and an even window, got 16, 5"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(rows, options, said):
    with pytest.raises(ValueError, match=said) as caught:
        key_clips.key_clips(rows, **options)
    assert "\n" not in str(caught.value)

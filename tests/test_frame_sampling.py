"""Frames go where the mass is, each to another picture, and the published sampler can still be had to the bit."""

import json
import warnings

import numpy as np
import pytest
from scipy.interpolate import interp1d

from vau_lib.detectors import frame_sampling
from vau_lib.evaluation import metrics


def published(scores, num_frames, tau=0.1):
    """Say the published sampler again with SciPy, in float64, to compare with."""
    scores, last = np.asarray(scores, np.float64), len(scores) - 1
    if len(scores) <= num_frames or scores.sum() < 1:
        return [int(place) for place in np.rint(np.linspace(0, last, num_frames))]
    mass = np.concatenate([[0.0], np.cumsum(scores + tau)])
    line = interp1d(mass, np.arange(len(mass)), kind="linear", fill_value="extrapolate")
    wanted = np.linspace(1, int(np.round(mass[-1])), num_frames)
    return [min(last, max(0, int(place))) for place in line(wanted)]


@pytest.fixture
def quiet():
    """Without the warning that few snippets repeat."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*some repeat")
        yield


@pytest.mark.parametrize("seed", range(6))
def test_released_is_exact_on_any_curve(seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        scores = rng.random(rng.integers(1, 400)) ** rng.choice([0.1, 1, 5, 20])
        scores = np.round(scores, 1) if rng.random() < 0.2 else scores  # plateaus, masses near .5
        count, tau = int(rng.integers(1, 40)), rng.choice([0.01, 0.05, 0.1, 0.5, 1.0, 10.0])
        assert frame_sampling.density_aware_sample(scores, count, tau=tau, released=True).tolist() == published(scores, count, tau)


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (25, 3, [2, 13, 24]),  # 25 x (.4 + .1) = 12.5 rounds to the even 12: masses 1, 6.5, 12 at places 2, 13, 24
        (27, 3, [2, 15, 26]),  # 13.5 rounds to 14: masses 1, 7.5, 14, the last beyond the end
    ],
)
def test_released_rounds_half_a_mass_to_even(length, count, expected):
    assert frame_sampling.density_aware_sample(np.full(length, 0.4), count, released=True).tolist() == expected


def test_released_low_scores_fall_back_to_even_ints():
    found = frame_sampling.density_aware_sample(np.zeros(20), 4, released=True)
    assert found.tolist() == [0, 6, 13, 19] and found.dtype.kind == "i"  # linspace(0, 19, 4) rounded


def test_released_threshold_is_on_the_sum():
    """40 snippets at .0249 fall back, at .0251 do not: the specification's measured edge."""
    below, above = (frame_sampling.density_aware_sample(np.full(40, s), 12, released=True) for s in (0.0249, 0.0251))
    assert below[0] == 0 and above[0] == 7  # mass 1 is reached after 1 / .1251 = 7.99 snippets


def test_float32_scores_are_summed_in_float64():
    """NumPy 2 keeps float32 in score + .1; the frames must not depend on it."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = rng.random(200).astype(np.float32)
        a = frame_sampling.density_aware_sample(scores, 12, released=True)
        assert a.tolist() == published(scores.astype(np.float64), 12)


@pytest.mark.parametrize("middle", [True, False])
def test_intended_by_hand(middle):
    """Mass .5 .5 1.5 .5 .5 .5 with two frames: middles 1 and 3 lie in snippets 2 and 4; of equals the middle one is highest."""
    scores = np.array([0, 0, 1, 0, 0, 0])
    assert frame_sampling.density_aware_sample(scores, 2, tau=0.5, middle=middle).tolist() == [2, 4]


def test_each_part_gives_its_highest_score():
    """Ten snippets of mass 1.0 to 1.09, two frames: parts of five, whose highest are where they were put."""
    scores = np.zeros(10)
    scores[[0, 6]] = 0.05
    assert frame_sampling.density_aware_sample(scores, 2, tau=1.0).tolist() == [0, 6]
    assert frame_sampling.density_aware_sample(scores, 2, tau=1.0, middle=True).tolist() == [2, 7]


def test_intended_caps_a_snippet_at_one_frame():
    """Three frames: a third of mass 4 is less than 1.5; cap 1.25 = 2.5 / 2, middles .625 1.875 3.125 of 3.75."""
    mass = np.array([0.5, 0.5, 1.5, 0.5, 0.5, 0.5])
    assert frame_sampling.one_share(mass, 3) == pytest.approx(1.25)
    assert frame_sampling.density_aware_sample(mass - 0.5, 3, tau=0.5).tolist() == [1, 2, 4]


@pytest.mark.parametrize("seed", range(4))
def test_intended_is_sorted_distinct_and_in_range(seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        scores = rng.random(rng.integers(1, 300)) ** rng.choice([0.1, 1, 5, 20])
        scores[rng.random(len(scores)) < rng.choice([0, 0.5, 0.95])] = 0
        count = int(rng.integers(1, len(scores) + 1))
        tau, middle = rng.choice([0.0, 0.01, 0.1, 1.0]), bool(rng.integers(2))
        found = frame_sampling.density_aware_sample(scores, count, tau=tau, middle=middle)
        assert found.dtype.kind == "i" and len(found) == count
        assert (np.diff(found) > 0).all() and 0 <= found[0] and found[-1] < len(scores)


@pytest.mark.parametrize("value", [0.0, 0.003, 0.5, 1.0])
def test_flat_scores_sample_uniformly(value):
    """The middles of 12 equal parts of 240 snippets: 10, 30, ..., 230."""
    assert frame_sampling.density_aware_sample(np.full(240, value), 12).tolist() == list(range(10, 240, 20))


def test_intended_reads_a_video_backwards_alike():
    scores = np.random.default_rng(0).random(301) ** 3
    there, back = (frame_sampling.density_aware_sample(s, 16) for s in (scores, scores[::-1]))
    assert (300 - back[::-1]).tolist() == there.tolist()


def test_the_head_can_be_reached_as_intended_not_as_released():
    """A low-score video of 400 snippets whose event is at the start."""
    scores = np.full(400, 0.01)
    scores[:3] = 1.0
    assert (frame_sampling.density_aware_sample(scores, 12) < 3).any()
    assert (frame_sampling.density_aware_sample(np.full(400, 0.01), 12, released=True) >= 9).all()


def test_duplicates_where_released_none_where_intended():
    scores = np.full(60, 0.001)
    scores[30:33] = 1.0
    found = [frame_sampling.density_aware_sample(scores, 32, released=kind) for kind in (True, False)]
    assert len(set(found[0].tolist())) < 32 and len(set(found[1].tolist())) == 32


def test_no_tau_takes_what_has_mass_first():
    scores = np.zeros(100)
    scores[[7, 50]] = 0.4
    found = frame_sampling.density_aware_sample(scores, 6, tau=0)
    assert {7, 50} <= set(found.tolist()) and len(set(found.tolist())) == 6


@pytest.mark.parametrize("length", [1, 3, 11, 12, 13])
def test_few_snippets_are_all_taken(length, quiet):
    found = frame_sampling.density_aware_sample(np.random.default_rng(0).random(length), 12)
    assert len(found) == 12 and (np.diff(found) >= 0).all() and found.max() < length
    assert len(set(found.tolist())) == min(length, 12)


def test_more_frames_than_exist_are_said_in_one_line():
    with pytest.warns(UserWarning, match="^12 frames asked of 5, some repeat$"):
        frame_sampling.density_aware_sample(np.zeros(5), 12)
    with pytest.raises(ValueError, match="^12 frames are more than the 5 snippets that exist$"):
        frame_sampling.top_k_sample(np.zeros(5), 12)


def test_more_tau_is_nearer_to_uniform():
    rng = np.random.default_rng(3)
    scores = np.clip(rng.normal(0, 0.02, 500), 0, 1)
    scores[200:230] = 0.9
    inside = [
        ((found := frame_sampling.density_aware_sample(scores, 16, tau=tau)) >= 200).sum() - (found >= 230).sum()
        for tau in (0.01, 0.1, 1.0, 10.0)
    ]
    assert inside == sorted(inside, reverse=True) and inside[0] > inside[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((np.array([0.1, np.nan]), 1), r"scores must lie in \[0, 1\], got nan at place 1"),
        ((np.array([0.1, 1.5]), 1), r"got 1.5 at place 1"),
        ((np.zeros((3, 2)), 1), r"scores must be \(T,\) with T at least 1, got shape \(3, 2\)"),
        ((np.zeros(0), 1), r"got shape \(0,\)"),
        ((np.zeros(3), 0), "num_frames must be a whole number, 1 or more, got 0"),
        ((np.zeros(3), 2.0), "num_frames must be a whole number, 1 or more, got 2.0"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, said):
    for choose in (frame_sampling.density_aware_sample, frame_sampling.top_k_sample):
        with pytest.raises(ValueError, match=said) as error:
            choose(*arguments)
        assert "\n" not in str(error.value)


def test_a_negative_tau_is_refused():
    with pytest.raises(ValueError, match="tau must be 0 or more, got -0.1"):
        frame_sampling.density_aware_sample(np.zeros(9), 2, tau=-0.1)


def test_uniform_is_internvl_s_middle_of_segments():
    """The frames printed by the published notebook for robbery.mp4: 2730 frames, 12 asked."""
    found = frame_sampling.uniform_sample(2730, 12).tolist()
    assert found[:3] == [113, 340, 568] and found[-1] == 2615 and len(found) == 12


def test_top_k_takes_the_earlier_of_equals():
    assert frame_sampling.top_k_sample(np.array([0.2, 0.9, 0.2, 0.9, 0.2]), 3).tolist() == [0, 1, 3]


# Frames of a video


def test_a_video_with_more_glances_than_frames_is_read_where_its_mass_is():
    scores = np.zeros(20)
    scores[8:12] = 1.0
    found = frame_sampling.choose_frames(scores, 319, 4)
    assert found.tolist() == (16 * frame_sampling.density_aware_sample(scores, 4)).tolist()
    assert ((found >= 128) & (found < 192)).sum() >= 2


@pytest.mark.parametrize("num_total", [12, 13, 100, 192])
def test_a_short_video_gives_even_frames_not_repeated_glances(num_total):
    found = frame_sampling.choose_frames(np.ones(-(-num_total // 16)), num_total, 12)
    assert len(set(found.tolist())) == 12 and found.max() < num_total and np.ptp(np.diff(found)) <= 1


def test_a_short_video_as_released_gives_internvl_s_frames():
    """12 of 12 frames: g = 11 / 12 and half-to-even rounding show frame 6 twice and never the last."""
    found = frame_sampling.choose_frames(np.ones(1), 12, 12, released=True)
    assert found.tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10]


def test_scores_of_another_stride_are_refused():
    with pytest.raises(ValueError, match="^320 frames at stride 16 have 20 scores, got 19$"):
        frame_sampling.choose_frames(np.zeros(19), 320, 4)


# Coarse to fine


class Looker:
    """Scores known in advance, and a count of what was asked."""

    def __init__(self, scores):
        self.scores, self.asked = scores, []

    def __call__(self, index):
        self.asked.append(index)
        return self.scores[index]


def test_stride_one_is_the_whole_video():
    scores = np.random.default_rng(0).random(50)
    found, looked = frame_sampling.coarse_to_fine(look := Looker(scores), 50, stride=1)
    assert np.array_equal(found, scores) and looked.all() and len(look.asked) == 1


def test_refining_all_of_it_gives_every_score():
    scores = np.random.default_rng(0).random(53)
    found, looked = frame_sampling.coarse_to_fine(Looker(scores), 53, stride=4, refine=1.0)
    assert np.array_equal(found, scores) and looked.all()


def test_coarse_to_fine_looks_at_little_and_still_finds_the_event():
    scores = np.full(1000, 0.02)
    scores[600:640] = 0.9
    found, looked = frame_sampling.coarse_to_fine(look := Looker(scores), 1000, stride=5, refine=0.05)
    assert looked.sum() < 260 and np.array_equal(found[600:640], scores[600:640])
    assert all((np.diff(run) == 1).all() for run in look.asked[1:]), "a run is scored at its native spacing"
    assert np.array_equal(np.unique(np.concatenate(look.asked)), np.flatnonzero(looked))


def test_a_scorer_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"scores must be \(5,\) with T at least 1, got shape \(4,\)"):
        frame_sampling.coarse_to_fine(lambda index: np.zeros(len(index) - 1), 17, stride=4)


# Study


def test_judge_by_hand():
    """Frames 2 2 5 9 and the events [2, 4), [9, 9.5), [20, 30): three frames hit, two of them new, two events seen."""
    found = frame_sampling.judge(np.array([2, 2, 5, 9]), [(2, 4), (9, 9.5), (20, 30)])
    assert found == {"hit_rate": 0.75, "coverage": 0.5, "event_recall": pytest.approx(2 / 3), "duplicates": 0.25}


def test_recall_is_over_events_not_videos():
    scores = {"a": np.zeros(10), "b": np.zeros(10)}
    events = {"a": [(0, 10)], "b": [(0, 1), (1, 2), (9, 10)]}
    table = frame_sampling.summary(frame_sampling.study(scores, events, [1], {"fifth": lambda s, n: np.array([5])}))
    assert table["event_recall"].tolist() == [0.25] and table["videos"].tolist() == [2]


def test_a_study_needs_the_same_videos():
    with pytest.raises(ValueError, match="video b has no scores"):
        frame_sampling.study({"a": np.zeros(3)}, {"a": [], "b": []}, [1])


@pytest.mark.parametrize("auc", [0.5, 0.7, 0.9])
def test_the_noisy_oracle_is_as_good_as_it_says(auc):
    labels = np.repeat([0, 1], 20_000)
    scores = frame_sampling.noisy_oracle(labels, auc, np.random.default_rng(0), prior=0.5)
    assert metrics.frame_auc({"v": scores}, {"v": labels}) == pytest.approx(auc, abs=0.01)
    assert scores[labels == 1].mean() + scores[labels == 0].mean() == pytest.approx(1, abs=0.02)  # calibrated at one half


# Real annotations


@pytest.fixture(scope="module")
def hivau(real_data):
    """Events of the 128 anomalous UCF-Crime test videos in snippets, and each one's number of snippets and frames."""
    raw = json.loads((real_data / "annotations" / "hivau70k" / "ucf_database_test.json").read_text())
    kept = {name: row for name, row in raw.items() if row["label"]}
    events = {name: [(a * row["fps"] / 16, b * row["fps"] / 16) for a, b in row["events"]] for name, row in kept.items()}
    return events, {name: row["n_frames"] for name, row in kept.items()}


@pytest.mark.real
def test_intended_is_no_worse_than_released_on_real_annotations(real_data, hivau):
    """Real scores of a Sultani-style model: coverage higher and duplicates fewer at every N, recall within one event."""
    events, frames = hivau
    assert len(events) == 128 and sum(map(len, events.values())) == 144
    stored = np.load(real_data / "predictions" / "ucf_sultani_style_scores_32seg.npz")
    of = dict(zip(stored["video"].tolist(), stored["scores"], strict=True))
    scores = {name: metrics.expand_evenly(of[name], count)[::16] for name, count in frames.items()}
    table = frame_sampling.summary(frame_sampling.study(scores, events, [8, 12, 16, 32]))
    intended, released = (table[table["sampler"] == name].reset_index() for name in ("intended", "released"))
    assert (intended["coverage"] > released["coverage"]).all()
    assert (intended["duplicates"] < released["duplicates"]).all()
    assert (intended["event_recall"] >= released["event_recall"] - 1 / 144 - 1e-9).all()


@pytest.mark.real
@pytest.mark.parametrize("auc", [0.6, 0.8, 0.95])
def test_on_scores_of_equal_quality_the_intended_sampler_is_no_worse_in_any_column(hivau, auc):
    """A noisy oracle, five draws: more frames in events, more events seen and fewer repeats, at every N."""
    events, frames = hivau
    tables = []
    for seed in range(5):
        rng, scores = np.random.default_rng(seed), {}
        for name, count in frames.items():
            place = np.arange(-(-count // 16))
            inside = [(place >= start) & (place < end) for start, end in events[name]]
            scores[name] = frame_sampling.noisy_oracle(np.any(inside, axis=0), auc, rng)
        tables.append(frame_sampling.summary(frame_sampling.study(scores, events, [8, 12, 16, 32])))
    columns = ["num_frames", "sampler", "coverage", "event_recall", "duplicates"]
    mean = sum(t[columns].set_index(columns[:2]) for t in tables) / len(tables)
    gain = mean.xs("intended", level=1) - mean.xs("released", level=1)
    assert (gain["coverage"] > 0).all() and (gain["event_recall"] >= 0).all() and (gain["duplicates"] <= 0).all()


@pytest.mark.real
def test_real_lists_of_the_released_sampler_fall_back_where_ours_does(real_data):
    """289 lists of frames the published sampler chose on a third party's scores: 9 are its even fallback, to the frame."""
    path = real_data / "annotations" / "holmesvau_outputs" / "thirdparty_holmesvau_ucf290_sampled_frames.json"
    rows = [row for row in json.loads(path.read_text()) if row["sampled_frames"]]
    even = 0
    for row in rows:
        places = frame_sampling.density_aware_sample(np.zeros(-(-row["n_frames"] // 16)), 12, released=True)
        even += (16 * places).tolist() == row["sampled_frames"]
    assert len(rows) == 289 and even == 9

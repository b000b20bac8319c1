"""The scorer computes what the published weights were made for, never at random, and can be trained on what is at hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vau_lib.data import records
from vau_lib.detectors import anomaly_scorer, frame_sampling, lshma, preprocessing, trained_detector, training
from vau_lib.evaluation import metrics
from vau_lib.synthetic import feature_streams
from vau_lib.workspace import artifacts

TINY = anomaly_scorer.ScorerConfig(width=12, hidden=16, heads=2, head_width=4, slots=6)
LAYER = {
    "0.norm.weight": (512,), "0.norm.bias": (512,), "0.fn.to_qkv.weight": (2048, 512), "0.fn.to_out.0.weight": (512, 1024),
    "0.fn.to_out.0.bias": (512,), "1.norm.weight": (512,), "1.norm.bias": (512,), "1.fn.net.0.weight": (512, 512),
    "1.fn.net.0.bias": (512,), "1.fn.net.3.weight": (512, 512), "1.fn.net.3.bias": (512,),
}  # fmt: skip
RELEASED = {
    "embedding.conv_1.0.weight": (512, 1024, 3), "embedding.conv_1.0.bias": (512,),
    **{f"self_attn.layers.{n}.{name}": shape for n in (0, 1) for name, shape in LAYER.items()},
    "cls_head.mlp.0.weight": (128, 1024), "cls_head.mlp.0.bias": (128,), "cls_head.mlp.2.weight": (1, 128),
    "cls_head.mlp.2.bias": (1,), "Amemory.memory_block": (60, 512), "Nmemory.memory_block": (60, 512),
    "encoder_mu.0.weight": (512, 512), "encoder_mu.0.bias": (512,), "encoder_var.0.weight": (512, 512),
    "encoder_var.0.bias": (512,),
}  # fmt: skip


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    """Random tensors under the release's 34 names, of its shapes."""
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draw) * (0.03 if len(shape) > 1 else 0.1) for name, shape in RELEASED.items()}


@pytest.fixture
def scorer() -> anomaly_scorer.AnomalyScorer:
    torch.manual_seed(0)
    return anomaly_scorer.AnomalyScorer(TINY)


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(4, 20, TINY.width, generator=torch.Generator().manual_seed(1))


# Reference


def by_hand(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Compute the test branch of one video (T, 1024) from the specification, naively, in float64."""
    w, x = {name: value.double() for name, value in w.items()}, x.double()
    count = len(x)
    padded = torch.cat([torch.zeros(1, 1024), x, torch.zeros(1, 1024)]).double()
    kernel = w["embedding.conv_1.0.weight"]
    x = sum(padded[k : k + count] @ kernel[:, :, k].T for k in range(3)) + w["embedding.conv_1.0.bias"]
    x = x.clamp_min(0)
    place = torch.arange(count).double()
    nearness = torch.exp(-(place[:, None] - place[None, :]).abs() / math.e)
    nearness = nearness / nearness.sum(1)[None, :]  # column j by the sum of row j
    for n in (0, 1):
        layer = {name.removeprefix(f"self_attn.layers.{n}."): value for name, value in w.items()}
        y = F.layer_norm(x, (512,), layer["0.norm.weight"], layer["0.norm.bias"]) @ layer["0.fn.to_qkv.weight"].T
        heads = []
        for h in range(4):
            q, k, v, t = (y[:, 512 * part + 128 * h : 512 * part + 128 * (h + 1)] for part in range(4))
            heads += [torch.softmax(q @ k.T / 128**0.5, 1) @ v, nearness @ t]
        x = x + torch.cat(heads, 1) @ layer["0.fn.to_out.0.weight"].T + layer["0.fn.to_out.0.bias"]
        y = F.layer_norm(x, (512,), layer["1.norm.weight"], layer["1.norm.bias"])
        y = F.gelu(y @ layer["1.fn.net.0.weight"].T + layer["1.fn.net.0.bias"])
        x = x + y @ layer["1.fn.net.3.weight"].T + layer["1.fn.net.3.bias"]
    added = 0
    for name in "AN":
        slots = w[f"{name}memory.memory_block"]
        answer = torch.sigmoid(x @ slots.T / 512**0.5) @ slots
        added = added + answer @ w["encoder_mu.0.weight"].T + w["encoder_mu.0.bias"]
    y = torch.cat([x, added], 1) @ w["cls_head.mlp.0.weight"].T + w["cls_head.mlp.0.bias"]
    return torch.sigmoid(y.clamp_min(0) @ w["cls_head.mlp.2.weight"].T + w["cls_head.mlp.2.bias"])[:, 0]


def test_it_has_the_published_size():
    assert sum(p.numel() for p in anomaly_scorer.AnomalyScorer().parameters()) == 6_492_929


def test_released_names_load_strictly_and_compute_what_the_paper_s_code_does(released):
    assert len(released) == 34
    scorer, x = (anomaly_scorer.load_released(released), torch.randn(2, 150, 1024, generator=torch.Generator().manual_seed(2)))
    with torch.inference_mode():
        found = scorer(x)
    assert not scorer.training and found.std() > 0.01
    torch.testing.assert_close(found[1].double(), by_hand(released, x[1]), atol=2e-5, rtol=0)


def test_ur_dmu_s_own_names_load_too(released):
    theirs = {name.replace("self_attn.", "selfatt."): value for name, value in released.items()}
    assert torch.equal(anomaly_scorer.load_released(theirs).mean.weight, released["encoder_mu.0.weight"])


def test_a_file_of_them_loads(released, tmp_path):
    torch.save(released, tmp_path / "anomaly_scorer.pth")
    assert torch.equal(anomaly_scorer.load_released(tmp_path / "anomaly_scorer.pth").normal.slots, released["Nmemory.memory_block"])


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_what_does_not_fit_is_refused(released, change):
    weights = dict(released)
    if change == "missing":
        del weights["encoder_var.0.bias"]
    elif change == "more":
        weights["encoder_var.1.bias"] = torch.zeros(1)
    else:
        weights["Amemory.memory_block"] = torch.zeros(50, 512)
    with pytest.raises(artifacts.StoreError, match="the state dict does not fit AnomalyScorer") as error:
        anomaly_scorer.load_released(weights)
    assert "\n" not in str(error.value)


def test_a_pickle_is_refused(real_data_pickle):
    with pytest.raises(artifacts.StoreError, match="is refused"):
        anomaly_scorer.load_released(real_data_pickle)


@pytest.fixture
def real_data_pickle(tmp_path):
    torch.save({"weights": print}, tmp_path / "hostile.pth")
    return tmp_path / "hostile.pth"


def test_nearness_is_divided_by_columns_as_released():
    """Row sums .82 .95 1.02 at the start of twelve rows, as measured on the released code (its specification, 1.2)."""
    sums = anomaly_scorer.near(torch.ones(1, 1, 12, 1))[0, 0, :, 0]
    torch.testing.assert_close(sums[:3], torch.tensor([0.82, 0.95, 1.02]), atol=0.005, rtol=0)


@pytest.mark.parametrize("count", [1, 7, 64, 65, 200])
def test_nearness_in_blocks_is_the_whole_matrix(count):
    values = torch.randn(2, 3, count, 5, generator=torch.Generator().manual_seed(count))
    place = torch.arange(count)
    matrix = torch.exp(-(place[:, None] - place).abs() / math.e)
    torch.testing.assert_close(anomaly_scorer.near(values), matrix / matrix.sum(-1) @ values)


# Behaviour


def test_scores_lie_between_0_and_1_one_per_row(scorer, rows):
    found = scorer(rows)
    assert found.shape == (4, 20) and (found >= 0).all() and (found <= 1).all()


@pytest.mark.parametrize("width", [1, 128, 512])
def test_any_width_and_any_length(width):
    scorer = anomaly_scorer.AnomalyScorer(anomaly_scorer.ScorerConfig(width=width, hidden=16, heads=2, head_width=4))
    assert [scorer(torch.zeros(1, count, width)).shape for count in (1, 2, 130)] == [(1, 1), (1, 2), (1, 130)]


def test_inference_never_drops_not_even_in_training_mode(scorer, rows):
    assert torch.equal(scorer.train()(rows), scorer.eval()(rows))


def test_the_released_quirk_is_random_even_in_eval_mode(rows):
    scorer = anomaly_scorer.AnomalyScorer(anomaly_scorer.ScorerConfig(**{**vars(TINY), "dropout_at_inference": True})).eval()
    assert not torch.equal(scorer(rows), scorer(rows))


def test_training_drops_and_draws_evaluation_does_not(scorer, rows):
    scorer.train()
    assert not torch.equal(scorer.learn(rows).scores, scorer.learn(rows).scores)
    scorer.eval()
    output = scorer.learn(rows)
    assert torch.equal(output.scores, output.noisy_scores)
    torch.testing.assert_close(output.scores, scorer(rows))


def test_crops_are_averaged(scorer, rows):
    crops = torch.stack([rows, rows.flip(-1)], dim=1)  # (B, 2, T, D)
    torch.testing.assert_close(scorer(crops), (scorer(rows) + scorer(rows.flip(-1))) / 2)


def test_permuting_the_batch_permutes_the_scores(scorer, rows):
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(scorer(rows[order]), scorer(rows)[order])


@pytest.mark.parametrize("shape", [(4, 20), (4, 20, 11), (0, 20, 12), (4, 0, 12)])
def test_rows_of_another_shape_are_refused(scorer, shape):
    with pytest.raises(ValueError, match=r"features must be \(B, T, 12\) or \(B, n, T, 12\), none empty, got"):
        scorer(torch.zeros(shape))


def test_nan_rows_are_refused(scorer, rows):
    rows[1, 3, 0] = torch.nan
    with pytest.raises(ValueError, match="features hold nan"):
        scorer(rows)


# Loss


def output_of(**changed) -> anomaly_scorer.ScorerOutput:
    """One normal video, then one anomalous, two rows each, all quantities plain; fields can be replaced."""
    half, zero = torch.full((2, 2), 0.5), torch.zeros(2, 2, 3)
    plain = dict(scores=half, noisy_scores=half, features=zero + 1, abnormal=half, normal=half)
    return anomaly_scorer.ScorerOutput(
        **(plain | dict(abnormal_answer=zero, normal_answer=zero, mean=zero, log_variance=zero) | changed)
    )


TARGETS = torch.tensor([[0, 0], [0, 1]])


def test_every_part_of_the_loss_by_hand():
    """All chances .5: each cross-entropy ln 2; equal directions: the triplet's margin 1; answers of length 0: distance 100."""
    found = anomaly_scorer.scorer_loss(output_of(), TARGETS)
    crossed = ["bag", "frames", "abnormal_recalled", "abnormal_unknown", "normal_recalled", "normal_unknown"]
    assert {name: float(found[name]) for name in crossed} == pytest.approx(dict.fromkeys(crossed, math.log(2)))
    assert [float(found[name]) for name in ("triplet", "distance", "kl")] == pytest.approx([1, 100, 0])
    assert float(found["total"]) == pytest.approx(2 * math.log(2) + 0.1 * 4 * math.log(2) + 0.1 + 0.01)


def test_kl_is_summed_over_rows():
    """mean 1, log variance 0: half a nat per entry, two rows."""
    assert float(anomaly_scorer.scorer_loss(output_of(mean=torch.ones(2, 2, 3)), TARGETS)["kl"]) == pytest.approx(1.0)


def test_frames_are_judged_row_by_row():
    scores = torch.tensor([[0.1, 0.1], [0.2, 0.8]])
    found = anomaly_scorer.scorer_loss(output_of(scores=scores, noisy_scores=scores), TARGETS)
    assert float(found["frames"]) == pytest.approx(-(2 * math.log(0.9) + 2 * math.log(0.8)) / 4)


def test_normal_videos_are_seen_with_their_uncertainty_anomalous_ones_without():
    scores = output_of(noisy_scores=torch.full((2, 2), 0.9))
    expected = -(2 * math.log(0.1) + 2 * math.log(0.5)) / 4
    assert float(anomaly_scorer.scorer_loss(scores, TARGETS)["frames"]) == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "zero"), [(0, "abnormal_recalled"), (1, "normal_recalled")])
def test_a_batch_of_one_kind_has_no_parts_of_the_other(kind, zero):
    found = anomaly_scorer.scorer_loss(output_of(), torch.full((2, 2), kind))
    assert found[zero] == found["triplet"] == found["distance"] == 0 and found["total"] > 0


def test_gradients_reach_every_parameter(scorer, rows):
    targets = torch.zeros(4, 20)
    targets[2:, 5:9] = 1
    anomaly_scorer.scorer_loss(scorer.train().learn(rows), targets)["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in scorer.parameters())


def test_targets_that_are_no_labels_are_refused():
    for targets in (torch.full((2, 2), 0.5), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"targets must be 0 or 1, \(2, 2\)"):
            anomaly_scorer.scorer_loss(output_of(), targets)


# Targets


def record(label: int) -> records.VideoRecord:
    return records.VideoRecord("v", "v.mp4", "d", "train", label, events=(records.Span(2.0, 4.0),), fps=16.0, num_frames=100)


def test_a_glance_is_positive_inside_an_event():
    """Frames 32 to 64 at 16 a sampled frame: sampled frames 2 and 3 of 7."""
    assert anomaly_scorer.frame_targets(record(1), 7).tolist() == [0, 0, 1, 1, 0, 0, 0]


def test_events_of_a_normal_video_are_never_positive():
    assert not anomaly_scorer.frame_targets(record(0), 7).any()


def test_more_rows_than_the_video_has_are_refused():
    with pytest.raises(records.RecordError, match="v: 8 frames at stride 16 for 100 frames"):
        anomaly_scorer.frame_targets(record(1), 8)


def test_parts_of_a_training_video_keep_a_short_event():
    targets = np.zeros(1000)
    targets[501] = 1
    assert np.flatnonzero(preprocessing.targets_to_steps(targets, 200)).tolist() == [100]


# End to end, on synthetic streams


def world(count: int, rows: int, events: int, seed: int) -> list[records.LongStream]:
    """Cameras of a calm synthetic world, made by `streaming`."""
    rng = np.random.default_rng(seed)
    calm = {"width": 32, "camera": 0.5, "drift": 0.5, "offset": 5.0}
    return feature_streams.drifting_world(count, prefix=f"{seed}", rows=rows, events=events, rng=rng, **calm)


@pytest.fixture(scope="module")
def trained() -> trained_detector.TrainedDetector:
    known = world(24, 100, 1, 1) + world(24, 100, 0, 2)
    val = world(8, 100, 1, 3) + world(8, 100, 0, 4)
    config = anomaly_scorer.ScorerConfig(width=32, hidden=32, heads=2, head_width=8, slots=16)
    plan = anomaly_scorer.published_plan(epochs=8, learning_rate=3e-3, batch_size=8)
    features, targets = ({s.id: getattr(s, part) for s in known + val} for part in ("features", "labels"))
    return trained_detector.train(
        features, targets, {s.id for s in val}, config=config, plan=plan, steps=100, temporal_difference=False
    )


def test_validation_chooses_and_the_curves_say_so(trained):
    assert len(trained.curves) == 8 and trained.curves["val_video_auc"].max() > 0.9 and not trained.model.training


def test_a_trained_scorer_puts_twice_as_many_frames_into_events_as_uniform(trained):
    """N = 12 on long synthetic streams of 1,500 rows, four events each."""
    streams = world(8, 1500, 4, 5)
    scores, events = {s.id: trained.score(s.features) for s in streams}, {s.id: s.events for s in streams}
    hits = frame_sampling.summary(frame_sampling.study(scores, events, [12])).set_index("sampler")["hit_rate"]
    assert hits["intended"] >= 2 * max(hits["uniform"], 0.03)


def test_a_trained_scorer_is_saved_and_loaded(trained, tmp_path):
    trained_detector.save(tmp_path, trained, facts="a test")
    again, x = trained_detector.load(tmp_path, anomaly_scorer.AnomalyScorer), world(1, 300, 1, 6)[0].features
    assert np.array_equal(again.score(x), trained.score(x)) and not again.model.training
    assert artifacts.check_made_by(tmp_path, facts="a test")


def test_a_folder_of_another_model_is_refused(tmp_path):
    config = {"detector": "anomaly_scorer", "sizes": {"slots": 3, "depth": 1}, "preprocessing": {}}
    artifacts.write_json(tmp_path / "config.json", config)
    with pytest.raises(artifacts.StoreError, match="is not of a trained detector"):
        trained_detector.load(tmp_path)


def test_a_detector_of_another_kind_is_refused(trained, tmp_path):
    trained_detector.save(tmp_path, trained)
    with pytest.raises(artifacts.StoreError, match="holds AnomalyScorer, not LSHMA"):
        trained_detector.load(tmp_path, lshma.LSHMA)


def test_training_needs_a_target_for_every_row():
    with pytest.raises(ValueError, match="video a: 5 rows for targets of shape"):
        trained_detector.train(
            {"a": np.zeros((5, 3)), "b": np.zeros((5, 3))}, {"a": np.zeros(4), "b": np.zeros(5)}, ["b"],
            config=TINY, plan=anomaly_scorer.published_plan(),
        )  # fmt: skip


def test_the_same_seed_trains_the_same_scorer():
    streams = world(6, 40, 1, 7) + world(6, 40, 0, 8)
    features, targets = ({s.id: getattr(s, part) for s in streams} for part in ("features", "labels"))
    config = anomaly_scorer.ScorerConfig(width=32, hidden=16, heads=2, head_width=4, slots=8)
    val = {streams[0].id, streams[-1].id}
    runs = [
        trained_detector.train(
            features,
            targets,
            val,
            config=config,
            plan=anomaly_scorer.published_plan(epochs=1, batch_size=4, seed=seed),
            steps=40,
            temporal_difference=False,
        )
        for seed in (0, 0, 1)
    ]
    first, same, other = (run.score(streams[1].features) for run in runs)
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_coarse_to_fine_with_a_scorer_looks_at_less_than_half(trained):
    (stream,) = world(1, 1500, 4, 9)
    scores, looked = frame_sampling.coarse_to_fine(lambda index: trained.score(stream.features[index]), len(stream.features))
    assert looked.mean() < 0.5 and scores.shape == (1500,) and 0 <= scores.min() and scores.max() <= 1
    inside = [frame_sampling.judge(frame_sampling.density_aware_sample(scores, 12), stream.events)["hit_rate"] for _ in range(1)]
    assert inside[0] > stream.labels.mean()


def test_the_recipe_is_the_published_one():
    plan = anomaly_scorer.published_plan(epochs=3)
    assert (plan.learning_rate, plan.weight_decay, plan.batch_size) == (1e-4, 5e-5, 128)
    assert isinstance(plan, training.TrainingPlan) and plan.epochs == 3 and plan.balanced


@pytest.mark.real
def test_real_fights_can_be_learned_from_video_labels_alone(real_data):
    """XFeat rows of 207 real CCTV clips, source-disjoint fold 0 held out: how rows change tells fights; no frame target used."""
    stored = np.load(real_data / "features" / "fight_surv_xfeat_32x128.npz")
    x, y, group, fold = (stored[name] for name in ("x", "labels", "groups", "folds"))
    known, held_out = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    val = {str(place) for place in known if group[place] % 5 == 0}
    features, targets = {str(k): x[k] for k in known}, {str(k): np.full(32, int(y[k])) for k in known}
    plan = anomaly_scorer.published_plan(epochs=8, learning_rate=1e-3, batch_size=16)
    config = anomaly_scorer.ScorerConfig(width=128, hidden=32, heads=4, head_width=16)
    scorer = trained_detector.train(
        features, targets, val, config=config, plan=plan, steps=32, loss_weights=anomaly_scorer.LOSS_WEIGHTS | {"frames": 0.0}
    )
    scores = {str(k): scorer.score(x[k]) for k in held_out}
    assert metrics.video_auc(scores, {str(k): int(y[k]) for k in held_out}) > 0.7

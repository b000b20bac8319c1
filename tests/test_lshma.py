"""LSHMA: one code path for training and streams, the published model bit by bit, and states that are values."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vau_lib.detectors import exports, lshma, preprocessing, trained_detector, training
from vau_lib.detectors.lshma import LSHMA
from vau_lib.detectors.lshma_state import LSHMAConfig, StreamState
from vau_lib.evaluation import metrics
from vau_lib.workspace import artifacts

SMALL = {"width": 16, "exit_threshold": 1.0}
CONFIGS = {
    "xd": LSHMAConfig.xd(**SMALL),
    "ucf": LSHMAConfig.ucf(**SMALL),
    "long": LSHMAConfig.ucf(**SMALL | {"memory": 8}),
    "keys": LSHMAConfig.xd(**SMALL, key_clips=True),
    "exits": LSHMAConfig.ucf(**SMALL | {"exit_threshold": 0.52}),
    "xd released": LSHMAConfig.xd(**SMALL, released=True),
    "ucf released": LSHMAConfig.ucf(**SMALL, released=True),
}


def made(config: LSHMAConfig, seed: int = 0) -> LSHMA:
    torch.manual_seed(seed)
    model = LSHMA(config).eval()
    with torch.no_grad():  # louder than initialised, so that memory, exits and depth matter to the scores
        for block in model.blocks:
            block.out_proj.weight.mul_(3)
        model.classifier.weight.mul_(4)
    return model


def rows_of(count: int, width: int = 16, seed: int = 1, streams: int | None = None) -> torch.Tensor:
    shape = (count, width) if streams is None else (streams, count, width)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def in_parts(model: LSHMA, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Logits (T,) of rows (T, D) given in parts of these sizes, the last one flushed."""
    state, found = None, []
    for part in rows.split(sizes):
        logits, state = model.push(part[None], state)
        found.append(logits)
    return torch.cat([*found, model.flush(state)], dim=1)[0]


# Sizes


@pytest.mark.parametrize(("config", "count", "floats"), [("xd", 7_359_745, 4096), ("ucf", 12_349_313, 12_288)])
@pytest.mark.parametrize("released", [True, False])
def test_sizes_are_the_published_ones(config, count, floats, released):
    model = LSHMA(getattr(LSHMAConfig, config)(released=released))
    assert sum(p.numel() for p in model.parameters()) == count
    state = model.eval().step(torch.randn(1, model.settings.window, 512))[1]
    assert state.memory.numel() == floats


def test_reach_is_depth_times_memory():
    assert LSHMAConfig.xd().reach_snippets == 24 and LSHMAConfig.ucf().reach_snippets == 52  # 384 and 832 frames


@pytest.mark.parametrize("width", [6, 7, 128])
def test_any_width_goes_through(width):
    model = made(LSHMAConfig.xd(width=width))
    assert model.score(rows_of(19, width)).shape == (19,)


# One code path


@pytest.mark.parametrize("name", CONFIGS)
def test_any_chunking_gives_the_same_scores(name):
    model, rows = made(CONFIGS[name]), rows_of(61)
    whole = in_parts(model, rows, [61])
    for sizes in ([1] * 61, [8] * 7 + [5], [3, 20, 1, 30, 7]):
        torch.testing.assert_close(in_parts(model, rows, sizes), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_is_the_stream(name):
    config = replace(CONFIGS[name], looks_ahead=False)
    model, rows = made(config), rows_of(45)
    with torch.no_grad():
        torch.testing.assert_close(model(rows[None]).logits[0].sigmoid(), model.score(rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(name, tmp_path):
    model, rows = made(CONFIGS[name]), rows_of(61)
    with torch.inference_mode():
        first, state = model.push(rows[None, :27])
        state.save(tmp_path / "state.safetensors")
        second, state = model.push(rows[None, 27:], StreamState.load(tmp_path / "state.safetensors"))
        both = torch.cat([first, second, model.flush(state)], dim=1)[0]
    torch.testing.assert_close(both, in_parts(model, rows, [61]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_streams_in_one_call_equal_streams_alone(name):
    model, rows = made(CONFIGS[name]), rows_of(48, streams=5)
    with torch.inference_mode():
        together, state = model.push(rows)
        alone, states = zip(*(model.push(one[None]) for one in rows), strict=True)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    assert torch.equal(state.depth, torch.cat([one.depth for one in states]))


def test_streams_begun_at_different_times_can_join_one_batch():
    model, rows = made(CONFIGS["ucf"]), rows_of(64, streams=2)
    with torch.inference_mode():
        _, late = model.push(rows[:1, :8])
        _, early = model.push(rows[1:, :40])
        joined, state = model.push(torch.stack([rows[0, 8:16], rows[1, 40:48]]), StreamState.stack([late, early]))
        for stream, whole, cut in ((0, rows[:1], 16), (1, rows[1:], 48)):
            alone, final = model.push(whole[:, :cut])
            torch.testing.assert_close(joined[stream], alone[0, -8:], atol=1e-5, rtol=0)
            torch.testing.assert_close(state.of(stream).memory, final.memory, atol=1e-5, rtol=0)


def test_streams_in_turn_do_not_meet():
    model, rows = made(CONFIGS["ucf"]), rows_of(40, streams=2)
    states, found = [None, None], [[], []]
    with torch.inference_mode():
        for start in range(0, 40, 4):
            for k in (0, 1):
                logits, states[k] = model.step(rows[k : k + 1, start : start + 4], states[k])
                found[k].append(logits)
    for k in (0, 1):
        torch.testing.assert_close(torch.cat(found[k], 1)[0], in_parts(model, rows[k], [40]), atol=1e-5, rtol=0)


def test_a_state_is_a_value_a_step_leaves_it_alone():
    model, rows = made(CONFIGS["keys"]), rows_of(32, streams=1)
    with torch.inference_mode():
        _, state = model.push(rows[:, :16])
        before = {name: value.clone() for name, value in state._tensors().items()}
        model.push(rows[:, 16:], state)
    assert all(torch.equal(value, before[name]) for name, value in state._tensors().items())


# Time's arrow


@pytest.mark.parametrize("name", [name for name in CONFIGS if "released" not in name])
def test_the_future_does_not_change_past_scores(name):
    model, rows = made(CONFIGS[name]), rows_of(64)
    other = torch.cat([rows[:32], 5 * rows_of(32, seed=9)])
    torch.testing.assert_close(model.score(other)[:32], model.score(rows)[:32], atol=1e-6, rtol=0)


def test_released_smoothing_lets_the_future_change_past_scores():
    model, rows = made(CONFIGS["ucf released"]), rows_of(64)
    other = torch.cat([rows[:32], 5 * rows_of(32, seed=9)])
    assert (model.score(other)[:32] - model.score(rows)[:32]).abs().max() > 1e-3


# Memory


def first_clips_matter(config: LSHMAConfig, rows: int = 200) -> torch.Tensor:
    """|change of every logit| (T,) when the first three clips show something else."""
    model, stream = made(config), rows_of(rows)
    other = torch.cat([3 * rows_of(3 * config.window, seed=5), stream[3 * config.window :]])
    return (in_parts(model, stream, [rows]) - in_parts(model, other, [rows])).abs()


def test_a_queue_forgets_after_its_reach():
    for name in ("xd", "ucf", "long"):
        config = CONFIGS[name]
        changed = first_clips_matter(config)
        over = 3 * config.window + config.layers * (config.memory - 1) * config.window  # the last row the change can reach
        assert changed[: 3 * config.window].max() > 1e-3 and changed[over:].max() < 1e-5


def test_the_released_memory_never_forgets_its_first_clips():
    for name in ("xd released", "ucf released"):
        assert first_clips_matter(CONFIGS[name])[-50:].max() > 1e-3


def test_the_state_does_not_grow():
    model = made(CONFIGS["keys"])
    sizes, state = [], None
    with torch.inference_mode():
        for _ in range(300):
            _, state = model.step(torch.randn(2, 8, 16), state)
            sizes.append(state.num_bytes())
    assert len(set(sizes)) == 1


def test_an_exit_leaves_deeper_memories_empty():
    model = made(replace(CONFIGS["ucf"], exit_threshold=0.0))  # every clip is sure enough at once
    with torch.inference_mode():
        _, state = model.push(rows_of(40, streams=2))
    assert state.depth.tolist() == [1, 1] and state.filled.tolist() == [[3, 0, 0, 0]] * 2


def test_a_dropped_clip_inherits_and_does_not_reach_the_memory():
    model = made(CONFIGS["keys"])
    still = rows_of(8).repeat(4, 1)[None]  # the same clip four times: nothing new
    with torch.inference_mode():
        logits, state = model.push(still)
    assert state.depth.tolist() == [0] and state.filled.tolist() == [[1, 1]]
    assert all(torch.equal(logits[:, :8], logits[:, start : start + 8]) for start in (8, 16, 24))


# Training


def test_mil_loss_by_hand():
    logits = torch.logit(torch.tensor([[0.9, 0.5, 0.1, 0.2], [0.2, 0.6, 0.7, 0.8]]))
    # 4 rows: k = 4 // 16 + 1 = 1, bag .9; the second has 2 rows, bag .6
    expected = -(math.log(0.9) + math.log(1 - 0.6)) / 2
    assert training.mil_loss(logits, torch.tensor([4, 2]), torch.tensor([1.0, 0.0])).item() == pytest.approx(expected)


def test_a_bag_takes_one_row_in_sixteen_and_never_more_than_there_are():
    logits = torch.logit(torch.linspace(0.01, 0.99, 600))[None]
    top = torch.linspace(0.01, 0.99, 600)[-38:].mean()  # 600 // 16 + 1
    assert training.bag_probability(logits, torch.tensor([600])).item() == pytest.approx(top.item(), abs=1e-5)
    counted = torch.zeros(1, 600, dtype=torch.bool)
    counted[:, :32] = True  # what the released generator keeps of a still video: the released top-k failed on it
    best = torch.linspace(0.01, 0.99, 600)[:32].mean()
    assert training.bag_probability(logits, torch.tensor([600]), counted).item() == pytest.approx(best.item(), abs=1e-5)


def test_padding_does_not_change_a_video():
    model = made(CONFIGS["ucf"])
    long, short = rows_of(40), rows_of(21, seed=2)
    batch = torch.stack([long, torch.cat([short, torch.zeros(19, 16)])])
    with torch.no_grad():
        both, alone = model(batch, torch.tensor([40, 21])), model(short[None])
    torch.testing.assert_close(both.logits[1, :21], alone.logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(both.logit[1], alone.logit[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["xd", "keys", "xd released", "ucf released"])
def test_every_weight_but_the_unused_learns(name):
    model = made(CONFIGS[name]).train()
    output = model(rows_of(96, streams=2).cumsum(1))  # wanders, so that key clips are kept
    lshma.loss(output, torch.tensor([1.0, 0.0])).backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()}
    assert still == {n for n in dict(model.named_parameters()) if ".unused." in n}


def test_intended_training_answers_at_every_depth_released_once():
    rows = rows_of(24, streams=1)
    levels = made(CONFIGS["ucf"]).train()(rows).levels
    assert not torch.allclose(levels[:, 0], levels[:, -1])
    levels = made(CONFIGS["ucf released"]).train()(rows).levels
    assert torch.equal(levels[:, 0], levels[:, -1])


def test_it_finds_a_burst_from_video_labels(tmp_path):
    rng = np.random.default_rng(0)
    labels = {f"v{k}": k % 2 for k in range(48)}
    rows = {name: rng.normal(size=(rng.integers(20, 40), 16)).astype(np.float32) for name in labels}
    for name, label in labels.items():
        rows[name][8:14, :8] += 2.5 * label
    val, test = {f"v{k}" for k in range(12)}, [f"v{k}" for k in range(12, 24)]
    plan = training.TrainingPlan(
        epochs=20, learning_rate=3e-3, weight_decay=0.0, batch_size=4, augment_probability=0, curriculum_epochs=0, balanced=True
    )
    config = LSHMAConfig.xd(width=16)
    known, known_labels = ({n: of[n] for n in labels if n not in test} for of in (rows, labels))
    trained = trained_detector.train(known, known_labels, val, config=config, plan=plan, steps=None, temporal_difference=False)
    top = {name: trained.score_video(rows[name]) for name in test}
    scores, truth = {n: top[n][0] for n in test}, {n: labels[n] for n in test}
    assert metrics.video_auc(scores, truth) > 0.9
    inside = [8 <= int(top[name][1].argmax()) < 16 for name in test if labels[name]]  # clip of 8 rows the burst lies in
    assert np.mean(inside) > 0.7  # found from video labels alone
    trained_detector.save(tmp_path / "model", trained, facts="toy")
    again = trained_detector.load(tmp_path / "model").score_video(rows[test[0]])
    np.testing.assert_allclose(again[1], top[test[0]][1], atol=1e-6)


# Refusals


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (torch.full((1, 8, 16), torch.nan), "nan at place 0"),
        (torch.zeros(1, 8, 17), r"\(B, n, 16\)"),
        (torch.zeros(1, 8, 16, dtype=torch.int64), "floating point"),
        (torch.zeros(1, 0, 16), "at least 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, why):
    with pytest.raises(ValueError, match=why):
        made(CONFIGS["xd"]).push(rows)


def test_a_state_of_another_model_is_refused(tmp_path):
    _, state = made(CONFIGS["xd"]).push(rows_of(8, streams=1))
    with pytest.raises(ValueError, match="the state has window 8, this model 4"):
        made(CONFIGS["ucf"]).push(rows_of(8, streams=1), state)
    with pytest.raises(ValueError, match="1 streams, the features of 2"):
        made(CONFIGS["xd"]).push(rows_of(8, streams=2), state)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(artifacts.StoreError, match="other.safetensors is no stream state"):
        StreamState.load(tmp_path / "other.safetensors")


def test_a_step_takes_whole_clips():
    with pytest.raises(ValueError, match="clips of 8 features, got 5"):
        made(CONFIGS["xd"]).step(rows_of(5, streams=1))


def test_rows_per_choice_decides_how_many_rows_judge_a_video():
    """Of 12 rows the published bag takes 12 // 16 + 1 = 1, one of every 3 takes 5: in training and in a video's score."""
    logits = torch.linspace(-2, 2, 12)[None]
    chances = sorted((1 / (1 + np.exp(-logits[0].numpy()))).tolist(), reverse=True)
    for every, count in ((16, 1), (3, 5)):
        bag = training.bag_probability(logits, torch.tensor([12]), every=every).item()
        assert bag == pytest.approx(np.mean(chances[:count]), abs=1e-6)
        assert training.top_mean(logits[0].sigmoid(), every=every) == pytest.approx(bag, abs=1e-6)
    config = LSHMAConfig.ucf(width=8, exit_threshold=1.0, rows_per_choice=3)
    model = LSHMA(config).eval()
    fitted = preprocessing.Preprocessing(None, False, (0.0,) * 8, (1.0,) * 8)
    video, rows = model.score_video(np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32), fitted)
    assert video == pytest.approx(np.sort(rows)[-5:].mean(), abs=1e-6)


def test_mil_loss_refuses_lengths_beyond_the_rows():
    with pytest.raises(ValueError, match="1 to 4, got 2 to 5"):
        training.mil_loss(torch.zeros(2, 4), torch.tensor([5, 2]), torch.tensor([1.0, 0.0]))


# Long videos


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_with_recomputed_activations_give_the_same_scores_and_gradients(name, monkeypatch):
    rows, lengths, labels = rows_of(96, streams=3), torch.tensor([96, 41, 7]), torch.tensor([1.0, 0.0, 1.0])

    def run():
        model = made(CONFIGS[name]).train()
        output = model(rows, lengths)
        lshma.loss(output, labels).backward()
        return output.levels.detach(), [p.grad for p in model.parameters()]

    whole, gradients = run()
    monkeypatch.setattr(lshma, "ROWS_AT_ONCE", 3 * 16)  # two to four clips of each video at once
    parts, again = run()
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    for one, other in zip(gradients, again, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_scoring_needs_no_more_memory_for_a_longer_video(monkeypatch):
    monkeypatch.setattr(lshma, "PART_ROWS", 64)
    model, sizes = made(LSHMAConfig.xd(width=64, exit_threshold=1.0)), []
    for count in (640, 6400):
        rows = np.random.default_rng(0).normal(size=(count, 64)).astype(np.float32)
        fitted = preprocessing.Preprocessing(None, True, (0.0,), (1.0,))
        with Largest() as largest:
            scores = model.score_video(rows, fitted)[1]
        sizes.append(largest.numel)
        np.testing.assert_allclose(scores, model.score(fitted(rows).mT.numpy()), atol=1e-5)
    assert sizes[0] == sizes[1]  # of activations; the scores themselves are one number a row


def test_parts_of_features_are_the_whole():
    rows = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
    for difference in (True, False):
        fitted = preprocessing.Preprocessing.fit({"a": rows}, steps=None, temporal_difference=difference)
        for size in (2, 5, 22, 23, 100):
            assert torch.equal(torch.cat(list(fitted.parts(rows, size))), fitted(rows).mT)
        assert len(list(fitted.parts(rows[:1], 2))) == 1


# Many streams, and a step made ready for a CPU


@torch.inference_mode()
def test_many_streams_given_more_than_is_scored_at_once_equal_each_alone():
    model, rows = made(CONFIGS["xd"]), rows_of(72, streams=64)  # 4,608 rows
    found, state = model.push(rows)
    assert len(rows) * rows.shape[1] > lshma.PART_ROWS and len(state.depth) == 64
    for stream in (0, 31, 63):
        alone, its = model.push(rows[stream : stream + 1])
        torch.testing.assert_close(found[stream : stream + 1], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(state.of(stream).memory, its.memory, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["xd", "ucf", "long", "exits"])
def test_a_packed_stream_scores_as_the_model_does(name):
    model = made(CONFIGS[name])
    fitted = preprocessing.Preprocessing.fit({"a": rows_of(64).numpy()}, steps=None, temporal_difference=False)
    trained = trained_detector.TrainedDetector(model, fitted, None)
    fast, rows = exports.packed(trained), rows_of(83)
    np.testing.assert_allclose(fast.score(rows.numpy()), trained.score(rows.numpy()), atol=1e-4)
    state, other, streams = None, None, rows_of(61, streams=3)
    with torch.inference_mode():
        for part in streams.split([3, 20, 1, 37], dim=1):
            expected, state = model.push(part, state)
            found, other = fast.model.push(part, other)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert other.depth.tolist() == state.depth.tolist() and fast.model is not model
        torch.testing.assert_close(fast.model.flush(other), model.flush(state), atol=1e-4, rtol=0)


def test_a_packed_stream_in_bfloat16_is_near():
    model = made(CONFIGS["xd"])
    fitted = preprocessing.Preprocessing.fit({"a": rows_of(64).numpy()}, steps=None, temporal_difference=False)
    trained, rows = trained_detector.TrainedDetector(model, fitted, None), rows_of(80).numpy()
    apart = np.abs(exports.packed(trained, bfloat16=True).score(rows) - trained.score(rows))
    assert 0 < apart.max() < 0.02


def test_what_cannot_be_packed_stays_as_it_is():
    model = made(CONFIGS["keys"])
    trained = trained_detector.TrainedDetector(model, None, None)
    assert exports.packed(trained) is trained

"""Shuffling can be undone, cuts are at events and on even frames, and every reward is worth what it says."""

import re
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest

from vau_lib.data import answer_parsing, records
from vau_lib.toy import dataset as toy_dataset
from vau_lib.toy import tiny_vlm
from vau_lib.vlm import event_order, finetuning, grpo

SMALL = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return root, toy_dataset.make_dataset(root, num_videos=4, seed=3, splits={"train": 1.0})


def record(events, num_frames=48, fps=4.0):
    return records.VideoRecord(
        id="r", path="r.mp4", dataset="d", split="train", label=1, classes=("fall",),
        events=tuple(records.Span(*event, "fall") for event in events), fps=fps, num_frames=num_frames,
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_unshuffling_gives_the_events_back(count, seed):
    events = [f"event {n}" for n in range(count)]
    shuffled, order = event_order.shuffle(events, np.random.default_rng(seed))
    assert sorted(shuffled) == events and event_order.unshuffle(shuffled, order) == events
    assert event_order.order_reward(" ".join(map(str, order)), order) == 1.0


@pytest.mark.parametrize(
    ("answer", "order", "worth"),
    [
        ("2 1", [2, 1], 1.0), (" 2, 1.", [2, 1], 1.0), ("2 > 1", [2, 1], 1.0), ("1 2", [2, 1], 0.0),
        ("1 3 2", [1, 2, 3], 0.3 / 3), ("3 2 1", [1, 2, 3], 0.0), ("1 1 2", [1, 2, 3], 0.0), ("1 2", [1, 2, 3], 0.0),
        ("first the second", [2, 1], 0.0), ("", [2, 1], 0.0), ("2 1 4 3", [2, 1, 3, 4], 0.3 * 4 / 6),
    ],
)  # fmt: skip
def test_an_order_is_worth_its_right_pairs(answer, order, worth):
    assert event_order.order_reward(answer, order) == pytest.approx(worth)


def test_every_order_is_as_likely():
    """Were the true order left out, two pieces would always be "2 1": it was, and a toy learned that."""
    rng = np.random.default_rng(0)
    found = [tuple(event_order.shuffle("abc", rng)[1]) for _ in range(600)]
    assert len(set(found)) == 6 and min(map(found.count, set(found))) > 60


def test_form_is_worth_a_little_and_only_form():
    assert event_order.format_reward("1 2", 2) == event_order.FORM and event_order.format_reward("1 2 3", 2) == 0
    assert event_order.PARTIAL + event_order.FORM < 1  # nothing wrong beats the exact order


@pytest.mark.parametrize(
    ("said", "truth", "worth"),
    [((0, 4), (2, 6), 2 / 6), ((0, 1), (2, 3), 0), ((1, 3), (1, 3), 1), (None, None, 1), (None, (0, 1), 0), ((0, 1), None, 0)],
)
def test_a_span_is_worth_its_overlap(said, truth, worth):
    assert event_order.temporal_reward(said, truth) == pytest.approx(worth)


@pytest.mark.parametrize(
    ("answer", "span"),
    [
        ("From 1.5s to 3s.", (1.5, 3)),
        ("between 2 and 4 seconds", (2, 4)),
        ("0.5-0.9", (0.5, 0.9)),
        (event_order.NEVER, None),
        ("No anomaly exists between 1 and 3 seconds.", None),
    ],
)
def test_seconds_are_read_from_an_answer(answer, span):
    assert answer_parsing.parse_span(answer) == span
    assert event_order.span_reward(answer, span) == 1


@pytest.mark.parametrize("answer", ["From 3s to 1s.", "an anomaly exists", "", "at 4s"])
def test_an_answer_without_seconds_earns_nothing(answer):
    with pytest.raises(ValueError, match="^an answer must name seconds that rise or deny an anomaly, it is "):
        answer_parsing.parse_span(answer)
    assert event_order.span_reward(answer, (1, 3)) == event_order.span_reward(answer, None) == 0


def test_when_it_happens_is_asked_with_clocks_and_paid_by_overlap(world):
    root, found = world
    rows = event_order.when_rows(found)
    assert len(rows) == len(found)
    for row, one in zip(rows, found, strict=True):
        assert event_order.reward_parts(row, row["answer"])["when"] > 0.9  # the answer is rounded
        assert event_order.reward_parts(row, event_order.NEVER)["when"] == (not one.events)
    assert event_order.when_rows([record([])]) == [], "an anomaly whose seconds nobody knows is no question"
    vlm = tiny_vlm.tiny("internvl", sizes=SMALL)
    text = vlm.tokenizer.decode(event_order.order_samples(vlm, rows, root, answers=False)[0]["input_ids"][0])
    assert re.search(r"Frame1 at \d+\.\ds", text)


def test_contrast_pays_only_where_order_helped_and_only_right_answers():
    assert event_order.contrast([1, 0, 1], [1, 0, 0]) == [1.3, 0, 1.3]
    assert event_order.contrast([1, 0], [1, 0]) == [1, 0]  # strictly better, not as good
    assert event_order.contrast([0, 0], [0, 0]) == [0, 0]


@pytest.mark.parametrize("events", [[(3.2, 7.9)], [(1.0, 2.0), (6.3, 8.0)], [(0.2, 11.9)], []])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_cuts_are_on_even_frames_and_pieces_long_enough(events, count):
    cuts = event_order.boundaries(record(events), count=count)
    edges = [0, *cuts, 48]
    assert len(cuts) == count - 1 and all(cut % 2 == 0 for cut in cuts) and min(np.diff(edges)) >= 2


def test_cuts_stand_at_the_events():
    assert event_order.boundaries(record([(3.0, 8.0)]), count=3) == [12, 32]
    assert event_order.boundaries(record([(3.0, 8.0)]), count=2) == [12]


def test_pieces_follow_each_other():
    parts = event_order.pieces(record([(3.0, 8.0)]), count=3)
    assert [len(part) for part in parts] == [2, 2, 2] and (np.diff(np.concatenate(parts)) > 0).all()
    assert parts[0].max() < 12 <= parts[1].min() and parts[1].max() < 32 <= parts[2].min()


def test_a_question_shows_the_pieces_in_the_shuffled_order(world):
    root, found = world
    rows = event_order.order_rows(found, counts=(2, 3))
    assert len(rows) == 2 * sum(bool(r.events) for r in found)
    for row in rows:
        parts = np.split(row["frames"], row["pieces"])
        ordered = event_order.unshuffle(parts, row["order"])
        assert (np.diff(np.concatenate(ordered)) > 0).all()
    vlm = tiny_vlm.tiny("internvl", sizes=SMALL)
    sample = event_order.order_samples(vlm, rows, root)[0]
    text = vlm.tokenizer.decode(sample["input_ids"][0])
    assert rows[0]["question"] in text and " at " not in text.split("In which order")[0].split("Frame1")[-1]  # no clock


def test_supervision_then_reinforcement_run_end_to_end(world):
    root, found = world
    rows = event_order.order_rows(found) + [r for r in toy_dataset.instructions(found) if r["task"] == "judgement"]
    toy_vlm = tiny_vlm.tiny("internvl", sizes=SMALL)
    vlm = toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=4, alpha=8, seed=0))
    start = finetuning.LoraPlan(max_steps=2, batch_size=4, log_steps=1)
    losses = finetuning.fit(vlm, event_order.order_samples(vlm, rows, root), plan=start)
    plan = grpo.GRPOPlan(steps=2, questions=2, group_size=2, max_new_tokens=4)
    curves, control = (event_order.train(vlm, rows, root, plan=plan, shuffled_labels=kind) for kind in (False, True))
    assert len(losses) >= 2 and len(curves) == len(control) == 2
    assert {"reward", "length", "kl", "entropy", "dead"} <= set(curves.columns)
    rows = event_order.with_pieces(rows, found) + event_order.shuffled_rows(found) + event_order.when_rows(found)
    against = event_order.train(vlm, rows, root, plan=replace(plan, questions=10), contrast_bonus=True)
    parts = {name for name in against if name.startswith("reward_")}
    assert parts and parts <= {f"reward_{part}" for part in ("order", "form", "judgement", "shuffled", "when")}


def test_order_is_reinforced_on_video(world):
    root, found = world
    rows = event_order.with_pieces(
        event_order.order_rows(found, counts=(2,)) + toy_dataset.instructions(found, ["judgement"]), found
    )
    toy_vlm = tiny_vlm.tiny("qwen2_5_vl", sizes=SMALL)
    vlm = toy_vlm.replace(model=finetuning.lora(toy_vlm.model, r=4, alpha=8, seed=0))
    plan = grpo.GRPOPlan(steps=2, questions=4, group_size=3, max_new_tokens=4, micro_batch=5)
    curves = event_order.train(vlm, rows, root, plan=plan, as_video=True, contrast_bonus=True)
    assert len(curves) == 2 and "pixel_values_videos" in event_order.order_samples(vlm, rows, root, as_video=True)[0]


def test_was_this_shuffled_is_asked_of_both(world):
    _, found = world
    rows = event_order.shuffled_rows(found)
    assert len(rows) == 2 * sum(bool(r.events) for r in found)
    for row in rows:
        in_order = (np.diff(row["frames"]) > 0).all()
        assert in_order == (row["answer"] == event_order.SHUFFLED_ANSWERS[False])
        assert event_order.reward_parts(row, row["answer"]) == {"shuffled": 1.0}
        assert event_order.reward_parts(row, event_order.SHUFFLED_ANSWERS[bool(in_order)])["shuffled"] == 0
        assert [event_order.reward_parts(row, said)["shuffled"] for said in ("no", "No.", "yes", "Yes!", "")] == [
            in_order, in_order, not in_order, not in_order, False,
        ]  # fmt: skip


def test_shuffled_labels_are_of_the_same_kind(world):
    _, found = world
    rows = event_order.order_rows(found) + event_order.shuffled_rows(found)
    labels = event_order._shuffled_labels(rows, 0)
    assert any(label is not row for label, row in zip(labels, rows, strict=True)), "the control shuffles something"
    assert [(label["task"], label["pieces"]) for label in labels] == [(row["task"], row["pieces"]) for row in rows]
    assert sorted(map(id, labels)) == sorted(map(id, rows))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_partial_orders_earn_kendalls_tau(count):
    """Against the definition, pairs in order minus pairs not, over all pairs; for every answer to every order."""
    pairs = list(combinations(range(count), 2))
    for order in permutations(range(1, count + 1)):
        for answer in permutations(range(1, count + 1)):
            places = [answer.index(piece) for piece in order]
            tau = sum(1 if places[a] < places[b] else -1 for a, b in pairs) / len(pairs)
            expected = 1.0 if answer == order else event_order.PARTIAL * max(0.0, tau)
            assert event_order.order_reward(" ".join(map(str, answer)), order) == pytest.approx(expected, abs=1e-12)


def test_bad_input_is_one_clear_line():
    with pytest.raises(ValueError, match=r"^an order of 3 pieces was asked, the answer is 'who knows'$"):
        answer_parsing.parse_order("who knows", 3)
    with pytest.raises(ValueError, match=r"^an order of 2 pieces holds 1 to 2 once each, got \[1, 1\]$"):
        event_order.unshuffle(["a", "b"], [1, 1])
    with pytest.raises(ValueError, match="^r: 6 frames cannot be cut into 3 pieces of 4 or more$"):
        event_order.boundaries(record([], num_frames=6), count=3)
    with pytest.raises(ValueError, match="the predicted span must end after it starts, got 3 to 2"):
        event_order.temporal_reward((3, 2), (0, 1))
    with pytest.raises(ValueError, match="^no order question among the rows$"):
        event_order.train(None, [], ".")

"""The tiny model of near places: pairs of frames, truth per cell, tokens of joined videos, the kept model on worlds of its own."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vau_lib.data import video
from vau_lib.data.records import Span
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.toy import long_videos, near_videos, near_world
from vau_lib.vlm import chat, inference, instruction_data, models

KEPT = Path(__file__).parents[1] / "data" / "toy_models"


@pytest.fixture(scope="module")
def near():
    return models.load(KEPT / "near", dtype=torch.float32, local_only=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory, near):
    root = tmp_path_factory.mktemp("near")
    found = synthetic_dataset.make_dataset(root, num_videos=8, seed=31, duration_s=4.0, splits={"test": 1.0})
    return root, found, {record.id: near_videos.encode(near, root, record) for record in found}


def test_a_pair_ends_at_the_last_frame():
    assert near_world.pairs([0, 5, 9], 10).tolist() == [0, 2, 5, 7, 9, 9]


def test_moments_are_the_middles_of_equal_parts():
    assert near_world.moments(24, 12).tolist() == list(range(1, 24, 2))
    drawn = near_world.moments(24, 12, np.random.default_rng(0))
    assert (drawn // 2 == np.arange(12)).all(), "one of each part"


def test_cells_hold_the_leading_actors_while_the_event_lasts():
    masks = np.zeros((4, 240, 320), np.uint8)
    masks[:, :60, :64], masks[:, 180:, 256:] = 1, 3  # an actor of the fight, and a passer-by
    truth = SimpleNamespace(masks=masks, events=(Span(0.1, 0.3, "fight"),), scenario=SimpleNamespace(event="fight", fps=10.0))
    cells = near_world.cells(truth, (112, 140))
    assert cells.shape == (4, 4, 5)
    fight = near_world.FIRST_EVENT + near_world.EVENTS.index("fight")
    assert cells[:, 0, 0].tolist() == [near_world.SOMEBODY, fight, fight, near_world.SOMEBODY]
    assert (cells[:, 3, 4] == near_world.SOMEBODY).all() and (cells > 0).sum() == 8


def test_the_tower_sees_motion_that_a_still_picture_lacks(near):
    still = np.random.default_rng(0).integers(0, 255, (1, 240, 320, 3), dtype=np.uint8).repeat(2, 0)
    moved = np.stack([still[0], np.roll(still[0], 40, 1)])
    tokens = [
        chat.visual_tokens(near, chat.encode(near, pair, "What?", times_s=[0.0, 0.5], as_video=True))[0] for pair in (still, moved)
    ]
    assert (tokens[0] - tokens[1]).abs().max() > 0.1


def test_tokens_of_joined_videos_are_the_joined_tokens(near, world):
    root, found, encoded = world
    first, second = (encoded[record.id] for record in found[:2])
    both = near_videos.join([first, second])
    assert torch.equal(both.tokens, torch.cat([first.tokens, second.tokens]))
    assert both.end_s == pytest.approx(first.end_s + second.end_s) and (np.diff(both.times_s) > 0).all()
    frames = [
        video.read_frames(root / part.path, near_world.pairs([frame], part.num_frames))
        for part, frame in ((both.parts[p], f) for p, f in both.source[[1, len(first.times_s)]])
    ]
    sample = chat.encode(near, np.concatenate(frames), "What?", times_s=near_world.clock(4), as_video=True)
    again = chat.visual_tokens(near, sample)[0].reshape(2, *both.tokens.shape[1:])
    assert torch.allclose(again, both.tokens[[1, len(first.times_s)]], atol=1e-4), "a pair is encoded by itself"


def test_long_videos_come_in_pairs_that_differ_by_one_part(world):
    _, found, encoded = world
    pairs = near_videos.long_pairs(encoded, parts=3)
    assert len(pairs) == len(found)
    for anomalous, normal in zip(pairs[::2], pairs[1::2], strict=True):
        assert (anomalous.label, normal.label) == (1, 0) and anomalous.inside.any() and not normal.inside.any()
        assert sum(a.id != b.id for a, b in zip(anomalous.parts, normal.parts, strict=True)) == 1
    with pytest.raises(ValueError, match="too few for 9 parts"):
        near_videos.long_pairs(encoded, parts=9)


def test_asking_from_tokens_is_asking_from_pixels(near, world):
    root, found, encoded = world
    rows = [row for row in near_world.instructions(found) if row["task"] == "judgement"][:2]
    rows = [{**row, "question": near_videos.QUESTION} for row in rows]
    pixels = inference.answers(near, instruction_data.InstructionSamples(rows, root, near, answers=False, as_video=True))
    assert near_world.answers(near, near_world.TokenSamples(rows, root, near, answers=False)) == pixels


@pytest.mark.slow
def test_the_kept_model_judges_worlds_it_never_saw_and_ats_helps_it(near, tmp_path):
    found = synthetic_dataset.make_dataset(
        tmp_path, num_videos=40, seed=77, duration_s=6.0, splits={"test": 1.0}, engine="processes"
    )
    encoded = {record.id: near_videos.encode(near, tmp_path, record) for record in found}
    short = near_videos.judge(near, list(encoded.values()), {"evenly": near_videos.evenly})
    assert short["right"].mean() >= 0.8  # .925 of 80 and of 120; 40 videos leave room
    scorer, tau = long_videos.load_scorer(KEPT / "near_scorer")
    ats = partial(near_videos.by_scores, score=scorer.score, tau=tau)
    long = near_videos.judge(near, near_videos.long_pairs(encoded), {"evenly": near_videos.evenly, "ATS": ats})
    right = long.groupby("frames")["right"].mean()
    assert right["ATS"] > right["evenly"]

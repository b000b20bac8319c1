"""Every pair of factors occurs, contradictions are refused, hard negatives are normal, truth reads back in other formats."""

import json
from dataclasses import replace
from types import SimpleNamespace

import motmetrics
import numpy as np
import pytest
import torch
import torchvision
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from vau_lib.data import smarthome, video
from vau_lib.evaluation import smarthome_prompts
from vau_lib.synthetic import camera, captions, export, motion, scenarios, scenes
from vau_lib.synthetic import dataset as synthetic_dataset

SMALL = dict(duration_s=3.0, fps=5.0, height=96, width=128)


@pytest.fixture(scope="module")
def few():
    """Six rendered scenarios: three anomalies and what they are mistaken for."""
    return {f"v{n}": synthetic_dataset.render(s) for n, s in enumerate(scenarios.covering_scenarios(6, 4, **SMALL))}


# Scenarios


@pytest.mark.parametrize("seed", range(2))
def test_every_pair_of_factors_occurs_and_classes_balance(seed):
    chosen = scenarios.covering_scenarios(130, seed)
    table, missing = scenarios.coverage(chosen)
    assert not missing and (table["coverage"] == 1).all() and table["possible_pairs"].sum() == len(scenarios.possible_pairs())
    assert sum(s.label for s in chosen) == 65
    for one, other in zip(chosen[::2], chosen[1::2], strict=True):
        same = [name for name in scenarios.FACTORS if one.factors[name] == other.factors[name]]
        assert set(same) == set(scenarios.FACTORS) - {"event"} and one.world_seed == other.world_seed


def test_at_random_pairs_are_missed():
    """What the greedy choice is for: as many random combinations leave pairs out."""
    rng = np.random.default_rng(0)
    events = list(scenarios.ANOMALOUS_EVENTS)
    covered = set()
    for n in range(65):
        factors = scenarios._random_factors(rng, events[n % 6], {}, set())
        normal = {"event": scenarios.HARD_NEGATIVES[factors["event"]]}
        covered |= {*scenarios.pairs(factors), *scenarios.pairs(factors | normal)}
    assert len(scenarios.possible_pairs() - covered) > 20


def test_a_seed_is_a_data_set():
    assert scenarios.covering_scenarios(20, 3) == scenarios.covering_scenarios(20, 3) != scenarios.covering_scenarios(20, 4)


def test_hard_negatives_are_normal_and_have_no_event():
    for anomaly, everyday in scenarios.HARD_NEGATIVES.items():
        scenario = synthetic_dataset.scenario_for(5, event=everyday, scene="street", difficulty="hard", **SMALL)
        assert scenario.label == 0 and scenarios.LABELS[anomaly] == 1
        assert synthetic_dataset.render(scenario).events == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(scene="shop", weather="rain"), "^a shop has a roof: weather rain and scene shop contradict$"),
        (dict(scene="plaza", event="stop_close"), "^a stop close needs a street or car_park or car_park_barrier, got plaza$"),
        (dict(scene="shop", distractor="swaying_tree"), "^no tree sways indoors"),
        (dict(mood="sad"), "^mood='sad' is unknown; there is of the factors event, scene"),
        (dict(weather="hail"), "^weather='hail' is unknown; there is clear, rain, snow, fog$"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message):
        scenarios.covering_scenarios(4, 0, **wrong)


def test_one_video_has_no_counterpart():
    with pytest.raises(ValueError, match="both classes need a video, got n=1"):
        scenarios.covering_scenarios(1, 0)


def test_a_prompt_tells_every_factor():
    scenario = scenarios.covering_scenarios(
        2, 0, event="fall", weather="snow", distractor="insects", scene="street", lighting="dusk"
    )[0]
    text = scenarios.prompt(scenario)
    for word in ("falls", "snow", "Insects", "street", "dusk", "seconds"):
        assert word.lower() in text.lower()
    assert len({scenarios.prompt(s) for s in scenarios.covering_scenarios(60, 1)}) > 50


# The picture


@pytest.mark.parametrize("factor", ["rain", "snow", "fog", "insects", "lamp_flicker", "swaying_tree", "old_lens"])
def test_weather_changes_the_picture_and_not_the_truth(factor):
    name = next(n for n in ("weather", "distractor", "camera") if factor in scenarios.FACTORS[n])
    base = synthetic_dataset.scenario_for(3, event="walk", scene="plaza", difficulty="hard", **SMALL)
    plain, changed = (synthetic_dataset.render(replace(base, **changes)) for changes in ({}, {name: factor}))
    assert np.array_equal(plain.masks, changed.masks)
    assert np.abs(plain.frames.astype(int) - changed.frames).mean() > 0.2


def test_a_mast_moves_picture_and_masks_together():
    base = synthetic_dataset.scenario_for(3, event="walk", scene="plaza", difficulty="hard", **SMALL)
    swaying = synthetic_dataset.render(replace(base, camera="mast"))
    still = synthetic_dataset.render(base)
    moved = [n for n in range(len(still.masks)) if not np.array_equal(still.masks[n], swaying.masks[n])]
    assert moved
    shifts = [(down, right) for down in range(-2, 3) for right in range(-4, 5)]
    for n in moved[:4]:
        fits = [
            np.array_equal(np.roll(still.masks[n], s, (0, 1))[8:-8, 8:-8], swaying.masks[n][8:-8, 8:-8])
            and np.array_equal(np.roll(still.frames[n], s, (0, 1))[8:-8, 8:-8], swaying.frames[n][8:-8, 8:-8])
            for s in shifts
        ]
        assert sum(fits) >= 1


@pytest.mark.parametrize("event", ["fall", "greet", "left_package", "stop_close"])
def test_masks_boxes_and_tracks_are_where_the_picture_differs_from_the_empty_scene(event, monkeypatch):
    """Rendered without noise, shadow or clock, with and without actors: IoU of what differs and the masks at least .95."""
    plain = {name: replace(light, shadow=0.0, noise=0.0) for name, light in camera.LIGHTS.items()}
    monkeypatch.setattr(camera, "LIGHTS", plain)
    monkeypatch.setattr(camera._Clock, "stamp", lambda self, image, t: image)
    scenario = synthetic_dataset.scenario_for(
        11,
        event=event,
        scene="street",
        lighting="overcast",
        duration_s=3.0,
        fps=4.0,
        height=240,
        width=320,
        num_people=3,
        difficulty="hard",
    )
    place = camera.build(scenario)
    cast = motion.direct(scenario, place.layout)
    empty = motion.Cast()
    with_all = [np.stack(part) for part in zip(*camera.shoot(scenario, cast), strict=True)]
    without = np.stack([colours for colours, _ in camera.shoot(scenario, empty)])
    differs = np.abs(with_all[0].astype(int) - without).max(-1)
    masks = with_all[1] > 0
    # half covered edge pixels differ too: an edge belongs to the mask where it is mostly the actor
    clear = differs > 6
    near = np.stack([_grown(mask) for mask in masks])
    assert (clear & near).sum() / clear.sum() > 0.95  # hardly anything differs away from the masks
    assert (clear & masks).sum() / masks.sum() > 0.95  # and nearly all of the masks differs
    truth = synthetic_dataset.render(scenario)
    for n, box in ((n, box) for ids, row in zip(with_all[1], truth.boxes, strict=True) for n, box in _found(ids, row)):
        assert np.array_equal(n, box)


def _grown(mask):
    grown = mask.copy()
    for axis in (0, 1):
        grown |= np.roll(mask, 1, axis) | np.roll(mask, -1, axis)
    return grown


def _found(ids, boxes):
    for number, box in enumerate(boxes, 1):
        rows, columns = np.nonzero(ids == number)
        if len(rows):
            yield [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], box


def test_rendered_to_a_file_the_truth_is_the_one_in_memory(tmp_path):
    scenario = scenarios.covering_scenarios(2, 8, **SMALL)[0]
    there, here = synthetic_dataset.render(scenario, tmp_path / "a.mp4"), synthetic_dataset.render(scenario)
    assert video.probe(tmp_path / "a.mp4").num_frames == len(here.frames)
    for name in ("boxes", "masks", "depth"):
        assert np.array_equal(getattr(there, name), getattr(here, name), equal_nan=True)
    assert (there.kinds, there.events, there.track_ids) == (here.kinds, here.events, here.track_ids)


def test_who_is_nearer_hides_who_is_farther(few):
    """Where two boxes overlap and both are seen, the shared pixels that belong to one of the two are mostly the nearer's."""
    nearer = farther = 0
    for truth in few.values():
        for t, boxes in enumerate(truth.boxes):
            seen = np.flatnonzero(~np.isnan(boxes[:, 0]))
            for a in seen:
                for b in seen:
                    if truth.depth[t, a] < truth.depth[t, b] - 1.0:
                        left, top = np.maximum(boxes[a, :2], boxes[b, :2]).astype(int)
                        right, bottom = np.minimum(boxes[a, 2:], boxes[b, 2:]).astype(int)
                        shared = truth.masks[t, top:bottom, left:right]
                        nearer, farther = nearer + (shared == a + 1).sum(), farther + (shared == b + 1).sum()
    assert nearer > farther


# Export formats


def test_coco_reads_back_masks_boxes_and_tracks(few, tmp_path):
    export.to_coco(few, tmp_path / "coco.json")
    read = COCO(str(tmp_path / "coco.json"))
    assert len(read.getImgIds()) == sum(len(truth.masks) for truth in few.values())
    names = {video["id"]: video["name"] for video in read.dataset["videos"]}
    for image in read.loadImgs(read.getImgIds()[::7]):
        truth, found = few[names[image["video_id"]]], np.zeros((96, 128), bool)
        for annotation in read.loadAnns(read.getAnnIds(imgIds=image["id"])):
            mask = read.annToMask(annotation).astype(bool)
            found |= mask
            left, top, wide, tall = (int(edge) for edge in annotation["bbox"])
            rows, columns = np.nonzero(mask)
            assert [columns.min(), rows.min()] == [left, top] and [np.ptp(columns) + 1, np.ptp(rows) + 1] == [wide, tall]
            assert annotation["area"] == mask.sum() and 0 < annotation["visibility"] <= 1
        assert np.array_equal(found, truth.masks[image["frame_index"]] > 0)
    tracks = {(a["video_id"], a["track_id"]) for a in read.dataset["annotations"]}
    assert len({track for _, track in tracks}) == len(tracks)  # a track is of one video


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_coco_s(seed):
    mask = np.random.default_rng(seed).random((7, 9)) < (0.0, 0.3, 0.7, 1.0, 0.5)[seed]
    packed = coco_mask.frPyObjects(export.run_lengths(mask), 7, 9)
    assert np.array_equal(coco_mask.decode(packed).astype(bool), mask)


def test_mot_reads_back_in_motmetrics(few, tmp_path):
    for name, truth in few.items():
        export.to_mot(truth, tmp_path / name / "gt.txt")
        table = motmetrics.io.loadtxt(str(tmp_path / name / "gt.txt"), fmt="mot16")
        assert len(table) == (~np.isnan(truth.boxes[..., 0])).sum()
        own = export.read_mot((tmp_path / name / "gt.txt").read_text(), len(truth.masks), truth.track_ids)
        assert np.array_equal(own, truth.boxes, equal_nan=True)
        for (frame, track), line in list(table.iterrows())[::11]:
            box = truth.boxes[frame - 1, truth.track_ids.index(track)]
            assert [line["X"], line["Y"], line["Width"], line["Height"]] == [*box[:2], *(box[2:] - box[:2])]


def test_a_track_compared_with_itself_is_perfect(few):
    truth = few["v0"]
    table = motmetrics.MOTAccumulator(auto_id=True)
    for boxes in truth.boxes:
        seen = np.flatnonzero(~np.isnan(boxes[:, 0]))
        corners = torch.from_numpy(boxes[seen])
        apart = 1 - torchvision.ops.box_iou(corners, corners)
        table.update(seen, seen, np.where(apart > 0.5, np.nan, apart))
    scores = motmetrics.metrics.create().compute(table, metrics=["mota", "idf1", "num_switches"], name="own")
    assert scores.loc["own"].tolist() == [1.0, 1.0, 0.0]


def test_captions_and_questions_agree_with_the_truth(few):
    for name, truth in few.items():
        rows = export.instructions(name, truth)
        verdicts = {row["answer"] for row in rows if row["task"] == "judgement"}
        assert len(verdicts) == 1 and ("No anomaly" in verdicts.pop()) == (not truth.events)
        assert any(row["task"] == "analysis" for row in rows) == bool(truth.events)
        spans = [row["span_s"] for row in rows if row["level"] == "clip"]
        assert spans[0][0] == 0 and spans[-1][1] == truth.scenario.num_frames / truth.scenario.fps
    tags = [row["Anomaly Tag"] for row in export.questions(few)]
    assert tags == ["Abnormal", "Normal"] * 3 and set(tags) <= set(smarthome.TAGS)
    json.dumps(export.to_coco(few))


def test_both_classes_have_as_many_judgements_and_many_wordings(few):
    """At every level, of a pair; the same seed gives the same rows, another one other words but no other verdict."""
    both = {name: export.instructions(name, truth) for name, truth in few.items()}
    for level in ("event", "video"):
        asked = [row for rows in both.values() for row in rows if (row["level"], row["task"]) == (level, "judgement")]
        sides = [row["answer"].startswith("An anomaly") for row in asked]
        assert len(sides) == len(few) and sum(sides) * 2 == len(few)
    for name, truth in few.items():
        assert both[name] == export.instructions(name, truth, seed=0)
        part = next(row["span_s"] for row in both[name] if row["level"] == "event")
        duration_s = truth.scenario.num_frames / truth.scenario.fps
        assert 0 <= part[0] < part[1] <= duration_s + 0.01
        if truth.events:
            assert part == (truth.events[0].start_s, truth.events[0].end_s)
    many = [row for seed in range(30) for name, truth in few.items() for row in export.instructions(name, truth, seed=seed)]
    for task, least in {"caption": 4, "judgement": 5, "description": 4, "analysis": 4}.items():
        assert len({row["question"] for row in many if row["task"] == task}) >= least
    for event in {truth.scenario.event for truth in few.values() if truth.events}:
        ids = tuple(name for name, truth in few.items() if truth.scenario.event == event)
        analyses = {row["answer"] for row in many if row["task"] == "analysis" and row["id"].rsplit("_", 1)[0] in ids}
        assert len(analyses) > 10 and not any("{" in text for text in analyses)
    assert len({row["answer"] for row in many if row["task"] == "judgement"}) == 1 + len(
        {t.scenario.event for t in few.values() if t.events}
    )


def test_every_anomaly_has_its_analysis_and_nothing_else_has_one():
    rng = np.random.default_rng(0)
    for event, label in scenarios.LABELS.items():
        scene = "street" if event in ("crash", "stop_close") else "plaza"
        scenario = replace(scenarios.covering_scenarios(2, 0)[0], event=event, scene=scene, distractor="none")
        texts = {captions.instruction_answer("description", scenario, rng) for _ in range(30)}
        assert len(texts) > 2 and all(scenarios.EVENT_TEXTS[event] in text for text in texts)
        if label:
            assert len({captions.instruction_answer("analysis", scenario, rng) for _ in range(60)}) > 15
        else:
            with pytest.raises(ValueError, match=f"got 'analysis' of '{event}'"):
                captions.instruction_answer("analysis", scenario, rng)


def test_no_videos_to_export_are_refused():
    with pytest.raises(ValueError, match="^no videos to export$"):
        export.to_coco({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1,10,20,30,40,1,1,1\n", "line 1: MOT counts frames from 1 to 3 here, got frame 0"),
        ("4,1,10,20,30,40,1,1,1\n", "from 1 to 3 here, got frame 4"),
        ("1,7,10,20,30,40,1,1,1\n", "track 7 is not one of 1, 2"),
        ("1,1,10,20\n", "needs six numbers"),
    ],
)
def test_a_mot_file_that_does_not_fit_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as refusal:
        export.read_mot(text, 3, (1, 2))
    assert "\n" not in str(refusal.value)


def test_every_event_has_a_script():
    assert set(motion.EVENT_SCRIPTS) == set(scenarios.LABELS)
    assert {*scenes.SCENES, *scenes.NEAR_SCENES, *scenarios.HOME_SCENES} == set(scenarios.SCENE_TEXTS)
    assert {*scenarios.LABELS, *scenarios.HOME_EVENTS} == set(scenarios.EVENT_TEXTS)


# Homes

# numbers of second-level classes, normal and abnormal, in the taxonomy of SmartHome-Bench's repository (Code/ICL, appendix B)
TAXONOMY = {
    "Security": (2, 7), "Wildlife": (2, 3), "Pet Monitoring": (3, 5), "Baby Monitoring": (2, 4), "Kid Monitoring": (2, 3),
    "Senior Care": (1, 3), "Other Category": (1, 4),
}  # fmt: skip


def test_every_class_of_smarthome_benchs_taxonomy_is_reachable():
    chosen = scenarios.home_scenarios(58, 0)
    reached = {scenarios.HOME_EVENTS[scenario.event] for scenario in chosen}
    kinds = {
        name: tuple(len({e.kind for e in reached if (e.category, e.label) == (name, side)}) for side in (0, 1)) for name in TAXONOMY
    }
    assert kinds == TAXONOMY and set(TAXONOMY) == set(smarthome_prompts.TAXONOMY)
    for odd, usual in zip(chosen[::2], chosen[1::2], strict=True):
        assert (odd.label, usual.label) == (1, 0) and odd.world_seed == usual.world_seed
        assert {f for f in scenarios.FACTORS if odd.factors[f] != usual.factors[f]} == {"event"}
    assert {s.event for s in scenarios.home_scenarios(6, 1, category="Senior Care") if s.label} == {
        "senior_fall", "senior_distress", "senior_rough",
    }  # fmt: skip
    assert scenarios.home_scenarios(20, 3) == scenarios.home_scenarios(20, 3) != scenarios.home_scenarios(20, 4)


def test_a_home_is_a_text_with_instructions_and_no_drawing(tmp_path):
    texts = [scenarios.prompt(scenario) for scenario in scenarios.home_scenarios(58, 0)]
    assert len(set(texts)) == 58 and all("security camera" in text and len(text) < 600 for text in texts)
    scenario = scenarios.home_scenarios(2, 0, category="Wildlife")[0]
    rows = export.instructions("one", SimpleNamespace(scenario=scenario, events=(), known=False), video="one.mp4", split="train")
    assert {"judgement", "description"} <= {row["task"] for row in rows}
    assert any(row["answer"].startswith("An anomaly exists") for row in rows)
    with pytest.raises(ValueError, match=f"{scenario.event} in a {scenario.scene} is not drawn: homes are texts"):
        synthetic_dataset.render(scenario)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(scene="nursery"), "^a bear bin needs a back_garden or driveway, got nursery$"),
        (dict(event="fall", scene="kitchen"), "^fall and scene kitchen contradict: homes have their own events$"),
        (dict(event="flooded_floor", scene="kitchen", weather="rain"), "^a kitchen has a roof"),
    ],
)
def test_what_cannot_be_at_home_is_refused(change, message):
    bear = next(s for s in scenarios.home_scenarios(6, 0, category="Wildlife") if s.event == "bear_bin")
    with pytest.raises(ValueError, match=message):
        replace(bear, **({"weather": "clear", "distractor": "none"} | change))
    with pytest.raises(ValueError, match="a category of Security, Wildlife, .* got n=4 and 'Birds'"):
        scenarios.home_scenarios(4, category="Birds")

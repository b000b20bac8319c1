"""The synthetic data set: a seed gives the same video, truth is exact to the pixel, no nuisance separates the classes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from vau_lib.data import records, video
from vau_lib.synthetic import camera, motion, people, scenarios, scenes
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.workspace import artifacts

TINY = dict(height=72, width=96, fps=8.0, difficulty="hard")


def tiny(seed=3, event="fight", duration_s=3.0, **changes):
    return synthetic_dataset.scenario_for(seed, event=event, duration_s=duration_s, **TINY | changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sixty tiny videos on disk: the folder and their records."""
    root = tmp_path_factory.mktemp("world")
    return root, synthetic_dataset.make_dataset(root, num_videos=60, seed=0, duration_s=2.6, **TINY)


def test_a_seed_gives_the_same_video():
    one, again, other = (synthetic_dataset.render(tiny(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one.frames, again.frames) and np.array_equal(one.masks, again.masks)
    assert one.events == again.events and not np.array_equal(one.frames, other.frames)


def test_pairs_share_the_place_but_not_the_people():
    anomalous, normal = synthetic_dataset.sample_scenarios(2, seed=5, duration_s=2.0, **TINY)
    assert (anomalous.label, normal.label) == (1, 0) and anomalous.world_seed == normal.world_seed
    assert replace(anomalous, event=normal.event, seed=normal.seed) == normal
    renderings = [synthetic_dataset.render(scenario) for scenario in (anomalous, normal)]
    empty = (renderings[0].masks[0] == 0) & (renderings[1].masks[0] == 0)
    change = np.abs(renderings[0].frames[0].astype(int) - renderings[1].frames[0]).mean(-1)
    assert np.median(change[empty]) < 12 < np.median(change[renderings[0].masks[0] > 0])


@pytest.mark.parametrize("event", scenarios.EVENTS)
def test_boxes_are_the_masks_outlines(event):
    rendering = synthetic_dataset.render(tiny(6, event))
    assert rendering.frames.shape == (24, 72, 96, 3) and rendering.frames.dtype == rendering.masks.dtype == np.uint8
    assert rendering.boxes.shape == (24, len(rendering.kinds), 4) and rendering.track_ids == tuple(
        range(1, len(rendering.kinds) + 1)
    )
    for ids, boxes in zip(rendering.masks, rendering.boxes, strict=True):
        for number, box in zip(rendering.track_ids, boxes, strict=True):
            rows, columns = np.nonzero(ids == number)
            if rows.size:
                assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            else:
                assert np.isnan(box).all()
    assert set(np.unique(rendering.masks)) <= {0, *rendering.track_ids}


CARS = {"street", "car_park"}
STAGED = [(s, e) for s in scenes.SCENES for e in scenarios.ANOMALOUS_EVENTS if e != "crash" or s in CARS]


@pytest.mark.parametrize(("scene", "event"), STAGED)
def test_an_event_is_visible_in_its_span(scene, event):
    rendering = synthetic_dataset.render(tiny(8, event, scene=scene, fps=4.0, duration_s=6.0))
    (span,) = rendering.events
    assert 0 < span.start_s < span.end_s <= 6.0 and span.label == event
    frames = slice(round(span.start_s * 4), round(span.end_s * 4))
    players = {"fight": [0, 1], "crash": [0, 1], "left_package": [1]}.get(event, [0])
    for player in players:
        assert np.isfinite(rendering.boxes[frames, player, 0]).mean() > 0.75, f"{event} is hidden in the {scene}"


def test_a_stride_opens_and_closes():
    near, widths = scenes.Camera(4.0, 0.35, 0.0, 300.0, 320, 240), []
    look = people.random_look(np.random.default_rng(0))
    for phase in np.linspace(0, 2 * np.pi, 8, endpoint=False):
        sketch, ids = scenes.Sketch(near, actor=1), Image.new("L", (320, 240))
        people.person(sketch, replace(look, carries=""), people.gait(phase, 1.4), (0.0, 9.0), 0.0)
        scenes.paint(near, sketch.strokes, Image.new("RGB", ids.size), ids=ids)
        seen = np.asarray(ids)[np.asarray(ids).any(1)]
        widths.append(np.ptp(np.nonzero(seen[-len(seen) // 4 :].any(0))[0]))
    assert max(widths) > 1.8 * min(widths)


def test_one_painting_with_numbers_is_the_picture_and_its_mask():
    near, look = scenes.Camera(4.0, 0.35, 0.0, 300.0, 320, 240), people.random_look(np.random.default_rng(0))
    sketches = [scenes.Sketch(near, actor=number) for number in (3, 1)]
    for sketch, x in zip(sketches, (0.0, 0.4), strict=True):  # the second stands before the first
        people.person(sketch, look, people.gait(1.0, 1.4), (x, 9.0 - x), 0.0)
    strokes = [stroke for sketch in sketches for stroke in sketch.strokes]
    both, picture, ids = (Image.new(mode, (320, 240)) for mode in ("RGBA", "RGB", "L"))
    scenes.paint(near, strokes, both)
    scenes.paint(near, strokes, picture, ids=ids)
    assert np.array_equal(np.asarray(both)[..., :3], np.asarray(picture))
    assert np.array_equal(np.asarray(both)[..., 3], np.asarray(ids)) and set(np.unique(ids)) == {0, 1, 3}


@pytest.mark.parametrize("scene", ["street", "lobby", "shop"])
def test_a_block_is_cast_only_where_it_can_be_seen(scene, monkeypatch):
    rng, near = np.random.default_rng(4), scenes.Camera(3.1, 0.36, 0.12, 290.0, 240, 180, -1)
    layout = camera.PLACES[scene](rng)
    parts = [scenes.cast(near, layout, np.random.default_rng(7), (196, 212, 230))]
    assert any(scenes._reach(near, block) != (slice(None),) * 2 for block in layout.blocks)
    monkeypatch.setattr(scenes, "_reach", lambda *_: (slice(None), slice(None)))
    parts.append(scenes.cast(near, layout, np.random.default_rng(7), (196, 212, 230)))
    assert all(np.array_equal(one, other) for one, other in zip(*parts, strict=True)) and len(np.unique(parts[0][1])) > 3


def test_a_dropped_bag_stays_when_its_owner_has_gone():
    rendering = synthetic_dataset.render(tiny(1, "left_package", scene="plaza", duration_s=8.0, num_people=1, num_vehicles=0))
    before, after = round(rendering.events[0].start_s * 8) - 1, -1
    assert np.isnan(rendering.boxes[before, 1]).all() and np.isfinite(rendering.boxes[after, 1]).all()
    assert np.hypot(*(rendering.boxes[after, 0, :2] - rendering.boxes[after, 1, :2])) > 15 or np.isnan(rendering.boxes[after, 0, 0])


def test_night_is_gray_and_day_is_not():
    colour = {
        light: np.ptp(synthetic_dataset.render(tiny(lighting=light)).frames[0, 20:], axis=-1).mean() for light in ("day", "night")
    }
    assert colour["night"] == 0 < colour["day"]


@pytest.mark.parametrize(
    "wrong", [dict(event="party"), dict(scene="moon"), dict(lighting="noon"), dict(height=71), dict(duration_s=0.5),
              dict(event="crash", scene="shop")],
)  # fmt: skip
def test_a_scenario_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="|".join(str(value) for value in wrong.values())):
        tiny(**wrong)


def test_files_have_exactly_the_frames_of_their_records(world):
    root, found = world
    for record in found[:3]:
        info = video.probe(records.locate(record, root))
        assert (info.num_frames, info.height, info.width, info.fps) == (record.num_frames, 72, 96, 8.0)
        truth = synthetic_dataset.read_truth(root / "truth" / f"{record.id}.npz")
        assert truth["masks"].shape == (record.num_frames, 72, 96) and len(truth["boxes"]) == record.num_frames
    assert records.read_records(root / "records.jsonl") == found
    artifacts.check_made_by(root, seed=0, num_videos=60, dataset="synthetic")


def test_only_anomalous_videos_have_events(world):
    for record in world[1]:
        assert len(record.events) == len(record.classes) == record.label
        assert not record.events or 0 < records.frame_labels(record).sum() < record.num_frames


def test_every_split_has_both_classes_and_worlds_of_its_own(world):
    by_split = {split: [r.label for r in world[1] if r.split == split] for split in ("train", "val", "test")}
    assert all(set(labels) == {0, 1} for labels in by_split.values()) and not records.leaks(world[1])
    assert [len(labels) for labels in by_split.values()] == [30, 6, 24]
    with pytest.raises(ValueError, match="6 videos or more"):
        synthetic_dataset.make_dataset(world[0], num_videos=5, seed=0)


def test_no_nuisance_alone_tells_the_classes_apart(world):
    root, found = world
    measured = []
    for record in found:
        path = records.locate(record, root)
        gray = np.stack(list(video.gray_frames(path))).astype(float)
        motion = np.abs(np.diff(gray, axis=0)).mean()
        measured.append([gray.mean(), path.stat().st_size, record.num_frames, motion * record.num_frames])
    labels = [record.label for record in found]
    for name, values in zip(("brightness", "file size", "length", "motion"), np.array(measured).T, strict=True):
        auc = roc_auc_score(labels, values)
        assert max(auc, 1 - auc) < 0.7, f"{name} alone reaches {auc:.2f}"


def test_a_stopped_run_goes_on_and_other_settings_render_anew(tmp_path):
    make = dict(num_videos=6, seed=1, duration_s=2.0, **TINY)
    first = synthetic_dataset.make_dataset(tmp_path, **make)
    paths = [records.locate(record, tmp_path) for record in first]
    bits, times = [path.read_bytes() for path in paths], [path.stat().st_mtime_ns for path in paths]
    paths[0].unlink()
    paths[1].write_bytes(bits[1][:500])  # cut short
    assert synthetic_dataset.make_dataset(tmp_path, **make) == first
    assert [path.read_bytes() for path in paths] == bits
    assert [path.stat().st_mtime_ns == t for path, t in zip(paths, times, strict=True)] == [False, False, True, True, True, True]
    synthetic_dataset.make_dataset(tmp_path, **make | dict(height=80))
    assert video.probe(paths[5]).height == 80


def test_a_single_video_brings_its_spans(tmp_path):
    spans = synthetic_dataset.render_to_file(tiny(9, "fall"), tmp_path / "fall.mp4")
    assert [span.label for span in spans] == ["fall"] and video.probe(tmp_path / "fall.mp4").num_frames == 24
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(artifacts.StoreError, match="bad.npz"):
        synthetic_dataset.read_truth(tmp_path / "bad.npz")


FAR = {  # of a street by event: x, z and heading summed over actors and eight moments, of 4384198, before near worlds were drawn
    "walk": (-70.778, 658.454, -57.324), "loiter": (-117.902, 917.460, -64.132), "run": (95.002, 558.876, -16.591),
    "fall": (154.856, 405.187, -34.105), "fight": (17.164, 766.848, 15.858), "intrusion": (193.827, 485.403, -77.957),
    "left_package": (-37.663, 565.476, -81.981), "vandalism": (-85.857, 837.504, -30.419), "crash": (30.227, 652.732, -48.714),
    "tie_shoe": (141.401, 496.431, -43.529), "greet": (-1.690, 607.922, -14.910), "wait_at_gate": (79.525, 931.666, -6.079),
    "rest_bag": (-80.315, 608.703, -28.047), "use_machine": (-6.779, 902.041, -86.104), "stop_close": (-82.681, 738.695, -47.257),
}  # fmt: skip


@pytest.mark.parametrize(("number", "event"), enumerate(FAR))
def test_a_hard_world_is_the_one_before_near_worlds(number, event):
    scenario = synthetic_dataset.scenario_for(40 + number, event=event, scene="street", duration_s=6.0, difficulty="hard")
    cast = motion.direct(scenario, scenes.street(np.random.default_rng([scenario.world_seed, 4])))
    states = [(actor.at(t) or (0, 0, 0))[:3] for actor in cast.members for t in np.linspace(0.1, 5.9, 8)]
    assert np.sum(states, 0) == pytest.approx(FAR[event], abs=2e-3)


# Near worlds


NEAR = dict(height=120, width=160, fps=4.0, duration_s=6.0)
NEAR_STAGED = [
    (s, e) for s in scenes.NEAR_SCENES for e in scenarios.ANOMALOUS_EVENTS if e != "crash" or s == "car_park_barrier"
]  # fmt: skip


DOWN = {"fall", "struggle", "rise"}


@pytest.mark.parametrize("seed", range(6))
def test_a_fall_near_the_camera_is_over_when_the_person_walks_again(seed):
    scenario = synthetic_dataset.scenario_for(seed, event="fall", scene="platform", **NEAR)
    cast = motion.direct(scenario, synthetic_dataset.PLACES["platform"](np.random.default_rng([scenario.world_seed, 4])))
    fallen, (start_s, end_s) = cast.members[0], cast.span
    acts = {t: (fallen.at(float(t)) or [""] * 4)[3] for t in np.arange(0.05, NEAR["duration_s"], 0.1)}
    assert {act for t, act in acts.items() if start_s < t < end_s} == DOWN
    assert not DOWN & {act for t, act in acts.items() if not start_s < t < end_s}


@pytest.mark.parametrize(("scene", "event"), NEAR_STAGED)
def test_an_event_near_the_camera_is_seen_and_of_the_stated_length(scene, event):
    rendering = synthetic_dataset.render(synthetic_dataset.scenario_for(8, event=event, scene=scene, difficulty="medium", **NEAR))
    (span,) = rendering.events
    share = (span.end_s - span.start_s) / 6.0
    assert 0.3 <= share <= 0.6 or event in ("intrusion", "left_package", "crash")  # these have no end
    frames = slice(round(span.start_s * 4), round(span.end_s * 4))
    players = {"fight": [0, 1], "crash": [0, 1], "left_package": [1]}.get(event, [0])
    for player in players:
        assert np.isfinite(rendering.boxes[frames, player, 0]).mean() > 0.7, f"{event} is hidden in the {scene}"


def test_people_near_the_camera_are_a_quarter_to_a_half_of_the_picture():
    """Of those who stand or walk in full view where something happens; a box that touches the border is of a part."""
    tall = []
    for number, scene in enumerate(scenes.NEAR_SCENES):
        rendering = synthetic_dataset.render(synthetic_dataset.scenario_for(number, event="fight", scene=scene, **NEAR))
        boxes = rendering.boxes[:, :2].reshape(-1, 4)
        whole = boxes[(boxes[:, 0] > 0) & (boxes[:, 2] < 160) & (boxes[:, 3] < 120)]
        tall += ((whole[:, 3] - whole[:, 1]) / 120).tolist()
    assert np.quantile(tall, 0.1) > 0.24 and np.quantile(tall, 0.9) < 0.52


def test_an_easy_world_has_three_anomalies_few_hard_negatives_and_no_traffic():
    chosen = synthetic_dataset.sample_scenarios(120, seed=1)
    assert {s.scene for s in chosen} == set(scenes.NEAR_SCENES)
    assert {s.event for s in chosen if s.label} == {"fight", "fall", "vandalism"} and sum(s.label for s in chosen) == 60
    assert sum(s.event in scenarios.HARD_NEGATIVES.values() for s in chosen) == 12  # one normal video in five
    assert all(1 <= s.num_people <= 4 and not s.num_vehicles for s in chosen)
    for anomalous, normal in zip(chosen[::2], chosen[1::2], strict=True):
        assert replace(anomalous, event=normal.event, seed=normal.seed) == normal


def test_medium_worlds_hold_every_anomaly_where_it_can_be():
    chosen = synthetic_dataset.sample_scenarios(96, seed=1, difficulty="medium")
    assert {s.event for s in chosen if s.label} == set(scenarios.ANOMALOUS_EVENTS)
    assert {s.scene for s in chosen if s.event in ("crash", "stop_close")} == {"car_park_barrier"}
    assert sum(s.event in scenarios.HARD_NEGATIVES.values() for s in chosen) == 24
    with pytest.raises(ValueError, match="^difficulty must be one of easy, medium, hard, got 'harder'$"):
        synthetic_dataset.sample_scenarios(4, seed=1, difficulty="harder")


@pytest.mark.parametrize(
    ("video_id", "event", "hard"),
    [("0_0001_car_park_barrier_left_package", "left_package", False), ("3_0000_lobby_tie_shoe", "tie_shoe", True),
     ("1_0299_walk", "walk", False)],
)  # fmt: skip
def test_an_id_tells_its_event(video_id, event, hard):
    assert scenarios.event_of(video_id) == event and scenarios.is_hard_negative(video_id) == hard
    with pytest.raises(ValueError, match="is no id of a drawn video"):
        scenarios.event_of("Robbery102_x264")


@pytest.mark.parametrize("event", ["fight", "vandalism"])
@pytest.mark.parametrize(("scene", "lighting"), [("car_park_barrier", "dusk"), ("entrance", "day"), ("lobby", "night")])
def test_what_is_painted_around_actors_is_the_whole_picture(scene, lighting, event, monkeypatch):
    scenario = synthetic_dataset.scenario_for(5, event=event, scene=scene, lighting=lighting, **NEAR | {"duration_s": 3.0})
    around = synthetic_dataset.render(scenario)
    monkeypatch.setattr(camera, "_around", lambda *_: (0, 0, 10_000, 10_000))  # everything is painted in every frame
    camera._built.cache_clear()
    whole = synthetic_dataset.render(scenario)
    assert np.array_equal(around.frames, whole.frames) and np.array_equal(around.masks, whole.masks)

"""A world we know everything about: who does what is decided first, filmed after, so the truth is exact.

- a scenario is a handful of numbers; it gives the same frames, boxes, masks and spans on every machine
- walking, loitering and running are normal (a jogger is no alarm) and fill normal and anomalous videos alike, as traffic
  does; falling, fighting, intrusion, a left package, vandalism and a crash are what a guard wants to know
- videos come in twins from one world: same place, light, length and numbers, one with an anomaly and one without, so
  brightness, length, file size and the sum of motion say nothing; a world is one source and never leaves its split
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import find_objects

from vau_lib import actors, cluster, records, stage, store, video
from vau_lib.records import Span, VideoRecord

NORMAL_EVENTS = ("walk", "loiter", "run")
ANOMALOUS_EVENTS = ("fall", "fight", "intrusion", "left_package", "vandalism", "crash")
EVENTS = {name: int(name in ANOMALOUS_EVENTS) for name in NORMAL_EVENTS + ANOMALOUS_EVENTS}  # name -> label
EDITION = 1  # of the drawing; a video of another edition is filmed again
SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}  # shares of the worlds
STRIDE_M, RUN_STRIDE_M = 1.35, 2.3  # ground covered by two steps


@dataclass(frozen=True)
class Scenario:
    """One video in numbers; twins share `world_seed` (place, light, camera) and differ in `seed` (who does what)."""

    scene: str
    event: str
    seed: int
    world_seed: int
    duration_s: float
    fps: float
    height: int
    width: int
    lighting: str
    num_people: int
    num_vehicles: int

    def __post_init__(self):
        known = {"scene": stage.SCENES, "event": tuple(EVENTS), "lighting": stage.LIGHTINGS}
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}")
        if self.height % 2 or self.width % 2 or min(self.height, self.width) < 32:
            raise ValueError(f"height and width must be even and at least 32, got {self.height} x {self.width}")
        if self.duration_s < 2 or self.fps <= 0:
            raise ValueError(f"a video lasts 2 s or more at a positive rate, got {self.duration_s} s at {self.fps}")
        if self.event == "crash" and self.scene not in ("street", "car_park"):
            raise ValueError(f"a crash needs a street or a car_park, got {self.scene}")

    @property
    def num_frames(self) -> int:
        return round(self.duration_s * self.fps)

    @property
    def label(self) -> int:
        """1 when the event is anomalous."""
        return EVENTS[self.event]


@dataclass(frozen=True)
class Rendering:
    """A film and its truth: frames uint8 (T, H, W, 3), boxes (T, N, 4), masks uint8 (T, H, W), event spans.

    A box is x0, y0, x1, y1 in pixels around the visible part, half-open, NaN where nothing of the actor is seen. In
    `masks`, 0 is the place and n the actor with track_ids == n; `kinds` (N,) says what each is.
    """

    scenario: Scenario
    frames: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    track_ids: tuple[int, ...]
    kinds: tuple[str, ...]
    events: tuple[Span, ...]


def scenario_for(seed: int, *, event: str | None = None, world_seed: int | None = None, duration_s: float = 8.0, **fixed) -> Scenario:
    """Choose what is not given (`event`, `scene`, `lighting`, `num_people`, ...) by `seed`; size 320 x 240, 15 per s."""
    rng = np.random.default_rng([seed if world_seed is None else world_seed, 1])
    event = event or str(np.random.default_rng([seed, 2]).choice(tuple(EVENTS)))
    scene = fixed.pop("scene", None) or str(rng.choice(stage.SCENES[:2] if event == "crash" else stage.SCENES))
    chosen = dict(
        scene=scene, event=event, seed=seed, world_seed=seed if world_seed is None else world_seed, duration_s=float(duration_s),
        fps=15.0, height=240, width=320, lighting=str(rng.choice(stage.LIGHTINGS, p=(0.35, 0.25, 0.15, 0.25))),
        num_people=int(rng.integers(4, 8)), num_vehicles=0 if scene == "shop" else int(rng.integers(2, 5)),
    )  # fmt: skip
    return Scenario(**chosen | fixed)


def sample_scenarios(num_videos: int, *, seed: int, duration_s: float = 8.0, **fixed) -> list[Scenario]:
    """Return twins: an anomalous and a normal scenario per world, every event in turn, lengths +-25 % by world."""
    if num_videos < 2:
        raise ValueError(f"both classes need a video, got num_videos={num_videos}")
    rng, chosen = np.random.default_rng([seed, 0]), []
    anomalous = _turns(ANOMALOUS_EVENTS, num_videos, rng)
    normal = _turns(NORMAL_EVENTS, num_videos, rng)
    for pair in range(-(-num_videos // 2)):
        world_seed, length = int(rng.integers(2**31)), duration_s * rng.uniform(0.75, 1.25)
        first, second = (int(s) for s in rng.integers(2**31, size=2))
        length = max(2.0, round(length, 1))
        one = scenario_for(first, event=anomalous[pair], world_seed=world_seed, duration_s=length, **fixed)
        chosen += [one, replace(one, event=normal[pair], seed=second)]
    return chosen[:num_videos]


def _turns(names, count, rng):
    """Names in shuffled rounds, so any stretch holds nearly all of them."""
    return [str(name) for _ in range(-(-count // len(names))) for name in rng.permutation(names)]


class Key(NamedTuple):
    """From `t` on, go from (x, z) towards the next key doing `act`; `face` fixes the heading (radians)."""

    t: float
    x: float
    z: float
    act: str = ""
    face: float | None = None


@dataclass
class Actor:
    """Who takes part: what it is, how it looks, and its script of keys; absent before the first and after the last."""

    kind: str
    script: list[Key]
    look: object  # actors.Look of a person or rider, colour of a vehicle
    phase: float = 0.0
    drops_at: float = np.inf  # seconds; when it no longer carries anything
    folds_at: float = np.inf  # seconds; when its nose is crushed

    def at(self, t: float):
        """Return x, z, heading, act, seconds into it, phase and speed at `t`; None when absent."""
        script = self.script
        if not script[0].t <= t < script[-1].t:
            return None
        here = sum(key.t <= t for key in script) - 1
        heading, covered = 0.0, 0.0
        for number in range(here + 1):
            key, following = script[number], script[number + 1]
            gone, lasts = np.hypot(following.x - key.x, following.z - key.z), following.t - key.t
            before = heading
            if key.face is not None:
                heading = key.face
            elif gone > 0.05:
                heading = np.arctan2(following.z - key.z, following.x - key.x)
            speed = gone / lasts
            if number < here:
                covered += gone / (RUN_STRIDE_M if speed > 2.4 else STRIDE_M)
        share = (t - key.t) / lasts
        if key.act == "skid":  # braking: all speed at first
            share = 1 - (1 - share) ** 2
        turn = (heading - before + np.pi) % (2 * np.pi) - np.pi
        eased = min((t - key.t) / 0.35, 1.0) if here else 1.0
        covered += share * gone / (RUN_STRIDE_M if speed > 2.4 else STRIDE_M)
        x, z = key.x + share * (following.x - key.x), key.z + share * (following.z - key.z)
        return x, z, before + turn * eased, key.act, t - key.t, self.phase + 2 * np.pi * covered, speed


@dataclass
class Cast:
    """Everyone in a video, the anomaly's span, and what happens to things: blows on the machine, the moment of a crash."""

    members: list[Actor] = field(default_factory=list)
    span: tuple[float, float] | None = None
    blows: list[float] = field(default_factory=list)
    burst: tuple[float, float, float] | None = None  # seconds, x, z


def direct(scenario: Scenario, layout: stage.Layout) -> Cast:
    """Hand out the parts: the event's own, then bystanders and traffic as every video has them."""
    rng, cast = np.random.default_rng([scenario.seed, 3]), Cast()
    begin = scenario.duration_s * rng.uniform(0.25, 0.5)
    EVENT_SCRIPTS[scenario.event](cast, scenario, layout, rng, begin)
    people = sum(member.kind == "person" for member in cast.members)
    vehicles = sum(member.kind in actors.BODIES for member in cast.members)
    for _ in range(scenario.num_people - people):
        cast.members.append(_bystander(layout, rng, scenario.duration_s))
    _traffic(cast, scenario, layout, rng, vehicles)
    return cast


def _person(rng, script, **look) -> Actor:
    dressed = replace(actors.random_look(rng), **look)
    return Actor("person", script, dressed, phase=rng.uniform(0, 6.28))


def _stroll(layout, rng, until, speed) -> list[Key]:
    """Go up and down a walk from a random place on it, with a short rest at its ends."""
    ends = [np.array(end) + rng.uniform(-0.5, 0.5, 2) for end in layout.walks[rng.integers(len(layout.walks))]]
    if rng.random() < 0.5:
        ends.reverse()
    place, t, script = ends[0] + rng.uniform(0.1, 0.8) * (ends[1] - ends[0]), 0.0, []
    for turn in range(40):
        goal = ends[(turn + 1) % 2]
        script.append(Key(t, *place))
        t += max(float(np.hypot(*(goal - place))) / speed, 0.1)
        script.append(Key(t, *goal))
        t, place = t + 0.5, goal
        if t > until:
            break
    return [*script, Key(max(t, until + 1), *place)]


def _linger(layout, rng, until) -> list[Key]:
    """Stay about a spot: wait, telephone, talk, wave, tie a shoe, pace."""
    place, t, script = np.array(layout.spots[rng.integers(len(layout.spots))]) + rng.uniform(-1.2, 1.2, 2), 0.0, []
    while t < until + 1:
        act, lasts = str(rng.choice(["stand", "phone", "talk", "wave", "crouch", "", ""])), rng.uniform(1.0, 2.6)
        script.append(Key(t, *place, act, None if not act and script else rng.uniform(-np.pi, np.pi)))
        if not act:
            place = place + rng.uniform(0.6, 1.1) * lasts * _unit(rng.uniform(0, 2 * np.pi))
            home = np.array(layout.spots[0])
            place = home + np.clip(place - home, -3.0, 3.0)
            script[-1] = script[-1]._replace(face=None)
        t += lasts
    return [*script, Key(t, *place)]


def _unit(angle) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)])


def _bystander(layout, rng, until) -> Actor:
    kind = rng.choice(["stroll", "jog", "linger"], p=(0.62, 0.18, 0.2))
    if kind == "linger":
        return _person(rng, _linger(layout, rng, until))
    speed = rng.uniform(2.7, 3.5) if kind == "jog" else rng.uniform(0.9, 1.7)
    return _person(rng, _stroll(layout, rng, until, speed))


def _traffic(cast, scenario, layout, rng, already) -> None:
    """Send the remaining vehicles, or riders, down their lanes one after another; behind a crash nobody follows."""
    count = (scenario.num_vehicles - already) if layout.lanes else 0
    for number in range(count):
        start, end = (np.array(place) for place in layout.lanes[number % len(layout.lanes)])
        middle = scenario.duration_s * (number + rng.uniform(0.25, 0.75)) / count
        if cast.burst:
            middle = cast.burst[0] - 3.0 - 2.5 * number
        half = float(np.hypot(*(end - start))) / 2 / (layout.lane_speed * rng.uniform(0.96, 1.04))
        script = [Key(middle - half, *start), Key(middle + half, *end)]
        if layout.riders:
            cast.members.append(Actor("bicycle", script, actors.random_look(rng), phase=rng.uniform(0, 6.28)))
        else:
            cast.members.append(_car(rng, script))


def _car(rng, script) -> Actor:
    return Actor("van" if rng.random() < 0.25 else "car", script, actors.PAINTS[rng.integers(len(actors.PAINTS))])


def _walk(cast, scenario, layout, rng, begin):
    cast.members.append(_person(rng, _stroll(layout, rng, scenario.duration_s, rng.uniform(1.0, 1.6))))


def _loiter(cast, scenario, layout, rng, begin):
    cast.members.append(_person(rng, _linger(layout, rng, scenario.duration_s)))


def _run(cast, scenario, layout, rng, begin):
    cast.members.append(_person(rng, _stroll(layout, rng, scenario.duration_s, rng.uniform(2.8, 3.6))))


def _spot(layout, rng):
    return np.array(layout.spots[rng.integers(len(layout.spots))]) + rng.uniform(-0.4, 0.4, 2)


def _from(layout, rng, goal, begin, *, speed=1.4) -> Key:
    """The key of someone who comes to `goal` from a little way off and is there at `begin`."""
    start = np.array(layout.spots[rng.integers(len(layout.spots))]) + 0.0
    away = goal - start
    if np.hypot(*away) < 1.0:
        away = _unit(rng.uniform(-0.6, 0.6) + np.pi * rng.integers(2))
    place = goal - away / np.hypot(*away) * speed * begin
    return Key(0.0, *place)


def _leave(layout, rng, script, t, place, speed) -> None:
    """Add the way out of the picture, from `place` at `t`."""
    inner, outer = np.array(layout.walks[rng.integers(2)][::-1])
    goal = outer + (outer - inner) / np.hypot(*(outer - inner)) * 4.0
    script += [Key(t, *place), Key(t + float(np.hypot(*(goal - place))) / speed, *goal)]


def _fall(cast, scenario, layout, rng, begin):
    place, until = _spot(layout, rng), scenario.duration_s
    script = [_from(layout, rng, place, begin, speed=rng.uniform(1.0, 2.8)), Key(begin, *place, "fall")]
    up = begin + rng.uniform(0.3, 0.45) * until
    if rng.random() < 0.4 and up < until - 1.0:
        script.append(Key(up, *place, "rise"))
        _leave(layout, rng, script, up + 2.0, place, 1.0)
        until = min(up + 2.0, until)
    else:
        script.append(Key(until + 1, *place))
    cast.members.append(_person(rng, script, carries=""))
    cast.span = (begin, until)


def _fight(cast, scenario, layout, rng, begin):
    middle, until = _spot(layout, rng), begin + scenario.duration_s * rng.uniform(0.3, 0.45)
    angle = rng.uniform(-0.5, 0.5)
    scripts = [[_from(layout, rng, middle - s * 0.42 * _unit(angle), begin)] for s in (1, -1)]
    for t in np.arange(begin, until - 0.3, 0.6):
        angle, middle = angle + rng.uniform(-0.4, 0.4), middle + rng.uniform(-0.22, 0.22, 2)
        first_hits = rng.random() < 0.6
        for script, sign, act in zip(scripts, (1, -1), ("punch", "reel") if first_hits else ("reel", "punch"), strict=True):
            face = angle if sign > 0 else angle + np.pi
            script.append(Key(float(t), *(middle - sign * 0.42 * _unit(angle)), act, face))
    for script, speed in zip(scripts, (1.5, 3.2), strict=True):
        _leave(layout, rng, script, until, np.array(script[-1][1:3]), speed)
        cast.members.append(_person(rng, script, carries=""))
    cast.span = (begin, min(until, scenario.duration_s))


def _intrusion(cast, scenario, layout, rng, begin):
    gate, until = np.array(layout.gate) + [rng.uniform(-0.5, 0.5), 0], scenario.duration_s
    near, over = gate - [0, 0.55], gate + [0, 0.6]
    inside = over + [rng.uniform(-0.8, 1.2), rng.uniform(0.7, 1.3)]
    script = [_from(layout, rng, near, begin), Key(begin, *near, "climb", np.pi / 2), Key(begin + 1.6, *over, "sneak")]
    script += [Key(begin + 3.0, *inside, "crouch"), Key(begin + 5.0, *inside, "sneak"), Key(begin + 6.2, *over + [0.3, 0.3], "crouch")]
    cast.members.append(_person(rng, [*script, Key(max(until, begin + 6.2) + 1, *over + [0.3, 0.3])], carries=""))
    cast.span = (begin, until)


def _left_package(cast, scenario, layout, rng, begin):
    place, carried = _spot(layout, rng), str(rng.choice(["bag", "case"]))
    script = [_from(layout, rng, place, begin), Key(begin, *place, "crouch")]
    _leave(layout, rng, script, begin + 1.3, place, rng.uniform(1.3, 2.0))
    carrier = _person(rng, script, carries=carried)
    carrier.drops_at = begin + 0.8
    arrived = carrier.at(begin - 0.01)
    ground = place + 0.4 * _unit((arrived[2] if arrived else 0.0) - 0.9)
    bag = Actor(carried, [Key(carrier.drops_at, *ground), Key(scenario.duration_s + 1, *ground)], None)
    cast.members += [carrier, bag]
    cast.span = (carrier.drops_at, scenario.duration_s)


def _vandalism(cast, scenario, layout, rng, begin):
    until = begin + scenario.duration_s * rng.uniform(0.3, 0.45)
    place = np.array(layout.machine) + [rng.uniform(-0.25, 0.25), -0.75]
    script = [_from(layout, rng, place, begin), Key(begin, *place, "strike", np.pi / 2 + rng.uniform(-0.3, 0.3))]
    _leave(layout, rng, script, until, place, rng.uniform(1.5, 3.2))
    cast.members.append(_person(rng, script, carries="bat"))
    cast.span = (begin, min(until, scenario.duration_s))
    cast.blows = [float(t) for t in np.arange(begin + 0.62, until, 1 / 1.15)]  # where a swing of `strike` lands

"""Motion of the synthetic data set: each actor's trajectory and actions, for every normal and anomalous event.

- a script is a list of keys (time, place, action); position, heading, step and speed follow from it at any moment
- an anomaly is played by a few actors; bystanders and traffic follow the same rule in every video
- no pixels here: times in seconds, places in metres
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from vau_lib.synthetic import objects, people, scenes

CALM = ["stand", "phone", "talk", ""]  # what people who wait near the camera do
RISEN_S = 0.8  # seconds from when a fallen person begins to stand until it walks; the event lasts until then
STRIDE_M, RUN_STRIDE_M = 1.35, 2.3  # ground covered by two steps


class Key(NamedTuple):
    """From `t` on, go from (x, z) towards the next key doing `act`; `face` fixes the heading (radians)."""

    t: float
    x: float
    z: float
    act: str = ""
    face: float | None = None


@dataclass
class Actor:
    """A person, vehicle or thing: its kind, its look, and a script of keys; absent before the first and after the last."""

    kind: str
    script: list[Key]
    look: object  # people.Look of a person or rider, colour of a vehicle
    phase: float = 0.0
    drops_at: float = np.inf  # seconds; when it no longer carries anything
    takes_at: float = np.inf  # seconds; when it carries it again
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
            distance, lasts = np.hypot(following.x - key.x, following.z - key.z), following.t - key.t
            before = heading
            if key.face is not None:
                heading = key.face
            elif distance > 0.05:
                heading = np.arctan2(following.z - key.z, following.x - key.x)
            speed = distance / lasts
            if number < here:
                covered += distance / (RUN_STRIDE_M if speed > 2.4 else STRIDE_M)
        progress = (t - key.t) / lasts
        if key.act == "skid":  # braking: all speed at first
            progress = 1 - (1 - progress) ** 2
        turn = (heading - before + np.pi) % (2 * np.pi) - np.pi
        eased = min((t - key.t) / 0.35, 1.0) if here else 1.0
        covered += progress * distance / (RUN_STRIDE_M if speed > 2.4 else STRIDE_M)
        x, z = key.x + progress * (following.x - key.x), key.z + progress * (following.z - key.z)
        return x, z, before + turn * eased, key.act, t - key.t, self.phase + 2 * np.pi * covered, speed


@dataclass
class Cast:
    """All actors of a video, the anomaly's span and place, blows on the machine, and where a crash happens."""

    members: list[Actor] = field(default_factory=list)
    span: tuple[float, float] | None = None
    focus: np.ndarray | None = None  # (x, z) that bystanders leave free
    blows: list[float] = field(default_factory=list)
    sparks: bool = False  # splinters fly at every blow
    burst: tuple[float, float, float] | None = None  # seconds, x, z


def direct(scenario, layout: scenes.Layout) -> Cast:
    """Return the cast of a `scenarios.Scenario`: the event's own actors, then bystanders and traffic as in any video."""
    rng, cast = np.random.default_rng([scenario.seed, 3]), Cast()
    begin = scenario.duration_s * (rng.uniform(0.2, 0.35) if layout.near else rng.uniform(0.25, 0.5))
    EVENT_SCRIPTS[scenario.event](cast, scenario, layout, rng, begin)
    num_people = sum(member.kind == "person" for member in cast.members)
    vehicles = sum(member.kind in objects.BODIES for member in cast.members)
    focus = cast.focus if cast.focus is not None else np.array(layout.spots[rng.integers(len(layout.spots))])
    for _ in range(scenario.num_people - num_people):
        cast.members.append(_bystander(layout, rng, scenario.duration_s, focus))
    _traffic(cast, scenario, layout, rng, vehicles)
    return cast


def _person(rng, script, **look) -> Actor:
    return Actor("person", script, replace(people.random_look(rng), **look), phase=rng.uniform(0, 6.28))


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


def _linger(layout, rng, until, focus) -> list[Key]:
    """Stay about a spot: wait, telephone, talk, wave, tie a shoe, pace."""
    for _ in range(12):  # not on the very spot where something is to happen
        spot, away = np.array(layout.spots[rng.integers(len(layout.spots))]), rng.uniform(-1.5, 1.5, 2)
        place = spot + ([1.4 * away[0], 0.3 + 0.8 * abs(away[1])] if layout.near else away)  # near the camera: behind the spot
        if np.hypot(*(place - focus)) > 1.6:
            break
    t, script, home = 0.0, [], place
    while t < until + 1:
        act, lasts = str(rng.choice(CALM if layout.near else [*CALM[:3], "wave", "crouch", "", ""])), rng.uniform(1.0, 2.6)
        script.append(Key(t, *place, act, None if not act and script else rng.uniform(-np.pi, np.pi)))
        if not act:
            place = place + rng.uniform(0.6, 1.1) * lasts * _direction(rng.uniform(0, 2 * np.pi))
            reach = 0.5 if layout.near else 1.2
            place = home + np.clip(place - home, -reach, reach)
            script[-1] = script[-1]._replace(face=None)
        t += lasts
    return [*script, Key(t, *place)]


def _direction(angle) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)])


def _bystander(layout, rng, until, focus) -> Actor:
    kind = rng.choice(["stroll", "jog", "linger"], p=(0.5, 0.08, 0.42) if layout.near else (0.62, 0.18, 0.2))
    if kind == "linger":
        return _person(rng, _linger(layout, rng, until, focus))
    speed = rng.uniform(2.7, 3.5) if kind == "jog" else rng.uniform(0.9, 1.7)
    return _person(rng, _stroll(layout, rng, until, speed))


def _traffic(cast, scenario, layout, rng, already) -> None:
    """Send the remaining vehicles, or riders, down their lanes one after another; behind a crash nobody follows."""
    count = (scenario.num_vehicles - already) if layout.lanes else 0
    for number in range(count):
        start, end = (np.array(place) for place in layout.lanes[number % len(layout.lanes)])
        apart = max(scenario.duration_s / count, 6.0 / layout.lane_speed)  # seconds; in short videos some pass off screen
        middle = scenario.duration_s / 2 + (number - count / 2 + rng.uniform(0.25, 0.75)) * apart
        if cast.burst:
            middle = cast.burst[0] - 3.0 - 2.5 * number
        half = float(np.hypot(*(end - start))) / 2 / (layout.lane_speed * rng.uniform(0.96, 1.04))
        script = [Key(middle - half, *start), Key(middle + half, *end)]
        if layout.riders:
            cast.members.append(Actor("bicycle", script, people.random_look(rng), phase=rng.uniform(0, 6.28)))
        else:
            cast.members.append(_car(rng, script))


def _car(rng, script) -> Actor:
    return Actor("van" if rng.random() < 0.25 else "car", script, objects.PAINTS[rng.integers(len(objects.PAINTS))])


def _walk(cast, scenario, layout, rng, begin):
    cast.members.append(_person(rng, _stroll(layout, rng, scenario.duration_s, rng.uniform(1.0, 1.6))))


def _loiter(cast, scenario, layout, rng, begin):
    cast.members.append(_person(rng, _linger(layout, rng, scenario.duration_s, np.array(layout.machine))))


def _run(cast, scenario, layout, rng, begin):
    cast.members.append(_person(rng, _stroll(layout, rng, scenario.duration_s, rng.uniform(2.8, 3.6))))


def _choose_place(cast, layout, rng):
    """Choose where it happens, in plain view."""
    cast.focus = np.array(layout.spots[rng.integers(len(layout.spots))]) + rng.uniform(-0.4, 0.4, 2)
    return cast.focus


def _approach(layout, rng, goal, begin, *, speed=1.4) -> list[Key]:
    """Return the keys of someone who waits on a walk, sets out, and is at `goal` at `begin`."""
    walks = np.array(layout.walks)[rng.integers(len(layout.walks), size=24)]
    places = walks[:, 0] + rng.random((24, 1)) * (walks[:, 1] - walks[:, 0])
    far = np.hypot(*(places - goal).T)
    best = int(np.abs(far - speed * begin * 0.9).argmin())
    sets_out = max(begin - far[best] / speed, 0.0)
    waits = [Key(0.0, *places[best], "phone")] if sets_out > 0 else []
    return [*waits, Key(sets_out, *places[best])]


def _leave(layout, rng, script, t, place, speed) -> None:
    """Add the way out of the picture, from `place` at `t`."""
    inner, outer = np.array(layout.walks[rng.integers(2)][::-1])
    goal = outer + (outer - inner) / np.hypot(*(outer - inner)) * 4.0
    script += [Key(t, *place), Key(t + float(np.hypot(*(goal - place))) / speed, *goal)]


def _lasts(scenario, layout, rng) -> float:
    """Return how many seconds something goes on: a third to a half of the video, near the camera a little longer."""
    return scenario.duration_s * (rng.uniform(0.35, 0.55) if layout.near else rng.uniform(0.3, 0.45))


def _fall_near(cast, scenario, layout, rng, begin):
    """Fall, lie and struggle until somebody has run up and helped; the two get up together, and then the event is over."""
    place, lasts = _choose_place(cast, layout, rng), _lasts(scenario, layout, rng)
    until = begin + min(lasts, max(0.35 * scenario.duration_s, 0.6 * scenario.duration_s - RISEN_S))
    script = [*_approach(layout, rng, place, begin, speed=rng.uniform(1.0, 1.8)), Key(begin, *place, "fall")]
    script += [Key(min(begin + 1.1, until - 0.4), *place, "struggle"), Key(until - 0.3, *place, "rise")]
    _leave(layout, rng, script, until + RISEN_S, place, 1.0)
    cast.members.append(_person(rng, script, carries=""))
    if scenario.num_people > 1:
        beside = place + rng.choice([-1, 1]) * np.array([0.75, 0.0]) + [0, rng.uniform(-0.3, 0.3)]
        arrives = begin + rng.uniform(0.8, 1.2)
        helper = [*_approach(layout, rng, beside, arrives, speed=2.9), Key(arrives, *beside, "wave")]
        face = float(np.arctan2(*(place - beside)[::-1]))
        helper += [Key(arrives + 0.7, *beside, "help", face)] if arrives + 1.2 < until else []
        _leave(layout, rng, helper, until + RISEN_S, beside, 1.1)
        cast.members.append(_person(rng, helper, carries=""))
    cast.span = (begin, min(until + RISEN_S, scenario.duration_s))


def _fall(cast, scenario, layout, rng, begin):
    if layout.near:
        return _fall_near(cast, scenario, layout, rng, begin)
    place, until = _choose_place(cast, layout, rng), scenario.duration_s
    script = [*_approach(layout, rng, place, begin, speed=rng.uniform(1.0, 2.8)), Key(begin, *place, "fall")]
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
    middle, until = _choose_place(cast, layout, rng), begin + _lasts(scenario, layout, rng)
    angle = rng.uniform(-0.5, 0.5)
    scripts = [_approach(layout, rng, middle - s * 0.42 * _direction(angle), begin) for s in (1, -1)]
    beat, step, names = (0.45, 0.3, ("brawl", "stagger")) if layout.near else (0.6, 0.22, ("punch", "reel"))
    for t in np.arange(begin, until - 0.3, beat):
        angle, middle = angle + rng.uniform(-0.4, 0.4), middle + rng.uniform(-step, step, 2)
        first_hits = rng.random() < 0.6
        acts = names if first_hits else names[::-1]
        for script, sign, act in zip(scripts, (1, -1), acts, strict=True):
            face = angle if sign > 0 else angle + np.pi
            script.append(Key(float(t), *(middle - sign * 0.42 * _direction(angle)), act, face))
    for script, speed in zip(scripts, (1.5, 3.2), strict=True):
        _leave(layout, rng, script, until, np.array(script[-1][1:3]), speed)
        cast.members.append(_person(rng, script, carries=""))
    cast.span = (begin, min(until, scenario.duration_s))


def _intrusion(cast, scenario, layout, rng, begin):
    gate, until = np.array(layout.gate) + [rng.uniform(-0.5, 0.5), 0], scenario.duration_s
    near, over = gate - [0, 0.55], gate + [0, 0.6]
    inside = over + [rng.uniform(-0.8, 1.2), rng.uniform(0.7, 1.3)]
    script = [*_approach(layout, rng, near, begin), Key(begin, *near, "climb", np.pi / 2), Key(begin + 1.6, *over, "sneak")]
    script += [Key(begin + 3.0, *inside, "crouch"), Key(begin + 5.0, *inside, "sneak")]
    script.append(Key(begin + 6.2, *over + [0.3, 0.3], "crouch"))
    cast.members.append(_person(rng, [*script, Key(max(until, begin + 6.2) + 1, *over + [0.3, 0.3])], carries=""))
    cast.span = (begin, until)


def _left_package(cast, scenario, layout, rng, begin):
    place, carried = _choose_place(cast, layout, rng), str(rng.choice(["bag", "case"]))
    script = [*_approach(layout, rng, place, begin), Key(begin, *place, "crouch")]
    _leave(layout, rng, script, begin + 1.3, place, rng.uniform(1.3, 2.0))
    carrier = _person(rng, script, carries=carried)
    carrier.drops_at = begin + 0.8
    arrived = carrier.at(begin - 0.01)
    ground = place + 0.4 * _direction((arrived[2] if arrived else 0.0) - 0.9)
    bag = Actor(carried, [Key(carrier.drops_at, *ground), Key(scenario.duration_s + 1, *ground)], None)
    cast.members += [carrier, bag]
    cast.span = (carrier.drops_at, scenario.duration_s)


def _vandalism_near(cast, scenario, layout, rng, begin):
    """Strike faster than far away, a step along the machine's front between blows; splinters fly."""
    until = begin + _lasts(scenario, layout, rng)
    place = np.array(layout.machine) + [rng.uniform(-0.25, 0.25), -0.75]
    cast.focus = place
    face, beat = np.pi / 2 + rng.uniform(-0.3, 0.3), 1 / people.SMASHES
    script = [*_approach(layout, rng, place, begin), Key(begin, *place, "smash", face)]
    for t in np.arange(begin + beat, until - 0.3, 2 * beat):
        script.append(Key(float(t), *(place + [rng.uniform(-0.35, 0.35), rng.uniform(-0.1, 0.1)]), "smash", face))
    _leave(layout, rng, script, until, place, rng.uniform(1.5, 3.2))
    cast.members.append(_person(rng, script, carries="bat"))
    cast.span = (begin, min(until, scenario.duration_s))
    cast.blows = [float(t) for t in np.arange(begin + 0.62 * people.STRIKES * beat, until, beat)]  # where a swing lands
    cast.sparks = True


def _vandalism(cast, scenario, layout, rng, begin):
    if layout.near:
        return _vandalism_near(cast, scenario, layout, rng, begin)
    until = begin + _lasts(scenario, layout, rng)
    place = np.array(layout.machine) + [rng.uniform(-0.25, 0.25), -0.75]
    cast.focus = place
    script = [*_approach(layout, rng, place, begin), Key(begin, *place, "strike", np.pi / 2 + rng.uniform(-0.3, 0.3))]
    _leave(layout, rng, script, until, place, rng.uniform(1.5, 3.2))
    cast.members.append(_person(rng, script, carries="bat"))
    cast.span = (begin, min(until, scenario.duration_s))
    cast.blows = [float(t) for t in np.arange(begin + 0.62, until, 1 / people.STRIKES)]  # where a swing of `strike` lands


def _crash(cast, scenario, layout, rng, begin):
    (start, end), (other_start, other_end) = np.array(layout.lanes[0]), np.array(layout.lanes[1])
    ahead = (end - start) / np.hypot(*(end - start))
    towards = (other_end - other_start) / np.hypot(*(other_end - other_start))
    meet = start * [0, 1] + [rng.uniform(-1.5, 1.5), 0]
    swerve = other_start + towards * ((meet - other_start) @ towards - 7.0)  # here it leaves its lane
    last = (meet - swerve) / np.hypot(*(meet - swerve))
    stop, other_stop = meet - ahead * 2.0, meet - last * 2.0
    speed = layout.lane_speed * rng.uniform(0.95, 1.15)
    until = scenario.duration_s
    for path, direction, spin in (([start, stop], ahead, 0.45), ([other_start, swerve, other_stop], last, -0.6)):
        gaps = [float(np.hypot(*(b - a))) / speed for a, b in zip(path[:-1], path[1:], strict=True)]
        times = begin - np.cumsum([0, *gaps[::-1]])[::-1]
        script = [Key(float(t), *place) for t, place in zip(times, path, strict=True)]
        heading = float(np.arctan2(direction[1], direction[0])) + spin * rng.uniform(0.6, 1.2)
        slid = path[-1] + direction * 0.15 + rng.uniform(-0.35, 0.35, 2)
        script[-1] = script[-1]._replace(act="skid", face=heading)
        script += [Key(begin + 0.7, *slid, "skid", heading), Key(until + 1, *slid)]
        cast.members.append(_car(rng, script))
        cast.members[-1].folds_at = begin
    cast.span, cast.burst = (begin, until), (begin, *meet)


# Hard negatives: each looks like an anomaly for a moment and is none


def _tie_shoe(cast, scenario, layout, rng, begin):
    """Go down on a knee, tie a shoe, go on: no fall."""
    place, down = _choose_place(cast, layout, rng), scenario.duration_s * rng.uniform(0.25, 0.4)
    script = [*_approach(layout, rng, place, begin), Key(begin, *place, "crouch")]
    _leave(layout, rng, script, begin + down, place, rng.uniform(1.1, 1.6))
    cast.members.append(_person(rng, script, carries=""))


def _greet(cast, scenario, layout, rng, begin):
    """Meet, wave and talk at arm's length, part in peace: no fight."""
    middle, until = _choose_place(cast, layout, rng), begin + _lasts(scenario, layout, rng)
    angle = rng.uniform(-0.5, 0.5)
    for sign, act in ((1, "wave"), (-1, "talk")):
        place, face = middle - sign * 0.5 * _direction(angle), angle if sign > 0 else angle + np.pi
        script = _approach(layout, rng, place, begin)
        script += [Key(begin, *place, act, face), Key(begin + 1.2, *place, "talk", face)]
        _leave(layout, rng, script, until, place, rng.uniform(1.2, 1.7))
        cast.members.append(_person(rng, script, carries=""))


def _wait_at_gate(cast, scenario, layout, rng, begin):
    """Stand at the gate, telephone, go away again: no intrusion."""
    gate = np.array(layout.gate) + [rng.uniform(-0.5, 0.5), -0.55]
    until = begin + _lasts(scenario, layout, rng)
    script = [*_approach(layout, rng, gate, begin), Key(begin, *gate, "stand", np.pi / 2)]
    script.append(Key(begin + 1.2, *gate, "phone", np.pi / 2))
    _leave(layout, rng, script, until, gate, rng.uniform(1.2, 1.6))
    cast.members.append(_person(rng, script, carries=""))


def _rest_bag(cast, scenario, layout, rng, begin):
    """Put a bag down, wait beside it, take it along: nothing is left."""
    place, carried = _choose_place(cast, layout, rng), str(rng.choice(["bag", "case"]))
    until = begin + _lasts(scenario, layout, rng)
    script = [*_approach(layout, rng, place, begin), Key(begin, *place, "crouch"), Key(begin + 1.3, *place, "stand")]
    script.append(Key(until - 0.9, *place, "crouch"))
    _leave(layout, rng, script, until, place, rng.uniform(1.1, 1.6))
    carrier = _person(rng, script, carries=carried)
    carrier.drops_at, carrier.takes_at = begin + 0.8, until - 0.4
    arrived = carrier.at(begin - 0.01)
    ground = place + 0.4 * _direction((arrived[2] if arrived else 0.0) - 0.9)
    cast.members += [carrier, Actor(carried, [Key(carrier.drops_at, *ground), Key(carrier.takes_at, *ground)], None)]


def _use_machine(cast, scenario, layout, rng, begin):
    """Stand before the machine, take something out below: no vandalism."""
    until = begin + _lasts(scenario, layout, rng)
    place = np.array(layout.machine) + [rng.uniform(-0.25, 0.25), -0.75]
    cast.focus = place
    script = [*_approach(layout, rng, place, begin), Key(begin, *place, "phone", np.pi / 2)]
    script.append(Key((begin + until) / 2, *place, "crouch", np.pi / 2))
    _leave(layout, rng, script, until, place, rng.uniform(1.1, 1.6))
    cast.members.append(_person(rng, script, carries=""))


def _stop_close(cast, scenario, layout, rng, begin):
    """Two cars stop beside each other, stand, drive on: no crash."""
    until = begin + _lasts(scenario, layout, rng)
    meet = rng.uniform(-1.5, 1.5)
    for start, end in np.array(layout.lanes)[:2]:
        ahead = (end - start) / np.hypot(*(end - start))
        stop = np.array([meet - ahead[0] * rng.uniform(0.2, 0.8), start[1]])
        speed = layout.lane_speed * rng.uniform(0.8, 1.0)
        arrives, leaves = begin - np.hypot(*(stop - start)) / speed, until + np.hypot(*(end - stop)) / speed
        script = [Key(float(arrives), *start), Key(begin, *stop), Key(until, *stop), Key(float(leaves), *end)]
        cast.members.append(_car(rng, script))


EVENT_SCRIPTS = {
    "walk": _walk, "loiter": _loiter, "run": _run, "fall": _fall, "fight": _fight, "intrusion": _intrusion,
    "left_package": _left_package, "vandalism": _vandalism, "crash": _crash, "tie_shoe": _tie_shoe, "greet": _greet,
    "wait_at_gate": _wait_at_gate, "rest_bag": _rest_bag, "use_machine": _use_machine, "stop_close": _stop_close,
}  # fmt: skip

"""People of the synthetic data set: a skeleton with poses for walking, running, falling, fighting, riding.

- a person is a pose (joint angles) and a look (build, clothes); the lowest foot stands on the ground
- a pose is a function of the seconds since an action began, so any moment can be painted without the one before
- every function adds to a `scenes.Sketch`, so the same strokes give colour, identity and shadow
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vau_lib.synthetic import objects
from vau_lib.synthetic.scenes import Colour, Sketch, shade

SKINS = [(232, 196, 168), (206, 160, 128), (160, 114, 84), (112, 78, 58), (224, 182, 150)]
HAIRS = [(44, 36, 32), (78, 56, 40), (132, 98, 62), (28, 28, 30), (150, 146, 142)]
TOPS = [(172, 54, 48), (46, 74, 122), (58, 60, 66), (210, 206, 196), (72, 106, 78), (196, 154, 70), (104, 74, 116),
        (96, 132, 158), (34, 36, 42), (150, 92, 58), (122, 124, 128), (200, 120, 130)]  # fmt: skip
STRIKES, SMASHES = 1.15, 1.9  # swings a second, of one who breaks something; near the camera
BOTTOMS = [(48, 58, 82), (38, 38, 42), (92, 84, 74), (132, 120, 98), (70, 74, 80), (58, 44, 40)]


@dataclass(frozen=True)
class Look:
    """Build and clothes of one person; `carries` is "", "bag", "pack", "case" or "bat"."""

    tall_m: float
    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    shoes: Colour = (34, 32, 32)
    coat: bool = False
    carries: str = ""


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians, left and right; zero is standing straight, positive forwards.

    `tip` lays the whole body over towards `tip_aside` (0 forwards, pi/2 to its side); `lift_m` takes it off the ground.
    """

    lean: float = 0.0
    hips: tuple[float, float] = (0.0, 0.0)
    knees: tuple[float, float] = (0.05, 0.05)
    shoulders: tuple[float, float] = (0.05, 0.05)
    elbows: tuple[float, float] = (0.25, 0.25)
    splay: tuple[float, float] = (0.1, 0.1)
    tip: float = 0.0
    tip_aside: float = 0.0
    lift_m: float = 0.0
    nod: float = 0.0


def random_look(rng: np.random.Generator) -> Look:
    """Return a random build and random clothes."""
    pick = [colours[rng.integers(len(colours))] for colours in (SKINS, HAIRS, TOPS, BOTTOMS)]
    carries = str(rng.choice(["", "", "", "bag", "pack", "case"]))
    return Look(rng.uniform(1.58, 1.88), *pick, coat=bool(rng.random() < 0.3), carries=carries)


def _smooth(progress: float) -> float:
    progress = min(max(progress, 0.0), 1.0)
    return progress * progress * (3 - 2 * progress)


def gait(phase: float, speed: float) -> Pose:
    """Return the pose of a walk, above 2.4 m/s of a run, at `phase` (radians, one full step pair per turn)."""
    run = _smooth((speed - 1.9) / 0.8)
    reach = (0.5 * min(speed / 1.3, 1.0)) * (1 - run) + 0.72 * run
    swing = np.sin([phase, phase + np.pi])
    bend = np.maximum(0, np.cos([phase, phase + np.pi]))  # the leg that comes forward is the bent one
    return Pose(
        lean=0.04 + 0.2 * run,
        hips=tuple(reach * swing + 0.12 * run),
        knees=tuple(0.08 + (0.75 + 0.75 * run) * min(speed, 1.2) / 1.2 * bend),
        shoulders=tuple(-(0.7 + 0.3 * run) * reach * swing),
        elbows=tuple(0.3 + 1.2 * run + 0.15 * np.abs(swing)),
        lift_m=0.07 * run * abs(swing[0]),
    )


def _stand(t: float, phase: float) -> Pose:
    sway = 0.03 * np.sin(1.3 * t + phase)
    return Pose(lean=sway, hips=(sway - 0.04, 0.04), shoulders=(sway, -sway), nod=0.2 * np.sin(0.7 * t + phase))


def _phone(t, phase):
    return replace(_stand(t, phase), shoulders=(0.55, 0.05), elbows=(1.7, 0.2), nod=0.45)


def _talk(t, phase):
    wave = 0.5 + 0.35 * np.sin(3.1 * t + phase) * np.sin(0.9 * t)
    return replace(_stand(t, phase), shoulders=(0.15, wave), elbows=(0.5, 0.9 + 0.5 * np.sin(4.3 * t)), splay=(0.1, 0.3))


def _wave(t, phase):
    return replace(_stand(t, phase), shoulders=(0.05, 2.7), elbows=(0.2, 0.4 + 0.5 * np.sin(9 * t)), splay=(0.1, 0.35))


def _crouch(t, phase):
    down = _smooth(t / 0.6)
    hips, knees = 1.75 * down, 2.1 * down
    arms = 0.7 * down + 0.1 * np.sin(5 * t + phase)
    return Pose(0.55 * down, (hips, hips * 0.8), (knees, knees), (arms, arms), (0.5, 0.5), nod=0.4 * down)


def _fall(t, phase):
    """Stumble, throw the arms up, go over, lie."""
    over = min(max((t - 0.25) / 0.65, 0), 1) ** 2
    reel = np.sin(min(t / 0.3, 1) * np.pi / 2)
    still = 0.05 * np.sin(2 * t) * (t > 1.5)
    return Pose(
        0.3 * reel * (1 - over), (0.5 * reel - 0.2 * over, -0.35 * reel + 0.4 * over), (0.5 * reel, 0.7 * reel),
        (1.6 * reel + still, 1.2 * reel - still), (0.4, 0.9), (0.5 * reel, 0.7 * reel), 1.5 * over, 0.7 * np.sin(phase),
    )  # fmt: skip


def _struggle(t, phase):
    """Lie on the ground, move legs and arms, try to get up."""
    kick, reach = np.sin(5.2 * t + phase), np.sin(4.1 * t + 2 * phase)
    return replace(
        _fall(2.0, phase), hips=(0.35 + 0.45 * kick, 0.35 - 0.45 * kick), knees=(0.7 + 0.5 * kick, 0.7 - 0.5 * kick),
        shoulders=(1.5 + 0.8 * reach, 1.1 - 0.8 * reach), lean=0.25 + 0.25 * np.sin(2.3 * t + phase),
    )  # fmt: skip


def _help(t, phase):
    """Bend down to somebody and pull, look up and wave for others."""
    calls = _smooth(4 * np.sin(1.6 * t + phase) - 1)
    down = 1 - 0.75 * calls
    pull = 0.35 * np.sin(6.5 * t)
    return Pose(
        0.75 * down, (1.1 * down, 0.9 * down), (1.5 * down, 1.6 * down), (0.7 * down + 2.7 * calls, 0.8 + pull),
        (0.3 + 0.5 * calls * np.sin(9 * t), 0.4 + pull), (0.1, 0.25), nod=0.3 * down,
    )  # fmt: skip


def _punch(t, phase):
    """Guard, and hit in turn: left, right, a kick."""
    beat = (1.9 * t + phase / 6) % 3
    hit = np.sin(np.pi * min((beat % 1) / 0.45, 1)) if beat % 1 < 0.45 else 0.0
    left, right, kick = hit * (beat < 1), hit * (1 <= beat < 2), hit * (beat >= 2)
    step = 0.16 * np.sin(6 * t + phase)
    return Pose(
        0.12 + 0.2 * (left + right) - 0.3 * kick, (0.3 + step, -0.3 - step + 1.6 * kick), (0.3, 0.25),
        (0.6 + left, 0.5 + right), (1.9 - 1.8 * left, 2.0 - 1.9 * right), (0.15, 0.15),
    )  # fmt: skip


def _reel(t, phase):
    """Be hit: guard up, thrown back now and then, hit back."""
    beat = (1.9 * t + phase / 6) % 1
    jolt = np.exp(-5 * max(beat - 0.2, 0)) * (beat > 0.15)
    mine = np.sin(np.pi * beat) * (np.sin(2.1 * t + phase) > 0.3)
    return Pose(
        0.1 - 0.5 * jolt + 0.15 * mine, (0.25 - 0.3 * jolt, -0.3), (0.35, 0.3 + 0.3 * jolt),
        (0.9 + 0.5 * jolt, 0.7 + 0.8 * mine), (1.9 - 0.6 * jolt, 2.0 - 1.7 * mine), (0.2 + 0.5 * jolt, 0.2),
        nod=-0.4 * jolt,
    )  # fmt: skip


def _strike(t, phase):
    """Swing down from over the head, again and again, both hands."""
    beat = (STRIKES * t) % 1
    up = _smooth(beat / 0.55) if beat < 0.55 else 1 - _smooth((beat - 0.55) / 0.16)
    arms = 0.75 + 2.0 * up
    return Pose(0.4 - 0.5 * up, (0.35, -0.35), (0.35 - 0.1 * up, 0.2), (arms, arms), (0.25 + 0.5 * up,) * 2, (-0.1, -0.1))


def _climb(t, phase):
    """Climb over a fence in 1.6 s: hands on it, one leg, then the other, down in a crouch."""
    progress = min(t / 1.6, 1.0)
    high = np.sin(np.pi * progress)
    return Pose(
        0.6 * high, (1.7 * high, 1.3 * np.sin(np.pi * progress) ** 2 - 0.6 * high), (1.6 * high + 0.1, 0.9 * high),
        (1.0 * high + 0.1, 1.2 * high), (0.6, 0.4), (0.4 * high, 0.3 * high), lift_m=1.15 * high,
    )  # fmt: skip


def _ride(t, phase):
    pedals = np.array([phase, phase + np.pi])
    hips, knees = tuple(0.85 + 0.35 * np.sin(pedals)), tuple(0.95 + 0.45 * np.cos(pedals))
    return Pose(0.55, hips, knees, (0.75, 0.75), (0.35, 0.35), lift_m=0.28)


POSES: dict[str, Callable[[float, float], Pose]] = {
    "stand": _stand, "phone": _phone, "talk": _talk, "wave": _wave, "crouch": _crouch, "fall": _fall, "punch": _punch,
    "reel": _reel, "strike": _strike, "climb": _climb, "ride": _ride, "struggle": _struggle, "help": _help,
    "brawl": lambda t, phase: _punch(1.45 * t, phase), "stagger": lambda t, phase: _reel(1.45 * t, phase),
    "smash": lambda t, phase: _strike(SMASHES / STRIKES * t, phase),
    "rise": lambda t, phase: _fall(max(0.0, 1.1 - 0.55 * t), phase),
}  # fmt: skip


def pose_of(act: str, t: float, phase: float, speed: float) -> Pose:
    """Return the pose `t` seconds into an action; "" walks, runs or stands by the speed, "sneak" walks bent."""
    if act in POSES:
        return POSES[act](t, phase)
    pose = gait(phase, speed) if speed > 0.15 else _stand(t, phase)
    if act == "sneak":
        return replace(pose, lean=0.65, knees=tuple(knee + 0.5 for knee in pose.knees), nod=-0.2)
    return pose


def _skeleton(pose: Pose, tall: float) -> dict[str, np.ndarray]:
    """Return joints by name, each (3,): forwards, up, to the left, in metres from the feet's place."""

    def chain(start, lengths, angles, aside):
        points = [np.asarray(start)]
        for length, angle in zip(lengths, angles, strict=True):
            step = np.array([np.sin(angle), -np.cos(angle) * np.cos(aside), np.sin(aside)])
            points.append(points[-1] + length * step)
        return points

    up = np.array([np.sin(pose.lean), np.cos(pose.lean), 0.0])
    joints = {"pelvis": np.zeros(3), "neck": 0.29 * tall * up}
    bow = pose.lean + pose.nod
    joints["head"] = joints["neck"] + 0.105 * tall * np.array([np.sin(bow), np.cos(bow), 0.0])
    joints["face"] = joints["head"] + 0.03 * np.array([np.cos(bow), -np.sin(bow), 0.0])
    for side, name in ((1, "left"), (-1, "right")):
        which = 0 if side > 0 else 1
        hip, knee = pose.hips[which], pose.knees[which]
        leg = chain([0, 0, 0.055 * tall * side], (0.25 * tall, 0.25 * tall), (hip, hip - knee), 0.04 * side)
        toe = leg[-1] + 0.13 * np.array([np.cos((hip - knee) * 0.6), np.sin((hip - knee) * 0.6) - 0.2, 0.0])
        shoulder, elbow = pose.shoulders[which] + pose.lean, pose.elbows[which]
        start = joints["neck"] - 0.03 * tall * up + [0, 0, 0.105 * tall * side]
        arm = chain(start, (0.17 * tall, 0.16 * tall), (shoulder, shoulder + elbow), pose.splay[which] * side)
        joints |= {f"{name} leg": np.stack([*leg, toe]), f"{name} arm": np.stack(arm)}
    lowest = min(joints[f"{name} leg"][2:, 1].min() for name in ("left", "right"))
    rise = np.array([0, pose.lift_m - lowest + 0.04, 0])
    joints = {name: points + rise for name, points in joints.items()}
    if pose.tip:  # turn about the feet, never through the ground
        over, cos, sin = np.array([np.cos(pose.tip_aside), np.sin(pose.tip_aside)]), np.cos(pose.tip), np.sin(pose.tip)
        for name, points in joints.items():
            along, height = points[..., [0, 2]] @ over, points[..., 1]
            moved = points.copy()
            moved[..., [0, 2]] += (along * (cos - 1) + height * sin)[..., None] * over
            moved[..., 1] = np.maximum(height * cos - along * sin, 0.1)
            joints[name] = moved
    return joints


def person(sketch: Sketch, look: Look, pose: Pose, at: tuple[float, float], heading: float) -> None:
    """Paint someone whose feet are at (x, z), facing `heading` (radians from the x axis towards z)."""
    cos, sin, tall = np.cos(heading), np.sin(heading), look.tall_m
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])  # forwards, up, left -> x, y, z
    joints = {name: points @ turn + [at[0], 0, at[1]] for name, points in _skeleton(pose, tall).items()}
    left_far = joints["left arm"][0, 2] > joints["right arm"][0, 2]
    far, near = ("left", "right") if left_far else ("right", "left")
    back = turn[0] * -0.16
    behind = sin < 0  # walking towards the camera: what is on the back is hidden by the body
    if look.carries == "pack" and behind:
        _pack(sketch, joints, back)
    for name, gain in ((far, 0.72), (near, 1.0)):
        if name == near:
            _torso(sketch, look, joints)
        _leg(sketch, look, joints[f"{name} leg"], gain)
        if name == far:
            _arm(sketch, look, joints[f"{name} arm"], 0.8)
    if look.coat:
        hem = joints["pelvis"] - [0, 0.16 * tall * np.cos(pose.tip), 0]
        sketch.limbs([joints["neck"] * 0.3 + joints["pelvis"] * 0.7, hem], (0.33, 0.38), shade(look.top, 0.94))
    _torso(sketch, look, joints)
    if look.carries == "pack" and not behind:
        _pack(sketch, joints, back)
    head, face = joints["head"], joints["face"]
    sketch.limbs([joints["neck"], head], (0.11, 0.11), shade(look.skin, 0.85))
    hair = ([head + [0, 0.035, 0] - (face - head)], (0.215,), look.hair)
    skin = ([head + (face - head)], (0.19,), look.skin)
    for part in (hair, skin) if behind else (skin, hair):
        sketch.limbs(*part)
    _arm(sketch, look, joints[f"{near} arm"], 1.06)
    _carried(sketch, look, joints, near, turn)


def _leg(sketch, look, leg, gain):
    sketch.limbs(leg[2:], (0.1, 0.075), shade(look.shoes, gain))
    sketch.limbs(leg[:3], (0.185, 0.135, 0.1), shade(look.bottom, gain))


def _arm(sketch, look, arm, gain):
    sketch.limbs(arm[1:], (0.09, 0.075), shade(look.skin, gain))
    sketch.limbs([arm[0], arm[1], arm[1] * 0.25 + arm[2] * 0.75], (0.125, 0.105, 0.09), shade(look.top, gain * 0.92))


def _torso(sketch, look, joints):
    left, right = joints["left arm"][0], joints["right arm"][0]
    hips = [joints["left leg"][0], joints["right leg"][0]]
    sketch.limbs(hips, (0.2, 0.2), look.bottom)
    sketch.limbs([joints["neck"] * 0.86 + joints["pelvis"] * 0.14, joints["pelvis"]], (0.24, 0.25), look.top)
    sketch.limbs([left, right], (0.13, 0.13), shade(look.top, 1.06))
    sketch.polygon([left, right, hips[1], hips[0]], look.top)


def _pack(sketch, joints, back):
    top = joints["neck"] * 0.8 + joints["pelvis"] * 0.2
    sketch.limbs([top + back, joints["pelvis"] + back], (0.27, 0.31), (52, 58, 50))


def _carried(sketch, look, joints, near, turn):
    hand = joints[f"{near} arm"][-1]
    if look.carries == "bat":
        arm = joints["right arm"]
        sketch.limbs([arm[2], arm[2] + (arm[2] - arm[1]) * 2.8], (0.045, 0.075), (206, 178, 128))
    elif look.carries == "bag":
        objects.bag(sketch, hand - [0, 0.3, 0], turn[0], 0.4)
    elif look.carries == "case":
        low = np.array([hand[0], 0.05, hand[2]]) + turn[0] * -0.2
        objects.bag(sketch, low, turn[0], 0.42, tall_m=0.55, colour=(46, 50, 60))


def bicycle(sketch: Sketch, look: Look, at: tuple[float, float], heading: float, phase: float) -> None:
    """Paint a bicycle and its rider, pedals at `phase`."""
    along = np.array([np.cos(heading), 0, np.sin(heading)])
    base, up = np.array([at[0], 0, at[1]]), np.array([0, 1.0, 0])
    turn = np.linspace(0, 2 * np.pi, 15)[:, None]
    for far in (-0.52, 0.52):
        rim = base + along * far + up * 0.34 + 0.34 * (np.cos(turn) * along + np.sin(turn) * up)
        sketch.limbs(rim, np.full(len(rim), 0.05), (26, 26, 28))
    crank, seat, stem = base + up * 0.3, base - along * 0.2 + up * 0.9, base + along * 0.4 + up * 0.95
    hubs = [base + along * far + up * 0.34 for far in (-0.52, 0.52)]
    for tubes in ([hubs[0], crank, seat], [crank, stem, hubs[1]], [seat, stem]):
        sketch.limbs(tubes, np.full(len(tubes), 0.06), shade(look.top, 0.7))
    rider, saddle = replace(look, coat=False, carries=""), (at[0] - 0.18 * along[0], at[1] - 0.18 * along[2])
    person(sketch, rider, pose_of("ride", 0, phase, 0), saddle, heading)

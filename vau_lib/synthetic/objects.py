"""Objects of the synthetic data set: vehicles, bags, street furniture, cracks and smoke.

- a vehicle is a profile swept across its width; only faces turned to the camera are painted
- every function adds to a `scenes.Sketch`, so the same strokes give colour, identity and shadow
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from vau_lib.synthetic.scenes import Camera, Colour, Sketch, paint, shade

PAINTS = [
    (188, 190, 194),
    (44, 46, 52),
    (222, 222, 218),
    (134, 32, 32),
    (38, 62, 104),
    (96, 102, 106),
    (58, 84, 70),
    (170, 150, 112),
]


@dataclass(frozen=True)
class Body:
    """A vehicle's side profile (along, up) from the tail round the top to the nose, its glass, its width; metres."""

    profile: tuple[tuple[float, float], ...]
    glass_edges: tuple[int, ...]  # profile edges that are panes
    windows: tuple[tuple[tuple[float, float], ...], ...]
    width_m: float
    wheels: tuple[float, float]
    waist_m: float  # above it the cabin leans in


BODIES = {
    "car": Body(
        ((-2.05, 0.28), (-2.12, 0.72), (-1.98, 0.96), (-1.6, 1.0), (-1.02, 1.42), (0.3, 1.45),
         (1.02, 0.98), (1.92, 0.86), (2.12, 0.62), (2.1, 0.28)),
        (3, 5), (((-1.42, 1.0), (-0.96, 1.35), (-0.33, 1.38), (-0.33, 1.0)),
                 ((-0.25, 1.0), (-0.25, 1.38), (0.27, 1.38), (0.84, 1.0))),
        1.76, (-1.32, 1.32), 1.0,
    ),
    "van": Body(
        ((-2.45, 0.34), (-2.5, 1.2), (-2.4, 2.15), (1.15, 2.2), (1.85, 1.3), (2.4, 1.12), (2.52, 0.7), (2.5, 0.34)),
        (3,), (((0.3, 1.25), (0.3, 1.95), (1.08, 1.98), (1.6, 1.25)),), 1.95, (-1.6, 1.65), 1.3,
    ),
}  # fmt: skip


def vehicle(sketch, kind: str, colour: Colour, at: tuple[float, float], heading: float, *, crumple=0.0, lit=False) -> None:
    """Paint a "car" or "van" standing on (x, z), nose to `heading`; `crumple` in [0, 1] folds its nose in."""
    body = BODIES[kind]
    along = np.array([np.cos(heading), 0, np.sin(heading)])
    left = np.array([-along[2], 0, along[0]])
    base = np.array([at[0], 0, at[1]])
    to_camera = np.array([0, sketch.camera.height_m, 0]) - base

    def point(where, side):
        far, up = where
        fold = crumple * max(far - 0.9, 0)
        lean = 1 - 0.2 * max(0.0, min(1.0, (up - body.waist_m) / 0.4))
        return base + along * (far - 0.42 * fold) + [0, up + 0.22 * fold, 0] + left * side * body.width_m / 2 * lean

    near = 1 if left @ to_camera > 0 else -1
    sketch.polygon([point(p, -near) for p in body.profile], shade(colour, 0.5))
    for place in body.wheels:
        sketch.wheel(point((place, 0.33), -near * 0.95), along, 0.33, (22, 22, 24))
    edges = []
    for number, (start, end) in enumerate(zip(body.profile[:-1], body.profile[1:], strict=True)):
        outward = along * -(end[1] - start[1]) + np.array([0, end[0] - start[0], 0])  # profile runs clockwise
        outward = outward / (np.linalg.norm(outward) or 1)
        corners = [point(start, near), point(end, near), point(end, -near), point(start, -near)]
        if outward @ (to_camera - along * (start[0] + end[0]) / 2 - [0, (start[1] + end[1]) / 2, 0]) > 0:
            gain = 0.74 + 0.42 * outward[1]
            paint = (52, 62, 72) if number in body.glass_edges else shade(colour, gain)
            edges.append((-(along * (start[0] + end[0])) @ to_camera, number, corners, paint))
    for _, _, corners, paint in sorted(edges, key=lambda edge: -edge[0]):
        sketch.polygon(corners, paint)
    sketch.polygon([point(p, near) for p in body.profile], shade(colour, 0.86))
    for window in body.windows:
        sketch.polygon([point(p, near * 1.0) for p in window], (44, 54, 64))
    sketch.polygon([point((p, u), near) for p, u in ((-2, 0.28), (-2, 0.42), (2, 0.42), (2, 0.28))], shade(colour, 0.5))
    for place in body.wheels:
        hub = point((place, 0.33), near * 1.01)
        sketch.wheel(hub, along, 0.38, shade(colour, 0.35))
        sketch.wheel(hub, along, 0.33, (24, 24, 26))
        sketch.wheel(hub, along, 0.17, (138, 140, 144))
    ends = ((body.profile[-2], (255, 250, 224), 1), (body.profile[1], (196, 40, 34), -1))
    for (far, up), light, facing in ends:
        if along @ to_camera * facing > 0:
            for side in (-0.78, 0.78):
                spot, glass = point((far, up), side), light if lit or facing < 0 else (214, 216, 214)
                sketch.limbs([spot - left * 0.13, spot + left * 0.13], (0.16, 0.16), glass)


def lamps(kind: str, at: tuple[float, float], heading: float) -> list[np.ndarray]:
    """Return the places of a vehicle's two head lamps, each (3,)."""
    far, up = BODIES[kind].profile[-2]
    along = np.array([np.cos(heading), 0, np.sin(heading)])
    middle, left = np.array([at[0], up, at[1]]) + along * far, np.array([-along[2], 0, along[0]])
    return [middle + side * left for side in (-0.65, 0.65)]


def bag(sketch: Sketch, low: np.ndarray, along: np.ndarray, long_m: float, *, tall_m=0.28, colour=(58, 42, 34)) -> None:
    """Paint a bag standing on `low` (3,), its long side `along` a ground direction (3,)."""
    across, top = np.array([-along[2], 0, along[0]]) * 0.1, np.array([0, tall_m, 0])
    for side in sorted((-across, across), key=lambda s: -s[2]):
        corners = [low + side - along * long_m / 2, low + side + along * long_m / 2]
        sketch.polygon([*corners, corners[1] + top, corners[0] + top], shade(colour, 1.0))
    lid = [low + top + a * across + b * along * long_m / 2 for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    sketch.polygon(lid, shade(colour, 1.35))
    handle = [low + top - along * 0.08, low + top + [0, 0.1, 0], low + top + along * 0.08]
    sketch.limbs(handle, (0.03, 0.03, 0.03), shade(colour, 0.6))


def prop(sketch: Sketch, kind: str, x: float, z: float, number: float) -> None:
    """Paint street furniture at (x, z): its `number` is a heading, for a fence and a barrier the x where it ends."""
    table = np.random.default_rng(int(abs(x * 100 + z * 7)))  # the same tree every time
    if kind == "car":
        vehicle(sketch, "van" if table.random() < 0.2 else "car", PAINTS[table.integers(len(PAINTS))], (x, z), number)
    elif kind == "lamp":
        sketch.limbs([(x, 0, z), (x, 5.4, z), (x + 0.9, 5.6, z)], (0.16, 0.1, 0.1), (84, 88, 92))
        sketch.limbs([(x + 0.7, 5.55, z), (x + 1.3, 5.55, z)], (0.18, 0.18), (226, 222, 206))
    elif kind == "tree":
        sketch.limbs([(x, 0, z), (x, 2.6, z)], (0.34, 0.24), (82, 66, 52))
        for gain in (0.62, 0.8, 1.0, 1.18):
            for _ in range(9):
                off = table.normal(0, 0.62, 3) + [0, 0.35 * gain, -0.3 * gain]
                leaves = (x + off[0], 3.2 + off[1], z + 0.4 * off[2])
                sketch.limbs([leaves], (1.5 - 0.75 * gain,), shade((74, 98, 58), gain))
    elif kind == "fence":
        posts = np.arange(x, number + 0.01, 0.9)
        for place in posts:
            sketch.limbs([(place, 0, z), (place, 1.2, z)], (0.09, 0.09), (118, 122, 126))
        for up in (0.35, 0.75, 1.15):
            sketch.limbs([(x, up, z), (number, up, z)], (0.06, 0.06), (198, 60, 48) if up == 0.75 else (206, 206, 202))
    elif kind == "bench":
        along = np.array([np.cos(number), 0, np.sin(number)]) * 0.85
        for up, deep in ((0.45, 0.0), (0.45, -0.25), (0.8, 0.15)):
            plank = np.array([x, up, z + deep])
            sketch.limbs([plank - along, plank + along], (0.14, 0.14), (122, 88, 58))
    elif kind == "plant":
        sketch.limbs([(x, 0.05, z), (x, 0.5, z)], (0.36, 0.46), (132, 92, 70))
        for _ in range(14):
            turn, reach, up = table.uniform(0, 2 * np.pi), table.uniform(0.15, 0.4), table.uniform(0.5, 1.0)
            tip = (x + reach * np.cos(turn), 0.5 + up, z + 0.5 * reach * np.sin(turn))
            sketch.limbs([(x, 0.5, z), tip], (0.05, 0.1), shade((66, 104, 62), table.uniform(0.7, 1.2)))
    elif kind == "barrier":
        sketch.limbs([(x, 0, z), (x, 1.05, z)], (0.26, 0.26), (206, 160, 48))
        parts = np.linspace(x, number, 9)
        for part, (start, end) in enumerate(zip(parts[:-1], parts[1:], strict=True)):
            sketch.limbs([(start, 0.95, z), (end, 0.95, z)], (0.11, 0.11), (206, 58, 46) if part % 2 else (232, 230, 222))
    elif kind == "bin":
        sketch.limbs([(x, 0.1, z), (x, 0.85, z)], (0.5, 0.56), (58, 74, 66))


def cracks(sketch: Sketch, *, at: tuple[float, float], blows: int) -> None:
    """Paint the marks that `blows` left on a machine whose front stands at (x, z), and the splinters before it."""
    table = np.random.default_rng(7)
    for _ in range(blows):
        hit = np.array([at[0] + table.uniform(-0.3, 0.3), table.uniform(0.95, 1.65), at[1] - 0.01])
        for angle in table.uniform(0, 2 * np.pi, 6):
            end = hit + table.uniform(0.15, 0.35) * np.array([np.cos(angle), np.sin(angle), 0])
            sketch.limbs([hit, end], (0.05, 0.02), (24, 26, 30))
        for x, z in table.normal(0, 0.4, (4, 2)):
            corner = np.array([at[0] + x, 0.02, at[1] - 0.3 - abs(z)])
            sketch.polygon([corner, corner + [0.12, 0, 0.02], corner + [0.05, 0, 0.1]], (206, 220, 226))


def splinters(sketch: Sketch, *, at: tuple[float, float], ages: list[float]) -> None:
    """Paint the splinters that fly off a machine whose front stands at (x, z), `ages` seconds after each blow."""
    table = np.random.default_rng(9)
    for age in ages:
        for _ in range(12):
            speed = table.normal(0, 1, 3) * [1.3, 1.0, 0.3] + [0, 1.2, -1.0]
            place = np.array([at[0], 1.3, at[1] - 0.02]) + speed * age - [0, 4.9 * age * age, 0]
            if place[1] > 0:
                sketch.limbs([place, place + 0.04 * speed], (0.06, 0.03), (226, 234, 238))


def smoke(camera: Camera, image: Image.Image, at: tuple[float, float], t: float) -> Image.Image:
    """Return the canvas with the dust and smoke of a crash at (x, z), `t` seconds ago."""
    table, veil = np.random.default_rng(5), Image.new("L", (camera.width // 4, camera.height // 4))
    sketch = Sketch(camera)
    for number in range(16):
        age = t - number * 0.12
        drift = table.normal(0, 0.5, 3)
        if age > 0:
            rise = [0.2 * age, 0.5 * min(age, 4), 0]
            centre = np.array([at[0], 0.6, at[1]]) + drift * (0.6 + 0.4 * min(age, 3)) + rise
            sketch.limbs([centre], (0.5 + 0.5 * min(age, 3.0),), int(110 * np.exp(-age / 4)))
    paint(camera, sketch.strokes, veil, scale=0.25)
    veil = veil.filter(ImageFilter.BoxBlur(camera.height / 120)).resize(image.size)
    return Image.composite(Image.new("RGB", image.size, (176, 174, 170)), image, veil)

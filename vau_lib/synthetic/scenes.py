"""Places of the synthetic data set: boxes on a flat ground, lights, and one pinhole camera (street, car park, shop, plaza).

- everything stands in metres (x right, y up, z away from the camera), so size, overlap and shadow follow from the place
- a place is ray-cast once per video; what stands free in it becomes a cut-out, so actors pass behind it
- picture, mask and shadow are painted from one sketch, so they cannot disagree
- everything follows from the generator passed in; events are no matter of this module
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 2  # canvas pixels per pixel of the video, each way
MARGIN = 4  # canvas pixels kept around the picture for a camera that shakes
SCENES = ("street", "car_park", "shop", "plaza")  # seen from far
NEAR_SCENES = ("entrance", "lobby", "corridor", "platform", "shop_counter", "car_park_barrier")  # of `near_places`
ROOFED = ("shop", *NEAR_SCENES[:-1])
LIGHTINGS = ("day", "overcast", "dusk", "night")
Colour = tuple[int, int, int]
Place = tuple[float, float]  # (x, z) on the ground, metres


@dataclass(frozen=True)
class Camera:
    """A pinhole `height_m` above the ground, turned by `yaw` and down by `pitch` (radians), on a canvas in pixels."""

    height_m: float
    pitch: float
    yaw: float
    focal_px: float
    width: int
    height: int
    mirror: int = 1  # -1 shows the same place from its other hand

    @cached_property
    def axes(self) -> np.ndarray:
        """Return the rotation from world axes to image axes (across, down, away), (3, 3)."""
        yaw, pitch = (np.cos(self.yaw), np.sin(self.yaw)), (np.cos(self.pitch), np.sin(self.pitch))
        x = np.array([yaw[0], -yaw[1] * pitch[1], yaw[1] * pitch[0]]) * self.mirror
        return np.stack([x, [0, -pitch[0], -pitch[1]], [-yaw[1], -yaw[0] * pitch[1], yaw[0] * pitch[0]]])

    def project(self, points: np.ndarray, axes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return canvas places (N, 2) and pixels per metre (N,) of points (N, 3); not positive behind the camera."""
        camera_points = (
            (points - (0.0, self.height_m, 0.0)) @ self.axes if axes is None else points @ axes - self.height_m * self.axes[1]
        )
        depth = camera_points[:, 2]
        scale = self.focal_px / np.where(np.abs(depth) < 0.1, 0.1, depth)
        return camera_points[:, :2] * scale[:, None] + (self.width / 2, self.height / 2), scale

    def rays(self) -> np.ndarray:
        """Return the direction seen by each canvas pixel, (H, W, 3)."""
        right, down = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        right, down = (right - self.width / 2) / self.focal_px, (down - self.height / 2) / self.focal_px
        ahead = np.cos(self.pitch) - down * np.sin(self.pitch)
        x = right * np.cos(self.yaw) + ahead * np.sin(self.yaw)
        z = ahead * np.cos(self.yaw) - right * np.sin(self.yaw)
        return np.stack([x * self.mirror, -(down * np.cos(self.pitch) + np.sin(self.pitch)), z], -1)


class Sketch:
    """Shapes in metres, gathered first, so one drawing gives a picture, its mask and its shadow. `actor` is its number in masks."""

    def __init__(self, camera: Camera, actor: int = 0):
        self.camera, self.actor = camera, actor
        self.strokes = []

    def polygon(self, points: Sequence, colour: Colour) -> None:
        """Fill the outline through points (N, 3)."""
        self.strokes.append((np.asarray(points, float).reshape(-1, 3), None, colour, self.actor))

    def limbs(self, points: Sequence, thickness_m: Sequence[float], colour: Colour) -> None:
        """Draw a chain of round-ended limbs through points (N, 3); `thickness_m` (N,) at each point."""
        self.strokes.append((np.asarray(points, float).reshape(-1, 3), thickness_m, colour, self.actor))

    def wheel(self, centre: Sequence, along: np.ndarray, radius_m: float, colour: Colour) -> None:
        """Fill an upright wheel round `centre` (3,), turned `along` a ground direction (3,)."""
        turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)[:, None]
        self.polygon(np.asarray(centre) + radius_m * (np.cos(turn) * along + np.sin(turn) * [0, 1, 0]), colour)


def paint(camera: Camera, strokes: list, image: Image.Image, *, ids=None, sun=None, ink=None, scale=1.0) -> None:
    """Paint a sketch's strokes on `image`, and with the same outlines as numbers on `ids`, in the order given.

    On an RGBA image the fourth band takes the numbers: one drawing for both.
    With `sun` (metres of shadow per metre of height, in x and z) everything falls flat on the ground. `ink` replaces
    every colour, `scale` is the image's size over the canvas. A stroke that reaches behind the camera is left out.
    """
    if not strokes:
        return
    axes = None if sun is None else np.array([[1, 0, 0], [sun[0], 0, sun[1]], [0, 0, 1]]) @ camera.axes
    places, radii, first, visible = _projected(camera, strokes, axes, scale)
    along = np.diff(places, axis=0)
    side = np.stack([-along[:, 1], along[:, 0]], 1) / np.maximum(np.hypot(*along.T), 1e-6)[:, None]
    wide, narrow = side * radii[:-1], side * radii[1:]
    outlines = np.concatenate([places[:-1] + wide, places[1:] + narrow, places[1:] - narrow, places[:-1] - wide], 1)
    outlines, discs = outlines.tolist(), np.concatenate([places - radii, places + radii], 1).tolist()
    draw, marks = ImageDraw.Draw(image), ImageDraw.Draw(ids) if ids is not None else None
    for number, (_, width, colour, actor) in enumerate(strokes):
        start, end = first[number], first[number + 1]
        if not visible[number]:
            continue
        pigment = colour if ink is None else ink
        for brush, fill in ((draw, (*pigment, actor) if image.mode == "RGBA" else pigment), (marks, actor)):
            if brush and width is None:
                brush.polygon(places[start:end].ravel().tolist(), fill=fill)
            elif brush:
                for outline in outlines[start : end - 1]:
                    brush.polygon(outline, fill=fill)
                for disc in discs[start:end]:
                    brush.ellipse(disc, fill=fill)


def _projected(camera: Camera, strokes: list, axes: np.ndarray | None, scale: float) -> tuple[np.ndarray, ...]:
    """Return places (N, 2) and radii (N, 1) of all points, where each stroke's begin (n + 1,), which strokes are painted (n,)."""
    places, per_metre = camera.project(np.concatenate([points for points, *_ in strokes]), axes)
    places, per_metre = places * scale, per_metre * scale
    first = np.cumsum([0] + [len(points) for points, *_ in strokes])
    visible = (np.minimum.reduceat(per_metre, first[:-1]) > 0) & (np.maximum.reduceat(np.abs(places).max(1), first[:-1]) < 20_000)
    thick = np.concatenate([np.zeros(len(p)) if width is None else np.asarray(width) for p, width, *_ in strokes])
    return places, np.maximum(thick * per_metre / 2, 0.6)[:, None], first, visible


def extent(camera: Camera, strokes: list) -> tuple[int, int, int, int] | None:
    """Return the box (left, top, right, bottom) on the canvas outside which `paint` changes nothing; None for nothing."""
    if not strokes:
        return None
    places, radii, first, visible = _projected(camera, strokes, None, 1.0)
    kept = np.repeat(visible, np.diff(first))
    if not kept.any():
        return None
    low, high = (places - radii)[kept].min(0), (places + radii)[kept].max(0)
    box = np.clip(np.concatenate([np.floor(low) - 2, np.ceil(high) + 3]), 0, [camera.width, camera.height] * 2).astype(int)
    return tuple(box.tolist()) if (box[2:] > box[:2]).all() else None


def shade(colour: Colour, gain: float) -> Colour:
    """Return the colour made darker (gain < 1) or lighter."""
    return tuple(int(min(255, max(0, part * gain))) for part in colour)


@dataclass(frozen=True)
class Block:
    """An upright box between two corners in metres; a `free` one can hide actors behind it."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    colour: Colour
    pattern: str = "plain"
    free: bool = False


@dataclass(frozen=True)
class Paint:
    """A patterned rectangle on the ground: x from, to; z from, to."""

    x0: float
    x1: float
    z0: float
    z1: float
    colour: Colour
    pattern: str = "asphalt"


@dataclass
class Layout:
    """A place and where things go in it: walks and lanes from end to end, open spots, a closed zone, a machine."""

    height_m: float
    pitch: float
    walks: list[tuple[Place, Place]]
    lanes: list[tuple[Place, Place]]
    lane_speed: float  # metres per second
    spots: list[Place]
    gate: Place  # where the fence is crossed, from the near side to the far one
    machine: Place  # middle of the machine's front, which looks at the camera
    paints: list[Paint]
    blocks: list[Block]
    props: list[tuple] = field(default_factory=list)  # (kind, x, z, a number: heading or second x)
    riders: bool = False  # bicycles, where cars do not go
    near: bool = False  # the camera is close: people come to help, few pass by


GRAYS = [(150, 148, 142), (132, 130, 128), (165, 158, 148), (120, 122, 126)]
GOODS = [(176, 60, 52), (58, 96, 150), (212, 186, 84), (84, 136, 84), (206, 204, 196), (148, 92, 134), (206, 128, 66)]

WALLS = [(176, 150, 128), (160, 164, 168), (188, 178, 156), (146, 120, 108), (170, 176, 160)]


def closed_zone(x0: float, x1: float, z0: float, z1: float) -> tuple[list[Paint], list[tuple]]:
    """Return a closed zone: hatched ground (paints) behind a fence (props) on its near side."""
    return [Paint(x0, x1, z0, z1, (196, 168, 60), "hatch")], [("fence", x0, z0, x1)]


def vending_machine(x: float, z: float) -> Block:
    """Return a machine whose front stands at (x, z)."""
    return Block((x - 0.5, 0, z), (x + 0.5, 1.95, z + 0.7), (150, 44, 40), "machine", True)


def street(rng: np.random.Generator) -> Layout:
    """Two lanes between pavements, shop fronts behind, road works on the near side."""
    wall, stone, zone = WALLS[rng.integers(5)], GRAYS[rng.integers(4)], closed_zone(1.7, 6.5, 8.7, 10.6)
    paints = [Paint(-90, 90, 0, 90, stone, "paving"), Paint(-90, 90, 11.0, 18.6, (92, 93, 96))]
    paints += [Paint(-90, 90, z, z + 0.25, (172, 170, 165), "plain") for z in (10.85, 18.5)]
    paints += [Paint(x, x + 1.6, 14.7, 14.86, (214, 212, 200), "plain") for x in range(-42, 42, 4)]
    x, doors = -44.0, []
    while x < 44:
        width, tall = rng.uniform(7, 12), rng.uniform(7, 13)
        colour = WALLS[rng.integers(5)] if rng.random() < 0.6 else wall
        doors.append(Block((x, 0, 22.4), (x + width, tall, 32), colour, "facade"))
        x += width
    props = [("lamp", x, 10.6, 0) for x in (-8.5, 1.2, 11)] + [("tree", x, 19.4, 0) for x in (-13, -4.5, 6, 15)]
    props += [("car", x, 17.7, 0.0) for x in rng.choice(np.arange(-18, 20, 5.5), 3, replace=False)]
    walks = [((-11, 7.5), (11, 7.5)), ((-11, 9.3), (0.7, 9.1)), ((-9, 6.3), (9, 6.5)), ((-16, 20.3), (16, 20.3))]
    lanes = [((-26, 12.8), (26, 12.8)), ((26, 16.2), (-26, 16.2))]
    spots = [(-2.4, 7.8), (0.1, 8.6), (-1.0, 8.8), (1.2, 7.4)]
    return Layout(
        4.6, 0.33, walks, lanes, 7.5, spots, (2.9, 8.7), (-2.7, 10.0), paints + zone[0],
        [*doors, vending_machine(-2.7, 10.0)], props + zone[1] + [("bin", -4.0, 10.3, 0)],
    )  # fmt: skip


def car_park(rng: np.random.Generator) -> Layout:
    """Bays with parked cars along two lanes, a fenced yard behind."""
    zone = closed_zone(-6.5, 1.2, 17.2, 21.0)
    paints = [Paint(-90, 90, 0, 90, GRAYS[1]), *zone[0]]
    paints += [Paint(x, x + 0.12, 15.4, 20.4, (222, 220, 210), "plain") for x in np.arange(4.6, 24, 2.7)]
    paints += [Paint(x, x + 0.12, 2, 7.6, (222, 220, 210), "plain") for x in np.arange(-12.5, -2, 2.7)]
    paints += [Paint(x, x + 1.5, 12.7, 12.86, (206, 190, 96), "plain") for x in range(-20, 24, 4)]
    bays = [(x + 1.4, 17.8) for x in np.arange(4.6, 18, 2.7)] + [(-6.0, 5.2), (-8.7, 5.2)]
    props = [("car", x, z, np.pi / 2 * rng.choice([-1, 1])) for x, z in bays if rng.random() < 0.75]
    props += [("lamp", 2.4, 17.0, 0), ("lamp", -7.6, 10.0, 0)]
    props += [("tree", -14, 23, 0), ("tree", 12, 24.5, 0), ("tree", 3, 25, 0)]
    blocks = [Block((-60, 0, 27), (60, 3.0, 28), (138, 112, 98), "brick"), Block((-13, 0, 21.6), (-4, 4.4, 26), WALLS[2], "facade")]
    walks = [((-10, 8.5), (10, 8.5)), ((9, 7.4), (-1.6, 5.6)), ((-8, 7.0), (8, 7.3)), ((-9, 16.2), (3.4, 16.2))]
    lanes = [((-24, 11.4), (24, 11.4)), ((24, 14.1), (-24, 14.1))]
    spots = [(-1.4, 8.2), (0.8, 7.8), (1.6, 8.6), (-2.4, 8.8)]
    return Layout(
        5.0, 0.37, walks, lanes, 4.2, spots, (-1.8, 17.2), (3.2, 9.4), paints, [*blocks, vending_machine(3.2, 9.4)], props + zone[1]
    )


def shop(rng: np.random.Generator) -> Layout:
    """A hall between shelves with a tiled floor, a counter, and a staff corner behind a barrier."""
    zone = closed_zone(1.1, 4.6, 11.2, 14.4)
    paints = [Paint(-60, 60, 0, 60, (178, 174, 166), "tiles"), *zone[0]]
    wall = WALLS[rng.integers(5)]
    blocks = [
        Block((-30, 0, 16), (30, 4.4, 17), wall, "doors"),
        Block((-8, 0, 0.5), (-4.6, 2.2, 16), (150, 140, 128), "shelf"),
        Block((4.6, 0, 0.5), (8, 2.2, 16), (150, 140, 128), "shelf"),
        Block((-30, 0, 0), (-8, 4.4, 20), wall),
        Block((8, 0, 0), (30, 4.4, 20), wall),
        Block((-2.6, 0, 11.4), (-1.2, 1.5, 13.6), (122, 96, 74), "shelf", True),
        vending_machine(-3.6, 9.8),
    ]
    walks = [((-3.4, 4.4), (-3.4, 15.4)), ((0.4, 4.0), (0.2, 15.6))]
    walks += [((-4.3, 8.4), (4.3, 7.8)), ((3.2, 4.0), (-2.8, 10.4))]
    props = [("bin", 4.1, 10.4, 0)]
    spots = [(-0.9, 6.8), (0.7, 7.6), (1.5, 6.6), (0.1, 8.4)]
    return Layout(3.5, 0.38, walks, [], 0.0, spots, (2.6, 11.2), (-3.6, 9.8), paints, blocks, props + zone[1])


def plaza(rng: np.random.Generator) -> Layout:
    """An open square with trees, benches and bicycles, a fenced building site at its edge."""
    zone = closed_zone(2.6, 8.5, 14.0, 17.4)
    slabs = Paint(-90, 90, 0, 90, GRAYS[rng.integers(4)], "slabs")
    paints = [slabs, *zone[0], Paint(-12, -4.4, 15.5, 20, (96, 118, 72), "grass")]
    x, blocks = -50.0, [Block((-2.2, 0, 17.5), (0.6, 0.7, 20), (136, 128, 118), "brick", True)]
    while x < 50:
        width, tall = rng.uniform(9, 15), rng.uniform(8, 14)
        blocks.append(Block((x, 0, 31), (x + width, tall, 44), WALLS[rng.integers(5)], "facade"))
        x += width
    props = [("tree", x, z, 0) for x, z in ((-9.5, 17.5), (-6, 19), (1.5, 25), (11, 24), (-16, 24))]
    props += [("bench", -4.9, 13.2, 0.0), ("bench", -7.6, 13.4, 0.0)]
    props += [("lamp", -2.6, 14.4, 0), ("lamp", 9.6, 13, 0), ("bin", -3.4, 13.2, 0)]
    walks = [((-10, 11.2), (10, 11.4)), ((-8, 7.6), (8, 8.8)), ((3.6, 4.6), (0.6, 26))]
    walks += [((-5, 4.8), (-1.6, 24)), ((-14, 21.0), (14, 21.0))]
    lanes = [((-14, 12.9), (14, 12.9)), ((17, 22.6), (-17, 22.6))]
    spots = [(-1.6, 8.0), (0.6, 8.8), (1.6, 7.8), (-0.4, 9.4)]
    return Layout(
        5.0, 0.34, walks, lanes, 3.8, spots, (3.6, 14.0), (3.4, 10.0), paints, [*blocks, vending_machine(3.4, 10.0)],
        props + zone[1], True,
    )  # fmt: skip


PLACES = {"street": street, "car_park": car_park, "shop": shop, "plaza": plaza}


def _pattern(name: str, u: np.ndarray, v: np.ndarray, colour: Colour, table: np.ndarray) -> np.ndarray:
    """Return the colour (N, 3) of a surface at u across, v up or away, in metres; `table` (256, 256) is its noise in [0, 1)."""

    def noise(a, b):
        return table[np.floor(a).astype(int) & 255, np.floor(b).astype(int) & 255]

    gain = 0.9 + 0.1 * noise(u * 23, v * 23) + 0.1 * noise(u * 0.9, v * 0.9) * noise(u * 4, v * 4)
    paint = np.broadcast_to(np.array(colour, float), (*u.shape, 3)).copy()
    size = {"paving": 0.7, "tiles": 0.9, "slabs": 1.5}.get(name)
    if size:
        gain *= 0.88 + 0.16 * noise(u / size, v / size)
        gain[(u % size < 0.05) | (v % size < 0.05)] *= 0.78
    elif name == "asphalt":
        gain *= 0.94 + 0.1 * noise(u * 0.25, v * 0.6)
    elif name == "brick":
        row = np.floor(v / 0.28)
        gain *= 0.82 + 0.26 * noise(u / 0.6 + 0.5 * (row % 2), row)
        gain[(v % 0.28 < 0.05) | ((u + 0.3 * (row % 2)) % 0.6 < 0.04)] *= 0.8
    elif name == "grass":
        gain *= 0.75 + 0.45 * noise(u * 7, v * 7)
    elif name == "hatch":
        paint[((u + v) % 1.2) < 0.5] *= 0.45
    elif name == "shelf":
        paint = 0.65 * np.array(GOODS)[(noise(u / 0.34, v / 0.5) * 7).astype(int)] + 46
        paint = paint * (0.7 + 0.3 * noise(u / 0.17, v / 0.5)[..., None])
        paint[(v % 0.5 < 0.1) | (v % 0.5 > 0.42)] = (96, 90, 84)
    elif name == "machine":
        paint[(v > 0.8) & (v < 1.75)] = (196, 214, 222)
        goods = (v > 0.85) & (v < 1.7) & (v % 0.3 > 0.08) & (u % 0.2 > 0.06)
        paint[goods] = (90 + 150 * noise(u / 0.2, v / 0.3)[..., None] * np.array([1, 0.7, 0.5]))[goods]
    elif name == "doors":
        glass = (u % 5 > 1.2) & (u % 5 < 3.8) & (v < 2.5)
        paint[glass] = (112, 128, 138)
        paint[glass & ((u % 1.3 < 0.08) | (v > 2.4))] = (70, 72, 76)
    elif name == "carpet":
        gain *= 0.86 + 0.2 * noise(u * 31, v * 31)
        paint[(u % 0.8 < 0.04) | (v % 0.8 < 0.04)] *= 0.82
    elif name == "lifts":
        door = (u % 3.4 > 1.0) & (u % 3.4 < 2.5) & (v < 2.3)
        paint[door] = (148, 152, 158)
        paint[door & (np.abs(u % 3.4 - 1.75) < 0.03)] = (70, 72, 78)
        frame = (u % 3.4 > 0.88) & (u % 3.4 < 2.62) & (v < 2.42) & ~door
        paint[frame] = (92, 94, 100)
        paint[(v < 0.14) | (np.abs(v - 2.75) < 0.04)] *= 0.6
    elif name == "office":
        door = (u % 2.9 > 0.9) & (u % 2.9 < 1.9) & (v < 2.15)
        paint[door] = (132, 98, 70)
        paint[door & (u % 2.9 > 1.72) & (u % 2.9 < 1.8) & (np.abs(v - 1.05) < 0.05)] = (206, 204, 196)
        paint[(v < 0.12) | (np.abs(v - 1.0) < 0.03)] *= 0.65
    elif name == "counter":
        gain *= 0.86 + 0.2 * noise(u * 2.2, v * 14)
        paint[v < 0.1] *= 0.45
        paint[v > 0.94] = (70, 66, 62)
    elif name == "train":
        glass = (v > 1.1) & (v < 2.1) & (u % 2.4 > 0.35) & (u % 2.4 < 2.05)
        paint[glass] = (52, 62, 72)
        gain[glass] *= (0.8 + 0.5 * noise(u / 2.4, v))[glass]
        door = (u % 7.2 > 5.2) & (u % 7.2 < 6.5) & (v < 2.5)
        paint[door] = (188, 190, 192)
        paint[door & (v > 1.0) & (v < 2.1)] = (60, 70, 80)
        paint[(np.abs(v - 0.75) < 0.09) & ~door] = (214, 210, 198)
    elif name == "booth":
        glass = (v > 1.0) & (v < 2.1) & (u > 0.15) & (u % 1.5 < 1.35)
        paint[glass] = (84, 100, 112)
        paint[v > 2.25] = (120, 66, 58)
    elif name == "facade":
        pane = (u % 2.6 > 0.7) & (u % 2.6 < 1.9) & (v % 3.1 > 1.0) & (v % 3.1 < 2.5) & (v > 3.1)
        front = (v < 2.7) & (v > 0.5) & (u % 3.9 > 0.5) & (u % 3.9 < 3.4)
        paint[pane | front] = (74, 86, 98)
        gain[pane | front] *= (0.7 + 0.8 * noise(u / 2.6, v / 3.1) ** 3)[pane | front]
        paint[(v > 2.7) & (v < 3.1)] *= 0.72
        awning = (v > 2.3) & (v < 2.9) & (noise(u / 3.9, v * 0) > 0.5)
        paint[awning] = np.where((u[awning] % 0.6 < 0.3)[:, None], (196, 190, 180), (140, 66, 60))
    return paint * gain[..., None]


def _reach(camera: Camera, block: Block) -> tuple[slice, slice]:
    """Return the rows and columns of the canvas outside which a block is not seen; all where it reaches behind the camera."""
    corners = np.array(
        [[ends[bit >> axis & 1] for axis, ends in enumerate(zip(block.low, block.high, strict=True))] for bit in range(8)]
    )
    places, per_metre = camera.project(corners)
    if per_metre.min() <= 0 or per_metre.max() > camera.focal_px / 0.2:  # a corner less than 0.2 m before the lens
        return slice(None), slice(None)
    low, high = np.floor(places.min(0)).astype(int) - 2, np.ceil(places.max(0)).astype(int) + 3
    return slice(max(0, low[1]), max(0, high[1])), slice(max(0, low[0]), max(0, high[0]))


def cast(camera: Camera, layout: Layout, rng: np.random.Generator, sky: Colour) -> tuple[np.ndarray, np.ndarray]:
    """Cast one ray per canvas pixel; return colours uint8 (H, W, 3), and a block's number or -1 ground, -2 sky (H, W)."""
    rays, table = camera.rays(), rng.random((256, 256))
    x, y, z = (np.where(np.abs(part) < 1e-9, 1e-9, part) for part in np.moveaxis(rays, -1, 0))
    far = np.where(y < 0, -camera.height_m / y, np.inf)
    hit, image = np.where(y < 0, -1, -2), np.empty(rays.shape)
    image[:] = np.array(sky) * (1 - 0.25 * np.clip(y, 0, 1))[..., None]
    ground = hit == -1
    u, v = (x * np.where(ground, far, 0)), (z * np.where(ground, far, 0))
    for paint in layout.paints:
        inside = ground & (u >= paint.x0) & (u < paint.x1) & (v >= paint.z0) & (v < paint.z1)
        image[inside] = _pattern(paint.pattern, u[inside], v[inside], paint.colour, table)
    for number, block in enumerate(layout.blocks):
        part = _reach(camera, block)
        dx, dy, dz = x[part], y[part], z[part]
        near, away = (
            np.stack([(edge - o) / d for edge, o, d in zip(corner, (0, camera.height_m, 0), (dx, dy, dz), strict=True)])
            for corner in (block.low, block.high)
        )
        enter, leave = np.minimum(near, away), np.maximum(near, away)
        face, start = enter.argmax(0), enter.max(0)
        visible = (start < leave.min(0)) & (start > 0.2) & (start < far[part])
        at, face = start[visible], face[visible]
        side = np.where(face == 0, dz[visible] * at - block.low[2], dx[visible] * at - block.low[0])
        up = np.where(face == 1, dz[visible] * at, camera.height_m + dy[visible] * at)
        # walls darken where they stand
        light = np.array([0.78, 1.08, 0.94])[face] * np.clip(0.72 + up * 0.5, 0, 1)
        image[part][visible] = _pattern(block.pattern, side, up, block.colour, table) * light[:, None]
        far[part][visible], hit[part][visible] = at, number
    haze = np.clip(far / 140, 0, 0.35)[..., None]
    return np.clip(image * (1 - haze) + np.array(sky) * haze, 0, 255).astype(np.uint8), hit

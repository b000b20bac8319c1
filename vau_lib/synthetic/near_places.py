"""Near places of the synthetic data set: entrance, lobby, corridor, platform, shop counter, car-park barrier.

- the camera hangs low and close: a person is a quarter to a half of the picture's height
- the same contract as `scenes`: boxes in metres, walks from side to side, open spots, a closed zone, a machine
"""

import numpy as np

from vau_lib.synthetic import scenes
from vau_lib.synthetic.scenes import GRAYS, WALLS, Block, Layout, Paint, closed_zone, vending_machine

WOODS = [(150, 112, 78), (122, 88, 62), (176, 142, 104)]
FLOORS = [(186, 182, 172), (168, 164, 158), (196, 186, 168), (150, 152, 156)]
WALKS = [((-4.4, 6.0), (4.4, 5.8)), ((-4.6, 6.5), (4.6, 6.4)), ((4.2, 5.5), (-4.2, 5.6))]  # behind where things happen
SPOTS = [(-0.9, 4.9), (0.6, 5.1), (0.2, 4.7), (-0.4, 5.3)]


def entrance(rng: np.random.Generator) -> Layout:
    """A hall inside glass doors: a mat, a pillar, plants, a machine, a closed corner."""
    zone = closed_zone(-4.4, -1.7, 7.0, 8.5)
    paints = [Paint(-30, 30, 0, 30, FLOORS[rng.integers(4)], "slabs"), *zone[0]]
    paints.append(Paint(-0.9, 1.3, 6.5, 8.5, (74, 72, 76), "carpet"))
    blocks = [
        Block((-30, 0, 8.6), (30, 4.4, 9.2), WALLS[rng.integers(5)], "doors"),
        Block((3.5, 0, 7.2), (4.0, 4.4, 7.7), (168, 166, 160), "plain", True),
    ]
    props = [("plant", 1.75, 8.2, 0), ("plant", -1.3, 8.2, 0)]
    return Layout(2.9, 0.40, WALKS, [], 0.0, SPOTS, (-2.7, 7.0), (1.9, 5.9), paints, [*blocks, vending_machine(1.9, 5.9)],
                  props + zone[1], near=True)  # fmt: skip


def lobby(rng: np.random.Generator) -> Layout:
    """A hotel's or office's lobby: lifts in a panelled wall, a desk, a bench, plants."""
    zone = closed_zone(1.3, 4.6, 7.1, 8.7)
    paints = [
        Paint(-30, 30, 0, 30, FLOORS[rng.integers(4)], "tiles"),
        Paint(-2.2, 1.6, 4.3, 6.6, (118, 64, 58), "carpet"),
        *zone[0],
    ]
    wood = WOODS[rng.integers(3)]
    blocks = [
        Block((-30, 0, 9.0), (30, 4.4, 9.8), WALLS[rng.integers(5)], "lifts"),
        Block((1.9, 0, 8.0), (4.4, 1.1, 8.6), wood, "counter", True),
    ]
    props = [("bench", -3.2, 8.0, 0.0), ("plant", -4.4, 8.2, 0), ("plant", 0.9, 8.6, 0)]
    return Layout(2.8, 0.39, WALKS, [], 0.0, SPOTS, (2.8, 7.1), (-1.6, 5.9), paints, [*blocks, vending_machine(-1.6, 5.9)],
                  props + zone[1], near=True)  # fmt: skip


def corridor(rng: np.random.Generator) -> Layout:
    """Two corridors that meet: one crosses in front of the camera, one leads away between walls with doors."""
    zone = closed_zone(-0.6, 1.9, 8.6, 12.0)
    paints = [Paint(-30, 30, 0, 30, FLOORS[rng.integers(4)], "plain"), *zone[0]]
    paints += [Paint(-30, 30, z, z + 0.1, (96, 110, 128), "plain") for z in (4.05, 6.9)]
    wall = WALLS[rng.integers(5)]
    blocks = [
        Block((-30, 0, 7.3), (-2.0, 4.4, 20), wall, "office"),
        Block((2.0, 0, 7.3), (30, 4.4, 20), wall, "office"),
        Block((-3, 0, 14), (3, 4.4, 15), wall, "doors"),
    ]
    walks = [WALKS[0], WALKS[1], ((0.6, 5.0), (0.3, 8.2))]
    props = [("plant", 2.5, 7.05, 0), ("bin", -3.9, 7.0, 0)]
    return Layout(2.7, 0.38, walks, [], 0.0, SPOTS, (0.9, 8.6), (-1.5, 5.9), paints, [*blocks, vending_machine(-1.5, 5.9)],
                  props + zone[1], near=True)  # fmt: skip


def platform(rng: np.random.Generator) -> Layout:
    """A station platform: a yellow line, its edge, a train that stands, a bench and a ticket machine."""
    zone = closed_zone(-4.6, -0.6, 7.1, 7.8)
    paints = [Paint(-90, 90, 0, 7.3, GRAYS[rng.integers(4)], "slabs"), Paint(-90, 90, 7.3, 60, (58, 56, 54), "asphalt")]
    paints += [Paint(-90, 90, 6.75, 6.87, (214, 184, 60), "plain"), Paint(-90, 90, 7.12, 7.3, (206, 204, 196), "plain"), *zone[0]]
    train = [(64, 96, 148), (168, 60, 52), (92, 122, 96)][rng.integers(3)]
    blocks = [
        Block((-40, 0.35, 8.0), (40, 3.5, 11), train, "train"),
        Block((-90, 0, 16), (90, 5, 17), WALLS[rng.integers(5)], "brick"),
    ]
    props = [("bench", -3.0, 6.5, 0.0), ("bin", 3.9, 6.4, 0)]
    return Layout(3.0, 0.40, WALKS, [], 0.0, SPOTS, (-2.2, 7.1), (1.8, 5.9), paints, [*blocks, vending_machine(1.8, 5.9)],
                  props + zone[1], near=True)  # fmt: skip


def shop_counter(rng: np.random.Generator) -> Layout:
    """A small shop: the counter with its till, shelves behind, a drinks machine, a staff door."""
    zone = closed_zone(0.6, 1.9, 7.0, 8.8)
    paints = [Paint(-30, 30, 0, 30, FLOORS[rng.integers(4)], "tiles"), *zone[0]]
    wood, wall = WOODS[rng.integers(3)], WALLS[rng.integers(5)]
    blocks = [
        Block((-30, 0, 9.0), (30, 4.4, 9.6), wall),
        Block((-4.8, 0.3, 8.6), (0.3, 2.5, 9.0), (150, 140, 128), "shelf"),
        Block((3.6, 0, 7.4), (5.2, 2.2, 9.0), (150, 140, 128), "shelf"),
        Block((-4.6, 0, 7.0), (0.4, 1.0, 7.6), wood, "counter", True),
        Block((-1.5, 1.0, 7.1), (-1.0, 1.35, 7.45), (52, 54, 60), "plain", True),
    ]
    props = [("bin", 4.2, 6.6, 0)]
    return Layout(2.8, 0.39, WALKS, [], 0.0, SPOTS, (1.25, 7.0), (1.8, 5.9), paints, [*blocks, vending_machine(1.8, 5.9)],
                  props + zone[1], near=True)  # fmt: skip


def car_park_barrier(rng: np.random.Generator) -> Layout:
    """The way into a car park: a booth, a barrier's arm, a ticket machine, two lanes behind."""
    zone = closed_zone(0.9, 4.8, 6.7, 7.9)
    paints = [Paint(-90, 90, 0, 8.0, GRAYS[rng.integers(4)], "paving"), Paint(-90, 90, 8.0, 90, (94, 95, 98)), *zone[0]]
    paints += [Paint(-90, 90, 7.9, 8.1, (186, 184, 178), "plain")]
    paints += [Paint(x, x + 1.2, 10.05, 10.17, (212, 206, 180), "plain") for x in range(-20, 22, 3)]
    blocks = [
        Block((-60, 0, 17), (60, 3.2, 18), (138, 112, 98), "brick"),
        Block((-4.4, 0, 6.8), (-2.9, 2.5, 7.8), (176, 178, 170), "booth", True),
    ]
    props = [
        ("barrier", -2.6, 8.0, 1.6),
        ("tree", -9, 19, 0),
        ("tree", 6, 20, 0),
        ("car", 5.5, 14.5, 0.0),
        ("car", -4.0, 14.5, 0.0),
    ]
    lanes = [((-18, 9.2), (18, 9.2)), ((18, 11.1), (-18, 11.1))]
    return Layout(3.1, 0.37, WALKS, lanes, 4.2, SPOTS, (2.8, 6.7), (-1.5, 5.9), paints, [*blocks, vending_machine(-1.5, 5.9)],
                  props + zone[1], near=True)  # fmt: skip


PLACES = scenes.PLACES | {  # every place, near or far
    "entrance": entrance, "lobby": lobby, "corridor": corridor, "platform": platform, "shop_counter": shop_counter,
    "car_park_barrier": car_park_barrier,
}  # fmt: skip

"""Scenarios: factors of a surveillance video, their pairwise coverage, and a hard negative for every anomaly.

- scene x lighting x weather x camera x crowd x event x distractor; what cannot be (rain in a shop, a crash on a plaza) is refused
  in one line that names both
- `covering_scenarios` covers pairs greedily: the whole product is thousands of videos, random draws keep missing pairs
- a hard negative looks like its anomaly for a moment: tying a shoe is no fall, two friends are no fight, a bag taken along is not
  left
- smart homes (`home_scenarios`): every class of SmartHome-Bench's taxonomy, an anomaly and its everyday counterpart; people at the
  door, wildlife, pets, babies, children, older people. They are texts for a text-to-video model only: nothing draws them
- the same scenario is a rendering with its truth or a prompt for a text-to-video model: comparable by construction
Source: Memories-S0's "scenario-driven generation" names the idea only; pairwise coverage as in software testing, factors ours.
SmartHome-Bench (arXiv 2506.12992), appendix B, for the classes of home videos; words ours.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from vau_lib.synthetic import scenes

NORMAL_EVENTS = ("walk", "loiter", "run")
ANOMALOUS_EVENTS = ("fall", "fight", "intrusion", "left_package", "vandalism", "crash")
HARD_NEGATIVES = {  # anomaly -> what it is mistaken for
    "fall": "tie_shoe", "fight": "greet", "intrusion": "wait_at_gate", "left_package": "rest_bag",
    "vandalism": "use_machine", "crash": "stop_close",
}  # fmt: skip
EVENTS = {name: int(name in ANOMALOUS_EVENTS) for name in NORMAL_EVENTS + ANOMALOUS_EVENTS}  # name -> label
LABELS = EVENTS | dict.fromkeys(HARD_NEGATIVES.values(), 0)
WEATHERS = ("clear", "rain", "snow", "fog")
CAMERAS = ("wall", "mast", "old_lens")  # as built; swaying in the wind; soft and dark at the edges
DISTRACTORS = ("none", "insects", "lamp_flicker", "swaying_tree")
CROWDS = {"few": (2, 0), "some": (4, 2), "many": (7, 3)}  # people, vehicles
FACTORS: dict[str, tuple[str, ...]] = {
    "event": tuple(LABELS), "scene": scenes.SCENES, "lighting": scenes.LIGHTINGS, "weather": WEATHERS,
    "camera": CAMERAS, "crowd": tuple(CROWDS), "distractor": DISTRACTORS,
}  # fmt: skip
ROADS = ("street", "car_park", "car_park_barrier")  # scenes where two cars can meet

INDOORS = ("living_room", "kitchen", "nursery", "hallway", "stairwell", "garage")
FRONT = ("porch", "driveway")
OUTDOORS = (*FRONT, "back_garden")
HOME_SCENES = INDOORS + OUTDOORS  # not drawn


@dataclass(frozen=True)
class HomeEvent:
    """An event of a home: its category and class in SmartHome-Bench's taxonomy, its label, where it can be, its text."""

    category: str
    kind: str
    label: int
    scenes: tuple[str, ...]
    text: str


# category and label: name, class, places, text
# fmt: off
_HOME = {
    ("Security", 0): (
        ("come_home", "residents and known visitors", (*OUTDOORS, "hallway", "garage"),
         "A resident comes home with shopping bags and waves to a neighbour."),
        ("deliver", "deliveries", FRONT, "A courier puts a parcel at the door, rings and walks back to the van."),
    ),
    ("Security", 1): (
        ("trespass", "break-in or trespassing", (*OUTDOORS, "garage"),
         "A stranger climbs in over the fence and walks around the house."),
        ("lurk", "loitering or unusual attire", FRONT,
         "A masked person in a long coat stands still and stares at the door for a long time."),
        ("force_lock", "forced entry", ("porch", "garage", "hallway"),
         "A person works at the lock with a tool and pushes against the door."),
        ("steal_parcel", "unauthorized removal", FRONT, "A person looks around, takes the parcel that lies there and runs off."),
        ("break_window", "property damage", OUTDOORS, "A person throws a stone through a window and sprays paint on the wall."),
        ("threaten", "threat or harm", ("porch", "driveway", "hallway"),
         "A person shouts, grabs another by the arm and pulls them away."),
        ("strange_act", "eccentric behaviour", OUTDOORS, "A person crawls backwards across the ground in a clown's mask."),
    ),
    ("Wildlife", 0): (
        ("squirrel", "harmless sightings", OUTDOORS, "A squirrel runs along, stops to eat a nut and hops away; a bird lands."),
        ("bugs", "harmless pests", OUTDOORS, "Beetles and moths crawl around a lamp."),
    ),
    ("Wildlife", 1): (
        ("snake", "dangerous wildlife", (*OUTDOORS, "garage"), "A large snake slides along towards the house."),
        ("bear_bin", "damage or danger by wildlife", ("back_garden", "driveway"),
         "A black bear tips a bin over and tears the bags open."),
        ("raccoon_inside", "wildlife inside a home", ("kitchen", "living_room", "garage", "hallway"),
         "A raccoon comes in through an open window and climbs over the furniture."),
    ),
    ("Pet Monitoring", 0): (
        ("pet_play", "play and rest", ("living_room", "kitchen", "back_garden"),
         "A dog plays with a ball, drinks and lies down on its mat."),
        ("pet_family", "with family or other pets", ("living_room", "hallway", "back_garden"),
         "A cat and a dog greet a resident and are stroked."),
        ("dog_walk", "with its guardian", OUTDOORS, "A resident walks a dog on a leash; it sits when asked."),
    ),
    ("Pet Monitoring", 1): (
        ("pet_alone", "left outside alone", OUTDOORS,
         "A dog sits alone outside as hours pass, whines and scratches at the closed door."),
        ("pet_escape", "escape", OUTDOORS, "A dog digs under the fence, squeezes through and runs away."),
        ("pet_damage", "property damage by a pet", ("living_room", "kitchen", "hallway"),
         "A dog tears a cushion apart and chews the leg of a chair."),
        ("pet_ill", "illness or distress of a pet", ("living_room", "kitchen", "back_garden"),
         "A dog staggers, vomits and falls on its side."),
        ("pet_fight", "conflict with a pet", ("back_garden", "driveway", "living_room"),
         "A dog growls, snaps at a visitor and bites a sleeve."),
    ),
    ("Baby Monitoring", 0): (
        ("baby_sleep", "play or sleep in safety", ("nursery", "living_room"),
         "A baby sleeps, wakes and plays with a toy inside its cot."),
        ("baby_held", "with caregivers", ("nursery", "living_room", "kitchen"),
         "A parent lifts a baby, feeds it and rocks it in the arms."),
    ),
    ("Baby Monitoring", 1): (
        ("baby_stairs", "danger without supervision", ("stairwell", "kitchen", "back_garden"),
         "A baby crawls alone towards an edge it could fall from, and no adult is near."),
        ("baby_out", "outside its place", ("nursery", "hallway", "living_room"),
         "A baby climbs over the side of its cot and crawls off alone."),
        ("baby_fall", "fall of a baby", ("nursery", "living_room", "kitchen"), "A baby rolls off and drops to the floor."),
        ("baby_rough", "abuse of a baby", ("nursery", "living_room"), "A caregiver shakes a crying baby and pushes it down."),
    ),
    ("Kid Monitoring", 0): (
        ("kid_play", "play in designated areas", ("living_room", "back_garden", "driveway"),
         "Two children ride scooters and laugh."),
        ("kid_daily", "daily activities with adults", ("kitchen", "living_room", "hallway"),
         "A child puts on shoes and a jacket while a parent helps."),
    ),
    ("Kid Monitoring", 1): (
        ("kid_wander", "wandering without supervision", OUTDOORS,
         "A small child opens the gate and walks out towards the road alone."),
        ("kid_knife", "dangerous actions", ("kitchen", "garage", "living_room"),
         "A child takes a sharp knife from a drawer and waves it about."),
        ("kid_fall", "fall of a child", ("stairwell", "back_garden", "living_room"),
         "A child climbs up high, slips and falls to the ground."),
    ),
    ("Senior Care", 0): (
        ("senior_routine", "routine activities", ("living_room", "kitchen", "hallway", "porch"),
         "An older person walks with a stick, sits down and talks with a visitor."),
    ),
    ("Senior Care", 1): (
        ("senior_fall", "fall of a senior", ("living_room", "hallway", "stairwell", "kitchen", "porch"),
         "An older person stumbles, falls and stays down."),
        ("senior_distress", "distress or call for help", ("living_room", "kitchen", "porch"),
         "An older person clutches the chest and waves an arm for help."),
        ("senior_rough", "abuse of a senior", ("living_room", "hallway"),
         "A caregiver pulls an older person up by the arm and pushes them into a chair."),
    ),
    ("Other Category", 0): (
        ("still_day", "harmless everyday motion", HOME_SCENES,
         "Curtains and leaves move a little and shadows wander; nothing else happens."),
    ),
    ("Other Category", 1): (
        ("storm", "severe weather or disaster", OUTDOORS, "Flames and thick smoke rise and spread."),
        ("moving_object", "unexplained phenomena", ("living_room", "kitchen", "hallway", "nursery"),
         "A chair slides across the floor and a door opens with nobody there."),
        ("shelf_falls", "falling objects", ("garage", "kitchen", "living_room", "porch"),
         "A heavy shelf tips over and crashes down."),
        ("flooded_floor", "other risks", ("kitchen", "garage", "hallway"), "Water pours from a burst pipe and floods the floor."),
    ),
}
# fmt: on
HOME_EVENTS = {
    name: HomeEvent(category, kind, label, places, text)
    for (category, label), events in _HOME.items()
    for name, kind, places, text in events
}


@dataclass(frozen=True)
class Difficulty:
    """What a world of one difficulty draws from: places, anomalies, people and vehicles (from, up to but not), hard negatives.

    `hard_negatives` is the fraction of normal videos that show what their anomaly is mistaken for; others walk, loiter or run.
    """

    scenes: tuple[str, ...]
    events: tuple[str, ...]
    people: tuple[int, int]
    vehicles: tuple[int, int]
    hard_negatives: float


DIFFICULTIES = {
    "easy": Difficulty(scenes.NEAR_SCENES, ("fight", "fall", "vandalism"), (2, 4), (0, 1), 0.2),
    "medium": Difficulty(scenes.NEAR_SCENES, ANOMALOUS_EVENTS, (2, 5), (1, 3), 0.5),
    "hard": Difficulty(scenes.SCENES, ANOMALOUS_EVENTS, (4, 8), (2, 5), 0.0),  # seen from far, much traffic
}


def event_of(video_id: str) -> str:
    """Return the event that the id of a drawn video ends with, anomalous or not; ValueError for another id."""
    found = [event for event in LABELS if video_id.endswith(f"_{event}")]
    if not found:
        raise ValueError(f"{video_id!r} is no id of a drawn video: it ends with none of {', '.join(LABELS)}")
    return max(found, key=len)


def is_hard_negative(video_id: str) -> bool:
    """Return whether a drawn video shows what an anomaly is mistaken for."""
    return event_of(video_id) in HARD_NEGATIVES.values()


@dataclass(frozen=True)
class Scenario:
    """One video in numbers; pairs share `world_seed` (place, light, camera) and differ in `seed` (who does what)."""

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
    weather: str = "clear"
    camera: str = "wall"
    distractor: str = "none"

    def __post_init__(self):
        known = FACTORS | {"scene": scenes.SCENES + scenes.NEAR_SCENES + HOME_SCENES, "event": (*LABELS, *HOME_EVENTS)}
        for name in ("scene", "event", "lighting", "weather", "camera", "distractor"):
            if getattr(self, name) not in known[name]:
                raise ValueError(f"{name} must be one of {', '.join(known[name])}, got {getattr(self, name)!r}")
        if self.height % 2 or self.width % 2 or min(self.height, self.width) < 32:
            raise ValueError(f"height and width must be even and at least 32, got {self.height} x {self.width}")
        if self.duration_s < 2 or self.fps <= 0:
            raise ValueError(f"a video lasts 2 s or more at a positive rate, got {self.duration_s} s at {self.fps}")
        if why := contradiction(vars(self)):
            raise ValueError(why)

    @property
    def num_frames(self) -> int:
        return round(self.duration_s * self.fps)

    @property
    def label(self) -> int:
        """1 when the event is anomalous."""
        return HOME_EVENTS[self.event].label if self.event in HOME_EVENTS else LABELS[self.event]

    @property
    def drawn(self) -> bool:
        """Whether the renderer knows place and event; others are texts for a text-to-video model."""
        return self.scene not in HOME_SCENES and self.event not in HOME_EVENTS

    @property
    def crowd(self) -> str:
        """The factor that `num_people` came from, or the nearest."""
        return min(CROWDS, key=lambda name: abs(CROWDS[name][0] - self.num_people))

    @property
    def factors(self) -> dict[str, str]:
        """Return {factor: value}."""
        return {name: getattr(self, name) for name in FACTORS}


def contradiction(factors: dict) -> str:
    """Return why factor values (some may be missing) cannot be in one video, "" where they can."""
    scene, event, weather = (factors.get(name) for name in ("scene", "event", "weather"))
    if event in ("crash", "stop_close") and scene not in (None, *ROADS):
        return f"a {event.replace('_', ' ')} needs a {' or '.join(ROADS)}, got {scene}"
    if event in HOME_EVENTS and scene not in (None, *HOME_EVENTS[event].scenes):
        return f"a {event.replace('_', ' ')} needs a {' or '.join(HOME_EVENTS[event].scenes)}, got {scene}"
    if event in LABELS and scene in HOME_SCENES:
        return f"{event} and scene {scene} contradict: homes have their own events"
    roofed = (*scenes.ROOFED, *INDOORS)
    if scene in roofed and weather not in (None, "clear"):
        return f"a {scene} has a roof: weather {weather} and scene {scene} contradict"
    if scene in roofed and factors.get("distractor") == "swaying_tree":
        return f"no tree sways indoors: distractor swaying_tree and scene {scene} contradict"
    return ""


def pairs(factors: dict[str, str]) -> Iterator[tuple]:
    """Yield every pair of factor values among `factors`, ((factor, value), (factor, value))."""
    yield from itertools.combinations(((name, factors[name]) for name in FACTORS if name in factors), 2)


def possible_pairs() -> set[tuple]:
    """Return every pair of values of two factors that one video can hold."""
    return {
        ((first, value), (second, other))
        for first, second in itertools.combinations(FACTORS, 2)
        for value, other in itertools.product(FACTORS[first], FACTORS[second])
        if not contradiction({first: value, second: other})
    }


def covering_scenarios(
    n: int, seed: int = 0, *, duration_s: float = 6.0, fps: float = 10.0, height: int = 144, width: int = 192,
    tries: int = 30, **fixed: str,
) -> list[Scenario]:  # fmt: skip
    """Return `n` scenarios, an anomaly and its everyday counterpart in turn, of one world and with the same factors but the event.

    Each pair of videos takes, of `tries` random combinations of factors, the one with most pairs of values not covered yet.

    Args:
        n: number of scenarios, at least 2.
        seed: of every random choice.
        duration_s: mean length; each world's is within 10 % of it.
        fps, height, width: of the videos.
        tries: random combinations to choose from.
        fixed: factors held at one value, like `weather="snow"`.

    ValueError for an unknown factor or value, a contradiction, and fewer than two videos.
    """
    if n < 2:
        raise ValueError(f"both classes need a video, got n={n}")
    for name, value in fixed.items():
        if value not in FACTORS.get(name, ()):
            known = ", ".join(FACTORS[name]) if name in FACTORS else f"of the factors {', '.join(FACTORS)}"
            raise ValueError(f"{name}={value!r} is unknown; there is {known}")
    if why := contradiction(fixed):
        raise ValueError(why)
    rng, missing, chosen = np.random.default_rng([seed, 21]), possible_pairs(), []
    anomalies = [event for event in ANOMALOUS_EVENTS if event == fixed.get("event", event)]
    rounds = itertools.cycle(anomalies or [next(a for a, e in HARD_NEGATIVES.items() if e == fixed["event"])])
    while len(chosen) < n:
        event = next(rounds)
        candidates = [_random_factors(rng, event, fixed, missing) for _ in range(tries)]
        gain = {
            (number, usual): len(missing & {*pairs(factors), *pairs(factors | {"event": usual})})
            for number, factors in enumerate(candidates)
            for usual in (HARD_NEGATIVES[event], *NORMAL_EVENTS)
        }
        number, usual = max(gain, key=gain.get)  # of equals the everyday counterpart
        best = candidates[number]
        people, vehicles = CROWDS[best["crowd"]]
        world_seed, first, second = (int(number) for number in rng.integers(2**31, size=3))
        anomalous = Scenario(
            seed=first, world_seed=world_seed, duration_s=max(2.0, round(duration_s * rng.uniform(0.9, 1.1), 1)), fps=fps,
            height=height, width=width, num_people=people, num_vehicles=0 if best["scene"] == "shop" else vehicles,
            **{name: value for name, value in best.items() if name != "crowd"},
        )  # fmt: skip
        chosen += [anomalous, replace(anomalous, event=usual, seed=second)]
        missing -= {pair for scenario in chosen[-2:] for pair in pairs(scenario.factors)}
    return chosen[:n]


def home_scenarios(
    n: int, seed: int = 0, *, category: str = "", duration_s: float = 8.0, fps: float = 24.0, height: int = 720, width: int = 1280
) -> list[Scenario]:
    """Return `n` scenarios of homes, an anomaly and its everyday counterpart in turn; texts for a text-to-video model only.

    Anomalous classes come in shuffled rounds, so that 58 scenarios hold all 29; the counterpart is a normal event of the same
    category in the same world, the one shown least so far, where the place allows one, else nothing but an everyday scene.

    Args:
        n: number of scenarios, at least 2.
        seed: of every random choice.
        category: one of SmartHome-Bench's seven; all where empty.
        duration_s, fps, height, width: of the videos that are asked for.

    ValueError for another category and fewer than two videos.
    """
    known = dict.fromkeys(event.category for event in HOME_EVENTS.values())
    if n < 2 or category not in ("", *known):
        raise ValueError(f"need two videos or more and a category of {', '.join(known)}, got n={n} and {category!r}")
    rng, shown, chosen = np.random.default_rng([seed, 23]), dict.fromkeys(HOME_EVENTS, 0), []
    odd = [name for name, event in HOME_EVENTS.items() if event.label and event.category == (category or event.category)]
    for name in shuffled_rounds(odd, (n + 1) // 2, rng):
        usual = [e for e, event in HOME_EVENTS.items() if not event.label and event.category == HOME_EVENTS[name].category]
        least = min(usual, key=lambda e: (not set(HOME_EVENTS[e].scenes) & set(HOME_EVENTS[name].scenes), shown[e]))
        shared = [scene for scene in HOME_EVENTS[name].scenes if scene in HOME_EVENTS[least].scenes]
        scene = str(rng.choice(shared or HOME_EVENTS[name].scenes))
        counterpart = least if shared else "still_day"
        shown[counterpart] += 1
        factors = {f: str(rng.choice(FACTORS[f])) for f in ("lighting", "weather", "distractor")}
        if scene in INDOORS:
            factors |= {"weather": "clear", "distractor": str(rng.choice(("none", "insects", "lamp_flicker")))}
        world_seed, first, second = (int(number) for number in rng.integers(2**31, size=3))
        anomalous = Scenario(
            scene=scene, event=name, seed=first, world_seed=world_seed, duration_s=duration_s, fps=fps, height=height, width=width,
            num_people=2, num_vehicles=0, camera=str(rng.choice(("wall", "old_lens"))), **factors,
        )  # fmt: skip
        chosen += [anomalous, replace(anomalous, event=counterpart, seed=second)]
    return chosen[:n]


def _random_factors(rng: np.random.Generator, event: str, fixed: dict[str, str], missing: set) -> dict[str, str]:
    """Return factor values at random around a pair that is still missing, where there is one that fits."""
    wanted = sorted(pair for pair in missing if all(name != "event" and name not in fixed for name, _ in pair))
    own = sorted(pair for pair in missing if pair[0] == ("event", event) and pair[1][0] not in fixed)
    for _ in range(50):
        factors = {name: fixed.get(name) or str(rng.choice(values)) for name, values in FACTORS.items()}
        source = own or wanted
        factors |= dict(source[rng.integers(len(source))]) if source else {}
        factors |= {"event": event}
        if not contradiction(factors):
            return factors
    while contradiction(factors):
        factors = {name: fixed.get(name) or str(rng.choice(values)) for name, values in FACTORS.items()}
        factors["event"] = event
    return factors


def coverage(chosen: Iterable[Scenario]) -> tuple[pd.DataFrame, set[tuple]]:
    """Return (table of factor, other, possible_pairs, covered_pairs, coverage; the pairs still missing) of scenarios."""
    covered, possible = {pair for scenario in chosen for pair in pairs(scenario.factors)}, possible_pairs()
    rows = []
    for first, second in itertools.combinations(FACTORS, 2):
        here = {pair for pair in possible if (pair[0][0], pair[1][0]) == (first, second)}
        rows.append([first, second, len(here), len(here & covered), len(here & covered) / len(here)])
    columns = ["factor", "other", "possible_pairs", "covered_pairs", "coverage"]
    return pd.DataFrame(rows, columns=columns), possible - covered


EVENT_TEXTS = {
    "walk": "A person walks along.", "loiter": "A person waits in one place.", "run": "A person jogs past.",
    "fall": "A person suddenly falls to the ground and stays down.",
    "fight": "Two people start to push and punch each other.",
    "intrusion": "A person climbs over the fence and sneaks into the closed area.",
    "left_package": "A person puts a bag on the ground, walks away and does not come back.",
    "vandalism": "A person smashes the machine with a bat.", "crash": "Two cars collide and stop, smoke rises.",
    "tie_shoe": "A person kneels down, ties a shoe and walks on.", "greet": "Two people meet, wave, talk and part as friends.",
    "wait_at_gate": "A person stands at the gate, makes a call and goes away again.",
    "rest_bag": "A person puts a bag down, waits beside it, picks it up and leaves with it.",
    "use_machine": "A person uses the machine, bends down to take something out and leaves.",
    "stop_close": "Two cars stop close to each other, wait and drive on unharmed.",
} | {name: event.text for name, event in HOME_EVENTS.items()}  # fmt: skip
SCENE_TEXTS = {
    "street": "a street", "car_park": "a car park", "shop": "a shop's sales floor", "plaza": "a paved square",
    "entrance": "the entrance hall of a building", "lobby": "a lobby with lifts", "corridor": "a crossing of two corridors",
    "platform": "a station platform", "shop_counter": "the counter of a small shop",
    "car_park_barrier": "the barrier of a car park",
    "living_room": "a living room", "kitchen": "a kitchen", "nursery": "a nursery with a cot", "hallway": "the hallway of a home",
    "stairwell": "the stairs of a home", "garage": "a garage", "porch": "the porch of a house, seen from its doorbell camera",
    "driveway": "the driveway of a house", "back_garden": "a back garden with a fence",
}  # fmt: skip
LIGHTING_TEXTS = {
    "day": "bright daylight with clear shadows",
    "overcast": "grey, even light",
    "dusk": "dusk, lamps are on",
    "night": "night, monochrome infrared picture",
}
WEATHER_TEXTS = {"clear": "no rain", "rain": "steady rain", "snow": "snow is falling", "fog": "thick fog"}
CAMERA_TEXTS = {
    "wall": "fixed on a wall, high, wide angle, no movement of the camera",
    "mast": "on a mast that sways a little in the wind",
    "old_lens": "with an old, soft lens, dark at the edges",
}
DISTRACTOR_TEXTS = {
    "none": "",
    "insects": " Insects fly close to the lens.",
    "lamp_flicker": " A lamp flickers.",
    "swaying_tree": " A tree sways in the wind.",
}


def prompt(scenario: Scenario) -> str:
    """Return the scenario as a text for a text-to-video model: camera, place, light, weather, event, other people, limits."""
    others = {"few": "Hardly anybody else is there", "some": "A few other people pass", "many": "Many people pass"}
    cars = f", and {scenario.num_vehicles} vehicles drive by" if scenario.num_vehicles else ""
    return (
        f"Footage of a security camera {CAMERA_TEXTS[scenario.camera]}. {SCENE_TEXTS[scenario.scene].capitalize()}, "
        f"{LIGHTING_TEXTS[scenario.lighting]}, {WEATHER_TEXTS[scenario.weather]}.{DISTRACTOR_TEXTS[scenario.distractor]} "
        f"{EVENT_TEXTS[scenario.event]} {others[scenario.crowd]}{cars}. "
        f"One single shot of {scenario.duration_s:.0f} seconds, realistic, no cuts, no zoom, no text, no sound."
    )


def shuffled_rounds(names: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` names in shuffled rounds, so any stretch holds nearly all of them."""
    return [str(name) for _ in range(-(-count // len(names))) for name in rng.permutation(names)]

"""The synthetic surveillance data set: scenarios rendered to videos with exact truth (boxes, masks, depth, event spans).

- a scenario is a handful of numbers; it gives the same frames, boxes, masks and spans whenever it is rendered
- walking, loitering and running are normal and fill normal and anomalous videos alike, as traffic does; falling, fighting,
  intrusion, a left package, vandalism and a crash are anomalies
- easy and medium worlds are seen from near and are made to be learned; hard ones are seen from far
- videos come in pairs from one world: same place, light, length and numbers, one with an anomaly and one without, so brightness,
  length, file size and place say nothing, and motion says less than the events; a world is one source and never leaves its split
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects

from vau_lib.data import records, video
from vau_lib.data.records import Span, VideoRecord
from vau_lib.synthetic import camera, effects, motion, scenes
from vau_lib.synthetic.near_places import PLACES
from vau_lib.synthetic.scenarios import DIFFICULTIES, EVENTS, HARD_NEGATIVES, NORMAL_EVENTS, ROADS, Scenario, shuffled_rounds
from vau_lib.workspace import artifacts, parallel

EDITION = 4  # of the renderer; a video of another edition is rendered again
SPLITS = {"train": 0.5, "val": 0.1, "test": 0.4}  # fractions of the worlds; few test videos show nothing
Item = tuple[str, Scenario, str]  # id, what to render, split


@dataclass(frozen=True)
class Truth:
    """What is in a video: boxes (T, N, 4), masks uint8 (T, H, W), depth (T, N), event spans.

    A box is x0, y0, x1, y1 in pixels around the visible part, half-open, NaN where the actor is not visible. In
    `masks`, 0 is the place and n the actor with track_ids == n; `kinds` (N,) is what each is, `depth` how many metres
    behind the front of the place it stands (the nearer hides the farther), NaN while it is absent.
    """

    scenario: Scenario
    boxes: np.ndarray
    masks: np.ndarray
    depth: np.ndarray
    track_ids: tuple[int, ...]
    kinds: tuple[str, ...]
    events: tuple[Span, ...]


@dataclass(frozen=True)
class Rendering(Truth):
    """A video in memory, frames uint8 (T, H, W, 3), and its truth."""

    frames: np.ndarray


def scenario_for(
    seed: int, *, event: str | None = None, world_seed: int | None = None, duration_s: float = 8.0, difficulty: str = "easy",
    **fixed,
) -> Scenario:  # fmt: skip
    """Return a scenario; what is not `fixed` (`scene`, `lighting`, `num_people`, ...) follows from `seed`; 320 x 240, 15 fps.

    ValueError for an unknown difficulty.
    """
    kind = _difficulty(difficulty)
    rng = np.random.default_rng([seed if world_seed is None else world_seed, 1])
    usual = tuple(EVENTS) if difficulty == "hard" else NORMAL_EVENTS + kind.events
    event = event or str(np.random.default_rng([seed, 2]).choice(usual))
    roads = [scene for scene in kind.scenes if scene in ROADS]
    scene = fixed.pop("scene", None) or str(rng.choice(roads if event in ("crash", "stop_close") else kind.scenes))
    chosen = dict(
        scene=scene, event=event, seed=seed, world_seed=seed if world_seed is None else world_seed,
        duration_s=float(duration_s),
        fps=15.0, height=240, width=320, lighting=str(rng.choice(scenes.LIGHTINGS, p=(0.35, 0.25, 0.15, 0.25))),
        num_people=int(rng.integers(*kind.people)), num_vehicles=0 if scene in scenes.ROOFED else int(rng.integers(*kind.vehicles)),
    )  # fmt: skip
    return Scenario(**chosen | fixed)


def _difficulty(name: str):
    if name not in DIFFICULTIES:
        raise ValueError(f"difficulty must be one of {', '.join(DIFFICULTIES)}, got {name!r}")
    return DIFFICULTIES[name]


def sample_scenarios(num_videos: int, *, seed: int, duration_s: float = 8.0, difficulty: str = "easy", **fixed) -> list[Scenario]:
    """Return pairs: an anomalous and a normal scenario per world, every event in turn, lengths +-25 % by world.

    By difficulty some of the normal ones are hard negatives: they show what their anomaly is mistaken for.
    """
    if num_videos < 2:
        raise ValueError(f"both classes need a video, got num_videos={num_videos}")
    kind, chosen = _difficulty(difficulty), []
    rng = np.random.default_rng([seed, 0] if difficulty == "hard" else [seed, 0, 1])
    anomalous_events = shuffled_rounds(kind.events, num_videos, rng)
    usual_events = NORMAL_EVENTS if difficulty == "hard" else ("walk", "loiter", "walk", "loiter", "run")  # few run
    normal_events = shuffled_rounds(usual_events, num_videos, rng)
    for pair in range(-(-num_videos // 2)):
        world_seed, length = int(rng.integers(2**31)), duration_s * rng.uniform(0.75, 1.25)
        first, second = (int(s) for s in rng.integers(2**31, size=2))
        length = max(2.0, round(length, 1))
        event, usual = anomalous_events[pair], normal_events[pair]
        if int(pair * kind.hard_negatives) < int((pair + 1) * kind.hard_negatives):
            usual = HARD_NEGATIVES[event]
        anomalous = scenario_for(first, event=event, world_seed=world_seed, duration_s=length, difficulty=difficulty, **fixed)
        chosen += [anomalous, replace(anomalous, event=usual, seed=second)]
    return chosen[:num_videos]


def _boxes(ids: np.ndarray, count: int) -> np.ndarray:
    """Return boxes (count, 4) of the numbers 1..count in ids (H, W): x0, y0, x1, y1 half-open, NaN for one not there."""
    slices = find_objects(ids, max_label=count)
    boxes = [(s[1].start, s[0].start, s[1].stop, s[0].stop) if s else (np.nan,) * 4 for s in slices]
    return np.array(boxes, float).reshape(count, 4)


def _spans(scenario: Scenario, cast) -> tuple[Span, ...]:
    if not scenario.label:
        return ()
    start, end = cast.span
    return (Span(round(start, 3), round(min(end, scenario.num_frames / scenario.fps), 3), scenario.event),)


def render(scenario: Scenario, path: str | Path | None = None) -> Truth:
    """Render a scenario into memory, with its truth (a Rendering); with `path` into an mp4, its truth beside it (a Truth)."""
    cast = _cast(scenario)
    if path is not None:
        render_to_file(scenario, path)
        truth = read_truth(Path(path).with_suffix(".npz"))
        ids, kinds = (tuple(truth.pop(name).tolist()) for name in ("track_ids", "kinds"))
        return Truth(scenario, track_ids=ids, kinds=kinds, events=_spans(scenario, cast), **truth)
    frames, masks = (np.stack(part) for part in zip(*_frames_and_masks(scenario, cast), strict=True))
    return Rendering(scenario, frames=frames, masks=masks, events=_spans(scenario, cast), **_actors(scenario, cast, masks))


def _cast(scenario):
    if not scenario.drawn:
        raise ValueError(f"{scenario.event} in a {scenario.scene} is not drawn: homes are texts for a text-to-video model")
    return motion.direct(scenario, PLACES[scenario.scene](np.random.default_rng([scenario.world_seed, 4])))


def _frames_and_masks(scenario, cast):
    return effects.apply(camera.shoot(scenario, cast), scenario)


def _actors(scenario, cast, masks):
    kinds = tuple(member.kind for member in cast.members)
    boxes = np.stack([_boxes(ids, len(kinds)) for ids in masks])
    states = [[member.at(number / scenario.fps) for member in cast.members] for number in range(len(masks))]
    depth = np.array([[state[1] if state else np.nan for state in row] for row in states])
    depth = depth.reshape(len(masks), len(kinds))
    return dict(boxes=boxes, depth=depth, track_ids=tuple(range(1, len(kinds) + 1)), kinds=kinds)


def render_to_file(scenario: Scenario, path: str | Path) -> tuple[Span, ...]:
    """Render into an mp4 and, beside it as .npz, its truth; return the event spans. A video already there is kept."""
    path = Path(path)
    return _write(scenario, path, path.with_suffix(".npz"))


def _write(scenario: Scenario, path: Path, truth_path: Path) -> tuple[Span, ...]:
    cast, expected = _cast(scenario), json.dumps(asdict(scenario) | {"edition": EDITION})
    if _is_complete(path, truth_path, expected, scenario.num_frames):
        return _spans(scenario, cast)
    truth_path.unlink(missing_ok=True)  # written last: it marks a finished video
    masks = []

    def frames():
        for colours, ids in _frames_and_masks(scenario, cast):
            masks.append(ids)
            yield colours

    # as cameras write it, without B-frames: written and read in half the time, files 1.7 times as large
    video.write_video(path, frames(), fps=scenario.fps, preset="ultrafast")
    truth = dict(masks=np.stack(masks), scenario=np.array(expected)) | _actors(scenario, cast, masks)
    with artifacts.replacing(truth_path) as temporary:
        np.savez_compressed(temporary, **truth)
    return _spans(scenario, cast)


def _is_complete(path, truth_path, expected, num_frames) -> bool:
    """Whether the video at `path` is whole and of the scenario `expected`."""
    try:
        drawn = str(artifacts.load_arrays(truth_path, "scenario")["scenario"])
        return drawn == expected and video.probe(path).num_frames == num_frames
    except (OSError, ValueError):
        return False


@artifacts.reader()
def read_truth(path: str | Path) -> dict[str, np.ndarray]:
    """Read a video's truth: boxes (T, N, 4), masks (T, H, W), depth (T, N), track_ids, kinds (N,); StoreError when it is none."""
    try:
        return artifacts.load_arrays(path, "boxes", "masks", "depth", "track_ids", "kinds")
    except artifacts.StoreError as error:
        raise artifacts.StoreError(f"{path} is not a video's truth: {error}") from error


def make_dataset(
    root: str | Path, *, num_videos: int, seed: int, height: int = 240, width: int = 320, fps: float = 10.0,
    duration_s: float = 8.0, difficulty: str = "easy", splits: Mapping[str, float] = SPLITS, engine: str = "serial",
    workers: int = 2,
) -> list[VideoRecord]:  # fmt: skip
    """Write videos/, truth/, records.jsonl and made_by.json under `root`; return the records, as `records` reads them.

    A stopped run is resumed: complete videos are not rendered again.

    Args:
        root: the folder.
        num_videos: anomalous and normal ones in turn, in pairs of one world; ValueError when too few for the splits.
        seed: of every random choice.
        height, width, fps: of the videos.
        duration_s: mean length; each world's is 0.75 to 1.25 times it.
        difficulty: "easy" (near, three kinds of anomaly), "medium" (near, six kinds, more hard negatives) or "hard" (from far).
        splits: {name: fraction of the worlds}; every split gets whole worlds, so both classes.
        engine, workers: see `workspace.parallel.map_videos`.
    """
    root = Path(root)
    settings = dict(seed=seed, duration_s=duration_s, height=height, width=width, fps=fps, difficulty=difficulty)
    names = _split_names(num_videos // 2, splits)
    items = [
        (f"{seed}_{number:04d}_{scenario.scene}_{scenario.event}", scenario, names[min(number // 2, len(names) - 1)])
        for number, scenario in enumerate(sample_scenarios(num_videos, **settings))
    ]
    written = write_items(root, items, _write_item, dataset="synthetic", engine=engine, workers=workers)
    facts = dict(num_videos=num_videos, splits=dict(splits), **settings)
    artifacts.write_made_by(root, dataset="synthetic", edition=EDITION, **facts)
    return written


def write_items(
    root: Path, items: Sequence[Item], write_item: Callable[..., tuple[Span, ...]], *, dataset: str, engine: str, workers: int
) -> list[VideoRecord]:
    """Write the video of every (id, scenario, split), then records.jsonl; return the records.

    Args:
        root: the folder.
        items: what to render.
        write_item: `write_item(item, root=root)` writes video and truth and returns the event spans.
        dataset: the name in the records.
        engine, workers: see `workspace.parallel.map_videos`.

    StoreError names the first video that could not be rendered.
    """
    written, work = [], partial(_write_world, write_item=write_item, root=root)
    worlds = [tuple(part) for _, part in groupby(items, key=lambda item: item[1].world_seed)]  # its place is painted once
    for world, spans, error in parallel.map_videos(work, worlds, engine=engine, workers=workers, desc="rendering"):
        if error:
            raise artifacts.StoreError(error if any(name in error for name, *_ in world) else f"{world[0][0]}: {error}")
        for (name, scenario, split), events in zip(world, spans, strict=True):
            written.append(VideoRecord(
                id=name, path=f"videos/{name}.mp4", dataset=dataset, split=split, label=scenario.label,
                classes=tuple(span.label for span in events), events=events, fps=scenario.fps, num_frames=scenario.num_frames,
                group=f"world-{scenario.world_seed}",
            ))  # fmt: skip
    written.sort(key=lambda record: record.id)
    records.write_records(root / "records.jsonl", written)
    return written


def _write_world(world: Sequence[Item], *, write_item: Callable[..., tuple[Span, ...]], root: Path) -> list[tuple[Span, ...]]:
    """Write the videos of one world, one after the other; the error names the one that failed."""
    spans = []
    for item in world:
        try:
            spans.append(write_item(item, root=root))
        except (ValueError, OSError) as error:
            raise artifacts.StoreError(f"{item[0]}: {error}") from error
    return spans


def _write_item(item: Item, *, root: Path) -> tuple[Span, ...]:
    name, scenario, _ = item
    return _write(scenario, root / "videos" / f"{name}.mp4", root / "truth" / f"{name}.npz")


def _split_names(worlds: int, splits: Mapping[str, float]) -> list[str]:
    """Return each world's split: fractions by size, at least one world each."""
    if worlds < len(splits):
        raise ValueError(f"{len(splits)} splits with both classes need {2 * len(splits)} videos or more, got about {2 * worlds}")
    wanted = np.array(list(splits.values())) / sum(splits.values()) * worlds
    counts = np.maximum(1, np.floor(wanted).astype(int))
    while counts.sum() < worlds:
        counts[np.argmax(wanted - counts)] += 1
    while counts.sum() > worlds:
        counts[np.argmax(counts)] -= 1
    return [name for name, count in zip(splits, counts, strict=True) for _ in range(count)]

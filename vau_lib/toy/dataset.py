"""Close-ups: an easier version of the synthetic data set, on which a tiny vision-language model can learn.

The full data set is hard on purpose: a person is a tenth of the picture and everybody else walks about. Here
- a square crop shows the main actor from near, where it is when the event begins (without an event, at a random moment)
- there are few people, no traffic but a crash's, few frames a second, and events that can be seen in single frames
- scenarios and motion are those of `synthetic`; the truth per grid cell comes from its masks
Results on it show that a pipeline learns and say nothing about surveillance video.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vau_lib.data import hivau, records, video
from vau_lib.data.records import VideoRecord
from vau_lib.synthetic import dataset as synthetic_dataset
from vau_lib.synthetic import scenarios
from vau_lib.workspace import artifacts

EDITION = 1  # of crop, texts and truth; a folder of another edition is written anew
RENDER_SIDE, SIDE = 160, 56  # pixels of the rendered picture and of its crop
FPS, DURATION_S = 2.0, 6.0
CELLS = 4  # the truth per cell is (T, 4, 4), as a frame has 4 x 4 visual tokens in a tiny model
MIN_COVERAGE = 0.04  # an actor is in a cell when it covers more than this fraction of it
NOTHING, SOMEBODY, FIRST_EVENT = 0, 1, 2  # values of the truth; event n of `EVENTS` is FIRST_EVENT + n

# how many actors an event is about; they are the first of the cast
LEADING = {"fall": 1, "fight": 2, "crash": 2, "left_package": 2, "vandalism": 1}
EVENTS = ("fall", "fight", "crash")
NORMAL = scenarios.NORMAL_EVENTS
CAPTIONS = {
    "walk": ("A person walks along.", "Somebody walks past."),
    "loiter": ("A person stays in one place.", "Somebody stands about and waits."),
    "run": ("A person runs past.", "Somebody jogs along."),
    "fall": ("A person falls and lies on the ground.", "Somebody drops to the ground and lies there."),
    "fight": ("Two people hit each other.", "Two persons stand close and throw punches."),
    "crash": ("Two cars hit each other and stand in smoke.", "Cars collide and stop."),
    "left_package": ("A person puts a bag down and leaves it.", "Somebody leaves a bag behind."),
    "vandalism": ("A person strikes a machine with a bat.", "Somebody smashes a machine."),
    "tie_shoe": ("A person bends down and ties a shoe.", "Somebody crouches to tie a lace."),
    "greet": ("Two people greet each other.", "Two persons meet and shake hands."),
    "use_machine": ("A person uses a machine.", "Somebody stands at a machine and presses its buttons."),
}
NAMES = {"fall": "Fall", "fight": "Fighting", "crash": "Car Accident", "left_package": "Abandoned Object", "vandalism": "Vandalism"}
BASIS = {
    "fall": "Somebody who lies on the ground may be hurt and needs help.",
    "fight": "Hitting others is violence and may end in injury.",
    "crash": "Cars that collide damage property and may injure people.",
    "left_package": "An object left alone in public may be dangerous.",
    "vandalism": "Breaking a machine damages property.",
}
NEGATIVE = "No anomaly exists in the video."  # HIVAU-70k's stock sentence
QUESTIONS = {  # of the paper's pools
    "caption": ("Describe the video briefly.", "What happened in this video?"),
    "judgement": ("Are there any anomaly events detected in the video?", "Are there anomalies observed in the video clip?"),
    "description": (
        "Could you describe the anomaly events observed in the video?",
        "Describe the anomaly events observed in the video.",
    ),
    "analysis": ("Why do you judge this event to be anomalous?", "Can you provide the reasons for considering it anomalous?"),
}


def answer(task: str, event: str, variant: int = 0) -> str | None:
    """Return the true answer of a task ("caption", "judgement", "description", "analysis") on an event; None for none."""
    if task == "caption":
        return CAPTIONS[event][variant % len(CAPTIONS[event])]
    if task == "judgement":
        return f"An anomaly exists, specifically, the anomaly is named {NAMES[event]}." if event in NAMES else NEGATIVE
    if task == "description":
        return CAPTIONS[event][0] if event in NAMES else f"{CAPTIONS[event][0]} Nothing unusual happens."
    if task == "analysis":
        return BASIS.get(event)
    raise ValueError(f"task must be one of {', '.join(QUESTIONS)}, got {task!r}")


def texts() -> Iterator[str]:
    """Yield every question, answer and frame line of this data set: the text a tiny model's tokenizer is trained on."""
    yield from (f"Frame{n} at {n / 2:.1f}s: " for n in range(1, 33))
    for event in CAPTIONS:
        for task, questions in QUESTIONS.items():
            yield from questions
            yield from filter(None, (answer(task, event, variant) for variant in range(2)))
    yield from ("system\nuser\nassistant\n",) * 8


def instructions(
    videos: Sequence[VideoRecord], tasks: Sequence[str] = ("judgement", "description", "analysis"), *, seed: int = 0
) -> list[dict]:
    """Return instruction rows (id, level, task, video, span_s, question, answer, split), one phrasing drawn per task."""
    rng, rows = np.random.default_rng(seed), []
    for record in videos:
        event = event_of(record)
        for task in tasks:
            text = answer(task, event, int(rng.integers(2)))
            question = str(rng.choice(QUESTIONS[task]))
            if text:
                rows.append(
                    dict(id=len(rows), level="video", task=task, video=record.path, span_s=None, question=question,
                         answer=text, split=record.split)
                )  # fmt: skip
    return rows


def samples(videos: Sequence[VideoRecord], *, seed: int = 0) -> list[hivau.Instruction]:
    """Return `instructions` as HIVAU-70k's rows, with which they are reviewed and written: an id per video and task."""
    by_path = {record.path: record for record in videos}
    rows = [(row, by_path[row["video"]]) for row in instructions(videos, seed=seed)]
    fields = ("level", "task", "question", "answer", "video", "split")
    return [
        hivau.Instruction(
            id=f"{record.id}_{row['task']}", video_id=record.id, dataset=record.dataset, origin="close-up truth by templates",
            **{name: row[name] for name in fields},
        )
        for row, record in rows
    ]  # fmt: skip


def event_of(record: VideoRecord) -> str:
    """Return the event of a video's scenario, anomalous or not: the end of its id."""
    return scenarios.event_of(record.id)


def close_up_scenarios(num_videos: int, *, seed: int, events: Sequence[str] = EVENTS, fps: float = FPS) -> list[scenarios.Scenario]:
    """Return pairs, anomalous then normal, of one world each; `events` in turn. ValueError for one not known here."""
    if unknown := [event for event in events if event not in LEADING]:
        raise ValueError(f"events must be of {', '.join(LEADING)}, got {unknown[0]!r}")
    chosen = []
    for pair in range(-(-num_videos // 2)):
        rng, event = np.random.default_rng([seed, 11, pair]), events[pair % len(events)]
        world_seed, first, second = (int(number) for number in rng.integers(2**31, size=3))
        anomalous = synthetic_dataset.scenario_for(
            first, event=event, world_seed=world_seed, duration_s=DURATION_S, fps=fps, height=RENDER_SIDE,
            width=RENDER_SIDE, num_people=2, num_vehicles=2 if event == "crash" else 0, difficulty="hard",
        )  # fmt: skip
        chosen += [anomalous, replace(anomalous, event=str(rng.choice(NORMAL)), seed=second)]
    return chosen[:num_videos]


def close_up(scenario: scenarios.Scenario) -> tuple[np.ndarray, np.ndarray, tuple[records.Span, ...]]:
    """Render a scenario from near: frames uint8 (T, 56, 56, 3), truth uint8 (T, 4, 4), event spans."""
    rendering = synthetic_dataset.render(scenario)
    rng = np.random.default_rng([scenario.seed, 12])
    moment_s = rendering.events[0].start_s if rendering.events else scenario.duration_s * rng.uniform(0.25, 0.5)
    left, top = _corner(rendering.boxes[:, 0], moment_s * scenario.fps)
    crop = slice(top, top + SIDE), slice(left, left + SIDE)
    masks = rendering.masks[:, *crop]
    return rendering.frames[:, *crop], _truth(scenario, masks, rendering.events), rendering.events


def _corner(boxes: np.ndarray, frame: float) -> tuple[int, int]:
    """Return the crop's left and top so that the leading actor's box nearest `frame` is in its middle."""
    frames = np.flatnonzero(~np.isnan(boxes[:, 0]))
    if not len(frames):
        return (RENDER_SIDE - SIDE) // 2, (RENDER_SIDE - SIDE) // 2
    box = boxes[frames[np.abs(frames - frame).argmin()]]
    middle = (box[:2] + box[2:]) / 2
    left, top = np.clip(middle - SIDE / 2, 0, RENDER_SIDE - SIDE).astype(int)
    return int(left), int(top)


def _truth(scenario, masks: np.ndarray, events) -> np.ndarray:
    def coverage(mask):
        return mask.reshape(len(masks), CELLS, SIDE // CELLS, CELLS, SIDE // CELLS).mean((2, 4))

    truth = np.where(coverage(masks > 0) > MIN_COVERAGE, SOMEBODY, NOTHING)
    if events:
        times_s = np.arange(len(masks)) / scenario.fps
        # half a frame after the begin: at the very moment of its begin nothing of an event is to be seen yet
        active = (times_s >= events[0].start_s + 0.5 / scenario.fps) & (times_s < events[0].end_s)
        leading = (masks > 0) & (masks <= LEADING[scenario.event])
        value = FIRST_EVENT + tuple(LEADING).index(scenario.event)
        truth = np.where((coverage(leading) > MIN_COVERAGE) & active[:, None, None], value, truth)
    return truth.astype(np.uint8)


def make_dataset(
    root: str | Path, *, num_videos: int, seed: int = 0, events: Sequence[str] = EVENTS,
    splits: dict[str, float] | None = None, fps: float = FPS, engine: str = "serial", workers: int = 2,
) -> list[VideoRecord]:  # fmt: skip
    """Write videos/, truth/, records.jsonl and made_by.json under `root`; return the records. A complete folder is only read.

    Args:
        root: the folder.
        num_videos: anomalous and normal ones in turn, in pairs of one world.
        seed: of every random choice.
        events: anomalous events, in turn.
        splits: {name: fraction of the worlds}; a pair is never in two splits.
        fps: frames per second.
        engine, workers: see `workspace.parallel.map_videos`.
    """
    root, splits = Path(root), splits or {"train": 0.75, "val": 0.05, "test": 0.2}
    name = "closeups" if fps == FPS else f"closeups, {fps:g} frames per second"
    facts = dict(dataset=name, edition=EDITION, num_videos=num_videos, seed=seed, events=list(events), splits=splits)
    try:
        artifacts.check_made_by(root, **facts)
        return records.read_records(root / "records.jsonl")
    except (artifacts.StoreError, records.RecordError):
        pass
    worlds = -(-num_videos // 2)
    edges = np.cumsum([round(fraction * worlds) for fraction in splits.values()])
    items = []
    for number, scenario in enumerate(close_up_scenarios(num_videos, seed=seed, events=events, fps=fps)):
        split = list(splits)[min(int(np.searchsorted(edges, number // 2, side="right")), len(splits) - 1)]
        items.append((f"{seed}_{number:04d}_{scenario.event}", scenario, split))
    written = synthetic_dataset.write_items(root, items, _write_item, dataset="closeups", engine=engine, workers=workers)
    artifacts.write_made_by(root, **facts)
    return written


def _write_item(item: synthetic_dataset.Item, *, root: Path) -> tuple[records.Span, ...]:
    name, scenario, _ = item
    frames, truth, spans = close_up(scenario)
    video.write_video(root / "videos" / f"{name}.mp4", frames, fps=scenario.fps, crf=12)
    artifacts.save_array(root / "truth" / f"{name}.npy", truth)
    return spans

"""Export of exact truth: COCO-video, MOTChallenge, HIVAU-style instructions, SmartHome-Bench-style questions.

- COCO: images of several videos, boxes as x, y, width, height, masks as run lengths, a track per actor, events beside them (readers
  of plain COCO ignore what they do not know)
- MOTChallenge gt.txt: frame, track, left, top, width, height, confidence, class, visibility; frames and pixels counted from 1
- visibility is an actor's area over its largest within a second: an estimate, 1 when nothing hides it
- boxes come from masks, so they agree with the picture
- an anomalous and a normal video have as many judgements each; where nobody knows when something happens (a text-to-video model's
  footage) rows are of the whole video, and of what was asked for, not of what was checked
Sources: the COCO data format; Milan et al., MOT16, arXiv 1603.00831, section 4.
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vau_lib.synthetic import captions, scenarios
from vau_lib.workspace import artifacts

CATEGORIES = {"person": 1, "bicycle": 2, "car": 3, "van": 4, "bag": 5, "case": 6}  # COCO has no numbers for all of them
MOT_CLASSES = {"person": 1, "bicycle": 4, "car": 3, "van": 3}  # of MOT16; things are "other", 8
AROUND_S = 1.0  # seconds around a moment in which an actor's largest area counts as fully visible


def to_coco(truths: Mapping[str, object], path: str | Path | None = None) -> dict:
    """Return {video name: synthetic_dataset.Truth} as one COCO-video dict; with `path` write it as JSON.

    Frame n of a video is named NAME/000n.jpg, counted from 0. ValueError for no videos.
    """
    if not truths:
        raise ValueError("no videos to export")
    out: dict = {"videos": [], "images": [], "annotations": [], "events": []}
    out["categories"] = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    track = 0
    for video_id, (name, truth) in enumerate(truths.items(), 1):
        scenario, visible = truth.scenario, visibility(truth)
        size = {"height": scenario.height, "width": scenario.width}
        out["videos"].append({"id": video_id, "name": name, "fps": scenario.fps, **size, "factors": scenario.factors})
        for event in truth.events:
            span = {"start_s": event.start_s, "end_s": event.end_s}
            out["events"].append({"id": len(out["events"]) + 1, "video_id": video_id, "label": event.label, **span})
        for frame, ids in enumerate(truth.masks):
            image_id = len(out["images"]) + 1
            place = {"video_id": video_id, "frame_index": frame, "file_name": f"{name}/{frame:04d}.jpg"}
            out["images"].append({"id": image_id, **place, **size})
            for n in np.flatnonzero(~np.isnan(truth.boxes[frame, :, 0])):
                left, top, right, bottom = (int(edge) for edge in truth.boxes[frame, n])
                mask = ids == n + 1
                out["annotations"].append({
                    "id": len(out["annotations"]) + 1, "image_id": image_id, "video_id": video_id, "iscrowd": 0,
                    "category_id": CATEGORIES[truth.kinds[n]], "track_id": track + int(n) + 1, "area": int(mask.sum()),
                    "bbox": [left, top, right - left, bottom - top], "segmentation": run_lengths(mask),
                    "visibility": round(float(visible[frame, n]), 3),
                })  # fmt: skip
        track += len(truth.kinds)
    if path is not None:
        artifacts.write_json(Path(path), out)
    return out


def to_mot(truth: object, path: str | Path | None = None) -> str:
    """Return a synthetic_dataset.Truth as the text of a MOTChallenge gt.txt; with `path` write it."""
    visible, lines = visibility(truth), []
    for frame, n in np.argwhere(~np.isnan(truth.boxes[..., 0])):
        left, top, right, bottom = (int(edge) for edge in truth.boxes[frame, n])
        kind = MOT_CLASSES.get(truth.kinds[n], 8)
        box = f"{left + 1},{top + 1},{right - left},{bottom - top}"
        lines.append(f"{frame + 1},{truth.track_ids[n]},{box},1,{kind},{visible[frame, n]:.3f}")
    text = "".join(line + "\n" for line in lines)
    if path is not None:
        with artifacts.replacing(Path(path)) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")
    return text


def run_lengths(mask: np.ndarray) -> dict:
    """Return a mask bool (H, W) as COCO's uncompressed run lengths, column by column, beginning with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])) if len(edges) else np.array([mask.size])
    if len(edges) and edges[-1] == mask.size:  # ends inside the mask: no last run of zeros
        counts = counts[:-1]
    return {"size": list(mask.shape), "counts": counts.tolist()}


def visibility(truth: object) -> np.ndarray:
    """Return each actor's area over its largest within a second, (T, N) in [0, 1], 0 where it is absent."""
    count = len(truth.kinds)
    area = np.stack([np.bincount(ids.ravel(), minlength=count + 1)[1 : count + 1] for ids in truth.masks]).astype(float)
    reach = max(1, round(AROUND_S * truth.scenario.fps))
    most = np.stack([area[max(0, t - reach) : t + reach + 1].max(0) for t in range(len(area))])
    return np.divide(area, most, out=np.zeros_like(area), where=most > 0)


def instructions(name: str, truth: object, *, video: str = "", split: str = "train", seed: int = 0) -> list[dict]:
    """Return HIVAU-style rows of one video: captions before, in and after the event; judgement, description, and analysis.

    The latter of an event, or of as long a part of a normal video, and of the whole video. Wordings follow `seed` and the name.
    Without the span of an anomaly rows are of the whole video. Keys are those of `hivau.hivau_instructions`: id, level, task,
    video, span_s, question, answer, split; and source, "truth", or "prompt" where `truth.known` is False.
    """
    scenario, rng = truth.scenario, np.random.default_rng([seed, zlib.crc32(name.encode())])
    event, known = truth.events[0] if truth.events else None, getattr(truth, "known", True)
    duration_s, rows = scenario.num_frames / scenario.fps, []
    if known and (event or not scenario.label):
        where = f"{scenarios.SCENE_TEXTS[scenario.scene]}, {scenarios.LIGHTING_TEXTS[scenario.lighting]}"
        ends = sorted({0.0, *((event.start_s, event.end_s) if event else ()), duration_s})
        for span in zip(ends, ends[1:], strict=False):
            text = scenarios.EVENT_TEXTS[scenario.event if not event or span[0] == event.start_s else "walk"]
            caption = rng.choice([f"On {where}: {text}", f"{text} It is on {where}.", f"The camera shows {where}. {text}"])
            rows.append(("clip", "caption", span, _question("caption", rng), str(caption)))
        spans = {"event": (event.start_s, event.end_s) if event else _part(duration_s, rng), "video": None}
    else:
        spans = {"video": None}
    for level, span in spans.items():
        for task in ("judgement", "description", *(("analysis",) if scenario.label else ())):
            rows.append((level, task, span, _question(task, rng), captions.instruction_answer(task, scenario, rng)))
    keys, source = ("level", "task", "span_s", "question", "answer"), "truth" if known else "prompt"
    same = {"video": video or f"{name}.mp4", "split": split, "source": source}
    return [{"id": f"{name}_{number}", **same, **dict(zip(keys, row, strict=True))} for number, row in enumerate(rows)]


def _question(task: str, rng: np.random.Generator) -> str:
    return str(rng.choice(captions.QUESTIONS[task]))


def _part(duration_s: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return a part of a video, a third to two thirds of it, as events are."""
    length_s = duration_s * rng.uniform(1 / 3, 2 / 3)
    start_s = rng.uniform(0, duration_s - length_s)
    return round(start_s, 2), round(start_s + length_s, 2)


def questions(truths: Mapping[str, object]) -> list[dict]:
    """Return SmartHome-Bench-style annotation rows: Title, Category, Anomaly Tag, description, reasoning."""
    rows = []
    for name, truth in truths.items():
        scenario = truth.scenario
        text = scenarios.EVENT_TEXTS[scenario.event]
        verdict = "This is not usual here." if scenario.label else "This is everyday."
        rows.append({
            "Title": name, "Category": "Security", "Anomaly Tag": ("Normal", "Abnormal")[scenario.label],
            "Video Description": scenarios.prompt(scenario), "Reasoning behind Normality/Anomalies": f"{text} {verdict}",
        })  # fmt: skip
    return rows


def read_mot(text: str, num_frames: int, tracks: Sequence[int]) -> np.ndarray:
    """Return boxes (T, N, 4) of a MOTChallenge gt.txt, half-open, pixels from 0; NaN where a track has no line.

    ValueError in one line for a frame outside 1 to `num_frames` (files that count frames from 0 too), a track that is not in
    `tracks`, and a line without six numbers.
    """
    boxes = np.full((num_frames, len(tracks), 4), np.nan)
    place = {track: n for n, track in enumerate(tracks)}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        try:
            frame, track, left, top, wide, tall = (int(float(part)) for part in line.split(",")[:6])
        except ValueError:
            raise ValueError(f"line {number} of a MOT file needs six numbers, got {line[:60]!r}") from None
        if not 1 <= frame <= num_frames:
            raise ValueError(f"line {number}: MOT counts frames from 1 to {num_frames} here, got frame {frame}")
        if track not in place:
            raise ValueError(f"line {number}: track {track} is not one of {', '.join(map(str, tracks))}")
        boxes[frame - 1, place[track]] = left - 1, top - 1, left - 1 + wide, top - 1 + tall
    return boxes

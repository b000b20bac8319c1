"""Export of exact truth: COCO-video, MOTChallenge, HIVAU-style instructions, SmartHome-Bench-style questions.

- COCO: images of several videos, boxes as x, y, width, height, masks as run lengths, a track per actor, events beside them (readers
  of plain COCO ignore what they do not know)
- MOTChallenge gt.txt: frame, track, left, top, width, height, confidence, class, visibility; frames and pixels counted from 1
- visibility is an actor's area over its largest within a second: an estimate, 1 when nothing hides it
- boxes come from masks, so they agree with the picture
Sources: the COCO data format; Milan et al., MOT16, arXiv 1603.00831, section 4.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vau_lib.synthetic import scenarios
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
            Path(temporary).write_text(text)
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


def instructions(name: str, truth: object, *, video: str = "", split: str = "train") -> list[dict]:
    """Return HIVAU-style rows of one video: captions before, in and after the event, judgement, description, analysis.

    Keys are those of `hivau.hivau_instructions`: id, level, task, video, span_s, question, answer, split.
    """
    scenario = truth.scenario
    event = truth.events[0] if truth.events else None
    where = f"{scenarios.SCENE_TEXTS[scenario.scene]}, {scenarios.LIGHTING_TEXTS[scenario.lighting]}"
    ends = sorted({0.0, *((event.start_s, event.end_s) if event else ()), scenario.num_frames / scenario.fps})
    named = f"An anomaly exists, specifically, the anomaly is named {scenario.event.replace('_', ' ')}."
    verdict = named if event else "No anomaly exists in the video."
    rows = []
    for span in zip(ends, ends[1:], strict=False):
        text = scenarios.EVENT_TEXTS[scenario.event if not event or span[0] == event.start_s else "walk"]
        rows.append(("clip", "caption", span, "Describe the video briefly.", f"On {where}: {text}"))
    for level, span in (("event", (event.start_s, event.end_s) if event else None), ("video", None)):
        if level == "event" and not event:
            continue
        rows.append((level, "judgement", span, "Are there any anomaly events detected in the video?", verdict))
        described = scenarios.EVENT_TEXTS[scenario.event] + ("" if event else " Nothing unusual happens.")
        rows.append((level, "description", span, "Describe the anomaly events observed in the video.", described))
        if event:
            why = f"{scenarios.EVENT_TEXTS[scenario.event]} That may hurt people or property."
            rows.append((level, "analysis", span, "Why do you judge this event to be anomalous?", why))
    keys = ("level", "task", "span_s", "question", "answer")
    return [
        {"id": f"{name}_{number}", "video": video or f"{name}.mp4", "split": split, **dict(zip(keys, row, strict=True))}
        for number, row in enumerate(rows)
    ]


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

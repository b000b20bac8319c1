"""The cascade of `vau analyse` on an hour of a drawn camera with 12 events: recall, false alarms, delay, the large model's share.

    python benchmarks/cascade.py render hour FOLDER --part 0 --parts 2   # in as many processes as there are cores
    python benchmarks/cascade.py render quiet FOLDER                      # another camera without events, for the threshold
    python benchmarks/cascade.py run FOLDER                               # needs the demo's detector (vau run demo 01 03 06)
    python benchmarks/cascade.py table FOLDER                             # data/results/studies/cascade.csv
    python benchmarks/cascade.py keep data/toy_models/stream              # the demo's MemTSM-Net, kept (vau run demo 01 03 04)

A camera is a near place of the demo's kind, seen for slots of 30 s: 10 % of the hour's hold a fight, a fall or vandalism, 45 %
people who walk, loiter or run (every fifth what an anomaly is mistaken for), 45 % nobody. A second fades from slot to slot. The
threshold allows 4 false alarms an hour on the quiet camera, whose place is another. Seeds are in HOUR and QUIET.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from vau_lib import analyse, cascade, watch
from vau_lib.data import records, video
from vau_lib.detectors import trained_detector
from vau_lib.evaluation import metrics, online_metrics
from vau_lib.features import extraction
from vau_lib.synthetic import dataset, motion, scenarios
from vau_lib.vlm import models
from vau_lib.workspace import artifacts, presets

SLOT_S, FPS, FADE = 30.0, 10.0, 10  # seconds, frames a second, frames of a fade
HOUR = {"world_seed": 2801, "seed": 28, "slots": 120, "events": 12}
QUIET = {"world_seed": 2802, "seed": 29, "slots": 40, "events": 0}
CAMERAS = {"hour": HOUR, "quiet": QUIET}
BUDGET = 4.0  # false alarms an hour, on the quiet camera
DETECTOR = "data/models/lshma/synthetic/intended/fold0_seed0"
MEMTSM = "data/models/memtsm/synthetic/intended/fold0_seed0"
NEAR = "data/toy_models/near"


def slots(world_seed: int, seed: int, slots: int, events: int) -> list[tuple[dataset.Scenario, bool]]:
    """Return (scenario, whether anybody is there) for each slot of a camera."""
    rng = np.random.default_rng(seed)
    anomalies = [scenarios.DIFFICULTIES["easy"].events[n % 3] for n in range(events)]
    people = (slots - events) // 2
    usual = [*(["walk", "loiter", "run", "walk"] * people)[: people - people // 5]]
    usual += [scenarios.HARD_NEGATIVES[scenarios.DIFFICULTIES["easy"].events[n % 3]] for n in range(people // 5)]
    kinds = [*anomalies, *usual, *[""] * (slots - events - people)]
    order, fixed = rng.permutation(slots), {"world_seed": world_seed, "duration_s": SLOT_S, "fps": FPS, "difficulty": "easy"}
    return [(dataset.scenario_for(int(rng.integers(2**31)), event=kinds[n] or "walk", **fixed), bool(kinds[n])) for n in order]


def spans(camera: dict) -> list[tuple[float, float]]:
    """Return the event spans of a camera in seconds of its stream."""
    found = [(n, dataset._spans(s, dataset._cast(s))) for n, (s, there) in enumerate(slots(**camera)) if there and s.label]
    return [(n * SLOT_S + span.start_s, n * SLOT_S + span.end_s) for n, part in found for span in part]


def frames(camera: dict, part: int, parts: int) -> Iterator[np.ndarray]:
    """Yield the frames of one part of a camera's stream."""
    last = None
    for scenario, there in np.array_split(np.array(slots(**camera), dtype=object), parts)[part]:
        cast = dataset._cast(scenario) if there else motion.Cast()
        for number, (colours, _) in enumerate(dataset._frames_and_masks(scenario, cast)):
            if last is not None and number < FADE:
                weight = (number + 1) / (FADE + 1)
                colours = (weight * colours + (1 - weight) * last).round().astype(np.uint8)
            yield colours
        last = colours


def stream(folder: Path, name: str) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (second, frame) of a rendered camera, part after part."""
    begin = 0.0
    for path in sorted(folder.glob(f"{name}_*.mp4")):
        for moment, frame in video.live(path):
            yield begin + moment, frame
        begin += video.probe(path).duration_s


def run(folder: Path, seconds: float) -> dict:
    """Return what was measured; after every ten minutes of the stream it is written to cascade.json as well."""
    detector = cascade.load_detector(DETECTOR, threshold=2.0)
    encode, size = watch.live_encoder(DETECTOR)
    kept = folder / "quiet_scores.json"  # a second run does not look at the quiet camera again
    if not kept.exists():
        quiet = watch.watch(stream(folder, "quiet"), detector.trained, encode, snippet_frames=size)
        artifacts.write_json(kept, np.concatenate([clip.scores for clip in quiet]).astype(float).tolist())
    quiet_scores = {"quiet": np.array(artifacts.read_json(kept, list))}
    clock = dict(step_s=size / FPS, merge_s=10.0)
    threshold = online_metrics.threshold_for_budget(quiet_scores, per_hour=BUDGET, **clock)
    print(f"threshold {threshold:.6g} of {len(quiet_scores['quiet'])} quiet rows", flush=True)
    detector = cascade.load_detector(DETECTOR, threshold=threshold)
    plan = cascade.AnalysisPlan(num_frames=24, as_video=True, pair_lag_s=0.2)
    looked = cascade.Cascade(detector, plan, models.load(NEAR), strip_s=150.0)
    held, (encode, _) = [], watch.live_encoder(DETECTOR)
    for clip in watch.watch(looked.frames(stream(folder, "hour")), detector.trained, encode, snippet_frames=size):
        looked.push(clip)
        if len(held) * 20.0 <= looked.seconds:
            held.append((looked.seconds, online_metrics.resident_bytes()))
            print(f"{looked.seconds:7.0f} s, {len(looked.events)} events, {held[-1][1] / 2**20:.0f} MiB", flush=True)
            if len(held) % 30 == 0:
                _measured(folder, looked, held, quiet_scores, clock)
        if seconds and looked.seconds > seconds:
            break
    looked.finish()
    return _measured(folder, looked, held, quiet_scores, clock)


def _measured(folder: Path, looked: cascade.Cascade, held: list, quiet_scores: dict, clock: dict) -> dict:
    truth = [span for span in spans(HOUR) if span[1] <= looked.seconds]
    late = np.array(held[len(held) // 2 :])
    scores, detector = np.array([row[3] for row in looked.rows]), looked.detector
    report = online_metrics.detection_report(
        {"hour": scores}, {"hour": truth}, threshold=detector.threshold, clip_rows=detector.trained.model.settings.window, **clock
    )
    met = analyse.measure(looked, [records.Span(*span, "event") for span in truth], {})
    delays = [delay for delay in met["delays_s"] if delay is not None]
    result = {
        "threshold": detector.threshold, "quiet_hours": sum(map(len, quiet_scores.values())) * clock["step_s"] / 3600,
        "report": report, "row_auc": met["row_auc"], "delays_s": met["delays_s"],
        "delay_p50_s": round(float(np.percentile(delays, 50)), 2) if delays else None,
        "delay_p99_s": round(float(np.percentile(delays, 99)), 2) if delays else None,
        "alarms": after(looked, truth, lambda event: True),
        "judged_anomalous": after(looked, truth, lambda event: (event.answer or {}).get("anomaly") == 1),
        "cost": looked.cost(), "resident_mib": [round(float(value) / 2**20, 1) for value in late[[0, -1], 1]],
        "resident_mib_per_hour": round(online_metrics.slope_per_hour(late[:, 1], late[:, 0]) / 2**20, 2),
    }  # fmt: skip
    rows = [[round(float(value), 6) for value in row] for row in looked.rows]
    artifacts.write_json(folder / "cascade.json", result | {"events": [event.as_row() for event in looked.events], "rows": rows})
    return result


def table(folder: Path) -> pd.DataFrame:
    """Write data/results/studies/cascade.csv of what `run` measured; return it."""
    found = artifacts.read_json(folder / "cascade.json", dict)
    cost, rows = found["cost"], []
    for name, key in (
        ("the stream's alarms", "alarms"),
        ("of these judged anomalous by the tiny language model", "judged_anomalous"),
    ):
        part = found[key]
        row = {"what": name, "alarms": part["events"], "recall": part["recall"], "false_alarms": part["false"]}
        rows.append(row | {"false_alarms_per_hour": part["false_per_hour"]})
    rows[0] |= {"delay_p50_s": found["delay_p50_s"], "delay_p99_s": found["delay_p99_s"]}
    rows[1] |= {"delay_p50_s": cost.get("explained_after_p50_s"), "delay_p99_s": cost.get("explained_after_p99_s")}
    rows[0]["share_of_time"] = round(1 - cost["language_model_share_of_time"], 4)
    rows[1]["share_of_time"] = cost["language_model_share_of_time"]
    out = pd.DataFrame(rows)
    artifacts.write_table(presets.project_path("data/results/studies/cascade.csv"), out)
    return out


def keep(out: Path) -> dict:
    """Keep the demo's MemTSM-Net with the causal scores of its validation videos; return what it is worth on the test videos."""
    source, root = presets.project_path(MEMTSM), presets.project_path("data/synthetic")
    trained, facts = trained_detector.load(source), artifacts.read_json(source / "made_by.json")["facts"]
    found = records.read_records(root / "records.jsonl")
    features = extraction.load(presets.project_path("data/features/synthetic/xfeat_local_change"), found)
    scored = {r: trained.score_video(features[r.id], causal=True, hop=1)[1] for r in found if r.split != "train"}
    test = {r.id: r for r in scored if r.split == "test"}
    truth = {name: records.frame_labels(r) for name, r in test.items()}
    step = facts["features"]["snippet_frames"]
    frame_scores = {
        r.id: online_metrics.newest(v, r.num_frames, clip_rows=1, snippet_frames=step) for r, v in scored.items() if r.id in test
    }
    fitted = trained.preprocessing
    far = max(fitted.distance(fitted._steps(features[r.id], None).mean(0)) for r in found if r.split == "train")
    trained = replace(trained, preprocessing=replace(fitted, farthest=far), curves=None)
    highest = {r.id: float(v.max()) for r, v in scored.items()}
    measured = {
        "causal_frame_auc": round(metrics.frame_auc(frame_scores, truth), 3), "test_videos": len(test),
        "video_auc": round(metrics.video_auc({n: highest[n] for n in test}, {n: r.label for n, r in test.items()}), 3),
    }  # fmt: skip
    made_by = {"kind": "toy, trained on the demo's drawn videos", "command": "python benchmarks/cascade.py keep"}
    trained_detector.save(out, trained, facts=facts, measured=measured, **made_by)
    rows = {
        r.id: {"split": r.split, "label": r.label, "video": highest[r.id], "scores": np.round(v, 6).tolist(), "causal": True}
        for r, v in scored.items() if r.split == "val"
    }  # fmt: skip
    artifacts.write_json(out / "scores.json", rows)
    return measured


def after(looked: cascade.Cascade, truth: list[tuple[float, float]], keep) -> dict:
    """Return recall and false alarms of the kept events, as spans that do or do not meet a true one."""
    kept = [event for event in looked.events if keep(event)]
    met = [any(e.start_s < end and e.end_s > start for e in kept) for start, end in truth]
    false = sum(not any(e.start_s < end and e.end_s > start for start, end in truth) for e in kept)
    hours = (looked.seconds - sum(end - start for start, end in truth)) / 3600
    return {"events": len(kept), "recall": f"{sum(met)} of {len(met)}", "false": false, "false_per_hour": round(false / hours, 2)}


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("step", choices=("render", "run", "table", "keep"))
    words.add_argument("rest", nargs="+")
    words.add_argument("--part", type=int, default=0)
    words.add_argument("--parts", type=int, default=1)
    words.add_argument("--seconds", type=float, default=0.0)
    given = words.parse_args()
    if given.step == "render":
        name, place = given.rest
        print(video.write_video(Path(place) / f"{name}_{given.part}.mp4", frames(CAMERAS[name], given.part, given.parts), fps=FPS))
    elif given.step == "table":
        print(table(Path(given.rest[0])).to_string())
    elif given.step == "keep":
        print(keep(Path(given.rest[0])))
    else:
        print(json.dumps(run(Path(given.rest[0]), given.seconds), indent=1))

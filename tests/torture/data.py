"""Damaged data files through every reader of the package: `artifacts.READERS`, each with a good file to damage."""

import importlib
import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random

import numpy as np
import torch

import vau_lib
from torture import mutants
from torture.common import Hang, Tally, limited, refused
from vau_lib.workspace import artifacts

SLOW = {"vlm.models.load", "vlm.holmesvau.convert", "vlm.finetuning.load_adapter", "vlm.finetuning.with_adapter"} | {
    "vlm.finetuning.trainable_adapter", "vlm.internlm2_tokenizer.convert", "compression.pruning.load", "vlm.grpo._resume",
}  # fmt: skip
PUBLISHED = {"detectors.anomaly_scorer.load_released", "detectors.memtsm.load_released"}  # other weights stand for theirs
ROWS = np.random.default_rng(0).random((40, 128), dtype=np.float32)


@dataclass
class Case:
    """How a reader is called, the files it reads, and names of which one must stand in its error."""

    call: Callable[[], object]
    files: list[Path]
    names: list[str]


def import_all() -> None:
    """Import every module, so that every reader is known."""
    for module in pkgutil.walk_packages(vau_lib.__path__, "vau_lib."):
        importlib.import_module(module.name)


def _write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def cases(root: Path, *, slow: bool = True) -> dict[str, Case]:
    """Write a good file or folder for each reader; return {reader: Case}. A new reader needs a line here: `missing` names it."""
    from vau_lib import analyse, cascade, guard
    from vau_lib.data import annotation, datasets, fetch, hivau, records, smarthome
    from vau_lib.detectors import experiments, lshma, lshma_state, memtsm, preprocessing, trained_detector
    from vau_lib.evaluation import atlas, class_metrics, result_tables, smarthome_prompts
    from vau_lib.features import checkpoints, extraction, feature_lists, image_encoders, released
    from vau_lib.publish import hub
    from vau_lib.synthetic import captions, dataset, text_to_video
    from vau_lib.toy import long_videos
    from vau_lib.vlm import clients, instruction_data

    root.mkdir(parents=True, exist_ok=True)
    made: dict[str, Case] = {}

    def add(name: str, call: Callable[[], object], *files: Path) -> None:
        files = [Path(file) for file in files]
        made[name] = Case(call, files, [file.name for file in files] + [file.parent.name for file in files])

    found = [records.VideoRecord(name, f"{name}.mp4", "own", split, k % 2, ("fall",) * (k % 2), fps=10.0, num_frames=640)
             for k, (name, split) in enumerate([("a", "val"), ("b", "test"), ("c", "train")])]  # fmt: skip
    listed = root / "records.jsonl"
    records.write_records(listed, found)
    add("data.records.read_records", lambda: records.read_records(listed), listed)
    add("guard.sources", lambda: guard.sources(listed), listed)
    records.write_coverage(root / "cov" / "records.jsonl", found, found)
    records.write_records(root / "cov" / "records.jsonl", found)
    cov = root / "cov" / "records.coverage.json"
    add("data.records.expected_videos", lambda: records.expected_videos(root / "cov" / "records.jsonl"), cov)
    # annotations
    pools = _write(root / "pools.json", {task: ["What?"] for task in annotation.PROMPT_POOLS})
    add("data.annotation.read_prompt_pools", lambda: annotation.read_prompt_pools(pools), pools)
    review = _write(root / "review.csv", "id,decision,answer\nx,keep,yes\ny,drop,no\n")
    add("data.annotation.read_review", lambda: annotation.read_review(review), review)
    row = dict(id="1", level="video", task="judgement", question="q?", answer="Yes.", video="a.mp4", video_id="a", dataset="own",
               split="train", span={"start_s": 0.0, "end_s": 2.0})  # fmt: skip
    collected = _write(root / "collect" / "a.json", {"facts": {}, "rows": [row]})
    add("data.annotation._rows_of", lambda: annotation._rows_of(collected), collected)
    clips = _write(root / "clips.csv", "clip,label,fold,class\na.mp4,1,0,fall\nb.mp4,0,1,\n")
    add("data.datasets.clip_folder", lambda: datasets.clip_folder(root, clips), clips)
    counts = _write(root / "counts.json", {"a": 30, "b": 40})
    add("data.datasets.frame_counts", lambda: datasets.frame_counts(counts), counts)
    sums = _write(root / "raw" / "checksums.json", {"http://h/x": {"sha256": "0"}})
    add("data.fetch._checksums", lambda: {k: v.get("sha256") for k, v in fetch._checksums(root / "raw").items()}, sums)
    test_row = {
        "id": 3,
        "type": "clip",
        "task": "caption",
        "video": "ucf-crime/clips/test/A_E0C1.mp4",
        "prompt": "What?",
        "anwser": "A.",
    }
    train_row = {"id": 4, "type": "event", "task": "judgement", "video": "xd-violence/events/train/v_E2.mp4",
                 "conversations": [{"from": "human", "value": "<video>\nIs it?"}, {"from": "gpt", "value": "No."}]}  # fmt: skip
    rows = _write(root / "hivau.jsonl", f"{json.dumps(test_row)}\n{json.dumps(train_row)}\n")
    add("data.hivau.hivau_instructions", lambda: hivau.hivau_instructions(rows, strict=True), rows)
    part = {"judgement": "An anomaly exists.", "description": "A dog bites."}
    entry = {"n_frames": 50, "fps": 25.0, "label": ["Abuse"], "events": [[0.4, 1.2]], "clips": [[[0.4, 0.8], [0.8, 1.6]]],
             "clips_caption": [["One.", "Two."]], "events_summary": ["A dog."], "video_summary": "x",
             "events_summary_split": [part],
             "video_summary_split": part}  # fmt: skip
    raw = _write(root / "ucf_database_test.json", {"A": entry, "N": entry | {"label": []}})
    add("data.hivau.hivau_raw", lambda: hivau.hivau_raw(raw, strict=True), raw)
    samples = root / "samples.jsonl"
    hivau.write_samples(samples, hivau.hivau_instructions(rows))
    add("data.hivau.read_samples", lambda: hivau.read_samples(samples, strict=True), samples)
    bench = root / "bench"
    _write(bench / "Video_Annotation.csv", 'Title,Category,Anomaly Tag\na,"Pet, Baby",Normal\nb,Wildlife,Abnormal\n')
    _write(bench / "Video_url.csv", "Title,URL\na,http://h/a\nb,http://h/b\n")
    add(
        "data.smarthome.read_annotations",
        lambda: smarthome.read_annotations(bench / "Video_Annotation.csv"),
        bench / "Video_Annotation.csv",
    )
    add(
        "data.smarthome.read_benchmark",
        lambda: smarthome.read_benchmark(bench),
        bench / "Video_Annotation.csv",
        bench / "Video_url.csv",
    )
    answers = _write(root / "answers.jsonl", '{"id": "a", "pred": "1", "truth": 1}\n{"id": "b", "pred": "0", "truth": 0}\n')
    add("data.smarthome.read_responses", lambda: smarthome.read_responses(answers), answers)
    replayed = _write(root / "replay.jsonl", '{"id": "a", "answer": "1"}\n{"id": "b", "answer": "0"}\n')
    add("vlm.clients.replay", lambda: clients.replay(replayed, source="x"), replayed)
    # detectors
    features = {name: ROWS for name in "abc"}
    place = root / "trained" / "own" / "fold0_seed0"
    torch.manual_seed(0)
    fitted = preprocessing.Preprocessing.fit(features, steps=32, temporal_difference=True)
    trained = trained_detector.TrainedDetector(memtsm.MemTSM(memtsm.MemTSMConfig()).eval(), fitted, None)
    trained_detector.save(place, trained, facts={"features": {"snippet_frames": 16, "encoder": "xfeat"}}, tau=0.2, kind="toy")
    experiments.write_scores(place, trained.score_video, found, features)
    three = [place / name for name in ("config.json", "model.safetensors", "made_by.json")]
    add("detectors.trained_detector.load", lambda: trained_detector.load(place), *three[:2])
    add("detectors.trained_detector.features_of", lambda: trained_detector.features_of(place), three[2])
    add("detectors.trained_detector.untrained", lambda: trained_detector.untrained(place), three[0])
    add("cascade.load_detector", lambda: cascade.load_detector(place), *three)
    add("cascade.validation_threshold", lambda: cascade.validation_threshold(place), place / "scores.json")
    add("cascade._is_causal", lambda: cascade._is_causal(place), place / "scores.json")
    add("publish.hub.card", lambda: hub.card(place, "own/name"), *three[::2])
    (place / "film.mp4").write_bytes(b"x")
    add("analyse._is_drawn", lambda: analyse._is_drawn(str(place / "film.mp4")), three[2])
    add("toy.long_videos.load_scorer", lambda: float(long_videos.load_scorer(place)[1]), *three)
    add("detectors.experiments.input_of", lambda: experiments.input_of(place.parent), place / "config.json", place / "made_by.json")
    add("detectors.experiments.is_done", lambda: experiments.is_done(place, {"seed": 1}), place / "made_by.json")
    experiments.unfinished(root / "unfinished" / "x", {"seed": 0})
    begun = root / "unfinished" / "x" / "unfinished" / "made_by.json"
    add("detectors.experiments.unfinished", lambda: experiments.unfinished(root / "unfinished" / "x", {"seed": 0}), begun)
    add("detectors.experiments.read_scores", lambda: experiments.read_scores(place), place / "scores.json")
    add("detectors.experiments.test_scores", lambda: experiments.test_scores(place), place / "scores.json")
    add("detectors.experiments.mean_scores", lambda: experiments.mean_scores(place.parent, (0,)), place / "scores.json")
    add("detectors.experiments.read_trainings", lambda: experiments.read_trainings(place.parent, {"b": 0}), place / "scores.json")
    aucs = lambda: experiments.frame_aucs(place, str(root / "events.jsonl"), 0)  # noqa: E731
    event = records.Span(10.0, 20.0, "fall")
    records.write_records(root / "events.jsonl", [records.replace(r, events=(event,) if r.label else ()) for r in found])
    add("detectors.experiments.frame_aucs", aucs, place / "scores.json", place / "config.json", place / "made_by.json")
    now = lambda: experiments.outdated(place.parent, [found], {"xfeat": features}, {"xfeat": {}})  # noqa: E731
    add("detectors.experiments.outdated", now, place / "made_by.json")
    torch.save(memtsm.MemTSM(memtsm.MemTSMConfig()).state_dict(), root / "memtsm.pth")
    add("detectors.memtsm.load_released", lambda: memtsm.load_released(root / "memtsm.pth"), root / "memtsm.pth")
    add("features.checkpoints.load_weights", lambda: checkpoints.load_weights(root / "memtsm.pth"), root / "memtsm.pth", three[1])
    from published_lshma import published_tree

    torch.save(published_tree("ucf", 8).state_dict(), root / "lshma.pth")
    add("detectors.lshma.load_released", lambda: lshma.load_released(root / "lshma.pth"), root / "lshma.pth")
    from vau_lib.detectors import anomaly_scorer

    torch.save({f"layer.{k}": torch.zeros(4, 4) for k in range(3)}, root / "scorer.pth")
    add("detectors.anomaly_scorer.load_released", lambda: anomaly_scorer.load_released(root / "scorer.pth"), root / "scorer.pth")
    model = lshma.LSHMA(lshma_state.LSHMAConfig.ucf(width=8, window=2)).eval()
    model.push(torch.rand(1, 3, 8), None)[1].save(root / "state.safetensors")
    add(
        "detectors.lshma_state.StreamState.load",
        lambda: lshma_state.StreamState.load(root / "state.safetensors"),
        root / "state.safetensors",
    )
    # tables
    items = _write(root / "atlas.yaml", "- source: A\n  items:\n  - {item: t, shows: s, state: here, at: [04]}\n")
    add("evaluation.atlas.read", lambda: atlas.read(items), items)
    class_metrics.write_class_scores(root / "classes.npz", {"a": np.random.rand(4, 2)}, ["Normal", "Abuse"])
    add(
        "evaluation.class_metrics.read_class_scores",
        lambda: class_metrics.read_class_scores(root / "classes.npz"),
        root / "classes.npz",
    )
    table = _write(root / "tables" / "own.csv", "method,level,video_auc\nx,video,.9\ny,video,.8\n")
    add("evaluation.result_tables.read_tables", lambda: result_tables.read_tables(root / "tables"), table)
    styles = _write(root / "styles.json", {"zero": "Is it?", "chain": [{"name": "see", "text": "Look.", "sees_video": True}]})
    add("evaluation.smarthome_prompts.read_prompts", lambda: smarthome_prompts.read_prompts(styles), styles)
    # features
    out = root / "features"
    artifacts.write_made_by(out, encoder="xfeat")
    for record in found:
        artifacts.save_array(out / f"{record.id}.npy", ROWS)
    add("features.extraction.load", lambda: extraction.load(out, found, encoder="xfeat"), out / "made_by.json", out / "a.npy")
    given = root / "lists"
    for name in ("Abuse001_x264", "Normal_1"):
        artifacts.save_array(given / f"{name}.npy", np.zeros((10, 3, 16), np.float32))
    names = _write(root / "train.list", "x/Abuse001_x264.npy\nx/Normal_1.npy\n")
    add("features.feature_lists.feature_list", lambda: feature_lists.feature_list(names, given), names)

    def take(function: Callable) -> object:
        target = root / f"taken_{len(os.listdir(root))}_{time.time_ns()}"
        return function(target)

    take_lists = lambda: take(lambda to: feature_lists.import_lists([names], given, to, width=16))  # noqa: E731
    add("features.feature_lists.import_lists", take_lists, names, given / "Normal_1.npy", given / "Abuse001_x264.npy")
    csv = _write(root / "train.csv", "path,label\n/x/Abuse001_x264__0.npy,Abuse\n")
    artifacts.save_array(root / "clip" / "Abuse001_x264__0.npy", np.ones((10, 512), np.float32))
    take_clip = lambda: take(lambda to: released.import_features([csv], root / "clip", to))  # noqa: E731
    add("features.released.import_features", take_clip, csv, root / "clip" / "Abuse001_x264__0.npy")
    pixels = _write(root / "tower" / "preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]})
    add("features.image_encoders._pixel_values", lambda: image_encoders._pixel_values(pixels.parent, ((), ())), pixels)
    tower = _write(root / "tower" / "config.json", {"model_type": "clip_vision_model", "hidden_size": 32, "num_attention_heads": 4})
    add("features.image_encoders._vision_config", lambda: image_encoders._vision_config(tower.parent), tower)
    # generated and drawn
    truth = dict(boxes=np.zeros((4, 1, 4)), masks=np.zeros((4, 8, 8), np.uint8), depth=np.zeros((4, 1)), track_ids=np.zeros(1, int),
                 kinds=np.array(["person"]), scenario=np.array('{"event": "fall"}'))  # fmt: skip
    np.savez_compressed(root / "truth.npz", **truth)
    add("synthetic.dataset.read_truth", lambda: dataset.read_truth(root / "truth.npz"), root / "truth.npz")
    add("synthetic.captions._read_truth", lambda: captions._read_truth(root / "truth.npz"), root / "truth.npz")
    films = root / "films"
    records.write_records(films / "records.jsonl", found)
    _write(films / "ledger.jsonl", "".join(json.dumps({"id": r.id, "event": "fall", "status": "done"}) + "\n" for r in found))
    _write(films / "instructions.jsonl", "".join(
        json.dumps({"video": r.path, "task": "judgement", "level": "video", "answer": "No."}) + "\n" for r in found))  # fmt: skip
    text_to_video.review_sheet(films)
    sheet = films / "review.csv"
    add("synthetic.text_to_video.review_sheet", lambda: text_to_video.review_sheet(films), sheet)
    add("synthetic.text_to_video.apply_review", lambda: text_to_video.apply_review(films), sheet, films / "records.jsonl")
    add(
        "synthetic.text_to_video.reviewed_instructions",
        lambda: text_to_video.reviewed_instructions(films),
        films / "instructions.jsonl",
        sheet,
    )
    add("synthetic.text_to_video.report", lambda: text_to_video.report(films, {}), films / "ledger.jsonl")
    log = _write(root / "guard.jsonl", '{"id": "a", "model": "m", "error": ""}\n{"id": "b", "model": "m", "error": ""}\n')
    add("guard._read_rows", lambda: guard._read_rows(log), log)
    (root / "a.mp4").write_bytes(b"x")
    rows_file = _write(root / "instructions.jsonl", json.dumps({"split": "train", "video": "a.mp4", "task": "judgement"}) + "\n")
    add("vlm.instruction_data._rows_of", lambda: instruction_data._rows_of(rows_file, root, "train"), rows_file)
    add("explain.load_scorer", lambda: _load_scorer(place), *three)
    if slow:
        _models(root, add)
    return made


def _load_scorer(place: Path) -> None:
    from vau_lib import explain

    try:
        explain.load_scorer(place, type("Tower", (), {"widths": lambda self: (64, 32)})())
    except artifacts.StoreError as error:
        if "not AnomalyScorer" not in str(error):
            raise


def _models(root: Path, add: Callable) -> None:
    """Cases of language models: toy width, still a tenth of a second each."""
    from vau_lib.compression import pruning
    from vau_lib.toy import tiny_vlm
    from vau_lib.vlm import finetuning, grpo, holmesvau, internlm2_tokenizer, models

    small = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
    vlm = tiny_vlm.tiny("internvl", sizes=small)
    models.save(vlm, root / "vlm")
    add(
        "vlm.models.load",
        lambda: models.load(root / "vlm", local_only=True),
        *(root / "vlm").glob("*.json"),
        root / "vlm" / "model.safetensors",
    )
    mlp = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    pruning.save(pruning.factorise(mlp, 0.6, [torch.randn(64, 8)]), root / "pruned")
    pair = root / "pruned" / "compression.json", root / "pruned" / "model.safetensors"
    add("compression.pruning.load", lambda: pruning.load(root / "pruned", mlp), *pair)
    finetuning.save_adapter(vlm.replace(model=finetuning.lora(vlm.model)), root / "adapter")
    files = [root / "adapter" / name for name in ("adapter_config.json", "adapter_model.safetensors", "made_by.json")]
    fresh = lambda: tiny_vlm.tiny("internvl", sizes=small)  # noqa: E731
    add("vlm.finetuning.load_adapter", lambda: finetuning.load_adapter(fresh().model, root / "adapter"), *files[:2])
    add("vlm.finetuning.with_adapter", lambda: finetuning.with_adapter(fresh(), root / "adapter"), *files)
    add("vlm.finetuning.trainable_adapter", lambda: finetuning.trainable_adapter(fresh(), root / "adapter"), *files)
    plan = grpo.GRPOPlan()
    weights = [torch.nn.Parameter(torch.zeros(3))]
    make = lambda: torch.optim.AdamW(weights)  # noqa: E731
    state = dict(plan=plan.__dict__, weights=[torch.zeros(3)], optimiser=make().state_dict(), start=[torch.zeros(3)],
                 rows=[{"step": 1}],
                 random=torch.get_rng_state(), random_python=Random(0).getstate(), random_cuda=[])  # fmt: skip
    (root / "policy").mkdir()
    torch.save(state, root / "policy" / "policy.pt")
    add("vlm.grpo._resume", lambda: grpo._resume(root / "policy", plan, weights, make()), root / "policy" / "policy.pt")
    import released_holmesvau

    released_holmesvau.released_folder(root / "holmes")
    size = json.loads((root / "holmes" / "config.json").read_text())["llm_config"]["vocab_size"]
    texts = sorted((root / "holmes").glob("*.json"))
    convert = lambda: holmesvau.convert(root / "holmes", root / f"converted_{time.time_ns()}", progress=False)  # noqa: E731
    add("vlm.holmesvau.convert", convert, *texts)
    tokens = [path for path in texts if "token" in path.name] + [root / "holmes" / "tokenizer.model"]
    add("vlm.internlm2_tokenizer.convert", lambda: internlm2_tokenizer.convert(root / "holmes", vocab_size=size), *tokens)


def missing(made: dict[str, Case]) -> list[str]:
    """Return the readers that have no good file in `cases`."""
    return sorted(set(artifacts.READERS) - set(made) - SLOW)


def run(root: Path, *, count: int, seed: int, slow: bool = True, only: str = "") -> list[Tally]:
    """Damage the files of every reader `count` times in all; a list of tallies, by kind of file."""
    rng, tallies = Random(seed), {}
    import_all()
    os.environ.pop(mutants.MARK, None)
    made = {name: case for name, case in cases(root, slow=slow).items() if only in name}
    for name, case in made.items():
        tally = tallies.setdefault("readers", Tally("data: good files are read"))
        with tally.one(name), limited(), redirect_stdout(StringIO()):
            try:
                case.call()
            except artifacts.StoreError as error:  # the published files are not here: theirs are refused by name all along
                if name not in PUBLISHED or "does not fit" not in str(error):
                    raise
    pairs = [(name, case, file) for name, case in made.items() for file in case.files]
    for number in range(count):
        name, case, file = pairs[number % len(pairs)] if number < len(pairs) else rng.choice(pairs)
        if name in SLOW and number >= len(pairs) and rng.random() < 0.8:
            name, case, file = rng.choice([pair for pair in pairs if pair[0] not in SLOW])
        good = file.read_bytes()
        tally = tallies.setdefault(file.suffix, Tally(f"data: {file.suffix}"))
        bad = mutants.mutant(file.suffix, good, rng)
        file.write_bytes(bad)
        try:
            with tally.one(f"{name}({file.name}, mutant {number} of seed {seed})"), limited(), redirect_stdout(StringIO()):
                try:
                    case.call()
                    tally.outcomes["read"] += 1
                except (Hang, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    tally.outcomes["refused"] += 1
                    refused(error, *case.names)
                assert mutants.MARK not in os.environ, "code of the file was run"
        finally:
            os.environ.pop(mutants.MARK, None)
            file.write_bytes(good)
            if file.parent.name == "unfinished":
                (file.parent).mkdir(exist_ok=True)
    return list(tallies.values())


if __name__ == "__main__":
    sys.exit("run benchmarks/torture.py data")

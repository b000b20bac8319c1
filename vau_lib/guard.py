"""One call for a video, a folder or a records.jsonl: a security model looks, speaks, and leaves a line of JSON each.

- zero-shot: one question that names what a guard wants to know and asks for a verdict in a form that can be read back; the released
  prompt of Memories-S0 asks for a caption only, and says nowhere how a caption becomes a verdict
- what stands in the output file is not asked again; a broken video becomes a line with its error, and the rest goes on
- tokens and memory are said before anything is generated; with one video at a time the text can be watched as it is made
Source: Memories-S0's repository, inference.py (greedy, bf16, up to 768 new tokens); the wording is ours.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from vau_lib.compression import token_pruning
from vau_lib.data import answer_parsing, records, video
from vau_lib.vlm import chat, inference, models
from vau_lib.workspace import artifacts

QUESTION = """You watch a fixed security camera. Look at the whole clip before you decide.
Say in order of time what people, animals and vehicles do, what is carried, left, taken or damaged, and whether anybody needs help.
An anomaly is a danger, a crime, an accident or a thing out of its place: fighting, falling and staying down, breaking in, stealing,
vandalism, fire, a crash, an object left alone, a wild animal at a door. Walking, waiting, playing and deliveries are not.
End with one line of JSON: {"anomaly": 0 or 1, "kind": "a few words", "from_s": seconds, "to_s": seconds}"""

NEW_TOKENS = 768  # of the released script


@dataclass(frozen=True)
class GuardPlan:
    """How to look and ask: frames per video, share of picture tokens read, length of an answer, videos per call, the question."""

    num_frames: int = 16
    share: float = 1.0
    max_new_tokens: int = NEW_TOKENS
    batch_size: int = 1
    question: str = QUESTION


def sources(where: str | Path) -> list[tuple[str, Path]]:
    """Return (id, path) of every video in a file, a folder (all below it, by name) or a records.jsonl; ValueError for none."""
    where = Path(where)
    if where.suffix == ".jsonl":
        return [(record.id, records.locate(record, where.parent)) for record in records.read_records(where)]
    if where.is_dir():
        found = sorted(path for path in where.rglob("*") if path.suffix.lower() in video.VIDEO_SUFFIXES)
        if not found:
            raise ValueError(f"{where} holds no video ({', '.join(sorted(video.VIDEO_SUFFIXES))})")
        return [(str(path.relative_to(where)), path) for path in found]
    if not where.is_file():
        raise ValueError(f"no video, folder or records.jsonl at {where}")
    return [(where.name, where)]


def guard(
    vlm: models.VLM, where: str | Path, out: str | Path | None = None, *, watch: GuardPlan | None = None,
    stream: Callable[[str], object] | None = None, tell: Callable[[str], object] | None = print, progress: bool = True,
) -> list[dict]:  # fmt: skip
    """Ask about every video of `sources(where)`; return a row each: id, model, anomaly, text, times_s, seconds, error, ...

    `anomaly` is 1, 0 or None where the text does not say. With `out` rows are appended there as JSON lines, and videos it holds
    are not asked again. `stream` gets pieces of text as they are made (one video per call only). ValueError for nothing to watch,
    a share outside (0, 1], a single video that cannot be read, and prompts beyond the model's context.
    """
    watch, found = watch or GuardPlan(), sources(where)
    if stream is not None and watch.batch_size != 1:
        raise ValueError(f"text of {watch.batch_size} videos at once cannot be watched: batch_size must be 1")
    if watch.batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {watch.batch_size}")
    done = {row["id"]: row for row in _kept(out)}
    if strangers := {(row["model"], row["share"]) for row in done.values()} - {(vlm.label, watch.share)}:
        said = "; ".join(f"{model}, share {share}" for model, share in sorted(strangers))
        raise artifacts.StoreError(f"{out} holds answers of {said}; these would be of {vlm.label}, share {watch.share}")
    left = [(name, path) for name, path in found if name not in done]
    with tqdm(total=len(left), desc="watching", unit="video", disable=not progress) as bar:
        for start in range(0, len(left), watch.batch_size):
            part = left[start : start + watch.batch_size]
            for row in _asked(vlm, part, watch, stream, tell, alone=len(found) == 1):
                done[row["id"]] = row
                if out is not None:
                    _append(Path(out), row)
            bar.update(len(part))
    return [done[name] for name, _ in found]


def _asked(vlm, part, watch: GuardPlan, stream, tell, *, alone: bool) -> Iterator[dict]:
    turns, shown, started = {}, {}, time.perf_counter()
    for name, path in part:
        try:
            index, _ = inference.uniform_frames(path, watch.num_frames)
            shown[name] = video.frame_times(path)[index].round(3).tolist()
            turns[name] = chat.encode(vlm, video.read_frames(path, index), watch.question, times_s=shown[name])
        except video.VideoError as error:
            if alone:
                raise
            yield _row(name, path, vlm, watch, error=str(error))
    if not turns:
        return
    reader = vlm if watch.share == 1 else vlm.replace(model=token_pruning.compressed(vlm.model, share=watch.share))
    options = {"streamer": inference.streamer(vlm, stream)} if stream else {}
    texts = inference.generate(reader, list(turns.values()), max_new_tokens=watch.max_new_tokens, tell=tell, **options)
    seconds = round((time.perf_counter() - started) / len(turns), 3)
    paths = dict(part)
    for (name, turn), text in zip(turns.items(), texts, strict=True):
        counted = {"prompt_tokens": turn["input_ids"].shape[1], "times_s": shown[name], "seconds": seconds}
        yield _row(name, paths[name], vlm, watch, text=text, **counted)


def _row(name: str, path: Path, vlm: models.VLM, watch: GuardPlan, *, text: str = "", error: str = "", **facts) -> dict:
    said = {"anomaly": answer_parsing.parse_verdict(text), "text": text, "error": error}
    return {"id": name, "video": path.name, "model": vlm.label, "share": watch.share, **said, **facts}


def _kept(out: str | Path | None) -> list[dict]:
    """Return the rows of an output file; a last line that was cut off is asked again, another broken line is an error."""
    if out is None or not Path(out).is_file():
        return []
    lines, rows = Path(out).read_text().splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise artifacts.StoreError(f"{out}, line {number}, is no JSON: {error}") from error
    if len(rows) < len(lines):
        with artifacts.replacing(Path(out)) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _append(out: Path, row: dict) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")

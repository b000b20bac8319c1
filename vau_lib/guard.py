"""Watching videos with a security model (Memories-S0): a video, a folder or a records.jsonl in, a line of JSON per video out.

- a model that was tuned is asked as in its tuning, if it carries the question
- zero-shot: one prompt names what a guard wants to know and asks for a verdict that can be parsed; the released prompt of
  Memories-S0 asks for a caption only, and does not say how a caption becomes a verdict
- videos in the output file are not asked again; a broken video, or one whose name is no text, becomes a line with its error
- tokens and memory are logged before anything is generated; with one video at a time the text can be streamed
Source: Memories-S0's repository, inference.py (greedy, bf16, up to 768 new tokens); the wording is ours.
"""

import os
import time
from collections.abc import Iterator
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
MAX_NEW_TOKENS = 768  # of the released script


@dataclass(frozen=True)
class GuardPlan:
    """How to ask: frames per video, ratio of visual tokens kept, length of an answer, videos per call, the question.

    `question` "" is the one the model carries from its tuning, and QUESTION for a model that carries none.
    `as_video` gives the frames as one video, which takes half the tokens (Qwen2.5-VL only).
    """

    num_frames: int = 16
    keep_ratio: float = 1.0
    max_new_tokens: int = MAX_NEW_TOKENS
    batch_size: int = 1
    question: str = ""
    as_video: bool = False


def sources(where: str | Path) -> list[tuple[str, Path]]:
    """Return (id, path) of every video in a file, a folder (all below it, by name) or a records.jsonl; ValueError for none."""
    where = Path(where)
    if where.suffix == ".jsonl":
        return [(record.id, records.locate(record, where.parent)) for record in records.read_records(where)]
    if where.is_dir():
        paths = sorted(path for path in where.rglob("*") if path.suffix.lower() in video.VIDEO_SUFFIXES)
        if not paths:
            raise ValueError(f"{where} holds no video ({', '.join(sorted(video.VIDEO_SUFFIXES))})")
        return [(_printable(path.relative_to(where)), path) for path in paths]
    if not where.is_file():
        raise ValueError(f"no video, folder or records.jsonl at {where}")
    return [(_printable(where.name), where)]


def _printable(name: str | Path) -> str:
    """Return a file's name as text that can be written; bytes that are not UTF-8 become \\x.. ."""
    return os.fsencode(name).decode(errors="backslashreplace")


def guard(
    vlm: models.VLM,
    source: str | Path,
    out: str | Path | None = None,
    *,
    plan: GuardPlan | None = None,
    stream: inference.Log | None = None,
    log: inference.Log | None = print,
    progress: bool = True,
) -> list[dict]:
    """Ask about every video of `sources(source)`; return a row each: id, model, anomaly, text, times_s, seconds, error, ...

    `anomaly` is 1, 0 or None where the text does not say.

    Args:
        vlm: the model.
        source: a video, a folder or a records.jsonl.
        out: file that gets the rows as JSON lines; videos it holds are not asked again.
        plan: how to ask.
        stream: gets pieces of the text as they are generated (one video per call only).
        log: gets a line with the cost of each call of generate.
        progress: show a bar.

    Raises ValueError where there is nothing to watch, for a keep ratio outside (0, 1] and for prompts beyond the model's
    context; VideoError for a single video that cannot be read.
    """
    plan, videos = plan or GuardPlan(), sources(source)
    if stream is not None and plan.batch_size != 1:
        raise ValueError(f"text of {plan.batch_size} videos at once cannot be watched: batch_size must be 1")
    if plan.batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {plan.batch_size}")
    done = {row["id"]: row for row in _read_rows(out)}
    if others := {(row["model"], row["keep_ratio"]) for row in done.values()} - {(vlm.label, plan.keep_ratio)}:
        names = "; ".join(f"{model}, keep_ratio {keep_ratio}" for model, keep_ratio in sorted(others))
        raise artifacts.StoreError(f"{out} holds answers of {names}; these would be of {vlm.label}, keep_ratio {plan.keep_ratio}")
    left = [(name, path) for name, path in videos if name not in done]
    with tqdm(total=len(left), desc="watching", unit="video", disable=not progress) as bar:
        for start in range(0, len(left), plan.batch_size):
            batch = dict(left[start : start + plan.batch_size])
            for row in _answers(vlm, batch, plan, stream, log, alone=len(videos) == 1):
                done[row["id"]] = row
                if out is not None:
                    artifacts.append_json_line(out, row)
            bar.update(len(batch))
    return [done[name] for name, _ in videos]


def _answers(vlm: models.VLM, batch: dict[str, Path], plan: GuardPlan, stream, log, *, alone: bool) -> Iterator[dict]:
    """Yield a row per video {id: path}; a broken one gets its error, unless it stands alone."""
    samples, times, started = {}, {}, time.perf_counter()
    question = plan.question or vlm.question or QUESTION
    for name, path in batch.items():
        try:
            if _printable(path) != str(path):
                raise video.VideoError(f"{name}: its name is not UTF-8, rename it")
            frames, times_s = inference.uniform_frames(path, plan.num_frames)
            times[name] = times_s.tolist()
            samples[name] = chat.encode(vlm, frames, question, times_s=times_s, as_video=plan.as_video)
        except video.VideoError as error:
            if alone:
                raise
            yield _row(name, path, vlm, plan, error=str(error))
    if not samples:
        return
    reader = vlm
    if plan.keep_ratio != 1:
        reader = vlm.replace(model=token_pruning.prune_tokens(vlm.model, keep_ratio=plan.keep_ratio))
    options = {"streamer": inference.AnswerStreamer(vlm, stream)} if stream else {}
    texts = inference.generate(reader, list(samples.values()), max_new_tokens=plan.max_new_tokens, log=log, **options)
    seconds = round((time.perf_counter() - started) / len(samples), 3)
    for (name, sample), text in zip(samples.items(), texts, strict=True):
        facts = {"prompt_tokens": sample["input_ids"].shape[1], "times_s": times[name], "seconds": seconds}
        yield _row(name, batch[name], vlm, plan, text=text, **facts)


def _row(name: str, path: Path, vlm: models.VLM, plan: GuardPlan, *, text: str = "", error: str = "", **facts) -> dict:
    answer = {"anomaly": answer_parsing.parse_verdict(text), "text": text, "error": error}
    return {"id": name, "video": _printable(path.name), "model": vlm.label, "keep_ratio": plan.keep_ratio, **answer, **facts}


def _read_rows(out: str | Path | None) -> list[dict]:
    """Return the rows of an output file; a last line that was cut off is dropped, another broken line is an error."""
    if out is None or not Path(out).is_file():
        return []
    rows = [row for _, row in artifacts.json_lines(out, cut_off=True)]
    if Path(out).read_bytes()[-1:] not in (b"", b"\n"):
        artifacts.write_json_lines(out, rows)
    return rows

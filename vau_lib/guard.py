"""Watching videos with a security model (Memories-S0): a video, a folder or a records.jsonl in, a line of JSON per video out.

- a model that was tuned is asked as in its tuning, if it carries the question
- zero-shot: one prompt names what a guard wants to know and asks for a verdict that can be parsed; the released prompt of
  Memories-S0 asks for a caption only, and does not say how a caption becomes a verdict
- a row is done where model, question, input, length of the answer and the bytes of the video are the same; a broken video becomes
  a row with its error, asked again on request
- long videos: frames chosen by an anomaly scorer, or sliding windows that are asked one by one
- tokens and memory are logged before anything is generated; a service is sent the same prompt with the same frames
Source: Memories-S0's repository, inference.py (greedy, bf16, up to 768 new tokens); the wording is ours.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vau_lib.compression import token_pruning, token_selection
from vau_lib.data import answer_parsing, records, video, video_worker
from vau_lib.vlm import chat, clients, inference, models, video_input
from vau_lib.workspace import artifacts, parallel

QUESTION = """You watch a fixed security camera. Look at the whole clip before you decide.
Say in order of time what people, animals and vehicles do, what is carried, left, taken or damaged, and whether anybody needs help.
An anomaly is a danger, a crime, an accident or a thing out of its place: fighting, falling and staying down, breaking in, stealing,
vandalism, fire, a crash, an object left alone, a wild animal at a door. Walking, waiting, playing and deliveries are not.
End with one line of JSON: {"anomaly": 0 or 1, "kind": "a few words", "from_s": seconds, "to_s": seconds}"""
MAX_NEW_TOKENS = 768  # of the released script
NUM_FRAMES = 16  # pictures of a video
FAILURES = 3  # of a service in a row, after which nothing more is sent


@dataclass(frozen=True)
class GuardPlan:
    """How to ask: what is shown of a video, ratio of visual tokens kept, length of an answer, videos per call, the question.

    `question` "" is the one the model carries from its tuning, and QUESTION for a model that carries none. `num_frames` None is
    NUM_FRAMES pictures, or as many as `fps` gives with `as_video`: one video, which takes half the tokens (Qwen only). `fps`,
    `max_frames` and `max_pixels` (area of a frame) None are the model's own. `token_rule` is one of `token_selection.TOKEN_RULES`:
    tokens of few moments, the others are not even encoded, or of all moments where something is new. `window_s` asks about windows
    of that length, one every `step_s` (None: side by side).
    """

    num_frames: int | None = None
    keep_ratio: float = 1.0
    token_rule: str = "few moments"
    max_new_tokens: int = MAX_NEW_TOKENS
    batch_size: int = 1
    question: str = ""
    as_video: bool = False
    fps: float | None = None
    max_frames: int | None = None
    max_pixels: int | None = None
    window_s: float | None = None
    step_s: float | None = None


@dataclass(frozen=True)
class Loading:
    """A model by its folder or name on the hub, an adapter and its `kind`: what is sent to workers, which load it once each."""

    model: str | Path
    adapter: str | Path | None = None
    kind: str = ""

    def vlm(self) -> models.VLM:
        """Return the model, loaded once in this process."""
        return _loaded(self)


@lru_cache(maxsize=1)
def _loaded(loading: Loading) -> models.VLM:
    from vau_lib.vlm import finetuning  # with what trains, only for an adapter

    vlm = models.load(loading.model)
    if loading.adapter is None:
        return vlm
    return finetuning.with_adapter(vlm, loading.adapter, kind=loading.kind)


@dataclass(frozen=True)
class Asker:
    """Ask a model about a video file, `asker(path, prompt)` -> text: for `smarthome_bench.collect`, in worker processes too."""

    loading: Loading
    plan: GuardPlan = GuardPlan()

    def __call__(self, path: str | Path | None, prompt: str) -> str:
        vlm, plan = self.loading.vlm(), replace(self.plan, question=prompt)
        if path is None:
            samples = [chat.encode_text(vlm, prompt)]
            return inference.generate_answers(vlm, samples, max_new_tokens=plan.max_new_tokens, log=None)[0].text
        return ask(vlm, list(clips(Path(path), vlm, plan)), plan)[0].text


@dataclass(frozen=True)
class FrameChooser:
    """Chooses frames of a long video: `choose(path, count)` returns places, int (count,); `label` names what it goes by."""

    choose: Callable[[Path, int], np.ndarray]
    label: str


@dataclass(frozen=True)
class Clip:
    """What is shown of a video: [start, end) seconds, frames uint8 (N, H, W, 3), their times (N,) in seconds of the video."""

    span_s: tuple[float, float]
    frames: np.ndarray
    times_s: np.ndarray


@artifacts.reader()
def sources(where: str | Path) -> list[tuple[str, Path]]:
    """Return (id, path) of every video in a file, a folder (all below it, by name) or a records.jsonl; ValueError for none."""
    where = Path(where)
    if where.suffix == ".jsonl":
        return [(record.id, records.locate(record, where.parent)) for record in records.read_records(where)]
    if where.is_dir():
        paths = sorted(path for path in where.rglob("*") if video.is_video_name(path))
        if not paths:
            raise ValueError(f"{where} holds no video ({', '.join(sorted(video.VIDEO_SUFFIXES))})")
        return [(_printable(path.relative_to(where)), path) for path in paths]
    if not where.is_file():
        raise ValueError(f"no video, folder or records.jsonl at {where}")
    return [(_printable(where.name), where)]


def _printable(name: str | Path) -> str:
    """Return a file's name as text that can be written; bytes that are not UTF-8 become \\x.. ."""
    return os.fsencode(name).decode(errors="backslashreplace")


def check_writable(out: str | Path | None) -> None:
    """Raise StoreError where rows cannot be added to `out`: found before the first answer, not after it."""
    if out is None:
        return
    new = not Path(out).exists()
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with Path(out).open("ab"):
            pass
        if new:
            Path(out).unlink()
    except OSError as error:
        raise artifacts.StoreError(f"cannot write to {out}: {error.strerror or error}") from error


@video_worker.apart()
def guard(
    vlm: models.VLM | clients.Endpoint,
    source: str | Path,
    out: str | Path | None = None,
    *,
    plan: GuardPlan | None = None,
    chooser: FrameChooser | None = None,
    retry: bool = False,
    stream: inference.Log | None = None,
    log: inference.Log | None = print,
    progress: bool = True,
    engine: str = "serial",
    loading: Loading | None = None,
    **cluster: object,
) -> list[dict]:
    """Ask about every video of `sources(source)`; return a row each.

    A row holds id, model, anomaly (1, 0, or None where the text does not say), kind, from_s, to_s, confidence, text, error, and
    what it took: frames, times_s, prompt_tokens, new_tokens, seconds. With windows, `windows` holds the answers one by one; the row
    is anomalous where one is.

    Args:
        vlm: the model, or a service.
        source: a video, a folder or a records.jsonl.
        out: file that gets the rows as JSON lines; what it holds is not asked again (see `asked`).
        plan: how to ask.
        chooser: chooses the frames of each video; even ones without it.
        retry: ask again about videos whose row is an error.
        stream: gets pieces of the text as they are generated (one video per call only); no bar is drawn into it.
        log: gets a line with the cost of each call of generate.
        progress: show a bar.
        engine: see `parallel.map_videos`; batches go to worker processes, or to Ray's actors.
        loading: how workers load `vlm`; not for a service, and without `chooser`.
        cluster: `workers`, and `num_gpus` and `address` of engine "ray".

    Raises ValueError where there is nothing to watch, for a keep ratio outside (0, 1] and for prompts beyond the model's
    context; VideoError for a single video that cannot be read; StoreError where `out` cannot be written, is of another model, or
    another run writes it.
    """
    plan, videos = plan or GuardPlan(), sources(source)
    _check_plan(vlm, plan, chooser, stream)
    check_writable(out)
    # two runs at once would ask, and pay a service for, everything twice
    with artifacts.only_one(Path(out).with_name(f".{Path(out).name}.lock")) if out is not None else nullcontext():
        wanted = asked(vlm, plan, chooser)
        before = _read_rows(out)
        if others := sorted({str(row.get("model")) for row in before} - {vlm.label}):
            raise artifacts.StoreError(
                f"{out} holds answers of {'; '.join(others)}; these would be of {vlm.label}: take another file"
            )
        done = {row["id"]: row for row in before if row.get("asked") == wanted}
        left = [(name, path) for name, path in videos if not _is_done(done.get(name), path, retry)]
        batches = [dict(left[start : start + plan.batch_size]) for start in range(0, len(left), plan.batch_size)]
        if engine != "serial" or cluster:
            answered = _answered_by_workers(vlm, batches, plan, chooser, loading, engine=engine, **cluster)
        else:
            hidden = not progress or stream is not None
            answered = _answered_here(vlm, batches, plan, chooser, stream, log, hidden=hidden, alone=len(videos) == 1)
        failures = 0
        for row in answered:
            row["asked"] = wanted
            done[row["id"]] = row
            if out is not None:
                artifacts.append_json_line(out, row)
            failures = failures + 1 if row["error"] and isinstance(vlm, clients.Endpoint) else 0
            if failures == FAILURES < len(left):
                raise clients.AnswerError(f"{FAILURES} videos in a row failed, the last: {row['error']}")
        if (broken := sum(bool(done[name]["error"]) for name, _ in videos)) and log is not None:
            log(f"{broken} of {len(videos)} videos have an error; --retry asks them again")
        return [done[name] for name, _ in videos]


def _answered_here(vlm, batches, plan, chooser, stream, log, *, hidden: bool, alone: bool) -> Iterator[dict]:
    with tqdm(total=sum(map(len, batches)), desc="watching", unit="video", disable=hidden) as bar:
        written = _beside(bar, log)
        for batch in batches:
            yield from _rows(vlm, batch, plan, chooser, stream, written, alone=alone)
            bar.update(len(batch))


def _answered_by_workers(vlm, batches: Sequence[dict[str, Path]], plan, chooser, loading, **options: object) -> Iterator[dict]:
    """Yield rows as workers send them; a batch whose worker died is rows with that error."""
    if loading is None or chooser is not None or isinstance(vlm, clients.Endpoint):
        raise ValueError(f"engine {options['engine']} needs a model that each worker can load, and takes no scorer")
    work, started = partial(_answers, loading, plan), time.perf_counter()
    for batch, rows, error in parallel.map_videos(work, batches, desc="watching", **options):
        if error:
            rows = [_row(name, path, vlm, plan, [], video_digest(path), started, error=error) for name, path in batch.items()]
        yield from rows


@video_worker.apart()
def _answers(loading: Loading, plan: GuardPlan, batch: dict[str, Path]) -> list[dict]:
    return list(_rows(loading.vlm(), batch, plan, None, None, None, alone=False))


def asked(vlm: models.VLM | clients.Endpoint, plan: GuardPlan, chooser: FrameChooser | None = None) -> dict:
    """Return what an answer depends on besides the video: model with its weights, question (its hash), input, length."""
    settings = asdict(plan) | {"model": vlm.label, "question_sha256": _digest(_question(vlm, plan).encode())}
    settings |= {"num_frames": _num_frames(vlm, plan), "scorer": chooser.label if chooser else ""}
    if plan.as_video:
        settings |= asdict(_video_plan(vlm, plan))
    if isinstance(vlm, models.VLM):  # another training has the same name
        settings["weights"] = models.fingerprint(vlm.model)
    left_out = {"batch_size", "question"} | ({"token_rule"} if plan.keep_ratio == 1 else set())
    return {key: value for key, value in sorted(settings.items()) if key not in left_out}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def video_digest(path: Path) -> str:
    """Return a hash of a video's bytes, of all pictures of a folder; "" where it cannot be read."""
    try:
        parts = sorted(path.iterdir()) if path.is_dir() else [path]
        return _digest("".join(f"{part.name if path.is_dir() else ''} {artifacts.sha256(part)}\n" for part in parts).encode())
    except OSError:
        return ""


def _is_done(row: dict | None, path: Path, retry: bool) -> bool:
    return row is not None and not (retry and row["error"]) and row["video_sha256"] == video_digest(path)


def _question(vlm: models.VLM | clients.Endpoint, plan: GuardPlan) -> str:
    return plan.question or getattr(vlm, "question", "") or QUESTION


def _num_frames(vlm: models.VLM | clients.Endpoint, plan: GuardPlan) -> int | None:
    """Return how many frames are shown; None where frames per second decide."""
    tuned = getattr(vlm, "num_frames", 0)
    by_second = plan.as_video and (not tuned or plan.fps is not None or plan.max_frames is not None)
    return plan.num_frames if plan.num_frames is not None or by_second else tuned or NUM_FRAMES


def _video_plan(vlm: models.VLM, plan: GuardPlan) -> video_input.VideoInput:
    given = dict(fps=plan.fps, max_frames=plan.max_frames, max_pixels=plan.max_pixels, num_frames=_num_frames(vlm, plan))
    return video_input.defaults(vlm, **given)


def _check_plan(vlm, plan: GuardPlan, chooser: FrameChooser | None, stream) -> None:
    token_selection.token_rule(plan.token_rule)
    if plan.batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {plan.batch_size}")
    if stream is not None and plan.batch_size != 1:
        raise ValueError(f"text of {plan.batch_size} videos at once cannot be watched: batch_size must be 1")
    if chooser is not None and (plan.as_video or plan.window_s):
        raise ValueError("frames chosen by a scorer are not evenly spaced: they go in as pictures, without windows")
    if (plan.fps or plan.max_frames) and not plan.as_video:
        raise ValueError(f"fps and max_frames are of video input, got {plan.fps} and {plan.max_frames} for pictures")
    if isinstance(vlm, clients.Endpoint) and (plan.as_video or plan.keep_ratio != 1):
        raise ValueError("a service gets all tokens of pictures: no video input and no keep_ratio")
    if plan.step_s is not None and plan.window_s is None:
        raise ValueError(f"step_s is of windows, got {plan.step_s} without window_s")


def _beside(bar: tqdm, log: inference.Log | None) -> inference.Log | None:
    """Return a log whose lines do not run into the bar."""
    if log is None or bar.disable:
        return log

    def write(line: str) -> None:
        with tqdm.external_write_mode():
            log(line)

    return write


# Showing and asking


def clips(path: Path, vlm: models.VLM | clients.Endpoint, plan: GuardPlan, chooser: FrameChooser | None = None) -> Iterator[Clip]:
    """Yield what is shown of a video: one clip, or one per window. VideoError for a video that cannot be read."""
    whole = video_input.span_of(path)
    spans = [whole]
    if plan.window_s is not None:
        spans = video_input.windows(whole[1], plan.window_s, plan.step_s or plan.window_s)
    count, times = _num_frames(vlm, plan), video.frame_times(path)
    if count is not None and not plan.as_video and not 0 < count <= chat.MAX_FRAMES:
        raise ValueError(f"{count} frames are more than max_frames={chat.MAX_FRAMES}: choose fewer")
    for span in spans:
        if plan.as_video:
            yield Clip(span, *video_input.read(path, _video_plan(vlm, plan), span))
            continue
        if chooser is not None:
            index = chooser.choose(path, count)
        elif plan.window_s is None:
            index = video.sample_index(len(times), count)
        else:
            index = video.index_at(path, span[0] + (np.arange(count) + 0.5) / count * (span[1] - span[0]))
        yield Clip(span, video.read_frames(path, index), times[index].round(3))


def _rows(vlm, batch: dict[str, Path], plan: GuardPlan, chooser, stream, log, *, alone: bool) -> Iterator[dict]:
    """Yield a row per video {id: path}; a broken one gets its error, unless it stands alone."""
    shown: list[tuple[str, Clip]] = []
    started, digests = time.perf_counter(), {name: video_digest(path) for name, path in batch.items()}
    for name, path in batch.items():
        try:
            if _printable(path) != str(path):
                raise video.VideoError(f"{name}: its name is not UTF-8, rename it")
            if plan.window_s is None:
                shown += [(name, clip) for clip in clips(path, vlm, plan, chooser)]
            else:  # one window's frames in memory at a time
                parts = [(clip, ask(vlm, [clip], plan, stream, log)[0]) for clip in clips(path, vlm, plan)]
                yield _row(name, path, vlm, plan, parts, digests[name], started)
        except (video.VideoError, OSError, clients.AnswerError) as error:
            if alone:
                raise
            yield _row(name, path, vlm, plan, [], digests[name], started, error=artifacts.one_line(error))
    try:
        answers = ask(vlm, [clip for _, clip in shown], plan, stream, log) if shown else []
    except clients.AnswerError as error:
        if alone:
            raise
        for name, _ in shown:
            yield _row(name, batch[name], vlm, plan, [], digests[name], started, error=artifacts.one_line(error))
        return
    for (name, clip), answer in zip(shown, answers, strict=True):
        yield _row(name, batch[name], vlm, plan, [(clip, answer)], digests[name], started, share=len(shown))


def ask(
    vlm: models.VLM | clients.Endpoint, shown: Sequence[Clip], plan: GuardPlan, stream: inference.Log | None = None,
    log: inference.Log | None = None,
) -> list[inference.Answer]:  # fmt: skip
    """Return the answer about each clip, as one batch, to the plan's question; `stream` and `log` as in `guard`."""
    question = _question(vlm, plan)
    if isinstance(vlm, clients.Endpoint):
        return [_ask_service(vlm, clip, question, plan, stream) for clip in shown]
    reader = vlm
    if plan.keep_ratio != 1:
        rule = token_selection.token_rule(plan.token_rule)
        reader = vlm.replace(model=token_pruning.prune_tokens(vlm.model, keep_ratio=plan.keep_ratio, rule=rule))
    options = dict(as_video=plan.as_video, max_pixels=plan.max_pixels)
    if plan.as_video:
        options["max_frames"] = max(len(clip.frames) for clip in shown)  # how many is the plan's
    start = [clip.span_s[0] if plan.as_video else 0.0 for clip in shown]  # a video's clock begins with it
    samples = [
        chat.encode(reader, clip.frames, question, times_s=clip.times_s - first, **options)
        for clip, first in zip(shown, start, strict=True)
    ]
    watched = {"streamer": inference.AnswerStreamer(vlm, stream)} if stream else {}
    return inference.generate_answers(reader, samples, max_new_tokens=plan.max_new_tokens, log=log, **watched)


def _ask_service(service: clients.Endpoint, clip: Clip, question: str, plan: GuardPlan, stream) -> inference.Answer:
    chat.check_frames(clip.frames)
    frames = [_within(frame, plan.max_pixels) for frame in clip.frames]
    prompt = chat.frame_prompt(len(frames), question, times_s=clip.times_s)
    reply = service.reply(
        clients.prompt_parts(prompt, frames, chat.IMAGE_TOKEN), max_tokens=plan.max_new_tokens, logprobs=True
    )  # fmt: skip
    if stream:
        stream(reply.text)
    words = answer_parsing.verdict_tokens(lambda number: "".join(reply.tokens[:number]), len(reply.tokens))
    confidence = None if words is None else float(np.exp(sum(reply.logprobs[place] for place in words)))
    return inference.Answer(reply.text, confidence, reply.prompt_tokens, reply.new_tokens, reply.cut)


def _within(frame: np.ndarray, max_pixels: int | None) -> np.ndarray:
    """Return a frame of at most `max_pixels`, by averaging blocks of pixels."""
    step = 1 if max_pixels is None else max(1, int(np.ceil((frame.shape[0] * frame.shape[1] / max_pixels) ** 0.5)))
    height, width = (size // step for size in frame.shape[:2])
    blocks = frame[: height * step, : width * step].reshape(height, step, width, step, 3)
    return frame if step == 1 else blocks.mean((1, 3)).round().astype(np.uint8)


# Rows


def _row(
    name: str, path: Path, vlm, plan: GuardPlan, parts: Sequence[tuple[Clip, inference.Answer]], digest: str, started: float,
    *, error: str = "", share: int = 1,
) -> dict:  # fmt: skip
    windows = [_window(clip, answer, plan) for clip, answer in parts]
    row = {"id": name, "video": _printable(path.name), "model": vlm.label, "keep_ratio": plan.keep_ratio, **_together(windows)}
    tokens = [(answer.prompt_tokens, answer.new_tokens) for _, answer in parts]
    counts = [sum(column) if column and None not in column else None for column in zip(*tokens, strict=True)] or [0, 0]
    row |= {"error": error, "frames": sum(len(clip.frames) for clip, _ in parts)}
    row |= {"times_s": [time_s for window in windows for time_s in window.pop("times_s")]}
    row |= {"prompt_tokens": counts[0], "new_tokens": counts[1], "max_new_tokens": plan.max_new_tokens}
    row |= {"seconds": round((time.perf_counter() - started) / share, 3), "video_sha256": digest}
    row |= {"question_sha256": _digest(_question(vlm, plan).encode())}
    return row | ({"windows": windows} if plan.window_s is not None and windows else {})


def _window(clip: Clip, answer: inference.Answer, plan: GuardPlan) -> dict:
    """Return what one answer says, its times in seconds of the whole video."""
    report = answer_parsing.parse_report(answer.text)
    if plan.as_video:  # this clock began with the window
        report |= {key: report[key] + clip.span_s[0] for key in ("from_s", "to_s") if report[key] is not None}
    facts = {"confidence": answer.confidence, "text": answer.text, "cut": answer.cut}
    return {"window_s": list(clip.span_s), **report, **facts, "times_s": clip.times_s.tolist()}


def _together(windows: Sequence[dict]) -> dict:
    """Return one verdict of several windows: anomalous where one is, with what the surest of these says.

    Normal only where all are; its confidence is then the lowest. An anomalous window that names no seconds counts with its own.
    """
    if not windows:
        return dict(anomaly=None, kind=None, from_s=None, to_s=None, confidence=None, text="", cut=False)
    verdicts = [window["anomaly"] for window in windows]
    verdict = 1 if 1 in verdicts else 0 if set(verdicts) == {0} else None
    same = [window for window in windows if window["anomaly"] == verdict]
    best = (max if verdict else min)(same, key=lambda window: window["confidence"] or 0.0)
    result = {key: best[key] for key in ("anomaly", "kind", "from_s", "to_s", "confidence", "text", "cut")}
    if verdict and best["from_s"] is None and len(windows) > 1:
        result["from_s"], result["to_s"] = best["window_s"]
    return result


@artifacts.reader()
def _read_rows(out: str | Path | None) -> list[dict]:
    """Return the rows of an output file; a last line that was cut off is dropped, another broken line is an error."""
    if out is None or not Path(out).is_file():
        return []
    rows = [row for _, row in artifacts.json_lines(out, cut_off=True)]
    if Path(out).read_bytes()[-1:] not in (b"", b"\n"):
        artifacts.write_json_lines(out, rows)
    return [row for row in rows if isinstance(row, dict) and "id" in row]

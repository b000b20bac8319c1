"""A model that says "abnormal" to everything has an F1 of 70 here: a score stands beside the constants, on a named set of clips.

- an answer without a readable label is the wrong class and is counted; leaving it out flatters (67.17 becomes 67.90)
- 1,203 clips were scored by the paper, 1,023 of them are public, and the share of anomalies differs (54 % and 63 %): the set
  is a column. Memories-S0's published row fits only the public clips, its rivals' rows only all of them (`measured_on`)
- `as_released=True` scores as the benchmark's scripts do: a clip nobody answered disappears, and an unreadable answer of a
  reflective chain counts as normal
Source: SmartHome-Bench, arXiv 2506.12992, and its repository; Memories-S0's README for its row.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from vau_lib import metrics
from vau_lib.smarthome_files import (
    TAGS,
    Clip,
    Responses,
    SmartHomeError,
    read_annotations,
    read_benchmark,
    read_responses,
    write_responses,
)
from vau_lib.smarthome_prompts import PROMPTS, TAXONOMY, Model, Step, Style, ask, prepare, read_prompts
from vau_lib.smarthome_published import MEMORIES_S0, PUBLISHED, SEED_TABLE, Published, fitting, fitting_subsets

__all__ = [
    "MEMORIES_S0",
    "PROMPTS",
    "PUBLISHED",
    "TAGS",
    "TAXONOMY",
    "Step",
    "read_annotations",
    "read_benchmark",
    "read_prompts",
]  # one import for notebooks

SPLITS: dict[str, Callable[[Clip], bool]] = {  # which clips a number is over
    "all": lambda clip: True,
    "public": lambda clip: clip.public,
    "no_vague": lambda clip: not clip.vague,
    "public_no_vague": lambda clip: clip.public and not clip.vague,
}
RATES = ("accuracy", "precision", "recall", "f1", "specificity", "balanced_accuracy")  # in percent; mcc is in [-1, 1]

# One answer

FINAL = ("updated_anomaly", "final_anomaly")  # a corrected label outranks the one it corrects
PLAIN = ("anomaly", "result", "is_anomaly", "anomalous", "abnormal", "label", "prediction", "answer")
TURNED = ("normal", "is_normal")  # 1 means no anomaly
KEYS = {key: (rank, turned) for rank, keys, turned in ((0, FINAL, 0), (1, PLAIN, 0), (1, TURNED, 1)) for key in keys}
WORDS = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "abnormal", "anomalous", "anomaly", "vague abnormal"), 1),
    **dict.fromkeys(("0", "0.0", "false", "no", "normal", "none", "no anomaly"), 0),
}
WORD = "|".join(sorted(map(re.escape, WORDS), key=len, reverse=True))
KEYED = re.compile(  # key: value anywhere, for what is nearly JSON; "0 or 1" and "0 for none" are a form, not an answer
    rf"""["'*]?\b({"|".join(KEYS)})["'*]*\s*[:=]\s*["'*]*({WORD})(?![\w.]*\w)["'*]*(?!\s*(?:or\b|for\b|if\b|[|/]))""",
    re.I,
)
HEDGE = re.compile(
    r"\b(?:if|whether|unclear|might|may|could|would|cannot|can't|hard to|possibly|perhaps)\b[^.!?;\n]*", re.I
)
ODD, BE = r"(?:anomal\w+|abnormal\w*)", r"(?:is|are|was|were|seems?|appears?|looks?)(?:\s+to\s+be)?"
NOT = rf"(?:not|n't|never)\s+(?:\w+\s+){{0,2}}?(?:an?\s+|any\s+)?{ODD}"
SAYS_NORMAL = re.compile(
    rf"^\W*(?:no|normal)\s*[,.;:!]|\b(?:no|without(?:\s+any)?|free of)\s+(?:\w+\s+){{0,3}}?{ODD}|\w{NOT}|\b{NOT}"
    rf"|\b{BE}\s+(?:(?:all|completely|entirely|quite|perfectly)\s+)?normal\b|\bnothing\s+{ODD}",
    re.I,
)
SAYS_ODD = re.compile(
    rf"^\W*(?:yes|abnormal|anomalous)\s*[,.;:!]|\b{BE}\s+(?:an?\s+|clearly\s+|highly\s+)?{ODD}|\b(?:not|isn't|n't)\s+normal\b"
    rf"|\b(?:contains?|shows?|has|have|depicts?|there\s+(?:is|are)|includes?)\s+(?:an?\s+|\w+\s+)?{ODD}|\b{ODD}\s+{BE}\s+(?:present|detected|found|seen)",
    re.I,
)


def parse_answer(text: str | None) -> int | None:
    """Return 1 for an anomaly, 0 for none, None where the answer says neither or both.

    Read in this order: a key that holds a label (JSON, fenced JSON, a Python dict, or nearly so; `updated_anomaly` outranks
    `anomaly`, `normal` is turned round); a text that is one word; sentences outside braces that state it. A description cut
    off before its label stays None, whatever words it holds.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"an answer is a text, got {text!r}")
    keyed = list(_labels(text)) or [(m[1].lower(), m[2]) for m in KEYED.finditer(text)]
    if keyed:
        best = min(KEYS[key][0] for key, _ in keyed)
        said = {_value(key, value) for key, value in keyed if KEYS[key][0] == best}
        return said.pop() if len(said) == 1 else None
    outside = re.sub(r"\{.*(?:\}|$)", " ", text, flags=re.S)
    word = re.sub(r"[\s\"'`*.!]+", " ", outside).strip().lower()
    return WORDS[word] if word in WORDS else _stated(outside)


def _labels(text: str) -> Iterator[tuple[str, object]]:
    """Yield (key, value) of every label in the JSON objects or Python dicts of `text`, nested ones too, repeats kept."""
    found: list[tuple[str, object]] = []
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: found.extend(pairs) or dict(pairs), strict=False)
    place, tries = text.find("{"), 0
    while place >= 0 and tries < 64:  # enough for any answer, bounded for a hostile one
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = _python_dict(text, place, found)
        place, tries = text.find("{", max(end, place + 1)), tries + 1
    yield from ((key.lower(), value) for key, value in found if isinstance(key, str) and key.lower() in KEYS)


def _python_dict(text: str, place: int, found: list) -> int:
    """Add the pairs of a flat Python dict, or of JSON with // notes, that starts at `place`; return where it ends."""
    end = text.find("}", place) + 1
    body = re.sub(r"//[^\n]*", "", text[place:end])
    try:
        pairs = ast.literal_eval(re.sub(r"\b(true|false)\b", lambda word: word[0].title(), body))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return 0
    found.extend(pairs.items() if isinstance(pairs, dict) else ())
    return end


def _value(key: str, value: object) -> int | None:
    said = WORDS.get(str(value).strip().lower())
    return said if said is None else abs(said - KEYS[key][1])


def _stated(text: str) -> int | None:
    """Return what the sentences agree on; guesses and conditions say nothing."""
    text = HEDGE.sub(" ", text)
    turned = re.compile(r"\b(?:not|isn't|n't)\s+normal\b", re.I)
    rest = SAYS_NORMAL.sub(" ", text)
    said = {0} if SAYS_NORMAL.search(text) else set()
    said |= {1} if SAYS_ODD.search(rest) or turned.search(text) else set()
    return said.pop() if len(said) == 1 else None


# Many answers


class Scored(NamedTuple):
    """A set of answers brought to the clips: truth and decision (n,), 0 or 1, and which answers could not be read."""

    clips: list[Clip]
    truth: np.ndarray
    decided: np.ndarray
    unread: np.ndarray


def evaluate(
    responses: Responses | Mapping[str, str | None],
    annotations: Sequence[Clip],
    *,
    split: str = "all",
    as_released: bool = False,
    rng: np.random.Generator | None = None,
    resamples: int = 2000,
) -> dict:
    """Return the scores of answers {clip id: text} on the clips of `split` (`SPLITS`).

    accuracy, precision, recall, f1, specificity, balanced_accuracy in percent, mcc in [-1, 1]; n, unparsed, missing and the
    counts tn, fp, fn, tp; `by_category` (a clip of two categories counts in both), `by_tag` (accuracy of Normal, Abnormal,
    Vague Abnormal). With `rng`, `interval` holds the 95 % percentile interval of each over resampled videos.
    SmartHomeError for unknown ids, an id given twice, a clip of the split without an answer, labels that disagree.
    """
    scored = _scored(responses, annotations, split, as_released)
    counts = _cells(scored.truth, scored.decided)
    report = {**rates(counts), **_named(counts), "n": len(scored.truth), "unparsed": int(scored.unread.sum())}
    answered = len(scored.clips)
    report |= {
        "missing": sum(map(SPLITS[split], annotations)) - answered,
        "split": split,
        "positives": int(scored.truth.sum()),
    }
    kinds = sorted({kind for clip in scored.clips for kind in clip.categories})
    report["by_category"] = {kind: _part(scored, [kind in clip.categories for clip in scored.clips]) for kind in kinds}
    report["by_tag"] = {tag: _accuracy(scored, tag) for tag in TAGS}
    if rng is not None:
        report["interval"] = intervals(counts, rng=rng, resamples=resamples)
    return report


def rates(counts: np.ndarray) -> dict[str, float | np.ndarray]:
    """Return every score of counts (..., 4) in the order tn, fp, fn, tp; in percent but mcc; 0 where undefined.

    Balanced accuracy is nan where a class is missing: half of it would be made up.
    """
    tn, fp, fn, tp = np.moveaxis(np.asarray(counts, float), -1, 0)

    def share(part, whole):
        return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole > 0)

    recall, specificity = share(tp, tp + fn), share(tn, tn + fp)
    percent = (
        share(tn + tp, tn + fp + fn + tp), share(tp, tp + fp), recall, share(2 * tp, 2 * tp + fp + fn), specificity,
        (recall + specificity) / 2,
    )  # fmt: skip
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    found = {name: 100 * value for name, value in zip(RATES, percent, strict=True)}
    found["balanced_accuracy"] = np.where((tp + fn > 0) & (tn + fp > 0), found["balanced_accuracy"], np.nan)
    found["mcc"] = share(tp * tn - fp * fn, scale)
    return {name: float(value) if np.ndim(value) == 0 else value for name, value in found.items()}


def intervals(
    counts: np.ndarray, *, rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of every score over resampled videos.

    A video is one of four outcomes, so drawing videos with replacement is drawing counts (4,) from a multinomial.
    """
    counts = np.asarray(counts)
    drawn = rates(rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples))
    edges = [(1 - level) / 2, (1 + level) / 2]
    return {name: tuple(np.nanquantile(values, edges).tolist()) for name, values in drawn.items()}


def constant(annotations: Sequence[Clip], label: int) -> Responses:
    """Return the model that never looks: the same answer to every clip."""
    name = "always abnormal" if label else "always normal"
    return Responses(name, {clip.id: json.dumps({"anomaly": label}) for clip in annotations}, style="constant")


def table(
    models: Sequence[Responses],
    annotations: Sequence[Clip],
    *,
    rng: np.random.Generator,
    splits: Sequence[str] = ("all", "public", "no_vague"),
    shuffles: int = 20,
    resamples: int = 2000,
) -> list[dict]:
    """Return a row per split and model, with both constants and, for each model, its answers dealt to other clips.

    Each row has row, split, n, unparsed, every score and f1_low, f1_high, balanced_accuracy_low, balanced_accuracy_high.
    """
    rows = []
    for split in splits:
        for model in (*models, constant(annotations, 1), constant(annotations, 0)):
            report = evaluate(model, annotations, split=split, rng=rng, resamples=resamples)
            rows.append({"row": model.label, "style": model.style, **_line(report)})
        for model in models:
            scored = _scored(model, annotations, split, False)
            answers = np.where(
                scored.unread, -1, scored.decided
            )  # an unreadable answer stays wrong wherever it is dealt
            dealt = (rng.permutation(answers) for _ in range(shuffles))
            drawn = [_cells(scored.truth, np.where(said < 0, 1 - scored.truth, said)) for said in dealt]
            means = {name: float(np.mean(values)) for name, values in rates(np.array(drawn)).items()}
            row = {"row": f"{model.label}, shuffled", "style": model.style, "split": split, "n": len(answers)}
            rows.append({**row, "unparsed": int(scored.unread.sum()), **means})
    return rows


# What others printed


def measured_on(row: Published, annotations: Sequence[Clip]) -> tuple[str, tuple[int, int, int, int] | None]:
    """Return the split a printed row fits and its (tn, fp, fn, tp); else the only subset it fits; else "no set of clips".

    Of two splits that fit, the first in `SPLITS` is named.
    """
    sizes = {name: Counter(clip.label for clip in annotations if inside(clip)) for name, inside in SPLITS.items()}
    for name, size in sizes.items():
        if len(found := fitting(row, positives=size[1], negatives=size[0])) == 1:
            return name, found[0]
    found = fitting_subsets(row, positives=sizes["all"][1], negatives=sizes["all"][0])
    if len(found) != 1:
        return ("no set of clips" if not found else f"one of {len(found)} subsets"), None
    tn, fp, fn, tp = found[0]
    close = [n for n, size in sizes.items() if (size[1] - tp - fn, size[0] - tn - fp) in ((0, 1), (1, 0))]
    return (f"{close[0]}, one clip missing" if close else f"a subset of {sum(found[0])}"), found[0]


def published_rows(
    annotations: Sequence[Clip], rows: Sequence[Published] = SEED_TABLE, *,
    rng: np.random.Generator, resamples: int = 2000,
) -> list[dict]:  # fmt: skip
    """Return printed rows as rows of `table`: the clips each fits, and the scores its confusion matrix implies."""
    found = []
    for row in rows:
        split, counts = measured_on(row, annotations)
        line = {"row": f"{row.model}, as published", "style": row.style, "split": split, **row._asdict()}
        if counts:
            ends = intervals(np.array(counts), rng=rng, resamples=resamples)
            line |= _line({"split": split, "n": sum(counts), "unparsed": None, **rates(counts), "interval": ends})
        found.append({name: value for name, value in line.items() if name != "model"})
    return found


# Asking


def collect(
    model: Model,
    videos: Mapping[str, object],
    style: Style,
    *,
    name: str,
    path: Path | None = None,
    progress: bool = True,
) -> Responses:
    """Ask about every video, {clip id: video}; with `path`, keep each answer there and go on after those it holds."""
    done = dict(read_responses(path).answers) if path and path.is_file() else {}
    left = [clip for clip in videos if clip not in done]
    known = prepare(model, style) if left else {}
    for clip in tqdm(left, desc=style.name, disable=not progress):
        done[clip] = ask(model, videos[clip], style, known)[style.steps[-1].name]
        if path:
            write_responses(path, done)
    return Responses(name, {clip: done[clip] for clip in videos}, style.name)


def _line(report: Mapping) -> dict:
    wanted = {name: report[name] for name in ("split", "n", "unparsed", *RATES, "mcc")}
    ends = {name: report["interval"][name] for name in ("f1", "balanced_accuracy")}
    return wanted | {
        f"{name}_{end}": pair[place] for name, pair in ends.items() for place, end in enumerate(("low", "high"))
    }


def _scored(responses, annotations: Sequence[Clip], split: str, as_released: bool) -> Scored:
    if split not in SPLITS:
        raise SmartHomeError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    responses = responses if isinstance(responses, Responses) else Responses("answers", responses)
    answers = _by_clip(responses, annotations)
    wanted = [clip for clip in annotations if SPLITS[split](clip)]
    lacking = [clip.id for clip in wanted if clip.id not in answers]
    if lacking and not as_released:
        raise SmartHomeError(
            f"{responses.name} has no answer for {lacking[0]} ({len(lacking)} of {len(wanted)} clips of split {split!r} lack one)"
        )
    clips = [clip for clip in wanted if clip.id in answers]
    if not clips:
        raise SmartHomeError(f"{responses.name}: no clip of split {split!r} has an answer")
    said = [parse_answer(answers[clip.id]) for clip in clips]
    truth, unread = np.array([clip.label for clip in clips]), np.array([one is None for one in said])
    instead = 0 * truth if as_released and responses.style.startswith("trlc") else 1 - truth
    return Scored(clips, truth, np.where(unread, instead, [one or 0 for one in said]), unread)


def _by_clip(responses: Responses, annotations: Sequence[Clip]) -> dict[str, str | None]:
    """Return the answers by the clips' own ids, whichever of their two ids was used."""
    clips = {clip.id: clip for clip in annotations}
    if len(clips) < len(annotations):
        twice = Counter(clip.id for clip in annotations).most_common(1)[0][0]
        raise SmartHomeError(f"the annotations have {twice} more than once")
    known = {clip.alias: clip for clip in annotations if clip.alias} | clips
    found: dict[str, str | None] = {}
    for name, text in responses.answers.items():
        if name not in known:
            raise SmartHomeError(f"{responses.name} answers {name!r}, which is no clip of the annotations")
        clip = known[name]
        if clip.id in found:
            raise SmartHomeError(f"{responses.name} answers {clip.id} twice, as {clip.id} and as {clip.alias}")
        if responses.truths.get(name, clip.label) != clip.label:
            raise SmartHomeError(f"{responses.name} says {name} is {responses.truths[name]}, annotated {clip.tag}")
        found[clip.id] = text
    return found


def _cells(truth: np.ndarray, decided: np.ndarray) -> np.ndarray:
    counts = metrics.binary_report(truth, decided)
    return np.array([counts[name] for name in ("tn", "fp", "fn", "tp")])


def _named(counts: np.ndarray) -> dict[str, int]:
    return dict(zip(("tn", "fp", "fn", "tp"), counts.tolist(), strict=True))


def _part(scored: Scored, chosen: Sequence[bool]) -> dict:
    here = np.array(chosen, bool)
    counts = _cells(scored.truth[here], scored.decided[here])
    return {"n": int(here.sum()), "unparsed": int(scored.unread[here].sum()), **rates(counts), **_named(counts)}


def _accuracy(scored: Scored, tag: str) -> dict:
    """Return n, unparsed and accuracy on the clips of one tag; of one class only, so no other score means anything."""
    here = np.array([clip.tag == tag for clip in scored.clips])
    right = (scored.truth == scored.decided)[here]
    return {
        "n": len(right),
        "unparsed": int(scored.unread[here].sum()),
        "accuracy": 100 * float(right.mean()) if len(right) else np.nan,
    }

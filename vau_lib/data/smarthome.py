"""Readers of SmartHome-Bench's published files: annotations, addresses, model responses (arXiv 2506.12992).

- the annotation csv and the released VILA-13b responses use different ids for the same clips in the same order; they are
  joined by place, and only when tag and categories agree on every row
- 180 of 1,203 clips have the address "privacy url": nobody outside can fetch them
- answers read from a file are called replayed in every table and figure
Source: the repository of SmartHome-Bench (arXiv 2506.12992); its files are not part of this project.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vau_lib.workspace import artifacts

TAGS = {"Normal": 0, "Abnormal": 1, "Vague Abnormal": 1}  # vague: the annotators did not agree


class SmartHomeError(ValueError):
    """An annotation or response file that cannot be used; the message names it and the row."""


@dataclass(frozen=True)
class Clip:
    """One clip of the benchmark. `alias` is the id older response files use; `url` is empty where it was never released."""

    id: str
    tag: str
    categories: tuple[str, ...] = ()
    description: str = ""
    reasoning: str = ""
    url: str = ""
    alias: str = ""

    @property
    def label(self) -> int:
        """1 for an anomaly, vague ones included."""
        return TAGS[self.tag]

    @property
    def vague(self) -> bool:
        """Annotators disagreed; the benchmark has no vague normal clip."""
        return self.tag.startswith("Vague")

    @property
    def public(self) -> bool:
        """Whether anyone outside can fetch it."""
        return self.url.startswith("http")


@dataclass(frozen=True)
class Responses:
    """A model's answers, {clip id: text}; `replayed` when read from a file; `truths` are labels that the file itself gives."""

    name: str
    answers: Mapping[str, str | None]
    style: str = ""
    replayed: bool = False
    truths: Mapping[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name in figures and tables."""
        return f"replayed responses of {self.name}" if self.replayed else self.name


# Reading


@artifacts.reader(SmartHomeError)
def read_annotations(path: str | Path, *, urls: str | Path | None = None, aliases: str | Path | None = None) -> list[Clip]:
    """Read the annotation csv (columns Title, Category, and Anomaly Tag or Label); SmartHomeError names what is off.

    `urls` (Title, URL) says which clips are public. `aliases` is a second annotation csv of the same clips in the same order
    under other ids, as the released VILA-13b responses use them; refused unless tag and categories agree on every row.
    """
    path = Path(path)
    rows = list(_rows(path, ("Title", "Category")))
    tag = next((name for name in ("Anomaly Tag", "Label") if rows and name in rows[0][1]), None)
    if tag is None:
        raise SmartHomeError(f"{path.name} has no rows with a column Anomaly Tag or Label")
    clips = [_clip(f"{path.name} line {number}", row, tag) for number, row in rows]
    _unique(path.name, (clip.id for clip in clips))
    if urls is not None:
        known = {row["Title"]: row["URL"] for _, row in _rows(Path(urls), ("Title", "URL"))}
        if odd := [clip.id for clip in clips if clip.id not in known]:
            raise SmartHomeError(f"{Path(urls).name} has no URL for {odd[0]} ({len(odd)} clips lack one)")
        clips = [replace(clip, url=known[clip.id]) for clip in clips]
    return clips if aliases is None else _aliased(clips, read_annotations(aliases), Path(aliases).name)


@artifacts.reader(SmartHomeError)
def read_benchmark(folder: str | Path) -> list[Clip]:
    """Read the benchmark's folder: Video_Annotation.csv, Video_url.csv and, where it is there, the older ids."""
    folder = Path(folder)
    older = folder / "vila_annotation_vad_1203.csv"
    aliases = older if older.is_file() else None
    return read_annotations(folder / "Video_Annotation.csv", urls=folder / "Video_url.csv", aliases=aliases)


@artifacts.reader(SmartHomeError)
def read_responses(path: str | Path, *, name: str = "", style: str = "") -> Responses:
    """Read answers: JSON lines of {id, pred, truth} (truth optional), a JSON list of such, or a JSON object {id: text}.

    SmartHomeError for a broken line, a missing key or an id that comes twice.
    """
    path = Path(path)
    rows = list(_answers(path))
    _unique(path.name, (row["id"] for _, row in rows))
    truths = {row["id"]: row["truth"] for _, row in rows if "truth" in row}
    return Responses(name or path.stem, {row["id"]: row["pred"] for _, row in rows}, style, True, truths)


def write_responses(path: str | Path, answers: Mapping[str, str | None]) -> None:
    """Write answers as JSON lines `read_responses` reads, whole or not at all."""
    artifacts.write_json_lines(path, ({"id": name, "pred": text} for name, text in answers.items()))


def _text(path: Path) -> str:
    try:
        return artifacts.read_text(path)
    except artifacts.StoreError as error:
        raise SmartHomeError(f"cannot read it: {error}") from error


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    if lacking := [column for column in columns if column not in (reader.fieldnames or ())]:
        raise SmartHomeError(f"{path.name} has no column {lacking[0]}, it has {', '.join(reader.fieldnames or ['none'])}")
    try:
        for row in reader:
            yield reader.line_num, {column: row[column] or "" for column in row if column is not None}
    except csv.Error as error:  # a field of more than 128 KB
        raise SmartHomeError(f"{path.name} line {reader.line_num}: {error}") from error


def _clip(where: str, row: Mapping[str, str], tag: str) -> Clip:
    if row[tag] not in TAGS:
        raise SmartHomeError(f"{where}: tag must be one of {', '.join(TAGS)}, got {row[tag]!r}")
    kinds = row["Category"] or ""
    try:
        parts = artifacts.parse_json(kinds)["choices"] if kinds.startswith("{") else kinds.split(",")
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ValueError("choices must be a list of texts")
    except (ValueError, KeyError, TypeError) as error:
        raise SmartHomeError(f"{where}: category {kinds!r} is neither a list nor JSON choices") from error
    text = (row.get("Video Description") or "", row.get("Reasoning behind Normality/Anomalies") or "")
    return Clip(row["Title"], row[tag], tuple(part.strip() for part in parts if part.strip()), *text)


def _aliased(clips: list[Clip], others: list[Clip], name: str) -> list[Clip]:
    if len(clips) != len(others):
        raise SmartHomeError(f"{name} has {len(others)} clips, the annotations {len(clips)}: ids cannot be matched by order")
    for clip, other in zip(clips, others, strict=True):
        if (clip.tag, set(clip.categories)) != (other.tag, set(other.categories)):
            raise SmartHomeError(f"{name}: {other.id} is not {clip.id}, tags or categories differ ({other.tag}, {clip.tag})")
    return [replace(clip, alias=other.id) for clip, other in zip(clips, others, strict=True)]


def _answers(path: Path) -> Iterator[tuple[str, dict]]:
    text = _text(path)
    try:
        content = artifacts.parse_json(text)  # one document
        content = [content] if isinstance(content, dict) and {"id", "pred"} <= set(content) else content
        rows = [{"id": name, "pred": answer} for name, answer in content.items()] if isinstance(content, dict) else content
        placed = [(f"{path.name} row {number}", row) for number, row in enumerate(rows, start=1)]
    except (ValueError, TypeError):  # or one per line
        placed = [(f"{path.name} line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not placed:
        raise SmartHomeError(f"{path.name} holds no responses")
    for where, row in placed:
        try:
            row = artifacts.parse_json(row) if isinstance(row, str) else row
            if not isinstance(row["id"], str) or not isinstance(row["pred"], str | None):
                raise TypeError(f"id and pred must be texts, got {row['id']!r} and {str(row['pred'])[:40]!r}")
            yield where, {"id": row["id"], "pred": row["pred"], **({"truth": row["truth"]} if "truth" in row else {})}
        except (ValueError, TypeError, KeyError) as error:
            raise SmartHomeError(f"{where} is not an object with id and pred: {error}") from error


def _unique(name: str, ids: Iterable[str]) -> None:
    known = set()
    for clip_id in ids:
        if clip_id in known:
            raise SmartHomeError(f"{name} has {clip_id} more than once")
        known.add(clip_id)

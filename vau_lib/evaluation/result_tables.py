"""Results tables: a row per method, mean over seeds, an interval over videos, the level in the name of every metric.

- a method is a list of runs (one per seed), a run is {video: (video score, row scores)}; baselines have one run
- folds are scored one by one and averaged: scores of two trainings share no scale
- `low` and `high` are a 95 % interval of the ENSEMBLE (the mean score of the seeds), by resampling videos; they belong to
  `ensemble_video_auc` or `frame_auc`, not to `video_auc`, the mean of the seeds' own AUCs
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vau_lib.evaluation import metrics
from vau_lib.workspace import artifacts, formats, presets

KINDS = ("ours", "baseline", "released", "sanity")
RESULTS = ("data/results/RESULTS.template.md", "RESULTS.md")  # template and what `make results` writes of it
FRONT = ("README.md", "<!-- demo table, by `make results` -->\n", "<!-- end of the demo table -->")  # where `front_table` stands
INSIDE = {"frame_auc_anomalous_only": "Ano-AUC (anomalous videos only)", "frame_ap_anomalous_only": "Ano-AP"}
Run = Mapping[str, tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Method:
    """One line of the table before it is scored: its name, one of KINDS, and a run per seed."""

    name: str
    kind: str
    runs: Sequence[Run]

    def __post_init__(self):
        if self.kind not in KINDS or not self.runs:
            raise ValueError(f"{self.name}: kind must be one of {', '.join(KINDS)} with at least one run, got {self.kind!r}")

    def video_scores(self) -> dict[str, float]:
        """Return {video: mean over seeds of its video score}."""
        return {name: float(np.mean([run[name][0] for run in self.runs])) for name in self.runs[0]}

    def frame_scores(self, num_frames: Mapping[str, int], snippet_frames: int) -> dict[str, np.ndarray]:
        """Return {video: (num_frames,)}, the mean over seeds of its row scores, each held for its snippet."""
        means = {name: np.mean([run[name][1] for run in self.runs], axis=0) for name in self.runs[0]}
        return {name: metrics.expand(means[name], count, snippet_frames) for name, count in num_frames.items()}


def per_row(name: str, kind: str, scores: Mapping[str, np.ndarray]) -> Method:
    """Return a method that scores rows, {video: (T,)}; its video score is its highest row."""
    rows = {video: np.asarray(values, float) for video, values in scores.items()}
    return Method(name, kind, [{video: (float(values.max()), values) for video, values in rows.items()}])


def per_video(name: str, kind: str, scores: Mapping[str, float], lengths: Mapping[str, int]) -> Method:
    """Return a method that scores whole videos, held over all `lengths[video]` rows."""
    return Method(name, kind, [{video: (score, np.full(lengths[video], score)) for video, score in scores.items()}])


def fold_mean(metric: Callable, fold_of: Mapping[str, int]) -> Callable:
    """Return `metric` taken in each test fold alone and averaged; a resampled copy is named "video copy".

    With one fold it is `metric` itself, whose resamples `metrics` counts at once.
    """
    if len(set(fold_of.values())) == 1:
        return metric

    def averaged(scores: Mapping, labels: Mapping) -> float:
        inside: dict[int, list[str]] = {}
        for name in scores:
            fold = fold_of[name] if name in fold_of else fold_of[name.rsplit(" ", 1)[0]]
            inside.setdefault(fold, []).append(name)
        parts = [({n: scores[n] for n in names}, {n: labels[n] for n in names}) for names in inside.values()]
        return float(np.mean([metric(*part) for part in parts]))

    return averaged


def video_row(method: Method, labels: Mapping[str, int], fold_of: Mapping[str, int], *, seed: int, resamples: int) -> dict:
    """Return the video-level row: AUC and AP, mean over folds and seeds; std over seeds; the ensemble with its 95 % interval."""
    auc, ap = fold_mean(metrics.video_auc, fold_of), fold_mean(metrics.video_ap, fold_of)
    seeds = [auc({name: score for name, (score, _) in run.items()}, labels) for run in method.runs]
    precise = [ap({name: score for name, (score, _) in run.items()}, labels) for run in method.runs]
    span = metrics.bootstrap_ci(auc, method.video_scores(), labels, rng=np.random.default_rng(seed), resamples=resamples)
    return {
        "level": "video", "method": method.name, "kind": method.kind, "seeds": len(seeds), "video_auc": float(np.mean(seeds)),
        "video_auc_std": float(np.std(seeds)), "low": span.low, "high": span.high, "ensemble_video_auc": span.value,
        "video_ap": float(np.mean(precise)),
    }  # fmt: skip


def frame_row(method: Method, truth: Mapping[str, np.ndarray], snippet_frames: int, *, seed: int, resamples: int) -> dict:
    """Return the frame-level row, raw and micro, of the mean scores of the seeds; min-max stands apart as the pitfall it is."""
    scores = method.frame_scores({name: len(labels) for name, labels in truth.items()}, snippet_frames)
    span = metrics.bootstrap_ci(metrics.frame_auc, scores, truth, rng=np.random.default_rng(seed), resamples=resamples)
    return {
        "level": "frame", "method": method.name, "kind": method.kind, "seeds": len(method.runs), "frame_auc": span.value,
        "low": span.low, "high": span.high, "frame_ap": metrics.frame_ap(scores, truth),
        "frame_auc_anomalous_only": metrics.frame_auc_anomalous_only(scores, truth),
        "frame_ap_anomalous_only": metrics.frame_ap_anomalous_only(scores, truth),
        "frame_auc_minmax_pitfall": metrics.frame_auc(metrics.rescaled_per_video(scores), truth),
    }  # fmt: skip


def seed_table(
    trainings: Mapping[str, tuple[Mapping, Mapping]], labels: Mapping[str, int], fold_of: Mapping[str, int]
) -> pd.DataFrame:
    """Return a row per method and seed: video AUC and AP, and video accuracy, precision, recall and F1 at validation's threshold.

    A fold's threshold is Youden's on the validation videos of that fold and seed; decisions of all folds are counted together.

    Args:
        trainings: {method: (tests, vals)} as `detectors.experiments.read_trainings` gives them.
        labels: {test video: 0 or 1}.
        fold_of: {test video: fold}.
    """
    rows, auc, ap = [], fold_mean(metrics.video_auc, fold_of), fold_mean(metrics.video_ap, fold_of)
    for method, (tests, vals) in trainings.items():
        for seed, run in sorted(tests.items()):
            scores = {name: score for name, (score, _) in run.items()}
            truth = {name: labels[name] for name in scores}
            limits = {}
            for fold in {fold_of[name] for name in scores}:
                val = vals.get((seed, fold), {})
                if len({label for _, label in val.values()}) == 2:
                    chosen = ({n: s for n, (s, _) in val.items()}, {n: y for n, (_, y) in val.items()})
                    limits[fold] = metrics.youden_threshold(*chosen)
            row = {"method": method, "seed": seed, "video_auc": auc(scores, truth), "video_ap": ap(scores, truth)}
            if len(limits) == len({fold_of[name] for name in scores}):  # else validation holds one class: nothing to choose by
                report = metrics.binary_report(truth, {n: int(s >= limits[fold_of[n]]) for n, s in scores.items()})
                row |= {f"video_{key}": report[key] for key in ("accuracy", "precision", "recall", "f1")}
            rows.append(row)
    return pd.DataFrame(rows)


def write_curve(path: Path, table: pd.DataFrame) -> None:
    """Write the points behind a figure as csv, whole or not at all; notebook 13 draws from it."""
    artifacts.write_table(path, table)


@artifacts.reader()
def read_tables(*folders: Path) -> dict[str, pd.DataFrame]:
    """Return {name: table} of every csv below the folders; a later folder's table replaces an earlier one's of the same name.

    A name is the file's, without suffix. Where two tables below one folder have the same, the first by path keeps it and a
    further one is called "preset/name": publishing one preset's streams does not replace another's.
    """
    tables: dict[str, pd.DataFrame] = {}
    for folder in map(Path, folders):
        own: dict[str, pd.DataFrame] = {}
        for path in sorted(folder.rglob("*.csv")):
            name = path.stem if path.stem not in own else f"{path.relative_to(folder).parts[0]}/{path.stem}"
            own[name] = formats.read_table(path)
        tables |= own
    return tables


def as_markdown(table: pd.DataFrame) -> str:
    """Return a results table (columns of `video_row` or `frame_row`) as Markdown, a section per level.

    A number and the interval beside it are of the same quantity: the ensemble's. The mean of the seeds stands apart, with its
    standard deviation and no interval.
    """
    parts = []
    for level, rows in table.groupby("level", sort=False):
        column = "ensemble_video_auc" if level == "video" else "frame_auc"
        rows = rows.dropna(axis=1, how="all").sort_values(column, ascending=False, kind="stable")
        head = ["method", "kind", f"{level} AUC of the ensemble [95 % over videos]"]
        seeds = level == "video" and bool((rows["seeds"] > 1).any())
        head += [f"{level} AUC, mean ± std over seeds"] * seeds + [f"{level} AP"]
        inside = [name for name in INSIDE if name in rows]  # frame level only
        head += [INSIDE[name] for name in inside]
        lines = [head, ["---"] * len(head)]
        for row in rows.to_dict("records"):
            cells = [row["method"], row["kind"], f"{row[column]:.3f}"]
            if not pd.isna(row.get("low")):
                cells[2] += f" [{row['low']:.3f}, {row['high']:.3f}]"
            if seeds:
                several = f"{row['video_auc']:.3f} ± {row['video_auc_std']:.3f} ({row['seeds']})"
                cells.append(several if row["seeds"] > 1 else "")
            last = [row.get(name) for name in (f"{level}_ap", *inside)]
            lines.append([*cells, *("" if pd.isna(value) else f"{value:.3f}" for value in last)])
        parts.append("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))
    return "\n\n".join(parts)


def write_results(folder: Path, template: Path, target: Path) -> str:
    """Write `target` (RESULTS.md): the template's text with each line `{{table NAME}}` replaced by that table of `folder`.

    Detector tables (with a column `level`) go through `as_markdown`, a section per data set; others are printed as they are.
    """
    tables, out = read_tables(folder), []
    for line in artifacts.read_text(template).splitlines():
        if not line.startswith("{{table "):
            out.append(line)
            continue
        name = line.removeprefix("{{table ").removesuffix("}}").strip()
        table = tables[name]
        if "level" not in table or "dataset" not in table:
            out.append(_plain_markdown(table))
            continue
        for dataset, part in table.groupby("dataset", sort=False):
            several = f"**{dataset}** ({', '.join(part['features'].dropna().unique())})"
            out += [several, "", as_markdown(part), ""]
    text = "\n".join(out).rstrip() + "\n"
    with artifacts.replacing(Path(target)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def front_table(table: pd.DataFrame) -> str:
    """Return the demo's table in short as Markdown, a row per trained system, its shuffled labels and the best rows beside it.

    `table` is the demo's, of both levels. Beside the systems stand the best logistic regression and the best row that is not
    trained, both by video AUC. Each number is the ensemble's, with its interval.
    """
    column = {"video": "ensemble_video_auc", "frame": "frame_auc"}
    by_level = {level: table[table["level"] == level].set_index("method") for level in column}
    video = by_level["video"].sort_values("ensemble_video_auc", ascending=False)
    ours = [m for m in video.index[video["kind"] == "ours"] if video.loc[m, "seeds"] > 1]
    plain = list(video.index[video["kind"] == "baseline"])
    learned = [m for m in plain if m.startswith("logistic regression")][:1]
    untrained = [m for m in plain if not m.startswith("logistic regression")][:1]
    shuffled = [m for m in video.index if "shuffled" in m]
    lines = [["method", "kind", "video AUC [95 %]", "frame AUC [95 %]"], ["---"] * 4]
    for method in (*ours, *learned, *untrained, *shuffled):
        cells = [method, video.loc[method, "kind"]]
        for level, part in by_level.items():
            row = part.loc[method] if method in part.index else None
            cells.append("" if row is None else f"{row[column[level]]:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_front(root: Path) -> str:
    """Replace the demo's table between the two marks of FRONT in the README below `root`; return the new text."""
    name, begin, end = FRONT
    text = artifacts.read_text(root / name)
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    text = before + begin + front_table(formats.read_table(root / "data/results/demo/synthetic.csv")) + end + after
    with artifacts.replacing(root / name) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def _plain_markdown(table: pd.DataFrame) -> str:
    rows = table.round(3).astype(object).where(table.notna(), "").values.tolist()
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":  # `make results`
    write_results(presets.project() / "data/results", *(presets.project() / name for name in RESULTS))
    write_front(presets.project())

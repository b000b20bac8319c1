"""Turn answers and scores into numbers a reader can trust: judgement accuracy apart from wording, frames by asserted lengths.

- a third of the judgement rows deny an anomaly in two stock sentences: word overlap rewards saying them, accuracy tells
- an answer is compared with the reference's own judgement; both are read by `answer_parsing.parse_verdict`
- a score belongs to the 16 frames it was taken from: a video whose number of scores does not fit is refused, not cut
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vau_lib.data import records
from vau_lib.data.answer_parsing import parse_verdict
from vau_lib.data.hivau import Instruction
from vau_lib.data.records import VideoRecord, frame_labels
from vau_lib.evaluation import metrics

CONSTANT = "No anomaly exists in the video."


def judgement_report(predictions: Mapping[str, str], instructions: Iterable[Instruction]) -> list[dict]:
    """Return accuracy, precision, recall, f1 of the judgements per level, beside two constant answers (peers).

    An answer without a verdict counts as wrong. ValueError where a judgement has no answer.
    """
    asked = [row for row in instructions if row.task == "judgement"]
    if missing := [row.id for row in asked if row.id not in predictions]:
        raise ValueError(f"no answer for {missing[0]!r}; {len(missing)} of {len(asked)} judgements have none")
    rows = []
    for level in dict.fromkeys(row.level for row in asked):
        of_level = [row for row in asked if row.level == level]
        truth = [_true_verdict(row) for row in of_level]
        decided = [_decided(predictions[row.id], label) for row, label in zip(of_level, truth, strict=True)]
        for method, chosen in (("answers", decided), ("always no", [0] * len(truth)), ("always yes", [1] * len(truth))):
            rows.append({"level": level, "method": method, "rows": len(truth), **metrics.binary_report(truth, chosen)})
    return rows


def _true_verdict(row: Instruction) -> int:
    verdict = parse_verdict(row.answer)
    if verdict is None:
        raise ValueError(f"{row.id}: the reference judgement gives no verdict, it is {row.answer[:60]!r}")
    return verdict


def _decided(text: str, truth: int) -> int:
    verdict = parse_verdict(text)
    return 1 - truth if verdict is None else verdict


def detection(
    scores: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray] | Sequence[VideoRecord], *,
    snippet_frames: int = records.SNIPPET_FRAMES, last: str = "kept",
) -> tuple[dict[str, float], list[dict]]:  # fmt: skip
    """Return (summary, a row per video) of snippet scores {id: (n,)} against frame labels, or records with events.

    A video of F frames needs ceil(F / snippet_frames) scores; with `last="dropped"` (I3D features) the floor. The
    summary has frame_auc, frame_ap, frame_auc_anomalous_only and chance_ap. ValueError names the video that does not fit.
    """
    if last not in ("kept", "dropped"):
        raise ValueError(f"last must be kept or dropped, got {last!r}")
    labels = dict(truth) if isinstance(truth, Mapping) else {record.id: frame_labels(record) for record in truth}
    frames = {}
    for name in labels:
        if name not in scores:
            raise ValueError(f"video {name} has labels but no scores")
        found, length = np.shape(scores[name]), len(labels[name])
        wanted = -(-length // snippet_frames) if last == "kept" else max(1, length // snippet_frames)
        if found != (wanted,):
            raise ValueError(
                f"video {name}: {length} frames need {wanted} scores (last snippet {last}), got shape {found}"
            )
        frames[name] = metrics.expand(scores[name], length, snippet_frames)
    frames |= {name: scores[name] for name in scores if name not in labels}  # refused by name below
    kinds = (metrics.frame_auc, metrics.frame_ap, metrics.frame_auc_anomalous_only)
    summary = {kind.__name__: kind(frames, labels) for kind in kinds}
    return summary | {"chance_ap": float(np.concatenate(list(labels.values())).mean())}, metrics.per_video(
        frames, labels
    )

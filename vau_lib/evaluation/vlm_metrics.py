"""Judgement accuracy of language models' answers, apart from their wording (Holmes-VAU's judgement rows).

- a third of the judgement rows deny an anomaly in two stock sentences: word overlap rewards saying them, accuracy tells
- an answer is compared with the reference's own judgement; both are read by `answer_parsing.parse_verdict`
"""

from collections.abc import Iterable, Mapping

from vau_lib.data.answer_parsing import parse_verdict
from vau_lib.data.hivau import Instruction
from vau_lib.evaluation import metrics

CONSTANT = "No anomaly exists in the video."


def judgement_report(predictions: Mapping[str, str], instructions: Iterable[Instruction]) -> list[dict]:
    """Return accuracy, precision, recall, f1 of the judgements per level, beside two constant answers (baselines).

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

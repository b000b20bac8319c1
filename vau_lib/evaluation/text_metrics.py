"""Text metrics with named protocols: BLEU, METEOR, ROUGE-L and CIDEr; one name hides three numbers in this field.

- "BLEU" here and in the paper's Table 2 is the sum of the cumulative BLEU-1 to BLEU-4, so it may exceed 1
- the paper does not say what is pooled, so every pooling has a name and stands in its row
- the scorers are pycocoevalcap's; METEOR and the Penn tokenizer are Java programs: without Java a regular expression
  splits words and NLTK's METEOR matches words and stems, and each row says which of the two made it
- the released test set repeats clips; `counted="files"` keeps one row per file and task
"""

import contextlib
import io
import re
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from vau_lib.data.hivau import Instruction, distinct

PROTOCOLS = ("corpus", "task_mean", "sentence")
BLEUS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
SCORES = (*BLEUS, "bleu", "cider", "meteor", "rouge_l")
COUNTED = ("rows", "files")
WORD = re.compile(r"\w+(?:'\w+)?")
Texts = dict[str, str]


def text_scores(
    predictions: Mapping[str, str],
    references: Mapping[str, str] | Sequence[Instruction],
    *,
    protocol: str,
    counted: str = "rows",
    java: bool | None = None,
) -> list[dict]:
    """Return one row per level and task, and one with task "all" per level of several tasks; its scores are SCORES.

    `references` are Instructions, or {id: text} (level and task "all"). What task "all" means is the protocol's:
    - "corpus": all rows of the level as one corpus
    - "task_mean": the plain mean of its tasks' corpus values
    - "sentence": BLEU of every sentence, averaged, then summed over 1..4; the rest over all rows of the level
    `java` None uses it when it is there; the columns tokenizer and meteor_kind say what was used. ValueError when
    an id lacks an answer: leaving it out flatters.
    """
    for name, value, known in (("protocol", protocol, PROTOCOLS), ("counted", counted, COUNTED)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if java and not shutil.which("java"):
        raise ValueError("java=True, but there is no program java on the path")
    java = bool(shutil.which("java")) if java is None else java
    groups = _groups(references, counted)
    wanted = {key for group in groups.values() for key in group}
    if missing := sorted(wanted - set(predictions)):
        raise ValueError(f"no answer for {missing[0]!r}; {len(missing)} of {len(wanted)} references have none")
    said, truth = _tokenized({key: predictions[key] for key in wanted}, groups, java)
    if empty := sorted(key for key, text in truth.items() if not text.strip()):
        raise ValueError(f"reference {empty[0]!r} holds no word ({len(empty)} of {len(wanted)}): nothing can be compared with it")
    facts = {"protocol": protocol, "counted": counted, **_tools(java)}
    tasks = {level: sum(of == level for of, _ in groups) - 1 for level, _ in groups}
    groups = {group: keys for group, keys in groups.items() if group[1] != "all" or tasks[group[0]] != 1}
    values = {group: _scores({k: truth[k] for k in keys}, said, protocol, java) for group, keys in groups.items()}
    if protocol == "task_mean":
        values |= {group: _task_mean(group, values) for group in values if group[1] == "all" and group[0] != "all"}
    return [
        {"level": level, "task": task, "rows": len(groups[level, task]), **values[level, task], **facts} for level, task in groups
    ]


def regex_tokens(text: str) -> str:
    """Return the words of a text in lower case, punctuation left out, joined by spaces."""
    return " ".join(WORD.findall(text.lower().replace("’", "'")))


def _groups(references, counted: str) -> dict[tuple[str, str], Texts]:
    """Return {(level, task): {id: reference}}; a level with several tasks has the group "all" too."""
    if isinstance(references, Mapping):
        if counted == "files":
            raise ValueError('counted="files" needs Instructions: a plain {id: text} does not say what repeats')
        groups = {("all", "all"): dict(references)}
    else:
        groups: dict[tuple[str, str], Texts] = {}
        for row in distinct(references) if counted == "files" else references:
            for task in (row.task, "all"):
                groups.setdefault((row.level, task), {})[row.id] = row.answer
    if not any(groups.values()):
        raise ValueError("no references to compare with")
    return groups


def _tokenized(predictions: Texts, groups: Mapping, java: bool) -> tuple[Texts, Texts]:
    references = {key: text for group in groups.values() for key, text in group.items()}
    if not java:
        return tuple({key: regex_tokens(text) for key, text in texts.items()} for texts in (predictions, references))
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found = []
    for texts in (predictions, references):
        kept = {key: [{"caption": " ".join(text.split()) or "."}] for key, text in texts.items()}
        with contextlib.redirect_stderr(io.StringIO()):
            found.append({key: words[0] for key, words in PTBTokenizer().tokenize(kept).items()})
    return tuple(found)


def _scores(references: Texts, predictions: Texts, protocol: str, java: bool) -> dict[str, float]:
    """Return SCORES of one group of tokenized texts."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth = {key: [text] for key, text in references.items()}
    said = {key: [predictions[key]] for key in references}
    corpus, each = Bleu(4).compute_score(truth, said, verbose=0)
    bleu = [float(np.mean(values)) for values in each] if protocol == "sentence" else [float(v) for v in corpus]
    found = dict(zip(BLEUS, bleu, strict=True)) | {"bleu": sum(bleu)}
    found["cider"] = float(Cider().compute_score(truth, said)[0])
    found["meteor"] = _meteor(truth, said, java)
    return found | {"rouge_l": float(Rouge().compute_score(truth, said)[0])}


def _meteor(truth: Mapping, said: Mapping, java: bool) -> float:
    if java:
        from pycocoevalcap.meteor.meteor import Meteor

        return float(Meteor().compute_score(truth, said)[0])
    from nltk.translate.meteor_score import single_meteor_score

    pairs = [(truth[key][0].split(), said[key][0].split()) for key in truth]
    scores = [single_meteor_score(*pair, wordnet=_NoSynonyms()) if all(pair) else 0.0 for pair in pairs]
    return float(np.mean(scores))


class _NoSynonyms:
    """Stands where NLTK asks WordNet, a download this project does not make."""

    def synsets(self, word: str) -> tuple:
        return ()


def _task_mean(group: tuple[str, str], values: Mapping) -> dict[str, float]:
    tasks = [found for (level, task), found in values.items() if level == group[0] and task != "all"]
    return {name: float(np.mean([found[name] for found in tasks])) for name in SCORES}


def _tools(java: bool) -> dict[str, str]:
    if java:
        return {"tokenizer": "PTB (Java)", "meteor_kind": "METEOR 1.5 (Java)"}
    return {"tokenizer": "regex", "meteor_kind": "nltk exact+stem, no WordNet, mean of rows"}

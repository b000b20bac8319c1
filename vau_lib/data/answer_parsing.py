"""Reading a language model's answers: one verdict parser for every benchmark, event orders, event spans.

- a verdict is 1 (anomaly), 0 (no anomaly) or None (the answer says neither, or both); who scores decides what None costs
- a label in a form (JSON, `key: value`, <answer>, \\boxed) outranks sentences; reasoning inside <think> is never read
- sentences are read for denials first, so that "no signs of anomalies" is not taken for an anomaly; guesses count for nothing
"""

import ast
import json
import re

FINAL = ("updated_anomaly", "final_anomaly")  # a corrected label outranks the one it corrects
PLAIN = ("anomaly", "result", "is_anomaly", "anomalous", "abnormal", "label", "prediction", "answer")
INVERTED = ("normal", "is_normal")  # 1 means no anomaly
KEYS = {key: (rank, inverted) for rank, keys, inverted in ((0, FINAL, 0), (1, PLAIN, 0), (1, INVERTED, 1)) for key in keys}
WORDS = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "abnormal", "anomalous", "anomaly", "vague abnormal"), 1),
    **dict.fromkeys(("0", "0.0", "false", "no", "normal", "none", "no anomaly"), 0),
}
WORD = "|".join(sorted(map(re.escape, WORDS), key=len, reverse=True))
KEYED = re.compile(  # key: value anywhere, for what is nearly JSON; "0 or 1" and "0 for none" are a form, not an answer
    rf"""["']?\b({"|".join(KEYS)})["']*\s*[:=]\s*["']*({WORD})(?![\w.]*\w)["']*(?!\s*(?:or\b|for\b|if\b|[|/]))""", re.I
)
THOUGHT = re.compile(r"^.*</think>|<think>.*$", re.S | re.I)  # chat templates may open the tag, a limit may cut its end
MARKED = re.compile(r"<answer>(.*?)(?:</answer>|$)|\\boxed\{(?:\\text\{)?([^{}]*)\}", re.S | re.I)
HEDGE = re.compile(r"\b(?:if|whether|unclear|might|may|could|would|cannot|can't|hard to|possibly|perhaps)\b[^.!?;\n]*", re.I)
ODD, BE = r"(?:anomal\w+|abnormal\w*)", r"(?:is|are|was|were|seems?|appears?|looks?)(?:\s+to\s+be)?"
NEGATED = rf"(?:not|n't|never)\s+(?:\w+\s+){{0,2}}?(?:an?\s+|any\s+)?{ODD}"
NOT_NORMAL = r"\b(?:not|isn't|n't)\s+normal\b"
DENIAL = re.compile(
    rf"^\W*(?:no|normal)\s*[,.;:!]|\b(?:no(?!\s+(?:doubt|question)\b)|without(?:\s+any)?|free of)\s+(?:\w+\s+){{0,3}}?{ODD}"
    rf"|\w{NEGATED}|\b{NEGATED}|\bnothing\s+{ODD}|\bthere\s+(?:is|are)\s+(?:none|not\s+any)\s*(?=[.!]|$)"
    rf"|\b{BE}\s+(?:(?:all|completely|entirely|quite|perfectly)\s+)?normal\b",
    re.I,
)
AFFIRMATION = re.compile(
    rf"^\W*(?:yes|abnormal|anomalous)\s*[,.;:!]|\b{BE}\s+(?:an?\s+|clearly\s+|highly\s+)?{ODD}"
    rf"|\b(?:contains?|shows?|has|have|depicts?|includes?)\s+(?:an?\s+|\w+\s+)?{ODD}|\bthere\s+(?:is|are)\s+(?:\w+\s+){{0,3}}?{ODD}"
    rf"|\b{ODD}\s+{BE}\s+(?:present|detected|found|seen|named|called)|\b{ODD}(?:\s+events?)?\s+(?:exist|occur|happen)\w*",
    re.I,
)
ORDER = re.compile(r"^\W*(?:(?:the\s+)?(?:correct\s+)?order\b(?:\s+is)?)?\W*(\d+(?:[\s,>-]+\d+)*)\W*$", re.I)
BETWEEN = re.compile(r"(\d+(?:\.\d+)?)\s*s?(?:econds)?\s*(?:to|-|–|and|until)\s*(\d+(?:\.\d+)?)")


def parse_verdict(text: str | None) -> int | None:
    """Return 1 for an anomaly, 0 for none, None where the answer says neither or both.

    Read in this order: the last <answer> or \\boxed; a key that holds a label (JSON, fenced JSON, a Python dict, or nearly
    so; of several objects the last counts, `updated_anomaly` outranks `anomaly`, `normal` is inverted); a text that is one
    word; sentences outside braces that state it. A description cut off before its label stays None, whatever words it holds.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"an answer is a text, got {text!r}")
    text = THOUGHT.sub(" ", text).replace("*", "")  # Markdown's bold
    if marked := [found[1] or found[2] or "" for found in MARKED.finditer(text)]:
        text = marked[-1]
    objects = _objects(text)
    labels = objects or [[(found[1].lower(), found[2]) for found in KEYED.finditer(text)]]
    if any(labels):
        best = min(KEYS[key][0] for pairs in labels for key, _ in pairs)
        values = [[_value(key, value) for key, value in pairs if KEYS[key][0] == best] for pairs in labels]
        verdicts = {value for value in [v for v in values if v][-1] if value is not None}
        return verdicts.pop() if len(verdicts) == 1 else None
    outside = re.sub(r"\{.*(?:\}|$)", " ", text, flags=re.S)
    word = re.sub(r"[\s\"'`.!]+", " ", outside).strip().lower()
    return WORDS[word] if word in WORDS else _stated(outside)


def parse_order(answer: str, count: int) -> list[int]:
    """Return the order an answer gives, like "2 1 3"; ValueError in one line where it is none of `count` pieces."""
    matched = ORDER.match(answer.strip())
    order = [int(part) for part in re.findall(r"\d+", matched[1])] if matched else []
    if sorted(order) != list(range(1, count + 1)):
        raise ValueError(f"an order of {count} pieces was asked, the answer is {answer[:60]!r}")
    return order


def parse_span(answer: str) -> tuple[float, float] | None:
    """Return the seconds an answer names, like "From 1.5 s to 3 s."; None where it denies. ValueError where it does neither."""
    if parse_verdict(answer) == 0:
        return None
    matched = BETWEEN.search(answer)
    if matched and float(matched[2]) > float(matched[1]):
        return float(matched[1]), float(matched[2])
    raise ValueError(f"an answer must name seconds that rise or deny an anomaly, it is {answer[:60]!r}")


def _objects(text: str) -> list[list[tuple[str, object]]]:
    """Return the (key, value) pairs that are labels, per JSON object or Python dict, nested ones included, repeats kept."""
    objects: list[list[tuple[str, object]]] = []
    pairs: list[tuple[str, object]] = []
    decoder = json.JSONDecoder(object_pairs_hook=lambda found: pairs.extend(found) or dict(found), strict=False)
    place, tries = text.find("{"), 0
    while place >= 0 and tries < 64:  # enough for any answer, bounded for a hostile one
        pairs.clear()
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = _python_dict(text, place, pairs)
        labels = [(key.lower(), value) for key, value in pairs if isinstance(key, str) and key.lower() in KEYS]
        objects += [labels] if labels else []
        place, tries = text.find("{", max(end, place + 1)), tries + 1
    return objects


def _python_dict(text: str, place: int, pairs: list) -> int:
    """Add the pairs of a flat Python dict, or of JSON with // notes, that starts at `place`; return where it ends."""
    end = text.find("}", place) + 1
    body = re.sub(r"//[^\n]*", "", text[place:end])
    try:
        content = ast.literal_eval(re.sub(r"\b(true|false)\b", lambda word: word[0].title(), body))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return 0
    pairs.extend(content.items() if isinstance(content, dict) else ())
    return end


def _value(key: str, value: object) -> int | None:
    label = None if value is None else WORDS.get(str(value).strip().lower())
    return label if label is None else abs(label - KEYS[key][1])


def _stated(text: str) -> int | None:
    """Return what the sentences agree on; guesses and conditions say nothing."""
    text = HEDGE.sub(" ", text)
    without_denials = DENIAL.sub(" ", text)
    affirmed = bool(AFFIRMATION.search(without_denials) or re.search(NOT_NORMAL, text, re.I))
    denied = bool(DENIAL.search(text))
    return None if affirmed == denied else int(affirmed)

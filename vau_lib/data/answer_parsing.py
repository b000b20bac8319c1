"""TODO header."""

import ast
import json
import re
from collections.abc import Iterator

NEGATIVE = "no anomaly"  # how a judgement says that nothing is wrong, in any case


def judgement_of(judgement: str) -> bool | None:
    """Return whether a judgement says that something is anomalous; None where it says neither (babble, silence)."""
    said = judgement.lower()
    return False if NEGATIVE in said else True if "anomal" in said else None


DENIES = re.compile(r"^(no|there (is|are) (no|not))\b|\b(no|not) anomal", re.IGNORECASE)


def says_anomaly(text: str) -> bool:
    """Return whether a judgement claims an anomaly: it does unless it denies one (22 phrasings in the test set)."""
    if not text.strip():
        raise ValueError("a judgement must not be empty")
    return not DENIES.search(text.strip())


BETWEEN = re.compile(r"(\d+(?:\.\d+)?)\s*s?(?:econds)?\s*(?:to|-|–|and|until)\s*(\d+(?:\.\d+)?)")

ORDER = re.compile(r"^\W*(\d+(?:[\s,>-]+\d+)*)\W*$")


def parse_order(answer: str, count: int) -> list[int]:
    """Return the order an answer gives, like "2 1 3"; ValueError in one line where it is none of `count` pieces."""
    found = ORDER.match(answer.strip())
    order = [int(part) for part in re.findall(r"\d+", found[1])] if found else []
    if sorted(order) != list(range(1, count + 1)):
        raise ValueError(f"an order of {count} pieces was asked, the answer is {answer[:60]!r}")
    return order


def parse_span(answer: str) -> tuple[float, float] | None:
    """Return the seconds an answer names, like "From 1.5 s to 3 s."; None where it denies. ValueError where it does neither."""
    if judgement_of(answer) is False:
        return None
    found = BETWEEN.search(answer)
    if found and float(found[2]) > float(found[1]):
        return float(found[1]), float(found[2])
    raise ValueError(f"an answer must name seconds that rise or deny an anomaly, it is {answer[:60]!r}")


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

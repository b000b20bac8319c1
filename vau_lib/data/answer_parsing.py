"""Reading a language model's answers: one verdict parser for every benchmark, event orders, event spans.

- a verdict is 1 (anomaly), 0 (no anomaly) or None (the answer says neither, or both); who scores decides what None costs
- a label in a form (JSON, `key: value`, <answer>, \\boxed) outranks sentences; reasoning inside <think> is never read
- sentences are read for denials first, so that "no signs of anomalies" is not taken for an anomaly; guesses count for nothing
"""

import ast
import json
import math
import re
from collections.abc import Callable

FINAL = ("updated_anomaly", "final_anomaly")  # a corrected label outranks the one it corrects
PLAIN = tuple(
    "anomaly result is_anomaly is_anomalous is_abnormal has_anomaly anomaly_detected anomaly_present anomalous abnormal "
    "label prediction answer output final_answer verdict decision conclusion classification judgement judgment assessment".split()
)
COUNTS = ("anomalies", "anomaly_count", "num_anomalies", "number_of_anomalies")  # of anomalies, or a list of them
PRESENCE = ("present", "exists", "detected", "value")  # keys of an object behind one of these
INVERTED = ("normal", "is_normal")  # 1 means no anomaly
KEYS = {
    key: (rank, inverted)
    for rank, keys, inverted in ((0, FINAL, 0), (1, PLAIN, 0), (1, COUNTS, 0), (1, INVERTED, 1))
    for key in keys
}
WORDS = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "abnormal", "anomalous", "anomaly", "vague abnormal", "not normal", "present"), 1),
    **dict.fromkeys(
        ("0", "0.0", "false", "no", "normal", "none", "no anomaly", "not anomalous", "not abnormal", "absent", "not present"), 0
    ),
    # of a test for anomalies; then labels, which say less in sentences
    **dict.fromkeys(("positive", "suspicious", "unusual", "yep", "yeah", "yup"), 1),
    **dict.fromkeys(("negative", "benign", "ordinary", "routine", "not suspicious", "not unusual", "nope"), 0),
}
WORD = "|".join(sorted((re.escape(word).replace(r"\ ", r"\s+") for word in WORDS), key=len, reverse=True))
ANNOUNCED = "answer|output|judge?ment|assessment|verdict|decision|conclusion|classification|prediction|label|result"
KEYED = re.compile(  # key: value anywhere, for what is nearly JSON; "0 or 1" and "0 for none" are a form, not an answer
    rf"""(final\s+)?["']?\b(?:({"|".join(KEYS)})["']*\s*[:=]|({ANNOUNCED})\s+is:?)\s*["'(\[]*({WORD})(?![\w.]*\w)["']*"""
    r"""(?!\s*(?:or\b|for\b|if\b|[|/])|\s+(?:one|body|idea|way|doubt|question)\b)""",
    re.I,
)
THINK = r"(?:\w+:)?think(?:ing)?|thought|reasoning"
TAGS = (  # Magistral's, Sky-T1's, gpt-oss's
    (re.compile(r"\[(/?)think\]", re.I), r"<\1think>"),
    (re.compile(r"<\|begin_of_thought\|>", re.I), "<think>"),
    (re.compile(r"<\|end_of_thought\|>", re.I), "</think>"),
    (re.compile(r"^.*<\|channel\|>\s*final\s*(?:<\|message\|>)?|<\|channel\|>\s*(?:analysis|commentary)\b.*$", re.S | re.I), " "),
)
# templates may open the tag, a limit may cut its end
THOUGHT = re.compile(rf"^.*[<◁]/(?:{THINK})[>▷]|[<◁](?:{THINK})[>▷].*$", re.S | re.I)
SPACE, RUN = re.compile(r"\s{2,}"), re.compile(r"\W{65,}")  # a model that repeats line breaks or dots costs no minutes
NOTE = re.compile(r"/\*.{0,400}?\*/", re.S)
MARKED = re.compile(
    r"<(?:answer|verdict|final|final_answer)>(.*?)(?:</|$)|\\f?box(?:ed)?\s*\{([^{}]*)\}|<\|begin_of_box\|>(.*?)<\|", re.S | re.I
)
LATEX = re.compile(r"\\(?:text|math)\w*\s*\{([^{}]*)\}")
MARKUP = re.compile(
    r"~~[^~\n]{1,400}~~|[*`#]|(?<!\w)_+|_+(?!\w)|[“”]|[\u2600-\u27bf\ufe0f\u20e3\U0001f300-\U0001faff]"
)  # bold, code, headings, quotation marks, pictures
COUNTED = re.compile(
    r"(?<!\ban\s)(?<!\bone\s)(?<!\bthe\s)\b(?:anomal(?:y|ies)|abnormalit(?:y|ies))(?:\s+(?:detected|present|found|exists?|status))?(?=\s*[:=])",
    re.I,
)
TAGGED = re.compile(  # XML
    rf"<({'|'.join(KEYS)}|kind|type|category|from_s|to_s|start_s|end_s|start|end)>([^<>]{{0,400}})</\1>", re.I
)
HEADING = re.compile(rf"^[^\w\n]*_*((?:final\s+)?(?:{ANNOUNCED}))[^\w\n]*_*$", re.I | re.M)

# Sentences. ODD is what they are about; a negation reaches it over a few words, never over punctuation or another clause.
ODD = r"(?:anomal(?:y|ies|ous(?:ly)?)|abnormal(?:ly|ity|ities)?)\b"  # "anomal", cut or repeated, is no word
ODDS = rf"{ODD}(?:\s+(?:or|nor|and)\s+(?:\w+\s+)?{ODD})?"
INSERTED = r"(?:\s+\([^)]*\)|,[^,.;\n]{0,80},)?"
KIND = r"(?:events?|behaviou?rs?|activit\w+|incidents?|actions?|situations?|scene|video|clip|day|here|in\s+(?:the|this)\s+\w+)"
BE = (
    r"(?:is|are|was|were|be|been|seems?|appears?|looks?|remain(?:s|ed)?|stay(?:s|ed)?"
    r"|becom(?:es?|ing)|became|turn(?:s|ed)|'s)(?:\s+to\s+be)?"
)
NOT = (
    r"(?:not|fail(?:s|ed)?\s+to|never|cannot|none|nothing|nobody|neither|nor|no\s+one"
    r"|hardly|by\s+no\s+means|in\s+no\s+way|\w+n't|(?:is|are|was|were|do|does|did|has|have)nt)"
)
NO = r"(?:no|without|free\s+(?:of|from)|devoid\s+of|lack(?:s|ed|ing)?|absence\s+of|zero)"
CAUSES = "shows|causes|contains|displays|exhibits|indicates|suggests"
CLAUSE = rf"(?!(?:but|because|while|and|which|who|although|until|yet|{CAUSES})\b)[\w'()/-]+\s+"
NOUN = rf"(?!(?:is|are|was|were|has|have)\b){CLAUSE}"
PRESENT = (
    r"(?:exist\w*|occur\w*|happen\w*|tak(?:es?|ing)\s+place|took\s+place|present|detected|found|seen|observed|noticed|noted|identified"
    r"|spotted|visible|evident|apparent|named|called|recorded|unfold(?:s|ing)|captured|shown|confirmed|recognized|recogni[sz]able)\b"
)

STRANGE = r"(?:out\s+of\s+the\s+ordinary|unusual|strange|irregular)"  # not "suspicious", which is no event
MEANINGS = ["|".join(word for word, label in WORDS.items() if label == number and word[0].isalpha()) for number in (0, 1)]
ONLY_WORD = rf"(?:{WORD})\W*\Z"  # and nothing after it
FALSE = r"(?:wrong|incorrect|inaccurate|misleading|an?\s+(?:mistake|error|exaggeration|overstatement))"
SAY = r"(?:say|claim|state|assert|maintain|think|assume|believe|suggest|conclude)"
SAID = r"(?:said|claimed|stated|asserted|maintained)"
UNTRUE = (
    rf"(?:(?:not|\w+n't)\s+(?:\w+ly\s+)?(?:true|correct|right|the\s+case|justified|warranted)|{FALSE}|false|untrue|unfounded|baseless"
    r"|mistaken|unjustified|unwarranted|unsupported)"
)
CALL = r"\b(?:call|label|consider|describ|classify|classif|treat|judg|regard|deem|rat)l?(?:e|y|(?=ing))?"
CALLED = r"\s*(?:\w+\s+){0,4}?(?:as\s+)?"
NORMAL_OR_ODD = rf"(?:an?\s+)?(?:\w+ly\s+)?(?:normal|{ODD})"
SPELLINGS = tuple(  # one way to say what is said in several
    (re.compile(pattern, re.I | re.M), plain)
    for pattern, plain in (
        (r"\bnon[\s-]?(?=(?:anomalous|abnormal)\b)", "not "),
        (r"\banomaly[\s-]free\b", "free of anomalies"),
        (r"\b0\s+(?=anomal)", "no "),
        (r"</?s>|<\|(?!begin_of_box|end_of_box)[\w ]*\|>|<(?:eos|end_of_turn)>", " "),
        (r"\A\W*(?:assistant|model|response|bot)\s*:\s*", ""),
        (r"\b(?:anomalies|abnormalities)[\"']?\s*[:=]\s*(?:\[\s*\]|\{\s*\})", "answer: 0"),
        (rf"\A\W*(?:(?:the\s+)?(?:final\s+)?(?:{ANNOUNCED})\s*(?:is|[:=])?\s*)?one\W*\Z", "answer: 1"),
        (rf"\A\W*(?:(?:the\s+)?(?:final\s+)?(?:{ANNOUNCED})\s*(?:is|[:=])?\s*)?zero\W*\Z", "answer: 0"),
        (rf"\A\W*(?:[-=]+>|final\s*:)\s*(?={ONLY_WORD})", "answer: "),
        (r"\A\W*([01])\s*[(,;]\s*(?=conf|prob)", r"answer: \1 ("),
        (rf"(?:\A|\n)\W*(?:{ANNOUNCED}|{'|'.join(KEYS)})[\"'*]*\s*[:=]\W*\Z", " "),  # cut off before its value
        (rf"(?<!not\s)(?<!n't\s)\b(?:rul(?:ed?|ing)\s+out|exclud(?:ed?|ing))\s+(?:an?|any|the)\s+{ODD}", "have no anomaly"),
        # what is said not to be so, and what is let stand by not being denied
        (
            rf"\b(?:it\s+)?(?:can|could)\s+be\s+(?:ruled\s+out|excluded)\s+that\b[^.!?;\n]{{0,80}}?{ODD}[^.!?;\n]*",
            "there is no anomaly",
        ),
        (rf"{ODD}(?:\s+\w+){{0,2}}?\s+(?:can|could|may)\s+(?:\w+ly\s+)?be\s+(?:ruled\s+out|excluded)\b", "no anomaly"),
        (r"\b(?:it\s+)?(?:cannot|can't|could\s+not|couldn't)\s+be\s+(?:denied|doubted|disputed)(?:\s+that)?\b", ""),
        (r"\bno\s+(?:reason|cause)\s+to\s+doubt(?:\s+that)?\b", ""),
        (
            rf"\b(?:except\s+for|(?:apart|aside)\s+from)\s+([^.!?;\n]{{0,80}}?{ODD}[^.!?;,\n]{{0,40}}),[^.!?;\n]*\bnormal\b[^.!?;\n]*",
            r"there is \1",
        ),
        # "yes" to a question that was turned round
        (rf"\A\W*yes\W+(?=(?:(?:the|this|that)\s+\w+|it|everything|all)\s+(?:{BE})\s+(?:\w+ly\s+)?normal\W*\Z)", ""),
        (
            r"\A\W*(?:no|nope)\W+(?=(?:(?:the|this|that)(?:\s+\w+)?|it)\s*(?:is|was|'s)?\s*(?:\bnot|n't)\s+(?:\w+ly\s+)?normal\b)",
            "",
        ),
        (
            r"\A\W*(?:all\s+clear|(?:none|nothing|not)\s+(?:was\s+|were\s+)?(?:detected|found|seen|observed|noticed|identified))\W*\Z",
            "answer: 0",
        ),
        (rf"({ODD}),?\s+but\s+(?:it|this|that)\s+(?:is|was)\s*(?:\bnot|n't)\s*(?=[.!]|\Z)", r"\1, but it is not anomalous"),
        (rf"\b(?:anomal(?:y|ies)\s+count|number\s+of\s+{ODD}(?:\s+{KIND})?)\s*[:=]\s*[1-9]\d*\b", "answer: 1"),
        (rf"\b(?:anomal(?:y|ies)\s+count|number\s+of\s+{ODD}(?:\s+{KIND})?)\s*[:=]\s*0\b", "answer: 0"),
        (
            rf"\b(?:{BE}|\w+)\s*(?:\bnot|n't)\s+(?:\w+ly\s+|at\s+all\s+)?(?:without|free\s+(?:of|from)|devoid\s+of|lack(?:ing)?)\s+(?:any\s+)?(?={ODD})",
            "has ",
        ),
        (rf"\bnot\s+only\s+({BE})\s+there\b", r"there \1"),
        (rf"\b(?:nobody|no\s+one|none)\s+(?:could|can|would|will)\s+{CALL}{CALLED}(?={NORMAL_OR_ODD})", "it is not "),
        (  # "no frame shows an anomaly": the verb of who does not do it
            rf"(\A|[.!?;:,\n]\s*|\b(?:and|but|that|video)\s+)((?:nothing|nobody|none|no\s+one|neither|no)\b(?:\s+(?!{NOT}\b)\w+){{0,4}}?)\s+"
            rf"(show|cause|contain|display|exhibit|indicate|suggest)s\b",
            r"\1\2 \3",
        ),
        (rf"\b{STRANGE}(?:\s+(?:or|and)\s+\w+)?(?=\s+(?:events?|behaviou?rs?|activit\w+|incidents?)\b)", "anomalous"),
        (r"\birregularit(?:y|ies)\b", "anomaly"),
        (r"\brather\s+than\s+(?:an?\s+)?(?:normal|anomal\w+|abnormal\w*)\b", ""),
        (rf"\b(nothing|anything|something)\s+(?:\w+ly\s+)?{STRANGE}\b", r"\1 anomalous"),
        (
            r"\b(everything|all)\s+((?:\w+\s+){0,2}?(?:looks?|seems?|appears?|remains?|is))\s+(?:(?:\w+ly|quite|very)\s+)?"
            r"(?:fine|ok(?:ay)?|in\s+order|as\s+(?:usual|expected)|all\s+right|ordinary|routine|uneventful|calm|unremarkable)\b",
            r"\1 \2 normal",
        ),
        (rf"\b(?:not|n't)\s+(?:\w+ly\s+)?{FALSE}\b", "right"),
        (rf"\b(?:it\s+)?(?:would\s+be|is)\s+(?:\w+ly\s+)?{FALSE}\s+to\s+{CALL}{CALLED}(?={NORMAL_OR_ODD})", "not "),
        (rf"\b{CALL}ing\s+{CALLED}({NORMAL_OR_ODD}\w*)\s+(?:would\s+be|is)\s+(?:\w+ly\s+)?{FALSE}\b", r"not \1"),
        (rf"\A\W*(?:so|thus|hence|therefore|overall|in\s+(?:short|conclusion|summary))\W+(?={ONLY_WORD})", "answer: "),
        # who names an exception does not deny: "no anomaly except for a man who falls"
        (rf"\b(?:{NO}|{NOT})\s+[^.!?;\n]{{0,80}}?{ODD}[^.!?;,\n]{{0,60}}?\b(?:except|apart\s+from|aside\s+from)\b[^.!?;\n]*", " "),
        (r"\A\W*(?:status|alert(?:\s+level)?)\s*:\s*(?:alert|alarm|danger|emergency|abnormal|anomal\w+)\b", "answer: anomaly. "),
        (r"\A\W*(?:status|alert(?:\s+level)?)\s*:\s*(?:ok(?:ay)?|all\s+clear|clear|safe|normal)\b", "answer: normal. "),
        (rf"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?[a-d][).:]+\s*(?={ONLY_WORD})", "answer: "),
        (r"^\W*(?:class|category)\s*:\s*(?=(?:ab)?normal\b|anomal)", "label: "),
        # "Anomaly (yes/no): yes"
        (r"\(\s*(?:yes|no|0|1|true|false)\s*(?:/|or|\|)\s*(?:yes|no|0|1|true|false)\s*\)(?=\s*[:=])", ""),
        (rf"\b({ANNOUNCED})\s+(?:to\s+(?:the|this|your)\s+\w+\s+)?(?:is|would\s+be)\s*:?\s+(?=(?:yes|no)\b)", r"\1 is "),
        (rf"\A\W*\d\s*[.)]\s*(?=(?:{'|'.join(MEANINGS)})\W*\Z)", "answer: "),  # "1) No"
        (r"\[(?:final\s+)?answer\]\s*:?", "answer: "),
        (rf"^\W*((?:final\s+)?(?:{ANNOUNCED}|{'|'.join(KEYS)}))\s*(?:\s[-–—]\s|[-=]+>|→)\s*(?=(?:{WORD})\W*$)", r"\1: "),
        (rf"(?:\A\W*|\?\s+|\n\s*)(?:a:|ans[:.)])\s*(?={ONLY_WORD})", " answer: "),  # "Q: ...? A: no"
        (r"\?\s+(?:a|answer)\s*:\s*(?=(?:yes|no)\b)", "?\n"),
        # the whole answer, since a list of these is a form that is repeated: "0 - normal, 1 - anomaly", "A. yes, B. no"
        (rf"\A\W*(?:option\s+)?[a-d]\s*[:.)]\s*(?={ONLY_WORD})", "answer: "),
        (r"\A\W*(?:class|category)\W+(?=[01]\W*\Z)", "label: "),
        (r"\A\W*yes\s*(?:/|or)\s*no\W+(?=(?:yes|no)\W*\Z)", "answer: "),
        (
            r"\A\W*(?:i|we)(?:'d|\s+would)?\s+(?:say|go\s+(?:with|for)|call\s+(?:it|this|that)|vote(?:\s+for)?|think|answer)\s+"
            rf"(?={ONLY_WORD})",
            "answer: ",
        ),
        *((rf"\A\W*{label}\W+(?=(?:{words})\W*\Z)", "answer: ") for label, words in enumerate(MEANINGS)),  # "1 - anomaly"
    )
)
CLASSES = (
    r"(?:abuse|arrest|arson|assault|burglary|explosion|fight(?:ing)?|(?:road|car|traffic)\s+accident|robbery|shooting|shoplifting|stealing"
    r"|theft|vandalism|riot|fall(?:ing)?|fire|crash|collision|intrusion|trespassing)"
)
TABLE = re.compile(
    r"^[ \t]*(\|[^\n]{1,400}\|)[ \t]*\n[ \t]*\|[\s:|-]{1,200}\|[ \t]*\n((?:[ \t]*\|[^\n]{1,400}\|[ \t]*(?:\n|$))+)", re.M
)
LABELLED = re.compile(  # "should be labeled 1", "I would rate this video as 0"; not "not labeled 1"
    rf"(\b{NOT}\b[^.!?;\n]{{0,120}})?\b(?:label|classif|categori[sz]|rat)(?:l?ed|ies|ied|y|es?)?\s+"
    r"(?:(?:it|this|that|the|video|clip|scene|footage|answer)\s+)*(?:as\s+)?(?=[\"'(]*[01](?![\w%]|\.\d|\s*(?:or|if|for|to|and|out|of|means?|is)\b|\s*[:=]))",
    re.I,
)
CLAIM = re.compile(  # a statement and that it is not so; or that nobody can make it
    r"\b(?:the|any|this|that)\s+(?:claim|assumption|statement|assertion|idea|suspicion|impression|notion|hypothesis|conclusion|view)\s+"
    rf"(?:that\s+([^.!?;:\n]{{1,160}}?)|of\s+((?:an?\s+|any\s+)?(?:\w+\s+)?{ODD}))\s+(?:would\s+be|{BE})\s+(?:\w+ly\s+)?{UNTRUE}"
    rf"|\bit(?:\s+would\s+be|\s+is|\s+was|'s)?\s+(?:\w+ly\s+)?(?:{UNTRUE}|impossible)(?:\s+to\s+{SAY})?\s+that\s+([^.!?;:\n]{{1,160}})"
    rf"|(?:\A|[.!?;,\n]\s*)that\s+([^.!?;:,\n]{{1,160}}?)\s+{BE}\s+(?:\w+ly\s+)?{UNTRUE}",
    re.I,
)
NO_CLAIM = re.compile(
    rf"\b(?:it\s+(?:cannot|can't|could\s+not|couldn't)\s+be\s+{SAID}|(?:one\s+(?:cannot|can't|could\s+not)|(?:nobody|no\s+one)\s+can)\s+{SAY})"
    r"\s+that\s+([^.!?;:\n]{1,160})",
    re.I,
)
NO_ABSENCE = re.compile(
    rf"\babsence\s+of\s+(?:\w+\s+)?{ODD}(?:\s+{KIND})?\s+(?:cannot|can't|could\s+not)\s+be\s+({SAID})?[^.!?;:\n]*", re.I
)
JUDGING = r"(?:consider|deem|classif|label|judg|regard|describ|categori|identif|flag|mark|rat|call|rule(?!\s+out))\w*"
MODIFIERS = (
    r"(?:(?:an?|the|one|just|only|simply|very|quite|rather|indeed|also|all|as|therefore|thus|hence|to\s+be|\w+ly|\w+,(?=\s+\w+\s+and\b)"
    rf"|\w+\s+and|\w+\s+but(?:\s+also)?|{JUDGING})\s+)"
)
EVIDENCE = r"(?:signs?|indications?|evidence|hints?|traces?|reasons?|proof|suggestions?|instances?)"
CERTAIN = re.compile(r"\b(?:no|without(?:\s+an?y?)?)\s+(?:doubt|question)\b(?:\s+that\b)?|\bnot\s+only\b", re.I)
HEDGE = re.compile(
    r"\b(?:if|whether|unclear|not\s+(?:impossible|(?:\w+ly\s+|so\s+)?(?:sure|certain|confident))|hard\s+to|(?:cannot|can't|could\s+not|couldn't)\s+(?:tell|say|determine|decide|know|judge|conclude|confirm|be\s|rule\s+out|help)|unlikely\s+that)\b"
    r"(?:(?!,\s*but\b)[^.!?;\n])*"
    r"|\b(?:might|may|could(?!\s+not\b)|possibly|potentially|perhaps|maybe"
    r"|would(?!(?<=that\swould)\s+(?:count|qualify)|\s+not\s+count|\s+(?:not\s+)?(?:classify|label|say|call|consider|judge|rate|describe)))"
    r"\b[^,.!?;\n]*",
    re.I,
)
# says something, unlike "cannot be sure"
CONSIDERED = re.compile(rf"\b(?:cannot|can't|could\s+not|couldn't)\s+be\s+(?={JUDGING}|{PRESENT})", re.I)
AT_FIRST = re.compile(r"\b(?:at\s+first|initially)\b", re.I)
NEGATED = {1: ". There is no anomaly", 0: ". There is an anomaly", None: " "}
LONGEST = 4000  # characters of an answer whose sentences are read from each end; more is a model that repeats itself
REPEATED = re.compile(r"(\S+(?: [^\W\d]+)?)(?: \1){2,}", re.I)  # one or two words again and again, no "anomaly: 1" of each frame
LEAD = r"^\W*{}\b(?=\s*[,.;:!—–]|\s+[-—–]|\s*$)"
SENTENCE = re.compile(r"[^.!?;:\n]+[.!?;:\n]*|[.!?;:\n]+")
CLAUSES = re.compile(r"([.;,\n]+)")
DENIAL = re.compile(
    rf"\b(?!without\s+(?:\w+\s+){{1,2}}\w+s\s+\w+ly\b){NO}\s+(?:{NOUN}){{0,4}}?{ODDS}|\b{NO}\s+(?:\w+\s+){{0,2}}?{EVIDENCE}\s+(?:of|that|for|to)\s+(?:{CLAUSE}){{0,6}}?{ODDS}"
    rf"|\b{NOT}\s+(?:{CLAUSE}){{0,8}}?{ODDS}|\b{ODD}{INSERTED}\s+(?:{NOUN}){{0,3}}?"
    rf"(?:(?:(?:\w+\s+)?not|\w+n't|cannot|\w+\s+never)\s+(?:\w+\s+){{0,2}}?(?:{PRESENT}|appear\b)|(?:{BE}\s+)?(?:\w+ly\s+)?(?:absent|lacking)\b)"
    rf"|\bthere\s+{BE}\s+(?:none|not\s+any)\s*(?=[.!,]|$)|\b{ODD}(?:\s+\w+)?\s*[:=]\s*(?:none|zero)\b",
    re.I,
)
SHORT = rf"^\W*(?:(?:most|quite|very)\s+)?(?:\w+ly\s+)?(?:an?\s+)?{{}}(?:\s+{KIND})?[.!]*\s*$"  # "Abnormal behaviour."
IS_NORMAL = re.compile(
    rf"(?:\b|(?=')){BE}\s+{MODIFIERS}{{0,3}}?normal\b|\b{JUDGING}\s+(?:{CLAUSE}){{0,4}}?as\s+(?:\w+ly\s+)?normal\b"
    rf"|\b(?:shows?|depicts?|contains?)\s+(?:(?:only|just|an?|\w+ly)\s+){{0,2}}normal\b|^\W*(?:just|only)\s+(?:an?\s+)?normal\b"
    rf"|\b(?:behav|act|mov|driv|rid|walk|react)(?:e|es|ed|s|ing)?\s+(?:\w+\s+)?normally\b|{LEAD.format('normal')}|{SHORT.format('normal')}",
    re.I | re.M,
)
SUBJECTS = r"nothing|nobody|none|no\s+one"  # "nothing here is normal", but not "nothing happens on this normal street"
NOT_NORMAL = re.compile(
    rf"\b(?:(?!(?:{SUBJECTS})\b){NOT}\s+(?:{CLAUSE}){{0,3}}?|(?:{SUBJECTS})\s+(?:{CLAUSE}){{0,4}}?{BE}\s+|far\s+from\s+(?:\w+\s+)?"
    rf"|anything\s+but\s+|\bnot\s+(?:true|correct|the\s+case)\s+that\s+(?:{CLAUSE}){{0,4}}?{BE}\s+)normal(?:ly)?\b",
    re.I,
)
SHOW = (
    r"(?:look(?:ing)?\s+at|contain|show|depict|include|see|observe|detect|notice|exhibit|display|feature|capture|identify|find|ha|constitute|represent|involve"
    r"|cause|qualify\s+as|qualifies\s+as|count\s+as|counts\s+as)(?:s|ve|d|ed)?"
)
AFFIRMATION = re.compile(
    rf"\b{ODD}(?:\s+(?:{KIND}|type|class|category|kind))?\s*[:=(]\s*(?:an?\s+)?{CLASSES}\b"
    rf"|\b(?:behav|act|mov|driv|rid|walk|react)(?:e|es|ed|s|ing)?\s+(?:in\s+an\s+|\w+ly\s+)?{ODD}"
    rf"|\bthen\s+(?:an?\s+)?{ODD}(?:\s+{KIND})?\s*[:.,]|^\W*(?:an?\s+(?:clear|obvious|definite)|(?:sure|clear|obvious|definite|certain)ly(?:\s+an?)?)\s+{ODD}(?:\s+{KIND})?\s*[:.]"
    rf"|\b(?:the|an?)\s+{ODD}(?:\s+{KIND})?{INSERTED}\s+(?:begins?|starts?|ends?|lasts?|began|started)\s+(?:\w+\s+){{0,2}}?\d"
    rf"|(?:^|[.!?;,]\s*)the\s+{ODD}(?:\s+{KIND})?{INSERTED}\s+(?:begins?|starts?|began|started|lies|lay|arises?)\s+(?:in|with|when|as|at|near|after)\b"
    rf"|\bwhat\s+makes\s+(?:\w+\s+){{1,3}}?{ODD}\s+(?:is|are)\b"
    rf"|{LEAD.format('(?:abnormal|anomalous)')}|{SHORT.format(ODD)}|(?:\b|(?=')){BE}\s+{MODIFIERS}{{0,4}}?{ODD}"
    rf"|(?<!\bto )\b{SHOW}\s+(?:(?!(?:to|for|about)\b){CLAUSE}){{0,3}}?{ODD}|(?<!for )\bsomething\s+{ODD}"
    rf"|\bthere(?:\s+(?:does\s+|did\s+)?|(?='s))(?:{BE}|exist\w*|occur\w*|happen\w*)\s+(?:{CLAUSE}){{0,4}}?{ODD}"
    rf"|\b{ODD}(?:\s+{KIND})?{INSERTED}\s+(?:(?!(?:that|to|such)\b){CLAUSE}){{0,4}}?{PRESENT}|\b{JUDGING}\s+(?:{CLAUSE}){{0,4}}?as\s+(?:\w+\s+)?{ODD}"
    rf"|(?<=,)\s*an?\s+(?:\w+ly\s+)?{ODD}(?:\s+{KIND})?\s*(?=[,.]|$)"  # "a man takes a parcel, an anomalous event"
    rf"|^\W*(?:(?:an?|one)\s+)?{ODD}(?:\s+{KIND})?\s+(?:from|between|at|starting)\s+(?:at\s+)?\d"
    rf"|\bthe\s+(?:\w+\s+)?{ODD}(?:\s+{KIND}){{0,2}}\s+(?:is|are|was|were|involves?|consists?)\b(?!\s+(?:something|an?y?\s+\w+\s+that)\b)",
    re.I | re.M,
)
CONTRAST = re.compile(r"\b(?:however|but|yet|nevertheless|nonetheless)\b", re.I)
LIMITED = re.compile(  # what leaves an anomaly that was named before as it is
    rf"\bno\s+(?:other|further|additional|more|second)\s+{ODD}[^.!?;\n]*|\b(?:the\s+)?(?:rest|remainder|most\s+of)\b[^.!?;\n]*?\bnormal\b"
    rf"|\b(?:before|after|until)\s+(?:that|then)\b[^.!?;\n]*|\b{BE}\s+otherwise\s+normal\b",
    re.I,
)
YES = re.compile(r"^\W*(?:yes|yep|yeah|yup)\b(?!\s*(?:or\b|and\b|/|yes\b|no\b))|\bsay\W+yes\b", re.I)
LEADING_NO = re.compile(LEAD.format("(?:no|none|nope)") + r"|\bsay\W+no(?=\W*$)", re.I | re.M)
STATEMENT_END = re.compile(r"[.,:;!?\n{}\[(>][\s\"'*]*$")
PIECE = r"(?:(?:piece|clip|segment|part|scene|event|video)s?\s+)?(?:number\s+)?"
CAME = r"(?:\s+(?:came|comes|happened|happens|goes|is|was))?"
THEN = (
    r"(?:\W|\b(?:second(?:ly)?|third(?:ly)?|fourth(?:ly)?|and|then|before|next|finally|lastly|last|after\s+that|followed\s+by)\b)+"
)
ORDER = re.compile(  # "2 1", "Order: 2, 1", "of two pieces the right order is 2 1, because ...", "Piece 2 came first, then piece 1"
    r"^\W*(?:(?:(?!\bnot\b|n't\b|\bwrong\b|\bincorrect\b)[^\n])*?\b(?:order(?:ing)?|answer|sequence|would\s+say)\b(?:\s+of\s+(?:the\s+)?(?:\w+\s+)?(?:pieces|events))?"
    r"(?:\s+(?:is|was|should\s+be|must\s+be|would\s+be))?)?\W*(?:first(?:ly)?\W+(?:(?:comes|came|is|was)\s+)?)?"
    rf"{PIECE}(\d+{CAME}(?:\s+first)?(?:{THEN}{PIECE}\d+{CAME})*)(?:\W*|\s*[,.;:(]?\s*(?:because|since|as|for)\b\D*)$",
    re.I,
)
MOMENT = r"(?:\d{1,3}:)?\d{1,3}:\d{2}(?:\.\d+)?|\d+(?:\.\d+)?"  # h:mm:ss, m:ss or seconds
UNIT = r"\s*(?:s|secs?|seconds?)?\.?\s*"
BETWEEN = re.compile(
    rf"(?<![\d.:])({MOMENT}){UNIT}(?:to(?:\s+the)?|-+>?|–|—|→|and|(?:and\s+)?(?:continu\w+|last(?:s|ing))\s+(?:until|till|to)|until|till|through|(?:and|,)?\s*(?:it\s+)?(?:ends?|ending|stops?|stopping)(?:\s+at|\s*[:=])?"
    rf"|(?<=[\d.s]),)\s*(?:(?:it\s+)?(?:ends?|ending|stops?|stopping)\s+(?:at\s+)?|second\s+)?({MOMENT})(?![\d:])",
    re.I,
)
MINUTES = re.compile(  # "1 min 5 s", "2 minutes", "1m5s"; "5 m" may be metres
    r"\b(\d{1,3})\s*(?:(?:mins?|minutes?)\b\.?(?:\s*(?:and\s+)?(\d{1,2})(\.\d+)?\s*(?:s|secs?|seconds?)\b)?|m\s*(\d{1,2})(\.\d+)?\s*s\b)",
    re.I,
)
FRAME = re.compile(  # "frames 3 to 5" are no seconds, those of "frame 3 (1.5 s)" are
    rf"\bframes?\s*#?\d+(?:\s*(?:to|and|through|until|[-–])\s*\d+(?!\s*s))?\b\s*(?:\(?(?:at\s+)?({MOMENT}\s*s)\b\)?)?", re.I
)
QUANTITY = re.compile(  # "3 to 4 men fight" are no seconds
    r"(?<!from )(?<!between )(?<!second )(?<!seconds )(?<![\d.:])\d{1,3}\s*(?:to|or|and|-|–)\s*\d{1,3}\s+(?!s\b|m\b|sec|min|hour)"
    r"(?:\w+\s+)?(?:men|women|people|children|persons|\w+[^s\W\d]s)\b",
    re.I,
)
ROUGHLY = re.compile(r"(?:\b(?:about|around|approximately|roughly|circa|t\s*=)|~)\s*(?=\d)", re.I)
SPAN_KEYS = (
    ("from_s", "to_s"),
    ("start_s", "end_s"),
    ("from", "to"),
    ("start", "end"),
    ("start_time", "end_time"),
    ("begin", "end"),
)
SPAN_LINE = re.compile(  # "from_s: 3", a line or a part of one, as in YAML
    rf"""(?:^|[,;|])\W*({"|".join(dict.fromkeys(key for pair in SPAN_KEYS for key in pair))})["']?\s*[:=]\s*["']?"""
    rf"({MOMENT}(?:\s*s(?:ec(?:ond)?s?)?)?)(?![\d:])",
    re.I | re.M,
)
KIND_KEYS = ("kind", "anomaly_type", "anomaly_kind", "type", "category", "class", "label", "event")
KIND_LINE = re.compile(rf"""(?<!\w)["']?({"|".join(KIND_KEYS)})["']?\s*[:=]\s*["']?([^"'\n,;{{}}\[\]]{{1,80}})""", re.I)
NAMED = re.compile(r"\b(?:named|called)\s+(?:as\s+)?(?:an?\s+|the\s+)?[\"']?([^.,;:\n\"']{2,60})", re.I)


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
    text = _final_part(text)
    if REPEATED.fullmatch(_word(text)):
        return None
    tail = text[text.rfind("}") + 1 :]
    cut = [_keyed(tail[tail.index("{") :])] if "{" in tail else []  # a last object that a limit cut off behind its label
    labels = [*_objects(text), *filter(None, cut)] or [_keyed(text)]
    if any(labels):
        best = min(KEYS[key][0] for pairs in labels for key, _ in pairs)
        values = [[_value(key, value) for key, value in pairs if KEYS[key][0] == best] for pairs in labels]
        verdicts = {value for value in [v for v in values if v][-1] if value is not None}
        return verdicts.pop() if len(verdicts) == 1 else None
    outside = re.sub(r"\{.*(?:\}|$)", " ", text, flags=re.S)
    word = _word(outside)
    return WORDS[word] if word in WORDS else _stated(outside)


def verdict_tokens(prefix: Callable[[int], str], count: int) -> range | None:
    """Return which of an answer's `count` tokens state its verdict, None where it has none.

    `prefix(k)` is the text of the first k tokens. The last of them is the one with which the verdict is there, the first is where
    its statement begins: the value behind `"anomaly":`, the first word of "An anomaly exists".
    """
    verdict = parse_verdict(prefix(count))
    if verdict is None:
        return None
    low, high = 0, count  # without it, with it
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if parse_verdict(prefix(middle)) == verdict else (middle, high)
    begins = high - 1
    while begins > 0 and not STATEMENT_END.search(prefix(begins)):
        begins -= 1
    return range(begins, high)


def parse_order(answer: str, count: int) -> list[int]:
    """Return the order an answer gives, like "2 1 3"; ValueError in one line where it is none of `count` pieces.

    Of several lines that give an order the last counts.
    """
    text = _ends(_final_part(answer).strip(), LONGEST // 4)
    matched = next(filter(None, map(ORDER.match, [text, *reversed(text.split("\n"))])), None)
    order = [int(part) for part in re.findall(r"\d+", matched[1])] if matched else []
    if sorted(order) != list(range(1, count + 1)):
        raise ValueError(f"an order of {count} pieces was asked, the answer is {answer[:60]!r}")
    return order


def parse_span(answer: str) -> tuple[float, float] | None:
    """Return the seconds an answer names, like "From 1.5 s to 3 s." or "0:12 - 0:20"; None where it denies an anomaly.

    Keys of a JSON object outrank sentences. ValueError where it does neither.
    """
    if parse_verdict(answer) == 0:
        return None
    span = _span(_final_part(answer))
    if span is None:
        raise ValueError(f"an answer must name seconds that rise or deny an anomaly, it is {answer[:60]!r}")
    return span


def parse_report(answer: str) -> dict[str, object]:
    """Return what an answer says: anomaly (1, 0, None), and for an anomaly its kind and from_s, to_s in seconds, else None.

    Kind and times may be keys of a JSON object or words: "the anomaly is named Fall", "from 0:12 to 0:20".
    """
    verdict, text = parse_verdict(answer), _final_part(answer or "")
    span = _span(text) if verdict else None
    from_s, to_s = span or (None, None)
    return {"anomaly": verdict, "kind": _kind(text) if verdict else None, "from_s": from_s, "to_s": to_s}


def _span(text: str) -> tuple[float, float] | None:
    for pairs in reversed(_all_pairs(text)):
        found = {_key(key): _seconds(value) for key, value in pairs}
        for start, end in SPAN_KEYS:
            if found.get(start) is not None and found.get(end) is not None:
                return (found[start], found[end]) if found[end] > found[start] else None
    lines = {key.lower(): _seconds(value) for key, value in SPAN_LINE.findall(text)}
    for start, end in SPAN_KEYS:
        if lines.get(start) is not None and lines.get(end) is not None and lines[end] > lines[start]:
            return lines[start], lines[end]
    text = FRAME.sub(r"\1", re.sub(r"(?<=\d),(?=\d{1,2}\s*s(?:ec\w*)?\b)", ".", text))
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", re.sub(r"(?<=[\ds])\s*~\s*(?=\d)", " to ", text))
    text = MINUTES.sub(lambda f: f"{f[1]}:{int(f[2] or f[4] or 0):02}{f[3] or f[5] or ''}", ROUGHLY.sub("", text))
    spans = [(_seconds(found[1]), _seconds(found[2])) for found in BETWEEN.finditer(QUANTITY.sub(" ", text))]
    return next(((start, end) for start, end in spans if end > start), None)


def _seconds(value: object) -> float | None:
    """Return seconds of a number, "12.5 s", "1:05" or "0:01:05"; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if 0 <= value < math.inf else None
    found = re.fullmatch(rf"\s*({MOMENT}){UNIT}", value, re.I) if isinstance(value, str) else None
    return sum(float(part) * 60**place for place, part in enumerate(reversed(found[1].split(":")))) if found else None


def _kind(text: str) -> str | None:
    found = [(_key(key), value) for pairs in _all_pairs(text) for key, value in pairs]
    found = [
        (key, ", ".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value)
        for key, value in found
    ]
    found += [(key.lower(), value) for key, value in KIND_LINE.findall(text)]
    found = {key: value for key, value in reversed(found) if isinstance(value, str) and value.strip() and _word(value) not in WORDS}
    named = NAMED.search(text)
    kind = next((found[key] for key in KIND_KEYS if key in found), named[1] if named else None)
    if kind is None and (named := re.search(rf"\b(?:{ODD}|type)[^\w\n]{{1,3}}(?:an?\s+)?({CLASSES})\b", text, re.I)):
        kind = named[1]
    return None if kind is None or _word(kind) in {*WORDS, "null", "unknown", "n/a"} else " ".join(kind.split())


def _final_part(text: str) -> str:
    """Return the last <answer> or \\boxed of an answer, else all after its reasoning; without markup."""
    text = RUN.sub(lambda run: run[0][:32] + run[0][-32:], SPACE.sub(lambda gap: "\n" if "\n" in gap[0] else " ", text))
    for pattern, plain in TAGS:
        text = pattern.sub(plain, text)
    text = LATEX.sub(r"\1", THOUGHT.sub(" ", NOTE.sub("", text)).replace("’", "'"))
    for _ in range(2):  # \boxed may stand inside <answer>
        if marked := ["".join(part or "" for part in found.groups()) for found in MARKED.finditer(text)]:
            text = marked[-1]
    text = TAGGED.sub(r"\n\1: \2\n", text)
    for pattern, plain in SPELLINGS:
        text = pattern.sub(plain, text)
    text = TABLE.sub(_lines_of_table, LABELLED.sub(lambda found: found[0] if found[1] else "label: ", text))
    return MARKUP.sub("", COUNTED.sub("anomaly", HEADING.sub(r"\1:", text)))


def _lines_of_table(table: re.Match) -> str:
    """Return a Markdown table's last row as lines `head: cell`."""
    head, last = (line.strip().strip("|").split("|") for line in (table[1], table[2].strip().rpartition("\n")[2]))
    return "\n".join(f"{name.strip()}: {cell.strip()}" for name, cell in zip(head, last, strict=False)) + "\n"


def _word(text: str) -> str:
    """Return a text in lower case without what stands around words."""
    return " ".join(re.split(r"[\s\"'.,!:;()\[\]$]+", text)).strip().lower()


def _keyed(text: str) -> list[tuple[str, object]]:
    """Return the last label of each key of `key: value` lines; one that is called final outranks the others."""
    found = [(rank, (key or announced).lower(), value) for rank, key, announced, value in KEYED.findall(text)]
    best = [(key, value) for final, key, value in found if final] or [(key, value) for _, key, value in found]
    return list(dict(best).items())


def _objects(text: str) -> list[list[tuple[str, object]]]:
    """Return the (key, value) pairs that are labels, per JSON object or Python dict, nested ones included, repeats kept."""
    labels = [[(_key(key), value) for key, value in pairs if _key(key) in KEYS] for pairs in _all_pairs(text)]
    return [pairs for pairs in labels if pairs]


def _all_pairs(text: str) -> list[list[tuple[object, object]]]:
    """Return all (key, value) pairs per JSON object or Python dict of a text."""
    objects: list[list[tuple[object, object]]] = []
    pairs: list[tuple[object, object]] = []
    decoder = json.JSONDecoder(object_pairs_hook=lambda found: pairs.extend(found) or dict(found), strict=False)
    place, tries = text.find("{"), 0
    while place >= 0 and tries < 64:  # enough for any answer, bounded for a hostile one
        pairs.clear()
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = _python_dict(text, place, pairs)
        objects += [list(pairs)] if pairs else []
        place, tries = text.find("{", max(end, place + 1)), tries + 1
    return objects


def _key(key: object) -> str:
    return str(key).strip().lower().replace(" ", "_")


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
    if isinstance(value, dict):  # {"anomaly": {"present": true, "kind": "fall"}}
        value = next((value[name] for name in PRESENCE if name in value), None)
    if key in COUNTS and (isinstance(value, list) or (isinstance(value, int) and value >= 0)):
        return int(bool(value))
    if isinstance(value, str) and (leading := re.match(r"\s*([01])(?=\s*[(,;:–-])", value)):
        value = leading[1]  # "1 (fight)"
    label = None if value is None else WORDS.get(_word(str(value)) if isinstance(value, str) else str(value).lower())
    if label is None and isinstance(value, str):
        label = _stated(value)
    return label if label is None else abs(label - KEYS[key][1])


def _stated(text: str) -> int | None:
    """Return what the sentences agree on; questions, guesses and conditions say nothing."""
    text = _ends(text, LONGEST)
    sentences = SENTENCE.findall(text)
    asked = " ".join(part for part in sentences if "?" in part)
    text = "".join("\n" if "?" in part else part for part in sentences)
    word = _word(text.strip().rpartition("\n")[2])
    if word in WORDS and not re.search(r"\bnormal\b", asked, re.I):  # "Is this normal? Yes." is no anomaly
        return WORDS[word]
    text = NO_ABSENCE.sub(lambda found: "there is an anomaly" if found[1] else " ", text)
    text = NO_CLAIM.sub(lambda found: "there is an anomaly" if _stated(found[1]) == 0 else " ", text)
    text = CLAIM.sub(lambda found: NEGATED[_stated(next(filter(None, found.groups())))], text)
    text = HEDGE.sub(" ", CONSIDERED.sub("not ", CERTAIN.sub(" ", text)))
    clauses = CLAUSES.split(text)
    text = "".join(" " if AT_FIRST.search(part) and IS_NORMAL.search(part) else part for part in clauses).strip()
    rest = NOT_NORMAL.sub(" ", text)
    without_denials = DENIAL.sub(" ", rest)
    yes, no = bool(YES.search(text)), bool(LEADING_NO.search(text))
    affirmed = yes or rest != text or bool(AFFIRMATION.search(without_denials))
    denied = no or without_denials != rest or bool(not yes and IS_NORMAL.search(without_denials))
    if affirmed and denied:
        return _said_last(text)
    return int(affirmed) if affirmed or denied else None


def _ends(text: str, length: int) -> str:
    return text if len(text) <= 2 * length else f"{text[:length]}\n{text[-length:]}"


def _said_last(text: str) -> int | None:
    """Return what a text says that denies and affirms: 1 where one of them is limited, else None.

    "No anomaly in the first half. However, a man then falls, which is an anomaly"; "an anomaly exists, the rest is normal".
    """
    *before, after = CONTRAST.split(text)
    if before and _stated(after) == 1:
        return 1
    limited = LIMITED.sub(" ", text)
    return 1 if limited != text and _stated(limited) == 1 else None

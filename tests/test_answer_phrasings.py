"""Answers in phrasings that were written, with their right values, before the parser saw them (issue 18, point 4)."""

import pytest

from vau_lib.data import answer_parsing

VERDICTS = [
    ("I can confirm that no unusual or anomalous activity takes place.", 0),
    ("The footage is free of any anomaly.", 0),
    ("Nothing out of the ordinary or abnormal is happening here.", 0),
    ("There isn't anything anomalous about this clip.", 0),
    ("No abnormal event was captured by the camera.", 0),
    ("I did not observe any anomalies.", 0),
    ("None of the frames show an anomaly.", 0),
    ("It doesn't contain abnormal events.", 0),
    ("An anomaly does not exist in the video.", 0),
    ("The video is completely normal, a woman waters plants.", 0),
    ("Everything appears normal in this clip.", 0),
    ("Not an anomaly.", 0),
    ("Yes, an anomaly is present, specifically named Robbery.", 1),
    ("There is clearly an anomaly here: a car crashes.", 1),
    ("The behaviour of the man is highly abnormal.", 1),
    ("I would classify this as anomalous.", 1),
    ("An abnormal event occurs at 0:12.", 1),
    ("This clip depicts an abnormal situation.", 1),
    ("We see something anomalous: smoke from the door.", 1),
    ("**Verdict:** anomalous", 1),
    ("**Anomaly detected:** Yes", 1),
    ("Anomaly: No", 0),
    ('```json\n{"anomaly": 0}\n```\nAfter another look:\n```json\n{"anomaly": 1}\n```', 1),
    ('{"anomaly": true, "kind": "fire"}', 1),
    ('{"anomaly": "no"}', 0),
    ('{"is_anomaly": false}', 0),
    ("{'anomaly': 1, 'kind': 'fall', 'from_s': 2, 'to_s': 4}", 1),
    ("{'anomaly': None, 'kind': None}", None),
    ('<think>The man seems abnormal, {"anomaly": 1}</think>\n<answer>{"anomaly": 0}</answer>', 0),
    ("<think>no anomaly at first</think><answer>Yes</answer>", 1),
    ("<answer>No anomaly</answer>", 0),
    ("The answer is \\boxed{0}", 0),
    ("$\\boxed{\\text{Yes}}$", 1),
    ("\\boxed{anomaly}", 1),
    ("anomaly anomaly anomaly", None),
    ("anomal anomal", None),
    ("", None),
    ("null", None),
    ('{"anomaly": "unknown"}', None),
    ("I cannot determine whether an anomaly exists.", None),
    ("Final answer: **1**", 1),
    ("The final verdict is normal.", 0),
    ("The label is 0.", 0),
    ("No. Nothing abnormal happens.", 0),
    ("Yes. Something abnormal happens.", 1),
    ("No anomaly exists in the video.", 0),
    ("Nothing suspicious happens in this video.", None),
]
SPANS = [
    ("From 0:12 to 0:20.", (12, 20)),
    ("The event lasts from 75 s until 80.5 s.", (75, 80.5)),
    ("Between 3 and 7 seconds.", (3, 7)),
    ('{"anomaly": 1, "from_s": "0:05", "to_s": "1:05"}', (5, 65)),
    ('{"anomaly": 1, "start": 2.5, "end": 4}', (2.5, 4)),
    ("[12.0, 20.0]", (12, 20)),
    ("An anomaly exists from 00:01:05 to 00:01:10.", (65, 70)),
    ("It starts at 0:03 and ends at 0:09.", (3, 9)),
    ("12.5s - 14s", (12.5, 14)),
    ("No anomaly exists in the video.", None),
]
REPORTS = [
    ('{"anomaly": 1, "kind": "fall", "from_s": 1, "to_s": 2}', ("fall", 1, 2)),
    ("An anomaly exists, specifically, the anomaly is named Fall.", ("Fall", None, None)),
    ('An anomaly exists, specifically named "Road Accident".', ("Road Accident", None, None)),
    ('```json\n{"anomaly": 1, "kind": "fire in a bin", "from_s": "0:02", "to_s": "0:08"}\n```', ("fire in a bin", 2, 8)),
    ('{"anomaly": 0, "kind": "none", "from_s": 0, "to_s": 0}', (None, None, None)),
    ("{'anomaly': True, 'type': 'theft'}", ("theft", None, None)),
]
ORDERS = [
    ("Order: 1 2", 2, [1, 2]),
    ("**Order:** 2, 1, 3", 3, [2, 1, 3]),
    ("<answer>3 1 2</answer>", 3, [3, 1, 2]),
    ("The correct order is 2 -> 1.", 2, [2, 1]),
    ("\\boxed{2, 1}", 2, [2, 1]),
]


@pytest.mark.parametrize(("text", "verdict"), VERDICTS)
def test_a_verdict_is_read(text, verdict):
    assert answer_parsing.parse_verdict(text) == verdict


@pytest.mark.parametrize(("text", "span"), SPANS)
def test_seconds_are_read_in_any_notation(text, span):
    assert answer_parsing.parse_span(text) == span


@pytest.mark.parametrize(("text", "wanted"), REPORTS)
def test_kind_and_seconds_are_read_from_json_and_from_words(text, wanted):
    report = answer_parsing.parse_report(text)
    assert (report["kind"], report["from_s"], report["to_s"]) == wanted


@pytest.mark.parametrize(("text", "count", "order"), ORDERS)
def test_an_order_is_read(text, count, order):
    assert answer_parsing.parse_order(text, count) == order


@pytest.mark.parametrize("text", ["At 12 seconds.", "From 20 s to 12 s.", '{"from_s": null, "to_s": 3}', "Yes."])
def test_no_seconds_are_no_span(text):
    with pytest.raises(ValueError, match="must name seconds that rise"):
        answer_parsing.parse_span(text)


# Written on 27 November 2026 before the parser saw them; 16 of 50 were read wrongly, these are of the kinds that were then read
FRESH = [
    ("Verdict: positive (robbery in progress).", 1),
    ("Verdict: negative.", 0),
    ("I'd say everything here looks perfectly fine.", 0),
    ("Not everything looks fine here.", 1),
    ("The footage shows a routine delivery; nothing out of the ordinary takes place.", 0),
    ("There is something unusual: a car stands on the pavement.", 1),
    ("| anomaly | kind |\n|---|---|\n| 1 | fall |", 1),
    ("| frame | anomaly |\n| :-- | --: |\n| 1 | 1 |\n| 2 | 0 |\n", 0),
    ("Final answer: (B) abnormal", 1),
    ("The answer is C. No anomaly", 0),
    ("Status: ALERT. A person is breaking in.", 1),
    ("Status: OK. No threat.", 0),
    ("The person appears to be stealing a parcel, an anomalous event, between 4s and 9s.", 1),
    ("An anomaly from 00:01:05 to 00:01:20.", 1),
    ("No signs of anomalous behavior except for a man who falls and does not get up.", None),
    ("NO ANOMALY DETECTED", 0),
    ("It is not a normal situation: the man collapses.", 1),
    ("While at first it may look like a fight, the two friends are just playing, so no anomaly.", 0),
    ("There is neither an anomaly nor any suspicious behaviour.", 0),
    ("I'm unable to determine whether there is an anomaly.", None),
    ("Anomaly score: 0.92", None),  # a number without its threshold is no verdict
    ("The likelihood of an anomaly is low.", None),
    ("No. Wait, at 00:07 a man pulls a knife. So yes, there is an anomaly.", None),  # says both
    ("{anomaly: 1, kind: fire}", 1),
    ('{"anomaly": 1,}', 1),
]


@pytest.mark.parametrize(("text", "verdict"), FRESH)
def test_a_fresh_phrasing_is_read(text, verdict):
    assert answer_parsing.parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("anomaly: true\nkind: fight\nfrom_s: 3\nto_s: 7", (3.0, 7.0)),
        ("Anomaly: yes; start: 0:12; end: 1:05", (12.0, 65.0)),
        ("- anomaly: 1\n- from: 3 s\n- to: 7.5 s", (3.0, 7.5)),
        ("anomaly: 1\nfrom_s: 9\nto_s: 3", None),
        ("An anomaly from 00:01:05 to 00:01:20.", (65.0, 80.0)),
    ],
)
def test_times_on_lines_of_their_own_are_read(text, span):
    report = answer_parsing.parse_report(text)
    assert report["anomaly"] == 1 and (report["from_s"], report["to_s"]) == (span or (None, None))


# Written on 27 November 2026 in a second sitting, 304 in all, before the parser saw them: 33 were read wrongly. These are those of
# the kinds that are read now, and some that were right. Left unread: "no criminal or dangerous activity", an order like "21"
SECOND = [
    ("It would be wrong to call this an anomaly; a woman waters her plants.", 0),
    ("It is a mistake to describe the clip as normal: the man breaks a window.", 1),
    ("Calling this an anomaly would be an exaggeration.", 0),
    ("It is not wrong to call this an anomaly.", None),  # a double negation is not guessed at
    ("Everything looks ordinary: people cross the square and leave.", 0),
    ("Everything remains quiet and normal.", 0),
    ("Nothing happens on this normal street.", None),  # was 1: "nothing ... normal"
    ("Nothing about this is normal.", 1),
    ("Verdict: benign", 0),
    ("Verdict: suspicious", 1),
    ("Verdict: not suspicious", 0),
    ('{"verdict": "suspicious"}', 1),
    ("Assessment: abnormal", 1),
    ("Judgement: no anomaly", 0),
    ("So, yes.", 1),
    ("Yup, an anomaly.", 1),
    ("Anomaly count: 2", 1),
    ("Number of anomalies: 0", 0),
    ("I'm not sure there is an anomaly.", None),
    ("Abnormal rather than normal.", 1),
    ("yes no yes no", None),
    ("Although a man runs, he is only catching a bus, and there is no anomaly.", 0),
    ("An anomaly does exist: two men start to fight.", 1),
    ("The video cannot be considered normal.", 1),
    ('First guess {"anomaly": 1}. On reflection {"anomaly": 0, "kind": ""}', 0),
    ('{"anomaly": 1, "kind": "fight", "from_s": 2.0, "to_s":', 1),
    ("```python\n{'anomaly': False, 'kind': None}\n```", 0),
    ("dict(anomaly=1, kind='fall')", 1),
    ("<think>The man falls so anomaly", None),
    ("normal or anomalous?", None),
]


@pytest.mark.parametrize(("text", "verdict"), SECOND)
def test_a_phrasing_of_the_second_sitting_is_read(text, verdict):
    assert answer_parsing.parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("Piece 2 came first, then piece 1.", [2, 1]),
        ("Out of 2 pieces, the order is 2 1", [2, 1]),
        ("The right order is 2, 1, because the man first stands.", [2, 1]),
        ("First 2, then 1, finally 3", [2, 1, 3]),
        ("Segment 3, then segment 1, followed by segment 2.", [3, 1, 2]),
        ("The order is not 1 2.", None),
        ("Piece 1 came last, piece 2 first", None),
        ("2, 1. In piece 2 he walks.", None),
        ("yes 1 2 1 2", None),
    ],
)
def test_an_order_in_words_is_read_and_nothing_is_guessed(text, order):
    if order is None:
        with pytest.raises(ValueError, match="an order of 2 pieces was asked"):
            answer_parsing.parse_order(text, 2)
    else:
        assert answer_parsing.parse_order(text, len(order)) == order


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("from 1 min 5 s to 1 min 20 s", (65, 80)),
        ("1m5s to 1m20s", (65, 80)),
        ("from 2 min to 3 min", (120, 180)),
        ("t=2s to t=5s", (2, 5)),
        ("It begins around 3 s and ends around 6 s", (3, 6)),
        ("3.0 s ~ 6.0 s", (3, 6)),
        ("Start: 00:03 End: 00:07", (3, 7)),
        ("from the 3rd to the 6th second", (3, 6)),
        ("03:15.250 --> 03:17.000", (195.25, 197)),
    ],
)
def test_seconds_of_the_second_sitting_are_read(text, span):
    assert answer_parsing.parse_span(text) == span


# Written on 27 November 2026 in a third sitting, 529 in all, by somebody who had not read these tests: 117 were read wrongly, 17
# of them as the opposite. These are those that are read now. Left unread: scores and percentages without a threshold, "it looks
# like an anomaly", "I can't say that there are no anomalies", "nothing happens"
THIRD = [
    ("The clip contains nothing that would count as an anomaly.", 0),
    ("It can be ruled out that an anomaly exists.", 0),
    ("The possibility of an anomaly can be excluded.", 0),
    ("This is by no means normal.", 1),
    ("An anomalous event, namely a robbery, occurs.", 1),
    ("It cannot be denied that an anomaly exists.", 1),
    ("It is not true that there is no anomaly.", 1),
    ("No anomaly in the first half; however, in the second half an anomaly occurs: a car crashes.", 1),
    ("The first seconds show no anomaly. However, a man then falls down, which is an anomaly.", 1),
    ("It is not the case that the video is normal.", 1),
    ('{"anomaly": 1 /* a fall */}', 1),
    ('{"anomalies": []}', 0),
    ("The answer is one.", 1),
    ('{"anomaly": "1 (fight)"}', 1),
    ('{"anomalies": [{"kind": "fall", "from_s": 3, "to_s": 4}]}', 1),
    ("Yes, the man falls. No other anomalies occur.", 1),
    ("An anomaly exists in the middle of the clip, but the rest of it is normal.", 1),
    ("Nope, this is not normal.", 1),
    ("There is no reason to doubt that an anomaly occurs.", 1),
    ("An anomaly exists. No further anomalies were detected.", 1),
    ("Apart from the fall, which is an anomaly, the scene is normal.", 1),
    ("Except for one abnormal event, everything is normal.", 1),
    ('{"anomaly": 0}\n{"anomaly": 1, "kind": "fal', 1),
    ("assistant: yes", 1),
    ("The person in the video behaves abnormally.", 1),
    ("People are acting abnormally.", 1),
    ("A clear anomaly: the car drives against traffic.", 1),
    ("Anomalous event: Fighting", 1),
    ("Anomaly type: Robbery", 1),
    ("The anomaly begins at 3 s and ends at 5 s.", 1),
    ("The anomaly lasts from 0:03 to 0:05.", 1),
    ("Most certainly abnormal.", 1),
    ("That counts as an anomaly.", 1),
    ("zero", 0),
    ('{"anomalies": 0}', 0),
    ('{"anomaly_count": 0}', 0),
    ("Anomalies: []", 0),
    ("Yes, the video is normal.", 0),
    ("Q: Any anomaly? A: No, none.", 0),
    ("None detected.", 0),
    ("Just normal walking.", 0),
    ("An anomaly could not be found.", 0),
    ("Anomalies could not be detected.", 0),
    ("One might think it is an anomaly, but it is not.", 0),
    ("=> 0", 0),
    ("No</s>", 0),
    ("Status: normal", 0),
    ("All clear.", 0),
    ("yes yes no", None),
    ("anomalanomal", None),
    ("An anomaly can be ruled out.", 0),
    ("Any anomaly could be excluded.", 0),
    ("We can rule out an anomaly.", 0),
    ("It is false that an anomaly exists.", 0),
    ("By no means is this anomalous.", 0),
    ('{"anomalies": [], "summary": "two anomalies expected, none found"}', 0),
    ('{"num_anomalies": 0, "anomalies": []}', 0),
    ('{"anomaly": "0 - normal"}', 0),
    ("Number of abnormal events: 0", 0),
    ("I would not count this as an anomaly.", 0),
    ("0 (confidence 90%)", 0),
    ("<|assistant|>No<|end|>", 0),
    ("<s>No</s>", 0),
    ("Anomalies do not appear in this video.", 0),
    ("Final: 0", 0),
    ("There is no anomaly until 0:10, but after that a man is beaten, which is abnormal.", 1),
    ("Nothing abnormal at the start, yet an anomaly occurs at the end.", 1),
    ("It is incorrect that there is no anomaly.", 1),
    ("It's wrong to say that there is no anomaly.", 1),
    ("No, this is not normal.", 1),
    ("No, it's not normal at all.", 1),
    ("He acts abnormally.", 1),
    ("Two people are moving abnormally.", 1),
    ("The car behaves anomalously.", 1),
    ("The anomaly starts at 3.5 s.", 1),
    ("The abnormal event lasts 4 seconds.", 1),
    ("Except for this anomaly, the video is normal.", 1),
    ("Anomaly type: shoplifting", 1),
    ("Anomalous behaviour (vandalism)", 1),
    ('{"anomalies": [{"type": "fight", "start": 1, "end": 2}]}', 1),
    ('{"anomaly_count": 2}', 1),
    ('{"num_anomalies": 1}', 1),
    ('{"anomalies": 3}', 1),
    ("<|assistant|>Yes<|end|>", 1),
    ("Clearly an anomaly: smoke.", 1),
    ("There does exist an anomaly.", 1),
    ("◁think▷no◁/think▷1", 1),
    ("1️⃣", 1),
    ("There is potentially an anomaly.", None),
    ("yes yes yes no no", None),
    ("Anomaly:", None),
]


@pytest.mark.parametrize(("text", "verdict"), THIRD)
def test_a_phrasing_of_the_third_sitting_is_read(text, verdict):
    assert answer_parsing.parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("There were no anomalies, but the man did argue with the clerk.", 0),
        ("It is normal that people run for the bus, and no anomaly occurs.", 0),
        ("An anomaly exists. Everything is normal.", None),
        ("There was no fighting, and no other anomalies were seen.", 0),
        ("An anomaly cannot be excluded.", None),
        ("It would count as an anomaly if he fell.", None),
        ("There is potentially an anomaly.", None),
        ("An anomal", None),
        ('{"anomalies": null}', None),
    ],
)
def test_what_is_near_the_third_sitting_is_not_read_into_it(text, verdict):
    assert answer_parsing.parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("from 5,5 s to 7,5 s", (5.5, 7.5)),
        ("from frame 3 (1.5 s) to frame 5 (2.5 s)", (1.5, 2.5)),
        ("The anomaly takes place from second 4 to second 7.", (4, 7)),
    ],
)
def test_seconds_of_the_third_sitting_are_read(text, span):
    assert answer_parsing.parse_span(text) == span


def test_numbers_of_frames_are_no_seconds():
    with pytest.raises(ValueError, match="must name seconds that rise"):
        answer_parsing.parse_span("An anomaly exists in frames 3 to 5.")


@pytest.mark.parametrize(
    ("text", "kind"),
    [('{"anomaly": 1, "kind": null}', None), ("Anomaly: Fighting", "Fighting"), ("Classification: Abnormal (Arson)", "Arson")],
)
def test_a_kind_is_a_name_or_none(text, kind):
    assert answer_parsing.parse_report(text)["kind"] == kind


def test_a_piece_may_come_before_another():
    assert answer_parsing.parse_order("Piece 2 before piece 1", 2) == [2, 1]

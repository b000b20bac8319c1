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


# Written on 28 November 2026, four lists, 738 in all, 100 read wrongly at 129ef79, 24 of them as the opposite. Two lists (433) came
# before a look at this file: 44 wrong. The third was wrong in 36, in 18 after the repair of the first two; the fourth in 20, 16
# after the next. These are all of the kinds that are read now and some that were right. Left: "Nothing suspicious happens" (none,
# above), "It is unlikely, indeed impossible, that this is an anomaly", and the text "None" as a value, which stays a denial
FOURTH = [
    ("No irregularities whatsoever were observed during the recording.", 0),
    ("None of the frames shows an anomaly.", 0),
    ("There has been no anomaly.", 0),
    ("It would be wrong to say that there is an anomaly.", 0),
    ("The claim that an anomaly exists is false.", 0),
    ("The video does not depict any unusual or suspicious event.", 0),
    ("No unusual events can be seen.", 0),
    ("The absence of anomalies cannot be claimed: a man is knocked down at the crossing.", 1),
    ("It cannot be said that the video is free of anomalies.", 1),
    ("There is an anomaly in the video, a person hides goods under his coat.", 1),
    ("The man's behavior is abnormal.", 1),
    ("The video shows an anomaly, as the guard is attacked with a knife.", 1),
    ("The video must be considered anomalous because a person collapses.", 1),
    ("The anomaly lies in the sudden fall of an elderly woman.", 1),
    ("What makes this video anomalous is the burning car.", 1),
    ("Nobody could call this normal.", 1),
    ("Not only is there an anomaly, it is a violent one.", 1),
    ('{"anomaly": "yes"}', 1),
    ("**Yes**", 1),
    ("### Verdict\n\nNormal", 0),
    ("\\boxed{anomaly}", 1),
    ("Anomaly: 1", 1),
    ("anomaly: true\nkind: Fighting\nfrom_s: 2\nto_s: 5", 1),
    ("Abnormal.", 1),
    ("normal", 0),
    ('{"anomaly": 1, "kind": "ass', 1),
    ('{"verdict": "anomalous"}', 1),
    ('{"normal": false}', 1),
    ("anomaly normal anomaly normal", None),
    ("yes no yes no", None),
    ("I can't determine whether there is an anomaly.", None),
    ("The scene looks normal throughout. There's no sign of an anomaly.", 0),
    ("The suspicion of an anomaly is unfounded.", 0),
    ("The assumption that there is an anomaly is incorrect.", 0),
    ("That an anomaly takes place is not true.", 0),
    ("Is there an anomaly? No, there is not.", 0),
    ("The video neither shows an anomaly nor anything dangerous.", 0),
    ("No abnormalities detected.", 0),
    ("An anomaly can safely be ruled out.", 0),
    ("There is no trace of an anomaly.", 0),
    ("The man's fall is staged as part of a game, so the video is not anomalous.", 0),
    ("The claim that no anomaly exists is false.", 1),
    ("The assumption that the video is normal is incorrect.", 1),
    ("That the video is normal is not true.", 1),
    ("One cannot speak of a normal video here.", 1),
    ("One can't claim that there is no anomaly.", 1),
    ("Absence of anomalies cannot be confirmed; in fact a thief takes the bag, an anomaly.", 1),
    ("I cannot rule it normal: the video is anomalous.", 1),
    ("The video isn't free of anomalies.", 1),
    ("The video is not without anomalies.", 1),
    ("Someone is shot, hence an anomaly exists.", 1),
    ("The anomaly begins when the man draws a knife.", 1),
    ("There exists an anomaly of the type Vandalism.", 1),
    ("An abnormal situation is seen in the second half.", 1),
    ("It's an anomaly.", 1),
    ("The event deviates from normal behavior and is therefore anomalous.", 1),
    ("The footage includes an anomaly, though most of it is normal.", 1),
    ('{"anomaly": "Anomaly"}', 1),
    ('{"anomaly": 1,}', 1),
    ("<reasoning>There is no anomaly</reasoning><answer>1</answer>", 1),
    ("<answer>Abnormal</answer>", 1),
    ("<answer>\\boxed{1}</answer>", 1),
    ("<answer>unsure</answer>", None),
    ("so \\boxed{0}. No wait, \\boxed{1}", 1),
    ("anomaly - yes", 1),
    ("Anomaly? Yes", 1),
    ("Anomaly? No", 0),
    ("| anomaly | kind |\n|---|---|\n| 1 | fall |", 1),
    ("<anomaly>1</anomaly>", 1),
    ("anomaly or normal", None),
    ("Yes, yes, yes, yes, yes", None),
    ("anomaly exists anomaly exists anomaly exists anomaly exists", None),
    ('{"anomaly": 2}', None),
    ("The idea that something abnormal happens here is mistaken.", 0),
    ("No person shows abnormal behaviour.", 0),
    ("No car causes an anomaly here.", 0),
    ("I wouldn't call this an anomaly.", 0),
    ("There does not appear to be anything abnormal.", 0),
    ("It appears that no anomaly has taken place.", 0),
    ("Normal traffic, no anomaly.", 0),
    ("This is a perfectly normal scene in a park.", 0),
    ("There is no indication whatsoever that an anomaly occurs.", 0),
    ("The statement that the video is normal is wrong.", 1),
    ("The impression that nothing abnormal happens is wrong.", 1),
    ("It would be false to claim that the clip has no anomaly.", 1),
    ("Nobody would call it a normal day when a car burns.", 1),
    ("It isn't true that everything is normal.", 1),
    ("The scene isn't devoid of abnormal events.", 1),
    ("Surely an anomaly: a person jumps from the bridge.", 1),
    ("I believe this is an anomaly.", 1),
    ("I found an anomaly: a fight.", 1),
    ("Yes: robbery.", 1),
    ("The behaviour is abnormal and not allowed.", 1),
    ("A normal street, but then an anomaly: a tank.", 1),
    ("First normal, then abnormal.", 1),
    ("The video starts normal and becomes anomalous.", 1),
    ("The clip was flagged as anomalous.", 1),
    ("Abnormal video", 1),
    ('{"anomaly":{"exists":false}}', 0),
    ('{"anomaly":{"detected":true,"type":"Fire"}}', 1),
    ("```xml\n<anomaly>0</anomaly>\n```", 0),
    ("<result><anomaly>true</anomaly><kind>fall</kind></result>", 1),
    ("<output><is_anomaly>no</is_anomaly></output>", 0),
    ("**Conclusion:** The clip is anomalous.", 1),
    ("## Final answer\n\n0", 0),
    ("1) No", 0),
    ("yes, yes, yes", None),
    ("No anomaly no anomaly no anomaly no anomaly", None),
    ("anomaly: anomaly: anomaly:", None),
    ('{"anomaly": 1', 1),
    ("anomaly=True", 1),
    ("Anomaly (yes/no): yes", 1),
    ("Anomaly (0/1): 0", 0),
    ("The answer to the question is yes.", 1),
    ("My answer would be no.", 0),
    ("It depends on the context whether this is an anomaly.", None),
    ("There might not be an anomaly.", None),
    ("It is not impossible that there is an anomaly.", None),
    ("The absence of anomalies cannot be guaranteed.", None),
    ("It cannot be said that there is an anomaly.", None),
    ("I did not spot anything abnormal.", 0),
    ("I haven't seen anything that looks anomalous.", 0),
    ("None of what I see is abnormal.", 0),
    ("It's just a normal day.", 0),
    ("A child cries, which isn't an anomaly.", 0),
    ("The scene is calm, ordinary and normal.", 0),
    ("In summary, no abnormal activity has been found.", 0),
    ("All people behave normally.", 0),
    ("Everybody acts normally.", 0),
    ("Something abnormal is going on.", 1),
    ("What happens here is abnormal.", 1),
    ("What happens is not normal.", 1),
    ("This video is definitely not normal.", 1),
    ("He behaves in an abnormal way.", 1),
    ("They act in an anomalous manner.", 1),
    ("An anomalous event is unfolding.", 1),
    ("We are looking at an anomaly.", 1),
    ("It shows an anomaly: the woman is pulled into a car.", 1),
    ("The scene turns abnormal when a car crashes.", 1),
    ("The situation escalates and becomes anomalous.", 1),
    ("This is an anomaly rather than a normal event.", 1),
    ("A person without a helmet drives abnormally.", 1),
    ("The behaviour is not only unusual but anomalous.", 1),
    ("I would label it as an anomaly.", 1),
    ('{"anomaly": "n/a"}', None),
    ("<think>an anomaly</think>", None),
    ("<|begin_of_thought|>no anomaly<|end_of_thought|>Yes", 1),
    ("[THINK]no anomaly[/THINK]Yes", 1),
    ("<final>yes</final>", 1),
    ("\\fbox{1}", 1),
    ("*no*", 0),
    ("~~yes~~ no", 0),
    ("Yes.\n\nYes.", 1),
    ("anomalyanomaly", None),
    ("unknown", None),
]
FOURTH_REPORTS = [
    ('{"anomaly": 1, "kind": "Fall", "from_s": 2.5, "to_s": 4}', (1, "Fall", 2.5, 4.0)),
    ("An anomaly exists, the anomaly is named Explosion, from 12 s to 15.5 s.", (1, "Explosion", 12.0, 15.5)),
    ('{"anomaly": 1, "kind": null, "from_s": null, "to_s": null}', (1, None, None, None)),
    ("**Anomaly:** 1\n**Kind:** burglary\n**Time:** 0:05-0:09", (1, "burglary", 5.0, 9.0)),
    ("An anomaly exists from 9 s to 4 s.", (1, None, None, None)),
    ("Yes, there's an anomaly from 1 min 2 s to 1 min 30 s.", (1, None, 62.0, 90.0)),
    ('{"anomaly": 1, "timestamps": [3.0, 6.5]}', (1, None, 3.0, 6.5)),
    ("Yes, at 0:12-0:15 a man falls.", (1, None, 12.0, 15.0)),
    ("Anomaly from 2.0s to 5.0s: fight", (1, None, 2.0, 5.0)),
    ("There is an anomaly. Start: 3 s. End: 8 s.", (1, None, 3.0, 8.0)),
    ("The anomaly, called Stealing, lasts from second 3 to second 8.", (1, "Stealing", 3.0, 8.0)),
    ('{"anomaly": "yes", "category": "Road Accident", "start_time": "00:05", "end_time": "00:09"}', (1, "Road Accident", 5.0, 9.0)),
    ("anomaly: 1, kind: fall, from_s: 1, to_s: 2.5", (1, "fall", 1.0, 2.5)),
    ("No anomaly.", (0, None, None, None)),
    ("Yes. It begins at around 4 seconds and continues until 7 seconds.", (1, None, 4.0, 7.0)),
    ("An anomaly lasts 5 seconds.", (1, None, None, None)),
    ("An anomaly exists: 3 to 4 men fight.", (1, None, None, None)),
    ('{"anomaly": 1, "from_s": "?", "to_s": "?"}', (1, None, None, None)),
    ('{"anomaly": 1, "kind": "unknown", "from_s": 1, "to_s": 2}', (1, None, 1.0, 2.0)),
    ('{"anomaly": 1, "kind": ["fall"], "from_s": 1, "to_s": 2}', (1, "fall", 1.0, 2.0)),
    ('{"anomaly": {"present": true, "kind": "fall"}}', (1, "fall", None, None)),
    ("<anomaly>1</anomaly><kind>fall</kind><from_s>3</from_s><to_s>9</to_s>", (1, "fall", 3.0, 9.0)),
    ("There is an anomaly, 2 to 3 people fight from 0:10 to 0:20.", (1, None, 10.0, 20.0)),
    ("Yes, a theft, 3-9s.", (1, None, 3.0, 9.0)),
    ('{"anomaly": 1, "kind": "", "from_s": 0, "to_s": 1}', (1, None, 0.0, 1.0)),
    ('{"anomaly": 1, "kind": ["fall", "fire"]}', (1, "fall, fire", None, None)),
    ("The anomaly, starting at 3 s, ends at 9 s: an abnormal event is present.", (1, None, 3.0, 9.0)),
    ('{"anomaly": 1, "from_s": "2:05", "to_s": "2:10.5"}', (1, None, 125.0, 130.5)),
    ("The anomaly is a fall and lasts from 1:02 to 1:08.", (1, None, 62.0, 68.0)),
    ('{"anomaly": 1, "kind": "fall", "from": "3s", "to": "4.5s"}', (1, "fall", 3.0, 4.5)),
    ("There is an anomaly in the time range 3.2 s–4.8 s.", (1, None, 3.2, 4.8)),
    ("There is an anomaly starting at 0:03 and lasting until 0:07.", (1, None, 3.0, 7.0)),
]
FOURTH_ORDERS = [
    ("First 2, then 1.", 2, [2, 1]),
    ("Clip 2, clip 1, clip 3", 3, [2, 1, 3]),
    ("The correct temporal order would be: 2, 3, 1", 3, [2, 3, 1]),
    ("The order is: 1, 2", 2, [1, 2]),
    ("2 1\n", 2, [2, 1]),
    ("Answer: 3-1-2", 3, [3, 1, 2]),
    ("order = [1, 2]", 2, [1, 2]),
    ("I think the order is 2 1.", 2, [2, 1]),
    ("First: 2\nSecond: 1", 2, [2, 1]),
    ("First comes 2, second 1.", 2, [2, 1]),
    ("I would say 2 1", 2, [2, 1]),
    ("Event 2, event 1", 2, [2, 1]),
    ("Order: 1,2\n\nExplanation: the man first enters.", 2, [1, 2]),
    ("Ordering: [3, 1, 2]", 3, [3, 1, 2]),
    ("2 comes before 1", 2, [2, 1]),
    ("Order: 2 1 2", 2, None),
]


@pytest.mark.parametrize(("text", "verdict"), FOURTH)
def test_a_phrasing_of_the_fourth_sitting_is_read(text, verdict):
    assert answer_parsing.parse_verdict(text) == verdict


@pytest.mark.parametrize(("text", "wanted"), FOURTH_REPORTS)
def test_a_report_of_the_fourth_sitting_is_read(text, wanted):
    assert tuple(answer_parsing.parse_report(text).values()) == wanted


@pytest.mark.parametrize(("text", "count", "order"), FOURTH_ORDERS)
def test_an_order_of_the_fourth_sitting_is_read_and_none_is_guessed(text, count, order):
    if order is None:
        with pytest.raises(ValueError, match="pieces was asked"):
            answer_parsing.parse_order(text, count)
    else:
        assert answer_parsing.parse_order(text, count) == order


@pytest.mark.parametrize("part", ["\n", ". ", "{", "<answer>", "no ", "- "])
def test_an_answer_that_repeats_itself_to_the_limit_is_no_verdict_and_no_order(part):
    answer_parsing.parse_report(part * 20_000)  # at 129ef79 line breaks cost hours here
    with pytest.raises(ValueError, match="pieces was asked"):
        answer_parsing.parse_order(part * 20_000, 2)

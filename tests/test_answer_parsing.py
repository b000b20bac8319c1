"""Answers of language models, read by one parser: verdicts, orders and spans."""

import pytest

from vau_lib.data.answer_parsing import parse_order, parse_verdict

DENIALS = (
    "No, there are no anomalies in the video.",
    "There are no anomalous events.",
    "The video is not anomalous.",
    "No obvious anomaly is seen.",
    "There is not any anomaly.",
    "There are not any.",
    "There are no signs of anomalies.",
    "A man walks by without anomalies.",
    "there is NO ANOMALY here",
    # HIVAU-70k's
    "No anomaly exists in the video.",
    "There is no anomaly in it.",
    "No anomaly event (Shoplifting) exists in the video.",
    "No anomaly exists in this video, and therefore, there is no specific name of the anomaly.",
)

AFFIRMATIONS = (  # what the denials deny
    "Yes, there are anomalies in the video.",
    "There are anomalous events.",
    "The video is anomalous.",
    "An obvious anomaly is seen.",
    "There is an anomaly.",
    "There are signs of anomalies.",
    "The video has anomalies.",
    "There is no doubt that an anomaly exists.",
    # HIVAU-70k's
    "An anomaly exists, specifically, the anomaly is named Fall.",
    "The anomaly exists, a Riot.",
    "Two anomaly events exist in the video.",
    "There is a potential anomaly, specifically Fighting, which may occur in the video.",
)

SHORT_FORMS = (  # a key, a choice or a phrase before one word
    ("I'd say normal.", 0), ("I would say abnormal.", 1), ("I'd go with 1.", 1), ("I vote abnormal", 1), ("I'd call it normal", 0),
    ("final label - 1", 1), ("Label - 0", 0), ("Answer - Yes", 1), ("Verdict -> abnormal", 1), ("anomaly -> 0", 0),
    ("Result => 1", 1), ("Yes/No: No", 0), ("Yes or no: yes", 1), ("A: Yes", 1), ("Ans: no", 0),
    ("Q: Is there an anomaly? A: No", 0),
    ("(A) Yes", 1), ("A) No", 0), ("Option A: Yes", 1), ("B. No", 0), ("1 - anomaly", 1), ("0 - normal", 0), ("1 (anomaly)", 1),
    ("class 1", 1), ("Class: 0", 0), ("Class: abnormal", 1),
    ("0 - normal\n1 - anomaly", None), ("Labels:\n0: normal\n1: anomaly", None), ("Options:\nA. Yes\nB. No", None),
    ("A) Yes\nB) No", None), ("1. anomaly\n2. fight", None), ("I think normal\nbut a man falls.", None),
    ("Q: Is there an anomaly?\nA: No", 0),
    ("Yes/No:", None), ("A: maybe", None), ("0 - anomaly", None), ("1 - normal, 0 - anomaly", None),
    ("I'd say normal people walk.", None),
)  # fmt: skip

FORMS = (
    (r"The answer is $\boxed{\text{No}}$.", 0),
    (r"\boxed{1}", 1),
    ("**Anomaly:** 1", 1),
    ("**Final Answer:** 0", 0),
    ("<answer>Yes</answer>", 1),
    ('<think>Maybe {"anomaly": 0}.</think> {"anomaly": 1}', 1),
    ("There may be none.</think> Yes", 1),
    ('{"anomaly": 1, "label": "burglary"}', 1),
    ('{"anomaly": 1} or rather {"anomaly": 0}', 0),  # a draft and the final one
    ('{"result": 0}', 0),
    ('{"result": "1"}', 1),
    ('```json\n{"video_description": "a man, {quoted}", "anomaly": 1}\n```', 1),
    ("{'reasoning': 'it\\'s calm', 'anomaly': 0}", 0),
    ("{'anomaly': True}", 1),
    ('{"result": 1 // 1 for an anomaly\n}', 1),
    ('{"reasoning": "line\nbreak", "anomaly": 0,}', 0),
    ('{"video_description": "never closed, "anomaly": 1', 1),
    ('{"anomaly": 0, "updated_anomaly": 1}', 1),
    ('{"normal": 1}', 0),
    ('{"verdict": {"anomaly": "abnormal"}}', 1),
    ('The scene looks normal at first. {"anomaly": 1}', 1),
    ("Yes", 1),
    ("0", 0),
    ("**Abnormal.**", 1),
    ("Answer: 1", 1),
    ("Final label = normal", 0),
    ("The clip contains an anomaly: a man breaks a window.", 1),
    ("There are no signs of any anomaly in this video.", 0),
    ("The video does not show any anomalous behaviour.", 0),
    ("This is not normal.", 1),
    ("No anomalies were detected.", 0),
    ("No, the man only delivers a parcel.", 0),
    ("Yes, a window breaks.", 1),
    ("The man's behaviour is abnormal.", 1),
)

NO_VERDICT = (
    None,
    "",
    "A dog crosses the garden.",
    "No idea.",
    "No dog is seen.",
    '{"anomaly": 2}',
    '{"anomaly": 0, "anomaly": 1}',
    '{"anomaly": 1, "normal": 1}',
    '{"anomaly": 0 or 1}',
    '{"video_description": "an anomaly is present, the man is abnormal and',
    "It is unclear whether the video contains an anomaly.",
    "The scene may be abnormal.",
    "The first half is normal. The second half is abnormal.",
    "{" * 100_000,
    '{"anomaly": null}',
    "{'anomaly': None}",
    "anomal anomal",
    "f f f f",
    "<think>There is an anomaly, but",
)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        *((text, 0) for text in DENIALS),
        *((text, 1) for text in AFFIRMATIONS),
        *FORMS,
        *SHORT_FORMS,
        *((t, None) for t in NO_VERDICT),
    ],
)
def test_a_verdict_is_read_or_there_is_none(text, verdict):
    assert parse_verdict(text) == verdict


def test_an_answer_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="an answer is a text, got 1"):
        parse_verdict(1)


def test_an_order_may_be_announced():
    assert parse_order("Order: 1 2", 2) == parse_order("The correct order is 1, 2.", 2) == [1, 2]
    with pytest.raises(ValueError, match="an order of 2 pieces was asked"):
        parse_order("Order: 1 2 and a dog", 2)


# Phrasings of the same kinds, written before the parser was changed for them.
MORE_DENIALS = (
    "No anomalies.",
    "There aren't any anomalies.",
    "There isn't an anomaly in this clip.",
    "There is nothing abnormal in the video.",
    "Nothing unusual or anomalous happens in the clip.",
    "I do not see any anomaly in the video.",
    "I don't see anything anomalous here.",
    "I did not notice any abnormal events.",
    "The video does not contain any anomalies.",
    "The video contains no anomalies.",
    "The footage doesn't depict an anomaly.",
    "No abnormal activity was observed throughout the video.",
    "No visible signs of any abnormal behavior are present.",
    "None of the events in the video are anomalous.",
    "Neither of the two people behaves abnormally.",
    "There is no evidence of an anomaly.",
    "There's no anomaly in the video.",
    "There was no anomaly.",
    "There were no anomalous events detected in the footage.",
    "The video lacks any anomalous events.",
    "The video is free of anomalies.",
    "The clip is completely normal.",
    "The scene appears to be normal.",
    "Everything looks normal.",
    "Everything in the video seems perfectly normal.",
    "It is a normal video.",
    "This is a normal scene of a street.",
    "The behaviour of the man isn't abnormal.",
    "The event cannot be considered anomalous.",
    "The absence of anomalies is clear.",
    "An anomaly is not present.",
    "An anomaly was not detected in the video.",
    "Anomalies are absent from this video.",
    "Anomalies do not occur in the video.",
    "No, this video does not have anomaly events.",
    "No. The video shows daily life in a shop.",
    "No - everyday traffic.",
    "No\nThe man walks his dog.",
    "Based on the frames, no anomaly events are detected in the video.",
    "It is not an anomaly.",
    "Not anomalous.",
    "Not an anomaly.",
    "No anomaly detected.",
    "Normal - people are walking.",
    "The answer is no.",
    "Final verdict: normal",
    "The video should be classified as normal.",
    "I would classify this video as normal.",
    "The video is not considered to be anomalous.",
    "There does not appear to be any anomaly.",
    "There don't seem to be any anomalous events.",
    "There is no clear indication that anything anomalous happens.",
    "No anomalies exist in this video segment.",
    "The anomaly does not exist in the video.",
)
MORE_AFFIRMATIONS = (
    "Anomalies are present in the video.",
    "Anomalies exist in the video, namely Fighting and Robbery.",
    "An anomaly event (Explosion) exists in the video.",
    "The anomaly event exists, and it is named Road Accidents.",
    "An anomaly can be seen: two men fight.",
    "The video is abnormal.",
    "The clip shows abnormal behaviour.",
    "The clip depicts a clear anomaly.",
    "There's an anomaly: a car burns.",
    "There is definitely an anomalous event in the footage.",
    "There was an anomaly at the start.",
    "Yes\nA man falls.",
    "Yes - a robbery.",
    "Yes. There is an anomaly, Abuse.",
    "The answer is yes.",
    "An anomaly has occurred in the video.",
    "An anomaly was detected.",
    "Abnormal events are detected in the video.",
    "Anomalous behavior is observed near the door.",
    "The behaviour is highly abnormal.",
    "The video contains several anomalous events.",
    "I see an anomaly in this video.",
    "The video should be classified as abnormal.",
    "I would classify this video as anomalous.",
    "The event is considered anomalous.",
    "This is not a normal scene: a man breaks the window.",
    "The scene is far from normal.",
    "This video does contain an anomaly.",
    "An anomaly is clearly present.",
    "No doubt, there is an anomaly.",
    "The anomaly is named Arson.",
    "Two anomalies are found, specifically Shooting and Riot.",
    "Final verdict: abnormal",
    "Anomaly detected.",
    "The video is anomalous, not normal.",
)
MORE_FORMS = (
    ("**Verdict:** 0", 0),
    ("**Final Answer**: **1**", 1),
    ("Final Answer: Yes", 1),
    ("### Final Answer\n1", 1),
    ("### Answer: No", 0),
    ("**Answer:** No, the video is ordinary.", 0),
    ("Answer: Yes, there is an anomaly.", 1),
    ("Final Answer: \\boxed{0}", 0),
    ("$$\\boxed{\\text{Yes}}$$", 1),
    ("\\boxed{\\mathrm{No}}", 0),
    ("\\boxed{\\textbf{1}}", 1),
    ("\\boxed{anomaly: 1}", 1),
    ("<answer> no </answer>", 0),
    ("<answer>\nYes.\n</answer>", 1),
    ("<answer>1</answer> <answer>0</answer>", 0),
    ('<answer>{"anomaly": 1}</answer>', 1),
    ("<answer>**No**</answer>", 0),
    ("<answer>There is no anomaly.</answer>", 0),
    ("<think>There is an anomaly.</think><answer>No</answer>", 0),
    ("<think>No.</think>\n\n**Yes**", 1),
    ("<thinking>It may be an anomaly.</thinking> 0", 0),
    ("<think>a</think> 0 <think>b</think> 1", 1),
    ('{"anomaly": 0}\nWait, the man falls.\n{"anomaly": 1}', 1),
    ('```json\n{"anomaly": 1}\n```\nOn reflection:\n```json\n{"anomaly": 0}\n```', 0),
    ('{"anomaly": 1}\n{"anomaly": null}', None),
    ('{"anomaly": "null"}', None),
    ("anomaly: null", None),
    ('{"anomaly": ""}', None),
    ('{"anomaly": []}', None),
    ('{"anomaly": true}', 1),
    ('{"anomaly": false, "label": "none"}', 0),
    ('{"anomaly": 0, "label": "abnormal scene? no"}', 0),
    ('{"label": "burglary", "anomaly": 1}', 1),
    ('{"label": "Normal"}', 0),
    ('{"anomaly": "Yes"}', 1),
    ('{"Anomaly": "1"}', 1),
    ('{"ANOMALY": 0}', 0),
    ('{"anomaly": 1.0}', 1),
    ('{"is_anomaly": false}', 0),
    ('[{"anomaly": 1}]', 1),
    ('{"anomaly": 0.5}', None),
    ('{"anomaly_detected": true}', 1),
    ('{"has_anomaly": 0}', 0),
    ('{"final_answer": 1}', 1),
    ('{"verdict": 0}', 0),
    ("- Anomaly: No", 0),
    ("`anomaly`: 1", 1),
    ("Anomaly = **1**", 1),
    ("Is there an anomaly? Yes.", 1),
    ("Is there an anomaly in the video? No.", 0),
    ("Anomaly: yes (a fight)", 1),
    ("Anomaly: No anomaly", 0),
    ("__Anomaly:__ 1", 1),
    ("_Yes_", 1),
    ("(1)", 1),
    ("“No”", 0),
    ("Yes!", 1),
    ("NO", 0),
    ("If there were an anomaly I would say 1. 0", None),
    ("The answer could be 0 or 1.", None),
    ("Maybe.", None),
    ("I cannot tell whether there is an anomaly.", None),
    ("There might not be an anomaly.", None),
    ("An anomaly is something that deviates from the ordinary.", None),
    ("I'm sorry, I can't help with that.", None),
    ("The model's task is to find anomalies.", None),
    ("No one enters the shop.", None),
    ("Yesterday a man walked here.", None),
    ("Normally people walk here.", None),
)


@pytest.mark.parametrize(
    ("text", "verdict"), [*((text, 0) for text in MORE_DENIALS), *((text, 1) for text in MORE_AFFIRMATIONS), *MORE_FORMS]
)
def test_further_phrasings_of_the_same_kinds(text, verdict):
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    "text",
    [
        *(
            "Order: 1 2",
            "**Order:** 1 2",
            "Order: 1, 2",
            "Order: 1 -> 2",
            "order = 1 2",
            "The order is: 1, then 2.",
            "1 2",
            "[1, 2]",
        ),
        *("<answer>1 2</answer>", "<think>2 1?</think> Order: 1 2", r"\boxed{1 2}", "Final order: 1 2", "Answer: 1 2", "1 and 2"),
        *("Order: 2 1\nOrder: 1 2", "1\n2\n", "1 → 2", "The chronological order is 1, 2", "(1)(2)", "1. 2."),
    ],
)
def test_an_order_is_read_in_every_form(text):
    assert parse_order(text, 2) == [1, 2]


@pytest.mark.parametrize("text", ["1", "1 2 3", "1 1", "There are 2 clips, 1 of a dog.", "", "12", "0 1", "Order: 1 or 2"])
def test_what_is_no_order_is_refused(text):
    with pytest.raises(ValueError, match="an order of 2 pieces was asked"):
        parse_order(text, 2)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("**Anomaly detected:** ✅ Yes", 1),
        ("**Anomaly:** ❌ No", 0),
        ("Anomaly detected: Fighting.", 1),
        ("I found one anomaly: shoplifting.", 1),
        ("There is no anomaly: fighting is not seen.", 0),
        ("The video should be labeled 1.", 1),
        ("I would label this video as 0.", 0),
        ("It should not be labeled 1.", None),
        ("Label it 1 if there is an anomaly.", None),
        ("Label 1 means that something is wrong.", None),
        ("On a scale of violence this is rated 1 out of 10.", None),
        ("Anomaly status: present", 1),
        ("Anomaly status: absent", 0),
        ('{"anomaly": "present"}', 1),
        ("Output: 1", 1),
        ("The output is 0", 0),
        ("Anomaly: N/A", None),
        ("Anomaly not detected.", 0),
        ("Anomalies not found.", 0),
        ("The video has 0 anomalies.", 0),
        ("The video has 10 anomalies.", 1),
        ("The clip is anomaly-free.", 0),
        ("Non-anomalous.", 0),
        ("The behaviour is non-anomalous.", 0),
        ("The video fails to show any anomaly.", 0),
        ('{"Anomaly Detected": true}', 1),
        ("Class: normal", 0),
        ("[ANSWER] yes", 1),
        ("Anomaly score: 0.9", None),
    ],
)
def test_verdicts_in_the_words_of_a_stranger(text, verdict):
    assert parse_verdict(text) == verdict

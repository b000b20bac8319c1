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
    [*((text, 0) for text in DENIALS), *((text, 1) for text in AFFIRMATIONS), *FORMS, *((t, None) for t in NO_VERDICT)],
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

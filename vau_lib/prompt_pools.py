"""What is asked, in many words: a model trained on one phrasing answers one phrasing.

The pools have the sizes of HIVAU-70k's (24, 10, 10, 10) and are worded here; `read` takes the released ones from a file of the
user's. `ENGINE` holds what a captioner and a language model are asked while annotating.
"""

from collections.abc import Mapping
from pathlib import Path

from vau_lib import store
from vau_lib.records import RecordError

POOLS: dict[str, tuple[str, ...]] = {
    "caption": (
        "What does this clip show?", "Say in a sentence or two what happens here.", "Who appears in the clip, and what do they do?",
        "Write a caption for this clip.", "Tell me what is going on in these seconds.", "Which actions can be seen?",
        "Give a short account of the scene.", "What are the people in view doing?", "Put the content of the clip into words.",
        "Note what moves in this clip and how.", "What would a guard write down about this clip?", "Report what the camera sees.",
        "Name the main figures and their actions.", "How would you sum up this short clip?", "What takes place from start to end?",
        "Caption these frames briefly.", "What is the scene and what happens in it?",
        "List what can be observed here, in one sentence.",
        "Explain shortly what the clip is about.", "What do you notice in this clip?", "Retell the clip in few words.",
        "Which subjects are visible and what are they up to?", "State plainly what is filmed.", "What is the main activity?",
    ),
    "judgement": (
        "Is anything abnormal going on?", "Does this video contain an anomaly, and which?", "Judge whether the footage is normal.",
        "Should a guard be alerted, and by what?", "Is there an unusual event here? Name it.",
        "Normal or anomalous? Say which kind.",
        "What sort of anomaly happens, if any?", "Decide whether something is wrong in this video.",
        "Has any abnormal event been filmed?", "Tell whether this is an anomaly and what it is called.",
    ),
    "description": (
        "Describe the event in question.", "What exactly happens in the event?", "Recount the incident, or the ordinary scene.",
        "Give the details of what takes place.", "How does the event unfold?", "Summarise what the video shows of the event.",
        "Write down the course of events.", "What can be seen of the incident?", "Depict the event from beginning to end.",
        "Which actions make up the event?",
    ),
    "analysis": (
        "What makes this an anomaly?", "On what grounds is the event abnormal?", "Why would this not happen on an ordinary day?",
        "Justify the judgement.", "Which observation supports calling it abnormal?", "Explain the reason for the alarm.",
        "How does the event differ from normal behaviour?", "What evidence speaks for an anomaly?",
        "Why does the event deserve attention?", "Give the basis of this decision.",
    ),
}  # fmt: skip
ENGINE = {
    "clip": "In one or two short sentences, say who or what is in the clip and what they do.",
    "event": "Captions of the clips, in order: {texts}. It is known that {truth}. Answer in three parts. First one sentence: does "
    "an anomaly exist, and what is it called. Then: a summary of the event. Last, if there is an anomaly, one sentence that starts "
    "with 'The basis for judging this anomaly is'.",
    "video": "Summaries of the events of a video, in order: {texts}. It is known that {truth}. Answer in three parts. First one "
    "sentence: does an anomaly exist, and what is it called. Then: what happens, from the start to the end of the video. Last, if "
    "there is an anomaly, one sentence that starts with 'The basis for judging this anomaly is'.",
}


def read(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read pools from a JSON object {task: [question, ...]}; other keys are left alone. RecordError names what lacks."""
    content = store.read_json(path)
    if not isinstance(content, Mapping):
        raise RecordError(f"{Path(path).name}: expected an object of tasks, got {type(content).__name__}")
    for task in POOLS:
        found = content.get(task)
        if not isinstance(found, list) or not found or not all(isinstance(q, str) and q.strip() for q in found):
            raise RecordError(f"{Path(path).name}: {task} must be a list of questions, got {found!r:.60}")
    return {task: tuple(content[task]) for task in POOLS}

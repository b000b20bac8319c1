"""Captions and summaries of synthetic videos from their exact truth, in place of a captioner and a language model.

`CaptionTemplates` plugs into `data.annotation.annotate`; its texts are exact and always labelled synthetic.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vau_lib.data.annotation import AnnotationRequest
from vau_lib.data.records import Span, VideoRecord
from vau_lib.synthetic import dataset as synthetic_dataset


class CaptionTemplates:
    """Write captions and summaries from the truth of the synthetic data set, for `data.annotation.annotate`.

    `root` is the folder `synthetic_dataset.make_dataset` wrote; `rng` chooses among a few wordings.
    """

    origin = "synthetic truth by templates"
    ACTIONS = {
        "fall": "a person falls and stays on the ground",
        "fight": "two people hit each other",
        "intrusion": "a person climbs into a place that is closed off",
        "left_package": "a person leaves a bag behind and walks away",
        "vandalism": "a person beats a machine",
        "crash": "a vehicle crashes",
    }
    REASONS = {
        "fall": "somebody who stays on the ground may need help", "fight": "hitting somebody is violence",
        "intrusion": "nobody is allowed in there", "left_package": "a bag without its owner may be a danger",
        "vandalism": "the machine is damaged on purpose", "crash": "vehicles collide and people may be hurt",
    }  # fmt: skip
    NAMES = {"left_package": "left package"}

    def __init__(self, root: str | Path, rng: np.random.Generator):
        self.root, self.rng = Path(root), rng

    def caption(self, request: AnnotationRequest) -> str:
        """Describe people, things and place, and each event of which the clip shows half a second or a third."""
        boxes, kinds, scenario = self._truth(request.record)
        first = int(request.span.start_s * request.record.fps)
        last = max(first + 1, int(request.span.end_s * request.record.fps))
        visible = ~np.isnan(boxes[first:last, :, 0]).all(axis=0)
        people = sum(kind == "person" for kind in kinds[visible])
        things = _count(int(visible.sum()) - people, "vehicle or other thing", "vehicles or other things")
        actors = f"{_count(people, 'person', 'people')} and {things}"
        where = f"{_article(scenario['scene'].replace('_', ' '))}, {scenario['lighting'].replace('_', ' ')}"
        events = [e for e in request.record.events if _overlap_s(e, request.span) >= min(0.5, (e.end_s - e.start_s) / 3)]
        action = " Then ".join(self.ACTIONS[e.label] for e in events) or f"people {self._usual(scenario)}"
        opening = self.rng.choice(["The scene is", "The camera shows", "We see"])
        return f"{opening} {where}, with {actors} in view; {action}."

    def summarise(self, request: AnnotationRequest) -> str:
        """Return judgement, description, and, for an anomaly, its basis."""
        scene = self._truth(request.record)[2]
        place = _article(scene["scene"].replace("_", " "))
        if not request.label:
            verdict = self.rng.choice(["No anomaly exists in the video.", "There is no anomaly in the video."])
            return f"{verdict} In {place}, people {self._usual(scene)} and nothing out of the ordinary happens."
        labels = request.label.split(", ")
        names = " and ".join(self.NAMES.get(label, label) for label in labels)
        verdict = self.rng.choice([f"An anomaly exists, specifically a {names}.", f"The anomaly exists and its name is {names}."])
        actions = " and ".join(self.ACTIONS[label] for label in labels)
        when = self._when(request)
        return (
            f"{verdict} In {place}, {actions}{when}. "
            f"The basis for judging this anomaly is that {' and '.join(self.REASONS[label] for label in labels)}."
        )

    def _when(self, request: AnnotationRequest) -> str:
        if request.level != "video":
            return ""
        spans = ", ".join(f"{e.start_s:.1f} to {e.end_s:.1f} s" for e in request.record.events)
        return f" (from {spans}), while others walk by"

    def _usual(self, scenario: Mapping) -> str:
        """Return what people in a normal video do."""
        return {"run": "walk and one runs", "loiter": "walk and some linger"}.get(scenario["event"], "walk by")

    def _truth(self, record: VideoRecord) -> tuple[np.ndarray, np.ndarray, dict]:
        path = self.root / "truth" / f"{record.id}.npz"
        truth = synthetic_dataset.read_truth(path)
        with np.load(path, allow_pickle=False) as file:
            return truth["boxes"], truth["kinds"], json.loads(str(file["scenario"]))


def _overlap_s(span: Span, other: Span) -> float:
    return max(0.0, min(span.end_s, other.end_s) - max(span.start_s, other.start_s))


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number or 'no'} {singular if number == 1 else plural}"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"

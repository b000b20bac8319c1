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
    """Write the truth of the synthetic data set: `caption` and `summarise` for `annotate`. Synthetic, exact, and a little dull.

    `root` is the folder `synthetic_dataset.make_dataset` wrote; `rng` chooses among a few wordings.
    """

    origin = "synthetic truth by templates"
    DOES = {
        "fall": "a person falls and stays on the ground", "fight": "two people hit each other",
        "intrusion": "a person climbs into a place that is closed off",
        "left_package": "a person leaves a bag behind and walks away",
        "vandalism": "a person beats a machine", "crash": "a vehicle crashes",
    }  # fmt: skip
    REASON = {
        "fall": "somebody who stays on the ground may need help", "fight": "hitting somebody is violence",
        "intrusion": "nobody is allowed in there", "left_package": "a bag without its owner may be a danger",
        "vandalism": "the machine is damaged on purpose", "crash": "vehicles collide and people may be hurt",
    }  # fmt: skip
    NAMES = {"left_package": "left package"}

    def __init__(self, root: str | Path, rng: np.random.Generator):
        self.root, self.rng = Path(root), rng

    def caption(self, request: AnnotationRequest) -> str:
        """Say who is seen, where, and the event where the clip shows half a second or a third of it."""
        boxes, kinds, scenario = self._truth(request.record)
        first = int(request.span.start_s * request.record.fps)
        last = max(first + 1, int(request.span.end_s * request.record.fps))
        seen = ~np.isnan(boxes[first:last, :, 0]).all(axis=0)
        people = sum(kind == "person" for kind in kinds[seen])
        things = _count(int(seen.sum()) - people, "vehicle or other thing", "vehicles or other things")
        who = f"{_count(people, 'person', 'people')} and {things}"
        where = f"{_article(scenario['scene'].replace('_', ' '))}, {scenario['lighting'].replace('_', ' ')}"
        shown = [e for e in request.record.events if _shared(e, request.span) >= min(0.5, (e.end_s - e.start_s) / 3)]
        what = " Then ".join(self.DOES[e.label] for e in shown) or f"people {self._usual(scenario)}"
        opening = self.rng.choice(["The scene is", "The camera shows", "We see"])
        return f"{opening} {where}, with {who} in view; {what}."

    def summarise(self, request: AnnotationRequest) -> str:
        """Say judgement, description, and, for an anomaly, its basis."""
        scene = self._truth(request.record)[2]
        place = _article(scene["scene"].replace("_", " "))
        if not request.label:
            judged = self.rng.choice(["No anomaly exists in the video.", "There is no anomaly in the video."])
            return f"{judged} In {place}, people {self._usual(scene)} and nothing out of the ordinary happens."
        labels = request.label.split(", ")
        names = " and ".join(self.NAMES.get(label, label) for label in labels)
        judged = self.rng.choice(
            [f"An anomaly exists, specifically a {names}.", f"The anomaly exists and its name is {names}."]
        )
        does = " and ".join(self.DOES[label] for label in labels)
        when = self._when(request)
        return (
            f"{judged} In {place}, {does}{when}. "
            f"The basis for judging this anomaly is that {' and '.join(self.REASON[label] for label in labels)}."
        )

    def _when(self, request: AnnotationRequest) -> str:
        if request.level != "video":
            return ""
        spans = ", ".join(f"{e.start_s:.1f} to {e.end_s:.1f} s" for e in request.record.events)
        return f" (from {spans}), while others walk by"

    def _usual(self, scenario: Mapping) -> str:
        """What the normal event of this video is; its name is known, the word for an anomaly is never used here."""
        return {"run": "walk and one runs", "loiter": "walk and some linger"}.get(scenario["event"], "walk by")

    def _truth(self, record: VideoRecord) -> tuple[np.ndarray, np.ndarray, dict]:
        path = self.root / "truth" / f"{record.id}.npz"
        truth = synthetic_dataset.read_truth(path)
        with np.load(path, allow_pickle=False) as file:
            return truth["boxes"], truth["kinds"], json.loads(str(file["scenario"]))


def _shared(one: Span, other: Span) -> float:
    return max(0.0, min(one.end_s, other.end_s) - max(one.start_s, other.start_s))


def _count(number: int, one: str, many: str) -> str:
    return f"{number or 'no'} {one if number == 1 else many}"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"

"""Captions and summaries of synthetic videos from their exact truth, in place of a captioner and a language model.

- `CaptionTemplates` plugs into `data.annotation.annotate`; its texts are exact and always labelled synthetic
- questions and answers of instruction rows come in several wordings, drawn by a generator; a verdict has one form only, that of
  HIVAU-70k, because it is read by machines
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vau_lib.data.annotation import AnnotationRequest
from vau_lib.data.records import Span, VideoRecord
from vau_lib.synthetic import scenarios
from vau_lib.workspace import artifacts

QUESTIONS = {
    "caption": (
        "Describe the video briefly.", "What happens in this clip?", "Give a short caption of the clip.", "What can be seen here?",
    ),
    "judgement": (
        "Are there any anomaly events detected in the video?", "Are there anomalies observed in the video clip?",
        "Does anything abnormal happen in the video?", "Is there an anomaly in this video, and which one?",
        "Judge whether the video shows an anomaly.",
    ),
    "description": (
        "Describe the anomaly events observed in the video.", "Could you describe the anomaly events observed in the video?",
        "What exactly happens in the video?", "Describe what the people in the video do, and whether it is unusual.",
    ),
    "analysis": (
        "Why do you judge this event to be anomalous?", "Can you provide the reasons for considering it anomalous?",
        "What makes this event an anomaly?", "Explain on which basis this event is called anomalous.",
    ),
}  # fmt: skip
BASIS = {  # what is wrong, what may follow
    "fall": (
        ("Nobody lies down in {place} of their own will", "The person does not get up again", "A fall is sudden and not intended"),
        ("the person may be hurt", "help may be needed", "an injury or an illness may be the cause"),
    ),
    "fight": (
        ("Two people push and hit each other", "Punches are thrown in {place}", "Hitting others is violence"),
        ("somebody may be injured", "it may get worse if nobody steps in", "bystanders are in danger too"),
    ),
    "intrusion": (
        ("The area is closed off and the person climbs in", "Nobody may go behind the fence", "Whoever climbs avoids the entrance"),
        ("something may be stolen or damaged", "a crime may follow", "the person may come to harm in there"),
    ),
    "left_package": (
        ("The owner walks away from the bag", "A bag stands in {place} without anybody", "Nobody looks after the bag"),
        ("its content may be dangerous", "it has to be checked", "the place may have to be cleared"),
    ),
    "vandalism": (
        ("The machine is struck on purpose", "Somebody destroys what belongs to others", "Nobody repairs a machine with a bat"),
        ("property is damaged", "the machine may not work any more", "parts may fly about and hurt people"),
    ),
    "crash": (
        ("The two cars collide", "Smoke rises from the cars in {place}", "Cars stop after they hit each other"),
        ("people inside may be hurt", "the cars are damaged and block the way", "a fire may break out"),
    ),
}  # fmt: skip
ANY_BASIS = (  # of events without their own
    ("This does not belong in {place}", "Nobody expects this here", "This is not what the place is for"),
    ("people may come to harm", "property may be damaged", "somebody should look after it"),
)
ANALYSES = (
    "{seen} {wrong}; {danger}.", "{wrong}, and {danger}. {seen}", "This is anomalous: {wrong_low}, so {danger}.",
    "In {place} this is not usual. {wrong}, and {danger}.",
)  # fmt: skip
NOTHING = ("Nothing unusual happens.", "This is everyday.", "Nobody is in danger and nothing is damaged.", "All of it is ordinary.")
ALIKE = "It only looks like {anomaly} for a moment."


def instruction_answer(task: str, scenario: scenarios.Scenario, rng: np.random.Generator) -> str:
    """Return the answer of a judgement, description or analysis of a scenario's event, in one of its wordings.

    ValueError for another task, and for an analysis of what is no anomaly.
    """
    event, seen = scenario.event, scenarios.EVENT_TEXTS[scenario.event]
    if task == "judgement":
        name = event.replace("_", " ")
        return (
            f"An anomaly exists, specifically, the anomaly is named {name}."
            if scenario.label
            else "No anomaly exists in the video."
        )
    if task == "description":
        if scenario.label:
            return str(rng.choice([seen, f"In {scenarios.SCENE_TEXTS[scenario.scene]}: {seen}", f"{seen} {_others(scenario)}"]))
        mistaken_for = [anomaly for anomaly, usual in scenarios.HARD_NEGATIVES.items() if usual == event]
        likeness = mistaken_for and rng.random() < 0.5
        alike = ALIKE.format(anomaly=_article(mistaken_for[0].replace("_", " "))) if likeness else _others(scenario)
        return f"{seen} {alike} {rng.choice(NOTHING)}"
    if task != "analysis" or not scenario.label:
        raise ValueError(f"task must be judgement, description, or analysis of an anomaly, got {task!r} of {event!r}")
    place = scenarios.SCENE_TEXTS[scenario.scene]
    wrong, danger = (str(rng.choice(part)).format(place=place) for part in BASIS.get(event, ANY_BASIS))
    parts = dict(seen=seen, wrong=wrong, wrong_low=wrong[0].lower() + wrong[1:], danger=danger, place=place)
    return str(rng.choice(ANALYSES)).format(**parts)


def _others(scenario: scenarios.Scenario) -> str:
    """Return who else is there."""
    return {"few": "Hardly anybody else is there.", "some": "A few others pass.", "many": "Many others pass."}[scenario.crowd]


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
        return _read_truth(artifacts.inside(self.root / "truth", f"{record.id}.npz"))


@artifacts.reader()
def _read_truth(path: Path) -> tuple[np.ndarray, np.ndarray, dict]:
    truth = artifacts.load_arrays(path, "boxes", "kinds", "scenario")
    return truth["boxes"], truth["kinds"], dict(artifacts.parse_json(str(truth["scenario"])))


def _overlap_s(span: Span, other: Span) -> float:
    return max(0.0, min(span.end_s, other.end_s) - max(span.start_s, other.start_s))


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number or 'no'} {singular if number == 1 else plural}"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"

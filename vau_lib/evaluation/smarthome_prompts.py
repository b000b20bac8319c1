"""SmartHome-Bench's prompting styles as rows of a table: the steps, whether a step sees the video, which answers it is given.

- the styles are SmartHome-Bench's (zero-shot, chain of thought, few-shot, taxonomy in context, reflective chain); every
  sentence is ours, so a score made with them is a score of these words. The benchmark's own words can be read from a file
- a placeholder is written [[name]] and stands for the answer of the step of that name, or for the taxonomy; braces stay
  free for the JSON that is asked for
- `rules first` is a reflective chain whose first guess already knows the rules: the paper's text describes it, the paper's
  Fig. 17 and code leave the rules out, and so does `trlc`
- the benchmark's three examples are all anomalous, which teaches the answer; one of ours is normal
Source: SmartHome-Bench, arXiv 2506.12992 (section 4, appendices B and C); read for its structure.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vau_lib.workspace import artifacts

Model = Callable[[object, str], str]  # (video or None, prompt) -> text
NAMED = re.compile(r"\[\[(\w+)\]\]")
TAXONOMY = {  # category: (what is normal, what is not); second level of the benchmark's appendix B, in our words
    "Security": (
        "residents, guests, couriers and neighbours coming and going; cars parking; goods delivered and taken in",
        "someone trying locks or windows, breaking in, taking a parcel or a car; damage or fire; a weapon, a fight, a threat; "
        "a stranger who hides, lingers or comes back at night",
    ),
    "Wildlife": (
        "small harmless animals passing, feeding or nesting outdoors",
        "large or dangerous animals close to people, pets or the house; animals that get inside, raid bins or damage things; "
        "animals hurt or hunting",
    ),
    "Pet Monitoring": (
        "pets that sleep, eat, play, wander or greet",
        "a pet that escapes, is hurt, stuck, ill or in distress; destroys things; fights; does something very unusual for it",
    ),
    "Baby Monitoring": (
        "a baby asleep, playing, feeding or held, an adult near",
        "a baby that falls, climbs out, has its face covered, chokes or cries with nobody coming; a stranger or animal at the cot",
    ),
    "Kid Monitoring": (
        "children who play, walk, ride or talk, safely",
        "a child that falls, climbs dangerously, runs into traffic, handles fire or blades, is bullied, followed or left behind",
    ),
    "Senior Care": (
        "an older person who walks, sits, eats, rests or talks",
        "a fall, sudden weakness or confusion, long stillness in an odd place, rough handling, wandering off",
    ),
    "Other Category": (
        "weather, plants, shadows, machines and traffic as on any day",
        "storm or water damage, smoke, a falling object, an accident, something that cannot be explained",
    ),
}


@dataclass(frozen=True)
class Step:
    """One question to the model. `once` steps are asked a single time for a whole set of videos, and see none."""

    name: str
    text: str
    sees_video: bool = True
    once: bool = False


@dataclass(frozen=True)
class Style:
    """A way of asking: its steps in order; the last one's answer is the answer."""

    name: str
    steps: tuple[Step, ...]

    @property
    def text(self) -> str:
        """The question that goes with the video, filled in as far as it can be before any answer."""
        return filled(next(step for step in self.steps if step.sees_video).text, {}, partly=True)


def taxonomy_text() -> str:
    """Return the taxonomy as lines a model can read."""
    return "\n".join(f"- {name}. Normal: {usual}. Abnormal: {odd}." for name, (usual, odd) in TAXONOMY.items())


def filled(text: str, answers: Mapping[str, str], *, partly: bool = False) -> str:
    """Return `text` with each [[name]] replaced by that step's answer, [[taxonomy]] by the taxonomy.

    ValueError for a name nobody answered, unless `partly`.
    """
    known = {"taxonomy": taxonomy_text(), **answers}
    if not partly and (odd := [name for name in NAMED.findall(text) if name not in known]):
        raise ValueError(f"a prompt asks for [[{odd[0]}]], known are {', '.join(known)}")
    return NAMED.sub(lambda found: known.get(found[1], found[0]), text)  # one pass: answers are not filled in again


@artifacts.reader()
def read_prompts(path: str | Path) -> dict[str, Style]:
    """Read {style: text} or {style: [{name, text, sees_video, once}, ...]} from a JSON file; StoreError names what is off."""
    content = artifacts.read_json(path)
    if not isinstance(content, dict) or not content:
        raise artifacts.StoreError(f"{path} must hold an object of styles, got {type(content).__name__}")
    found = {}
    for name, steps in content.items():
        steps = [{"name": "answer", "text": steps}] if isinstance(steps, str) else steps
        try:
            found[name] = Style(name, tuple(Step(**step) for step in steps))
        except TypeError as error:
            raise artifacts.StoreError(f"{path}: style {name!r} is not a text nor a list of steps: {error}") from error
        if not any(step.sees_video for step in found[name].steps):
            raise artifacts.StoreError(f"{path}: style {name!r} has no step that sees the video")
    return found


def prepare(model: Model, style: Style) -> dict[str, str]:
    """Ask the steps that are asked once for a whole set (the rules of a reflective chain); return {step: answer}."""
    answers: dict[str, str] = {}
    for step in style.steps:
        if step.once:
            answers[step.name] = model(None, filled(step.text, answers))
    return answers


def ask(model: Model, video: object, style: Style, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the model's answer to every step about one video, in order; the last is the answer to score.

    `known` are the answers of `prepare`, asked here when not given. `model(video, prompt)` gets None for steps that see none.
    """
    answers = dict(prepare(model, style) if known is None else known)
    for step in style.steps:
        if not step.once:
            answers[step.name] = model(video if step.sees_video else None, filled(step.text, answers))
    return answers


ZERO_SHOT = """Watch this clip of a home camera. Is there anything anomalous in it?
Answer with this JSON object and nothing else, 1 meaning anomalous and 0 meaning not: {"result": 0}"""
ZERO_SHOT_NORMAL = """Watch this clip of a home camera. Is what happens in it normal?
Answer with this JSON object and nothing else, 1 meaning normal and 0 meaning not: {"normal": 1}"""
ROLE = """You review clips of smart home cameras: porches, gardens, rooms, pets, children, older people.
An anomaly is an event a resident would want to be told of: danger, harm, crime, damage, distress, or behaviour that does not
belong there. Everything else is normal, however lively."""
FORM = """Work in this order: describe what is seen, in time order, in at most 200 words; argue in at most 100 words for or
against an anomaly; then decide. Answer with one JSON object with these keys and nothing else:
{"video_description": text, "reasoning": text, "anomaly": digit}
where digit is 1 for an anomaly and 0 for none."""
EXAMPLES = """Three answers to other clips, to show the form:
{"video_description": "Dusk. A hooded man walks past the porch, returns, picks up a parcel beside the door and runs to a waiting
car.", "reasoning": "He neither rings nor lives there, and he hurries off with goods that were delivered: theft.", "anomaly": 1}
{"video_description": "A garden at night. A black bear tips a bin over, pulls a bag out and eats a few metres from the door.",
"reasoning": "A large animal feeds close to the house and may meet a resident: danger.", "anomaly": 1}
{"video_description": "A living room. A dog sleeps on its mat, stretches, drinks and lies down again.",
"reasoning": "An animal at rest at home, nothing is at risk.", "anomaly": 0}"""
KINDS = """What is usual and what is not, by kind of camera:
[[taxonomy]]"""
RULES = """Here is what is usual and what is not in clips of smart home cameras:
[[taxonomy]]
Condense it to ten numbered rules, one sentence each, by which someone can tell an anomalous clip from a normal one when all
they have is a description of it."""
REFLECT = """Another reviewer described a clip of a home camera and judged it:
[[first]]

Rules to judge by:
[[rules]]

Hold the description and the reasoning against each rule, say which rules apply, and correct the judgement if they call for
it. Answer with one JSON object with these keys and nothing else:
{"reflection": text, "updated_anomaly": digit}
where digit is 1 for an anomaly and 0 for none."""
COT = f"{ROLE}\n{FORM}"
_rules, _reflect = Step("rules", RULES, sees_video=False, once=True), Step("reflect", REFLECT, sees_video=False)
PROMPTS: dict[str, Style] = {
    style.name: style
    for style in (
        Style("zero_shot", (Step("answer", ZERO_SHOT),)),
        Style("zero_shot_normal", (Step("answer", ZERO_SHOT_NORMAL),)),  # the paper's Table 8: the question turned round
        Style("cot", (Step("answer", COT),)),
        Style("few_shot_cot", (Step("answer", f"{COT}\n\n{EXAMPLES}"),)),
        Style("icl", (Step("answer", f"{ROLE}\n{KINDS}\n{FORM}"),)),
        Style("trlc", (_rules, Step("first", COT), _reflect)),
        Style("trlc_rules_first", (_rules, Step("first", f"{ROLE}\nRules:\n[[rules]]\n{FORM}"), _reflect)),
    )
}

"""Reviews and records in other tools' JSON: Label Studio tasks and answers, FiftyOne's temporal detections.

- a review sheet becomes Label Studio tasks, one a row; what people decided there comes back as the same sheet, which
  `annotation.apply_review` reads: nothing else of the file is believed
- two people who disagree about a row, and a second decision of one person, are named, never settled here
Formats: Label Studio's task format (labelstud.io/guide/task_format), FiftyOneTemporalDetectionDataset (docs.voxel51.com).
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from vau_lib.data.annotation import DECISIONS, REVIEW_COLUMNS
from vau_lib.data.records import RecordError, VideoRecord
from vau_lib.workspace import artifacts

CHOICES = "".join(f'<Choice value="{decision}"/>' for decision in DECISIONS)
LABEL_CONFIG = f"""<View>
  <Video name="video" value="$video"/>
  <Header value="$flag"/>
  <Text name="question" value="$question"/>
  <Text name="answer" value="$answer"/>
  <Choices name="decision" toName="answer" choice="single-radio" required="true">{CHOICES}</Choices>
  <TextArea name="edited_answer" toName="answer" value="$answer" maxSubmissions="1" editable="true"/>
</View>
"""


def to_label_studio(table: pd.DataFrame, *, videos: str = "") -> list[dict]:
    """Return the rows of a review sheet as Label Studio tasks; decisions taken before stand in them as annotations.

    `videos` is put before each video's path: an address or the storage prefix that Label Studio serves them from.
    """
    if missing := set(REVIEW_COLUMNS) - set(table.columns):
        raise ValueError(f"the review has no column {', '.join(sorted(missing))}")
    tasks = []
    for row in table.astype(object).where(table.notna(), "").to_dict("records"):
        data = {name: row[name] for name in REVIEW_COLUMNS if name not in ("decision", "edited_answer")}
        task = {"data": data | {"video": videos + str(row["video"])}}
        if row["decision"]:
            result = [_region("decision", "choices", {"choices": [row["decision"]]})]
            if row["edited_answer"]:
                result.append(_region("edited_answer", "textarea", {"text": [row["edited_answer"]]}))
            task["annotations"] = [{"result": result}]
        tasks.append(task)
    return tasks


def _region(name: str, kind: str, value: dict) -> dict:
    return {"from_name": name, "to_name": "answer", "type": kind, "value": value}


def from_label_studio(path: str | Path) -> pd.DataFrame:
    """Return what people decided in a JSON export of Label Studio as a table of id, decision and edited_answer.

    A task nobody decided has "" for a decision; skipped and cancelled annotations do not count. ValueError names a row that
    people decided differently, and a file that is no such export.
    """
    rows = []
    with artifacts.reading(path, ValueError):
        for task in artifacts.read_json(path, list):
            name = task["data"]["id"]
            found = {_decided(annotation) for annotation in task.get("annotations") or () if not annotation.get("was_cancelled")}
            found.discard(("", ""))
            if len(found) > 1:
                shown = " and ".join(repr(artifacts.one_line(" ".join(each), 60)) for each in sorted(found))
                raise ValueError(f"row {name} is decided differently: {shown}")
            decision, edited = found.pop() if found else ("", "")
            rows.append({"id": str(name), "decision": decision, "edited_answer": edited})
    return pd.DataFrame(rows, columns=["id", "decision", "edited_answer"])


def _decided(annotation: dict) -> tuple[str, str]:
    found = {"decision": "", "edited_answer": ""}
    for region in annotation["result"]:
        values = region["value"].get("choices" if region["from_name"] == "decision" else "text", ())
        if region["from_name"] in found:
            found[region["from_name"]] = "\n".join([values] if isinstance(values, str) else values)
    # the text field starts with the answer itself: it is an edit only where the decision says so
    return found["decision"], found["edited_answer"] if found["decision"] == "edit" else ""


def to_fiftyone(records: Iterable[VideoRecord]) -> dict:
    """Return records as the labels.json of a FiftyOneTemporalDetectionDataset: each video's events, seconds from start to end.

    A video's key is its path without the suffix, as FiftyOne names what lies below data/; one without an event has an empty
    list. A record has its split, source and text as attributes of each event. RecordError for two videos with one key.
    """
    labels = {}
    for record in records:
        key = str(Path(record.path).with_suffix(""))
        if key in labels:
            raise RecordError(f"two videos are named {key!r}: FiftyOne knows a video by its path without the suffix")
        kept = {"split": record.split, "source": record.source}
        labels[key] = [
            {
                "label": event.label or (record.classes[0] if record.classes else "anomaly"),
                "timestamps": [event.start_s, event.end_s],
                "attributes": kept | ({"text": event.text} if event.text else {}),
            }
            for event in record.events
        ]
    return {"labels": labels}

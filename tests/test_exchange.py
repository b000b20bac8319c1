"""Review sheets go to Label Studio and come back; records become FiftyOne's temporal detections."""

import json
import xml.etree.ElementTree as xml

import pytest
from typer.testing import CliRunner

from vau_lib.cli import app
from vau_lib.data import annotation, records
from vau_lib.data.hivau import Instruction
from vau_lib.publish import exchange

ROWS = [
    Instruction(id=f"r{n}", video_id="v", video="a/v.mp4", level="clip", task="caption", question="What?", answer=f"Answer {n}.",
                span=records.Span(0, 2), split="train", event=0)
    for n in range(4)
]  # fmt: skip


def answered(task, *regions, **facts):
    """What Label Studio's export adds to a task when a person submits it (its documented task format)."""
    result = [{"id": "x", "from_name": name, "to_name": "answer", "type": kind, "value": value, "origin": "manual"}
              for name, kind, value in regions]  # fmt: skip
    return {**task, "id": 1, "annotations": [{"id": 7, "completed_by": 1, "was_cancelled": False, "result": result, **facts}]}


def choice(value):
    return ("decision", "choices", {"choices": [value]})


def area(*lines):
    return ("edited_answer", "textarea", {"text": list(lines)})


def test_a_review_goes_to_label_studio_and_comes_back(tmp_path):
    sheet = annotation.review_table(ROWS, {"r1": "look: <b>twice</b>"})
    tasks = exchange.to_label_studio(sheet, videos="https://example.org/")
    assert [task["data"]["video"] for task in tasks] == ["https://example.org/a/v.mp4"] * 4
    assert tasks[1]["data"]["flag"] == "look: <b>twice</b>" and json.loads(json.dumps(tasks)) == tasks
    done = [answered(tasks[0], choice("accept"), area("Answer 0.")), answered(tasks[1], choice("edit"), area("New one.")),
            answered(tasks[2], choice("drop")), answered(tasks[3], choice("drop"), was_cancelled=True)]  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(done))
    table = exchange.from_label_studio(tmp_path / "export.json")
    kept, tally = annotation.apply_review(ROWS, table, undecided="accept")
    assert [row.answer for row in kept] == ["Answer 0.", "New one.", "Answer 3."]
    assert tally == {"accept": 2, "edit": 1, "drop": 1}
    with pytest.raises(ValueError, match="row r3"):
        annotation.apply_review(ROWS, table)


def test_decisions_taken_before_stand_in_the_tasks(tmp_path):
    sheet = annotation.review_table(ROWS)
    sheet.loc[2, ["decision", "edited_answer"]] = ["edit", "Before."]
    (tmp_path / "export.json").write_text(json.dumps(exchange.to_label_studio(sheet)))
    table = exchange.from_label_studio(tmp_path / "export.json")
    assert table["decision"].tolist() == ["", "", "edit", ""] and table["edited_answer"][2] == "Before."


def test_people_who_disagree_are_named(tmp_path):
    task = answered(exchange.to_label_studio(annotation.review_table(ROWS))[0], choice("accept"))
    task["annotations"] += answered(task, choice("drop"))["annotations"]
    (tmp_path / "export.json").write_text(json.dumps([task]))
    with pytest.raises(ValueError, match="row r0 is decided differently: 'accept' and 'drop'"):
        exchange.from_label_studio(tmp_path / "export.json")


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"data": {}}]', '[{"data": {"id": 1}, "annotations": [{}]}]', "no json"])
def test_another_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(ValueError, match="export.json"):
        exchange.from_label_studio(tmp_path / "export.json")


def test_the_label_config_names_what_the_answers_name():
    tags = {tag.get("name"): tag for tag in xml.fromstring(exchange.LABEL_CONFIG)}
    assert tags["decision"].get("toName") == "answer" == tags["edited_answer"].get("toName")
    assert [child.get("value") for child in tags["decision"]] == ["accept", "edit", "drop"]


def test_records_become_temporal_detections(tmp_path):
    event = records.Span(1.5, 4.0, "fight", "Two people fight.")
    found = [
        records.VideoRecord("a", "x/a.mp4", "d", "test", 1, ("fight",), (event,), group="cam 3"),
        records.VideoRecord("b", "b.avi", "d", "train", 0),
    ]
    records.write_records(tmp_path / "records.jsonl", found)
    done = CliRunner().invoke(
        app, ["export-labels", str(tmp_path / "records.jsonl"), str(tmp_path / "labels.json"), "--to", "fiftyone"]
    )
    assert done.exit_code == 0, done.stderr
    labels = json.loads((tmp_path / "labels.json").read_text())["labels"]
    kept = {"split": "test", "source": "cam 3", "text": "Two people fight."}
    assert labels == {"x/a": [{"label": "fight", "timestamps": [1.5, 4.0], "attributes": kept}], "b": []}
    records.write_records(tmp_path / "records.jsonl", [*found, records.VideoRecord("c", "b.mp4", "d", "test", 0)])
    done = CliRunner().invoke(
        app, ["export-labels", str(tmp_path / "records.jsonl"), str(tmp_path / "labels.json"), "--to", "fiftyone"]
    )
    assert done.exit_code == 1 and "two videos are named 'b'" in done.stderr


def test_a_sheet_goes_both_ways_by_commands(tmp_path):
    sheet, tasks, back = tmp_path / "review.csv", tmp_path / "tasks.json", tmp_path / "reviewed.csv"
    annotation.write_review(sheet, annotation.review_table([ROWS[0], Instruction(**{**ROWS[1].__dict__, "answer": "=SUM(A1)"})]))
    assert CliRunner().invoke(app, ["export-labels", str(sheet), str(tasks), "--to", "label-studio"]).exit_code == 0
    content = json.loads(tasks.read_text())
    assert content[1]["data"]["answer"] == "=SUM(A1)" and (tmp_path / "tasks.xml").read_text() == exchange.LABEL_CONFIG
    tasks.write_text(json.dumps([answered(content[0], choice("drop")), answered(content[1], choice("edit"), area("=1+1"))]))
    done = CliRunner().invoke(app, ["import-review", str(tasks), str(back)])
    assert done.exit_code == 0 and "1 edit" in done.stdout, done.stderr
    kept, _ = annotation.apply_review(ROWS[:2], back)
    assert [row.answer for row in kept] == ["=1+1"]

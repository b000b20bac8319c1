"""`vau` answers at once, and says what is wrong in one line."""

import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from tiny_project import make_project, write_notebook, write_params
from typer.testing import CliRunner

from vau_lib import cli
from vau_lib.data import records
from vau_lib.features import checkpoints
from vau_lib.workspace import notebook_runs, presets


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(make_project(tmp_path)))
    monkeypatch.delenv("VAU_DEBUG", raising=False)
    return tmp_path


SNOW = ["generate", "data/generated", "--number", "12", "-p", "weather=snow", "--workers", "2"]


@pytest.fixture(scope="module")
def snow(tmp_path_factory):
    """The folder of twelve generated videos, which tests copy."""
    folder = make_project(tmp_path_factory.mktemp("snow"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAU_PROJECT", str(folder))
        first = CliRunner().invoke(cli.app, SNOW)
    assert first.exit_code == 0 and "data/generated: 12 done; 6 anomalous; " in first.output, first.output
    return folder / "data" / "generated"


@pytest.fixture
def generated(project, snow):
    shutil.copytree(snow, project / "data" / "generated")
    return project / "data" / "generated"


def vau(*words):
    return CliRunner().invoke(cli.app, words)


def test_a_table_of_a_strangers_copy_holds_no_formula(project):
    cell = {"cell_type": "code", "source": "x", "metadata": {}, "execution_count": 1}
    data = {notebook_runs.RECORD: {"note": "=cmd|'/c calc'!A1"}}
    cell["outputs"] = [{"output_type": "display_data", "metadata": {}, "data": data}]
    copies = notebook_runs.copies("tiny")
    copies.mkdir(parents=True)
    (copies / "01_first.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert vau("table", "--csv", str(project / "t.csv")).exit_code == 0
    assert "'=cmd" in (project / "t.csv").read_text() and ",=cmd" not in (project / "t.csv").read_text()


def test_no_command_hides_another_of_its_name():
    """Of two commands of one name the later one wins, silently: it happened to `vau export`."""
    apps = [cli.app, *(group.typer_instance for group in cli.app.registered_groups)]
    names = [c.name or c.callback.__name__.replace("_", "-") for part in apps for c in part.registered_commands]
    assert len(names) > 20 and sorted(names) == sorted(set(names))


def test_list_shows_questions_and_who_runs_them(project):
    write_params(project, "tiny", "_shared", "notebooks: [03]")
    lines = vau("list").stdout.splitlines()
    assert lines[0].split() == ["notebook", "question", "demo", "tiny"]
    assert "Does it end?" in lines[3] and lines[3].count("to run") == 2 and lines[1].count("to run") == 1


def test_a_dry_run_shows_what_each_notebook_is_given(project):
    said = vau("run", "tiny", "1", "-p", "rate=1e-3", "--dry-run")
    assert said.exit_code == 0
    assert said.stdout.splitlines() == ["01_first: asked for", "    count = 5", "    rate = 0.001"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "tyni"], "vau: no preset 'tyni' in params/; the nearest name is 'tiny'\n"),
        (["run", "tiny", "-p", "cuont=3"], "vau: -p: nobody declares 'cuont'; the nearest name is 'count'\n"),
        (["run", "tiny", "-p", "count=x"], "vau: -p: count must be int, got str 'x'\n"),
        (["run", "tiny", "7"], "vau: no notebook 07; there are 01_first, 02_second, 03_third\n"),
        (["sweep", "tiny", "1", "count="], "vau: sweep: no values for count, give count=V1,V2\n"),
        (["sweep", "tiny", "1", "count=1,x"], "vau: sweep: count must be int, got str 'x'\n"),
        (["table", "tyni"], "vau: no preset 'tyni' in params/; the nearest name is 'tiny'\n"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(project, words, message):
    said = vau(*words)
    assert (said.exit_code, said.stderr, said.stdout) == (1, message, "")


def test_debug_shows_the_traceback(project, monkeypatch):
    assert isinstance(vau("--debug", "run", "tyni").exception, presets.RunError)
    monkeypatch.setenv("VAU_DEBUG", "1")
    assert isinstance(vau("run", "tyni").exception, presets.RunError)


def test_list_table_and_dry_run_answer_without_torch(project):
    script = """
import sys
from vau_lib.cli import app
for words in (["list"], ["table"], ["run", "tiny", "--dry-run"]):
    app(words, standalone_mode=False)
assert not {"torch", "decord", "sklearn", "matplotlib"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sweep_leaves_a_row_per_point_and_a_failed_point_does_not_stop_it(project):
    code = "assert count != 4, 'four'\nnotebook_runs.record(n=count)"
    write_notebook(project, "03_third", "count: int = 3", "from vau_lib.workspace import notebook_runs", code)
    said = vau("sweep", "demo", "3", "count=4,3")
    assert said.exit_code == 1 and said.stdout.endswith("1 of 2 points in data/runs/demo\n")
    assert "vau: 03_third stopped at In [4] `assert count != 4, 'four'`: AssertionError: four" in said.stderr
    rows = notebook_runs.table("demo")
    assert list(rows["count"]) == [3, 4] and rows["n"][0] == 3 and rows["failed"][1].startswith("In [4]")
    assert "03_third" in vau("table").stdout and "AssertionError: four" in vau("table").stdout
    assert vau("table", "--csv", str(project / "rows.csv")).exit_code == 0
    assert list(pd.read_csv(project / "rows.csv")["count"]) == [3, 4]


def test_a_table_fits_a_terminal_and_cuts_nothing():
    columns = {"preset": ["tiny"] * 4, "note": [f"a longer note of run {k}" for k in range(4)]}
    columns |= {f"metric_{n}": [f"{n}.{k}23" for k in range(4)] for n in range(12)}
    for width in (60, 80, 300):
        console = Console(width=width, file=StringIO())
        blocks = list(cli._fitting(columns, "01_first", width))
        for shown in blocks:
            console.print(shown)
        lines = console.file.getvalue().splitlines()
        words = " ".join(lines)
        assert max(map(len, lines)) <= width and (len(blocks) == 1) == (width == 300)
        assert all(value in words for cells in columns.values() for value in cells)
        assert all(words.count(name) >= len(blocks) for name in columns)


def test_doctor_says_what_is_missing_and_goes_on(project, monkeypatch):
    monkeypatch.delitem(checkpoints.PACKAGED, "xfeat")
    monkeypatch.setenv("VAU_WEIGHTS", str(project / "nowhere"))
    monkeypatch.setenv("TORCH_HOME", str(project / "nowhere"))
    monkeypatch.setenv("VAU_REAL_DATA", str(project / "nowhere"))
    said = vau("doctor")
    assert said.exit_code == 0
    assert "no: MissingWeights: no weights xfeat/xfeat.pt" in said.stdout
    assert "no: FileNotFoundError" in said.stdout and "8 of 8 frames" in said.stdout and "cores" in said.stdout


def test_generate_draws_scenarios_of_held_factors_into_three_splits(project, generated):
    made = {path: path.stat().st_mtime_ns for path in generated.glob("videos/*.mp4")}
    again = CliRunner().invoke(cli.app, SNOW)
    assert again.exit_code == 0 and "data/generated: 12 done; 6 anomalous; " in again.output, again.output
    assert len(made) == 12 and made == {path: path.stat().st_mtime_ns for path in generated.glob("videos/*.mp4")}
    found = records.read_records(project / "data/generated/records.jsonl")
    assert {r.split for r in found} == {"train", "val", "test"} and not records.leaks(found)
    assert all(len({r.label for r in found if r.split == split}) == 2 for split in ("train", "val", "test"))
    before = {r.id: r.split for r in found}
    assert vau("generate", "data/generated", "--number", "2", "-p", "weather=rain").exit_code == 0
    other = records.read_records(project / "data/generated/records.jsonl")
    assert not before.keys() & {r.id for r in other}, "another scenario is another video"
    for more, said in (
        (["-p", "weather=hail"], "weather='hail' is unknown"),
        (["-p", "fps=5"], "no factor 'fps'; there are event, "),
        (["--backend", "veo"], "veo costs money: give --price"),
    ):
        wrong = vau("generate", "data/other", *more)
        assert wrong.exit_code == 1 and said in wrong.output and "Traceback" not in wrong.output


def test_tune_and_guard_by_what_it_left(project, generated, tmp_path):
    toy_vlm = str(Path(cli.__file__).parents[1] / "data/toy_models/qwen2_5_vl")
    rows = [json.loads(line) for line in (project / "data/generated/instructions.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"caption", "judgement", "description", "analysis"}
    words = ["tune", "data/generated/instructions.jsonl", "--model", toy_vlm, "--out", "data/tuned", "--rank", "4"]
    small = ["--keep-ratio", "0.3", "--frames", "4", "--steps", "2", "--batch", "2"]
    done = CliRunner().invoke(cli.app, [*words, *small])
    assert done.exit_code == 0 and "rows of 1 files, loss" in done.output, done.output
    guard = ["guard", str(project / "data/generated/videos"), "--model", toy_vlm, "--out", str(tmp_path / "said.jsonl")]
    guard += ["--frames", "4", "--max-new-tokens", "4", "--batch", "4"]
    said = vau(*guard, "--adapter", "data/tuned")
    assert said.exit_code == 0 and "tuned: data/tuned" in said.output, said.output
    untuned = vau(*guard)
    assert untuned.exit_code == 1 and "said.jsonl holds answers of " in untuned.output, "another model's answers"
    wrong = CliRunner().invoke(cli.app, [*words, "--root", "a", "--root", "b"])
    assert wrong.exit_code == 1 and "1 files and 2 folders of videos" in wrong.output


def test_tune_on_videos_and_reinforce_what_it_left(project, generated):
    """A stopped run goes on; the table names both exams; the adapter that is left is one `guard` takes; other rows are refused."""
    toy_vlm = str(Path(cli.__file__).parents[1] / "data/toy_models/qwen2_5_vl")
    rows, model = "data/generated/instructions.jsonl", ["--model", toy_vlm, "--frames", "4", "--video"]
    small = "--rank 4 --steps 2 --batch 1 --accumulation 2 --checkpointing --fps 2 --keep-ratio 0.5".split()
    done = CliRunner().invoke(cli.app, ["tune", rows, *model, *small, "--out", "data/tuned"])
    assert done.exit_code == 0 and "rows of 1 files, loss" in done.output, done.output
    words = ["reinforce", rows, *model, "--adapter", "data/tuned", "--out", "data/rewarded", "--questions", "2", "--group", "2"]
    words += ["--max-new-tokens", "4", "--micro-batch", "3", "--exam", "train", "--fps", "2", "--keep-ratio", "0.5"]
    first = CliRunner().invoke(cli.app, [*words, "--steps", "1"])
    assert first.exit_code == 0, first.output
    done = CliRunner().invoke(cli.app, [*words, "--steps", "3"])
    assert done.exit_code == 0, done.output
    for part in ("judgement, before: ", "judgement, after: ", "order, 2 pieces, after: ", "by tiny-qwen2_5_vl ("):
        assert part in done.output, done.output
    rewards = pd.read_csv(project / "data/rewarded/rewards.csv")
    assert rewards["step"].tolist() == [0, 1, 2] and {"reward", "clipped", "dead"} <= set(rewards)
    kept = json.loads((project / "data/rewarded/made_by.json").read_text())
    assert kept["question"] and (project / "data/rewarded/adapter_model.safetensors").is_file()
    assert kept["shown"]["token_rule"] == "few moments" and kept["shown"]["fps"] == 2
    guard = ["guard", str(project / "data/generated/videos"), "--model", toy_vlm, "--frames", "4", "--max-new-tokens", "2"]
    assert vau(*guard, "--adapter", "data/rewarded", "--batch", "12").exit_code == 0
    other = CliRunner().invoke(cli.app, [*words, "--steps", "4", "--seed", "1"])
    assert other.exit_code == 1 and "data/rewarded was made with " in other.output

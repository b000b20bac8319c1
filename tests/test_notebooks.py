"""Every notebook keeps the house's anatomy, and the smoke preset runs them all in order."""

import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from vau_lib.data import hivau
from vau_lib.workspace import presets, timings

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_anatomy(path):
    notebook = read(path)
    nbformat.validate(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell.id != "setup"]  # of a clone that ran `vau badges`
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tags = [cell.metadata.get("tags", []) for cell in code]
    sizes = [len(cell.source.splitlines()) for cell in code]
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert 25 <= len(notebook.cells) <= 46
    assert max(sizes) <= 15 and statistics.median(sizes) <= 9
    assert notebook.metadata.kernelspec.name == "python3"
    assert tags[0] == ["parameters"] and tags[-1] == ["skip-execution"] and tags.count(["parameters"]) == 1
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ") and notebook.cells[0].source.splitlines()[0].endswith("?")
    for part in ("**You will**", "**Needs**", "**Time**", "## What we saw", "## Exercises", "## References", "Self-check"):
        assert part in text, part
    ran = [cell.source for cell, tag in zip(code, tags, strict=True) if tag != ["skip-execution"]]
    assert "notebook_runs.record(" in ran[-1] and any(line.startswith("assert ") for source in ran for line in source.splitlines())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_without_outputs_and_with_ids(path):
    for cell in read(path).cells:
        assert cell.get("id")
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert not re.search(r"^class ", cell.source, flags=re.M), "classes belong in the library"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_parameters_are_flat_typed_and_explained(path):
    (cell,) = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    lines = cell.source.splitlines()
    assert len(lines) <= 15
    for line in lines:
        code, _, comment = line.partition("  # ")
        assert comment and "=" not in comment and "|" not in code, line  # papermill drops such lines in silence


def test_stated_times_are_those_of_the_last_quiet_runs():
    """One place holds the seconds, params/seconds.yaml; runs compare themselves with it (`timings`)."""
    stated = {preset: presets.usual_seconds(preset) for preset in ("smoke", "demo")}
    for path in NOTEBOOKS:
        first = read(path).cells[0].source
        for preset, seconds in stated.items():
            assert f"{preset} {timings.rounded(seconds[path.stem])}" in first.partition("**Time**")[2], (path.stem, preset)
    (minutes,) = re.findall(r"the demo took (\d+) minutes", (ROOT / "README.md").read_text())
    whole = yaml.safe_load((ROOT / "params" / "seconds.yaml").read_text())["demo"][timings.WHOLE]
    assert int(minutes) == round(whole / 60)


def test_every_next_leads_to_the_next_notebook_and_the_readme_lists_all():
    readme = (ROOT / "README.md").read_text()
    for path, following in zip(NOTEBOOKS, [*NOTEBOOKS[1:], None], strict=True):
        cells = [cell.source for cell in read(path).cells]
        found = re.findall(r"^Next: \*\*(\d\d) · .+\*\*\.$", "\n".join(cells), flags=re.M)
        assert found == ([following.stem[:2]] if following else []), path.stem
        question = cells[0].splitlines()[0].partition(" · ")[2]
        assert f"| [{path.stem[:2]}](notebooks/{path.name}) | {question} |" in readme


def test_files_that_are_cited_are_here():
    """Paths in backquotes and links of the documents and notebooks; what runs and users make is not kept."""
    texts = {path.name: path.read_text() for path in ROOT.glob("*.md")}
    texts |= {path.name: "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown") for path in NOTEBOOKS}
    cited = [(name, place) for name, text in texts.items() for place in re.findall(r"\]\(((?!http|#)[\w./-]+)\)", text)]
    cited += [(n, place) for n, text in texts.items() if n != "LAB.md"
              for place in re.findall(r"`((?:benchmarks|tests|notebooks|vau_lib)/[\w/]+\.\w+)`", text)]  # fmt: skip
    assert len(cited) > 50
    for name, place in cited:
        assert (ROOT / place).exists() or (ROOT / "notebooks" / place).exists(), f"{name} cites {place}"


@pytest.fixture(scope="module")
def clean_project(tmp_path_factory):
    """This checkout's notebooks, presets and kept files, nothing of earlier runs."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params", "data/results", "data/toy_models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


def test_a_notebook_without_its_inputs_names_the_notebook_that_makes_them(clean_project, tmp_path, monkeypatch):
    """Cells of a project where nothing ran, up to the first error: one line that names an earlier notebook and what runs it."""
    monkeypatch.setenv("VAU_PROJECT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("notebooks", "params"):
        shutil.copytree(clean_project / name, tmp_path / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy_models").symlink_to(ROOT / "data" / "toy_models")
    for path in (path for path in NOTEBOOKS if "03" <= path.stem[:2] <= "12"):
        scope = {"display": lambda *shown: None}
        cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
        with pytest.raises(ValueError) as missing:
            for number, cell in enumerate(cells[:-1]):
                exec(compile(cell.source, path.name, "exec"), scope)
                if number == 0:
                    scope |= presets.load_preset("smoke", path.stem)
        told = str(missing.value)
        named = re.findall(r"notebook (\d\d)", told)
        assert named and max(named) < path.stem[:2], (path.stem, told)
        assert "\n" not in told and "--with-needs runs it first" in told, (path.stem, told)


@pytest.mark.slow
def test_the_smoke_preset_runs_and_its_table_has_the_numbers(clean_project, tmp_path, monkeypatch):
    """The whole course on a world of seconds, through the command a user types."""
    vau = Path(sys.executable).with_name("vau")
    monkeypatch.setenv("VAU_PROJECT", str(clean_project))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([vau, "run", "smoke", "--workers", "2"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-1500:]
    for path in NOTEBOOKS:
        executed = read(clean_project / "data" / "runs" / "smoke" / path.name)
        figures = [o for c in executed.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
        assert figures, f"{path.stem} shows no figure"
    from vau_lib.workspace import notebook_runs

    table = notebook_runs.table("smoke").set_index("notebook")
    assert len(table) == len(NOTEBOOKS) and set(table["failed"]) <= {""}
    assert table.loc["01_data_prep", "leaks"] == 0 and table.loc["01_data_prep", "skipped"] == 0
    assert table.loc["12_evaluation", "methods"] >= 8
    written = hivau.read_samples(clean_project / "data" / "instructions" / "smoke" / "closeups.jsonl", strict=True)
    assert table.loc["08_instruction_data", "closeup_rows"] == len(written) > 0
    assert table.loc["09_lora_vlm_finetuning", "rows"] == sum(row.split == "train" for row in written), "09 tunes on 08's rows"


NAMES = {  # of data sets, papers, files and machines; each is cited where it stands
    "UCF", "XD", "UCA", "COCO", "MOTChallenge", "SmartHome", "ImageNet", "VadCLIP", "HolmesVAU", "UR", "DMU",
    "FLAP", "LLM", "McNeil", "README", "GPUs",
}  # fmt: skip


def test_abbreviations_of_the_prose_stand_in_the_glossary():
    glossary, unknown = (ROOT / "GLOSSARY.md").read_text(), set()
    for path in NOTEBOOKS:
        for cell in read(path).cells:
            if cell.cell_type == "markdown":
                prose = re.sub(r"## References.*|```.*?```|`[^`]*`", "", cell.source, flags=re.S)
                unknown |= {word for word in re.findall(r"\b[A-Z][A-Za-z]*[A-Z]+\w*\b", prose) if word not in glossary}
    assert unknown <= NAMES, unknown - NAMES

"""Badges lead to the notebook's own place, are written once, and the set-up cell installs only where the library is missing."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_notebooks import test_anatomy as check_anatomy
from typer.testing import CliRunner

from vau_lib.cli import app
from vau_lib.publish import badges

ROOT = Path(__file__).parents[1]
NAMES = ("00_start_here", "06_lshma_streaming")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two of the notebooks as they are committed."""
    (tmp_path / "notebooks").mkdir()
    for name in NAMES:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "notebooks")
    monkeypatch.setenv("VAU_PROJECT", str(tmp_path))
    return tmp_path


def setup_of(path):
    (cell,) = [cell for cell in nbformat.read(path, as_version=4).cells if cell.metadata.get("tags") == ["setup"]]
    return cell.source


def test_badges_lead_to_the_notebook_and_a_second_call_replaces_them(project):
    paths = [project / "notebooks" / f"{name}.ipynb" for name in NAMES]
    before = [path.read_text() for path in paths]
    done = CliRunner().invoke(app, ["badges", "me/vau-fork"])
    assert done.exit_code == 0 and done.stdout.startswith("2 of 2 notebooks changed"), done.output
    for path in paths:
        place = f"me/vau-fork/blob/main/notebooks/{path.name}"
        first = nbformat.read(path, as_version=4).cells[0].source
        links = re.findall(r"\]\(([^)]+)\)", first.splitlines()[2])
        assert f"https://colab.research.google.com/github/{place}" in links
        assert f"https://kaggle.com/kernels/welcome?src=https://github.com/{place}" in links
        check_anatomy(path)
    assert CliRunner().invoke(app, ["badges", "me/vau-fork"]).stdout.startswith("0 of 2")
    assert CliRunner().invoke(app, ["badges", "you/other", "--branch", "dev"]).exit_code == 0
    for path, old in zip(paths, before, strict=True):
        text = path.read_text()
        assert "me/vau-fork" not in text and text.count("blob/dev/") == 2 and text.count('"id": "setup"') == 1
        cells, were = nbformat.reads(text, as_version=4).cells, nbformat.reads(old, as_version=4).cells
        assert [cell.source for cell in cells[2:]] == [cell.source for cell in were[1:]]
        assert cells[0].source.replace(cells[0].source.splitlines()[2] + "\n\n", "") == were[0].source


@pytest.mark.parametrize("name", ["me", "me/x/y", "me/x)](http://a", "../x", ""])
def test_what_is_no_repository_is_one_line(project, name):
    done = CliRunner().invoke(app, ["badges", name])
    assert done.exit_code == 1 and "a repository is OWNER/NAME" in done.stderr and done.stderr.count("\n") == 1


def test_the_set_up_cell_does_nothing_where_the_library_is(project, monkeypatch, tmp_path):
    badges.write("me/x")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it must not run anything"))
    exec(setup_of(project / "notebooks" / "00_start_here.ipynb"), {})


def test_the_set_up_cell_fetches_installs_and_moves_there(project, monkeypatch, tmp_path):
    """A clone is made of a repository on this machine; pip is asked and not run."""
    origin = tmp_path / "origin"
    (origin / "notebooks").mkdir(parents=True)
    (origin / "vau_lib").mkdir()
    (origin / "vau_lib" / "__init__.py").write_text("found = 7\n")
    (origin / "notebooks" / "a.txt").write_text("a")
    git = ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    badges.write("me/x")
    source, asked, run = setup_of(project / "notebooks" / "00_start_here.ipynb"), [], subprocess.run
    (tmp_path / "machine").mkdir()
    monkeypatch.chdir(tmp_path / "machine")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        subprocess, "run", lambda words, check: run(words, check=check) if words[0] == "git" else asked.append(words)
    )
    exec(source.replace("https://github.com/me/x", origin.as_uri()), {})
    assert asked == [[sys.executable, "-m", "pip", "install", "-q", "--editable", "./vau"]]
    assert Path.cwd() == tmp_path / "machine" / "vau" / "notebooks" and Path("a.txt").exists()
    assert (Path(sys.path[0]) / "vau_lib" / "__init__.py").read_text() == "found = 7\n"


def test_the_lowest_torch_is_what_the_documents_name():
    text = (ROOT / "pyproject.toml").read_text()
    floor = re.search(r'"torch>=([\d.]+)', text)[1]
    assert f"torch {floor} or newer" in (ROOT / "README.md").read_text()

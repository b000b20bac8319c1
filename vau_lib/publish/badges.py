"""Badges that open the notebooks in Colab and Kaggle, and the cell that sets such a machine up.

- a badge needs the public address of a clone: `vau badges OWNER/NAME` writes them, a second call replaces what the first wrote
- the set-up cell does nothing where the library is installed; elsewhere it fetches the clone and installs it (a torch that is new
  enough stays)
- Colab and Kaggle read notebooks of GitHub; for a clone elsewhere the cell alone is of use
"""

import re
from pathlib import Path

from vau_lib.workspace import artifacts, presets

COLAB = "https://colab.research.google.com"
KAGGLE = "https://kaggle.com"
BADGES = (
    f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{{place}}) "
    f"[![Open in Kaggle]({KAGGLE}/static/images/open-in-kaggle.svg)]({KAGGLE}/kernels/welcome?src=https://github.com/{{place}})"
)
SETUP = """
# In Colab and Kaggle: fetch the clone and install it, once a machine, minutes. Where the library is installed: nothing.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("vau_lib") is None:
    subprocess.run(["git", "clone", "-q", "--depth", "1", "--branch", "{branch}", "{address}", "vau"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--editable", "./vau"], check=True)
    sys.path.insert(0, os.path.abspath("vau"))
    os.chdir("vau/notebooks")
"""


def write(repository: str, branch: str = "main") -> list[Path]:
    """Put badges below the title of every notebook and the set-up cell behind it; return the notebooks that changed.

    `repository` is OWNER/NAME on GitHub; ValueError for anything else.
    """
    if not re.fullmatch(r"[\w-]+/[\w.-]+", repository, flags=re.A):
        raise ValueError(f"a repository is OWNER/NAME, got {artifacts.one_line(repository, 80)!r}")
    if not re.fullmatch(r"[\w./-]+", branch, flags=re.A):
        raise ValueError(f"no branch is called {artifacts.one_line(branch, 80)!r}")
    changed = []
    for path in presets.notebooks().values():
        notebook = presets.read_notebook(path)
        before = artifacts.json_line(notebook)
        with_badges(notebook, f"{repository}/blob/{branch}/notebooks/{path.name}")
        with_setup(notebook, f"https://github.com/{repository}", branch)
        if artifacts.json_line(notebook) != before:
            artifacts.write_json(path, notebook)
            changed.append(path)
    return changed


def with_badges(notebook: dict, place: str) -> None:
    """Put the badges of a place (OWNER/NAME/blob/BRANCH/FILE) below the title, in place of those that are there."""
    title, *rest = "".join(notebook["cells"][0]["source"]).split("\n")
    rest = [line for line in rest if "colab-badge.svg" not in line]
    while rest and not rest[0]:
        rest.pop(0)
    notebook["cells"][0]["source"] = "\n".join([title, "", BADGES.format(place=place), "", *rest]).splitlines(keepends=True)


def with_setup(notebook: dict, address: str, branch: str) -> None:
    """Put the set-up cell behind the first cell, in place of the one that is there."""
    cells = [cell for cell in notebook["cells"] if cell.get("id") != "setup"]
    source = SETUP.strip().format(address=address, branch=branch).splitlines(keepends=True)
    cell = {"cell_type": "code", "execution_count": None, "id": "setup", "metadata": {"tags": ["setup"]}, "outputs": []}
    notebook["cells"] = [cells[0], cell | {"source": source}, *cells[1:]]

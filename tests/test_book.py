"""The course as pages: a small book of executed notebooks is built whole, without a warning and without a dead link."""

import ast
import re
import shutil

import pytest
from test_gallery import HOSTILE, executed, png, recorded, shown
from tiny_project import make_project
from typer.testing import CliRunner

from vau_lib.cli import app
from vau_lib.publish import book
from vau_lib.workspace import presets

WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": "100%"}
PLAYER = {**WIDGET, "text/html": "<iframe srcdoc='x'></iframe>"}
WORDS = {"output_type": "stream", "name": "stdout", "text": "three clips\n"}
NOISE = {"output_type": "stream", "name": "stderr", "text": "a progress bar\n"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(make_project(tmp_path)))
    return tmp_path


def test_a_page_keeps_what_was_printed_and_drawn_and_no_widget(project):
    outputs = [shown(WIDGET), NOISE, WORDS, shown({"image/png": png()}, "a title"), shown(PLAYER), recorded(frame_auc=0.5)]
    page = book.page_of(executed(project, "01_first", *outputs))
    place, code = page["cells"][-2:]
    kinds = [sorted(output.get("data", {"text": 0})) for output in code["outputs"]]
    assert kinds == [["text"], ["image/png", "text/plain"], ["text/html", "text/plain"], ["text/plain"]]
    assert code["outputs"][0] == WORDS and place["cell_type"] == "markdown" and 'id="figure-1"' in place["source"]
    assert set(page["metadata"]) == {"kernelspec", "language_info"}


SIGNS = """Return what stands under [this](that), <b>never</b> as markup; `x * y` stays code.

- a list
  that goes on
the end of it

    drawn -> with [spaces]

Args:
    first, second: one_two *three*
        and more
    third: the last
"""


def test_a_docstring_is_text_with_its_lists_and_drawings():
    node = ast.parse(f'def f():\n    """{SIGNS}"""').body[0]
    lines = book.docstring(node).splitlines()
    assert lines[0] == r"Return what stands under \[this\](that), \<b\>never\</b\> as markup; `x * y` stays code."
    assert lines[2:6] == ["- a list", "  that goes on", "", "the end of it"] and "    drawn -> with [spaces]" in lines
    assert lines[-3:] == [r"- `first, second`: one\_two \*three\*", "  and more", "- `third`: the last"]


def test_dead_links_are_named(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here">x</a><a href="b.html#gone">y</a><img src="c.png"><a href="#top">t</a>')
    (tmp_path / "b.html").write_text('<p id="here"><a href="https://example.org/x">w</a><a href="a.html">a</a></p>')
    assert book.dead_links(tmp_path) == ["a.html: b.html#gone", "a.html: c.png"]


def test_what_a_book_needs_is_said(project, monkeypatch):
    monkeypatch.setattr(book.importlib.util, "find_spec", lambda name: None)
    assert "the book needs sphinx, myst_nb, furo: pip install" in CliRunner().invoke(app, ["book", "tiny"]).stderr
    monkeypatch.setattr(book.importlib.util, "find_spec", lambda name: name)
    assert CliRunner().invoke(app, ["book", "tiny"]).stderr == "vau: nothing of tiny has run: vau run tiny\n"


def test_a_book_is_built_of_what_ran(project, monkeypatch):
    for package in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(package, reason=f"needs {package}: pip install -e '.[book]'")
    root = book.Path(__file__).parents[1]
    (project / "data" / "results").mkdir(parents=True)
    shutil.copy(root / "GLOSSARY.md", project)
    item = "{item: Table 1, shows: a | b, state: here, at: ['01', vau_lib/x.py]}"
    (project / "data" / "results" / "atlas.yaml").write_text(f"- source: A\n  items:\n    - {item}\n")
    library = project / "library"  # two rooms are enough here
    for part in ("", "plots", "evaluation"):
        (library / part).mkdir(parents=True)
        for file in (root / "vau_lib" / part).glob("*.py"):
            shutil.copy(file, library / part)
    monkeypatch.setattr(book, "LIBRARY", library)
    executed(
        project,
        "01_first",
        shown(WIDGET),
        WORDS,
        shown({"text/markdown": "See [the end](03_third.ipynb) and [what did not run](02_second.ipynb).", "text/plain": "x"}),
        shown({"image/png": png()}, HOSTILE),
        recorded(frame_auc=0.5),
        heading="# 01 · A question?",
    )
    executed(
        project,
        "03_third",
        shown({"image/png": png()}, "b"),
        heading="# 03 · The end?",
        failed="In [1]: ValueError: clip 5 is *empty*",
    )
    done = CliRunner().invoke(app, ["book", "tiny"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "look at data/runs/tiny/book/index.html\n"
    pages = {path.name: path.read_text() for path in book.place("tiny").rglob("*.html")}
    assert {"gallery.html", "glossary.html", "atlas.html", "vau_lib.plots.html", "01_first.html"} <= pages.keys()
    for words in ("show the run", "tiny", "Not run: 02_second", "clip 5 is *empty*", "abc1234", "torch 9.9"):
        assert words in pages["index.html"], words
    assert 'href="notebooks/03_third.html#figure-1"' in pages["gallery.html"] and "<script>alert" not in pages["gallery.html"]
    assert "three clips" in pages["01_first.html"] and 'href="notebooks/01_first.html"' in pages["atlas.html"]
    assert 'href="03_third.html"' in pages["01_first.html"] and "and what did not run." in pages["01_first.html"]
    assert "frame AUC" in pages["glossary.html"] and "frame_auc_macro" in pages["vau_lib.evaluation.html"]
    outside = [link for page in pages.values() for link in re.findall(r'(?:src|href)="(https?://[^"]+)"', page)]
    assert not [link for link in outside if link.endswith((".js", ".css", ".png"))]  # nothing is fetched from elsewhere
    (project / "GLOSSARY.md").write_text("# Glossary\n\n[gone](nowhere.md)\n")
    broken = CliRunner().invoke(app, ["book", "tiny"])
    assert broken.exit_code == 1 and "nowhere.md" in broken.stderr, broken.stderr
    assert book.place("tiny").joinpath("glossary.html").read_text() == pages["glossary.html"]  # the last good book stays


def test_every_room_and_module_of_the_library_has_its_place():
    pages = dict(book.api_pages(book.LIBRARY))
    for path in book.LIBRARY.rglob("[a-z]*.py"):
        room = ".".join(path.relative_to(book.LIBRARY.parent).parts[:-1])
        assert f"## {room}.{path.stem}\n".replace("_", "\\_") in pages[room], path
    assert "### density\\_aware\\_sample\n\n```python\ndef density_aware_sample(" in pages["vau_lib.detectors"]


def test_the_worked_solutions_run_and_are_of_exercises_that_exist():
    page = book.solutions(presets.project() / book.SOLUTIONS)
    numbers = re.findall(r"^## (\d\d)\.(\d) · ", page, flags=re.M)
    assert len(numbers) == len(set(numbers)) == 42 and sorted(numbers) == numbers
    for notebook, exercise in numbers:
        cells = presets.read_notebook(presets.notebooks()[presets.full_name(notebook)])["cells"]
        (text,) = ["".join(cell["source"]) for cell in cells if "## Exercises" in "".join(cell["source"])]
        assert re.search(rf"^{exercise}\. \*\*", text.partition("## Exercises")[2], flags=re.M), (notebook, exercise)
    assert page.count("```text") >= len(numbers)  # each one printed something


def test_a_solution_that_fails_is_named(tmp_path):
    (tmp_path / "s.py").write_text("# %% [markdown]\n# ## 00.1 · A knob\n# Words.\n\n# %%\nassert 1 == 2, 'not so'\n")
    with pytest.raises(presets.RunError, match="the solution '00.1 · A knob' fails: AssertionError"):
        book.solutions(tmp_path)
    assert book.solutions(tmp_path / "none") == ""

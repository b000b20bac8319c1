"""The gallery of a run is one page without scripts: figures in the course's order, what failed, nothing of a notebook as markup."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from tiny_project import make_project, write_notebook
from typer.testing import CliRunner

from vau_lib.cli import app
from vau_lib.plots import ranking, style
from vau_lib.workspace import gallery, notebook_runs, presets

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
TAGS = set("html head meta title style body header nav section h1 h2 p a span div figure figcaption small img".split())
TAGS |= set("table caption tr th td dl dt dd".split())
ATTRIBUTES = {"lang", "charset", "name", "content", "http-equiv", "class", "id", "href", "src", "alt", "loading"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(make_project(tmp_path)))
    return tmp_path


class Page(HTMLParser):
    """The tags, attributes and visible words of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, name):
        return [value for key, value in self.attributes if key == name]


def png(colour=(200, 30, 30), size=(40, 20)):
    kept = io.BytesIO()
    Image.new("RGB", size, colour).save(kept, "PNG")
    return base64.b64encode(kept.getvalue()).decode()


def shown(data, text="<Figure size 10x10 with 1 Axes>"):
    return {"output_type": "display_data", "metadata": {}, "data": {**data, "text/plain": text}}


def recorded(**metrics):
    return shown({notebook_runs.RECORD: metrics}, "recorded")


def executed(project, name, *outputs, preset="tiny", cell="c1", heading="## 1 · A claim", failed=""):
    """Write an executed copy with these outputs in one code cell, stamped as `vau run` stamps it."""
    source = json.loads((project / "notebooks" / f"{name.partition('@')[0]}.ipynb").read_text())
    timing = {"start_time": "2026-01-01T00:00:00+00:00", "end_time": "2026-01-01T00:00:07+00:00"}
    cells = [{"cell_type": "markdown", "id": "h", "metadata": {}, "source": heading}]
    cells.append({"cell_type": "code", "id": cell, "metadata": {"papermill": timing}, "source": "draw()",
                  "execution_count": 1, "outputs": list(outputs)})  # fmt: skip
    stamp = {"preset": preset, "parameters": {}, "code": "", "commit": "abc1234", "failed": failed, "ended": timing["end_time"]}
    facts = {"papermill": {**timing, "duration": 7.0}, "vau": {**stamp, "versions": {"torch": "9.9"}}}
    path = project / "data" / "runs" / preset / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**source, "cells": cells, "metadata": facts}))
    return path


def check(path):
    """Parse a gallery and hold what every one promises; return it."""
    page = Page(path)
    assert set(page.tags) <= TAGS and {key for key, _ in page.attributes} <= ATTRIBUTES
    assert all(address.startswith("data:image/webp;base64,") for address in page.all("src"))
    anchors = page.all("id")
    assert len(anchors) == len(set(anchors))
    for link in page.all("href"):
        assert link[1:] in anchors if link.startswith("#") else (path.parent / unquote(link)).is_file(), link
    return page


def test_nothing_of_a_notebook_becomes_markup(project):
    write_notebook(project, "01_first", "note: str = ''", "1", title=f"# 01 · {HOSTILE}")
    (project / "data" / "runs" / "tiny" / "results").mkdir(parents=True)
    table = project / "data" / "runs" / "tiny" / "results" / "t.csv"
    table.write_text(f'level,method,<b>auc</b>\nvideo,"{HOSTILE}",0.5\nvideo,other,0.25\n')
    figure, _ = style.subplots()
    figure.suptitle(HOSTILE)
    outputs = [shown({"image/png": png()}, repr(figure)), shown({"image/png": png()})]
    outputs += [shown({"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{HOSTILE}</svg>"}, HOSTILE)]
    outputs += [recorded(**{"results": "data/runs/tiny/results/t.csv", HOSTILE: HOSTILE})]
    executed(project, "01_first", *outputs, heading=f"## {HOSTILE}", failed=f"In [1]: \x1b[31m{HOSTILE}\x1b[0m")
    executed(project, "01_first@note='\"><script>", shown({"image/png": png()}))
    page = check(gallery.write("tiny"))
    assert page.text.count(HOSTILE) >= 7 and "\x1b" not in page.text and "<b>auc</b>" in page.text
    assert page.all("alt") == [HOSTILE, HOSTILE]  # the figure's own title, then its heading
    assert "script-src" not in str(page.attributes) and any("default-src 'none'" in (v or "") for _, v in page.attributes)


def test_pictures_are_in_the_page_as_they_were_drawn(project):
    executed(project, "01_first", shown({"image/png": png((10, 120, 200), (3000, 300))}))
    (address,) = check(gallery.write("tiny")).all("src")
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert image.size == (1400, 140) and np.abs(np.asarray(image, int) - (10, 120, 200)).max() <= 6


BROKEN = {"no base64": "no base64 ☃", "cut": png()[:60], "empty": "", "noise": base64.b64encode(b"x" * 99).decode()}


@pytest.mark.parametrize("data", [*({"image/png": value} for value in BROKEN.values()), {"image/svg+xml": "<svg/>"}])
def test_a_picture_that_cannot_be_shown_is_named(project, data):
    executed(project, "01_first", shown(data, "a title"), shown({"image/png": png()}, "another"))
    page = check(gallery.write("tiny"))
    assert page.all("alt") == ["another"] and "a title" in page.text and "missing here" in page.text


def test_a_page_without_figures_and_a_broken_copy_say_so(project):
    executed(project, "01_first")
    (project / "data" / "runs" / "tiny" / "02_second.ipynb").write_text('{"cells": [')
    page = check(gallery.write("tiny"))
    assert "No figure." in page.text and "unfinished" in page.text and "Not run: 03_third" in page.text


def test_a_preset_that_never_ran_gives_a_page(project):
    page = check(gallery.write("tiny"))
    assert "0 of 3 notebooks finished" in page.text and "Not run: 01_first, 02_second, 03_third" in page.text


def test_figures_are_in_the_courses_order_and_the_best_on_top(project):
    for name, colour in (("03_third", "c"), ("01_first", "a"), ("02_second", "b")):
        executed(project, name, shown({"image/png": png()}, f"{colour}1"), shown({"image/png": png()}, f"{colour}2"), cell=colour)
    assert check(gallery.write("tiny")).all("alt") == ["a1", "a2", "b1", "b2", "c1", "c2"]
    (project / "params" / "gallery.yaml").write_text("lost: gone\nsecond: c\nfirst: a\n")
    page = check(gallery.write("tiny"))
    assert page.all("alt") == ["c1", "a1", "a2", "b1", "b2", "c2"] and "On top of the page: " in page.text


def test_the_page_has_results_seconds_commit_and_versions(project):
    folder = project / "data" / "results"
    folder.mkdir(parents=True)
    rows = "level,method,video_auc,frame_auc,videos\nvideo,ours,0.91,,60\nvideo,a baseline,0.80,,60\nframe,ours,,0.85,60\n"
    (folder / "tiny.csv").write_text(rows)
    executed(project, "02_second", recorded(results="data/results/tiny.csv", frame_auc=0.123456))
    page = check(gallery.write("tiny"))
    assert "tiny.csv: level video, videos 60" in page.text and "method video auc ours 0.91 a baseline 0.80" in page.text
    assert "tiny.csv: level frame method frame auc videos ours 0.85 60" in page.text and "frame_auc 0.1235" in page.text
    assert "02_second 7 done abc1234" in page.text and "torch 9.9" in page.text


@pytest.mark.parametrize("file", ["../secret.csv", "/etc/passwd", "data/none.csv", "notebooks", ""])
def test_a_table_outside_the_project_is_not_read(project, file):
    (project.parent / "secret.csv").write_text("level,method\nvideo,hidden word\n")
    executed(project, "01_first", recorded(results=file))
    page = check(gallery.write("tiny"))
    assert "hidden word" not in page.text and "Results" not in page.text


def test_a_figure_of_plots_says_its_title():
    figure = ranking.grouped(
        __import__("pandas").DataFrame({"row": ["a"], "x": [1.0]}), row="row", columns=["x"], title="A finding"
    )
    assert repr(figure) == "A finding" and repr(style.subplots()[0]).startswith("<")
    assert figure.number not in plt.get_fignums() if hasattr(figure, "number") else True


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_says_how_far_it_is_and_where_to_look(project, workers):
    (project / "params" / "needs.yaml").write_text('"02": ["01"]\n"03": ["02"]\n')
    broken = CliRunner().invoke(app, ["run", "tiny", "-p", "broken=true", "--workers", str(workers)])
    lines = broken.stdout.splitlines()
    assert broken.exit_code == 1 and re.fullmatch(r"1 of 3: 01_first \(\d+ s\): done", lines[3]), lines
    assert lines[4].startswith("2 of 3: 02_second") and "clip 5 is empty" in lines[4] and len(lines) == 6
    assert lines[5] == "look at data/runs/tiny/index.html"
    page = check(gallery.place("tiny"))
    assert "1 of 3 notebooks finished" in page.text and "ValueError: clip 5 is empty" in page.text
    whole = CliRunner().invoke(app, ["run", "tiny", "--workers", str(workers)])
    lines = whole.stdout.splitlines()
    assert whole.exit_code == 0 and lines[3].startswith("1 of 2: 02_second (") and lines[4].startswith("2 of 2: 03_third (")
    assert re.fullmatch(r"2 notebooks executed in \d+ min \d+ s; others used \d+% of \d+ cores meanwhile", lines[5])
    assert lines[6] == "look at data/runs/tiny/index.html"
    page = check(gallery.place("tiny"))
    assert (
        "3 of 3 notebooks finished" in page.text and "tripled" in page.text and 'failed"' not in gallery.place("tiny").read_text()
    )


def test_the_best_figures_of_the_course_are_cells_that_draw():
    cells = {}
    for path in presets.notebooks().values():
        cells |= {cell["id"]: cell for cell in presets.read_notebook(path)["cells"] if cell["cell_type"] == "code"}
    chosen = list(presets.best_figures().values())
    assert len(chosen) == len(set(chosen)) and not set(chosen) - cells.keys()


def test_exported_pictures_are_small_and_still_what_was_drawn(project):
    rng = np.random.default_rng(0)
    noisy = np.kron(rng.integers(0, 255, (20, 40, 3)), np.ones((6, 6, 1))).astype(np.uint8)
    kept = io.BytesIO()
    Image.fromarray(np.clip(noisy + rng.normal(0, 9, noisy.shape), 0, 255).astype(np.uint8)).save(kept, "PNG")
    executed(project, "01_first", shown({"image/png": base64.b64encode(kept.getvalue()).decode()}), cell="a")
    executed(project, "02_second", shown({"image/png": png((9, 99, 199), (150, 50))}), shown({"image/png": png()}), cell="b")
    (project / "params" / "gallery.yaml").write_text("plain: b\nlost: c\nnoise: a\n")
    plain, noise = gallery.export("tiny", project / "out", width=160, limit=3_000)
    assert (plain.name, noise.name) == ("plain.png", "noise.png") and noise.stat().st_size <= 3_000
    image = Image.open(plain).convert("RGB")
    assert image.size == (150, 50) and np.abs(np.asarray(image, int) - (9, 99, 199)).max() <= 2  # the first picture of its cell
    width, height = Image.open(noise).size
    assert 40 <= width < 160 and abs(width - 2 * height) <= 2


@pytest.mark.parametrize("text", ["best: [a, b]\n", "a b: c\n", "../x: c\n"])
def test_a_list_of_best_figures_that_will_not_do_is_named(project, text):
    (project / "params" / "gallery.yaml").write_text(text)
    with pytest.raises(presets.RunError, match=r"params/gallery.yaml: give lines `name: cell id`, got"):
        presets.best_figures()


def test_the_pictures_of_the_readme_are_small_and_of_the_gallery():
    readme = (presets.project() / "README.md").read_text()
    linked = re.findall(r"!\[([^\]]*)\]\((data/[^)]+)\)", readme)
    assert len(linked) == 5
    for words, place in linked:
        assert len(words) > 20 and (presets.project() / place).stat().st_size <= 150_000, place
        assert Path(place).stem in presets.best_figures(), f"{place} is not of params/gallery.yaml"

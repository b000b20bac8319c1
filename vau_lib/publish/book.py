"""The course as pages: a static site of a preset's executed notebooks, built by Sphinx and MyST-NB (extra `book`).

- the pages show what lies in data/runs/<preset>: a smoke run and a stopped run give a book too, which says what it is of
- outputs come from the copies and API pages from the docstrings; only the worked solutions run, nothing is fetched
- a warning of Sphinx and a link that leads nowhere fail the build; `write` leaves the last good book where it was
"""

import ast
import base64
import contextlib
import html
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vau_lib.evaluation import atlas
from vau_lib.workspace import artifacts, gallery, notebook_runs, presets

LIBRARY = Path(__file__).parents[1]  # whose docstrings are shown
THUMBNAIL = (420, 300)  # pixels of a picture in the gallery
SOLUTIONS = "notebooks/solutions"  # files of text and code by turns, marked by lines `# %%`
KEPT = ("text/html", "image/png", "image/jpeg", "image/svg+xml", "text/plain", "text/markdown")  # outputs a page shows
CONF = """
project = "Video anomaly understanding"
html_title = "Video anomaly understanding"
extensions = ["myst_nb"]
nb_execution_mode = "off"
highlight_language = "none"
html_theme = "furo"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["book.css"]
exclude_patterns = ["_static"]
"""
CSS = """
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 16px; margin: 12px 0 28px; }
.gallery a { display: block; color: inherit; text-decoration: none; font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
.gallery img { width: 100%; height: 170px; object-fit: contain; background: #fff; border: 1px solid #dbe1e6; border-radius: 4px; }
.cell_output { overflow-x: auto; } .cell_output video { max-width: 100%; }
article table { font-size: 13px; } .figure-place { display: block; scroll-margin-top: 5rem; }
"""


def place(preset: str) -> Path:
    """Return the folder of a preset's book; its first page is index.html."""
    return notebook_runs.copies(preset) / "book"


def write(preset: str) -> Path:
    """Build the book of a preset's executed notebooks; return its first page.

    RunError without an executed notebook, with a warning of Sphinx and with a link that leads nowhere; ImportError without the
    extra `book`.
    """
    if missing := [name for name in ("sphinx", "myst_nb", "furo") if importlib.util.find_spec(name) is None]:
        raise ImportError(f"the book needs {', '.join(missing)}: pip install -e '.[book]'")
    runs = [path for path in sorted(notebook_runs.copies(preset).glob("[0-9][0-9]_*.ipynb")) if "@" not in path.stem]
    if not runs:
        raise presets.RunError(f"nothing of {preset} has run: vau run {preset}")
    with tempfile.TemporaryDirectory(prefix="vau-book-") as folder:
        source, built = Path(folder) / "source", Path(folder) / "book"
        _write_sources(source, preset, runs)
        wrong = _sphinx(source, built) or dead_links(built)
        if wrong:
            raise presets.RunError(f"the book has {len(wrong)} fault{'s' * (len(wrong) != 1)}, the first: {wrong[0]}")
        shutil.rmtree(place(preset), ignore_errors=True)
        shutil.copytree(built, place(preset))
    return place(preset) / "index.html"


def _sphinx(source: Path, built: Path) -> list[str]:
    """Build HTML pages; return Sphinx's warnings, one line each."""
    command = [sys.executable, "-m", "sphinx", "-q", "--no-color", "-d", str(built.parent / "trees"), str(source), str(built)]
    done = subprocess.run(command, capture_output=True, text=True)  # a process of its own: Sphinx cannot build twice in one
    shutil.rmtree(built / "jupyter_execute", ignore_errors=True)
    lines = [artifacts.one_line(line) for line in done.stderr.splitlines() if line.strip()]
    return lines or [f"Sphinx ended with {done.returncode}"] * bool(done.returncode)


# Pages


def _write_sources(source: Path, preset: str, runs: list[Path]) -> None:
    (source / "_static").mkdir(parents=True)
    (source / "conf.py").write_text(CONF, encoding="utf-8")
    (source / "_static" / "book.css").write_text(CSS, encoding="utf-8")
    for path in runs:
        artifacts.write_json(source / "notebooks" / path.name, page_of(path, [run.stem for run in runs]))
    glossary = presets.project() / "GLOSSARY.md"
    parts = {
        "gallery": _gallery(source, runs),
        "solutions": solutions(presets.project() / SOLUTIONS),
        "glossary": glossary.read_text(encoding="utf-8") if glossary.exists() else "",
        "atlas": _atlas([path.stem for path in runs]),
        **{f"api/{room}": text for room, text in api_pages(LIBRARY)},
    }
    for name, text in parts.items():
        if text:
            (source / name).parent.mkdir(exist_ok=True)
            (source / f"{name}.md").write_text(text, encoding="utf-8")
    (source / "index.md").write_text(_index(preset, runs, [name for name, text in parts.items() if text]), encoding="utf-8")


def page_of(path: Path, pages: Sequence[str] = ()) -> dict:
    """Return an executed copy as a page shows it: outputs without widgets and progress bars, a target before each figure.

    `pages` are the notebooks the book has: links to others in an output become text.
    """
    notebook, cells, number = presets.read_notebook(path), [], 0
    for cell in notebook["cells"]:
        source = "".join(cell.get("source", ""))
        kept = {"cell_type": cell["cell_type"], "id": str(cell.get("id", f"cell-{len(cells)}")), "metadata": {}, "source": source}
        if cell["cell_type"] == "code":
            outputs = [shown for output in cell["outputs"] if (shown := _output(output, pages))]
            for output in cell["outputs"]:
                if any(kind.startswith("image/") for kind in output.get("data") or {}):
                    number += 1
                    cells.append(_markdown(f'<span class="figure-place" id="{_anchor(number)}"></span>', f"place-{number}"))
            kept |= {"execution_count": cell.get("execution_count"), "outputs": outputs}
        cells.append(kept)
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _anchor(number: int) -> str:
    return f"figure-{number}"


def _markdown(source: str, name: str) -> dict:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def _output(output: dict, pages: Sequence[str]) -> dict | None:
    """Return an output without what a page cannot show, None where nothing is left."""
    if output["output_type"] == "stream":
        return None if output.get("name") == "stderr" else output  # stderr holds progress bars and warnings of libraries
    if output["output_type"] == "error":
        return output
    data = output.get("data") or {}
    if "application/vnd.jupyter.widget-view+json" in data and "text/html" not in data:
        return None
    kept = {kind: value for kind, value in data.items() if kind in KEPT}
    if "text/markdown" in kept:  # links of cells are Sphinx's, those of outputs nobody's
        page = lambda link: f"[{link[1]}]({link[2]}.html)" if link[2] in pages else link[1]  # noqa: E731
        kept["text/markdown"] = re.sub(r"\[([^\]]*)\]\((\w+)\.ipynb\)", page, "".join(kept["text/markdown"]))
    return {**output, "data": kept, "metadata": {}} if kept else None


def _index(preset: str, runs: list[Path], parts: list[str]) -> str:
    facts = {path.stem: notebook_runs.facts(path) for path in runs}
    failed = {name: fact["own"]["failed"] for name, fact in facts.items() if fact["own"]["failed"]}
    ended = max(fact["ended"] for fact in facts.values())[:16]
    commits = ", ".join(sorted({fact["own"]["commit"] for fact in facts.values() if fact["own"]["commit"]}))
    versions = next((fact["versions"] for fact in facts.values() if fact["versions"]), {})
    used = [f"the last one ended {_plain(ended) or 'at an unknown time'} UTC", f"commit {_plain(commits) or 'unknown'}"]
    used += [f"{_plain(name)} {_plain(version)}" for name, version in versions.items()]
    missing = sorted(set(presets.members(preset)) - set(facts))
    lines = [
        "# Video anomaly understanding",
        "Notebooks for four published systems (MemTSM-Net, LSHMA, Holmes-VAU, Memories-S0), with one honest evaluation.",
        f"**These pages show the run `{_plain(preset)}`**: {len(facts)} notebooks, " + ", ".join(used) + ".",
        *(["A smoke run is made to end in minutes: its numbers say that the code runs, nothing else."] * (preset == "smoke")),
        *([f"Not run: {', '.join(missing)}."] * bool(missing)),
        *(f"Failed: {name}, {_plain(why)}" for name, why in failed.items()),
        _toctree("Course", [f"notebooks/{path.stem}" for path in runs]),
        _toctree("Pages", [part for part in parts if not part.startswith("api/")]),
        _toctree("Library", [part for part in parts if part.startswith("api/")]),
    ]
    return "\n\n".join(lines) + "\n"


def _toctree(caption: str, pages: list[str]) -> str:
    return f"## {caption}\n\n```{{toctree}}\n:maxdepth: 1\n\n" + "\n".join(pages) + "\n```"


def _gallery(source: Path, runs: list[Path]) -> str:
    parts = ["# Gallery\n\nEvery figure of the run; a click leads to its place in the notebook."]
    for path in runs:
        links = [
            f'<a href="notebooks/{path.stem}.html#{_anchor(picture.number)}"><img alt="{gallery.text(picture.title)}" '
            f'src="{_thumbnail(source, path.stem, picture)}" loading="lazy">{gallery.text(picture.title, 120)}</a>'
            for picture in gallery.pictures(path)
            if picture.address
        ]
        if links:
            title = _plain(_title(path))
            parts.append(f'## {title}\n\n```{{raw}} html\n<div class="gallery">\n' + "\n".join(links) + "\n</div>\n```")
    return "\n\n".join(parts) + "\n"


def _thumbnail(source: Path, name: str, picture: gallery.Picture) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(picture.address.partition(",")[2]))) as image:
        image.thumbnail(THUMBNAIL)
        file = source / "_static" / f"{name}-{picture.number}.webp"
        image.convert("RGB").save(file, "WEBP", quality=80)
    return f"_static/{file.name}"


def _title(path: Path) -> str:
    first = presets.read_notebook(path)["cells"][:1]
    return "".join(first[0]["source"]).strip().split("\n")[0].lstrip("# ") if first else path.stem


def solutions(folder: Path) -> str:
    """Return the worked solutions of a folder's files as a page: each cell is executed, and stands above what it printed.

    A file's code runs in one namespace, from top to bottom. RunError names the heading under which a cell failed; "" without files.
    """
    return "\n".join(_solutions(path) for path in sorted(folder.glob("*.py")))


def _solutions(path: Path) -> str:
    parts, names, heading = [], {}, ""
    for cell in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.M))
            heading = parts[-1].splitlines()[0].lstrip("# ")
            continue
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(body, str(path), "exec"), names)
        except Exception as error:
            raise presets.RunError(f"the solution {heading!r} fails: {artifacts.one_line(repr(error))}") from error
        parts.append(f"```python\n{body.strip()}\n```")
        parts += [f"```text\n{printed.getvalue().rstrip()}\n```"] * bool(printed.getvalue())
    return "\n\n".join(parts) + "\n"


def _atlas(names: list[str]) -> str:
    file = presets.project() / "data" / "results" / "atlas.yaml"
    if not file.exists():
        return ""
    items = atlas.read(file)
    counts = items["state"].map(atlas.STATES).value_counts()
    return (
        "# Atlas: every table and figure of the four papers\n\n"
        + "; ".join(f"{count} {state}" for state, count in counts.items())
        + ". What is made here is of other data than the paper's, and its notebook says so.\n\n"
        + atlas.as_markdown(items, {name[:2]: f"notebooks/{name}.ipynb" for name in names})
        + "\n"
    )


# API pages


def api_pages(library: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, page) of the modules beside the rooms and of each room, from the text of the files alone."""
    beside = [path for path in sorted(library.glob("[a-z]*.py"))]
    yield "vau_lib", _room("vau_lib", library / "__init__.py", beside)
    for room in sorted(path for path in library.iterdir() if (path / "__init__.py").exists()):
        yield f"vau_lib.{room.name}", _room(f"vau_lib.{room.name}", room / "__init__.py", sorted(room.glob("[a-z]*.py")))


def _room(name: str, note: Path, files: list[Path]) -> str:
    parts = [f"# {name}", docstring(ast.parse(note.read_text(encoding="utf-8")))]
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts += [f"## {_plain(f'{name}.{path.stem}')}", docstring(tree), *_members(tree.body, "###")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _members(body: list[ast.stmt], level: str) -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            head = f"class {node.name}" + (f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else "")
            fields = [f"    {ast.unparse(line)}" for line in node.body if isinstance(line, ast.AnnAssign)]
        else:
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            head, fields = f"def {node.name}({ast.unparse(node.args)}){returns}", []
        yield f"{level} {_plain(node.name)}\n\n```python\n" + "\n".join([head, *fields]) + "\n```"
        yield docstring(node)
        if isinstance(node, ast.ClassDef):
            yield from _members(node.body, level + "#")


def docstring(node: ast.AST) -> str:
    """Return a docstring as Markdown: its lists and drawings stay, the list under `Args:` becomes one, nothing else is markup."""
    lines, inside, listed = [], False, False
    for line in (ast.get_docstring(node) or "").splitlines():
        inside = line == "Args:" or (inside and (line.startswith("    ") or not line))
        if inside and (found := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)):
            line = f"- `{found[1]}`: {_plain(found[2])}"
        elif inside and line != "Args:":
            line = f"  {_plain(line.strip())}".rstrip()
        elif not line.startswith("    "):  # four spaces begin a drawing
            bullet = "- " if line.startswith("- ") else "  " if line.startswith("  ") else ""
            ends, listed = listed and line and not bullet, bool(bullet)
            line = "\n" * bool(ends) + bullet + _plain(line[len(bullet) :])  # a list ends with its last point
        lines.append(line + "\n" * (line == "Args:"))
    return "\n".join(lines)


def _plain(text: object) -> str:
    """Return one line of text that is no markup to MyST, but for its `code`."""
    parts = re.split(r"(`[^`]*`)", str(text))
    shown = [part if part.startswith("`") and len(part) > 2 else re.sub(r"([\\*_\[\]<>|#`~{}$&])", r"\\\1", part) for part in parts]
    return re.sub(r"^(\d+)([.)])|^([-+=])", lambda found: f"{found[1] or ''}\\{found[2] or found[3]}", "".join(shown))


# Links


class _Links(HTMLParser):
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors = [], {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ("id", "name") and value:
                self.anchors.add(value)
            elif key in ("href", "src") and value:
                self.links.append(value)


def dead_links(folder: Path) -> list[str]:
    """Return "page: link" for every link between the pages of a folder whose file or place does not exist; the web is not asked."""
    pages = {path.resolve(): _Links(path) for path in sorted(folder.rglob("*.html"))}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            known = pages[target].anchors if target in pages else {parts.fragment}
            if not target.exists() or unquote(parts.fragment) not in known:
                dead.append(f"{path.relative_to(folder.resolve())}: {html.unescape(link)[:200]}")
    return dead

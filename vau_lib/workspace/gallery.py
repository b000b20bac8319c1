"""A gallery of a preset's run: one HTML file with its figures, its results, what ran and what failed.

- every figure lies inside the page, which so works offline and can be mailed; links to executed notebooks are relative
- nothing of a notebook reaches the page as markup: texts are escaped, pictures decoded and encoded anew, scripts forbidden
- a run that stopped, a preset that has run in part and a picture that cannot be read give a page too, which says so
"""

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vau_lib.workspace import artifacts, formats, notebook_runs, presets

RASTER = ("image/png", "image/jpeg", "image/gif")  # an SVG is a document that may hold scripts: it stays in its notebook
WIDTH = 1400  # pixels of a picture in the page: the widest figure of the notebooks
BEST = 5  # pictures on top
DEFAULT_REPR = re.compile(r"<(Figure size .*|.* object|.* at 0x[0-9a-f]+)>")  # what Python says of a figure without a title
TERMINAL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")  # colours of a traceback, control characters
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light; --ink: #22303c; --quiet: #5b6873; --line: #dbe1e6; --bad: #b03a00; --best: #f0b429; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1240px; padding: 24px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 40px 0 8px; border-top: 1px solid var(--line); padding-top: 16px; }
a { color: #0060a0; } p, dl { margin: 6px 0; } .quiet, figcaption small { color: var(--quiet); } .bad { color: var(--bad); }
.failed, .partial { border-left: 4px solid var(--line); padding: 2px 14px; margin: 16px 0; }
.failed { border-color: var(--bad); background: #fdf3ee; }
nav a { margin-right: 12px; white-space: nowrap; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 18px; margin-top: 12px; }
.strip { grid-column: span 2; } .strip img { height: auto; max-height: 240px; }
.best { border-top: 4px solid var(--best); padding-top: 6px; grid-template-columns: repeat(auto-fill, minmax(540px, 1fr)); }
figure { margin: 0; min-width: 0; } figure img { display: block; width: 100%; height: 240px; object-fit: contain; background: #fff;
  border: 1px solid var(--line); border-radius: 4px; } .best img { height: 340px; }
@media (max-width: 800px) { .strip { grid-column: auto; } .pictures, .best { grid-template-columns: 1fr; } }
figure:target { grid-column: 1 / -1; } figure:target img { height: auto; } figure .close { display: none; }
figure:target .close { display: inline; } figcaption { margin-top: 4px; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; margin: 10px 0; }
caption { text-align: left; font-weight: 600; padding: 4px 0; } th, td { text-align: left; padding: 3px 10px 3px 0;
  vertical-align: top; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; } td.number { text-align: right; white-space: nowrap; }
dl { columns: 3 260px; font-size: 13px; } dl div { break-inside: avoid; } dt { display: inline; color: var(--quiet); }
dd { display: inline; margin: 0 0 0 6px; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Picture:
    """A figure of an executed copy: its place, its title, and its address as data ("" where it cannot be shown, see `note`)."""

    notebook: str
    cell: str
    number: int
    title: str
    address: str
    note: str = ""
    strip: bool = False  # more than three times as wide as it is high

    @property
    def anchor(self) -> str:
        return f"{_anchor(self.notebook)}-{self.number}"


def place(preset: str) -> Path:
    """Return where the gallery of a preset lies."""
    return notebook_runs.copies(preset) / "index.html"


def write(preset: str) -> Path:
    """Write data/runs/<preset>/index.html from the executed copies that lie there; return its path."""
    folder = notebook_runs.copies(preset)
    names = sorted({*presets.members(preset), *(path.stem for path in folder.glob("[0-9][0-9]_*.ipynb") if _is_shown(path))})
    runs = {path.stem: notebook_runs.facts(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    shown = {name: pictures(folder / f"{name}.ipynb") for name in names if name in runs}
    missing = [name for name in names if name not in runs]
    best = _best([picture for part in shown.values() for picture in part])
    parts = [
        _head(preset, names, runs, missing),
        _failures(runs, missing),
        _best_section(best),
        _results(runs),
        *(_section(name, runs[name], part, best) for name, part in shown.items()),
        _ran(runs),
    ]
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{text(preset)}: what ran</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"
    )
    with artifacts.replacing(place(preset)) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return place(preset)


def _is_shown(path: Path) -> bool:
    """Return whether a copy has a section: all but the points of a sweep."""
    return "@" not in path.stem or "@video_file=" in path.stem


def text(value: object, limit: int = 400) -> str:
    """Return any text as one escaped line, without control characters; a float with four digits."""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(artifacts.one_line(TERMINAL.sub("", shown), limit))


# Pictures


def pictures(path: Path) -> list[Picture]:
    """Return the figures of an executed copy in their order, [] where it cannot be read.

    A figure's title is its text (a figure of `plots` says its title), else the heading it stands under.
    """
    found = []
    for cell, title, data in _drawn(path):
        shown = _encoded(data) if data else ("", "no picture of pixels; the notebook holds it")
        found.append(Picture(path.stem, cell, len(found) + 1, title or "a figure", *shown))
    return found


def _drawn(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (cell id, title, base64 data) of every picture among an executed copy's outputs; no data where it is not of pixels."""
    try:
        cells = presets.read_notebook(path)["cells"]
    except presets.RunError:
        return
    heading = ""
    for cell in cells:
        if cell.get("cell_type") == "markdown":
            headings = re.findall(r"^#+\s+(.*)", "".join(cell.get("source", "")), flags=re.M)
            heading = headings[-1] if headings else heading
        for output in cell.get("outputs", ()):
            data = output.get("data") or {}
            if any(kind.startswith("image/") for kind in data):
                title = " ".join("".join(data.get("text/plain", "")).split())
                kind = next((kind for kind in RASTER if kind in data), None)
                named = heading if not title or DEFAULT_REPR.fullmatch(title) else title
                yield str(cell.get("id")), named, "".join(data[kind]) if kind else ""


def export(preset: str, folder: Path, *, width: int = 1000, limit: int = 150_000) -> list[Path]:
    """Write the figures of params/gallery.yaml that a preset's copies hold as <name>.png, each at most `limit` bytes; return them.

    A picture that is too large gets fewer colours, then fewer pixels: `width` is the most it has.
    """
    copies = sorted(p for p in notebook_runs.copies(preset).glob("[0-9][0-9]_*.ipynb") if "@" not in p.stem)
    first = {cell: data for path in copies for cell, _, data in reversed([*_drawn(path)]) if data}
    written = []
    for name, cell in presets.best_figures().items():
        if cell in first:
            with artifacts.replacing(Path(folder) / f"{name}.png") as temporary:
                temporary.write_bytes(_small_png(base64.b64decode(first[cell]), width, limit))
            written.append(Path(folder) / f"{name}.png")
    return written


def _small_png(data: bytes, width: int, limit: int) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        whole = image.convert("RGB")
    while True:
        small = whole.copy()
        small.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
        for colours in (256, 128, 64):
            kept = io.BytesIO()
            coarse = small.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)  # keeps rare colours
            coarse.save(kept, "PNG", optimize=True)
            if kept.tell() <= limit:
                return kept.getvalue()
        width = int(0.85 * min(width, small.width))


def _encoded(data: str) -> tuple[str, str, bool]:
    """Return a base64 picture decoded, shrunk and encoded anew: its address, or "" and why not, and whether it is a strip."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            image.thumbnail((WIDTH, 4 * WIDTH))
            small, kept = image.convert("RGBA"), io.BytesIO()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # binascii's and Pillow's are of these
        return "", f"it cannot be read, {artifacts.one_line(type(error).__name__)}", False
    sheet = Image.new("RGB", small.size, "white")  # a transparent figure is drawn for white paper
    sheet.paste(small, mask=small.getchannel("A"))
    sheet.save(kept, "WEBP", quality=85, method=3)
    address = "data:image/webp;base64," + base64.b64encode(kept.getvalue()).decode()
    return address, "", small.width > 3 * small.height


def _best(shown: Sequence[Picture]) -> list[Picture]:
    """Return the first pictures of the cells that params/gallery.yaml names, at most five of those that exist."""
    first = {}
    for picture in shown:
        if picture.address:
            first.setdefault(picture.cell, picture)
    return [first[cell] for cell in presets.best_figures().values() if cell in first][:BEST]


# Parts of the page


def _head(preset: str, names: Sequence[str], runs: dict, missing: Sequence[str]) -> str:
    done = [name for name, facts in runs.items() if not facts["own"]["failed"]]
    seconds = sum(facts["own"]["seconds"] or 0 for facts in runs.values())
    links = "".join(f'<a href="#{_anchor(name)}">{name[:2]} · {text(_title(name))}</a> ' for name in names if name not in missing)
    ended = max((facts["ended"] for facts in runs.values() if facts["ended"]), default="")
    ran = '<a href="#ran">What ran, how long, with which versions</a>' if runs else ""
    line = f"{len(done)} of {len(runs) + len(missing)} notebooks finished, {seconds:.0f} seconds of notebooks"
    return (
        f"<header>\n<h1>vau run {text(preset)}</h1>\n<p>{line}{f', the last one on {text(ended[:16])} UTC' if ended else ''}. "
        f"Click a figure to enlarge it.</p>\n<nav>{links}{ran}</nav>\n</header>"
    )


def _failures(runs: dict, missing: Sequence[str]) -> str:
    lines = [
        f"<p>{_link(name)} <span class=bad>{text(facts['own']['failed'])}</span></p>"
        for name, facts in runs.items()
        if facts["own"]["failed"]
    ]
    lines += [f"<p class=quiet>Not run: {', '.join(text(name) for name in missing)}</p>"] if missing else []
    kind = "failed" if any(facts["own"]["failed"] for facts in runs.values()) else "partial"
    return f'<section class="{kind}" id="failed">\n{chr(10).join(lines)}\n</section>' if lines else ""


def _figure(picture: Picture) -> str:
    if picture.address:
        body = f'<a href="#{picture.anchor}"><img loading="lazy" alt="{text(picture.title)}" src="{picture.address}"></a>'
    else:
        body = f"<p class=bad>This figure is missing here: {text(picture.note)}</p>"
    close = f'<a class="close" href="#{_anchor(picture.notebook)}">make it small</a>'
    links = f"{_link(picture.notebook, f'notebook {picture.notebook[:2]}')} {close}"
    strip = ' class="strip"' if picture.strip else ""
    return (
        f'<figure id="{picture.anchor}"{strip}>{body}<figcaption>{text(picture.title)} <small>{links}</small></figcaption></figure>'
    )


def _best_section(best: Sequence[Picture]) -> str:
    figures = "\n".join(map(_figure, best))
    section = f'<section id="best">\n<h2>Look at these first</h2>\n<div class="pictures best">\n{figures}\n</div>\n</section>'
    return section if best else ""


def _section(name: str, facts: dict, shown: Sequence[Picture], best: Sequence[Picture]) -> str:
    above = [f'<a href="#{picture.anchor}">{text(picture.title)}</a>' for picture in shown if picture in best]
    figures = "\n".join(_figure(picture) for picture in shown if picture not in best)
    recorded = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in facts["metrics"].items())
    failed = f"<p class=bad>{text(facts['own']['failed'])}</p>" if facts["own"]["failed"] else ""
    return (
        f'<section id="{_anchor(name)}">\n<h2>{text(name[:2])} · {text(_title(name))}</h2>\n<p>{_link(name)}</p>{failed}\n'
        + (f"<dl>{recorded}</dl>\n" if recorded else "")
        + (f"<p>On top of the page: {', '.join(above)}</p>\n" if above else "")
        + (f'<div class="pictures">\n{figures}\n</div>\n' if figures else "" if above else "<p class=quiet>No figure.</p>\n")
        + "</section>"
    )


def _results(runs: dict) -> str:
    """Return the tables that the run's notebooks recorded as their `results`, a part per level: no column holds two."""
    parts = []
    for file in dict.fromkeys(str(facts["metrics"].get("results", "")) for facts in runs.values()):
        path = presets.project_path(file or ".").resolve()
        if path.suffix != ".csv" or not path.is_relative_to(presets.project()) or not path.is_file():
            continue
        try:
            rows = [row for _, row in formats.csv_rows(path)]
        except artifacts.StoreError as error:
            parts.append(f"<p class=bad>{text(error)}</p>")
            continue
        for level in dict.fromkeys(row.get("level") for row in rows):
            part = [row for row in rows if row.get("level") == level]
            columns = [key for key in part[0] if key and any(row.get(key) for row in part)]
            same = [key for key in columns if len(part) > 1 and len({row[key] for row in part}) == 1] or ["level"] * bool(level)
            caption = f"{presets.display_path(path)}: " + ", ".join(f"{key} {part[0][key]}" for key in same)
            parts.append(_table([key for key in columns if key not in same], part, caption))
    return f'<section id="results">\n<h2>Results</h2>\n{chr(10).join(parts)}\n</section>' if parts else ""


def _table(columns: Sequence[str], rows: Sequence[dict], caption: str) -> str:
    def cell(value: object) -> str:
        number = re.fullmatch(r"-?\d+(\.\d+)?", value or "")
        return f'<td class="number">{text(value)}</td>' if number else f"<td>{text(value or '')}</td>"

    head = "".join(f"<th>{text(key.replace('_', ' '))}</th>" for key in columns)
    body = "\n".join("<tr>" + "".join(cell(row.get(key)) for key in columns) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<caption>{text(caption)}</caption>\n<tr>{head}</tr>\n{body}\n</table></div>'


def _ran(runs: dict) -> str:
    """Return what ran: seconds, parameters that differ from the cells' defaults, commit, and the libraries' versions."""
    head = "<tr><th>notebook</th><th>seconds</th><th>state</th><th>commit</th><th>parameters that differ</th></tr>"
    lines = []
    for name, facts in runs.items():
        own = facts["own"]
        given = ", ".join(f"{key} = {value!r}" for key, value in facts["parameters"].items())
        seconds = "" if own["seconds"] is None else f"{own['seconds']:.0f}"
        state = "<td>done</td>" if not own["failed"] else "<td class=bad>unfinished</td>"
        state = state if own["failed"] in ("", "unfinished") else "<td class=bad>failed</td>"
        lines.append(
            f'<tr><td>{_link(name)}</td><td class="number">{seconds}</td>{state}<td>{text(own["commit"])}</td>'
            f"<td>{text(given, 1000)}</td></tr>"
        )
    known = dict.fromkeys(", ".join(f"{key} {value}" for key, value in facts["versions"].items()) for facts in runs.values())
    versions = "".join(f"<p class=quiet>{text(line)}</p>" for line in known if line)
    table = f'<div class="wide"><table>\n{head}\n{chr(10).join(lines)}\n</table></div>'
    return f'<section id="ran">\n<h2>What ran</h2>\n{table}\n{versions}\n</section>' if lines else ""


def _link(name: str, shown: str = "") -> str:
    return f'<a href="{html.escape(quote(name, errors="surrogateescape"))}.ipynb">{text(shown or name)}</a>'


def _anchor(name: str) -> str:
    return "n" + re.sub(r"[^\w-]", "_", name)


def _title(name: str) -> str:
    try:
        return presets.question(name) or name
    except presets.RunError:  # a copy whose notebook is gone
        return name

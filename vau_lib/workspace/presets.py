"""Presets: YAML files of notebook parameters, checked against the parameters cell of each notebook.

- no list of parameters is kept anywhere else: names, types and defaults are read from the cell
- a key nobody declares and a value of another type are refused with the nearest name; papermill would only warn
- a preset's strings are relative to the project, whatever the working directory of JupyterLab, papermill or a test
"""

import ast
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from vau_lib.workspace.artifacts import StoreError, one_line, parse_yaml, read_json, read_yaml, reading, without_secrets

KERNEL = "python3"
NUMBERS = (int, float)  # an int is allowed where a float is asked for; YAML has no tuples
KINDS = {"str": str, "int": int, "float": NUMBERS, "bool": bool, "list": list, "dict": dict, "tuple": (list, tuple)}
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # 1e-3 is a number to everyone but YAML 1.1


class RunError(ValueError):
    """A preset, a parameter or a notebook that will not do; one line, naming it."""


@dataclass(frozen=True)
class Parameter:
    """One line of a tagged cell; `type` is as annotated, else the default's own; `default` is `...` if no literal."""

    name: str
    type: str
    default: object
    help: str


# Places


def project() -> Path:
    """Return the project's root: the folder named by VAU_PROJECT, else the one `vau_lib` is installed from."""
    return Path(os.path.expanduser(os.environ.get("VAU_PROJECT") or Path(__file__).parents[2])).resolve()


def project_path(text: str | Path) -> Path:
    """Resolve a project-relative string; absolute paths, ~ and a leading $NAME are allowed.

    RunError for an empty path and for a variable that is not set: `project_path("$VAU_REAL_DATA/ucsd_ped2")`.
    """
    text = str(text)
    if not text:
        raise RunError("a path is empty: give a file or folder, relative to the project")
    if variable := re.match(r"\$(?:(\w+)|\{(\w+)\})", text):
        name = variable[1] or variable[2]
        if not os.environ.get(name):
            raise RunError(f"{text} needs the environment variable {name}: export {name}=<the folder that holds it>")
        text = os.environ[name] + text[variable.end() :]
    return project() / os.path.expanduser(text)  # without a home ~ stays


def display_path(path: Path) -> str:
    """Return a path as messages show it: relative to the project where it lies inside."""
    return str(path.relative_to(project())) if path.is_relative_to(project()) else str(path)


def notebooks() -> dict[str, Path]:
    """Return the project's notebooks {"NN_name": file}, in the order they run."""
    return {path.stem: path for path in sorted((project() / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def presets() -> list[str]:
    """Return the names one can run: the folders of params/, and `demo`, the cells' own defaults."""
    folders = {path.name for path in (project() / "params").glob("*") if path.is_dir() and path.name[0] not in "._"}
    return sorted(folders | {"demo"})


def preset_folder(preset: str) -> Path:
    """Return params/<preset>; RunError with the nearest name for an unknown one. `demo` needs no folder."""
    if preset not in presets():
        raise RunError(f"no preset {preset!r} in params/{_nearest(preset, presets())}")
    return project() / "params" / preset


def members(preset: str, selection: Iterable[str | int] = ()) -> list[str]:
    """Return, in order, the notebooks chosen by number or name, else those the preset lists, else all.

    A preset lists its own under the key `notebooks` of _shared.yaml: [03, 04].
    """
    shared = _read_yaml(preset_folder(preset) / "_shared.yaml")
    if not notebooks():
        raise RunError(f"no notebooks in {project() / 'notebooks'}: install the clone with pip install -e, or set VAU_PROJECT")
    wanted = list(selection) or shared.get("notebooks") or list(notebooks())
    if not isinstance(wanted, list):
        raise RunError(f"params/{preset}/_shared.yaml: notebooks must be a list like [03, 04], got {wanted!r}")
    chosen = {full_name(item) for item in wanted}
    return [name for name in notebooks() if name in chosen]


def needs(notebook: str | int, preset: str = "demo") -> set[str]:
    """Return the notebooks whose work one reads, and theirs: from params/needs.yaml, all earlier ones where it is not named.

    What stands there under a preset's name replaces its lines in that preset.
    """
    try:
        lines = _read_yaml(project() / "params" / "needs.yaml")
        own = {key: lines.pop(key) for key in [*lines] if key in presets()}
        if not isinstance(own.get(preset, {}), dict):
            raise RunError(f'{preset} must hold lines like {{"02": ["01"]}}, got {own[preset]!r}')
        direct = {}
        for key, value in [*lines.items(), *own.get(preset, {}).items()]:
            if not isinstance(value, list):
                raise RunError(f'{key} must hold a list like ["02"], got {value!r}')
            direct[full_name(key)] = {full_name(item) for item in value}
    except RunError as error:
        raise RunError(f"params/needs.yaml: {error}") from error
    return _all_needs(full_name(notebook), direct)


def _all_needs(name: str, direct: dict[str, set[str]]) -> set[str]:
    """Return what a notebook needs and what that needs; RunError where one would need a later one."""
    if name not in direct:
        return {other for other in notebooks() if other < name}
    if wrong := sorted(other for other in direct[name] if other >= name):
        raise RunError(f"params/needs.yaml: {name[:2]} cannot need {wrong[0][:2]}, which runs after it")
    return direct[name].union(*(_all_needs(other, direct) for other in direct[name]))


def usual_seconds(preset: str = "demo") -> dict[str, float]:
    """Return {notebook: seconds} of a preset's quiet run, from params/seconds.yaml; {} where none is stated."""
    section = _read_yaml(project() / "params" / "seconds.yaml").get(preset) or {}
    return {full_name(key): float(value) for key, value in section.items() if re.fullmatch(r"\d+", str(key))}


def best_figures() -> dict[str, str]:
    """Return {name: id of the cell that draws it} of the figures to show first, from params/gallery.yaml; {} without it."""
    best = _read_yaml(project() / "params" / "gallery.yaml")
    for name, cell in best.items():
        if not re.fullmatch(r"\w+", str(name)) or not isinstance(cell, str):
            raise RunError(f"params/gallery.yaml: give lines `name: cell id`, got {one_line(f'{name}: {cell!r}')}")
    return best


def full_name(notebook: str | int) -> str:
    """Return the full name of a notebook given by number (3, "3", "03") or name; RunError lists what there is."""
    wanted = str(notebook).removesuffix(".ipynb").zfill(2)
    for name in notebooks():
        if wanted in (name, name[:2]):
            return name
    raise RunError(f"no notebook {wanted}; there are {', '.join(notebooks()) or 'none'}")


def read_notebook(path: Path) -> dict:
    """Return a notebook as the JSON it is; RunError where it is missing, cut short, or something else."""
    try:
        content = read_json(path, dict)
        with reading(path):
            _check_notebook(content)
    except (OSError, ValueError) as error:
        raise RunError(f"{display_path(path)} cannot be read: {one_line(error)}") from error
    return content


def _check_notebook(content: dict) -> None:
    """Raise TypeError or KeyError where a part that is read later is missing or of another type (a notebook cut by hand)."""

    def check(value: object, kind: type, name: str) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"not a notebook: {name} is {value!r:.40}")

    check(content.get("cells"), list, "cells")
    for holder in (content, *content["cells"]):
        check(holder, dict, "a cell")
        metadata = holder.setdefault("metadata", {})
        check(metadata, dict, "metadata")
        check(metadata.get("papermill", {}), dict, "papermill")
        check(metadata.get("vau", {}), dict, "vau")
        check(metadata.get("tags", []), list, "tags")
    for cell in content["cells"]:
        check(cell["cell_type"], str, "cell_type")
        source = cell.get("source", "")
        check(source, str | list, "source")
        check("".join(source), str, "source")
        outputs = cell.setdefault("outputs", []) if cell["cell_type"] == "code" else []
        check(outputs, list, "outputs")
        for output in outputs:
            check(output, dict, "an output")
            check(output["output_type"], str, "output_type")
            check(output.get("data", {}), dict, "data")
            for name in ("ename", "evalue") if output["output_type"] == "error" else ():
                check(output[name], str, name)


def question(notebook: str | int) -> str:
    """Return the title of a notebook's first cell, without its number."""
    first = read_notebook(notebooks()[full_name(notebook)])["cells"][:1]
    line = "".join(first[0]["source"]).strip().split("\n")[0] if first else ""
    return re.sub(r"^#+\s*(\d+\s*·\s*)?", "", line)


def _nearest(name: object, known: Iterable[str]) -> str:
    near = get_close_matches(str(name), list(known), n=1, cutoff=0)
    return f"; the nearest name is {near[0]!r}" if near else ""


def _read_yaml(path: Path) -> dict:
    try:
        content = read_yaml(path) if path.exists() else None
    except StoreError as error:
        raise RunError(f"{display_path(path)} is not YAML: {one_line(error)}") from error
    if not isinstance(content, dict | None):
        raise RunError(f"{display_path(path)} must hold lines of `name: value`, got {one_line(repr(content))}")
    return content or {}


# Parameters


def declared(notebook: str | int) -> dict[str, Parameter]:
    """Return what the cell tagged `parameters` declares, in order; RunError for a line that papermill would drop."""
    path = notebooks()[full_name(notebook)]
    return _declared(path, path.stat().st_mtime_ns)


@cache
def _declared(path: Path, changed_ns: int) -> dict[str, Parameter]:
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of lines that are refused here
    from papermill.translators import papermill_translators

    source = tagged(read_notebook(path))
    try:
        lines = assignments(source)
    except SyntaxError as error:
        raise RunError(f"{display_path(path)}: line {error.lineno} of the parameters cell is not Python") from error
    translator = papermill_translators.find_translator(KERNEL, "python")
    inspected = {line.name: line for line in translator.inspect({"source": source})}
    found = {}
    for name, (annotation, default) in lines.items():
        if name not in inspected:
            raise RunError(f"{display_path(path)}: papermill drops {name!r}: no | in its type, one = on its line")
        kind = annotation if annotation.split("[")[0] in (*KINDS, "Optional") else type(default).__name__
        found[name] = Parameter(name, kind, default, inspected[name].help.removesuffix("# fmt: skip").rstrip())
        if default is not ... and not _fits(default, found[name].type):
            raise RunError(f"{display_path(path)}: {name} is declared {annotation}, its default is {default!r}")
    return found


def tagged(notebook: dict) -> str:
    """Return the source of the cell tagged `parameters`, "" without one."""
    cells = [cell for cell in notebook.get("cells", []) if "parameters" in cell["metadata"].get("tags", [])]
    return "".join(cells[0]["source"]) if cells else ""


def assignments(source: str) -> dict[str, tuple[str, object]]:
    """Return a cell's {name: (annotation or "", default)}; a default that is no literal is `...`."""
    found = {}
    for line in ast.parse(source).body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if not isinstance(target, ast.Name) or getattr(line, "value", None) is None:
            continue
        try:
            default = ast.literal_eval(line.value)
        except (ValueError, TypeError):
            default = ...
        annotation = getattr(line, "annotation", None)
        found[target.id] = ast.unparse(annotation).strip("'\"") if annotation else "", default
    return found


def _fits(value: object, kind: str) -> bool:
    """Say whether a value is of the type named: an int is a float, a bool is no int, list[int] holds ints."""
    base, _, inner = kind.replace(" ", "").partition("[")
    inner = inner[:-1]
    if base == "Optional":
        return value is None or _fits(value, inner)
    if base not in KINDS:
        return True
    if isinstance(value, bool) and base != "bool":
        return False
    return isinstance(value, KINDS[base]) and (base != "list" or all(_fits(item, inner) for item in value))


def check_names(names: Iterable[str], known: Iterable[str], source: str) -> None:
    """Refuse a name that nobody declares."""
    for name in names:
        if name not in known:
            raise RunError(f"{source}: nobody declares {name!r}{_nearest(name, known)}")


def check(values: Mapping, known: Mapping[str, Parameter], source: str) -> None:
    """Refuse a name that is not declared and a value of another type; RunError names the source, key and value."""
    check_names(values, known, source)
    for key, value in values.items():
        value = typed(value, known[key].type)
        if not _fits(value, kind := known[key].type):
            hint = "; YAML wants a point, like 1.0e-4" if EXPONENT.fullmatch(str(value)) else ""
            raise RunError(f"{source}: {key} must be {kind}, got {type(value).__name__} {without_secrets(value)!r}{hint}")


def checked(values: Mapping, known: Mapping[str, Parameter], source: str) -> dict:
    """Return values of the command line as their declared types; RunError as in `check`."""
    check(values, known, source)
    return {key: typed(value, known[key].type) for key, value in values.items()}


def load_preset(preset: str, notebook: str | int) -> dict:
    """Return what the preset gives this notebook: shared values it declares, then its own file's.

    RunError names the file, the key and the nearest known name for a key nobody declares, a value of another type, and
    a file that belongs to no notebook.
    """
    name, folder = full_name(notebook), preset_folder(preset)
    files = ["_shared.yaml", *(f"{known}.yaml" for known in notebooks())]
    for path in folder.glob("*.y*ml"):
        if path.name not in files:
            raise RunError(f"{display_path(path)}: no notebook has that name{_nearest(path.name, files)}")
    shared, own = _read_yaml(folder / "_shared.yaml"), _read_yaml(folder / f"{name}.yaml")
    shared.pop("notebooks", None)  # the list of members, no parameter
    everyone = {key: None for other in notebooks() for key in declared(other)}
    check_names(shared, everyone, f"params/{preset}/_shared.yaml")
    mine = declared(name)
    shared = {key: value for key, value in shared.items() if key in mine}
    check(shared, mine, f"params/{preset}/_shared.yaml")
    check(own, mine, f"params/{preset}/{name}.yaml")
    return shared | own


class Given(str):
    """A value as it was typed on the command line: what it is, the declared type of its parameter says (`typed`)."""


def parse_values(texts: Iterable[str], *, split: bool = False) -> dict:
    """Read ["epochs=3", "note=a # b"] as {key: Given}; all after the first = is the value, `typed` makes it a number or a list.

    With `split` each key gets the list of its values, for sweeps: ["seed=0,1,2", "variants=[intended],[a, b]"]. Commas inside
    brackets and quotes do not split.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise RunError(f"-p: give a parameter as name=value, got {without_secrets(text)!r}")
        found[key] = [Given(part) for part in _split(value)] if split else Given(value)
    return found


def _split(text: str) -> list[str]:
    """Cut at commas outside brackets and quotes; nothing is no value."""
    parts, depth, quote, begun = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and not text[begun:place].strip(" [{("):
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth <= 0:
            parts.append(text[begun:place].strip())
            begun = place + 1
    return [*parts, text[begun:].strip()] if text.strip() else []


def typed(value: object, kind: str) -> object:
    """Return a `Given` value as the declared type; what will not do stays a text, which `check` refuses. Others stay as they are.

    A str is the text itself (quotes around all of it are left out): `#`, `=`, dates, `yes` and leading zeros have no other
    meaning. An int is decimal (010 is 10). A list's items have its inner type.
    """
    if not isinstance(value, Given):
        return value
    base, _, inner = kind.replace(" ", "").partition("[")
    inner, text = inner[:-1], value.strip()
    if base == "Optional":
        return None if text.lower() in ("none", "null", "~") else typed(value, inner)
    if base == "str":
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else str(value)
    if base in ("int", "float", "bool"):
        return _number(text, base)
    if base in ("list", "tuple") and text[:1] == "[" and text[-1:] == "]":
        return [typed(Given(part), inner) if inner else _guessed(part) for part in _split(text[1:-1])]
    return _guessed(text) if base != "list" or text[:1] == "[" else text


def _number(text: str, base: str) -> object:
    if base == "bool":
        return {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}.get(
            text.lower(), text
        )
    try:
        return int(text) if re.fullmatch(r"[-+]?[\d_]+", text) else float(text) if base == "float" else text
    except ValueError:
        return text


def _guessed(text: str) -> object:
    """Return the value of a parameter of unknown type: a number, true, false, null, a list or an object, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("none", "null", "~"):
        return None
    if text[:1] in ("[", "{", '"', "'"):
        try:
            return parse_yaml(text)
        except ValueError as error:
            raise RunError(f"-p: {text!r} is not YAML") from error
    return _number(text, "float")

"""Imports point down, room to room; the real road never passes through toys; each library has one door."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "vau_lib"
BELOW = {  # room -> the rooms it may import from, besides itself; what stands higher may use what those use
    "workspace": set(), "data": {"workspace"}, "compression": {"workspace"},
    "features": {"data"}, "evaluation": {"data"}, "synthetic": {"data"}, "plots": {"data"},
    "detectors": {"features", "evaluation"}, "vlm": {"compression", "data"}, "toy": {"vlm", "synthetic", "detectors"},
    "products": {"workspace", "data", "compression", "features", "evaluation", "plots", "detectors", "vlm"},
    "publish": {"data", "evaluation"}, "cli": {"products", "publish", "synthetic", "toy"},
}  # fmt: skip
PLOTS = {
    "plots.confusion",
    "plots.curves",
    "plots.distributions",
    "plots.filmstrip",
    "plots.frontier",
    "plots.ranking",
    "plots.schematics",
    "plots.style",
    "plots.timeline",
}
DOORS = {  # library -> the only modules that name it
    "decord": {"data.video_readers"}, "torchcodec": {"data.video_readers"}, "nvidia": {"data.video_readers"},
    "av": {"data.video", "data.video_index", "data.video_readers"}, "kornia": {"features.xfeat"}, "ray": {"workspace.ray_pool"},
    "onnxruntime": {"features.runtimes"}, "openvino": {"features.runtimes"}, "ncnn": {"features.xfeat_ncnn"},
    "onnxscript": {"features.runtimes"},
    "papermill": {"workspace.notebook_runs", "workspace.presets"}, "typer": {"cli", "cli_models", "publish.commands"},
    "rich": {"cli"}, "trl": {"vlm.finetuning"}, "google": {"synthetic.veo"}, "diffusers": {"synthetic.text_to_video"},
    "tokenizers": {"toy.tiny_vlm", "vlm.internlm2_tokenizer"}, "sentencepiece": {"vlm.internlm2_tokenizer"},
    "pycocoevalcap": {"evaluation.text_metrics"},
    "nltk": {"evaluation.text_metrics"}, "matplotlib": PLOTS, "seaborn": PLOTS,
}  # fmt: skip
MODULES = {
    ".".join(path.relative_to(LIBRARY).with_suffix("").parts): path
    for path in sorted(LIBRARY.rglob("[a-z]*.py"))
}  # fmt: skip


def room_of(module: str) -> str:
    return module.split(".")[0] if "." in module else "cli" if module.startswith("cli") else "products"


def below(room: str) -> set[str]:
    return BELOW[room].union(*(below(other) for other in BELOW[room]))


@cache
def imports(module: str) -> tuple[set[str], set[str]]:
    """Return (modules of ours, outside packages) that a module imports anywhere in its text."""
    ours, outside = set(), set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vau_lib":
            inside = ".".join(node.module.split(".")[1:])
            names = [f"{inside}.{name.name}".strip(".") for name in node.names]
            ours |= {name if name in MODULES else inside for name in names}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            outside |= {name.split(".")[0] for name in names}
    return ours, outside


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_rooms_below(module):
    room = room_of(module)
    for other in imports(module)[0]:
        assert other in MODULES, f"{module} imports {other}, which is no module"
        assert room_of(other) in below(room) | {room}, f"{module} imports {other}: {room} may use {sorted(below(room))}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_itself_by_a_detour(module):
    seen, left = set(), list(imports(module)[0])
    while left:
        other = left.pop()
        assert other != module, f"{module} is in a circle of imports"
        if other not in seen:
            seen.add(other)
            left += imports(other)[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_library_has_one_door(module):
    for package in imports(module)[1] & set(DOORS):
        assert module in DOORS[package], f"{package} is used through {DOORS[package]}, not in {module}"


def test_rooms_are_named_and_small():
    rooms = {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms | {"products", "cli"} == set(BELOW)
    for room in rooms:
        files = [module for module in MODULES if room_of(module) == room]
        assert len(files) <= 14, f"{room} has {len(files)} files"
        note = ast.get_docstring(ast.parse((LIBRARY / room / "__init__.py").read_text(encoding="utf-8")))
        assert note and 3 <= len(note.splitlines()) <= 12, f"{room}/__init__.py must say what lives there"
    assert len(list(LIBRARY.glob("*.py"))) <= 9
    sizes = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert max(sizes.values()) <= 600, max(sizes, key=sizes.get)


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (("vlm.inference", "explain", "guard", "watch"), ("vau_lib.toy", "vau_lib.synthetic")),
        (tuple(module for module in MODULES if room_of(module) in ("workspace", "data")), ("torch", "decord")),
    ],
)  # fmt: skip
def test_what_an_import_does_not_load(modules, forbidden):
    """One process for all: the first that brings one along is named."""
    code = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module("vau_lib." + module)
    if found := [name for name in sys.modules if name.startswith({forbidden!r})]:
        sys.exit(f"{{module}} loads {{found[0]}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

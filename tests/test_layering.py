"""Imports point down, systems do not know each other, and each library has one door."""

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "vau_lib"
TIERS = {
    0: {"video", "records", "datasets", "store", "runs", "presets", "cluster"}
    | {"hivau", "hivau_files", "prompt_pools"},
    1: {"features", "towers", "dense", "released", "weights", "training", "trials"}
    | {"peers", "metrics", "streaming", "probing", "sampling", "results", "plots"}
    | {"keyclips", "lshma_state", "redundancy"}
    | {"text_metrics", "judging", "answers", "instruction_plots", "edge_plots", "ordering_plots"}
    | {"smarthome_files", "smarthome_prompts", "smarthome_published"}
    | {"dialogue", "speakers", "closeups", "twins", "lora", "seeing", "policy", "supervised"}
    | {"surgery", "lowrank", "heads", "healing"}
    | {
        "synthesis",
        "footage",
        "veo",
        "exports",
        "filming",
        "weather",
        "grammar",
        "stories",
        "actors",
        "props",
        "stage",
    },
    2: {"memtsm", "lshma", "ats", "vlm", "annotate", "smarthome", "compress", "tokens", "generation", "ordering"},
    3: {"watching", "explaining", "guarding", "cli", "twinning"},
}
WITHIN_TIER_1 = {("features", "weights"), ("training", "weights"), ("training", "metrics"), ("results", "metrics")}
WITHIN_TIER_1 |= {
    ("cli", "watching"),
    ("cli", "guarding"),
    ("features", "released"),
    ("trials", "features"),
    ("probing", "streaming"),
}
WITHIN_TIER_1 |= {("features", "towers"), ("towers", "weights"), ("streaming", "metrics"), ("lshma_state", "keyclips")}
WITHIN_TIER_1 |= {
    ("metrics", "text_metrics"),
    ("judging", "metrics"),
    ("instruction_plots", "plots"),
    ("edge_plots", "plots"),
    ("ordering_plots", "plots"),
}
WITHIN_TIER_1 |= {("closeups", "synthesis"), ("twins", "closeups"), ("twins", "dialogue"), ("lora", "dialogue")}
WITHIN_TIER_1 |= {("speakers", "dialogue"), ("seeing", "closeups"), ("seeing", "dialogue"), ("seeing", "lora")}
WITHIN_TIER_1 |= {
    ("policy", "dialogue"),
    ("supervised", "dialogue"),
    ("supervised", "lora"),
    ("heads", "surgery"),
    ("healing", "surgery"),
}
DRAWING = ["stage", "props", "actors", "stories", "grammar", "weather", "filming", "exports", "synthesis", "footage"]
DRAWING += ["veo"]  # each may use those before it
WITHIN_TIER_1 |= {(later, earlier) for n, later in enumerate(DRAWING) for earlier in DRAWING[:n]}
DOORS = {
    "decord": {"video"}, "av": {"video"}, "kornia": {"features"}, "cv2": {"features"},
    "transformers": {"training", "towers", "dialogue", "twins", "lora", "seeing", "speakers", "vlm", "healing",
                     "compress", "policy", "supervised"},
    "trl": {"supervised"}, "tokenizers": {"twins"}, "peft": {"lora", "healing"}, "torchao": {"compress"},
    "sklearn": {"metrics", "peers"}, "matplotlib": {"plots"}, "seaborn": {"plots"}, "papermill": {"runs", "presets"},
    "pycocoevalcap": {"text_metrics"}, "nltk": {"text_metrics"}, "ray": {"cluster"},
    "google": {"veo"}, "diffusers": {"generation"}, "typer": {"cli"}, "rich": {"cli"},
}  # fmt: skip
TIER_OF = {name: tier for tier, names in TIERS.items() for name in names}
MODULES = sorted(path.stem for path in LIBRARY.glob("[a-z]*.py"))


def imported(module: str) -> tuple[set[str], set[str]]:
    """Return (modules of ours, outside packages) a module imports anywhere in its text."""
    ours, outside = set(), set()
    for node in ast.walk(ast.parse((LIBRARY / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "vau_lib":
            ours |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vau_lib."):
            ours.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            outside |= {name.split(".")[0] for name in names}
    return ours, outside


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_below(module):
    tier = TIER_OF[module]
    ours, outside = imported(module)
    for other in ours:
        below = TIER_OF[other] < tier
        beside = tier == TIER_OF[other] and (tier == 0 or (module, other) in WITHIN_TIER_1)
        assert below or beside, f"{module} (tier {tier}) imports {other} (tier {TIER_OF[other]})"
    if tier == 0:
        assert not outside & {"torch", "torchvision", "transformers"}, f"{module} is tier 0 and imports torch"


@pytest.mark.parametrize("module", MODULES)
def test_a_library_has_one_door(module):
    for package in imported(module)[1] & set(DOORS):
        assert module in DOORS[package], f"{package} is used through {DOORS[package]}, not in {module}"


def test_modules_stay_small():
    sizes = {module: len((LIBRARY / f"{module}.py").read_text().splitlines()) for module in MODULES}
    assert max(sizes.values()) <= 400, sizes

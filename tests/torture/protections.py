"""Protections taken away, one at a time, in a copy of the tree: the campaign's short test must then fail, else it shows nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from torture.common import Tally

ROOT = Path(__file__).parents[2]
HERE = "workspace/artifacts.py"
WRITES_INTO = (
    "            yield path\n            temporary.write_bytes(path.read_bytes())\n"  # the file itself, half of it when killed
)
REMOVED = [  # what, its file, its text, what stands there instead, the short test that must fail
    ("no pickles", "workspace/formats.py", "weights_only=True", "weights_only=False", "strangers"),
    ("one line that names the file", HERE, "except (OSError, ImportError):\n", "except Exception:\n", "reader"),
    ("files whole or not at all", HERE, "            yield temporary\n", WRITES_INTO, "surroundings"),
    ("one run at a time", HERE, "with filelock.FileLock(path, timeout=0):", "with suppress(ZeroDivisionError):", "kills"),
    ("a fresh line after a cut one", HERE, 'if file.read(1) != b"\\n":', "if False:", "strangers"),
    ("paths stay in their root", HERE, "if PurePosixPath(text).is_absolute() or not", "if False and not", "strangers"),
    ("no key with two values", HERE, ", object_pairs_hook=_object", "", "strangers"),
    ("arrays as long as they say", HERE, "claimed != left", "False", "strangers"),
    ("no controls to a terminal", "vlm/clients.py", "artifacts.CONTROL.sub(\"\", ", "str(", "strangers"),
    ("passwords hidden", HERE, '    scheme, _, rest = address.partition("://")\n', "    return address\n", "streams"),
    ("a model as large as its weights", "workspace/formats.py", "if left[kind] < 0:", "if False:", "strangers"),
    ("patterns that end", "vlm/finetuning.py", "            _check_patterns(config)\n", "", "strangers"),
    ("answers end in time and size", "synthetic/veo.py", "transport=Bounded(), ", "", "servers"),
]  # fmt: skip


def run(root: Path) -> list[Tally]:
    tally = Tally("protections: the short campaign without one")
    for number, (what, file, text, instead, test) in enumerate([("nothing", HERE, "", "", "strangers or reader"), *REMOVED]):
        copy = root / str(number)
        for part in ("vau_lib", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "params", "notebooks"):
            (copy / name).symlink_to(ROOT / name)
        place = copy / "vau_lib" / file
        with tally.one(what):
            assert text in (before := place.read_text()), f"{text!r} is not in {file}: name another place"
            place.write_text(before.replace(text, instead, 1))
            words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_torture.py", "-k", test]
            done = subprocess.run(words, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True)
            assert done.returncode == (0 if what == "nothing" else 1), f"ends with {done.returncode}: {done.stdout[-200:]}"
            tally.outcomes["fail" if text else "passes whole"] += 1
            failed = [line for line in done.stdout.splitlines() if line.startswith("E  ")]
            print(f"{what}: {failed[0][:160] if failed else 'passes'}", flush=True)
    return [tally]

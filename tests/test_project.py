"""The lists that must agree do, and nothing that must not be committed is."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, BUILD = TOML["project"], TOML["build-system"]["requires"]


def names(requirements):
    return {re.split(r"[<>=!~\[; ]", line)[0] for line in requirements}


def test_every_dependency_has_its_reason_and_no_other():
    text = (ROOT / "environment.yml").read_text()
    wanted = names(PROJECT["dependencies"]) | set().union(*(names(v) for v in PROJECT["optional-dependencies"].values()))
    explained = set(re.findall(r"^#   ([a-z0-9-]+) ", text, flags=re.M))
    assert explained == wanted


def test_conda_gets_what_pip_gets():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-c constraints.txt", "-e .[dev]"]  # lines of a requirements file: the tested versions as with `make env`
    (python,) = [entry for entry in content["dependencies"] if str(entry).startswith("python")]
    minimum = PROJECT["requires-python"].removeprefix(">=")
    assert python.split("=")[1] >= minimum


def test_tested_versions_are_exact_and_cover_what_is_installed_by_default():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert names(PROJECT["dependencies"]) | names(PROJECT["optional-dependencies"]["dev"]) <= pinned


def test_decord_is_asked_for_only_where_it_has_a_wheel():
    """PyPI has wheels of 0.6.0 for Linux x86-64 and Windows, and for macOS up to Python 3.8 only."""
    (line,) = [line for line in PROJECT["dependencies"] if line.startswith("decord")]
    marker = Requirement(line).marker
    machines = {("linux", "x86_64"): True, ("win32", "AMD64"): True, ("darwin", "arm64"): False, ("darwin", "x86_64"): False}
    machines |= {("linux", "aarch64"): False, ("win32", "ARM64"): False}
    for (system, machine), wanted in machines.items():
        assert marker.evaluate({"sys_platform": system, "platform_machine": machine}) == wanted, (system, machine)


def test_what_builds_and_checks_is_pinned_and_the_lock_holds_hashes():
    text = (ROOT / "Makefile").read_text()
    assert BUILD and all(re.fullmatch(r"[\w-]+==[\w.]+", requirement) for requirement in BUILD)
    tools = re.search(r"\.audit/bin/pip install --quiet (.+)", text)[1].split()
    assert {tool.split("==")[0] for tool in tools} == {"uv", "pip-audit"} and all("==" in tool for tool in tools)
    assert re.search(r"uv pip compile pyproject.toml .*--constraint constraints.txt .*--generate-hashes", text)
    assert "pip-audit --requirement requirements.lock --no-deps --disable-pip --strict" in text  # strict: silence is no answer


def test_the_makefile_explains_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"\.PHONY: (.*)", text)[1].split())
    assert targets == {
        "help",
        "env",
        "hello",
        "demo",
        "test",
        "testlong",
        "torture",
        "lock",
        "audit",
        "lab",
        "lint",
        "bench",
        "book",
        "browser",
        "toy",
        "figures",
        "pictures",
        "results",
        "clean",
    }
    assert all(re.search(rf"^{target}:.*##", text, flags=re.M) for target in targets)


@pytest.mark.parametrize("command", [["list"], ["table"], ["run", "demo", "--dry-run"]])
def test_asking_does_not_load_torch(command):
    code = f"import sys; from vau_lib.cli import app\ntry: app({command!r})\nexcept SystemExit as e: assert not e.code, e.code\n"
    done = subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_importing_the_library_does_nothing_visible():
    modules = "data.video data.records workspace.artifacts data.datasets plots.style evaluation.metrics detectors.memtsm"
    code = "".join(f"import vau_lib.{module}\n" for module in modules.split())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout and not done.stderr


def test_the_devcontainer_sets_up_by_a_target_that_exists_on_a_python_that_is_new_enough():
    content = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert re.fullmatch(r"make (\w+)", content["postCreateCommand"])[1] == "env"
    version = re.search(r"python:(\d+)\.(\d+)-", content["image"])
    floor = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert tuple(map(int, version.groups())) >= tuple(map(int, floor.groups()))
    assert content["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"].endswith("/.venv/bin/python")


def test_every_system_has_its_drawing_in_the_course():
    drawn = {
        name for path in ROOT.glob("notebooks/*.ipynb") for name in re.findall(r'schematics\.draw\(\\"(\w+)', path.read_text())
    }
    assert drawn == {"memtsm", "lshma", "holmes_vau", "memories_s0"}


def test_saving_a_notebook_in_jupyterlab_does_not_dirty_it(tmp_path):
    """The filter of `make env` and the hook of `make lab`: outputs stay in the file, and git sees no change where there is none."""
    from jupyter_server.services.contents.filemanager import FileContentsManager

    makefile = (ROOT / "Makefile").read_text()
    strip = re.search(r"^STRIP := (.+)$", makefile, flags=re.M)[1]
    hook = re.search(r"--ContentsManager.post_save_hook=(\S+)", makefile)[1]
    place = tmp_path / "notebooks" / "08_instruction_data.ipynb"
    place.parent.mkdir()
    for name in (".gitattributes", ".gitignore", "notebooks/08_instruction_data.ipynb"):
        shutil.copyfile(ROOT / name, tmp_path / name)

    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    git("config", "filter.notebooks.clean", f'"{Path(sys.executable).with_name("nbstripout")}" {strip} || cat')
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a notebook")
    server = FileContentsManager(root_dir=str(tmp_path), post_save_hook=hook)
    model = server.get("notebooks/08_instruction_data.ipynb")
    cells = [cell for cell in model["content"]["cells"] if cell["cell_type"] == "code"]
    cells[0]["execution_count"], cells[0]["outputs"] = 3, [{"output_type": "stream", "name": "stdout", "text": "seen"}]
    model["content"]["metadata"]["language_info"] |= {"file_extension": ".py", "version": "3.11.7", "pygments_lexer": "ipython3"}
    server.save(dict(model), "notebooks/08_instruction_data.ipynb")
    assert git("status", "--porcelain") == "" and '"seen"' in place.read_text()
    cells[0]["source"] += "\n"
    server.save(dict(model), "notebooks/08_instruction_data.ipynb")
    assert git("status", "--porcelain") == " M notebooks/08_instruction_data.ipynb\n", "a real change is shown, and not staged"


FAULT = 'echo "jinja2 2.4.1 PYSEC-2014-82 2.7.2"; exit 1'


@pytest.mark.skipif(not shutil.which("timeout"), reason="needs timeout, of GNU's coreutils")
@pytest.mark.parametrize(
    "old, pinned, code, line",
    [("exit 0", "exit 0", 0, "nothing was audited, no data"), (FAULT, "exit 0", 0, "1 packages, no known fault"),
     (FAULT, FAULT, 1, "PYSEC-2014-82"), (FAULT, "echo refused >&2; exit 1", 0, "nothing was audited, its service ended: refused")],
)  # fmt: skip
def test_the_audit_of_ci_fails_for_a_known_fault_only(tmp_path, old, pinned, code, line):
    """A service that knows no package calls every version healthy; an old version with known faults tells it apart."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "audit", tmp_path / ".ci")
    (tmp_path / "constraints.txt").write_text("x==1\n")
    (tmp_path / "Makefile").write_text(".audit/.ready: ;\n")
    asked = tmp_path / ".audit" / "bin" / "pip-audit"
    asked.parent.mkdir(parents=True)
    asked.write_text(f'#!/bin/sh\ncase "$*" in *constraints.txt*) {pinned};; *) {old};; esac\n')
    asked.chmod(0o755)
    done = subprocess.run([tmp_path / ".ci" / "audit"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("\n")) == (code, 1) and line in done.stdout


def test_each_benchmark_is_measured_by_make_bench_or_is_a_study():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    speed, studies = (re.search(rf"^{name} := (.+)$", text, flags=re.M)[1].split() for name in ("SPEED", "STUDIES"))
    scripts = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert sorted(speed + studies) == sorted(scripts)
    said = subprocess.run(["make", "-n", "bench", "READY="], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert " ".join(speed) in said and not set(studies) & set(re.findall(r"\w+", said))

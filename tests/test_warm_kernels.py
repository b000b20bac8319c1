"""Kernels forked from a process with the libraries imported do what kernels started anew do, and end when those would."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_project import write_notebook, write_params

from vau_lib.workspace import artifacts, notebook_runs, warm_kernels
from vau_lib.workspace.presets import RunError

FACTS = """import os, subprocess, sys, tempfile, time
from pathlib import Path

from vau_lib.workspace import notebook_runs

warm, folder = "torch" in sys.modules, tempfile.TemporaryDirectory()
child = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout.strip()"""
RECORD = """notebook_runs.record(
    warm=warm, folder=folder.name, child=child, cwd=Path.cwd().name, pid=os.getpid(), group=os.getpgid(0), mark=os.environ["MARK"],
    spent=time.process_time(),
)"""
pytestmark = pytest.mark.skipif(not warm_kernels.possible(), reason="forks of kernels are for Linux without a card")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Five notebooks; the last needs the others, so it begins when they are done."""
    for number in range(1, 5):
        write_notebook(tmp_path, f"0{number}_facts", "", FACTS, RECORD)
    write_params(tmp_path, "tiny", "_shared", "notebooks: [01, 02, 03, 04, 05]")
    (tmp_path / "params" / "needs.yaml").write_text("01: []\n02: []\n03: ['01', '02']\n04: ['01', '02']\n05: ['03', '04']\n")
    monkeypatch.setenv("VAU_PROJECT", str(tmp_path))
    monkeypatch.setenv("MARK", "of the caller")
    return tmp_path


def test_kernels_of_workers_begin_warm_and_are_kernels_like_any_other(project):
    write_notebook(project, "05_end", "", "import os", "os._exit(3)  # as when memory runs out", "1")
    with pytest.raises(RunError, match=r"^05_end stopped at In \[2\] `os._exit\(3\).*`: DeadKernelError"):
        notebook_runs.run("tiny", workers=2)
    table = notebook_runs.table("tiny").set_index("notebook")
    facts = table.loc[[f"0{number}_facts" for number in range(1, 5)]]
    assert facts["warm"].tolist() == 4 * [True] and facts["failed"].tolist() == 4 * [""]
    assert set(facts["cwd"]) == {"notebooks"} and set(facts["mark"]) == {"of the caller"} and set(facts["child"]) == {"42"}
    assert facts["pid"].tolist() == facts["group"].tolist() and facts["pid"].nunique() == 4
    assert not any(Path(folder).exists() for folder in facts["folder"])  # what an interpreter does as it ends


def test_what_a_library_warns_of_stands_in_the_notebook_only_and_its_time_is_the_runs(project, capfd):
    warn = "from transformers.utils import logging\n\nlogging.get_logger('transformers.x').warning('a word to the reader')"
    work = "import time\n\nfrom vau_lib.workspace import notebook_runs\n\nwhile time.process_time() < 8:\n    pass"
    write_notebook(project, "05_end", "", warn, work, "notebook_runs.record(warm=True, spent=time.process_time())")
    before = sum(os.times()[2:4])
    notebook_runs.run("tiny", workers=2)
    assert sum(os.times()[2:4]) - before > notebook_runs.table("tiny")["spent"].sum() > 8  # else others seem to have used it
    outputs = [
        o for cell in artifacts.read_json(notebook_runs.copies("tiny") / "05_end.ipynb")["cells"] for o in cell.get("outputs", [])
    ]
    assert "a word to the reader" in "".join(outputs[0]["text"]) and "a word" not in capfd.readouterr().err


def test_no_warm_kernel_outlives_a_killed_run(project):
    wait = (
        f"import os, time\nfrom pathlib import Path\nPath({str(project / 'pid')!r}).write_text(f'{{os.getpid()}} {{os.getppid()}}')"
    )
    write_notebook(project, "05_end", "", wait, "time.sleep(300)")
    command = [sys.executable, "-c", "from vau_lib.cli import app; app()", "run", "tiny", "--workers", "2"]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mark, limit = project / "pid", time.monotonic() + 300
    try:
        while not (mark.is_file() and len(mark.read_text().split()) == 2):
            assert job.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        alive = [int(pid) for pid in mark.read_text().split()]  # the kernel and the process it is a fork of
        assert not any(map(_ended, alive))
    finally:
        job.kill()
        job.wait()
    while not all(map(_ended, alive)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert [pid for pid in alive if not _ended(pid)] == []


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # nobody is there to bury it
    except (FileNotFoundError, ProcessLookupError):
        return True


COUNT = """import os, sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
print(*(open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")))
"""


def test_the_process_that_is_forked_has_one_thread_of_its_own():
    """A fork takes one thread along: what another held would stay locked for ever. Arrow's allocator prepares for forks."""
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", COUNT, *warm_kernels.LIBRARIES], env=threads, capture_output=True, text=True)
    assert len([name for name in ran.stdout.split() if name != "jemalloc_bg_thd"]) == 1, ran.stderr

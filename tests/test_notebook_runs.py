"""An executed copy is the record: it keeps what failed, says what is done, and gives the table its rows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_project import make_project, write_notebook, write_params
from typer.testing import CliRunner

from vau_lib import cli
from vau_lib.workspace import artifacts, gallery, notebook_runs, presets, timings
from vau_lib.workspace.presets import RunError


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("VAU_PROJECT", str(make_project(tmp_path)))
    return tmp_path


def reasons(*args, **kwargs):
    return [step.why for step in notebook_runs.plan(*args, **kwargs)]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A project after a run that failed in its second notebook and the run that resumed; facts noted in between."""
    folder, noted = make_project(tmp_path_factory.mktemp("project {with} braces")), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAU_PROJECT", str(folder))
        patch.setenv("MPLBACKEND", "agg")
        with pytest.raises(RunError) as caught:
            notebook_runs.run("tiny", overrides={"broken": True})
        noted["error"], noted["table"], noted["backend"] = (str(caught.value), notebook_runs.table(), os.environ["MPLBACKEND"])
        noted["copy"] = json.loads((notebook_runs.copies("tiny") / "02_second.ipynb").read_text())
        noted["third ran"] = (notebook_runs.copies("tiny") / "03_third.ipynb").exists()
        noted["first"] = (notebook_runs.copies("tiny") / "01_first.ipynb").stat().st_mtime_ns
        noted["steps"] = notebook_runs.run("tiny")
    return folder, noted


@pytest.fixture
def resumed(history, monkeypatch):
    folder, noted = history
    monkeypatch.setenv("VAU_PROJECT", str(folder))
    return folder, noted


def test_a_failed_run_names_notebook_and_cell_and_keeps_the_copy(resumed):
    _, noted = resumed
    assert noted["error"].startswith("02_second stopped at In [4] `if broken:`: ValueError: clip 5 is empty (see data/")
    assert "\n" not in noted["error"] and not noted["third ran"]
    outputs = [output for cell in noted["copy"]["cells"] for output in cell.get("outputs", [])]
    assert any(output["output_type"] == "error" for output in outputs)


def test_the_next_run_skips_what_is_done_and_goes_on_at_the_failed_notebook(resumed):
    _, noted = resumed
    assert [step.why.split(" `")[0] for step in noted["steps"]] == ["", "stopped last time: In [4]", "02 runs before it"]
    assert (notebook_runs.copies("tiny") / "01_first.ipynb").stat().st_mtime_ns == noted["first"]
    assert reasons("tiny") == ["", "", ""]


def test_notebooks_run_as_in_jupyterlab_whatever_the_callers_backend(resumed):
    _, noted = resumed
    row = noted["table"].iloc[0]
    assert (row["cwd"], noted["backend"]) == ("notebooks", "agg") and "inline" in row["backend"]


def test_the_table_has_parameters_that_differ_metrics_and_what_failed(resumed):
    _, noted = resumed
    assert list(noted["table"].columns[:4]) == ["preset", "notebook", "count", "broken"]
    assert list(noted["table"].columns[-3:]) == ["seconds", "failed", "commit"]
    first, second = noted["table"].to_dict("records")
    assert (first["preset"], first["notebook"], first["count"], first["doubled"]) == ("tiny", "01_first", 5, 10)
    assert first["seconds"] > 0 and first["failed"] == "" and first["half"] == 0.5
    assert second["broken"] and second["failed"].startswith("In [4]") and second["count"] == 5
    assert list(notebook_runs.table("tiny")["failed"]) == ["", "", ""] and notebook_runs.table("tiny")["tripled"][1] == 15


def test_a_recorded_line_is_shown_once(resumed):
    copy = json.loads((notebook_runs.copies("tiny") / "01_first.ipynb").read_text())
    (shown,) = copy["cells"][-1]["outputs"]
    assert shown["data"][notebook_runs.RECORD]["doubled"] == 10 and "doubled  10" in "".join(shown["data"]["text/plain"])


def test_other_parameters_or_code_run_again_with_all_that_follows(resumed, monkeypatch):
    folder, _ = resumed
    assert reasons("tiny", overrides={"broken": True}) == ["", "its parameters changed", "02 runs before it"]
    source = folder / "notebooks" / "01_first.ipynb"
    before = source.read_text()
    try:
        source.write_text(before.replace("A question?", "Better prose"))
        assert reasons("tiny") == ["", "", ""]
        source.write_text(before.replace("doubled=", "twice="))
        assert reasons("tiny") == ["its code changed", "01 runs before it", "01 runs before it"]
    finally:
        source.write_text(before)


def test_what_does_not_need_a_changed_notebook_stays_done(resumed):
    folder, _ = resumed
    needs = folder / "params" / "needs.yaml"
    try:
        needs.write_text('"02": []\n')
        assert reasons("tiny", overrides={"rate": 0.1}) == ["its parameters changed", "", "01 runs before it"]
    finally:
        needs.unlink()


@pytest.mark.slow
def test_notebooks_run_side_by_side_and_an_error_stops_what_needs_it(project, capsys):
    (project / "params" / "needs.yaml").write_text('"02": []\n"03": ["02"]\n')
    with pytest.raises(RunError, match=r"^02_second stopped at In \[4\] "):
        notebook_runs.run("tiny", overrides={"broken": True}, workers=2)
    assert [notebook_runs.state("tiny", name) for name in ("01_first", "02_second", "03_third")] == ["done", "failed", "to run"]
    assert [step.why[:7] for step in notebook_runs.run("tiny", workers=2)] == ["", "stopped", "02 runs"]
    assert list(notebook_runs.table("tiny")["failed"]) == ["", "", ""]


def test_what_a_choice_reads_and_nobody_made_is_named_and_run_with_needs(project):
    (project / "params" / "needs.yaml").write_text('"02": []\n"03": ["01"]\n')
    assert notebook_runs.not_run("tiny", ["3"]) == ["01_first"] and notebook_runs.not_run("tiny", ["1", "3"]) == []
    shown = CliRunner().invoke(cli.app, ["run", "tiny", "3", "--dry-run"])
    assert "not run yet in tiny, and read by 03: 01; --with-needs runs what has not run" in shown.output
    shown = CliRunner().invoke(cli.app, ["run", "tiny", "3", "--dry-run", "--with-needs"])
    assert [line.split(":")[0] for line in shown.output.splitlines() if "asked for" in line] == ["01_first", "03_third"]
    with pytest.raises(artifacts.StoreError, match=r"features is not made yet: .*--with-needs"):
        artifacts.check_made_by(project / "features")


def test_a_run_says_where_it_took_other_times_than_stated(resumed):
    folder, _ = resumed
    names = ["01_first", "02_second", "03_third"]
    (folder / "params" / "seconds.yaml").write_text('tiny:\n  "01": 1000\n  "02": 6\n  "all": 9\n')
    assert [line.split(":")[0] for line in timings.differences("tiny", names)] == ["01"]
    assert timings.differences("tiny", names)[0].endswith(" s, stated 1000") and timings.differences("tiny", names[1:]) == []
    assert timings.differences("demo", names) == [] and presets.usual_seconds("tiny") == {"01_first": 1000, "02_second": 6}


def test_only_a_quiet_whole_run_is_stated(resumed):
    folder, _ = resumed
    first, file = folder / "notebooks" / "01_first.ipynb", folder / "params" / "seconds.yaml"
    first.write_text(first.read_text().replace("A question?", "A question?\\n\\n**Time** smoke 3 s, tiny 7 min (two)."))
    file.write_text('demo:\n  "01": 5\n')
    (notebook_runs.copies("tiny") / "timing.json").unlink(missing_ok=True)
    with pytest.raises(RunError, match="^tiny: no run has been timed"):
        timings.state("tiny")
    with timings.timed("tiny", ["01_first", "02_second"], 1):
        pass
    with pytest.raises(RunError, match="^tiny: 03_third was not part of the last run"):
        timings.state("tiny")
    with timings.timed("tiny", ["01_first", "02_second", "03_third"], 1) as timing:
        sum(range(10**6))
    assert timing.wall_s > 0 and str(timing).startswith("3 notebooks executed in 0 min 0 s; others used ")
    note = notebook_runs.copies("tiny") / "timing.json"
    noted = artifacts.read_json(note)
    artifacts.write_json(note, {**noted, "others": 0.25})
    with pytest.raises(RunError, match="others used 25% of the cores during the last run, more than 10%"):
        timings.state("tiny")
    artifacts.write_json(note, {**noted, "others": 0.05, "wall_s": 80.0})
    assert timings.state("tiny")[:2] == [file, first]
    took = timings.seconds("tiny")
    assert presets.usual_seconds("demo") == {"01_first": 5} and set(presets.usual_seconds("tiny")) == set(took) != set()
    assert f"smoke 3 s, tiny {took['01_first']:.0f} s (two)" in first.read_text() and '"all": 80' in file.read_text()


@pytest.mark.skipif(os.cpu_count() == 1, reason="needs a second core")
def test_other_peoples_work_is_counted_and_own_is_not(project):
    """The share of the cores that a busy process beside the run takes, and a busy child of the run does not."""
    spin = [sys.executable, "-c", "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"]
    with timings.timed("tiny", [], 1) as own:
        subprocess.run(spin, check=True)
    beside = subprocess.Popen(spin)
    with timings.timed("tiny", [], 1) as other:
        time.sleep(0.5)  # not waited for inside: a child counts as ours when it has ended
    beside.wait()
    assert other.others * other.wall_s * os.cpu_count() > 0.2
    assert other.others > own.others or own.others > 0.3  # on a machine that others fill nothing can be told


def test_a_run_on_your_video_leaves_the_presets_own_copy_alone(project):
    write_notebook(project, "01_first", "video_file: str = ''  # yours", "from vau_lib.workspace import notebook_runs",
                   "notebook_runs.record(seen=video_file)")  # fmt: skip
    mine = {"video_file": "/some where/my clip.v2.mp4"}
    assert notebook_runs.plan("tiny", ["1"])[0].output.name == "01_first.ipynb"
    done = CliRunner().invoke(cli.app, ["run", "tiny", "1", "-p", f"video_file={mine['video_file']}"])
    assert done.exit_code == 0 and "1 of 1: 01_first@video_file=my_clip.v2 (" in done.output, done.output
    assert notebook_runs.state("tiny", "01_first") == "to run" and timings.seconds("tiny") == {}
    row = notebook_runs.table("tiny").iloc[0]
    assert (row["notebook"], row["seen"]) == ("01_first", mine["video_file"])
    assert "<h2>01 · 01_first@video_file=my_clip.v2</h2>" in gallery.place("tiny").read_text()
    assert notebook_runs.plan("tiny", (), mine)[0].why == ""


def test_a_choice_or_fresh_always_runs(resumed):
    assert reasons("tiny", ["2"]) == ["asked for"] and reasons("tiny", fresh=True) == ["fresh"] * 3


def test_a_notebook_is_not_done_when_an_earlier_one_ran_after_it(resumed):
    first, second = (notebook_runs.copies("tiny") / f"{name}.ipynb" for name in ("01_first", "02_second"))
    before = first.read_text()
    ended = json.loads(before)["metadata"]["papermill"]["end_time"]
    try:
        first.write_text(before.replace(ended, "2999-01-01T00:00:00+00:00"))
        assert reasons("tiny") == ["", "an earlier notebook ran after it", "02 runs before it"]
    finally:
        first.write_text(before)
    assert second.exists() and reasons("tiny") == ["", "", ""]


def test_a_copy_cut_short_is_not_taken_for_a_finished_one(resumed):
    third = notebook_runs.copies("tiny") / "03_third.ipynb"
    before = third.read_text()
    try:
        third.write_text(before[: len(before) // 2])
        assert reasons("tiny")[2] == "was not finished" and notebook_runs.state("tiny", "03_third") == "unfinished"
        assert notebook_runs.table().iloc[2]["failed"] == "unfinished"
    finally:
        third.write_text(before)


def test_overrides_are_checked_like_files(project):
    with pytest.raises(RunError, match="-p: nobody declares 'brokn'; the nearest name is 'broken'"):
        notebook_runs.plan("tiny", overrides={"brokn": True})
    with pytest.raises(RunError, match="-p: count must be int, got str 'x'"):
        notebook_runs.plan("tiny", overrides={"count": "x"})
    with pytest.raises(RunError, match="-p: nobody declares 'broken'"):
        notebook_runs.plan("tiny", ["01"], {"broken": True})
    assert [step.parameters for step in notebook_runs.plan("tiny", ["1", "3"], {"rate": 2})] == [{"count": 5, "rate": 2}, {}]


def test_a_dry_run_writes_nothing(project):
    assert [step.why for step in notebook_runs.run("tiny", dry_run=True)] == ["has not run"] + ["01 runs before it"] * 2
    assert not (project / "data").exists()


def test_record_takes_scalars_and_refuses_the_rest():
    kept = notebook_runs.record(a=np.float32(0.5), b=np.int64(3), c=np.array(1.5), d="x", e=True, f=np.bool_(False))
    assert kept == {"a": 0.5, "b": 3, "c": 1.5, "d": "x", "e": True, "f": False}
    assert {type(value) for value in kept.values()} == {float, int, str, bool}
    for wrong, message in ((float("nan"), "finite float, got nan"), ([1], r"got \[1\]"), (None, "got None")):
        with pytest.raises(RunError, match=f"record: auc must be .*{message}"):
            notebook_runs.record(auc=wrong)
    with pytest.raises(RunError, match="record: seconds is a column of the table itself"):
        notebook_runs.record(seconds=3)


def test_an_empty_project_has_an_empty_table(project):
    assert list(notebook_runs.table().columns) == list(notebook_runs.OWN_COLUMNS) and notebook_runs.table("tiny").empty
    with pytest.raises(RunError, match="no preset 'tyni'"):
        notebook_runs.table("tyni")


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_is_one_line_and_leaves_a_copy_to_resume_from(project, workers):
    """A terminal's Ctrl-C reaches every process of the run."""
    wait = "running.touch()\nfor _ in range(10_000):\n    if Path('never comes').exists():\n        break\n    time.sleep(0.1)"
    imports = f"import time\nfrom pathlib import Path\nrunning = Path({str(project / 'running')!r})"
    write_notebook(project, "01_first", "", imports, wait, "done = True")
    write_params(project, "tiny", "_shared", "notebooks: [01]")
    command = [sys.executable, "-c", "from vau_lib.cli import app; app()", "run", "tiny", "--workers", str(workers)]
    # a suite started in the background of a shell has Ctrl-C ignored, and its children with it
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "start_new_session": True}
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard)
    limit = time.monotonic() + 600
    try:
        while not (project / "running").exists():  # the cell itself says that it runs, however long that takes
            assert job.poll() is None and time.monotonic() < limit, job.communicate(timeout=1)
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGINT)
        _, said = job.communicate(timeout=600)
    finally:
        job.kill()
    lines = [line for line in said.splitlines() if line.strip() and "%|" not in line]  # without progress bars
    assert job.returncode == 130 and lines == ["vau: stopped; the same command goes on from here"]
    assert reasons("tiny")[0].startswith("stopped last time: interrupted at In [")
    assert notebook_runs.state("tiny", "01_first") == "failed"


def test_a_second_run_of_a_preset_at_once_says_so(project):
    with artifacts.only_one(notebook_runs.copies("tiny") / ".lock"):
        with pytest.raises(artifacts.StoreError, match="^another run is at work in .*data/runs/tiny$"):
            notebook_runs.run("tiny", ["3"])
    assert [step.why for step in notebook_runs.run("tiny", ["3"])] == ["asked for"]


def test_a_kernel_that_dies_is_named_with_its_cell(project):
    write_notebook(project, "03_third", "", "import os", "os._exit(3)  # as when memory runs out", "1")
    with pytest.raises(RunError, match=r"03_third stopped at In \[2\] `os._exit\(3\).*`: DeadKernelError"):
        notebook_runs.run("tiny", ["3"])
    assert "DeadKernelError" in notebook_runs.table()["failed"][0] and notebook_runs.state("tiny", "03_third") == "failed"


def test_a_copy_made_by_papermill_itself_has_a_row_too(project):
    import papermill

    copy = notebook_runs.copies("tiny") / "01_first.ipynb"
    copy.parent.mkdir(parents=True)
    source = presets.notebooks()["01_first"]
    papermill.execute_notebook(source, copy, {"count": 4, "notebooks": ["01"]}, progress_bar=False)
    row = notebook_runs.table().iloc[0]
    assert (row["count"], row["doubled"], row["failed"]) == (4, 8, "") and "notebooks" not in notebook_runs.table()
    assert reasons("tiny")[0] == "was not finished"


def _ended(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"  # nobody is there to bury it


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_no_kernel_and_no_worker_outlives_a_killed_run(project, workers):
    """The kernel is busy in a cell, and in C code that answers nobody, when the run is killed."""
    for name in ("01_first", "02_second"):
        note = f"Path({str(project)!r}, '{name}').write_text(f'{{os.getpid()}} {{os.getppid()}}')"
        mark = f"import os, time\nfrom pathlib import Path\n{note}"
        write_notebook(project, name, "", mark, "time.sleep(300)")
    write_params(project, "tiny", "_shared", "notebooks: [01, 02]")
    (project / "params" / "needs.yaml").write_text("01: []\n02: []\n")
    command = [sys.executable, "-c", "from vau_lib.cli import app; app()", "run", "tiny", "--workers", str(workers)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marks = [project / name for name in ("01_first", "02_second")[:workers]]
    try:
        limit = time.monotonic() + 300
        while not all(mark.is_file() and len(mark.read_text().split()) == 2 for mark in marks):
            assert job.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        alive = [int(pid) for mark in marks for pid in mark.read_text().split()]
        assert len(set(alive)) == 2 * workers and not any(map(_ended, alive))
    finally:
        job.kill()
        job.wait()
    limit = time.monotonic() + 60
    while not all(map(_ended, alive)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert [pid for pid in alive if not _ended(pid)] == []


def test_kernels_keep_freed_pages_and_the_callers_own_settings_win(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    with notebook_runs._kept_pages():
        assert int(os.environ["MALLOC_MMAP_THRESHOLD_"]) == 32 * 1024**2  # the most that glibc takes
        assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "4096"
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ and os.environ["MALLOC_TRIM_THRESHOLD_"] == "4096"

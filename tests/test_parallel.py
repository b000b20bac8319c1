"""One broken item is a line, not the end; every engine gives the same answers."""

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from vau_lib.workspace import parallel, ray_pool


def halve(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_results_come_with_their_items_and_errors_as_lines(engine):
    found = {item: (result, error) for item, result, error in parallel.map_videos(halve, [4, 5, 8], engine=engine)}
    assert found == {4: (2, None), 5: (None, "5 is odd"), 8: (4, None)}


def test_a_defect_of_ours_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(parallel.map_videos(lambda number: 1 / number, [0]))


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine must be one of serial, threads, processes, ray, got 'cluster'"):
        list(parallel.map_videos(halve, [2], engine="cluster"))


def leave_mark(item):
    """Leave a file once the files it needs are there; a short wait makes an early start show."""
    folder, key, needs = item
    time.sleep(0.2 if key == "a" else 0)
    if missing := [other for other in needs if not (folder / other).exists()]:
        raise ValueError(f"{key} began before {missing}")
    (folder / key).touch()


def test_nothing_begins_before_what_it_needs_and_nothing_after_an_error(tmp_path):
    needs = {"a": set(), "b": {"a", "elsewhere"}, "c": {"b"}, "d": {"a"}}
    items = {key: (tmp_path, key, needs[key] - {"elsewhere"}) for key in "abcd"}
    assert dict(parallel.in_order(leave_mark, items, needs, workers=2)) == dict.fromkeys("abcd")
    failing = dict(parallel.in_order(halve, {"a": 2, "b": 3, "c": 2}, needs, workers=2))
    assert failing == {"a": None, "b": "3 is odd"}


def test_what_waits_for_each_other_is_said():
    with pytest.raises(ValueError, match="^these wait for each other: a, b$"):
        list(parallel.in_order(halve, {"a": 2, "b": 2}, {"a": {"b"}, "b": {"a"}}))


def die_at_two(number: int) -> int:
    if number == 2:
        os._exit(7)
    return 10 * number


def test_a_worker_that_dies_is_one_error_line_and_the_rest_goes_on():
    found = {item: (result, error) for item, result, error in parallel.map_videos(die_at_two, range(8), engine="processes")}
    assert found.pop(2) == (None, "its worker process died (exit code 7); the others go on")
    assert found == {n: (10 * n, None) for n in (0, 1, 3, 4, 5, 6, 7)}


def test_a_dead_worker_is_an_error_line_of_ordered_work_too():
    needs = {"a": set(), "b": {"a"}, "c": set()}
    found = dict(parallel.in_order(die_at_two, {"a": 1, "b": 2, "c": 3}, needs, workers=2))
    assert found == {"a": None, "b": "its worker process died (exit code 7); the others go on", "c": None}


def test_a_defect_in_a_worker_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        list(parallel.map_videos((1).__truediv__, [0], engine="processes"))


PARENT = """
import os, sys, time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from vau_lib.workspace import parallel, ray_pool

def sleep(item):
    Path(item).write_text(str(os.getpid()))
    time.sleep(120)

if __name__ == "__main__":
    list(parallel.map_videos(sleep, sys.argv[1:], engine="processes", workers=2))
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_no_worker_outlives_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    marks = [tmp_path / "a", tmp_path / "b"]
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), *map(str, marks)], cwd=tmp_path)

    def wait_for(condition) -> None:
        until = time.monotonic() + 60
        while not condition() and time.monotonic() < until:
            time.sleep(0.1)
        assert condition()

    def ended(mark: Path) -> bool:
        try:
            status = Path(f"/proc/{mark.read_text()}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return status.rpartition(")")[2].split()[0] == "Z"  # nobody is there to bury it

    wait_for(lambda: all(mark.exists() and mark.read_text() for mark in marks))
    assert not any(map(ended, marks))
    parent.kill()
    parent.wait()
    wait_for(lambda: all(map(ended, marks)))


def begun(item):
    path, name = item
    with path.open("a") as file:
        file.write(name)


def test_what_the_longest_chain_waits_for_begins_first(tmp_path):
    log = tmp_path / "order"
    items, needs = {name: (log, name) for name in "abcd"}, {"a": set(), "b": set(), "c": {"b"}, "d": set()}
    list(parallel.in_order(begun, items, needs, workers=1, seconds={"a": 4, "b": 2, "c": 3, "d": 1}))
    assert log.read_text() == "bacd"  # b and c come to 5, a to 4, c to 3


@pytest.mark.parametrize(("slow", "address", "asked"), [(2, None, 3), (3, None, 3), (1, "10.0.0.1:6379", 1)])
def test_a_node_of_ray_that_starts_too_slowly_is_started_again_a_cluster_elsewhere_is_not(slow, address, asked):
    tries = []

    def init(**options):
        tries.append(options["address"])
        if len(tries) <= slow:
            raise Exception("The current node timed out during startup. This could happen because ...")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    with nullcontext() if slow == 2 else pytest.raises(ValueError, match="^no Ray cluster .* timed out during startup"):
        ray_pool._connect(ray, address, 2)
    assert tries == [address or "local"] * asked

"""One broken item is a line, not the end; every engine gives the same answers."""

import time

import pytest

from vau_lib.workspace import parallel


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
    with pytest.raises(ValueError, match="engine must be one of serial, processes, ray, got 'threads'"):
        list(parallel.map_videos(halve, [2], engine="threads"))


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


@pytest.mark.slow
def test_ray_gives_the_same_answers():
    pytest.importorskip("ray", reason='needs the extra: pip install -e ".[cluster]"')
    import ray

    found = {item: (result, error) for item, result, error in parallel.map_videos(int, ["4", "x"], engine="ray")}
    ray.shutdown()
    assert found["4"] == (4, None) and "invalid literal" in found["x"][1]

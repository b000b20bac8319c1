"""One broken item is a line, not the end; every engine gives the same answers."""

import pytest

from vau_lib import cluster


def halve(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_results_come_with_their_items_and_errors_as_lines(engine):
    found = {item: (result, error) for item, result, error in cluster.map_videos(halve, [4, 5, 8], engine=engine)}
    assert found == {4: (2, None), 5: (None, "5 is odd"), 8: (4, None)}


def test_a_defect_of_ours_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(cluster.map_videos(lambda number: 1 / number, [0]))


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine must be one of serial, processes, ray, got 'threads'"):
        list(cluster.map_videos(halve, [2], engine="threads"))


@pytest.mark.slow
def test_ray_gives_the_same_answers():
    pytest.importorskip("ray", reason='needs the extra: pip install -e ".[cluster]"')
    import ray

    found = {item: (result, error) for item, result, error in cluster.map_videos(int, ["4", "x"], engine="ray")}
    ray.shutdown()
    assert found["4"] == (4, None) and "invalid literal" in found["x"][1]

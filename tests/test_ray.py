"""Ray's actors over the nodes of a cluster: a node that goes and a worker that dies lose nothing and change nothing."""

import os
import signal
from pathlib import Path

import pytest
from conftest import moving_square

from vau_lib.data import records, video
from vau_lib.features import extraction
from vau_lib.workspace import parallel, ray_pool

ray = pytest.importorskip("ray", reason='needs the extra: pip install -e ".[cluster]"')
CLIPS = int(os.environ.get("VAU_RAY_CLIPS", "8"))
RECIPE = extraction.Recipe("xfeat", 16, (("weights", "random"), ("side", 32)), device="cpu")


@pytest.fixture
def cluster():
    """A head without processors, and two nodes with one each."""
    from ray.cluster_utils import Cluster

    try:
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    except Exception as error:  # it gives its own processes 15 s to start, and raises nothing more special
        pytest.skip(f"Ray did not start: {error}")
    try:
        made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def test_a_node_killed_midway_and_the_files_are_those_of_one_process(cluster, tmp_path):
    root, found = tmp_path / "root", []
    for n in range(CLIPS):
        video.write_video(root / f"{n}.mp4", moving_square(20 + n, 32, 48))
        found.append(records.VideoRecord(f"clip{n}", f"{n}.mp4", "toy", "train", 0))
    extraction.extract(found, root, tmp_path / "serial", RECIPE)
    parts, answer = [], parallel.map_videos

    def kills_a_node(*args, **kwargs):
        for item in answer(*args, **kwargs):
            parts.append(item)
            if len(parts) == CLIPS // 2:
                cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
            yield item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction.parallel, "map_videos", kills_a_node)
        options = {"engine": "ray", "workers": 2, "address": cluster.address}
        done = extraction.extract(found, root, tmp_path / "ray", RECIPE, **options)
    assert (done.encoded, done.skipped) == (CLIPS, ())
    for record in found:
        one, other = (extraction.feature_path(tmp_path / name, record.id) for name in ("serial", "ray"))
        assert one.read_bytes() == other.read_bytes()


@pytest.fixture(scope="module")
def here():
    """A cluster of this machine alone, with two processors."""
    try:
        ray_pool._connect(ray, None, 2)
    except ValueError as error:  # it gives its own processes 15 s to start
        pytest.skip(f"Ray did not start: {error}")
    yield
    ray.shutdown()


def dies_once(item: tuple[int, str]) -> tuple[int, int]:
    """Kill the worker at item 3, the first time it is tried; and at item 5 always."""
    number, folder = item
    mark = Path(folder) / str(number)
    first = not mark.exists()
    mark.touch()
    if number == 5 or (number == 3 and first):
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number, os.getpid()


def test_a_worker_killed_loses_the_item_in_flight_for_a_moment_only(here, tmp_path):
    items = [(n, str(tmp_path)) for n in range(8)]
    found = {i[0]: (result, error) for i, result, error in parallel.map_videos(dies_once, items, engine="ray", workers=2)}
    assert found.pop(5) == (None, "its worker process died 2 times; the others go on")
    assert {n: result[0] for n, (result, _) in found.items()} == {n: 10 * n for n in (0, 1, 2, 3, 4, 6, 7)}


def halve(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def test_answers_errors_and_defects_are_those_of_the_other_engines(here):
    found = {item: (result, error) for item, result, error in parallel.map_videos(halve, [4, 5, 8], engine="ray")}
    assert found == {4: (2, None), 5: (None, "5 is odd"), 8: (4, None)}
    with pytest.raises(ZeroDivisionError):
        list(parallel.map_videos((1).__truediv__, [0], engine="ray"))


class Unreadable:
    """A function that no other process can read."""

    def __reduce__(self):
        return int, ("no number",)

    def __call__(self, item):
        return item


def test_workers_that_cannot_begin_are_one_line(here):
    with pytest.raises(ValueError, match="8 workers ended before they began: .*no number"):
        list(parallel.map_videos(Unreadable(), [2], engine="ray"))


def test_what_the_cluster_has_no_room_for_is_refused(here, monkeypatch):
    monkeypatch.setattr("vau_lib.workspace.ray_pool.PATIENCE_S", 1.0)
    with pytest.raises(ValueError, match="no worker could begin within 1 s; the cluster has"):
        list(parallel.map_videos(halve, [2], engine="ray", num_gpus=3))

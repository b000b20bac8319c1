"""Ray's actors over the nodes of a cluster: a node that goes and a worker that dies lose nothing and change nothing."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import moving_square

from vau_lib import guard
from vau_lib.data import records, video
from vau_lib.evaluation import smarthome_bench, smarthome_prompts
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


def judge(tmp_path) -> tuple[guard.Loading, Path]:
    """The tiny model as a folder, and three clips of which one is broken."""
    from vau_lib.toy import tiny_vlm
    from vau_lib.vlm import models

    sizes = tiny_vlm.TinySizes(width=32, vision_width=32, text_layers=1, vision_layers=1)
    model = models.save(tiny_vlm.tiny("qwen2_5_vl", sizes=sizes), tmp_path / "model")
    for n in range(2):
        video.write_video(tmp_path / "clips" / f"{n}.mp4", moving_square(12 + n, 32, 48))
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"no video")
    return guard.Loading(model), tmp_path / "clips"


def test_guards_batches_and_a_benchmarks_answers_by_actors_are_those_of_one_process(here, tmp_path):
    loading, folder = judge(tmp_path)
    options = {"plan": guard.GuardPlan(num_frames=2, max_new_tokens=4), "log": None, "progress": False}
    expected = guard.guard(loading.vlm(), folder, **options)
    found = guard.guard(loading.vlm(), folder, tmp_path / "rows.jsonl", **options, engine="ray", workers=2, loading=loading)
    alike = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows] for rows in (expected, found)]
    assert alike[0] == alike[1] and len(found) == 3 and sum(bool(row["error"]) for row in found) == 1
    assert guard.guard(loading.vlm(), folder, tmp_path / "rows.jsonl", **options) == found  # nothing is asked twice
    asker = guard.Asker(loading, guard.GuardPlan(num_frames=2, max_new_tokens=4))
    clips, style = {n: folder / f"{n}.mp4" for n in "01"}, smarthome_prompts.PROMPTS["trlc"]
    one, other = (
        smarthome_bench.collect(asker, clips, style, name="tiny", progress=False, **engine)
        for engine in ({}, {"engine": "ray", "workers": 2})
    )
    assert one == other and set(one.answers) == {"0", "1"}


def large(number: int) -> np.ndarray:
    return np.full(30_000_000 // 8, number, float)  # 30 MB


def test_answers_that_do_not_fit_into_the_object_store_arrive_all_the_same(monkeypatch):
    """120 MB of answers for a store of 78 MB: Ray writes what does not fit to disk, and all arrive, one of 200 MB too."""
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # the workers import this file
    try:
        ray.init(address="local", num_cpus=2, object_store_memory=78_643_200, log_to_driver=False)
    except Exception as error:  # it gives its own processes 15 s to start
        pytest.skip(f"Ray did not start: {error}")
    try:
        found = {item: result for item, result, error in parallel.map_videos(large, range(4), engine="ray", workers=2)}
        assert {item: (len(result), result[0]) for item, result in found.items()} == {n: (3_750_000, n) for n in range(4)}
        arrived = {item: (len(result), error) for item, result, error in parallel.map_videos(too_large, [0, 1], engine="ray")}
        assert arrived == {0: (1, None), 1: (200_000_001, None)}
    finally:
        ray.shutdown()


def too_large(number: int) -> bytes:
    return bytes(200_000_000 * number + 1)  # one answer larger than the store

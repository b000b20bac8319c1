"""One function over many items: serially, in worker processes, or on a Ray cluster.

- results land as they come; one broken video is a line in the summary, never the end of the batch
- processes start fresh ("spawn"): torch and codecs do not survive a fork
- no scheduler of our own: past one machine, Ray does it
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from graphlib import CycleError, TopologicalSorter
from multiprocessing import get_context

from tqdm.auto import tqdm

from vau_lib.workspace import artifacts

ENGINES = ("serial", "processes", "ray")


def _attempt(fn: Callable, item: object) -> tuple[object, str | None]:
    """Run one item; bad input (ValueError, OSError) becomes its one-line message, a defect of ours still raises."""
    try:
        return fn(item), None
    except (ValueError, OSError) as error:
        return None, artifacts.one_line(error, limit=600)


def map_videos(
    fn: Callable, items: Iterable, *, engine: str = "serial", workers: int = 2, desc: str = "videos"
) -> Iterator[tuple[object, object, str | None]]:
    """Yield (item, result, None) or (item, None, error line) for every item, in the order they finish.

    `fn` and the items must pickle for "processes" and "ray". One progress bar. Stopping the iteration (Ctrl-C) cancels
    what has not begun; what `fn` wrote stays.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    items = list(items)
    finished = {"serial": _serial, "processes": _processes, "ray": _ray}[engine](fn, items, workers)
    with tqdm(total=len(items), desc=desc, unit="video") as bar:
        for position, result, error in finished:
            bar.update()
            yield items[position], result, error


def _serial(fn, items, workers):
    for position, item in enumerate(items):
        yield position, *_attempt(fn, item)


def _processes(fn, items, workers):
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_attempt, fn, item): position for position, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                yield futures[future], *future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ray(fn, items, workers):
    try:
        import ray
    except ImportError as error:
        raise ValueError('engine="ray" needs the extra: pip install -e ".[cluster]"') from error
    if not ray.is_initialized():
        ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else workers, log_to_driver=False)
    task = ray.remote(_attempt)
    waiting = {task.remote(fn, item): position for position, item in enumerate(items)}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        yield waiting.pop(done), *ray.get(done)


def in_order(fn: Callable, items: Mapping, needs: Mapping, *, workers: int = 2) -> Iterator[tuple[object, str | None]]:
    """Run {key: item} in processes, each once all of `needs[key]` are done; yield (key, error line or None) as they finish.

    Keys in `needs` that are no items count as done. After an error nothing new begins; what runs is waited for. ValueError where
    items wait for each other.
    """
    order = TopologicalSorter({key: set(needs[key]) & items.keys() for key in items})
    try:
        order.prepare()
    except CycleError as error:
        names = ", ".join(sorted({str(key) for key in error.args[1]}))
        raise ValueError(f"these wait for each other: {names}") from error
    ready, running, failed = list(order.get_ready()), {}, False
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while running or (ready and not failed):
            while ready and not failed and len(running) < workers:
                key = ready.pop(0)
                running[pool.submit(_attempt, fn, items[key])] = key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key, error = running.pop(future), future.result()[1]
                failed = failed or error is not None
                order.done(key)
                yield key, error
            ready += order.get_ready()

"""One function over many items: serially, in threads or worker processes, or on a Ray cluster.

- results land as they come; one broken video is a line in the summary, never the end of the batch
- threads are for a network on a GPU, which fills its batches from all of them
- processes start fresh ("spawn"): torch and codecs do not survive a fork
- a worker that dies (a codec's abort, memory that ran out) is the error line of its own item; the others go on in new workers
- a worker ends with its parent, a killed one too
- no scheduler of our own: past one machine, Ray does it (`ray_pool`)
- each worker process knows its number ($VAU_WORKER), so that several share out a machine's GPUs
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from graphlib import CycleError, TopologicalSorter
from multiprocessing import connection, get_context, parent_process

from tqdm.auto import tqdm

from vau_lib.workspace import artifacts, ray_pool

ENGINES = ("serial", "threads", "processes", "ray")
AT_END: list[Callable] = []  # what a worker process does before it ends


def _attempt(fn: Callable, item: object) -> tuple[object, str | None]:
    """Run one item; bad input (ValueError, OSError, what does not fit into memory) becomes its one-line message, a defect of
    ours still raises."""
    try:
        return fn(item), None
    except (ValueError, OSError, EOFError, MemoryError, OverflowError, RecursionError) as error:
        return None, artifacts.one_line(error, limit=600)


def map_videos(
    fn: Callable,
    items: Iterable,
    *,
    engine: str = "serial",
    workers: int = 2,
    desc: str = "videos",
    note: Callable[[], str] | None = None,
    **cluster: object,
) -> Iterator[tuple[object, object, str | None]]:
    """Yield (item, result, None) or (item, None, error line) for every item, in the order they finish.

    `fn` and the items must pickle for "processes" and "ray". One progress bar. Stopping the iteration (Ctrl-C) cancels
    what has not begun; what `fn` wrote stays.

    Args:
        fn: the work on one item.
        items: what is worked on.
        engine: one of `ENGINES`.
        workers: threads, processes, or actors of Ray.
        desc: what the progress bar is called.
        note: what it says behind the count, asked after each item.
        cluster: `num_gpus` and `address` of engine "ray", see `ray_pool.run`.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if cluster and engine != "ray":
        raise ValueError(f"{', '.join(cluster)}: for engine ray, got {engine!r}")
    items = list(items)
    finished = {"serial": _serial, "threads": _threads, "processes": _processes, "ray": _ray}[engine](fn, items, workers, **cluster)
    with tqdm(total=len(items), desc=desc, unit="video") as bar:
        for position, result, error in finished:
            yield items[position], result, error
            if note:
                bar.set_postfix_str(note(), refresh=False)
            bar.update()


def _serial(fn, items, workers):
    for position, item in enumerate(items):
        yield position, *_attempt(fn, item)


def _threads(fn, items, workers):
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(_attempt, fn, item): position for position, item in enumerate(items)}
        try:
            for future in as_completed(running):
                yield running[future], *future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _processes(fn, items, workers):
    with _Workers(fn, workers) as pool:
        waiting = list(enumerate(items))[::-1]
        while waiting or pool.running:
            while waiting and pool.free:
                pool.begin(*waiting.pop())
            yield from pool.finished()


def end_with_parent() -> None:
    """Wait in a thread until the parent is gone, then end this process at once: nobody wants its results."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(fn: Callable, pipe: connection.Connection, number: int = 0) -> None:
    """Run items as they arrive until the pipe is closed, then end at once: taking torch's libraries apart took seconds."""
    _answer_items(fn, pipe, number)
    for end in AT_END:
        end()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(0)


def _answer_items(fn: Callable, pipe: connection.Connection, number: int) -> None:
    os.environ["VAU_WORKER"] = str(number)
    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        try:
            item = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer = _attempt(fn, item)
        except Exception as error:  # a defect of ours: the parent raises it
            answer = error
        except KeyboardInterrupt:  # a terminal's Ctrl-C reaches every process; one line of it is enough, and the parent has that
            return
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionError):
            return
        except Exception as error:  # what does not pickle
            pipe.send((None, artifacts.one_line(f"its result cannot be sent: {error}")))


class _Workers:
    """Worker processes, each with a pipe of its own, so that one that dies takes nothing but its item with it."""

    def __init__(self, fn: Callable, number: int):
        if number < 1:
            raise ValueError(f"workers must be 1 or more, got {number}")
        self.fn, self.number, self.context = fn, number, get_context("spawn")
        self.begun = 0  # processes ever started
        self.idle: list[tuple] = []  # (process, pipe)
        self.running: dict[connection.Connection, tuple] = {}  # pipe: (process, key)

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, kind, *_) -> None:
        workers = [*self.idle, *((process, pipe) for pipe, (process, _) in self.running.items())]
        for _, pipe in workers:
            pipe.close()  # a worker reads its end and returns; one in the middle of an item is waited for
        for process, _ in workers:
            process.join()

    @property
    def free(self) -> bool:
        return len(self.running) < self.number

    def begin(self, key: object, item: object) -> None:
        if self.idle:
            process, pipe = self.idle.pop()
        else:
            pipe, theirs = self.context.Pipe()
            process = self.context.Process(target=_work, args=(self.fn, theirs, self.begun), daemon=False)
            self.begun += 1
            process.start()
            theirs.close()  # the only open end is the worker's: its death is the pipe's end
        pipe.send(item)
        self.running[pipe] = process, key

    def finished(self) -> Iterator[tuple[object, object, str | None]]:
        """Wait until something ends; yield (key, result, error line or None) of all that did."""
        for pipe in connection.wait(list(self.running)):
            process, key = self.running.pop(pipe)
            try:
                answer = pipe.recv()
            except (EOFError, ConnectionError):
                process.join()
                pipe.close()
                yield key, None, _death(process.exitcode)
                continue
            self.idle.append((process, pipe))
            if isinstance(answer, Exception):
                raise answer
            yield key, *answer


def _death(code: int | None) -> str:
    """Say how a worker process ended."""
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"its worker process died ({how}{', out of memory?' if code == -9 else ''}); the others go on"


def _ray(fn, items, workers, **options):
    yield from ((place, *answer) for place, answer in ray_pool.run(partial(_attempt, fn), items, workers=workers, **options))


def in_order(
    fn: Callable, items: Mapping, needs: Mapping, *, workers: int = 2, seconds: Mapping | None = None
) -> Iterator[tuple[object, str | None]]:
    """Run {key: item} in processes, each once all of `needs[key]` are done; yield (key, error line or None) as they finish.

    Of those that can begin, the one with the most `seconds` of work on its longest chain begins first (1 where none are given).
    Keys in `needs` that are no items count as done. After an error nothing new begins; what runs is waited for. ValueError where
    items wait for each other.
    """
    order = TopologicalSorter({key: set(needs[key]) & items.keys() for key in items})
    try:
        order.prepare()
    except CycleError as error:
        names = ", ".join(sorted({str(key) for key in error.args[1]}))
        raise ValueError(f"these wait for each other: {names}") from error
    ready, failed, chains = list(order.get_ready()), False, _chains(items, needs, seconds or {})
    with _Workers(fn, workers) as pool:
        while pool.running or (ready and not failed):
            while ready and not failed and pool.free:
                key = ready.pop(max(range(len(ready)), key=lambda place: chains[ready[place]]))
                pool.begin(key, items[key])
            for key, _, error in pool.finished():
                failed = failed or error is not None
                order.done(key)
                yield key, error
            ready += order.get_ready()


def _chains(items: Mapping, needs: Mapping, seconds: Mapping) -> dict:
    """Return each item's seconds and those of the longest chain that waits for it."""
    chains = {}
    for key in reversed([*TopologicalSorter({key: set(needs[key]) & items.keys() for key in items}).static_order()]):
        chains[key] = seconds.get(key, 1) + max((chains[later] for later in items if key in needs[later]), default=0)
    return chains

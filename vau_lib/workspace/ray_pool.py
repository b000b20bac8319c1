"""A pool of Ray actors: the same function over the machines of a cluster, or over this one.

- an actor is a process that stays: what a function builds once (an encoder) is built once an actor; `num_gpus` says how much of
  a GPU each gets, and Ray shows it that GPU only
- an actor is given its next item when it has answered: nothing piles up, and a lost actor takes one item with it
- a lost item is tried once more on another actor, since a node may have been taken away; an item that ends two actors is its own
  error line. Actors that were lost are replaced where the cluster still has room
- results should be small: what is large is written to files by the function, on a disk that all nodes share
The cluster is the one of `address`, else of $RAY_ADDRESS, else one on this machine with as many CPUs as workers.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from vau_lib.workspace import artifacts

TRIES = 2  # of an item whose actor was lost
FAILED_STARTS = 8  # actors in a row that end before they begin
STARTS = 3  # of a cluster on this machine: Ray gives each 30 s, which a busy machine may need longer for
PATIENCE_S = 120.0  # until the first actor, or after all are lost a new one, has to be there


def run(
    fn: Callable, items: Sequence, *, workers: int = 2, num_gpus: float = 0.0, address: str | None = None
) -> Iterator[tuple[int, tuple[object, str | None]]]:
    """Yield (place of the item, fn(item)) as they finish; `fn` returns (result, error line). ValueError where Ray has no room.

    Args:
        fn: runs in the actors; it and the items must pickle.
        items: one each call.
        workers: actors, with one CPU each.
        num_gpus: of each actor; .5 lets two share a GPU.
        address: of a running cluster, "auto" for the one on this machine.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError('engine="ray" needs the extra: pip install -e ".[cluster]"') from error
    if workers < 1 or num_gpus < 0:
        raise ValueError(f"workers must be 1 or more and num_gpus 0 or more, got {workers} and {num_gpus}")
    _connect(ray, address, workers)
    pool = _Pool(ray, fn, min(workers, max(1, len(items))), num_gpus)
    try:
        yield from pool.run(items)
    finally:
        pool.close()


def _connect(ray, address: str | None, workers: int) -> None:
    if ray.is_initialized():
        return
    address, before = address or os.environ.get("RAY_ADDRESS"), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the workers of this machine import what we can import
    try:
        for left in reversed(range(STARTS)):
            try:
                # "local", or Ray would look for a cluster that was here before
                ray.init(address=address or "local", num_cpus=None if address else workers, log_to_driver=False)
                break
            except Exception as error:
                if address or not left or "timed out during startup" not in str(error):
                    raise
    except Exception as error:  # a node that starts too slowly raises nothing more special
        where = f"at {address}" if address else "on this machine"
        raise ValueError(f"no Ray cluster {where}: {artifacts.one_line(error, 200)}") from error
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class _Actor:
    """What runs in an actor: one function, kept between items."""

    def __init__(self, fn: Callable):
        self.fn = fn

    def ready(self) -> bool:
        """Return once the actor lives."""
        return True

    def call(self, item: object) -> tuple[object, str | None]:
        """Return the function's answer to one item."""
        return self.fn(item)


class _Pool:
    """Actors that wait for a place in the cluster, idle ones, and busy ones; every reference Ray is asked about is a key."""

    def __init__(self, ray, fn: Callable, workers: int, num_gpus: float):
        self.ray, self.workers = ray, workers
        kind = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=0)(_Actor)
        function = ray.put(fn)  # once, not with every actor
        self.make = lambda: kind.remote(function)
        self.failed_starts = 0
        self.coming, self.idle, self.busy = {}, [], {}  # {reference: actor}, [actor], {reference: (actor, place)}
        for _ in range(workers):
            self._begin()

    def _begin(self) -> None:
        actor = self.make()
        self.coming[actor.ready.remote()] = actor

    def run(self, items: Sequence) -> Iterator[tuple[int, tuple[object, str | None]]]:
        waiting, tries = deque(range(len(items))), [0] * len(items)
        alone_since = time.monotonic()
        while waiting or self.busy:
            while waiting and self.idle:
                place = waiting.popleft()
                tries[place] += 1
                actor = self.idle.pop()
                self.busy[actor.call.remote(items[place])] = actor, place
            done, _ = self.ray.wait([*self.busy, *self.coming], num_returns=1, timeout=5.0)
            if self.busy or self.idle or done:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > PATIENCE_S:
                raise ValueError(f"no worker could begin within {PATIENCE_S:g} s; the cluster has {self.ray.cluster_resources()}")
            for reference in done:
                if reference in self.coming:
                    self._arrived(reference)
                    continue
                actor, place = self.busy.pop(reference)
                answer = self._answer(reference, actor)
                if answer is not None:
                    yield place, answer
                elif tries[place] < TRIES:
                    waiting.appendleft(place)
                else:
                    yield place, (None, f"its worker process died {TRIES} times; the others go on")

    def _arrived(self, reference) -> None:
        actor = self.coming.pop(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except self.ray.exceptions.RayError as error:  # its node went while it began, or it lacks what the function needs
            self.failed_starts += 1
            if self.failed_starts >= FAILED_STARTS:
                last = str(error).strip().splitlines()[-1]
                raise ValueError(f"{FAILED_STARTS} workers ended before they began: {artifacts.one_line(last, 200)}") from error
            self._begin()
            return
        self.idle.append(actor)
        self.failed_starts = 0

    def _answer(self, reference, actor) -> tuple[object, str | None] | None:
        """Return what an actor answered; None where it was lost, and a new one is asked for."""
        try:
            answer = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # a defect of ours
            raise error.as_instanceof_cause() from None
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.NodeDiedError, self.ray.exceptions.WorkerCrashedError):
            self._begin()
            return None
        except self.ray.exceptions.RayError as error:  # its answer is lost or does not fit into the object store
            self.idle.append(actor)
            return None, f"its answer did not arrive: {artifacts.one_line(error, 200)}"
        self.idle.append(actor)
        return answer

    def close(self) -> None:
        """End all actors, those in the middle of an item too."""
        for actor in [*self.idle, *self.coming.values(), *(actor for actor, _ in self.busy.values())]:
            self.ray.kill(actor)

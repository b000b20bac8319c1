"""Where networks run, and frames that are decoded while the ones before are encoded.

- "auto" is CUDA, else Apple's MPS, else the CPU; of several GPUs a worker process takes the one of its number
- pixels go to a GPU through pinned memory without waiting; on a CPU nothing is copied
- threads with a video each can share one network's batches
- a source can run ahead in a thread, a bounded number of items: decoding and networks release Python's lock, so that both work
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vau_lib.workspace import artifacts


def choose(device: str | torch.device = "auto") -> torch.device:
    """Return the device of a name: auto, cpu, cuda, cuda:1, mps; ValueError where it cannot be used."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("VAU_WORKER", "0")) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:  # no such name, or none here
        raise ValueError(f"device {str(device)!r} cannot be used: {artifacts.one_line(error, 160)}") from error
    return wanted


def has_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is computed there and not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def bfloat16_pays(device: torch.device) -> bool:
    """Return whether large products are faster in bfloat16 than in float32 there, by what the processor says it is.

    Intel's processors with AVX512-FP16 multiply bfloat16 in AMX tiles. A virtual machine may hide these, and what is left has half
    of float32's speed (measured: 91 and 186 GFLOP/s); others with bfloat16 have about twice (217 and 97).
    """
    if device.type != "cpu":
        return has_bfloat16(device)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    without_tiles = "Intel" in str(found.get("cpu_name")) and found.get("avx512_fp16") and not found.get("amx_bf16")
    return has_bfloat16(device) and not without_tiles


def folded(net: nn.Module) -> nn.Module:
    """Return a network, in eval mode, with each batch norm that follows a convolution, padded or not, computed by it: an eighth
    less time."""
    for part in net.modules():
        if isinstance(part, nn.Sequential):
            for place in range(len(part) - 1):
                padded = isinstance(part[place], nn.Sequential)
                conv = part[place][-1] if padded else part[place]
                if isinstance(conv, nn.Conv2d) and isinstance(part[place + 1], nn.BatchNorm2d):
                    whole, part[place + 1] = fuse_conv_bn_eval(conv, part[place + 1]), nn.Identity()
                    if padded:
                        part[place][-1] = whole
                    else:
                        part[place] = whole
    return net


def placed(pixels: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; from the CPU to a GPU through pinned memory, without waiting for the copy."""
    if device.type == "cuda" and pixels.device.type == "cpu":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


class Together:
    """A function of frames (t, ...) that several threads call, answered by one call on what waits, of at most about `frames`.

    While one batch is computed the next gathers, so short videos fill a GPU's batch together and nobody waits for a full one. Each
    frame's rows must not depend on the frames beside it. An error is raised in every thread whose frames were in the batch.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], frames: int):
        self.function, self.frames = function, frames
        self._waiting: list[tuple[Tensor, Future]] = []
        self._list, self._running = threading.Lock(), threading.Lock()

    def __call__(self, frames: Tensor) -> Tensor:
        mine: Future = Future()
        with self._list:
            self._waiting.append((frames, mine))
        with self._running:
            while not mine.done():  # perhaps the thread before has answered it
                self._answer()
        return mine.result()

    def _answer(self) -> None:
        with self._list:
            taken = [self._waiting.pop(0)]
            size = len(taken[0][0])
            while self._waiting and self._waiting[0][0].shape[1:] == taken[0][0].shape[1:]:
                size += len(self._waiting[0][0])
                if size > self.frames:
                    break
                taken.append(self._waiting.pop(0))
        parts, answers = zip(*taken, strict=True)
        try:
            rows = self.function(torch.cat(parts) if len(parts) > 1 else parts[0]).split([len(part) for part in parts])
        except Exception as error:
            for answer in answers:
                answer.set_exception(error)
        else:
            for answer, found in zip(answers, rows, strict=True):
                answer.set_result(found)


class OnDevice:
    """What has a network, `net`, and says where it is."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    @property
    def on_gpu(self) -> bool:
        """Whether the processors are free for decoding meanwhile."""
        return self.device.type != "cpu"


class Ahead:
    """The items of an iterable, with the seconds it took to make them; with `depth` above 0 made in a thread, so many ahead.

    `source_s` is the time the source worked, `waited_s` the time the reader waited for it: without a thread they are the same.
    An error of the source is raised where its item would have come. Leaving the iteration ends the thread.
    """

    def __init__(self, items: Iterable, depth: int = 0):
        self.items, self.depth, self.source_s, self.waited_s = items, depth, 0.0, 0.0

    def __iter__(self) -> Iterator:
        return self._from_thread() if self.depth else self._here()

    def _timed(self) -> Iterator:
        items = iter(self.items)
        while True:
            started = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.source_s += time.perf_counter() - started
            yield item

    def _here(self) -> Iterator:
        for item in self._timed():
            self.waited_s = self.source_s
            yield item
        self.waited_s = self.source_s

    def _from_thread(self) -> Iterator:
        ready, left = queue.Queue(self.depth), threading.Event()

        def put(kind: str, value: object) -> bool:
            while not left.is_set():
                try:
                    ready.put((kind, value), timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for item in self._timed():
                    if not put("item", item):
                        return
                put("end", None)
            except BaseException as error:  # raised again in the reader
                put("error", error)

        thread = threading.Thread(target=work, daemon=True, name="decode ahead")
        thread.start()
        try:
            while True:
                started = time.perf_counter()
                kind, value = ready.get()
                self.waited_s += time.perf_counter() - started
                if kind == "error":
                    raise value
                if kind == "end":
                    return
                yield value
        finally:
            left.set()
            thread.join()

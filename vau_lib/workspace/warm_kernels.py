"""Kernels that begin with the large libraries imported: a run of many notebooks pays for torch and transformers once a worker.

A worker keeps one process that has imported `LIBRARIES` and computed nothing (multiprocessing's forkserver, one thread beside
that of Arrow's allocator, which prepares for forks). A kernel is a fork of it that then starts as `python -m ipykernel_launcher`
does, with its own environment, folder and session.
Linux without a CUDA card only: a fork of what has asked for a card cannot use it.
"""

import atexit
import logging
import os
import sys
import threading
from multiprocessing import forkserver, get_context

from jupyter_client import AsyncKernelManager

from vau_lib.workspace import parallel

LIBRARIES = ["ipykernel.kernelapp", "torch", "torchvision", "transformers.trainer", "peft", "pandas", "scipy.stats", "sklearn"]


def possible() -> bool:
    """Return whether kernels may be forks here."""
    return sys.platform == "linux" and not os.path.exists("/dev/nvidiactl")


def prepare() -> None:
    """Start the process kernels are forked from, in the background, with the environment of now, unless it is there."""
    before = forkserver._forkserver._forkserver_pid
    forkserver.set_forkserver_preload(LIBRARIES)
    forkserver.ensure_running()
    if forkserver._forkserver._forkserver_pid != before:
        parallel.AT_END[:] = [forkserver._forkserver._stop]  # waited for, the time of its kernels is this run's, see `timings`


class WarmKernelManager(AsyncKernelManager):
    """A kernel manager whose kernel is a fork of the prepared process; all else is jupyter_client's."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options: object) -> None:
        arguments = kernel_cmd[kernel_cmd.index("ipykernel_launcher") + 1 :]
        process = get_context("forkserver").Process(target=_kernel, args=(arguments, options.get("env"), options.get("cwd")))
        process.start()
        self.provisioner.process, self.provisioner.pid, self.provisioner.pgid = _Forked(process), process.pid, process.pid
        self._reconcile_connection_info(self.provisioner.connection_info)


class _Forked:
    """What jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process, self.pid = process, process.pid
        self.send_signal, self.kill, self.terminate = self._signal, process.kill, process.terminate

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def _signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _kernel(arguments: list[str], environment: dict | None, folder: str | os.PathLike | None) -> None:
    """Be a kernel until it is shut down; end at once when the worker that asked for it is gone."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # a group of its own, which an interrupt or a kill reaches with the processes a notebook started
    os.close(forkserver._forkserver._forkserver_alive_fd)  # held, it would keep the server alive, and that the kernel
    forkserver._forkserver._forkserver_alive_fd = None
    os.environ.clear()
    os.environ.update(environment or {}, JPY_PARENT_PID=str(os.getppid()))
    os.chdir(folder or os.getcwd())
    threading.Thread(target=parallel.end_with_parent, daemon=True).start()
    sys.argv = ["ipykernel_launcher", *arguments]
    app = IPKernelApp.instance()
    app.initialize(arguments)
    for logger in logging.root.manager.loggerDict.values():  # what a library warned of would go to the worker's stderr as well
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__:
                handler.setStream(sys.stderr)
    app.start()
    atexit._run_exitfuncs()  # temporary folders are removed; a fork ends without it

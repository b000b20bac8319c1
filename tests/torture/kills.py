"""SIGKILL at random moments: the same job then finishes, its files equal those of an undisturbed run, nothing is left over.

Jobs run in forks of a process that has imported everything, so that a kill costs what the job costs.
"""

import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from fake_chat_service import FakeChatService
from fake_file_server import SHA256, FileServer

from torture import kill_models
from torture.common import ANY, Job, Tally, limited
from vau_lib import guard
from vau_lib.data import annotation, download, hivau, records, video
from vau_lib.detectors import experiments, memtsm, preprocessing, trained_detector, training
from vau_lib.features import extraction
from vau_lib.synthetic import dataset
from vau_lib.vlm import clients
from vau_lib.workspace import artifacts

LABEL = "VAU_TORTURE_KILL"  # environment variable by which processes of a killed job are found
AGENTS = "ray::DashboardAgent", "ray::RuntimeEnvAgent"  # end after 60 s, in which they want to tell a dead head that it is dead
LOST = "worker process died", "that read it ended", "Kernel died"  # how a job says that one of its processes is gone
WIDTH = 6


def jobs(root: Path) -> tuple[dict[str, Job], list]:
    """Return {name: what it does in a folder}, and what must be closed."""
    films = root / "films"
    films.mkdir()
    for number in range(3):
        frames = np.random.default_rng(number).integers(0, 255, (34, 64, 64, 3), dtype=np.uint8)
        video.write_video(films / f"{number}.mp4", frames, fps=10)
    found = [records.VideoRecord(str(k), f"{k}.mp4", "own", "test", 0, fps=10.0, num_frames=34) for k in range(3)]
    recipe = extraction.Recipe("xfeat", options=(("weights", "random"), ("side", 64)))
    chat, files = FakeChatService('Quiet. {"anomaly": 0}'), FileServer()
    files.pause_s = 0.01
    rng = np.random.default_rng(0)
    rows = {f"v{n}": rng.normal(0, 1 + n % 2, (12, WIDTH)) for n in range(8)}
    fitted = preprocessing.Preprocessing.fit(rows, steps=12, temporal_difference=True)
    sets = preprocessing.Sequences(rows, {name: int(name[1:]) % 2 for name in rows}, fitted)
    plan = training.TrainingPlan(epochs=4, learning_rate=3e-3, batch_size=8)

    def train(folder: Path) -> None:
        torch.manual_seed(0)
        model = memtsm.MemTSM(memtsm.MemTSMConfig(in_channels=WIDTH, width=16, slots=8))
        place, facts = folder / "fold0_seed0", {"seed": 0}
        if experiments.is_done(place, facts):
            return
        begun = experiments.unfinished(place, facts)
        training.fit(
            model, lambda out, x, y: memtsm.loss(out, x, y, alpha=0.5), sets, sets, plan=plan, folder=begun, progress=False
        )
        trained = trained_detector.TrainedDetector(model.eval(), fitted, None)
        trained_detector.save(place, trained, facts=facts)
        experiments.write_scores(place, trained.score_video, [records.replace(found[0], id="v0")], rows)

    def annotate(folder: Path) -> None:
        def work(record: records.VideoRecord) -> list[hivau.Instruction]:
            time.sleep(0.01)
            return annotation.annotate(record, [], caption=lambda r: "x", summarise=lambda r: "No.", rng=rng) if 0 else []

        failed = annotation.run([records.replace(found[0], id=f"r{k}") for k in range(20)], folder, work)
        assert not failed, failed

    def rows_of(folder: Path) -> None:
        path = folder / "rows.jsonl"
        with artifacts.only_one(folder / ".lock"):
            done = [row["n"] for _, row in artifacts.json_lines(path, cut_off=True)] if path.is_file() else []
            for n in range(len(done), 60):
                artifacts.append_json_line(path, {"n": n, "text": "x" * 200})

    def watch(folder: Path) -> None:
        service = clients.Endpoint(chat.url, "m", timeout_s=20)
        guard.guard(service, films, folder / "rows.jsonl", plan=guard.GuardPlan(num_frames=2), progress=False, log=None)

    def fetch(folder: Path) -> None:
        if not (folder / "file.bin").exists():
            assert download.download(files.url, folder / "file.bin", pause_s=0.01, progress=False) == SHA256

    def draw(folder: Path) -> None:
        dataset.make_dataset(folder, num_videos=6, seed=0, height=48, width=64, duration_s=1.5)

    ray_folder = tempfile.gettempdir()  # its sockets' names may have 107 letters

    def encode(engine: str, folder: Path) -> None:
        os.environ["RAY_TMPDIR"] = ray_folder
        skipped = extraction.extract(found, films, folder, recipe, engine=engine).skipped
        assert not skipped, skipped

    known = {"extraction": Job(partial(encode, "serial")),
             "extraction, processes": Job(partial(encode, "processes"), whom=ANY)}  # fmt: skip
    known |= {"extraction, Ray": Job(partial(encode, "ray"))} if importlib.util.find_spec("ray") else {}
    known |= {"detector training": Job(train), "annotation": Job(annotate), "rows": Job(rows_of, lock=".lock"),
              "guard --out": Job(watch, lock=".rows.jsonl.lock"),
              "fetch": Job(fetch), "drawn data set": Job(draw)}  # fmt: skip
    more, opened = kill_models.jobs(root / "models", films, found)
    return known | more, [chat, files, *opened]


def _start(job: Job, folder: Path, label: str) -> int:
    """Do a job in a fork; its temporary files go beside its folder, its error into a file there."""
    pid = os.fork()
    if pid:
        return pid
    try:
        scratch = folder.with_name(f"{folder.name}.tmp")
        scratch.mkdir(exist_ok=True)
        os.environ |= {LABEL: label, "TMPDIR": str(scratch)}
        tempfile.tempdir = None
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1), os.dup2(sink, 2)
        job.work(folder)
        os._exit(0)
    except BaseException as error:
        (folder.parent / f"{folder.name}.{os.getpid()}.error").write_text(f"{type(error).__name__}: {error}")
        os._exit(3)


def _error(folder: Path, pid: int) -> str:
    path = folder.parent / f"{folder.name}.{pid}.error"
    return path.read_text()[:300] if path.exists() else "it died"


def _wait(pid: int, seconds: float) -> float:
    """Wait so long, or until a fork ends; return how long it ran then, 0 where it goes on."""
    began = time.perf_counter()
    while (here := time.perf_counter() - began) < seconds:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return here
        time.sleep(min(0.02, seconds - here))
    return 0.0


def _ended(pid: int) -> int:
    """Wait for a fork and return its exit code, -9 for a killed one."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def processes(label: str) -> dict[int, str]:
    """Return {process id: command} of what a job started, without the fork itself: it has the environment of before."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{LABEL}={label}\0".encode() in (place / "environ").read_bytes():
                found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ")[:120]
        except OSError:
            continue
    return found


def left_over(label: str) -> list[str]:
    """Return the processes that a killed job left, after half a minute of grace, which a busy machine needs; Ray's after 90 s."""
    for tries in range(900):  # a count, no clock: this process may be stopped, too
        found = processes(label).values()
        if not found or (tries >= 300 and not all(command.startswith(AGENTS) for command in found)):
            break
        time.sleep(0.1)
    return list(found)


def _kill(pid: int, folder: Path, label: str, rng: Random, whom: str) -> bool:
    """Kill a job's own process ("parent"), one of those it started ("worker"), or all; wait for its end. Return whether one was
    killed: a job may have ended before."""
    started = list(processes(label)) if whom != "parent" else []
    if whom == "worker":  # what it worked on may be lost, the job itself comes to an end
        chosen = rng.choice(started or [pid])
        with suppress(ProcessLookupError):
            os.kill(chosen, signal.SIGKILL)
        with limited(300):
            code = _ended(pid)
        lost = code != 3 or any(words in _error(folder, pid) for words in LOST)
        assert code in (0, 3, -signal.SIGKILL) and lost, f"a killed worker ends the job by {code}: {_error(folder, pid)}"
        return bool(started) or code == -signal.SIGKILL
    for one in [pid, *started]:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return _ended(pid) == -signal.SIGKILL


def _compare(job: Job, folder: Path, fresh: dict[str, str]) -> None:
    """Assert that a folder holds what an undisturbed run leaves, and nothing beside it."""
    now = job.content(folder)
    hidden = [p.name for p in folder.rglob("*") if p.name.startswith(".") and not p.name.endswith(".lock")]
    differ = sorted(key for key in now.keys() | fresh.keys() if now.get(key) != fresh.get(key))
    assert not hidden, f"temporary files stay: {hidden}"
    assert not differ, f"differs from an undisturbed run: {differ[:4]}"


def run(root: Path, *, count: int, seed: int, only: Sequence[str] = ()) -> list[Tally]:
    """Kill `count` times, jobs in turn, each up to three times before it may finish; then two at once of each job."""
    rng, tallies = Random(seed), []
    known, opened = jobs(root)
    known = {name: job for name, job in known.items() if not only or name in only}
    try:
        fresh, took = {}, {}
        for name, job in known.items():
            tallies.append(Tally(f"kills: {name}"))
            folder = root / f"fresh_{name.replace(' ', '_')}"
            folder.mkdir()
            job.begin()
            began = time.perf_counter()
            pid = _start(job, folder, "fresh")
            assert _ended(pid) == 0, f"{name}: {_error(folder, pid)}"
            took[name], fresh[name] = time.perf_counter() - began, job.content(folder)
        number = 0
        while number < count:
            for tally, (name, job) in zip(tallies, known.items(), strict=True):
                folder, killed = root / f"{name.replace(' ', '_')}_{number}", 0
                folder.mkdir()
                job.begin()
                label = f"{os.getpid()}.{number}"
                with tally.one(f"kill {number} of seed {seed}"):
                    for turn in range(rng.choice([1, 1, 2, 3])):
                        pid = _start(job, folder, label)
                        ran = _wait(pid, rng.uniform(0.0, 0.8) * took[name])
                        took[name] = ran if ran and not turn else took[name]  # the first time was slower
                        whom = rng.choice(job.whom)
                        if _kill(pid, folder, label, rng, whom):
                            killed += 1
                            tally.outcomes[f"kills of {whom}"] += 1
                    number += max(killed, 1)
                    assert not (orphans := left_over(label)), f"goes on without its parent: {orphans}"
                    pid = _start(job, folder, label)
                    assert _ended(pid) == 0, f"does not go on: {_error(folder, pid)}"
                    _compare(job, folder, fresh[name])
                    job.check(killed)
                print(f"{tally.kind}: {number} kills in all, {dict(tally.outcomes)}, {len(tally.faults)} faults", flush=True)
        for tally, (name, job) in zip(tallies, known.items(), strict=True):
            if job.lock:
                with tally.one("while another run is at work"):
                    _held(job, root / f"{name.replace(' ', '_')}_held")
            with tally.one("two at once"):
                _two_at_once(job, root / f"{name.replace(' ', '_')}_twice", fresh[name], took[name] / 4, tally)
    finally:
        for one in opened:
            one.close()
    return tallies


def _held(job: Job, folder: Path) -> None:
    """Start a job in a folder whose lock this process holds: it is refused in a line."""
    folder.mkdir()
    job.begin()
    with artifacts.only_one(folder / job.lock):
        pid = _start(job, folder, "held")
        code = _ended(pid)
    assert code == 3 and "another run is at work" in _error(folder, pid), f"ends by {code}: {_error(folder, pid)}"


def _two_at_once(job: Job, folder: Path, fresh: dict[str, str], later_s: float, tally: Tally) -> None:
    """Start a job twice on one folder: both end well, or one is refused in a line; what is there is right."""
    folder.mkdir()
    job.begin()
    first = _start(job, folder, "twice")
    time.sleep(later_s)
    pids = [first, _start(job, folder, "twice")]
    ended = [_ended(pid) for pid in pids]
    lines = [_error(folder, pid) for pid, code in zip(pids, ended, strict=True) if code]
    fine = ("another run is at work", "no Ray cluster on this machine")  # a node has 30 s to start, however busy the machine is
    assert all(any(words in line for words in fine) for line in lines) and len(lines) < 2, f"two at once: {lines}"
    tally.outcomes["two at once: " + ("one refused" if lines else "both end")] += 1
    _compare(job, folder, fresh)
    job.check(0)


if __name__ == "__main__":
    sys.exit("run benchmarks/torture.py kills")

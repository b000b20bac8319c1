"""SIGKILL at random moments: the same job then finishes, its files equal those of an undisturbed run, nothing is left over.

Jobs run in forks of a process that has imported everything, so that a kill costs what the job costs.
"""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch
from fake_chat_service import FakeChatService
from fake_file_server import SHA256, FileServer

from torture.common import Tally
from vau_lib import guard
from vau_lib.data import annotation, download, hivau, records, video
from vau_lib.detectors import experiments, memtsm, preprocessing, trained_detector, training
from vau_lib.features import extraction
from vau_lib.synthetic import dataset
from vau_lib.vlm import clients
from vau_lib.workspace import artifacts

LABEL = "VAU_TORTURE_KILL"  # environment variable by which processes of a killed job are found
WIDTH = 6


def jobs(root: Path) -> tuple[dict[str, Callable[[Path], None]], list]:
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

    def encode(folder: Path) -> None:
        assert not extraction.extract(found, films, folder, recipe).skipped

    return {"extraction": encode, "detector training": train, "annotation": annotate, "rows": rows_of, "guard --out": watch,
            "fetch": fetch, "drawn data set": draw}, [chat, files]  # fmt: skip


def content(folder: Path) -> dict[str, str]:
    """Return {file: digest}, without what differs from run to run by its nature: seconds, times, places."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        if name.endswith("sources.jsonl") or path.name == "file.bin.part.json":
            continue  # holds times of files
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            data = json.dumps(sorted([{k: v for k, v in row.items() if k != "seconds"} for row in rows], key=str)).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def _start(job: Callable[[Path], None], folder: Path, label: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ[LABEL] = label
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1), os.dup2(sink, 2)
        job(folder)
        os._exit(0)
    except BaseException as error:
        (folder.parent / f"{folder.name}.error").write_text(f"{type(error).__name__}: {error}")
        os._exit(3)


def left_over(label: str) -> list[str]:
    """Return the processes that a killed job left, after half a minute of grace, which a busy machine needs."""
    until, found = time.monotonic() + 30, []
    while time.monotonic() < until:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if f"{LABEL}={label}\0".encode() in (place / "environ").read_bytes():
                    found.append((place / "cmdline").read_text().replace("\0", " ")[:120])
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.1)
    return found


def run(root: Path, *, count: int, seed: int, only: tuple[str, ...] = ()) -> list[Tally]:
    """Kill `count` times, jobs in turn; each may be killed up to three times before it may finish."""
    rng, tallies = Random(seed), []
    known, opened = jobs(root)
    known = {name: job for name, job in known.items() if not only or name in only}
    try:
        fresh, took = {}, {}
        for name, job in known.items():
            tallies.append(Tally(f"kills: {name}"))
            folder = root / f"fresh_{name.replace(' ', '_')}"
            folder.mkdir()
            began = time.perf_counter()
            assert os.waitpid(_start(job, folder, "fresh"), 0)[1] == 0, (root / f"{folder.name}.error").read_text()
            took[name], fresh[name] = time.perf_counter() - began, content(folder)
        number = 0
        while number < count:
            for tally, (name, job) in zip(tallies, known.items(), strict=True):
                folder, killed = root / f"{name.replace(' ', '_')}_{number}", 0
                folder.mkdir()
                label = f"{os.getpid()}.{number}"
                with tally.one(f"kill {number} of seed {seed}"):
                    for _ in range(rng.choice([1, 1, 2, 3])):
                        pid = _start(job, folder, label)
                        time.sleep(rng.uniform(0.0, took[name]))
                        os.kill(pid, signal.SIGKILL)
                        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
                    number += max(killed, 1)
                    tally.outcomes["kills"] += killed
                    assert not (orphans := left_over(label)), f"goes on without its parent: {orphans}"
                    ended = os.waitpid(_start(job, folder, label), 0)[1]
                    assert ended == 0, f"does not go on: {(root / f'{folder.name}.error').read_text()[:300]}"
                    now = content(folder)
                    hidden = [name for name in now if Path(name).name.startswith(".") and not name.endswith(".lock")]
                    differ = sorted(key for key in now.keys() | fresh[name].keys() if now.get(key) != fresh[name].get(key))
                    assert not hidden, f"temporary files stay: {hidden}"
                    assert not differ, f"differs from an undisturbed run: {differ[:4]}"
    finally:
        for one in opened:
            one.close()
    return tallies


if __name__ == "__main__":
    sys.exit("run benchmarks/torture.py kills")

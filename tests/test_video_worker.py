"""A stranger's video is read in a process of its own: the same bits, and its death, its hanging and its memory cost one video."""

import os
import signal
import time

import numpy as np
import pytest

from vau_lib import guard
from vau_lib.data import datasets, records, video, video_index, video_worker
from vau_lib.workspace import artifacts


@pytest.fixture(autouse=True)
def fresh():
    while video_worker._waiting:
        video_worker._waiting.pop().stop()
    yield
    while video_worker._waiting:
        video_worker._waiting.pop().stop()


def test_it_gives_the_same_bits_and_stays_for_the_next_file(clip):
    here = [
        video.probe(clip),
        video.reader_of(clip),
        *(read(clip) for read in (lambda p: video.read_frames(p, [3, 0, 49]), video.frame_times)),
    ]
    gray, rgb = list(video.gray_frames(clip)), list(video.rgb_frames(clip))
    with video_worker.apart():
        there = [video.probe(clip), video.reader_of(clip), video.read_frames(clip, np.array([3, 0, 49])), video.frame_times(clip)]
        (worker,) = video_worker._waiting
        assert all(np.array_equal(a, b) for a, b in zip(video.gray_frames(clip), gray, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(video.rgb_frames(clip), rgb, strict=True))
        assert video_worker._waiting == [worker]
        assert video.index_at(clip, [0.1, 1.0]).tolist() == [2, 25]
        with pytest.raises(video.VideoError, match="frame 50 is outside its 50 frames"):
            video.read_frames(clip, [50])
        with pytest.raises(ValueError, match="reader must be one of"):
            video.read_frames(clip, [0], reader="vlc")
        frames = video.gray_frames(clip)
        assert (
            next(frames).shape == (64, 96) and video.probe(clip).num_frames == 50
        )  # a second one, while the first is in the middle
    assert here[:2] == there[:2] and all(np.array_equal(a, b) for a, b in zip(here[2:], there[2:], strict=True))


def test_a_death_and_a_hang_cost_one_video(clip, monkeypatch):
    with video_worker.apart():
        video.probe(clip)
        (worker,) = video_worker._waiting
        worker.process.send_signal(signal.SIGSTOP)  # stands for a codec that never ends
        monkeypatch.setattr(video_worker, "SECONDS", 0.5)
        with pytest.raises(video.VideoError, match=r"clip.mp4: reading it takes longer than \d s"):
            video.probe(clip)
        monkeypatch.undo()
        frames = video.gray_frames(clip)
        next(frames)
        os.kill(next(iter(_children())), signal.SIGSEGV)  # stands for a codec that crashes
        with pytest.raises(video.VideoError, match=r"clip.mp4: damaged, the process that read it ended \(signal 11\)"):
            list(frames)
        assert video.probe(clip).num_frames == 50


def _children() -> list[int]:
    path = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    if not os.path.exists(path):
        pytest.skip("needs /proc")
    return [int(pid) for pid in open(path).read().split() if b"video_worker" in open(f"/proc/{pid}/cmdline", "rb").read()]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="memory is limited where /proc says what is mapped")
def test_its_memory_is_limited(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(
        video_worker,
        "SERVE",
        video_worker.SERVE.replace("; video_worker.serve", "; video_worker.MEMORY = 2**26; video_worker.serve"),
    )
    with video_worker.apart():
        with pytest.raises(video.VideoError, match=r"clip.mp4: (it needs more than 0.0625 GiB of memory|damaged, the process)"):
            video.read_frames(clip, np.zeros(6000, int))
        assert video.probe(clip).num_frames == 50


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_it_ends_with_its_parent(clip, tmp_path):
    import subprocess
    import sys

    code = (
        f"from vau_lib.data import video, video_worker\nwith video_worker.apart(): video.probe({str(clip)!r})\n"
        "print(video_worker._waiting[0].process.pid, flush=True); input()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < until:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_strangers_videos_are_read_there(clip, tmp_path, monkeypatch):
    """The doors for files that are not ours: none of them decodes in this process."""

    def refuse(*_, **__):
        raise AssertionError("a stranger's video was decoded here")

    monkeypatch.setattr(video_index, "opened", refuse)
    record = records.VideoRecord("a", str(clip.name), "own", "test", 0)
    assert datasets.check([record], clip.parent).readable
    assert sum(1 for _ in video.live(clip)) == 50
    with video_worker.apart():
        assert len(list(guard.clips(clip, type("Model", (), {"num_frames": 2}), guard.GuardPlan(num_frames=2)))[0].frames) == 2
    for function in (guard.guard, datasets.measured):
        assert "apart" in str(function.__code__.co_freevars) or function.__wrapped__  # wrapped by video_worker.apart
    assert artifacts.one_line("") == ""

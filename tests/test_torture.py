"""The torture campaign, short: every part once, every reader of the package several times. `make torture` runs it long."""

import os

import pytest
from torture import data, kills, media, networks, strangers, streams, surroundings

from vau_lib.workspace import artifacts


def clean(tallies, *, tried: int) -> None:
    assert not [fault for tally in tallies for fault in tally.faults]
    assert sum(tally.tried for tally in tallies) >= tried


def test_every_reader_has_a_good_file_and_survives_damaged_ones(tmp_path):
    data.import_all()
    made = data.cases(tmp_path / "again", slow=False)
    assert not data.missing(made), "a new reader needs a good file in tests/torture/data.py: cases"
    clean(data.run(tmp_path / "files", count=400, seed=3, slow=False), tried=440)
    assert len(artifacts.READERS) > 50


def test_what_strangers_send(tmp_path):
    clean(strangers.run(tmp_path), tried=188)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="memory is limited where there is /proc")
def test_damaged_videos(tmp_path):
    clean(media.run(tmp_path, count=40, seed=5), tried=45)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_kills(tmp_path):
    clean(kills.run(tmp_path, count=4, seed=0, only=("rows", "annotation", "fetch", "drawn data set")), tried=9)


def test_bad_servers(tmp_path):
    clean(networks.run(tmp_path, timeout_s=0.3), tried=60)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_bad_surroundings(tmp_path):
    clean(surroundings.run(tmp_path, slow=False), tried=19)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_streams(tmp_path):
    clean(streams.run(tmp_path, clips=300, width=32, window=4), tried=17)

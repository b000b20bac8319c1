"""Downloads against a server on this machine that fails on request, and hostile archives."""

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from fake_file_server import CONTENT, SHA256, FileServer

from vau_lib.data import download as downloading
from vau_lib.data.download import DownloadError, download, new_folder, unpack
from vau_lib.workspace import artifacts


@pytest.fixture
def server():
    running = FileServer()
    yield running
    running.close()


def fetched(server, tmp_path, **options):
    options = {"pause_s": 0.0, "progress": False, "sha256": SHA256, **options}
    return download(server.url, tmp_path / "file.bin", **options)


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_whole_file_comes_and_nothing_else_stays(server, tmp_path):
    asked = []
    assert fetched(server, tmp_path, agree=asked.append) == SHA256
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and left(tmp_path) == ["file.bin"]
    assert asked == [len(CONTENT)] and server.requests == [(None, None, 200)]


def test_cut_connections_go_on_where_they_stopped(server, tmp_path):
    server.cuts = [1_000_000, 500_000, 0]
    assert fetched(server, tmp_path) == SHA256 and left(tmp_path) == ["file.bin"]
    assert [range_ for range_, *_ in server.requests] == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]
    assert {guard for _, guard, status in server.requests[1:] if status == 206} == {'"one"'}


def test_a_later_call_goes_on_and_asks_for_what_is_missing_only(server, tmp_path):
    server.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"ended at 1,000,000 of 3,000,000 bytes; 1,000,000 bytes are kept, the same command"):
        fetched(server, tmp_path, tries=2)
    assert left(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    asked = []
    server.cuts = []
    assert fetched(server, tmp_path, agree=asked.append) == SHA256 and asked == [2_000_000]


def test_a_complete_part_needs_no_second_download(server, tmp_path):
    server.cuts = [1_000_000, 0]
    with pytest.raises(DownloadError):
        fetched(server, tmp_path, tries=1)
    (tmp_path / "file.bin.part").write_bytes(CONTENT)  # killed between the last byte and the new name
    before = len(server.requests)
    assert fetched(server, tmp_path) == SHA256 and len(server.requests) == before


def test_a_wrong_checksum_is_refused_and_removed(server, tmp_path):
    with pytest.raises(DownloadError, match=rf"sha256 {SHA256}, expected {'0' * 64}; the file was removed$"):
        fetched(server, tmp_path, sha256="0" * 64)
    assert left(tmp_path) == []


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_errors_of_the_server_are_one_line_and_no_file(server, tmp_path, status, attempts):
    server.status = status
    with pytest.raises(DownloadError, match=f"127.0.0.1.*{status} ") as error:
        fetched(server, tmp_path, tries=3)
    assert "\n" not in str(error.value) and left(tmp_path) == [] and len(server.requests) == attempts


def test_nobody_listening_is_one_line(server, tmp_path):
    server.server.server_close()
    with pytest.raises(DownloadError, match="refused"):
        fetched(server, tmp_path, tries=2)


@pytest.mark.parametrize("careless", [False, True])  # careless: a server that answers a range of the new file
@pytest.mark.parametrize("size", [3_000_000, 2_000_000, 500_000])
def test_a_file_that_changed_between_attempts_comes_whole(server, tmp_path, careless, size):
    server.cuts = [1_000_000, 0]
    with pytest.raises(DownloadError):
        fetched(server, tmp_path, tries=1)
    other = bytes(reversed(CONTENT))[:size]
    server.content, server.etag, server.cuts, server.careless = other, '"two"', [], careless
    assert fetched(server, tmp_path, sha256=hashlib.sha256(other).hexdigest()) == hashlib.sha256(other).hexdigest()


def test_a_file_of_another_size_under_the_same_etag_comes_whole(server, tmp_path):
    server.cuts = [1_000_000, 0]
    with pytest.raises(DownloadError):
        fetched(server, tmp_path, tries=1)
    server.content, server.cuts = bytes(reversed(CONTENT))[:2_000_000], []
    wanted = hashlib.sha256(server.content).hexdigest()
    assert fetched(server, tmp_path, sha256=wanted) == wanted and [s for *_, s in server.requests[-2:]] == [206, 200]


@pytest.mark.parametrize(("etag", "modified", "resumed"), [
    ("", "Thu, 26 Nov 2026 10:00:00 GMT", True), ('W/"weak"', "", False), ("", "", False),
])  # fmt: skip
def test_only_a_strong_etag_or_a_date_lets_a_part_go_on(server, tmp_path, etag, modified, resumed):
    server.etag, server.modified, server.cuts = etag, modified, [1_000_000]
    assert fetched(server, tmp_path) == SHA256
    assert [status for *_, status in server.requests] == [200, 206 if resumed else 200]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cuts = False, [1_000_000, 2_000_000]
    assert fetched(server, tmp_path) == SHA256
    assert [status for *_, status in server.requests] == [200, 200, 200]


def test_a_server_that_never_gets_further_is_given_up(server, tmp_path):
    server.ranges, server.cuts = False, [1_000_000] * 50
    with pytest.raises(DownloadError, match="ended at 1,000,000 of"):
        fetched(server, tmp_path, tries=3)
    assert len(server.requests) <= 5


def test_a_stream_of_unknown_length_is_cut_and_comes_whole(server, tmp_path):
    asked = []
    server.chunked, server.ranges, server.cuts = True, False, [1_000_000]
    assert fetched(server, tmp_path, agree=asked.append) == SHA256 and asked == [None]


def test_saying_no_leaves_nothing(server, tmp_path):
    def refuse(missing):
        raise DownloadError(f"{missing:,} bytes are too many")

    with pytest.raises(DownloadError, match="3,000,000 bytes are too many"):
        fetched(server, tmp_path, agree=refuse)
    assert left(tmp_path) == []


def test_a_disk_without_room_is_noticed_before(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadError, match="needs 3,000,000 bytes more, the disk has 1,000$"):
        fetched(server, tmp_path)


CHILD = """
import sys
from vau_lib.data.download import download
try:
    print(download(sys.argv[1], sys.argv[2], pause_s=0, progress=False))
except ValueError as error:
    print(error)
"""


def child(server, tmp_path, **options):
    words = [sys.executable, "-c", CHILD, server.url, str(tmp_path / "file.bin")]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def limited():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, 1_200_000))  # a write beyond it fails, as on a full disk


def test_a_full_disk_is_one_line_and_the_part_goes_on_later(server, tmp_path):
    out, _ = child(server, tmp_path, preexec_fn=limited).communicate(timeout=60)
    assert out.startswith("cannot write file.bin.part: File too large; 1,200,000 bytes are kept") and out.count("\n") == 1
    assert fetched(server, tmp_path) == SHA256 and server.requests[-1][0] == "bytes=1200000-"


def test_ctrl_c_leaves_a_part_that_goes_on(server, tmp_path):
    server.pause_s = 0.1
    # a suite started in the background of a shell has Ctrl-C ignored, and its children with it
    running = child(server, tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    part = tmp_path / "file.bin.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    kept = part.stat().st_size
    assert running.returncode and 0 < kept < len(CONTENT) and part.read_bytes() == CONTENT[:kept]
    server.pause_s = 0.0
    assert fetched(server, tmp_path) == SHA256 and server.requests[-1] == (f"bytes={kept}-", '"one"', 206)


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://x/y", "x.tar"])
def test_other_addresses_are_refused(address, tmp_path):
    with pytest.raises(DownloadError, match="starts with http"):
        download(address, tmp_path / "x")


# Archives


def zipped(path: Path, members: dict, links=()) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            file.writestr(info, "/etc/passwd")
    return path


def tarred(path: Path, members: dict, odd=()) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for name, kind in odd:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../../outside"
            file.addfile(info)
    return path


GOOD = {"top/a.txt": b"a", "top/deep/b.txt": b"b" * 100_000}


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_is_unpacked_as_chosen(pack, tmp_path):
    archive = pack(tmp_path / "archive", GOOD)
    with new_folder(tmp_path / "out") as folder:
        assert unpack(archive, folder) == 2
    assert (tmp_path / "out/top/deep/b.txt").read_bytes() == GOOD["top/deep/b.txt"]
    with new_folder(tmp_path / "chosen") as folder:
        assert unpack(archive, folder, choose=lambda name: "x/y" if name.endswith("a.txt") else None) == 1
    assert [p.name for p in (tmp_path / "chosen").rglob("*")] == ["x", "y"]


HOSTILE = ["../escaped", "top/../../escaped", "/tmp/escaped", "..\\escaped", "C:/escaped", "top/\\..\\escaped"]
ODD = [
    ("link", tarfile.SYMTYPE),
    ("hard", tarfile.LNKTYPE),
    ("null", tarfile.CHRTYPE),
    ("disk", tarfile.BLKTYPE),
    ("pipe", tarfile.FIFOTYPE),
]


def refused(archive, tmp_path, match, **options):
    before = sorted(path for path in tmp_path.parent.rglob("*"))
    with pytest.raises(DownloadError, match=match) as error, new_folder(tmp_path / "out") as folder:
        unpack(archive, folder, **options)
    assert "\n" not in str(error.value) and sorted(path for path in tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("choose", [str, lambda name: None])  # a member that is left out is checked too
def test_a_path_outside_is_refused_whole(pack, name, choose, tmp_path):
    refused(pack(tmp_path / "archive", {**GOOD, name: b"x"}), tmp_path, "archive is refused: .*leaves its folder", choose=choose)


@pytest.mark.parametrize("odd", ODD)
def test_links_and_devices_of_a_tar_are_refused_whole(odd, tmp_path):
    refused(tarred(tmp_path / "archive", GOOD, [odd]), tmp_path, f"'{odd[0]}' is a link or a device")


def test_a_link_of_a_zip_is_refused_whole(tmp_path):
    refused(zipped(tmp_path / "archive", GOOD, ["link"]), tmp_path, "'link' is a link or a device")


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    refused(tarred(tmp_path / "archive", {"a": b"1", "./a": b"2"}), tmp_path, "'a' is there twice")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_broken_archives_and_too_large_ones_leave_nothing(pack, tmp_path):
    archive = pack(tmp_path / "archive", {"top/b": os.urandom(200_000)})
    refused(archive, tmp_path, "unpacks to more than 100,000 bytes", limit=100_000)
    refused(archive, tmp_path, "holds none of the files", choose=lambda name: None)
    archive.write_bytes(archive.read_bytes()[:100_000])
    refused(archive, tmp_path, "archive is (broken|neither)")
    archive.write_bytes(b"<html>not found</html>")
    refused(archive, tmp_path, "neither a zip nor a tar")


def test_a_zip_with_a_damaged_member_is_refused(tmp_path):
    archive = zipped(tmp_path / "archive", {"top/b": os.urandom(200_000)})
    content = bytearray(archive.read_bytes())
    content[1000:1010] = bytes(10)
    archive.write_bytes(content)
    refused(archive, tmp_path, "archive is broken")


def test_a_full_disk_while_unpacking_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloading.shutil, "copyfileobj", full)
    refused(zipped(tmp_path / "archive", GOOD), tmp_path, "archive cannot be unpacked: No space left on device")


def test_a_second_call_at_once_is_refused_and_leaves_the_part_alone(tmp_path):
    """Two appended to one part: 5,000,000 of 3,000,000 bytes."""
    with artifacts.only_one(tmp_path / ".x.bin.lock"), pytest.raises(artifacts.StoreError, match="another run is at work"):
        download("http://127.0.0.1:9/x.bin", tmp_path / "x.bin", progress=False)
    assert not (tmp_path / "x.bin.part").exists()

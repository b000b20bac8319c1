"""Downloads over HTTP that resume and are checked, and archives unpacked without trust; the standard library only.

- what has arrived stays in `NAME.part`, with a note of what it is a part of; If-Range lets the server say whether the file is
  still that one. A server without ranges, without ETag and date, or with a changed file: from the start
- a file takes its name only when it is complete and its sha256 is right
- an archive holds files and folders below its root; one with a link, a device or another path is refused whole
Source: RFC 9110, sections 13.1.5 (If-Range) and 14 (ranges).
"""

import http.client
import os
import re
import shutil
import socket
import stat
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from tqdm.auto import tqdm

from vau_lib.workspace import artifacts, leftovers

CHUNK = 1 << 20  # bytes read at a time
PASSING = {408, 429, 500, 502, 503, 504}  # answers that may be another one later
CHANGED = -1  # in place of a size
PROGRESS = 1 << 16  # bytes that an attempt must bring not to count as failed
SLOWEST = 1000.0  # bytes a second
UNPACKED_LIMIT = 1 << 34  # bytes; no data set here unpacks to a quarter of it


class DownloadError(ValueError):
    """A file that did not come, or an archive that is not unpacked; one line."""


class _Interrupted(Exception):
    """A connection that ended early; the next attempt goes on."""


def download(
    address: str, path: str | Path, *, sha256: str = "", agree: Callable[[int | None], object] = lambda missing: None,
    tries: int = 5, pause_s: float = 1.0, timeout_s: float = 30.0, progress: bool = True, most_bytes: int | None = None,
    slowest: float = SLOWEST,
) -> str:  # fmt: skip
    """Fetch a file to `path`, going on where an earlier call stopped; return its sha256. StoreError while another call does.

    Args:
        address: http:// or https://
        sha256: what the file must have; nothing to compare where empty
        agree: called once with the bytes still to come (None: the server does not say); may raise to stop
        tries: attempts in a row that bring nothing new, before DownloadError
        pause_s: seconds before the second attempt, doubled each time
        timeout_s: seconds without a byte that end an attempt
        progress: show a bar on stderr
        most_bytes: what is longer is refused, also where the server does not say how long it is
        slowest: bytes a second, over `timeout_s` or more, below which an attempt ends: one may come now and then for ever
    """
    path = Path(path)
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    if not re.match(r"https?://[^/]", address) or not address.isprintable():
        raise DownloadError(f"an address starts with http:// or https://, got {artifacts.one_line(repr(address), 160)}")
    shown = artifacts.address_shown(address)
    with _alone(path):
        furthest, failures = _size(part), 0
        while True:
            try:
                _receive(address, part, note, agree, timeout_s, progress, most_bytes, slowest)
                break
            except _Interrupted as error:
                agree = _agreed
                failures = 0 if _size(part) >= furthest + PROGRESS else failures + 1
                furthest = max(furthest, _size(part))
                if failures >= tries:
                    kept = f"{_size(part):,} bytes are kept, the same command goes on"
                    raise DownloadError(f"{shown}: {artifacts.one_line(error, 200)}; {kept}") from error
                time.sleep(pause_s * 2**failures)
        found = artifacts.sha256(part)
        if sha256 and found != sha256:
            _forget(part, note)
            raise DownloadError(f"{shown}: sha256 {found}, expected {sha256}; the file was removed")
        os.replace(part, path)
        note.unlink(missing_ok=True)
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is fetched: two calls would append to one part."""
    lock = path.with_name(f".{path.name}.lock")
    with artifacts.only_one(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _receive(
    address: str, part: Path, note: Path, agree: Callable[[int | None], object], timeout_s: float, progress: bool,
    most_bytes: int | None, slowest: float,
) -> None:  # fmt: skip
    """Bring the part to its full length; _Interrupted when the connection ends before."""
    known = _noted(note, address)
    start = _size(part) if known else 0
    if known and start and start == known["size"]:
        return  # complete, but stopped before it got its name
    headers = {"User-Agent": "vau-lib", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": known["etag"] or known["modified"]}
    with _opened(Request(address, headers=headers), part, note, timeout_s) as response:
        now = {"address": address, **_version(response.headers)}
        if response.status == 206:
            size = _continued(response, known, start)
            if size == CHANGED:
                _forget(part, note)
                raise _Interrupted("the file changed on the server")
        else:  # the whole file: a first attempt, a server without ranges, or a file that changed
            start, length = 0, response.headers.get("Content-Length")
            size = int(length) if length and length.isdecimal() else None
        if most_bytes is not None and size is not None and size > most_bytes:
            raise DownloadError(f"{artifacts.address_shown(address)} sends {size:,} bytes, at most {most_bytes:,} are expected")
        agree(None if size is None else size - start)
        if size is not None and (free := shutil.disk_usage(part.parent).free) < size - start:
            raise DownloadError(f"{artifacts.address_shown(address)} needs {size - start:,} bytes more, the disk has {free:,}")
        if not start:
            part.unlink(missing_ok=True)
            artifacts.write_json(note, {**now, "size": size})
        bar = tqdm(total=size, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
        with part.open("ab", buffering=0) as file, bar:
            came, began = 0, time.monotonic()
            for chunk in _chunks(response):
                _write(file, chunk, part)
                bar.update(len(chunk))
                came, seconds = came + len(chunk), time.monotonic() - began
                if most_bytes is not None and start + came > most_bytes:
                    _forget(part, note)
                    raise DownloadError(f"{artifacts.address_shown(address)} sends more than {most_bytes:,} bytes")
                if seconds > timeout_s and came < slowest * seconds:
                    raise _Interrupted(f"{came:,} bytes came in {seconds:.0f} s")
    if size is not None and _size(part) != size:
        raise _Interrupted(f"the connection ended at {_size(part):,} of {size:,} bytes")


def _continued(response: http.client.HTTPResponse, known: dict, start: int) -> int | None:
    """Return the whole file's size as a partial answer gives it; CHANGED where it is not the rest of the known file."""
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not place or int(place[1]) != start:
        return CHANGED
    if any(value not in ("", known[key]) for key, value in _version(response.headers).items()):
        return CHANGED
    size = known["size"] if place[2] == "*" else int(place[2])
    return size if known["size"] in (None, size) else CHANGED


class _SafeRedirects(HTTPRedirectHandler):
    """Other hosts are usual (a release's files lie elsewhere); another kind of address, and https left for http, are refused."""

    def redirect_request(self, request, *answer):
        to = answer[-1]
        if not to.startswith("https://" if request.full_url.startswith("https://") else ("http://", "https://")):
            raise DownloadError(f"{artifacts.address_shown(request.full_url)} leads to {artifacts.one_line(to, 100)}: refused")
        return super().redirect_request(request, *answer)


class _InTime:
    """A connection whose whole head must come in time: a server may send a letter now and then for ever."""

    def getresponse(self):
        opened = self.sock

        def close() -> None:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)  # wakes what reads from it

        timer = threading.Timer(self.timeout, close)
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()
        finally:
            timer.cancel()


class _Connection(_InTime, http.client.HTTPConnection):
    pass


class _TLSConnection(_InTime, http.client.HTTPSConnection):
    pass


class _Handler(HTTPHandler):
    def http_open(self, request):
        return self.do_open(_Connection, request)


class _TLSHandler(HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_TLSConnection, request, context=self._context)


OPENER = build_opener(_SafeRedirects, _Handler, _TLSHandler)


@contextmanager
def _opened(request: Request, part: Path, note: Path, timeout_s: float) -> Iterator[http.client.HTTPResponse]:
    try:
        response = OPENER.open(request, timeout=timeout_s)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the file is shorter than the part: another file
            _forget(part, note)
        if error.code == 416 or error.code in PASSING:
            raise _Interrupted(f"{error.code} {http.client.responses.get(error.code, '')}") from None
        reason = http.client.responses.get(error.code, "")  # not the server's own words
        raise DownloadError(f"{artifacts.address_shown(request.full_url)}: {error.code} {reason}") from None
    except (URLError, http.client.HTTPException, OSError) as error:
        raise _Interrupted(error.reason if isinstance(error, URLError) else error) from error
    with response:
        yield response


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(CHUNK)  # what has come so far, so that a cut loses nothing
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(error) from error
        if not chunk:
            return
        yield chunk


def _write(file: object, chunk: bytes, part: Path) -> None:
    try:
        left = memoryview(chunk)
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        kept = f"{_size(part):,} bytes are kept, the same command goes on"
        raise DownloadError(f"cannot write {part.name}: {error.strerror}; {kept}") from error


def _version(headers: object) -> dict[str, str]:
    """Return what tells one version of a file from another; a weak ETag does not (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return {"etag": "" if etag.startswith("W/") else etag, "modified": headers.get("Last-Modified", "")}


def _noted(note: Path, address: str) -> dict | None:
    """Return what a part belongs to; None where it cannot be resumed."""
    try:
        known = artifacts.read_json(note)
        usable = known["address"] == address and (known["etag"] or known["modified"]) and "size" in known
    except (artifacts.StoreError, KeyError, TypeError):
        return None
    return known if usable else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _forget(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _agreed(missing: int | None) -> None:
    """Ask nothing: the first attempt did."""


# Archives


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success it takes that name in one step, otherwise it is removed."""
    target = Path(target)
    temporary = leftovers.folder_beside(target)
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders private to the user; data sets are not
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def unpack(
    archive: str | Path, folder: str | Path, *, choose: Callable[[str], str | None] = str, limit: int = UNPACKED_LIMIT
) -> int:
    """Unpack a zip or tar into a folder; return the number of files. DownloadError refuses the whole archive.

    `choose` gives a member's place below the folder, None to leave it out; every member is checked, left out or not. `limit` is in
    bytes. What was written before a refusal is the caller's to remove: see `new_folder`.
    """
    archive, folder, count, total = Path(archive), Path(folder), 0, 0
    try:
        for name, is_folder, is_plain, size, opened in _members(archive):
            _below(archive, name)
            if not is_plain:
                raise DownloadError(f"{archive.name} is refused: {name!r} is a link or a device")
            place = None if is_folder else choose(name)
            if place is None:
                continue
            total += size
            if total > limit:
                raise DownloadError(f"{archive.name} is refused: it unpacks to more than {limit:,} bytes")
            path = folder / _below(archive, place)
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened() as source, path.open("xb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            count += 1
    except FileExistsError as error:
        raise DownloadError(f"{archive.name} is refused: {Path(error.filename).name!r} is there twice") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{archive.name} is broken: {artifacts.one_line(error, 200)}") from error
    except OSError as error:  # gzip's own error is one, without a number
        what = f"cannot be unpacked: {error.strerror}" if error.errno else f"is broken: {artifacts.one_line(error, 200)}"
        raise DownloadError(f"{archive.name} {what}") from error
    if not count:
        raise DownloadError(f"{archive.name} holds none of the files that were looked for")
    return count


def _members(archive: Path) -> Iterator[tuple[str, bool, bool, int, Callable]]:
    """Yield (name, is a folder, is a file or folder, bytes, function that opens it) for every member."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)  # 0: made where there are no Unix modes
                plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                yield info.filename, info.is_dir(), plain, info.file_size, partial(file.open, info)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive, "r:*") as file:
            for info in file:
                yield info.name, info.isdir(), info.isfile() or info.isdir(), info.size, partial(file.extractfile, info)
    else:
        raise DownloadError(f"{archive.name} is neither a zip nor a tar archive")


def _below(archive: Path, name: str) -> PurePosixPath:
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or re.search(r"\\|\0|^[A-Za-z]:", name):
        raise DownloadError(f"{archive.name} is refused: {name!r} leaves its folder")
    return place

"""Servers that mean no good, on this machine: redirects, trickles, endless and half answers, pages of a proxy.

Each is met by --server, fetch, Veo (a new job, and a question for one that is open) and the webhook of analyse.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torture.common import Tally, limited, refused
from vau_lib import cascade
from vau_lib.data import download
from vau_lib.synthetic import scenarios, text_to_video, veo
from vau_lib.vlm import clients
from vau_lib.workspace import artifacts

KEY = "sk-torture-0123456789"
FEW = dict(duration_s=1.0, fps=5.0, height=48, width=64)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class RawServer:
    """Reads a request, then sends what `answer(port)` yields; `seen` holds the requests."""

    def __init__(self, answer: Callable[[], Iterator[bytes]], patience_s: float = 5.0):
        self.answer, self.patience_s, self.seen, self.sent = answer, patience_s, [], 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(self.patience_s)
                self.seen.append(connection.recv(65536))
                for part in self.answer():
                    connection.sendall(part)
                    self.sent += len(part)
        except OSError:
            return

    def close(self) -> None:
        self.socket.close()


def trickle(text: bytes, pause_s: float = 0.1) -> Iterator[bytes]:
    for letter in text * 1000:
        yield bytes([letter])
        time.sleep(pause_s)


def endless(part: bytes = b"x" * 65536) -> Iterator[bytes]:
    for _ in range(16_384):  # a gigabyte
        yield part


def answers(other: str) -> dict[str, Callable[[], Iterator[bytes]]]:
    """Return {what is wrong: the bytes of an answer}; `other` is another host's address."""

    def status(line: str, *heads: str, body: bytes = b"") -> Callable[[], Iterator[bytes]]:
        text = "\r\n".join([f"HTTP/1.1 {line}", *heads, f"Content-Length: {len(body)}", "", ""])
        return lambda: iter([text.encode() + body])

    def stream(*parts: bytes, then: Callable[[], Iterator[bytes]] = lambda: iter(())) -> Callable[[], Iterator[bytes]]:
        def send():
            yield from parts
            yield from then()

        return send

    return {
        **{f"redirect {code}": status(f"{code} Moved", f"Location: {other}/stolen") for code in (301, 302, 303, 307, 308)},
        "redirect to a file": status("302 Found", "Location: file:///etc/passwd"),
        "redirect to itself": status("302 Found", "Location: /again"),
        "429, Retry-After 0": status("429 Slow", "Retry-After: 0"),
        "429, Retry-After a year": status("429 Slow", "Retry-After: 31536000"),
        "429, Retry-After nonsense": status("429 Slow", "Retry-After: soon"),
        "429, Retry-After -5": status("429 Slow", "Retry-After: -5"),
        "503": status("503 Away"), "401, key echoed": status(f"401 key {KEY} is wrong", body=KEY.encode()),
        "page of a proxy": status("200 OK", "Content-Type: text/html", body=b"<html>Sign in</html>"),
        "nothing": stream(), "no HTTP": stream(b"SSH-2.0-OpenSSH\r\n"), "garbage": stream(os.urandom(4000)),
        "half": stream(HEAD + b"Content-Length: 5000\r\n\r\n{\"choices\": ["), "half a head": stream(b"HTTP/1.1 200 O"),
        "slow head": stream(then=lambda: trickle(b"HTTP/1.1 200 OK\r\nX: ")),
        "slow body": stream(HEAD + b"\r\n", then=lambda: trickle(b"{ ")),
        "a gigabyte": stream(HEAD + b"\r\n", then=endless),
        "a gigabyte of head": stream(HEAD, then=lambda: endless(b"X: " + b"y" * 60000 + b"\r\n")),
        "bad chunks": stream(HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n"), "deep": status("200 OK", body=b"[" * 100_000),
        "negative length": stream(HEAD + b"Content-Length: -5\r\n\r\nabc"),
        "no text": status("200 OK", body=b'{"choices": [{"message": {}}]}'),
    }  # fmt: skip


def run(root: Path, *, seed: int = 0, timeout_s: float = 0.5) -> list[Tally]:
    """Ask every bad server with every client; nothing may hang, name a key, or reach the other host."""
    tallies = [Tally(f"networks: {kind}") for kind in ("--server", "fetch", "addresses", "Veo", "webhook")]
    names = ("VAU_TORTURE_KEY", "GOOGLE_API_KEY")
    before, limits_before = {name: os.environ.get(name) for name in names}, (veo.SLOWEST, veo.MAX_ANSWER, veo.MAX_TRIES)
    veo.SLOWEST, veo.MAX_ANSWER, veo.MAX_TRIES = 1, 2**24, 2  # the same limits, sooner
    os.environ |= dict.fromkeys(names, KEY)
    chosen = scenarios.covering_scenarios(2, 1, **FEW)[:1]
    waited: list[float] = []
    elsewhere = RawServer(lambda: iter([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"]))
    try:
        for name, answer in answers(elsewhere.url).items():
            server = RawServer(answer)
            try:
                endpoint = clients.Endpoint(
                    server.url + "/v1", "m", key_env="VAU_TORTURE_KEY", timeout_s=timeout_s, tries=2, sleep=waited.append
                )
                with tallies[0].one(name), limited(30):
                    elsewhere.seen.clear()
                    _ends(partial(endpoint, "q?"), "127.0.0.1")
                    assert not elsewhere.seen, "went to another host"
                    assert all(0 <= seconds <= endpoint.longest_pause_s for seconds in waited), f"waits {max(waited)} s"
                place = root / f"{len(os.listdir(root))}.bin"
                with tallies[1].one(name), limited(30):
                    limits = dict(tries=1, pause_s=0, timeout_s=timeout_s, progress=False, most_bytes=2**22, slowest=10_000)
                    _ends(partial(download.download, server.url + "/x", place, sha256="0" * 64, **limits), "127.0.0.1")
                    assert not place.exists(), "took a name"
                    part = place.with_name(place.name + ".part")
                    assert not part.exists() or part.stat().st_size <= 2**22 + 2**20, f"wrote {part.stat().st_size:,} bytes"
                for kind, known in (("a new job", None), ("an open job", {"operation": "models/m/operations/1"})):
                    with tallies[3].one(f"{name}, {kind}"), limited(60):
                        elsewhere.seen.clear()
                        server.sent = 0
                        _veo(server, chosen, root / f"veo{len(os.listdir(root))}", timeout_s, known)
                        assert not elsewhere.seen, "went to another host"
                        assert server.sent < 2**26, f"read {server.sent:,} bytes"
                with tallies[4].one(name), limited(10):
                    elsewhere.seen.clear()
                    lines: list[str] = []
                    cascade.webhook(server.url + "/x", log=lines.append, timeout_s=timeout_s)({"kind": "alarm"})
                    assert len(lines) < 2 and all("\n" not in line and len(line) < 300 for line in lines), lines
                    assert not elsewhere.seen, "went to another host"
            finally:
                server.close()
        for address in ("file:///etc/passwd", "ftp://h/x", "gopher://h/", "/etc/passwd", "http://user:pw@h/v1", "https://", "\n"):
            with tallies[2].one(repr(address)), limited(10):
                _ends(lambda: clients.Endpoint(address, "m"))  # noqa: B023
            if "user" not in address and address != "https://":
                with tallies[2].one(f"fetch {address!r}"), limited(10):
                    _ends(lambda: download.download(address, root / "no", tries=1, pause_s=0, timeout_s=1, progress=False))  # noqa: B023
    finally:
        elsewhere.close()
        veo.SLOWEST, veo.MAX_ANSWER, veo.MAX_TRIES = limits_before
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return tallies


def _veo(server: RawServer, chosen: list, folder: Path, timeout_s: float, known: dict | None) -> None:
    """Make a video through a bad service: its row says in one line what failed, and nothing names the key."""
    ticks = iter(range(10**6))
    backend = veo.Veo(
        price_per_second=0.1, base_url=server.url, timeout_s=timeout_s, poll_s=0.0, deadline_s=5, sleep=lambda _: None,
        clock=lambda: next(ticks),
    )  # fmt: skip
    if known:
        name = f"0_0000_{chosen[0].scene}_{chosen[0].event}_{text_to_video._short_hash(backend, chosen[0])}"
        artifacts.append_json_line(folder / "ledger.jsonl", {"id": name, **known})
    table = text_to_video.run(backend, chosen, folder, confirm=lambda _: True, progress=False)
    line = table["detail"][0]
    assert table["status"].tolist() == ["failed"] and line and "\n" not in line and len(line) < 1000, table.to_dict("records")
    assert not any(KEY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file()), "the key is in a file"


def _ends(ask: Callable[[], object], *names: str) -> None:
    try:
        ask()
    except Exception as error:
        refused(error, *names)
        shown, cause = "", error
        while cause is not None:  # a traceback shows causes too
            shown, cause = f"{shown} {cause}", cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        assert KEY not in shown, "the key is in the error"
    else:
        raise AssertionError("a bad answer was taken")

"""A file server on this machine that fails on request."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class FileServer:
    """Serves one file with Range and If-Range; `requests` holds (Range, If-Range, status) of every answer.

    `cuts` says after how many bytes each of the next answers ends; `status` other than 200 is the answer to everything.
    """

    def __init__(self, content: bytes = CONTENT, etag: str = '"one"', modified: str = ""):
        self.content, self.etag, self.modified = content, etag, modified
        self.cuts, self.status, self.ranges, self.chunked, self.careless, self.pause_s = [], 200, True, False, False, 0.0
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.answer(self)
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/folder/file.bin"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        wanted, guard = request.headers.get("Range"), request.headers.get("If-Range")
        status, start = self.status, 0
        if status == 200 and wanted and self.ranges and (guard in (self.etag, self.modified) or self.careless):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            status = 206 if start < len(self.content) else 416
        self.requests.append((wanted, guard, status))
        body = self.content[start:] if status in (200, 206) else b"an error page"
        request.send_response(status)
        for name, value in (("ETag", self.etag), ("Last-Modified", self.modified)):
            if value:
                request.send_header(name, value)
        if status == 206:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header(*(("Transfer-Encoding", "chunked") if self.chunked else ("Content-Length", str(len(body)))))
        request.end_headers()
        body = body[: self.cuts.pop(0)] if self.cuts and status in (200, 206) else body
        whole = len(body) == len(self.content) - start
        for first in range(0, len(body), 100_000):
            piece = body[first : first + 100_000]
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.chunked else piece)
            time.sleep(self.pause_s)
        if self.chunked and whole:
            request.wfile.write(b"0\r\n\r\n")

    def close(self):
        self.server.shutdown()
        self.server.server_close()

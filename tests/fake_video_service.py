"""A video service on this machine that speaks the real one's protocol, and fails as it is told to."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = (
    "refuse",
    "slow answer",
    "never done",
    "truncated",
    "rate limit",
    "broken line",
    "server error",
    "forbidden",
    "forgotten",
    "proxy page",
    "cut answer",
)


class FakeVideoService:
    """Serves predictLongRunning and fetchPredictOperation; `faults` {number of the prompt: how it fails}.

    Prompts are numbered as they first come. `submitted` counts how often each was paid for.
    """

    def __init__(self, content: bytes, faults: dict[int, str] | None = None, *, polls: int = 1, hold_s: float = 3.0):
        self.content, self.faults, self.polls, self.hold_s = content, faults or {}, polls, hold_s
        self.number_of, self.submitted, self.operations, self.done_once = {}, {}, {}, set()
        self.lock, self.patience = threading.Lock(), False
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                service.answer(self, body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, body):
        if request.path.split("?")[0].endswith(":predictLongRunning"):
            prompt = body["instances"][0]["prompt"]
            with self.lock:
                number = self.number_of.setdefault(prompt, len(self.number_of))
            fault, first = self.faults.get(number), (number, "start") not in self.done_once
            self.done_once.add((number, "start"))
            if fault == "forbidden":
                key = request.headers.get("x-goog-api-key", "")
                return self._send(request, 403, {"error": {"code": 403, "message": f"key {key} may not", "status": "DENIED"}})
            if first and fault in ("rate limit", "server error"):
                code = 429 if fault == "rate limit" else 503
                return self._send(request, code, {"error": {"code": code, "message": "later", "status": "BUSY"}})
            if first and fault == "broken line":
                return request.connection.close()
            if first and fault == "slow answer":
                time.sleep(self.hold_s)  # longer than the client waits; it was not paid for
                return request.connection.close()
            with self.lock:
                self.submitted[number] = self.submitted.get(number, 0) + 1
                name = f"{request.path.split('/v1beta1/')[-1].split(':')[0]}/operations/{number}-{self.submitted[number]}"
                self.operations[name] = {"number": number, "asked": 0}
            return self._send(request, 200, {"name": name})
        operation = self.operations[body["operationName"]]
        fault = self.faults.get(operation["number"])
        if fault == "forgotten":
            return self._send(request, 404, {"error": {"code": 404, "message": "no such operation", "status": "NOT_FOUND"}})
        if fault in ("proxy page", "cut answer"):
            return self._send_text(request, "<html>Sign in</html>" if fault == "proxy page" else '{"name": "x", "done": tr')
        operation["asked"] += 1
        fault = self.faults.get(operation["number"])
        if operation["asked"] <= self.polls or (fault == "never done" and not self.patience):
            return self._send(request, 200, {"name": body["operationName"]})
        answer = {"videos": [{"bytesBase64Encoded": base64.b64encode(self.content).decode(), "mimeType": "video/mp4"}]}
        if fault == "refuse":
            answer = {"raiMediaFilteredCount": 1, "raiMediaFilteredReasons": ["Violence. Support codes: 42237218"]}
        if fault == "truncated" and not operation.get("cut"):
            operation["cut"] = True
            answer["videos"][0]["bytesBase64Encoded"] = base64.b64encode(self.content[: len(self.content) // 2]).decode()
        return self._send(request, 200, {"name": body["operationName"], "done": True, "response": answer})

    def _send(self, request, code, content):
        self._send_text(request, json.dumps(content), code)

    def _send_text(self, request, text, code=200):
        data = text.encode()
        request.send_response(code)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

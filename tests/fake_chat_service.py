"""A chat-completions service on this machine (as vLLM and SGLang speak it) that answers as its list of steps says."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeChatService:
    """`steps` are taken one per request, the last again and again.

    A step is a text, (status, body, headers), "hang", "cut body", "no json", "empty" or "length"; a text is sent with the
    log-probabilities of its words where they are asked for.
    """

    def __init__(self, *steps, word_logprob: float = -0.1):
        self.steps, self.seen, self.word_logprob = list(steps), [], word_logprob
        self.release = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                service.answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, body):
        self.seen.append((request.path, dict(request.headers), body))
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if step == "hang":
            self.release.wait(10)
            return request.connection.close()
        if step == "cut body":
            return self._send(request, 200, json.dumps(self._content("Yes.", body))[:40], length=400)
        if step == "no json":
            return self._send(request, 200, "<html>Sign in</html>")
        if step == "empty":
            return self._send(request, 200, json.dumps({"choices": []}))
        if isinstance(step, tuple):
            return self._send(request, step[0], step[1], step[2])
        text, reason = ("The man walks and", "length") if step == "length" else (step, "stop")
        return self._send(request, 200, json.dumps(self._content(text, body, reason)))

    def _content(self, text, body, reason="stop"):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        if body.get("logprobs"):
            words = [part if place == 0 else " " + part for place, part in enumerate(text.split(" "))]
            choice["logprobs"] = {"content": [{"token": word, "logprob": self.word_logprob, "bytes": None} for word in words]}
        usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}

    def _send(self, request, code, text, headers=None, length=None):
        data = text.encode()
        request.send_response(code)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(length or len(data)))
        request.end_headers()
        request.wfile.write(data)
        request.wfile.flush()
        if length:
            time.sleep(0.05)
            request.connection.close()

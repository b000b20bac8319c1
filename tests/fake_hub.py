"""A Hugging Face hub on this machine: repositories are made, committed to and read over HTTP, as its client does it."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub:
    """`repos` holds {(kind, name): {path: bytes}}, `private` what was asked for, `tokens` every Authorization header seen."""

    def __init__(self):
        self.repos, self.private, self.tokens, self.requests, self.refuse = {}, {}, set(), [], 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_POST = do_HEAD = do_PUT = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.tokens.add(request.headers.get("Authorization"))
        self.requests.append(f"{request.command} {path}")
        status, content, headers = self.reply(request.command, path, body)
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def reply(self, command, path, body):
        if self.refuse:
            return self.refuse, {"error": "refused"}, {"X-Error-Message": "refused"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            key = (asked.get("type", "model") + "s", f"{asked['organization']}/{asked['name']}")
            self.repos.setdefault(key, {})
            self.private[key] = asked.get("private", asked.get("visibility") == "private")
            return 200, {"url": f"{self.url}/{key[1]}", "id": key[1]}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit)/main", path):
            kept = self.repos[found[1], found[2]]
            if found[3] == "preupload":
                asked = [file["path"] for file in json.loads(body)["files"]]
                return 200, {"files": [{"path": each, "uploadMode": "regular", "shouldIgnore": False} for each in asked]}, {}
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            made = f"{self.url}/{found[2]}/commit/{COMMIT}"
            return 200, {"commitUrl": made, "commitOid": COMMIT, "success": True, "pullRequestUrl": None}, {}
        if (found := re.match(r"/api/(models|datasets)/([^/]+/[^/]+)", path)) and (found[1], found[2]) in self.repos:
            kept = self.repos[found[1], found[2]]
            if "/tree/" in path:
                rows = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in kept.items()
                ]
                return 200, rows, {}
            files = [{"rfilename": name} for name in kept]
            return 200, {"id": found[2], "sha": COMMIT, "siblings": files, "tags": [], "private": True}, {}
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.repos.get(("datasets" if found[1] else "models", found[2]), {}).get(found[3])
            if content is not None:
                return 200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return 404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"}

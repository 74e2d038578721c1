"""A small hub: an HTTP server in this process that takes what `huggingface_hub` uploads."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What was asked of it and what it holds; with a `status` it refuses everything."""

    def __init__(self, status: int = 200):
        self.status, self.asked = status, []
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.url = ""

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(path)
        if self.status != 200:
            return self.status, {"error": "Refused."}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.repositories[name] = wanted
            return 200, {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            like = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": name, **like} for name in files]}
        if "/commit/" in path:
            for line in body.splitlines():
                self._take(json.loads(line))
            name, oid = path.removeprefix("/api/models/").partition("/commit/")[0], "0" * 40
            url = f"{self.url}/{name}/commit/{oid}"
            return 200, {"success": True, "commitOid": oid, "commitUrl": url}
        if "/tree/" in path:
            files = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.files]
            return 200, files
        return 404, {"error": f"no {path} here"}

    def _take(self, line: dict[str, Any]) -> None:
        value = line["value"]
        if line["key"] == "header":
            self.messages.append(value["summary"])
        elif line["key"] == "deletedFile":
            del self.files[value["path"]]
        else:
            self.files[value["path"]] = base64.b64decode(value["content"])


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._say(*hub.answer(self.path, body))

        def do_GET(self):
            self._say(*hub.answer(self.path, b""))

        def _say(self, status, answer):
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

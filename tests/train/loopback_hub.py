"""A Hugging Face hub on this machine: takes one repository by the real client, and gives it back by it."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "a" * 40
REVISIONS = ("main", "v1", COMMIT)


class Hub(ThreadingHTTPServer):
    """What was pushed, by file name, and what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        super().__init__(("127.0.0.1", 0), _Answers)


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(data)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer({"files": files})
        if "/commit/main" in self.path:
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    file = line["value"]
                    self.server.files[file["path"]] = base64.b64decode(file["content"])
            return self.answer({"commitUrl": "/owner/name/commit", "commitOid": COMMIT})
        return self.answer({"url": "/owner/name", "warnings": [], "errors": []})

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/owner/name"):
            if path.count("/") > 4 and path.rpartition("/")[2] not in REVISIONS:
                return self.answer({}, 404, X_Error_Code="RevisionNotFound")
            if "/tree/" in path:
                return self.answer([tree_entry(name, data) for name, data in self.server.files.items()])
            siblings = [{"rfilename": name} for name in self.server.files]
            return self.answer({"id": "owner/name", "sha": COMMIT, "siblings": siblings})
        _, found, name = path.partition("/owner/name/resolve/")
        data = self.server.files.get(name.partition("/")[2]) if found else None
        if data is None:
            return self.answer({}, 404, X_Error_Code="RepoNotFound")
        return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


def tree_entry(name: str, data: bytes) -> dict[str, object]:
    """A file as the hub lists it."""
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def loopback_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The client's hub is this one meanwhile."""
    with Hub() as hub:
        endpoint = f"http://127.0.0.1:{hub.server_port}"
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        constants = "huggingface_hub.constants."
        monkeypatch.setattr(f"{constants}ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}HF_HUB_OFFLINE", False)
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()

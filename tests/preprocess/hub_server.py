"""The HTTP interface of the Hugging Face hub, as far as its own client uses it for one data set, on loopback.

Files, large files by digest, commits, listings and ranges; a token is asked for where something is written. A
`fault` may answer a request in its place.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
LARGE = (".tar", ".parquet")  # endings that .gitattributes of a data set sends to large files


class Hub(ThreadingHTTPServer):
    """One data set, `repo`; `files` holds the state of its only branch."""

    daemon_threads = True

    def __init__(self, repo):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.files, self.large = repo, {}, {}
        self.commits, self.requests, self.lock = [], [], threading.Lock()
        self.fault = lambda method, path: None  # -> a status, or None for the true answer

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, folder):
        """Variables that turn the hub's client to this server."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextmanager
def hub(repo="me/scenes"):
    server = Hub(repo)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def _answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        status = self.server.fault(self.command, path)
        if status is not None:
            return self._send(status, b"{}")
        known = path.startswith("/upload/") or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.command in ("POST", "PUT") and not known:
            return self._send(401, b"{}", {"X-Error-Code": "InvalidToken"})
        for pattern, do in ROUTES:
            match = re.fullmatch(pattern.format(repo=re.escape(self.server.repo)), path)
            if match:
                with self.server.lock:
                    return do(self, body, *match.groups())
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send(self, status, data, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, facts):
        self._send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def _sha(self):
        return hashlib.sha1(repr(len(self.server.commits)).encode()).hexdigest()

    def info(self, body, _=None):
        names = [{"rfilename": name} for name in sorted(self.server.files)]
        self._json({"id": self.server.repo, "sha": self._sha(), "siblings": names, "private": False})

    def tree(self, body, base):
        base = (base or "").strip("/")
        inside = [name for name in sorted(self.server.files) if not base or name.startswith(f"{base}/")]
        if base and not inside:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        recursive = "recursive=True" in self.path or "recursive=true" in self.path
        found, folders = [], set()
        for name in inside:
            rest = name[len(base) + 1 :] if base else name
            parts = rest.split("/")
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
            if recursive or len(parts) == 1:
                found.append(self._entry(name))
        for folder in sorted(folders):
            if recursive or "/" not in folder:
                found.append({"type": "directory", "path": f"{base}/{folder}".strip("/"), "oid": "0" * 40})
        return self._json(found)

    def _entry(self, name):
        data = self.server.files[name]
        facts = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if name.endswith(LARGE):
            facts["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return facts

    def paths(self, body):
        found = []
        for name in json.loads(body)["paths"]:
            if name in self.server.files:
                found.append(self._entry(name))
            elif any(other.startswith(f"{name}/") for other in self.server.files):
                found.append({"type": "directory", "path": name, "oid": "0" * 40})
        self._json(found)

    def preupload(self, body):
        files = json.loads(body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self._json({"files": modes})

    def batch(self, body):
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.server.url}/upload/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, body, digest):
        if hashlib.sha256(body).hexdigest() != digest:
            return self._send(400, b"{}")
        self.server.large[digest] = body
        return self._send(200, b"")

    def commit(self, body):
        for line in body.splitlines():
            facts = json.loads(line)
            key, value = facts["key"], facts["value"]
            if key == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                self.server.files[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile":
                del self.server.files[value["path"]]
        self.server.commits.append(body)
        place = f"{self.server.url}/datasets/{self.server.repo}/commit/{self._sha()}"
        self._json({"commitUrl": place, "commitOid": self._sha()})

    def resolve(self, body, name):
        data = self.server.files.get(name)
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self._sha()})
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self._sha()}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            return self._send(200, data, headers)
        first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._send(206, data[first : last + 1], headers)

    def yaml(self, body):
        self._json({"errors": [], "warnings": []})


API = "/api/datasets/{repo}"
ROUTES = (
    (f"{API}(/revision/[^/]+)?", _Handler.info),
    (f"{API}/tree/[^/]+(/.*)?", _Handler.tree),
    (f"{API}/paths-info/[^/]+", _Handler.paths),
    (f"{API}/preupload/[^/]+", _Handler.preupload),
    (f"{API}/commit/[^/]+", _Handler.commit),
    ("/datasets/{repo}.git/info/lfs/objects/batch", _Handler.batch),
    ("/upload/([0-9a-f]{{64}})", _Handler.upload),
    ("/datasets/{repo}/resolve/[^/]+/(.+)", _Handler.resolve),
    ("/api/validate-yaml", _Handler.yaml),
)

"""The commit of a backbone that nobody pinned: asked for, found in the cache offline, or said why not."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from maskshards.train.model.backbone.architectures import ModelError
from maskshards.train.model.backbone.hub_commit import cached_commit, hub_id_of, newest_commit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for a repository that is there, gated or missing."""

    def do_GET(self) -> None:
        gated, missing = "gated" in self.path, "missing" in self.path
        body = json.dumps({"id": "a/b", "sha": COMMIT, "siblings": [], "modelId": "a/b"}).encode()
        self.send_response(403 if gated else 404 if missing else 200)
        if gated or missing:
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            body = b"{}"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    api = huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_is_asked_and_a_whole_commit_is_not(hub: Path) -> None:
    assert newest_commit("a/b") == COMMIT
    assert newest_commit("a/missing", "f" * 40) == "f" * 40


@pytest.mark.parametrize(
    ("name", "told"), [("gated", "accept its licence"), ("missing", "knows no repository")]
)
def test_what_cannot_be_had_is_told_by_its_reason(hub: Path, name: str, told: str) -> None:
    with pytest.raises(ModelError, match=f"a/{name}.*{told}|{told} a/{name}"):
        newest_commit(f"a/{name}")


def test_out_of_reach_the_cache_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    nobody = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: nobody)
    with pytest.raises(ModelError, match=r"could not be asked .*a/b.*pass model\.weights=PATH"):
        newest_commit("a/b")
    folder = tmp_path / "models--a--b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT)
    assert cached_commit("a/b", "main") is None  # the commit is known, its files are not there
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / "config.json").write_text("{}")
    assert newest_commit("a/b") == COMMIT


def test_what_comes_from_the_hub_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/weights").mkdir(parents=True)
    assert hub_id_of("dinov2_vits14", None) == "facebook/dinov2-small"
    assert hub_id_of("dinov2_vits14", "someone/weights") == "someone/weights"
    assert hub_id_of("dinov2_vits14", "own/weights") is None
    assert hub_id_of("dinov2_vits14", "random") is None
    assert hub_id_of("dinov2_vits14", "models/there.pth") is None
    assert hub_id_of("dinov3_tiny16", None) is None

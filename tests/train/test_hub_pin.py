"""A run keeps the commit that it began with: against a hub on the loopback whose newest commit moves on."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from shards.order import World
from train.config import load_config
from train.distributed import Ranks
from train.hub_pin import last_config, pinned, remembered
from train.model.architectures import architecture
from train.model.weight_files import WeightsError

ROOT = Path(__file__).parents[2]
ALONE = Ranks(World(), torch.device("cpu"))
OLD, NEW = "a" * 40, "b" * 40
NAME = "someone/tiny"


@dataclass
class Hub:
    """What the server holds: a folder for each commit, the newest, and the lines it was asked."""

    folders: dict[str, Path]
    newest: str = OLD
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def looked_up(self) -> int:
        """How often somebody asked what the newest commit is."""
        return sum(path == f"/api/models/{NAME}" for path in self.asked)


def entry(path: Path) -> dict[str, object]:
    """A file as the hub lists it."""
    return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(self.path.split("?")[0])
            facts = re.fullmatch(rf"/api/models/{NAME}(?:/revision/(\w+))?", hub.asked[-1])
            tree = re.fullmatch(rf"/api/models/{NAME}/tree/(\w+)", hub.asked[-1])
            file = re.fullmatch(rf"/{NAME}/resolve/(\w+)/(.+)", hub.asked[-1])
            if facts:
                commit = facts[1] or hub.newest
                names = [{"rfilename": path.name} for path in hub.folders[commit].iterdir()]
                self.answer(json.dumps({"id": NAME, "sha": commit, "siblings": names}).encode(), commit)
            elif tree:
                self.answer(
                    json.dumps([entry(path) for path in hub.folders[tree[1]].iterdir()]).encode(), tree[1]
                )
            elif file and (hub.folders[file[1]] / file[2]).is_file():
                self.answer((hub.folders[file[1]] / file[2]).read_bytes(), file[1])
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def answer(self, data: bytes, commit: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    arch = architecture("dinov3_tiny16")
    torch.manual_seed(0)
    DINOv3ViTModel(DINOv3ViTConfig(**arch.settings)).save_pretrained(tmp_path / OLD)
    (tmp_path / NEW).mkdir()
    (tmp_path / NEW / "config.json").write_bytes((tmp_path / OLD / "config.json").read_bytes())
    weights = load_file(tmp_path / OLD / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / NEW / "model.safetensors")
    found = Hub({OLD: tmp_path / OLD, NEW: tmp_path / NEW})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(found))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def train(hub: Hub, home: Path, arguments: list[str]) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "train", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_run_and_what_follows_it_keep_the_commit_of_its_first_day(
    hub: Hub, tiny_run: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny_run, f"model.weights={NAME}", "scheduler.total_iter=2", "eval.max_val_samples=1"]
    train(hub, tmp_path / "home", arguments)
    assert hub.looked_up == 1
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["revision"] == OLD
    hub.newest = NEW
    train(hub, tmp_path / "new home", [*arguments, "resume_from=auto"])
    train(
        hub,
        tmp_path / "new home",
        [*arguments, f"load_from={tmp_path / 'run'}", f"output_dir={tmp_path / 'scores'}"],
    )
    assert hub.looked_up == 1
    assert not any(NEW in path for path in hub.asked)


def test_only_the_same_weights_are_remembered(tiny_run: list[str], tmp_path: Path) -> None:
    config = load_config([*tiny_run, "model.weights=someone/tiny"])
    same = {"dino_hub": "dinov3_tiny16", "weights": "someone/tiny", "pretrained_weights": None}
    assert remembered(config, {"model": same | {"revision": OLD}}) == OLD
    assert remembered(config, {"model": same | {"revision": "main"}}) is None
    assert remembered(config, {"model": same | {"revision": OLD, "weights": "other/tiny"}}) is None
    assert remembered(config, {"model": None}) is None
    assert remembered(config, None) is None
    (tmp_path / "config.yaml").write_text("{")
    assert last_config(tmp_path) is None
    assert last_config(tmp_path / "nowhere") is None


def test_what_needs_no_hub_is_left_as_it_is(tiny_run: list[str], tmp_path: Path) -> None:
    for weights in ("random", str(tmp_path)):
        config = load_config([*tiny_run, f"model.weights={weights}"])
        assert pinned(config, ALONE, None) is config
    config = load_config([*tiny_run, "model.weights=someone/tiny", f"model.revision={NEW}"])
    assert pinned(config, ALONE, {"model": {"revision": OLD}}) is config


def test_a_hub_that_does_not_answer_is_an_error(tiny_run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    config = load_config([*tiny_run, "model.weights=someone/tiny"])
    with pytest.raises(WeightsError, match=r"could not fetch someone/tiny \(revision newest\)"):
        pinned(config, ALONE, None)

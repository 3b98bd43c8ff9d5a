"""A run keeps the commit that it began with: against a hub on the loopback whose newest commit moves on."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from maskshards.shards.order.order import World
from maskshards.train.checkpoint.checkpoint import save_best
from maskshards.train.config.load import load_config, to_plain, write_config
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.model.backbone.architectures import ModelError, architecture
from maskshards.train.trainer.hub_pin import (
    earlier_config,
    last_config,
    like_last_run,
    with_commit,
    with_rule,
)
from tests import forked
from tests.train.trained_run import small_config, trained

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


# `maskshards train` with each of several lists of words, until one fails.
RUNS = """
import json, sys
from maskshards.train.__main__ import main
sys.exit(next((status for words in json.loads(sys.argv[1]) if (status := main(words))), 0))
"""


def train(hub: Hub, home: Path, *runs: list[str]) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, for HF_HOME and HF_ENDPOINT are read on import; with no file from the hub."""
    shutil.rmtree(home, ignore_errors=True)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        environment.pop(name, None)
    return forked.run(["-c", RUNS, json.dumps(runs)], env=environment)


def test_a_run_and_what_follows_it_keep_the_commit_of_its_first_day(
    hub: Hub, tiny_run: list[str], tmp_path: Path
) -> None:
    arguments = [*tiny_run, f"model.weights={NAME}", "scheduler.total_iter=2", "eval.max_val_samples=1"]
    arguments.append("decoder_head.type=linear")  # the backbone is what is fetched
    first = train(hub, tmp_path / "home", arguments)
    assert first.returncode == 0, first.stderr
    assert f"{NAME} at commit {OLD}" in first.stderr
    assert f"revision: {OLD}" in (tmp_path / "run/config.yaml").read_text()
    hub.newest = NEW
    later = [
        [*arguments, "resume_from=auto"],
        [*arguments, f"load_from={tmp_path / 'run'}", f"output_dir={tmp_path / 'scores'}"],
    ]
    done = train(hub, tmp_path / "home", *later)
    assert done.returncode == 0, done.stderr
    assert hub.looked_up == 1  # on the first day
    assert not any(NEW in path for path in hub.asked)


def test_only_the_commit_of_the_same_weights_is_taken(tiny_run: list[str]) -> None:
    config = load_config([*tiny_run, f"model.weights={NAME}"])
    same = {"dino_hub": "dinov3_tiny16", "weights": NAME, "pretrained_weights": None, "revision": OLD}
    assert with_commit(config, {"model": same}).model.revision == OLD
    for other in ({"model": same | {"weights": "other/tiny"}}, {"model": None}, {}, None):
        assert with_commit(config, other) is config
    own = load_config([*tiny_run, f"model.weights={NAME}", f"model.revision={NEW}"])
    assert with_commit(own, {"model": same}) is own


def test_the_last_config_of_a_folder(tiny_run: list[str], tmp_path: Path) -> None:
    local = load_config(tiny_run)
    assert like_last_run(local, tmp_path / "nowhere", ALONE).model.revision is None  # nothing is fetched
    config = load_config([*tiny_run, f"model.weights={NAME}"])
    for text in ("{", "- a list", "", "a: 2001-99-99", "a: !!int ''", "a: !!bool x", "a: !!timestamp x"):
        (tmp_path / "config.yaml").write_text(text)
        assert last_config(tmp_path) is None
    write_config(replace(config, model=replace(config.model, revision=OLD)), tmp_path / "config.yaml")
    assert like_last_run(config, tmp_path, ALONE).model.revision == OLD


def test_what_resume_from_names_comes_before_what_the_folder_holds(
    tiny_run: list[str], tmp_path: Path
) -> None:
    config = load_config([*tiny_run, f"model.weights={NAME}"])
    here, there = (replace(config, model=replace(config.model, revision=commit)) for commit in (NEW, OLD))
    write_config(here, tmp_path / "config.yaml")
    _, state = trained(small_config())
    saved = save_best(tmp_path / "other", replace(state, config=to_plain(there)), {})
    path = saved.rename(saved.with_name("step-00000001"))
    for named in (path, tmp_path / "other"):
        onward = replace(config, resume_from=str(named))
        assert like_last_run(onward, tmp_path, ALONE).model.revision == OLD
    assert earlier_config(replace(config, resume_from="auto"), tmp_path) == last_config(tmp_path)
    (path / "state.json").write_text("{")
    assert earlier_config(onward, tmp_path) is None  # and not the folder's


@pytest.mark.parametrize(
    ("earlier", "precision"),
    [
        (None, "full"),
        ({"model": {"dino_hub": "dinov3_tiny16"}}, "full"),  # older than the key
        ({"model": {"dino_hub": "dinov3_tiny16", "backbone_precision": "fp8"}}, "fp8"),
        ({"model": {"dino_hub": "dinov3_vitl16", "backbone_precision": "fp8"}}, "full"),  # of another one
    ],
)
def test_the_precision_of_the_backbone_is_the_checkpoints_else_full(
    earlier: dict[str, object] | None, precision: str, tiny_run: list[str]
) -> None:
    assert with_rule(load_config(tiny_run), earlier).model.backbone_precision == precision
    own = load_config([*tiny_run, "model.backbone_precision=fp8", "model_dtype=BFLOAT16"])
    assert with_rule(own, earlier).model.backbone_precision == "fp8"


DINOV2 = ["model.dino_hub=dinov2_tiny14", "transforms.train.crop_size=[224,224]"]
LINEAR = ["decoder_head.type=linear", "decoder_head.backbone_out_layers=LAST", "eval.mode=whole"]


@pytest.mark.parametrize(
    ("earlier", "rule"),
    [
        (None, "offset"),  # a new run: as published
        ({"model": {"dino_hub": "dinov2_tiny14"}}, "size"),  # older than the key
        ({"model": {"dino_hub": "dinov2_tiny14", "position_rule": None}}, "size"),
        ({"model": {"dino_hub": "dinov2_tiny14", "position_rule": "offset"}}, "offset"),
        ({"model": {"dino_hub": "dinov2_vits14", "position_rule": "size"}}, "offset"),  # of another backbone
    ],
)
def test_the_rule_for_positions_is_the_checkpoints_else_the_published(
    earlier: dict[str, object] | None, rule: str, tiny_run: list[str]
) -> None:
    config = load_config([*tiny_run, *DINOV2, *LINEAR])
    assert with_rule(config, earlier).model.position_rule == rule
    for own in ("size", "offset"):
        given = load_config([*tiny_run, *DINOV2, *LINEAR, f"model.position_rule={own}"])
        assert with_rule(given, earlier).model.position_rule == own


def test_a_backbone_without_a_choice_has_no_rule(tiny_run: list[str], tmp_path: Path) -> None:
    config = load_config(tiny_run)
    assert like_last_run(config, tmp_path, ALONE).model.position_rule is None
    wrong = load_config([*tiny_run, "model.position_rule=size"])
    with pytest.raises(ModelError, match=r"model\.position_rule='size': dinov3_tiny16 has one rule only"):
        like_last_run(wrong, tmp_path, ALONE)


def test_a_run_goes_on_under_the_rule_in_its_folder(tiny_run: list[str], tmp_path: Path) -> None:
    config = load_config([*tiny_run, *DINOV2, *LINEAR])
    first = like_last_run(config, tmp_path, ALONE)
    assert first.model.position_rule == "offset"
    write_config(first, tmp_path / "config.yaml")
    assert like_last_run(config, tmp_path, ALONE).model.position_rule == "offset"
    text = (tmp_path / "config.yaml").read_text().replace("  position_rule: offset\n", "")
    (tmp_path / "config.yaml").write_text(text)  # as versions before the key wrote it
    assert like_last_run(config, tmp_path, ALONE).model.position_rule == "size"

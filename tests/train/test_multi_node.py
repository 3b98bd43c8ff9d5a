"""Two nodes and a shard server, each in a network of its own: torchrun over a veth pair, shards over HTTP."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from maskshards.train.checkpoint.checkpoint import read_checkpoint
from maskshards.train.tracking.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900

# A file server that answers byte ranges, as object stores do and Python's own does not.
SERVER = """
import os, re, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        try:
            data = open("." + self.path, "rb").read()
        except OSError:
            return self.send_error(404)
        wanted = re.match(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2] or len(data) - 1)) if wanted else (0, len(data) - 1)
        last = min(last, len(data) - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[first : last + 1])

    do_HEAD = do_GET

    def log_message(self, *words):
        pass

ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Network:
    """How to run a command on each machine, and the machines' addresses."""

    kind: str
    prefixes: tuple[list[str], ...]  # node 0, node 1, server
    addresses: tuple[str, ...]
    interfaces: tuple[str, ...]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def namespaced(name: str, undo: ExitStack) -> Network:
    """Three namespaces on a bridge in a fourth; everything goes when they are deleted."""
    spaces = [f"{name}-{part}" for part in ("a", "b", "s", "bridge")]
    for space in spaces:
        ip("netns", "add", space)
        undo.callback(subprocess.run, ["ip", "netns", "del", space], capture_output=True, check=False)
        ip("-n", space, "link", "set", "lo", "up")
    ip("-n", spaces[3], "link", "add", "bridge", "type", "bridge")
    ip("-n", spaces[3], "link", "set", "bridge", "up")
    for number, space in enumerate(spaces[:3]):
        port = f"port{number}"
        ip("link", "add", "node", "netns", space, "type", "veth", "peer", "name", port, "netns", spaces[3])
        ip("-n", spaces[3], "link", "set", port, "master", "bridge")
        ip("-n", spaces[3], "link", "set", port, "up")
        ip("-n", space, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "node")
        ip("-n", space, "link", "set", "node", "up")
    prefixes = tuple(["ip", "netns", "exec", space] for space in spaces[:3])
    return Network("namespaces", prefixes, ("10.77.0.1", "10.77.0.2", "10.77.0.3"), ("node",) * 3)


@pytest.fixture
def network() -> Iterator[Network]:
    """Network namespaces where they may be made, else several loopback addresses; the test prints which."""
    with ExitStack() as undo:
        try:
            if shutil.which("ip") is None:
                raise FileNotFoundError("the ip command is not installed")
            found = namespaced(f"ms{uuid.uuid4().hex[:6]}", undo)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            reason = getattr(error, "stderr", b"") or str(error)
            addresses = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
            found = Network(f"loopback addresses, because: {reason!r}", ([], [], []), addresses, ("lo",) * 3)
        yield found


def launch(network: Network, node: int, port: int, arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": network.interfaces[node]}
    command = [
        *network.prefixes[node], sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
        f"--node-rank={node}", "--nproc-per-node=1", f"--master-addr={network.addresses[0]}",
        f"--master-port={port}", "-m", "train", *arguments,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_two_nodes_stream_from_a_third_and_equal_two_local_ranks(
    network: Network, tiny_run: list[str], tiny_shards: Path, tmp_path: Path
) -> None:
    shared = [*tiny_run, "bs=1", "n_gpus=2", "scheduler.total_iter=4", "log.interval=1"]
    server = subprocess.Popen(
        [*network.prefixes[2], sys.executable, "-c", SERVER, network.addresses[2], "8123"],
        cwd=tiny_shards, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        remote = [
            *shared,
            f"datasets.root=http://{network.addresses[2]}:8123",
            f"output_dir={tmp_path / 'far'}",
            f"loader.cache_dir={tmp_path / 'cache'}",
        ]
        nodes = [launch(network, node, 29611, remote) for node in (0, 1)]
        outputs = [node.communicate(timeout=TIMEOUT_S)[0] for node in nodes]
    finally:
        server.kill()
        server.wait()
    sys.stdout.write(f"network: {network.kind}\n{outputs[0]}")
    assert [node.returncode for node in nodes] == [0, 0], outputs
    local = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*local, "-m", "train", *shared], cwd=ROOT, env=environment, check=True, capture_output=True,
        timeout=TIMEOUT_S,
    )  # fmt: skip
    far, near = (read_checkpoint(tmp_path / name / "model_final.pth").weights for name in ("far", "run"))
    assert [key for key in near if not torch.equal(near[key], far[key])] == []
    orders = [
        [line.get("order") for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("far", "run")
    ]
    assert orders[0] == orders[1]

"""Hand-made batches, for tests that need no shards, and small splits on disk, for those that do."""

import io
import os
import re
import socket
import struct
import sys
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from maskshards.shards.batch import RaggedBatch
from maskshards.shards.format.index import ShardInfo
from maskshards.shards.format.manifest import Manifest, write_split
from maskshards.shards.format.record import Record
from maskshards.shards.format.rle import encode_label_map
from maskshards.shards.format.tar import TarWriter
from maskshards.shards.loading.loader import Loader
from maskshards.shards.storage.http_access import BUNDLES

with suppress(ImportError):  # a GPU's machine may lack it, and no test for a GPU needs it
    import hypothesis

    # How long an example takes says how busy the machine is, not whether the code is right.
    hypothesis.settings.register_profile("any machine", deadline=None)
    hypothesis.settings.load_profile("any machine")

# Proxies and authorities of this machine must not stand between the tests and their own servers.
for _name in list(os.environ):
    if (
        _name.lower().endswith("_proxy")
        or _name.startswith("MASKSHARDS_HTTP_")
        or _name in (*BUNDLES, "NETRC")
    ):
        del os.environ[_name]


def _runs_of(class_map, labels):
    """(ends, owners) of one map of class ids, 65535 where no class is: one run wherever the owner changes."""
    owners = np.zeros(class_map.size, np.uint8)
    for k, label in enumerate(labels):
        owners[class_map.ravel() == label] = k + 1
    ends = np.append(np.flatnonzero(np.diff(owners)) + 1, owners.size)
    return ends, owners[ends - 1]


@pytest.fixture(scope="session")
def make_batch():
    """Images (H, W, 3) uint8 and maps (H, W) of class ids, 65535 for none -> a RaggedBatch, made-up keys."""

    def make(images, class_maps, epochs=None, keys=None):
        ends, owners, offsets, labels, start = [], [], [0], [], 0
        for image, class_map in zip(images, class_maps, strict=True):
            assert image.shape[:2] == class_map.shape
            labels.append(tuple(int(label) for label in np.unique(class_map) if label != 65535))
            own_ends, own_owners = _runs_of(class_map, labels[-1])
            ends.append(own_ends + start)
            owners.append(own_owners)
            offsets.append(offsets[-1] + len(own_ends))
            start += class_map.size
        size = len(images)
        return RaggedBatch(
            pixels=torch.from_numpy(np.concatenate([image.ravel() for image in images])),
            run_ends=torch.from_numpy(np.concatenate(ends).astype(np.int32)),
            run_owners=torch.from_numpy(np.concatenate(owners)),
            run_offsets=tuple(offsets),
            heights=tuple(image.shape[0] for image in images),
            widths=tuple(image.shape[1] for image in images),
            labels=tuple(labels),
            keys=tuple(keys or (f"sample_{i}" for i in range(size))),
            positions=tuple(range(size)),
            epochs=tuple(epochs or [0] * size),
            valid=(True,) * size,
        )

    return make


@pytest.fixture(scope="session")
def random_scenes():
    """`count` images of random sizes within `low`..`high` with blocky random class maps, some pixels
    unlabelled.
    """

    def scenes(count, low, high, seed, classes=6):
        random = np.random.default_rng(seed)
        images, class_maps = [], []
        for _ in range(count):
            height, width = random.integers(low, high + 1, 2)
            images.append(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
            block = int(random.integers(1, 12))
            coarse = random.integers(0, classes + 1, (-(-height // block), -(-width // block)))
            labels = np.array([65535, *(7 * np.arange(classes) + 3)])[coarse]
            class_maps.append(labels.repeat(block, 0).repeat(block, 1)[:height, :width])
        return images, class_maps

    return scenes


def _record(random, key, formats):
    """A blocky picture with blocky masks: its Record, and what reading it must give."""
    height, width = (int(size) for size in random.integers(20, 60, 2))
    blocks = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    present = random.choice([0, 3, 7, 149], random.integers(1, 4), replace=False)
    classes = random.choice(np.array([*present, 65535], np.uint16), blocks.shape[:2])
    classes = classes.repeat(8, 0).repeat(8, 1)[:height, :width]
    image_format = str(random.choice(formats))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if image_format == "jpg" else "PNG")
    decoded = np.asarray(Image.open(buffer).convert("RGB"))
    runs = encode_label_map(classes)
    record = Record(key, buffer.getvalue(), image_format, height, width, runs, {"name": key})
    return record, (decoded, classes)


@pytest.fixture(scope="session")
def make_split(tmp_path_factory):
    """make(name, [samples of each shard], seed) -> .folder, .keys per shard, .truth[key] = (image, map)."""

    def make(name, shard_samples, seed=0, formats=("jpg", "jpg", "png")):
        random = np.random.default_rng([seed, len(shard_samples)])
        folder = tmp_path_factory.mktemp(name)
        infos, entries, keys, truth = [], [], [], {}
        for shard, num_samples in enumerate(shard_samples):
            keys.append([f"{name}_{shard}_{place}" for place in range(num_samples)])
            path = folder / f"training-{shard:05d}.tar"
            with TarWriter(path) as writer:
                rows = []
                for key in keys[-1]:
                    record, truth[key] = _record(random, key, formats)
                    rows.append(writer.add(record))
            infos.append(ShardInfo(path.name, num_samples, writer.num_bytes, writer.sha256))
            entries.append(rows)
        classes = tuple(f"class {number}" for number in range(150))
        manifest = write_split(folder, Manifest("made", "training", classes, tuple(infos)), entries)
        return SimpleNamespace(folder=folder, keys=keys, truth=truth, manifest=manifest)

    return make


@pytest.fixture(scope="session")
def make_rows():
    """make([samples of each shard], seed) -> (ShardInfo of each, rows of each) of shards made in memory."""

    def make(shard_samples, seed=0):
        random, shards, entries = np.random.default_rng(seed), [], []
        for number, count in enumerate(shard_samples):
            writer = TarWriter(io.BytesIO())
            rows = []
            for place in range(count):
                height, width = (int(side) for side in random.integers(1, 9, 2))
                class_map = random.choice(np.array([0, 5, 600, 65535], np.uint16), (height, width))
                image = random.bytes(int(random.integers(1, 3000)))
                runs = encode_label_map(class_map)
                rows.append(writer.add(Record(f"k{number}_{place}", image, "jpg", height, width, runs, {})))
            writer.close()
            shards.append(ShardInfo(f"t-{number:05d}.tar", count, writer.num_bytes, writer.sha256))
            entries.append(rows)
        return shards, entries

    return make


@pytest.fixture(scope="session")
def take_keys():
    """The keys of a new loader's first batches, one list."""

    def take(split, num_batches, **settings):
        with Loader(split, **settings) as loader:
            return [key for batch in islice(loader, num_batches) for key in batch.keys]

    return take


class _Server(ThreadingHTTPServer):
    """Serves a folder with ranges, counts bytes and connections, and fails as it is told.

    `faults[name]` is a list of what to do with the next requests for that file, used up from the front;
    beyond it `choose(name, range)` says.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder, tls=None, host="127.0.0.1"):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.headers, self.waiting = [], threading.Event()  # of each request; one is held back
        self.folder, self.faults, self.bytes_sent = folder, {}, Counter()
        self.num_connections, self.ended, self.queries, self.open = 0, threading.Event(), [], []
        self.choose = lambda name, asked: ""
        name = f"[{host}]" if ":" in host else host
        self.url = f"http{'s' if tls else ''}://{name}:{self.server_port}"

    def process_request(self, request, client_address):
        self.num_connections += 1
        self.open.append(request)
        super().process_request(request, client_address)

    def close_connections(self):
        while self.open:
            self.open.pop().shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self._head(405, 0)  # as signed URLs and gateways do

    def do_GET(self):
        name, _, query = self.path.strip("/").partition("?")
        name = unquote(name)
        self.server.headers.append(dict(self.headers))
        self.server.queries += [query] if query else []
        path, planned = self.server.folder / name, self.server.faults.get(name)
        fault = planned.pop(0) if planned else self.server.choose(name, self.headers.get("Range", ""))
        if fault.isdigit() or not path.is_file():
            return self._head(int(fault or 404), 0)
        if fault.startswith("busy"):
            return self._head(503, 0, **{"Retry-After": fault.removeprefix("busy").strip()})
        if fault.startswith("redirect"):
            return self._head(302, 0, Location=fault.removeprefix("redirect").strip())
        if fault in ("drop", "silent"):
            self.close_connection = True
            self.server.waiting.set()
            return self.server.ended.wait(3600) if fault == "silent" else None
        if fault == "slow head":  # never silent for long, and never done
            self.close_connection = True
            while not self.server.ended.wait(0.02):
                self.wfile.write(b"H")
            return None
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]), len(data) - 1)) if asked else (0, len(data) - 1)
        if first > last:
            return self._head(416, 0, **{"Content-Range": f"bytes */{len(data)}"})
        if fault == "other range":
            first, last = 0, last - first
        body, content_range = data[first : last + 1], f"bytes {first}-{last}/{len(data)}"
        if fault == "flip":
            place = min(1000, len(body) // 4)  # in a sample's range: inside the image
            body = body[:place] + bytes([body[place] ^ 4]) + body[place + 1 :]
        if fault == "html":
            page = b"<html>log in first</html>"
            self._head(200, len(page), **{"Content-Type": "text/html"})
            return self.wfile.write(page)
        if fault == "no ranges":
            self._head(200, len(data))
            return self.wfile.write(data)
        lie = {"short length": -7, "long length": 7}.get(fault, 0)
        encoding = {"Content-Encoding": "gzip"} if fault == "gzip" else {}
        self._head(206, len(body) + lie, **{"Content-Range": content_range, **encoding})
        return self._send(name, body, fault)

    def _send(self, name, body, fault):
        if fault == "trickle":
            for byte in body:
                self.wfile.write(bytes([byte]))
                if self.server.ended.wait(0.05):
                    break
        elif fault in ("cut", "stall", "reset"):
            self.wfile.write(body[: len(body) // 2])
            if fault == "reset":  # closed with a time to linger of 0: an RST instead of a FIN
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.wfile.close()
                self.rfile.close()
                self.connection.close()
                raise ConnectionResetError
            if fault == "stall":
                self.server.waiting.set()
                self.connection.recv(1)  # until the other side has had enough
        else:
            self.server.bytes_sent[name] += len(body)  # before whoever reads it can go on
            self.wfile.write(body)
        self.close_connection = self.close_connection or bool(fault)

    def _head(self, status, length, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def serve():
    """serve(folder) -> a running server with .url, .faults, .bytes_sent, .num_connections; over TLS if a
    context is given.
    """
    servers = []

    def start(folder, tls=None, host="127.0.0.1"):
        server = _Server(folder, tls, host)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()

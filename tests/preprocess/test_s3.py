"""Builds into a real S3 protocol server on loopback, over a connection that fails in the middle."""

import socket
import subprocess
import sys
import threading

import pytest

from maskshards.preprocess.__main__ import main
from maskshards.preprocess.destinations import object_store
from maskshards.shards.storage.object_store import file_system
from maskshards.shards.storage.retry import RetrySettings
from tests.preprocess.folder_build import build_words, file_bytes

s3fs = pytest.importorskip("s3fs", reason="the extra 's3' is not installed")
pytest.importorskip("moto.server", reason="moto's S3 server is not installed")

THREE = ("--samples-per-shard", "3")
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="module")
def server():
    """The port of an S3 server that lives as long as this module's tests."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield int(process.stdout.readline())
        process.stdin.close()
        process.wait(600)


class CuttingProxy:
    """Passes bytes on to a port, but drops the first `cuts` connections that sent more than `limit` bytes."""

    def __init__(self, port, cuts, limit):
        self.target, self.cuts, self.limit = port, cuts, limit
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                ours, _ = self.listener.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self.target))
            self.open += [ours, theirs]
            threading.Thread(target=self._pass, args=(ours, theirs, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(theirs, ours, False), daemon=True).start()

    def _pass(self, source, sink, counted):
        sent = 0
        try:
            while data := source.recv(4096):
                sent += len(data)
                if counted and sent > self.limit and self._cut():
                    break
                sink.sendall(data)
        except OSError:
            pass  # the other direction was cut
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already

    def _cut(self):
        with self.lock:
            self.cuts -= 1
            return self.cuts >= 0

    def close(self):
        self.listener.close()
        for end in self.open:
            end.close()


@pytest.fixture
def bucket(server, monkeypatch):
    """bucket(cuts) -> (URL of a fresh bucket behind a proxy that cuts so many connections, the proxy)."""
    proxies = []

    def make(cuts, limit=30_000):
        proxy = CuttingProxy(server, cuts, limit)
        proxies.append(proxy)
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        forget()
        name = f"bucket-{proxy.port}"
        file_system(f"s3://{name}").mkdir(name)
        return f"s3://{name}/data", proxy

    yield make
    for proxy in proxies:
        proxy.close()
    forget()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(object_store, "PATIENCE", RetrySettings(first_delay_s=0.01))


def forget():
    """Drop drivers that hold the settings of another test."""
    s3fs.S3FileSystem.clear_instance_cache()


def remote(url):
    files = file_system(url)
    base = url.removeprefix("s3://") + "/"
    return {path.removeprefix(base): files.cat_file(path) for path in files.find(url)}


@pytest.mark.parametrize(("cuts", "workers"), [(0, "2"), (2, "1")])
def test_a_bucket_gets_the_bytes_of_a_folder(make_root, tmp_path, bucket, cuts, workers):
    root = make_root(training=6, validation=2, height=200, width=260)
    assert main(build_words(root, tmp_path / "out", *THREE)) == 0
    url, proxy = bucket(cuts)
    assert main(build_words(root, url, *THREE, "--workers", workers)) == 0
    assert proxy.cuts <= 0
    assert remote(url) == file_bytes(tmp_path / "out")
    assert main(["verify", url, "--against", str(root), "--workers", "1"]) == 0


def test_a_connection_that_never_holds_stops_the_build_which_goes_on_later(
    make_root, tmp_path, bucket, capsys
):
    root = make_root(training=6, height=200, width=260)
    assert main(build_words(root, tmp_path / "out", *THREE)) == 0
    url, proxy = bucket(1000)
    assert main(build_words(root, url, *THREE)) == 2
    told = capsys.readouterr().err
    assert "error: cannot write s3://" in told
    assert "the same command goes on from there" in told
    assert not [name for name in remote(url) if name.endswith("manifest.json")]
    proxy.cuts = 0
    assert main(build_words(root, url, *THREE)) == 0
    assert remote(url) == file_bytes(tmp_path / "out")

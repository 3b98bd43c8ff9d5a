"""Proxies on the loopback, waits that are ended from another thread, and forks."""

import socket
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from maskshards.shards.errors import StoreError, UnreachableError
from maskshards.shards.storage import retry
from maskshards.shards.storage.http import HttpStore
from maskshards.shards.storage.http_connections import Connections
from maskshards.shards.storage.retry import RetrySettings

CONTENT = bytes(range(256)) * 40
QUICK = RetrySettings(attempts=2, first_delay_s=0.001)
ENDLESS = RetrySettings(attempts=2, first_delay_s=1e6, longest_delay_s=1e6, stall_s=600.0, total_s=600.0)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.tar").write_bytes(CONTENT)
    return tmp_path


def test_requests_go_through_the_proxy_unless_their_host_is_exempt(serve, folder, proxy, monkeypatch):
    server = serve(folder)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    store = HttpStore(server.url, QUICK)
    assert store.read("a.tar", 3, 5) == CONTENT[3:8]
    assert proxy.asked == [f"GET {server.url}/a.tar"]
    store.close()
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.0/8")
    assert store.read("a.tar", 3, 5) == CONTENT[3:8]  # the environment is read anew after a close
    assert len(proxy.asked) == 1
    store.close()


def test_tls_goes_through_a_tunnel_of_the_proxy(serve, folder, proxy, authority, monkeypatch):
    server = serve(folder, authority.tls("127.0.0.1"))
    place = server.url.removeprefix("https://")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@{proxy.place}")
    proxy.login = "me:p@ss"
    store = HttpStore(server.url, QUICK)
    assert store.read("a.tar", 3, 5) + store.read("a.tar", 8, 2) == CONTENT[3:10]
    assert proxy.asked == [f"CONNECT {place}"]
    store.close()


def test_a_proxy_that_refuses_or_is_not_there_is_named_at_once(serve, folder, proxy, authority, monkeypatch):
    proxy.login = "me:other"
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    with pytest.raises(StoreError, match="407 Proxy Authentication Required; the proxy asks for a login"):
        HttpStore(serve(folder).url, ENDLESS).size("a.tar")
    with pytest.raises(UnreachableError, match=r"407 Proxy Authentication Required.*the proxy refuses"):
        HttpStore(serve(folder, authority.tls("127.0.0.1")).url, ENDLESS).size("a.tar")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="nothing listens at that proxy and port"):
        HttpStore("http://shards.example", ENDLESS).size("a.tar")


def read_until_closed(store, waiting):
    """The error of a read in another thread that was ended by `close` once `waiting()` returned."""
    errors = []

    def read():
        try:
            store.read("a.tar", 0, 1000)
        except StoreError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    waiting()
    store.close()
    thread.join(50)  # the server lets go after 60
    return errors


@pytest.mark.parametrize("fault", ["silent", "stall", "503"])
def test_closing_ends_a_wait_for_head_body_and_the_next_attempt(serve, folder, fault, monkeypatch):
    server = serve(folder)
    server.faults["a.tar"] = [fault]
    announced = threading.Event()
    monkeypatch.setattr(retry.log, "warning", lambda *words: announced.set())
    store = HttpStore(server.url, ENDLESS)
    (error,) = read_until_closed(store, (announced if fault == "503" else server.waiting).wait)
    assert "the store was closed meanwhile" in error
    assert store.read("a.tar", 3, 5) == CONTENT[3:8]
    store.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_closing_ends_a_wait_for_a_connection_and_its_handshake(scheme, monkeypatch):
    """A server that never accepts: with https its backlog holds the connection, with http it is full."""
    watched, honest = threading.Event(), Connections.watch

    def watch(connections, connection, kept):
        honest(connections, connection, kept)
        watched.set()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fillers = [socket.socket() for _ in range(8 if scheme == "http" else 0)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        monkeypatch.setattr(Connections, "watch", watch)
        store = HttpStore(f"{scheme}://127.0.0.1:{listening.getsockname()[1]}", ENDLESS)
        (error,) = read_until_closed(store, watched.wait)
        for filler in fillers:
            filler.close()
    assert "the store was closed meanwhile" in error


def test_every_socket_that_was_watched_is_let_go(serve, folder):
    server = serve(folder)
    server.faults["a.tar"] = ["cut", "404", "html", "drop", "", "503", "503"]
    store = HttpStore(server.url, QUICK)
    connections = store._connections.get()
    for _ in range(4):
        with suppress(StoreError):
            store.read("a.tar", 0, 3000)
    assert server.faults["a.tar"] == []
    store.read("a.tar", 0, 3)
    assert len(connections._sockets) == 1  # the one that is kept
    store.close()
    assert connections._sockets == {}


FORKED = """
import os, sys
from maskshards.shards.storage.http import HttpStore
store = HttpStore(sys.argv[1])
want = bytes(range(256)) * 40
def right(): return all(store.read("a.tar", k, 50) == want[k : k + 50] for k in range(0, 1000, 50))
assert right()
with store._connections.get()._lock:  # another thread's, as far as the children can know
    children = []
    for _ in range(8):
        children.append(os.fork())
        if not children[-1]:
            os._exit(0 if right() else 1)
assert right()
assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)
assert right()
"""


def test_forked_children_have_connections_of_their_own(serve, folder):
    server = serve(folder)
    done = subprocess.run([sys.executable, "-c", FORKED, server.url], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.num_connections == 9


NEVER_CLOSED = """
import sys
from maskshards.shards.storage.http import HttpStore
store = HttpStore(sys.argv[1])
store.read("a.tar", 0, 3)
"""


def test_a_program_that_ends_with_an_open_store_ends_without_a_word(serve, folder):
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", NEVER_CLOSED, serve(folder).url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

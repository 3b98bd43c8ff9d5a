"""A real server on the loopback that fails in every way it can: exact bytes or a named error, always."""

import copy

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.http import HttpStore, _redirected
from maskshards.shards.storage.retry import RetrySettings

CONTENT = bytes(range(256)) * 40
QUICK = RetrySettings(attempts=3, first_delay_s=0.001, stall_s=0.3, total_s=0.5, slowest_bytes_per_s=1e6)


@pytest.fixture
def server(serve, tmp_path):
    (tmp_path / "a.tar").write_bytes(CONTENT)
    return serve(tmp_path)


@pytest.fixture
def store(server):
    store = HttpStore(server.url, QUICK)
    yield store
    store.close()


def test_ranges_and_sizes_are_exact(store, server):
    assert store.read("a.tar", 300, 1000) == CONTENT[300:1300]
    assert store.read("a.tar", 0, len(CONTENT)) == CONTENT
    assert store.read("a.tar", 5, 0) == b""
    assert store.size("a.tar") == len(CONTENT)
    assert server.bytes_sent["a.tar"] == 1000 + len(CONTENT)


def test_connections_are_kept(store, server):
    for offset in range(5):
        store.read("a.tar", offset, 10)
    assert server.num_connections == 1


@pytest.mark.parametrize(
    "fault", ["500", "503", "429", "cut", "stall", "drop", "short length", "long length", "trickle"]
)
def test_what_may_pass_is_tried_again(store, server, fault):
    server.faults["a.tar"] = [fault, fault]
    assert store.read("a.tar", 100, 2000) == CONTENT[100:2100]
    assert not server.faults["a.tar"]


@pytest.mark.parametrize("fault", ["500", "cut", "stall", "drop", "short length"])
def test_what_does_not_pass_is_an_error_in_the_end(store, server, fault):
    server.faults["a.tar"] = [fault] * 3
    with pytest.raises(StoreError, match=r"/a\.tar: .*3 attempts in all"):
        store.read("a.tar", 100, 2000)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "answered 404"),
        ("403", "answered 403"),
        ("html", r"status 200 \(text/html\), expected 206"),
        ("no ranges", "does the server support ranges"),
        ("other range", r"asked for bytes=100-2099, got 'bytes 0-1999/"),
        ("redirect file:///etc/passwd", "redirects to 'file:///etc/passwd', which is not followed"),
        ("redirect", "redirects to '', which is not followed"),
    ],
)
def test_what_cannot_pass_is_an_error_at_once(store, server, fault, message):
    server.faults["a.tar"] = [fault]
    with pytest.raises(StoreError, match=message):
        store.read("a.tar", 100, 2000)
    assert store.read("a.tar", 0, 3) == CONTENT[:3]  # the connection is not spoiled


def test_redirects_are_followed_a_few_times(store, server):
    server.faults["a.tar"] = [f"redirect {server.url}/a.tar"] * 2
    assert store.read("a.tar", 9, 9) == CONTENT[9:18]
    server.faults["a.tar"] = [f"redirect {server.url}/a.tar"] * 9
    with pytest.raises(StoreError, match="redirected more than 4 times"):
        store.read("a.tar", 9, 9)


def test_the_end_of_the_file_is_an_error(store):
    with pytest.raises(StoreError, match=f"the file has {len(CONTENT)} bytes"):
        store.read("a.tar", len(CONTENT) - 5, 10)
    with pytest.raises(StoreError, match="was cut short or is another file"):
        store.read("a.tar", len(CONTENT) + 5, 10)
    with pytest.raises(StoreError, match="answered 404"):
        store.size("b.tar")


def test_a_query_survives_a_redirect(store, server):
    server.faults["a.tar"] = [f"redirect {server.url}/a.tar?signature=1%2F2"]
    assert store.read("a.tar", 9, 9) == CONTENT[9:18]
    assert server.queries == ["signature=1%2F2"]


def test_a_connection_that_the_server_closed_meanwhile_costs_no_attempt(server):
    store = HttpStore(server.url, RetrySettings(attempts=1))
    assert store.read("a.tar", 0, 3) == CONTENT[:3]
    server.close_connections()
    assert store.read("a.tar", 3, 3) == CONTENT[3:6]
    store.close()
    assert server.num_connections == 2


def test_nobody_listens():
    store = HttpStore("http://127.0.0.1:9", QUICK)
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9/a\.tar: no answer"):
        store.read("a.tar", 0, 1)


def test_names_and_urls_are_plain(store, server):
    with pytest.raises(StoreError, match="not a plain file name"):
        store.read("../a.tar", 0, 1)
    for url in (f"{server.url}?token=1", "https:///x", f"{server.url}#x"):
        with pytest.raises(StoreError, match="no query"):
            HttpStore(url)
    with pytest.raises(StoreError, match="secrets do not belong into a URL") as caught:
        HttpStore("https://me:hunter2@example.org/x")
    assert "hunter2" not in str(caught.value)


def test_a_copy_makes_its_own_connections(store, server):
    other = copy.copy(store)
    assert other.read("a.tar", 0, 3) == store.read("a.tar", 0, 3)
    other.close()
    assert server.num_connections == 2


def test_a_redirect_never_leaves_https():
    assert _redirected("https://a/x.tar", "/y.tar") == "https://a/y.tar"
    assert _redirected("http://a/x.tar", "https://b/y.tar") == "https://b/y.tar"
    with pytest.raises(StoreError, match="which is not followed"):
        _redirected("https://a/x.tar", "http://a/x.tar")

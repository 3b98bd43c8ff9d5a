"""A real server on the loopback that fails in every way it can: exact bytes or a named error, always."""

import copy
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from maskshards.shards.errors import StoreError, UnreachableError
from maskshards.shards.storage import http
from maskshards.shards.storage.http import CONTENT_RANGE, HttpStore, _asked_s, _redirected
from maskshards.shards.storage.retry import RetrySettings, Transient

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
    assert server.bytes_sent["a.tar"] == 1000 + len(CONTENT) + 1  # a size costs a byte, and no HEAD


def test_an_empty_file_has_a_size(store, tmp_path):
    (tmp_path / "empty.tar").touch()
    assert store.size("empty.tar") == 0
    with pytest.raises(StoreError, match="ends before byte 1"):
        store.read("empty.tar", 0, 1)


def test_connections_are_kept(store, server):
    for offset in range(5):
        store.read("a.tar", offset, 10)
    assert server.num_connections == 1


@pytest.mark.parametrize(
    "fault",
    [
        *("500", "503", "429", "busy 0", "cut", "reset", "stall", "drop", "trickle"),
        *("short length", "long length", "other range"),
    ],
)
def test_what_may_pass_is_tried_again(store, server, fault):
    server.faults["a.tar"] = [fault, fault]
    assert store.read("a.tar", 100, 2000) == CONTENT[100:2100]
    assert not server.faults["a.tar"]


@pytest.mark.parametrize(
    ("said", "wait_s"),
    [
        ("7", 7.0),
        ("", 0.0),
        ("soon", 0.0),
        ("-3", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("9" * 99, 21600.0),
    ],
)
def test_what_a_busy_server_asks_for_is_a_number_or_a_date(said, wait_s):
    assert _asked_s(said) == wait_s


def test_a_busy_server_is_given_the_time_that_it_asks_for(store, server, monkeypatch):
    def once(attempt, *rest):
        with pytest.raises(Transient, match="status 503") as caught:
            attempt()
        return b"", str(caught.value.wait_s)

    monkeypatch.setattr(http, "with_retries", once)
    server.faults["a.tar"] = ["busy 7"]
    assert store._range("a.tar", 0, 3) == (b"", "7.0")


@pytest.mark.parametrize("fault", ["500", "cut", "stall", "drop", "short length", "other range", "slow head"])
def test_what_does_not_pass_is_an_error_in_the_end(store, server, fault):
    server.faults["a.tar"] = [fault] * 3
    with pytest.raises(StoreError, match=r"/a\.tar: .*3 attempts in all"):
        store.read("a.tar", 100, 2000)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "answered 404 Not Found; is the address right"),
        ("403", "answered 403 Forbidden; it refuses: a token or right is missing"),
        ("401", "answered 401 Unauthorized; it wants a login or token: set MASKSHARDS_HTTP_TOKEN=HOST=TOKEN"),
        ("gzip", "came in Content-Encoding gzip"),
        ("html", r"status 200 \(text/html\), expected 206"),
        ("no ranges", "does the server support ranges"),
        ("redirect file:///etc/passwd", "redirects to 'file:///etc/passwd', which is not followed"),
        ("redirect", "redirects to '', which is not followed"),
        ("redirect http://[::1", r"redirects to 'http://\[::1', which is not followed"),
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


def test_a_size_of_thousands_of_digits_is_none():
    assert CONTENT_RANGE.fullmatch(f"bytes 0-0/{2**63 - 1}")[3] == str(2**63 - 1)
    assert CONTENT_RANGE.fullmatch(f"bytes 0-0/{'9' * 5000}") is None


def test_the_end_of_the_file_is_an_error(store):
    with pytest.raises(StoreError, match=f"the file has {len(CONTENT)} bytes"):
        store.read("a.tar", len(CONTENT) - 5, 10)
    with pytest.raises(StoreError, match="was cut short or is another file"):
        store.read("a.tar", len(CONTENT) + 5, 10)
    with pytest.raises(StoreError, match="answered 404"):
        store.size("b.tar")


def test_an_address_of_ip_version_6_has_its_brackets(serve, server, tmp_path, monkeypatch):
    try:
        there = serve(tmp_path, host="::1")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    monkeypatch.setenv("MASKSHARDS_HTTP_TOKEN", f"{there.url.removeprefix('http://')}=t0ken")
    store = HttpStore(there.url, QUICK)
    assert store.read("a.tar", 1, 2) == CONTENT[1:3]
    server.faults["a.tar"] = [f"redirect {there.url}/a.tar"]
    other = HttpStore(server.url, QUICK)
    assert other.size("a.tar") == len(CONTENT)
    assert [headers["Authorization"] for headers in there.headers] == ["Bearer t0ken"] * 2
    store.close()
    other.close()


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


def test_a_port_where_nobody_listens_is_named_at_once_until_somebody_did(server):
    patient = RetrySettings(attempts=2, first_delay_s=1e9, longest_delay_s=1e9)
    with pytest.raises(UnreachableError, match=r"/a\.tar: no answer \(ConnectionRefused.*host and port"):
        HttpStore("http://127.0.0.1:9", patient).read("a.tar", 0, 1)
    store = HttpStore(server.url, QUICK)
    store.size("a.tar")
    server.shutdown()
    server.server_close()
    server.close_connections()
    for known in (store, copy.copy(store)):  # it may come back
        with pytest.raises(UnreachableError, match=r"no answer \(ConnectionRefusedError.*3 attempts in all"):
            known.read("a.tar", 0, 1)
        known.close()


def test_a_host_that_is_not_there_is_named_at_once(monkeypatch):
    def unknown(*words, **settings):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UnreachableError, match="there is no host of that name"):
        HttpStore("http://shards.example", RetrySettings(first_delay_s=1e9)).size("a.tar")


def test_a_certificate_is_trusted_where_its_authority_is_named(
    serve, tmp_path, authority, monkeypatch, server
):
    (tmp_path / "a.tar").write_bytes(CONTENT)
    safe = serve(tmp_path, authority.tls("127.0.0.1"))
    other = serve(tmp_path, authority.tls("example.org"))
    with pytest.raises(UnreachableError, match=r"certificate is not trusted .*name its file in SSL_CERT"):
        HttpStore(safe.url).size("a.tar")
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(variable, str(authority.bundle))
        store = HttpStore(safe.url, QUICK)
        assert store.read("a.tar", 5, 20) == CONTENT[5:25]
        store.close()
        monkeypatch.delenv(variable)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    with pytest.raises(UnreachableError, match=r"not trusted \(IP address mismatch"):
        HttpStore(other.url).size("a.tar")
    with pytest.raises(UnreachableError, match="speaks no TLS"):
        HttpStore(server.url.replace("http:", "https:")).size("a.tar")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    with pytest.raises(StoreError, match=r"SSL_CERT_FILE names .*gone\.pem, which holds no cert"):
        HttpStore(safe.url).size("a.tar")


def test_a_redirect_from_https_to_http_is_not_followed(serve, tmp_path, authority, monkeypatch, server):
    safe = serve(tmp_path, authority.tls("127.0.0.1"))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    safe.faults["a.tar"] = [f"redirect {server.url}/a.tar?sig=secret"]
    with pytest.raises(StoreError, match="which is not followed") as caught:
        HttpStore(safe.url).size("a.tar")
    assert "secret" not in str(caught.value)
    assert server.num_connections == 0


def test_spaces_and_umlauts_in_a_path(serve, tmp_path):
    folder = tmp_path / "Straße 7" / "100%"
    folder.mkdir(parents=True)
    (folder / "a.tar").write_bytes(CONTENT)
    server = serve(tmp_path)
    for path in ("Straße 7/100%", "Stra%C3%9Fe%207/100%25"):
        store = HttpStore(f"{server.url}/{path}/", QUICK)
        assert store.read("a.tar", 1, 2) == CONTENT[1:3]
        store.close()
    (tmp_path / "b.tar").touch()
    server.faults["b.tar"] = [f"redirect {server.url}/Straße 7/100%25/a.tar".encode().decode("latin-1")]
    store = HttpStore(server.url, QUICK)
    assert store.read("b.tar", 1, 2) == CONTENT[1:3]
    store.close()


def test_a_template_says_where_the_name_belongs_and_its_query_is_not_shown(server):
    store = HttpStore(f"{server.url}/{{name}}?sig=secret", QUICK)
    assert store.read("a.tar", 1, 2) == CONTENT[1:3]
    assert copy.copy(store).size("a.tar") == len(CONTENT)
    assert server.queries == ["sig=secret"] * 2
    with pytest.raises(StoreError, match=r"b\.tar\?\.\.\. answered 404") as caught:
        store.size("b.tar")
    assert "secret" not in str(caught.value) + store.base
    store.close()


def test_secrets_go_to_their_host_only(server, serve, tmp_path, monkeypatch):
    other = serve(tmp_path)
    place, there = (each.url.removeprefix("http://") for each in (server, other))
    monkeypatch.setenv("MASKSHARDS_HTTP_TOKEN", f"{place}=t0ken {there}=another")
    monkeypatch.setenv("MASKSHARDS_HTTP_QUERY", f"{place}=sig=1%2F2")
    server.faults["a.tar"] = [f"redirect {other.url}/a.tar"]
    store = HttpStore(server.url, QUICK)
    assert store.read("a.tar", 0, 3) == store.read("a.tar", 0, 3)
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer t0ken"] * 2
    assert [headers["Authorization"] for headers in other.headers] == ["Bearer another"]
    assert (server.queries, other.queries) == (["sig=1%2F2"] * 2, [])
    store.close()
    monkeypatch.setenv("MASKSHARDS_HTTP_TOKEN", "example.org=t0ken")
    HttpStore(server.url, QUICK).size("a.tar")
    assert "Authorization" not in server.headers[-1]


def test_names_and_urls_are_plain(store, server):
    with pytest.raises(StoreError, match="not a plain file name"):
        store.read("../a.tar", 0, 1)
    for url in (f"{server.url}?token=hunter2", f"{server.url}#hunter2", f"{server.url}/?"):
        with pytest.raises(StoreError, match="no query") as caught:
            HttpStore(url)
        assert "hunter2" not in str(caught.value)
    for url in ("https:///x", "http://h:99999/x", "http://h:0/x", "http://h:8o/x", "http://a\nb/x"):
        with pytest.raises(StoreError, match="no URL"):
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


def test_credentials_that_expire_are_read_again(server, monkeypatch):
    """A signature or token ends in the middle of an epoch; whoever renews it does so in the environment."""
    place = server.url.removeprefix("http://")
    monkeypatch.setenv("MASKSHARDS_HTTP_QUERY", f"{place}=sig=old")
    store = HttpStore(server.url, QUICK)
    assert store.read("a.tar", 0, 3) == CONTENT[:3]
    server.choose = lambda name, _: "403" if server.queries[-1] == "sig=old" else ""
    with pytest.raises(StoreError, match=r"answered 403 Forbidden; .* a signature has expired"):
        store.read("a.tar", 0, 3)
    asked = len(server.queries)
    monkeypatch.setenv("MASKSHARDS_HTTP_QUERY", f"{place}=sig=new")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda first: store.read("a.tar", first, 3), [9] * 8)) == {CONTENT[9:12]}
    assert set(server.queries[asked:]) == {"sig=old", "sig=new"}
    assert server.queries[-1] == "sig=new"
    server.choose = lambda name, _: "401"
    with pytest.raises(StoreError, match="answered 401"):
        store.read("a.tar", 0, 3)
    store.close()


@pytest.mark.parametrize(
    ("said", "good"),
    [
        ("bytes 5-7/100", True),
        ("Bytes  5-7/*", True),
        ("bytes 5-8/100", False),
        ("items 5-7/100", False),
        ("bytes \u0665-7/100", False),
    ],
)
def test_a_range_may_be_told_in_other_letters_and_with_more_spaces(said, good):
    assert bool((found := CONTENT_RANGE.fullmatch(said)) and found.group(1, 2) == ("5", "7")) == good

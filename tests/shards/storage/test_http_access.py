"""What the environment says of servers: proxies, authorities, and secrets that go and show nowhere else."""

import base64
import urllib.request

import pytest

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.http_access import BUNDLES, Access, trusted


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without a .netrc."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("url", "no_proxy", "proxy"),
    [
        ("http://a.org/x", "", "http://p:1"),
        ("https://a.org/x", "", "http://q:2"),
        ("https://a.org/x", "a.org", None),
        ("https://b.a.org/x", ".a.org", None),
        ("https://b.a.org/x", "a.org", None),
        ("https://ba.org/x", "a.org", "http://q:2"),
        ("https://a.org:444/x", "a.org:443,b", "http://q:2"),
        ("https://a.org:444/x", "b, a.org:444", None),
        ("http://10.1.2.3/x", "10.0.0.0/8", None),
        ("http://11.1.2.3/x", "10.0.0.0/8", "http://p:1"),
        ("http://[fe80::1]:80/x", "fe80::/10", None),
        ("http://[::1]:80/x", "a, [::1]", None),
        ("http://a.org/x", "*", None),
        ("https://b.a.org/x", "c, *.a.org", None),
    ],
)
def test_proxies_are_those_that_every_tool_takes(monkeypatch, url, no_proxy, proxy):
    monkeypatch.setenv("http_proxy", "p:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://q:2")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    found = Access.from_environment().proxy_for(url)
    assert (found and found[0]) == proxy
    host = url.partition("//")[2].partition("/")[0]
    if (
        "/" not in no_proxy and "*." not in no_proxy and not urllib.request.proxy_bypass(host)
    ):  # the standard library as a witness
        assert proxy is not None


def test_all_proxy_stands_in_and_logins_become_a_header(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://me:p%40ss@q:2")
    login = base64.b64encode(b"me:p@ss").decode()
    access = Access.from_environment()
    assert access.proxy_for("https://a.org/") == ("http://q:2", {"Proxy-Authorization": f"Basic {login}"})
    monkeypatch.setenv("HTTPS_PROXY", "socks5://q:2")
    with pytest.raises(StoreError, match="is of kind socks5; use an http one"):
        Access.from_environment().proxy_for("https://a.org/")


def test_tokens_headers_and_queries_are_bound_to_hosts(monkeypatch):
    monkeypatch.setenv("MASKSHARDS_HTTP_TOKEN", "a.org=one== A.org:8080=two")
    monkeypatch.setenv("MASKSHARDS_HTTP_HEADER", "b.org=X-Api-Key: k e y\n\na.org=Accept: */*\n")
    monkeypatch.setenv("MASKSHARDS_HTTP_QUERY", "a.org=sv=1&sig=2%2F3")
    access = Access.from_environment()
    assert access.headers_for("https://a.org/x") == {"Authorization": "Bearer one==", "Accept": "*/*"}
    assert access.headers_for("https://a.org:8080/x") == {"Authorization": "Bearer two"}
    assert access.headers_for("https://b.org/x") == {"X-Api-Key": "k e y"}
    assert access.query_for("https://a.org/x") == "sv=1&sig=2%2F3"
    for url in ("https://c.org/", "https://a.org.evil.org/", "https://evil.org/?a.org", "https://sub.a.org/"):
        assert access.headers_for(url) == {}
        assert access.query_for(url) == ""


@pytest.mark.parametrize("variable", ["MASKSHARDS_HTTP_TOKEN", "MASKSHARDS_HTTP_QUERY"])
@pytest.mark.parametrize("value", ["hunter2", "a.org=", "https://a.org/=hunter2"])
def test_a_secret_without_a_host_is_refused_and_not_shown(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(StoreError, match=f"{variable} has another form than HOST=") as caught:
        Access.from_environment()
    assert "hunter2" not in str(caught.value)


def test_a_header_that_smuggles_another_is_refused(monkeypatch):
    monkeypatch.setenv("MASKSHARDS_HTTP_HEADER", "a.org=X: 1\rHost: evil")
    with pytest.raises(StoreError, match="MASKSHARDS_HTTP_HEADER has another form"):
        Access.from_environment()


def test_netrc_names_logins_of_hosts_and_none_for_all(monkeypatch, home, caplog):
    (home / "other").write_text("machine a.org login me password s3crét\ndefault login x password y\n")
    monkeypatch.setenv("NETRC", str(home / "other"))
    access = Access.from_environment()
    expected = base64.b64encode("me:s3crét".encode()).decode()
    assert access.headers_for("https://a.org/") == {"Authorization": f"Basic {expected}"}
    assert access.headers_for("https://b.org/") == {}
    monkeypatch.setenv("MASKSHARDS_HTTP_TOKEN", "a.org=newer")
    assert Access.from_environment().headers_for("https://a.org/") == {"Authorization": "Bearer newer"}
    monkeypatch.delenv("NETRC")
    (home / ".netrc").write_text("machine a.org login me password p\n")
    (home / ".netrc").chmod(0o600)
    monkeypatch.delenv("MASKSHARDS_HTTP_TOKEN")
    assert Access.from_environment().headers_for("https://a.org/")["Authorization"].startswith("Basic ")
    (home / ".netrc").write_text("machine a.org hunter2 me\n")
    assert Access.from_environment().headers_for("https://a.org/") == {}
    assert ".netrc is not used: line 1 has another form" in caplog.text
    assert "hunter2" not in caplog.text


def test_all_bundles_that_are_named_are_trusted_and_no_other(monkeypatch, authority, home):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    (home / "empty").mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", str(home / "empty"))
    assert [found["issuer"] for found in trusted().get_ca_certs()] == [
        found["subject"] for found in trusted().get_ca_certs()
    ]
    assert len(trusted().get_ca_certs()) == 1
    for name in BUNDLES[:2]:
        monkeypatch.setenv(name, str(home / "gone.pem"))
        with pytest.raises(StoreError, match=rf"{name} names .*gone\.pem, which holds no certificates"):
            trusted()
        monkeypatch.delenv(name)

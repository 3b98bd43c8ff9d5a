"""How servers are reached from here, as the environment says: proxies, certificates, credentials.

Proxies are those of `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` (in small letters too), authorities
those of the system or of `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`, `SSL_CERT_FILE` and `SSL_CERT_DIR`. A secret
never stands in a URL, which is logged and written into configurations, and is always bound to a host, so that
no foreign recipe and no redirect can send it elsewhere:

    MASKSHARDS_HTTP_TOKEN="data.example.org=TOKEN"             sent as `Authorization: Bearer TOKEN`
    MASKSHARDS_HTTP_HEADER="data.example.org=X-Api-Key: KEY"   any header; one a line
    MASKSHARDS_HTTP_QUERY="data.example.org=sv=1&sig=SECRET"   appended to each URL of that host; one a line

or in `~/.netrc` (or the file of `NETRC`) as `machine data.example.org login ME password SECRET`.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
import netrc
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass_environment  # type: ignore[attr-defined]

from maskshards.shards.errors import StoreError
from maskshards.shards.storage.foreign_file import MOST_TEXT_BYTES, open_regular, why_unreadable

log = logging.getLogger(__name__)

TOKEN, HEADER, QUERY = "MASKSHARDS_HTTP_TOKEN", "MASKSHARDS_HTTP_HEADER", "MASKSHARDS_HTTP_QUERY"
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
HELP = f"set {TOKEN}=HOST=TOKEN, or name the host in ~/.netrc"
MOST_NETRC_BYTES = 1 << 20  # its parser takes characters one by one
Value = TypeVar("Value")
HEADER_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*:\s*([\t\x20-\x7e]+)")


@dataclass(frozen=True)
class Access:
    """The environment of one process, read once."""

    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # host or host:port -> headers
    queries: Mapping[str, str] = field(default_factory=dict)  # host or host:port -> what is appended
    proxies: Mapping[str, str] = field(default_factory=dict)  # scheme, "all" or "no" -> as in the environment

    @classmethod
    def from_environment(cls) -> Access:
        """Read the environment and .netrc. StoreError where a variable has another form; it is not shown."""
        headers: dict[str, dict[str, str]] = _netrc()
        for host, token in _bound(TOKEN, re.compile(r"\s+")):
            headers[host] = {"Authorization": f"Bearer {token}"}
        for host, text in _bound(HEADER, re.compile(r"\n+")):
            found = HEADER_LINE.fullmatch(text.strip())
            if found is None:
                raise StoreError(f"{HEADER} has another form than HOST=NAME: VALUE for {host}")
            headers.setdefault(host, {})[found[1]] = found[2]
        return cls(headers, dict(_bound(QUERY, re.compile(r"\n+"))), getproxies())

    def headers_for(self, url: str) -> dict[str, str]:
        """What is sent to the host of `url` beside the request; nothing to any other."""
        return dict(_of_host(self.headers, urlsplit(url)) or {})

    def query_for(self, url: str) -> str:
        """What is appended to the query of `url`."""
        return _of_host(self.queries, urlsplit(url)) or ""

    def proxy_for(self, url: str) -> tuple[str, dict[str, str]] | None:
        """(proxy's URL, headers for it) for requests to `url`; None where they go straight."""
        parts = urlsplit(url)
        proxy = (self.proxies.get(parts.scheme) or self.proxies.get("all", "")).strip()
        if not proxy or self._is_direct(parts):
            return None
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if target.scheme not in ("http", "https") or not target.hostname:
            raise StoreError(f"the proxy for {parts.scheme}:// is of kind {target.scheme}; use an http one")
        login = {}
        if target.username:
            login["Proxy-Authorization"] = _basic(unquote(target.username), unquote(target.password or ""))
        return f"{target.scheme}://{target.netloc.rpartition('@')[2]}", login

    def _is_direct(self, parts: SplitResult) -> bool:
        """Whether `NO_PROXY` names the host: by suffix, by `*`, or by a network that its address is in."""
        exempt = self.proxies.get("no", "").replace("*.", ".")  # as some tools want a suffix
        if proxy_bypass_environment(parts.netloc, {"no": exempt}):
            return True
        try:
            address = ipaddress.ip_address(parts.hostname or "")
        except ValueError:
            return False
        for entry in exempt.split(","):
            try:
                if address in ipaddress.ip_network(entry.strip(), strict=False):
                    return True
            except ValueError:  # a name
                continue
        return False


def trusted() -> ssl.SSLContext:
    """Who may vouch for a server: the system's authorities, or else all that variables name.

    StoreError where a variable names a bundle that cannot be read.
    """
    named = {name: os.environ[name] for name in BUNDLES if os.environ.get(name)}
    if not named:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name, bundle in named.items():
        try:
            if os.path.isdir(bundle):
                context.load_verify_locations(capath=bundle)
            else:
                open_regular(bundle, MOST_TEXT_BYTES).close()
                context.load_verify_locations(cafile=bundle)
        except OSError as error:
            raise StoreError(
                f"{name} names {bundle}, which holds no certificates ({why_unreadable(error)}); correct or "
                "unset it"
            ) from error
    return context


def _bound(variable: str, separator: re.Pattern[str]) -> list[tuple[str, str]]:
    """(host, value) of each entry of an environment variable."""
    found = []
    for entry in filter(None, separator.split(os.environ.get(variable, "").strip())):
        host, equals, value = entry.strip().partition("=")
        if not (equals and value.strip()) or not re.fullmatch(r"[\w.\-\[\]:]+", host):
            raise StoreError(f"{variable} has another form than HOST=...: it must say to which host it goes")
        found.append((host.lower(), value.strip()))
    return found


def _of_host(table: Mapping[str, Value], parts: SplitResult) -> Value | None:
    return table.get(parts.netloc.rpartition("@")[2].lower()) or table.get(parts.hostname or "")


def _netrc() -> dict[str, dict[str, str]]:
    """Logins by host. A `default` entry is not used: it would go to every host."""
    named = os.environ.get("NETRC")
    path = Path(named) if named else Path("~/.netrc").expanduser()
    if not path.is_file():
        return {}
    try:
        open_regular(path, MOST_NETRC_BYTES).close()
        # Without a name, Python also refuses a file of passwords that others may read.
        hosts = (netrc.netrc(path) if named else netrc.netrc()).hosts
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        # The parser's message may quote a password.
        line = getattr(error, "lineno", None)
        reason = f"line {line} has another form" if line else "it cannot be read, or others can read it"
        log.warning("%s is not used: %s", path, reason)
        return {}
    return {
        host.lower(): {"Authorization": _basic(login or account, password or "")}
        for host, (login, account, password) in hosts.items()
        if host != "default"
    }


def _basic(login: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{login}:{password}".encode()).decode()

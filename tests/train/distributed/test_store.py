"""Where ranks meet: real sockets that answer, refuse, or take calls and say nothing."""

import re
import socket
from datetime import timedelta

import pytest

from maskshards.train.distributed.launch import Launch
from maskshards.train.distributed.store import open_store, store_error
from tests.train.launch import free_port


def test_the_first_ranks_store_waits_for_nobody_and_a_missing_one_is_named() -> None:
    port, soon = free_port(), timedelta(seconds=20)
    store = open_store(Launch(0, 2, 0, "127.0.0.1", port), {}, soon)
    store.set("a", "b")
    assert open_store(Launch(1, 2, 1, "127.0.0.1", port), {}, soon).get("a") == b"b"
    absent = Launch(1, 2, 1, "127.0.0.1", free_port())
    with pytest.raises(ConnectionError, match=r"rank 1 of 2 cannot reach rank 0 at 127\.0\.0\.1"):
        open_store(absent, {}, timedelta(seconds=1))


def test_torch_leaves_no_trace_where_rank_0_is_not_there(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConnectionError, match=r"Connection refused.*MASTER_PORT"):
        open_store(Launch(1, 2, 1, "127.0.0.1", free_port()), {}, timedelta(seconds=0.5))
    assert capfd.readouterr() == ("", "")


def test_rank_0_says_that_its_own_name_cannot_be_looked_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    words = r"MASTER_ADDR is nowhere, and rank 0 cannot look that name up \(Name or service not known\)"
    with pytest.raises(ConnectionError, match=words):
        open_store(Launch(0, 2, 0, "nowhere", 29500), {}, timedelta(seconds=0.3))
    assert capfd.readouterr() == ("", "")


def test_a_rank_0_that_listened_and_is_gone_is_told_from_another_program() -> None:
    error = store_error(Launch(1, 2, 1, "127.0.0.1", free_port()), False, "Broken pipe")
    assert re.match(r"rank 1 of 2: rank 0 at 127\.0\.0\.1:\d+ ended before all ranks had met", str(error))


def test_a_port_that_another_program_has_is_named_on_every_rank() -> None:
    """The last test here: torch complains on stderr of the connection that it lost, from a thread."""
    with socket.create_server(("127.0.0.1", 0)) as other:  # takes connections and never answers
        port = other.getsockname()[1]
        with pytest.raises(ConnectionError, match=rf"port {port} .* taken by another program"):
            open_store(Launch(0, 2, 0, "127.0.0.1", port), {}, timedelta(seconds=20))
        with pytest.raises(ConnectionError, match=r"does not answer like rank 0 .*\(no answer within 1 s\)"):
            open_store(Launch(1, 2, 1, "127.0.0.1", port), {}, timedelta(seconds=1))

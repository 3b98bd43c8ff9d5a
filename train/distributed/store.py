"""The store in which all ranks of a launch meet: torchrun's, or one that rank 0 opens.

Whatever keeps it from being opened is said in our words, first and alone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from maskshards.train.distributed.bounded_wait import NotInTimeError, in_time, plain_words
from maskshards.train.distributed.launch import AbsentError, Launch

POLL_S = 0.2  # between attempts to reach rank 0
LAST_CALL = timedelta(seconds=5)  # to rank 0, once it does not answer


def open_store(launch: Launch, environment: Mapping[str, str], timeout: timedelta) -> dist.Store:
    """The store that all ranks of a launch share: torchrun's, or rank 0's own. Waits for rank 0 only.

    ConnectionError where it cannot be opened or reached in time.
    """
    hosts = launch.rank == 0 and not launchers_store(environment)
    if not hosts:
        await_server(launch, timeout)
    else:
        await_name(launch, timeout)

    def make() -> dist.Store:
        return dist.TCPStore(
            launch.address,
            launch.port,
            launch.num_ranks,
            is_master=hosts,
            timeout=timeout,
            wait_for_workers=False,  # who is missing is told by name later
            multi_tenant=True,
        )

    try:
        return in_time(make, timeout)
    except (RuntimeError, NotInTimeError) as error:
        raise store_error(launch, hosts, plain_words(error)) from error


def launchers_store(environment: Mapping[str, str]) -> bool:
    """Whether torchrun keeps the store, and not rank 0."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_error(launch: Launch, hosts: bool, own: str) -> ConnectionError:
    """Why the store could not be opened, in our words; torch's `own` where they are not enough."""
    where = f"{launch.address}:{launch.port}"
    if hosts and "EADDRINUSE" in own:
        return ConnectionError(
            f"port {launch.port} of {launch.address} is taken by another program, and the ranks cannot meet "
            "there; set MASTER_PORT to a free one, the same on every node, or end what listens there"
        )
    if hosts:
        return ConnectionError(
            f"rank 0 cannot listen at {where} ({own}); MASTER_ADDR has to be the name or address of its own "
            "node, and MASTER_PORT a free port there, the same on every node"
        )
    who = f"rank {launch.rank} of {launch.num_ranks}"
    if not listens(launch, LAST_CALL):
        return ConnectionError(f"{who}: rank 0 at {where} ended before all ranks had met; look at its log")
    return ConnectionError(
        f"{who}: what listens at {where} does not answer like rank 0 of a launch ({own}); look whether "
        "another program has that port, and set MASTER_PORT to a free one"
    )


def listens(launch: Launch, timeout: timedelta) -> bool:
    """Whether somebody takes calls where rank 0 should."""
    try:
        socket.create_connection((launch.address, launch.port), timeout.total_seconds()).close()
    except OSError:
        return False
    return True


def await_name(launch: Launch, timeout: timedelta) -> None:
    """On rank 0, wait until its own name can be looked up; ConnectionError in our words.

    The name of a pod is known a moment after it started.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.getaddrinfo(launch.address, None)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"MASTER_ADDR is {launch.address}, and rank 0 cannot look that name up "
                    f"({error.strerror or error}); set it to the name or address of the node of rank 0, the "
                    "same on every node"
                ) from error
        time.sleep(POLL_S)


def await_server(launch: Launch, timeout: timedelta) -> None:
    """Wait until somebody listens where rank 0 should; AbsentError in our words.

    torch's own attempt would leave its traces in the log first.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        left_s = deadline - time.monotonic()
        try:
            socket.create_connection((launch.address, launch.port), max(left_s, 0.1)).close()
            return
        except OSError as error:
            if left_s <= POLL_S:
                raise AbsentError(
                    f"rank {launch.rank} of {launch.num_ranks} cannot reach rank 0 at "
                    f"{launch.address}:{launch.port} within {timeout.total_seconds():.0f} s ({error}); look "
                    "whether it started, at its log, and at MASTER_ADDR and MASTER_PORT"
                ) from error
        time.sleep(POLL_S)

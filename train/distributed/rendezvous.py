"""A part of a shared store for the ranks now alive: a restarted run reads nothing of its dead predecessor.

torchrun keeps one store for all attempts of a run, and gloo's addresses of an attempt that was killed stay in
it: ranks of the next attempt then call processes that are gone. Here each rank shows a token that was never
seen before, the first rank answers each token with the name of a new scope, an acknowledgement tells it that
the token was not an old one, and once all are there it opens the scope. If some do not come, or were told of
another number of ranks, the first rank says so to all the others too, so that every rank ends with the same
words. Of two processes with one rank one is told.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from datetime import timedelta

import torch.distributed as dist

from maskshards.train.distributed.launch import AbsentError

ANSWER_TIMEOUT = timedelta(seconds=1)  # after which the first rank looks for newer tokens
FAREWELL_TIMEOUT = timedelta(seconds=5)  # for the others to read why nothing begins
POLL_S = 0.05
OPEN = "open"
NO_ANSWER = "rank {rank} got no answer from rank 0; look at its log, and whether another run has its port"


class OtherLaunchError(ConnectionError):
    """The store is another launch's; the message is whose."""


def part_of(store: dist.Store, rank: int, job: str, timeout: timedelta) -> dist.Store:
    """What belongs to `job` in a store that ranks of another launch may have found.

    That happens to two runs that were given one port on one node. It is all of the store where nobody knows
    whose a launch is. OtherLaunchError on a rank of another launch.
    """
    if not job:
        return store
    if rank == 0:
        store.set("job", job)
    elif arrived(store, "job", time.monotonic() + timeout.total_seconds()):
        if (theirs := store.get("job").decode()) != job:
            raise OtherLaunchError(theirs)
    else:
        raise ConnectionError(NO_ANSWER.format(rank=rank))
    return dist.PrefixStore(job, store)


def meet(store: dist.Store, rank: int, num_ranks: int, timeout: timedelta) -> dist.PrefixStore:
    """The scope of `store` that belongs to the ranks now alive.

    ConnectionError if not all come in time, with the same words on every rank that came; RuntimeError in
    torch's words if the store goes meanwhile.
    """
    name = gather_all(store, num_ranks, timeout) if rank == 0 else show_up(store, rank, num_ranks, timeout)
    return dist.PrefixStore(f"room/{name}", store)


def gather_all(store: dist.Store, num_ranks: int, timeout: timedelta) -> str:
    """On rank 0: answer every other rank's newest token until all have said that they read it."""
    name, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    missing, members = list(range(1, num_ranks)), dict[int, str]()
    while missing:
        shown = [rank for rank in missing if store.check([f"token/{rank}"])]
        for rank in shown:
            store.set(f"answer/{store.get(f'token/{rank}').decode()}", name)
        until = time.monotonic() + ANSWER_TIMEOUT.total_seconds()  # for all of them: there may be thousands
        for rank in shown:
            if arrived(store, f"read/{name}/{rank}", until):
                members[rank] = store.get(f"read/{name}/{rank}").decode()
        if not shown:
            time.sleep(POLL_S)
        missing = [rank for rank in missing if rank not in members]
        if words := other_size(members, num_ranks):
            tell(store, name, members, words)
            raise ConnectionError(words)
        if missing and time.monotonic() > deadline:
            words = (
                f"ranks {missing} of {num_ranks} did not appear within {timeout.total_seconds():.0f} s; "
                "look at their logs, and whether their nodes are up"
            )
            tell(store, name, members, words)
            raise AbsentError(words)
    for rank, token in members.items():
        store.set(f"member/{name}/{rank}", token)
    store.set(f"state/{name}", OPEN)
    return name


def tell(store: dist.Store, name: str, members: Iterable[int], words: str) -> None:
    """Let those who came know why nothing begins, before the store ends with this process."""
    store.set(f"state/{name}", words)
    until = time.monotonic() + FAREWELL_TIMEOUT.total_seconds()
    for rank in members:
        arrived(store, f"told/{name}/{rank}", until)


def other_size(members: Mapping[int, str], num_ranks: int) -> str:
    """What is wrong where a rank was told of another number of ranks than the first; else nothing."""
    for rank, token in members.items():
        if (size := token.rpartition("-")[2]) != str(num_ranks):
            return (
                f"rank {rank} was started as one of {size} ranks and rank 0 as one of {num_ranks}; start "
                "every node with the same numbers (--nnodes, --nproc-per-node, WORLD_SIZE)"
            )
    return ""


def arrived(store: dist.Store, key: str, deadline: float) -> bool:
    """Whether `key` is there, or comes in time; asked for, since a store that waits logs each vain try."""
    while not store.check([key]):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def show_up(store: dist.Store, rank: int, num_ranks: int, timeout: timedelta) -> str:
    """On the other ranks: take part, and wait until all do."""
    token, deadline = f"{uuid.uuid4().hex}-{num_ranks}", time.monotonic() + timeout.total_seconds()
    store.set(f"token/{rank}", token)
    if not arrived(store, f"answer/{token}", deadline):
        raise ConnectionError(NO_ANSWER.format(rank=rank))
    name = store.get(f"answer/{token}").decode()
    store.set(f"read/{name}/{rank}", token)
    if not arrived(store, f"state/{name}", deadline + FAREWELL_TIMEOUT.total_seconds()):
        raise ConnectionError(f"rank {rank} heard no more of rank 0; look at its log")
    state = store.get(f"state/{name}").decode()
    if state != OPEN:
        store.set(f"told/{name}/{rank}", "yes")
        raise ConnectionError(state)
    if store.get(f"member/{name}/{rank}").decode() != token:
        raise ConnectionError(
            f"another process takes part as rank {rank} of {num_ranks}; was the launch started twice?"
        )
    return name

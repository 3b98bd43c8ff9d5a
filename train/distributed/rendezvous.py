"""A fresh room in a shared store, so that a restarted run does not read what its dead predecessor left there.

torchrun keeps one store for all attempts of a run, and gloo's addresses of an attempt that was killed stay in
it: ranks of the next attempt then call processes that are gone. Here each rank shows a token that was never
seen before, the first rank answers each token with the name of a new room, and an acknowledgement tells it
that the token was not an old one.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

ANSWER_TIMEOUT = timedelta(seconds=1)  # after which the first rank looks for newer tokens


def fresh_room(store: dist.Store, rank: int, num_ranks: int, timeout: timedelta) -> dist.PrefixStore:
    """The part of `store` that belongs to the ranks now alive. ConnectionError if not all come in time."""
    if rank == 0:
        name = uuid.uuid4().hex
        invite(store, name, num_ranks, time.monotonic() + timeout.total_seconds())
    else:
        name = accept(store, rank, timeout)
    return dist.PrefixStore(f"room/{name}", store)


def invite(store: dist.Store, name: str, num_ranks: int, deadline: float) -> None:
    """Answer every other rank's newest token with `name` until all have said that they read it."""
    missing = list(range(1, num_ranks))
    while missing:
        for rank in missing:
            if store.check([f"token/{rank}"]):
                store.set(f"answer/{store.get(f'token/{rank}').decode()}", name)
        missing = [rank for rank in missing if not arrived(store, f"read/{name}/{rank}")]
        if missing and time.monotonic() > deadline:
            raise ConnectionError(f"ranks {missing} of {num_ranks} did not appear; look at their logs")


def arrived(store: dist.Store, key: str) -> bool:
    """Whether `key` is there, or comes within ANSWER_TIMEOUT."""
    try:
        store.wait([key], ANSWER_TIMEOUT)
    except dist.DistStoreError:
        return False
    return True


def accept(store: dist.Store, rank: int, timeout: timedelta) -> str:
    token = uuid.uuid4().hex
    store.set(f"token/{rank}", token)
    try:
        store.wait([f"answer/{token}"], timeout)
    except dist.DistStoreError as error:
        raise ConnectionError(f"rank {rank} got no answer from rank 0; look at its log") from error
    name = store.get(f"answer/{token}").decode()
    store.set(f"read/{name}/{rank}", "yes")
    return name

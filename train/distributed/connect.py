"""From a launch to ranks that are connected: who is missing, dead or stopped meanwhile is told by name.

Three waits: for rank 0 to listen, for all ranks to show up at its store, and for all of them to connect to
each other. The first sign of life is given before the last of them, so that a rank which dies while it
connects is known from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from maskshards.train.distributed.bounded_wait import NotInTimeError, in_time, plain_words
from maskshards.train.distributed.heartbeat import Heartbeat
from maskshards.train.distributed.launch import AbsentError, Launch
from maskshards.train.distributed.lost_ranks import LostRankError
from maskshards.train.distributed.rendezvous import FAREWELL_TIMEOUT, OtherLaunchError, meet, part_of
from maskshards.train.distributed.store import launchers_store, open_store

CONNECTING = "connecting to all ranks"


def appear(
    launch: Launch, environment: Mapping[str, str], timeout: timedelta, patience_s: float
) -> tuple[dist.Store, Heartbeat]:
    """The store of the ranks that are alive now, and this one's sign of life in it.

    ConnectionError if not all come within `timeout`, or if the store does not answer. `patience_s`: as
    `Heartbeat` takes it.
    """
    try:
        store = open_store(launch, environment, timeout)
        keeper = f"{'the launcher of ' if launchers_store(environment) else ''}rank 0 at {launch.address}"
        return show_up(launch, store, timeout, patience_s, keeper)
    except AbsentError as error:
        raise ConnectionError(f"{error}{launch.way_out}") from error


def show_up(
    launch: Launch, store: dist.Store, timeout: timedelta, patience_s: float, keeper: str
) -> tuple[dist.Store, Heartbeat]:
    """The same, once the launch's store is open, which lives with `keeper`."""

    def among_all() -> tuple[dist.Store, Heartbeat]:
        own = part_of(store, launch.rank, launch.job, timeout)
        scope = meet(own, launch.rank, launch.num_ranks, timeout)
        return scope, Heartbeat(scope, launch.rank, launch.num_ranks, patience_s, keeper)

    who = f"rank {launch.rank} of {launch.num_ranks}"
    try:
        # Longer than the ranks take to tell each other by themselves.
        return in_time(among_all, timeout + 4 * FAREWELL_TIMEOUT)
    except OtherLaunchError as error:
        raise ConnectionError(
            f"{who}: {error} has {launch.address}:{launch.port}, where {launch.job} was to meet; end it, or "
            "set MASTER_PORT to a free port, the same on every node"
        ) from error
    except NotInTimeError as error:
        raise ConnectionError(
            f"{who} got no answer from rank 0 at {launch.address}:{launch.port} ({error}); look whether its "
            "process was stopped, at its log, and at its node"
        ) from error
    except RuntimeError as error:
        raise ConnectionError(
            f"{who}: the launch's store, which lives with rank 0 or its launcher, was gone before all ranks "
            f"had met; look at their logs ({plain_words(error)})"
        ) from error


def connect(
    store: dist.Store,
    heartbeat: Heartbeat,
    backend: str,
    join_timeout: timedelta,
    step_timeout: timedelta,
    work_timeout: timedelta,
) -> dist.ProcessGroup:
    """Build the process groups: that of the steps, and the one returned, of the hosts.

    The first has `step_timeout`, the second `work_timeout`. LostRankError if building takes longer than
    `join_timeout`, with who is to blame.
    """
    rank, num_ranks = heartbeat.rank, heartbeat.num_ranks
    device = torch.cuda.current_device() if "nccl" in backend else None

    def build() -> dist.ProcessGroup:
        if device is not None:
            torch.cuda.set_device(device)  # each thread begins with the first device
        dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=step_timeout)
        made: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=work_timeout)
        return made

    with heartbeat.waiting(CONNECTING):
        try:
            return in_time(build, join_timeout, heartbeat.check)
        except (RuntimeError, NotInTimeError) as error:
            raise LostRankError(
                f"rank {rank} of {num_ranks} met all others, but could not connect to them; look at their "
                f"logs, and whether their addresses reach each other: {plain_words(error)}"
            ) from error

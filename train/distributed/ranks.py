"""Who else trains with us: one process, or many joined over NCCL (CUDA) or gloo (CPU).

The environment is read here and nowhere else; everything below gets a `Ranks`. Host-side agreement (stop
now? which checkpoint?) goes over a gloo group of its own, so that it never waits for the device. Messages
are bytes, not pickles.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskshards.shards.order.order import World
from maskshards.train.config.schema import TrainConfig
from maskshards.train.distributed import lost_ranks
from maskshards.train.distributed.bounded_wait import LOOK
from maskshards.train.distributed.connect import appear, connect
from maskshards.train.distributed.early_stop import Stopped
from maskshards.train.distributed.heartbeat import Heartbeat, told_apart
from maskshards.train.distributed.launch import LaunchError, read_launch
from maskshards.train.distributed.lost_ranks import LostRankError
from maskshards.train.distributed.process_end import cut_short, ended_at_last, status_of

Answer = TypeVar("Answer")  # a Path, None, bool, number, text, or a dict or list of such

JOIN_TIMEOUT = timedelta(seconds=TrainConfig.join_timeout_s)
STEP_TIMEOUT = timedelta(seconds=TrainConfig.step_timeout_s)  # for a collective inside a step
WORK_TIMEOUT = timedelta(minutes=30)  # for a meeting of hosts; the slowest honest one fetches weights
NCCL_MARGIN = timedelta(seconds=60)  # its own timeout ends the process in its own words: let ours come first
KEPT: list[object] = []  # groups of a lost launch: what destroys them waits for ranks that were stopped


class FirstRankError(ValueError):
    """The first rank could not do what all wait for; the message is its own."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all; every method is the identity in a single process."""

    world: World
    device: torch.device
    control: dist.ProcessGroup | None = None  # gloo, for the hosts; None in a single process
    heartbeat: Heartbeat | None = None  # None in a single process

    @property
    def is_first(self) -> bool:
        return self.world.rank == 0

    def at(self, step: int, doing: str, *, waits: bool = False) -> None:
        """Note for the other ranks where this one is and that it gets on. `waits`: it may wait for them."""
        if self.heartbeat is not None:
            self.heartbeat.at(step, doing, waits=waits)

    def doing(self, what: str, *, waits: bool = False, slow: bool = False) -> None:
        """The same, in the step that was noted last. `slow`: it may honestly take long."""
        if self.heartbeat is not None:
            self.heartbeat.doing(what, waits=waits, slow=slow)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, in place; any device."""
        if self.control is not None:
            work = dist.all_reduce(values, async_op=True)
            if values.device.type == "cpu":
                self._await(work)
            else:  # the device waits, not the host
                work.wait()
        return values

    def any(self, flag: int) -> int:
        """The largest flag that any host raised; waits for hosts only, never for a device."""
        if self.control is None:
            return flag
        raised = torch.tensor([flag])
        self._await(dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.control, async_op=True))
        return int(raised)

    def broadcast(self, text: str) -> str:
        """Rank 0's `text`, on every rank."""
        if self.control is None:
            return text
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        self._await(dist.broadcast(length, src=0, group=self.control, async_op=True))
        if not self.is_first:
            data = torch.empty(int(length), dtype=torch.uint8)
        self._await(dist.broadcast(data, src=0, group=self.control, async_op=True))
        return bytes(data.tolist()).decode()

    def gather(self, text: str) -> list[str]:
        """Every rank's `text` in the order of ranks, on every rank."""
        if self.control is None:
            return [text]
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self.world.num_ranks)]
        own = torch.tensor([len(data)])
        self._await(dist.all_gather(lengths, own, group=self.control, async_op=True))
        longest = max(int(length) for length in lengths)
        padded = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
        filled = nn.functional.pad(data, (0, longest - len(data)))
        self._await(dist.all_gather(padded, filled, group=self.control, async_op=True))
        return [bytes(one[: int(n)].tolist()).decode() for one, n in zip(padded, lengths, strict=True)]

    def from_first(self, work: Callable[[], Answer]) -> Answer:
        """What `work` answers on rank 0, on every rank; it is called there only.

        An answer is a Path or a plain JSON value. A ValueError or OSError of it goes to every rank too, there
        as FirstRankError, so that nobody waits for a rank that has given up.
        """
        if self.control is None:
            answer = work()
            to_message(answer)  # so that what several ranks could not hear is told in one process too
            return answer
        failure, message = None, ""
        if self.is_first:
            try:
                message = to_message(work())
            except (ValueError, OSError) as error:
                failure, message = error, json.dumps({"failure": str(error)})
        message = self.broadcast(message)
        if failure is not None:
            raise failure
        content = json.loads(message)
        if "failure" in content:
            raise FirstRankError(f"rank 0 gave up: {content['failure']}")
        return cast(Answer, Path(content["path"]) if "path" in content else content["value"])

    def wait(self, what: str, timeout: timedelta = WORK_TIMEOUT) -> None:
        """Until every rank is here; a LostRankError names the ranks that are not."""
        if self.control is None:
            return
        arrived = torch.zeros(1)
        try:
            self._await(dist.all_reduce(arrived, group=self.control, async_op=True), what, timeout)
        except RuntimeError as error:
            raise LostRankError(f"waiting for all ranks at {what!r}: {error}") from error

    def _await(self, work: dist.Work, what: str = "", timeout: timedelta = WORK_TIMEOUT) -> None:
        """Wait until `work` is done.

        LostRankError where the launch has to end meanwhile, or after `timeout` with who is not here;
        RuntimeError in gloo's words where it fails.
        """
        place = f"waiting for all ranks at {what!r}" if what else ""
        deadline = time.monotonic() + timeout.total_seconds()
        assert self.heartbeat is not None  # whoever has a control group has one
        patience = Patience(self.heartbeat)
        with self.heartbeat.waiting(place):
            while not finished(work, min(LOOK, timeout)):
                self.heartbeat.check()
                patience.look()
                if time.monotonic() > deadline:
                    raise LostRankError(f"{place or 'no answer'}: {self.heartbeat.absent()}")


class Patience:
    """Of a wait that looks every LOOK, with a launch whose store has stopped answering its heartbeat.

    Counted in looks, so that a process that was itself stopped is not late.
    """

    def __init__(self, heartbeat: Heartbeat) -> None:
        self.heartbeat = heartbeat
        self._looks = self._silent = 0
        self._answers = heartbeat.num_answers

    def look(self) -> None:
        """LostRankError where both the wait and the silence of the store have lasted too long."""
        self._looks += 1
        self._silent = self._silent + 1 if self.heartbeat.num_answers == self._answers else 0
        self._answers, look_s = self.heartbeat.num_answers, LOOK.total_seconds()
        enough = self._looks * look_s >= self.heartbeat.patience_s
        if enough and self._silent * look_s >= lost_ranks.WARN_S:
            raise LostRankError(self.heartbeat.no_store)


def finished(work: dist.Work, timeout: timedelta) -> bool:
    """Whether a collective of gloo is done within `timeout`; RuntimeError in its words if it failed."""
    try:
        return bool(work.wait(timeout))
    except RuntimeError:  # also said for a wait that was too short, and does not hurt the work
        return work.is_completed() and bool(work.wait())


def to_message(answer: object) -> str:
    """An answer as JSON; TypeError for what would not come back as it is."""
    if isinstance(answer, Path):
        return json.dumps({"path": str(answer)})
    if not (answer is None or isinstance(answer, bool | int | float | str | dict | list)):
        raise TypeError(f"{type(answer).__name__} cannot be sent to the other ranks")
    return json.dumps({"value": answer})


def choose_device(local_rank: int) -> torch.device:
    """This process's GPU where there is CUDA, else the CPU.

    LaunchError if there are more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise LaunchError(
            f"local rank {local_rank} has no GPU: {torch.cuda.device_count()} visible; "
            "start as many processes as GPUs (--nproc-per-node)"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def joined(
    environment: Mapping[str, str] = os.environ,
    step_timeout: timedelta = STEP_TIMEOUT,
    join_timeout: timedelta = JOIN_TIMEOUT,
) -> Iterator[Ranks]:
    """The ranks of this run, connected; leaves no process group behind.

    All have to appear within `join_timeout`, and to connect to each other within the same time again.
    Where others wait longer than `step_timeout` for a rank that makes no progress, is silent or gone, every
    rank ends with the same words: with LostRankError, or where its own wait cannot be left (a device, a file
    system, a step) by the end of its process, after these words.
    """
    launch = read_launch(environment)
    device = choose_device(launch.local_rank if launch else 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launch is None or launch.num_ranks == 1:
        yield Ranks(World(), device)
        return
    try:
        store, heartbeat = appear(launch, environment, join_timeout, step_timeout.total_seconds())
    except (ConnectionError, Stopped) as error:
        atexit.register(cut_short, status_of(error))  # a thread may still wait for a store
        raise
    on_cuda = device.type == "cuda"
    backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
    margin = NCCL_MARGIN if on_cuda else timedelta(0)
    control: dist.ProcessGroup | None = None
    try:
        with told_apart(heartbeat):
            control = connect(store, heartbeat, backend, join_timeout, step_timeout + margin, WORK_TIMEOUT)
            yield Ranks(World(launch.rank, launch.num_ranks), device, control, heartbeat)
    except BaseException as error:
        if isinstance(error, LostRankError):
            KEPT.extend((dist.group.WORLD, control))
        elif control is None and isinstance(error, Stopped):
            atexit.register(cut_short, error.status)  # a thread still connects
        with ended_at_last(error):
            if dist.is_initialized():
                dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def joined_for(config: TrainConfig) -> AbstractContextManager[Ranks]:
    """`joined`, with the patience that `config` asks for."""
    step, join = (timedelta(seconds=wait_s) for wait_s in (config.step_timeout_s, config.join_timeout_s))
    return joined(step_timeout=step, join_timeout=join)


def spread(decoder: nn.Module, ranks: Ranks) -> nn.Module:
    """`decoder` with gradients averaged over ranks; itself in a single process.

    Only what trains is wrapped: the frozen backbone is in no bucket. Synced batch norms keep the same
    statistics on all ranks, so buffers need no broadcast.
    """
    if ranks.control is None:
        return decoder
    on_cuda = ranks.device.type == "cuda"
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.12
    keep_buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(
        decoder,
        device_ids=[ranks.device.index] if on_cuda else None,
        gradient_as_bucket_view=True,
        **keep_buffers,
    )


def batch_statistics(module: nn.Module) -> list[Tensor]:
    """Every buffer of the batch norms in `module`: what a forward pass in train mode changes."""
    norms = (one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm))
    return [buffer for norm in norms for buffer in norm.buffers()]

"""Ranks as real processes on this machine, told who they are as launchers tell it."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.forked import ForkedPython


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(launcher: str, rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What torchrun or srun tells one of the processes of a node."""
    if launcher == "torchrun":
        own = {
            "RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
        }  # fmt: skip
    else:
        own = {
            "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(num_ranks), "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank), "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1",
        }  # fmt: skip
    return {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), **own}


@contextmanager
def ranks_of(
    program: list[str], num_ranks: int = 2, launcher: str = "torchrun"
) -> Iterator[list[ForkedPython]]:
    """The processes of `python PROGRAM`, rank 0 first; none of them outlives the block."""
    port = free_port()
    with ExitStack() as stack:
        members = [
            stack.enter_context(ForkedPython(program, env=environment(launcher, rank, num_ranks, port)))
            for rank in range(num_ranks)
        ]
        try:
            yield members
        finally:
            for member in members:
                member.kill()


def ended(members: list[ForkedPython], timeout_s: float = 900) -> tuple[list[int | None], list[str]]:
    """Exit statuses and what stood on stderr; far sooner than a collective would give up."""
    words = [member.communicate(timeout_s)[1] for member in members]
    return [member.returncode for member in members], words

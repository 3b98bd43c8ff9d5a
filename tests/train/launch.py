"""Ranks as real processes on this machine, told who they are as launchers tell it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of `python PROGRAM`, rank 0 first; none of them outlives the block."""
    port = free_port()
    members = [
        subprocess.Popen(
            [sys.executable, *program], cwd=ROOT, env=environment(launcher, rank, num_ranks, port),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(num_ranks)
    ]  # fmt: skip
    try:
        yield members
    finally:
        for member in members:
            member.kill()
            member.communicate()


def ended(members: list[subprocess.Popen[str]], timeout_s: float = 900) -> tuple[list[int], list[str]]:
    """Exit statuses and what stood on stderr; far sooner than a collective would give up."""
    words = [member.communicate(timeout=timeout_s)[1] for member in members]
    return [member.returncode for member in members], words

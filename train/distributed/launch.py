"""What a launcher says about this process: torchrun, srun, or nobody."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

logger = logging.getLogger(__name__)

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# SLURM_STEP_ID of the steps that srun did not make: batch script, interactive shell, extern.
NO_STEPS = {"4294967290", "4294967291", "4294967292"}


class LaunchError(ValueError):
    """The launcher's environment is incomplete, or asks for devices that are not there."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a launcher says about this process."""

    rank: int
    num_ranks: int
    local_rank: int
    address: str  # of rank 0
    port: int


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """torchrun's or srun's description of this process; None when it runs alone.

    Raises LaunchError if a launcher is there but left something out.
    """
    missing = [name for name in TORCHRUN if name not in environment]
    if not missing:
        rank, num_ranks, local_rank, address, port = (environment[name] for name in TORCHRUN)
        return Launch(int(rank), int(num_ranks), int(local_rank), address, int(port))
    step, tasks = environment.get("SLURM_STEP_ID"), int(environment.get("SLURM_NTASKS", "1"))
    if step is not None and step not in NO_STEPS:
        return from_srun(environment, tasks) if tasks > 1 else None
    given = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environment]
    if given:
        raise LaunchError(
            f"{' and '.join(given)} set without {' and '.join(missing)}: start with torchrun, which sets "
            "all of them, or with srun, or unset what is left of another launch to run alone"
        )
    if tasks > 1:
        logger.warning(
            "this Slurm allocation has %d tasks and this process runs alone; start with srun to use them all",
            tasks,
        )
    return None


def from_srun(environment: Mapping[str, str], tasks: int) -> Launch:
    """One task of a job step."""
    job = int(environment["SLURM_JOB_ID"])
    return Launch(
        int(environment["SLURM_PROCID"]),
        tasks,
        int(environment["SLURM_LOCALID"]),
        environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
        int(environment.get("MASTER_PORT") or 15000 + job % 20000),
    )


def first_host(node_list: str) -> str:
    """The first name of Slurm's compact list: `node[03-07,11]` -> `node03`, `a1,b2` -> `a1`."""
    bracket = re.match(r"([^,\[]*)\[([^\],-]+)[^\]]*\]([^,\[]*)", node_list)
    return "".join(bracket.groups()) if bracket else node_list.split(",")[0]


def open_store(launch: Launch, environment: Mapping[str, str], timeout: timedelta) -> dist.Store:
    """The store that all ranks of a launch share: torchrun's, or rank 0's own. Waits for rank 0 only.

    ConnectionError where it cannot be reached in time.
    """
    hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun
    try:
        return dist.TCPStore(
            launch.address,
            launch.port,
            launch.num_ranks,
            is_master=launch.rank == 0 and not hosted,
            timeout=timeout,
            wait_for_workers=False,  # who is missing is told by name later
            multi_tenant=True,
        )
    except RuntimeError as error:
        words = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"rank {launch.rank} of {launch.num_ranks} cannot reach rank 0 at {launch.address}:{launch.port} "
            f"within {timeout.total_seconds():.0f} s; look whether it started: {words}"
        ) from error

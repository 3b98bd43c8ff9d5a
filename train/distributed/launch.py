"""What a launcher says about this process: torchrun, srun, or nobody."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

logger = logging.getLogger(__name__)

MOST_DIGITS = 9  # of a launcher's numbers
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Of Open MPI, MPICH and Intel's, MVAPICH, Flux, JSM.
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "FLUX_JOB_SIZE", "JSM_NAMESPACE_SIZE")
TASKS = ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_NPROCS")  # one of them is enough
# SLURM_STEP_ID of the steps that srun did not make: batch script, interactive shell, extern.
NO_STEPS = {"4294967290", "4294967291", "4294967292"}


class LaunchError(ValueError):
    """The launcher's environment is incomplete, or asks for devices that are not there."""


class AbsentError(ConnectionError):
    """Ranks that nobody may have started do not come."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a launcher says about this process."""

    rank: int
    num_ranks: int
    local_rank: int
    address: str  # of rank 0
    port: int
    slurm: bool = False  # whether srun's variables say so, which may be left of another step
    job: str = ""  # whose launch it is, where the launcher says so: of two on one port

    @property
    def way_out(self) -> str:
        """What to do where the others do not come because nobody started them; empty for torchrun's."""
        if not self.slurm:
            return ""
        return (
            f" (SLURM_STEP_ID and SLURM_NTASKS say that srun started {self.num_ranks} tasks; where they are "
            "left of another step, unset SLURM_STEP_ID to run alone)"
        )


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """torchrun's or srun's description of this process; None when it runs alone.

    Raises LaunchError if a launcher is there but left something out.
    """
    missing = [name for name in TORCHRUN if name not in environment]
    if not missing:
        rank, num_ranks, local_rank, port = (
            whole_number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        )
        return checked(Launch(rank, num_ranks, local_rank, environment["MASTER_ADDR"], port))
    step = environment.get("SLURM_STEP_ID")
    tasks = next((whole_number(environment, name) for name in TASKS if name in environment), 1)
    if step is not None and step not in NO_STEPS:
        refuse_mpi(environment, tasks)
        alone = tasks == 1 and environment.get("SLURM_PROCID", "0") == "0"
        return None if alone else from_srun(environment, tasks)
    given = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environment]
    if given:
        raise LaunchError(
            f"{' and '.join(given)} set without {' and '.join(missing)}: start with torchrun, which sets "
            "all of them, or with srun, or unset what is left of another launch to run alone"
        )
    refuse_mpi(environment, 1)
    if tasks > 1:
        logger.warning(
            "this Slurm allocation has %d tasks and this process runs alone; start with srun to use them all",
            tasks,
        )
    return None


def alone(environment: Mapping[str, str]) -> bool:
    """Whether this is the only process, as far as that is plain. Raises LaunchError as `read_launch` does."""
    if any(name in environment for name in TORCHRUN[:3]):
        launch = read_launch(environment)
        return launch is None or launch.num_ranks == 1
    return "SLURM_STEP_ID" not in environment and not any(name in environment for name in MPI)


def refuse_mpi(environment: Mapping[str, str], tasks: int) -> None:
    """LaunchError where MPI's launcher started other processes than the `tasks` that meet.

    `srun --mpi` says the same number; mpirun over several nodes of Slurm leaves the variables of a step of
    its own.
    """
    for name in MPI:
        if whole_number({name: "1", **environment}, name) not in (1, tasks):
            raise LaunchError(
                f"{name} is {environment[name]}: mpirun started so many processes, and each of them would "
                "train alone; start with torchrun or srun"
            )


def from_srun(environment: Mapping[str, str], tasks: int) -> Launch:
    """One task of a job step."""
    job, step = (whole_number(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = str(15000 + (job + 997 * step) % 20000)  # steps of one job may run side by side
    environment = {**environment, "MASTER_PORT": environment.get("MASTER_PORT") or port}
    address = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", ""))
    if not address:
        raise LaunchError("SLURM_STEP_NODELIST is not set: start with srun, which sets it")
    return checked(
        Launch(
            whole_number(environment, "SLURM_PROCID"),
            tasks,
            whole_number(environment, "SLURM_LOCALID"),
            address,
            whole_number(environment, "MASTER_PORT"),
            slurm=True,
            # The parts of a heterogeneous job have numbers of their own.
            job="" if "SLURM_HET_SIZE" in environment else f"step {step} of Slurm's job {job}",
        )
    )


def whole_number(environment: Mapping[str, str], name: str) -> int:
    """LaunchError where the launcher's word is none, or missing."""
    word = environment.get(name, "")
    if not (word.isascii() and word.isdecimal() and len(word) <= MOST_DIGITS):
        raise LaunchError(
            f"{name} is {word[:80]!r}, expected a whole number; start with torchrun or srun, which set it"
        )
    return int(word)


def checked(launch: Launch) -> Launch:
    """LaunchError where the numbers contradict each other."""
    if launch.rank >= launch.num_ranks:
        raise LaunchError(
            f"this process is rank {launch.rank} of {launch.num_ranks}, but ranks count from 0; "
            "start all with one launcher"
        )
    if not launch.address:
        raise LaunchError("MASTER_ADDR is empty, expected the name or address of the node of rank 0")
    if not 0 < launch.port < 1 << 16:
        raise LaunchError(f"MASTER_PORT is {launch.port}, expected 1 to 65535")
    return launch


def first_host(node_list: str) -> str:
    """The first name of Slurm's compact list: `node[03-07,11]` -> `node03`, `a1,b2` -> `a1`."""
    bracket = re.match(r"([^,\[]*)\[([^\],-]+)[^\]]*\]([^,\[]*)", node_list)
    return "".join(bracket.groups()) if bracket else node_list.split(",")[0]

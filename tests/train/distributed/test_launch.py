import logging

import pytest

from maskshards.train.distributed.launch import (
    LaunchError,
    first_host,
    read_launch,
)

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "70001", "SLURM_STEP_NODELIST": "gpu[07-08,11]",
}  # fmt: skip


def test_torchrun_is_read_before_slurm() -> None:
    torchrun = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "host",
        "MASTER_PORT": "29500",
    }
    launch = read_launch({**torchrun, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "9"})
    assert launch is not None
    assert (launch.rank, launch.num_ranks, launch.local_rank, launch.port) == (3, 4, 1, 29500)


def test_srun_is_read() -> None:
    launch = read_launch(
        {
            "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0",
            "SLURM_JOB_ID": "70001", "SLURM_STEP_NODELIST": "gpu[07-08,11]",
        }
    )  # fmt: skip
    assert launch is not None
    assert (launch.rank, launch.num_ranks, launch.address, launch.port) == (2, 4, "gpu07", 25001)


def test_a_batch_script_without_srun_is_one_process() -> None:
    assert read_launch({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None


def test_half_a_launcher_is_an_error() -> None:
    with pytest.raises(LaunchError, match="LOCAL_RANK"):
        read_launch({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"})


@pytest.mark.parametrize(
    ("node_list", "host"),
    [("a1,b2", "a1"), ("node[03-07,11]", "node03"), ("n[1,3]-ib", "n1-ib"), ("solo", "solo")],
)
def test_first_host(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


@pytest.mark.parametrize("step", ["4294967290", "4294967291"])
def test_an_interactive_or_batch_step_is_one_process_and_srun_is_named(
    step: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_launch(SRUN | {"SLURM_STEP_ID": step}) is None
    assert "has 4 tasks and this process runs alone; start with srun" in caplog.text


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_what_is_left_of_another_launch_is_named(name: str) -> None:
    with pytest.raises(LaunchError, match=rf"{name} set without .*unset what is left"):
        read_launch({name: "0"})


def test_srun_counts_where_half_of_torchruns_words_are_set_too() -> None:
    launch = read_launch(SRUN | {"WORLD_SIZE": "4", "MASTER_ADDR": "gpu07", "MASTER_PORT": "999"})
    assert launch is not None
    assert (launch.rank, launch.address, launch.port) == (2, "gpu07", 999)


def test_alone_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert read_launch({"MASTER_ADDR": "left over"}) is None
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"RANK": "one"}, "RANK is 'one', expected a whole number"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        ({"RANK": "4"}, "rank 4 of 4, but ranks count from 0"),
        ({"WORLD_SIZE": "0"}, "rank 3 of 0"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
        ({"WORLD_SIZE": "9" * 20}, "WORLD_SIZE is '9+', expected a whole number"),
        ({"RANK": "٣"}, "RANK is '٣'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is empty"),
    ],
)
def test_impossible_words_of_a_launcher_are_named(words: dict[str, str], said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        read_launch(TORCHRUN | words)


def test_mpirun_inside_slurm_is_told_from_srun() -> None:
    """Open MPI starts its daemons with srun: their children inherit a step of a task for each node."""
    for tasks in ("1", "2"):
        with pytest.raises(LaunchError, match="OMPI_COMM_WORLD_SIZE is 8: mpirun"):
            read_launch(SRUN | {"SLURM_NTASKS": tasks, "OMPI_COMM_WORLD_SIZE": "8"})


def test_the_number_of_tasks_is_found_where_one_of_its_names_is_missing() -> None:
    bare = {name: word for name, word in SRUN.items() if name != "SLURM_NTASKS"}
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NPROCS"):
        assert read_launch(bare | {name: "4"}) == read_launch(SRUN)
    with pytest.raises(LaunchError, match="rank 2 of 1"):
        read_launch(bare)
    assert read_launch(bare | {"SLURM_PROCID": "0"}) is None


def test_steps_and_jobs_are_told_apart_and_get_ports_of_their_own() -> None:
    launches = [
        read_launch(SRUN | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
        for job in (70001, 70002) for step in range(10)
    ]  # fmt: skip
    assert len({launch.port for launch in launches if launch}) == len(launches)
    assert len({launch.job for launch in launches if launch}) == len(launches)
    parts = read_launch(SRUN | {"SLURM_HET_SIZE": "2"})  # whose jobs have other numbers
    assert parts is not None
    assert parts.job == ""


@pytest.mark.parametrize(
    "name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "FLUX_JOB_SIZE", "JSM_NAMESPACE_SIZE"]
)
def test_processes_of_mpirun_do_not_train_each_alone(name: str) -> None:
    with pytest.raises(LaunchError, match=rf"{name} is 4: mpirun .* start with torchrun or srun"):
        read_launch({name: "4"})
    assert read_launch({name: "1"}) is None
    assert read_launch(SRUN | {name: "4"}) == read_launch(SRUN)  # srun --mpi sets them too
    assert read_launch(TORCHRUN | {name: "4"}) == read_launch(TORCHRUN)


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST"])
def test_half_of_slurms_words_are_named(name: str) -> None:
    with pytest.raises(LaunchError, match=name):
        read_launch({key: value for key, value in SRUN.items() if key != name})

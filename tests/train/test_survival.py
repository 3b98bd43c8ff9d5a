"""Killed at random, one rank of two killed, continued on other numbers of ranks: the ends must not differ."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskshards.train.checkpoint.checkpoint import read_checkpoint
from maskshards.train.tracking.metrics_log import read_metrics
from tests.train.launch import environment, free_port

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

# One process imports everything once and forks a life for each kill; it computes nothing itself.
KILLER = """
import multiprocessing, random, sys
from maskshards.train.__main__ import main
kills, arguments = int(sys.argv[1]), sys.argv[2:]
fork, moments, lives = multiprocessing.get_context("fork"), random.Random(5), 0
while True:
    life = fork.Process(target=lambda: sys.exit(main(arguments)))
    life.start()
    life.join(moments.uniform(0.1, 2.0) if lives < kills else None)
    lives += 1
    if life.exitcode is not None:
        break
    life.kill()
    life.join()
print(f"lives {lives} exit {life.exitcode}")
sys.exit(life.exitcode)
"""

# `maskshards train` whose last rank is told to end, by a signal from itself, in the step named first.
STOPPER = """
import os, signal, sys
from maskshards.train.trainer import loop
from maskshards.train.__main__ import main
real, last = loop.one_step, int(os.environ.get("RANK", 0)) + 1 == int(os.environ.get("WORLD_SIZE", 1))
def one_step(*given):
    if last and given[-1] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGUSR1)
    real(*given)
loop.one_step = one_step
sys.exit(main(sys.argv[2:]))
"""

# `maskshards train` where no file may have more than so many bytes: the kernel refuses what is beyond.
FULL_DISK = """
import resource, sys
from maskshards.train.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def start_ranks(ranks: int, arguments: list[str], program: str = STOPPER) -> list[subprocess.Popen[str]]:
    """One process a rank, joined by the variables that torchrun sets."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True,
            env=environment("torchrun", rank, ranks, port),
        )
        for rank in range(ranks)
    ]  # fmt: skip


def statuses(members: list[subprocess.Popen[str]]) -> list[int]:
    for member in members:
        sys.stderr.write(member.communicate(timeout=900)[1])  # shown where a test fails
    return [member.returncode for member in members]


def finish(command: list[str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def torchrun(ranks: int, *options: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        *options,
        "-m",
        "train",
    ]


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == kind]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "model_final.pth").weights


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["ema.decay=0.9"]], ids=["weights", "average"])
def test_twenty_kills_change_no_bit(tiny_run: list[str], tmp_path: Path, extra: list[str]) -> None:
    # long enough that twenty lives of a second on average do not reach the end
    steps = ["scheduler.total_iter=120", "eval.eval_interval=40", "checkpoint.interval=3", "resume_from=auto"]
    steps += extra
    finish([sys.executable, "-m", "train", *tiny_run, *steps])
    lives = finish(
        [sys.executable, "-c", KILLER, "20", *tiny_run, *steps, f"output_dir={tmp_path / 'killed'}"]
    )
    assert re.findall(r"lives (\d+)", lives) == ["21"]
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "run"))
    kept = [tmp_path / name / "checkpoints" / "step-00000120" for name in ("killed", "run")]
    parts = ["weights", "optimizer", *(["ema"] if extra else [])]
    assert sorted(path.stem for path in kept[0].glob("*.safetensors")) == sorted(parts)
    for part in parts:
        assert_same(*(load_file(folder / f"{part}.safetensors") for folder in kept))
    straight, killed = (
        [(r["step"], r["mIoU"]) for r in lines_of(tmp_path / name, "eval")] for name in ("run", "killed")
    )
    assert killed == straight
    straight, killed = (
        [(r["step"], r["order"]) for r in lines_of(tmp_path / name, "train")] for name in ("run", "killed")
    )
    assert killed == straight
    assert [path for path in (tmp_path / "killed").rglob("*") if path.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_of_two_is_killed_and_torchrun_starts_both_anew(
    tiny_run: list[str], tmp_path: Path, rank: int
) -> None:
    arguments = [*tiny_run, "bs=1", "n_gpus=2", "checkpoint.interval=1", "log.interval=1", "resume_from=auto"]
    finish([*torchrun(2), *arguments])
    again = [*torchrun(2, "--max-restarts=2"), *arguments, f"output_dir={tmp_path / 'killed'}"]
    lines = []
    with subprocess.Popen(again, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as launcher:
        assert launcher.stderr is not None
        for line in launcher.stderr:
            lines.append(line)
            if "step 3/8" in line and sum("step 3/8" in seen for seen in lines) == 1:
                os.kill(children_of(launcher.pid)[rank - 2], signal.SIGKILL)
    assert launcher.returncode == 0, "".join(lines)
    assert any("continuing after step" in line for line in lines)
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_a_rank_of_one_node_is_killed_and_both_nodes_start_anew(
    tiny_run: list[str], tmp_path: Path, node: int
) -> None:
    """Two launchers that know of each other by address only, as on two machines."""
    meeting = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    train = ["-m", "train", *tiny_run, "bs=1", "n_gpus=2", "checkpoint.interval=1", "log.interval=1"]
    launchers = [
        subprocess.Popen(
            [*launch, *meeting, "--node-rank", rank, "--max-restarts", "3", *train, "resume_from=auto"],
            cwd=ROOT, env=ENVIRONMENT, stderr=stderr, text=True,
        )
        for rank, stderr in (("0", subprocess.PIPE), ("1", subprocess.DEVNULL))
    ]  # fmt: skip
    lines: list[str] = []
    try:
        assert launchers[0].stderr is not None
        for line in launchers[0].stderr:
            lines.append(line)
            if "step 3/8" in line and sum("step 3/8" in seen for seen in lines) == 1:
                os.kill(children_of(launchers[node].pid)[-1], signal.SIGKILL)
        assert [launcher.wait(timeout=900) for launcher in launchers] == [0, 0], "".join(lines)
    finally:
        for launcher in launchers:
            launcher.kill()
            with launcher:  # closes its pipe
                pass
    assert any("continuing after step" in line for line in lines)
    assert (tmp_path / "run" / "model_final.pth").is_file()


@pytest.mark.slow
def test_three_ranks_continue_bit_for_bit(tiny_run: list[str], tmp_path: Path) -> None:
    """More than two summands round differently in another order, so the order has to be the same."""
    shared = ["bs=1", "n_gpus=3", "scheduler.total_iter=4", "checkpoint.interval=2", "resume_from=auto"]
    arguments = [*tiny_run, *shared, "eval.max_val_samples=1"]
    finish([*torchrun(3), *arguments])
    middle = Path("checkpoints", "step-00000002")
    shutil.copytree(tmp_path / "run" / middle, tmp_path / "again" / middle)
    finish([*torchrun(3), *arguments, f"output_dir={tmp_path / 'again'}"])
    assert_same(weights(tmp_path / "again"), weights(tmp_path / "run"))


# `maskshards train` of a head with a parameter that takes no part in anything.
ORPHAN = """
import sys
import torch
from maskshards.train.trainer import build as assembly
from maskshards.train.__main__ import main
def with_orphan(*given, build=assembly.build_model):
    segmenter = build(*given)
    segmenter.decoder.register_parameter("orphan", torch.nn.Parameter(torch.zeros(2)))
    return segmenter
assembly.build_model = with_orphan
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_parameter_that_never_trains_is_named_on_every_rank(
    tiny_run: list[str], tmp_path: Path, ranks: int
) -> None:
    """DistributedDataParallel would complain a step later, of parameter indices."""
    members = start_ranks(ranks, [*tiny_run, "bs=1", f"n_gpus={ranks}", "log.interval=1"], ORPHAN)
    words = [member.communicate(timeout=900)[1] for member in members]
    assert [member.returncode for member in members] == [1] * ranks, words
    for said in words:
        assert said.splitlines()[-1] == "stopped: 1 trainable parameters receive no gradient: orphan"
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def children_of(pid: int) -> list[int]:
    """Direct children, by rising process id, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "worlds", "tolerance"),
    [("linear", (1, 2, 4), 1e-5), ("linear", (4, 2, 1), 1e-5), ("m2f", (1, 2, 4), 1e-2)],
)
def test_other_numbers_of_ranks_continue_the_same_samples(
    tiny_run: list[str], tmp_path: Path, head: str, worlds: tuple[int, ...], tolerance: float
) -> None:
    """`order` is of positions, keys and crops. `bs` times the ranks stays, so that batch norms see the same
    images together; then losses differ by rounding only, which in the m2f head can turn a match or the
    choice of a point.
    """
    shared = ["global_batch=4", "log.interval=1", "eval.eval_interval=8", f"decoder_head.type={head}"]
    finish([sys.executable, "-m", "train", *tiny_run, *shared, "bs=4"])
    moved = [*tiny_run, *shared, f"output_dir={tmp_path / 'moved'}", "resume_from=auto"]
    for ranks, stop, status in zip(worlds, (2, 5, 99), (138, 138, 0), strict=True):
        assert statuses(start_ranks(ranks, [str(stop), *moved, f"bs={4 // ranks}"])) == [status] * ranks
    one, other = (lines_of(tmp_path / name, "train") for name in ("run", "moved"))
    assert [r["step"] for r in one] == [r["step"] for r in other] == list(range(1, 9))
    assert [r["order"] for r in one] == [r["order"] for r in other]
    assert [r["loss"] for r in other] == pytest.approx([r["loss"] for r in one], rel=tolerance)


@pytest.mark.slow
def test_a_full_disk_ends_all_ranks_with_its_reason_and_blocks_nothing(
    tiny_run: list[str], tmp_path: Path
) -> None:
    shared = ["decoder_head.type=linear", "bs=1", "n_gpus=2", "checkpoint.interval=2", "log.interval=1"]
    arguments = [*tiny_run, *shared, "log.report=False", "log.tensorboard=False", "resume_from=auto"]
    assert statuses(start_ranks(2, ["99", *arguments])) == [0, 0]
    cut = [*arguments, f"output_dir={tmp_path / 'cut'}"]
    assert statuses(start_ranks(2, ["4", *cut])) == [138, 138]
    folder = tmp_path / "cut" / "checkpoints"
    for room in ("10000", "2000"):  # too little for the optimiser; for config.yaml already
        members = start_ranks(2, [room, *cut], FULL_DISK)
        words = [member.communicate(timeout=900)[1] for member in members]
        assert [member.returncode for member in members] == [2, 2], words
        assert all(said.splitlines()[-1].startswith("error: ") for said in words)
        assert all("File too large" in said and "Traceback" not in said for said in words)
        assert sorted(path.name for path in folder.glob("[!b]*")) == ["step-00000002", "step-00000004"]
    assert statuses(start_ranks(2, ["99", *cut])) == [0, 0]
    assert_same(weights(tmp_path / "cut"), weights(tmp_path / "run"))
    straight, other = (lines_of(tmp_path / name, "train") for name in ("run", "cut"))
    assert [(r["step"], r["order"]) for r in other] == [(r["step"], r["order"]) for r in straight]

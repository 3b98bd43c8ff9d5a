import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.checkpoint.run_files import LAST, checkpoints_of, step_of
from maskshards.train.distributed.early_stop import Stopped, stops_told
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import (
    PATIENCE_S,
    SIGNALS,
    LeftEarly,
    StopSignals,
)
from maskshards.train.tracking.metrics_log import read_metrics
from tests.forked import ForkedPython
from tests.train.launch import ended, ranks_of

ROOT = Path(__file__).parents[3]
ALONE = Ranks(World(), torch.device("cpu"))


@pytest.fixture
def hangups() -> Iterator[None]:
    """As in a terminal, also where nohup has started the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("wish", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_noted_and_the_old_handler_comes_back(hangups: None, wish: signal.Signals) -> None:
    before = signal.getsignal(wish)
    with StopSignals() as stop:
        stop.check(ALONE)
        stop.leave()
        os.kill(os.getpid(), wish)
        assert stop.number == wish
        with pytest.raises(Stopped, match=wish.name):
            stop.check(ALONE)
        with pytest.raises(LeftEarly):
            stop.leave()
    assert signal.getsignal(wish) == before


def test_a_training_in_a_thread_leaves_signals_to_the_program() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]

    def training() -> list[object]:
        with StopSignals() as stop:
            stop.check(ALONE)
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(training).result() == before


def test_the_first_signal_counts() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGUSR1


def test_a_late_second_interrupt_is_obeyed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("maskshards.train.distributed.stop_signals.time.monotonic", lambda: now[0])
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        now[0] += PATIENCE_S + 0.1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_while_ranks_join_a_signal_ends_the_wait_and_later_ones_change_nothing() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals(joining=True) as stop:
        with pytest.raises(Stopped, match="before anything was trained or scored"):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    with StopSignals(joining=True) as stop:
        with stop.noted():
            os.kill(os.getpid(), signal.SIGUSR1)
            with pytest.raises(Stopped, match=r"^stopped by SIGUSR1$"):
                stop.check(ALONE)
        assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_that_was_started_by_nohup_goes_on() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stops_told(), StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number == 0
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_whose_terminal_is_closed_saves_and_ends(tiny_run: list[str], tmp_path: Path) -> None:
    """Whatever it writes from then on is an error."""
    words = [*tiny_run, "decoder_head.type=linear", "scheduler.total_iter=4000", "eval.eval_interval=4000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ForkedPython(["-m", "train", *words, "log.interval=1"], env=environment) as run:
        wait_for(run, "step 2/")
        run.stdout.close()
        run.stderr.close()
        run.send_signal(signal.SIGHUP)
        assert run.wait() == 128 + signal.SIGHUP
    (newest,) = checkpoints_of(tmp_path / "run", LAST)
    assert step_of(newest) >= 2


def wait_for(member: ForkedPython, words: str) -> None:
    lines = []
    for line in member.stderr:
        lines.append(line)
        if words in line:
            return
    raise AssertionError(f"{words!r} was never said: {''.join(lines)}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "wish", "told"),
    [
        ("torchrun", signal.SIGUSR1, [1]),
        ("torchrun", signal.SIGTERM, [0, 1]),
        ("srun", signal.SIGUSR1, [0]),
        ("srun", signal.SIGTERM, [0, 1]),
    ],
)
def test_ranks_end_in_the_same_step_save_once_and_the_same_command_continues(
    tiny_run: list[str], tmp_path: Path, launcher: str, wish: signal.Signals, told: list[int]
) -> None:
    command = [
        "-m", "train", *tiny_run, "decoder_head.type=linear", "bs=1", "n_gpus=2", "scheduler.total_iter=4000",
        "eval.eval_interval=4000", "log.interval=1", "resume_from=auto",
    ]  # fmt: skip
    run, last = tmp_path / "run", 0
    for life in (1, 2):
        with ranks_of(command, launcher=launcher) as members:
            if last:
                wait_for(members[0], f"continuing after step {last} ")
            wait_for(members[0], f"step {last + 2}/")
            for rank in told:
                members[rank].send_signal(wish)
            statuses, words = ended(members)
        assert statuses == [128 + wish] * 2, words
        assert all(said.count(f"stopped by {wish.name}; resume_from=auto continues") == 1 for said in words)
        newest = checkpoints_of(run, LAST)
        records = read_metrics(run / "metrics.jsonl")
        assert len(newest) == life
        last = step_of(newest[-1])
        assert records[-1]["kind"] == "checkpoint"
        assert [r["step"] for r in records if r["kind"] == "checkpoint"] == [step_of(path) for path in newest]
        assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, last + 1))
    assert [path for path in run.rglob("*") if path.name.startswith(".")] == []


# `maskshards train` in which the second rank gets a signal in the middle of a function of a module.
TOLD_INSIDE = """
import importlib, os, signal, sys
from maskshards.train.__main__ import main
module, name = importlib.import_module(sys.argv[1]), sys.argv[2]
real = getattr(module, name)
def told(*given):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGUSR1)
    return real(*given)
setattr(module, name, told)
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_one_rank_that_is_told_while_it_scores_or_starts_takes_the_other_with_it(
    tiny_run: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [
        *tiny_run, "decoder_head.type=linear", "bs=1", "n_gpus=2", "eval.eval_interval=2", "log.interval=1",
        "scheduler.total_iter=4",
    ]  # fmt: skip
    training = [*arguments, "resume_from=auto"]

    def statuses(program: list[str]) -> list[int]:
        with ranks_of(program) as members:
            found, words = ended(members)
        sys.stderr.write("\n".join(words))
        return found

    def evaluations() -> list[int]:
        return [r["step"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "eval"]

    scoring = ["-c", TOLD_INSIDE, "maskshards.train.evaluation.evaluate", "_score_batch"]
    assert statuses([*scoring, *training]) == [138, 138]
    assert [path.name for path in checkpoints_of(run, LAST)] == ["step-00000002"]
    assert evaluations() == []
    assert statuses(["-c", TOLD_INSIDE, "maskshards.train.trainer.run", "begin", *training]) == [138, 138]
    assert statuses(["-m", "train", *training]) == [0, 0]
    assert evaluations() == [2, 4]
    alone = [f"load_from={run}", f"output_dir={tmp_path / 'scores'}"]
    assert statuses([*scoring, *arguments, *alone]) == [138, 138]
    assert not (tmp_path / "scores").exists()  # it was made for the scores alone

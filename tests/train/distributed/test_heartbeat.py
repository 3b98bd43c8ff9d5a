"""Ranks that hang, die or fail: who the others say it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from maskshards.train.distributed.heartbeat import Heartbeat, told_apart
from maskshards.train.distributed.lost_ranks import LostRankError
from tests.train.launch import ranks_of

ROOT = Path(__file__).parents[3]


@contextmanager
def two_heartbeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Heartbeat, Heartbeat]]:
    monkeypatch.setattr("maskshards.train.distributed.lost_ranks.BEAT_S", 0.02)
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    heartbeats = Heartbeat(store, 0, 2), Heartbeat(store, 1, 2)
    yield heartbeats
    for heartbeat in heartbeats:
        heartbeat.end("done")


def test_a_failure_among_the_living_keeps_its_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with two_heartbeats(monkeypatch) as (mine, other):
        other.start()
        with pytest.raises(RuntimeError, match=r"^a bug$"), told_apart(mine):
            raise RuntimeError("a bug")


def test_a_collective_that_fails_for_a_silent_rank_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with two_heartbeats(monkeypatch) as (mine, other):
        other.at(12, "waiting for data")
        other._write()  # its thread never starts: the last word stays the last
        with pytest.raises(
            LostRankError, match=r"no sign of life from rank 1 \(last heard in step 12, wait.*broken pipe"
        ):
            with told_apart(mine):
                raise RuntimeError("broken\npipe")


def test_the_error_of_another_rank_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with two_heartbeats(monkeypatch) as (mine, other):
        with pytest.raises(ValueError, match="no such shard"), told_apart(other):
            raise ValueError("no such shard")
        with (
            pytest.raises(LostRankError, match=r"ended: rank 1 \(ValueError: no such shard\)"),
            told_apart(mine),
        ):
            raise RuntimeError("broken pipe")


def test_a_rank_that_did_its_work_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    with two_heartbeats(monkeypatch) as (mine, other):
        with told_apart(other):
            pass
        with pytest.raises(RuntimeError, match=r"^my own bug$"), told_apart(mine):
            raise RuntimeError("my own bug")


def test_a_rank_that_lives_and_does_not_get_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskshards.train.distributed.lost_ranks.WARN_S", 0.0)
    with two_heartbeats(monkeypatch) as (mine, other):
        other.at(4, "evaluating, 12 images done")
        other.start()
        mine.at(4, "evaluating")
        mine.doing("waiting for the scores of all ranks")
        with (
            pytest.raises(LostRankError, match=r"no progress of rank 1 \(.*evaluating, 12 images done"),
            told_apart(mine),
        ):
            raise RuntimeError("timed out")


# Short times, and a rank that stops itself or fails in the third step's crop.
MEMBER = """
import os, signal, sys
import maskshards.train.trainer.step
from maskshards.train.__main__ import main
from maskshards.train.distributed import lost_ranks
lost_ranks.BEAT_S, lost_ranks.WARN_S = 0.2, 1.0
fault, arguments = sys.argv[1], sys.argv[2:]
whole = maskshards.train.trainer.step.crop

def crop(batch, numbers, settings):
    if batch.positions[0] == 5:  # of the third step; the second of two ranks reads the odd ones
        if fault == "fail":
            raise OSError("disk on fire")
        os.kill(os.getpid(), signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
    return whole(batch, numbers, settings)

maskshards.train.trainer.step.crop = crop
sys.exit(main(arguments))
"""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stop", ("no sign of life for", "no sign of life from rank 1 (last heard in step")),
        ("kill", ("no sign of life from rank 1 (last heard in step",)),
        ("fail", ("ended: rank 1 (OSError: disk on fire)",)),
    ],
)
def test_the_rank_that_is_lost_in_a_step_is_named(
    tiny_run: list[str], fault: str, words: tuple[str, ...]
) -> None:
    arguments = [
        *tiny_run,
        "bs=1",
        "n_gpus=2",
        f"step_timeout_s={30 if fault == 'stop' else 600}",
        "eval.max_val_samples=2",
    ]
    with ranks_of(["-c", MEMBER, fault, *arguments]) as members:
        said = members[0].communicate(timeout=900)[1]
    assert members[0].returncode == 2, said
    assert "Traceback" not in said
    for each in words:
        assert each in said


# A rank that hangs, or stops itself, at a place of a whole run.
HANGS = """
import os, signal, sys, threading
import maskshards.shards.storage.local, maskshards.train.checkpoint.checkpoint
import maskshards.train.evaluation.evaluate
from maskshards.train.__main__ import main
from maskshards.train.distributed import lost_ranks

lost_ranks.BEAT_S, lost_ranks.WARN_S = 0.2, 1.0
fault, place, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
owner, name, rank, first = {
    "evaluation": (maskshards.train.evaluation.evaluate, "label_maps", "1", 2),
    "saving": (maskshards.train.checkpoint.checkpoint, "write_through", "0", 2),
    "data": (maskshards.shards.storage.local.LocalStore, "read", "1", 4),
}[place]
whole, calls = getattr(owner, name), []

def hangs(*words, **named):
    calls.append(1)
    if len(calls) >= first and (place != "data" or str(words[1]).endswith(".tar")):
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait()
    return whole(*words, **named)

if os.environ["RANK"] == rank:
    setattr(owner, name, hangs)
sys.exit(main(arguments))
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "stop"])
@pytest.mark.parametrize(
    ("place", "rank", "doing"),
    [("evaluation", 1, "evaluating, "), ("saving", 0, "saving "), ("data", 1, "waiting for data")],
)
def test_a_rank_that_hangs_or_stops_in_an_evaluation_or_a_save_ends_the_launch(
    tiny_run: list[str], fault: str, place: str, rank: int, doing: str
) -> None:
    arguments = [*tiny_run, "bs=1", "n_gpus=2", "step_timeout_s=20", "eval.eval_interval=2"]
    with ranks_of(["-c", HANGS, fault, place, *arguments]) as members:
        said = members[1 - rank].communicate(timeout=900)[1]
        last = said.splitlines()[-1]
        assert members[1 - rank].returncode == 2, said
        kind = "no progress of" if fault == "hang" else "no sign of life from"
        assert last.startswith(f"error: {kind} rank {rank} (last heard in step "), said
        assert f", {doing}" in last
        assert "Traceback" not in said
        if fault == "hang":  # it cannot be woken, and ends all the same
            words = members[rank].communicate(timeout=900)[1]
            assert (members[rank].returncode, words.splitlines()[-1][:26]) == (
                2,
                "error: no progress of rank",
            )

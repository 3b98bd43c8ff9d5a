"""Ranks that hang, die or fail: who the others say it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from maskshards.train.distributed.heartbeat import (
    Heartbeat,
    LostRankError,
    Record,
    Watch,
    elsewhere,
    failed,
    named,
    told_apart,
)
from tests.train.launch import ranks_of

ROOT = Path(__file__).parents[3]


def sign(
    beat: int, step: int = 5, doing: str = "computing", since_s: float = 0.0, ended: bool = False
) -> Record:
    return Record(beat, step, doing, since_s, ended)


def test_ranks_that_move_are_left_in_peace() -> None:
    watch = Watch()
    for second in range(0, 600, 2):
        assert (
            watch.changes({0: sign(second), 1: sign(second, doing="waiting for data")}, float(second)) == ""
        )


def test_a_silent_rank_is_named_once_and_again_after_twice_the_time() -> None:
    watch, said = Watch(), {}
    for second in range(0, 400, 2):
        warning = watch.changes({0: sign(second), 1: sign(min(second, 10), step=7)}, float(second))
        if warning:
            said[second] = warning
    assert list(said) == [70, 130, 250]
    assert said[70] == "no sign of life for 60 s from rank 1 (last heard in step 7, computing for 0 s)"


def test_who_keeps_the_others_waiting_is_named_although_it_lives() -> None:
    signs = {rank: sign(1, since_s=61.0) for rank in range(4)}
    signs[2] = sign(1, doing="waiting for data", since_s=62.0)
    assert Watch().changes(signs, 0.0) == (
        "no step for 61 s: rank 2 (last heard in step 5, waiting for data for 62 s); 3 at step 5, computing"
    )


def test_ranks_that_do_the_same_for_long_are_no_news() -> None:
    signs = {rank: sign(1, doing="evaluating", since_s=900.0) for rank in range(4)}
    assert Watch().changes(signs, 0.0) == ""


def test_many_ranks_are_counted() -> None:
    said = named({rank: sign(1) for rank in range(20)})
    assert said.endswith("rank 7 (last heard in step 5, computing for 0 s) and 12 more")


@contextmanager
def two_heartbeats(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Heartbeat, Heartbeat]]:
    monkeypatch.setattr("maskshards.train.distributed.heartbeat.BEAT_S", 0.02)
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


def test_an_error_of_its_own_comes_before_those_who_waited_for_it() -> None:
    waited = Record(3, 5, "LostRankError: ended: rank 2 (...)", 0.0, ended=True)
    own = Record(3, 5, "OSError: disk on fire", 0.0, ended=True)
    assert failed({0: waited, 1: sign(4), 2: own}) == {2: own}
    assert failed({0: waited, 1: sign(4)}) == {0: waited}


def test_a_rank_that_lives_and_does_not_get_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskshards.train.distributed.heartbeat.WARN_S", 0.0)
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


def test_who_has_only_just_come_to_its_place_blames_nobody() -> None:
    waiting, stuck = Record(3, 5, "computing", 100.0), Record(3, 5, "waiting for data", 100.0)
    assert elsewhere({0: waiting, 1: stuck, 2: waiting}, 0) == {1: stuck}
    assert elsewhere({0: Record(3, 5, "computing", 1.0), 1: stuck}, 0) == {}
    assert elsewhere({0: waiting, 1: Record(3, 5, "LostRankError", 100.0, ended=True)}, 0) == {}


# Short times, and a rank that stops itself or fails in the third step's crop.
MEMBER = """
import os, signal, sys
import maskshards.train.distributed.heartbeat, maskshards.train.trainer.step
from maskshards.train.__main__ import main
maskshards.train.distributed.heartbeat.BEAT_S, maskshards.train.distributed.heartbeat.WARN_S = 0.2, 1.0
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

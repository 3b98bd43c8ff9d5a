"""Ranks that hang, die or fail: who the others say it was."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from maskshards.train.distributed import heartbeat as module
from maskshards.train.distributed import lost_ranks, process_end
from maskshards.train.distributed.heartbeat import Heartbeat, RunningClock, told_apart
from maskshards.train.distributed.lost_ranks import LostRankError
from tests.train.launch import ranks_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def two() -> Iterator[tuple[Heartbeat, Heartbeat]]:
    """The heartbeats of two ranks, whose threads never start: they write when a test says so."""
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    yield Heartbeat(store, 0, 2, 100.0), Heartbeat(store, 1, 2, 100.0)
    del store  # the server lives as long as this


@contextmanager
def told(heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch, living: Heartbeat | None) -> Iterator[None]:
    """`told_apart` without threads; `living` writes whenever `heartbeat` looks for signs of life."""
    monkeypatch.setattr(Heartbeat, "start", lambda self: None)
    monkeypatch.setattr(module, "pause", lambda seconds: living and living._write())
    with told_apart(heartbeat):
        yield


def test_a_verdict_that_comes_while_one_looks_for_the_silent_is_the_word(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, _ = two
    monkeypatch.setattr(module, "pause", lambda seconds: setattr(mine, "verdict", "no progress of rank 1"))
    assert mine.missing() == "no progress of rank 1"


def test_nodes_are_named_where_there_are_several(two: tuple[Heartbeat, Heartbeat]) -> None:
    mine, other = two
    assert {record.host for record in mine.look().values()} == {""}
    mine._host, other._host = "gpu01", "gpu07"
    for one in two:
        one._write()
    assert mine.absent().startswith("not there: rank 1 on gpu07 (last heard in step 0, starting for ")
    other.end("OSError: disk")
    assert mine.missing() == "ended: rank 1 on gpu07 (in step 0, starting: OSError: disk)"


def test_a_failure_among_the_living_keeps_its_own_words(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = two
    mine.at(3, "computing")
    words = r"^a bug\nrank 0 of 2, in step 3, computing$"  # pytest adds notes by lines
    with pytest.raises(RuntimeError, match=words), told(mine, monkeypatch, other):
        raise RuntimeError("a bug")


def test_a_collective_that_fails_among_the_living_is_told_in_our_words(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = two
    words = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    with pytest.raises(LostRankError, match=r"^the ranks have lost each other\. The collective's own words:"):
        with told(mine, monkeypatch, other):
            raise RuntimeError(words)


def test_a_collective_that_fails_for_a_silent_rank_names_it(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = two
    other.at(12, "waiting for data")
    other._write()
    with pytest.raises(
        LostRankError, match=r"^no sign of life from rank 1 \(last heard in step 12, waiting for data .* s\)$"
    ):
        with told(mine, monkeypatch, None):
            raise RuntimeError("[/torch/gloo/pair.cc:553] broken pipe\nframe #0: in C++")


def test_the_error_of_another_rank_is_passed_on(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = two
    with pytest.raises(ValueError, match="no such shard"), told(other, monkeypatch, None):
        raise ValueError("no such shard")
    with pytest.raises(LostRankError, match=r"ended: rank 1 \(in step 0, starting: ValueError: no such"):
        with told(mine, monkeypatch, None):
            raise RuntimeError("broken pipe")


def test_a_rank_that_did_its_work_is_not_to_blame(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = two
    with told(other, monkeypatch, None):
        pass
    with pytest.raises(RuntimeError, match=r"^my own bug\n"), told(mine, monkeypatch, None):
        raise RuntimeError("my own bug")


def test_a_rank_that_lives_and_does_not_get_on_is_named(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_ranks, "WARN_S", 0.0)
    mine, other = two
    other.at(4, "evaluating, 12 images done")
    mine.at(4, "waiting for the scores of all ranks", waits=True)
    mine._write()
    with pytest.raises(LostRankError, match=r"no progress of rank 1 \(.*evaluating, 12 images done"):
        with told(mine, monkeypatch, other):
            raise RuntimeError("timed out")


def test_what_may_honestly_take_long_is_given_time(two: tuple[Heartbeat, Heartbeat]) -> None:
    first, second = two
    for place, slow, patience_s in (
        ("loading the model", True, 1800.0),
        ("reading the data set", False, 100.0),
    ):
        first.at(0, "waiting for all ranks at 'the model'", waits=True)
        second.doing(place, slow=slow)
        pass_s(two, patience_s - 1)
        assert first._judge()[1] == ""
    pass_s(two, 1.0)
    assert first._judge()[1] == "no progress of rank 1 (last heard in step 0, reading the data set for 100 s)"


def pass_s(heartbeats: Iterable[Heartbeat], seconds: float) -> None:
    """Let that much time pass on the clocks of all ranks; each writes."""
    for one in heartbeats:
        one._clock.s += seconds
        one._write()


def test_one_judges_and_all_end_with_the_same_words(two: tuple[Heartbeat, Heartbeat]) -> None:
    first, second = two
    first.at(7, "computing", waits=True)
    second.at(7, "waiting for data")
    for _ in range(9):
        pass_s(two, 10.0)
        assert [one._judge()[1] for one in two] == ["", ""]
    pass_s(two, 10.0)
    words = "no progress of rank 1 (last heard in step 7, waiting for data for 100 s)"
    assert [one._judge()[1] for one in two] == [words, words]
    second._watch = None  # as of a rank that judges nobody: it reads the verdict
    assert second._judge() == ("", words)


def test_progress_is_heard_and_a_wait_counts_as_none_of_its_own(two: tuple[Heartbeat, Heartbeat]) -> None:
    first, second = two
    for done in range(30):
        with first.waiting():
            second.doing(f"evaluating, {done} images done")
            pass_s(two, 90.0)
            assert first.look()[0].waits
            assert first._judge()[1] == ""
    assert not first._place.waits
    first.check()
    first.verdict = "no progress of rank 1"
    with pytest.raises(LostRankError, match=r"^no progress of rank 1$"):
        first.check()


def test_a_rank_that_is_stuck_ends_where_the_store_is_gone(two: tuple[Heartbeat, Heartbeat]) -> None:
    mine = two[1]
    mine.at(3, "waiting for data")
    mine._clock.s = 99.0
    assert mine._judge_alone() == ""
    mine._clock.s = 100.0
    assert mine._judge_alone().startswith("no answer from rank 0, with which the launch's store lives")
    mine.at(4, "waiting for data")
    assert mine._judge_alone() == ""


def test_a_process_that_does_not_end_by_itself_is_ended_with_the_verdict(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(process_end, "GRACE_S", 0.0)
    monkeypatch.setattr(process_end.os, "_exit", statuses.append)
    mine = two[0]
    mine.verdict = "no progress of rank 1 (...)"
    mine._end_process()
    assert (statuses, capfd.readouterr().err) == ([2], "error: no progress of rank 1 (...)\n")
    mine._over.set()  # it ends by itself
    mine._end_process()
    assert statuses == [2]


def test_who_finds_the_one_to_blame_tells_all(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    second.at(3, "waiting for data")
    second._write()
    with pytest.raises(LostRankError, match="no sign of life from rank 1"), told(first, monkeypatch, None):
        raise RuntimeError("Connection closed by peer")
    assert second._judge()[1].startswith("no sign of life from rank 1 (last heard in step 3")


def test_a_store_that_keeps_a_thread_waiting_keeps_no_other(
    two: tuple[Heartbeat, Heartbeat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", timedelta(0))
    with two[0]._lock:
        assert two[0].missing().startswith("no answer from rank 0")
        two[0].tell("no progress of rank 1")
    assert two[0].verdict == "no progress of rank 1"


def test_time_in_which_the_process_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    clock = RunningClock()
    for step_s in (2.0, 2.5, 7200.0, 2.0):  # suspended for two hours
        now[0] += step_s
        clock.tick()
    assert 6.5 < clock.s < 30


# Short times, and a rank that stops itself or fails in the third step's crop. Until then none is judged.
MEMBER = """
import os, signal, sys
from pathlib import Path
import maskshards.train.trainer.step
from maskshards.train.__main__ import main
from maskshards.train.distributed import lost_ranks
lost_ranks.BEAT_S, lost_ranks.WARN_S = 0.2, 1.0
fault, place, arguments = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
whole, judge = maskshards.train.trainer.step.crop, lost_ranks.Watch.verdict

def verdict(watch, records, now):
    watch.silence_s = 2.0
    return judge(watch, records, now) if place.exists() else ""

def crop(batch, numbers, settings):
    if batch.positions[0] == 5:  # of the third step; the second of two ranks reads the odd ones
        place.touch()
        if fault == "fail":
            raise OSError("disk on fire")
        os.kill(os.getpid(), signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
    return whole(batch, numbers, settings)

maskshards.train.trainer.step.crop, lost_ranks.Watch.verdict = crop, verdict
sys.exit(main(arguments))
"""


@pytest.mark.parametrize(
    ("fault", "head", "words"),
    [
        ("stop", "m2f", ("no sign of life for", "no sign of life from rank 1 (last heard in step")),
        ("kill", "linear", ("no sign of life from rank 1 (last heard in step",)),
        ("fail", "linear", ("ended: rank 1 (in step ", ": OSError: disk on fire)")),
    ],
)
def test_the_rank_that_is_lost_in_a_step_is_named(
    tiny_run: list[str], tmp_path: Path, fault: str, head: str, words: tuple[str, ...]
) -> None:
    arguments = [*tiny_run, "bs=1", "n_gpus=2", "step_timeout_s=600", "eval.max_val_samples=2"]
    arguments.append(f"decoder_head.type={head}")
    with ranks_of(["-c", MEMBER, fault, str(tmp_path / "lost"), *arguments]) as members:
        said = members[0].communicate(timeout=900)[1]
    assert members[0].returncode == 2, said
    assert "Traceback" not in said
    for each in words:
        assert each in said


# A rank that hangs, or stops itself once it has told where it is, at a place of a whole run.
HANGS = """
import os, signal, sys, threading
import maskshards.shards.storage.local, maskshards.train.checkpoint.checkpoint
import maskshards.train.evaluation.evaluate, maskshards.train.config.data_facts
from maskshards.train.__main__ import main
from maskshards.train.distributed import lost_ranks
from maskshards.train.distributed.heartbeat import Heartbeat

lost_ranks.BEAT_S, lost_ranks.WARN_S = 0.2, 1.0
fault, place, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
write, wrote = Heartbeat._write, threading.Semaphore(0)
Heartbeat._write = lambda *words, **named: (write(*words, **named), wrote.release())
owner, name, rank, first = {
    "evaluation": (maskshards.train.evaluation.evaluate, "label_maps", "1", 2),
    "saving": (maskshards.train.checkpoint.checkpoint, "write_through", "0", 2),
    "data": (maskshards.shards.storage.local.LocalStore, "read", "1", 3),
    "start": (maskshards.train.config.data_facts, "open_split", "1", 1),
}[place]
whole, calls = getattr(owner, name), []

def hangs(*words, **named):
    calls.append(1) if place != "data" or str(words[1]).endswith(".tar") else None
    if len(calls) >= first:
        while wrote.acquire(blocking=False):
            pass
        if fault == "stop" and wrote.acquire() and wrote.acquire():
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
    [
        ("evaluation", 1, "evaluating, "),
        ("saving", 0, "saving "),
        ("data", 1, "waiting for data"),
        ("start", 1, "reading the data set"),
    ],
)
def test_a_rank_that_hangs_or_stops_in_an_evaluation_or_a_save_ends_the_launch(
    tiny_run: list[str], fault: str, place: str, rank: int, doing: str
) -> None:
    arguments = [
        *tiny_run,
        "bs=1",
        "n_gpus=2",
        "step_timeout_s=20",
        f"eval.eval_interval={8 if place == 'data' else 2}",
    ]
    with ranks_of(["-c", HANGS, fault, place, *arguments]) as members:
        said = members[1 - rank].communicate(timeout=900)[1]
        last = said.splitlines()[-1]
        assert members[1 - rank].returncode == 2, said
        # One that hangs ends itself after the same time, and may be gone when the others look.
        kinds = ("no progress of", "no sign of life from")[fault == "stop" :]
        if fault == "stop" and rank == 0:  # and with it the store, as srun starts it
            assert last.startswith("error: no answer from rank 0 at 127.0.0.1, with which the launch's store")
        else:
            heard = [f"error: {kind} rank {rank} (last heard in step " for kind in kinds]
            assert last.startswith(tuple(heard)), said
            if (fault, place) != ("stop", "data"):  # reading ahead, it may be stopped while it does anything
                assert f", {doing}" in last
        assert "Traceback" not in said
        if fault == "hang":  # it cannot be woken, and ends all the same
            words = members[rank].communicate(timeout=900)[1]
            assert (members[rank].returncode, words.splitlines()[-1][:26]) == (
                2,
                "error: no progress of rank",
            )

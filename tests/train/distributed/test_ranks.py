import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.distributed import lost_ranks
from maskshards.train.distributed.heartbeat import Heartbeat
from maskshards.train.distributed.lost_ranks import LostRankError
from maskshards.train.distributed.ranks import (
    Patience,
    Ranks,
    joined,
    spread,
    to_message,
)
from tests.train.launch import ranks_of

MEMBER = """
import json, os, sys
from datetime import timedelta
from pathlib import Path
import torch
from torch import nn
from maskshards.train.distributed.ranks import joined, spread

with joined() as ranks:
    rank = ranks.world.rank
    answer = {"rank": rank, "ranks": ranks.world.num_ranks, "first": ranks.is_first}
    answer["sum"] = ranks.sum(torch.tensor([1.0, float(rank)])).tolist()
    answer["any"] = ranks.any(15 if rank == 1 else 0)
    answer["said"] = ranks.broadcast("from the first, \\u00e4" if rank == 0 else "ignored")
    answer["typed"] = [
        ranks.from_first(lambda value=value: value if rank == 0 else 1 / 0)
        for value in (None, True, 3, "text", {"a": [1.5, None]})
    ]
    path = ranks.from_first(lambda: Path("a/b"))
    answer["path"] = ["path" if isinstance(path, Path) else "text", str(path)]
    try:
        ranks.from_first(lambda: (_ for _ in ()).throw(OSError("disk")))
    except (ValueError, OSError) as error:
        answer["failure"] = f"{type(error).__name__}: {error}"
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    wrapped = spread(layer, ranks)
    wrapped(torch.tensor([[1.0, float(rank)]])).sum().backward()
    answer["gradient"] = layer.weight.grad.tolist()
    ranks.wait("the end")
    try:
        if rank == 0:
            ranks.wait("a place that rank 1 never reaches", timedelta(seconds=1))
    except ConnectionError as error:
        answer["missing"] = str(error)
    print(json.dumps(answer))
"""


def test_two_processes_agree_over_gloo() -> None:
    with ranks_of(["-c", MEMBER]) as members:
        outputs = [member.communicate(timeout=900) for member in members]
    assert [member.returncode for member in members] == [0, 0], outputs
    answers = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert [answer["first"] for answer in answers] == [True, False]
    for answer in answers:
        assert answer["sum"] == [2.0, 1.0]
        assert answer["any"] == 15
        assert answer["said"] == "from the first, ä"
        assert answer["typed"] == [None, True, 3, "text", {"a": [1.5, None]}]
        assert answer["path"] == ["path", "a/b"]
        assert answer["gradient"] == [[1.0, 0.5]]
    failures = [answer["failure"] for answer in answers]
    assert failures == ["OSError: disk", "FirstRankError: rank 0 gave up: disk"]
    assert "a place that rank 1 never reaches" in answers[0]["missing"]
    assert "1" in answers[0]["missing"].split("never reaches", 1)[1]


def test_alone_everything_is_the_identity() -> None:
    with joined({}) as ranks:
        assert ranks.world == World(0, 1)
        assert ranks.is_first
        assert ranks.sum(torch.tensor([2.0])).tolist() == [2.0]
        assert (ranks.any(3), ranks.broadcast("x")) == (3, "x")
        ranks.wait("nobody")


def test_what_would_not_come_back_as_it_is_is_not_sent() -> None:
    with pytest.raises(TypeError, match="Tensor cannot be sent"):
        to_message(torch.ones(1))
    with joined({}) as ranks, pytest.raises(TypeError, match="Tensor cannot be sent"):
        ranks.from_first(lambda: torch.ones(1))


def test_alone_the_decoder_is_not_wrapped() -> None:
    ranks, norm = Ranks(World(), torch.device("cpu")), torch.nn.BatchNorm1d(2)
    assert spread(norm, ranks) is norm


# Rank 1 is stuck at a place that the others know, and lives; or it is stopped.
STUCK = """
import os, signal, sys, threading
from datetime import timedelta
from maskshards.train.distributed import lost_ranks, process_end
from maskshards.train.distributed.ranks import joined

lost_ranks.BEAT_S, lost_ranks.WARN_S = 0.05, 0.5
process_end.GRACE_S = 5.0 if os.environ["RANK"] == "0" else 0.2  # rank 0 ends by itself
try:
    with joined(step_timeout=timedelta(seconds=600)) as ranks:
        ranks.any(0)
        ranks.heartbeat.patience_s = 3.0  # from here on; who only begins is given time
        if ranks.is_first:
            ranks.heartbeat._watch.silence_s = 3.0
        ranks.at(7, "waiting for data")
        if not ranks.is_first and sys.argv[1] == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if not ranks.is_first:
            threading.Event().wait()
        ranks.any(0)
except ConnectionError as error:
    sys.exit(str(error))
"""


class Unfinished:
    """A collective that somebody does not come to, for `waits` waits."""

    def __init__(self, waits: int, fails: bool = False) -> None:
        self.waits, self.fails = waits, fails

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        self.waits -= 1
        if self.waits >= 0:
            raise RuntimeError("Operation timed out!")
        if self.fails:
            raise RuntimeError("Connection closed by peer")
        return True

    def is_completed(self) -> bool:
        return self.waits <= 0


class Heard(Heartbeat):
    """Of a rank alone, without a store."""

    def __init__(self, verdict_after: int) -> None:
        self.left, self.places = verdict_after, []
        self.num_answers, self.patience_s, self.no_store = 0, 5.0, "no answer from rank 0"

    @contextmanager
    def waiting(self, what: str = "") -> Iterator[None]:
        self.places.append(what)
        yield

    def check(self) -> None:
        self.left -= 1
        if not self.left:
            raise LostRankError("no progress of rank 1")

    def absent(self) -> str:
        return "not there: rank 1 (...)"


def waiting_ranks(verdict_after: int = 0) -> Ranks:
    group: Any = "any group"
    return Ranks(World(0, 2), torch.device("cpu"), group, Heard(verdict_after))


def test_a_wait_goes_on_until_all_have_come_or_the_launch_has_to_end() -> None:
    work: Any = Unfinished(5)
    waiting_ranks()._await(work, "the end")
    with pytest.raises(LostRankError, match=r"^no progress of rank 1$"):
        waiting_ranks(verdict_after=3)._await(cast(Any, Unfinished(1000)))
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"):
        waiting_ranks()._await(cast(Any, Unfinished(1, fails=True)))
    with pytest.raises(LostRankError, match=r"^waiting for all ranks at 'the end': not there: rank 1"):
        waiting_ranks()._await(cast(Any, Unfinished(1000)), "the end", timedelta(0))


def test_a_wait_ends_where_the_store_has_long_been_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_ranks, "WARN_S", 3.0)
    alone = Heard(0)
    silent, answering = Patience(alone), Patience(Heard(0))
    for _ in range(4):
        silent.look()
    with pytest.raises(LostRankError, match="no answer from rank 0"):
        silent.look()
    for look in range(40):
        answering.heartbeat.num_answers += look % 2
        answering.look()


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "said"), [("live", "no progress of"), ("stop", "no sign of life from")])
def test_a_wait_of_hosts_ends_when_its_rank_does_not_get_on(fault: str, said: str) -> None:
    with ranks_of(["-c", STUCK, fault]) as members:
        words = members[0].communicate(timeout=900)[1].splitlines()[-1].removeprefix("error: ")
        assert words.startswith(f"{said} rank 1 (last heard in step "), words
        if fault == "live":  # its main thread cannot be woken: its other one ends it
            words = members[1].communicate(timeout=900)[1].splitlines()[-1]
            assert members[1].returncode == 2
            assert words.startswith(f"error: {said} rank 1 (last heard in step 7, waiting for data"), words

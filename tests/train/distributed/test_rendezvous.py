import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from maskshards.train.distributed import rendezvous
from maskshards.train.distributed.rendezvous import OtherLaunchError, meet, part_of

SOON = timedelta(seconds=600)


def meet_all(store: dist.Store, num_ranks: int) -> list[dist.PrefixStore]:
    with ThreadPoolExecutor(num_ranks) as pool:
        rooms = [pool.submit(meet, store, rank, num_ranks, SOON) for rank in range(num_ranks)]
        return [room.result() for room in rooms]


def test_all_ranks_share_a_room() -> None:
    rooms = meet_all(dist.HashStore(), 3)
    rooms[0].set("address", "here")
    assert [room.get("address") for room in rooms] == [b"here"] * 3


def test_the_next_attempt_sees_nothing_of_the_last() -> None:
    store = dist.HashStore()
    for room in meet_all(store, 2):
        room.set("address", "of the dead")
    later = meet_all(store, 2)
    assert not any(room.check(["address"]) for room in later)
    later[1].set("address", "of the living")
    assert later[0].get("address") == b"of the living"


def test_an_old_token_does_not_pass_for_its_rank() -> None:
    store = dist.HashStore()
    store.set("token/1", "left by the dead")
    rooms = meet_all(store, 2)
    rooms[1].set("x", "y")
    assert rooms[0].get("x") == b"y"


def test_ranks_of_another_launch_on_the_same_port_are_told_and_do_not_take_part() -> None:
    """A rank of the other may come before this launch's own does."""
    store, heard = dist.HashStore(), threading.Event()

    def of(job: str, rank: int) -> dist.Store:
        return meet(part_of(store, rank, job, SOON), rank, 2, SOON)

    def late() -> dist.Store:
        heard.wait()
        return of("job 7", 1)

    with ThreadPoolExecutor(2) as pool:
        first, own = pool.submit(of, "job 7", 0), pool.submit(late)
        with pytest.raises(OtherLaunchError, match=r"^job 7$"):
            of("job 9", 1)
        heard.set()
        own.result().set("x", "y")
        assert first.result().get("x") == b"y"


def test_a_launch_that_nobody_named_has_all_of_its_store() -> None:
    store = dist.HashStore()
    assert part_of(store, 0, "", SOON) is store
    with pytest.raises(ConnectionError, match=r"no answer from rank 0; .* whether another run has its port"):
        part_of(store, 1, "job 7", timedelta(0))


def test_who_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskshards.train.distributed.rendezvous.ANSWER_TIMEOUT", timedelta(milliseconds=20))
    with pytest.raises(ConnectionError, match=r"ranks \[1\] of 2"):
        meet(dist.HashStore(), 0, 2, timedelta(milliseconds=50))
    with pytest.raises(ConnectionError, match="no answer from rank 0"):
        meet(dist.HashStore(), 1, 2, timedelta(milliseconds=50))


@pytest.mark.parametrize(("first", "second"), [(2, 3), (3, 2)])
def test_ranks_that_were_told_of_different_worlds_end_at_once_with_the_same_words(
    first: int, second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_TIMEOUT", timedelta(milliseconds=20))
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(meet, store, 0, first, SOON), pool.submit(meet, store, 1, second, SOON)]
        for one in waiting:
            words = rf"rank 1 was started as one of {second} ranks and rank 0 as one of {first}; start every"
            with pytest.raises(ConnectionError, match=words):
                one.result()


class Twin(dist.HashStore):
    """Of a launch in which another process came as rank 1 too, and was taken."""

    def set(self, key: str, value: str) -> None:
        super().set(key, value)
        if key == "token/1":
            super().set(f"answer/{value}", "room")
        elif key == "read/room/1":
            super().set("member/room/1", "another-2")
            super().set("state/room", rendezvous.OPEN)


def test_a_second_process_of_one_rank_is_told() -> None:
    with pytest.raises(ConnectionError, match="another process takes part as rank 1 of 2; was the launch"):
        meet(Twin(), 1, 2, SOON)


class Came(dist.HashStore):
    """Notes when rank 0 has seen that rank 1 is there."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()

    def check(self, keys: list[str]) -> bool:
        found = super().check(keys)
        if found and keys[0].startswith("read/"):
            self.came.set()
        return found


def test_all_who_came_hear_who_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On rank 0 the time is over as soon as rank 1 has come; on rank 1 it never is."""
    store, first = Came(), threading.local()

    def now() -> float:
        return 1e6 if getattr(first, "is_here", False) and store.came.is_set() else 0.0

    def meet_as(rank: int) -> None:
        first.is_here = rank == 0
        meet(store, rank, 3, timedelta(seconds=300))

    monkeypatch.setattr(rendezvous, "time", SimpleNamespace(monotonic=now, sleep=time.sleep))
    monkeypatch.setattr(rendezvous, "ANSWER_TIMEOUT", timedelta(seconds=-1))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(meet_as, rank) for rank in (0, 1)]
        for one in waiting:
            with pytest.raises(ConnectionError, match=r"ranks \[2\] of 3 did not appear"):
                one.result()


class Crowd(dist.HashStore):
    """Of a launch whose other ranks but the first of them have not come yet. Counts what is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def check(self, keys: list[str]) -> bool:
        self.asked += keys
        return super().check(keys)


def test_who_has_not_come_yet_is_not_waited_for_one_by_one() -> None:
    """A thousand ranks that start a moment later than the first would else use up its time."""
    store = Crowd()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(meet, store, 1, 1000, SOON)
        with pytest.raises(ConnectionError, match=r"ranks \[2, 3, .* of 1000 did not appear"):
            meet(store, 0, 1000, timedelta(seconds=0.2))
        with pytest.raises(ConnectionError, match=r"ranks \[2, 3, .* of 1000 did not appear"):
            waiting.result()
    assert not [key for key in store.asked if key.startswith("read/") and not key.endswith("/1")]

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from maskshards.train.distributed.rendezvous import fresh_room

SOON = timedelta(seconds=20)


def meet(store: dist.Store, num_ranks: int) -> list[dist.PrefixStore]:
    with ThreadPoolExecutor(num_ranks) as pool:
        rooms = [pool.submit(fresh_room, store, rank, num_ranks, SOON) for rank in range(num_ranks)]
        return [room.result() for room in rooms]


def test_all_ranks_share_a_room() -> None:
    rooms = meet(dist.HashStore(), 3)
    rooms[0].set("address", "here")
    assert [room.get("address") for room in rooms] == [b"here"] * 3


def test_the_next_attempt_sees_nothing_of_the_last() -> None:
    store = dist.HashStore()
    for room in meet(store, 2):
        room.set("address", "of the dead")
    later = meet(store, 2)
    assert not any(room.check(["address"]) for room in later)
    later[1].set("address", "of the living")
    assert later[0].get("address") == b"of the living"


def test_an_old_token_does_not_pass_for_its_rank() -> None:
    store = dist.HashStore()
    store.set("token/1", "left by the dead")
    rooms = meet(store, 2)
    rooms[1].set("x", "y")
    assert rooms[0].get("x") == b"y"


def test_who_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskshards.train.distributed.rendezvous.ANSWER_TIMEOUT", timedelta(milliseconds=20))
    with pytest.raises(ConnectionError, match=r"ranks \[1\] of 2"):
        fresh_room(dist.HashStore(), 0, 2, timedelta(milliseconds=50))
    with pytest.raises(ConnectionError, match="no answer from rank 0"):
        fresh_room(dist.HashStore(), 1, 2, timedelta(milliseconds=50))

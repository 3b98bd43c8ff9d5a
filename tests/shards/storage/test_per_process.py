"""One value an owner and process, closed by hand, or for dropped owners when the next value is made."""

import gc
import os

from maskshards.shards.storage.per_process import PerProcess


def test_a_value_is_made_once_until_it_is_closed():
    made, closed = iter(range(9)), []
    owned = PerProcess(lambda: next(made), closed.append)
    owned.close()
    assert (owned.get(), owned.get(), closed) == (0, 0, [])
    owned.close()
    assert (owned.get(), closed) == (1, [0])
    owned.close()


def test_another_process_makes_its_own_and_leaves_the_inherited_alone(monkeypatch):
    made, closed = iter(range(9)), []
    owned = PerProcess(lambda: next(made), closed.append)
    pid = os.getpid()
    assert owned.get() == 0
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    assert owned.get() == 1
    owned.close()
    assert closed == [1]
    monkeypatch.undo()
    assert owned.get() == 0
    owned.close()
    assert closed == [1, 0]


def test_the_value_of_a_dropped_owner_is_closed_when_the_next_is_made():
    closed, other = [], PerProcess(int, int)
    owned = PerProcess(lambda: "mine", closed.append)
    owned.get()
    del owned
    gc.collect()
    assert closed == []
    other.get()
    assert closed == ["mine"]
    other.close()

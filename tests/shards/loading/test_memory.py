"""Memory comes back when its last user goes, and never before."""

import numpy as np
import pytest
import torch

from maskshards.shards.loading.memory import Recycled


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_after_its_last_user():
    pool = Recycled(4)
    first = pool.take(1000)
    where = address(first)
    assert address(pool.take(1000)) != where
    del first
    seen = {address(array) for array in [pool.take(1000), pool.take(900)]}
    assert where in seen


@pytest.mark.parametrize(
    "use",
    [
        torch.from_numpy,
        lambda a: torch.from_numpy(a)[5:].view(5, 199),
        lambda a: a[3:],
        lambda a: a.reshape(10, 100),
        memoryview,
        lambda a: torch.from_numpy(a).numpy(),
    ],
)
def test_any_view_keeps_the_memory(use):
    pool = Recycled(4)
    array = pool.take(1000)
    array[:] = 7
    kept = use(array)
    del array
    others = [pool.take(1000) for _ in range(3)]
    for other in others:
        other[:] = 1
    assert (np.asarray(kept) == 7).all()


def test_larger_needs_get_larger_memory():
    pool = Recycled(2)
    pool.take(10)
    assert len(pool.take(5 << 20)) == 5 << 20
    assert pool.take(0).shape == (0,)


def test_what_is_kept_is_bounded():
    pool = Recycled(2)
    arrays = [pool.take(10) for _ in range(5)]
    del arrays
    assert len(pool._home) == 2


def test_the_pool_may_die_first():
    pool = Recycled(2)
    array = pool.take(10)
    del pool
    array[:] = 3
    assert array.sum() == 30

"""Memory that is given out again: never while somebody refers to it, in whatever way."""

import gc
import threading

import numpy as np
import pytest
import torch

from maskshards.shards.loading.buffers import MOST_IDLE, SMALLEST, Buffers

BIG = 4 * SMALLEST


def place(tensor):
    return tensor.untyped_storage().data_ptr()


def test_what_was_dropped_is_given_out_again_and_nothing_else():
    buffers = Buffers()
    one, two = buffers.empty(BIG), buffers.empty(BIG)
    assert place(one) != place(two)
    was = place(one)
    del one
    three = buffers.empty(BIG + 7)
    assert place(three) == was
    assert len(three) == BIG + 7
    assert place(buffers.empty(BIG)) not in (was, place(two))


@pytest.mark.parametrize(
    "view",
    [
        lambda tensor: tensor[5:9],
        lambda tensor: tensor.numpy()[::2],
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: tensor[: BIG // 2].view(torch.int32),
        lambda tensor: torch.from_numpy(tensor.numpy()),
        lambda tensor: torch.utils.dlpack.from_dlpack(tensor),
        lambda tensor: tensor.untyped_storage(),
    ],
)
def test_a_view_of_any_kind_keeps_its_memory(view):
    buffers = Buffers()
    kept = view(buffers.empty(BIG).fill_(7))
    gc.collect()
    for _ in range(3):
        buffers.empty(BIG).fill_(1)
    values = torch.tensor(kept).numpy() if isinstance(kept, torch.UntypedStorage) else np.asarray(kept)
    assert set(values.view(np.uint8).reshape(-1).tolist()) == {7}


def test_small_and_large_batches_do_not_hold_each_others_memory():
    buffers = Buffers()
    large = place(buffers.empty(100 * BIG))
    assert place(buffers.empty(BIG)) != large
    assert place(buffers.empty(90 * BIG)) == large


def test_few_wait_for_use_whatever_a_consumer_kept():
    buffers = Buffers()
    kept = [buffers.empty(BIG) for _ in range(3 * MOST_IDLE)]
    kept.clear()
    buffers.empty(BIG)
    assert len(buffers._idle) <= MOST_IDLE
    assert len(buffers._lent) <= 1


def test_threads_never_get_the_same_memory():
    buffers, wrong = Buffers(), []

    def use(number):
        for _ in range(200):
            mine = buffers.empty(BIG)
            mine[:64] = number
            if set(mine[:64].tolist()) != {number}:
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_outlives_its_buffers_is_whole():
    buffers = Buffers()
    kept = buffers.empty(BIG).fill_(3)
    del buffers
    gc.collect()
    assert kept.unique().tolist() == [3]

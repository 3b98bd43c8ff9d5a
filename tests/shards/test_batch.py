"""A batch moves as its flat tensors, in few copies, and nothing else of it changes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskshards.shards.augment.windows import upload
from maskshards.shards.batch import FLAT, RaggedBatch, run_tensors
from maskshards.shards.loading.loader import Loader


@pytest.fixture
def batch():
    return RaggedBatch(
        pixels=torch.arange(9, dtype=torch.uint8),
        run_ends=torch.tensor([1, 3], dtype=torch.int32),
        run_owners=torch.tensor([0, 1], dtype=torch.uint8),
        run_offsets=(0, 1, 2),
        heights=(1, 1),
        widths=(1, 2),
        labels=((), (7,)),
        keys=("a", "b"),
        positions=(4, 5),
        epochs=(0, 1),
        valid=(True, False),
    )


@pytest.fixture
def read_batch(make_split):
    """A batch as the loader makes it."""
    with Loader(str(make_split("moved", [4]).folder), batch_per_rank=3, threads=1) as loader:
        return next(iter(loader))


def test_moving_touches_the_flat_tensors_only(batch):
    moved = batch.to("meta")
    for field in dataclasses.fields(RaggedBatch):
        if field.name in FLAT:
            assert getattr(moved, field.name).device.type == "meta"
        else:
            assert getattr(moved, field.name) == getattr(batch, field.name)
    assert len(moved) == 2


@pytest.mark.gpu
def test_pinned_batches_cross_without_blocking(batch):
    pinned = batch.pin_memory()
    assert all(getattr(pinned, name).is_pinned() for name in FLAT)
    assert pinned.to("cuda").pixels.cpu().tolist() == batch.pixels.tolist()


class Copies(TorchDispatchMode):
    """Counts the tensors that are sent to a device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default
        return function(*args, **(kwargs or {}))


def test_a_batch_and_its_table_cross_in_three_copies(batch, read_batch):
    with Copies() as copies:
        moved = read_batch.to("meta")
    assert copies.count == 2
    for name in FLAT:
        before, after = getattr(read_batch, name), getattr(moved, name)
        assert (after.device.type, after.shape, after.dtype) == ("meta", before.shape, before.dtype)
    with Copies() as copies:
        upload([np.zeros((2, 3), np.int32), np.zeros(5, np.float32)], torch.device("meta"))
    assert copies.count == 1
    with Copies() as copies:  # runs that somebody else laid out, in buffers of their own
        batch.to("meta")
    assert copies.count == 3


def test_packed_runs_stay_what_they_are(batch):
    packed = torch.arange(10, dtype=torch.uint8)
    ends, owners = run_tensors(packed)
    assert (ends.tolist(), owners.tolist()) == ([0x03020100, 0x07060504], [8, 9])
    moved = dataclasses.replace(batch, run_ends=ends, run_owners=owners)._moved(torch.clone)
    assert torch.equal(moved.run_ends, ends)
    assert torch.equal(moved.run_owners, owners)
    assert moved.run_ends.data_ptr() != ends.data_ptr()
    apart = batch._moved(torch.clone)
    assert (apart.run_ends.tolist(), apart.run_owners.tolist()) == ([1, 3], [0, 1])


def test_a_batch_cannot_be_changed(batch):
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.keys = ()

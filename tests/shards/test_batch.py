"""A batch moves as three tensors and nothing else of it changes."""

import dataclasses

import pytest
import torch

from shards.batch import FLAT, RaggedBatch


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


def test_a_batch_cannot_be_changed(batch):
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.keys = ()

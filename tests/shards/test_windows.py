"""The host's side of a crop: where windows can begin, the tables, and the one upload."""

import numpy as np
import pytest
import torch

from shards.resize import nearest_sources
from shards.windows import plan_windows, source_tables, upload


def test_windows_reach_both_ends_and_never_beyond():
    below_one = np.nextafter(1.0, 0.0)
    fractions = np.array([[0.0, 0.5, below_one]] * 3)
    plan = plan_windows([(50, 40), (20, 100), (32, 48)], (32, 48), fractions, fractions)
    assert plan.inner == ((32, 40), (20, 48), (32, 48))
    assert plan.tops.tolist() == [[0, 9, 18], [0, 0, 0], [0, 0, 0]]
    assert plan.lefts.tolist() == [[0, 0, 0], [0, 26, 52], [0, 0, 0]]
    assert plan.tops.dtype == np.int32


def test_every_place_is_equally_likely():
    fractions = np.linspace(0, 1, 1900, endpoint=False)[None]
    plan = plan_windows([(50, 50)], (32, 32), fractions, fractions)
    assert np.bincount(plan.tops[0]).tolist() == [100] * 19


def test_source_tables_are_separable_by_image():
    starts, sources = source_tables([10, 4], [5, 8], 11)
    assert starts.tolist() == [0, 5]
    np.testing.assert_array_equal(sources[:5], nearest_sources(10, 5))
    np.testing.assert_array_equal(sources[5:], nearest_sources(4, 8) + 11)
    assert (np.diff(sources) >= 0).all()


def test_upload_returns_what_was_given():
    arrays = [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array([0.5, -2.0], np.float32),
        np.array([-1], np.int32),
        np.arange(12, dtype=np.int32).reshape(3, 4).T,
    ]
    for array, tensor in zip(arrays, upload(arrays, torch.device("cpu")), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype


@pytest.mark.gpu
def test_upload_to_cuda_waits_for_nothing():
    array = np.arange(6, dtype=np.int32)
    upload([array], torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        (tensor,) = upload([array], torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tensor.tolist() == array.tolist()

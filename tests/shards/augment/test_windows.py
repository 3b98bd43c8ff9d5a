"""The host's side of a crop: where windows can begin, the tables, and the one upload."""

import numpy as np
import pytest
import torch

from maskshards.shards.augment.resize import nearest_sources
from maskshards.shards.augment.windows import plan_windows, source_arrays, stretches, upload


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


def test_source_arrays():
    sizes, resized = [10, 4, 7], [5, 8, 7]
    sources, starts, shown, shown_starts = source_arrays(sizes, resized)
    assert starts.tolist() == [0, 5, 13]
    assert shown_starts.tolist() == [0, 12, 18]
    for i, (size, target) in enumerate(zip(sizes, resized, strict=True)):
        own = sources[starts[i] : starts[i] + target]
        np.testing.assert_array_equal(own, nearest_sources(size, target))
        counts = [(own < index).sum() for index in range(size + 2)]
        assert shown[shown_starts[i] :][: size + 2].tolist() == counts


def test_stretches():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert stretches(2, cpu) == [slice(0, 1), slice(1, 2)]
    assert stretches(2, cuda) == [slice(0, 2)]
    idle = np.zeros(3, bool)
    assert stretches(3, cpu, idle) == stretches(3, cuda, idle) == []
    idle[1] = True
    assert stretches(3, cpu, idle) == [slice(1, 2)]
    assert stretches(3, cuda, idle) == [slice(0, 3)]


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

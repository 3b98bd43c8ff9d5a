"""Copies between host and device keep their values; on CUDA they do not wait."""

import numpy as np
import pytest
import torch

from maskshards.train.losses.host_copies import HostCopy, to_device


def test_round_trip_on_the_cpu() -> None:
    values = np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2]
    tensor = to_device(values, torch.device("cpu"))
    assert tensor.tolist() == values.tolist()
    assert (HostCopy(tensor.float()).wait() == values).all()


@pytest.mark.gpu
def test_round_trip_on_cuda_waits_only_when_asked() -> None:
    values = np.arange(1000, dtype=np.float32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        copy = HostCopy(to_device(values, torch.device("cuda")) * 2)
        assert (copy.wait() == values * 2).all()
    finally:
        torch.cuda.set_sync_debug_mode("default")

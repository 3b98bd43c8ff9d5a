"""The door to the channels-last group norm: torch's own where no kernel runs, one layout where one does.

The kernels themselves are tested in kernels/test_group_norm.py.
"""

import pytest
import torch
import torch.nn.functional as F

from maskshards.train.model.ops import group_norm
from maskshards.train.model.ops.group_norm import (
    group_norm_last,
    group_norm_last_backward,
    group_normed,
    lies_last,
)

LAST = torch.channels_last


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_a_gpu_it_is_torchs_own(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    maps = torch.randn(2, 8, 3, 4).to(dtype).to(memory_format=LAST)
    weight, bias = torch.randn(8), torch.randn(8)
    found = group_normed(maps, 4, weight, bias, 1e-5)
    assert found.dtype is dtype
    assert torch.equal(found, F.group_norm(maps, 4, weight.to(dtype), bias.to(dtype), 1e-5))


def test_only_channels_last_maps_take_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_norm, "kernels_fit", lambda maps: True)
    weight = torch.ones(8)
    rows = torch.randn(2, 8, 3, 4)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        last = mode.from_tensor(rows.to(memory_format=LAST)).requires_grad_()
        taken = group_normed(last, 4, weight, weight, 1e-5)
        assert "group_norm_last" in type(taken.grad_fn).__name__
        assert taken.stride() == last.stride()
        left = group_normed(last, 4, weight, weight, 1e-5, fused=False)
        assert "GroupNorm" in type(left.grad_fn).__name__
    assert torch.equal(group_normed(rows, 4, weight, weight, 1e-5), F.group_norm(rows, 4, weight, weight))


def test_a_layout_is_told_from_the_other_only_where_they_differ() -> None:
    maps = torch.randn(2, 3, 4, 5)
    assert lies_last(maps.to(memory_format=LAST))
    assert lies_last(maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
    for other in (
        maps,
        maps[:, :1].to(memory_format=LAST),  # one channel: both
        maps.to(memory_format=LAST)[:, :, 1:],  # a part of another map
        maps[:0].to(memory_format=LAST),
        maps[0].transpose(0, 2),
    ):
        assert not lies_last(other)


def test_channels_that_do_not_divide_into_groups_are_refused() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="8 channels in 3 groups"):
        group_norm_last(torch.zeros(1, 8, 2, 2), torch.ones(8), torch.ones(8), 3, 1e-5)


def test_shapes_for_the_compiler_are_those_of_the_real_ones() -> None:
    maps = torch.randn(2, 8, 6, 4).to(torch.bfloat16).to(memory_format=LAST)
    weight = torch.ones(8)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(maps)
        out, mean, inverse = group_norm_last(fake, weight, weight, 4, 1e-5)
        back, of_weight, of_bias = group_norm_last_backward(fake, fake, weight, mean, inverse)
    assert out.stride() == back.stride() == maps.stride()
    assert out.dtype is back.dtype is torch.bfloat16
    assert mean.shape == inverse.shape == (2, 4)
    assert of_weight.shape == of_bias.shape == (8,)

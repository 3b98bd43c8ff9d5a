"""Norms under autocast: reduced type out, statistics in float32; without autocast torch's own."""

import pytest
import torch
from torch import nn

from maskshards.train.model.ops.autocast_norms import GroupNorm, LayerNorm, autocast_type, to_autocast

PAIRS = [(LayerNorm(64), nn.LayerNorm(64), (5, 64)), (GroupNorm(32, 64), nn.GroupNorm(32, 64), (2, 64, 6, 7))]


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
def test_without_autocast_they_are_torchs(ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...]) -> None:
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("ours", "theirs", "shape"), PAIRS)
def test_under_autocast_they_round_once_and_add_up_in_float32(
    ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...]
) -> None:
    theirs.load_state_dict(ours.state_dict())
    x = (torch.randn(shape) + 20).to(torch.bfloat16)  # a mean that sums in bfloat16 would spoil
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(x)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), theirs(x.float()), rtol=2**-7, atol=2**-7)


def test_double_precision_is_never_lowered() -> None:
    x = torch.randn(3, 64, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast_type(x) is None
        assert to_autocast(x) is x
        assert to_autocast(x.float()).dtype is torch.bfloat16
    assert to_autocast(x.float()).dtype is torch.float32

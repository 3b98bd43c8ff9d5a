"""The depthwise convolution over tokens: the library's, unless the stencil is wanted and can run.

The stencil itself is tested in kernels/test_depthwise.py.
"""

import pytest
import torch
import torch.nn.functional as F

from maskshards.train.model.ops import depthwise as module
from maskshards.train.model.ops.deformable_fused import level_table
from maskshards.train.model.ops.depthwise import depthwise, token_stencil, token_stencil_backward

SHAPES = ((4, 3), (2, 2), (1, 1))


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, 17, 6).to(dtype), torch.randn(6, 1, 3, 3).to(dtype), torch.randn(6).to(dtype)


@pytest.mark.parametrize("stencil", [False, True])
def test_without_a_gpu_each_level_is_a_map_of_its_own(stencil: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tokens, weight, bias = inputs(torch.float64)
    found = depthwise(tokens, SHAPES, weight, bias, stencil=stencil)
    for (height, width), first in zip(SHAPES, (0, 12, 16), strict=True):
        level = tokens[:, first : first + height * width].mT.reshape(2, 6, height, width)
        expected = F.conv2d(level, weight, bias, padding=1, groups=6).flatten(2).mT
        torch.testing.assert_close(found[:, first : first + height * width], expected)


def test_the_library_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "kernels_fit", lambda tokens: True)
    tokens, weight, bias = inputs()
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaf = mode.from_tensor(tokens).requires_grad_()
        assert "Cat" in type(depthwise(leaf, SHAPES, weight, bias).grad_fn).__name__
        taken = depthwise(leaf, SHAPES, weight, bias, stencil=True)
    assert "token_stencil" in type(taken.grad_fn).__name__


def test_levels_that_do_not_add_up_are_refused() -> None:
    tokens, weight, bias = inputs()
    with pytest.raises(ValueError, match="levels of 13 places, expected 17"):
        depthwise(tokens, ((4, 3), (1, 1)), weight, bias)


def test_shapes_for_the_compiler_are_those_of_the_real_ones() -> None:
    tokens, weight, bias = inputs()
    table = level_table(SHAPES, tokens.device)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(tokens.to(torch.bfloat16))
        out = token_stencil(fake, table, weight, bias)
        of_tokens, of_weight, of_bias = token_stencil_backward(out, fake, table, weight)
    assert out.dtype is of_tokens.dtype is torch.bfloat16
    assert out.stride() == of_tokens.stride() == tokens.stride()
    assert (of_weight.shape, of_bias.shape) == (weight.shape, bias.shape)

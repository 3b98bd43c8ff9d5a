"""Where the kernels apply, and the switch of the modules that take them."""

import pytest
import torch
from torch import nn

from maskshards.train.model.heads.pixel_decoder import PixelDecoder
from maskshards.train.model.ops.deformable_attention import DeformableAttention
from maskshards.train.model.ops.fused import kernels_available, kernels_fit, set_fused


def test_cpu_tensors_take_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels_fit(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels_fit(torch.zeros(1)) == kernels_available()
    assert not kernels_fit(torch.zeros(1, dtype=torch.float64))


@pytest.mark.gpu
def test_cuda_values_fit() -> None:
    assert kernels_fit(torch.zeros(1, device="cuda", dtype=torch.bfloat16))


def test_the_switch_reaches_every_module_that_has_it() -> None:
    decoder = PixelDecoder(16, 32, ffn_dim=32)
    with_it = [m for m in decoder.modules() if hasattr(m, "fused")]
    assert {PixelDecoder, DeformableAttention} <= {type(m) for m in with_it}
    for on in (False, True):
        set_fused(decoder, on)
        assert all(m.fused is on for m in with_it)
    assert not any(hasattr(m, "fused") for m in decoder.modules() if type(m) is nn.Linear)

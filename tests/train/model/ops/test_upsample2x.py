"""Twice the size: torch's own values, and a gradient whose every rounding can be accounted for.

The kernel itself is tested in kernels/test_upsample2x.py.
"""

import pytest
import torch
import torch.nn.functional as F

from maskshards.train.model.ops.upsample2x import doubled, doubled_backward, doubled_by_kernel, like_half


def test_without_a_gpu_it_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    maps = torch.randn(2, 3, 4, 5, requires_grad=True)
    found = doubled(maps)
    assert torch.equal(found, F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False))
    assert "Upsample" in type(found.grad_fn).__name__


def test_the_operator_is_taken_where_the_kernel_runs_and_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskshards.train.model.ops.upsample2x.kernels_fit", lambda maps: True)
    maps = torch.randn(1, 2, 3, 4, requires_grad=True)
    ours, torchs = doubled(maps), doubled(maps, fused=False)
    assert torch.equal(ours, torchs)
    assert "Upsample" in type(torchs.grad_fn).__name__
    assert "Upsample" not in type(ours.grad_fn).__name__


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shapes_for_the_compiler_have_the_layout_of_the_real_ones(layout: torch.memory_format) -> None:
    maps = torch.randn(2, 8, 6, 4).to(memory_format=layout)
    out = doubled_by_kernel(maps)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = doubled_by_kernel(mode.from_tensor(maps))
        back = doubled_backward(fake)
    assert (fake.shape, fake.stride()) == (out.shape, out.stride())
    assert (back.shape, back.stride()) == (maps.shape, maps.stride())
    assert like_half(out).stride() == maps.stride()


def test_the_pixel_decoder_doubles_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskshards.train.model.heads import pixel_decoder

    asked: list[tuple[tuple[int, ...], bool]] = []

    def seen(maps: torch.Tensor, *, fused: bool) -> torch.Tensor:
        asked.append((tuple(maps.shape), fused))
        return doubled(maps, fused=fused)

    monkeypatch.setattr(pixel_decoder, "doubled", seen)
    decoder = pixel_decoder.PixelDecoder(16, 32, ffn_dim=32)
    pyramid = tuple(torch.randn(1, 16, side, side) for side in (16, 8, 4, 2))
    decoder(pyramid)
    decoder.fused = False
    decoder(pyramid)
    assert asked == [((1, 32, 8, 8), True), ((1, 32, 8, 8), False)]

"""Products in 8 bits against float64, against torch's own operator, and in a pretrained backbone."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from maskshards.train.model.backbone.architectures import FP8, ModelError
from maskshards.train.model.backbone.fp8 import LARGEST, TYPE, Fp8Linear, _check_device, in_fp8, quantised
from maskshards.train.model.backbone.frozen import FrozenBackbone
from maskshards.train.model.backbone.load import load_backbone


def float8_numbers() -> np.ndarray:
    """All non-negative numbers of e4m3 by its definition: 4 bits of exponent, 3 of mantissa, no infinity."""
    small = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    rest = [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
    return np.array([*small, *rest])


def test_rows_are_rounded_to_the_nearest_number_of_8_bits() -> None:
    rows = torch.randn(7, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 8, 7)[:, None]
    values, scale = quantised(rows)
    assert values.dtype is TYPE
    assert values.float().abs().amax(1).tolist() == [LARGEST] * 7
    numbers = float8_numbers()
    for row, factor, found in zip(rows.double(), scale.double(), values.double(), strict=True):
        wanted = np.abs((row / factor).numpy())[:, None]
        nearest = np.abs(numbers - wanted).min(1)
        assert np.allclose(np.abs(np.abs(found.numpy()) - wanted[:, 0]), nearest, atol=1e-5)


def test_rows_of_zeros_stay_and_what_is_no_number_stays_none() -> None:
    rows = torch.zeros(2, 16)
    rows[1, 3] = torch.nan
    values, scale = quantised(rows)
    assert (values.float() * scale)[0].abs().sum() == 0
    assert (values.float() * scale)[1].isnan().any()


def test_a_layer_equals_torchs_own_product_of_8_bits_and_a_loop() -> None:
    torch.manual_seed(1)
    linear, x = nn.Linear(64, 32), torch.randn(3, 5, 64)
    ours = Fp8Linear(linear)(x)
    values, scale = quantised(x.reshape(-1, 64))
    weight, of_weight = quantised(linear.weight.detach())
    theirs = torch._scaled_mm(
        values, weight.t(), scale_a=scale, scale_b=of_weight.t().contiguous(), out_dtype=torch.bfloat16
    )
    theirs = theirs.float() + linear.bias
    assert torch.allclose(ours.flatten(0, 1), theirs, rtol=2e-2, atol=2e-2)
    exact = (values.double() * scale.double()) @ (
        weight.double() * of_weight.double()
    ).T + linear.bias.double()
    assert torch.allclose(ours.flatten(0, 1).double(), exact, atol=1e-5)
    relative = (ours - linear(x)).norm() / linear(x).norm()
    assert 0.005 < relative < 0.06
    with torch.autocast("cpu", torch.bfloat16):
        assert Fp8Linear(linear)(x).dtype is torch.bfloat16


def test_all_products_of_the_blocks_and_nothing_else_are_taken_in_8_bits() -> None:
    plain = load_backbone("dinov3_tiny16", "random", dtype=torch.bfloat16)
    backbone = load_backbone("dinov3_tiny16", "random", dtype=torch.bfloat16, precision=FP8)
    kinds = [type(m) for m in backbone.vit.modules()]
    assert kinds.count(Fp8Linear) == sum(isinstance(m, nn.Linear) for m in plain.vit.modules()) == 24
    assert backbone.digest == plain.digest
    assert not any(p.requires_grad for p in backbone.parameters())
    for ours, theirs in zip(maps_of(backbone), maps_of(plain), strict=True):
        assert 0 < relative(ours, theirs) < 0.1


def maps_of(backbone: FrozenBackbone, images: Tensor | None = None) -> tuple[Tensor, ...]:
    if images is None:
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    last = backbone.num_blocks - 1
    return backbone(images, (last // 2, last))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def test_a_chip_without_the_units_and_odd_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="0 is 24x64, and both must divide by 16"):
        in_fp8(nn.Sequential(nn.Linear(64, 24)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    with pytest.raises(ModelError, match=r"capability 8\.9 or later .* NVIDIA A100 has 8\.0"):
        _check_device(torch.device("cuda"))


def test_features_of_a_pretrained_backbone_differ_by_some_per_cent() -> None:
    """The figures of docs/models.md, on two real images."""
    models, data = os.environ.get("MASKSHARDS_TEST_MODELS"), os.environ.get("MASKSHARDS_TEST_DATA")
    if not models or not data:
        pytest.skip("MASKSHARDS_TEST_MODELS and MASKSHARDS_TEST_DATA name no folders")
    files = sorted(Path(data, "ade20k").rglob("*.jpg"))[:2]
    pixels = [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    folder = str(Path(models) / "dinov2_vits14")
    exact = maps_of(load_backbone("dinov2_vits14", folder), images)
    ours = maps_of(load_backbone("dinov2_vits14", folder, dtype=torch.bfloat16, precision=FP8), images)
    for one, other in zip(ours, exact, strict=True):
        assert 0.01 < relative(one, other) < 0.09
        assert float(torch.cosine_similarity(one.float(), other, dim=1).mean()) > 0.995


@pytest.mark.gpu
def test_the_gpus_product_equals_the_emulated_one() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no units for 8 bits")
    here = load_backbone("dinov3_tiny16", "random", dtype=torch.bfloat16, precision=FP8)
    there = load_backbone("dinov3_tiny16", "random", dtype=torch.bfloat16, precision=FP8, device="cuda")
    images = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(maps_of(there, images.cuda()), maps_of(here, images), strict=True):
        assert relative(ours.cpu(), theirs) < 0.03

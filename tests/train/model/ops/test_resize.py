"""Resizing keeps its tensor's type, under CUDA's rules of autocast as well."""

import pytest
import torch
import torch.nn.functional as F

from maskshards.train.bench.cuda_rules import CudaRules
from maskshards.train.model.ops.resize import resized
from maskshards.train.model.ops.upsample2x import doubled


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_torchs_in_the_tensors_own_type(dtype: torch.dtype) -> None:
    maps = torch.randn(2, 3, 5, 4, dtype=dtype)
    expected = F.interpolate(maps, size=(7, 9), mode="bilinear", align_corners=False)
    with torch.autocast("cpu", torch.bfloat16), CudaRules():
        found = resized(maps, (7, 9))
    assert found.dtype is dtype
    assert torch.equal(found, expected)


def test_a_doubled_map_keeps_its_type_under_cudas_rules() -> None:
    with torch.autocast("cpu", torch.bfloat16), CudaRules():
        assert doubled(torch.randn(1, 2, 3, 3).bfloat16()).dtype is torch.bfloat16

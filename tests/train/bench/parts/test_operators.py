"""Single operations: every figure is there, and its floor counts the bytes that must move."""

from pathlib import Path

import pytest
import torch

from maskshards.train.bench.budgeted import Budget, NotHere
from maskshards.train.bench.parts import operators
from maskshards.train.bench.parts.setting import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), tmp_path, Budget(60), True, copy_gb_per_s=2.0)


def test_layers_are_timed_both_ways_in_both_layouts(setting: Setting) -> None:
    found = operators.layers(setting)
    for name in (
        "depthwise, stride 8, NCHW",
        "group norm, 64, NHWC, kernel",
        "doubled map, 32, NHWC, kernel",
    ):
        assert found[name]["forward_ms"] > 0
        assert found[name]["backward_ms"] > 0
    assert found["topk of the candidates"]["ms"] > 0
    maps = 2 * 32 * 16 * 16 * 2  # two images at stride 4 of 64 px, bfloat16
    assert found["group norm, 32, NCHW, torch"]["floor_ms"] == pytest.approx(2 * maps / 2.0 / 1e6)


def test_coordinates_are_timed_both_ways(setting: Setting) -> None:
    found = operators.coordinates(setting)
    assert list(found) == ["32, by query", "32, by point", "64, by query", "64, by point"]
    assert min(figures["backward_ms"] for figures in found.values()) > 0


def test_costs_are_timed_from_masks_and_from_features(setting: Setting) -> None:
    found = operators.costs(setting)
    assert list(found) == ["32, masks", "32, features", "64, masks", "64, features"]
    assert min(found.values()) > 0


def test_a_layout_is_what_it_is_called(setting: Setting) -> None:
    seen = []

    def look(maps: torch.Tensor) -> torch.Tensor:
        seen.append(maps.stride())
        return maps * 1

    for layout in ("NCHW", "NHWC"):
        operators.both_ways(setting, look, torch.randn(2, 3, 4, 5), layout)
    assert seen[0] == (60, 20, 5, 1)
    assert seen[-1] == (60, 1, 15, 3)


def test_crops_loss_and_attention_are_timed(setting: Setting) -> None:
    assert operators.crops(setting)["device_ms"] > 0
    assert operators.loss(setting)["plain, both ratio"] > 0
    assert operators.attention(setting)["64, fused both"] > 0


def test_jpeg_decoding_and_kernels_need_a_gpu(setting: Setting) -> None:
    for part in (operators.jpeg_decoding, operators.value_gradients):
        with pytest.raises(NotHere, match="CUDA device"):
            part(setting)


def test_sorting_is_for_the_body_only(setting: Setting) -> None:
    deformable = pytest.importorskip("maskshards.train.model.ops.kernels.deformable")
    setting.device = torch.device("cuda")
    with operators.sorting(setting, 64):
        assert deformable.SORTED_FROM_WIDTH == 64
    assert deformable.SORTED_FROM_WIDTH is None

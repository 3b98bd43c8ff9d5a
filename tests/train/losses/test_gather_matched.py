"""Matched maps are picked out of the layers' views, and their gradient put back; no layer is copied."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskshards.train.losses.gather_matched import matched_maps

LAYERS, IMAGES, QUERIES, SIDE = 3, 2, 20, 4
PLACES = [(0, 0, 3), (0, 1, 17), (1, 0, 0), (1, 1, 3), (2, 0, 19), (2, 1, 3)]  # layer, image, query


def layers(dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One tensor of all layers' maps, an image's together, and its views as the query decoder gives them."""
    whole = torch.randn(IMAGES, LAYERS, QUERIES, SIDE, SIDE).to(dtype).requires_grad_()
    return whole, whole.unbind(1)


def rows_of(places: list[tuple[int, int, int]]) -> Tensor:
    return torch.tensor([(*place, 0) for place in places], dtype=torch.int64).reshape(-1, 4).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [PLACES, []], ids=["some", "none"])
def test_maps_and_their_gradient_equal_a_loop(places: list[tuple[int, int, int]], dtype: torch.dtype) -> None:
    whole, views = layers(dtype)
    maps = matched_maps(views, rows_of(places))
    assert maps.shape == (len(places), SIDE, SIDE)
    assert maps.dtype is dtype
    grad = torch.randn_like(maps)
    maps.backward(grad)
    assert whole.grad is not None
    expected = torch.zeros_like(whole)
    for row, (layer, image, query) in enumerate(places):
        assert torch.equal(maps[row], whole[image, layer, query])
        expected[image, layer, query] = grad[row]
    assert torch.equal(whole.grad, expected)


class Largest(TorchDispatchMode):
    """The most numbers that any operation made anew."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.numbers = max(self.numbers, out.numel())
        return out


def test_no_layer_is_copied() -> None:
    _, views = layers(torch.float32)
    with Largest() as largest:
        maps = matched_maps(views, rows_of(PLACES))
    assert largest.numbers == maps.numel() < views[0].numel()
    with Largest() as largest:  # what it stands for
        views[0].flatten(0, 1)
    assert largest.numbers == views[0].numel()

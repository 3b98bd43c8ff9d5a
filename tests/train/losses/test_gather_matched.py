"""Matched maps are multiplied out by themselves, or picked out of the layers' views without copying one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskshards.train.losses.gather_matched import matched_maps, row_slots
from maskshards.train.model.heads.prediction import MaskProduct, Prediction

LAYERS, IMAGES, QUERIES, SIDE = 3, 2, 20, 4
PLACES = [(0, 0, 3), (0, 1, 17), (1, 0, 0), (1, 1, 3), (2, 0, 19), (2, 1, 3)]  # layer, image, query


def layers(dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One tensor of all layers' maps, an image's together, and its views as the query decoder gives them."""
    whole = torch.randn(IMAGES, LAYERS, QUERIES, SIDE, SIDE).to(dtype).requires_grad_()
    return whole, whole.unbind(1)


def maps_of(views: tuple[Tensor, ...], rows: Tensor, product: MaskProduct | None = None) -> Tensor:
    slots, most = row_slots(rows[1].numpy())
    predictions = [Prediction(torch.zeros(IMAGES, QUERIES, 2), view, product) for view in views]
    return matched_maps(predictions, rows, torch.from_numpy(slots), most)


def rows_of(places: list[tuple[int, int, int]]) -> Tensor:
    return torch.tensor([(*place, 0) for place in places], dtype=torch.int64).reshape(-1, 4).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [PLACES, []], ids=["some", "none"])
def test_maps_and_their_gradient_equal_a_loop(places: list[tuple[int, int, int]], dtype: torch.dtype) -> None:
    whole, views = layers(dtype)
    maps = maps_of(views, rows_of(places))
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
        maps = maps_of(views, rows_of(PLACES))
    assert largest.numbers == maps.numel() < views[0].numel()
    with Largest() as largest:  # what it stands for
        views[0].flatten(0, 1)
    assert largest.numbers == views[0].numel()


@pytest.mark.parametrize("places", [PLACES, PLACES[1::2], []], ids=["some", "of one image", "none"])
def test_a_product_of_matched_rows_equals_the_whole_product(places: list[tuple[int, int, int]]) -> None:
    """Values, and the gradients of both factors, in float64."""
    vectors = torch.randn(IMAGES, LAYERS, QUERIES, 5, dtype=torch.float64, requires_grad=True)
    features = torch.randn(IMAGES, 5, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    whole = torch.einsum("blqc,bchw->blqhw", vectors, features)
    rows = rows_of(places)
    ours = maps_of(whole.unbind(1), rows, MaskProduct(vectors, features))
    theirs = maps_of(whole.unbind(1), rows)
    assert ours.shape == theirs.shape
    grad = torch.randn_like(theirs)
    for mine, wanted in zip(
        torch.autograd.grad(ours, (vectors, features), grad),
        torch.autograd.grad(theirs, (vectors, features), grad),
        strict=True,
    ):
        assert torch.allclose(mine, wanted, rtol=1e-12)
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_the_gradient_of_the_whole_product_is_never_taken() -> None:
    vectors = torch.randn(IMAGES, LAYERS, QUERIES, 5, requires_grad=True)
    features = torch.randn(IMAGES, 5, SIDE, SIDE, requires_grad=True)
    whole = torch.einsum("blqc,bchw->blqhw", vectors, features)
    maps = maps_of(whole.unbind(1), rows_of(PLACES), MaskProduct(vectors, features))
    with Largest() as largest:
        maps.sum().backward()
    assert largest.numbers <= max(maps.numel(), vectors.numel()) < whole.numel()
    assert vectors.grad is not None


def test_rows_of_an_image_stand_together_in_their_order() -> None:
    images = np.array([2, 0, 2, 2, 0])
    slots, most = row_slots(images)
    assert most == 3
    assert slots.tolist() == [6, 0, 7, 8, 1]
    assert row_slots(np.zeros(0, dtype=np.int64))[1] == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_the_features_lies_as_they_do(layout: torch.memory_format) -> None:
    vectors = torch.randn(IMAGES, LAYERS, QUERIES, 5, requires_grad=True)
    features = torch.randn(IMAGES, 5, SIDE, SIDE).to(memory_format=layout).requires_grad_()
    masks = torch.zeros(LAYERS, IMAGES, QUERIES, SIDE, SIDE)
    seen = []
    features.register_hook(lambda grad: seen.append(grad.stride()))
    maps_of(masks.unbind(0), rows_of(PLACES), MaskProduct(vectors, features)).sum().backward()
    assert seen == [features.stride()]

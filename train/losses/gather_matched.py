"""The matched mask logits of all layers, with their gradient.

Of the ten layers' masks a twelfth is matched, and only those need a gradient. Where a prediction says what
its masks are the product of, the matched ones are multiplied out once more, by themselves, and the gradient
of the whole product is never taken: at sixteen images of 512 pixels 524 MB that are neither filled with
zeros, stacked, nor read by two products.

Masks without that are read by index from the query decoder's tensor, in which the layers of an image stand
together. Indexing a flattened view would first copy it: ten layers of 52 MB, for the rows of 5 MB that are
wanted. The gradient is one fill with zeros and one scatter, whatever the number of layers.

Letters: L layer, B image, Q query, C width, R matched row, S most rows of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskshards.train.model.heads.prediction import MaskProduct, Prediction


def matched_maps(predictions: Sequence[Prediction], rows: Tensor, slots: Tensor, most: int) -> Tensor:
    """(R, h, w): row by row the mask logits that `rows` (4, R) names by layer, image and query.

    Every layer has equally many rows, those of the first layer first, and no place of a matched row occurs
    twice. `slots` (R,) and `most` are `row_slots` of the rows' images; a slot of B * S is that of a row which
    fills up: what it names is read, and takes a gradient only if its map has one.
    """
    product = predictions[0].product
    if product is None:
        return _MatchedMaps.apply(rows, *(p.mask_logits for p in predictions))
    return _multiplied(product, rows, slots, most)


def row_slots(images: np.ndarray, most: int | None = None) -> tuple[np.ndarray, int]:
    """Where each row stands if every image has room for S rows: places (R,) int64 in B * S, and S.

    images (R,) int64: the image of each row; the rows of an image keep their order. S is `most`, or what the
    fullest image takes, at least 1.
    """
    order = np.argsort(images, kind="stable")
    counts = np.bincount(images)
    rank = np.empty(len(images), dtype=np.int64)
    rank[order] = np.arange(len(images)) - np.repeat(np.cumsum(counts) - counts, counts)
    room = max(1, int(counts.max(initial=0))) if most is None else most
    return images * room + rank, room


def _multiplied(product: MaskProduct, rows: Tensor, slots: Tensor, most: int) -> Tensor:
    """One product an image, of its own rows: padded with rows of zeros to `most`.

    Rows that fill up go to a place behind all images, which no product reads.
    """
    batch, _, _, width = product.vectors.shape
    vectors = product.vectors[rows[1], rows[0], rows[2]]
    padded = vectors.new_zeros(batch * most + 1, width).index_copy(0, slots, vectors)
    maps = matched_product(padded[:-1].view(batch, most, width), product.features)
    own = slots.clamp(max=batch * most - 1)
    return maps.view(batch * most, *product.features.shape[2:]).index_select(0, own)


def matched_product(vectors: Tensor, features: Tensor) -> Tensor:
    """(B, S, h * w): vectors (B, S, C) times features (B, C, h, w), whose gradient lies as they do."""
    return _Product.apply(vectors, features)


class _Product(torch.autograd.Function):
    """vectors (B, S, C) times features (B, C, h, w): (B, S, h * w).

    The gradient of the features lies as they do, where a matrix product's own has rows, which the convolution
    behind them would turn over.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, features)
        return vectors @ features.flatten(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        vectors, features = ctx.saved_tensors
        of_vectors = grad @ features.flatten(2).mT
        if features.is_contiguous():
            return of_vectors, (vectors.mT @ grad).view_as(features)
        return of_vectors, (grad.mT @ vectors).mT.unflatten(2, features.shape[2:])


class _MatchedMaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = maps[0].shape
        each = rows.shape[1] // len(maps)
        parts = rows.split(each, 1) if each else [rows] * len(maps)
        return torch.cat([layer[part[1], part[2]] for layer, part in zip(maps, parts, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        num_layers = len(ctx.needs_input_grad) - 1
        grads = grad.new_zeros((num_layers, *ctx.shape))
        # Matched rows share no place; rows that fill up may name one of theirs, with a gradient of zero.
        grads.index_put_((rows[0], rows[1], rows[2]), grad, accumulate=True)
        return (None, *grads.unbind(0))

"""The matched mask logits of all layers, read straight from the query decoder's tensors.

The query decoder gives ten views of one tensor in which the layers of an image stand together. Indexing a
flattened view would first copy it: at sixteen images of 512 pixels ten layers of 52 MB, for the rows of 5 MB
that are wanted. The gradient is one fill with zeros and one scatter, whatever the number of layers.

Letters: L layer, B image, Q query, R matched row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def matched_maps(maps: Sequence[Tensor], rows: Tensor) -> Tensor:
    """(R, h, w): row by row the map that `rows` (4, R) names by layer, image and query, of the maps' type.

    maps: L tensors (B, Q, h, w), of any strides. Every layer has equally many rows, those of the first layer
    first, and no place occurs twice.
    """
    return _MatchedMaps.apply(rows, *maps)


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
        grads[rows[0], rows[1], rows[2]] = grad  # no place twice: nothing to add up
        return (None, *grads.unbind(0))

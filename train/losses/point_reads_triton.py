"""What the kernels of the matched loss do at a point: draw it, and read maps, features and labels there.

A point is hashed from its number where it is needed (`point_sampling.random_points`, bit for bit).

Letters: B image, Q query, C width, P point. Maps are contiguous; owner maps are int16.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mixed(words):
    """`points.mix` on uint32: products wrap by themselves."""
    words = words ^ (words >> 16)
    words = words * 0x21F0AAAD
    words = words ^ (words >> 15)
    words = words * 0x735A2D97
    return words ^ (words >> 15)


@triton.jit
def _drawn(number, first_key, second_key):
    """Number `number` of the set with this key, float32 in [0, 1)."""
    words = _mixed(_mixed(number ^ first_key) + second_key)
    return (words >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def points(number, keys):
    """(x, y) of points `number` (uint32) of the set whose two key words stand at `keys` (int64)."""
    first_key, second_key = tl.load(keys).to(tl.uint32), tl.load(keys + 1).to(tl.uint32)
    x = _drawn(2 * number, first_key, second_key)
    return x, _drawn(2 * number + 1, first_key, second_key)


@triton.jit
def shifted(number, keys, offsets):
    """The same moved by the row's offset and wrapped round at 1."""
    x, y = points(number, keys)
    x, y = x + tl.load(offsets), y + tl.load(offsets + 1)
    return x - tl.floor(x), y - tl.floor(y)


@triton.jit
def corner(x, y, height, width, wanted):
    """The place of pixel (x, y) in its map, and whether it exists among the `wanted` ones."""
    exists = wanted & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return tl.where(exists, y, 0.0).to(tl.int32) * width + tl.where(exists, x, 0.0).to(tl.int32), exists


@triton.jit
def logits(maps, x, y, height, width, wanted):
    """Bilinear samples of a map at points (x, y) in 0..1, zero outside: grid_sample's rule."""
    x, y = x * width - 0.5, y * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    right, low = x - left, y - top
    place, exists = corner(left, top, height, width, wanted)
    total = (1 - right) * (1 - low) * tl.load(maps + place, mask=exists, other=0.0).to(tl.float32)
    place, exists = corner(left + 1, top, height, width, wanted)
    total += right * (1 - low) * tl.load(maps + place, mask=exists, other=0.0).to(tl.float32)
    place, exists = corner(left, top + 1, height, width, wanted)
    total += (1 - right) * low * tl.load(maps + place, mask=exists, other=0.0).to(tl.float32)
    place, exists = corner(left + 1, top + 1, height, width, wanted)
    return total + right * low * tl.load(maps + place, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _products(
    vectors, features, query, in_query, x, y, height, width, wanted, channel_stride, place_stride,
    C: tl.constexpr, BLOCK_C: tl.constexpr, WIDENED: tl.constexpr,
):  # fmt: skip
    """(Q, P) float32: vectors (Q, C) times the bilinear samples of features (C, h, w) at points (x, y).

    A sample is rounded to the vectors' type, as matrix units take it, and the product is not. WIDENED gives
    the same by float32: Triton's interpreter cannot multiply 16-bit numbers.
    """
    x, y = x * width - 0.5, y * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    right, low = x - left, y - top
    left_top, has_left_top = corner(left, top, height, width, wanted)
    right_top, has_right_top = corner(left + 1, top, height, width, wanted)
    left_low, has_left_low = corner(left, top + 1, height, width, wanted)
    right_low, has_right_low = corner(left + 1, top + 1, height, width, wanted)
    total = tl.zeros((query.shape[0], x.shape[0]), dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        in_width = channel < C
        vector = tl.load(
            vectors + query[:, None] * C + channel[None, :],
            mask=in_query[:, None] & in_width[None, :],
            other=0.0,
        )
        rows, inside = features + (channel * channel_stride)[:, None], in_width[:, None]
        found = _weighed(rows, left_top * place_stride, (1 - right) * (1 - low), inside, has_left_top)
        found += _weighed(rows, right_top * place_stride, right * (1 - low), inside, has_right_top)
        found += _weighed(rows, left_low * place_stride, (1 - right) * low, inside, has_left_low)
        found += _weighed(rows, right_low * place_stride, right * low, inside, has_right_low)
        found = found.to(vector.dtype)
        if WIDENED:
            vector, found = vector.to(tl.float32), found.to(tl.float32)
        total = tl.dot(vector, found, total, input_precision="ieee")
    return total


@triton.jit
def logit_tile(
    maps, vectors, query, in_query, x, y, height, width, in_set, channel_stride, place_stride,
    C: tl.constexpr, BLOCK_C: tl.constexpr, OF_FEATURES: tl.constexpr, WIDENED: tl.constexpr,
):  # fmt: skip
    """(Q, P): `logits` of maps (Q, h, w), or the same from `_products`."""
    if OF_FEATURES:
        logit = _products(
            vectors, maps, query, in_query, x, y, height, width, in_set, channel_stride, place_stride,
            C, BLOCK_C, WIDENED,
        )  # fmt: skip
    else:
        planes, wanted = query.to(tl.int64) * height * width, in_query[:, None] & in_set[None, :]
        logit = logits(maps + planes[:, None], x[None, :], y[None, :], height, width, wanted)
    return logit


@triton.jit
def _weighed(rows, places, share, inside, exists):
    """(C, P) float32: each point's neighbour in all channels, times its bilinear share."""
    found = tl.load(rows + places[None, :], mask=inside & exists[None, :], other=0.0)
    return share[None, :] * found.to(tl.float32)


@triton.jit
def _label(labels, x, y, height, width, wanted):
    """The label at pixel (x, y), -1 outside the map."""
    place, exists = corner(x, y, height, width, wanted)
    return tl.where(exists, tl.load(labels + place, mask=exists, other=0).to(tl.int32), -1)


@triton.jit
def share_of(labels, x, y, height, width, label, wanted):
    """Bilinear weight of the four neighbours of each point that bear `label`."""
    x, y = x * width - 0.5, y * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    right, low = x - left, y - top
    upper = tl.where(_label(labels, left, top, height, width, wanted) == label, 1 - right, 0.0)
    upper += tl.where(_label(labels, left + 1, top, height, width, wanted) == label, right, 0.0)
    lower = tl.where(_label(labels, left, top + 1, height, width, wanted) == label, 1 - right, 0.0)
    lower += tl.where(_label(labels, left + 1, top + 1, height, width, wanted) == label, right, 0.0)
    return upper * (1 - low) + lower * low


@triton.jit
def counts(labels, x, y, height, width, in_set, VOID: tl.constexpr, IGNORE_VOID: tl.constexpr):
    """How much each point counts: 1 in the set, less what lies on void where that is ignored."""
    weight = tl.where(in_set, 1.0, 0.0)
    if IGNORE_VOID:
        weight -= share_of(labels, x, y, height, width, VOID, in_set)
    return weight


@triton.jit
def softplus(logit):
    return tl.maximum(logit, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(logit)))

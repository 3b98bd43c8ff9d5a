"""Where the loss looks: random points as a pure function of (seed, position, layer, purpose, class).

Each number is a hash of its key and its index (the counter-based idea of Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3"), so it can be computed anywhere, in any order, on any device, with
the same bits. A point set therefore depends neither on the number of ranks nor on what else is in the
batch.

All rows (matched masks) of one image and layer share one drawn set, each shifted by an offset of its
own and wrapped round (Cranley and Patterson 1976): within a row the points are as independent and
uniform as fresh ones, and a step hashes ten times fewer numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskshards.train.model.ops.bilinear import neighbours

Words = TypeVar("Words", Tensor, np.ndarray)

LOW_32 = 0xFFFFFFFF
UNIT_BITS = 24  # a float32 holds every multiple of 2**-24 in [0, 1) exactly
MIXING = ((16, 0x21F0AAAD), (15, 0x735A2D97))  # of `mix`: shift, then factor, below 2**31
LAST_SHIFT = 15
MATCH, ROWS = 1, 2  # purposes: points of the matching costs, points of the mask losses


def mix(words: Words) -> Words:
    """A bijection of 32-bit words held in int64, good enough that neighbouring inputs look unrelated.

    Multiply-xorshift with two constants found by Christopher Wellons' hash search
    (github.com/skeeto/hash-prospector). Both are below 2**31, so no product leaves int64.
    """
    for shift, factor in MIXING:
        words = words ^ (words >> shift)
        words = (words * factor) & LOW_32
    return words ^ (words >> LAST_SHIFT)


def absorb(state: Words, word: Words) -> Words:
    """A new 32-bit state that depends on all of `state` and the 32-bit `word`."""
    return mix((mix(state) + word) & LOW_32)


def point_keys(seed: int, positions: Sequence[int], num_layers: int, purpose: int) -> np.ndarray:
    """(L, B, 2) int64: two 32-bit key words for each layer and each sample's position."""
    shape = (num_layers, len(positions))
    place = np.broadcast_to(np.asarray(positions, dtype=np.int64), shape)
    layer = np.broadcast_to(np.arange(num_layers)[:, None], shape)
    fixed = [np.full(shape, word, dtype=np.int64) for word in (seed & LOW_32, (seed >> 32) & LOW_32, purpose)]
    halves = []
    for start in (0x9E3779B9, 0x243F6A88):  # two unrelated chains make one 64-bit key
        state = np.full(shape, start, dtype=np.int64)
        for word in (*fixed, place & LOW_32, place >> 32, layer):
            state = absorb(state, word)
        halves.append(state)
    return np.stack(halves, axis=-1)


def random_points(keys: Tensor, count: int) -> Tensor:
    """(..., count, 2) float32 in [0, 1): `count` points for each key (..., 2)."""
    if keys.device.type == "cpu":
        return _points_of_words(keys.numpy(), count)
    index = torch.arange(2 * count, device=keys.device)
    return _to_unit(mix((mix(index ^ keys[..., :1]) + keys[..., 1:]) & LOW_32)).unflatten(-1, (count, 2))


def _points_of_words(keys: np.ndarray, count: int) -> Tensor:
    """`random_points` in 32-bit words, which wrap by themselves in NumPy: same bits in a seventh the time."""
    words = np.arange(2 * count, dtype=np.uint32) ^ keys[..., :1].astype(np.uint32)
    spare = np.empty_like(words)
    _mix_in_place(words, spare)
    words += keys[..., 1:].astype(np.uint32)
    _mix_in_place(words, spare)
    words >>= np.uint32(32 - UNIT_BITS)
    return torch.from_numpy(words.view(np.int32)).float().mul_(2.0**-UNIT_BITS).unflatten(-1, (count, 2))


def _mix_in_place(words: np.ndarray, spare: np.ndarray) -> None:
    """`mix` of uint32 words; `spare` is as large and is overwritten."""
    for shift, factor in MIXING:
        np.right_shift(words, np.uint32(shift), out=spare)
        words ^= spare
        words *= np.uint32(factor)
    words ^= np.right_shift(words, np.uint32(LAST_SHIFT), out=spare)


def row_offsets(keys: Tensor, class_ids: Tensor) -> Tensor:
    """(R, 2) float32 in [0, 1): the shift of each row, from its key (R, 2) and its class (R,)."""
    return _to_unit(torch.stack((absorb(keys[:, 0], class_ids), absorb(keys[:, 1], class_ids)), -1))


def shifted(points: Tensor, offsets: Tensor) -> Tensor:
    """Points (R, P, 2) moved by their row's offset (R, 2) and wrapped round at 1."""
    return (points + offsets[:, None]).frac_()


def _to_unit(words: Tensor) -> Tensor:
    """float32 in [0, 1), exact, from the upper bits of 32-bit words."""
    return (words >> (32 - UNIT_BITS)).to(torch.float32) * 2.0**-UNIT_BITS


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples (N, C, P) of maps (N, C, h, w) at points (N, P, 2), (x, y) in 0..1; zero outside."""
    grid = (2.0 * points).sub_(1.0).unsqueeze(1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(2)


def sample_products(vectors: Tensor, features: Tensor, points: Tensor) -> Iterator[Tensor]:
    """Layer by layer samples (B, Q, P) of products that are never made, in the vectors' type.

    They are `sample_maps` of the maps vectors (B, L, Q, C) times features (B, C, h, w), at points (L, B, P,
    2).

    Sampling and the product with a query commute. One image's samples of one layer are held at a time, with
    the features in float32; places are read as rows of C numbers, for which grid_sample has no kernel.
    """
    vectors, exact = vectors.detach(), torch.promote_types(features.dtype, torch.float32)
    rows = features.detach().to(exact).permute(0, 2, 3, 1).flatten(1, 2).contiguous()
    for layer, drawn in enumerate(points):
        places, shares = corners(drawn.to(exact), features.shape[2], features.shape[3])
        logits = vectors.new_empty(len(rows), vectors.shape[2], drawn.shape[1])
        for image, own in enumerate(rows):
            found = F.embedding_bag(places[image], own, per_sample_weights=shares[image], mode="sum")
            torch.mm(vectors[image, layer], found.to(vectors.dtype).T, out=logits[image])
        yield logits


def corners(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Places (N, P, 4) int32 of the four pixels around points (N, P, 2), and their bilinear shares.

    Shares (N, P, 4) are of the points' type, 0 for pixels outside.
    """
    along_x = neighbours((points[..., 0] * width - 0.5).unsqueeze(-1), width - 1, dim=-1)
    along_y = neighbours((points[..., 1] * height - 0.5).unsqueeze(-1), height - 1, dim=-1)
    places = along_y.place[..., :, None] * width + along_x.place[..., None, :]
    return places.flatten(-2), (along_y.share[..., :, None] * along_x.share[..., None, :]).flatten(-2)


def nearest_zero(logits: Tensor, points: Tensor, count: int) -> Tensor:
    """(N, count, 2): the candidates (N, P, 2) of smallest |logits| (N, P), in no set order.

    That is where a mask is least certain (PointRend, Kirillov et al. 2020, arXiv 1912.08193).
    """
    chosen = torch.topk(logits.abs(), count, dim=1, largest=False, sorted=False).indices
    return points.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2))

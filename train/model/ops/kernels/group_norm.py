"""Group norm over channels-last maps, by tiles of places times whole groups.

Forward: a chunk of places becomes one mean and one sum of squared deviations a group; these are combined
(Chan et al. 1979) into the image's; then every number is scaled. Backward: a chunk becomes two sums a
channel, from which all three gradients follow; then every number is written. So a map is read twice and
written once forward; backward, gradient and map are read twice and one is written.

Letters: B image, P place, C channel, G group, D channels of a group, N chunk.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS_PER_TILE = 4096  # 32 a thread
CHANNELS_PER_TILE = 256  # 512 bytes in a row of 16-bit numbers, if the map has so many
MAX_TILES = 8  # of one chunk: what a program adds up before it writes
ENOUGH_PROGRAMS = 2048  # fewer, and chunks are made smaller
CHUNKS_AT_ONCE = 128
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def forward(
    maps: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed maps (B, C, h, w), mean (B, G) and 1 / deviation (B, G) float32; maps are channels-last."""
    batch, channels, height, width = maps.shape
    places, sizes = height * width, block_sizes(channels // groups, groups)
    tiles, chunks, blocks = cut(batch, places, groups, sizes)
    means, spreads = maps.new_empty((2, batch, groups, chunks), dtype=torch.float32)
    mean, inverse = (maps.new_empty((batch, groups), dtype=torch.float32) for _ in range(2))
    out = torch.empty_like(maps, memory_format=torch.channels_last)
    shape = {"G": groups, "D": channels // groups, **sizes}
    _moments[(batch * chunks * blocks,)](maps, means, spreads, places, tiles, chunks, **shape, **OPTIONS)
    _combine[(batch * groups,)](
        means, spreads, mean, inverse, places, tiles * sizes["BLOCK_P"], chunks, eps,
        D=channels // groups, BLOCK_N=CHUNKS_AT_ONCE, **OPTIONS,
    )  # fmt: skip
    grid = (batch * triton.cdiv(places, sizes["BLOCK_P"]) * blocks,)
    _scale[grid](maps, weight, bias, mean, inverse, out, places, **shape, **OPTIONS)
    return out, mean, inverse


def backward(
    grad: Tensor, maps: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of maps, weight and bias; grad and maps are channels-last, mean and inverse of `forward`."""
    (batch, channels, height, width), groups = maps.shape, mean.shape[1]
    places, sizes = height * width, block_sizes(channels // groups, groups)
    tiles, chunks, blocks = cut(batch, places, groups, sizes)
    parts = maps.new_empty((2, batch, chunks, channels), dtype=torch.float32)
    out = torch.empty_like(maps, memory_format=torch.channels_last)
    shape = {"G": groups, "D": channels // groups, **sizes}
    _sums[(batch * chunks * blocks,)](
        grad, maps, mean, inverse, parts[0], parts[1], places, tiles, chunks, **shape, **OPTIONS
    )
    sums = parts.sum(2)  # (2, B, C): of grad, and of grad times the normed map
    of_bias, of_weight = (part.sum(0).to(weight.dtype) for part in sums)
    # What every number of a group gives back: the mean of weight times grad, and that along the normed map.
    shared = (sums * weight.float()).view(2, batch, groups, -1).sum(3) / (places * channels // groups)
    grid = (batch * triton.cdiv(places, sizes["BLOCK_P"]) * blocks,)
    _input_gradient[grid](
        grad, maps, weight, mean, inverse, shared[0], shared[1], out, places, **shape, **OPTIONS
    )
    return out, of_weight, of_bias


def block_sizes(width: int, groups: int) -> dict[str, int]:
    """Places, groups and channels of a group in one tile, all powers of two; a group fits."""
    block_d = triton.next_power_of_2(width)
    block_g = max(1, min(triton.next_power_of_2(groups), CHANNELS_PER_TILE // block_d))
    block_p = max(1, NUMBERS_PER_TILE // (block_g * block_d))
    return {"BLOCK_P": block_p, "BLOCK_G": block_g, "BLOCK_D": block_d}


def cut(batch: int, places: int, groups: int, sizes: dict[str, int]) -> tuple[int, int, int]:
    """Tiles of a chunk, chunks of an image, and blocks of groups: fewer tiles where programs would be few."""
    blocks = triton.cdiv(groups, sizes["BLOCK_G"])
    in_image = triton.cdiv(places, sizes["BLOCK_P"])
    tiles = max(1, min(MAX_TILES, batch * in_image * blocks // ENOUGH_PROGRAMS))
    return tiles, triton.cdiv(in_image, tiles), blocks


@triton.jit
def _place(chunks, G: tl.constexpr, D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):
    """This program's image and chunk, its groups, their channels (G, D), and which of these there are."""
    blocks = tl.cdiv(G, BLOCK_G)
    group = tl.program_id(0) % blocks * BLOCK_G + tl.arange(0, BLOCK_G)
    chunk = tl.program_id(0) // blocks % chunks
    image = (tl.program_id(0) // blocks // chunks).to(tl.int64)
    width = tl.arange(0, BLOCK_D)
    channel = group[:, None] * D + width[None, :]
    return image, chunk, group, channel, (group[:, None] < G) & (width[None, :] < D)


@triton.jit
def _moments(maps, means, spreads, num_places, tiles, chunks,
             G: tl.constexpr, D: tl.constexpr,
             BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """means and spreads (B, G, N): of each chunk, the mean and the sum of squared deviations from it."""
    image, chunk, group, channel, real = _place(chunks, G, D, BLOCK_G, BLOCK_D)
    mean = tl.zeros((BLOCK_G,), dtype=tl.float32)
    spread = tl.zeros((BLOCK_G,), dtype=tl.float32)
    count = 0.0
    for tile in range(tiles):
        first = (chunk * tiles + tile) * BLOCK_P
        place = first + tl.arange(0, BLOCK_P)
        mask = (place < num_places)[:, None, None] & real[None, :, :]
        row = (image * num_places + place) * (G * D)
        x = tl.load(maps + row[:, None, None] + channel[None, :, :], mask=mask, other=0.0).to(tl.float32)
        here = tl.maximum(tl.minimum(num_places - first, BLOCK_P), 0).to(tl.float32) * D
        own = tl.sum(tl.sum(x, axis=2), axis=0) / tl.maximum(here, 1.0)
        away = tl.where(mask, x - own[None, :, None], 0.0)
        step = own - mean
        share = here / tl.maximum(count + here, 1.0)
        mean += step * share
        spread += tl.sum(tl.sum(away * away, axis=2), axis=0) + step * step * count * share
        count += here
    target = (image * G + group) * chunks + chunk
    tl.store(means + target, mean, mask=group < G)
    tl.store(spreads + target, spread, mask=group < G)


@triton.jit
def _combine(means, spreads, mean, inverse, num_places, chunk_places, chunks, eps,
             D: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """One group of one image: its chunks' moments become its mean and 1 / deviation."""
    row = tl.program_id(0).to(tl.int64)
    number = num_places.to(tl.float32) * D
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for first in range(0, chunks, BLOCK_N):
        chunk = first + tl.arange(0, BLOCK_N)
        part = tl.load(means + row * chunks + chunk, mask=chunk < chunks, other=0.0)
        total += part * tl.maximum(tl.minimum(num_places - chunk * chunk_places, chunk_places), 0) * D
    centre = tl.sum(total, axis=0) / number
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for first in range(0, chunks, BLOCK_N):
        chunk = first + tl.arange(0, BLOCK_N)
        here = tl.maximum(tl.minimum(num_places - chunk * chunk_places, chunk_places), 0) * D
        away = tl.load(means + row * chunks + chunk, mask=chunk < chunks, other=0.0) - centre
        own = tl.load(spreads + row * chunks + chunk, mask=chunk < chunks, other=0.0)
        total += tl.where(chunk < chunks, own + away * away * here, 0.0)
    tl.store(mean + row, centre)
    tl.store(inverse + row, 1.0 / tl.sqrt(tl.sum(total, axis=0) / number + eps))


@triton.jit
def _scale(maps, weight, bias, mean, inverse, out, num_places,
           G: tl.constexpr, D: tl.constexpr,
           BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """out like maps: one tile, normed."""
    image, chunk, group, channel, real = _place(tl.cdiv(num_places, BLOCK_P), G, D, BLOCK_G, BLOCK_D)
    centre = tl.load(mean + image * G + group, mask=group < G, other=0.0)
    factor = tl.load(inverse + image * G + group, mask=group < G, other=0.0)
    gain = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32) * factor[:, None]
    shift = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    place = chunk * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = (place < num_places)[:, None, None] & real[None, :, :]
    offset = ((image * num_places + place) * (G * D))[:, None, None] + channel[None, :, :]
    x = tl.load(maps + offset, mask=mask, other=0.0).to(tl.float32)
    y = (x - centre[None, :, None]) * gain[None, :, :] + shift[None, :, :]
    tl.store(out + offset, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _sums(grad, maps, mean, inverse, of_grad, of_product, num_places, tiles, chunks,
          G: tl.constexpr, D: tl.constexpr,
          BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """of_grad and of_product (B, N, C): each chunk's sums of grad, and of grad times the normed map."""
    image, chunk, group, channel, real = _place(chunks, G, D, BLOCK_G, BLOCK_D)
    centre = tl.load(mean + image * G + group, mask=group < G, other=0.0)
    factor = tl.load(inverse + image * G + group, mask=group < G, other=0.0)
    plain = tl.zeros((BLOCK_P, BLOCK_G, BLOCK_D), dtype=tl.float32)  # added up over places at the end, once
    product = tl.zeros((BLOCK_P, BLOCK_G, BLOCK_D), dtype=tl.float32)
    for tile in range(tiles):
        place = (chunk * tiles + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        mask = (place < num_places)[:, None, None] & real[None, :, :]
        offset = ((image * num_places + place) * (G * D))[:, None, None] + channel[None, :, :]
        x = tl.load(maps + offset, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32)
        plain += dy
        product += dy * (x - centre[None, :, None])
    target = (image * chunks + chunk) * (G * D) + channel
    tl.store(of_grad + target, tl.sum(plain, axis=0), mask=real)
    tl.store(of_product + target, tl.sum(product, axis=0) * factor[:, None], mask=real)


@triton.jit
def _input_gradient(grad, maps, weight, mean, inverse, shared, along, out, num_places,
                    G: tl.constexpr, D: tl.constexpr,
                    BLOCK_P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """out like maps: (weight * grad - shared - normed map * along) / deviation."""
    image, chunk, group, channel, real = _place(tl.cdiv(num_places, BLOCK_P), G, D, BLOCK_G, BLOCK_D)
    centre = tl.load(mean + image * G + group, mask=group < G, other=0.0)
    factor = tl.load(inverse + image * G + group, mask=group < G, other=0.0)
    back = tl.load(shared + image * G + group, mask=group < G, other=0.0)
    slope = tl.load(along + image * G + group, mask=group < G, other=0.0) * factor
    gain = tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    place = chunk * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = (place < num_places)[:, None, None] & real[None, :, :]
    offset = ((image * num_places + place) * (G * D))[:, None, None] + channel[None, :, :]
    x = tl.load(maps + offset, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32)
    dx = dy * gain[None, :, :] - back[None, :, None] - (x - centre[None, :, None]) * slope[None, :, None]
    tl.store(out + offset, (dx * factor[None, :, None]).to(out.dtype.element_ty), mask=mask)

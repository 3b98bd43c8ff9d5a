"""A 3x3 depthwise stencil over tokens: every level of a pyramid in one launch, no map is ever made.

The gradient of the tokens is the same stencil with the taps turned round. Those of taps and bias are added up
over chunks of tokens, in registers, and then over the chunks. No atomics: one input, one set of bits.

Letters: R row, a token of any image; C channel, L level, N chunk.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS_PER_TILE = 128  # 256 bytes in a row of 16-bit numbers, if there are so many
NUMBERS_PER_TILE = 2048
SUMMED_PER_TILE = 1024  # of the gradient of the taps: ten sums of 8 numbers a thread
ENOUGH_PROGRAMS = 2048
NUM_SUMS = 10  # nine taps and the bias
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def forward(tokens: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, S, C) from tokens (B, S, C), table (L, 3), weight (C, 1, 3, 3) and bias (C,); contiguous."""
    return _convolved(tokens, table, taps_of(weight), bias)


def backward(grad: Tensor, tokens: Tensor, table: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens, weight and bias from grad (B, S, C); contiguous."""
    of_tokens = _convolved(grad, table, taps_of(weight).flip(0), None)
    channels, rows = tokens.shape[2], tokens.shape[0] * tokens.shape[1]
    block_c = channel_block(channels)
    block_r = SUMMED_PER_TILE // block_c
    blocks, all_tiles = triton.cdiv(channels, block_c), triton.cdiv(rows, block_r)
    tiles = max(1, all_tiles * blocks // ENOUGH_PROGRAMS)
    chunks = triton.cdiv(all_tiles, tiles)
    parts = tokens.new_zeros((max(1, chunks), NUM_SUMS, channels), dtype=torch.float32)
    if rows:
        _tap_sums[(chunks * blocks,)](
            grad, tokens, table, parts, rows, tokens.shape[1], tiles,
            C=channels, L=table.shape[0], BLOCK_R=block_r, BLOCK_C=block_c, **OPTIONS,
        )  # fmt: skip
    sums = parts.sum(0)
    of_weight = sums[:9].t().reshape(weight.shape)
    return of_tokens, of_weight.to(weight.dtype).contiguous(), sums[9].clone().to(weight.dtype)


def taps_of(weight: Tensor) -> Tensor:
    """(9, C), channels side by side, from weight (C, 1, 3, 3)."""
    return weight.reshape(-1, 9).t().contiguous()


def channel_block(channels: int) -> int:
    return min(CHANNELS_PER_TILE, triton.next_power_of_2(channels))


def _convolved(tokens: Tensor, table: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    out = torch.empty_like(tokens)
    channels, rows = tokens.shape[2], tokens.shape[0] * tokens.shape[1]
    block_c = channel_block(channels)
    block_r = NUMBERS_PER_TILE // block_c
    programs = triton.cdiv(rows, block_r) * triton.cdiv(channels, block_c)
    if programs:
        _stencil[(programs,)](
            tokens, table, taps, taps if bias is None else bias, out, rows, tokens.shape[1],
            C=channels, L=table.shape[0], HAS_BIAS=bias is not None, BLOCK_R=block_r, BLOCK_C=block_c,
            **OPTIONS,
        )  # fmt: skip
    return out


@triton.jit
def _grid_place(table, row, num_places, L: tl.constexpr):
    """Column and line of each row's place in its level, and that level's width and height."""
    place = row % num_places
    height, width, first = place * 0 + 1, place * 0 + 1, place * 0
    for level in tl.static_range(L):
        start = tl.load(table + 3 * level + 2)
        inside = place >= start
        height = tl.where(inside, tl.load(table + 3 * level), height)
        width = tl.where(inside, tl.load(table + 3 * level + 1), width)
        first = tl.where(inside, start, first)
    return (place - first) % width, (place - first) // width, width, height


@triton.jit
def _near(tokens, row, column, line, width, height, real, channel, in_channel,
          down: tl.constexpr, right: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """What stands `down` lines and `right` columns from each row's place, as float32; 0 beyond the level."""
    x, y = column + right, line + down
    inside = real & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    offset = (row + down * width + right).to(tl.int64)[:, None] * C + channel[None, :]
    return tl.load(tokens + offset, mask=inside[:, None] & in_channel[None, :], other=0.0).to(tl.float32)


@triton.jit
def _stencil(tokens, table, taps, bias, out, num_rows, num_places,
             C: tl.constexpr, L: tl.constexpr, HAS_BIAS: tl.constexpr,
             BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """out like tokens (R, C): nine taps (9, C) and bias (C,)."""
    blocks = tl.cdiv(C, BLOCK_C)
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.program_id(0) // blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    in_channel, real = channel < C, row < num_rows
    column, line, width, height = _grid_place(table, row, num_places, L)
    total = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=in_channel, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        factor = tl.load(taps + tap * C + channel, mask=in_channel, other=0.0).to(tl.float32)
        total += factor[None, :] * _near(
            tokens, row, column, line, width, height, real, channel, in_channel, tap // 3 - 1, tap % 3 - 1, C
        )
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=real[:, None] & in_channel[None, :])


@triton.jit
def _tap_sums(grad, tokens, table, parts, num_rows, num_places, tiles,
              C: tl.constexpr, L: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """parts (N, 10, C): each chunk's sums of grad times the token at each of nine places, and of grad."""
    blocks = tl.cdiv(C, BLOCK_C)
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    chunk = tl.program_id(0) // blocks
    in_channel = channel < C
    s0 = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    s1, s2, s3, s4, s5, s6, s7, s8, s9 = s0, s0, s0, s0, s0, s0, s0, s0, s0
    for tile in range(tiles):
        row = (chunk * tiles + tile) * BLOCK_R + tl.arange(0, BLOCK_R)
        real = row < num_rows
        column, line, wide, high = _grid_place(table, row, num_places, L)
        offset = row.to(tl.int64)[:, None] * C + channel[None, :]
        g = tl.load(grad + offset, mask=real[:, None] & in_channel[None, :], other=0.0).to(tl.float32)
        s0 += g * _near(tokens, row, column, line, wide, high, real, channel, in_channel, -1, -1, C)
        s1 += g * _near(tokens, row, column, line, wide, high, real, channel, in_channel, -1, 0, C)
        s2 += g * _near(tokens, row, column, line, wide, high, real, channel, in_channel, -1, 1, C)
        s3 += g * _near(tokens, row, column, line, wide, high, real, channel, in_channel, 0, -1, C)
        s4 += g * _near(tokens, row, column, line, wide, high, real, channel, in_channel, 0, 0, C)
        s5 += g * _near(tokens, row, column, line, wide, high, real, channel, in_channel, 0, 1, C)
        s6 += g * _near(tokens, row, column, line, wide, high, real, channel, in_channel, 1, -1, C)
        s7 += g * _near(tokens, row, column, line, wide, high, real, channel, in_channel, 1, 0, C)
        s8 += g * _near(tokens, row, column, line, wide, high, real, channel, in_channel, 1, 1, C)
        s9 += g
    target = parts + chunk * 10 * C + channel
    tl.store(target, tl.sum(s0, axis=0), mask=in_channel)
    tl.store(target + C, tl.sum(s1, axis=0), mask=in_channel)
    tl.store(target + 2 * C, tl.sum(s2, axis=0), mask=in_channel)
    tl.store(target + 3 * C, tl.sum(s3, axis=0), mask=in_channel)
    tl.store(target + 4 * C, tl.sum(s4, axis=0), mask=in_channel)
    tl.store(target + 5 * C, tl.sum(s5, axis=0), mask=in_channel)
    tl.store(target + 6 * C, tl.sum(s6, axis=0), mask=in_channel)
    tl.store(target + 7 * C, tl.sum(s7, axis=0), mask=in_channel)
    tl.store(target + 8 * C, tl.sum(s8, axis=0), mask=in_channel)
    tl.store(target + 9 * C, tl.sum(s9, axis=0), mask=in_channel)

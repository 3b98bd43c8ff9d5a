"""The value gradient of deformable attention without floating-point atomics: sort, then gather.

Each sampled point gives a share of its query's gradient to up to four places. Added by atomics, that is
4 bytes a channel read and written for every share, into a float32 buffer that is filled with zeros before and
cast down after. Here the shares are sorted by their place (a counting sort on integers: count, add up, fill),
then one program a place reads the gradients of its queries, sums in float32 and writes once, in the values'
type. It pays where a head is wide; the sort costs the same for any width. Within a place the order of the
shares is that in which programs finish, so the last bits differ between runs, as with atomics.

Letters: B image, Q query, M head, L level, P point, D width of a head, S places of all levels.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_POINTS = 512  # points of one program that counts or fills
BLOCK_SHARES = 8  # shares that a place reads at a time
MAX_SHARES = 2**31 - 1  # their numbers are 32-bit
SORT_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
GATHER_OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}


def fits(locations: Tensor) -> bool:
    """Whether the shares of all points can be numbered; locations (B, Q, M, L, P, 2)."""
    return 2 * locations.numel() <= MAX_SHARES


def value_gradient(
    grad: Tensor, value: Tensor, table: Tensor, locations: Tensor, weights: Tensor, points_first: bool = False
) -> Tensor:
    """(B, S, M, D) of value's type from grad (B, Q, M * D), table (L, 3) and points; all contiguous.

    table: heights, widths and first places. locations (B, Q, M, L, P, 2) and weights (B, Q, M, L, P), or with
    `points_first` (B, M, L, P, 2, Q) and (B, M, L, P, Q).
    """
    batch, places, heads, width = value.shape
    if points_first:
        levels, points, queries = weights.shape[2:]
    else:
        queries, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    out = torch.empty_like(value)
    rows, total = batch * heads * places, weights.numel()
    if rows == 0:
        return out
    starts = torch.zeros(rows + 1, dtype=torch.int32, device=value.device)
    sizes = {"M": heads, "L": levels, "P": points, "BLOCK": BLOCK_POINTS, "POINTS_FIRST": points_first}
    grid = (max(1, triton.cdiv(total, BLOCK_POINTS)),)
    counts = starts[1:]  # where they are added up in place, each row's end is the next one's start
    _count[grid](table, locations, counts, total, queries, places, **sizes, **SORT_OPTIONS)
    torch.cumsum(counts, 0, dtype=torch.int32, out=counts)
    cursor = starts[:-1].clone()
    of_query = torch.empty(4 * total, dtype=torch.int32, device=value.device)
    share = torch.empty(4 * total, device=value.device)
    _fill[grid](
        table, locations, weights, cursor, of_query, share, total, queries, places, **sizes, **SORT_OPTIONS
    )
    _gather[(rows,)](
        grad, starts, of_query, share, out, queries, places,
        M=heads, D=width, BLOCK_D=triton.next_power_of_2(width), BLOCK_S=BLOCK_SHARES, **GATHER_OPTIONS,
    )  # fmt: skip
    return out


@triton.jit
def _point(table, locations, total, num_queries, M: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
           BLOCK: tl.constexpr, POINTS_FIRST: tl.constexpr):  # fmt: skip
    """This program's points: number, which exist, query, image, head, upper left neighbour, shares, level.

    Shares are those of the right and the lower neighbour; of the level height, width and first place.
    """
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = number < total
    if POINTS_FIRST:
        query = number % num_queries
        level = number // num_queries // P % L
        of_head = number // num_queries // (P * L)
        at_x = 2 * number - query
        at_y = at_x + num_queries
    else:
        query = number // (P * L * M) % num_queries
        level = number // P % L
        of_head = number // (P * L * M * num_queries) * M + number // (P * L) % M
        at_x = 2 * number
        at_y = at_x + 1
    height = tl.load(table + 3 * level, mask=real, other=1)
    width = tl.load(table + 3 * level + 1, mask=real, other=1)
    first = tl.load(table + 3 * level + 2, mask=real, other=0)
    x = tl.load(locations + at_x, mask=real, other=0.0).to(tl.float32) * width - 0.5
    y = tl.load(locations + at_y, mask=real, other=0.0).to(tl.float32) * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    return number, real, query, of_head, left, top, x - left, y - top, height, width, first


@triton.jit
def _row(real, x, y, height, width, first, of_head, num_places):
    """Whether the pixel (x, y) exists, and its row among the places of all heads and images."""
    exists = real & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = tl.where(exists, y, 0.0).to(tl.int32) * width + tl.where(exists, x, 0.0).to(tl.int32)
    return exists, of_head * num_places + first + place


@triton.jit
def _count(table, locations, counts, total, num_queries, num_places,
           M: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
           BLOCK: tl.constexpr, POINTS_FIRST: tl.constexpr):  # fmt: skip
    """counts (rows,) int32 is added to: how many shares each place will get."""
    _, real, _, of_head, left, top, _, _, height, width, first = _point(
        table, locations, total, num_queries, M, L, P, BLOCK, POINTS_FIRST
    )
    for corner in tl.static_range(4):
        exists, row = _row(
            real, left + corner % 2, top + corner // 2, height, width, first, of_head, num_places
        )
        tl.atomic_add(counts + row, 1, mask=exists, sem="relaxed")


@triton.jit
def _fill(table, locations, weights, cursor, of_query, share, total, num_queries, num_places,
          M: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
          BLOCK: tl.constexpr, POINTS_FIRST: tl.constexpr):  # fmt: skip
    """of_query and share (4 * points,): for each place in a row the queries that read it, and how much."""
    number, real, query, of_head, left, top, right, low, height, width, first = _point(
        table, locations, total, num_queries, M, L, P, BLOCK, POINTS_FIRST
    )
    weight = tl.load(weights + number, mask=real, other=0.0).to(tl.float32)
    for corner in tl.static_range(4):
        exists, row = _row(
            real, left + corner % 2, top + corner // 2, height, width, first, of_head, num_places
        )
        across = right if corner % 2 == 1 else 1 - right
        down = low if corner // 2 == 1 else 1 - low
        slot = tl.atomic_add(cursor + row, 1, mask=exists, sem="relaxed")
        tl.store(of_query + slot, query.to(tl.int32), mask=exists)
        tl.store(share + slot, weight * across * down, mask=exists)


@triton.jit
def _gather(grad, starts, of_query, share, out, num_queries, num_places,
            M: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """out (B, S, M, D): one place of one head of one image, the sum of what its queries give."""
    row = tl.program_id(0).to(tl.int64)
    place, head, image = row % num_places, row // num_places % M, row // num_places // M
    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    channel = tl.arange(0, BLOCK_D)
    in_channel = channel < D
    grads = grad + (image * num_queries * M + head) * D + channel[None, :]
    total = tl.zeros((BLOCK_S, BLOCK_D), dtype=tl.float32)
    for at in range(begin, end, BLOCK_S):
        slot = at + tl.arange(0, BLOCK_S)
        real = slot < end
        query = tl.load(of_query + slot, mask=real, other=0).to(tl.int64)
        part = tl.load(share + slot, mask=real, other=0.0)
        given = tl.load(grads + (query * M * D)[:, None], mask=real[:, None] & in_channel[None, :], other=0.0)
        total += part[:, None] * given.to(tl.float32)
    target = out + ((image * num_places + place) * M + head) * D + channel
    tl.store(target, tl.sum(total, 0).to(out.dtype.element_ty), mask=in_channel)

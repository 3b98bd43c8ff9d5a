"""The points of the matched loss as Triton kernels: drawn, sampled and summed in registers.

Plain PyTorch writes every point, every sampled logit and every intermediate product to memory: at ten
layers and sixteen images some 200 million samples for the costs and 54 million candidates, each passed
over about ten times. Here a point is hashed from its number where it is needed (`point_reads_triton`), so
that only sums leave a kernel, and the candidates' magnitudes. Sums over blocks of points are added up by
their caller, in a set order; the gradient of the maps is gathered by atomics, so its last bits depend on the
order in which programs finish.

Letters: B image, Q query, K label index of an image, R matched row, P point, N number of a point in its
set, S share of the points. Maps are contiguous; owner maps are int16.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from maskshards.train.losses.point_reads_triton import (
    corner,
    counts,
    logit_tile,
    logits,
    points,
    share_of,
    shifted,
    softplus,
)

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
BLOCK_POINTS = 512  # of a row's points in one program


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program of the costs holds at a time.

    Matrix products take no less than 16 of each; more than stands below spills registers.
    """

    queries: int
    points: int
    labels: int
    channels: int  # of the mask features; unused where masks are sampled
    shares: int  # programs, at most, that divide the points of one image among them
    warps: int


OF_MASKS = Tile(queries=16, points=32, labels=32, channels=16, shares=8, warps=4)
# All queries of an image read the same features: one program for all, else they are gathered again and again.
OF_FEATURES = Tile(queries=128, points=16, labels=32, channels=64, shares=16, warps=8)


@triton.jit
def _label_tile(
    labels, column, x, y, height, width, in_set, VOID: tl.constexpr, IGNORE_VOID: tl.constexpr
):  # fmt: skip
    """The masks of labels `column` (K,) at the points, (P, K), and how much each point counts, (P,)."""
    target = share_of(labels, x[:, None], y[:, None], height, width, column[None, :], in_set[:, None])
    return target, counts(labels, x, y, height, width, in_set, VOID, IGNORE_VOID)


@triton.jit(do_not_specialize=["num_labels"])  # it changes with every batch
def cost_sums(
    maps, vectors, owner_map, keys, products, query_sums, label_sums,
    num_points, points_a_share, num_labels, image_stride, vector_stride, channel_stride, place_stride,
    height, width, label_height, label_width,
    Q: tl.constexpr, C: tl.constexpr, VOID: tl.constexpr, IGNORE_VOID: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    OF_FEATURES: tl.constexpr, WIDENED: tl.constexpr,
):  # fmt: skip
    """One layer's sums over one share of the points, program (image, block of queries and labels, share).

    maps (B, Q, h, w), images `image_stride` apart; with OF_FEATURES (B, C, h, w) with two strides more, to be
    multiplied with vectors (B, Q, C), `vector_stride` apart. owner_map (B, H, W), keys (B, 2). Written: sums
    of logit * target and of sigmoid * target, products (S, B, Q, 2, K); of softplus and sigmoid, query_sums
    (S, B, Q, 2); of target and, last, of points that count, label_sums (S, B, K + 1).
    """
    image, share = tl.program_id(0), tl.program_id(2)
    label_blocks = tl.cdiv(num_labels, BLOCK_K)  # at run time: batches differ, and each size would compile
    query_block, label_block = tl.program_id(1) // label_blocks, tl.program_id(1) % label_blocks
    query = query_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    in_query = query < Q
    column = label_block * BLOCK_K + tl.arange(0, BLOCK_K)
    labels = owner_map + image.to(tl.int64) * label_height * label_width
    with_logit, with_sigmoid = (
        tl.zeros((BLOCK_Q, BLOCK_K), tl.float32),
        tl.zeros((BLOCK_Q, BLOCK_K), tl.float32),
    )
    softplus_sum, sigmoid_sum = tl.zeros((BLOCK_Q,), tl.float32), tl.zeros((BLOCK_Q,), tl.float32)
    target_sum, counted = tl.zeros((BLOCK_K,), tl.float32), tl.zeros((BLOCK_P,), tl.float32)
    end = tl.minimum((share + 1) * points_a_share, num_points)
    for start in range(share * points_a_share, end, BLOCK_P):
        number = start + tl.arange(0, BLOCK_P)
        in_set = number < end
        x, y = points(number.to(tl.uint32), keys + 2 * image)
        target, weight = _label_tile(
            labels, column, x, y, label_height, label_width, in_set, VOID, IGNORE_VOID
        )
        logit = logit_tile(
            maps + image.to(tl.int64) * image_stride, vectors + image.to(tl.int64) * vector_stride,
            query, in_query, x, y, height, width, in_set,
            channel_stride, place_stride, C, BLOCK_C, OF_FEATURES, WIDENED,
        )  # fmt: skip
        sigmoid = tl.sigmoid(logit) * weight[None, :]
        with_logit += tl.dot(logit, target, input_precision="ieee")
        with_sigmoid += tl.dot(sigmoid, target, input_precision="ieee")
        softplus_sum += tl.sum(softplus(logit) * weight[None, :], 1)
        sigmoid_sum += tl.sum(sigmoid, 1)
        target_sum += tl.sum(target, 0)
        counted += weight
    row = (share * tl.num_programs(0) + image).to(tl.int64)
    line, in_labels = (row * Q + query) * 2, column < num_labels
    pairs = products + line[:, None] * num_labels + column[None, :]
    tl.store(pairs, with_logit, mask=in_query[:, None] & in_labels[None, :])
    tl.store(pairs + num_labels, with_sigmoid, mask=in_query[:, None] & in_labels[None, :])
    if label_block == 0:
        tl.store(query_sums + line, softplus_sum, mask=in_query)
        tl.store(query_sums + line + 1, sigmoid_sum, mask=in_query)
    if query_block == 0:
        tl.store(label_sums + row * (num_labels + 1) + column, target_sum, mask=in_labels)
    if tl.program_id(1) == 0:
        tl.store(label_sums + row * (num_labels + 1) + num_labels, tl.sum(counted, 0))


@triton.jit
def magnitudes(maps, keys, offsets, out, num_points, height, width, BLOCK_P: tl.constexpr):
    """out (R, N) float32: |logit| of each row's map (R, h, w) at the row's first N points."""
    row = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_set = number < num_points
    x, y = shifted(number.to(tl.uint32), keys + 2 * row, offsets + 2 * row)
    logit = logits(maps + row * height * width, x, y, height, width, in_set)
    tl.store(out + row * num_points + number, tl.abs(logit), mask=in_set)


@triton.jit
def _chosen_points(chosen, keys, offsets, row, num_chosen, num_points, num_candidates, BLOCK_P: tl.constexpr):
    """The row's points of this block: those chosen among the candidates first, then the fresh ones."""
    place = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_set = place < num_points
    kept = tl.load(chosen + row * num_chosen + place, mask=place < num_chosen, other=0)
    number = tl.where(place < num_chosen, kept, num_candidates + place - num_chosen)
    x, y = shifted(number.to(tl.uint32), keys + 2 * row, offsets + 2 * row)
    return x, y, in_set


@triton.jit
def _targets(
    owner_map, images, wanted, row, x, y, height, width, in_set,
    VOID: tl.constexpr, IGNORE_VOID: tl.constexpr,
):  # fmt: skip
    """The row's own mask at the points, and how much each point counts."""
    labels = owner_map + tl.load(images + row) * height * width
    own_label = tl.load(wanted + row).to(tl.int32)
    weight = counts(labels, x, y, height, width, in_set, VOID, IGNORE_VOID)
    return share_of(labels, x, y, height, width, own_label, in_set), weight


@triton.jit
def row_sums(
    maps, owner_map, images, wanted, keys, offsets, chosen, out,
    num_chosen, num_points, num_candidates, height, width, label_height, label_width,
    VOID: tl.constexpr, IGNORE_VOID: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """out (R, blocks, 5): cross entropy, sigmoid * target, sigmoid, target, points that count."""
    row = tl.program_id(0).to(tl.int64)
    x, y, in_set = _chosen_points(chosen, keys, offsets, row, num_chosen, num_points, num_candidates, BLOCK_P)
    target, weight = _targets(
        owner_map, images, wanted, row, x, y, label_height, label_width, in_set, VOID, IGNORE_VOID
    )
    logit = logits(maps + row * height * width, x, y, height, width, in_set)
    sigmoid = tl.sigmoid(logit) * weight
    line = out + (row * tl.num_programs(1) + tl.program_id(1)) * 5
    tl.store(line, tl.sum(softplus(logit) * weight - logit * target, 0))
    tl.store(line + 1, tl.sum(sigmoid * target, 0))
    tl.store(line + 2, tl.sum(sigmoid, 0))
    tl.store(line + 3, tl.sum(target, 0))
    tl.store(line + 4, tl.sum(weight, 0))


@triton.jit
def _scatter(grads, grad, x, y, height, width, in_set):
    """Add `grad` to the four neighbours of each point, by their weights."""
    x, y = x * width - 0.5, y * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    right, low = x - left, y - top
    place, exists = corner(left, top, height, width, in_set)
    tl.atomic_add(grads + place, grad * (1 - right) * (1 - low), mask=exists, sem="relaxed")
    place, exists = corner(left + 1, top, height, width, in_set)
    tl.atomic_add(grads + place, grad * right * (1 - low), mask=exists, sem="relaxed")
    place, exists = corner(left, top + 1, height, width, in_set)
    tl.atomic_add(grads + place, grad * (1 - right) * low, mask=exists, sem="relaxed")
    place, exists = corner(left + 1, top + 1, height, width, in_set)
    tl.atomic_add(grads + place, grad * right * low, mask=exists, sem="relaxed")


@triton.jit
def row_gradients(
    maps, owner_map, images, wanted, keys, offsets, chosen, grad_sums, grad_maps,
    num_chosen, num_points, num_candidates, height, width, label_height, label_width,
    VOID: tl.constexpr, IGNORE_VOID: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """grad_maps (R, h, w) float32 is added to; grad_sums (R, 5) as `row_sums` orders them."""
    row = tl.program_id(0).to(tl.int64)
    x, y, in_set = _chosen_points(chosen, keys, offsets, row, num_chosen, num_points, num_candidates, BLOCK_P)
    target, weight = _targets(
        owner_map, images, wanted, row, x, y, label_height, label_width, in_set, VOID, IGNORE_VOID
    )
    sigmoid = tl.sigmoid(logits(maps + row * height * width, x, y, height, width, in_set))
    of_entropy, of_overlap = tl.load(grad_sums + 5 * row), tl.load(grad_sums + 5 * row + 1)
    of_sigmoid = (of_overlap * target + tl.load(grad_sums + 5 * row + 2)) * weight
    grad = of_entropy * (sigmoid * weight - target) + of_sigmoid * sigmoid * (1 - sigmoid)
    _scatter(grad_maps + row * height * width, grad, x, y, height, width, in_set)

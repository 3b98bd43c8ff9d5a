"""The points of the matched loss as Triton kernels: drawn, sampled and summed in registers.

Plain PyTorch writes every point, every sampled logit and every intermediate product to memory: at ten
layers and sixteen images some 200 million samples for the costs and 54 million candidates, each passed
over about ten times. Here a point is hashed from its number where it is needed (`points.random_points`,
bit for bit), so that only sums leave a kernel, and the candidates' magnitudes. Sums over blocks of
points are added up by their caller, in a set order; the gradient of the maps is gathered by atomics, so
its last bits depend on the order in which programs finish.

Letters: B image, Q query, K label index of an image, R matched row, P point, N number of a point in its
set, S share of the points. Maps are contiguous; owner maps are int16.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
BLOCK_POINTS = 512  # of a row's points in one program


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program of the costs holds at a time. Matrix products take no less than 16 of each; more than
    stands below spills registers.
    """

    queries: int
    points: int
    labels: int
    channels: int  # of the mask features; unused where masks are sampled
    shares: int  # programs, at most, that divide the points of one image among them
    warps: int


OF_MASKS = Tile(queries=16, points=32, labels=32, channels=16, shares=8, warps=4)
# All queries of an image read the same features: one program for all, else they are gathered again and again.
OF_FEATURES = Tile(queries=128, points=32, labels=32, channels=32, shares=16, warps=8)


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
def _points(number, keys):
    """(x, y) of points `number` (uint32) of the set whose two key words stand at `keys` (int64)."""
    first_key, second_key = tl.load(keys).to(tl.uint32), tl.load(keys + 1).to(tl.uint32)
    x = _drawn(2 * number, first_key, second_key)
    return x, _drawn(2 * number + 1, first_key, second_key)


@triton.jit
def _shifted(number, keys, offsets):
    """The same moved by the row's offset and wrapped round at 1."""
    x, y = _points(number, keys)
    x, y = x + tl.load(offsets), y + tl.load(offsets + 1)
    return x - tl.floor(x), y - tl.floor(y)


@triton.jit
def _corner(x, y, height, width, wanted):
    """The place of pixel (x, y) in its map, and whether it exists among the `wanted` ones."""
    exists = wanted & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return tl.where(exists, y, 0.0).to(tl.int32) * width + tl.where(exists, x, 0.0).to(tl.int32), exists


@triton.jit
def _logits(maps, x, y, height, width, wanted):
    """Bilinear samples of a map at points (x, y) in 0..1, zero outside: grid_sample's rule."""
    x, y = x * width - 0.5, y * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    right, low = x - left, y - top
    place, exists = _corner(left, top, height, width, wanted)
    total = (1 - right) * (1 - low) * tl.load(maps + place, mask=exists, other=0.0).to(tl.float32)
    place, exists = _corner(left + 1, top, height, width, wanted)
    total += right * (1 - low) * tl.load(maps + place, mask=exists, other=0.0).to(tl.float32)
    place, exists = _corner(left, top + 1, height, width, wanted)
    total += (1 - right) * low * tl.load(maps + place, mask=exists, other=0.0).to(tl.float32)
    place, exists = _corner(left + 1, top + 1, height, width, wanted)
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
    left_top, has_left_top = _corner(left, top, height, width, wanted)
    right_top, has_right_top = _corner(left + 1, top, height, width, wanted)
    left_low, has_left_low = _corner(left, top + 1, height, width, wanted)
    right_low, has_right_low = _corner(left + 1, top + 1, height, width, wanted)
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
def _weighed(rows, places, share, inside, exists):
    """(C, P) float32: each point's neighbour in all channels, times its bilinear share."""
    found = tl.load(rows + places[None, :], mask=inside & exists[None, :], other=0.0)
    return share[None, :] * found.to(tl.float32)


@triton.jit
def _label(labels, x, y, height, width, wanted):
    """The label at pixel (x, y), -1 outside the map."""
    place, exists = _corner(x, y, height, width, wanted)
    return tl.where(exists, tl.load(labels + place, mask=exists, other=0).to(tl.int32), -1)


@triton.jit
def _share_of(labels, x, y, height, width, label, wanted):
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
def _softplus(logit):
    return tl.maximum(logit, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(logit)))


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
    multiplied with vectors (B, Q, C), `vector_stride` apart. owner_map (B, H, W), keys (B, 2). Written:
    products (S, B, Q, 2, K), the sums of logit * target and of sigmoid * target; query_sums (S, B, Q, 2),
    softplus and sigmoid; label_sums (S, B, K + 1), target and, last, the points that count.
    """
    image, share = tl.program_id(0), tl.program_id(2)
    label_blocks = tl.cdiv(num_labels, BLOCK_K)  # at run time: batches differ, and each size would compile
    query_block, label_block = tl.program_id(1) // label_blocks, tl.program_id(1) % label_blocks
    query = query_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    in_query = query < Q
    column = label_block * BLOCK_K + tl.arange(0, BLOCK_K)
    labels = owner_map + image.to(tl.int64) * label_height * label_width
    own_maps = maps + image.to(tl.int64) * image_stride
    own_vectors = vectors + image.to(tl.int64) * vector_stride
    with_logit = tl.zeros((BLOCK_Q, BLOCK_K), dtype=tl.float32)
    with_sigmoid = tl.zeros((BLOCK_Q, BLOCK_K), dtype=tl.float32)
    softplus_sum = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    sigmoid_sum = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    target_sum = tl.zeros((BLOCK_K,), dtype=tl.float32)
    counted = tl.zeros((BLOCK_P,), dtype=tl.float32)
    end = tl.minimum((share + 1) * points_a_share, num_points)
    for start in range(share * points_a_share, end, BLOCK_P):
        number = start + tl.arange(0, BLOCK_P)
        in_set = number < end
        x, y = _points(number.to(tl.uint32), keys + 2 * image)
        target = _share_of(
            labels, x[:, None], y[:, None], label_height, label_width, column[None, :], in_set[:, None]
        )
        weight = tl.where(in_set, 1.0, 0.0)
        if IGNORE_VOID:
            weight -= _share_of(labels, x, y, label_height, label_width, VOID, in_set)
        if OF_FEATURES:
            logit = _products(
                own_vectors, own_maps, query, in_query, x, y, height, width, in_set,
                channel_stride, place_stride, C, BLOCK_C, WIDENED,
            )  # fmt: skip
        else:
            wanted, planes = in_query[:, None] & in_set[None, :], query.to(tl.int64) * height * width
            logit = _logits(own_maps + planes[:, None], x[None, :], y[None, :], height, width, wanted)
        sigmoid = tl.sigmoid(logit) * weight[None, :]
        with_logit += tl.dot(logit, target, input_precision="ieee")
        with_sigmoid += tl.dot(sigmoid, target, input_precision="ieee")
        softplus_sum += tl.sum(_softplus(logit) * weight[None, :], 1)
        sigmoid_sum += tl.sum(sigmoid, 1)
        target_sum += tl.sum(target, 0)
        counted += weight
    row = (share * tl.num_programs(0) + image).to(tl.int64)
    line = (row * Q + query) * 2
    inside = in_query[:, None] & (column < num_labels)[None, :]
    tl.store(products + line[:, None] * num_labels + column[None, :], with_logit, mask=inside)
    tl.store(products + line[:, None] * num_labels + num_labels + column[None, :], with_sigmoid, mask=inside)
    if label_block == 0:
        tl.store(query_sums + line, softplus_sum, mask=in_query)
        tl.store(query_sums + line + 1, sigmoid_sum, mask=in_query)
    if query_block == 0:
        tl.store(label_sums + row * (num_labels + 1) + column, target_sum, mask=column < num_labels)
    if tl.program_id(1) == 0:
        tl.store(label_sums + row * (num_labels + 1) + num_labels, tl.sum(counted, 0))


@triton.jit
def magnitudes(maps, keys, offsets, out, num_points, height, width, BLOCK_P: tl.constexpr):
    """out (R, N) float32: |logit| of each row's map (R, h, w) at the row's first N points."""
    row = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_set = number < num_points
    x, y = _shifted(number.to(tl.uint32), keys + 2 * row, offsets + 2 * row)
    logit = _logits(maps + row * height * width, x, y, height, width, in_set)
    tl.store(out + row * num_points + number, tl.abs(logit), mask=in_set)


@triton.jit
def _chosen_points(chosen, keys, offsets, row, num_chosen, num_points, num_candidates, BLOCK_P: tl.constexpr):
    """The row's points of this block: those chosen among the candidates first, then the fresh ones."""
    place = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    in_set = place < num_points
    kept = tl.load(chosen + row * num_chosen + place, mask=place < num_chosen, other=0)
    number = tl.where(place < num_chosen, kept, num_candidates + place - num_chosen)
    x, y = _shifted(number.to(tl.uint32), keys + 2 * row, offsets + 2 * row)
    return x, y, in_set


@triton.jit
def _targets(
    owner_map, images, wanted, row, x, y, height, width, in_set,
    VOID: tl.constexpr, IGNORE_VOID: tl.constexpr,
):  # fmt: skip
    """The row's own mask at the points, and how much each point counts."""
    labels = owner_map + tl.load(images + row) * height * width
    own_label = tl.load(wanted + row).to(tl.int32)
    weight = tl.where(in_set, 1.0, 0.0)
    if IGNORE_VOID:
        weight -= _share_of(labels, x, y, height, width, VOID, in_set)
    return _share_of(labels, x, y, height, width, own_label, in_set), weight


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
    logit = _logits(maps + row * height * width, x, y, height, width, in_set)
    sigmoid = tl.sigmoid(logit) * weight
    line = out + (row * tl.num_programs(1) + tl.program_id(1)) * 5
    tl.store(line, tl.sum(_softplus(logit) * weight - logit * target, 0))
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
    place, exists = _corner(left, top, height, width, in_set)
    tl.atomic_add(grads + place, grad * (1 - right) * (1 - low), mask=exists, sem="relaxed")
    place, exists = _corner(left + 1, top, height, width, in_set)
    tl.atomic_add(grads + place, grad * right * (1 - low), mask=exists, sem="relaxed")
    place, exists = _corner(left, top + 1, height, width, in_set)
    tl.atomic_add(grads + place, grad * (1 - right) * low, mask=exists, sem="relaxed")
    place, exists = _corner(left + 1, top + 1, height, width, in_set)
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
    sigmoid = tl.sigmoid(_logits(maps + row * height * width, x, y, height, width, in_set))
    of_entropy, of_overlap = tl.load(grad_sums + 5 * row), tl.load(grad_sums + 5 * row + 1)
    of_sigmoid = (of_overlap * target + tl.load(grad_sums + 5 * row + 2)) * weight
    grad = of_entropy * (sigmoid * weight - target) + of_sigmoid * sigmoid * (1 - sigmoid)
    _scatter(grad_maps + row * height * width, grad, x, y, height, width, in_set)

"""What passes between device and host in the matched loss: costs one way, matched rows the other.

Rows differ in number from batch to batch. Where a step is recorded and replayed every size is fixed, so a
`Room` says how many labels an image and how many rows a layer have; what is not needed is filled up with rows
that weigh nothing.

Letters: L layer, B image, Q query, K label index of an image, R row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskshards.train.losses.gather_matched import row_slots

LABELS_STEP = 8  # rooms are multiples of this many labels an image,
ROWS_STEP = 2  # and of this many rows an image in each layer, so that few rooms serve all batches


@dataclass(frozen=True, slots=True)
class Room:
    """Sizes that a step is recorded for."""

    labels: int  # of an image: columns of the costs
    rows: int  # of a layer, over all images


def room_for(num_labels: Sequence[int], num_queries: int) -> Room:
    """The room of a batch whose images have so many labels: what their crops can need at most, rounded up."""
    labels = _up(max(1, *num_labels), LABELS_STEP)
    rows = sum(min(count, num_queries) for count in num_labels)
    return Room(labels, _up(max(1, rows), ROWS_STEP * len(num_labels)))


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


@dataclass(frozen=True, slots=True)
class Matches:
    """What the host decided."""

    rows: np.ndarray  # (6, R) int64: layer, image, query, label index, slot (`row_slots`), place in (L, B, Q)
    most: int  # rows of one image in all layers, with those that fill up
    numbers: np.ndarray  # (3,) float32: matched rows of one layer, class weights, 1: sums over ranks follow
    num_segments: int  # matched rows of one layer


def matches_of(
    matched: np.ndarray, shape: tuple[int, ...], no_object: float, room: Room | None = None
) -> Matches:
    """The rows `matched` (4, R) of costs of `shape` (L, B, Q, K), sorted by layer, filled up to `room`.

    A row that fills up reads query 0 of image 0; its slot and its place lie behind all others. ValueError if
    there are more rows than room.
    """
    num_layers, num_images, num_queries, _ = shape
    each = matched.shape[1] // num_layers
    most = None if room is None else num_layers * min(num_queries, room.labels)
    slots, most = row_slots(matched[1], most)
    place = np.ravel_multi_index(tuple(matched[:3]), tuple(shape[:3]))
    rows = np.concatenate((matched, slots[None], place[None]))
    if room is not None:
        rows = _filled(rows.reshape(6, num_layers, each), room, num_images * most, math.prod(shape[:3]))
    all_queries = num_images * num_queries
    numbers = [each, each + no_object * (all_queries - each), 1.0]
    return Matches(rows, most, np.array(numbers, dtype=np.float32), each)


def without_matches(shape: tuple[int, ...], room: Room) -> Matches:
    """For costs that are no numbers: only rows that fill up, and normalisers that make the loss NaN."""
    none = matches_of(np.zeros((4, 0), dtype=np.int64), shape, 0.0, room)
    return Matches(none.rows, none.most, np.full(3, np.nan, dtype=np.float32), 0)


def _filled(rows: np.ndarray, room: Room, last_slot: int, last_place: int) -> np.ndarray:
    """(6, L, each) -> (6, L * room.rows)."""
    _, num_layers, each = rows.shape
    if each > room.rows:
        raise ValueError(f"{each} matched rows a layer, but the step was recorded for {room.rows}")
    filled = np.zeros((6, num_layers, room.rows), dtype=np.int64)
    filled[0] = np.arange(num_layers)[:, None]
    filled[4], filled[5] = last_slot, last_place
    filled[:, :, :each] = rows
    return filled.reshape(6, -1)


def packed(costs: Tensor, present: Tensor, flags: Tensor | None) -> Tensor:
    """Everything that the host wants to know, in one flat float32 tensor."""
    parts = [costs.flatten(), present.flatten().float()]
    return torch.cat(parts if flags is None else [*parts, flags.detach().flatten().float()])


def unpacked(values: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs (L, B, Q, K), which labels are present (B, K) bool, and the flags."""
    _, num_images, _, num_labels = shape
    costs, present, flags = np.split(values, [math.prod(shape), math.prod(shape) + num_images * num_labels])
    return costs.reshape(shape), present.reshape(num_images, num_labels) > 0, flags

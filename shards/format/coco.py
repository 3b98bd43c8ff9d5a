"""Labelled runs to and from COCO's run lengths: one mask per class, column-major, the bytes of pycocotools.

COCO keeps, for each mask, alternating counts of pixels outside and inside, walking down the columns. Counts
are written as differences from the count two before (from the fourth on), five bits a character, least
first, bit 5 set where more follow, plus 48. (Format: `maskApi.c` of the COCO API.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from maskshards.shards.errors import RunsError
from maskshards.shards.format.rle import IGNORE, MAX_PIXELS, LabelledRuns, decode_label_map, encode_label_map

LONGEST_NUMBER = 7  # characters: 35 bits, and no count of ours takes more than 28
Int64Array = NDArray[np.int64]


class CocoMask(TypedDict):
    """One mask as pycocotools takes it."""

    size: list[int]  # [height, width]
    counts: bytes  # compressed


def to_coco(runs: LabelledRuns, height: int, width: int) -> list[CocoMask]:
    """One COCO mask per label, in the order of `runs.labels`."""
    flat = decode_label_map(runs, height, width).ravel(order="F")
    bounds = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    starts, ends, classes = bounds[:-1], bounds[1:], flat[bounds[:-1]]
    masks: list[CocoMask] = []
    for label in runs.labels:
        chosen = np.flatnonzero(classes == label)
        edges = np.stack([starts[chosen], ends[chosen]], axis=1).reshape(-1)
        if edges[-1] != flat.size:
            edges = np.append(edges, flat.size)
        masks.append({"size": [height, width], "counts": _to_text(np.diff(edges, prepend=0))})
    return masks


def from_coco(
    masks: Sequence[Mapping[str, object]], labels: Sequence[int], height: int, width: int
) -> LabelledRuns:
    """The labelled runs of COCO masks, `labels[i]` being the class id of `masks[i]`; a class may come often.

    `counts` may be compressed (bytes or str) or a list of ints. RunsError for a mask of another size, for
    counts that do not cover it, and for a pixel in masks of two classes (which it names).
    """
    if len(masks) != len(labels):
        raise RunsError(f"{len(masks)} masks but {len(labels)} class ids")
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RunsError(f"image is {width}x{height} px, expected at least 1 and at most {MAX_PIXELS} pixels")
    flat = np.full(height * width, IGNORE, np.uint16)
    for mask, label in zip(masks, labels, strict=True):
        if not 0 <= label < IGNORE:
            raise RunsError(f"class id {label}, expected 0 to {IGNORE - 1}")
        if mask["size"] != [height, width]:
            raise RunsError(f"mask of class {label} has size {mask['size']}, expected {[height, width]}")
        inside = _inside(_counts_of(mask["counts"]), flat.size, label)
        taken = np.unique(flat[inside])
        others = taken[(taken != IGNORE) & (taken != label)]
        if len(others):
            raise RunsError(
                f"masks of classes {others[0]} and {label} overlap; masks of one image are disjoint"
            )
        flat[inside] = label
    return encode_label_map(np.ascontiguousarray(flat.reshape(width, height).T))


def _inside(counts: Int64Array, num_pixels: int, label: int) -> NDArray[np.bool_]:
    # Each count is capped before the sum, so that hostile ones cannot make it wrap around.
    if (len(counts) and (counts.min() < 0 or counts.max() > num_pixels)) or counts.sum() != num_pixels:
        raise RunsError(f"mask of class {label}: its counts do not add up to the image's {num_pixels} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def _counts_of(counts: object) -> Int64Array:
    if isinstance(counts, str):
        counts = counts.encode("latin-1", errors="replace")
    if isinstance(counts, bytes):
        return _from_text(counts)
    if isinstance(counts, list) and all(type(count) is int and 0 <= count <= MAX_PIXELS for count in counts):
        return np.array(counts, np.int64)
    raise RunsError("counts of a COCO mask are bytes, str or a list of pixel counts")


def _to_text(counts: Int64Array) -> bytes:
    """Compress counts; all numbers advance by one character at a time."""
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    characters = np.zeros((len(counts), LONGEST_NUMBER), np.uint8)
    written = np.zeros(characters.shape, bool)
    going = np.ones(len(counts), bool)
    for place in range(LONGEST_NUMBER):
        five = rest & 31
        rest = rest >> 5
        more = rest != np.where(five & 16, -1, 0)
        characters[:, place] = 48 + five + 32 * more
        written[:, place] = going
        going = going & more
    return characters[written].tobytes()


def _from_text(text: bytes) -> Int64Array:
    """Expand compressed counts."""
    values = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(values):
        return np.empty(0, np.int64)
    if values.min() < 0 or values.max() > 63 or values[-1] & 32:
        raise RunsError("counts of a COCO mask hold a character that does not belong there")
    last = np.flatnonzero((values & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() >= LONGEST_NUMBER:
        raise RunsError("counts of a COCO mask hold a number that no image could need")
    place = np.arange(len(values)) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((values & 31) << (5 * place), first)
    negative = (values[last] & 16) != 0
    numbers[negative] -= np.int64(1) << (5 * (last - first + 1)[negative])
    # Each number from the fourth on is a difference from two before: two interleaved running sums.
    for parity in (1, 2):
        numbers[parity::2] = np.cumsum(numbers[parity::2])
    return numbers

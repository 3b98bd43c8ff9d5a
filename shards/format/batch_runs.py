"""The runs of a whole batch in flat arrays, unpacked and checked in one numpy pass.

An image at a time costs some forty small calls, each with the interpreter lock held, for which reading
threads queue. Here only the zstd frame and the header are handled image by image. What is accepted is exactly
what `rle.unpack_runs` accepts for each; that function also finds and words the fault of a batch that is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from maskshards.shards.errors import RunsError
from maskshards.shards.format.rle import (
    HEADER,
    IGNORE,
    LONGEST_RUN,
    MAGIC,
    MOST_BYTE_LABELS,
    LabelledRuns,
    decompress_runs,
)


@dataclass(frozen=True, slots=True, eq=False)
class BatchRuns:
    """The runs of B images back to back; R runs in all."""

    ends: NDArray[np.int32]  # (R,) exclusive end of each run, counted over all pixels of the batch
    owners: NDArray[np.uint8]  # (R,) 0 = no mask, k = the image's k-th label
    offsets: tuple[int, ...]  # B + 1 places in ends, one stretch an image
    labels: tuple[tuple[int, ...], ...]  # B tuples of ascending class ids


def unpack_batch(
    payloads: Sequence[bytes],
    heights: Sequence[int],
    widths: Sequence[int],
    decompressor: zstandard.ZstdDecompressor,
) -> BatchRuns:
    """The runs of B members KEY.rle.zst whose images are H x W each, at most 254 labels in any of them.

    RunsError, without saying where, if `unpack_runs` would refuse one of them, an image has more labels, or
    all have more than 2^31 - 1 pixels.
    """
    tables, labels, sizes, all_own = [], [], [], True
    for data, height, width in zip(payloads, heights, widths, strict=True):
        payload = decompress_runs(data, height * width, decompressor)
        magic, flags, num_labels, found_height, found_width, num_runs = HEADER.unpack_from(payload)
        end = HEADER.size + 2 * num_labels
        if (
            (magic, flags, found_height, found_width) != (MAGIC, 0, height, width)
            or not 0 <= num_labels <= MOST_BYTE_LABELS
            or num_runs < 1
            or len(payload) != end + 3 * num_runs
        ):
            raise RunsError("a header is not that of the image's runs")
        tables.append(np.frombuffer(payload, np.uint8, offset=end).reshape(3, num_runs))
        labels.append(np.frombuffer(payload, "<u2", num_labels, HEADER.size))
        sizes.append((num_runs, num_labels, height * width))
        # Looking for each byte is quicker than counting all.
        all_own = all_own and all(map(payload[end + 2 * num_runs :].__contains__, range(1, num_labels + 1)))
    if not all_own:
        raise RunsError("a label owns no pixel")
    return _checked(np.concatenate(tables, axis=1), labels, np.array(sizes))


def _checked(
    table: NDArray[np.uint8], labels: list[NDArray[np.uint16]], sizes: NDArray[np.int64]
) -> BatchRuns:
    """(3, R) planes of all runs, and (B, 3) runs, labels and pixels of each image; each label owns a run."""
    num_runs, num_labels, num_pixels = sizes.T
    offsets = np.concatenate([[0], np.cumsum(num_runs)])
    lengths, owners = table[1].astype(np.uint16), table[2]
    lengths <<= 8
    lengths |= table[0]
    # No length passes 16 bits, so a sum that passes 31 is negative where it does.
    ends = np.cumsum(lengths, dtype=np.int32)
    again = owners[1:] == owners[:-1]
    again[offsets[1:-1] - 1] = False  # neighbours of two images
    again &= lengths[:-1] != LONGEST_RUN
    flat = np.concatenate(labels).astype(np.int64)
    steps = np.diff(flat)
    firsts = np.cumsum(num_labels)[:-1]
    steps[firsts[(firsts > 0) & (firsts < len(flat))] - 1] = 1
    if (
        lengths.min() < 1
        or ends.min() < 0
        or not np.array_equal(ends[offsets[1:] - 1], np.cumsum(num_pixels))
        or (np.maximum.reduceat(owners, offsets[:-1]) > num_labels).any()
        or again.any()
        or (steps <= 0).any()
        or flat.max(initial=0) >= IGNORE
    ):
        raise RunsError("the runs of an image are not in canonical form")
    return BatchRuns(ends, owners, tuple(offsets.tolist()), tuple(tuple(own.tolist()) for own in labels))


def join_runs(images: Sequence[LabelledRuns]) -> BatchRuns:
    """Runs that were checked, or made, image by image.

    RunsError where one has more than 254 labels, or all have more than 2^31 - 1 pixels.
    """
    if max(len(runs.labels) for runs in images) > MOST_BYTE_LABELS:
        raise RunsError(f"an image has more than {MOST_BYTE_LABELS} classes")
    offsets = np.cumsum([0, *(len(runs.lengths) for runs in images)])
    ends = np.cumsum(np.concatenate([runs.lengths for runs in images]), dtype=np.int32)
    if ends.min() < 0:
        raise RunsError("a batch has more than 2^31 - 1 pixels; lower batch_per_rank")
    return BatchRuns(
        ends,
        np.concatenate([runs.owners for runs in images]).astype(np.uint8, copy=False),
        tuple(offsets.tolist()),
        tuple(tuple(runs.labels.tolist()) for runs in images),
    )

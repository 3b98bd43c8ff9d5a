"""Labelled runs: all masks of one image as one row-major list of (length, owner), in bytes and in pixels.

Owner 0 is "no mask", owner k is the k-th of the image's ascending class ids. The runs of one owner, with the
gaps between them, are that class's binary mask, so every mask is stored but each boundary only once. The
lists are laid out in byte planes and compressed with zstd: about 3.8 kB for an ADE20K image, half of one list
per class. `maskshards.shards.format.coco` converts to and from COCO's per-mask run lengths.

The canonical form is unique: the runs cover H * W exactly; neighbours have different owners, except that a
run longer than 65,535 is cut at that length; every label has a pixel; owners take one byte up to 254 labels
and two beyond. `unpack_runs` accepts nothing else and checks every size before it allocates.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from maskshards.shards.errors import RunsError

IGNORE = 65535  # class id of a pixel in no mask, in uint16 class maps
MAX_PIXELS = 1 << 27  # of one image (16384 x 8192); nothing larger is written, and nothing larger allocated
LONGEST_RUN = 65535
MOST_BYTE_LABELS = 254  # labels of an image whose owners still fit one byte
ZSTD_LEVEL = 6  # measured: 10 saves nothing and takes twice as long, 3 is 5 % larger
MAGIC = b"MSR1"
WIDE_OWNERS = 1  # flag: owners are uint16
HEADER = struct.Struct("<4sHHIII")  # magic, flags, labels K, height, width, runs R

_of_thread = threading.local()
UInt16Array = NDArray[np.uint16]
OwnerArray = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledRuns:
    """The masks of one image; K labels, R runs. Equal if all three arrays are."""

    labels: UInt16Array  # (K,) class ids, ascending, none of them IGNORE
    lengths: UInt16Array  # (R,) pixels, 1..65535, adding up to H * W
    owners: OwnerArray  # (R,) uint8, or uint16 with more than 254 labels; 0 = no mask, k = labels[k - 1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelledRuns):
            return NotImplemented
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)

    def areas(self) -> NDArray[np.int64]:
        """(K + 1,) pixels of each owner, those in no mask first."""
        return np.bincount(self.owners, self.lengths, len(self.labels) + 1).astype(np.int64)


def encode_label_map(class_map: UInt16Array | NDArray[np.uint8]) -> LabelledRuns:
    """The canonical runs of an (H, W) map of class ids; IGNORE, which uint8 lacks, where no mask is."""
    if class_map.ndim != 2 or class_map.dtype not in (np.uint8, np.uint16):
        raise RunsError(f"class map is {class_map.ndim}-d {class_map.dtype}, expected 2-d uint16")
    _check_size(*class_map.shape)
    flat = class_map.ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], starts, [flat.size]])
    classes, lengths = flat[bounds[:-1]], np.diff(bounds)
    labels, owners = _number(classes)
    if lengths.max() > LONGEST_RUN:
        lengths, owners = _cut_long_runs(lengths, owners)
    return LabelledRuns(labels, lengths.astype(np.uint16), owners)


def _number(classes: UInt16Array | NDArray[np.uint8]) -> tuple[UInt16Array, OwnerArray]:
    """(K,) class ids and (R,) owners of the runs' classes.

    A table numbers bytes in a third of the time that sorting takes.
    """
    if classes.dtype == np.uint8:
        present = np.flatnonzero(np.bincount(classes))
        table: OwnerArray = _owner_array(256, len(present))
        table[present] = np.arange(1, len(present) + 1)
        return present.astype(np.uint16), table[classes]
    labels = np.unique(classes).astype(np.uint16)
    labels = labels[labels != IGNORE]
    owners = _owner_array(len(classes), len(labels))
    owners[:] = np.searchsorted(labels, classes) + 1
    owners[classes == IGNORE] = 0
    return labels, owners


def _owner_array(length: int, num_labels: int) -> OwnerArray:
    """(length,) zeros of the type that owners have with so many labels."""
    return np.zeros(length, np.uint8) if num_labels <= MOST_BYTE_LABELS else np.zeros(length, np.uint16)


def decode_label_map(runs: LabelledRuns, height: int, width: int) -> UInt16Array:
    """The (H, W) uint16 class map, IGNORE where there is no mask."""
    table = np.concatenate([np.array([IGNORE], np.uint16), runs.labels])
    return _paint(table[runs.owners], runs, height, width)


def binary_mask(runs: LabelledRuns, owner: int, height: int, width: int) -> NDArray[np.bool_]:
    """The (H, W) mask of one owner, 1..K; 0 gives the pixels in no mask."""
    if not 0 <= owner <= len(runs.labels):
        raise RunsError(f"owner {owner} of an image with {len(runs.labels)} labels")
    return _paint(runs.owners == owner, runs, height, width)


def pack_runs(runs: LabelledRuns, height: int, width: int) -> bytes:
    """The payload of KEY.rle.zst. RunsError if the runs are not canonical for an H x W image."""
    _check_size(height, width)
    check_runs(runs, height, width)
    flags = WIDE_OWNERS if runs.owners.dtype == np.uint16 else 0
    header = HEADER.pack(MAGIC, flags, len(runs.labels), height, width, len(runs.lengths))
    planes = [runs.labels.astype("<u2"), runs.lengths.astype(np.uint8), (runs.lengths >> 8).astype(np.uint8)]
    planes.append(runs.owners.astype(np.uint8))
    if flags:
        planes.append((runs.owners >> 8).astype(np.uint8))
    payload = header + b"".join(plane.tobytes() for plane in planes)
    return _compressor().compress(payload)


def _compressor() -> zstandard.ZstdCompressor:
    """One a thread: its context holds tables that take longer to make than a small image to compress."""
    found: zstandard.ZstdCompressor | None = getattr(_of_thread, "compressor", None)
    if found is None:
        found = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        _of_thread.compressor = found
    return found


def unpack_runs(
    data: bytes, height: int, width: int, decompressor: zstandard.ZstdDecompressor | None = None
) -> LabelledRuns:
    """The inverse of `pack_runs` for an image known to be H x W. RunsError for anything else than its output.

    Memory is bounded by 4 bytes a pixel whatever `data` says. A decompressor must not be shared by threads.
    """
    _check_size(height, width)
    payload = decompress_runs(data, height * width, decompressor or zstandard.ZstdDecompressor())
    magic, flags, num_labels, found_height, found_width, num_runs = HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise RunsError(
            f"runs begin with {magic!r}, expected {MAGIC!r}; they are of another format or version"
        )
    if flags != (WIDE_OWNERS if num_labels > MOST_BYTE_LABELS else 0):
        raise RunsError(f"runs have flags {flags:#x} with {num_labels} labels")
    if (found_height, found_width) != (height, width):
        raise RunsError(f"runs are of a {found_width}x{found_height} image, expected {width}x{height}")
    planes = 4 if flags else 3
    if len(payload) != HEADER.size + 2 * num_labels + planes * num_runs:
        raise RunsError(
            f"runs take {len(payload)} bytes, which {num_labels} labels and {num_runs} runs do not"
        )
    labels = np.frombuffer(payload, "<u2", num_labels, HEADER.size).astype(np.uint16)
    table = np.frombuffer(payload, np.uint8, offset=HEADER.size + 2 * num_labels).reshape(planes, num_runs)
    owners: OwnerArray = _join(table[2], table[3]) if flags else table[2]
    runs = LabelledRuns(labels, _join(table[0], table[1]), owners)
    check_runs(runs, height, width)
    return runs


def check_runs(runs: LabelledRuns, height: int, width: int) -> None:
    """RunsError unless the runs are the canonical form of an H x W class map."""
    labels, lengths, owners = runs.labels, runs.lengths, runs.owners
    owner_type = np.uint8 if len(labels) <= MOST_BYTE_LABELS else np.uint16
    if labels.dtype != np.uint16 or lengths.dtype != np.uint16 or owners.dtype != owner_type:
        raise RunsError(f"runs are {labels.dtype}, {lengths.dtype}, {owners.dtype} with {len(labels)} labels")
    if len(labels) and (labels[-1] == IGNORE or not (labels[1:] > labels[:-1]).all()):
        raise RunsError(f"class ids {labels[:20].tolist()} are not ascending and below {IGNORE}")
    if len(owners) != len(lengths):
        raise RunsError(f"{len(lengths)} lengths but {len(owners)} owners")
    total = int(lengths.sum(dtype=np.int64))
    if total != height * width:
        raise RunsError(f"runs cover {total} pixels, the image has {width}x{height} = {height * width}")
    if not lengths.all():
        raise RunsError(f"run {int(np.argmin(lengths))} is empty")
    if owners.max() > len(labels):
        raise RunsError(f"run {int(np.argmax(owners))} has owner {owners.max()} of {len(labels)}")
    if not np.bincount(owners, minlength=len(labels) + 1)[1:].all():
        raise RunsError("a class id is listed that owns no pixel")
    again = (owners[1:] == owners[:-1]) & (lengths[:-1] != LONGEST_RUN)
    if again.any():
        raise RunsError(
            f"runs {int(np.argmax(again))} and the next have one owner, so they should be one run"
        )


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RunsError(
            f"image is {width}x{height} px, expected at least 1x1 and at most {MAX_PIXELS} pixels"
        )


def _cut_long_runs(lengths: NDArray[np.int64], owners: OwnerArray) -> tuple[NDArray[np.int64], OwnerArray]:
    """Cut runs that 16 bits cannot hold: pieces of the longest length, then the rest."""
    pieces = -(-lengths // LONGEST_RUN)
    cut = np.full(pieces.sum(), LONGEST_RUN, np.int64)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST_RUN
    return cut, owners.repeat(pieces)


def _paint(values: NDArray[Any], runs: LabelledRuns, height: int, width: int) -> NDArray[Any]:
    """Spread one value a run over an (H, W) array."""
    _check_size(height, width)
    total = int(runs.lengths.sum(dtype=np.int64))
    if total != height * width:
        raise RunsError(f"runs cover {total} pixels, the image has {width}x{height} = {height * width}")
    return np.repeat(values, runs.lengths).reshape(height, width)


def decompress_runs(data: bytes, num_pixels: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """One zstd frame that declares its size; RunsError for another.

    The size is checked first: the library obeys it.
    """
    largest = HEADER.size + 2 * min(num_pixels, IGNORE) + 4 * num_pixels
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if not HEADER.size < declared <= largest:
            raise RunsError(f"runs claim {declared} bytes, expected {HEADER.size + 1} to {largest}")
        return decompressor.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RunsError(f"runs are not a whole zstd frame: {error}") from error


def _join(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> UInt16Array:
    joined = high.astype(np.uint16)
    joined <<= 8
    joined |= low
    return joined

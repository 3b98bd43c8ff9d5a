"""Rare classes seen more often: an epoch that repeats the images which hold them.

Repeat-factor sampling (Gupta, Dollar and Girshick, "LVIS", 2019, arXiv 1908.03195): with f(c) the share of
images that show class c, an image occurs max over its classes of max(1, sqrt(threshold / f(c))) times in an
epoch. The fraction of a repeat is decided by a hash of the sample's key, so the epoch is the same everywhere
and for ever.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from maskshards.shards.format.index import ShardIndex
from maskshards.shards.format.manifest import Split
from maskshards.shards.order.selection import Part, Selection

BALANCE_VERSION = 1


def balanced(split: Split, threshold: float) -> Selection:
    """All of `split`, images with classes in fewer than `threshold` (0..1] of the images repeated.

    Reads the whole index, twice. ValueError for a threshold outside 0..1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the repeat threshold is {threshold}, expected above 0 and at most 1")
    manifest = split.manifest
    factors = class_factors(images_per_class(split), manifest.num_samples, threshold)
    parts: list[Part] = []
    for shard in range(len(manifest.shards)):
        repeats = repeats_of(split.index(shard), factors)
        for copy in range(int(repeats.max(initial=1))):
            rows = np.flatnonzero(repeats > copy)
            parts.append(Part(0, shard, None if copy == 0 else rows, len(rows)))
    facts = json.dumps([BALANCE_VERSION, manifest.fingerprint, threshold])
    return Selection((split,), tuple(parts), hashlib.sha256(facts.encode()).hexdigest())


def images_per_class(split: Split) -> NDArray[np.int64]:
    """(C,) how many images show each class."""
    counts = np.zeros(len(split.manifest.classes), np.int64)
    for shard in range(len(split.manifest.shards)):
        counts += np.bincount(split.index(shard).flat_class_ids, minlength=len(counts))
    return counts


def class_factors(counts: NDArray[np.int64], num_images: int, threshold: float) -> NDArray[np.float64]:
    """(C,) how often an image should occur for the sake of each class; at least 1."""
    shares = np.maximum(counts, 1) / num_images
    return np.maximum(1.0, np.sqrt(threshold / shares))


def repeats_of(index: ShardIndex, factors: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) whole times that each sample of a shard occurs in an epoch."""
    repeats = np.ones(len(index.keys), np.int64)
    for row, key in enumerate(index.keys):
        ids = index.flat_class_ids[index.label_offsets[row] : index.label_offsets[row + 1]]
        wanted = float(factors[ids].max(initial=1.0))
        word = hashlib.blake2b(f"balance {key}".encode(), digest_size=8).digest()
        repeats[row] = int(wanted + int.from_bytes(word, "little") / 2**64)
    return repeats

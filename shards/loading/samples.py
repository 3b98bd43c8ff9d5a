"""A split with random access: `open_split(place)[i]` is one whole sample. Needs no torch.

It is a map-style data set for whatever takes one, at the speed of single reads. Training reads many samples
at once through `Loader`, in an order that keeps reads near each other.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.errors import SampleError
from maskshards.shards.format import manifest
from maskshards.shards.format.manifest import Manifest, Split
from maskshards.shards.format.record import Record, from_members, read_facts
from maskshards.shards.format.rle import LabelledRuns, binary_mask
from maskshards.shards.loading.class_maps import class_map_of, ignore_index_of
from maskshards.shards.loading.sample_source import SampleSource
from maskshards.shards.storage.base import Store


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sample, checked and decoded."""

    key: str
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    class_map: NDArray[Any]  # (H, W) class ids, `ignore_index` where there is none; uint8, or int32 where
    # the data set has more than 255 classes
    ignore_index: int  # 255, or 65535 where the data set has more than 255 classes
    labels: tuple[int, ...]  # K ascending class ids
    facts: dict[str, Any]  # its JSON: sizes, class ids, areas, source
    runs: LabelledRuns = field(repr=False)

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(K, H, W): the mask of each of `labels`."""
        height, width = self.class_map.shape
        masks = [binary_mask(self.runs, owner, height, width) for owner in range(1, len(self.labels) + 1)]
        return np.array(masks, np.bool_).reshape(-1, height, width)


class Samples(Split):
    """An open split whose samples are read by their number, in the order of the shards.

    It is a `Split`, so whatever takes one takes it. May be used from several threads, pickled and copied.
    """

    def __init__(self, manifest: Manifest, store: Store) -> None:
        super().__init__(manifest, store)

    def _start(self) -> None:
        super()._start()
        self._source = SampleSource((self,))
        self._starts = np.concatenate([[0], np.cumsum(self.manifest.shard_samples)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, from the end if negative; IndexError beyond, SampleError where it is damaged."""
        place = operator.index(number)
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError(f"sample {number} of {self.base}, which has {len(self)}")
        shard = int(np.searchsorted(self._starts, place, side="right")) - 1
        row = self._source.row(0, shard, place - int(self._starts[shard]))
        members = self._source.members(row)
        record = from_members(members, shard=row.shard.name)
        image = np.empty((record.height, record.width, 3), np.uint8)
        try:
            decode_image(record.image, record.image_format, image)
        except SampleError as error:
            raise SampleError(error.what, shard=row.shard.name, key=record.key) from error
        if (record.height, record.width) != (row.entry.height, row.entry.width):
            raise SampleError("its index gives another size", shard=row.shard.name, key=record.key)
        return self._sample(record, image, read_facts(members[1][1]))

    def _sample(self, record: Record, image: NDArray[np.uint8], facts: dict[str, Any]) -> Sample:
        num_classes = len(self.manifest.classes)
        return Sample(
            key=record.key,
            image=image,
            class_map=class_map_of(record.runs, record.height, record.width, num_classes),
            ignore_index=ignore_index_of(num_classes),
            labels=tuple(record.runs.labels.tolist()),
            facts=facts,
            runs=record.runs,
        )

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))


def open_split(place: str | Path) -> Samples:
    """The split in a folder or below a URL, with random access; raises as `manifest.open_split` does."""
    split = manifest.open_split(place)
    return Samples(split.manifest, split.store)

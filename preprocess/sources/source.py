"""What a source data set has to offer to be built into shards.

A source is one small frozen dataclass. It lists the samples of a split by name, in an order that does not
depend on the file system, and reads one sample on request. It travels to worker processes and to other
machines, so it holds settings and no open files; the names are the only thing that the build keeps of every
sample, so they should be short.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maskshards.preprocess.errors import Reject
from maskshards.preprocess.inputs.labels import LabelRule


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One sample before it is read."""

    key: str  # its key in the shards, already escaped; unique within the split
    image_path: str  # where the image is, for messages; below the root where the source has files
    label_path: str  # where the label map is, likewise
    split: str


@dataclass(frozen=True, slots=True)
class RawSample:
    """The bytes of one sample as the source holds them."""

    image: bytes  # an encoded image file
    label: bytes  # an encoded label map: PNG or TIFF, or NPY where the source computes it
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # JSON facts for the record, such as a scene category


@dataclass(frozen=True, slots=True)
class Listing:
    """All samples of one split."""

    names: tuple[str, ...]  # sorted; what `item` takes
    rejects: tuple[Reject, ...]  # sorted; files that have no partner, or share a key
    notes: tuple[str, ...] = ()  # one line each: what was passed over, for the user to read


class Source(ABC):
    """A data set that can be listed and read.

    All methods raise SourceError where the data set as a whole is at fault.
    """

    kind: str  # what `--dataset` calls it; written into the manifest
    dataset: str  # the name of the data set in the manifest
    classes: tuple[str, ...]  # class names; the place in the tuple is the class id
    label_rule: LabelRule  # what the values in the label maps mean
    palette: tuple[tuple[int, int, int], ...] | None = None  # RGB of each class, where the data set has one

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that are there, in the order in which they are built."""

    def left_out(self) -> tuple[str, ...]:
        """One line for each split of the data set that `splits` leaves out, with the reason."""
        return ()

    @abstractmethod
    def listing(self, split: str) -> Listing:
        """Every sample of the split, found without opening a file."""

    @abstractmethod
    def item(self, split: str, name: str) -> SourceItem:
        """The sample of that name; pure."""

    @abstractmethod
    def read(self, item: SourceItem) -> RawSample:
        """Its bytes, read once. RejectedInput where they cannot be had."""

    @abstractmethod
    def stamp(self, item: SourceItem) -> str:
        """A text that changes when the sample's files change (size and time of change).

        '' where that cannot be known.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """JSON facts from which, with the root, the data set can be opened again to verify shards."""

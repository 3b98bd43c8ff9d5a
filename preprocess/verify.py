"""Shards against their source: every byte of every image, every pixel of every label map, none too many.

The label rule comes from the manifest, the truth from the source files, read again. A re-encoded image is
encoded again and compared. Differences are collected, named, and reported together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from maskshards.preprocess.convert import judged, pieces
from maskshards.preprocess.errors import BuildError, RejectedInput
from maskshards.preprocess.inputs.image_policy import Encoded, ImagePolicy
from maskshards.preprocess.inputs.labels import LabelRule
from maskshards.preprocess.inputs.tiles import untiled_key
from maskshards.preprocess.plan import BuildSettings
from maskshards.preprocess.sources.opening import reopen_source
from maskshards.preprocess.sources.source import Source
from maskshards.shards.errors import SampleError, ShardError, counted
from maskshards.shards.format.manifest import Split, open_split
from maskshards.shards.format.record import Record, from_members
from maskshards.shards.format.rle import decode_label_map
from maskshards.shards.format.tar import read_members


@dataclass(frozen=True, slots=True)
class CheckTask:
    """One shard to compare with its source."""

    out: str  # the split's folder or URL
    number: int  # of the shard, in the manifest's order
    source: Source
    names: dict[str, str]  # key -> name in the source, of this shard's samples or of what they are tiles of

    def __str__(self) -> str:
        return f"shard {self.number} of {self.out}"


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """What came of one shard."""

    samples: int
    pixels: int  # label pixels that were compared
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """What came of one split."""

    split: str
    samples: int
    pixels: int
    faults: tuple[str, ...]


def verify_split(
    split: Split, root: str, run: Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
) -> SplitCheck:
    """Compare one split with the source at `root`. `run(do, tasks)` executes tasks; see `executors.pool`."""
    manifest, out = split.manifest, split.base
    rule = LabelRule.from_json(manifest.label_rule)
    kind = manifest.settings.get("source")
    if kind is None:
        raise BuildError(
            f"{out}: the manifest does not say from which kind of source it was built,"
            " so it cannot be compared"
        )
    source = reopen_source(kind, manifest.dataset, manifest.classes, rule, root)
    names = _names_by_key(source, manifest.split)
    refused = {reject["name"] for reject in manifest.rejects}
    faults: list[str] = []
    seen: set[str] = set()
    samples = pixels = 0
    for check in run(check_shard, _tasks(split, out, source, names, seen, faults)):
        samples, pixels = samples + check.samples, pixels + check.pixels
        faults += check.faults
    policy = BuildSettings.from_json(manifest.settings).policy
    found = seen | {untiled_key(key) for key in seen} if policy.tile else seen
    for key, name in names.items():
        if key not in found and source.item(manifest.split, name).image_path not in refused:
            faults.append(
                f"{name}: in the source, but neither in the shards nor among the rejects of the manifest"
            )
    if samples != manifest.num_samples:
        faults.append(f"{samples} samples were compared, the manifest promises {manifest.num_samples}")
    return SplitCheck(manifest.split, samples, pixels, tuple(faults))


def _names_by_key(source: Source, split: str) -> dict[str, str]:
    """Without names that cannot become keys: the build refused them."""
    names = {}
    for name in source.listing(split).names:
        with suppress(SampleError):
            names[source.item(split, name).key] = name
    return names


def _tasks(
    split: Split, out: str, source: Source, names: dict[str, str], seen: set[str], faults: list[str]
) -> Iterator[CheckTask]:
    for number, shard in enumerate(split.manifest.shards):
        keys = split.index(number).keys
        faults += [
            f"{shard.name}, sample {key!r}: stands in more than one place" for key in keys if key in seen
        ]
        seen.update(keys)
        wanted = set(keys) | {untiled_key(key) for key in keys}
        yield CheckTask(out, number, source, {key: names[key] for key in wanted if key in names})


def check_shard(task: CheckTask) -> ShardCheck:
    """Compare every sample of one shard."""
    split = open_split(task.out)
    shard, index = split.manifest.shards[task.number], split.index(task.number)
    truth = _Truth(task, split.manifest.split, BuildSettings.from_json(split.manifest.settings).policy)
    reader = partial(split.store.read, shard.name)
    faults, pixels = [], 0
    for place, key in enumerate(index.keys):
        try:
            members = read_members(reader, index.entry(place), shard=shard.name)
            record = from_members(members, shard=shard.name)
            image, class_map = truth.of(key)
            fault = compare(record, image, class_map)
            pixels += class_map.size
        except (RejectedInput, ShardError) as error:
            fault = str(error)
        if fault:
            faults.append(f"{shard.name}, sample {key!r}: {fault}")
    faults += [f"{shard.name}, sample {key!r}: the tile is missing" for key in sorted(truth.unseen)]
    return ShardCheck(len(index.keys), pixels, tuple(faults))


class _Truth:
    """What the source says of one sample after another.

    The last stays decoded, since its tiles stand together.
    """

    def __init__(self, task: CheckTask, split: str, policy: ImagePolicy) -> None:
        self.task, self.split, self.policy = task, split, policy
        self.unseen: set[str] = set()  # keys of tiles that were not asked for yet
        self._name = ""
        self._pieces: dict[str, tuple[Encoded, np.ndarray]] = {}

    def of(self, key: str) -> tuple[bytes, np.ndarray]:
        """The encoded image and the (H, W) class map of a record. RejectedInput where there is none."""
        name = self.task.names.get(key)
        if name is None and self.policy.tile:
            name = self.task.names.get(untiled_key(key))
        if name is None:
            raise RejectedInput("it is not in the source")
        if name != self._name:
            self._read(name)
        if key not in self._pieces:
            raise RejectedInput("the source has no such tile")
        self.unseen.discard(key)
        image, values = self._pieces[key]
        return image.data, self.task.source.label_rule.apply(values)

    def _read(self, name: str) -> None:
        self._name, self._pieces = "", {}
        item = self.task.source.item(self.split, name)
        with judged(item.image_path):
            raw = self.task.source.read(item)
            found = pieces(item, raw, self.task.source.label_rule, self.policy)
            self._pieces = {key: (image, values) for key, image, values in found}
        self._name = name
        self.unseen |= set(self._pieces)


def compare(record: Record, image: bytes, class_map: np.ndarray) -> str:
    """The first difference between a record and what it should be, in words; '' where there is none."""
    if record.image != image:
        return f"the image differs from the source ({len(record.image)} bytes here, {len(image)} expected)"
    if (record.height, record.width) != class_map.shape:
        height, width = class_map.shape
        return f"it claims {record.width}x{record.height}, the source has {width}x{height}"
    found = decode_label_map(record.runs, record.height, record.width)
    wrong = np.argwhere(found != class_map)
    if len(wrong):
        row, column = (int(number) for number in wrong[0])
        return (
            f"{counted(len(wrong), 'label pixel differs', 'label pixels differ')} from the source,"
            f" the first at row {row}, column {column}:"
            f" {found[row, column]} here, {class_map[row, column]} expected"
        )
    return ""

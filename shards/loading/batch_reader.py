"""One batch: find its samples, read, check, decode and pack them into flat buffers. Runs in any thread.

Sizes come from the index, so the batch's buffer is laid out first and every image is decoded into its place.
Each sample is one read of its three neighbouring members, each member checked against its crc32c.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray

from maskshards.shards.batch import EncodedBatch, RaggedBatch, run_tensors
from maskshards.shards.decode.jpeg import check_size, decode_image
from maskshards.shards.errors import RunsError, SampleError, StoreError
from maskshards.shards.format.index import SampleEntry, ShardIndex
from maskshards.shards.format.manifest import ShardInfo
from maskshards.shards.format.record import Members
from maskshards.shards.format.rle import MOST_BYTE_LABELS, LabelledRuns, unpack_runs
from maskshards.shards.format.tar import read_members
from maskshards.shards.loading.memory import Recycled
from maskshards.shards.order.batch_plans import BatchPlan
from maskshards.shards.order.order import random_words
from maskshards.shards.order.selection import Selection

log = logging.getLogger(__name__)

Load = Callable[[], Members]

POLICIES = ("raise", "replace")
SUBSTITUTE = 3  # what a draw is for, beside those of maskshards.shards.order.order
MAX_SUBSTITUTES = 8  # in a row for one position; a data set as broken as that is not trained on
MAX_BATCH_PIXELS = (1 << 31) - 1  # run ends are int32
KEPT_BUFFERS = 8  # unused pixel buffers that stay allocated
KEPT_INDEXES = 256  # shards whose index stays in memory; a rank needs about one for each slot of its batch


class Row(NamedTuple):
    """One sample and where its bytes are."""

    split: int
    shard: ShardInfo
    entry: SampleEntry


class Decoded(NamedTuple):
    row: Row
    pixels: NDArray[np.uint8]  # (H, W, 3), often a view of a batch's buffer; or (E,) bytes, not decoded
    runs: LabelledRuns
    instead: bool = False  # whether it stands in for a damaged sample


@contextmanager
def _naming(row: Row) -> Iterator[None]:
    """Errors of decoders, which know neither, as errors of this shard and key."""
    try:
        yield
    except RunsError as error:
        raise SampleError(str(error), shard=row.shard.name, key=row.entry.key) from error
    except SampleError as error:
        if error.key:
            raise
        raise SampleError(error.what, shard=row.shard.name, key=row.entry.key) from error


class BatchReader:
    """Makes batches of a selection; safe to call from several threads, and can be sent to another process."""

    def __init__(self, selection: Selection, *, seed: int, policy: str = "raise", pin: bool = False) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}, expected one of {', '.join(POLICIES)}")
        self.selection, self.seed, self.policy, self.pin = selection, seed, policy, pin
        self.num_replaced = 0
        self._part_starts = np.concatenate([[0], np.cumsum(selection.shard_samples)])
        self._start()

    def _start(self) -> None:
        self._memory = Recycled(KEPT_BUFFERS)
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._indexes: OrderedDict[tuple[int, int], ShardIndex] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        left_behind = ("_memory", "_lock", "_thread", "_indexes")
        return {name: value for name, value in self.__dict__.items() if name not in left_behind}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def for_selection(self, selection: Selection) -> BatchReader:
        """A reader of the same kind that shares nothing with this one, its count of replacements from 0."""
        return BatchReader(selection, seed=self.seed, policy=self.policy, pin=self.pin)

    def read(self, plan: BatchPlan) -> RaggedBatch:
        """The batch of a plan; SampleError, StoreError or ManifestError where it cannot be had."""
        rows = [self.row(part, place) for part, place in zip(plan.parts, plan.places, strict=True)]
        starts = [0, *accumulate(row.entry.height * row.entry.width * 3 for row in rows)]
        if starts[-1] // 3 > MAX_BATCH_PIXELS:
            raise ValueError(
                f"a batch of {len(rows)} images has {starts[-1] // 3} pixels, at most {MAX_BATCH_PIXELS} "
                "can be counted; lower batch_per_rank"
            )
        buffer = self._pixels(starts[-1])
        flat = buffer.numpy()

        def in_place(number: int, load: Load) -> Decoded:
            height, width = rows[number].entry.height, rows[number].entry.width
            place = slice(starts[number], starts[number + 1])
            return self.sample(rows[number], flat[place].reshape(height, width, 3), load)

        samples = self._samples(plan, rows, in_place, self._apart)
        if any(sample.row is not row for sample, row in zip(samples, rows, strict=True)):
            buffer = self._packed([sample.pixels.reshape(-1) for sample in samples])
        return self.pack(plan, samples, buffer)

    def read_encoded(self, plan: BatchPlan) -> EncodedBatch:
        """The same batch with its images as their files hold them: checked, sizes compared, not decoded."""
        rows = [self.row(part, place) for part, place in zip(plan.parts, plan.places, strict=True)]
        samples = self._samples(
            plan, rows, lambda number, load: self.encoded(rows[number], load), self.encoded
        )
        return EncodedBatch(
            encoded=self._packed([sample.pixels for sample in samples]),
            encoded_offsets=tuple(accumulate((len(sample.pixels) for sample in samples), initial=0)),
            image_formats=tuple(sample.row.entry.image_format for sample in samples),
            rest=self.pack(plan, samples, torch.empty(0, dtype=torch.uint8)),
        )

    def pack(self, plan: BatchPlan, samples: list[Decoded], pixels: torch.Tensor) -> RaggedBatch:
        """The batch of samples whose `pixels` lie in one flat buffer already."""
        areas = [sample.row.entry.height * sample.row.entry.width for sample in samples]
        bases = [0, *accumulate(areas)]
        ends = [
            np.cumsum(sample.runs.lengths, dtype=np.int64) + base
            for sample, base in zip(samples, bases, strict=False)
        ]
        run_ends, run_owners = run_tensors(self._empty(5 * sum(map(len, ends)), torch.uint8))
        np.concatenate(ends, out=run_ends.numpy(), casting="unsafe")
        np.concatenate([sample.runs.owners for sample in samples], out=run_owners.numpy(), casting="unsafe")
        return RaggedBatch(
            pixels=pixels,
            run_ends=run_ends,
            run_owners=run_owners,
            run_offsets=tuple(accumulate((len(part) for part in ends), initial=0)),
            heights=tuple(sample.row.entry.height for sample in samples),
            widths=tuple(sample.row.entry.width for sample in samples),
            labels=tuple(tuple(sample.runs.labels.tolist()) for sample in samples),
            keys=tuple(sample.row.entry.key for sample in samples),
            positions=plan.positions,
            epochs=plan.epochs,
            valid=plan.valid,
            num_replaced=sum(sample.instead for sample in samples),
        )

    def _packed(self, parts: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """The parts back to back in one new buffer."""
        buffer = self._empty(sum(len(part) for part in parts), torch.uint8)
        np.concatenate(parts, out=buffer.numpy())
        return buffer

    def _pixels(self, num_bytes: int) -> torch.Tensor:
        """Memory for pixels that was used before: torch keeps pinned memory by itself."""
        return (
            self._empty(num_bytes, torch.uint8)
            if self.pin
            else torch.from_numpy(self._memory.take(num_bytes))
        )

    def _empty(self, num_items: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(num_items, dtype=dtype, pin_memory=self.pin)

    def _samples(
        self,
        plan: BatchPlan,
        rows: list[Row],
        planned: Callable[[int, Load], Decoded],
        substitute: Callable[[Row], Decoded],
    ) -> list[Decoded]:
        """The samples of a plan by number, made by `planned`, or where one is damaged as the policy says."""
        samples = []
        for number, (load, position) in enumerate(zip(self._loads(rows), plan.positions, strict=True)):
            try:
                samples.append(planned(number, load))
            except SampleError as error:
                if self.policy == "raise":
                    raise
                samples.append(self._substitute(error, position, substitute))
        return samples

    def _loads(self, rows: list[Row]) -> list[Load]:
        """A function for each row that gives its members; where reads wait for a network, all run at once."""
        num_connections = max(self.selection.splits[row.split].store.num_connections for row in rows)
        if num_connections == 1:
            return [partial(self.members, row) for row in rows]
        with ThreadPoolExecutor(num_connections, thread_name_prefix="maskshards-read") as pool:
            return [pool.submit(self.members, row).result for row in rows]

    def _substitute(self, fault: SampleError, position: int, substitute: Callable[[Row], Decoded]) -> Decoded:
        """Another sample drawn from (seed, position, attempt) alone, so the same one in every world."""
        for attempt in range(MAX_SUBSTITUTES):
            word = int(random_words(1, SUBSTITUTE, self.seed, position, attempt)[0])
            number = word % int(self._part_starts[-1])
            part = int(np.searchsorted(self._part_starts, number, side="right")) - 1
            row = self.row(part, number - int(self._part_starts[part]))
            try:
                sample = substitute(row)
            except SampleError as error:
                log.warning("position %d: substitute %d failed too: %s", position, attempt + 1, error)
                continue
            with self._lock:
                self.num_replaced += 1
            log.warning("position %d: %s; replaced by sample %r", position, fault, row.entry.key)
            return sample._replace(instead=True)
        what = f"{fault.what}; {MAX_SUBSTITUTES} substitutes failed as well"
        raise SampleError(what, shard=fault.shard, key=fault.key) from fault

    def sample(self, row: Row, out: NDArray[np.uint8], load: Load | None = None) -> Decoded:
        """Read, check and decode one sample into `out`, (H, W, 3). `load` gives members that were read
        before.
        """
        with _naming(row):
            (_, image), _, (_, packed) = load() if load else self.members(row)
            decode_image(image, row.entry.image_format, out)
            return Decoded(row, out, self._runs(row, packed))

    def encoded(self, row: Row, load: Load | None = None) -> Decoded:
        """Read and check one sample; its pixels are (E,) uint8, the bytes of its file."""
        with _naming(row):
            (_, image), _, (_, packed) = load() if load else self.members(row)
            check_size(image, row.entry.image_format, row.entry.height, row.entry.width)
            return Decoded(row, np.frombuffer(image, np.uint8), self._runs(row, packed))

    def _apart(self, row: Row) -> Decoded:
        return self.sample(row, np.empty((row.entry.height, row.entry.width, 3), np.uint8))

    def _runs(self, row: Row, packed: bytes) -> LabelledRuns:
        runs = unpack_runs(packed, row.entry.height, row.entry.width, self._decompressor())
        if len(runs.labels) > MOST_BYTE_LABELS:
            raise SampleError(
                f"{len(runs.labels)} classes in one image, a batch carries at most {MOST_BYTE_LABELS}"
            )
        return runs

    def members(self, row: Row) -> Members:
        """The bytes of image, JSON and runs, each equal to its checksum; read twice where that may help."""
        store, shard = self.selection.splits[row.split].store, row.shard
        read = partial(store.read, shard.name)
        try:
            return read_members(read, row.entry, shard=shard.name)
        except SampleError:
            if not store.again(shard.name):
                raise
            return read_members(read, row.entry, shard=shard.name)
        except StoreError as error:
            # A shard of another length is a fault of the data, not of the way to it.
            num_bytes = store.size(shard.name)
            if num_bytes == shard.bytes:
                raise
            what = (
                f"the shard has {num_bytes} bytes, the manifest says {shard.bytes}; fetch or build it again"
            )
            raise SampleError(what, shard=shard.name, key=row.entry.key) from error

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        """One a thread: a shared one reports corrupt data at once."""
        if not hasattr(self._thread, "decompressor"):
            self._thread.decompressor = zstandard.ZstdDecompressor()
        return self._thread.decompressor

    def row(self, part: int, place: int) -> Row:
        split, shard, row = self.selection.locate(part, place)
        return Row(
            split, self.selection.splits[split].manifest.shards[shard], self._index(split, shard).entry(row)
        )

    def _index(self, split: int, shard: int) -> ShardIndex:
        with self._lock:
            found = self._indexes.get((split, shard))
            if found is None:
                found = self._indexes[split, shard] = self.selection.splits[split].index(shard)
                if len(self._indexes) > KEPT_INDEXES:
                    self._indexes.popitem(last=False)
            else:
                self._indexes.move_to_end((split, shard))
            return found

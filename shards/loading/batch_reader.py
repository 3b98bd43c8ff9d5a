"""One batch: find its samples, read, check, decode and pack them into flat buffers. Runs in any thread.

Sizes come from the index, so the batch's buffer is laid out first and every image is decoded into its place.
Each sample is one read of its three neighbouring members, of which image and runs are checked against their
crc32c; the JSON is nothing that a training asks for. The runs of all samples are unpacked together.
"""

from __future__ import annotations

import copy
import logging
import threading
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
from maskshards.shards.errors import POLICIES, RAISE, RunsError, SampleError
from maskshards.shards.format.batch_runs import BatchRuns, unpack_batch
from maskshards.shards.format.rle import MOST_BYTE_LABELS, LabelledRuns, unpack_runs
from maskshards.shards.loading.buffers import Buffers
from maskshards.shards.loading.sample_source import Row, SampleSource
from maskshards.shards.order.batch_plans import BatchPlan
from maskshards.shards.order.order import random_words
from maskshards.shards.order.selection import Selection

log = logging.getLogger(__name__)

Load = Callable[[], tuple[bytes, bytes]]  # image and runs

SUBSTITUTE = 3  # what a draw is for, beside those of maskshards.shards.order.order
MAX_SUBSTITUTES = 8  # in a row for one position; a data set as broken as that is not trained on
MAX_BATCH_PIXELS = (1 << 31) - 1  # run ends are int32


class Decoded(NamedTuple):
    row: Row
    pixels: NDArray[np.uint8]  # (H, W, 3), often a view of a batch's buffer; or (E,) bytes, not decoded
    packed_runs: bytes  # as its member holds them
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
    """Makes batches of a selection; safe to call from several threads, and can be sent to another process.

    `lanes`: how many shards its plans read by turns. ValueError for a policy that is none.
    """

    def __init__(
        self, selection: Selection, *, seed: int, policy: str = RAISE, pin: bool = False, lanes: int = 0
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}, expected one of {', '.join(POLICIES)}")
        self.selection, self.seed, self.policy, self.pin, self.lanes = selection, seed, policy, pin, lanes
        self.num_replaced = 0
        self._part_starts = np.concatenate([[0], np.cumsum(selection.shard_samples)])
        self._start()

    def _start(self) -> None:
        self.source = SampleSource(self.selection.splits, self.lanes)
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._buffers = Buffers(self.pin)

    def let_go(self) -> None:
        """Keep no memory for batches to come."""
        self._buffers = Buffers(self.pin)

    def __getstate__(self) -> dict[str, object]:
        left_behind = ("source", "_lock", "_thread", "_buffers")
        return {name: value for name, value in self.__dict__.items() if name not in left_behind}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def for_selection(self, selection: Selection) -> BatchReader:
        """A reader of the same kind that shares nothing with this one, its count of replacements from 0."""
        other = copy.copy(self)  # by its state: with locks and a cache of its own
        other.selection, other.num_replaced = selection, 0
        other._start()
        return other

    def read(self, plan: BatchPlan) -> RaggedBatch:
        """The batch of a plan; SampleError, StoreError or ManifestError where it cannot be had."""
        samples, buffer = self._decoded(plan)
        runs = self._runs_of(plan, samples, self._apart)
        if any(sample.instead for sample in samples):
            buffer = self._packed([sample.pixels.reshape(-1) for sample in samples])
        return self.pack(plan, samples, runs, buffer)

    def read_encoded(self, plan: BatchPlan) -> EncodedBatch:
        """The same batch with its images as their files hold them: checked, sizes compared, not decoded."""
        rows = self.rows(plan)
        samples = self._samples(
            plan, rows, lambda number, load: self.encoded(rows[number], load), self.encoded
        )
        runs = self._runs_of(plan, samples, self.encoded)
        return EncodedBatch(
            encoded=self._packed([sample.pixels for sample in samples]),
            encoded_offsets=tuple(accumulate((len(sample.pixels) for sample in samples), initial=0)),
            image_formats=tuple(sample.row.entry.image_format for sample in samples),
            rest=self.pack(plan, samples, runs, torch.empty(0, dtype=torch.uint8)),
        )

    def rows(self, plan: BatchPlan) -> list[Row]:
        """What the index says of a plan's samples; ValueError for more pixels than runs can count."""
        rows = [self._row(part, place) for part, place in zip(plan.parts, plan.places, strict=True)]
        num_pixels = sum(row.entry.height * row.entry.width for row in rows)
        if num_pixels > MAX_BATCH_PIXELS:
            raise ValueError(
                f"a batch of {len(rows)} images has {num_pixels} pixels, at most {MAX_BATCH_PIXELS} "
                "can be counted; lower batch_per_rank"
            )
        return rows

    def pack(
        self, plan: BatchPlan, samples: Sequence[Decoded], runs: BatchRuns, pixels: torch.Tensor
    ) -> RaggedBatch:
        """The batch of samples whose `pixels` lie in one flat buffer already."""
        run_ends, run_owners = run_tensors(self._buffers.empty(5 * len(runs.ends)))
        run_ends.numpy()[...] = runs.ends
        run_owners.numpy()[...] = runs.owners
        return RaggedBatch(
            pixels=pixels,
            run_ends=run_ends,
            run_owners=run_owners,
            run_offsets=runs.offsets,
            heights=tuple(sample.row.entry.height for sample in samples),
            widths=tuple(sample.row.entry.width for sample in samples),
            labels=runs.labels,
            keys=tuple(sample.row.entry.key for sample in samples),
            positions=plan.positions,
            epochs=plan.epochs,
            valid=plan.valid,
            num_replaced=sum(sample.instead for sample in samples),
        )

    def _decoded(self, plan: BatchPlan) -> tuple[list[Decoded], torch.Tensor]:
        """The samples, decoded into their places of one buffer; substitutes have their own."""
        rows = self.rows(plan)
        starts = [0, *accumulate(row.entry.height * row.entry.width * 3 for row in rows)]
        buffer = self._buffers.empty(starts[-1])
        flat = buffer.numpy()

        def in_place(number: int, load: Load) -> Decoded:
            height, width = rows[number].entry.height, rows[number].entry.width
            place = slice(starts[number], starts[number + 1])
            return self.sample(rows[number], flat[place].reshape(height, width, 3), load)

        return self._samples(plan, rows, in_place, self._apart), buffer

    def _runs_of(
        self, plan: BatchPlan, samples: list[Decoded], substitute: Callable[[Row], Decoded]
    ) -> BatchRuns:
        """The runs of all samples; damaged ones are replaced in `samples` where the policy says so."""
        while True:
            try:
                return unpack_batch(
                    [sample.packed_runs for sample in samples],
                    [sample.row.entry.height for sample in samples],
                    [sample.row.entry.width for sample in samples],
                    self._decompressor(),
                )
            except RunsError:
                self._replace_bad_runs(plan, samples, substitute)

    def _replace_bad_runs(
        self, plan: BatchPlan, samples: list[Decoded], substitute: Callable[[Row], Decoded]
    ) -> None:
        """Find the samples whose runs are refused, and replace them or raise what is wrong."""
        found = False
        for number, (sample, position) in enumerate(zip(samples, plan.positions, strict=True)):
            try:
                self._runs(sample)
            except SampleError as error:
                if self.policy == RAISE:
                    raise
                samples[number], found = self._substitute(error, position, substitute), True
        if not found:
            raise RunsError("the runs of a batch are refused that each sample's own are not; report this")

    def _packed(self, parts: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """The parts back to back in one new buffer."""
        buffer = self._buffers.empty(sum(len(part) for part in parts))
        np.concatenate(parts, out=buffer.numpy())
        return buffer

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
                if self.policy == RAISE:
                    raise
                samples.append(self._substitute(error, position, substitute))
        return samples

    def _loads(self, rows: list[Row]) -> list[Load]:
        """A function for each row that gives its members; where reads wait for a network, all run at once."""
        num_connections = max(self.selection.splits[row.split].store.num_connections for row in rows)
        if num_connections == 1:
            return [partial(self.source.image_and_runs, row) for row in rows]
        with ThreadPoolExecutor(num_connections, thread_name_prefix="maskshards-read") as pool:
            return [pool.submit(self.source.image_and_runs, row).result for row in rows]

    def _substitute(self, fault: SampleError, position: int, substitute: Callable[[Row], Decoded]) -> Decoded:
        """Another sample drawn from (seed, position, attempt) alone, so the same one in every world."""
        for attempt in range(MAX_SUBSTITUTES):
            word = int(random_words(1, SUBSTITUTE, self.seed, position, attempt)[0])
            number = word % int(self._part_starts[-1])
            part = int(np.searchsorted(self._part_starts, number, side="right")) - 1
            row = self._row(part, number - int(self._part_starts[part]))
            try:
                sample = substitute(row)
                self._runs(sample)
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
        """Read, check and decode one sample into `out`, (H, W, 3). `load` gives what was read before."""
        with _naming(row):
            image, packed_runs = load() if load else self.source.image_and_runs(row)
            decode_image(image, row.entry.image_format, out)
            return Decoded(row, out, packed_runs)

    def encoded(self, row: Row, load: Load | None = None) -> Decoded:
        """Read and check one sample; its pixels are (E,) uint8, the bytes of its file."""
        with _naming(row):
            image, packed_runs = load() if load else self.source.image_and_runs(row)
            check_size(image, row.entry.image_format, row.entry.height, row.entry.width)
            return Decoded(row, np.frombuffer(image, np.uint8), packed_runs)

    def _apart(self, row: Row) -> Decoded:
        return self.sample(row, np.empty((row.entry.height, row.entry.width, 3), np.uint8))

    def _runs(self, sample: Decoded) -> LabelledRuns:
        """One sample's runs; SampleError that names it where they are refused."""
        row = sample.row
        with _naming(row):
            entry = row.entry
            runs = unpack_runs(sample.packed_runs, entry.height, entry.width, self._decompressor())
            if len(runs.labels) > MOST_BYTE_LABELS:
                raise SampleError(
                    f"{len(runs.labels)} classes in one image, a batch carries at most {MOST_BYTE_LABELS}"
                )
            return runs

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        """One a thread: a shared one reports corrupt data at once."""
        if not hasattr(self._thread, "decompressor"):
            self._thread.decompressor = zstandard.ZstdDecompressor()
        own: zstandard.ZstdDecompressor = self._thread.decompressor
        return own

    def _row(self, part: int, place: int) -> Row:
        return self.source.row(*self.selection.locate(part, place))

"""Batches of samples that a user's function has changed, as flat buffers or as plain dicts of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from maskshards.shards.batch import RaggedBatch
from maskshards.shards.errors import RAISE, SampleError
from maskshards.shards.format.batch_runs import join_runs
from maskshards.shards.loading.batch_reader import BatchReader, Decoded
from maskshards.shards.loading.class_maps import check_class_map, class_map_of, runs_of
from maskshards.shards.loading.transform import (
    Transform,
    Transformed,
    as_pixels,
    checked,
    generator_of,
    stacked,
)
from maskshards.shards.order.batch_plans import BatchPlan
from maskshards.shards.order.selection import Selection


class TransformedReader(BatchReader):
    """Makes batches whose samples went through `transform`, or stay as they are where it is None."""

    def __init__(
        self,
        selection: Selection,
        *,
        seed: int,
        policy: str = RAISE,
        pin: bool = False,
        lanes: int = 0,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(selection, seed=seed, policy=policy, pin=pin, lanes=lanes)
        if not callable(transform) and transform is not None:
            raise ValueError(f"transform is {transform!r}; expected a function of one sample")
        self.transform = transform
        self.num_classes = len(selection.classes)

    def read(self, plan: BatchPlan) -> RaggedBatch:
        """The batch of a plan with changed sizes, pixels and runs; raises what `transform` raises too."""
        samples, _ = self._decoded(plan)
        changed, runs = [], []
        for sample, result in self._transformed(plan, samples):
            entry = sample.row.entry
            pixels = as_pixels(result.image, entry.key)
            row = sample.row._replace(entry=replace(entry, height=pixels.shape[0], width=pixels.shape[1]))
            changed.append(sample._replace(row=row, pixels=pixels))
            runs.append(runs_of(result.class_map, self.num_classes))
        buffer = self._packed([sample.pixels.reshape(-1) for sample in changed])
        return self.pack(plan, changed, join_runs(runs), buffer)

    def _transformed(self, plan: BatchPlan, samples: list[Decoded]) -> Iterator[tuple[Decoded, Transformed]]:
        """Each sample with its image and class map, by the user's function where there is one."""
        for number, epoch in enumerate(plan.epochs):
            try:
                runs = self._runs(samples[number])
            except SampleError as error:
                if self.policy == RAISE:
                    raise
                samples[number] = self._substitute(error, plan.positions[number], self._apart)
                runs = self._runs(samples[number])
            sample = samples[number]
            key, shape = sample.row.entry.key, sample.pixels.shape[:2]
            result: tuple[Any, Any] = sample.pixels, class_map_of(runs, shape[0], shape[1], self.num_classes)
            if self.transform is not None:
                result = self._by_user(self.transform, result, epoch, key)
            made = checked(result, key)
            try:
                check_class_map(made.class_map, self.num_classes)
            except ValueError as error:
                raise ValueError(f"sample {key!r}: after the transform {error}") from None
            yield sample, made

    def _by_user(self, transform: Transform, sample: tuple[Any, Any], epoch: int, key: str) -> Any:
        try:
            return transform(*sample, generator_of(self.seed, epoch, key))
        except StopIteration as error:  # would end the batch's own loop
            raise RuntimeError(f"sample {key!r}: the transform raised StopIteration") from error
        except Exception as error:
            error.add_note(f"raised by the transform of sample {key!r}, epoch {epoch}")
            raise

    def read_tensors(self, plan: BatchPlan, with_valid: bool = False) -> dict[str, Any]:
        """The batch as a plain dict of tensors, see `transform.stacked`; all images must have one size.

        With "valid" besides, (B,) bool, if asked for.
        """
        samples, _ = self._decoded(plan)
        results = [result for _, result in self._transformed(plan, samples)]
        keys = [sample.row.entry.key for sample in samples]
        batch = stacked(results, keys, plan.positions, pin=self.pin)
        return {**batch, "valid": torch.tensor(plan.valid)} if with_valid else batch

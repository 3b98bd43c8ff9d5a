"""The shapes that leave the loader and the shapes that enter the model.

A batch of differently sized images travels as a few flat buffers, so that it crosses to the device in two or
three copies and never as one tensor per image or per mask: the pixels, the runs, whose two tensors lie back
to back in one buffer, and the table of numbers that `maskshards.shards.augment.crop` crops by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

VOID = 255  # CropBatch.owner_map where a pixel belongs to no class; so an image has at most 254 classes


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """B whole images with their labelled runs. `flat` tensors may be pinned, or on the device already."""

    pixels: Tensor  # flat (P,) uint8: the images back to back, each (H, W, 3) RGB, row-major
    run_ends: Tensor  # flat (R,) int32: exclusive end of each run, counted over all pixels of the batch
    run_owners: Tensor  # flat (R,) uint8: 0 = no mask, k = the image's k-th label
    run_offsets: tuple[int, ...]  # B + 1 places in run_ends, one stretch an image
    heights: tuple[int, ...]  # B, pixels
    widths: tuple[int, ...]  # B, pixels
    labels: tuple[tuple[int, ...], ...]  # B tuples of ascending class ids; owner k is labels[i][k - 1]
    keys: tuple[str, ...]  # B sample keys
    positions: tuple[int, ...]  # B places in the endless global order; all that is random hangs on them
    epochs: tuple[int, ...]  # B, the epoch that each position lies in (a batch may straddle two)
    valid: tuple[bool, ...]  # B, False only for rows that pad an evaluation batch: they count nowhere
    num_replaced: int = 0  # how many rows stand in for damaged samples, by the policy "replace"

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> RaggedBatch:
        """The same batch with its three flat tensors on `device`, in two copies if its runs are packed."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RaggedBatch:
        """The same batch with its three flat tensors in pinned memory."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> RaggedBatch:
        pixels, ends, owners = self.pixels, self.run_ends, self.run_owners
        storages = [tensor.untyped_storage().data_ptr() for tensor in (ends, owners)]
        if storages[0] == storages[1] and owners.data_ptr() == ends.data_ptr() + ends.nbytes:
            size, start = ends.nbytes + owners.nbytes, owners.storage_offset() - ends.nbytes
            run_ends, run_owners = run_tensors(move(owners.as_strided((size,), (1,), start)))
        else:
            run_ends, run_owners = move(ends), move(owners)
        return replace(self, pixels=move(pixels), run_ends=run_ends, run_owners=run_owners)


def run_tensors(packed: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) int32 and (R,) uint8, for run_ends and run_owners: views of `packed`, (5R,) uint8."""
    num_runs = len(packed) // 5
    return packed[: 4 * num_runs].view(torch.int32), packed[4 * num_runs :]


FLAT = ("pixels", "run_ends", "run_owners")


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """B images as their files hold them, to be decoded on the device; always on the host."""

    encoded: Tensor  # flat (E,) uint8: the image files back to back
    encoded_offsets: tuple[int, ...]  # B + 1 places in encoded
    image_formats: tuple[str, ...]  # B, "jpg" or "png"
    rest: RaggedBatch  # everything else; its pixels are empty

    def __len__(self) -> int:
        return len(self.rest)


@dataclass(frozen=True, slots=True)
class CropBatch:
    """B crops of one size, ready for the model; all tensors on one device.

    `owner_map` does not hold class ids: `maskshards.shards.augment.targets` makes those, masks or boxes of
    it. It is int16, which takes part in indexing and comparisons but which torch's cross entropy refuses,
    whatever its shape; uint8 and int64 would train on numbers that mean another class in each image.
    """

    images: Tensor  # (B, 3, S_h, S_w) float32, normalised; 0 where the crop reaches beyond the image
    owner_map: Tensor  # (B, S_h, S_w) int16: index into the image's own labels, or VOID
    labels: Tensor  # (B, K) int64: class ids, ascending; -1 beyond an image's own count; K >= 1
    keys: tuple[str, ...]  # B
    positions: tuple[int, ...]  # B, as in RaggedBatch
    largest_class_id: int | None = None  # in `labels`, known without asking the device; None: not known

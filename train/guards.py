"""Checks that a run is still what it seems: every parameter trains, batch norms learn, figures are finite.

A gradient that is not finite never reaches the weights: its flag goes to the optimiser on the device
(`found_inf` of the fused AdamW), which leaves weights and moments as they are. The host reads the flag during
the next step, when the device has long passed it, so that watching costs no wait.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shards.batch import CropBatch
from train.checkpoint import replacing
from train.distributed import batch_statistics
from train.nonfinite import NonFiniteError
from train.optimizer import named_trainables
from train.schema import GuardConfig

logger = logging.getLogger(__name__)

STOP, SKIP = "stop", "skip"


class GuardError(RuntimeError):
    """Training would go on, but not as configured."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One micro-step as it is kept until its step is known to be sound."""

    crops: CropBatch
    total: Tensor  # detached loss


class Guard:
    """Watches one process's steps; every rank sees the same flag, because gradients are averaged before."""

    def __init__(
        self, config: GuardConfig, decoder: nn.Module, optimizer: torch.optim.Optimizer, folder: Path
    ) -> None:
        self.config, self.decoder, self.optimizer, self.folder = config, decoder, optimizer, folder
        self.skipped = 0  # steps left out because their gradient was not finite
        self._norms = [m for m in decoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._kept: list[Tensor] = []
        self._pending: tuple[int, Tensor, torch.cuda.Event | None, list[Seen]] | None = None
        self._checked = False

    def begin_step(self) -> None:
        """Before the first micro-step: batch norms must learn; in skip mode keep their statistics."""
        if not self._checked:
            frozen = [name for name, m in self.decoder.named_modules() if m in self._norms and not m.training]
            if frozen:
                raise GuardError(f"batch norms {frozen[:4]} are in eval mode: they would never learn")
        if self.config.non_finite == SKIP:
            self._kept = [buffer.clone() for buffer in batch_statistics(self.decoder)]

    def after_backward(self) -> None:
        """After the first backward pass of the process: every trainable parameter must have a gradient."""
        if self._checked:
            return
        idle = [name for name, parameter, _ in named_trainables(self.decoder) if parameter.grad is None]
        if idle:
            raise GuardError(f"{len(idle)} trainable parameters receive no gradient: {', '.join(idle[:8])}")
        self._checked = True

    def watch(self, step: int, norm: Tensor, seen: list[Seen]) -> None:
        """Between clip and update: hand the optimiser the flag, and send it to the host without waiting."""
        flag = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = flag  # type: ignore[attr-defined]
        if self.config.non_finite == SKIP:
            for buffer, kept in zip(batch_statistics(self.decoder), self._kept, strict=True):
                buffer.copy_(torch.where(flag > 0, kept, buffer))
        if not flag.is_cuda:
            self._pending = step, flag, None, seen
            return
        host = torch.empty((), pin_memory=True).copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = step, host, event, seen

    def settle(self) -> None:
        """Learn about the watched step, while its gradients still stand.

        Raises NonFiniteError (mode stop, or too many skipped) that names parameters and image keys, after the
        crops were written below the run's folder.
        """
        if self._pending is None:
            return
        step, flag, event, seen = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        if not float(flag):
            return
        self.skipped += 1
        message = self._describe(step, seen)
        if self.config.non_finite == STOP:
            raise NonFiniteError(f"{message}. The step was not taken; guards.non_finite=skip goes on")
        if self.skipped > self.config.max_skipped:
            raise NonFiniteError(f"{message}; {self.skipped} such steps, guards.max_skipped allows fewer")
        logger.error("%s; the step was left out", message)

    def _describe(self, step: int, seen: Sequence[Seen]) -> str:
        names = [
            name
            for name, parameter, _ in named_trainables(self.decoder)
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        bad = [one for one in seen if not torch.isfinite(one.total)] or list(seen)
        keys = [key for one in bad for key in one.crops.keys]
        places = [str(dump(self.folder, step, one)) for one in bad]
        return (
            f"step {step}: the gradient is not finite in {len(names)} parameters "
            f"(first: {', '.join(names[:3])}); "
            f"images {', '.join(keys)}; crops in {', '.join(places)}"
        )


def dump(folder: Path, step: int, seen: Seen) -> Path:
    """The crops of one micro-step as safetensors, keys and positions in its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    crops = seen.crops
    path = folder / f"step{step}-position{crops.positions[0]}.safetensors"
    tensors = {"images": crops.images, "label_map": crops.label_map, "labels": crops.labels}
    facts = {"keys": "\n".join(crops.keys), "positions": " ".join(map(str, crops.positions))}
    whole = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as hidden:  # a link in its place is replaced, not followed
        save_file(whole, hidden, metadata=facts)
    return path


def poisoned(predictions: Iterable[Any]) -> Tensor:
    """A loss that is NaN and reaches every parameter: how one rank tells all that a step cannot count."""
    sums = [p.class_logits.float().sum() + p.mask_logits.float().sum() for p in predictions]
    return torch.stack(sums).sum() * torch.nan


def order_digest(batches: Iterable[CropBatch]) -> int:
    """A number for which samples stand at which positions, whatever the order or the rank they come in.

    Sums of it over ranks stay comparable, in 64-bit arithmetic that wraps.
    """
    total = 0
    for crops in batches:
        for key, position in zip(crops.keys, crops.positions, strict=True):
            word = hashlib.blake2b(f"{position} {key}".encode(), digest_size=8).digest()
            total += int.from_bytes(word, "little", signed=True)
    return (total + 2**63) % 2**64 - 2**63

"""Checks that a run is still what it seems: every parameter trains, batch norms learn, figures are finite.

A gradient that is not finite never reaches the weights: its flag goes to the optimiser on the device
(`found_inf` of the fused AdamW), which leaves weights and moments as they are. The host reads the flag with
the next step's matching costs, which it waits for anyway, so that watching costs no wait and no copy. (The
linear head matches nothing: there a copy of one number goes along with each step.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from maskshards.train.config.optimisation import SKIP, STOP
from maskshards.train.config.schema import GuardConfig
from maskshards.train.distributed.ranks import batch_statistics
from maskshards.train.losses.host_copies import HostCopy
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.optim.optimizer import named_trainables
from maskshards.train.trainer.diagnosis import Seen

logger = logging.getLogger(__name__)


class GuardError(RuntimeError):
    """Training would go on, but not as configured."""


class Guard:
    """Watches one process's steps; every rank sees the same flag, because gradients are averaged before."""

    def __init__(
        self,
        config: GuardConfig,
        decoder: nn.Module,
        optimizer: torch.optim.Optimizer,
        diagnose: Callable[[int, Sequence[Seen]], str],
        *,
        flag_with_loss: bool = False,
    ) -> None:
        """`flag_with_loss`: the loss brings the flag to the host; else each step sends a copy of its own."""
        self.config, self.decoder, self.optimizer, self.diagnose = config, decoder, optimizer, diagnose
        self.flag_with_loss = flag_with_loss
        self.skipped = 0  # steps left out because their gradient was not finite
        self._norms = [m for m in decoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._kept: list[Tensor] = []
        self._pending: tuple[int, Tensor, HostCopy | None, list[Seen]] | None = None
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
        """Between clip and update: hand the optimiser the flag, and keep it for the host."""
        flag = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = flag  # type: ignore[attr-defined]
        if self.config.non_finite == SKIP:
            for buffer, kept in zip(batch_statistics(self.decoder), self._kept, strict=True):
                buffer.copy_(torch.where(flag > 0, kept, buffer))
        self._pending = step, flag, None if self.flag_with_loss else HostCopy(flag), seen

    @property
    def flag(self) -> Tensor | None:
        """(1,) on the device: not 0 if the watched step was not finite; None if no loss takes it along."""
        return self._pending[1].view(1) if self._pending is not None and self.flag_with_loss else None

    def resolve(self, brought: float | None = None) -> None:
        """Learn about the watched step, while its gradients still stand.

        `brought`: its flag, if it came to the host with something else; without it this waits for the device.

        Raises NonFiniteError (mode stop, or too many skipped), on every rank for the same step, with what
        `diagnose` found.
        """
        if self._pending is None:
            return
        step, flag, copy, seen = self._pending
        self._pending = None
        if brought is None:
            brought = float(flag if copy is None else copy.wait())
        if not brought:
            return
        self.skipped += 1
        message = self.diagnose(step, seen)
        if self.config.non_finite == STOP:
            raise NonFiniteError(f"{message}\nThe step was not taken; guards.non_finite=skip goes on")
        if self.skipped > self.config.max_skipped:
            raise NonFiniteError(f"{message}\n{self.skipped} such steps, guards.max_skipped allows fewer")
        logger.error("%s\nthe step was left out", message)

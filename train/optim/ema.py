"""A moving average of the trainable weights, which scores and exports often prefer to the weights themselves.

After each step shadow <- shadow + (1 - d) (weight - shadow), where d = min(decay, (1 + t) / (10 + t)) after t
steps, so that early averages are not mostly initialisation. Batch statistics are moving averages already and
are shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maskshards.train.optim.optimizer import named_trainables


class Ema:
    """The average of one module's trainables, on their device; memory: one more copy of them."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: parameter for name, parameter, _ in named_trainables(module)}
        self.shadow = {name: parameter.detach().clone() for name, parameter in self._live.items()}

    @torch.no_grad()
    def update(self, steps_taken: int) -> None:
        """Take in the weights after `steps_taken` optimiser steps."""
        weight = 1 - min(self.decay, (1 + steps_taken) / (10 + steps_taken))
        torch._foreach_lerp_(list(self.shadow.values()), list(self._live.values()), weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the module holds the average; afterwards its own weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._live.items():
            kept = parameter.clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin at the module's present weights."""
        torch._foreach_copy_(list(self.shadow.values()), list(self._live.values()))

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Continue from saved averages; ValueError lists names that do not fit."""
        odd = sorted(tensors.keys() ^ self.shadow.keys())
        if odd:
            raise ValueError(f"averaged weights do not fit the model: {', '.join(odd[:8])}")
        for name, value in tensors.items():
            self.shadow[name].copy_(value)

"""Layers that keep only their inputs for the backward pass and compute the rest again.

About a third more arithmetic for a fraction of the memory (Chen et al. 2016, arXiv 1604.06174).

Nothing in the wrapped layers is random or keeps statistics: drop numbers come in as inputs, and the batch
norms stand outside. So computing twice changes no number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A module that runs its layers through `run`; `recompute` is off until `set_recompute` turns it on."""

    recompute: bool = False

    def run(self, layer: nn.Module, *inputs: Any) -> Any:
        """layer(*inputs), keeping what the switch says."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return layer(*inputs)


def set_recompute(model: nn.Module, on: bool) -> None:
    """Turn the switch of every Recomputing module below `model`."""
    for module in model.modules():
        if isinstance(module, Recomputing):
            module.recompute = on

"""Random numbers that silence parts of the head in training, drawn on the host from (seed, position,
purpose).

Stochastic depth drops a whole residual branch for one image (Huang et al. 2016, arXiv 1603.09382), channel
dropout a whole feature map. Both are drawn per sample before the forward pass and multiplied in there, so
that a resumed run, or one on another number of ranks, silences the same branches for the same samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def draw_keep_factors(
    positions: Sequence[int], seed: int, purpose: str, num_factors: int, rate: float
) -> Tensor:
    """(B, num_factors) float32 on the CPU: 0 with probability `rate`, else 1 / (1 - rate).

    Row i depends on (seed, positions[i], purpose) alone. `rate` in [0, 1).
    """
    word = zlib.crc32(purpose.encode())
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, position, word]))).random(
            num_factors
        )
        for position in positions
    ]
    keep = np.stack(rows) >= rate if rows else np.zeros((0, num_factors), bool)
    return torch.from_numpy(keep.astype(np.float32) / np.float32(1 - rate))

"""Random factors that silence parts of the head in training, drawn on the host.

Their numbers come from (seed, position, purpose).

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

from maskshards.shards.augment.philox import uniforms


def draw_keep_factors(
    positions: Sequence[int], seed: int, purpose: str, num_factors: int, rate: float
) -> Tensor:
    """(B, num_factors) float32 on the CPU: 0 with probability `rate`, else 1 / (1 - rate).

    Row i depends on (seed, positions[i], purpose) alone. `rate` in [0, 1).
    """
    word = zlib.crc32(purpose.encode())  # far above the small numbers that name the operations of a crop
    numbers = uniforms(seed, [0] * len(positions), list(positions), [word] * len(positions), num_factors)
    return torch.from_numpy((numbers >= rate).astype(np.float32) / np.float32(1 - rate))

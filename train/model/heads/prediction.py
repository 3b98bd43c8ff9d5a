"""What the query decoder says after each of its layers."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prediction:
    """One supervised layer's answer for B images and Q queries."""

    class_logits: Tensor  # (B, Q, C + 1); the last column means "no object"
    mask_logits: Tensor  # (B, Q, H/4, W/4)

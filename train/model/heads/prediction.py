"""What the query decoder says after each of its layers."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class MaskProduct:
    """The masks of all layers before they are multiplied out: `vectors[b, l, q]` times `features[b]`."""

    vectors: Tensor  # (B, L, Q, C)
    features: Tensor  # (B, C, H/4, W/4)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One supervised layer's answer for B images and Q queries."""

    class_logits: Tensor  # (B, Q, C + 1); the last column means "no object"
    mask_logits: Tensor  # (B, Q, H/4, W/4)
    product: MaskProduct | None = None  # what `mask_logits` were made from, the same for all layers

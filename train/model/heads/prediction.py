"""What the query decoder says after each of its layers."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class MaskProduct:
    """The masks of all layers before they are multiplied out: `vectors[b, l, q]` times `features[b]`."""

    vectors: Tensor  # (B, L, Q, C)
    features: Tensor  # (B, C, H/4, W/4), of the vectors' type


@dataclass(frozen=True, slots=True)
class Prediction:
    """One supervised layer's answer for B images and Q queries: with masks, or with what they come from."""

    class_logits: Tensor  # (B, Q, C + 1); the last column means "no object"
    masks: Tensor | None  # (B, Q, H/4, W/4) mask logits; None: not multiplied out
    product: MaskProduct | None = None  # what the masks are made from, the same for all layers
    layer: int = 0  # of the product's

    @property
    def mask_logits(self) -> Tensor:
        """(B, Q, H/4, W/4), multiplied out here where the decoder did not. ValueError without both."""
        if self.masks is not None:
            return self.masks
        maps = self.source
        assert self.product is not None
        return (self.product.vectors[:, self.layer] @ maps.flatten(2)).unflatten(2, maps.shape[2:])

    @property
    def source(self) -> Tensor:
        """The maps (B, ., H/4, W/4) that the masks are read from: themselves, or the mask features."""
        if self.masks is not None:
            return self.masks
        if self.product is None:
            raise ValueError("a prediction without masks and without what they are the product of")
        return self.product.features

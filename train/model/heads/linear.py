"""The linear head: batch norm and one 1x1 convolution over the concatenated patch maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskshards.train.model.ops.resize import resized


class LinearHead(nn.Module):
    """Patch maps -> class score map at the resolution of the first one; the reference's parameter names."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.batchnorm_layer = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        self.conv.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: tuple[Tensor, ...], keep: Tensor | None = None) -> Tensor:
        """features (B, D, h, w) each, keep (B, channels) factors of channel dropout -> (B, num_classes, h,
        w).
        """
        size = features[0].shape[-2], features[0].shape[-1]
        x = torch.cat([features[0], *(resized(f, size) for f in features[1:])], 1)
        if keep is not None:
            x = x * keep[:, :, None, None].to(x.dtype)
        return self.conv(self.batchnorm_layer(x))

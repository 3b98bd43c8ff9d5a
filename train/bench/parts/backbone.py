"""The frozen backbone alone: its products in bfloat16 and in 8 bits, as they stand and compiled."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from maskshards.train.bench.budgeted import NotHere
from maskshards.train.bench.hardware import median_ms
from maskshards.train.bench.journal import Figures
from maskshards.train.bench.parts.setting import Setting
from maskshards.train.model.backbone.architectures import FP8, ModelError
from maskshards.train.model.backbone.fp8 import in_fp8
from maskshards.train.model.backbone.frozen import FrozenBackbone, blocks_of

PREDICTED_MS = {"eager": 10.0, "compiled": -6.0}  # of 8 bits at full size (docs/benchmarks/train-gpu.md)


def precisions(setting: Setting) -> Figures:
    """Milliseconds of a batch of features in both precisions, and how far 8 bits are from bfloat16."""
    bench = setting.bench(setting.widths[0])
    segmenter, config = bench.segmenter, bench.config
    height, width = config.transforms.train.crop_size or (512, 512)
    generator = torch.Generator(setting.device).manual_seed(0)
    images = torch.randn((config.bs, 3, height, width), generator=generator, device=setting.device)
    in_bytes = deepcopy(segmenter.backbone)
    try:
        in_fp8(blocks_of(in_bytes.vit))
    except ModelError as error:
        raise NotHere(str(error)) from error
    in_bytes.precision = FP8

    def features(backbone: FrozenBackbone) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: backbone(images, segmenter.indices)

    both = {"bfloat16": segmenter.backbone, FP8: in_bytes}
    pairs = list(zip(*(features(backbone)() for backbone in both.values()), strict=True))
    found: Figures = {"predicted change, ms": PREDICTED_MS}
    found["relative error"] = [float((b.float() - a.float()).norm() / a.float().norm()) for a, b in pairs]
    for name, backbone in both.items():
        found[name] = {"eager_ms": median_ms(features(backbone), setting.device, setting.repeats)}
    for name, backbone in both.items():
        torch.compiler.reset()
        compiled = deepcopy(backbone)
        compiled.compile_blocks(dynamic=False, **setting.compiler)
        found[name]["compiled_ms"] = median_ms(features(compiled), setting.device, setting.repeats)
    return found

"""Does a GPU compute what a CPU does? One small model from one seed: predictions, loss, gradients on both.

Discrete choices (which query answers for which mask, which points are uncertain, where a query may look)
can flip on a rounding, so what is compared are norms over all numbers, not the largest difference.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from maskshards.shards.augment.crop import crop, draw_crops
from maskshards.shards.batch import CropBatch
from maskshards.train.bench.journal import Figures
from maskshards.train.bench.parts.setting import RECIPE, TINY, Setting
from maskshards.train.bench.step import BenchStep, build_bench_step, build_loss
from maskshards.train.bench.synthetic import synthetic_batch
from maskshards.train.config.load import load_config
from maskshards.train.tracking.phase_timer import phase_modules

CPU = torch.device("cpu")
SIZE = (
    "decoder_head.hidden_dim=64", "m2f_train.num_points=1024", "transforms.train.img_size=128",
    "transforms.train.crop_size=[128,128]",
)  # fmt: skip
BACKENDS = (
    SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION,
)  # fmt: skip
EXACT_LIMIT = 5e-3  # of float32 predictions, losses and gradients, relative in norm
ROUNDED_FACTOR = 2.0  # bfloat16 may be so many times as far from float32 as the CPU's own bfloat16 is
ROUNDED_SLACK = 2e-3


@dataclass(frozen=True)
class Answers:
    """What one step of one model gives, on the CPU in float32."""

    class_logits: Tensor  # of the last layer
    mask_logits: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]  # flat, by part of the head


def answers(bench: BenchStep, crops: CropBatch, backend: SDPBackend | None = None) -> Answers:
    """The step's predictions, loss and gradients; attention by `backend` where it can, plain elsewhere."""
    decoder = bench.segmenter.decoder
    decoder.zero_grad(set_to_none=True)
    chosen = nullcontext() if backend is None else sdpa_kernel([backend, SDPBackend.MATH])
    dtype = bench.autocast or torch.bfloat16
    with chosen:
        with torch.autocast(bench.device.type, dtype, enabled=bench.autocast is not None):
            predictions = decoder(crops.images, bench.segmenter.features(crops.images))
        total = bench.loss(predictions, crops)
        total.backward()
    gradients = {
        name: torch.cat([p.grad.flatten().float().cpu() for p in module.parameters() if p.grad is not None])
        for name, module in phase_modules(bench.segmenter).items()
        if name != "backbone"
    }
    last = predictions[-1]
    class_logits, mask_logits = (t.detach().float().cpu() for t in (last.class_logits, last.mask_logits))
    return Answers(class_logits, mask_logits, total.detach().float().cpu(), gradients)


def errors(ours: Answers, exact: Answers) -> dict[str, float]:
    """Relative errors in norm."""
    found = {
        "class logits": relative(ours.class_logits, exact.class_logits),
        "mask logits": relative(ours.mask_logits, exact.mask_logits),
        "loss": relative(ours.loss, exact.loss),
    }
    return found | {
        f"gradient, {name}": relative(ours.gradients[name], exact.gradients[name]) for name in exact.gradients
    }


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@dataclass
class Twins:
    """A small model on the CPU, the same on `device`, and crops for both; in float32 or bfloat16."""

    device: torch.device
    low: bool

    def __post_init__(self) -> None:
        dtype = "BFLOAT16" if self.low else "FLOAT32"
        config = load_config(
            [
                f"config={RECIPE}", "datasets.root=synthetic", "output_dir=unused", "model.weights=random",
                *TINY, *SIZE, f"model_dtype={dtype}",
            ]
        )  # fmt: skip
        self.here = build_bench_step(config, CPU)
        # Copied, not built: weights drawn on a device would be others.
        there = deepcopy(self.here.segmenter).to(self.device)
        loss = build_loss(config, self.device, False)
        autocast = torch.bfloat16 if self.low else None
        self.there = replace(self.here, segmenter=there, loss=loss, device=self.device, autocast=autocast)
        batch, settings = synthetic_batch(config.bs, config.decoder_head.classes), self.here.crops
        self.crops = crop(batch, draw_crops(batch, config.seed, settings), settings)

    def on_cpu(self) -> Answers:
        return answers(self.here, self.crops)

    def on_device(self, backend: SDPBackend | None = None) -> Answers:
        """Float32 products are float32 in here: TF32 would hide what is compared."""
        moved = {
            name: getattr(self.crops, name).to(self.device) for name in ("images", "owner_map", "labels")
        }
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            return answers(self.there, replace(self.crops, **moved), backend)
        finally:
            torch.backends.cudnn.allow_tf32 = before


def compare(device: torch.device) -> dict[str, dict[str, dict[str, float]]]:
    """By type and backend: each error on `device`, and the limit that it must keep to (`NAME limit`)."""
    exact = Twins(device, low=False)
    reference = exact.on_cpu()
    low = Twins(device, low=True)
    on_cpu = errors(low.on_cpu(), reference)
    found: dict[str, dict[str, dict[str, float]]] = {"float32": {}, "bfloat16": {}}
    for backend in BACKENDS:
        ours = errors(exact.on_device(backend), reference)
        found["float32"][backend.name] = ours | {f"{name} limit": EXACT_LIMIT for name in ours}
        ours = errors(low.on_device(backend), reference)
        limits = {f"{name} limit": ROUNDED_FACTOR * on_cpu[name] + ROUNDED_SLACK for name in ours}
        found["bfloat16"][backend.name] = ours | limits
    return found


def breaches(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """What is beyond its limit, or not a number, in words."""
    return [
        f"{dtype}, {backend}: {name} {row[name]:.2g}, limit {row[f'{name} limit']:.2g}"
        for dtype, rows in found.items()
        for backend, row in rows.items()
        for name in row
        if not name.endswith(" limit") and not row[name] <= row[f"{name} limit"]
    ]


def parity(setting: Setting) -> Figures:
    """The table, the breaches, and the largest error of each type."""
    found = compare(setting.device)
    worst = {
        dtype: max(
            value for row in rows.values() for name, value in row.items() if not name.endswith("limit")
        )
        for dtype, rows in found.items()
    }
    return {"largest_error": worst, "breaches": breaches(found), "table": found}

"""What all parts share: the device, the configuration of each width, and one model a width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from maskshards.shards.batch import RaggedBatch
from maskshards.train.bench.budgeted import Budget
from maskshards.train.bench.step import BenchStep, build_bench_step
from maskshards.train.bench.synthetic import synthetic_batches
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import TrainConfig

RECIPE = Path(__file__).parents[3] / "configs" / "config-ade20k-m2f-training.yaml"
REFERENCE_BATCH = 8  # what the published code was measured at
FULL_SIZE = ("model.dino_hub=dinov3_vitl16", "bs=16")
TINY = (
    "model.dino_hub=dinov3_tiny16", "bs=2", "decoder_head.ffn_dim=64", "decoder_head.num_queries=12",
    "decoder_head.num_classes=6", "m2f_train.num_points=64", "transforms.train.img_size=64",
    "transforms.train.crop_size=[64,64]", "cpu_autocast=true",
)  # fmt: skip
PROFILE_ROWS = 25


@dataclass
class Setting:
    """`tiny` keeps every part but makes it small, so that a CPU runs all of them in seconds."""

    device: torch.device
    out: Path
    budget: Budget
    tiny: bool
    given: tuple[str, ...] = ()  # key=value settings of the user's, last word
    shards: Path | None = None
    copy_gb_per_s: float | None = None  # as the first part found it
    benches: dict[int, BenchStep] = field(default_factory=dict)
    tflop: dict[int, float] = field(default_factory=dict)  # an image, by width

    @property
    def widths(self) -> tuple[int, int]:
        """Hidden widths of the head: the usual one and the published one."""
        return (32, 64) if self.tiny else (256, 2048)

    @property
    def steps(self) -> tuple[int, int]:
        """Steps to warm up and steps to measure."""
        return (0, 1) if self.tiny else (4, 12)

    @property
    def repeats(self) -> int:
        """Calls of a single operation."""
        return 1 if self.tiny else 30

    def config(self, width: int, *more: str) -> TrainConfig:
        """The configuration of one width, the user's settings included."""
        return load_config(
            [
                f"config={RECIPE}", "datasets.root=synthetic", "output_dir=unused", "model.weights=random",
                "model_dtype=BFLOAT16", f"decoder_head.hidden_dim={width}",
                *(TINY if self.tiny else FULL_SIZE), *self.given, *more,
            ]
        )  # fmt: skip

    def bench(self, width: int) -> BenchStep:
        """The model of this width with its optimiser, built when first asked for."""
        if width not in self.benches:
            self.benches[width] = build_bench_step(self.config(width), self.device)
        return self.benches[width]

    def batches(self, size: int) -> Iterator[RaggedBatch]:
        """Made-up batches without end, in pinned memory on CUDA."""
        classes = self.config(self.widths[0]).decoder_head.classes
        return synthetic_batches(size, classes, pin=self.device.type == "cuda", distinct=2)

    @property
    def compiler(self) -> dict[str, Any]:
        """More options of torch.compile: a dry run takes the graphs and leaves the compiling out."""
        return {"backend": "eager"} if self.tiny else {}

    def floor_ms(self, num_bytes: float) -> float | None:
        """The least time in which this device moves so many bytes; None before its rate is known."""
        return None if self.copy_gb_per_s is None else num_bytes / self.copy_gb_per_s / 1e6

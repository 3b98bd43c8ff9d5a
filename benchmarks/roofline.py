"""Where would a training step's time go, by counting? python benchmarks/roofline.py

    [--backbone dinov3_vitl16] [--width 256] [--batch 16] [--rows 14] [--whole-masks] [--torch-group-norm]
    [--stencil] [--costs-from-features]

Backbone, head and their backward passes run on tensors without data (torch's fake tensors) under bfloat16
autocast while every operation is entered in a ledger: the bytes of its inputs and outputs, and its
arithmetic. An operation is given the longer of both at the rates of an H100 (3.0 TB/s, 660 TFLOP/s in
bfloat16: what copies and large products reach, not the data sheet), and at least 2 microseconds. This is a
lower bound of eager execution: no cache misses, no padding, no waiting for launches. The fused deformable
attention counts by the bytes that it must move; norms that need statistics first read their maps twice; a
convolution of 16-bit numbers works on channels-last maps, so others are turned over before and after it. The
loss, the optimiser and the crop are not in it, but what the loss asks of the masks is: those of MATCHED
queries an image and layer, multiplied out again (before that, and with --whole-masks: read by index, with a
gradient for all). --torch-group-norm: torch's, which reads rows, instead of the channels-last kernel.
--stencil: the adapter's depthwise convolution by the kernel over tokens instead of the library's.
--costs-from-features: no masks of all queries; what the loss reads for its costs, either way, is not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from maskshards.train.bench.cuda_rules import CudaRules
from maskshards.train.config.schema import BackboneLayers, DecoderConfig
from maskshards.train.losses.gather_matched import matched_maps, row_slots
from maskshards.train.model.backbone.load import load_backbone
from maskshards.train.model.heads.adapter import DepthwiseConv
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.ops import deformable_attention, depthwise, group_norm
from maskshards.train.model.ops.fused import set_switch
from maskshards.train.model.segmenter import build_segmenter

BYTES_PER_S, FLOPS_PER_S, LEAST_S = 3.0e12, 660e12, 2e-6
CROP_PX = 512
MATCHED = 9  # of 100 queries: about the classes of an ADE20K image
FREE = frozenset(
    "view expand transpose permute t select slice split split_with_sizes unbind chunk detach alias unsqueeze "
    "squeeze as_strided reshape unflatten flatten _unsafe_view empty empty_like empty_strided new_empty "
    "new_empty_strided device lift_fresh".split()
)  # operations that move nothing


READ_TWICE = {  # how many of an operation's first inputs, maps all of them
    "native_group_norm": 1, "group_norm_last": 1, "native_batch_norm": 1,
    "token_stencil_backward": 1,
    "native_group_norm_backward": 2, "group_norm_last_backward": 2, "native_batch_norm_backward": 2,
}  # fmt: skip
CONVOLVED = {"convolution": 1, "convolution_backward": 2}  # how many of the first inputs are maps
TURNED = "maps turned over for convolutions"

aten = torch.ops.aten


@register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu)
def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The CPU's attention does what CUDA's kernels do; torch's counter does not know it."""
    return int(sdpa_flop_count(query, key, value))


@register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu_backward)
def attention_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


@dataclass
class Entry:
    """One kind of operation in one phase."""

    calls: int = 0
    gigabytes: float = 0.0
    tflop: float = 0.0
    ms: float = 0.0


class Fused(torch.autograd.Function):
    """Stands for the fused deformable attention: its inputs are read and its outputs written, once each."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        with torch.no_grad():  # one pass over all that the kernel reads
            value.clone(), locations.clone(), weights.clone()
        return value.new_zeros(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        value, locations, weights = ctx.saved_tensors
        exact = torch.zeros_like(value, dtype=torch.float32)
        return exact.to(value.dtype), locations.clone(), weights.clone()


class Ledger(TorchDispatchMode):
    """Enters every operation under the phase in hand."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "backbone"
        self.entries: dict[tuple[str, str], Entry] = defaultdict(Entry)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name in FREE or func.is_view:
            return out
        moved = sum(t.numel() * t.element_size() for t in tensors_of((args, kwargs, out)))
        moved += sum(t.numel() * t.element_size() for t in args[: READ_TWICE.get(name, 0)])
        flops = 0
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        self.enter(name, moved, flops)
        if name in CONVOLVED:
            for t in (*args[: CONVOLVED[name]], *tensors_of(out)[:1]):
                if t.element_size() == 2 and not t.is_contiguous(memory_format=torch.channels_last):
                    self.enter(TURNED, 2 * t.numel() * t.element_size(), 0)
        return out

    def enter(self, name: str, moved: int, flops: int) -> None:
        entry = self.entries[self.phase, name]
        entry.calls += 1
        entry.gigabytes += moved / 1e9
        entry.tflop += flops / 1e12
        entry.ms += 1e3 * max(moved / BYTES_PER_S, flops / FLOPS_PER_S, LEAST_S)


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts; each storage view once."""
    leaves = torch.utils._pytree.tree_leaves(tree)
    return list({id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}.values())


def count(
    backbone: str, width: int, batch: int, whole_masks: bool, torch_group_norm: bool, stencil: bool,
    costs_from_features: bool,
) -> Ledger:  # fmt: skip
    """The ledger of one forward and backward pass."""
    frozen = load_backbone(backbone, "random", dtype=torch.bfloat16, device="meta")
    head = DecoderConfig(
        type="m2f", num_classes=150, hidden_dim=width, backbone_out_layers=BackboneLayers.FOUR_EVEN_INTERVALS
    )
    ledger = Ledger()
    nn.init.trunc_normal_ = nn.init.normal_  # the real one looks at values, and there are none
    deformable_attention.kernels_fit = lambda value: True
    group_norm.kernels_fit = lambda maps: not torch_group_norm
    depthwise.kernels_fit = lambda tokens: stencil
    DepthwiseConv.stencil = stencil
    deformable_attention.deformable_attention = lambda value, _, locations, weights, **__: Fused.apply(
        value, locations, weights
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        segmenter = build_segmenter(frozen, head)
        segmenter.backbone.to_empty(device="cpu")
        decoder = segmenter.decoder.train()
        set_switch(decoder, "multiplies_out", not costs_from_features)
        images = torch.empty(batch, 3, CROP_PX, CROP_PX)
        mark(ledger, segmenter)
        with ledger:
            with torch.autocast("cpu", torch.bfloat16), CudaRules():
                features = segmenter.features(images)
                ledger.phase = "adapter"
                answer = decoder(images, features, torch.ones(batch, 6))
            maps = matched_of(answer, batch, whole_masks)
            total = sum(p.class_logits.float().sum() for p in answer) + maps.float().sum()
            ledger.phase = "backward"
            total.backward()
    return ledger


def matched_of(answer: Sequence[Prediction], batch: int, whole_masks: bool) -> Tensor:
    """The masks that a loss would compare: MATCHED of each image and layer."""
    places = np.indices((len(answer), batch, MATCHED)).reshape(3, -1)
    rows = torch.from_numpy(np.concatenate((places, places[2:])))
    slots, most = row_slots(places[1])
    if whole_masks:
        answer = [replace(prediction, product=None) for prediction in answer]
    return matched_maps(answer, rows, torch.from_numpy(slots), most)


def mark(ledger: Ledger, segmenter: nn.Module) -> None:
    """Phases end where the parts of the head do."""
    adapter, head = segmenter.get_submodule("decoder.segmentation_model").children()
    for module, following in (
        (adapter, "pixel decoder"),
        (head.get_submodule("pixel_decoder"), "query decoder"),
        (head.get_submodule("predictor"), "stand-in for the loss"),
    ):
        module.register_forward_hook(lambda *_, to=following: setattr(ledger, "phase", to))


def table(ledger: Ledger, rows: int) -> str:
    """Phases, all together, and the dearest operations, as markdown."""
    phases: dict[str, Entry] = defaultdict(Entry)
    for (phase, _), entry in ledger.entries.items():
        for sums in (phases[phase], phases["all"]):
            sums.calls, sums.gigabytes = sums.calls + entry.calls, sums.gigabytes + entry.gigabytes
            sums.tflop, sums.ms = sums.tflop + entry.tflop, sums.ms + entry.ms
    phases["all"] = phases.pop("all")
    dearest = sorted(ledger.entries.items(), key=lambda item: -item[1].ms)[:rows]
    parts = {"phase": phases, "phase, operation": {", ".join(names): entry for names, entry in dearest}}
    lines = []
    for title, entries in parts.items():
        lines += [f"| {title} | calls | GB | TFLOP | ms |", "| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {name} | {e.calls} | {e.gigabytes:.1f} | {e.tflop:.2f} | {e.ms:.1f} |"
            for name, e in entries.items()
        ]
        lines.append("")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="dinov3_vitl16")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, default=14)
    parser.add_argument("--whole-masks", action="store_true")
    parser.add_argument("--torch-group-norm", action="store_true")
    parser.add_argument("--stencil", action="store_true")
    parser.add_argument("--costs-from-features", action="store_true")
    options = parser.parse_args(argv)
    ledger = count(
        options.backbone, options.width, options.batch, options.whole_masks, options.torch_group_norm,
        options.stencil, options.costs_from_features,
    )  # fmt: skip
    sys.stdout.write(table(ledger, options.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

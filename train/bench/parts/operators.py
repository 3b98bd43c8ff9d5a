"""Single operations of a step at the step's own shapes: what each takes, and the least it could.

`floor_ms` is the time in which this device copies as many bytes as the operation must read and write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from maskshards.shards.augment.crop import crop, draw_crops
from maskshards.train.bench.budgeted import NotHere
from maskshards.train.bench.hardware import median_ms
from maskshards.train.bench.journal import Figures
from maskshards.train.bench.paired import NUM_LAYERS, attention_ms, loss_ms
from maskshards.train.bench.parts.made_images import encoded_batch
from maskshards.train.bench.parts.setting import Setting
from maskshards.train.bench.synthetic import synthetic_batch
from maskshards.train.losses.host_copies import to_device
from maskshards.train.losses.matched_loss import MatchedLoss
from maskshards.train.model.backbone.architectures import architecture
from maskshards.train.model.heads.prediction import MaskProduct, Prediction
from maskshards.train.model.heads.rules import NORM_GROUPS
from maskshards.train.model.ops.deformable_attention import DeformableAttention, reference_points
from maskshards.train.model.ops.depthwise import depthwise
from maskshards.train.model.ops.group_norm import group_normed
from maskshards.train.model.ops.upsample2x import doubled
from maskshards.train.trainer.build import crop_settings

TOKEN_STRIDES = (8, 16, 32)
MATCHED_ROWS = 10 * 16 * 9  # layers, images, labels an image: what `topk` sees at batch 16


def attention(setting: Setting) -> Figures:
    """Deformable attention of the pixel decoder at both widths, fused and plain, forward and backward."""
    found: Figures = {}
    for width in setting.widths:
        size = 16 if width < 2048 else 8
        config = replace(setting.config(width), bs=setting.config(width).bs if setting.tiny else size)
        for name, value in attention_ms(config, setting.device, 1, max(1, setting.repeats // 4)).items():
            found[f"{width}, {name}"] = value
    return found


def value_gradients(setting: Setting) -> Figures:
    """Backward of the deformable attention with its value gradient added by atomics, and sorted; ms."""
    found: Figures = {}
    for width in setting.widths:
        size = setting.config(width).bs if width < 2048 else 8
        config = replace(setting.config(width), bs=size)
        for name, from_width in (("atomics", None), ("sorted", 1)):
            with sorting(setting, from_width):
                figures = attention_ms(config, setting.device, 1, max(1, setting.repeats // 4))
            found[f"{width}, {name}"] = figures["fused backward"]
    return found


@contextmanager
def sorting(setting: Setting, from_width: int | None) -> Iterator[None]:
    """Value gradients by sorting from this head width on, for the body; NotHere without CUDA."""
    if setting.device.type != "cuda":
        raise NotHere("the kernels need a CUDA device")
    from maskshards.train.model.ops.kernels import deformable  # needs Triton

    before = deformable.SORTED_FROM_WIDTH
    deformable.SORTED_FROM_WIDTH = from_width
    try:
        yield
    finally:
        deformable.SORTED_FROM_WIDTH = before


def loss(setting: Setting) -> Figures:
    """The matched loss of ten layers: by kernels, by plain tensors, and called layer by layer."""
    found: Figures = {}
    for fused in (True, False):
        config = replace(setting.config(setting.widths[0]), fused_kernels=fused)
        figures = loss_ms(config, setting.device, 1, max(1, setting.repeats // 6))
        found |= {f"{'fused' if fused else 'plain'}, {name}": value for name, value in figures.items()}
    return found


def costs(setting: Setting) -> Figures:
    """Matching costs of ten layers, ms: from masks of all queries, multiplied out, and from features."""
    found: Figures = {}
    for width in setting.widths:
        config = setting.config(width)
        settings, batch = crop_settings(config), synthetic_batch(config.bs, config.decoder_head.classes)
        batch = batch.to(setting.device)
        crops = crop(batch, draw_crops(batch, config.seed, settings), settings)
        queries, sides = config.decoder_head.num_queries, [side // 4 for side in crops.images.shape[2:]]
        features = noise(setting, config.bs, width, *sides).contiguous(memory_format=torch.channels_last)
        product = MaskProduct(noise(setting, config.bs, NUM_LAYERS, queries, width), features)
        classes = noise(setting, config.bs, queries, config.decoder_head.classes + 1)
        matched = MatchedLoss(config.m2f_train, config.decoder_head.classes, fused=config.fused_kernels)
        keys = to_device(matched.keys(config.seed, crops.positions, NUM_LAYERS), setting.device)
        ask = partial(matched.asked, owner_map=crops.owner_map, labels=crops.labels, keys=keys, flags=None)
        for name, multiplied in (("masks", True), ("features", False)):
            call = partial(asked, ask, classes, product, multiplied)
            found[f"{width}, {name}"] = median_ms(call, setting.device, max(1, setting.repeats // 3))
    return found


def asked(
    ask: Callable[[list[Prediction]], Tensor], classes: Tensor, product: MaskProduct, multiplied: bool
) -> Tensor:
    """The costs as the host gets them; `multiplied`: the masks of all queries are made first."""
    masks: Sequence[Tensor | None] = [None] * NUM_LAYERS
    if multiplied:
        masks = torch.einsum("blqc,bchw->blqhw", product.vectors, product.features).unbind(1)
    return ask([Prediction(classes, each, product, layer) for layer, each in enumerate(masks)])


def coordinates(setting: Setting) -> Figures:
    """A deformable attention of the pixel decoder with its projections, coordinates by query and by point."""
    side = (setting.config(setting.widths[0]).transforms.train.crop_size or (512, 512))[0]
    shapes = tuple((side // stride, side // stride) for stride in TOKEN_STRIDES)
    found: Figures = {}
    for width in setting.widths:
        size = setting.config(width).bs if width < 2048 or setting.tiny else 8
        tokens = noise(setting, size, sum(h * w for h, w in shapes), width)
        module = DeformableAttention(width, len(shapes)).to(setting.device)
        points = reference_points(shapes, setting.device)

        def call(each: Tensor, module: DeformableAttention = module, points: Tensor = points) -> Tensor:
            with torch.autocast(setting.device.type, torch.bfloat16):
                return module(each, points, each, shapes)

        for name, by_point in (("by query", False), ("by point", True)):
            module.points_first = by_point
            found[f"{width}, {name}"] = both_ways(setting, call, tokens, "rows", *module.parameters())
    return found


def layers(setting: Setting) -> Figures:
    """Depthwise convolution, topk, the doubled map and group norm in both layouts, forward and backward."""
    config, device = setting.config(setting.widths[0]), setting.device
    batch, side = config.bs, (config.transforms.train.crop_size or (512, 512))[0]
    embed = architecture(config.model.dino_hub or "").embed_dim
    found: Figures = {}
    for stride in TOKEN_STRIDES:
        maps = noise(setting, batch, embed // 4, side // stride, side // stride)
        weight = noise(setting, embed // 4, 1, 3, 3)
        for layout in ("NCHW", "NHWC"):
            found[f"depthwise, stride {stride}, {layout}"] = both_ways(
                setting, partial(convolved, weight), maps, layout
            )
    shapes = tuple((side // stride, side // stride) for stride in TOKEN_STRIDES)
    tokens = noise(setting, batch, sum(h * w for h, w in shapes), embed // 4)
    taps = noise(setting, embed // 4, 1, 3, 3).requires_grad_(), noise(setting, embed // 4).requires_grad_()
    for name, stencil in (("library", False), ("stencil", True)):
        call = partial(depthwise, shapes=shapes, weight=taps[0], bias=taps[1], stencil=stencil)
        found[f"depthwise, all levels as tokens, {name}"] = both_ways(setting, call, tokens, "rows", *taps)
    rows = 4 if setting.tiny else MATCHED_ROWS
    candidates = torch.rand(rows, 3 * config.m2f_train.num_points, device=device)
    kept = int(0.75 * config.m2f_train.num_points)
    found["topk of the candidates"] = {
        "ms": median_ms(
            lambda: candidates.topk(kept, dim=1, largest=False, sorted=False), device, setting.repeats
        ),
        "floor_ms": setting.floor_ms(candidates.nbytes),
    }
    for width in setting.widths:
        found |= at_stride_4(setting, batch if width < 2048 else batch // 2, width, side)
    return found


def at_stride_4(setting: Setting, batch: int, width: int, side: int) -> Figures:
    """The doubled map and the group norm of one width."""
    found: Figures = {}
    half = noise(setting, batch, width, side // 8, side // 8)
    whole = noise(setting, batch, width, side // 4, side // 4)
    ones = torch.ones(width, device=setting.device, dtype=torch.bfloat16, requires_grad=True)
    for layout in ("NCHW", "NHWC"):
        for fused in (True, False):
            name = f"doubled map, {width}, {layout}, {'kernel' if fused else 'torch'}"
            found[name] = both_ways(setting, partial(doubled, fused=fused), half, layout)
        for fused in (False, True) if layout == "NHWC" else (False,):
            call = partial(group_normed, groups=NORM_GROUPS, weight=ones, bias=ones, eps=1e-5, fused=fused)
            name = f"group norm, {width}, {layout}, {'kernel' if fused else 'torch'}"
            found[name] = both_ways(setting, call, whole, layout, ones)
    return found


def convolved(weight: Tensor, maps: Tensor) -> Tensor:
    return F.conv2d(maps, weight, padding=1, groups=maps.shape[1])


def noise(setting: Setting, *shape: int) -> Tensor:
    return torch.randn(shape, device=setting.device).to(torch.bfloat16)


def both_ways(
    setting: Setting, call: Callable[[Tensor], Tensor], maps: Tensor, layout: str, *weights: Tensor
) -> Figures:
    """Ms of a forward and of a backward pass, and of copying what a forward pass must move.

    Gradients of `weights` are included.
    """
    memory_format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    leaf = maps.contiguous(memory_format=memory_format).requires_grad_()
    out = call(leaf)
    grad = torch.randn_like(out)
    moved = leaf.nbytes + out.nbytes
    return {
        "forward_ms": median_ms(lambda: call(leaf), setting.device, setting.repeats),
        "backward_ms": median_ms(
            lambda: torch.autograd.grad(out, (leaf, *weights), grad, retain_graph=True),
            setting.device,
            setting.repeats,
        ),
        "floor_ms": setting.floor_ms(moved),
    }


def crops(setting: Setting) -> Figures:
    """Making a batch of crops, augmentation included: the device's time and the host's."""
    config = setting.config(setting.widths[0])
    settings = crop_settings(config)
    batch = synthetic_batch(config.bs, config.decoder_head.classes).to(setting.device)
    draws = draw_crops(batch, 0, settings)
    return {
        "images": config.bs,
        "device_ms": median_ms(lambda: crop(batch, draws, settings), setting.device, setting.repeats),
        "host_ms": median_ms(lambda: draw_crops(batch, 0, settings), torch.device("cpu"), setting.repeats),
    }


def jpeg_decoding(setting: Setting) -> Figures:
    """JPEG images of 683x512 decoded a second by nvJPEG, in a batch; NotHere without it."""
    if setting.device.type != "cuda":
        raise NotHere("nvJPEG needs a CUDA device")
    from maskshards.shards.decode.nvjpeg import GpuDecodeError, GpuDecoder  # needs simplejpeg

    try:
        decoder = GpuDecoder(setting.device)
    except GpuDecodeError as error:
        raise NotHere(str(error)) from error
    size = setting.config(setting.widths[0]).bs
    batch = encoded_batch(size)
    ms = median_ms(lambda: decoder(batch), setting.device, setting.repeats)
    return {"images": size, "ms": ms, "images_per_s": 1000 * size / ms}

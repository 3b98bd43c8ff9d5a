"""The pixel decoder: published keys and shapes, and its forward pass against plain operations on its own
weights.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskshards.train.losses.gather_matched import matched_product
from maskshards.train.model.heads.pixel_decoder import PixelDecoder
from maskshards.train.model.ops.deformable_attention import deformable_attention

CHANNELS, WIDTH = 24, 64
SIDES = ((16, 8), (8, 4), (4, 2), (2, 1))  # strides 4, 8, 16, 32


def published_shapes(channels: int, width: int) -> dict[str, tuple[int, ...]]:
    c, d, shapes = width, channels, {"encoder.level_encoding": (3, width)}

    def both(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    for i in range(3):
        both(f"input_convs.{i}.0", c, d, 1, 1)
        both(f"input_convs.{i}.1", c)
    for k in range(6):
        layer = f"encoder.encoder.layers.{k}"
        both(f"{layer}.self_attn.sampling_offsets", 384, c)
        both(f"{layer}.self_attn.attention_weights", 192, c)
        both(f"{layer}.self_attn.value_proj", c, c)
        both(f"{layer}.self_attn.output_proj", c, c)
        both(f"{layer}.norm1", c)
        both(f"{layer}.norm2", c)
        both(f"{layer}.linear1", 4096, c)
        both(f"{layer}.linear2", c, 4096)
    both("mask_feature", c, c, 1, 1)
    for name, shape in (("lateral_convs.0", (c, d, 1, 1)), ("output_convs.0", (c, c, 3, 3))):
        shapes[f"{name}.weight"] = shape
        both(f"{name}.norm", c)
    return shapes


@pytest.mark.parametrize(
    ("channels", "width", "parameters"),
    [(1024, 2048, 208_553_344), (1024, 256, 16_001_152), (4096, 2048, 233_719_168)],
)
def test_keys_and_shapes_are_the_published_ones(channels: int, width: int, parameters: int) -> None:
    with torch.device("meta"):
        decoder = PixelDecoder(channels, width)
    found = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert found == published_shapes(channels, width)
    assert len(found) == 117
    assert sum(p.numel() for p in decoder.parameters()) == parameters


def seeded() -> tuple[PixelDecoder, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    decoder = PixelDecoder(CHANNELS, WIDTH).double()
    with torch.no_grad():
        for name, tensor in decoder.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name or "norm" in name:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    return decoder, tuple(torch.randn(2, CHANNELS, *side, dtype=torch.float64) for side in SIDES)


def sine(rows: int, columns: int, width: int) -> Tensor:
    """Position encoding as the original computes it: by cumulative sums over a map of ones."""
    ones = torch.ones(rows, columns, dtype=torch.float64)
    waves = []
    for axis in (0, 1):
        place = ones.cumsum(axis)
        last = place[-1:] if axis == 0 else place[:, -1:]
        place = place / (last + 1e-6) * 2 * torch.pi
        index = torch.arange(width // 2, dtype=torch.float64)
        angle = place[..., None] / 10000 ** (2 * (index // 2) / (width // 2))
        wave = torch.empty_like(angle)
        wave[..., 0::2], wave[..., 1::2] = angle[..., 0::2].sin(), angle[..., 1::2].cos()
        waves.append(wave)
    return torch.cat(waves, -1).flatten(0, 1)


def expected_outputs(w: dict[str, Tensor], pyramid: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])

    def group_norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"])

    maps, positions, points = [], [], []
    for i, level in enumerate((3, 2, 1)):
        x = F.conv2d(pyramid[level], w[f"input_convs.{i}.0.weight"], w[f"input_convs.{i}.0.bias"])
        maps.append(group_norm(x, f"input_convs.{i}.1"))
        rows, columns = SIDES[level]
        positions.append(sine(rows, columns, WIDTH) + w["encoder.level_encoding"][i])
        points += [[(x + 0.5) / columns, (y + 0.5) / rows] for y in range(rows) for x in range(columns)]
    shapes = tuple(SIDES[level] for level in (3, 2, 1))
    sizes = torch.tensor([[columns, rows] for rows, columns in shapes], dtype=torch.float64)
    tokens, position = torch.cat([m.flatten(2).mT for m in maps], 1), torch.cat(positions)
    reference = torch.tensor(points, dtype=torch.float64)[:, None, None, None]
    for k in range(6):
        name = f"encoder.encoder.layers.{k}"
        query = tokens + position
        offsets = linear(query, f"{name}.self_attn.sampling_offsets").unflatten(-1, (16, 3, 4, 2))
        shares = linear(query, f"{name}.self_attn.attention_weights").unflatten(-1, (16, 12)).softmax(-1)
        value = linear(tokens, f"{name}.self_attn.value_proj").unflatten(-1, (16, -1))
        places = reference + offsets / sizes[:, None]
        read = deformable_attention(value, shapes, places, shares.unflatten(-1, (3, 4)))
        tokens = layer_norm(tokens + linear(read, f"{name}.self_attn.output_proj"), f"{name}.norm1")
        hidden = linear(linear(tokens, f"{name}.linear1").relu(), f"{name}.linear2")
        tokens = layer_norm(tokens + hidden, f"{name}.norm2")
    parts = tokens.split([rows * columns for rows, columns in shapes], 1)
    out = [part.mT.reshape(2, WIDTH, *shape) for part, shape in zip(parts, shapes, strict=True)]
    lateral = group_norm(F.conv2d(pyramid[0], w["lateral_convs.0.weight"]), "lateral_convs.0.norm")
    above = F.interpolate(out[2], SIDES[0], mode="bilinear", align_corners=False)
    fused = F.conv2d(lateral + above, w["output_convs.0.weight"], padding=1)
    fused = group_norm(fused, "output_convs.0.norm").relu()
    return F.conv2d(fused, w["mask_feature.weight"], w["mask_feature.bias"]), out


def test_forward_equals_plain_operations_on_the_same_weights() -> None:
    decoder, pyramid = seeded()
    features, maps = decoder(pyramid)
    expected_features, expected_maps = expected_outputs(dict(decoder.state_dict()), pyramid)
    torch.testing.assert_close(features, expected_features, rtol=1e-9, atol=1e-9)
    for found, expected in zip(maps, expected_maps, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_reference_precision_ignores_autocast_and_mixed_follows_it() -> None:
    torch.manual_seed(0)
    pyramid = tuple(torch.randn(1, CHANNELS, *side) for side in SIDES)
    mixed = PixelDecoder(CHANNELS, WIDTH, "mixed")
    reference = PixelDecoder(CHANNELS, WIDTH, "reference")
    reference.load_state_dict(mixed.state_dict())
    plain, _ = mixed(pyramid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast, _ = mixed(pyramid)
        exact, _ = reference(pyramid)
    assert fast.dtype is torch.bfloat16
    torch.testing.assert_close(exact, plain)
    assert F.cosine_similarity(fast.float().flatten(), plain.flatten(), 0) > 0.999
    assert not torch.equal(fast.float(), plain)


def test_initial_values() -> None:
    torch.manual_seed(0)
    decoder = PixelDecoder(256, 256)
    layer = decoder.encoder.encoder.layers[0]
    assert abs(layer.linear1.weight.std().item() - (2 / (4096 + 256)) ** 0.5) < 1e-3  # xavier
    assert not layer.self_attn.sampling_offsets.weight.any()
    assert layer.self_attn.sampling_offsets.bias.abs().max() == 4
    assert abs(decoder.encoder.level_encoding.std().item() - 1) < 0.1
    bound = (3 / (9 * 256)) ** 0.5  # kaiming uniform with slope 1
    assert abs(decoder.output_convs[0].weight.abs().max().item() - bound) < 1e-3
    assert not decoder.input_convs[0][0].bias.any()
    assert not decoder.mask_feature.bias.any()


class Convolutions(TorchDispatchMode):
    """Layouts of the maps that go into and come out of each convolution: whether they are channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[bool]] = {"convolution": [], "convolution_backward": []}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name in self.seen:
            maps = (args[0], out) if name == "convolution" else (args[0], args[1], out[0])
            self.seen[name] += [m.is_contiguous(memory_format=torch.channels_last) for m in maps]
        return out


def test_with_the_kernels_every_convolution_works_on_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the adapter's maps to the mask features, and back from the product that the loss takes."""
    for name in ("deformable_attention", "group_norm", "upsample2x"):
        monkeypatch.setattr(f"maskshards.train.model.ops.{name}.kernels_fit", lambda maps: True)
    decoder = PixelDecoder(16, 64, ffn_dim=32)
    last = torch.channels_last
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Convolutions() as looked:
        maps = [torch.empty(2, 16, side, side).to(memory_format=last) for side in (16, 8, 4, 2)]
        pyramid = tuple(mode.from_tensor(m).requires_grad_() for m in maps)
        with torch.autocast("cpu", torch.bfloat16):
            features, coarse = decoder(pyramid)
            product = matched_product(torch.empty(2, 5, 64, dtype=features.dtype), features)
        (product.sum() + sum(m.sum() for m in coarse)).backward()
    assert len(looked.seen["convolution"]) == 2 * 6
    assert len(looked.seen["convolution_backward"]) == 3 * 6
    assert all(looked.seen["convolution"] + looked.seen["convolution_backward"])

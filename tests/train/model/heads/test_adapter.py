"""The adapter: published key names and shapes, and its forward pass against plain operations on its own
weights.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskshards.train.model.heads.adapter import DROP_PATH_RATE, NUM_EXTRACTORS, Adapter, to_map, to_tokens
from maskshards.train.model.ops.deformable_attention import deformable_attention, reference_points

WIDTH = 32


def published_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes as published, written out from the table."""
    d, shapes = width, {"level_embed": (3, width)}

    def both(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def batch_norm(name: str, channels: int) -> None:
        both(name, channels)
        shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    for conv, norm, a, b in ((0, 1, 3, 64), (3, 4, 64, 64), (6, 7, 64, 64)):
        shapes[f"spm.stem.{conv}.weight"] = (b, a, 3, 3)
        batch_norm(f"spm.stem.{norm}", b)
    for name, a, b in (("conv2", 64, 128), ("conv3", 128, 256), ("conv4", 256, 256)):
        shapes[f"spm.{name}.0.weight"] = (b, a, 3, 3)
        batch_norm(f"spm.{name}.1", b)
    for name, a in (("fc1", 64), ("fc2", 128), ("fc3", 256), ("fc4", 256)):
        shapes[f"spm.{name}.weight"], shapes[f"spm.{name}.bias"] = (d, a, 1, 1), (d,)
    extractors = [f"interactions.{i}.extractor" for i in range(4)]
    for name in [*extractors, "interactions.3.extra_extractors.0", "interactions.3.extra_extractors.1"]:
        for norm in ("query_norm", "feat_norm", "ffn_norm"):
            both(f"{name}.{norm}", d)
        both(f"{name}.attn.sampling_offsets", 128, d)
        both(f"{name}.attn.attention_weights", 64, d)
        both(f"{name}.attn.value_proj", d // 2, d)
        both(f"{name}.attn.output_proj", d, d // 2)
        both(f"{name}.ffn.fc1", d // 4, d)
        both(f"{name}.ffn.dwconv.dwconv", d // 4, 1, 3, 3)
        both(f"{name}.ffn.fc2", d, d // 4)
    shapes["up.weight"], shapes["up.bias"] = (d, d, 2, 2), (d,)
    for i in range(1, 5):
        batch_norm(f"norm{i}", d)
    return shapes


def test_keys_and_shapes_are_the_published_ones() -> None:
    for width, trainable in ((384, 3_698_432), (768, 10_193_984), (1024, 16_654_272), (4096, 227_084_736)):
        with torch.device("meta"):
            adapter = Adapter(width)
        found = {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}
        assert found == published_shapes(width)
        assert len(found) == 187
        assert sum(p.numel() for p in adapter.parameters()) == trainable


def seeded(dtype: torch.dtype = torch.float64) -> tuple[Adapter, Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    adapter = Adapter(WIDTH).to(dtype)
    with torch.no_grad():  # batch statistics other than the defaults, offsets that depend on the query
        for name, tensor in adapter.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif "running_mean" in name or "sampling_offsets" in name or "attention_weights" in name:
                tensor.normal_(std=0.3)
    images = torch.randn(2, 3, 64, 96, dtype=dtype)
    features = tuple(torch.randn(2, WIDTH, 4, 6, dtype=dtype) for _ in range(4))
    return adapter, images, features


def extract(
    w: dict[str, Tensor], name: str, c: Tensor, feature: Tensor, shapes: list[tuple[int, int]]
) -> Tensor:
    """One extractor written with functional calls on the state dict."""

    def norm(x: Tensor, part: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"], eps=1e-6)

    def linear(x: Tensor, part: str) -> Tensor:
        return F.linear(x, w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"])

    h, width = feature.shape[-2:]
    query = norm(c, "query_norm")
    value = linear(norm(feature.flatten(2).mT, "feat_norm"), "attn.value_proj").unflatten(-1, (16, -1))
    offsets = linear(query, "attn.sampling_offsets").unflatten(-1, (16, 1, 4, 2))
    points = reference_points(tuple(shapes), c.device, c.dtype)[:, None, None, None]
    places = points + offsets / torch.tensor([width, h], dtype=c.dtype)
    shares = linear(query, "attn.attention_weights").unflatten(-1, (16, 1, 4)).softmax(-1)
    c = c + linear(deformable_attention(value, ((h, width),), places, shares), "attn.output_proj")
    hidden = linear(norm(c, "ffn_norm"), "ffn.fc1")
    weight, bias = w[f"{name}.ffn.dwconv.dwconv.weight"], w[f"{name}.ffn.dwconv.dwconv.bias"]
    places_16 = hidden.shape[1] // 21
    parts = []
    for part, (rows, columns) in zip(
        hidden.split([16 * places_16, 4 * places_16, places_16], 1), shapes, strict=True
    ):
        level = part.mT.reshape(part.shape[0], -1, rows, columns)
        parts.append(F.conv2d(level, weight, bias, padding=1, groups=weight.shape[0]).flatten(2).mT)
    return c + linear(F.gelu(torch.cat(parts, 1)), "ffn.fc2")


def test_forward_equals_plain_operations_on_the_same_weights() -> None:
    adapter, images, features = seeded()
    adapter.eval()
    w = dict(adapter.state_dict())

    def normed(x: Tensor, name: str) -> Tensor:
        parts = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        return normed(F.conv2d(x, w[f"spm.{conv}.weight"], stride=stride, padding=1), f"spm.{norm}").relu()

    x = conv_norm(images, "stem.0", "stem.1", 2)
    x = conv_norm(conv_norm(x, "stem.3", "stem.4", 1), "stem.6", "stem.7", 1)
    levels = [F.max_pool2d(x, 3, 2, 1)]
    for name in ("conv2", "conv3", "conv4"):
        levels.append(conv_norm(levels[-1], f"{name}.0", f"{name}.1", 2))
    c1, c2, c3, c4 = (
        F.conv2d(x, w[f"spm.fc{i}.weight"], w[f"spm.fc{i}.bias"]) for i, x in enumerate(levels, start=1)
    )
    shapes = [(8, 12), (4, 6), (2, 3)]
    c = torch.cat([x.flatten(2).mT + w["level_embed"][i] for i, x in enumerate((c2, c3, c4))], 1)
    for i in range(4):
        c = extract(w, f"interactions.{i}.extractor", c, features[i], shapes)
    for i in range(2):
        c = extract(w, f"interactions.3.extra_extractors.{i}", c, features[3], shapes)
    c2, c3, c4 = (
        part.mT.reshape(2, WIDTH, *shape) for part, shape in zip(c.split([96, 24, 6], 1), shapes, strict=True)
    )
    c1 = F.conv_transpose2d(c2, w["up.weight"], w["up.bias"], stride=2) + c1
    found = adapter(images, features)
    for i, (level, feature) in enumerate(zip((c1, c2, c3, c4), features, strict=True), start=1):
        resized = F.interpolate(feature, level.shape[-2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(found[i - 1], normed(level + resized, f"norm{i}"), rtol=1e-10, atol=1e-10)


def test_outputs_stand_at_strides_4_to_32() -> None:
    adapter, images, features = seeded(torch.float32)
    assert [tuple(m.shape) for m in adapter(images, features)] == [
        (2, WIDTH, 16, 24),
        (2, WIDTH, 8, 12),
        (2, WIDTH, 4, 6),
        (2, WIDTH, 2, 3),
    ]


def test_a_dropped_branch_is_absent_for_its_image_only() -> None:
    adapter, images, features = seeded()
    adapter.eval()
    whole = adapter(images, features)
    ones = torch.ones(2, NUM_EXTRACTORS)
    assert torch.equal(adapter(images, features, ones)[0], whole[0])
    for step in range(NUM_EXTRACTORS):
        keep = ones.clone()
        keep[1, step] = 0
        dropped = adapter(images, features, keep)
        torch.testing.assert_close(dropped[3][0], whole[3][0])
        assert not torch.allclose(dropped[3][1], whole[3][1])
    assert DROP_PATH_RATE == 0.3


def test_batch_statistics_move_in_training() -> None:
    adapter, images, features = seeded(torch.float32)
    adapter.train()
    before = {name: t.clone() for name, t in adapter.state_dict().items() if "running" in name}
    adapter(images, features)
    assert len(before) == 20
    for name, tensor in before.items():
        assert not torch.equal(adapter.state_dict()[name], tensor), name


def test_initial_values() -> None:
    torch.manual_seed(0)
    adapter = Adapter(256)
    assert abs(adapter.interactions[0].extractor.ffn.fc1.weight.std().item() - 0.02) < 0.001
    assert not adapter.interactions[0].extractor.ffn.fc1.bias.any()
    conv = adapter.spm.conv3[0].weight  # normal with variance 2 / (kernel area x output channels)
    assert abs(conv.std().item() - (2 / (9 * 256)) ** 0.5) < 0.001
    depthwise = adapter.interactions[1].extractor.ffn.dwconv.dwconv.weight
    assert abs(depthwise.std().item() - (2 / 9) ** 0.5) < 0.05
    assert abs(adapter.level_embed.std().item() - 1) < 0.1
    assert not adapter.interactions[0].extractor.attn.sampling_offsets.weight.any()


def test_tokens_and_maps_are_inverse() -> None:
    feature = torch.randn(2, 3, 4, 5)
    assert torch.equal(to_map(to_tokens(feature), (4, 5)), feature)
    assert torch.equal(to_tokens(feature)[:, 7], feature[:, :, 1, 2])


def test_under_autocast_the_residual_stream_has_its_type() -> None:
    adapter, images, features = seeded(torch.float32)
    seen = []
    for interaction in adapter.interactions:
        interaction.extractor.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapter(images, features)
    assert len(seen) == 4
    assert all(t.dtype is torch.bfloat16 for pair in seen for t in pair)


@pytest.mark.parametrize("batch", [1, 2])
def test_all_maps_are_channels_last(batch: int) -> None:
    """A single image's too, whose strides leave it open: convolutions go by the strides."""
    tokens = torch.randn(batch, 5 + 16, WIDTH)  # patches behind other tokens, as a backbone gives them
    features = tuple(to_map(tokens[:, 5:], (4, 4)) for _ in range(4))
    for level in (*features, *Adapter(WIDTH)(torch.randn(batch, 3, 64, 64), features)):
        assert level.stride()[1] == 1
        assert level.permute(0, 2, 3, 1).stride()[1:] == (level.shape[1] * level.shape[3], level.shape[1], 1)
        assert level.stride()[0] >= level.shape[1] * level.shape[2] * level.shape[3]

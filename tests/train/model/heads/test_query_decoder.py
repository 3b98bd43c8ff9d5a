"""The query decoder: published keys, torch.nn.MultiheadAttention as oracle, the rule of where queries may
look.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.model.heads.query_decoder import Attention, QueryDecoder, allowed_places
from maskshards.train.model.ops.resize import resized
from maskshards.train.model.ops.sine_position import sine_position

WIDTH, CLASSES = 32, 5


def published_shapes(c: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def both(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    for k in range(9):
        for layer, attention in (("cross", "multihead_attn"), ("self", "self_attn")):
            name = f"transformer_{layer}_attention_layers.{k}"
            shapes[f"{name}.{attention}.in_proj_weight"] = (3 * c, c)
            shapes[f"{name}.{attention}.in_proj_bias"] = (3 * c,)
            both(f"{name}.{attention}.out_proj", c, c)
            both(f"{name}.norm", c)
        name = f"transformer_ffn_layers.{k}"
        both(f"{name}.linear1", 4096, c)
        both(f"{name}.linear2", c, 4096)
        both(f"{name}.norm", c)
    both("post_norm", c)
    shapes["query_feat.weight"] = shapes["query_embed.weight"] = (100, c)
    shapes["level_embed.weight"] = (3, c)
    both("class_embed", num_classes + 1, c)
    for i in range(3):
        both(f"mask_embed.layers.{i}", c, c)
    return shapes


@pytest.mark.parametrize(("width", "parameters"), [(2048, 466_616_471), (256, 23_953_047)])
def test_keys_and_shapes_are_the_published_ones(width: int, parameters: int) -> None:
    with torch.device("meta"):
        decoder = QueryDecoder(width, 150)
    found = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert found == published_shapes(width, 150)
    assert len(found) == 175
    assert sum(p.numel() for p in decoder.parameters()) == parameters


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torch(masked: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(WIDTH).double(), nn.MultiheadAttention(WIDTH, 16, batch_first=True).double()
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = (torch.randn(2, n, WIDTH, dtype=torch.float64) for n in (5, 7, 7))
    allowed = torch.rand(2, 5, 7) > 0.4 if masked else None
    if allowed is not None:
        allowed[..., 0] = True
    mask = None if allowed is None else ~allowed.repeat_interleave(16, 0)
    expected, _ = theirs(query, key, value, attn_mask=mask)
    torch.testing.assert_close(ours(query, key, value, allowed), expected, rtol=1e-10, atol=1e-10)


def by_torch_modules(
    decoder: QueryDecoder, mask_features: Tensor, maps: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """The published algorithm with torch.nn.MultiheadAttention and its mask of blocked places."""
    w = decoder.state_dict()

    def attend(name: str, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:
        attention = nn.MultiheadAttention(WIDTH, 16).double()
        attention.load_state_dict({k[len(name) + 1 :]: v for k, v in w.items() if k.startswith(f"{name}.")})
        return attention(query, key, value, attn_mask=blocked)[0]

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        y = norm(x, "post_norm").transpose(0, 1)
        vectors = linear(
            linear(linear(y, "mask_embed.layers.0").relu(), "mask_embed.layers.1").relu(),
            "mask_embed.layers.2",
        )
        return linear(y, "class_embed"), (vectors[..., None, None] * mask_features[:, None]).sum(2)

    batch = mask_features.shape[0]
    x = w["query_feat.weight"][:, None].repeat(1, batch, 1)
    query_position = w["query_embed.weight"][:, None]
    out = [predict(x)]
    for k in range(9):
        level = maps[k % 3]
        source = level.flatten(2).permute(2, 0, 1) + w["level_embed.weight"][k % 3]
        place = sine_position(tuple(level.shape[-2:]), WIDTH, level.device, torch.float64)[:, None]
        small = F.interpolate(out[-1][1], level.shape[-2:], mode="bilinear", align_corners=False)
        blocked = small.sigmoid().flatten(2)[:, None].repeat(1, 16, 1, 1).flatten(0, 1) < 0.5
        blocked[torch.where(blocked.sum(-1) == blocked.shape[-1])] = False
        name = f"transformer_cross_attention_layers.{k}"
        x = norm(
            x + attend(f"{name}.multihead_attn", x + query_position, source + place, source, blocked),
            f"{name}.norm",
        )
        name = f"transformer_self_attention_layers.{k}"
        x = norm(x + attend(f"{name}.self_attn", x + query_position, x + query_position, x), f"{name}.norm")
        name = f"transformer_ffn_layers.{k}"
        x = norm(x + linear(linear(x, f"{name}.linear1").relu(), f"{name}.linear2"), f"{name}.norm")
        out.append(predict(x))
    return out


def test_all_ten_predictions_equal_the_published_algorithm() -> None:
    torch.manual_seed(0)
    decoder = QueryDecoder(WIDTH, CLASSES).double()
    mask_features = torch.randn(2, WIDTH, 16, 8, dtype=torch.float64)
    maps = [torch.randn(2, WIDTH, *side, dtype=torch.float64) for side in ((2, 1), (4, 2), (8, 4))]
    found = decoder(mask_features, maps)
    expected = by_torch_modules(decoder, mask_features, maps)
    assert len(found) == 10
    for prediction, (classes, masks) in zip(found, expected, strict=True):
        assert prediction.class_logits.shape == (2, 100, CLASSES + 1)
        torch.testing.assert_close(prediction.class_logits, classes, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(prediction.mask_logits, masks, rtol=1e-8, atol=1e-8)


def test_in_eval_mode_only_the_last_layer_is_read_out_and_the_same() -> None:
    torch.manual_seed(0)
    decoder = QueryDecoder(WIDTH, CLASSES, num_queries=7)
    mask_features = torch.randn(2, WIDTH, 16, 8)
    maps = [torch.randn(2, WIDTH, *side) for side in ((2, 1), (4, 2), (8, 4))]
    *_, trained = decoder(mask_features, maps)
    (answer,) = decoder.eval()(mask_features, maps)
    torch.testing.assert_close(answer.class_logits, trained.class_logits)
    torch.testing.assert_close(answer.mask_logits, trained.mask_logits)
    assert answer.mask_logits.untyped_storage().nbytes() == 2 * 7 * 16 * 8 * 4  # and no other layer's is kept


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_masks_may_be_left_out_in_training_and_are_the_same_when_asked_for(dtype: torch.dtype | None) -> None:
    """Float32 mask features under autocast are what precision=reference makes."""
    torch.manual_seed(0)
    decoder = QueryDecoder(WIDTH, CLASSES, num_queries=7)
    mask_features = torch.randn(2, WIDTH, 16, 8)
    maps = [torch.randn(2, WIDTH, *side) for side in ((2, 1), (4, 2), (8, 4))]
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        whole = decoder(mask_features, maps)
        decoder.multiplies_out = False
        left_out = decoder(mask_features, maps)
        (answer,) = decoder.eval()(mask_features, maps)
    assert answer.masks is not None
    assert [p.masks is None for p in (*whole, *left_out)] == [False] * 10 + [True] * 10
    for ours, theirs in zip(left_out, whole, strict=True):
        assert torch.equal(ours.class_logits, theirs.class_logits)
        assert ours.mask_logits.dtype == theirs.mask_logits.dtype == (dtype or torch.float32)
        torch.testing.assert_close(ours.mask_logits, theirs.mask_logits)


def test_queries_look_inside_their_mask_or_anywhere_if_it_is_empty() -> None:
    features = torch.full((1, 2, 8, 8), -1.0)
    features[0, 0, :4, :4] = 2.0  # the first query's mask is the top left quarter; the second's is empty
    vectors = torch.eye(2)[None].requires_grad_()
    allowed = allowed_places(vectors, resized(features, (4, 4))).view(2, 4, 4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(allowed[0], expected)
    assert allowed[1].all()
    assert not allowed.requires_grad


def test_initial_values() -> None:
    torch.manual_seed(0)
    decoder = QueryDecoder(256, CLASSES)
    assert abs(decoder.query_feat.weight.std().item() - 1) < 0.05
    attention = decoder.transformer_cross_attention_layers[0].multihead_attn
    bound = (6 / (256 + 3 * 256)) ** 0.5  # xavier over the three projections as one matrix
    assert abs(attention.in_proj_weight.abs().max().item() - bound) < 1e-3
    assert not attention.in_proj_bias.any()
    assert (
        abs(decoder.transformer_ffn_layers[0].linear2.weight.std().item() - (2 / (4096 + 256)) ** 0.5) < 1e-3
    )

"""The whole model: what is trained, what is not, sizes it takes, scores it gives."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskshards.train.keys import ConfigError
from maskshards.train.model.backbone.architectures import ModelError
from maskshards.train.model.backbone.load import load_backbone
from maskshards.train.model.heads.mask2former import semantic_scores
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.ops.sync_batch_norm import SyncedBatchNorm, sync_batch_norms
from maskshards.train.model.segmenter import Segmenter, build_segmenter


@dataclass
class Head:
    type: str = "m2f"
    backbone_out_layers: str = "FOUR_EVEN_INTERVALS"
    num_classes: int = 5
    hidden_dim: int = 32
    dropout: float = 0.1
    ffn_dim: int = 64
    num_queries: int = 20


PUBLISHED = {"ffn_dim": 4096, "num_queries": 100}  # also the defaults of the configuration


def tiny(name: str = "dinov3_tiny16", **settings: object) -> Segmenter:
    return build_segmenter(load_backbone(name, "random"), Head(**settings))  # type: ignore[arg-type]


def total(predictions: list[Prediction]) -> Tensor:
    return sum(p.class_logits.square().mean() + p.mask_logits.square().mean() for p in predictions)  # type: ignore


def test_trainable_keys_and_counts_of_the_published_sizes() -> None:
    backbone = load_backbone("dinov3_vitl16", "random", device="meta")
    for width, parameters in ((2048, 691_824_087), (256, 56_608_471)):
        with torch.device("meta"):
            segmenter = build_segmenter(backbone, Head(hidden_dim=width, num_classes=150, **PUBLISHED))
        keys = list(segmenter.decoder.state_dict())
        prefixes = (
            "segmentation_model.0.",
            "segmentation_model.1.pixel_decoder.",
            "segmentation_model.1.predictor.",
        )
        assert [sum(key.startswith(prefix) for key in keys) for prefix in prefixes] == [187, 117, 175]
        assert len(keys) == 479
        assert sum(p.numel() for p in segmenter.decoder.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dinov3_vits16", 669_926_935),
        ("dinov3_vitb16", 673_072_663),
        ("dinov3_vith16plus", 677_266_967),
        ("dinov3_vit7b16", 700_335_639),
    ],
)
def test_head_counts_of_the_other_backbones(name: str, parameters: int) -> None:
    backbone = load_backbone(name, "random", device="meta")
    with torch.device("meta"):
        segmenter = build_segmenter(backbone, Head(hidden_dim=2048, num_classes=150, **PUBLISHED))
    assert sum(p.numel() for p in segmenter.decoder.segmentation_model[1].parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "height", "width"), [("dinov3_tiny16", 64, 96), ("dinov2_tiny14", 224, 224)]
)
def test_a_step_reaches_every_trainable_parameter_and_no_frozen_one(
    name: str, height: int, width: int
) -> None:
    segmenter = tiny(name)
    segmenter.train()
    frozen = {name: t.clone() for name, t in segmenter.backbone.state_dict().items()}
    statistics = {name: t.clone() for name, t in segmenter.decoder.named_buffers()}
    images = torch.randn(2, 3, height, width)
    drops = segmenter.decoder.draw_drops([0, 1], seed=0)
    predictions = segmenter.decoder(images, segmenter.features(images), drops)
    assert [tuple(p.mask_logits.shape) for p in predictions] == [(2, 20, height // 4, width // 4)] * 10
    assert [tuple(p.class_logits.shape) for p in predictions] == [(2, 20, 6)] * 10
    optimizer = torch.optim.SGD(segmenter.decoder.parameters(), lr=0.1)
    total(predictions).backward()
    without = [
        n for n, p in segmenter.decoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert without == []
    optimizer.step()
    assert all(torch.equal(t, frozen[name]) for name, t in segmenter.backbone.state_dict().items())
    unmoved = [n for n, t in segmenter.decoder.named_buffers() if torch.equal(t, statistics[n])]
    assert unmoved == []


def test_drops_are_drawn_in_training_only_and_change_the_answer() -> None:
    segmenter = tiny()
    images = torch.randn(2, 3, 32, 32)
    features = segmenter.features(images)
    segmenter.decoder.eval()
    assert segmenter.decoder.draw_drops([3, 4], 0) is None
    segmenter.decoder.train()
    drops = segmenter.decoder.draw_drops([3, 4], 0)
    assert drops is not None
    assert drops.shape == (2, 6)
    segmenter.decoder.eval()
    plain = segmenter.decoder(images, features)[-1].mask_logits
    dropped = segmenter.decoder(images, features, torch.zeros(2, 6))[-1].mask_logits
    assert not torch.allclose(plain, dropped)


def test_the_same_seed_gives_the_same_head_whatever_ran_before() -> None:
    backbone = load_backbone("dinov3_tiny16", "random")
    first = build_segmenter(backbone, Head(), seed=1).decoder.state_dict()
    before = torch.random.get_rng_state()
    torch.randn(7)
    second = build_segmenter(backbone, Head(), seed=1).decoder.state_dict()
    other = build_segmenter(backbone, Head(), seed=2).decoder.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(
        first["segmentation_model.0.level_embed"], other["segmentation_model.0.level_embed"]
    )
    torch.random.set_rng_state(before)
    expected = torch.randn(7)
    torch.random.set_rng_state(before)
    build_segmenter(backbone, Head())
    assert torch.equal(torch.randn(7), expected)  # building draws nothing from the process generator


def test_scores_are_probabilities_weighted_by_masks() -> None:
    torch.manual_seed(0)
    prediction = Prediction(torch.randn(2, 7, 4), torch.randn(2, 7, 3, 2))
    found = semantic_scores(prediction, (6, 5))
    masks = F.interpolate(prediction.mask_logits, (6, 5), mode="bilinear", align_corners=False).sigmoid()
    shares = prediction.class_logits.exp() / prediction.class_logits.exp().sum(-1, keepdim=True)
    expected = torch.zeros(2, 3, 6, 5)
    for query in range(7):
        for category in range(3):  # the fourth column means "no object"
            expected[:, category] += shares[:, query, category, None, None] * masks[:, query]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "kind", "layers"),
    [
        ("dinov3_tiny16", "m2f", "FOUR_EVEN_INTERVALS"),
        ("dinov2_tiny14", "m2f", "FOUR_LAST"),
        ("dinov3_tiny16", "linear", "LAST"),
        ("dinov2_tiny14", "linear", "FOUR_LAST"),
    ],
)
def test_scores_of_any_size_equal_those_of_the_padded_image(name: str, kind: str, layers: str) -> None:
    segmenter = tiny(name, type=kind, backbone_out_layers=layers)
    segmenter.train()
    images = torch.randn(1, 3, 50, 33)
    scores = segmenter.scores(images)
    assert scores.shape == (1, 5, 50, 33)
    assert segmenter.decoder.training  # as it was before
    multiple = segmenter.size_multiple
    padded = F.pad(images, (0, -33 % multiple, 0, -50 % multiple))
    torch.testing.assert_close(scores, segmenter.scores(padded)[..., :50, :33])


def test_scores_do_not_depend_on_the_rest_of_the_batch() -> None:
    segmenter = tiny()
    segmenter.double()  # in float32, rounding can tip a place of an attention mask
    images = torch.randn(3, 3, 32, 64, dtype=torch.float64)
    together = segmenter.scores(images)
    torch.testing.assert_close(together[1:2], segmenter.scores(images[1:2]))


def test_linear_head_has_the_published_keys_and_scores_at_patch_resolution() -> None:
    segmenter = tiny(type="linear", backbone_out_layers="LAST")
    assert all(key.startswith("segmentation_model.1.") for key in segmenter.decoder.state_dict())
    images = torch.randn(2, 3, 48, 32)
    segmenter.decoder.train()
    drops = segmenter.decoder.draw_drops([0, 1], 0)
    assert drops is not None
    assert drops.shape == (2, 64)
    out = segmenter.decoder(images, segmenter.features(images), drops)
    assert out.shape == (2, 5, 3, 2)


def test_a_size_that_the_model_cannot_take_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"80x64.*multiples of 32"):
        tiny().features(torch.randn(1, 3, 80, 64))
    with pytest.raises(ModelError, match=r"512x512.*multiples of 224 only: set transforms\.train\.crop_size"):
        tiny("dinov2_tiny14").features(torch.randn(1, 3, 512, 512))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone_out_layers": "LAST"}, "FOUR_EVEN_INTERVALS"),
        ({"hidden_dim": 100}, "multiple of 32"),
        ({"type": "upernet"}, "one of m2f, linear"),
    ],
)
def test_settings_that_cannot_work_are_errors(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(**settings)


@pytest.mark.parametrize(("kind", "number"), [("m2f", 10), ("linear", 1)])
def test_batch_norms_can_all_be_synced_and_keep_their_keys(kind: str, number: int) -> None:
    decoder = tiny(type=kind).decoder
    keys = list(decoder.state_dict())
    sync_batch_norms(decoder, 2)
    assert sum(isinstance(module, SyncedBatchNorm) for module in decoder.modules()) == number
    assert not any(type(module) is nn.BatchNorm2d for module in decoder.modules())
    assert list(decoder.state_dict()) == keys


def test_the_head_trains_under_bfloat16_autocast_with_finite_gradients() -> None:
    segmenter = tiny()
    images = torch.randn(2, 3, 32, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = segmenter.decoder(images, segmenter.features(images))
    total([Prediction(p.class_logits.float(), p.mask_logits.float()) for p in predictions]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in segmenter.decoder.parameters())


@pytest.mark.gpu
def test_the_forward_and_backward_pass_never_wait_for_the_device() -> None:
    device = torch.device("cuda")
    backbone = load_backbone("dinov3_tiny16", "random", device=device)
    segmenter = build_segmenter(backbone, Head()).to(device)
    images = torch.randn(2, 3, 64, 64, device=device)
    drops = segmenter.decoder.draw_drops([0, 1], 0)
    for mode in ("default", "error"):  # the first pass may compile kernels
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                predictions = segmenter.decoder(images, segmenter.features(images), drops)
            total(predictions).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad.isfinite().all() for p in segmenter.decoder.parameters())


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "limit_gb"), [("dinov3_vitl16", 16, 80), ("dinov3_vit7b16", 1, 80)]
)
def test_a_full_width_step_fits_the_card(name: str, batch: int, limit_gb: int) -> None:
    """Forward, backward and AdamW at 512x512 px and width 2048, without activation checkpointing."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    backbone = load_backbone(name, "random", dtype=torch.bfloat16, device=device)
    segmenter = build_segmenter(backbone, Head(hidden_dim=2048, num_classes=150, **PUBLISHED)).to(device)
    segmenter.train()
    optimizer = torch.optim.AdamW(segmenter.decoder.parameters(), fused=True)
    images = torch.randn(batch, 3, 512, 512, device=device)
    for _ in range(2):  # the moments exist from the second step on
        with torch.autocast("cuda", dtype=torch.bfloat16):
            predictions = segmenter.decoder(images, segmenter.features(images))
        total([Prediction(p.class_logits.float(), p.mask_logits.float()) for p in predictions]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert torch.cuda.max_memory_allocated() < limit_gb * 1e9
    assert all(p.isfinite().all() for p in segmenter.decoder.parameters())

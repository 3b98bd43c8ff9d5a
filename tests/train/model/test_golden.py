"""Small models with weights by formula against numbers on file: no later change alters the function
unnoticed.

The numbers were computed in float64 on a CPU. After a deliberate change of the function, write them again
with MASKSHARDS_WRITE_GOLDEN=1 pytest tests/train/model/test_golden.py, and say why in the commit.
"""

import json
import os
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from maskshards.shards.augment.philox import uniforms
from maskshards.shards.batch import VOID, CropBatch
from maskshards.train.losses.matched_loss import MatchedLoss
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.backbone.load import load_backbone
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.segmenter import Segmenter, build_segmenter

FOLDER = Path(__file__).parent / "golden"
CLASSES = 4
RULES = {"dinov2_tiny14": "size"}  # of positions, by which the figures on file were written
CASES = {
    "dinov3-m2f": ("dinov3_tiny16", "m2f", "FOUR_EVEN_INTERVALS", (64, 96)),
    "dinov2-linear": ("dinov2_tiny14", "linear", "FOUR_LAST", (42, 56)),
    "dinov3-linear": ("dinov3_tiny16", "linear", "FOUR_EVEN_INTERVALS", (48, 64)),
}


def by_formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in (-1, 1) that depend on `name` only; no release of torch can change them."""
    count = int(torch.Size(shape).numel())
    numbers = uniforms(0, [0], [zlib.crc32(name.encode())], 0, count)
    return torch.from_numpy(2 * numbers[0] - 1).view(shape)


@torch.no_grad()
def set_weights(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.dtype.is_floating_point:
            scale = 1 / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.1
            centre = (
                1.0 if name.endswith(("norm.weight", "running_var", "lambda1")) or ".norm" in name else 0.0
            )
            tensor.copy_(centre + 2 * scale * by_formula(name, tuple(tensor.shape)))


def build(case: str) -> tuple[Segmenter, Tensor]:
    name, kind, layers, side = CASES[case]
    head = SimpleNamespace(
        type=kind,
        backbone_out_layers=layers,
        num_classes=CLASSES,
        hidden_dim=32,
        ffn_dim=64,
        num_queries=20,
        dropout=0.1,
    )
    segmenter = build_segmenter(load_backbone(name, "random", rule=RULES.get(name)), head).double()
    set_weights(segmenter)
    segmenter.decoder.train()
    return segmenter, by_formula("images", (2, 3, *side))


def summary(tensor: Tensor) -> list[float]:
    flat = tensor.detach().double().flatten()
    probes = flat[:: max(1, flat.numel() // 5)][:5]
    return [flat.mean().item(), flat.square().mean().sqrt().item(), *probes.tolist()]


def gradient_norms(decoder: nn.Module) -> dict[str, float]:
    """Norm of the gradient of each group of parameters, a group being the first four words of the name."""
    groups: dict[str, float] = {}
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        group = ".".join(name.split(".")[:4])
        groups[group] = groups.get(group, 0.0) + parameter.grad.double().square().sum().item()
    return {name: value**0.5 for name, value in groups.items()}


def crops_for(images: Tensor) -> CropBatch:
    owner_map = (by_formula("labels", (2, *images.shape[-2:])) * 2 + 2).to(torch.int16)  # 0..3
    owner_map[0, :8] = VOID
    owner_map[1][owner_map[1] > 1] = 1
    labels = torch.tensor([[0, 1, 2, 3], [1, 3, -1, -1]])
    return CropBatch(images.float(), owner_map, labels, keys=("a", "b"), positions=(0, 1))


def measure(case: str) -> dict[str, object]:
    segmenter, images = build(case)
    features = segmenter.features(images)
    answer = segmenter.decoder(images, features, segmenter.decoder.draw_drops([0, 1], seed=0))
    out: dict[str, object] = {"features": [summary(f) for f in features]}
    if isinstance(answer, Tensor):
        out["scores"] = summary(answer)
        answer.square().mean().backward()
    else:
        out["predictions"] = [[summary(p.class_logits), summary(p.mask_logits)] for p in answer]
        out["loss"] = loss_of(answer, crops_for(images))
    out["gradients"] = gradient_norms(segmenter.decoder)
    out["evaluation"] = summary(segmenter.scores(images[:, :, :-5]))
    return out


def loss_of(answer: list[Prediction], crops: CropBatch) -> list[list[float]]:
    """Terms of the matched loss; its backward pass runs too."""
    settings = LossSettings(
        num_points=64,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        mask_coefficient=5.0,
        dice_coefficient=5.0,
        class_coefficient=2.0,
        no_object_coefficient=0.1,
    )
    terms = MatchedLoss(settings, CLASSES)(answer, crops, seed=0, world_reduce=None)
    terms.total.backward()
    return [terms.mask.tolist(), terms.dice.tolist(), terms.classify.tolist()]


def check_numbers(found: object, expected: object, place: str) -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert sorted(found) == sorted(expected), place
        for key in expected:
            check_numbers(found[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected), place
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            check_numbers(a, b, f"{place}[{i}]")
    else:
        tolerance = (
            1e-4 if ".loss" in place or ".gradients" in place else 1e-7
        )  # the loss computes in float32
        assert found == pytest.approx(expected, rel=tolerance, abs=1e-7), place


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_on_file(case: str) -> None:
    found, path = measure(case), FOLDER / f"{case}.json"
    if os.environ.get("MASKSHARDS_WRITE_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.10g}"))
        path.write_text(json.dumps(rounded, indent=0) + "\n")
    check_numbers(found, json.loads(path.read_text()), case)


def test_a_changed_number_is_noticed() -> None:
    good = {"a": [1.0, 2.0]}
    check_numbers(good, good, "case")
    with pytest.raises(AssertionError, match=r"case\.a\[1\]"):
        check_numbers({"a": [1.0, 2.0001]}, good, "case")

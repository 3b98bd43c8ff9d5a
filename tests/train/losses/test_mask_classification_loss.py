"""The reference loss: constructor, terms against transformers' own, its total and its normaliser."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from maskshards.train.losses.mask_classification_loss import MaskClassificationLoss
from maskshards.train.losses.nonfinite import NonFiniteError

CLASSES, QUERIES = 5, 6


def make_loss(points: int = 40) -> MaskClassificationLoss:
    return MaskClassificationLoss(
        num_points=points,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        mask_coefficient=5.0,
        dice_coefficient=5.0,
        class_coefficient=2.0,
        num_labels=CLASSES,
        no_object_coefficient=0.1,
    )


def transformers_loss(points: int = 40) -> Mask2FormerLoss:
    """The library's own construction, with its class weight in the matcher (fixed at 1 there) set to 2."""
    config = SimpleNamespace(
        num_labels=CLASSES, no_object_weight=0.1, train_num_points=points, oversample_ratio=3.0,
        importance_sample_ratio=0.75, class_weight=2.0, dice_weight=5.0, mask_weight=5.0,
    )  # fmt: skip
    return Mask2FormerLoss(config, {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0})


def make_inputs(counts: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    mask_logits = 3 * torch.randn(len(counts), QUERIES, 8, 8, generator=generator)
    class_logits = torch.randn(len(counts), QUERIES, CLASSES + 1, generator=generator)
    targets = [
        {
            "masks": torch.rand(count, 32, 32, generator=generator) > 0.5,
            "labels": torch.randperm(CLASSES, generator=generator)[:count].to(torch.uint8),
        }
        for count in counts
    ]
    return mask_logits, class_logits, targets


@pytest.mark.parametrize("counts", [(2, 3), (1, 0, 4), (0, 0)])
def test_terms_equal_transformers_on_the_same_seed(counts: tuple[int, ...]) -> None:
    mask_logits, class_logits, targets = make_inputs(counts)
    torch.manual_seed(3)
    ours = make_loss()(mask_logits, targets, class_logits)
    torch.manual_seed(3)
    masks, labels = [t["masks"].float() for t in targets], [t["labels"].long() for t in targets]
    theirs = transformers_loss()(mask_logits, class_logits, masks, labels)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-6), name


def test_low_precision_logits_are_compared_in_float32() -> None:
    mask_logits, class_logits, targets = make_inputs((2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        terms = make_loss()(mask_logits.bfloat16(), targets, class_logits.bfloat16())
    assert {value.dtype for value in terms.values()} == {torch.float32}


def test_empty_targets_reach_every_prediction_with_zero_mask_gradients() -> None:
    mask_logits, class_logits, targets = make_inputs((0, 0))
    terms = make_loss()(mask_logits.requires_grad_(), targets, class_logits.requires_grad_())
    sum(terms.values()).backward()
    assert mask_logits.grad is not None
    assert mask_logits.grad.abs().sum().item() == 0
    assert class_logits.grad is not None
    assert class_logits.grad.abs().sum().item() > 0


def test_total_weighs_by_name_and_logs_each_term() -> None:
    logged: list[tuple[str, float, dict[str, bool]]] = []
    terms = {"loss_mask": 1.0, "loss_dice": 2.0, "loss_cross_entropy": 3.0, "loss_mask_block_-1": 4.0}
    losses = {name: torch.tensor(value) for name, value in terms.items()}
    total = make_loss().loss_total(
        losses, lambda name, value, **flags: logged.append((name, float(value), flags))
    )
    assert float(total) == 5 * 1 + 5 * 2 + 2 * 3 + 5 * 4
    assert [entry[0] for entry in logged] == [f"losses/train_{name}" for name in terms] + [
        "losses/train_loss_total"
    ]
    assert logged[0][2] == {"sync_dist": True}
    assert logged[-1][1:] == (41.0, {"sync_dist": True, "prog_bar": True})


def test_a_term_of_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_boxes"):
        make_loss().loss_total({"loss_boxes": torch.tensor(1.0)}, lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match="at least one layer"):
        make_loss().loss_total({}, lambda *args, **kwargs: None)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_and_no_cost_of_zero(part: int, value: float) -> None:
    *logits, targets = make_inputs((2, 0, 3))
    logits[part][1, 2] = value  # an image without targets has no cost that could tell
    with pytest.raises(NonFiniteError, match=r"image 1 of the batch.*1 of 3 images"):
        make_loss()(logits[0], targets, logits[1])

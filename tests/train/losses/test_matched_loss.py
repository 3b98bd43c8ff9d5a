"""The batched loss against transformers' own terms, called layer by layer with the same points."""

import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.models.mask2former import modeling_mask2former as reference

from maskshards.shards.batch import VOID, CropBatch
from maskshards.train.losses.dense_targets import crops_from_masks
from maskshards.train.losses.mask_classification_loss import MaskClassificationLoss
from maskshards.train.losses.matched_loss import (
    LossTerms,
    MatchedLoss,
    check_predictions,
    linear_loss,
    loss_kernels_fit,
    mask_terms,
    normalisers,
)
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.losses.point_sampling import (
    MATCH,
    ROWS,
    point_keys,
    random_points,
    row_offsets,
    shifted,
)
from maskshards.train.losses.point_sums import PlainSampler, RowSums
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.prediction import MaskProduct, Prediction
from tests.forked import ForkedPython

CLASSES, QUERIES, SIZE = 7, 6, 32
SETTINGS = LossSettings(num_points=50)


def crops_of(owner_map: torch.Tensor, labels: torch.Tensor, first: int = 40) -> CropBatch:
    batch, height, width = owner_map.shape
    keys = tuple(f"scene_{i}" for i in range(batch))
    positions = tuple(range(first, first + batch))
    return CropBatch(torch.zeros(batch, 3, height, width), owner_map, labels, keys, positions)


def make_crops(present: list[list[int]], void: bool = True, first: int = 40) -> CropBatch:
    """Images with the given label indices, in blocks of random pixels, and void between them."""
    generator = torch.Generator().manual_seed(1)
    maps = []
    for indices in present:
        choice = torch.tensor([*indices, VOID] if void or not indices else indices)
        blocks = choice[torch.randint(len(choice), (8, 8), generator=generator)]
        for place, index in enumerate(indices):
            blocks[place] = index
        maps.append(blocks.repeat_interleave(4, 0).repeat_interleave(4, 1).to(torch.int16))
    labels = torch.tensor([0, 2, 3, 6, -1]).repeat(len(present), 1)
    return crops_of(torch.stack(maps), labels, first)


def make_predictions(
    layers: int, batch: int, queries: int = QUERIES, requires_grad: bool = True
) -> list[Prediction]:
    generator = torch.Generator().manual_seed(2)
    return [
        Prediction(
            torch.randn(batch, queries, CLASSES + 1, generator=generator).requires_grad_(requires_grad),
            (3 * torch.randn(batch, queries, 8, 8, generator=generator)).requires_grad_(requires_grad),
        )
        for _ in range(layers)
    ]


def dense_targets(crops: CropBatch) -> list[dict[str, torch.Tensor]]:
    targets = []
    for owner_map, labels in zip(crops.owner_map, crops.labels, strict=True):
        present = [k for k in range(len(labels)) if bool((owner_map == k).any())]
        masks = (
            torch.stack([owner_map == k for k in present])
            if present
            else torch.zeros(0, SIZE, SIZE, dtype=torch.bool)
        )
        targets.append({"masks": masks, "labels": labels[present].to(torch.uint8)})
    return targets


class Spy:
    """Remembers the matches that a MatchedLoss made."""

    def __init__(self, loss: MatchedLoss) -> None:
        self._solve, loss._assign = loss._assign, self
        self.rows = np.zeros((4, 0), dtype=np.int64)

    def __call__(self, costs: np.ndarray, present: np.ndarray) -> np.ndarray:
        self.rows = self._solve(costs, present)
        return self.rows


def points_in_reference_order(
    rows: np.ndarray, crops: CropBatch, settings: LossSettings, layer: int, seed: int
) -> Iterator[torch.Tensor]:
    """What `torch.rand` must return during the reference's call for one layer."""
    candidates, _, fresh = settings.point_counts
    num_layers = layer + 1
    match = torch.from_numpy(point_keys(seed, crops.positions, num_layers, MATCH))[layer]
    for key in match:
        yield random_points(key, settings.num_points)[None]
    here = torch.from_numpy(rows[:, rows[0] == layer])
    keys = torch.from_numpy(point_keys(seed, crops.positions, num_layers, ROWS))[layer, here[1]]
    drawn = shifted(
        random_points(keys, candidates + fresh), row_offsets(keys, crops.labels[here[1], here[3]])
    )
    yield drawn[:, :candidates].contiguous()
    if fresh:
        yield drawn[:, candidates:]


def reference_terms(
    monkeypatch: pytest.MonkeyPatch,
    predictions: list[Prediction],
    crops: CropBatch,
    rows: np.ndarray,
    settings: LossSettings,
    seed: int,
) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
    s = settings
    loss = MaskClassificationLoss(
        s.num_points, s.oversample_ratio, s.importance_sample_ratio, s.mask_coefficient, s.dice_coefficient,
        s.class_coefficient, CLASSES, s.no_object_coefficient,
    )  # fmt: skip
    layers = []
    for layer, prediction in enumerate(predictions):
        queue = points_in_reference_order(rows, crops, settings, layer, seed)

        def given(*shape: int, queue: Iterator[torch.Tensor] = queue, **_: object) -> torch.Tensor:
            points = next(queue)
            assert tuple(points.shape) == tuple(shape)
            return points

        with monkeypatch.context() as patch:
            patch.setattr(reference.torch, "rand", given)
            layers.append(loss(prediction.mask_logits, dense_targets(crops), prediction.class_logits))
        assert next(queue, None) is None
    named = {f"{name}_{i}": value for i, terms in enumerate(layers) for name, value in terms.items()}
    return layers, loss.loss_total(named, lambda *args, **kwargs: None)


def gradients(total: torch.Tensor, predictions: list[Prediction]) -> list[torch.Tensor]:
    leaves = [leaf for p in predictions for leaf in (p.class_logits, p.mask_logits)]
    return list(torch.autograd.grad(total, leaves))


CASES = {
    "usual": ([[0, 1, 3], [2, 3]], SETTINGS, QUERIES),
    "one mask": ([[2]], SETTINGS, QUERIES),
    "an empty image": ([[0, 1], [], [2]], SETTINGS, QUERIES),
    "all images empty": ([[], []], SETTINGS, QUERIES),
    "more masks than queries": ([[0, 1, 2, 3], [1]], SETTINGS, 2),
    "no fresh points": ([[0, 1]], replace(SETTINGS, importance_sample_ratio=1.0), QUERIES),
    "only fresh points": ([[0, 1]], replace(SETTINGS, importance_sample_ratio=0.0), QUERIES),
    "other weights": (
        [[0, 1], [3]],
        replace(
            SETTINGS,
            mask_coefficient=3.0,
            dice_coefficient=1.0,
            class_coefficient=4.0,
            no_object_coefficient=0.3,
        ),
        QUERIES,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference_layer_by_layer(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    present, settings, queries = CASES[case]
    crops, predictions = make_crops(present), make_predictions(3, len(present), queries)
    loss = MatchedLoss(settings, CLASSES)
    spy = Spy(loss)
    terms = loss(predictions, crops, seed=5, world_reduce=None)
    layers, total = reference_terms(monkeypatch, predictions, crops, spy.rows, settings, seed=5)
    for name, ours in (
        ("loss_mask", terms.mask),
        ("loss_dice", terms.dice),
        ("loss_cross_entropy", terms.classify),
    ):
        assert torch.allclose(ours, torch.stack([layer[name] for layer in layers]), rtol=1e-5, atol=1e-6), (
            name
        )
    assert torch.allclose(terms.total, total, rtol=1e-5)
    assert terms.num_segments == sum(min(queries, len(labels)) for labels in present)
    for ours, theirs in zip(gradients(terms.total, predictions), gradients(total, predictions), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def products(
    batch: int, queries: int, multiplied: bool, dtype: torch.dtype = torch.float32
) -> tuple[list[Prediction], list[torch.Tensor]]:
    """Predictions that say what their masks are the product of, as the query decoder's do, and the leaves."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(batch, 3, queries, 5, generator=generator).to(dtype).requires_grad_()
    features = torch.randn(batch, 5, 8, 8, generator=generator).to(dtype).requires_grad_()
    masks = torch.einsum("blqc,bchw->blqhw", vectors, features).unbind(1)
    classes = [p.class_logits for p in make_predictions(3, batch, queries)]
    product = MaskProduct(vectors, features)
    predictions = [
        Prediction(each, masks[layer] if multiplied else None, product, layer)
        for layer, each in enumerate(classes)
    ]
    return predictions, [vectors, features, *classes]


@pytest.mark.parametrize("multiplied", [True, False], ids=["masks", "features"])
@pytest.mark.parametrize("case", CASES)
def test_matched_rows_multiplied_out_again_equal_the_reference(
    case: str, multiplied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs from the masks of all queries, or from the mask features."""
    present, settings, queries = CASES[case]
    crops = make_crops(present)
    predictions, leaves = products(len(present), queries, multiplied)
    loss = MatchedLoss(settings, CLASSES)
    spy = Spy(loss)
    terms = loss(predictions, crops, seed=5, world_reduce=None)
    _, total = reference_terms(monkeypatch, predictions, crops, spy.rows, settings, seed=5)
    assert torch.allclose(terms.total, total, rtol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(terms.total, leaves), torch.autograd.grad(total, leaves), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def costs_of(predictions: list[Prediction], crops: CropBatch, settings: LossSettings) -> torch.Tensor:
    """(L, B, Q, K) as the host is asked."""
    loss = MatchedLoss(settings, CLASSES)
    keys = torch.from_numpy(loss.keys(5, crops.positions, len(predictions)))
    asked = loss.asked(predictions, crops.owner_map, crops.labels, keys, None)
    shape = len(predictions), *predictions[0].class_logits.shape[:2], crops.labels.shape[1]
    return asked[: math.prod(shape)].view(shape)


@pytest.mark.parametrize("ignore_void", [False, True])
def test_costs_from_features_are_those_from_masks(ignore_void: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 but for rounding, so at the same points; loss and gradients are the same bit for bit."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    crops, settings = make_crops([[0, 1, 3], [], [2]]), replace(SETTINGS, ignore_void=ignore_void)
    of_masks, of_features = (products(3, QUERIES, each, torch.float64) for each in (True, False))
    costs = [costs_of(predictions, crops, settings) for predictions, _ in (of_masks, of_features)]
    assert costs[0].dtype == torch.float64
    torch.testing.assert_close(costs[1], costs[0], rtol=1e-11, atol=1e-12)
    totals = [
        MatchedLoss(settings, CLASSES)(predictions, crops, seed=5, world_reduce=None).total
        for predictions, _ in (of_masks, of_features)
    ]
    assert torch.equal(totals[0], totals[1])
    found = [
        torch.autograd.grad(total, leaves)
        for total, (_, leaves) in zip(totals, (of_masks, of_features), strict=True)
    ]
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_costs_from_features_are_as_close_as_those_from_masks_in_bfloat16() -> None:
    """Against float64 from the same numbers: one rounds the samples, the other the masks."""
    crops = make_crops([[0, 1, 3], [2, 3]])
    low, _ = products(2, QUERIES, True, torch.bfloat16)
    source = low[0].product
    assert source is not None
    wide = MaskProduct(source.vectors.double(), source.features.double())
    exact = [Prediction(p.class_logits, None, wide, layer) for layer, p in enumerate(low)]
    wanted = costs_of(exact, crops, SETTINGS)
    of_features = [replace(p, masks=None) for p in low]
    errors = [(costs_of(p, crops, SETTINGS) - wanted).square().mean().sqrt() for p in (low, of_features)]
    assert 0 < errors[1] < 1.5 * errors[0] < 0.05


def test_bfloat16_predictions_are_compared_in_float32() -> None:
    crops = make_crops([[0, 1, 3], [2, 3]])
    low = [Prediction(p.class_logits.bfloat16(), p.mask_logits.bfloat16()) for p in make_predictions(2, 2)]
    high = [Prediction(p.class_logits.float(), p.mask_logits.float()) for p in low]
    loss = MatchedLoss(SETTINGS, CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss(low, crops, seed=0, world_reduce=None)
    assert ours.total.dtype == torch.float32
    assert torch.equal(ours.total, loss(high, crops, seed=0, world_reduce=None).total)


def one_by_one(
    predictions: list[Prediction], crops: CropBatch, rows: slice
) -> tuple[list[Prediction], CropBatch]:
    some = replace(
        crops, images=crops.images[rows], owner_map=crops.owner_map[rows], labels=crops.labels[rows],
        keys=crops.keys[rows], positions=crops.positions[rows],
    )  # fmt: skip
    return [Prediction(p.class_logits[rows], p.mask_logits[rows]) for p in predictions], some


def test_two_ranks_average_to_one_process() -> None:
    """Sums over ranks are played by the numbers that each rank would have sent."""
    crops, predictions = make_crops([[0, 1, 3], [2, 3], [1], [0, 1, 2]]), make_predictions(2, 4)
    loss = MatchedLoss(SETTINGS, CLASSES)
    whole = loss(predictions, crops, seed=3, world_reduce=None)
    halves = [one_by_one(predictions, crops, rows) for rows in (slice(0, 2), slice(2, 4))]
    sent: list[torch.Tensor] = []
    for half in halves:
        loss(*half, seed=3, world_reduce=lambda numbers: sent.append(numbers.clone()) or numbers)
    terms = [loss(*half, seed=3, world_reduce=lambda numbers: torch.stack(sent).sum(0)) for half in halves]
    assert [float(numbers[0]) for numbers in sent] == [5, 4]
    mean = sum(term.total for term in terms) / 2
    assert torch.allclose(mean, whole.total, rtol=1e-6)
    for ours, theirs in zip(gradients(mean, predictions), gradients(whole.total, predictions), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


MEMBER = """
import json, sys
import torch
import torch.distributed as dist
from maskshards.shards.batch import CropBatch
from maskshards.train.losses.matched_loss import MatchedLoss
from maskshards.train.losses.settings import LossSettings
from maskshards.train.losses.mask_classification_loss import MaskClassificationLoss
from maskshards.train.model.heads.prediction import MaskProduct, Prediction

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
given = torch.load(f"{folder}/inputs.pt", weights_only=True)
mine = slice(2 * rank, 2 * rank + 2)
maps, labels, position = given["owner_map"][mine], given["labels"][mine], given["first"] + 2 * rank
crops = CropBatch(torch.zeros(2, 3, 8, 8), maps, labels, ("a", "b"), (position, position + 1))
scale = torch.tensor(given["scale"], requires_grad=True)
predictions = [Prediction(scale * c[mine], scale * m[mine]) for c, m in given["logits"]]

def total(numbers):
    dist.all_reduce(numbers)
    return numbers

loss = MatchedLoss(LossSettings(num_points=50), given["classes"])
terms = loss(predictions, crops, seed=3, world_reduce=total)
(gradient,) = torch.autograd.grad(terms.total, scale)
answer = [float(total(terms.total.detach())) / 2, float(total(gradient)) / 2]
count = MaskClassificationLoss._mean_matches(terms.num_segments, torch.device("cpu"))
print(json.dumps([*answer, float(count)]))
dist.destroy_process_group()
"""


def test_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    """Loss, gradient of a shared parameter, and the reference's normaliser."""
    crops = make_crops([[0, 1, 3], [2, 3], [1], [0, 1, 2]])
    logits = [(p.class_logits, p.mask_logits) for p in make_predictions(2, 4, requires_grad=False)]
    inputs = {
        "owner_map": crops.owner_map, "labels": crops.labels, "first": crops.positions[0], "scale": 0.7,
        "logits": logits, "classes": CLASSES,
    }  # fmt: skip
    torch.save(inputs, tmp_path / "inputs.pt")
    members = [
        ForkedPython(["-c", MEMBER, str(rank), str(tmp_path)], env=dict(os.environ)) for rank in range(2)
    ]
    scale = torch.tensor(0.7, requires_grad=True)
    predictions = [Prediction(scale * c, scale * m) for c, m in logits]
    whole = MatchedLoss(SETTINGS, CLASSES)(predictions, crops, seed=3, world_reduce=None).total
    (gradient,) = torch.autograd.grad(whole, scale)
    outputs = [member.communicate(900) for member in members]
    assert [member.returncode for member in members] == [0, 0], outputs
    expected = [whole.item(), gradient.item(), 4.5]
    for out, _ in outputs:
        assert json.loads(out) == pytest.approx(expected, rel=1e-5)


def test_an_image_draws_the_same_points_in_any_batch() -> None:
    crops, predictions = make_crops([[0, 1, 3], [2, 3], [1]]), make_predictions(2, 3)
    loss = MatchedLoss(SETTINGS, CLASSES)
    alone = [
        loss(*one_by_one(predictions, crops, slice(i, i + 1)), seed=3, world_reduce=None) for i in range(3)
    ]
    whole = loss(predictions, crops, seed=3, world_reduce=None)
    weighted = sum(term.mask * term.num_segments for term in alone) / whole.num_segments
    assert torch.allclose(weighted, whole.mask, rtol=1e-5)
    other = loss(predictions, crops, seed=4, world_reduce=None)
    assert not torch.allclose(other.mask, whole.mask, rtol=1e-5)


def test_ignored_pixels_count_nowhere_when_asked() -> None:
    """Void strips in which a query is badly wrong change the loss, unless void is left out."""
    crops = make_crops([[0]])
    clean = replace(crops, owner_map=torch.zeros_like(crops.owner_map))
    clean.owner_map[:, :, SIZE // 2 :] = VOID
    right = torch.where(torch.arange(8) < 4, 9.0, -9.0).expand(1, 1, 8, 8)
    wrong = torch.full((1, 1, 8, 8), 9.0)
    settings = replace(SETTINGS, num_points=4000, importance_sample_ratio=0.0)

    def mask_loss(logits: torch.Tensor, ignore_void: bool) -> LossTerms:
        prediction = Prediction(torch.zeros(1, 1, CLASSES + 1), logits)
        return MatchedLoss(replace(settings, ignore_void=ignore_void), CLASSES)(
            [prediction], clean, seed=0, world_reduce=None
        )

    assert float(mask_loss(wrong, False).mask) > 4
    assert float(mask_loss(wrong, True).mask) < 0.3  # zeros beyond the border of maps blur it a little
    assert float(mask_loss(wrong, True).dice) < 0.05 < 0.3 < float(mask_loss(wrong, False).dice)
    assert float(mask_loss(right, True).mask) < 0.4  # the blurred edge of the coarse mask lies half on void


def test_ignoring_void_changes_nothing_where_there_is_none() -> None:
    crops, predictions = make_crops([[0, 1, 3], [2, 3]], void=False), make_predictions(2, 2)
    plain = MatchedLoss(SETTINGS, CLASSES)(predictions, crops, seed=1, world_reduce=None)
    aware = MatchedLoss(replace(SETTINGS, ignore_void=True), CLASSES)(
        predictions, crops, seed=1, world_reduce=None
    )
    assert torch.allclose(plain.mask, aware.mask, rtol=1e-5)
    assert torch.allclose(plain.dice, aware.dice, rtol=1e-5)


def test_non_finite_predictions_are_named_and_dumped(tmp_path: Path) -> None:
    crops, predictions = make_crops([[0, 1], [2, 3]]), make_predictions(3, 2, requires_grad=False)
    predictions[1].mask_logits[1, 4] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"layer 1, image 'scene_1' \(position 41\), 1 of 6 queries.*1 of 6 layer"
    ):
        MatchedLoss(SETTINGS, CLASSES)(
            predictions, crops, seed=0, world_reduce=None, dump_dir=tmp_path / "dump"
        )
    assert [path.name for path in (tmp_path / "dump").iterdir()] == [
        "nonfinite-position41-layer1.safetensors"
    ]


def test_dense_targets_give_the_same_loss() -> None:
    crops, predictions = make_crops([[0, 1, 3], [2, 3]]), make_predictions(2, 2)
    loss = MatchedLoss(SETTINGS, CLASSES)
    dense = crops_from_masks(dense_targets(crops), crops.positions)
    ours = loss(predictions, dense, seed=5, world_reduce=None)
    assert torch.equal(ours.total, loss(predictions, crops, seed=5, world_reduce=None).total)


def test_flags_come_back_on_the_host() -> None:
    crops, predictions = make_crops([[0, 1]]), make_predictions(1, 1)
    terms = MatchedLoss(SETTINGS, CLASSES)(
        predictions, crops, seed=0, world_reduce=None, flags=torch.tensor([1.0, 0.5])
    )
    assert terms.flags_on_host is not None
    assert terms.flags_on_host.tolist() == [1.0, 0.5]


def test_other_work_is_done_while_the_costs_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Copy:
        def __init__(self, source: torch.Tensor) -> None:
            done.append("queued")
            self.source = source

        def wait(self) -> np.ndarray:
            done.append("waited")
            return self.source.numpy()

    monkeypatch.setattr("maskshards.train.losses.matched_loss.HostCopy", Copy)
    crops, predictions, loss = make_crops([[0, 1]]), make_predictions(1, 1), MatchedLoss(SETTINGS, CLASSES)
    terms = loss(predictions, crops, seed=0, world_reduce=None, meanwhile=lambda: done.append("meanwhile"))
    assert done == ["queued", "meanwhile", "waited"]
    assert terms.flags_on_host is None


def test_the_parts_of_a_call_give_its_terms_and_say_no_number_of_segments() -> None:
    """As a recorded step takes them, in which the number is known on the host alone."""
    crops, predictions, loss = (
        make_crops([[0, 1, 3], [2]]),
        make_predictions(2, 2),
        MatchedLoss(SETTINGS, CLASSES),
    )
    keys = torch.from_numpy(loss.keys(5, crops.positions, 2))
    asked = loss.asked(predictions, crops.owner_map, crops.labels, keys, None)
    matches, _ = loss.matches(asked.numpy(), (2, 2, QUERIES, 5), predictions, crops)
    shares = normalisers(torch.from_numpy(matches.numbers), None)
    rows = torch.from_numpy(matches.rows)
    terms = loss.terms(predictions, crops.owner_map, crops.labels, keys, rows, shares, matches.most)
    assert torch.equal(terms.total, loss(predictions, crops, seed=5, world_reduce=None).total)
    assert (terms.num_segments, terms.flags_on_host) == (0, None)


@pytest.mark.parametrize("around", [True, False])
def test_no_part_of_the_loss_runs_in_lower_precision(around: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def watched(name: str) -> None:
        real = getattr(MatchedLoss, name)

        def watch(*arguments: object) -> object:
            seen.append(torch.is_autocast_enabled("cpu"))
            return real(*arguments)

        monkeypatch.setattr(MatchedLoss, name, watch)

    watched("_sampler")
    watched("_terms")
    crops, predictions = make_crops([[0, 1]]), make_predictions(1, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        MatchedLoss(SETTINGS, CLASSES)(predictions, crops, seed=0, world_reduce=None)
        logits = predictions[0].mask_logits[:, :CLASSES].bfloat16()
        linear = linear_loss(logits, make_crops([[0, 1]]))
    assert seen == [False] * 3  # for the costs, for the terms
    assert linear.dtype == torch.float32
    assert torch.equal(linear, linear_loss(logits.float(), make_crops([[0, 1]])))


def test_the_kernels_are_for_crops_with_a_label_and_taken_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for fit in (True, False):
        monkeypatch.setattr("maskshards.train.losses.matched_loss.kernels_fit", lambda maps, fit=fit: fit)
        assert [loss_kernels_fit(torch.zeros(1), count) for count in (0, 1, 2)] == [False, fit, fit]
    assert MatchedLoss(SETTINGS, CLASSES).fused


@pytest.mark.parametrize("fused", [True, False])
def test_sums_are_the_kernels_where_they_fit_and_nobody_turned_them_off(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    class Kernels(PlainSampler):
        def __init__(self, *inputs: Any) -> None:
            made.append(self)
            super().__init__(*inputs)

    module = "maskshards.train.losses.point_sums_fused"
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(FusedSampler=Kernels))
    monkeypatch.setattr("maskshards.train.losses.matched_loss.loss_kernels_fit", lambda maps, count: True)
    crops, predictions = make_crops([[0, 1]]), make_predictions(1, 1)
    loss = MatchedLoss(SETTINGS, CLASSES, fused=fused)
    assert torch.isfinite(loss(predictions, crops, seed=0, world_reduce=None).total)
    assert len(made) == (2 if fused else 0)  # for the costs, for the terms


def test_rows_are_divided_by_their_points_and_by_one_where_none_counts() -> None:
    one = torch.ones(4)
    counted = torch.tensor([0.0, 0.5, 1.0, 4.0])
    entropy, dice = mask_terms(RowSums(8 * one, 3 * one, 5 * one, 7 * one, counted))
    assert entropy.tolist() == [8, 8, 8, 2]
    assert dice.tolist() == pytest.approx([1 - 7 / 13] * 4)


@pytest.mark.parametrize(
    ("numbers", "shares"), [((0, 3, 1), (1, 3)), ((1, 3, 1), (1, 3)), ((6, 3, 2), (3, 1.5))]
)
def test_normalisers_are_means_over_ranks_and_at_least_one_segment(
    numbers: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    assert normalisers(torch.tensor(numbers, dtype=torch.float32), None).tolist() == list(shares)


def test_linear_loss_of_one_labelled_pixel_is_that_pixels() -> None:
    """In crops of images with a single label, alone and as one of two ranks of which the other has none."""
    owner_map = torch.full((1, SIZE, SIZE), VOID, dtype=torch.int16)
    owner_map[0, 3, 5] = 0
    crops = crops_of(owner_map, torch.tensor([[4]]))
    logits = torch.randn(1, CLASSES, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    expected = -logits[0, :, 3, 5].log_softmax(0)[4]
    torch.testing.assert_close(linear_loss(logits, crops), expected)
    both = linear_loss(logits, crops, lambda numbers: numbers + torch.tensor([0, 1]))
    torch.testing.assert_close(both / 2, expected)


def test_settings_out_of_range_are_refused() -> None:
    for change in ({"num_points": 0}, {"oversample_ratio": 0.5}, {"importance_sample_ratio": 1.5}):
        with pytest.raises(ValueError, match="m2f_train"):
            replace(SETTINGS, **change)  # type: ignore[arg-type]


def test_linear_loss_is_the_mean_over_labelled_pixels() -> None:
    crops = make_crops([[0, 1, 3], [2]])
    logits = torch.randn(2, CLASSES, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    full = F.interpolate(logits, (SIZE, SIZE), mode="bilinear", align_corners=False).log_softmax(1)
    losses = []
    for image, y, x in itertools.product(range(2), range(SIZE), range(SIZE)):
        index = int(crops.owner_map[image, y, x])
        if index != VOID:
            losses.append(-full[image, crops.labels[image, index], y, x])
    assert torch.allclose(linear_loss(logits, crops), torch.stack(losses).mean(), rtol=1e-5)


def test_linear_loss_of_two_ranks_averages_to_one_process() -> None:
    """One half has few labelled pixels and one has none; sums over ranks are played as above."""
    crops = make_crops([[0, 1, 3], [2, 3], [1], [0, 1, 2]])
    crops.owner_map[2, 4:], crops.owner_map[3] = VOID, VOID
    logits = torch.randn(4, CLASSES, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    whole = linear_loss(logits, crops)
    halves = [(logits[rows], one_by_one([], crops, rows)[1]) for rows in (slice(0, 2), slice(2, 4))]
    sent: list[torch.Tensor] = []
    for half in halves:
        linear_loss(*half, lambda numbers: sent.append(numbers) or numbers)
    assert sent[0][0] > 2 * sent[1][0] > 0
    mean = sum(linear_loss(*half, lambda numbers: torch.stack(sent).sum(0)) for half in halves) / 2
    assert torch.allclose(mean, whole, rtol=1e-6)
    ours, theirs = (torch.autograd.grad(total, logits)[0] for total in (mean, whole))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-8)
    apart = sum(linear_loss(*half) for half in halves) / 2
    assert not torch.allclose(apart, whole, rtol=1e-3)  # what each rank's own mean would have given


def test_linear_loss_where_no_rank_has_a_label_is_zero() -> None:
    logits = torch.randn(1, CLASSES, 8, 8, requires_grad=True)
    loss = linear_loss(logits, make_crops([[]]), lambda numbers: 2 * numbers)
    assert loss.detach().item() == 0


def test_linear_loss_of_ignored_crops_is_zero_with_a_graph() -> None:
    logits = torch.randn(1, CLASSES, 8, 8, requires_grad=True)
    loss = linear_loss(logits, make_crops([[]]))
    loss.backward()
    assert loss.detach().item() == 0
    assert logits.grad is not None
    assert float(logits.grad.abs().sum()) == 0


@pytest.mark.parametrize(
    ("classes", "masks", "told"),
    [
        ((2, 5, 3), (2, 5, 8, 8), r"layer 0: class_logits are \(2, 5, 3\), expected \(2, queries, 4\)"),
        ((1, 5, 4), (1, 5, 8, 8), r"class_logits are \(1, 5, 4\), expected \(2, queries, 4\)"),
        ((2, 5, 4), (2, 6, 8, 8), r"mask logits are \(2, 6, 8, 8\), expected \(2, 5, height, width\)"),
        ((2, 5, 4), (2, 5, 64), "mask logits"),
    ],
)
def test_logits_of_other_images_or_classes_are_named(
    classes: tuple[int, ...], masks: tuple[int, ...], told: str
) -> None:
    crops = CropBatch(
        torch.zeros(2, 3, 0, 0), torch.zeros(2, 8, 8, dtype=torch.int16), torch.zeros(2, 1).long(),
        ("a", "b"), (0, 1),
    )  # fmt: skip
    predictions = [Prediction(torch.zeros(classes), torch.zeros(masks))]
    with pytest.raises(ValueError, match=told):
        MatchedLoss(LossSettings(num_points=4), 3)(predictions, crops, seed=0, world_reduce=None)
    with pytest.raises(ValueError, match="no predictions"):
        check_predictions([], crops, 3)
    fitting = [Prediction(torch.zeros(2, 5, 4), torch.zeros(2, 5, 8, 8))]
    check_predictions(fitting, crops, 3)
    with pytest.raises(ValueError, match="show class 3, and the loss knows 0 to 2"):
        check_predictions(fitting, replace(crops, largest_class_id=3), 3)

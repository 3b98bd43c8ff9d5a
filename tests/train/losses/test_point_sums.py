"""Sums over points against a loop over images, queries and masks with grid_sample on one-hot masks."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from maskshards.shards.batch import VOID
from maskshards.train.losses.point_sampling import (
    MATCH,
    ROWS,
    point_keys,
    random_points,
    row_offsets,
    shifted,
)
from maskshards.train.losses.point_sums import PairSums, PlainSampler, Rows, RowSums
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.prediction import MaskProduct, Prediction

LAYERS, IMAGES, QUERIES, LABELS = 2, 2, 3, 4


def sample(plane: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(P,) float64: one plane (h, w) read bilinearly at points (P, 2)."""
    grid = 2 * points.double()[None, None] - 1
    return F.grid_sample(plane.double()[None, None], grid, align_corners=False).flatten()


def make_inputs(dtype: torch.dtype = torch.float32) -> tuple[list[Prediction], torch.Tensor, torch.Tensor]:
    """Predictions, a label map with void in it, and the keys of both point sets."""
    generator = torch.Generator().manual_seed(0)
    predictions = [
        Prediction(
            torch.zeros(IMAGES, QUERIES, 1), torch.randn(IMAGES, QUERIES, 5, 6, generator=generator).to(dtype)
        )
        for _ in range(LAYERS)
    ]
    choice = torch.tensor([*range(LABELS), VOID])
    owner_map = choice[torch.randint(len(choice), (IMAGES, 10, 12), generator=generator)].to(torch.int16)
    keys = [torch.from_numpy(point_keys(7, [3, 2**33], LAYERS, use)) for use in (MATCH, ROWS)]
    return predictions, owner_map, torch.stack(keys)


def make_products(
    dtype: torch.dtype = torch.float32, width: int = 5, layout: torch.memory_format = torch.contiguous_format
) -> tuple[list[Prediction], list[Prediction]]:
    """Predictions without masks, of any type, and the same numbers in float64."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(IMAGES, LAYERS, QUERIES, width, generator=generator).to(dtype)
    features = torch.randn(IMAGES, width, 5, 6, generator=generator).to(dtype, memory_format=layout)
    pair = MaskProduct(vectors, features), MaskProduct(vectors.double(), features.double())
    classes = torch.zeros(IMAGES, QUERIES, 1)
    ours, exact = ([Prediction(classes, None, each, layer) for layer in range(LAYERS)] for each in pair)
    return ours, exact


def rows_of(predictions: list[Prediction]) -> Rows:
    """Every query of every layer and image against one label."""
    place = torch.tensor(
        [
            (layer, image, query, (layer + image + query) % LABELS)
            for layer, image, query in itertools.product(range(LAYERS), range(IMAGES), range(QUERIES))
        ]
    ).T
    maps = torch.cat([p.mask_logits.flatten(0, 1) for p in predictions])
    return Rows(maps, place, 10 + place[3])


def check_pairs(
    sums: PairSums, predictions: list[Prediction], owner_map: torch.Tensor, keys: torch.Tensor,
    settings: LossSettings, limit: float = 1e-5,
) -> None:  # fmt: skip
    for layer, image in itertools.product(range(LAYERS), range(IMAGES)):
        points = random_points(keys[0, layer, image], settings.num_points)
        weight = torch.ones(settings.num_points, dtype=torch.float64)
        if settings.ignore_void:
            weight = 1 - sample(owner_map[image] == VOID, points)
        masks = [sample(owner_map[image] == k, points) for k in range(LABELS)]
        assert torch.allclose(sums.counted[layer, image].double(), weight.sum(), rtol=limit)
        for k, mask in enumerate(masks):
            assert torch.allclose(sums.target[layer, image, k].double(), mask.sum(), rtol=limit)
        for query in range(QUERIES):
            logit = sample(predictions[layer].mask_logits[image, query], points)
            sigmoid = logit.sigmoid() * weight
            expected = (F.softplus(logit) * weight).sum(), sigmoid.sum()
            found = sums.softplus[layer, image, query], sums.sigmoid[layer, image, query]
            assert torch.allclose(torch.stack(found).double(), torch.stack(expected), rtol=limit)
            for k, mask in enumerate(masks):
                products = sums.with_logit[layer, image, query, k], sums.with_sigmoid[layer, image, query, k]
                expected = (logit * mask).sum(), (sigmoid * mask).sum()
                assert torch.allclose(
                    torch.stack(products).double(), torch.stack(expected), rtol=limit, atol=1e-4
                )


def expected_row(
    plane: torch.Tensor, labels: torch.Tensor, key: torch.Tensor, place: torch.Tensor, settings: LossSettings
) -> torch.Tensor:
    """(5,) float64 with a graph to `plane`: what RowSums holds of one row, by sorting the candidates."""
    candidates, kept, fresh = settings.point_counts
    offset = row_offsets(key[None], 10 + place[3:4])
    drawn = shifted(random_points(key, candidates + fresh)[None], offset)[0]
    least = sample(plane.detach(), drawn[:candidates]).abs().argsort()[:kept]
    points = torch.cat((drawn[least], drawn[candidates:]))
    logit, target = sample(plane, points), sample(labels == place[3], points)
    weight = 1 - sample(labels == VOID, points) * settings.ignore_void
    sigmoid = logit.sigmoid() * weight
    entropy = F.softplus(logit) * weight - logit * target
    return torch.stack([part.sum() for part in (entropy, sigmoid * target, sigmoid, target, weight)])


def check_rows(
    sampler: PlainSampler, predictions: list[Prediction], owner_map: torch.Tensor, keys: torch.Tensor,
    settings: LossSettings, limit: float = 1e-5,
) -> None:  # fmt: skip
    """Sums, and the gradient of the maps through all three that have one."""
    rows = rows_of(predictions)
    maps = rows.maps.detach().requires_grad_()
    sums = sampler.row_sums(Rows(maps, rows.place, rows.classes))
    found = torch.stack((sums.entropy, sums.overlap, sums.sigmoid, sums.target, sums.counted), 1)
    planes = rows.maps.detach().double().requires_grad_()
    expected = torch.stack(
        [
            expected_row(plane, owner_map[place[1]], keys[1, place[0], place[1]], place, settings)
            for plane, place in zip(planes, rows.place.T, strict=True)
        ]
    )
    assert torch.allclose(found.double(), expected, rtol=limit, atol=limit)
    weights = torch.tensor([1.0, 2.0, -0.5])
    (grad,) = torch.autograd.grad((found[:, :3] * weights).sum(), maps)
    (exact,) = torch.autograd.grad((expected[:, :3] * weights).sum(), planes)
    assert torch.allclose(grad.double(), exact, rtol=100 * limit, atol=10 * limit)


@pytest.mark.parametrize("ignore_void", [False, True])
@pytest.mark.parametrize("num_points", [7, 40])
def test_sums_equal_a_loop_over_dense_masks(num_points: int, ignore_void: bool) -> None:
    predictions, owner_map, keys = make_inputs()
    settings = LossSettings(num_points=num_points, ignore_void=ignore_void)
    sampler = PlainSampler(owner_map, LABELS, keys, settings)
    check_pairs(sampler.pair_sums(predictions), predictions, owner_map, keys, settings)
    check_rows(sampler, predictions, owner_map, keys, settings)


@pytest.mark.parametrize("ignore_void", [False, True])
def test_sums_of_products_equal_a_loop_over_masks_multiplied_out(ignore_void: bool) -> None:
    _, owner_map, keys = make_inputs()
    ours, exact = make_products()
    settings = LossSettings(num_points=40, ignore_void=ignore_void)
    sums = PlainSampler(owner_map, LABELS, keys, settings).pair_sums(ours)
    check_pairs(sums, exact, owner_map, keys, settings)


def test_no_rows_give_no_sums() -> None:
    _, owner_map, keys = make_inputs()
    place = torch.zeros((4, 0), dtype=torch.int64)
    rows = Rows(torch.zeros(0, 5, 6), place, place[0])
    sums: RowSums = PlainSampler(owner_map, LABELS, keys, LossSettings(num_points=9)).row_sums(rows)
    assert sums.entropy.shape == sums.counted.shape == (0,)


def test_candidates_held_in_parts_give_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, owner_map, keys = make_inputs()
    rows, settings = rows_of(predictions), LossSettings(num_points=20)
    whole = PlainSampler(owner_map, LABELS, keys, settings).row_sums(rows)
    monkeypatch.setattr("maskshards.train.losses.point_sums.CANDIDATES_AT_ONCE", 130)  # two rows of 60
    assert torch.equal(PlainSampler(owner_map, LABELS, keys, settings).row_sums(rows).entropy, whole.entropy)

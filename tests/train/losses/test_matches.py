"""Rows that fill up weigh nothing: the padded loss equals the ragged one, and its gradients, in float64."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from maskshards.shards.batch import VOID, CropBatch
from maskshards.train.losses.matched_loss import LossTerms, MatchedLoss, normalisers
from maskshards.train.losses.matches import Room, matches_of, packed, room_for, unpacked, without_matches
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads.prediction import MaskProduct, Prediction

LAYERS, QUERIES, CLASSES, WIDTH, SIDE = 3, 5, 9, 4, 8
IMAGES = {
    "as usual": [3, 2],
    "one without a mask": [0, 4],
    "none with a mask": [0, 0],
    "more masks than queries": [8, 1],
}


@pytest.fixture
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss computes in float32; here everything that asks for it gets float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def crops_of(num_labels: Sequence[int], first: int = 7) -> CropBatch:
    """Blocks of random labels; the last label of an image is named but not seen if it has more than one."""
    generator = torch.Generator().manual_seed(3)
    most = max(1, *num_labels)
    labels = torch.full((len(num_labels), most), -1)
    maps = []
    for image, count in enumerate(num_labels):
        labels[image, :count] = torch.randperm(CLASSES, generator=generator)[:count].sort().values
        seen = torch.tensor([*range(max(1, count - 1) if count else 0), VOID])
        blocks = seen[torch.randint(len(seen), (16, 16), generator=generator)]
        maps.append(blocks.repeat_interleave(2, 0).repeat_interleave(2, 1).to(torch.int16))
    keys, positions = ("a", "b", "c")[: len(maps)], tuple(range(first, first + len(maps)))
    return CropBatch(torch.zeros(len(maps), 3, 32, 32), torch.stack(maps), labels, keys, positions)


def predictions_of(images: int, tells_product: bool) -> tuple[list[Prediction], list[Tensor]]:
    """All layers' answers, and the tensors that they hang on."""
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    vectors, features = draw(images, LAYERS, QUERIES, WIDTH), draw(images, WIDTH, SIDE, SIDE)
    classes = draw(images, LAYERS, QUERIES, CLASSES + 1)
    masks = torch.einsum("blqc,bchw->blqhw", vectors, features)
    product = MaskProduct(vectors, features) if tells_product else None
    made = [Prediction(c, m, product) for c, m in zip(classes.unbind(1), masks.unbind(1), strict=True)]
    return made, [vectors, features, classes]


def padded_terms(
    loss: MatchedLoss,
    predictions: list[Prediction],
    crops: CropBatch,
    room: Room,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> LossTerms:
    """The loss in the works of a recorded step."""
    missing = room.labels - crops.labels.shape[1]
    labels = torch.nn.functional.pad(crops.labels, (0, missing), value=-1)
    keys = torch.from_numpy(loss.keys(5, crops.positions, LAYERS))
    values = loss.asked(predictions, crops.owner_map, labels, keys, None).numpy()
    shape = (LAYERS, len(crops.keys), QUERIES, room.labels)
    matches, _ = loss.matches(values, shape, predictions, crops, room=room)
    shares = normalisers(torch.from_numpy(matches.numbers), reduce)
    assert matches.rows.shape == (6, LAYERS * room.rows)
    rows = torch.from_numpy(matches.rows)
    found = loss.terms(predictions, crops.owner_map, labels, keys, rows, shares, matches.most)
    return replace(found, num_segments=matches.num_segments)


def other_rank(numbers: Tensor) -> Tensor:
    """What two ranks add up to, of which the other one has 4 segments."""
    return numbers + torch.tensor([4.0, 4.6, 1.0])


@pytest.mark.usefixtures("_in_float64")
@pytest.mark.parametrize("tells_product", [True, False], ids=["product", "maps"])
@pytest.mark.parametrize("name", IMAGES)
def test_a_padded_loss_equals_the_ragged_one(name: str, tells_product: bool) -> None:
    num_labels = IMAGES[name]
    for ignore_void, reduce in ((False, None), (True, other_rank)):
        loss = MatchedLoss(LossSettings(num_points=20, ignore_void=ignore_void), CLASSES)
        crops = crops_of(num_labels)
        predictions, leaves = predictions_of(len(num_labels), tells_product)
        ragged = loss(predictions, crops, seed=5, world_reduce=reduce)
        wanted = torch.autograd.grad(ragged.total, leaves, retain_graph=True)
        room = room_for(num_labels, QUERIES)
        for larger in (room, Room(room.labels + 8, room.rows + 6)):
            padded = padded_terms(loss, predictions, crops, larger, reduce)
            assert padded.num_segments == ragged.num_segments
            for ours, theirs in (
                (padded.total, ragged.total), (padded.mask, ragged.mask), (padded.dice, ragged.dice),
                (padded.classify, ragged.classify),
            ):  # fmt: skip
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
            found = torch.autograd.grad(padded.total, leaves, retain_graph=True)
            for ours, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_a_room_holds_what_the_crops_of_its_images_can_need() -> None:
    assert room_for([3, 9, 0, 1], 5) == Room(labels=16, rows=16)  # 3 + 5 + 0 + 1 rows, in steps of eight
    assert room_for([0, 0], 5) == Room(labels=8, rows=4)
    assert {room_for([n, n], 100) for n in (5, 6)} == {Room(8, 12)}


def test_more_rows_than_room_are_an_error() -> None:
    matched = np.array([[0, 0, 0], [0, 1, 1], [0, 0, 1], [0, 0, 1]])
    with pytest.raises(ValueError, match="3 matched rows a layer, but the step was recorded for 2"):
        matches_of(matched, (1, 2, QUERIES, 8), 0.1, Room(8, 2))


def test_without_matches_nothing_is_finite() -> None:
    matches = without_matches((LAYERS, 2, QUERIES, 8), Room(8, 4))
    assert np.isnan(matches.numbers).all()
    assert (matches.rows[4] == 2 * matches.most).all()
    assert (matches.rows[5] == LAYERS * 2 * QUERIES).all()


def test_what_is_packed_comes_out_again() -> None:
    costs, present = torch.rand(LAYERS, 2, QUERIES, 3), torch.tensor([[True, False, True], [False] * 3])
    values = packed(costs, present, torch.tensor([7.0])).numpy()
    found = unpacked(values, tuple(costs.shape))
    assert np.array_equal(found[0], costs.numpy())
    assert np.array_equal(found[1], present.numpy())
    assert found[2].tolist() == [7.0]

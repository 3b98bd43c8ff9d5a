"""A recorded step is the ordinary step: on a CPU, where a tape of operators stands in for CUDA graphs.

The tape repeats every operator on the tensors that it met, as a graph repeats kernels, so a number of the
host that was recorded, or a tensor that was not in its place, shows as a wrong loss or gradient.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskshards.shards.batch import CropBatch
from maskshards.train.capture.captured_step import CapturedStep, captured_step
from maskshards.train.capture.cuda_graphs import WARMUP_ROUNDS, Graphs, Work
from maskshards.train.losses import point_sampling, point_sums
from maskshards.train.losses.matched_loss import MatchedLoss
from maskshards.train.losses.matches import Room
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.heads import pixel_decoder, query_decoder
from maskshards.train.model.ops.fused import set_switch
from maskshards.train.model.segmenter import Segmenter
from tests.train.losses.test_matches import crops_of
from tests.train.model.tiny_segmenter import tiny_segmenter

CPU, CLASSES, SEED = torch.device("cpu"), 9, 5
BATCHES: list[Sequence[int]] = [[3, 2], [2, 3], [1, 3], [0, 4], [4, 0], [2, 2], [8, 8], [3, 1]]


class Tape(TorchDispatchMode):
    """Every operator, with what it was given and what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def repeat(self) -> None:
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, out in self.calls:
                for new, place in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(out), strict=True):
                    if isinstance(new, Tensor) and new.data_ptr() != place.data_ptr():
                        place.copy_(new)


class Tapes(Graphs):
    """Records on tapes. Nothing happens to `state` while it does, as nothing runs while CUDA records."""

    def __init__(self, state: Sequence[Tensor]) -> None:
        self.state, self.recorded = state, 0

    @contextmanager
    def beside(self) -> Iterator[None]:
        yield

    def record(self, work: Work) -> Work:
        self.recorded += 1
        held = [*self.state, *(t.grad for t in self.state if t.grad is not None)]
        before = [tensor.detach().clone() for tensor in held]
        with Tape() as tape:
            work()
        for tensor, value in zip(held, before, strict=True):
            tensor.data.copy_(value)  # unseen by autograd, whose next work is recorded yet
        return tape.repeat


@pytest.fixture
def _points_by_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """As other devices draw them: on a CPU NumPy does, which no tape sees."""

    def drawn(keys: Tensor, count: int) -> Tensor:
        index = torch.arange(2 * count, device=keys.device)
        words = point_sampling.mix((point_sampling.mix(index ^ keys[..., :1]) + keys[..., 1:]) & 0xFFFFFFFF)
        return point_sampling._to_unit(words).unflatten(-1, (count, 2)).float()

    monkeypatch.setattr(point_sums, "random_points", drawn)


@pytest.fixture(autouse=True)
def _few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depth adds nothing but seconds."""
    monkeypatch.setattr(pixel_decoder, "NUM_LAYERS", 1)
    monkeypatch.setattr(query_decoder, "NUM_LAYERS", 1)


def segmenter_for_training(multiplies_out: bool = True) -> Segmenter:
    segmenter = tiny_segmenter(num_classes=CLASSES, num_queries=6)
    segmenter.decoder.train()
    set_switch(segmenter.decoder, "multiplies_out", multiplies_out)
    set_switch(segmenter.decoder, "resample", False)  # SciPy would multiply, unseen by a tape
    return segmenter


def a_loss() -> MatchedLoss:
    return MatchedLoss(LossSettings(num_points=20), CLASSES, threads=1)


def crops_and_images(num_labels: Sequence[int], first: int) -> CropBatch:
    crops = crops_of(num_labels, first)
    generator = torch.Generator().manual_seed(first)
    crops.images.copy_(torch.randn(crops.images.shape, generator=generator))
    return crops


def plain_step(segmenter: Segmenter, loss: MatchedLoss, crops: CropBatch, flag: Tensor) -> list[Tensor]:
    """Total, means of the terms, and the flag; gradients are added up."""
    drops = segmenter.decoder.draw_drops(crops.positions, SEED)
    answer = segmenter.decoder(crops.images, segmenter.features(crops.images), drops)
    terms = loss(answer, crops, seed=SEED, world_reduce=None, flags=flag)
    (terms.total * 0.5).backward()
    assert terms.flags_on_host is not None
    parts = [part.detach().mean() for part in (terms.mask, terms.dice, terms.classify)]
    return [terms.total.detach(), *parts, torch.tensor(float(terms.flags_on_host[0]))]


def state_of(segmenter: Segmenter) -> list[Tensor]:
    grads = [p.grad for p in segmenter.decoder.parameters() if p.grad is not None]
    return [*grads, *segmenter.decoder.buffers()]


@pytest.fixture
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roundings would choose other points. What asks for float32, as the loss does, gets float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("multiplies_out", [True, False], ids=["masks", "features"])
@pytest.mark.usefixtures("_points_by_operators", "_in_float64")
def test_replayed_steps_equal_ordinary_ones_batch_by_batch(multiplies_out: bool) -> None:
    """Losses, the flag, gradients added up over two micro-steps, and batch statistics; costs of the
    ordinary step come from masks.
    """
    plain, ours = segmenter_for_training().double(), segmenter_for_training(multiplies_out).double()
    tapes = [Tapes([*ours.decoder.parameters(), *ours.decoder.buffers()]) for _ in range(2)]
    left = list(tapes)
    step = CapturedStep(ours, a_loss(), nullcontext, left.pop, weight=0.5)
    loss = a_loss()
    for number, num_labels in enumerate(BATCHES):
        crops, flag = crops_and_images(num_labels, 10 * number), torch.tensor([float(number)])
        crops = replace(crops, images=crops.images.double())
        if number % 2 == 0:
            plain.decoder.zero_grad(set_to_none=True)
            ours.decoder.zero_grad(set_to_none=number % 4 == 0)  # a stranger may let go of them
        wanted = plain_step(plain, loss, crops, flag)
        waited: list[int] = []
        found = step(
            crops, num_labels, step.features(crops.images), seed=SEED, flag=flag,
            meanwhile=lambda waited=waited: waited.append(1),  # type: ignore[misc]
        )  # fmt: skip
        found.learn()
        assert waited == [1]
        assert found.flag_on_host is not None
        for mine, theirs in zip(
            [found.total, *found.parts.values(), torch.tensor(found.flag_on_host)], wanted, strict=True
        ):
            torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-9, atol=1e-9)
        for mine, theirs in zip(state_of(ours), state_of(plain), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    assert set(step._rooms) == {Room(8, 4), Room(8, 8), Room(8, 12)}
    assert sorted(tape.recorded for tape in tapes) == [1, 3]  # features; three works of the room met often


def operators_of(num_labels: Sequence[int], first: int) -> list[Any]:
    """The operators of a whole step with the shapes and types that they gave."""
    segmenter = segmenter_for_training()
    step = captured_step(segmenter, a_loss(), nullcontext, CPU)
    crops = crops_and_images(num_labels, first)
    works: list[Any] = []
    features = step.features(crops.images)
    step(crops, num_labels, features, seed=SEED).learn()  # makes the places
    (room,) = step._rooms.values()
    segmenter.decoder.zero_grad(set_to_none=False)
    for work in (step._look, room._ask, room._compare, room._learn):
        with Tape() as tape:
            work()
        works += [
            (
                str(func),
                [(tuple(leaf.shape), leaf.dtype) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)],
            )
            for func, _, _, out in tape.calls
        ]
    return works


@pytest.mark.usefixtures("_points_by_operators")
def test_operators_and_shapes_are_the_same_for_all_batches_of_a_room() -> None:
    usual, empty = operators_of([4, 3], 0), operators_of([0, 7], 90)
    assert len(usual) > 1000
    assert usual == empty


@pytest.mark.parametrize("multiplies_out", [True, False], ids=["masks", "features"])
def test_nothing_recorded_reads_a_value_or_the_host(
    multiplies_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values every read of one is an error; no operator may take a tensor of the host."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    meta = torch.device("meta")
    segmenter = segmenter_for_training(multiplies_out).to(meta)
    step = captured_step(segmenter, a_loss(), nullcontext, CPU)
    images, num_images = torch.zeros(2, 3, 32, 32, device=meta), 2
    step.places.put("next images", images)
    step._look()
    for name, value in {
        "images": images, "owner map": torch.zeros((2, 32, 32), dtype=torch.int16, device=meta),
        "flag": torch.zeros(1, device=meta), "drops": torch.zeros((2, 6), device=meta),
        **{f"features {i}": feature for i, feature in enumerate(step._features)},
    }.items():  # fmt: skip
        step.places.put(name, value)
    room = step._room([3, 2])
    room.places.put("labels", torch.zeros((num_images, room.room.labels), dtype=torch.int64, device=meta))
    room.places.put("keys", torch.zeros((2, 2, num_images, 2), dtype=torch.int64, device=meta))
    room._make_room(meta)
    for work in (step._look, room._ask, room._compare, room._learn):
        with Tape() as tape:
            work()
        foreign = {
            str(func)
            for func, args, kwargs, out in tape.calls
            for leaf in tree_leaves((args, kwargs, out))
            if isinstance(leaf, Tensor) and leaf.device != meta
        }
        assert foreign == set()
    assert all(p.grad is not None for p in segmenter.decoder.parameters())


def test_costs_that_are_no_numbers_give_a_loss_and_gradients_that_are_none() -> None:
    segmenter = segmenter_for_training()
    step = captured_step(segmenter, a_loss(), nullcontext, CPU)
    crops = crops_and_images([2, 3], 0)
    crops.images[0, 0, 0, 0] = torch.nan
    found = step(crops, [2, 3], step.features(crops.images), seed=SEED, flag=torch.tensor([3.0]))
    found.learn()
    assert found.total.isnan()
    assert found.flag_on_host == 3.0
    assert torch.nn.utils.get_total_norm([p.grad for p in segmenter.decoder.parameters()]).isnan()  # type: ignore[misc]


def test_a_head_without_masks_is_refused() -> None:
    with pytest.raises(TypeError, match="the step of a linear head cannot be recorded"):
        captured_step(tiny_segmenter("linear"), None, nullcontext, CPU)
    with pytest.raises(TypeError, match="a linear head predicts no masks"):
        _ = tiny_segmenter("linear").decoder.mask_counts


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_replayed_step_on_cuda_equals_the_same_works_as_they_stand(dtype: torch.dtype | None) -> None:
    """One segmenter records, the other runs the same padded works call by call, on CUDA both."""
    device = torch.device("cuda")

    def autocast() -> torch.autocast:
        return torch.autocast("cuda", dtype, enabled=dtype is not None)

    pair = [segmenter_for_training().to(device) for _ in range(2)]
    replayed = captured_step(pair[0], a_loss(), autocast, device)
    called = CapturedStep(pair[1], a_loss(), autocast, None)
    limit = 1e-4 if dtype is None else 2e-2
    for number in range(WARMUP_ROUNDS + 3):
        crops = crops_and_images([3, 2], 10 * number)
        moved = CropBatch(
            crops.images.to(device), crops.owner_map.to(device), crops.labels.to(device),
            crops.keys, crops.positions,
        )  # fmt: skip
        totals = []
        for step in (replayed, called):
            step.segmenter.decoder.zero_grad(set_to_none=False)
            found = step(moved, [3, 2], step.features(moved.images), seed=SEED)
            found.learn()
            totals.append(found.total)
        torch.testing.assert_close(*totals, rtol=limit, atol=limit)
        ours, theirs = (torch.cat([t.flatten().float() for t in state_of(one)]) for one in pair)
        assert float((ours - theirs).norm() / theirs.norm()) < 10 * limit

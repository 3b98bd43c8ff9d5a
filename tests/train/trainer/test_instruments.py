"""The instruments around a step: in which order they learn, and that they leave the step alone."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from maskshards.shards.order.order import World
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.tracking.data_order import OrderChain
from maskshards.train.trainer import instruments
from maskshards.train.trainer.guards import Guard
from maskshards.train.trainer.instruments import Instruments

ALONE = Ranks(World(), torch.device("cpu"))


class NotedGuard:
    """Notes what it is told."""

    flag = torch.ones(1)

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin_step(self) -> None:
        self.told.append("begin")

    def resolve(self, brought: float | None = None) -> None:
        self.told.append(("resolve", brought))

    def after_backward(self) -> None:
        self.told.append("backward")

    def watch(self, step: int, norm: torch.Tensor, seen: list[Any]) -> None:
        self.told.append(("watch", step, len(seen)))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Instruments:
    monkeypatch.setattr(instruments, "order_digest", lambda crops, draws: crops + draws)
    return Instruments(ALONE, cast(Guard, NotedGuard()), clip_norm=1.0)


def losses(total: float) -> Any:
    return SimpleNamespace(
        total=torch.tensor(total), parts={"mask": torch.tensor(2 * total)}, crops=1, draws=2, flag_on_host=0.0
    )


def take_step(watch: Instruments, number: int) -> None:
    batches = iter(["ab", "cd"])  # two micro-steps of two images
    with watch.around(number, cast(Any, SimpleNamespace(backbone=nn.Identity())), timed=False):
        for total in (1.0, 3.0):
            watch.next_batch(cast(Any, batches))
            watch.losses_known(losses(total), 0.5)
            watch.gradients_known()
        watch.norm_known(torch.tensor(2.0))
        watch.updated()


def test_the_guard_is_told_in_the_order_in_which_things_are_known(watch: Instruments) -> None:
    take_step(watch, 7)
    assert cast(Any, watch.guard).told == [
        "begin", ("resolve", 0.0), "backward", "backward", ("watch", 7, 2),
    ]  # fmt: skip


def test_the_flag_goes_with_the_first_loss_of_a_step_only(watch: Instruments) -> None:
    assert watch.flag is not None
    watch.losses_known(losses(1.0), 1.0)
    assert watch.flag is None


def test_figures_are_means_over_micro_steps_and_count_images(watch: Instruments) -> None:
    take_step(watch, 1)
    assert watch.meter.images == 4
    figures = watch.meter.take(ALONE)
    assert (figures["loss"], figures["loss_mask"], figures["grad_norm"]) == (2.0, 4.0, 2.0)
    assert (figures["clipped"], figures["skipped"], watch.meter.images) == (1.0, 0, 0)


def test_the_order_of_a_step_is_the_sum_over_its_micro_steps(watch: Instruments) -> None:
    take_step(watch, 1)
    wanted = OrderChain()
    wanted.add(6)
    assert watch.order.resolve(ALONE) == wanted.resolve(ALONE)

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from maskshards.train.config.schema import ConfigError, OptimizerConfig
from maskshards.train.optim.optimizer import (
    build_optimizer,
    clip_gradients,
    load_optimizer_tensors,
    named_trainables,
    optimizer_tensors,
    set_rates,
)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.query_feat = nn.Embedding(5, 4)
        self.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.twin = self.conv

    def forward(self, images: Tensor) -> Tensor:
        shift = self.query_feat.weight.sum() + self.level_embed.sum()
        return self.norm(self.conv(images)).square().sum() + shift


def trained(steps: int) -> tuple[Head, torch.optim.AdamW]:
    torch.manual_seed(0)
    head = Head()
    optimizer = build_optimizer(head, OptimizerConfig())
    for _ in range(steps):
        advance(head, optimizer)
    return head, optimizer


def advance(head: Head, optimizer: torch.optim.AdamW) -> None:
    optimizer.zero_grad()
    head(torch.linspace(0, 1, 48).view(1, 3, 4, 4)).backward()
    optimizer.step()


def test_only_matrices_and_kernels_are_decayed() -> None:
    decayed = {name: flag for name, _, flag in named_trainables(Head())}
    assert decayed == {
        "conv.weight": True, "conv.bias": False, "norm.weight": False, "norm.bias": False,
        "query_feat.weight": False, "level_embed": False,
    }  # fmt: skip


def test_groups_hold_every_trainable_once_and_no_frozen_one() -> None:
    head = Head()
    optimizer = build_optimizer(head, OptimizerConfig(weight_decay=0.05))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    members = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    wanted = {id(parameter) for parameter in head.parameters() if parameter.requires_grad}
    assert len(members) == len(set(members))
    assert set(members) == wanted


def test_rates_are_the_schedule_times_the_full_rate() -> None:
    _, optimizer = trained(0)
    assert set_rates(optimizer, lambda step: step / 4, 3) == pytest.approx(0.75e-3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.75e-3] * 2)


def test_multipliers_scale_the_rate_of_what_they_name() -> None:
    head = Head()
    config = OptimizerConfig(lr=1.0, lr_multipliers={"conv": 0.5, "conv.bias": 0.1, "query_feat": 2.0})
    optimizer = build_optimizer(head, config)
    rates = {id(p): group["full_lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(parameter)] for name, parameter, _ in named_trainables(head)}
    assert by_name == {
        "conv.weight": 0.5, "conv.bias": 0.1, "norm.weight": 1.0, "norm.bias": 1.0,
        "query_feat.weight": 2.0, "level_embed": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["con", "decoder.conv", "frozen"])
def test_a_multiplier_that_fits_nothing_is_an_error_that_lists_what_exists(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name} begins no name.*there are conv, conv\.bias, .*query_feat"
    ):
        build_optimizer(Head(), OptimizerConfig(lr_multipliers={name: 0.5}))


def test_a_multiplier_that_longer_ones_hide_is_an_error() -> None:
    hidden = {"conv": 0.5, "conv.bias": 0.1, "conv.weight": 0.2}
    with pytest.raises(ConfigError, match="conv changes nothing"):
        build_optimizer(Head(), OptimizerConfig(lr_multipliers=hidden))


@pytest.mark.parametrize("largest", [0.01, math.inf])
def test_clip_bounds_the_joint_norm_and_reports_the_one_before(largest: float) -> None:
    head = Head()
    head(torch.randn(2, 3, 4, 4)).backward()
    before = math.sqrt(sum(float(p.grad.square().sum()) for p in head.parameters() if p.grad is not None))
    assert float(clip_gradients(head, largest)) == pytest.approx(before, rel=1e-5)
    after = math.sqrt(sum(float(p.grad.square().sum()) for p in head.parameters() if p.grad is not None))
    assert after == pytest.approx(min(before, largest), rel=1e-3)


def test_state_moved_through_tensors_continues_bit_for_bit() -> None:
    head, optimizer = trained(3)
    tensors = {name: value.clone() for name, value in optimizer_tensors(head, optimizer).items()}
    twin = copy.deepcopy(head)
    fresh = build_optimizer(twin, OptimizerConfig())
    load_optimizer_tensors(twin, fresh, tensors)
    for _ in range(3):
        advance(head, optimizer)
        advance(twin, fresh)
    for own, other in zip(head.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)


def test_state_of_another_model_is_refused() -> None:
    head, optimizer = trained(1)
    tensors = optimizer_tensors(head, optimizer)
    tensors["exp_avg/other.weight"] = tensors.pop("exp_avg/conv.weight")
    with pytest.raises(ValueError, match=r"missing .*exp_avg/conv\.weight.*unexpected .*other\.weight"):
        load_optimizer_tensors(head, optimizer, tensors)

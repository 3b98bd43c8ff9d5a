import hashlib
from dataclasses import replace
from itertools import islice

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.config.load import load_config
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.trainer.build import Parts, build_parts, open_loader
from maskshards.train.trainer.step import Losses, drops_on

ALONE = Ranks(World(), torch.device("cpu"))


def losses_of(arguments: list[str]) -> tuple[Parts, Losses]:
    config = load_config(arguments)
    parts = build_parts(config, ALONE)
    with open_loader(config, ALONE, parts.selection, 0) as loader:
        batch = next(islice(loader, 1))
    return parts, parts.objective(batch)


def digest(module: torch.nn.Module) -> str:
    sha = hashlib.sha256()
    for value in module.state_dict().values():
        sha.update(value.numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("head", ["m2f", "linear"])
def test_every_trainable_gets_a_gradient_and_the_backbone_none(tiny_run: list[str], head: str) -> None:
    parts, losses = losses_of([*tiny_run, f"decoder_head.type={head}"])
    before = digest(parts.segmenter.backbone.vit)
    losses.total.backward()
    assert [name for name, value in parts.decoder.named_parameters() if value.grad is None] == []
    assert all(value.grad is None for value in parts.segmenter.backbone.parameters())
    parts.optimizer.step()
    assert digest(parts.segmenter.backbone.vit) == before


def test_batch_statistics_move(tiny_run: list[str]) -> None:
    parts, _ = losses_of(tiny_run)
    norms = [m for m in parts.decoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 10
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_mean.abs().sum() > 0


@pytest.mark.parametrize(
    ("head", "names"), [("m2f", {"mask", "dice", "class"}), ("linear", {"cross_entropy"})]
)
def test_a_step_depends_on_its_samples_and_weights_only(
    tiny_run: list[str], head: str, names: set[str]
) -> None:
    arguments = [*tiny_run, f"decoder_head.type={head}"]
    first = losses_of(arguments)[1]
    torch.manual_seed(99)
    torch.rand(7)
    again = losses_of(arguments)[1]
    assert torch.equal(first.total, again.total)
    assert first.parts.keys() == names
    assert not any(value.requires_grad for value in first.parts.values())


def test_total_is_the_weighted_sum_of_all_ten_layers(tiny_run: list[str]) -> None:
    _, losses = losses_of(tiny_run)
    mean = {name: float(value) for name, value in losses.parts.items()}
    total = 10 * (5 * mean["mask"] + 5 * mean["dice"] + 2 * mean["class"])
    assert losses.total.item() == pytest.approx(total, rel=1e-5)


def test_the_loss_weight_of_the_linear_head_scales_it(tiny_run: list[str]) -> None:
    plain, doubled = (
        losses_of([*tiny_run, "decoder_head.type=linear", f"train.celoss_weight={weight}"])[1].total.item()
        for weight in (1, 2)
    )
    assert doubled == pytest.approx(2 * plain)


def test_the_linear_head_divides_by_the_pixels_of_all_ranks(tiny_run: list[str]) -> None:
    """A second rank with no labelled pixel of its own: ours weigh twice, and the average is the mean."""
    config = load_config([*tiny_run, "decoder_head.type=linear"])
    parts = build_parts(config, ALONE)
    with open_loader(config, ALONE, parts.selection, 0) as loader:
        batch = next(islice(loader, 1))
    two = replace(parts.objective, reduce=lambda numbers: numbers + torch.tensor([0, 1]))
    assert two(batch).total.item() == pytest.approx(2 * parts.objective(batch).total.item())


def test_an_image_that_recurs_is_cropped_anew(tiny_run: list[str]) -> None:
    config = load_config([*tiny_run, "datasets.repeat_threshold=0.01"])
    parts = build_parts(config, ALONE)
    with open_loader(config, ALONE, parts.selection, 0) as loader:
        batch = next(islice(loader, 1))
    later = replace(batch, positions=tuple(position + 1 for position in batch.positions))
    first, again = (parts.objective(one).crops.images for one in (batch, later))
    assert not torch.equal(first, again)


@pytest.mark.parametrize(
    "device", [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)], ids=str
)
def test_drop_factors_are_the_decoders_and_already_on_the_device(
    tiny_run: list[str], device: torch.device
) -> None:
    segmenter = build_parts(load_config(tiny_run), Ranks(World(), torch.device("cpu"))).segmenter
    drops = drops_on(device, segmenter, [3, 2**40], seed=7)
    assert drops is not None
    assert drops.device.type == device.type
    assert torch.equal(drops.cpu(), segmenter.decoder.draw_drops([3, 2**40], 7))
    segmenter.decoder.eval()
    assert drops_on(device, segmenter, [3], seed=7) is None


@pytest.mark.parametrize(("head", "flag_on_host"), [("m2f", 0.75), ("linear", None)])
def test_the_matching_brings_the_flag_to_the_host(
    tiny_run: list[str], head: str, flag_on_host: float | None
) -> None:
    parts, _ = losses_of([*tiny_run, f"decoder_head.type={head}"])
    with open_loader(load_config(tiny_run), ALONE, parts.selection, 0) as loader:
        losses = parts.objective(next(iter(loader)), torch.tensor([0.75]))
    assert losses.flag_on_host == flag_on_host
    assert parts.objective.loss.brings_flag is (flag_on_host is not None)

"""What is said and kept about a step that was not finite, in one process and over several."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from maskshards.shards.batch import CropBatch
from maskshards.shards.order.order import World
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.model.heads.prediction import Prediction
from maskshards.train.model.ops.sync_batch_norm import sync_batch_norms
from maskshards.train.trainer.diagnosis import Diagnosis, Seen, finite, first_gradient, first_output
from tests.train.launch import ended, ranks_of
from tests.train.trainer.test_step import losses_of

ROOT = Path(__file__).parents[3]
ALONE = Ranks(World(), torch.device("cpu"))


class Steep(nn.Module):
    """The root, whose slope at zero is infinite though its value is not."""

    def forward(self, values: Tensor) -> Tensor:
        return values.clamp(min=0).sqrt()


class Overflowing(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values * 1e30 * 1e30


def chain(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), *middle, nn.Conv2d(4, 1, 1))


def crops(keys: tuple[str, ...] = ("a", "b"), value: float = 1.0) -> CropBatch:
    size = len(keys)
    owner_map = torch.zeros(size, 4, 4, dtype=torch.int16)
    pixels = torch.randn(size, 3, 4, 4) * value
    return CropBatch(pixels, owner_map, torch.zeros(size, 1, dtype=torch.int64), keys, tuple(range(size)))


def loss_of(model: nn.Module) -> Callable[[CropBatch], Tensor]:
    return lambda batch: model(batch.images).sum()


def diagnosis(model: nn.Module, folder: Path) -> Diagnosis:
    return Diagnosis(ALONE, model, model, loss_of(model), folder)


def test_the_module_that_overflows_is_named_and_its_followers_are_not() -> None:
    model = chain(nn.ReLU(), Overflowing(), nn.ReLU())
    said = first_output(model, loss_of(model), crops())
    assert said == (
        "the loss is not finite; the first output that is not finite is that of 3, although its inputs are"
    )


def test_an_operation_between_modules_shows_at_the_next_one() -> None:
    model = chain()
    said = first_output(model, lambda batch: model(batch.images * torch.inf).sum(), crops())
    assert said.endswith("is that of 0, nor are its inputs")


def test_crops_and_weights_that_are_broken_themselves_are_named_before_any_module() -> None:
    model = chain()
    assert (
        first_output(model, loss_of(model), crops(value=torch.nan)) == "the crops themselves are not finite"
    )
    with torch.no_grad():
        model[2].weight[0, 0] = torch.inf
    assert first_output(model, loss_of(model), crops()) == "parameter 2.weight itself is not finite"


def test_the_place_where_a_gradient_turns_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), Steep(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    assert first_output(model, loss_of(model), crops()) == ""
    said = first_gradient(model, loss_of(model), crops())
    # the gradient enters the root finite and leaves it infinite: at the output of what feeds it
    assert said.endswith("that is not is that of the output of 0")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_sound_has_nothing_to_say() -> None:
    model = chain()
    assert first_gradient(model, loss_of(model), crops()) == ""
    assert first_output(model, loss_of(model), crops()) == ""


def test_looking_leaves_statistics_and_hooks_as_they_were() -> None:
    model = chain(Overflowing())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first_output(model, loss_of(model), crops())
    first_gradient(model, loss_of(model), crops(value=2.0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_words_of_a_loss_that_refuses_come_first() -> None:
    model = chain(Overflowing())

    def refuse(batch: CropBatch) -> Tensor:
        model(batch.images)
        raise NonFiniteError("no matching.")

    said = first_output(model, refuse, crops())
    assert said.startswith("no matching; the first output that is not finite is that of 2")


def test_a_loss_that_refuses_alone_only_is_words_too() -> None:
    def refuse(batch: CropBatch) -> Tensor:
        raise NonFiniteError("no matching.")

    assert first_gradient(chain(), refuse, crops()) == "no matching"


def test_a_norm_over_all_ranks_looks_at_its_own_images_only() -> None:
    model = chain()
    sync_batch_norms(model, num_ranks=2)  # no process group here: an exchange would raise
    assert first_output(model, loss_of(model), crops()) == ""
    assert not model[1].alone


def test_tensors_are_found_wherever_they_hide() -> None:
    bad, good = torch.tensor([torch.nan]), torch.ones(1)
    assert finite({"x": [good, (good, 3, None)], "ids": torch.ones(1, dtype=torch.int64)})
    assert not finite([good, {"deep": (bad,)}])
    assert not finite([Prediction(good, bad)])


def test_only_the_bad_batch_of_a_step_is_blamed_and_kept_whole(tmp_path: Path) -> None:
    model, good, bad = chain(), crops(("sky", "sea")), crops(("fog", "mud"), float("nan"))
    seen = [Seen(good, torch.tensor(1.0)), Seen(bad, torch.tensor(torch.nan))]
    said = diagnosis(model, tmp_path)(7, seen)
    assert "images fog, mud" in said
    assert "sky" not in said
    (path,) = tmp_path.iterdir()
    assert str(path) in said
    with safe_open(path, "pt") as file:
        assert file.metadata()["keys"] == "fog\nmud"
        assert file.get_tensor("images").shape == (2, 3, 4, 4)
        assert file.get_tensor("images").isnan().all()
        assert set(file.keys()) == {"images", "owner_map", "labels"}


def test_long_batches_are_cut_short_in_words_only(tmp_path: Path) -> None:
    bad = crops(tuple(f"k{i}" for i in range(20)), float("nan"))
    said = diagnosis(chain(), tmp_path)(1, [Seen(bad, torch.tensor(torch.nan))])
    assert "k15 and 4 more" in said
    with safe_open(next(tmp_path.iterdir()), "pt") as file:
        assert len(file.metadata()["keys"].split("\n")) == 20


def test_a_link_in_the_place_of_a_batch_is_replaced_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = tmp_path / "kept"
    folder.mkdir()
    for name in ("step1-position0.safetensors", ".step1-position0.safetensors.part"):
        (folder / name).symlink_to(outside)
    diagnosis(chain(), folder)(1, [Seen(crops(value=float("nan")), torch.tensor(torch.nan))])
    assert outside.read_text() == "mine"
    (path,) = folder.iterdir()
    assert not path.is_symlink()


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file in its place")
    said = diagnosis(chain(), tmp_path / "kept")(
        1, [Seen(crops(value=float("nan")), torch.tensor(torch.nan))]
    )
    assert "images a, b; crops could not be written:" in said


def test_what_does_not_show_again_is_said_and_kept(tmp_path: Path) -> None:
    said = diagnosis(chain(), tmp_path)(1, [Seen(crops(), torch.tensor(1.0))])
    assert "computed again alone, everything is finite" in said
    assert len(list(tmp_path.iterdir())) == 1


def test_the_layer_whose_matching_fails_is_named_and_its_logits_are_kept(
    tiny_run: list[str], tmp_path: Path
) -> None:
    parts, losses = losses_of(tiny_run)
    with torch.no_grad():
        for layer in parts.segmenter.decoder.segmentation_model[1].predictor.mask_embed.layers[:2]:
            layer.weight.mul_(1e30)

    seen = Seen(losses.crops, torch.tensor(torch.nan))
    model = parts.segmenter
    said = Diagnosis(ALONE, model, model.decoder, parts.objective.alone, tmp_path / "kept")(3, [seen])
    assert "matching costs are not finite: layer 0, image 'scene" in said
    assert "segmentation_model.1.predictor.mask_embed.layers.1, although its inputs are" in said
    (logits,) = (tmp_path / "run" / "nonfinite").iterdir()
    assert str(logits) in said
    assert len(list((tmp_path / "kept").iterdir())) == 1


# Two ranks that train for real; the crop of one image, which one of them reads, is spoiled in memory.
MEMBER = """
import dataclasses, os, sys
import maskshards.train.trainer.step
from maskshards.train.__main__ import main
whole = maskshards.train.trainer.step.crop

def spoil(batch, numbers, settings):
    crops = whole(batch, numbers, settings)
    if crops.positions[0] != 5:
        return crops
    images = crops.images.clone()
    images[0, 0, 0, 0] = float("nan")
    return dataclasses.replace(crops, images=images)

maskshards.train.trainer.step.crop = spoil
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("head", ["m2f", "linear"])
def test_a_bad_image_on_one_rank_stops_all_with_one_account_of_it(
    tiny_run: list[str], tmp_path: Path, head: str
) -> None:
    arguments = [*tiny_run, "bs=1", "n_gpus=2", f"decoder_head.type={head}", "eval.max_val_samples=2"]
    with ranks_of(["-c", MEMBER, *arguments]) as members:
        (first, second), (said, brief) = ended(members)
    assert (first, second) == (1, 1), said + brief
    assert "Traceback" not in said + brief
    # positions 4 and 5 are the third step's; the second of two ranks reads the odd ones
    assert "step 3: the gradient is not finite" in said
    assert "rank 1: " in said
    assert "rank 0: " not in said
    assert "the crops themselves are not finite" in said
    assert "rank 0 says why" in brief
    kept = [path.name for path in (tmp_path / "run" / "nonfinite").iterdir()]
    assert kept == ["step3-position5.safetensors"]  # rank 0's loss is bad too, by the norms that both share
    with safe_open(tmp_path / "run" / "nonfinite" / kept[0], "pt") as file:
        assert file.get_tensor("images").isnan().sum() == 1
        assert file.metadata()["keys"] in said


def test_skipping_a_bad_image_on_one_rank_leaves_both_in_step(tiny_run: list[str], tmp_path: Path) -> None:
    arguments = [*tiny_run, "bs=1", "n_gpus=2", "guards.non_finite=skip", "eval.max_val_samples=2"]
    arguments += ["scheduler.total_iter=5", "eval.eval_interval=5"]  # two steps after the one left out
    with ranks_of(["-c", MEMBER, *arguments]) as members:
        (first, second), (said, brief) = ended(members)
    assert (first, second) == (0, 0), said + brief
    assert "rank 1: " in said
    assert "the step was left out" in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"][-1] == 5

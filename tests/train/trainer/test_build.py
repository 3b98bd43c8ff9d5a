from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from maskshards.shards.errors import ManifestError
from maskshards.shards.format.class_pixels import ClassPixels
from maskshards.shards.order.order import World
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import ConfigError
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.model.heads.mask2former import MaskLoss
from maskshards.train.model.heads.query_decoder import QueryDecoder
from maskshards.train.model.ops.deformable_attention import DeformableAttention
from maskshards.train.trainer.build import (
    autocast_dtype,
    build_parts,
    count_micro_steps,
    crop_settings,
    open_loader,
    open_training_split,
    open_validation_split,
    select,
    tell_odd_classes,
)

ALONE = Ranks(World(), torch.device("cpu"))


def test_parts_train_the_decoder_only(tiny_run: list[str]) -> None:
    parts = build_parts(load_config(tiny_run), ALONE)
    trained = {id(parameter) for group in parts.optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in parts.segmenter.decoder.parameters()}
    assert not any(parameter.requires_grad for parameter in parts.segmenter.backbone.parameters())
    assert parts.decoder is parts.segmenter.decoder
    assert not isinstance(parts.decoder, DistributedDataParallel)
    assert parts.decoder.training


def test_training_is_compiled_as_the_config_says(
    tiny_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "maskshards.train.trainer.build.compile_in_place", lambda _, what, *, mode: asked.append((what, mode))
    )
    build_parts(load_config([*tiny_run, "compile=model", "compile_mode=max-autotune"]), ALONE)
    build_parts(load_config(tiny_run), ALONE)
    assert asked == [("model", "max-autotune"), ("none", "default")]


@pytest.mark.parametrize("on", [False, True])
def test_fused_kernels_reach_every_part_that_has_them(tiny_run: list[str], on: bool) -> None:
    parts = build_parts(load_config([*tiny_run, f"fused_kernels={on}"]), ALONE)
    modules = list(parts.segmenter.decoder.modules())
    assert [module.fused for module in modules if isinstance(module, DeformableAttention)] == [on] * 12
    assert isinstance(parts.objective.loss, MaskLoss)
    assert parts.objective.loss.matched.fused == on


@pytest.mark.parametrize(("word", "multiplies_out"), [("masks", True), ("features", False)])
def test_costs_from_reaches_the_query_decoder(tiny_run: list[str], word: str, multiplies_out: bool) -> None:
    parts = build_parts(load_config([*tiny_run, f"m2f_train.costs_from={word}"]), ALONE)
    modules = list(parts.segmenter.decoder.modules())
    assert [m.multiplies_out for m in modules if isinstance(m, QueryDecoder)] == [multiplies_out]


def test_the_seed_makes_the_head(tiny_run: list[str]) -> None:
    heads = [
        build_parts(load_config([*tiny_run, f"seed={seed}"]), ALONE).segmenter.decoder for seed in (1, 1, 2)
    ]
    name = "segmentation_model.1.predictor.query_feat.weight"
    first, again, other = (head.state_dict()[name] for head in heads)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_class_counts_must_agree_with_the_manifest(tiny_run: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"num_classes is 5.*lists 3 classes.*num_classes=3"):
        open_training_split(load_config([*tiny_run, "decoder_head.num_classes=5"]))
    with pytest.raises(ConfigError, match=r"lists 3 classes; weights are scored on shards that were built"):
        open_validation_split(load_config([*tiny_run, "decoder_head.num_classes=5", "load_from=run"]))


def test_a_folder_without_manifest_is_named(tiny_run: list[str], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=str(tmp_path)):
        open_training_split(load_config([*tiny_run, f"datasets.root={tmp_path}"]))


@pytest.mark.parametrize(("num_ranks", "micro_steps"), [(1, 8), (2, 4), (8, 1)])
def test_accumulation_makes_up_for_missing_ranks(
    tiny_run: list[str], num_ranks: int, micro_steps: int
) -> None:
    config = load_config([*tiny_run, "n_gpus=8"])
    ranks = Ranks(World(0, num_ranks), torch.device("cpu"))
    assert count_micro_steps(config, ranks) == micro_steps


def test_a_world_that_does_not_divide_the_batch_hears_what_fits(tiny_run: list[str]) -> None:
    ranks = Ranks(World(0, 3), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"n_gpus=8.*3 ranks.*would fit"):
        count_micro_steps(load_config([*tiny_run, "n_gpus=8"]), ranks)


def test_large_scale_jitter_is_fitting_with_the_published_range(tiny_run: list[str]) -> None:
    words = ["transforms.train.jitter=lsj", "transforms.train.random_img_size_ratio_range=null"]
    settings = crop_settings(load_config([*tiny_run, *words]))
    assert (settings.jitter, settings.ratio) == ("fit", (0.1, 2.0))
    whole = "transforms.train.random_img_size_ratio_range=[0.1,2.0]"
    assert crop_settings(load_config([*tiny_run, words[0], whole])) == settings
    with pytest.raises(
        ConfigError, match=r"published range .*is \[0\.5, 2\.0\]; set that to null, or .*=fit"
    ):
        load_config([*tiny_run, words[0], "transforms.train.random_img_size_ratio_range=[0.5,2.0]"])


def test_crop_settings_follow_the_config(tiny_run: list[str]) -> None:
    settings = crop_settings(load_config([*tiny_run, "transforms.train.crop_size=[32,96]"]))
    assert (settings.crop_px, settings.image_px, settings.ratio) == ((32, 96), 64, (0.5, 2.0))
    assert settings.flip_prob == 0.5


def test_the_loader_starts_after_the_steps_taken(tiny_run: list[str]) -> None:
    config = load_config(tiny_run)
    selection = select(config, open_training_split(config))
    with open_loader(config, ALONE, selection, 0) as loader:
        batches = iter(loader)
        keys = [next(batches).keys for _ in range(4)]
    with open_loader(config, ALONE, selection, 3) as loader:
        assert next(iter(loader)).keys == keys[3]


def test_a_cpu_computes_in_16_bits_on_request(tiny_run: list[str]) -> None:
    config = load_config([*tiny_run, "model_dtype=BFLOAT16", "cpu_autocast=True", "n_gpus=1"])
    assert autocast_dtype(config, torch.device("cpu")) is torch.bfloat16
    parts = build_parts(config, ALONE)
    with open_loader(config, ALONE, parts.selection, 0) as loader:
        losses = parts.objective(next(iter(loader)))
    losses.total.backward()
    block = parts.segmenter.backbone.vit.get_parameter("model.layer.0.mlp.up_proj.weight")
    assert block.dtype is torch.bfloat16
    gradients = [p.grad for p in parts.segmenter.decoder.parameters() if p.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert torch.isfinite(losses.total)


def test_rare_classes_are_repeated_on_request(tiny_run: list[str]) -> None:
    config = load_config([*tiny_run, "datasets.repeat_threshold=1.0"])
    split = open_training_split(config)
    assert select(load_config(tiny_run), split).fingerprint == split.manifest.fingerprint
    assert select(config, split).fingerprint != split.manifest.fingerprint


def test_classes_that_no_pixel_has_are_told_when_a_run_starts(
    tiny_run: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_training_split(load_config(tiny_run))
    counts = ClassPixels("training", ("sky", "road"), np.array([5, 0]), 10)
    monkeypatch.setattr("maskshards.train.trainer.build.count_class_pixels", lambda split: counts)
    tell_odd_classes(split)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "classes: 1 class has no pixel: 'road' (1)",
        "classes: void pixels: training 50.0%",
    ]
    caplog.clear()
    monkeypatch.setattr("maskshards.train.trainer.build.MOST_COUNTED", 0)
    tell_odd_classes(split)
    assert not caplog.records

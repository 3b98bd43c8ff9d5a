from pathlib import Path

import pytest
import torch

from maskshards.shards.order.order import World
from maskshards.train.checkpoint.checkpoint import CheckpointError, read_checkpoint
from maskshards.train.config.load import load_config
from maskshards.train.config.schema import ConfigError
from maskshards.train.distributed.ranks import Ranks
from maskshards.train.distributed.stop_signals import StopSignals
from maskshards.train.tracking.metrics_log import read_metrics
from maskshards.train.trainer import cpu_type
from maskshards.train.trainer.run import run
from tests.train.conftest import CLASSES, write_shards

ALONE = Ranks(World(), torch.device("cpu"))


@pytest.fixture
def arguments(tiny_run: list[str]) -> list[str]:
    return [*tiny_run, "scheduler.total_iter=2", "eval.eval_interval=2", "decoder_head.type=linear"]


def go(arguments: list[str]) -> str:
    with StopSignals() as stop:
        return run(load_config(arguments), ALONE, stop)


def test_load_from_evaluates_what_training_left(arguments: list[str], tmp_path: Path) -> None:
    line = go(arguments)
    trained = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert line.startswith(f"mIoU {trained['mIoU']:.2f} over 4 images")
    assert str(tmp_path / "run" / "model_final.pth") in line
    again = go(
        [*arguments, f"load_from={tmp_path / 'run' / 'model_final.pth'}", f"output_dir={tmp_path / 'e'}"]
    )
    assert again.startswith(f"mIoU {trained['mIoU']:.2f} over 4 images")
    assert not (tmp_path / "e" / "checkpoints").exists()
    assert (tmp_path / "e" / "results-semantic-segmentation.csv").is_file()


def test_an_evaluation_never_overwrites_a_training(arguments: list[str], tmp_path: Path) -> None:
    go(arguments)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds a training \(metrics\.jsonl\).*name another folder"):
        go([*arguments, f"load_from={tmp_path / 'run'}"])
    assert {path: path.read_bytes() for path in before} == before


def test_scores_under_other_class_names_are_refused(arguments: list[str], tmp_path: Path) -> None:
    go(arguments)
    other = tmp_path / "other"
    write_shards(other, "training", range(4), (CLASSES[1], CLASSES[0], CLASSES[2]))
    write_shards(other, "validation", range(100, 104), (CLASSES[1], CLASSES[0], CLASSES[2]))
    words = [f"load_from={tmp_path / 'run'}", f"output_dir={tmp_path / 'e'}", f"datasets.root={other}"]
    with pytest.raises(ConfigError, match="class 0 is 'ground' in the model and 'box' in the shards; they"):
        go([*arguments, *words])
    assert not (tmp_path / "e" / "results-semantic-segmentation.csv").exists()


def test_max_val_samples_limits_the_evaluation(arguments: list[str], tmp_path: Path) -> None:
    assert "over 3 images" in go([*arguments, "eval.max_val_samples=3"])


def test_init_from_starts_at_the_weights_with_a_new_schedule(arguments: list[str], tmp_path: Path) -> None:
    go(arguments)
    first = tmp_path / "run" / "model_final.pth"
    go([*arguments, f"init_from={first}", f"output_dir={tmp_path / 'next'}", "optimizer.lr=1e-30"])
    conv = "segmentation_model.1.conv.weight"
    assert torch.allclose(
        read_checkpoint(tmp_path / "next" / "model_final.pth").weights[conv],
        read_checkpoint(first).weights[conv],
    )


def test_a_checkpoint_of_another_model_is_refused(arguments: list[str], tmp_path: Path) -> None:
    go(arguments)
    weights = f"load_from={tmp_path / 'run' / 'model_final.pth'}"
    with pytest.raises(CheckpointError, match=r"is of another model: .*missing"):
        go([*arguments, weights, f"output_dir={tmp_path / 'e'}", "decoder_head.type=m2f"])


def test_another_backbone_than_the_checkpoints_is_refused(arguments: list[str], tmp_path: Path) -> None:
    go(arguments)
    words = [f"load_from={tmp_path / 'run' / 'model_final.pth'}", f"output_dir={tmp_path / 'e'}"]
    with pytest.raises(ConfigError, match="trained on the backbone dinov3_tiny16"):
        go([*arguments, *words, "model.dino_hub=dinov2_tiny14", "eval.crop_size=56", "eval.stride=28"])


def test_an_output_folder_that_is_a_file(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        go(arguments)


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "nonfinite", "wandb"])
def test_links_that_lead_out_of_the_folder_are_refused(
    arguments: list[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is a link"):
        go(arguments)


def test_a_linked_config_is_replaced_not_followed(arguments: list[str], tmp_path: Path) -> None:
    outside = tmp_path / "precious.yaml"
    outside.write_text("keep")
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "metrics.jsonl", "report.html", "model_final.pth"):
        (tmp_path / "run" / name).symlink_to(outside)
    go(arguments)
    assert outside.read_text() == "keep"


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_goes_on_in_another_folder_computes_as_it_did(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    monkeypatch.setattr(cpu_type, "has_bfloat16_units", lambda: not before)  # another processor
    given = [*arguments, "model_dtype=BFLOAT16", "eval.eval_interval=1"]
    go([*given, "scheduler.total_iter=1", f"cpu_autocast={before}"])
    elsewhere = [*given, f"resume_from={tmp_path / 'run'}", f"output_dir={tmp_path / 'next'}"]
    go(elsewhere)
    assert f"cpu_autocast: {str(before).lower()}\n" in (tmp_path / "next" / "config.yaml").read_text()
    go([*elsewhere, f"output_dir={tmp_path / 'other'}", f"cpu_autocast={not before}"])
    assert f"cpu_autocast: {str(not before).lower()}\n" in (tmp_path / "other" / "config.yaml").read_text()

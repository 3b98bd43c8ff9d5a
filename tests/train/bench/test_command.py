"""The bench command at the smallest size: what it prints, what it compares, how it fails."""

import json
from pathlib import Path

import pytest

from maskshards.train.bench.command import main, parse

pytestmark = pytest.mark.usefixtures("shallow")
TINY = [
    "--device", "cpu", "--steps", "1", "--warmup", "0", "bs=1", "model.dino_hub=dinov3_tiny16",
    "decoder_head.hidden_dim=32", "decoder_head.ffn_dim=32", "decoder_head.num_queries=12",
    "decoder_head.num_classes=6", "m2f_train.num_points=64", "transforms.train.img_size=64",
    "transforms.train.crop_size=[64,64]", "transforms.eval.img_size=64", "eval.crop_size=64",
    "eval.stride=64",
]  # fmt: skip


def test_json_holds_both_steps_the_loss_and_a_validation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--json", "--compare", "reference"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == "cpu"
    assert report["settings"] == {"hub": "dinov3_tiny16", "hidden_dim": 32, "bs": 1, "input": "synthetic"}
    ours, theirs = report["steps"]
    assert (ours["name"], theirs["name"]) == ("ours", "reference")
    assert ours["images_per_s"] == pytest.approx(1000 / ours["phases_ms"]["step"])
    assert ours["tflop_per_s"] == pytest.approx(ours["tflop_per_image"] * ours["images_per_s"])
    assert ours["peak_gib"] is None
    assert ours["syncs"] is None
    assert report["matmul_tflop_per_s"] > 0
    assert report["loss_ms"]["forward ratio"] > 0
    assert 0 < report["validation"]["share_of_run"] < 1


def test_text_names_rates_and_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--only", "loss"]) == 0
    out = capsys.readouterr().out
    assert "loss, matched forward:" in out
    assert "loss, both ratio:" in out
    assert "images/s" not in out


def test_memory_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--only", "memory", "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory_gib"]
    assert memory["total_gib"] == pytest.approx(sum(memory.values()) - memory["total_gib"])


def test_defaults_yield_to_what_is_given() -> None:
    _, settings = parse(["model.dino_hub=dinov3_vits16", "bs=4"])
    assert "model.dino_hub=dinov3_vitl16" not in settings
    assert "model.weights=random" in settings
    assert settings[-2:] == ["model.dino_hub=dinov3_vits16", "bs=4"]


def test_a_recipe_keeps_the_backbone_and_the_weights_that_it_names(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"

    def model_settings(content: str, *more: str) -> list[str]:
        recipe.write_text(content)
        _, settings = parse([f"config={recipe}", *more])
        return [setting for setting in settings if setting.startswith("model.")]

    hub, weights = "model.dino_hub=dinov3_vitl16", "model.weights=random"
    assert model_settings("bs: 2\n") == [hub, weights]
    assert model_settings("model: {dino_hub: dinov2_vits14}\n") == [weights]
    assert model_settings("model: {dino_hub: dinov2_vits14, pretrained_weights: here.pth}\n") == []
    assert model_settings("model: {weights: here.pth, dino_hub: null}\n") == [hub]
    assert model_settings("model: {dino_hub: dinov2_vits14}\n", "model.weights=x") == ["model.weights=x"]


def test_a_recipe_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config=nowhere.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: config file nowhere.yaml does not exist")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bs=x"], "bs"),
        (["batch=3"], "unknown key"),
        (["--steps", "0"], "expected at least 1"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--device", "gpu"], "expected cpu"),
    ],
)
def test_faults_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.out == ""

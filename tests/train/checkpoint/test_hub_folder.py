"""The shared folder: complete, without private paths, and loaded back by the script on its own card."""

import hashlib
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from maskshards.train.checkpoint.checkpoint import TrainState, load_weights, read_checkpoint
from maskshards.train.checkpoint.hub_folder import is_local, model_card, shareable, write_folder
from maskshards.train.model.segmenter import Segmenter
from tests.train.trained_run import classifier_of, small_config, trained

NAMES = ["sky", "sea", "sand"]


def somebodys(kind: str = "linear") -> tuple[Segmenter, TrainState]:
    config = small_config(kind, NAMES)
    config.datasets.root, config.output_dir = "somebody/data", "somebody/run"
    return trained(config, NAMES, step=7, position=14)


@pytest.fixture(params=["linear", "m2f"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Segmenter]:
    segmenter, state = somebodys(request.param)
    folder = tmp_path / "shared"
    folder.mkdir()
    write_folder(folder, state, segmenter.decoder.state_dict())
    return folder, segmenter


def test_the_folder_holds_the_head_and_the_facts_and_nothing_private(shared: tuple[Path, Segmenter]) -> None:
    folder, segmenter = shared
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == segmenter.decoder.state_dict().keys()
    facts = json.loads((folder / "config.json").read_text())
    assert facts["id2label"] == {"0": "sky", "1": "sea", "2": "sand"}
    assert facts["model_type"] == "maskshards"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert facts["digests"] == {"model.safetensors": digest}
    for file in ("README.md", "config.json"):
        assert "somebody" not in (folder / file).read_text()


def test_the_folder_is_a_checkpoint_that_loads_strictly(shared: tuple[Path, Segmenter]) -> None:
    folder, segmenter = shared
    checkpoint = read_checkpoint(folder)
    assert checkpoint.state is not None
    assert checkpoint.state.class_names == NAMES
    fresh, _ = somebodys(segmenter.decoder.rules.name)
    with torch.no_grad():
        classifier_of(fresh).weight.zero_()
    load_weights(fresh.decoder, checkpoint)
    for key, tensor in fresh.decoder.state_dict().items():
        assert torch.equal(tensor, segmenter.decoder.state_dict()[key])


def test_the_script_on_the_card_runs_and_gives_the_models_labels(
    shared: tuple[Path, Segmenter], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, segmenter = shared
    card = (folder / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    file = tmp_path / "script.py"
    file.write_text(script.replace("FOLDER", str(folder)).replace("IMAGE", str(photo)))
    names = runpy.run_path(str(file))
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    image = ((torch.from_numpy(pixels) - mean) / std).permute(2, 0, 1)[None]
    expected = segmenter.scores(image).argmax(1)[0].numpy()
    np.testing.assert_array_equal(names["class_map"], expected)
    assert set(capsys.readouterr().out.split()[::2]) == {NAMES[k] for k in np.unique(expected)}


@pytest.mark.parametrize(
    ("weights", "local"),
    [
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", False),
        ("/data/w.pth", True),
        ("../w.pth", True),
        ("w.pth", True),
    ],
)
def test_local_weights_are_told_from_hub_ids(weights: str, local: bool) -> None:
    assert is_local(weights) == local
    data = {"root": "x", "val": "https://host/validation?key=secret"}
    mine = {"output_dir": "y", "loader": {"cache_dir": "/home/me"}, "log": {"wandb_project": "p"}}
    kept = shareable({"model": {"weights": weights}, "datasets": data, "seed": 1} | mine)
    assert kept == {
        "model": {"weights": None if local else weights},
        "datasets": {"root": ""},
        "seed": 1,
    }


def test_the_card_names_what_a_reader_needs() -> None:
    card = model_card(somebodys()[1])
    for words in (
        "Linear head",
        "dinov3_tiny16",
        "3 classes",
        "7 steps",
        "61.25",
        "random:0",
        "0. sky\n1. sea\n2. sand",
    ):
        assert words in card

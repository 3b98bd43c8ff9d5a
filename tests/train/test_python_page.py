"""The Python of README and docs/python-api.md runs as it is written, from the first line to the last."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from tests.train.loopback_hub import loopback_hub
from tests.train.trained_run import photo, save_run

ROOT = Path(__file__).parents[2]
LINEAR = {"decoder_head.type": "linear", "decoder_head.backbone_out_layers": "LAST"}


def blocks(page, heading):
    """The Python under a heading, up to the next heading of its kind."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with what the pages name; the hub takes what is pushed, and gives it back."""
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "runs/ade20k")
    Image.fromarray(photo()).save("photo.jpg")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with loopback_hub(monkeypatch) as hub:
        yield hub


@pytest.mark.parametrize("page", [("README.md", "Use the model"), ("docs/python-api.md", "A trained model")])
def test_using_a_model(place, page, capsys):
    (code,) = blocks(*page)
    names = {}
    exec(compile(code, page[0], "exec"), names)
    assert names["class_map"].shape == (50, 70)
    assert names["scores"].shape == (4, 50, 70)
    assert "(70, 50)" in capsys.readouterr().out
    assert len([line for line in code.splitlines() if line.strip() and line[0] != "#"]) <= 10


def test_sharing_a_model(place, capsys):
    names = {}
    for heading in ("A trained model", "Share it"):
        for code in blocks("docs/python-api.md", heading):
            exec(compile(code, heading, "exec"), names)
    assert sorted(place.files) == sorted(path.name for path in Path("shared").iterdir())
    assert sorted(place.files) == ["README.md", "config.json", "model.safetensors"]


def test_training(place, tiny_run, tiny_shards, capsys):
    given = dict(word.split("=", 1) for word in tiny_run) | LINEAR
    recipe: dict = {}
    for key, value in given.items():
        *sections, last = key.split(".")
        inner = recipe
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = yaml.safe_load(value)
    recipe["scheduler"]["total_iter"] = recipe["eval"]["eval_interval"] = 2
    Path("configs").mkdir()
    Path("configs/demo.yaml").write_text(yaml.safe_dump(recipe))
    Path("shards").symlink_to(tiny_shards)
    (code,) = blocks("docs/python-api.md", "Train")
    names = {}
    exec(compile(code, "Train", "exec"), names | {"maskshards": __import__("maskshards")})
    assert float(capsys.readouterr().out) >= 0
    assert Path("runs/x/model_final.pth").is_file()


def test_the_loss_of_a_model_of_ones_own():
    (code,) = blocks("docs/python-api.md", "The matched loss in a model of your own")
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(1, 5, 151, generator=generator).requires_grad_()
    mask_logits = torch.randn(1, 5, 8, 8, generator=generator).requires_grad_()
    masks = torch.eye(32).repeat(2, 1, 1).bool()
    masks[1] = ~masks[1]
    names = {
        "targets": [{"masks": masks, "labels": torch.tensor([7, 149])}],
        "positions": [3],
        "class_logits": class_logits,
        "mask_logits": mask_logits,
    }
    exec(compile(code, "loss", "exec"), names)
    assert names["terms"].num_segments == 2
    assert mask_logits.grad.flatten(2).abs().sum(2).count_nonzero() == 2  # of the matched queries alone
    assert class_logits.grad.abs().sum(2).count_nonzero() == 5

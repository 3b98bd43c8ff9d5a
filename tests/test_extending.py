"""The pages that say how to extend the code, followed to the letter on a copy of it."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).parents[1]
SMALL = (
    "datasets.root=out", "scheduler.total_iter=2", "bs=2", "log.interval=1", "eval.eval_interval=2",
    "eval.max_val_samples=2", "num_workers=1", "transforms.train.img_size=64", "eval.stride=64",
    "transforms.train.crop_size=[64,64]", "transforms.eval.img_size=64", "eval.crop_size=64",
    "log.tensorboard=false", "decoder_head.hidden_dim=32", "decoder_head.ffn_dim=32",
    "m2f_train.num_points=64",
)  # fmt: skip


def blocks_of(page):
    return re.findall(r"```(?:python)?\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def put_before(path, mark, text):
    content = path.read_text()
    assert content.count(mark) == 1, f"{path} has changed; so must the page"
    path.write_text(content.replace(mark, text + mark))


@pytest.fixture
def copy(tmp_path):
    """A copy of the package, changed as a page says, and a command of it that runs in `tmp_path`."""
    package = tmp_path / "site/maskshards"
    package.mkdir(parents=True)
    for path in (ROOT / "src/maskshards").glob("*.py"):
        shutil.copy(path, package)
    for room in ("shards", "preprocess", "train", "configs"):
        # With what Python has compiled of unchanged modules, but nothing that another process is writing.
        shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("*.pyc.*"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*words):
        done = forked.run(["-m", "maskshards", *words], cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return package, run


def made_shards(run):
    run("scenes", "--out", "scenes", "--training", "4", "--validation", "2")
    words = ("--root", "scenes", "--classes", "scenes/classes.txt", "--reduce-zero-label", "--out", "out")
    run("build", "--dataset", "folder", *words, "--quiet", "--workers", "1")


def test_a_head_is_added_as_the_page_says(copy, tmp_path):
    package, run = copy
    module, rules = blocks_of("add-a-head.md")
    heads = package / "train/model/heads"
    (heads / "mlp.py").write_text(module)
    put_before(heads / "rules.py", '            HeadRules(\n                "linear"', rules)
    registry = heads / "registry.py"
    changed = registry.read_text().replace("(Mask2Former(), Linear())", "(Mask2Former(), Linear(), Mlp())")
    added = "from maskshards.train.model.heads.mlp import Mlp\n"
    registry.write_text(
        changed.replace(
            "from maskshards.train.model.heads.rules", added + "from maskshards.train.model.heads.rules"
        )
    )
    made_shards(run)
    run("train", "config=demo", "output_dir=run", "decoder_head.type=mlp", *SMALL)
    run("predict", "checkpoint=run", "inputs=scenes/images/validation", "output_dir=pictures")
    assert len(list((tmp_path / "pictures/labels").glob("*.png"))) == 2


def test_a_colour_preset_is_added_as_the_page_says(copy):
    package, run = copy
    _, preset = blocks_of("add-an-augmentation.md")
    put_before(package / "shards/augment/presets.py", '    "none": None', preset)
    made_shards(run)
    assert "mIoU" in run(
        "train", "config=demo", "output_dir=run", "transforms.train.photometric=mild", *SMALL,
        "decoder_head.type=linear",
    )  # fmt: skip


def test_the_documented_transform_erases_a_square(tmp_path, copy):
    _, run = copy
    made_shards(run)
    program, _ = blocks_of("add-an-augmentation.md")
    names = {"SPLIT": str(tmp_path / "out/training")}
    exec(program, names)
    with names["loader"] as loader:
        batch = next(iter(loader))
    assert len(batch.keys) == 4
    assert int((batch.pixels == 0).sum()) >= 4 * 3 * 16 * 16

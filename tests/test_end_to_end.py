"""The whole chain through the real commands, each in its own process, on made images."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskshards.train.__main__ import main as train
from tests import forked

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "config=configs/demo.yaml",
    "scheduler.total_iter=4",
    "eval.eval_interval=4",
    "log.interval=1",
    "bs=4",
    "m2f_train.num_points=128",
    "transforms.train.img_size=64",
    "transforms.train.crop_size=[64,64]",
    "transforms.eval.img_size=64",
    "eval.crop_size=64",
    "eval.stride=43",
    "eval.before_training=false",
]


def _run(*words, start=forked.run):
    """`python -m WORDS` as a user would run it; its output, after its exit status was checked."""
    done = start(["-m", *map(str, words)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _afresh(words, env):
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Scenes in the ADE20K folder layout and their shards, verified."""
    place = tmp_path_factory.mktemp("data")
    scenes, out = place / "scenes", place / "shards"
    _run("preprocess", "scenes", "--out", scenes, "--training", 12, "--validation", 5)
    _run(
        *(
            "preprocess",
            "build",
            "--dataset",
            "folder",
            "--root",
            scenes,
            "--classes",
            scenes / "classes.txt",
        ),
        *("--reduce-zero-label", "--samples-per-shard", 4, "--workers", 1, "--quiet", "--out", out),
    )
    _run("preprocess", "verify", out, "--against", scenes, "--workers", 1)
    return out


def _score_by_hand(labels, annotations, num_classes):
    """mIoU in percent of predicted label PNGs against source label maps, class by class."""
    right, union = np.zeros(num_classes), np.zeros(num_classes)
    paths = sorted(annotations.glob("*.png"))
    for path in paths:
        truth = np.array(Image.open(path)).astype(int) - 1  # 0 means unlabelled
        found = np.array(Image.open(labels / path.name)).astype(int)
        assert found.shape == truth.shape
        for k in range(num_classes):
            a, b = (truth == k), (found == k) & (truth >= 0)
            right[k] += (a & b).sum()
            union[k] += (a | b).sum()
    assert len(paths) == 5
    return 100 * (right[union > 0] / union[union > 0]).mean()


def test_from_source_images_to_prediction_pictures(shards, tmp_path, monkeypatch, capsys):
    run, places = tmp_path / "run", [f"datasets.root={shards}"]
    trained = _run("train", *SMALL, *places, f"output_dir={run}", start=_afresh)
    assert "mIoU" in trained.stdout
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    results = json.loads((run / "results-semantic-segmentation.json").read_text())
    assert results["num_images"] == 5

    again = tmp_path / "again"
    _run("train", *SMALL, *places, f"output_dir={again}", f"load_from={run / 'model_final.pth'}")
    assert json.loads((again / "results-semantic-segmentation.json").read_text()) == results

    pictures = tmp_path / "pictures"
    inputs = shards.parent / "scenes" / "images" / "validation"
    _run(
        *("maskshards.train.predict", f"checkpoint={run / 'model_final.pth'}", f"inputs={inputs}"),
        f"output_dir={pictures}",
    )
    overlays = sorted((pictures / "overlays").glob("*.jpg"))
    assert len(overlays) == 5
    (tmp_path / "train").symlink_to(run)
    monkeypatch.setattr(sys, "argv", ["demo_summary.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "demo_summary.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert all(str(path) in told for path in overlays)
    assert f"mIoU after training:  {results['mIoU']:6.2f}" in told
    annotations = shards.parent / "scenes" / "annotations" / "validation"
    assert results["mIoU"] == pytest.approx(_score_by_hand(pictures / "labels", annotations, 12), abs=0.01)


def test_source_images_where_shards_are_expected(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run, scenes = tmp_path / "run", shards.parent / "scenes"
    assert train([*SMALL, f"datasets.root={scenes}", f"output_dir={run}"]) == 2
    assert "build them first: maskshards build --dataset" in capsys.readouterr().err
    assert not list(run.rglob("*.pth"))


def test_the_loop_in_the_readme_feeds_somebody_elses_step(shards, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    (loop,) = [block for block in blocks if "your_step" in block]
    for shown, here in (
        ('"data/ade20k-shards/training"', repr(str(shards / "training"))),
        ('"cuda"', '"cpu"'),
    ):
        assert shown in loop
        loop = loop.replace(shown, here)
    seen = []

    def your_step(images, targets):
        seen.append((images, targets))
        raise StopIteration  # the stream is endless

    script = tmp_path / "loop.py"
    script.write_text(loop)
    with pytest.raises(StopIteration):
        runpy.run_path(str(script), {"your_step": your_step})
    ((images, targets),) = seen
    assert images.shape == (8, 3, 512, 512)
    assert len(targets) == 8
    for target in targets:
        assert target["masks"].shape == (len(target["labels"]), 512, 512)
        assert target["masks"].flatten(1).any(dim=1).all()

"""The built wheel in a folder where everything bears our names: its own modules run, none of the user's."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOSTILE = "raise SystemExit('a module of the working directory was imported')\n"
SMALL = (
    "datasets.root=out", "output_dir=run", "scheduler.total_iter=2", "bs=2", "log.interval=1",
    "eval.eval_interval=2", "eval.max_val_samples=2", "num_workers=1", "transforms.train.img_size=64",
    "transforms.train.crop_size=[64,64]", "transforms.eval.img_size=64", "eval.crop_size=64",
    "eval.stride=64",
)  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds nothing but the unpacked wheel, with `bin/` beside it."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, copy],
        capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    put = subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--no-index", "--target", folder / "site", wheel],
        capture_output=True, text=True,
    )  # fmt: skip
    assert put.returncode == 0, put.stderr
    assert {path.name.split("-")[0] for path in (folder / "site").iterdir()} == {"maskshards", "bin"}
    return folder / "site"


@pytest.fixture
def run(installed, tmp_path):
    """Run the installed command in a folder of hostile names; its output."""
    for name in ("train", "shards", "preprocess", "configs", "tests"):
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    for name in ("configs", "shards", "preprocess"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(HOSTILE)
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # The wheel comes before the environment of the tests, whose libraries it uses.
    environment = inherited | {
        "PYTHONPATH": f"{installed}{os.pathsep}{sysconfig.get_paths()['purelib']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def command(*words):
        done = subprocess.run(
            [installed / "bin/maskshards", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return command


@pytest.mark.slow
def test_build_info_train_and_predict_work_beside_modules_of_the_same_names(run, tmp_path):
    run("scenes", "--out", "scenes", "--training", "8", "--validation", "2")
    run(
        *("build", "--dataset", "folder", "--root", "scenes", "--classes", "scenes/classes.txt"),
        *("--reduce-zero-label", "--out", "out", "--quiet", "--workers", "1"),
    )
    assert "folder training" in run("info", "out")
    run("check", "out")
    assert "mIoU" in run("train", "config=demo", *SMALL)
    inputs = "scenes/images/validation"
    run("predict", "checkpoint=run", f"inputs={inputs}", "output_dir=pictures")
    assert len(list((tmp_path / "pictures/labels").glob("*.png"))) == 2

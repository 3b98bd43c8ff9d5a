"""The examples run, as a user would run them, on real shards in a fresh process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples import plain_pytorch

ROOT = Path(__file__).parents[2]
FOREIGN = {
    "plain_pytorch": None,
    "lightning_loop": "lightning",
    "hf_trainer": "accelerate",
    "notebook_albumentations": "albumentations",
    "torchdata_loop": "torchdata",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_examples_are_short(name):
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 40


def test_the_plain_example_trains(make_split, capsys):
    plain_pytorch.train(str(make_split("plain", [5, 4]).folder), steps=3)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["4", "8", "12"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_examples_train(name, tmp_path, make_split):
    needs = FOREIGN[name]
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed: pip install {needs}")
    command = [sys.executable, "-m", f"examples.{name}", str(make_split("examples", [5, 4]).folder), "3"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith(("3", "position 12"))

"""The pins of `make setup` against the package index alone: nothing local, no other configuration of pip."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALONE = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_CONSTRAINT": "", "PIP_EXTRA_INDEX_URL": ""}
PYTHONS = [name for name in ("python3.11", "python3.12", "python3.13", "python3.14") if shutil.which(name)]


def test_nothing_is_pinned_that_torch_decides():
    pins = re.findall(
        r"^([\w.-]+)==", "".join(path.read_text() for path in ROOT.glob("constraints*.txt")), re.M
    )
    assert "torch" in pins
    assert [name for name in pins if re.match(r"triton|nvidia|cuda", name)] == []


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS or [sys.executable])
def test_an_ordinary_machine_can_set_itself_up(python, tmp_path):
    environment = {**os.environ, **ALONE}
    made = subprocess.run([python, "-m", "venv", tmp_path / "venv"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"{python} makes no environment: {made.stderr.strip()}")
    pip = [tmp_path / "venv/bin/python", "-m", "pip"]
    asked = subprocess.run(
        [*pip, "download", "--no-deps", "-d", tmp_path, "iniconfig"],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    if asked.returncode:
        pytest.skip("the package index cannot be reached")
    pins = [word for name in ("constraints.txt", "constraints-cpu.txt") for word in ("-c", str(ROOT / name))]
    done = subprocess.run(
        [*pip, "install", "--dry-run", "--ignore-installed", "--quiet", *pins, "-e", f"{ROOT}[dev]"],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]

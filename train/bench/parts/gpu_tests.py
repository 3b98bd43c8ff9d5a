"""The tests that need a GPU, in processes of their own, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from maskshards.train.bench.budgeted import NotHere
from maskshards.train.bench.journal import Figures
from maskshards.train.bench.parts.setting import Setting

ROOT = Path(__file__).resolve().parents[3]
PROCESSES = 4
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
SHOWN_FAILURES = 12
MARK = "pytest.mark." + "gpu"


def gpu_tests(setting: Setting, limit_s: float, paths: tuple[str, ...] = ()) -> Figures:
    """Counts of passed, failed and skipped tests; all that pytest said goes to tests.txt.

    `paths` are by default the files that hold such tests: importing the others takes longer than these.
    Without a GPU the tests are collected only. NotHere where there are no tests or no pytest.
    """
    if not (ROOT / "tests").is_dir():
        raise NotHere(f"no folder {ROOT / 'tests'}: the tests come with a checkout, not with the package")
    if find_spec("pytest") is None:
        raise NotHere("pytest is not installed")
    cuda = setting.device.type == "cuda"
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": python_path()}
    log = setting.out / "tests.txt"
    with log.open("w", encoding="utf-8") as out:
        try:
            code = subprocess.run(
                command(cuda, paths or marked_files()),
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=out,
                timeout=limit_s,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    output = log.read_text(encoding="utf-8", errors="replace")
    return {
        "exit": code,
        "end": "ran past its limit" if code == -1 else last_line(output),
        "failures": list(failures(output))[:SHOWN_FAILURES],
    }


def marked_files() -> tuple[str, ...]:
    """Test files with tests that need a GPU, relative to the checkout."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return tuple(str(file.relative_to(ROOT)) for file in files if MARK in file.read_text(encoding="utf-8"))


def command(cuda: bool, paths: tuple[str, ...]) -> list[str]:
    """pytest's words: no cache, warnings as they come (this torch may warn where the pinned one does not)."""
    words = [sys.executable, "-m", "pytest", "-m", "gpu and not slow", "-W", "default", "-q", "-rf"]
    words += ["-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"]
    if not cuda:
        words.append("--collect-only")
    elif find_spec("xdist") is not None:
        words += ["-n", str(PROCESSES), "--dist", "worksteal"]
    return [*words, *paths]


def python_path() -> str:
    """Ours first, so that the tests import the code that runs now."""
    rest = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(ROOT / "src"), str(ROOT), *([rest] if rest else [])])


def last_line(output: str) -> str:
    """What pytest counted."""
    lines = [line.strip("= ") for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "pytest said nothing"


def failures(output: str) -> Iterator[str]:
    """Names of tests that failed and of files that could not be imported."""
    for line in output.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            yield line[:160]

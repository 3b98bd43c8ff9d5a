"""The GPU's tests in processes of their own: which words pytest gets, and what is read off its answer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskshards.train.bench.budgeted import Budget, NotHere
from maskshards.train.bench.parts import gpu_tests
from maskshards.train.bench.parts.setting import Setting

OPTIONAL = (
    "pycocotools", "pycocotools.mask", "moto", "distributed", "dask", "datasets", "s3fs", "hypothesis",
    "torchmetrics", "torchvision", "lightning", "tensorboard", "onnx", "onnxruntime", "onnxscript", "wandb",
    "torchdata", "grain",
)  # fmt: skip


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), tmp_path, Budget(60), True)


def test_on_a_gpu_they_run_in_several_processes_and_warnings_are_no_errors() -> None:
    words = " ".join(gpu_tests.command(True, ("tests",)))
    assert "-m gpu and not slow -W default" in words
    assert words.endswith("-n 4 --dist worksteal tests")
    assert "--collect-only" in gpu_tests.command(False, ("tests",))


def test_failures_and_counts_are_read_off() -> None:
    said = "FAILED tests/a.py::b - assert 1\nERROR tests/c.py\n=== 2 failed, 30 passed in 9.1s ===\n"
    assert gpu_tests.last_line(said) == "2 failed, 30 passed in 9.1s"
    assert list(gpu_tests.failures(said)) == ["FAILED tests/a.py::b - assert 1", "ERROR tests/c.py"]
    assert gpu_tests.last_line("") == "pytest said nothing"


def test_a_package_without_tests_says_so(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    with pytest.raises(NotHere, match="come with a checkout"):
        gpu_tests.gpu_tests(setting, 60)


def test_a_limit_ends_them(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pytest", 1)

    monkeypatch.setattr(gpu_tests.subprocess, "run", ended)
    assert gpu_tests.gpu_tests(setting, 1)["end"] == "ran past its limit"


@pytest.mark.slow
def test_all_tests_for_a_gpu_are_collected_without_what_a_gpu_machine_lacks(tmp_path: Path) -> None:
    lacking = "\n".join(f"sys.modules[{name!r}] = None" for name in OPTIONAL)
    (tmp_path / "lacking.py").write_text(f"import sys\n{lacking}\n")
    words = [*gpu_tests.command(False, gpu_tests.marked_files()), "-p", "lacking"]
    words += ["-p", "no:hypothesispytest"]  # pytest would load the plugin before the package is hidden
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=gpu_tests.ROOT, capture_output=True, text=True, timeout=600,
        env={"PYTHONPATH": f"{tmp_path}:{gpu_tests.python_path()}", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " error" not in gpu_tests.last_line(done.stdout)


@pytest.mark.slow
def test_no_other_file_has_such_tests() -> None:
    chosen, whole = (
        subprocess.run(
            gpu_tests.command(False, paths), cwd=gpu_tests.ROOT, capture_output=True, text=True, timeout=600
        ).stdout
        for paths in (gpu_tests.marked_files(), ("tests",))
    )
    found = [{line for line in output.splitlines() if "::" in line} for output in (chosen, whole)]
    assert found[0] == found[1] != set()

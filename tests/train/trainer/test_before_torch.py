"""Faults that are told without torch, in the words of the run; several processes are left to each other."""

import subprocess
import sys
from pathlib import Path

import pytest

from maskshards.train.config.load import load_config
from maskshards.train.distributed.launch import LaunchError
from maskshards.train.trainer.before_torch import check_early

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from maskshards.train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("datasets.root=nowhere", "nowhere/training: there is no such folder"),
        ("init_from=nowhere", "checkpoint nowhere does not exist"),
        ("load_from=nowhere", "checkpoint nowhere does not exist"),
        ("resume_from=nowhere", "/nowhere does not exist"),
        ("output_dir=file", "output_dir file is a file; name a folder"),
        ("decoder_head.num_classes=7", "decoder_head.num_classes is 7, but the manifest of"),
    ],
)
def test_a_fault_is_told_before_torch_is_loaded(
    tiny_run: list[str], tmp_path: Path, words: str, told: str
) -> None:
    (tmp_path / "file").touch()
    program = [sys.executable, "-c", WITHOUT_TORCH, *tiny_run, words]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert not (tmp_path / "run").exists()


def test_several_processes_and_half_a_launcher(tiny_run: list[str], tmp_path: Path) -> None:
    """A rank that ended by itself would be waited for."""
    config = load_config([*tiny_run, "datasets.root=nowhere"])
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    check_early(config, (), torchrun | {"WORLD_SIZE": "2"})
    check_early(config, (), {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"})
    with pytest.raises(ValueError, match="no such folder"):
        check_early(config, (), torchrun | {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"})
    with pytest.raises(LaunchError, match="RANK set without"):
        check_early(config, (), {"RANK": "0"})

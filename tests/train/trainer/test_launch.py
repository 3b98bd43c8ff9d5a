"""How a run's end becomes a status and one block on stderr."""

import pytest
import torch

from maskshards.train.config.load import load_config
from maskshards.train.distributed.early_stop import Stopped
from maskshards.train.losses.nonfinite import NonFiniteError
from maskshards.train.trainer import launch
from maskshards.train.trainer.guards import GuardError


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [
        (NonFiniteError("costs"), 1, "stopped: costs"),
        (GuardError("no gradient"), 1, "stopped: no gradient"),
        (OSError("disk"), 2, "error: disk"),
        (ValueError("classes"), 2, "error: classes"),
        (MemoryError(), 2, "error: out of memory (it said no more); less is needed with a smaller bs"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            2,
            "error: out of memory (CUDA out of memory.); less",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: out of memory (Default"),
        (Stopped(15), 143, "stopped by SIGTERM; resume_from=auto continues"),
        (Stopped(10, begun=False), 138, "before anything was trained or scored; the same command starts"),
        (KeyboardInterrupt(), 130, "interrupted before the step in hand was saved; resume_from"),
        (None, 0, ""),
    ],
)
def test_each_end_has_its_status(
    raised: BaseException | None, status: int, words: str, tiny_run: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def run(*_: object) -> str:
        if raised is not None:
            raise raised
        return "mIoU 1.00"

    monkeypatch.setattr(launch, "run", run)
    assert launch.launch(load_config(tiny_run)) == status
    out, err = capsys.readouterr()
    assert words in err
    assert out == ("" if raised else "mIoU 1.00\n")


def test_a_bug_keeps_its_traceback_and_ends_in_a_line_that_says_where(
    tiny_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> str:
        error = ZeroDivisionError("division by zero")
        error.add_note("rank 1 of 2, in step 4, writing results and report")
        raise error

    monkeypatch.setattr(launch, "run", run)
    assert launch.launch(load_config(tiny_run)) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.splitlines()[-1] == (
        "error: ZeroDivisionError: division by zero (rank 1 of 2, in step 4, writing results and report); a "
        "fault of the program itself: please report it with the lines above"
    )

import io
import logging

import pytest

from train.progress import ProgressLine, clock

FIGURES = {"loss": 2.5, "lr": 1e-4, "grad_norm": 30.0, "images_per_s": 41.25, "wait_share": 0.03}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [0.0]
    monkeypatch.setattr("train.progress.time.monotonic", lambda: time[0])
    return time


def test_text_tells_step_figures_and_time_left(now: list[float]) -> None:
    line = ProgressLine(100, 400, None)
    now[0] = 50.0
    line.interval(150, FIGURES)
    text = line.text(150)
    assert text.startswith(
        "step 150/400  loss 2.5000  lr 0.0001  grad norm 30  41.2 images/s  waiting for data 3 %"
    )
    assert text.endswith("0:04:10 left")


def test_a_terminal_gets_a_live_line_and_a_file_none(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        line = ProgressLine(0, 10, stream)
        line.step(1)
        line.clear()
    assert "step 1/10" in terminal.getvalue()
    assert file.getvalue() == ""
    with caplog.at_level(logging.INFO):
        ProgressLine(0, 10, file).interval(5, FIGURES)
    assert "step 5/10" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360000, "100:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text

"""The progress line on a pseudo-terminal of the kernel's, and where there is no terminal."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from maskshards.train.tracking.progress import ProgressLine

FIGURES = {"loss": 2.5, "lr": 1e-4, "grad_norm": 30.0, "images_per_s": 41.25, "wait_share": 0.03}
TEXT = "loss 2.5000  lr 0.0001  grad norm 30  41.2 images/s  waiting for data 3 %"
COLUMNS = 60
MARK = "\x00"


class Terminal:
    """A terminal of `COLUMNS` columns: `stream` is what a program writes to, `seen` what came out."""

    def __init__(self) -> None:
        self.screen, program = pty.openpty()
        fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.stream: TextIO = os.fdopen(program, "w", encoding="utf-8")

    def seen(self) -> str:
        """Everything written since the last look, read up to a mark that is written last."""
        self.stream.write(MARK)
        self.stream.flush()
        read = b""
        while not read.endswith(MARK.encode()):
            read += os.read(self.screen, 1 << 16)
        return read.decode().removesuffix(MARK)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    found = Terminal()
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    yield found
    found.stream.close()
    os.close(found.screen)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The line's own clock, turned by the test."""
    time = [0.0]
    monkeypatch.setattr("maskshards.train.tracking.progress.time.monotonic", lambda: time[0])
    return time


def on_screen(written: str) -> list[str]:
    """The lines that stand on the terminal in the end: a carriage return begins a line anew."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        for piece in line.split("\r"):
            cells[: len(piece)] = piece
        lines.append("".join(cells).rstrip())
    return lines


def test_a_file_gets_a_line_an_interval_with_figures_and_time_left(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    file = io.StringIO()
    line = ProgressLine(100, 400, file)
    now[0] = 50.0
    with caplog.at_level(logging.INFO):
        line.step(150)
        line.interval(150, FIGURES)
        line.clear()
        line.close()
    assert caplog.messages == [f"step 150/400  {TEXT}  04:10 left"]
    assert file.getvalue() == ""


def test_what_came_before_the_first_step_counts_in_no_time_left(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    line = ProgressLine(100, 400, None)
    now[0] = 600.0  # an evaluation of the untrained head
    line.restart()
    now[0] = 602.0
    with caplog.at_level(logging.INFO):
        line.interval(101, FIGURES)
    assert caplog.messages == [f"step 101/400  {TEXT}  09:58 left"]


def test_a_bar_goes_on_where_the_run_stood_when_its_time_begins_anew(terminal: Terminal) -> None:
    line = ProgressLine(5, 10, terminal.stream)
    assert line.bar is not None
    since = line.bar.start_t
    line.restart()
    assert line.bar.start_t > since
    line.bar.mininterval = 0
    line.step(6)
    assert "step 6/10 |" in terminal.seen()
    line.close()


def test_a_terminal_gets_a_bar_that_is_cleared_and_drawn_again(terminal: Terminal) -> None:
    line = ProgressLine(5, 10, terminal.stream)
    assert "step 5/10 |" in terminal.seen()
    line.bar.mininterval = 0  # draw every step
    line.interval(6, FIGURES)
    line.step(6)
    drawn = terminal.seen()
    assert re.search(r"step 6/10 \|.*\| \S+ left, loss 2\.5", drawn)
    line.clear()
    assert on_screen(drawn + terminal.seen()) == [""]
    line.step(7)
    assert "step 7/10 |" in terminal.seen()
    line.close()
    assert on_screen(terminal.seen()) == [""]


def test_the_bar_fits_into_the_terminal(terminal: Terminal) -> None:
    line = ProgressLine(0, 10, terminal.stream)
    line.bar.mininterval = 0
    line.interval(1, FIGURES)
    line.step(1)
    line.close()
    assert max(len(piece) for piece in re.split(r"[\r\n]+", terminal.seen())) <= COLUMNS


def test_what_is_logged_stands_above_the_bar(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(terminal.stream)])
    line = ProgressLine(0, 10, terminal.stream)
    logging.getLogger("shards").warning("a shard was read twice")
    *above, last = on_screen(terminal.seen())
    assert above == ["a shard was read twice"]
    assert last.startswith("step 0/10 |")
    line.close()
    terminal.seen()
    logging.getLogger("shards").warning("after the end")
    assert terminal.seen() == "after the end\r\n"


def test_no_stream_is_no_bar() -> None:
    line = ProgressLine(0, 10, None)
    line.step(1)
    line.clear()
    line.close()
    assert line.bar is None

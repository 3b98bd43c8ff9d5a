"""Parts that end their process, or never end, cost themselves alone. Real processes, made-up parts."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from maskshards.train.bench import restarts
from maskshards.train.bench.journal import DONE, FAILED, Journal
from maskshards.train.bench.restarts import main, watch

Lines = list[tuple[str, ...]]
PARTS = """
import os, signal, sys, threading
from maskshards.train.bench.journal import DONE, FAILED, Journal, Result
folder, turn, fault = sys.argv[1:]
if fault == "refuse": sys.exit(2)
journal = Journal(__import__("pathlib").Path(folder) / "gpu.jsonl", anew=turn == "first")
def crash(): os.kill(os.getpid(), signal.SIGSEGV)
def hang(): threading.Event().wait()
def leave(): sys.exit(1)
def lose():
    journal.add(Result("b", FAILED, 0.0, reason="illegal address"))
    sys.exit(4)
def nothing(): pass
for part in "abc":
    if not journal.has(part):
        journal.begin(part, 0.5 if part == "b" and fault == "hang" else None)
        if part == "b":
            globals()[fault]()
        journal.add(Result(part, DONE, 1.0, {"turn": turn}))
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Lines]]:
    """Run the command with made-up parts: its exit status, and (part, status, reason) of each line."""

    def run(fault: str, *words: str) -> tuple[int, Lines]:
        def measuring(argv: Sequence[str]) -> subprocess.Popen[bytes]:
            turn = argv[argv.index(restarts.WATCHED) + 1]
            return subprocess.Popen([sys.executable, "-c", PARTS, str(tmp_path), turn, fault])

        monkeypatch.setattr(restarts, "measuring", measuring)
        code = main(["--out", str(tmp_path), *words])
        lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
        return code, [(line["part"], line["status"], line["reason"]) for line in lines]

    return run


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("crash", "its process ended by signal SIGSEGV"),
        ("leave", "its process ended by exit status 1"),
        ("hang", "it hung for "),
        ("lose", "illegal address"),
    ],
)
def test_a_part_that_ends_the_process_costs_itself(
    bench: Callable[..., tuple[int, Lines]],
    fault: str,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, found = bench(fault)
    assert code == 1
    assert [(part, status) for part, status, _ in found] == [("a", DONE), ("b", FAILED), ("c", DONE)]
    assert found[1][2].startswith(reason)
    printed = capsys.readouterr()
    assert f"| b | failed | not measured: {reason}" in printed.out
    assert (tmp_path / "gpu.md").read_text() in printed.out
    assert printed.err.startswith(f"b: {reason}")
    assert printed.err.endswith("; starting again\n")


def test_parts_that_all_end_need_one_process(bench: Callable[..., tuple[int, Lines]]) -> None:
    assert bench("nothing") == (0, [(part, DONE, "") for part in "abc"])


def test_the_budget_ends_a_part_and_with_it_the_command(
    bench: Callable[..., tuple[int, Lines]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "LEAST_S", 1e9)  # too little is left for another process
    code, found = bench("hang")
    assert (code, [part for part, _, _ in found]) == (1, ["a", "b"])


def test_a_part_without_a_limit_is_ended_with_the_budget(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gpu.jsonl")
    journal.begin("b", None)
    process = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    assert watch(process, journal, deadline=0.0) == "the budget was spent on it"
    assert process.returncode == -9


def test_a_process_that_measures_nothing_harms_nothing(
    bench: Callable[..., tuple[int, Lines]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, before = bench("nothing")
    table = (tmp_path / "gpu.md").read_text()
    capsys.readouterr()
    assert bench("refuse") == (2, before)
    assert (tmp_path / "gpu.md").read_text() == table
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_the_command_measures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--device", "cpu", "--only", "crop"]) == 0
    assert "| crop |" in capfd.readouterr().out
    assert main(["--out", str(tmp_path), "--device", "cpu", "nonsense"]) == 2
    assert capfd.readouterr().err == "error: unknown argument 'nonsense': expected an option or key=value\n"
    assert main(["--help"]) == 0
    assert "--budget-s" in capfd.readouterr().out

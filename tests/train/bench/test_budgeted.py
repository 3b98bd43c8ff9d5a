"""Parts within a budget: what fits runs, what fails stays alone, and figures are on disk at once."""

import io
import json
from pathlib import Path

import pytest

from maskshards.train.bench import budgeted
from maskshards.train.bench.budgeted import Budget, NotHere, Part, run_parts
from maskshards.train.bench.journal import ABSENT, DONE, FAILED, SKIPPED, Journal


def raising(error: BaseException):  # type: ignore[no-untyped-def]
    def measure() -> dict[str, object]:
        raise error

    return measure


def run(tmp_path: Path, *parts: Part, seconds: float = 60) -> list[tuple[str, str, str]]:
    journal = Journal(tmp_path / "out" / "gpu.jsonl")
    run_parts(parts, Budget(seconds), journal, stream=io.StringIO())
    return [(result.part, result.status, result.reason) for result in journal.results]


def test_an_exception_stays_inside_its_part(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        Part("first", 0, lambda: {"ms": 1.5}),
        Part("second", 0, raising(RuntimeError("no\nmemory"))),
        Part("third", 0, raising(NotHere("needs a camera"))),
        Part("fourth", 0, lambda: {}),
    )
    assert [status for _, status, _ in found] == [DONE, FAILED, ABSENT, DONE]
    assert found[1][2].startswith("RuntimeError: no memory (test_budgeted.py:")
    assert found[2][2] == "needs a camera"


def test_what_does_not_fit_is_skipped_and_smaller_parts_behind_it_run(tmp_path: Path) -> None:
    found = run(tmp_path, Part("long", 1000, lambda: {}), Part("short", 1, lambda: {}), seconds=60)
    assert [status for _, status, _ in found] == [SKIPPED, DONE]
    assert found[0][2].endswith("it may need 1000")


def test_figures_are_on_disk_before_the_next_part_begins(tmp_path: Path) -> None:
    path = tmp_path / "out" / "gpu.jsonl"
    seen: list[list[dict[str, object]]] = []

    def look() -> dict[str, object]:
        seen.append([json.loads(line) for line in path.read_text().splitlines()])
        return {}

    run(tmp_path, Part("first", 0, lambda: {"ms": 2}), Part("second", 0, look))
    assert [(line["part"], line["figures"]) for line in seen[0]] == [("first", {"ms": 2})]


def test_a_device_that_answers_no_more_leaves_the_rest_to_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [Part("first", 0, raising(RuntimeError("illegal"))), Part("second", 0, lambda: {})]
    with monkeypatch.context() as patch:
        patch.setattr(budgeted, "device_answers", lambda: False)
        assert [part for part, _, _ in run(tmp_path, *parts)] == ["first"]
    journal = Journal(tmp_path / "out" / "gpu.jsonl", anew=False)
    assert run_parts(parts, Budget(60), journal, stream=io.StringIO())
    found = [(result.part, result.status) for result in journal.results]
    assert found == [("first", FAILED), ("second", DONE)]


def test_ctrl_c_ends_the_rest_and_keeps_what_there_is(tmp_path: Path) -> None:
    parts = (
        Part("first", 0, lambda: {}),
        Part("second", 0, raising(KeyboardInterrupt())),
        Part("third", 0, dict),
    )
    assert [part for part, _, _ in run(tmp_path, *parts)] == ["first", "second"]

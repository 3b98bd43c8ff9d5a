"""The parts' figures as Markdown for docs/benchmarks/train-gpu.md, and as the lines printed last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from maskshards.train.bench.journal import DONE, Result

NOT_MEASURED = "not measured"
MAX_LINES = 60
LEFT_TO_THE_FILE = ("table", "shape", "curve")  # too long for a cell
STEP_HEAD = "| step | images/s | step ms | peak GiB | TFLOP/s | syncs | phases, ms |"


def markdown(results: Sequence[Result]) -> str:
    """All steps in one table, everything else in another; a part without figures says why."""
    steps, rest = list(step_rows(results)), list(other_rows(results))
    lines = [STEP_HEAD, "|---|---|---|---|---|---|---|", *steps, ""] if steps else []
    return "\n".join([*lines, "| part | what | figure |", "|---|---|---|", *rest]) + "\n"


def printed(results: Sequence[Result], where: str) -> str:
    """At most MAX_LINES lines; what does not fit is counted, and stands in the files."""
    lines = markdown(results).splitlines()
    if len(lines) > MAX_LINES - 1:
        left = len(lines) - (MAX_LINES - 2)
        lines = [*lines[: MAX_LINES - 2], f"... and {left} lines more"]
    return "\n".join([*lines, f"all figures: {where}"]) + "\n"


def step_rows(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        for name, figures in steps_in(result.part, result.figures):
            phases = figures["phases_ms"]
            shown = ", ".join(f"{phase} {value:.3g}" for phase, value in phases.items() if phase != "step")
            yield row(
                name, figures["images_per_s"], phases["step"], figures.get("peak_gib"),
                figures.get("tflop_per_s"), figures.get("syncs"), shown,
            )  # fmt: skip


def steps_in(name: str, figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every measured step in a part's figures, by name."""
    if "phases_ms" in figures:
        yield name, figures
        return
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from steps_in(f"{name}, {key}", value)


def other_rows(results: Sequence[Result]) -> Iterator[str]:
    """One row for all plain figures of a part, and one for each group of figures.

    Parts without any come first: what is printed may be cut behind them.
    """
    for result in sorted(results, key=lambda result: result.status == DONE):
        if result.status != DONE:
            yield row(result.part, result.status, f"{NOT_MEASURED}: {result.reason[:160]}")
            continue
        if is_step(result.figures):
            continue
        groups = {key: value for key, value in result.figures.items() if isinstance(value, dict)}
        plain = {key: value for key, value in result.figures.items() if key not in groups}
        if plain:
            yield row(result.part, "", ", ".join(f"{key} {short(value)}" for key, value in plain.items()))
        for key, value in groups.items():
            if not is_step(value) and key not in LEFT_TO_THE_FILE:
                yield row(result.part, key, short(value))


def is_step(value: Any) -> bool:
    return isinstance(value, dict) and "phases_ms" in value


def short(value: Any) -> str:
    """One cell: numbers to three digits, long lists by their length."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool) or not isinstance(value, int | float | dict | list):
        return str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(part)}" for key, part in value.items() if key not in LEFT_TO_THE_FILE)
    return "none" if not value else "; ".join(map(short, value)) if len(value) < 9 else f"{len(value)} values"


def row(*cells: Any) -> str:
    return "| " + " | ".join(short(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"

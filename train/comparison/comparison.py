"""Runs side by side on one page: what was set differently, what came of it, and whether it may be compared.

Runs are called A, B, ... in the order in which they were named; differences are against A.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskshards.shards.storage.atomic_write import replacing
from maskshards.train.comparison.past_run import PastRun
from maskshards.train.config.results import METRICS as MEANS
from maskshards.train.report.charts import STEP, Chart, curves, series
from maskshards.train.report.pages import rendered, shown

LETTERS = "ABCDE"  # as many runs as the charts have colours
UNTOLD = ("output_dir", "resume_from")  # settings that differ between runs and say nothing of them
SHOWN = 3  # classes named in a finding
FIGURES = {  # figure of a record -> (kind of record, title, label of its axis)
    "mIoU": ("eval", "Validation mIoU", "percent"),
    "loss": ("train", "Loss", "weighted sum of all terms"),
    "lr": ("train", "Learning rate", "of the head"),
    "grad_norm": ("train", "Gradient norm", "before clipping"),
    "images_per_s": ("train", "Speed", "images a second, all ranks"),
}


@dataclass(frozen=True)
class Row:
    """One line of a table: a value for each run and, for runs after A, the difference from it."""

    name: str
    values: tuple[str, ...]
    differences: tuple[str, ...] = ()


def write_comparison(runs: Sequence[PastRun], path: Path) -> None:
    """Write the page whole, in place of a former one. The folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as hidden:
        hidden.write_text(render(runs), encoding="utf-8", errors="backslashreplace")


def render(runs: Sequence[PastRun]) -> str:
    """The whole document for two to five runs."""
    return rendered(
        "comparison.html.j2",
        runs=[
            (letter, shown(run.means.get("mIoU")), str(run.folder), what(run)) for letter, run in named(runs)
        ],
        letters=LETTERS[: len(runs)],
        findings=list(findings(runs)),
        charts=[chart for chart in charts(runs) if chart.lines],
        settings=settings(runs),
        means=means(runs),
        classes=classes(runs),
    )


def named(runs: Sequence[PastRun]) -> Iterator[tuple[str, PastRun]]:
    """(letter, run)."""
    return zip(LETTERS[: len(runs)], runs, strict=True)


def what(run: PastRun) -> str:
    """A run in a few words: head, backbone, how far it is."""
    head, backbone = run.config.get("decoder_head.type"), run.config.get("model.dino_hub")
    total = run.config.get("scheduler.total_iter")
    steps = f"step {last_step(run)} of {total}" if run.records else "an evaluation"
    return f"{head} head on {backbone}, {steps}"


def last_step(run: PastRun) -> int:
    return max((record["step"] for record in run.records), default=0)


def findings(runs: Sequence[PastRun]) -> Iterator[str]:
    """Sentences: first whether the scores may be compared, then what they say."""
    yield from about_comparability(runs)
    first = runs[0]
    for letter, run in list(named(runs))[1:]:
        ours, theirs = run.means.get("mIoU"), first.means.get("mIoU")
        if ours is not None and theirs is not None:
            yield f"{letter} scores {ours:.2f} mIoU, {signed(ours - theirs)} against A."
        yield from about_classes(first, run, letter)
        yield from about_speed(first, run, letter)
    count = len(settings(runs))
    yield f"{count} settings differ." if count != 1 else "One setting differs."


def about_comparability(runs: Sequence[PastRun]) -> Iterator[str]:
    """Why the scores cannot be compared."""
    splits = {letter: run.state.val_fingerprint for letter, run in named(runs) if run.state is not None}
    if len({split for split in splits.values() if split is not None}) > 1:
        yield "The runs were scored on different validation splits: their scores cannot be compared."
    counts = {run.num_images for run in runs if run.num_images is not None}
    if len(counts) > 1:
        yield (
            f"The last evaluations saw different numbers of images ({', '.join(map(str, sorted(counts)))}): "
            "their scores cannot be compared."
        )
    lists = {tuple(run.classes) for run in runs if run.classes}
    if len(lists) > 1:
        yield "The runs have different classes: means are over different classes, and IoU stands by name."
    for letter, run in named(runs):
        total = run.config.get("scheduler.total_iter")
        if run.records and isinstance(total, int) and last_step(run) < total:
            yield f"{letter} has not ended: step {last_step(run)} of {total}."


def about_classes(first: PastRun, run: PastRun, letter: str) -> Iterator[str]:
    """The classes that gain and lose most."""
    changes = sorted(
        (
            (score - before, name)
            for name, score in run.classes.items()
            if score is not None and (before := first.classes.get(name)) is not None
        ),
        reverse=True,
    )
    for word, best in (("gains", changes[:SHOWN]), ("loses", changes[::-1][:SHOWN])):
        kept = [f"{name} ({signed(by)})" for by, name in best if (by > 0) == (word == "gains") and by]
        if kept:
            yield f"{letter} {word} most in {', '.join(kept)}."


def about_speed(first: PastRun, run: PastRun, letter: str) -> Iterator[str]:
    """Whether one trains quicker, by the medians of what both recorded."""
    ours, theirs = (
        statistics.median([value for _, value in series(one.records, "images_per_s")] or [0.0])
        for one in (run, first)
    )
    if ours and theirs:
        yield f"{letter} trains {ours:.3g} images a second, {ours / theirs:.2f} times A."


def charts(runs: Sequence[PastRun]) -> Iterator[Chart]:
    """The curves of all runs over each other."""
    for figure, (kind, title, label) in FIGURES.items():
        lines = {
            letter: series([record for record in run.records if record["kind"] == kind], figure)
            for letter, run in named(runs)
        }
        yield curves(title, lines, STEP, label)


def settings(runs: Sequence[PastRun]) -> list[Row]:
    """Keys that are not equal in all runs, in the order of the configuration."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in UNTOLD)
    rows = [Row(key, tuple(setting(run, key) for run in runs)) for key in keys]
    return [row for row in rows if len(set(row.values)) > 1]


def setting(run: PastRun, key: str) -> str:
    """A value as the command line takes it."""
    if key not in run.config:
        return "not known"
    value = run.config[key]
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def means(runs: Sequence[PastRun]) -> list[Row]:
    """The means that at least one run has."""
    names = [*MEANS, "boundary_mIoU"]
    rows = [score_row(name, [run.means.get(name) for run in runs]) for name in names]
    return [row for row in rows if set(row.values) != {"-"}]


def classes(runs: Sequence[PastRun]) -> list[Row]:
    """IoU by name: the largest difference between any two runs first, then classes that only some have."""
    names = dict.fromkeys(name for run in runs for name in run.classes)
    scores = {name: [run.classes.get(name) for run in runs] for name in names}

    def spread(name: str) -> float:
        found = [score for score in scores[name] if score is not None]
        return max(found) - min(found) if len(found) > 1 else -1.0

    return [score_row(name, scores[name]) for name in sorted(names, key=spread, reverse=True)]


def score_row(name: str, scores: Sequence[float | None]) -> Row:
    """Scores and their differences from the first."""
    first = scores[0]
    return Row(
        name,
        tuple(shown(score) for score in scores),
        tuple("-" if score is None or first is None else signed(score - first) for score in scores[1:]),
    )


def signed(difference: float) -> str:
    """With its sign, which says what a colour would."""
    return f"{difference:+.2f}"

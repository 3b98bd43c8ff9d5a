"""`report.html` of a run: findings, curves, classes, confusions, pictures and settings in one file.

Everything is inlined; nothing is loaded, nothing is run. Words and looks stand in `templates/`, whose engine
escapes every name from data or settings.
"""

from __future__ import annotations

import platform
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from maskshards.shards.storage.atomic_write import replacing
from maskshards.train.checkpoint.checkpoint import TrainState
from maskshards.train.evaluation.metrics import EvalResult
from maskshards.train.report.charts import STEP, Chart, curves, series
from maskshards.train.report.findings import findings, spent
from maskshards.train.report.gallery import Gallery, confusion_pairs
from maskshards.train.report.pages import rendered, shown
from maskshards.train.report.palette import class_colours
from maskshards.train.report.pictures import error_colours, hex_of, pictured

NAME = "report.html"


@dataclass(frozen=True)
class RunFacts:
    """What a report says about a run beside its figures."""

    title: str
    state: TrainState
    config_yaml: str
    device: str
    num_ranks: int
    data: str = "not recorded"  # name and place of the validation split
    written: str = "at an unknown time"
    command: str = ""  # that does the same again
    folder: str = ""  # of the run
    unseen: Sequence[str] = ()  # classes without a pixel in the training split


@dataclass(frozen=True)
class Share:
    """A part of a whole, as a row of a table."""

    name: str
    amount: str
    percent: float


@dataclass(frozen=True)
class Phases:
    """The phases of a step."""

    rows: list[Share]
    whole: str
    timed: int  # steps that were timed


def write_report(
    run: Path, facts: RunFacts, records: list[dict[str, Any]], result: EvalResult, gallery: Gallery
) -> Path:
    """Write `RUN/report.html` whole, in place of the former one."""
    path = run / NAME
    with replacing(path) as hidden:
        hidden.write_text(render(facts, records, result, gallery), encoding="utf-8")
    return path


def render(facts: RunFacts, records: list[dict[str, Any]], result: EvalResult, gallery: Gallery) -> str:
    """The whole document."""
    names = result.class_names
    found, timed = findings(facts.state.config, records, result, facts.unseen), phases(records)
    confusions = confusion_pairs(result)
    parts = {
        "Findings": found, "Next": facts.folder, "Curves": True, "Time": True, "One step": timed,
        "Classes": True, "Confusions": confusions, "Lowest scores": gallery.worst,
        "Across the split": gallery.spread, "Settings": True, "Versions": True,
    }  # fmt: skip
    return rendered(
        "report.html.j2",
        facts=facts,
        miou=shown(result.miou),
        accuracy=shown(result.pixel_accuracy),
        num_images=result.num_images,
        best=best(records),
        sections=[name for name, content in parts.items() if content],
        findings=found,
        next_steps=next_steps(facts.folder) if facts.folder else {},
        charts=list(charts(records)),
        times=times(records),
        phases=timed,
        classes=class_rows(result),
        absent=result.absent_classes,
        confusions=confusions,
        error_colours=error_colours(),
        worst=pictured(gallery.worst, names),
        spread=pictured(gallery.spread, names),
        versions=versions(facts),
    )


def best(records: list[dict[str, Any]]) -> str:
    """The highest mIoU among several evaluations, and where it was."""
    scores = series([record for record in records if record["kind"] == "eval"], "mIoU")
    if len(scores) < 2:
        return ""
    step, score = max(scores, key=lambda point: point[1])
    return f"; the highest mIoU so far is {shown(score)}, after step {step}"


def charts(records: list[dict[str, Any]]) -> Iterable[Chart]:
    """The curves of a run."""
    train = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    parts = sorted({name for record in train for name in record if name.startswith("loss_")})
    scores = {name: series(evaluations, name) for name in ("mIoU", "aAcc")}
    yield curves("Validation", scores, STEP, "percent")
    yield curves("Loss", {"loss": series(train, "loss")}, STEP, "weighted sum of all terms")
    terms = {name[5:]: series(train, name) for name in parts}
    yield curves("Loss terms", terms, STEP, "mean over predictions, unweighted")
    yield curves("Learning rate", {"lr": series(train, "lr")}, STEP, "of the head")
    yield curves("Gradient norm", {"norm": series(train, "grad_norm")}, STEP, "before clipping")
    yield curves("Speed", {"images/s": series(train, "images_per_s")}, STEP, "images a second, all ranks")


def next_steps(folder: str) -> dict[str, str]:
    """What to run next with the run in `folder`, and why."""
    run = shlex.quote(folder)
    weights = f"config={run}/config.yaml load_from={run}"
    return {
        f"maskshards predict {run} photos/ --output pictures": "label images of your own",
        f"maskshards evaluate {weights} output_dir={run}-tta eval.use_tta=true": "sizes and flips averaged",
        f"maskshards report {run} OTHER_RUN": "see it beside another run",
        f"maskshards export {run} --format huggingface --output exported": "give it away",
    }


def times(records: list[dict[str, Any]]) -> list[Share]:
    """Where the wall time of all lives of the run went."""
    train = [record for record in records if record["kind"] == "train"]
    training, waiting = spent(train), spent(train, "wait_share")
    spans = {
        "training steps": training - waiting,
        "waiting for data": waiting,
        "evaluations": spent([record for record in records if record["kind"] == "eval"]),
        "checkpoints": spent([record for record in records if record["kind"] == "checkpoint"]),
    }
    whole = sum(spans.values()) or 1.0
    return [Share(name, duration(seconds), 100 * seconds / whole) for name, seconds in spans.items()]


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, whichever needs the fewest digits."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def phases(records: list[dict[str, Any]]) -> Phases | None:
    """Median milliseconds of each phase over the steps that were timed; None if none was."""
    timed = [record for record in records if record["kind"] == "phases"]
    if not timed:
        return None
    names = [name for name in timed[-1] if name.endswith("_ms")]
    spans = {name: statistics.median(record.get(name) or 0.0 for record in timed) for name in names}
    whole = spans.pop("step_ms", 0.0) or 1.0
    rows = [
        Share(name.removesuffix("_ms").replace("_", " "), f"{span:.1f} ms", 100 * span / whole)
        for name, span in spans.items()
    ]
    return Phases(rows, f"{whole:.1f} ms", len(timed))


def class_rows(result: EvalResult) -> list[dict[str, Any]]:
    """Classes that are labelled or predicted anywhere, the most labelled first."""
    total = max(sum(result.labelled_pixels), 1)
    order = sorted(range(len(result.class_names)), key=lambda k: -result.labelled_pixels[k])
    colours = class_colours(len(result.class_names))
    return [
        {
            "name": result.class_names[k],
            "colour": hex_of(colours[k]),
            "iou": result.iou_per_class[k],
            "accuracy": result.accuracy_per_class[k],
            "share": 100 * result.labelled_pixels[k] / total,
        }
        for k in order
        if result.labelled_pixels[k] or result.predicted_pixels[k]
    ]


def versions(facts: RunFacts) -> dict[str, str]:
    """What the run was made with."""
    state = facts.state
    return {
        "training data fingerprint": state.fingerprint,
        "backbone": f"{state.backbone}, weights {state.backbone_digest}",
        "global batch, seed": f"{state.global_batch}, {state.seed}",
        "ranks, device": f"{facts.num_ranks}, {facts.device}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }

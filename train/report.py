"""`report.html` of a run: one file that can be mailed, with curves, classes, confusions, pictures and
settings.

Everything is inlined; nothing is loaded, nothing is run. Every name from data or settings is escaped.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from train.charts import bar, curves
from train.checkpoint import TrainState, replacing
from train.gallery import Gallery, confusion_pairs
from train.metrics import EvalResult
from train.pictures import pictures, shown

NAME = "report.html"
STYLE = """ :root { color-scheme: light dark; } body { font: 14px/1.45 system-ui, sans-serif; margin: 2em
auto; max-width: 1100px; padding: 0 1em; } h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.grid { stroke: currentColor; opacity: .15; } svg text { font-size: 11px; fill: currentColor; } .charts {
display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 1em; } figure { margin: 0; }
figcaption { font-weight: 600; } .key { margin: 0; font-size: 12px; } table { border-collapse: collapse; } td,
th { padding: 2px 10px 2px 0; text-align: left; } td.n { text-align: right; font-variant-numeric:
tabular-nums; } .bar { display: inline-block; width: 160px; height: .8em; background: color-mix(in srgb,
currentColor 12%, transparent); } .bar span { display: block; height: 100%; background: #2f6fd0; } .row {
display: grid; grid-template-columns: repeat(4, 1fr); gap: 4px; margin: .3em 0 1em; } .row img { width: 100%;
image-rendering: pixelated; } pre { overflow-x: auto; font-size: 12px; } .score { font-size: 2em; font-weight:
600; } .wide { overflow-x: auto; }
"""


@dataclass(frozen=True)
class RunFacts:
    """What a report says about a run beside its figures."""

    title: str
    state: TrainState
    config_yaml: str
    device: str
    num_ranks: int


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
    sections = {
        "Curves": f'<div class="charts">{"".join(charts(records))}</div>',
        "Time": times(records),
        "A step": phase_table(records),
        "Classes": f'<div class="wide">{class_table(result)}</div>',
        "Confusions": confusion_table(result),
        "Lowest scores": pictures(gallery.worst, result.class_names),
        "Across the split": pictures(gallery.spread, result.class_names),
        "Settings": f"<pre>{escape(facts.config_yaml)}</pre>",
        "Versions": versions(facts),
    }
    body = "".join(f"<h2>{escape(name)}</h2>{content}" for name, content in sections.items() if content)
    title = escape(facts.title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
        f'<p><span class="score">mIoU {shown(result.miou)}</span> after step {facts.state.step}, '
        f"{result.num_images} images, pixel accuracy {shown(result.pixel_accuracy)}</p>{body}</body></html>\n"
    )


def charts(records: list[dict[str, Any]]) -> Iterable[str]:
    train = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    parts = sorted({name for record in train for name in record if name.startswith("loss_")})
    yield curves("Validation, percent", {name: series(evaluations, name) for name in ("mIoU", "aAcc")})
    yield curves("Loss", {"loss": series(train, "loss")})
    yield curves("Loss terms, mean over layers", {name[5:]: series(train, name) for name in parts})
    yield curves("Learning rate", {"lr": series(train, "lr")})
    yield curves("Gradient norm before clipping", {"norm": series(train, "grad_norm")})
    yield curves("Images per second", {"images/s": series(train, "images_per_s")})


def series(records: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def times(records: list[dict[str, Any]]) -> str:
    """Where the wall time of all lives of the run went."""
    train = [record for record in records if record["kind"] == "train"]
    training = sum(record["seconds"] for record in train)
    waiting = sum(record["seconds"] * record["wait_share"] for record in train)
    rows = {
        "training steps": training - waiting,
        "waiting for data": waiting,
        "evaluations": sum(record["seconds"] for record in records if record["kind"] == "eval"),
        "checkpoints": sum(record["seconds"] for record in records if record["kind"] == "checkpoint"),
    }
    whole = sum(rows.values()) or 1.0
    cells = "".join(
        f'<tr><td>{name}</td><td class="n">{seconds:.1f} s</td><td>{bar(100 * seconds / whole)}</td></tr>'
        for name, seconds in rows.items()
    )
    return f"<table>{cells}</table>"


def phase_table(records: list[dict[str, Any]]) -> str:
    """Median milliseconds of each phase over the steps that were timed; empty if none was."""
    timed = [record for record in records if record["kind"] == "phases"]
    if not timed:
        return ""
    names = [name for name in timed[-1] if name not in ("kind", "step")]
    spans = {name: statistics.median(record.get(name, 0.0) for record in timed) for name in names}
    whole = spans.pop("step_ms") or 1.0
    cells = "".join(
        f'<tr><td>{escape(name.removesuffix("_ms").replace("_", " "))}</td><td class="n">{span:.1f} ms</td>'
        f'<td class="n">{100 * span / whole:.0f} %</td><td>{bar(100 * span / whole)}</td></tr>'
        for name, span in spans.items()
    )
    total = f'<tr><td>whole step</td><td class="n">{whole:.1f} ms</td><td></td><td></td></tr>'
    return f"<p>Medians of {len(timed)} timed steps.</p><table>{cells}{total}</table>"


def class_table(result: EvalResult) -> str:
    total = max(sum(result.labelled_pixels), 1)
    order = sorted(range(len(result.class_names)), key=lambda k: -result.labelled_pixels[k])
    rows = "".join(
        f"<tr><td>{escape(result.class_names[k])}</td>"
        f'<td class="n">{shown(result.iou_per_class[k])}</td><td>{bar(result.iou_per_class[k])}</td>'
        f'<td class="n">{shown(result.accuracy_per_class[k])}</td>'
        f'<td class="n">{100 * result.labelled_pixels[k] / total:.2f}</td></tr>'
        for k in order
        if result.labelled_pixels[k] or result.predicted_pixels[k]
    )
    head = "<tr><th>class</th><th>IoU</th><th></th><th>accuracy</th><th>% of pixels</th></tr>"
    absent = ", ".join(escape(name) for name in result.absent_classes)
    note = f"<p>In neither labels nor predictions: {absent}</p>" if absent else ""
    return f"<table>{head}{rows}</table>{note}"


def confusion_table(result: EvalResult) -> str:
    rows = "".join(
        f"<tr><td>{escape(pair.label)}</td><td>{escape(pair.prediction)}</td>"
        f'<td class="n">{pair.pixels:,}</td><td class="n">{pair.share:.1f}</td></tr>'
        for pair in confusion_pairs(result)
    )
    head = "<tr><th>is</th><th>was taken for</th><th>pixels</th><th>% of the class</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def versions(facts: RunFacts) -> str:
    state = facts.state
    rows = {
        "training data fingerprint": state.fingerprint,
        "backbone": f"{state.backbone}, weights {state.backbone_digest}",
        "global batch, seed": f"{state.global_batch}, {state.seed}",
        "ranks, device": f"{facts.num_ranks}, {facts.device}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in rows.items()
    )
    return f"<table>{cells}</table>"

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

from maskshards.shards.storage.atomic_write import replacing
from maskshards.train.checkpoint.checkpoint import TrainState
from maskshards.train.evaluation.metrics import EvalResult
from maskshards.train.report.charts import bar, curves, share_row
from maskshards.train.report.gallery import Gallery, confusion_pairs
from maskshards.train.report.palette import class_colours
from maskshards.train.report.pictures import pictures, shown, swatches

NAME = "report.html"
STEP = "optimiser step"
STYLE = """ :root { color-scheme: light dark; } body { font: 14px/1.45 system-ui, sans-serif; margin: 2em
auto; max-width: 1100px; padding: 0 1em; } h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin: 2em 0
.5em; } nav a { margin-right: 1em; } .grid { stroke: currentColor; opacity: .2; } svg { width: 100%; }
svg text { font-size: 11px; fill: currentColor; } .charts { display: grid; grid-template-columns:
repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1em; } figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; } .key { margin: 0; font-size: 12px; } .name { white-space: nowrap;
margin-right: .6em; } .swatch { display: inline-block; width: .8em; height: .8em; margin-right: .35em;
border: 1px solid color-mix(in srgb, currentColor 40%, transparent); } .beside { display: flex;
flex-wrap: wrap; gap: 0 4em; } .beside > section { min-width: 0; max-width: 100%; overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: 2px 10px 2px 0; text-align: left; }
tr:nth-child(even) td { background: color-mix(in srgb, currentColor 4%, transparent); } td.n, th.n {
text-align: right; font-variant-numeric: tabular-nums; } td.text { overflow-wrap: anywhere; } .bar {
display: inline-block; width: 160px; height: .8em; background: color-mix(in srgb, currentColor 12%,
transparent); } .bar span { display: block; height: 100%; background: #2f6fd0; } .row { display: grid;
grid-template-columns: repeat(4, 1fr); gap: 6px; margin: .3em 0; } .row img { width: 100%;
image-rendering: pixelated; display: block; } .row figcaption { font-size: 12px; font-weight: 400; }
.row + .key { margin-bottom: 1.4em; } pre { overflow-x: auto; font-size: 12px; } .score { font-size:
2em; font-weight: 600; } @media (max-width: 600px) { .row { grid-template-columns: repeat(2, 1fr); } }
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
    names = result.class_names
    tables = {
        "Time": times(records),
        "One step": phase_table(records),
        "Classes": class_table(result),
        "Confusions": confusion_table(result),
    }
    sections = {
        "Curves": f'<div class="charts">{"".join(charts(records))}</div>',
        **tables,
        "Lowest scores": pictures(gallery.worst, names),
        "Across the split": pictures(gallery.spread, names),
        "Settings": f"<details><summary>the config</summary><pre>{escape(facts.config_yaml)}</pre></details>",
        "Versions": versions(facts),
    }
    parts = {name: section(name, content) for name, content in sections.items() if content}
    links = "".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name in parts)
    for first, second in (("Time", "One step"), ("Classes", "Confusions")):
        parts[first] = f'<div class="beside">{parts[first]}{parts.pop(second, "")}</div>'
    title = escape(facts.title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
        f'<p><span class="score">mIoU {shown(result.miou)}</span> after step {facts.state.step}, '
        f"{result.num_images} images, pixel accuracy {shown(result.pixel_accuracy)}{best(records)}</p>"
        f"<nav>{links}</nav>{''.join(parts.values())}</body></html>\n"
    )


def section(name: str, content: str) -> str:
    return f'<section id="{anchor(name)}"><h2>{escape(name)}</h2>{content}</section>'


def anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def best(records: list[dict[str, Any]]) -> str:
    """The highest mIoU among several evaluations, and where it was."""
    scores = series([record for record in records if record["kind"] == "eval"], "mIoU")
    if len(scores) < 2:
        return ""
    step, score = max(scores, key=lambda point: point[1])
    return f"; the highest mIoU so far is {shown(score)}, after step {step}"


def charts(records: list[dict[str, Any]]) -> Iterable[str]:
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
    cells = (share_row(name, duration(seconds), 100 * seconds / whole) for name, seconds in rows.items())
    return f"<table>{''.join(cells)}</table>"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, whichever needs the fewest digits."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def phase_table(records: list[dict[str, Any]]) -> str:
    """Median milliseconds of each phase over the steps that were timed; empty if none was."""
    timed = [record for record in records if record["kind"] == "phases"]
    if not timed:
        return ""
    names = [name for name in timed[-1] if name not in ("kind", "step")]
    spans = {name: statistics.median(record.get(name, 0.0) for record in timed) for name in names}
    whole = spans.pop("step_ms") or 1.0
    cells = "".join(
        share_row(name.removesuffix("_ms").replace("_", " "), f"{span:.1f} ms", 100 * span / whole)
        for name, span in spans.items()
    )
    total = f'<tr><td>whole step</td><td class="n">{whole:.1f} ms</td><td></td><td></td></tr>'
    return f"<table>{cells}{total}</table><p>Medians of {len(timed)} timed steps.</p>"


def class_table(result: EvalResult) -> str:
    total = max(sum(result.labelled_pixels), 1)
    order = sorted(range(len(result.class_names)), key=lambda k: -result.labelled_pixels[k])
    names, colours = result.class_names, class_colours(len(result.class_names))
    rows = "".join(
        f"<tr><td>{swatches({names[k]: colours[k].tolist()})}</td>"
        f'<td class="n">{shown(result.iou_per_class[k])}</td><td>{bar(result.iou_per_class[k])}</td>'
        f'<td class="n">{shown(result.accuracy_per_class[k])}</td>'
        f'<td class="n">{100 * result.labelled_pixels[k] / total:.2f}</td></tr>'
        for k in order
        if result.labelled_pixels[k] or result.predicted_pixels[k]
    )
    head = (
        '<tr><th>class</th><th class="n">IoU, %</th><th></th><th class="n">accuracy, %</th>'
        '<th class="n">% of pixels</th></tr>'
    )
    absent = ", ".join(escape(name) for name in result.absent_classes)
    note = f"<p>In neither labels nor predictions: {absent}</p>" if absent else ""
    return f"<table>{head}{rows}</table>{note}"


def confusion_table(result: EvalResult) -> str:
    rows = "".join(
        f"<tr><td>{escape(pair.label)}</td><td>{escape(pair.prediction)}</td>"
        f'<td class="n">{pair.pixels:,}</td><td class="n">{pair.share:.1f}</td></tr>'
        for pair in confusion_pairs(result)
    )
    head = (
        '<tr><th>is</th><th>was taken for</th><th class="n">pixels</th><th class="n">% of the class</th></tr>'
    )
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
        f'<tr><td>{escape(name)}</td><td class="text">{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"

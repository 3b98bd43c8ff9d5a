"""Curves as numbers: where lines, marks and labels lie; the page's template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

WIDTH, HEIGHT = 360, 210  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 60, 10, 22, 38  # room for labels, also in the larger type of phones
# A line is told by its colour and by its dashes.
COLOURS = ("#2f6fd0", "#d0632f", "#2f9e63", "#8a4fc9", "#b08a1e")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2")
STEP = "optimiser step"

Points = Sequence[tuple[float, float]]
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A line at a round value and the value's text."""

    x1: float
    x2: float
    y1: float
    y2: float
    text: str
    text_x: float
    text_y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Line:
    """One series."""

    name: str
    last: str  # its last value
    path: str  # of an SVG polyline
    end: tuple[float, float]
    colour: str
    dashes: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, ready to be drawn; without lines if nothing was recorded."""

    title: str
    x_label: str
    y_label: str
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    middle: float = (LEFT + WIDTH - RIGHT) / 2  # of the x axis


def curves(title: str, series: Mapping[str, Points], x_label: str = "", y_label: str = "") -> Chart:
    """A chart of named (x, y) series with points in order of x; points that are not finite are left out."""
    sound = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in series.items()
    }
    sound = {name: points for name, points in sound.items() if points}
    if not sound:
        return Chart(title, x_label, y_label)
    x_range = widened([x for points in sound.values() for x, _ in points])
    y_range = widened([y for points in sound.values() for _, y in points])
    lines = []
    for number, (name, points) in enumerate(sound.items()):
        places = thinned([place(x, y, x_range, y_range) for x, y in points])
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        end = (round(places[-1][0], 1), round(places[-1][1], 1))
        kind = number % len(COLOURS)
        lines.append(Line(name, f"{points[-1][1]:.4g}", path, end, COLOURS[kind], DASHES[kind]))
    return Chart(title, x_label, y_label, tuple(grid(x_range, y_range)), tuple(lines))


def series(records: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of the records of a run that have the figure `name`."""
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def widened(values: Sequence[float]) -> Range:
    """The range of `values`, never empty: a single one gets a half to each side, or a share of itself."""
    low, high = min(values), max(values)
    beside = max(0.5, abs(low) / 100)
    return (low, high) if high > low else (low - beside, high + beside)


def thinned(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that a chart can show: a million steps are drawn like any other run, peaks included.

    Of points that fall on one unit across the chart the first, the lowest, the highest and the last.
    """
    kept: list[tuple[float, float]] = []
    for _, column in groupby(places, key=lambda point: round(point[0])):
        points = list(column)
        chosen = {0, len(points) - 1}
        chosen |= {pick(range(len(points)), key=lambda k: points[k][1]) for pick in (min, max)}
        kept += [points[k] for k in sorted(chosen)]
    return kept


def place(x: float, y: float, x_range: Range, y_range: Range) -> tuple[float, float]:
    """Where a value lies in the chart; the y axis points up."""
    across = (x - x_range[0]) / (x_range[1] - x_range[0])
    up = (y - y_range[0]) / (y_range[1] - y_range[0])
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def grid(x_range: Range, y_range: Range) -> list[Mark]:
    """Lines at round values with their numbers."""
    marks = []
    for value in ticks(*y_range, about=6):
        y = round(place(x_range[0], value, x_range, y_range)[1], 1)
        marks.append(Mark(LEFT, WIDTH - RIGHT, y, y, f"{value:.4g}", LEFT - 6, y + 4, "end"))
    bottom = HEIGHT - BOTTOM
    for value in ticks(*x_range, about=6):
        x = round(place(value, y_range[0], x_range, y_range)[0], 1)
        marks.append(Mark(x, x, bottom, bottom + 4, f"{value:.6g}", x, bottom + 16, "middle"))
    return marks


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within [low, high]."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]

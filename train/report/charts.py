"""Curves and bars as inline SVG: no script, no network, readable in print and in the dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 360, 210  # of a chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 22, 38  # room for labels
COLOURS = ("#2f6fd0", "#d0632f", "#2f9e63", "#8a4fc9", "#b08a1e")

Points = Sequence[tuple[float, float]]


def curves(title: str, series: Mapping[str, Points], x_label: str = "", y_label: str = "") -> str:
    """A chart of named (x, y) series with points in order of x, labels at its axes, and the last value of
    each series beside its name; points that are not finite are left out.
    """
    sound = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in series.items()
    }
    sound = {name: points for name, points in sound.items() if points}
    if not sound:
        return f"<figure><figcaption>{escape(title)}</figcaption><p>nothing recorded yet</p></figure>"
    xs = [x for points in sound.values() for x, _ in points]
    ys = [y for points in sound.values() for _, y in points]
    x_range, y_range = widened(min(xs), max(xs)), widened(min(ys), max(ys))
    body = [grid(x_range, y_range), axis_labels(x_label, y_label)]
    for colour, points in zip(COLOURS * len(sound), sound.values(), strict=False):
        places = [place(x, y, x_range, y_range) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in places[-1:]]
    keys = " ".join(
        f'<span class="name"><span style="color:{colour}">&#9632;</span> {escape(name)} '
        f"{points[-1][1]:.4g}</span>"
        for colour, (name, points) in zip(COLOURS * len(sound), sound.items(), strict=False)
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(body)}</svg><p class="key">{keys}</p></figure>'
    )


def widened(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def place(
    x: float, y: float, x_range: tuple[float, float], y_range: tuple[float, float]
) -> tuple[float, float]:
    """Where a value lies in the chart; the y axis points up."""
    across = (x - x_range[0]) / (x_range[1] - x_range[0])
    up = (y - y_range[0]) / (y_range[1] - y_range[0])
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def grid(x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    """Lines at round values with their numbers."""
    parts = []
    for value in ticks(*y_range, about=6):
        _, y = place(x_range[0], value, x_range, y_range)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in ticks(*x_range, about=6):
        x, _ = place(value, y_range[0], x_range, y_range)
        bottom = HEIGHT - BOTTOM
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:.6g}</text>')
    return "".join(parts)


def axis_labels(x_label: str, y_label: str) -> str:
    """What is counted along x, below the axis, and along y, above it."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text x="0" y="{TOP - 10}">{escape(y_label)}</text>'
    )


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within [low, high]."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def share_row(name: str, amount: str, percent: float) -> str:
    """A table row: a name, an amount with its unit, and its share of a whole as a number and as a bar."""
    return (
        f'<tr><td>{escape(name)}</td><td class="n">{escape(amount)}</td><td class="n">{percent:.0f} %</td>'
        f"<td>{bar(percent)}</td></tr>"
    )


def bar(percent: float) -> str:
    """A bar of 0 to 100, for a table cell; empty where undefined."""
    if math.isnan(percent):
        return ""
    return f'<span class="bar"><span style="width:{min(max(percent, 0.0), 100.0):.1f}%"></span></span>'

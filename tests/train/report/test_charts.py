import math

import pytest

from maskshards.train.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    curves,
    place,
    ticks,
    widened,
)


def test_values_lie_where_the_axes_say() -> None:
    assert place(0, 10, (0, 4), (0, 10)) == (LEFT, TOP)
    assert place(4, 0, (0, 4), (0, 10)) == (WIDTH - RIGHT, HEIGHT - BOTTOM)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 5, 10]), (0, 1, [0, 0.5, 1]), (3, 9, [4, 6, 8]), (-0.5, 0.5, [-0.5, 0, 0.5])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_curves_are_drawn_point_by_point_without_what_is_not_finite() -> None:
    (line,) = curves("Loss", {"loss": [(1, 4.0), (2, math.nan), (3, 2.0)], "none": []}).lines
    points = [tuple(map(float, pair.split(","))) for pair in line.path.split()]
    assert points == [(LEFT, TOP), (WIDTH - RIGHT, HEIGHT - BOTTOM)]
    assert (line.end, line.last) == (points[-1], "2")


def test_a_single_point_and_no_point_are_fine() -> None:
    assert len(curves("x", {"a": [(5, 1.0)]}).lines) == 1
    assert curves("x", {"a": []}).lines == ()
    assert widened([3.0]) == (2.5, 3.5)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e17, 3e38])
def test_one_value_of_any_size_can_be_drawn(value: float) -> None:
    chart = curves("Loss", {"loss": [(1, value), (2, value)]})
    assert len(chart.lines) == 1
    assert chart.marks


def test_a_long_run_is_drawn_by_few_points_and_all_its_peaks() -> None:
    points = [(step, math.sin(step / 700)) for step in range(200_000)]
    points[123_456] = (123_456, 50.0)
    (line,) = curves("Loss", {"loss": points}).lines
    drawn = [tuple(map(float, pair.split(","))) for pair in line.path.split()]
    assert len(drawn) <= 4 * (WIDTH - LEFT - RIGHT + 1)
    assert min(y for _, y in drawn) == TOP
    assert drawn == sorted(drawn, key=lambda point: point[0])
    assert drawn[-1] == line.end


def test_marks_stand_at_the_values_that_they_name() -> None:
    chart = curves("Loss", {"loss": [(0, 0.0), (100, 50.0)]}, "optimiser step", "nats & bits")
    assert (chart.x_label, chart.y_label) == ("optimiser step", "nats & bits")
    for mark in chart.marks:
        value = float(mark.text)
        if mark.anchor == "middle":
            assert mark.x1 == pytest.approx(place(value, 0, (0, 100), (0, 50))[0], abs=0.05)
        else:
            assert mark.y1 == pytest.approx(place(0, value, (0, 100), (0, 50))[1], abs=0.05)


def test_lines_are_told_by_more_than_colour() -> None:
    lines = curves("x", {name: [(0, 1.0), (1, 2.0)] for name in "abc"}).lines
    assert len({line.colour for line in lines}) == len({line.dashes for line in lines}) == 3

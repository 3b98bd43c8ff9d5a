import math
import xml.etree.ElementTree as ElementTree

import pytest

from maskshards.train.report.charts import HEIGHT, LEFT, TOP, WIDTH, bar, curves, place, share_row, ticks


def svg(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html.replace("&#9632;", "#"))


def test_values_lie_where_the_axes_say() -> None:
    assert place(0, 10, (0, 4), (0, 10)) == (LEFT, TOP)
    right, bottom = place(4, 0, (0, 4), (0, 10))
    assert right < WIDTH
    assert TOP < bottom < HEIGHT


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 5, 10]), (0, 1, [0, 0.5, 1]), (3, 9, [4, 6, 8]), (-0.5, 0.5, [-0.5, 0, 0.5])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_curves_are_drawn_point_by_point_without_what_is_not_finite() -> None:
    figure = svg(curves("Loss", {"loss": [(1, 4.0), (2, math.nan), (3, 2.0)], "none": []}))
    (line,) = figure.iter("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(points) == 2
    assert points[0][0] < points[1][0]
    assert points[0][1] < points[1][1]


def test_a_single_point_and_no_point_are_fine() -> None:
    assert len(list(svg(curves("x", {"a": [(5, 1.0)]})).iter("polyline"))) == 1
    assert "nothing recorded yet" in curves("x", {"a": []})


def test_axes_are_labelled_and_the_last_value_is_told() -> None:
    html = curves("Loss", {"loss": [(1, 4.0), (2, 2.125)]}, "optimiser step", "nats & bits")
    figure = svg(html)
    labels = [text.text for text in figure.iter("text")]
    assert {"optimiser step", "nats & bits"} <= set(labels)
    assert "loss 2.125" in "".join(figure.itertext())


def test_a_share_is_a_number_and_a_bar_and_its_name_is_text() -> None:
    row = ElementTree.fromstring(share_row("<b>", "3.0 ms", 25.4))
    assert [cell.text for cell in row][:3] == ["<b>", "3.0 ms", "25 %"]
    assert "width:25.4%" in ElementTree.tostring(row[3], encoding="unicode")


def test_names_are_escaped() -> None:
    html = curves('<b>"t"', {"<script>": [(1, 1.0), (2, 2.0)]})
    assert "<script>" not in html
    assert "<b>" not in html


@pytest.mark.parametrize(("percent", "width"), [(0.0, "0.0%"), (55.55, "55.5%"), (130.0, "100.0%")])
def test_bar(percent: float, width: str) -> None:
    assert f"width:{width}" in bar(percent)
    assert bar(math.nan) == ""

"""The engine behind the pages: names are text, and what a page lacks is an error."""

import math

import pytest
from jinja2 import UndefinedError

from maskshards.train.report.pages import environment, rendered, shown, template_text


def test_text_is_escaped_and_a_missing_name_is_an_error():
    template = environment().from_string("{{ name }}")
    assert template.render(name="<b>&") == "&lt;b&gt;&amp;"
    with pytest.raises(UndefinedError):
        template.render()
    with pytest.raises(UndefinedError):
        rendered("comparison.html.j2")


def test_one_stylesheet_for_all_pages():
    page = rendered(
        "comparison.html.j2",
        **dict.fromkeys(("runs", "letters", "findings", "charts", "settings", "means", "classes"), ()),
    )
    assert template_text("report.css") in page


@pytest.mark.parametrize(("score", "text"), [(None, "-"), (math.nan, "-"), (12.345, "12.35"), (0.0, "0.00")])
def test_scores_for_people(score, text):
    assert shown(score) == text

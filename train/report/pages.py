"""The engine behind the pages for people: all text is escaped, and a name that a page lacks is an error."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def rendered(name: str, **values: Any) -> str:
    """What the template `name` makes of `values`; the stylesheet of all pages is its `style`."""
    page: str = environment().get_template(name).render(style=Markup(template_text("report.css")), **values)
    return page


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The template engine, made once."""
    made = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(template_text))
    made.filters["percent"] = shown
    made.filters["anchor"] = lambda name: name.lower().replace(" ", "-")
    return made


def template_text(name: str) -> str:
    """A file of `templates/`."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def shown(score: float | None) -> str:
    """A score in percent with two decimals, a dash where it is undefined."""
    return "-" if score is None or math.isnan(score) else f"{score:.2f}"

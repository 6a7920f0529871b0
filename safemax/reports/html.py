"""HTML pages from the Jinja2 templates in templates/; all values are escaped."""

from __future__ import annotations

import base64
from functools import cache

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: object) -> str:
    """Return a page that refers to nothing outside it.

    Args:
        template: name of a file in templates/.
        values: what it shows, by the names that it uses.
    """
    return _templates().get_template(template).render(**values)


def table_page(frame: pd.DataFrame, title: str) -> str:
    """Return a table as a page of its own, every cell escaped; numbers have four digits, "-" stands for none."""
    table = frame.to_html(float_format=lambda value: f"{value:.4g}", na_rep="-", border=0, escape=True)
    return render("table.html", title=title, table=Markup(table))  # noqa: S704 - pandas escapes every cell


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("safemax.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["data_url"] = _data_url
    templates.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    return templates


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"

"""The page of a repair: one self-contained HTML file that opens offline and runs no script.

Every string of the record (class, layer and file names, notes, errors) is somebody else's: Jinja
escapes each of them, :func:`excise.reports.formats.clean` takes out what a browser would act on
without markup, and the page's own policy forbids every request and every script.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from excise.reports import formats
from excise.reports.embedding import data_uri
from excise.reports.record import read_record, record_json
from excise.reports.view import view

__all__ = ["environment", "pretty", "render_repair"]


def render_repair(record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the page of one repair: HTML with its style, figures and pictures inside.

    Args:
        record: the record of the repair.
        pictures: PNG files by the names the record calls them; a missing one leaves a gap that
            says so.

    Raises:
        DataError: the record cannot be read.
    """
    read = read_record(record)
    raw = record_json(record)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            **view(read, pictures),
            raw=Markup(_inert(raw)),
            download=data_uri(raw.encode(), "application/json"),
            pretty=pretty(record),
        )
    )


@functools.cache
def environment() -> Environment:
    """Return what turns the templates of every page into HTML."""
    made = Environment(
        loader=PackageLoader("excise.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    made.filters.update(
        percent=formats.percent,
        signed=formats.signed,
        interval=formats.interval_text,
        count=lambda n: f"{n:,}",
    )
    return made


def _finalize(value: Any) -> Any:
    """Clean every string of the record on its way into the page; markup made here passes."""
    ours = isinstance(value, Markup) or not isinstance(value, str)
    return value if ours else formats.clean(value)


def _inert(raw: str) -> str:
    """Escape JSON so that no tag or comment can begin inside a script element."""
    return raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pretty(value: Any, indent: str = "") -> str:
    """Return JSON for reading: indented, with lists of plain values on one line."""
    deeper = indent + "  "
    if isinstance(value, Mapping) and value:
        rows = (
            f"{json.dumps(k, ensure_ascii=False)}: {pretty(v, deeper)}" for k, v in value.items()
        )
        return "{\n" + ",\n".join(deeper + row for row in rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(v, list | Mapping) for v in value):
        rows = (pretty(v, deeper) for v in value)
        return "[\n" + ",\n".join(deeper + row for row in rows) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)

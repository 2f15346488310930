"""Reports: one HTML file that holds everything that it shows, and opens without a server or a network.

A report is a list of blocks, each a JSON object with ``kind`` and, if it has one, ``title``:

``{"kind": "text", "text": str or [str, …]}``
    Paragraphs.
``{"kind": "facts", "facts": [{"name": str, "value": str or number, "note": str}, …]}``
    Some numbers, large. ``note`` may be left out.
``{"kind": "table", "columns": [{"name": str, "digits": int}, …], "rows": [[cell, …], …], "text": str}``
    A table that can be sorted by each column. A cell is text, a number or null. ``digits`` are those after the point
    of a column's numbers, and make it a column of numbers.
``{"kind": "series", "x": {"name": str, "time": bool}, "y": {"name": str, "share": bool}, "at": [number, …],
"lines": [{"name": str, "values": [number or null, …], "low": […], "high": […], "style": str}, …],
"versions": [{"at": number, "version": int}, …], "domains": [{"at": number, "until": number, "name": str}, …]}``
    Lines over one axis, for example the rolling accuracy with and without adaptation. ``time``: ``at`` is in unix
    seconds. ``share``: values from 0 to 1, shown in percent. ``low`` and ``high`` draw a band. ``style`` is ``main``
    (the one that matters), ``other`` (what it is compared with), ``dashed`` or ``ink``. ``versions`` are marked below,
    ``domains`` shaded; both may be left out, and so may all that says so of ``lines``.
``{"kind": "bars", "y": {"name": str, "share": bool}, "bars": [{"name": str, "value": number or null, "low": number,
"high": number, "main": bool}, …]}``
    Bars beside each other with error bars, for example methods and their accuracy.

Blocks of other kinds, and members that are not named here, are ignored.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from cema._util.files import write_atomic
from cema.page.assets import assets, filled, import_map, inline_hash

__all__ = ["report_html", "write_report"]

_MODULES: Final = (
    "chart.js",
    "format.js",
    "htm.js",
    "marks.js",
    "plots.js",
    "preact-hooks.js",
    "preact.js",
    "report.js",
    "stats.js",
    "ui.js",
    "uplot.js",
)
_STYLES: Final = ("uplot.css", "base.css", "parts.css", "views.css")
_ENTRY: Final = 'import "cema/report.js";'


def write_report(path: Path, title: str, blocks: Sequence[Mapping[str, Any]]) -> None:
    """Write a report to a file, which is whole or absent after a crash.

    Parameters
    ----------
    path : Path
        The file; an existing one is replaced.
    title : str
        What is above it.
    blocks : sequence of mappings
        What it shows; see the module.

    Raises
    ------
    ValueError
        If a block holds what JSON cannot, such as NaN: write None for a number that is not known.
    """
    write_atomic(path, report_html(title, blocks))


def report_html(title: str, blocks: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a report's bytes; see `write_report`."""
    known = assets()
    modules = {name: _data_address(known[name].content_type, known[name].body) for name in _MODULES}
    imports = import_map(modules)
    scripts = " ".join((inline_hash(imports), inline_hash(_ENTRY)))
    # Even text that became markup by a mistake could not ask for anything outside the file.
    policy = f"default-src 'none'; script-src {scripts} data:; style-src 'unsafe-inline'; img-src data:"
    values = {
        "policy": html.escape(policy),
        "styles": "\n".join(known[name].body.decode() for name in _STYLES),
        "map": imports,
        "entry": _ENTRY,
        "title": html.escape(title),
        "data": _harmless(json.dumps({"title": title, "blocks": list(blocks)}, allow_nan=False)),
    }
    template = (files("cema.page") / "static" / "report.html").read_text(encoding="utf-8")
    return filled(template, values)


def _harmless(text: str) -> str:
    """Return JSON text in which nothing ends, or begins, an element or a comment of HTML."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data_address(content_type: str, body: bytes) -> str:
    return f"data:{content_type.replace(' ', '')};base64,{base64.b64encode(body).decode()}"

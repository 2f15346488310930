"""The report of a benchmark: one HTML file of the same parts as the cloud's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from cema.bench.plots import Stream, average_error, curve_of, streams_of
from cema.bench.tables import AVERAGE, ResultTable, averaged
from cema.page.reports import write_report

__all__ = ["REPORT", "report_blocks", "write_html"]

REPORT = "report.html"
"""The name of the file in the folder of results."""

# The row that others are compared with.
_OURS = "cema"
# How the lines of the others differ.
_STYLES = ("other", "dashed", "ink")


def write_html(path: Path, tables: Sequence[ResultTable], results: Mapping[str, Any]) -> None:
    """Write the report: for each table accuracy as bars and by corruption, and what was uploaded; then the streams."""
    settings = results["settings"]
    title = f"{settings['data']}, {settings['protocol']}"
    write_report(path, title, report_blocks(tables, results))


def report_blocks(tables: Sequence[ResultTable], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the blocks of the report, see `cema.page.reports`.

    Parameters
    ----------
    tables : sequence of ResultTable
    results : mapping
        What ``results.json`` holds.
    """
    seeds = results["settings"]["seeds"]
    over = f"Means over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"Seed {seeds[0]}"
    blocks: list[dict[str, Any]] = [
        {
            "kind": "text",
            "text": [f"Accuracy in percent, and what was uploaded. {over}. CEMA {results['cema']}."],
        }
    ]
    for table in tables:
        blocks += [_bars(table), _accuracies(table), _uploads(table)]
    return blocks + [_stream(stream) for stream in streams_of(results["cells"])]


def _bars(table: ResultTable) -> dict[str, Any]:
    bars = []
    for method, row in table.rows.items():
        entry = row.get(AVERAGE)
        bar: dict[str, Any] = {"name": method, "value": None, "main": method == _OURS}
        if entry is not None and entry.accuracy is not None:
            share, error = entry.accuracy / 100, average_error(table, method) / 100
            bar |= {"value": share, "low": max(0.0, share - error), "high": min(1.0, share + error)}
        bars.append(bar)
    return {
        "kind": "bars",
        "title": table.title,
        "y": {
            "name": f"mean accuracy over {len(averaged(table.corruptions))} columns, with its error",
            "share": True,
        },
        "bars": bars,
    }


def _accuracies(table: ResultTable) -> dict[str, Any]:
    columns = [{"name": "method"}, *({"name": name, "digits": 1} for name in table.columns)]
    rows = [
        [method, *(None if name not in row else row[name].accuracy for name in table.columns)]
        for method, row in table.rows.items()
    ]
    notes = [*([table.chance()] if table.chance() else []), *table.notes()]
    return {
        "kind": "table",
        "title": "Accuracy, %",
        "columns": columns,
        "rows": rows,
        "text": " ".join(notes),
    }


def _uploads(table: ResultTable) -> dict[str, Any]:
    columns = [
        {"name": "method"},
        {"name": "samples", "digits": 0},
        {"name": "uploads", "digits": 0},
        {"name": "share, %", "digits": 1},
        {"name": "bytes", "digits": 0},
    ]
    rows = []
    for method, row in table.rows.items():
        entry = row.get(AVERAGE)
        if entry is not None:
            rows.append([method, entry.samples, entry.uploads, entry.share, entry.bytes_up])
    return {"kind": "table", "title": "Uploads per corruption", "columns": columns, "rows": rows}


def _stream(stream: Stream) -> dict[str, Any]:
    """Draw accuracy over the stream of the first seed; methods are measured at the same places."""
    curves = {members[0]["method"]: dict(curve_of(members)) for members in stream.methods}
    at = sorted(set().union(*curves.values()))
    styles = cycle(_STYLES)
    lines = []
    for method, known in curves.items():
        values = [None if end not in known else known[end] / 100 for end in at]
        lines.append({"name": method, "values": values, "style": "main" if method == _OURS else next(styles)})
    return {
        "kind": "series",
        "title": f"Over the stream: {stream.title}",
        "x": {"name": "samples of the stream", "time": False},
        "y": {"name": "accuracy", "share": True},
        "at": at,
        "lines": lines,
    }

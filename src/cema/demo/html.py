"""The report of a demonstration: one HTML file of the same parts as the cloud's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cema._util.units import human_bytes
from cema.demo.report import WINDOW, whole_stream
from cema.demo.tally import EdgeTally, SegmentResult, rolling_mean
from cema.page.reports import write_report

__all__ = ["report_blocks", "write_html"]

# More points than a screen has columns show nothing more.
POINTS = 1200


def write_html(
    path: Path,
    *,
    names: Sequence[str],
    tallies: Sequence[EdgeTally],
    rows: Sequence[SegmentResult],
    result: Mapping[str, Any],
    told: str,
) -> None:
    """Write the report: the conclusion, accuracy over the stream, and the table."""
    write_report(path, "CEMA demonstration", report_blocks(names, tallies, rows, result, told))


def report_blocks(
    names: Sequence[str],
    tallies: Sequence[EdgeTally],
    rows: Sequence[SegmentResult],
    result: Mapping[str, Any],
    told: str,
) -> list[dict[str, Any]]:
    """Return the blocks of the report, see `cema.page.reports`.

    Parameters
    ----------
    names : sequence of str
        The segments of the stream.
    tallies : sequence of EdgeTally
    rows : sequence of SegmentResult
        The table.
    result : mapping
        What is written as JSON.
    told : str
        The conclusion in words.
    """
    settings = (
        f"{result['model']}, taught by {result['foundation']}; seed {result['seed']}; CEMA {result['cema']}."
    )
    return [
        {"kind": "text", "text": [told, settings]},
        _facts(rows, result),
        _series(names, tallies),
        _table(rows),
    ]


def _facts(rows: Sequence[SegmentResult], result: Mapping[str, Any]) -> dict[str, Any]:
    if not rows:
        return {"kind": "facts", "facts": []}
    whole = whole_stream(rows)
    facts = [
        {"name": "adapted", "value": f"{whole.adapted_accuracy:.1f} %", "note": "of all predictions right"},
        {
            "name": "frozen",
            "value": f"{whole.frozen_accuracy:.1f} %",
            "note": "the same model, never updated",
        },
        {
            "name": "sent",
            "value": f"{100 * whole.uploaded / whole.samples:.1f} %",
            "note": f"of all images: {human_bytes(whole.bytes_up)} up, {human_bytes(whole.bytes_down)} down",
        },
        {"name": "versions", "value": str(result["versions"]), "note": f"in {result['seconds']:.0f} s"},
    ]
    return {"kind": "facts", "facts": facts}


def _series(names: Sequence[str], tallies: Sequence[EdgeTally]) -> dict[str, Any]:
    seen = min((tally.seen for tally in tallies), default=0)
    at = np.unique(np.linspace(0, max(seen - 1, 0), POINTS).astype(int)) if seen else np.zeros(0, int)

    def line(kind: str) -> list[float]:
        rolling = [rolling_mean(getattr(tally, kind)[:seen], WINDOW) for tally in tallies]
        mean: NDArray[np.float64] = np.mean(rolling, axis=0)[at] / 100 if seen else np.zeros(0)
        return [round(float(value), 4) for value in mean]

    bounds = tallies[0].bounds if tallies else []
    segments = zip(bounds, bounds[1:], names, strict=False)
    return {
        "kind": "series",
        "title": f"Accuracy of the last {WINDOW} predictions",
        "x": {"name": "predictions per edge", "time": False},
        "y": {"name": "accuracy", "share": True},
        "at": at.tolist(),
        "lines": [
            {"name": "adapted", "values": line("adapted"), "style": "main"},
            {"name": "frozen", "values": line("frozen"), "style": "other"},
        ],
        "versions": [
            {"at": index, "version": version} for index, version in tallies[0].swaps if index < seen
        ],
        "domains": [
            {"at": begin, "until": min(end, seen), "name": name}
            for begin, end, name in segments
            if begin < seen
        ],
    }


def _table(rows: Sequence[SegmentResult]) -> dict[str, Any]:
    columns = [
        {"name": "segment"},
        {"name": "samples", "digits": 0},
        {"name": "frozen, %", "digits": 1},
        {"name": "adapted, %", "digits": 1},
        {"name": "sent, %", "digits": 1},
        {"name": "up, kB", "digits": 1},
        {"name": "down, kB", "digits": 1},
        {"name": "guard, %", "digits": 1},
    ]
    cells = [
        [
            row.name,
            row.samples,
            row.frozen_accuracy,
            row.adapted_accuracy,
            100 * row.uploaded / row.samples,
            row.bytes_up / 1e3,
            row.bytes_down / 1e3,
            100 * row.guarded / row.samples,
        ]
        for row in rows
    ]
    return {
        "kind": "table",
        "title": "By segment",
        "columns": columns,
        "rows": cells,
        "text": "Summed over the edges. Guard: images that the source model predicted in the place of an update.",
    }

"""The results of a demonstration: a table, a plot, and JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from cema._util.units import human_bytes
from cema.demo.tally import EdgeTally, SegmentResult, rolling_mean

__all__ = ["result_table", "write_json", "write_plot"]

WINDOW = 200


def result_table(rows: Sequence[SegmentResult]) -> Table:
    """Return the table that is printed at the end: one row per segment, and the whole stream."""
    table = Table(
        title="Accuracy in percent and traffic, summed over the edges", box=box.SIMPLE_HEAD, padding=(0, 0)
    )
    table.add_column("segment", no_wrap=True)
    for name in ("samples", "frozen", "adapted", "sent", "sent %", "up", "down", "guard %"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    if rows:
        table.add_section()
        table.add_row(*_cells(_whole(rows)), style="bold")
    return table


def _whole(rows: Sequence[SegmentResult]) -> SegmentResult:
    samples = sum(row.samples for row in rows)
    return SegmentResult(
        name="whole stream",
        samples=samples,
        frozen_accuracy=sum(row.frozen_accuracy * row.samples for row in rows) / samples,
        adapted_accuracy=sum(row.adapted_accuracy * row.samples for row in rows) / samples,
        uploaded=sum(row.uploaded for row in rows),
        bytes_up=sum(row.bytes_up for row in rows),
        bytes_down=sum(row.bytes_down for row in rows),
        guarded=sum(row.guarded for row in rows),
    )


def _cells(row: SegmentResult) -> list[str]:
    return [
        row.name,
        str(row.samples),
        f"{row.frozen_accuracy:.1f}",
        f"{row.adapted_accuracy:.1f}",
        str(row.uploaded),
        f"{100 * row.uploaded / row.samples:.1f}",
        human_bytes(row.bytes_up),
        human_bytes(row.bytes_down),
        f"{100 * row.guarded / row.samples:.1f}",
    ]


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write the results as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def write_plot(path: Path, names: Sequence[str], tallies: Sequence[EdgeTally]) -> None:
    """Draw rolling accuracy of the frozen and the adapted model over the stream, with the moment of each swap."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that only a plot needs

    seen = min(t.seen for t in tallies)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots()
    for label, colour in (("frozen", "#888888"), ("adapted", "#1f77b4")):
        correct = np.mean([rolling_mean(getattr(t, label)[:seen], WINDOW) for t in tallies], axis=0)
        axes.plot(np.arange(seen), correct, color=colour, label=f"{label} edge model", linewidth=1.8)
    for i, tally in enumerate(tallies):
        at = [index for index, _ in tally.swaps if index < seen]
        height = np.full(len(at), 1.5 + 2.5 * i)
        axes.scatter(
            at, height, marker="|", s=36, color=f"C{i + 1}", label=f"swaps on edge-{i}", linewidths=1
        )
    bounds = tallies[0].bounds
    for i, name in enumerate(names):
        if bounds[i] >= seen:
            break
        if i:
            axes.axvline(bounds[i], color="#cccccc", linewidth=0.8, zorder=0)
        axes.text((bounds[i] + min(bounds[i + 1], seen)) / 2, 102, name, ha="center", fontsize=9)
    axes.set(xlim=(0, seen), ylim=(0, 107), xlabel="predictions per edge")
    axes.set_ylabel(f"accuracy of the last {WINDOW} predictions, %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.06), fontsize=8, framealpha=0.9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)

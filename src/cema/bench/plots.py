"""The plots of a benchmark, each as PNG and SVG."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cema.bench.protocols import sequence
from cema.bench.tables import AVERAGE, Entry, ResultTable, averaged
from cema.bench.visits import VisitTable, visits_of
from cema.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Stream", "average_error", "colour_of", "curve_of", "streams_of", "write_plots"]

# In what sequence of conditions a stream changes while a method goes along it, and is short enough to be drawn whole.
_CHANGING = ("continual", "gradual", "mixed")
# Points nearer than this share of the panel's width and height cannot be told apart.
_NEAR = (0.03, 0.03)
# For methods that name no colour, or are not to be had where an old result is drawn.
_PALETTE = ("#7f3c8d", "#11a579", "#3969ac", "#f2b701", "#e73f74", "#80ba5a", "#e68310", "#008695", "#cf1c90")


def write_plots(out: Path, tables: Sequence[ResultTable], cells: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Draw what the tables say.

    Parameters
    ----------
    out : Path
        The folder that gets ``accuracy``, ``uploads`` and, where the stream changes, ``stream``; where it returns to
        the same corruptions, ``visits`` in its place.
    tables : sequence of ResultTable
        A panel for each.
    cells : sequence of mapping
        Whose curves make accuracy over the stream.

    Returns
    -------
    list of Path
        The files.
    """
    shown = [table for table in tables if _scored(table)]
    if not shown:
        return []
    figures = {"accuracy": _bars(shown), "uploads": _against_bytes(shown)}
    streams = streams_of(cells)
    if streams:
        figures["stream"] = _over_stream(streams)
    returning = [one for one in visits_of(cells) if one.visits > 1]
    if returning:
        figures["visits"] = _over_visits(returning)
    paths = []
    for name, figure in figures.items():
        for suffix in ("png", "svg"):
            paths.append(out / f"{name}.{suffix}")
            figure.savefig(paths[-1], dpi=130)
    return paths


def _scored(table: ResultTable) -> dict[str, Entry]:
    """Return the average of every method that applies, or its mean over what is there."""
    averages = {method: row.get(AVERAGE) for method, row in table.rows.items()}
    return {m: entry for m, entry in averages.items() if entry is not None and entry.accuracy is not None}


def _panels(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    # Not pyplot: it would open a window system, and keep every figure.
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second that only a plot needs

    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, list(axes[:count])


def colour_of(method: str) -> str:
    """Return the same colour for a method in every plot."""
    from cema.methods.registry import METHODS  # noqa: PLC0415 - loads torch

    try:
        colour = METHODS[method].colour
    except (ConfigError, KeyError):
        colour = None
    return colour or _PALETTE[int(hashlib.sha256(method.encode()).hexdigest(), 16) % len(_PALETTE)]


def _name(axes: Axes, table: ResultTable | VisitTable) -> None:
    severity = f", severity {table.severity}" if table.severity else ""
    axes.set_title(f"{table.model}{severity} ({table.dataset}, {table.protocol})", fontsize=10)


def _bars(tables: Sequence[ResultTable]) -> Figure:
    """Draw average accuracy by method; the error bars are `Entry.error`."""
    figure, panels = _panels(len(tables), width=6.0, height=3.6)
    for axes, table in zip(panels, tables, strict=True):
        found = _scored(table)
        errors = [average_error(table, method) for method in found]
        heights = [entry.accuracy or 0.0 for entry in found.values()]
        bars = axes.bar(list(found), heights, yerr=errors, capsize=3, color=[colour_of(m) for m in found])
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
        axes.tick_params(axis="x", rotation=45, labelsize=8)
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(0.0, min(110.0, max(heights) + 8))
        _name(axes, table)
    return figure


def average_error(table: ResultTable, method: str) -> float:
    """Return the error bar of a method's average in points.

    Parameters
    ----------
    table : ResultTable
        Where the method has an average.
    method : str
        Its name.

    Returns
    -------
    float
        The deviation over seeds, or for one seed the standard error of the mean over corruptions.
    """
    row = table.rows[method]
    # Corruptions of the same few photographs are not independent, and their average has its own error.
    if row[AVERAGE].deviation is not None or row[AVERAGE].photographs is not None:
        return row[AVERAGE].error
    errors = [entry.error for name, entry in row.items() if name in averaged(table.corruptions)]
    return float(np.sqrt(np.sum(np.square(errors))) / len(errors))


def _against_bytes(tables: Sequence[ResultTable]) -> Figure:
    """Draw average accuracy against the bytes uploaded."""
    figure, panels = _panels(len(tables), width=6.0, height=3.8)
    for axes, table in zip(panels, tables, strict=True):
        points: dict[str, tuple[float, float]] = {}
        for method, entry in _scored(table).items():
            points[method] = (entry.bytes_up or 0.0) / entry.samples, entry.accuracy or 0.0
            error = average_error(table, method)
            axes.errorbar(*points[method], yerr=error, fmt="o", color=colour_of(method), capsize=3)
        axes.set(xlabel="bytes uploaded per predicted sample", ylabel="average accuracy, %")
        axes.margins(x=0.15, y=0.12)
        _label(axes, points)
        _name(axes, table)
    return figure


def _label(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write names at points; those too near to be told apart share a label, the best first."""
    reach = np.multiply(_NEAR, [np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())])
    groups: list[list[str]] = []
    for method in sorted(points, key=lambda name: -points[name][1]):
        distances = (np.abs(np.subtract(points[group[0]], points[method])) for group in groups)
        near = [group for group, gap in zip(groups, distances, strict=True) if np.all(gap < reach)]
        if near:
            near[0].append(method)
        else:
            groups.append([method])
    for group in groups:
        axes.annotate(
            ", ".join(group), points[group[0]], xytext=(5, 4), textcoords="offset points", fontsize=8
        )


class Stream(NamedTuple):
    """One stream of conditions: what it is of, and of each method the cells along it."""

    title: str
    changes: bool
    methods: list[list[Mapping[str, Any]]]


def streams_of(cells: Sequence[Mapping[str, Any]]) -> list[Stream]:
    """Return the streams that change while a method goes along them and are short enough to be drawn whole.

    Of several seeds the first.
    """
    changing = [cell for cell in cells if sequence(cell["protocol"]) in _CHANGING and cell["curve"]]
    first = min((cell["seed"] for cell in changing), default=0)
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for cell in changing:
        if cell["seed"] == first:
            runs.setdefault(cell["run"], []).append(cell)
    streams: dict[tuple[Any, ...], Stream] = {}
    for members in runs.values():
        head = members[0]
        top = max(cell["severity"] for cell in members)
        title = f"{head['model']}, {head['protocol']}, severity {top} ({head['dataset']})"
        what = (head["dataset"], head["model"], head["protocol"], top)
        stream = Stream(title, sequence(head["protocol"]) == "continual", [])
        streams.setdefault(what, stream).methods.append(members)
    return list(streams.values())


def curve_of(members: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return where on its stream a method was measured, and its accuracy there in percent."""
    return sorted((int(end), float(accuracy)) for cell in members for end, accuracy in cell["curve"])


def _over_stream(streams: Sequence[Stream]) -> Figure:
    """Draw accuracy over the stream, a panel for each stream."""
    figure, axes_list = _panels(len(streams), width=8.0, height=3.8)
    for axes, stream in zip(axes_list, streams, strict=True):
        for members in stream.methods:
            points = curve_of(members)
            method = members[0]["method"]
            axes.plot(
                [end for end, _ in points],
                [accuracy for _, accuracy in points],
                color=colour_of(method),
                label=method,
                linewidth=1.2,
            )
        if stream.changes:
            _mark_segments(axes, stream.methods[0])
        axes.set(xlabel="samples of the stream", ylabel="accuracy, %")
        axes.set_title(stream.title, fontsize=10)
        axes.legend(fontsize=7, ncols=2, framealpha=0.8)
    return figure


def _over_visits(tables: Sequence[VisitTable]) -> Figure:
    """Draw mean accuracy by visit, a panel for each table."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - as above

    figure, panels = _panels(len(tables), width=8.0, height=3.8)
    for axes, table in zip(panels, tables, strict=True):
        for method, row in table.rows.items():
            if row.means:
                numbers = range(1, len(row.means) + 1)
                axes.plot(numbers, row.means, ".-", color=colour_of(method), label=method, linewidth=1.2)
        axes.set(xlabel="visit to every corruption", ylabel="mean accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _name(axes, table)
        if axes.lines:
            axes.legend(fontsize=7, ncols=2, framealpha=0.8)
    return figure


def _mark_segments(axes: Axes, members: Sequence[Mapping[str, Any]]) -> None:
    for cell in members:
        end = cell["curve"][-1][0]
        axes.axvline(end, color="#cccccc", linewidth=0.8, zorder=0)
        name = axes.text(
            end - cell["samples"] / 2,
            0.02,
            cell["corruption"],
            transform=axes.get_xaxis_transform(),  # the height as a share of the panel's
            rotation=90,
            fontsize=6,
            ha="center",
            va="bottom",
        )
        name.set_in_layout(False)

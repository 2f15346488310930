"""The results of a demonstration: a table, a plot, and JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from cema._util.units import human_bytes
from cema.demo.tally import EdgeTally, SegmentResult, rolling_mean
from cema.errors import ConfigError

__all__ = [
    "WINDOW",
    "check_outputs",
    "conclusion",
    "result_table",
    "whole_stream",
    "write_json",
    "write_plot",
]

WINDOW = 200
"""Predictions that the plotted accuracy is the mean of."""
# Points of accuracy over the whole stream below which nobody should call it a gain.
LEAST_GAIN = 1.0


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
        table.add_row(*_cells(whole_stream(rows)), style="bold")
    return table


def conclusion(rows: Sequence[SegmentResult], cloud: Mapping[str, Any], *, stalled: bool = False) -> str:
    """Say in a sentence what adaptation gained over the stream and, where that is little, why and what to try.

    Parameters
    ----------
    rows : sequence of SegmentResult
        The segments.
    cloud : mapping
        The cohort's last status.
    stalled : bool
        Whether the stream went on although the worker made no progress.

    Returns
    -------
    str
        One line.
    """
    if not rows:
        return "Nothing was predicted, so that there is nothing to compare; try it without --samples."
    whole = whole_stream(rows)
    before, after = whole.frozen_accuracy, whole.adapted_accuracy
    numbers = f"{after:.1f} % in place of {before:.1f} % over the whole stream"
    if after - before >= LEAST_GAIN:
        return f"Adaptation gained {after - before:.1f} points: {numbers}, with {cloud['version']} updates."
    lost = before - after >= LEAST_GAIN
    begin = f"Adaptation lost {before - after:.1f} points" if lost else "Adaptation gained nothing"
    return f"{begin} ({numbers}): {_reason(whole, cloud, stalled=stalled)}."


def _reason(whole: SegmentResult, cloud: Mapping[str, Any], *, stalled: bool) -> str:
    """Say why there is no gain, and what to try: the first reason that holds."""
    counts = cloud["counts"]
    skipped = int(counts.get("worker.skipped_samples", 0))
    longer = "try a longer stream (--samples)"
    reasons = {
        f"the devices selected no image to send; {longer}": not whole.uploaded,
        "steps of the cloud's worker failed; run it again with --workspace DIR and read cloud.log there": (
            counts.get("worker.failed_steps", 0)
        ),
        "the cloud's worker made no progress for minutes; try a smaller --foundation, or a machine with less other "
        "work": stalled,
        f"the stream ended before the cloud's worker had made its first step, with {whole.uploaded} images sent; "
        f"{longer}": not counts.get("steps.count"),
        f"the stream outran the cloud's worker, which passed over {skipped} of {whole.uploaded} images sent; leave "
        "--rate out, so that the stream waits for it, or give a lower one": skipped > whole.uploaded // 4,
        f"no update passed the cloud's check before the stream ended: it takes some hundred images; {longer}": (
            not cloud["version"]
        ),
    }
    late = (
        f"{cloud['version']} updates were published, but the stream of {whole.samples} images changed before they "
        f"could help; {longer}"
    )
    return next((reason for reason, holds in reasons.items() if holds), late)


def check_outputs(paths: Iterable[Path]) -> None:
    """Refuse, before the stream begins, files that could not be written at its end.

    Raises
    ------
    ConfigError
        If one is a folder, or its folder cannot be made or written to.
    """
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            existed = path.exists()
            path.open("ab").close()
            if not existed:
                path.unlink()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def whole_stream(rows: Sequence[SegmentResult]) -> SegmentResult:
    """Return the sum of all segments; there must be one."""
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
    figure.savefig(path, dpi=130)

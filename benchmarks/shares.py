"""Draw accuracy against the bytes that an image costs, from the results of several benchmarks.

Each folder is what ``cema bench --out`` wrote. Rows of one method in several folders, such as `cema` with several
shares of the rule ``budget``, are joined by a line. Example::

    cema bench --preset digits-c --methods cema --out ten --set 'cema.rule="budget"' --set 'cema.options={share=0.1}'
    python benchmarks/shares.py docs/results/own-digits-cnn ten --severity 5 --output shares.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from cema.bench.plots import colour_of


class Point(NamedTuple):
    """One row of one benchmark, averaged over its corruptions and seeds."""

    bytes_per_image: float
    accuracy: float
    share: float


def points(folder: Path, severity: int) -> dict[str, Point]:
    """Return the rows of one severity by method."""
    cells: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["cells"]
    found = defaultdict(list)
    for cell in cells:
        if cell["severity"] == severity and cell["accuracy"] is not None:
            found[cell["method"]].append(cell)
    return {
        method: Point(
            bytes_per_image=sum(c["bytes_up"] for c in rows) / sum(c["samples"] for c in rows),
            accuracy=fmean(c["accuracy"] for c in rows),
            share=100 * sum(c["uploads"] for c in rows) / sum(c["samples"] for c in rows),
        )
        for method, rows in found.items()
    }


def draw(rows: dict[str, list[Point]], output: Path) -> None:
    """Draw a line for each method, from the cheapest row to the dearest."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    marks = cycle("osD^vP")  # rows of one colour family stay apart
    for method, found in rows.items():
        ordered = sorted(found)
        x, y = [p.bytes_per_image for p in ordered], [p.accuracy for p in ordered]
        axes.plot(x, y, marker=next(marks), color=colour_of(method), label=method)
    axes.set_xlabel("uploaded, bytes per image of the stream")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(output, dpi=130)


def main() -> None:
    """Print a table and draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--severity", type=int, default=5)
    parser.add_argument("--output", type=Path, help="the plot; none when left out")
    options = parser.parse_args()
    rows = defaultdict(list)
    print("| row | accuracy | uploaded, % | bytes per image |\n|---|--:|--:|--:|")
    for folder in options.folders:
        for method, point in points(folder, options.severity).items():
            rows[method].append(point)
            print(
                f"| {method} ({folder.name}) | {point.accuracy:.1f} | {point.share:.1f} | {point.bytes_per_image:.0f} |"
            )
    if not any(rows.values()):
        parser.error(
            f"expected cells of severity {options.severity}, found none; see the folders' results.json"
        )
    if options.output:
        draw(rows, options.output)


if __name__ == "__main__":
    main()

"""Whether a model that is never reset stays as good as the source model: every visit, beside the source's.

For the protocols that go through one corruption after the other without a reset, once (continual) or several times
(recurring). A row is below the source model in a visit if it has fewer images of it right than the row ``source`` has
of the same images under the same corruption and seed; Hoang et al. (NeurIPS 2024) call it collapse.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from cema._util.files import write_atomic
from cema.bench.protocols import sequence
from cema.bench.tables import SHORT, averaged, markdown_table

__all__ = ["VisitRow", "VisitTable", "visits_csv", "visits_markdown", "visits_of", "visits_table"]

#: The row that others are compared with.
SOURCE = "source"

_LEGEND = (
    "Below source: in how many visits to a corruption the row has fewer images right than the source model has of the "
    "same images, and where by most. Single visits are small: some are below by chance."
)
_MARK = (
    "Visits of all corruptions: mean accuracy in percent; ↓ is below the source model's mean of that visit."
)

_CSV_COLUMNS = [
    *("dataset", "model", "foundation", "protocol", "severity", "method", "corruption", "visit", "seeds"),
    *("accuracy", "source"),
]


@dataclass(frozen=True)
class VisitRow:
    """What a method had in each visit.

    Attributes
    ----------
    accuracies : dict of tuple to list of float
        In percent, by corruption and visit (from 1), of each seed.
    below : dict of tuple to list of float
        The same, as points behind the source model; nothing where that has no cell.
    means : tuple of float
        Of each visit, over corruptions (clean images only where there is nothing else) and seeds; empty where some
        corruption is not measured or the method does not apply.
    """

    accuracies: Mapping[tuple[str, int], Sequence[float]]
    below: Mapping[tuple[str, int], Sequence[float]]
    means: tuple[float, ...]

    @property
    def worst(self) -> int:
        """The visit with the lowest mean, the first of them; 0 where there are no means."""
        return int(np.argmin(self.means)) + 1 if self.means else 0

    @property
    def count(self) -> tuple[int, int]:
        """In how many visits the row is below the source model, and of how many that is known."""
        found = [points for each in self.below.values() for points in each]
        return sum(points > 0 for points in found), len(found)

    @property
    def most(self) -> tuple[float, str, int]:
        """By how many points at most, and at which corruption and visit; 0 where it never is."""
        found = [(max(points), *where) for where, points in self.below.items() if points]
        return max(found, key=lambda one: one[0], default=(0.0, "", 0))


@dataclass(frozen=True)
class VisitTable:
    """The visits of one pair of models, protocol and severity.

    Attributes
    ----------
    dataset, model, foundation, protocol : str
        What it is of.
    severity : int
        0 where nothing is corrupted.
    rows : dict of str to VisitRow
        By method.
    """

    dataset: str
    model: str
    foundation: str
    protocol: str
    severity: int
    rows: Mapping[str, VisitRow]

    @property
    def visits(self) -> int:
        """How many there are to a corruption, at most."""
        return max((visit for row in self.rows.values() for _, visit in row.accuracies), default=1)

    @property
    def title(self) -> str:
        """What it is of, in words."""
        severity = f", severity {self.severity}" if self.severity else ""
        return f"{self.dataset}, {self.protocol}{severity}: {self.model} (foundation {self.foundation})"

    @property
    def legend(self) -> str:
        """What its columns mean, in words."""
        return f"{_MARK} {_LEGEND}" if self.visits > 1 else _LEGEND


def visits_of(cells: Sequence[Mapping[str, Any]]) -> list[VisitTable]:
    """Sort the visits of cells into tables.

    Parameters
    ----------
    cells : sequence of mapping
        As ``results.json`` has them, of earlier versions too; a cell without ``visits`` is one visit.

    Returns
    -------
    list of VisitTable
        In the order of their first cells; none of other protocols than continual and recurring ones.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if sequence(cell["protocol"]) in {"continual", "recurring"}:
            what = tuple(cell[n] for n in ("dataset", "model", "foundation", "protocol", "severity"))
            groups.setdefault(what, []).append(cell)
    tables = []
    for (dataset, model, foundation, protocol, severity), members in groups.items():
        source = {
            (cell["corruption"], cell["seed"]): _accuracies(cell)
            for cell in members
            if cell["method"] == SOURCE
        }
        corruptions = averaged(list(dict.fromkeys(cell["corruption"] for cell in members)))
        rows = {
            method: _row([cell for cell in members if cell["method"] == method], source, corruptions)
            for method in dict.fromkeys(cell["method"] for cell in members)
        }
        tables.append(VisitTable(dataset, model, foundation, protocol, severity, rows))
    return tables


def _accuracies(cell: Mapping[str, Any]) -> list[float]:
    """Return the accuracy of each visit; none where the method does not apply."""
    if cell["accuracy"] is None:
        return []
    found: list[float] = cell.get("visits") or [cell["accuracy"]]
    return found


def _row(
    cells: Sequence[Mapping[str, Any]],
    source: Mapping[tuple[str, int], Sequence[float]],
    corruptions: Sequence[str],
) -> VisitRow:
    accuracies: dict[tuple[str, int], list[float]] = {}
    below: dict[tuple[str, int], list[float]] = {}
    for cell in cells:
        reference = source.get((cell["corruption"], cell["seed"]), ())
        for visit, accuracy in enumerate(_accuracies(cell), 1):
            where = cell["corruption"], visit
            accuracies.setdefault(where, []).append(accuracy)
            if visit <= len(reference):
                below.setdefault(where, []).append(reference[visit - 1] - accuracy)
    seeds = len({cell["seed"] for cell in cells})
    visits = max((visit for _, visit in accuracies), default=0)
    complete = all(
        len(accuracies.get(where, ())) == seeds for where in product(corruptions, range(1, visits + 1))
    )
    means = [
        float(np.mean([accuracies[name, visit] for name in corruptions]))
        for visit in (range(1, visits + 1) if complete else ())
    ]
    return VisitRow(accuracies, below, tuple(means))


def _texts(table: VisitTable) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the rows of a table, as text."""
    several = table.visits > 1
    means = [*map(str, range(1, table.visits + 1)), "worst"] if several else []
    source = table.rows[SOURCE].means if SOURCE in table.rows else ()
    rows = []
    for method, row in table.rows.items():
        texts = [method]
        if several and row.means:
            marked = [
                f"{mean:.1f}{'↓' if place < len(source) and mean < source[place] else ''}"
                for place, mean in enumerate(row.means)
            ]
            marked += [""] * (table.visits - len(marked))
            texts += [*marked, f"{min(row.means):.1f} ({row.worst})"]
        elif several:
            texts += ["" if row.accuracies else "n/a"] * len(means)
        rows.append([*texts, *_behind(method, row, several=several)])
    return ["method", *means, "below source", "by most"], rows


def _behind(method: str, row: VisitRow, *, several: bool) -> tuple[str, str]:
    """Return in how many visits a row is below the source model, and where by most."""
    below, known = row.count
    if method == SOURCE or not known:
        return "", ""
    points, name, visit = row.most
    where = f"{SHORT.get(name, name)} {visit}" if several else SHORT.get(name, name)
    return f"{below} of {known}", f"{points:.1f} ({where})" if below else ""


def visits_table(table: VisitTable) -> Table:
    """Return a table for the terminal; its `VisitTable.legend` belongs below it."""
    headings, rows = _texts(table)
    shown = Table(
        title=f"Visits; {table.title}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        title_justify="left",
    )
    shown.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown


def visits_markdown(tables: Sequence[VisitTable]) -> list[str]:
    """Return the lines of all tables as Markdown, a section for each."""
    lines: list[str] = []
    for table in tables:
        lines += ["", f"## Visits; {table.title}", "", *markdown_table(*_texts(table)), "", table.legend]
    return lines


def visits_csv(path: Path, tables: Sequence[VisitTable]) -> None:
    """Write one line for each method, corruption and visit: its accuracy and the source model's, means over seeds."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for table in tables:
        what = (table.dataset, table.model, table.foundation, table.protocol, table.severity)
        for method, row in table.rows.items():
            for (name, visit), found in row.accuracies.items():
                accuracy = float(np.mean(found))
                behind = row.below.get((name, visit), ())
                source = f"{accuracy + float(np.mean(behind)):.4f}" if len(behind) == len(found) else ""
                writer.writerow([*what, method, name, visit, len(found), f"{accuracy:.4f}", source])
    write_atomic(path, buffer.getvalue().encode())

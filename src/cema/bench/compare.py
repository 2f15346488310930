r"""What changed from one benchmark to another, and whether it is more than chance.

Cells are paired by what they are of: method, models, data, corruption, severity, protocol and seed. For n pairs of
seeds with differences :math:`d_s` in accuracy,

.. math:: \mathrm{SE}^2 = \frac{p_A (1 - p_A)}{N_A} + \frac{p_B (1 - p_B)}{N_B} + \frac{s_d^2}{n}

with N the images of one seed, p the mean accuracies and :math:`s_d` the standard deviation of the differences (0 for
one seed). The first two terms do not shrink with seeds and visits, which show the same images in other orders. They
take the two sets of images for independent; where both saw the same ones the difference is known better than this
says. The error of an average over k corruptions is :math:`\sqrt{\sum \mathrm{SE}^2} / k`.

Where photographs gave several images each, the square of the standard error over photographs
(`cema.bench.standard_error`) takes the place of p (1 - p) / N. All corruptions then show the same few photographs, so
the error of an average is taken for the mean of the errors, which is the most it can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from cema.bench.standard_error import binomial_error
from cema.bench.tables import AVERAGE, averaged
from cema.errors import FormatError

__all__ = ["Comparison", "Difference", "compare", "comparison_table"]

_IDENTITY = ("method", "model", "foundation", "dataset", "protocol", "severity", "corruption", "seed")
_GROUP = ("dataset", "model", "foundation", "protocol", "severity")
# Beyond this many standard errors a difference is called one.
_BEYOND = 2.0


@dataclass(frozen=True)
class Difference:
    """How much better the second benchmark is.

    Attributes
    ----------
    points : float
        Of accuracy, B minus A.
    error : float
        Its standard error.
    seeds : int
        Pairs of cells it is the mean of.
    """

    points: float
    error: float
    seeds: int

    @property
    def beyond(self) -> bool:
        """Whether it is more than two standard errors."""
        return abs(self.points) > _BEYOND * self.error


@dataclass(frozen=True)
class Comparison:
    """Two benchmarks beside each other.

    Attributes
    ----------
    groups : dict
        By dataset, model, foundation, protocol and severity: by method, by corruption (and `AVERAGE`) the difference.
    only_in_a, only_in_b : int
        Cells that the other one has not.
    """

    groups: Mapping[tuple[Any, ...], Mapping[str, Mapping[str, Difference]]]
    only_in_a: int
    only_in_b: int

    def all(self) -> list[Difference]:
        """Return every difference of a method on a corruption."""
        return [
            difference
            for rows in self.groups.values()
            for row in rows.values()
            for name, difference in row.items()
            if name != AVERAGE
        ]


def compare(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compare the cells of two benchmarks.

    Parameters
    ----------
    a, b : sequence of mapping
        As ``results.json`` has them. Cells of methods that do not apply are left out.

    Returns
    -------
    Comparison
        Of the cells that both have.

    Raises
    ------
    FormatError
        If they have none in common, or a cell lacks something.
    """
    first, second = _by_identity(a), _by_identity(b)
    common = [identity for identity in first if identity in second]
    if not common:
        raise FormatError(
            f"the two have no cell in common: the first has {_contents(a)}; the second has {_contents(b)}"
        )
    grouped: dict[
        tuple[Any, ...], dict[str, dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]]]
    ] = {}
    for identity in common:
        cell = first[identity]
        rows = grouped.setdefault(tuple(cell[name] for name in _GROUP), {})
        row = rows.setdefault(cell["method"], {})
        row.setdefault(cell["corruption"], []).append((cell, second[identity]))
    groups = {
        group: {
            method: _with_average({c: _difference(p) for c, p in row.items()}, few=_few_photographs(row))
            for method, row in rows.items()
        }
        for group, rows in grouped.items()
    }
    return Comparison(groups, len(first) - len(common), len(second) - len(common))


def _by_identity(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    try:
        return {
            tuple(cell[name] for name in _IDENTITY): cell for cell in cells if cell["accuracy"] is not None
        }
    except (KeyError, TypeError) as error:
        raise FormatError(f"a cell has no {error}; give the results.json of a benchmark") from error


def _difference(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Difference:
    one = np.array([a["accuracy"] for a, _ in pairs])
    other = np.array([b["accuracy"] for _, b in pairs])
    differences = other - one
    variance = _sampling([a for a, _ in pairs]) + _sampling([b for _, b in pairs])
    if len(pairs) > 1:
        variance += float(differences.var(ddof=1)) / len(pairs)
    return Difference(float(differences.mean()), math.sqrt(variance), len(pairs))


def _sampling(cells: Sequence[Mapping[str, Any]]) -> float:
    """Return the variance of the mean accuracy of all seeds that the choice of images makes, in squared points."""
    errors = [float(cell["standard_error"]) for cell in cells if cell.get("standard_error") is not None]
    if len(errors) == len(cells):
        return float(np.mean(np.square(errors)))
    accuracy = float(np.mean([cell["accuracy"] for cell in cells]))
    independent = float(np.mean([cell.get("photographs") or _images(cell) for cell in cells]))
    return binomial_error(accuracy, independent) ** 2


def _images(cell: Mapping[str, Any]) -> int:
    """Return how many different images a cell is of: further visits show the same ones again."""
    images: int = cell.get("images", cell["samples"])
    return images


def _few_photographs(row: Mapping[str, Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]]) -> bool:
    return any("photographs" in cell for pairs in row.values() for pair in pairs for cell in pair)


def _with_average(row: dict[str, Difference], *, few: bool) -> dict[str, Difference]:
    found = [row[name] for name in averaged(list(row))]
    points = sum(difference.points for difference in found) / len(found)
    errors = [difference.error for difference in found]
    error = (sum(errors) if few else math.sqrt(sum(error**2 for error in errors))) / len(found)
    return {**row, AVERAGE: Difference(points, error, min(difference.seeds for difference in found))}


def _contents(cells: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for name in ("dataset", "model", "method", "severity", "protocol"):
        values = sorted({str(cell.get(name)) for cell in cells})
        parts.append(f"{name} {', '.join(values)}")
    return "; ".join(parts)


def comparison_table(group: tuple[Any, ...], rows: Mapping[str, Mapping[str, Difference]]) -> Table:
    """Return a table of differences in points; those beyond two standard errors are marked."""
    dataset, model, foundation, protocol, severity = group
    table = Table(
        title=f"{dataset}, {protocol}, severity {severity}: {model} (foundation {foundation})",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        title_justify="left",
    )
    columns = list(dict.fromkeys(name for row in rows.values() for name in row if name != AVERAGE))
    table.add_column("corruption", no_wrap=True)
    for method in rows:
        table.add_column(method, justify="right", no_wrap=True)
    for name in (*columns, AVERAGE):
        if name == AVERAGE:
            table.add_section()
        table.add_row(name, *(_text(row.get(name)) for row in rows.values()))
    return table


def _text(difference: Difference | None) -> str:
    if difference is None:
        return ""
    text = f"{difference.points:+.1f}±{difference.error:.1f}"
    return f"[bold]{text}*[/bold]" if difference.beyond else f"{text} "

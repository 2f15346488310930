"""Visits to corruptions, beside the source model's: against what a hand counts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cema.bench.plots import write_plots
from cema.bench.progress import print_wide
from cema.bench.results import read_results
from cema.bench.tables import summarise
from cema.bench.visits import visits_csv, visits_markdown, visits_of, visits_table

Cell = Callable[..., dict[str, Any]]
RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def visited(cell: Cell) -> Callable[..., dict[str, Any]]:
    """Return a cell of so many visits."""

    def make(*visits: float, **changes: Any) -> dict[str, Any]:
        mean = sum(visits) / len(visits)
        return cell(
            **{"protocol": "recurring", "accuracy": mean, "visits": [*visits], "images": 100} | changes
        )

    return make


@pytest.fixture
def cells(visited: Cell) -> list[dict[str, Any]]:
    """Return three rows on fog, snow and clean images; Tent is below the source model in four of nine visits."""
    return [
        visited(40.0, 40.0, 40.0),
        visited(60.0, 60.0, 60.0, corruption="snow"),
        visited(90.0, 90.0, 90.0, corruption="clean"),
        visited(50.0, 40.0, 30.0, method="tent"),
        visited(70.0, 59.0, 35.0, method="tent", corruption="snow"),
        visited(91.0, 90.0, 70.0, method="tent", corruption="clean"),
        visited(41.0, 41.0, 41.0, method="bn"),
        visited(61.0, 61.0, 61.0, method="bn", corruption="snow"),
        visited(90.0, 90.0, 90.0, method="bn", corruption="clean"),
    ]


def test_visits_below_the_source_model_are_counted(cells: list[dict[str, Any]]) -> None:
    (table,) = visits_of(cells)
    tent, bn = table.rows["tent"], table.rows["bn"]
    assert table.visits == 3
    # Fog 3, snow 2 and 3, clean 3: as many right is not below.
    assert tent.count == (4, 9)
    assert tent.most == (25.0, "snow", 3)
    assert bn.count == (0, 9)
    assert table.rows["source"].count == (0, 9)
    # Clean images are no part of the mean, but of the count.
    assert tent.means == (60.0, 49.5, 32.5)
    assert (tent.worst, bn.worst) == (3, 1)


def test_the_table_says_it(cells: list[dict[str, Any]]) -> None:
    lines = visits_markdown(visits_of(cells))
    assert "## Visits; d, recurring, severity 3: m (foundation f)" in lines
    assert "| method | 1 | 2 | 3 | worst | below source | by most |" in lines
    assert "| source | 50.0 | 50.0 | 50.0 | 50.0 (1) |  |  |" in lines
    assert "| tent | 60.0 | 49.5↓ | 32.5↓ | 32.5 (3) | 4 of 9 | 25.0 (Snow 3) |" in lines
    assert "| bn | 51.0 | 51.0 | 51.0 | 51.0 (1) | 0 of 9 |  |" in lines
    console = Console(width=200, file=io.StringIO())
    (table,) = visits_of(cells)
    print_wide(console, visits_table(table))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "32.5↓" in text
    assert "4 of 9" in text


def test_every_seed_and_visit_is_compared_with_its_own(visited: Cell) -> None:
    found = [
        visited(*visits, method=method, seed=seed)
        for seed, method, visits in (
            (0, "source", (50.0, 50.0)),
            (1, "source", (52.0, 54.0)),
            (0, "tent", (51.0, 49.0)),
            (1, "tent", (51.0, 53.0)),
        )
    ]
    (table,) = visits_of(found)
    assert table.rows["tent"].count == (3, 4)
    assert table.rows["tent"].most == (1.0, "fog", 1)
    assert table.rows["tent"].means == (51.0, 51.0)
    # The source's means are 51 and 52: equal is not below.
    assert "| tent | 51.0 | 51.0↓ | 51.0 (1) | 3 of 4 | 1.0 (Fog 1) |" in visits_markdown([table])


def test_continual_is_one_visit_and_old_files_have_it_too(cell: Cell) -> None:
    names = ("fog", "snow", "frost")
    made = [cell(protocol="continual", corruption=n, accuracy=50.0) for n in names]
    made += [
        cell(protocol="continual", method="tent", corruption=n, accuracy=a)
        for n, a in zip(names, (60.0, 49.0, 20.0), strict=True)
    ]
    (table,) = visits_of(made)
    assert table.rows["tent"].count == (2, 3)
    lines = visits_markdown([table])
    assert "| method | below source | by most |" in lines
    assert "| tent | 2 of 3 | 30.0 (Frost) |" in lines
    assert not any("↓" in line for line in lines)


def test_what_is_missing_is_not_made_up(visited: Cell) -> None:
    nothing = dict.fromkeys(("accuracy", "uploads", "bytes_up", "visits"))
    found = [
        visited(50.0, 50.0),
        visited(40.0, 60.0, method="tent"),
        visited(40.0, 40.0, method="tent", corruption="snow"),
        visited(45.0, 55.0, method="bn", corruption="snow"),
        visited(50.0, 50.0, method="onda") | nothing | {"note": "needs BatchNorm", "curve": []},
    ]
    (table,) = visits_of(found)
    # Tent's snow has nothing to be compared with, and the others have no mean over both corruptions.
    assert table.rows["tent"].count == (1, 2)
    assert table.rows["tent"].means == (40.0, 50.0)
    assert (table.rows["bn"].means, table.rows["bn"].count) == ((), (0, 0))
    lines = visits_markdown([table])
    assert "| tent | 40.0 | 50.0 | 40.0 (1) | 1 of 2 | 10.0 (Fog 1) |" in lines
    assert "| bn |  |  |  |  |  |" in lines
    assert "| onda | n/a | n/a | n/a |  |  |" in lines


@pytest.mark.parametrize("protocol", ["reset", "correlated", "gradual", "mixed", "mixed-correlated"])
def test_other_protocols_have_no_such_table(visited: Cell, protocol: str) -> None:
    assert visits_of([visited(50.0, 40.0, protocol=protocol)]) == []


def test_the_file_has_a_line_for_each_visit(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    visits_csv(tmp_path / "visits.csv", visits_of(cells))
    rows = list(csv.DictReader((tmp_path / "visits.csv").read_text().splitlines()))
    assert len(rows) == 27
    (found,) = [
        row for row in rows if (row["method"], row["corruption"], row["visit"]) == ("tent", "snow", "3")
    ]
    assert (float(found["accuracy"]), float(found["source"]), found["seeds"]) == (35.0, 60.0, "1")


def test_visits_are_drawn(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    paths = write_plots(tmp_path, summarise(cells), cells)
    assert {path.stem for path in paths} == {"accuracy", "uploads", "visits"}
    assert "<!-- visit to every corruption -->" in (tmp_path / "visits.svg").read_text()


def test_published_results_of_earlier_versions_are_still_read() -> None:
    files = sorted(RESULTS.glob("*/results.json"))
    assert files
    for path in files:
        results = read_results(path)
        tables = summarise(results["cells"])
        assert tables
        assert all(
            entry.images == entry.samples for t in tables for r in t.rows.values() for entry in r.values()
        )
        assert visits_of(results["cells"]) == []

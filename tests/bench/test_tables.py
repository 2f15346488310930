"""Tables, CSV and plots say what the cells say."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cema.bench.plots import write_plots
from cema.bench.progress import print_wide
from cema.bench.tables import AVERAGE, console_table, summarise, write_csv, write_markdown

Cell = Callable[..., dict[str, Any]]
Grid = Callable[[Sequence[float]], list[dict[str, Any]]]
RESULTS = {"settings": {"data": "d", "protocol": "reset", "seeds": [0, 1]}}


@pytest.fixture
def cells(cell: Cell) -> list[dict[str, Any]]:
    """Return two methods on two corruptions with two seeds, one of them uploading half, and one that does not apply."""
    made = []
    for seed in (0, 1):
        for place, name in enumerate(("fog", "snow")):
            common = {"corruption": name, "seed": seed}
            made.append(cell(**common, accuracy=40.0 + 10 * place + 2 * seed))
            made.append(
                cell(**common, method="tent", accuracy=60.0 + 10 * place, uploads=50, bytes_up=5000 + place)
            )
            nothing = dict.fromkeys(("accuracy", "uploads", "bytes_up"))
            made.append(cell(**common, method="onda", **nothing, note="needs BatchNorm", curve=[]))
    return made


def test_means_and_deviations_by_hand(cells: list[dict[str, Any]]) -> None:
    (table,) = summarise(cells)
    assert table.corruptions == ("fog", "snow")
    assert list(table.rows) == ["source", "tent", "onda"]
    fog, average = table.rows["source"]["fog"], table.rows["source"][AVERAGE]
    assert (fog.accuracy, fog.deviation, fog.seeds) == (41.0, pytest.approx(math.sqrt(2)), 2)
    # Seed averages are 45 and 47.
    assert (average.accuracy, average.deviation) == (46.0, pytest.approx(math.sqrt(2)))
    tent = table.rows["tent"][AVERAGE]
    assert (tent.uploads, tent.share, tent.bytes_up) == (50.0, 50.0, 5000.5)
    assert table.rows["onda"][AVERAGE].accuracy is None
    assert table.notes() == ["onda: needs BatchNorm"]


def test_one_seed_has_a_binomial_error(grid: Grid) -> None:
    (table,) = summarise(grid([50.0, 80.0]))
    assert table.rows["source"]["fog"].deviation is None
    assert table.rows["source"]["fog"].error == 5.0
    assert table.rows["source"]["snow"].error == pytest.approx(4.0)


def test_how_much_may_be_chance_against_a_hand(cell: Cell) -> None:
    names = ("clean", "fog", "snow", "frost", "contrast")
    rows = {"source": 60.0, "tent": 90.0}
    (table,) = summarise(
        [cell(corruption=n, method=m, accuracy=a, samples=400) for n in names for m, a in rows.items()]
    )
    # The widest of the two: 60 %, sqrt(0.6 * 0.4 / 400) = 0.02449; two of them, 95 %: 6.79; four columns: half.
    assert table.chance().startswith(
        "400 images per cell: differences below 6.8 points, in the average below 3.4 may be chance (95 %"
    )
    (single,) = summarise([cell(accuracy=60.0, samples=400)])
    assert "below 6.8 points may be chance" in single.chance()


def test_seeds_do_not_make_a_difference_surer(cell: Cell) -> None:
    (once,) = summarise([cell(seed=0)])
    (often,) = summarise([cell(seed=s) for s in range(9)])
    assert once.chance() == often.chance()


def test_nor_do_visits(cell: Cell) -> None:
    (once,) = summarise([cell(samples=100)])
    (often,) = summarise([cell(samples=1000, images=100)])
    assert once.chance() == often.chance()
    assert often.rows["source"]["fog"].error == once.rows["source"]["fog"].error == 5.0
    assert often.rows["source"]["fog"].samples == 1000


def test_the_stated_difference_is_exceeded_by_chance_in_one_case_of_twenty(cell: Cell) -> None:
    (table,) = summarise([cell(accuracy=50.0, samples=500)])
    points = float(table.chance().split("below ")[1].split()[0])
    one, other = np.random.default_rng(0).binomial(500, 0.5, (2, 20_000)) / 5.0
    assert np.mean(np.abs(one - other) >= points) == pytest.approx(0.05, abs=0.01)


def test_where_nothing_applies_nothing_is_said_of_chance(cell: Cell) -> None:
    (table,) = summarise([cell(accuracy=None, uploads=None, bytes_up=None)])
    assert table.chance() == ""


def test_clean_images_are_no_part_of_the_average(cell: Cell) -> None:
    cells = [cell(corruption=n, accuracy=a) for n, a in (("clean", 90.0), ("fog", 50.0), ("snow", 60.0))]
    (table,) = summarise(cells)
    assert table.columns == ("clean", "fog", "snow", AVERAGE)
    assert table.rows["source"][AVERAGE].accuracy == 55.0
    (only,) = summarise(cells[:1])
    assert only.rows["source"][AVERAGE].accuracy == 90.0


def test_an_incomplete_row_has_no_average(cells: list[dict[str, Any]]) -> None:
    (table,) = summarise(cells[:-1])
    assert AVERAGE in table.rows["tent"]
    assert AVERAGE not in table.rows["onda"]


def test_a_table_for_each_severity_and_pair(cell: Cell) -> None:
    tables = summarise([cell(), cell(severity=5), cell(model="other"), cell(method="bn")])
    assert [(t.model, t.severity, list(t.rows)) for t in tables] == [
        ("m", 3, ["source", "bn"]),
        ("m", 5, ["source"]),
        ("other", 3, ["source"]),
    ]


def test_markdown_csv_and_table_agree(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    tables = summarise(cells)
    write_markdown(tmp_path / "tables.md", tables, RESULTS)
    write_csv(tmp_path / "tables.csv", tables)
    text = (tmp_path / "tables.md").read_text()
    assert "| method | Fog | Snow | Avg. |" in text
    assert "| source | 41.0 ±1.4 | 51.0 ±1.4 | 46.0 ±1.4 |" in text
    assert "| tent | **60.0 ±0.0** | **70.0 ±0.0** | **65.0 ±0.0** |" in text
    assert "| onda | n/a | n/a | n/a |" in text
    assert "| tent | 100 | 50 | 50.0 | 5000 | 100 |" in text
    assert "* onda: needs BatchNorm" in text
    assert tables[0].chance() in text
    rows = list(csv.DictReader((tmp_path / "tables.csv").read_text().splitlines()))
    assert len(rows) == 9
    by_name = {(row["method"], row["corruption"]): row for row in rows}
    assert float(by_name["source", "fog"]["accuracy"]) == 41.0
    assert float(by_name["tent", AVERAGE]["bytes_up"]) == 5000.5
    assert by_name["onda", "snow"]["accuracy"] == ""
    assert by_name["onda", "snow"]["note"] == "needs BatchNorm"


def test_a_wide_table_is_not_cut_off(cell: Cell) -> None:
    names = [f"corruption-{i}" for i in range(15)]
    (table,) = summarise([cell(corruption=name, accuracy=12.3 + i) for i, name in enumerate(names)])
    console = Console(width=60, file=io.StringIO())
    print_wide(console, console_table(table))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(f"{12.3 + i:.1f}" in text for i in range(15))
    assert "…" not in text
    assert console.width == 60


@pytest.mark.parametrize(
    ("protocol", "names"),
    [("reset", {"accuracy", "uploads"}), ("continual", {"accuracy", "uploads", "stream"})],
)
def test_plots_are_pictures(
    tmp_path: Path, cells: list[dict[str, Any]], protocol: str, names: set[str]
) -> None:
    cells = [cell | {"protocol": protocol} for cell in cells]
    paths = write_plots(tmp_path, summarise(cells), cells)
    assert {path.name for path in paths} == {f"{n}.{suffix}" for n in names for suffix in ("png", "svg")}
    for path in paths:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start


def test_points_that_lie_together_share_a_label_and_others_do_not(
    tmp_path: Path, cells: list[dict[str, Any]]
) -> None:
    one = next(cell for cell in cells if cell["accuracy"] is not None)
    places = {"bn": (60.0, 0), "onda": (59.9, 0), "source": (40.0, 0), "eta": (60.0, 90_000)}
    made = [
        one | {"method": method, "accuracy": accuracy, "bytes_up": size}
        for method, (accuracy, size) in places.items()
    ]
    write_plots(tmp_path, summarise(made), made)
    # matplotlib writes into an SVG, as a comment, each text that it draws as outlines.
    labels = {line.strip() for line in (tmp_path / "uploads.svg").read_text().splitlines() if "<!--" in line}
    assert {"<!-- bn, onda -->", "<!-- source -->", "<!-- eta -->"} <= labels


def test_nothing_that_applies_makes_no_plot(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    only = [cell for cell in cells if cell["method"] == "onda"]
    assert write_plots(tmp_path, summarise(only), only) == []

"""Tables on narrow terminals: what stands in a cell is not hidden."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cema.cli.tables import FittedTable, Newest, out

ROW = ("camera-1", "yard", "215.9 kB", "100.0%", "1,106")


def drawn(table: FittedTable, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def fitted() -> FittedTable:
    table = FittedTable("name", "cohort", "sent", "selected", "samples")
    table.add_row(*ROW)
    return table


def test_a_table_has_room_around_its_cells_where_there_is_room() -> None:
    (row,) = [line for line in drawn(fitted(), 80) if "yard" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == list(ROW)
    assert "│ yard " in row


@pytest.mark.parametrize("width", [48, 30, 20])
def test_a_narrow_table_hides_nothing(width: int) -> None:
    lines = drawn(fitted(), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    cells = zip(*(line.split("│")[1:-1] for line in lines if "│" in line), strict=True)
    words = ["".join(part.strip() for part in parts).replace(" ", "") for parts in cells]
    assert words == [text.replace(" ", "") for text in ROW]


def test_a_trend_keeps_its_end() -> None:
    table = FittedTable("name", "trend")
    table.add_row("yard", Newest("▁" * 30 + "█", least=8))
    assert "█" in "".join(drawn(table, 24))
    assert "█" in "".join(drawn(table, 80))


def test_files_get_wide_lines_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert out().width == 200
    monkeypatch.setenv("COLUMNS", "70")
    assert out().width == 70

"""Drawn samples in the SQLite store, beside what every store must do."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cema._util.proportion import Weighted
from cema.cloud.store.draws import RandomCount, random_agreement_members
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.store.sqlite_draws import TABLES
from cema.formats.draw import Draw
from cema.testing.store_data import numbered_sample

ALONE = Draw(0.01, False)


def opened(folder: Path, max_bytes: int = 8 * 2**20) -> SqliteStore:
    store = SqliteStore(folder / "cema.db", max_bytes=max_bytes)
    store.open_cohort("north", base="b")
    return store


def put(store: SqliteStore, *numbers: int, draws: dict[int, Draw] | None = None) -> None:
    samples = [numbered_sample(number) for number in numbers]
    store.put("north", samples, device="d", now=1.0, max_backlog=10**6, draws=draws)


def drop_tables(folder: Path) -> None:
    """Leave a store as an older program made it."""
    with sqlite3.connect(folder / "cema.db") as connection:
        for name, statement in TABLES.items():
            if statement.startswith("CREATE TABLE"):
                connection.execute(f"DROP TABLE {name}")
    connection.close()


def test_a_store_from_before_gets_the_tables(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        put(store, 1)
    drop_tables(tmp_path)
    with closing(opened(tmp_path)) as store:
        put(store, 2, 3, draws={0: ALONE})
        assert [found.image for found in store.take_draws("north", 9)] == [numbered_sample(2).image]
        assert store.backlog("north").samples == 2


def test_a_store_that_cannot_have_them_takes_drawn_samples_for_selected_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cema.cloud.store.sqlite_draws.TABLES", {"draws": "CREATE TABLE draws (no such thing"}
    )
    with closing(opened(tmp_path)) as store:
        put(store, 2, 3, draws={0: ALONE, 1: Draw(0.5, True)})
        assert store.backlog("north").samples == 2
        assert (store.take_draws("north", 9), store.random_agreement_over_time("north")) == ([], [])
        assert store.random_agreement_by_version("north") == []
        assert random_agreement_members(store, "north") == {}


def test_a_draw_is_remembered_as_long_as_the_cap_allows(tmp_path: Path) -> None:
    with closing(opened(tmp_path, 2**20)) as store:
        for number in range(200):
            put(store, number, draws={0: ALONE})
            (found,) = store.take_draws("north", 9)
            assert store.measured_draws("north", [found.number], [], now=1.0)
        put(store, 199, 198, 0, draws={0: ALONE, 1: ALONE, 2: ALONE})
        again = [found.image for found in store.take_draws("north", 9)]
        assert again == [numbered_sample(0).image], "the oldest was forgotten"


def test_old_minutes_go_where_the_cap_is_small(tmp_path: Path) -> None:
    sums = Weighted.of([(0.5, True)])
    with closing(opened(tmp_path, 2**20)) as store:
        for minute in range(200):
            store.measured_draws("north", [], [RandomCount(1, "running", sums)], now=60.0 * minute)
        kept = [point.at / 60 for point in store.random_agreement_over_time("north")]
        assert kept == list(range(200 - len(kept), 200))
        assert len(kept) == 64
        assert store.random_agreement_by_version("north")[0].models["running"].samples == 200

"""Numbers that are kept instead of counted: always what a count would give, and read without one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from store_counts import check_tallies

from cema.cloud.store.base import UpdateTag
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import StoreError
from cema.testing.store_case import MANY, put
from cema.testing.store_data import numbered_sample, numbered_update


def filled(folder: Path, *, max_bytes: int = 2**22) -> SqliteStore:
    """Return a store of two cohorts with samples, some processed and some evicted."""
    store = SqliteStore(folder / "cema.db", max_bytes=max_bytes)
    for name in ("north", "south"):
        store.open_cohort(name, base="0" * 64)
        put(store, [numbered_sample(i, 8000) for i in range(40)], name)
    seqs = store.sequence("north", after=0, limit=MANY)
    store.commit_step("north", seqs[29], b"", epoch=store.claim("north").epoch, now=1.0)
    return store


def test_numbers_follow_uploads_steps_and_evictions(tmp_path: Path) -> None:
    with closing(filled(tmp_path, max_bytes=5 * 2**19)) as store:
        check_tallies(store)
        for i in range(100, 300, 8):
            put(store, [numbered_sample(i + j, 8000) for j in range(8)])
            check_tallies(store)
        assert store.counters("north")["evicted.byte_cap"] > 0


def test_a_step_that_is_refused_changes_no_number(tmp_path: Path) -> None:
    with closing(filled(tmp_path)) as store:
        before, epoch = store.status("north"), store.claim("north").epoch
        wrong = replace(numbered_update(1), digest="0" * 64)
        with pytest.raises(StoreError, match="digest"):
            store.commit_step("north", before["last_sample"], b"", wrong, epoch=epoch, now=1.0)
        assert store.status("north") == before
        check_tallies(store)


def test_a_store_from_before_is_counted_once_when_it_is_opened(tmp_path: Path) -> None:
    store = filled(tmp_path)
    before = store.status("north")
    store.close()
    with closing(sqlite3.connect(tmp_path / "cema.db", isolation_level=None)) as connection:
        connection.execute("DROP TABLE tallies")
        connection.execute("PRAGMA user_version=1")
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=2**22)) as store:
        assert store.status("north") == before
        check_tallies(store)
        put(store, [numbered_sample(200)])
        check_tallies(store)


def test_a_store_from_before_that_is_full_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "cema.db"
    store = filled(tmp_path)
    with store.database.write() as connection:
        connection.execute("DROP TABLE tallies")
        connection.execute("PRAGMA user_version=1")
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("VACUUM")  # no free page is left
    cap = path.stat().st_size
    with closing(SqliteStore(path, max_bytes=cap)) as store:
        check_tallies(store)
        assert store.database._writer.execute("PRAGMA max_page_count").fetchone()[0] * 4096 <= cap + 8192
        assert path.stat().st_size <= cap


def test_a_worker_that_starts_counts_what_an_older_program_has_written(tmp_path: Path) -> None:
    with closing(filled(tmp_path)) as store:
        with store.database.write() as connection:
            connection.execute("UPDATE cohorts SET cursor = cursor + 3 WHERE name = 'north'")
        assert store.status("north")["backlog"] == 10
        store.claim("north")
        assert store.status("north")["backlog"] == 7
        check_tallies(store)


def plans(store: SqliteStore, statements: list[str]) -> list[str]:
    """Return how SQLite finds the rows of statements."""
    found = []
    with store.database.write() as connection:
        for statement in statements:
            if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
                found += [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
    return found


def traced(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep every statement of every connection of a store from now on."""
    statements: list[str] = []
    database = store.database
    for connection in (database._writer, database._peeker, *database._idle):
        connection.set_trace_callback(statements.append)
    connect = database._connect

    def connect_traced() -> sqlite3.Connection:
        connection = connect()
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(database, "_connect", connect_traced)
    return statements


def test_neither_uploads_nor_the_status_count_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(filled(tmp_path)) as store:
        statements = traced(store, monkeypatch)
        put(store, [numbered_sample(300 + i) for i in range(4)])
        store.status("north")
        store.backlog("north")
        asked = list(statements)
        assert sum("samples" in statement for statement in asked) > 5
        assert not [statement for statement in asked if "count(" in statement.lower()]
        assert not [plan for plan in plans(store, asked) if "SCAN samples" in plan or "SCAN evicted" in plan]


def test_the_tag_and_a_token_are_one_indexed_row_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(filled(tmp_path)) as store:
        assert store.latest_tag("north") is None
        epoch = store.claim("north").epoch
        for version in range(1, 20):
            update = numbered_update(version)
            store.commit_step("north", 40, b"", update, epoch=epoch, now=1.0)
        devices = store.devices(["north"])
        token = devices.add("cam", cohort="north")
        statements = traced(store, monkeypatch)
        assert store.latest_tag("north") == UpdateTag(19, update.digest)
        assert devices.authenticate(token) == devices.list()[0]
        asked = statements[:2]
        assert len(statements) == 2 + 3  # list() begins, reads and ends
        assert [plan.partition(" USING")[0] for plan in plans(store, asked)] == [
            "SEARCH updates",
            "SEARCH devices",
        ]
        assert not [word for word in ("envelope", "artifacts", "payload") if word in " ".join(asked)]

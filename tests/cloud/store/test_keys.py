from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cema.cloud.store.keys import keys_of
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import StoreError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=2**22)) as store:
        yield store


def test_documents_are_kept_by_cohort_and_serial_number(store: SqliteStore, tmp_path: Path) -> None:
    keeper = keys_of(store)
    assert keeper.keys_documents("north") == []
    keeper.put_keys_document("north", 1, b"one")
    keeper.put_keys_document("north", 5, b"five")
    keeper.put_keys_document("south", 1, b"other")
    for serial in (1, 4, 5):
        with pytest.raises(StoreError, match="must follow document 5"):
            keeper.put_keys_document("north", serial, b"again")
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=2**22)) as again:
        assert again.keys_documents("north") == [b"one", b"five"]
        assert again.keys_documents("south") == [b"other"]
        assert again.keys_documents("west") == []


def test_a_store_from_before_gets_the_table_with_its_first_document(
    store: SqliteStore, tmp_path: Path
) -> None:
    def tables() -> set[str]:
        with closing(sqlite3.connect(tmp_path / "cema.db")) as connection:
            return {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}

    assert "keys_documents" not in tables()
    assert store.keys_documents("north") == []
    assert "keys_documents" not in tables()
    store.put_keys_document("north", 1, b"one")
    assert "keys_documents" in tables()


def test_a_store_that_keeps_none_says_so() -> None:
    with pytest.raises(StoreError, match="keeps no keys documents"):
        keys_of(object())  # type: ignore[arg-type]

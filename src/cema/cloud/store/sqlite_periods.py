"""Which base model a version is for, read in any transaction of the SQLite store."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from cema.cloud.store.bases import Period

__all__ = ["TABLES", "decode_periods", "read_periods"]

# One row for each cohort that has had several bases, with its newest notice; and one for each device that has named its
# own.
TABLES = {
    "cohort_bases": "CREATE TABLE cohort_bases (cohort TEXT PRIMARY KEY, periods TEXT NOT NULL, "
    "serial INTEGER NOT NULL, notice BLOB NOT NULL) WITHOUT ROWID",
    "device_bases": "CREATE TABLE device_bases (device TEXT PRIMARY KEY, cohort TEXT NOT NULL, base TEXT NOT NULL, "
    "at REAL NOT NULL) WITHOUT ROWID",
}


def read_periods(connection: sqlite3.Connection, cohort: str) -> tuple[Period, ...]:
    """Return the periods of a cohort, oldest first; empty also in a store without the table."""
    there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'cohort_bases'").fetchone()
    if there is None:
        return ()
    return decode_periods(
        connection.execute("SELECT periods FROM cohort_bases WHERE cohort = ?", (cohort,)).fetchone()
    )


def decode_periods(row: tuple[Any, ...] | None) -> tuple[Period, ...]:
    """Return the periods that a row holds in its first column."""
    return msgspec.json.decode(row[0], type=tuple[Period, ...]) if row else ()

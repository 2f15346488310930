"""The traces of updates in the SQLite store, see `cema.cloud.store.traces`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import Database
from cema.cloud.store.traces import DEVICES_TRACED, TRACES_KEPT, Fetch

__all__ = ["TraceTable", "dump_trace"]

# Bytes of the store's cap for each trace: with its devices it has some ten thousand.
BYTES_FOR_EACH = 2**19
# Samples after a version that are searched for the first of each device.
SAMPLES_SEARCHED = 20_000

TABLES = {
    "traces": "CREATE TABLE traces (cohort TEXT NOT NULL, version INTEGER NOT NULL, last_sample INTEGER NOT NULL, "
    "content TEXT NOT NULL, PRIMARY KEY (cohort, version))",
    "fetches": "CREATE TABLE fetches (cohort TEXT NOT NULL, version INTEGER NOT NULL, device TEXT NOT NULL, "
    "at REAL NOT NULL, PRIMARY KEY (cohort, version, device)) WITHOUT ROWID",
}


def dump_trace(trace: Mapping[str, Any] | None) -> str:
    """Return a trace as it is kept; empty for none."""
    return "" if trace is None else json.dumps(trace, allow_nan=False, separators=(",", ":"))


class TraceTable:
    """Traces of every cohort; the methods are those of `cema.cloud.store.traces.TraceStore`.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no tables, and keeps no traces until it is opened with room.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept = max(1, min(TRACES_KEPT, database.max_bytes // BYTES_FOR_EACH))
        self._there = make_tables(database, TABLES, what="traces of updates")

    def insert(self, connection: sqlite3.Connection, cohort: str, version: int, content: str) -> None:
        """Keep a trace, in the caller's transaction, and drop the oldest beyond the bound."""
        if not self._there or not content:
            return
        connection.execute(
            "INSERT OR REPLACE INTO traces (cohort, version, last_sample, content) VALUES (?1, ?2, "
            "coalesce((SELECT max(seq) FROM samples WHERE cohort = ?1), 0), ?3)",
            (cohort, version, content),
        )
        oldest = connection.execute(
            "SELECT version FROM traces WHERE cohort = ? ORDER BY version DESC LIMIT 1 OFFSET ?",
            (cohort, self._kept),
        ).fetchone()
        if oldest is not None:
            for table in ("traces", "fetches"):
                connection.execute(
                    f"DELETE FROM {table} WHERE cohort = ? AND version <= ?",  # noqa: S608
                    (cohort, oldest[0]),
                )

    def newest_versions(self, cohorts: Collection[str]) -> dict[str, int]:
        """Return the newest version by cohort, in one query; 0 before the first."""
        with self._database.read() as connection:
            found = dict(
                connection.execute("SELECT cohort, max(version) FROM updates GROUP BY cohort").fetchall()
            )
        return {cohort: found.get(cohort, 0) for cohort in cohorts}

    def note_fetches(self, fetches: Sequence[Fetch]) -> None:
        """Keep when devices were first given a version, of the first ones; a version without a trace is ignored."""
        if not self._there or not fetches:
            return
        with self._database.write() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO fetches (cohort, version, device, at) SELECT ?1, ?2, ?3, ?4 "
                "WHERE EXISTS (SELECT 1 FROM traces WHERE cohort = ?1 AND version = ?2) "
                "AND (SELECT count(*) FROM fetches WHERE cohort = ?1 AND version = ?2) < ?5",
                [(*fetch, DEVICES_TRACED) for fetch in fetches],
            )

    def fetched(self, cohort: str, device: str, limit: int) -> list[tuple[int, float]]:
        """Return the newest versions that a device was given, and when it first was."""
        if not self._there:
            return []
        with self._database.read() as connection:
            return connection.execute(
                "SELECT version, at FROM fetches WHERE cohort = ? AND device = ? ORDER BY version DESC LIMIT ?",
                (cohort, device, limit),
            ).fetchall()

    def traced(self, cohort: str) -> list[int]:
        """Return the versions whose traces are kept, oldest first."""
        if not self._there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT version FROM traces WHERE cohort = ? ORDER BY version", (cohort,)
            ).fetchall()
        return [row[0] for row in rows]

    def trace(self, cohort: str, version: int) -> dict[str, Any] | None:
        """Return the trace of a version with what is known of devices; None where none is kept."""
        if not self._there:
            return None
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT content, last_sample FROM traces WHERE cohort = ? AND version = ?", (cohort, version)
            ).fetchone()
            if row is None:
                return None
            fetched = dict(
                connection.execute(
                    "SELECT device, at FROM fetches WHERE cohort = ? AND version = ? ORDER BY at",
                    (cohort, version),
                ).fetchall()
            )
            # A sample made with this version came after it was published. No index helps to look further.
            samples = connection.execute(
                "SELECT device, received_at, captured_at FROM (SELECT device, version, received_at, captured_at FROM "
                "samples WHERE cohort = ?1 AND seq > ?2 ORDER BY seq LIMIT ?4) WHERE version >= ?3",
                (cohort, row[1], version, SAMPLES_SEARCHED),
            ).fetchall()
        ran: dict[str, tuple[float, float]] = {}
        for device, received, captured in samples:
            ran.setdefault(device, (received, captured))
        devices = {}
        for name in dict.fromkeys((*fetched, *ran)):
            received, captured = ran.get(name, (None, None))
            devices[name] = {
                "fetched_at": fetched.get(name),
                "received_at": received,
                "captured_at": captured,
            }
        return {"version": version, **json.loads(row[0]), "devices": devices}

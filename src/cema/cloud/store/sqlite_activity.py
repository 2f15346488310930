"""What devices did, in the SQLite store; see `cema.cloud.store.activity`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from cema.cloud.store.activity import DeviceActivity, Poll
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import Database
from cema.formats.sample import Sample

__all__ = ["ActivityTable"]

TABLES = {
    "device_activity": "CREATE TABLE device_activity (device TEXT PRIMARY KEY, cohort TEXT NOT NULL, "
    "seen_at REAL NOT NULL, has INTEGER, ran INTEGER, samples INTEGER NOT NULL DEFAULT 0, "
    "bytes INTEGER NOT NULL DEFAULT 0, captured_at REAL, received_at REAL) WITHOUT ROWID",
}
COLUMNS = "device, cohort, seen_at, has, ran, samples, bytes, captured_at, received_at"


class ActivityTable:
    """One row for each device that was ever heard of.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no table, and keeps nothing until it is opened with room.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._there = make_tables(database, TABLES, what="activity of devices")

    def sent(
        self, connection: sqlite3.Connection, cohort: str, device: str, samples: Sequence[Sample], now: float
    ) -> None:
        """Note an upload, in the caller's transaction."""
        if not self._there or not samples:
            return
        last = samples[-1]
        connection.execute(
            "INSERT INTO device_activity (device, cohort, seen_at, ran, samples, bytes, captured_at, received_at) "
            "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?3) ON CONFLICT (device) DO UPDATE SET cohort = excluded.cohort, "
            "seen_at = max(seen_at, excluded.seen_at), ran = excluded.ran, samples = samples + excluded.samples, "
            "bytes = bytes + excluded.bytes, captured_at = excluded.captured_at, received_at = excluded.received_at",
            (
                device,
                cohort,
                now,
                last.version,
                len(samples),
                sum(len(s.image) for s in samples),
                last.captured_at,
            ),
        )

    def note_polls(self, polls: Sequence[Poll]) -> None:
        """Keep that devices have asked for updates."""
        if not self._there or not polls:
            return
        with self._database.write() as connection:
            connection.executemany(
                "INSERT INTO device_activity (cohort, device, seen_at, has) VALUES (?, ?, ?, ?) "
                # A device that was started anew asks once without saying what it has. In another cohort, versions
                # are others.
                "ON CONFLICT (device) DO UPDATE SET has = CASE WHEN cohort = excluded.cohort "
                "THEN coalesce(excluded.has, has) ELSE excluded.has END, "
                "cohort = excluded.cohort, seen_at = max(seen_at, excluded.seen_at)",
                polls,
            )

    def read(self) -> dict[str, DeviceActivity]:
        """Return what is known of every device, by its name."""
        if not self._there:
            return {}
        with self._database.read() as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM device_activity").fetchall()  # noqa: S608
        return {row[0]: DeviceActivity(*row) for row in rows}

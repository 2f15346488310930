"""The acts of those who run the service in the SQLite store, see `cema.cloud.store.audits`."""

from __future__ import annotations

import json
import sqlite3
import time
from typing import Any

from cema.cloud.store.audits import AuditedAct, RecordedAct
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import PAGE, Database
from cema.cloud.store.sqlite_space import make_room

__all__ = ["AuditTable"]

TABLES = {
    "audit": "CREATE TABLE audit (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, actor TEXT NOT NULL, "
    "act TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL)",
    "audit_stays": "CREATE TRIGGER audit_stays BEFORE DELETE ON audit BEGIN SELECT raise(ABORT, 'acts stay'); END",
    "audit_stays_as_it_is": "CREATE TRIGGER audit_stays_as_it_is BEFORE UPDATE ON audit BEGIN "
    "SELECT raise(ABORT, 'acts stay as they are'); END",
}
COLUMNS = "seq, at, actor, act, subject, detail"
# What an act takes beside its text, at most: pages of the table and of what leads to them.
OVERHEAD = 4 * PAGE


class AuditTable:
    """The record of acts.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no table, and keeps no acts until it is opened with room.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._there = make_tables(database, TABLES, what="record of acts")

    def record(self, connection: sqlite3.Connection, act: AuditedAct, *, now: float | None = None) -> None:
        """Keep an act in the caller's transaction: it is durable together with what it tells of, or not at all.

        Raises
        ------
        StoreFull
            There is no room for it, even after every processed sample has gone.
        """
        if not self._there:
            return
        detail = json.dumps(act.detail, allow_nan=False, separators=(",", ":"))
        cap = self._database.max_bytes
        make_room(connection, len(detail) + len(act.subject) + OVERHEAD, cap, cap=cap)
        connection.execute(
            "INSERT INTO audit (at, actor, act, subject, detail) VALUES (?, ?, ?, ?, ?)",
            (time.time() if now is None else now, act.actor, act.name, act.subject, detail),
        )

    def record_alone(self, act: AuditedAct, *, now: float | None = None) -> None:
        """Keep an act in a transaction of its own."""
        with self._database.write() as connection:
            self.record(connection, act, now=now)

    def after(self, seq: int, limit: int) -> list[RecordedAct]:
        """Return up to `limit` acts that follow one in the record, oldest first."""
        return self._read(f"SELECT {COLUMNS} FROM audit WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))  # noqa: S608

    def newest(self, limit: int) -> list[RecordedAct]:
        """Return the newest acts, oldest first."""
        return self._read(f"SELECT {COLUMNS} FROM audit ORDER BY seq DESC LIMIT ?", (limit,))[::-1]  # noqa: S608

    def _read(self, query: str, parameters: tuple[Any, ...]) -> list[RecordedAct]:
        if not self._there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(query, parameters).fetchall()
        return [
            RecordedAct(row[0], row[1], AuditedAct(row[2], row[3], row[4], json.loads(row[5])))
            for row in rows
        ]

"""Measures over time in the SQLite store, see `cema.cloud.store.history`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import groupby, pairwise

import msgspec

from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.history import (
    BIN_SECONDS,
    LEVELS,
    DomainChange,
    HistoryBin,
    HistoryNote,
    Level,
    Measures,
    Published,
    added,
    merged,
)
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import Database

__all__ = ["HistoryTable"]

# Bytes of the store's cap for each bin of a cohort: with all measures one has some thousand.
BYTES_FOR_EACH = 2**13
# The same where there are many cohorts: most measures are not there, and a day is to stay whole.
BYTES_OF_MANY = 2**12
# Bins of each width that one write makes wider, or drops, at most: it is to be quick, and the next one goes on.
MOST_THINNED = 180
# Moments of each kind that are kept of each cohort, at most: versions, and changes of the domain.
MOMENTS_KEPT = 4000

TABLES = {
    "history": "CREATE TABLE history (cohort TEXT NOT NULL, seconds INTEGER NOT NULL, at INTEGER NOT NULL, "
    "content BLOB NOT NULL)",
    # Beside the rows: to count bins and to find the oldest no content is read.
    "history_bins": "CREATE UNIQUE INDEX history_bins ON history (cohort, seconds, at)",
    "history_versions": "CREATE TABLE history_versions (cohort TEXT NOT NULL, version INTEGER NOT NULL, "
    "at REAL NOT NULL, kind TEXT NOT NULL, domain TEXT, PRIMARY KEY (cohort, version)) WITHOUT ROWID",
    "history_changes": "CREATE TABLE history_changes (cohort TEXT NOT NULL, at REAL NOT NULL, distance REAL, "
    "PRIMARY KEY (cohort, at)) WITHOUT ROWID",
}
_ONE = "cohort = ? AND seconds = ? AND at = ?"
_Content = dict[str, tuple[float, float]]
_domain = msgspec.json.Decoder(tuple[float, ...]).decode
_decoder = msgspec.msgpack.Decoder(_Content)
_encoder = msgspec.msgpack.Encoder()


class HistoryTable:
    """Bins of every cohort, see `cema.cloud.store.history.HistoryStore`.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no tables, and keeps nothing until it is opened with room.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._most = max(16, min(sum(level.bins for level in LEVELS), database.max_bytes // BYTES_FOR_EACH))
        self._moments = max(16, min(MOMENTS_KEPT, database.max_bytes // BYTES_FOR_EACH))
        self._there = make_tables(database, TABLES, what="measures over time")

    def note(self, notes: Sequence[HistoryNote], changes: Sequence[DomainChange]) -> None:
        """Add to bins, make old ones wider, and drop what is beyond the bounds; in one transaction."""
        if not self._there or not (notes or changes):
            return
        with self._database.write() as connection:
            for cohort in dict.fromkeys(note.cohort for note in notes):
                mine = [note for note in notes if note.cohort == cohort]
                for note in mine:
                    if note.measures:
                        at = int(note.at // BIN_SECONDS) * BIN_SECONDS
                        _add(connection, cohort, BIN_SECONDS, at, note.measures)
                self._thin(connection, cohort, max(note.at for note in mine))
            for change in changes:
                connection.execute("INSERT OR REPLACE INTO history_changes VALUES (?, ?, ?)", change)
            for cohort in dict.fromkeys(change.cohort for change in changes):
                self._drop(connection, cohort, "history_changes", "at")

    def publish(self, connection: sqlite3.Connection, cohort: str, update: PublishedUpdate) -> None:
        """Keep that a version is published, in the caller's transaction."""
        if not self._there:
            return
        trace = update.trace or {}
        at, kind = trace.get("published_at", update.created), trace.get("kind", "learned")
        domain = trace.get("domain")
        told = None if domain is None else msgspec.json.encode(domain).decode()
        row = (cohort, update.version, at, kind, told)
        connection.execute("INSERT OR REPLACE INTO history_versions VALUES (?, ?, ?, ?, ?)", row)
        self._drop(connection, cohort, "history_versions", "version")

    def _drop(self, connection: sqlite3.Connection, cohort: str, table: str, key: str) -> None:
        """Drop the oldest moments beyond the bound."""
        connection.execute(
            f"DELETE FROM {table} WHERE cohort = ?1 AND {key} <= (SELECT {key} FROM {table} "  # noqa: S608
            f"WHERE cohort = ?1 ORDER BY {key} DESC LIMIT 1 OFFSET ?2)",
            (cohort, min(self._moments, self._share(connection))),
        )

    def _share(self, connection: sqlite3.Connection) -> int:
        """Return the most bins, or moments, of each cohort where all are to leave room for samples."""
        cohorts: int = connection.execute("SELECT count(*) FROM cohorts").fetchone()[0]
        return max(16, self._database.max_bytes // (BYTES_OF_MANY * max(1, cohorts)))

    def _thin(self, connection: sqlite3.Connection, cohort: str, now: float) -> None:
        """Keep the bounds: with the bins of one level that are too old for it the next one grows."""
        for level, wider in pairwise(LEVELS):
            _widen(connection, cohort, level, wider, now)
        counts = dict(
            connection.execute(
                "SELECT seconds, count(*) FROM history WHERE cohort = ? GROUP BY seconds", (cohort,)
            ).fetchall()
        )
        beyond = counts.get(LEVELS[-1].seconds, 0) - LEVELS[-1].bins
        excess = max(beyond, sum(counts.values()) - min(self._most, self._share(connection)))
        if excess <= 0:
            return
        connection.execute(
            "DELETE FROM history WHERE rowid IN (SELECT rowid FROM history WHERE cohort = ? ORDER BY at LIMIT ?)",
            (cohort, min(excess, MOST_THINNED)),
        )

    def read(self, cohort: str, since: float, until: float, seconds: int) -> list[HistoryBin]:
        """Return merged bins, oldest first."""
        if seconds < BIN_SECONDS or seconds % BIN_SECONDS:
            raise ValueError(f"seconds: expected a multiple of {BIN_SECONDS}, got {seconds}")
        if not self._there:
            return []
        first = since // seconds * seconds
        with self._database.read() as connection:
            rows = [
                row
                for level in LEVELS
                for row in connection.execute(
                    "SELECT at, content FROM history WHERE cohort = ? AND seconds = ? AND at >= ? AND at < ?",
                    (cohort, level.seconds, first, until),
                ).fetchall()
            ]
        return merged(((at, _decoder.decode(content)) for at, content in rows), seconds)

    def changes(self, cohort: str, since: float, until: float) -> list[DomainChange]:
        """Return the changes of the domain, oldest first."""
        if not self._there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT cohort, at, distance FROM history_changes WHERE cohort = ? AND at >= ? AND at < ? "
                "ORDER BY at",
                (cohort, since, until),
            ).fetchall()
        return [DomainChange(*row) for row in rows]

    def published(self, cohort: str, since: float, until: float) -> list[Published]:
        """Return the versions that were published, oldest first."""
        if not self._there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT version, at, kind, domain FROM history_versions WHERE cohort = ? AND at >= ? AND at < ? "
                "ORDER BY version",
                (cohort, since, until),
            ).fetchall()
        return [
            Published(version, at, kind, None if domain is None else _domain(domain))
            for version, at, kind, domain in rows
        ]


def _add(connection: sqlite3.Connection, cohort: str, seconds: int, at: int, *more: Measures) -> None:
    """Add measures to a bin, which is made where there is none."""
    row = connection.execute(f"SELECT content FROM history WHERE {_ONE}", (cohort, seconds, at)).fetchone()  # noqa: S608
    known: Measures = _decoder.decode(row[0]) if row else {}
    content = _encoder.encode(added(known, *more))
    if row:
        connection.execute(f"UPDATE history SET content = ? WHERE {_ONE}", (content, cohort, seconds, at))  # noqa: S608
    else:
        connection.execute(
            "INSERT INTO history (cohort, seconds, at, content) VALUES (?, ?, ?, ?)",
            (cohort, seconds, at, content),
        )


def _widen(connection: sqlite3.Connection, cohort: str, level: Level, wider: Level, now: float) -> None:
    """Add the bins that are too old for a level to those of the next one; whole ones of that alone."""
    before = (now - level.age) // wider.seconds * wider.seconds
    rows = connection.execute(
        "SELECT rowid, at, content FROM history WHERE cohort = ? AND seconds = ? AND at < ? ORDER BY at LIMIT ?",
        (cohort, level.seconds, before, MOST_THINNED),
    ).fetchall()
    for at, group in groupby(rows, key=lambda row: row[1] - row[1] % wider.seconds):
        _add(connection, cohort, wider.seconds, at, *(_decoder.decode(row[2]) for row in group))
    connection.executemany("DELETE FROM history WHERE rowid = ?", [(row[0],) for row in rows])

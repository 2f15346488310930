"""Drawn samples in the SQLite store, see `cema.cloud.store.draws`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from cema._util.proportion import Weighted, weighted_proportion
from cema.cloud.store.agreements import MINUTE, VERSIONS_KEPT, in_order
from cema.cloud.store.draws import (
    MOST_TRIES,
    DrawnSample,
    RandomCount,
    RandomPoint,
    VersionRandomAgreement,
)
from cema.cloud.store.sqlite_agreements import BYTES_FOR_EACH, MINUTES_KEPT
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import Database, bump
from cema.formats.sample import Sample

__all__ = ["Arrived", "DrawTable"]

# Draws that are remembered after they were measured, so that one which is sent again counts once; at most one for so
# many bytes of the cap.
DRAWS_KEPT = 65_536

SUMS = (
    "samples INTEGER NOT NULL, weight REAL NOT NULL, square REAL NOT NULL, matching REAL NOT NULL, "
    "matching_square REAL NOT NULL"
)
NAMES = "samples, weight, square, matching, matching_square"  # of `Weighted`
ADDED = ", ".join(f"{name} = {name} + excluded.{name}" for name in NAMES.split(", "))
TABLES = {
    "draws": "CREATE TABLE draws (number INTEGER PRIMARY KEY AUTOINCREMENT, cohort TEXT NOT NULL, "
    "device TEXT NOT NULL, id BLOB NOT NULL, captured_at REAL NOT NULL, label INTEGER NOT NULL, "
    "version INTEGER NOT NULL, share REAL NOT NULL, tries INTEGER NOT NULL DEFAULT 0, "
    "waits INTEGER NOT NULL DEFAULT 1)",
    "draws_once": "CREATE UNIQUE INDEX draws_once ON draws (cohort, id, device, captured_at)",
    "draws_waiting": "CREATE INDEX draws_waiting ON draws (cohort, number) WHERE waits = 1",
    # Apart from the rows that change: to change a row SQLite writes all of it anew, also in a full store.
    "draw_images": "CREATE TABLE draw_images (number INTEGER PRIMARY KEY, image BLOB NOT NULL)",
    "random_minutes": f"CREATE TABLE random_minutes (cohort TEXT NOT NULL, minute INTEGER NOT NULL, "
    f"model TEXT NOT NULL, {SUMS}, PRIMARY KEY (cohort, minute, model)) WITHOUT ROWID",
    "random_versions": f"CREATE TABLE random_versions (cohort TEXT NOT NULL, version INTEGER NOT NULL, "
    f"model TEXT NOT NULL, {SUMS}, PRIMARY KEY (cohort, version, model)) WITHOUT ROWID",
}


class Arrived(NamedTuple):
    """A drawn sample of an upload: its identity, itself, and the probability with which it was drawn."""

    key: bytes
    sample: Sample
    share: float


class DrawTable:
    """Drawn samples of every cohort, see `cema.cloud.store.draws.DrawStore`.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no tables, and takes drawn samples for selected ones until it
        is opened with room.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        cap = database.max_bytes // BYTES_FOR_EACH
        self._kept = max(16, min(DRAWS_KEPT, cap))
        self._bounds = (
            ("random_minutes", "minute", max(16, min(MINUTES_KEPT, cap))),
            ("random_versions", "version", max(16, min(VERSIONS_KEPT, cap))),
        )
        self.there = make_tables(database, TABLES, what="samples that were drawn at random")

    def new(
        self, connection: sqlite3.Connection, cohort: str, device: str, arrived: Sequence[Arrived]
    ) -> list[Arrived]:
        """Return those draws of an upload that did not come before, each once."""
        query = "SELECT 1 FROM draws WHERE cohort = ? AND id = ? AND device = ? AND captured_at = ?"
        once = {(one.key, one.sample.captured_at): one for one in arrived}
        return [
            one
            for (key, captured_at), one in once.items()
            if connection.execute(query, (cohort, key, device, captured_at)).fetchone() is None
        ]

    def holds(self, connection: sqlite3.Connection, cohort: str, key: bytes) -> bool:
        """Return whether a drawn image of this identity came before."""
        query = "SELECT 1 FROM draws WHERE cohort = ? AND id = ? LIMIT 1"
        return connection.execute(query, (cohort, key)).fetchone() is not None

    def waiting(self, connection: sqlite3.Connection, cohort: str) -> int:
        """Return how many of a cohort's drawn samples wait to be measured."""
        query = "SELECT count(*) FROM draws WHERE cohort = ? AND waits = 1"
        return int(connection.execute(query, (cohort,)).fetchone()[0])

    def insert(
        self, connection: sqlite3.Connection, cohort: str, device: str, arrived: Sequence[Arrived]
    ) -> None:
        """Keep draws that are new, in the caller's transaction."""
        for key, sample, share in arrived:
            number = connection.execute(
                "INSERT INTO draws (cohort, device, id, captured_at, label, version, share) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (cohort, device, key, sample.captured_at, sample.label, sample.version, share),
            ).lastrowid
            connection.execute("INSERT INTO draw_images VALUES (?, ?)", (number, sample.image))
        bump(connection, cohort, {"drawn.stored": len(arrived)})

    def remove(
        self,
        connection: sqlite3.Connection,
        cohort: str,
        *,
        device: str | None,
        label: int | None,
        before: float | None,
    ) -> dict[bytes, int]:
        """Remove draws of a device, of a class that a device chose, or captured before a moment; or all of a cohort.

        Returns
        -------
        dict of bytes to int
            The bytes of each image that waited to be measured, by its identity.
        """
        if not self.there:
            return {}
        parts, values = ["cohort = ?"], [cohort]  # type: tuple[list[str], list[object]]
        for condition, value in (("device = ?", device), ("label = ?", label), ("captured_at < ?", before)):
            if value is not None:
                parts.append(condition)
                values.append(value)
        where = " AND ".join(parts)
        images = connection.execute(
            f"SELECT id, length(image) FROM draws JOIN draw_images USING (number) WHERE {where}",  # noqa: S608
            values,
        ).fetchall()
        connection.execute(
            f"DELETE FROM draw_images WHERE number IN (SELECT number FROM draws WHERE {where})",  # noqa: S608
            values,
        )
        connection.execute(f"DELETE FROM draws WHERE {where}", values)  # noqa: S608
        return dict(images)

    def take(self, cohort: str, limit: int) -> list[DrawnSample]:
        """Return the first samples to be measured, and note that it was tried."""
        query = "SELECT number, tries FROM draws WHERE cohort = ? AND waits = 1 ORDER BY number LIMIT ?"
        if not self.there:
            return []
        with self._database.read() as connection:
            if not connection.execute(query, (cohort, 1)).fetchall():
                return []
        with self._database.write() as connection:
            rows = connection.execute(query, (cohort, limit)).fetchall()
            failed = [number for number, tries in rows if tries >= MOST_TRIES]
            self._let_go(connection, cohort, failed)
            bump(connection, cohort, {"drawn.failed": len(failed)})
            rows = [row for row in rows if row[1] < MOST_TRIES]
            # What was tried before may be what failed: it takes no others with it.
            numbers = [number for number, tries in rows if not tries] or [number for number, _ in rows[:1]]
            connection.executemany(
                "UPDATE draws SET tries = tries + 1 WHERE number = ?", [(number,) for number in numbers]
            )
            found = [
                connection.execute(
                    "SELECT number, image, label, version, share FROM draws JOIN draw_images USING (number) "
                    "WHERE number = ?",
                    (number,),
                ).fetchone()
                for number in numbers
            ]
        return [DrawnSample(*row) for row in found if row is not None]

    def measured(
        self,
        cohort: str,
        numbers: Sequence[int],
        counts: Sequence[RandomCount],
        *,
        now: float,
        unreadable: int,
    ) -> bool:
        """Let samples go and keep what was found of them, where all of them still wait."""
        with self._database.write() as connection:
            places = ", ".join("?" * len(numbers))
            query = f"SELECT count(*) FROM draws WHERE waits = 1 AND number IN ({places})"  # noqa: S608
            if connection.execute(query, tuple(numbers)).fetchone()[0] != len(numbers):
                return False
            self._let_go(connection, cohort, numbers)
            for table, key, values in (
                ("random_minutes", "minute", [int(now // MINUTE)] * len(counts)),
                ("random_versions", "version", [count.version for count in counts]),
            ):
                connection.executemany(
                    f"INSERT INTO {table} (cohort, {key}, model, {NAMES}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608
                    f"ON CONFLICT (cohort, {key}, model) DO UPDATE SET {ADDED}",
                    [(cohort, value, c.model, *c.sums) for value, c in zip(values, counts, strict=True)],
                )
            read = len(numbers) - unreadable
            bump(connection, cohort, {"drawn.measured": read, "drawn.unreadable": unreadable})
            for table, key, kept in self._bounds:
                connection.execute(
                    f"DELETE FROM {table} WHERE cohort = ?1 AND {key} <= (SELECT {key} FROM {table} "  # noqa: S608
                    f"WHERE cohort = ?1 GROUP BY {key} ORDER BY {key} DESC LIMIT 1 OFFSET ?2)",
                    (cohort, kept),
                )
        return True

    def _let_go(self, connection: sqlite3.Connection, cohort: str, numbers: Sequence[int]) -> None:
        """Let images go; of the draws themselves the newest are remembered."""
        each = [(number,) for number in numbers]
        connection.executemany("DELETE FROM draw_images WHERE number = ?", each)
        connection.executemany("UPDATE draws SET waits = 0 WHERE number = ?", each)
        connection.execute(
            "DELETE FROM draws WHERE cohort = ? AND waits = 0 AND number <= (SELECT max(number) FROM draws) - ?",
            (cohort, self._kept),
        )

    def by_version(self, cohort: str) -> list[VersionRandomAgreement]:
        """Return the agreement by version, in ascending order."""
        query = f"SELECT version, model, {NAMES} FROM random_versions WHERE cohort = ? ORDER BY version"  # noqa: S608
        if not self.there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(query, (cohort,)).fetchall()
        return [
            VersionRandomAgreement(
                version, in_order((row[1], weighted_proportion(Weighted(*row[2:]))) for row in group)
            )
            for version, group in groupby(rows, key=lambda row: row[0])
        ]

    def over_time(self, cohort: str, *, since: float, newest: int | None) -> list[RandomPoint]:
        """Return the sums by minute and model, oldest first."""
        query = (
            f"SELECT minute, model, {NAMES} FROM random_minutes WHERE cohort = ?1 AND minute IN "  # noqa: S608
            "(SELECT minute FROM random_minutes WHERE cohort = ?1 AND minute >= ?2 GROUP BY minute "
            "ORDER BY minute DESC LIMIT ?3) ORDER BY minute"
        )
        if not self.there:
            return []
        bounds = (cohort, int(since // MINUTE), -1 if newest is None else newest)
        with self._database.read() as connection:
            rows = connection.execute(query, bounds).fetchall()
        return [RandomPoint(MINUTE * minute, model, Weighted(*sums)) for minute, model, *sums in rows]

"""Counts of agreement in the SQLite store, see `cema.cloud.store.agreements`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import groupby

from cema._util.proportion import proportion
from cema.cloud.store.agreements import (
    MINUTE,
    VERSIONS_KEPT,
    AgreementCount,
    AgreementPoint,
    VersionAgreement,
    in_order,
)
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import Database

__all__ = ["AgreementTable"]

# Minutes in which a cohort had samples: at most 30 days of them, and one for so many bytes of the store's cap.
MINUTES_KEPT = 43_200
BYTES_FOR_EACH = 2**14

TABLES = {
    "agreement_minutes": "CREATE TABLE agreement_minutes (cohort TEXT NOT NULL, minute INTEGER NOT NULL, "
    "model TEXT NOT NULL, samples INTEGER NOT NULL, agreed INTEGER NOT NULL, "
    "PRIMARY KEY (cohort, minute, model)) WITHOUT ROWID",
    "agreement_versions": "CREATE TABLE agreement_versions (cohort TEXT NOT NULL, version INTEGER NOT NULL, "
    "model TEXT NOT NULL, first REAL NOT NULL, last REAL NOT NULL, samples INTEGER NOT NULL, "
    "agreed INTEGER NOT NULL, PRIMARY KEY (cohort, version, model)) WITHOUT ROWID",
}


class AgreementTable:
    """Counts of every cohort, see `cema.cloud.store.agreements.AgreementStore`.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no tables, and keeps no counts until it is opened with room.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._minutes = max(16, min(MINUTES_KEPT, database.max_bytes // BYTES_FOR_EACH))
        self._versions = max(16, min(VERSIONS_KEPT, database.max_bytes // BYTES_FOR_EACH))
        self._newest: dict[str, int] = {}  # minute, by cohort
        self._there = make_tables(database, TABLES, what="counts of agreement")

    def insert(
        self, connection: sqlite3.Connection, cohort: str, counts: Sequence[AgreementCount], now: float
    ) -> None:
        """Add counts, in the caller's transaction; those beyond the bounds go."""
        if not self._there or not counts:
            return
        minute = int(now // MINUTE)
        connection.executemany(
            "INSERT INTO agreement_minutes (cohort, minute, model, samples, agreed) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (cohort, minute, model) DO UPDATE SET samples = samples + excluded.samples, "
            "agreed = agreed + excluded.agreed",
            [(cohort, minute, count.model, count.samples, count.agreed) for count in counts],
        )
        connection.executemany(
            "INSERT INTO agreement_versions (cohort, version, model, first, last, samples, agreed) "
            "VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6) ON CONFLICT (cohort, version, model) DO UPDATE SET "
            "last = excluded.last, samples = samples + excluded.samples, agreed = agreed + excluded.agreed",
            [(cohort, count.version, count.model, now, count.samples, count.agreed) for count in counts],
        )
        if self._newest.get(cohort) != minute:
            self._newest[cohort] = minute
            self._drop(connection, cohort)

    def _drop(self, connection: sqlite3.Connection, cohort: str) -> None:
        """Drop what is beyond the bounds: once a minute, as it takes longer than to insert."""
        for table, key, kept in (
            ("agreement_minutes", "minute", self._minutes),
            ("agreement_versions", "version", self._versions),
        ):
            # Not with DISTINCT: in a subquery for one value SQLite 3.40 takes no notice of the offset then.
            connection.execute(
                f"DELETE FROM {table} WHERE cohort = ?1 AND {key} <= (SELECT {key} FROM {table} "  # noqa: S608
                f"WHERE cohort = ?1 GROUP BY {key} ORDER BY {key} DESC LIMIT 1 OFFSET ?2)",
                (cohort, kept),
            )

    def by_version(self, cohort: str) -> list[VersionAgreement]:
        """Return the agreement by version, in ascending order."""
        if not self._there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT version, model, first, last, samples, agreed FROM agreement_versions WHERE cohort = ? "
                "ORDER BY version",
                (cohort,),
            ).fetchall()
        found = []
        for version, group in groupby(rows, key=lambda row: row[0]):
            some = list(group)
            models = in_order((row[1], proportion(row[4], row[5])) for row in some)
            found.append(
                VersionAgreement(version, min(row[2] for row in some), max(row[3] for row in some), models)
            )
        return found

    def over_time(self, cohort: str, *, since: float, newest: int | None) -> list[AgreementPoint]:
        """Return the agreement by minute and model, oldest first."""
        if not self._there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT minute, model, samples, agreed FROM agreement_minutes WHERE cohort = ?1 AND minute IN "
                "(SELECT minute FROM agreement_minutes WHERE cohort = ?1 AND minute >= ?2 GROUP BY minute "
                "ORDER BY minute DESC LIMIT ?3) ORDER BY minute",
                (cohort, int(since // MINUTE), -1 if newest is None else newest),
            ).fetchall()
        return [AgreementPoint(MINUTE * minute, *rest) for minute, *rest in rows]

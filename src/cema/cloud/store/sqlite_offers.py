"""Which version each device is offered, in the SQLite store; see `cema.cloud.store.offers`."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Any

import msgspec

from cema.cloud.store.base import PublishedUpdate, UpdateTag
from cema.cloud.store.offers import Offer, Offers, PinnedDevice, Rollout
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import Database

__all__ = ["OfferTable"]

TABLES = {
    "restricted_versions": "CREATE TABLE restricted_versions (cohort TEXT NOT NULL, version INTEGER NOT NULL, "
    "PRIMARY KEY (cohort, version)) WITHOUT ROWID",
    "version_audience": "CREATE TABLE version_audience (cohort TEXT NOT NULL, device TEXT NOT NULL, "
    "version INTEGER NOT NULL, PRIMARY KEY (cohort, device, version)) WITHOUT ROWID",
    "device_pins": "CREATE TABLE device_pins (cohort TEXT NOT NULL, device TEXT NOT NULL, digest TEXT NOT NULL, "
    "PRIMARY KEY (cohort, device)) WITHOUT ROWID",
    "rollouts": "CREATE TABLE rollouts (cohort TEXT NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL, "
    "content TEXT NOT NULL, PRIMARY KEY (cohort, version)) WITHOUT ROWID",
}
# Rollouts of a cohort that are kept.
KEPT = 100

_ALL = "NOT EXISTS (SELECT 1 FROM restricted_versions r WHERE r.cohort = u.cohort AND r.version = u.version)"
_NEWEST = f"SELECT version, digest FROM updates u WHERE cohort = ?1 AND {_ALL} ORDER BY version DESC LIMIT 1"  # noqa: S608
_OFFERED = (
    f"SELECT version, digest FROM updates u WHERE cohort = ?1 AND ({_ALL} OR EXISTS (SELECT 1 FROM "  # noqa: S608
    "version_audience a WHERE a.cohort = ?1 AND a.device = ?2 AND a.version = u.version)) "
    "ORDER BY version DESC LIMIT 1"
)
_PINNED = (
    "SELECT u.version, u.digest FROM device_pins p JOIN version_audience a ON a.cohort = p.cohort AND "
    "a.device = p.device JOIN updates u ON u.cohort = a.cohort AND u.version = a.version AND u.digest = p.digest "
    "WHERE p.cohort = ?1 AND p.device = ?2 ORDER BY u.version DESC LIMIT 1"
)


class OfferTable:
    """Offers of every cohort; the methods are those of `cema.cloud.store.offers.OfferStore`.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no tables: every version is for all there until it is opened
        with room.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.there = make_tables(database, TABLES, what="versions for some devices alone")

    def tag(self, cohort: str, device: str) -> UpdateTag | None:
        """Return what a device is offered."""
        if not self.there:
            row = self._database.peek(
                "SELECT version, digest FROM updates WHERE cohort = ? ORDER BY version DESC LIMIT 1",
                (cohort,),
            )
            return UpdateTag(*row) if row else None
        row = self._database.peek(_PINNED, (cohort, device)) or self._database.peek(
            _OFFERED, (cohort, device)
        )
        return UpdateTag(*row) if row else None

    def newest(self, cohort: str) -> int:
        """Return the newest version that is for all; 0 before the first."""
        with self._database.read() as connection:
            return newest_for_all(connection, cohort, there=self.there)[0]

    def update(self, cohort: str, version: int) -> PublishedUpdate | None:
        """Return a version, if it is kept."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT version, digest, envelope, data, created, expires FROM updates "
                "JOIN artifacts USING (digest) WHERE cohort = ? AND version = ?",
                (cohort, version),
            ).fetchone()
        return PublishedUpdate(*row) if row else None

    def offers(self, cohorts: Collection[str]) -> dict[str, Offers]:
        """Return what devices are offered: those that have a version of their own are few."""
        found: dict[str, Offers] = {}
        with self._database.read() as connection:
            for cohort in cohorts:
                newest, _ = newest_for_all(connection, cohort, there=self.there)
                named = _named(connection, cohort, newest) if self.there else {}
                found[cohort] = Offers(newest, named)
        return found

    def rollout(self, cohort: str) -> Rollout | None:
        """Return the newest rollout."""
        if not self.there:
            return None
        row = self._database.peek(
            "SELECT content FROM rollouts WHERE cohort = ? ORDER BY version DESC LIMIT 1", (cohort,)
        )
        return msgspec.json.decode(row[0], type=Rollout) if row else None

    def pinned(self, cohort: str) -> list[PinnedDevice]:
        """Return the devices that are pinned."""
        if not self.there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT p.device, p.digest, max(u.version), u.created FROM device_pins p LEFT JOIN version_audience a "
                "ON a.cohort = p.cohort AND a.device = p.device LEFT JOIN updates u ON u.cohort = a.cohort "
                "AND u.version = a.version AND u.digest = p.digest WHERE p.cohort = ? GROUP BY p.device "
                "ORDER BY p.device",
                (cohort,),
            ).fetchall()
        return [PinnedDevice(*row) for row in rows]

    def commit(
        self, connection: sqlite3.Connection, cohort: str, offer: Offer | None, version: int | None
    ) -> None:
        """Write down, in a step's transaction, who its version is for, and how a rollout goes."""
        if offer is None or not self.there:
            return
        if version is not None and offer.audience is not None:
            connection.execute("INSERT INTO restricted_versions VALUES (?, ?)", (cohort, version))
            _offer(connection, cohort, version, offer.audience)
        rollout = offer.rollout
        if rollout is None:
            return
        self._supersede(connection, cohort, rollout)
        changed = connection.execute(
            "INSERT INTO rollouts (cohort, version, state, content) VALUES (?, ?, ?, ?) ON CONFLICT (cohort, version) "
            "DO UPDATE SET state = excluded.state, content = excluded.content WHERE state = 'open'",
            (cohort, rollout.version, rollout.state, msgspec.json.encode(rollout).decode()),
        ).rowcount
        if changed:  # nobody has ended it meanwhile
            _offer(connection, cohort, rollout.version, offer.also)
        if changed and offer.release is not None:
            self.release(connection, cohort, offer.release)
        connection.execute(
            "DELETE FROM rollouts WHERE cohort = ?1 AND version NOT IN "
            "(SELECT version FROM rollouts WHERE cohort = ?1 ORDER BY version DESC LIMIT ?2)",
            (cohort, KEPT),
        )

    @staticmethod
    def _supersede(connection: sqlite3.Connection, cohort: str, rollout: Rollout) -> None:
        """Close the rollouts of versions before."""
        rows = connection.execute(
            "SELECT content FROM rollouts WHERE cohort = ? AND version < ? AND state = 'open'",
            (cohort, rollout.version),
        ).fetchall()
        for (content,) in rows:
            known = msgspec.json.decode(content, type=Rollout)
            ended = msgspec.structs.replace(known, state="superseded", ended=rollout.began)
            connection.execute(
                "UPDATE rollouts SET state = ?, content = ? WHERE cohort = ? AND version = ?",
                (ended.state, msgspec.json.encode(ended).decode(), cohort, known.version),
            )

    @staticmethod
    def release(connection: sqlite3.Connection, cohort: str, version: int) -> None:
        """Let a version be for all."""
        connection.execute(
            "DELETE FROM restricted_versions WHERE cohort = ? AND version = ?", (cohort, version)
        )

    def end(self, connection: sqlite3.Connection, cohort: str, version: int, now: float) -> None:
        """Release a version and close its rollout, in the transaction of an operator's act."""
        self.release(connection, cohort, version)
        row = connection.execute(
            "SELECT content FROM rollouts WHERE cohort = ? AND version = ? AND state = 'open'",
            (cohort, version),
        ).fetchone()
        if row is not None:
            known = msgspec.json.decode(row[0], type=Rollout)
            ended = msgspec.structs.replace(known, state="released", ended=now)
            connection.execute(
                "UPDATE rollouts SET state = 'released', content = ? WHERE cohort = ? AND version = ?",
                (msgspec.json.encode(ended).decode(), cohort, version),
            )

    def pin(self, connection: sqlite3.Connection, cohort: str, device: str, digest: str | None) -> str | None:
        """Let a device have one content alone, or None: what all have; return the digest that it had before."""
        before = connection.execute(
            "SELECT digest FROM device_pins WHERE cohort = ? AND device = ?", (cohort, device)
        ).fetchone()
        connection.execute("DELETE FROM device_pins WHERE cohort = ? AND device = ?", (cohort, device))
        if digest is not None:
            connection.execute("INSERT INTO device_pins VALUES (?, ?, ?)", (cohort, device, digest))
        return before[0] if before else None

    @staticmethod
    def pinned_names(connection: sqlite3.Connection, cohort: str) -> list[str]:
        """Return the names of the devices that are pinned."""
        rows = connection.execute(
            "SELECT device FROM device_pins WHERE cohort = ? ORDER BY device", (cohort,)
        ).fetchall()
        return [row[0] for row in rows]

    @staticmethod
    def unpin_all(connection: sqlite3.Connection, cohort: str) -> None:
        """Let no device be pinned."""
        connection.execute("DELETE FROM device_pins WHERE cohort = ?", (cohort,))

    def held(self, connection: sqlite3.Connection, cohort: str) -> set[str]:
        """Return the digests that may not be deleted: devices are to have them, now or soon."""
        if not self.there:
            return set()
        _, digest = newest_for_all(connection, cohort, there=True)
        rows = connection.execute("SELECT digest FROM device_pins WHERE cohort = ?", (cohort,)).fetchall()
        return {row[0] for row in rows} | ({digest} if digest else set())

    def forget(self, connection: sqlite3.Connection, cohort: str) -> None:
        """Forget about versions that are no longer kept."""
        if not self.there:
            return
        for table in ("restricted_versions", "version_audience"):
            connection.execute(
                f"DELETE FROM {table} WHERE cohort = ?1 AND version NOT IN "  # noqa: S608
                "(SELECT version FROM updates WHERE cohort = ?1)",
                (cohort,),
            )


def newest_for_all(connection: sqlite3.Connection, cohort: str, *, there: bool) -> tuple[int, str | None]:
    """Return the newest version that is for all, and its digest; 0 and None before the first."""
    query = _NEWEST if there else "SELECT max(version), digest FROM updates WHERE cohort = ?1"
    row: tuple[Any, ...] | None = connection.execute(query, (cohort,)).fetchone()
    return (row[0], row[1]) if row and row[0] else (0, None)


def _named(connection: sqlite3.Connection, cohort: str, newest: int) -> dict[str, int]:
    """Return the versions of devices that are offered another one than the newest for all."""
    ahead = connection.execute(
        "SELECT device, max(version) FROM version_audience WHERE cohort = ? AND version > ? GROUP BY device",
        (cohort, newest),
    ).fetchall()
    pinned = connection.execute("SELECT device FROM device_pins WHERE cohort = ?", (cohort,)).fetchall()
    found: dict[str, int] = dict(ahead)
    for (device,) in pinned:
        row = connection.execute(_PINNED, (cohort, device)).fetchone()
        if row is not None:
            found[device] = row[0]
    return found


def _offer(connection: sqlite3.Connection, cohort: str, version: int, devices: Collection[str]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO version_audience (cohort, device, version) VALUES (?, ?, ?)",
        [(cohort, device, version) for device in devices],
    )

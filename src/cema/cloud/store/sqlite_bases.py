"""Which base models a cohort has had, in the SQLite store, see `cema.cloud.store.bases`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from cema.cloud.store.audits import AuditedAct
from cema.cloud.store.base import OtherBase, PublishedUpdate, UpdateTag
from cema.cloud.store.bases import DeviceBase, Migration, Period, base_at
from cema.cloud.store.sqlite_audits import AuditTable
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_control import ControlTable
from cema.cloud.store.sqlite_database import PAGE, Database
from cema.cloud.store.sqlite_offers import OfferTable
from cema.cloud.store.sqlite_periods import TABLES, decode_periods, read_periods
from cema.cloud.store.sqlite_space import make_room
from cema.cloud.store.sqlite_tallies import recount
from cema.errors import StoreError

__all__ = ["BaseTable"]

_NEWEST, _OLDEST = "ORDER BY version DESC LIMIT 1", "ORDER BY version LIMIT 1"


class BaseTable:
    """Base models of every cohort; the methods are those of `cema.cloud.store.bases.BaseStore`.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no table, and migrates once it is opened with room.
    audit
        Where it is recorded who migrates.
    control
        The acts on versions.
    offers
        Which versions are for all devices: others are not for those of an earlier base.
    """

    def __init__(
        self, database: Database, audit: AuditTable, control: ControlTable, offers: OfferTable
    ) -> None:
        self._database, self._audit, self._control, self._offers = database, audit, control, offers
        self._there = make_tables(database, TABLES, what="base models of before")

    def tie(self, connection: sqlite3.Connection, cohort: str, base: str) -> None:
        """Give a known cohort a base model, in the caller's transaction, unless it is tied to another one.

        Raises
        ------
        OtherBase
            It is: its devices were brought to another one, or it has made steps.
        """
        known = connection.execute("SELECT base FROM cohorts WHERE name = ?", (cohort,)).fetchone()[0]
        if known == base:
            return
        periods = read_periods(connection, cohort)
        if periods:
            where = f" ({periods[-1].path})" if periods[-1].path else ""
            raise OtherBase(
                f"cohort {cohort!r} was migrated to base model {known[:12]}, its bundle has {base[:12]}: set `bundle` "
                f"in its [[cohort]] table to the bundle that it was migrated to{where}, and `model` and "
                "`model_weights` to the model that this was exported from"
            )
        if _has_made_steps(connection, cohort):
            raise OtherBase(
                f"cohort {cohort!r} has made steps with base model {known[:12]}, its bundle now has {base[:12]}: set "
                "`bundle` in its [[cohort]] table back to the bundle of before, and bring devices and store to the new "
                f"one with `cema cohort migrate {cohort} --bundle FOLDER`; or give the new bundle a cohort name of its "
                "own"
            )
        _rebase(connection, cohort, base)
        recount(connection, cohort)

    def migrate(self, cohort: str, migration: Migration, *, actor: str, now: float) -> tuple[Period, ...]:
        """Give a cohort another base model, durably, all of it or nothing."""
        if not self._there:
            raise StoreError(
                "the store has no room to migrate; raise limits.store_bytes and start the cloud again"
            )
        with self._database.write() as connection:
            row = connection.execute("SELECT base FROM cohorts WHERE name = ?", (cohort,)).fetchone()
            if row is None:
                raise StoreError(f"the store has no cohort {cohort!r}; start the cloud once with it")
            if row[0] != migration.old:
                raise StoreError(
                    f"cohort {cohort!r} has the base model {row[0][:12]}, not {migration.old[:12]}; try again"
                )
            self._check_serial(connection, cohort, migration.serial)
            periods = read_periods(connection, cohort)
            if migration.new != migration.old:
                periods = self._exchange(connection, cohort, migration, periods, now)
            cap = self._database.max_bytes
            text = msgspec.json.encode(periods).decode()
            make_room(connection, len(text) + len(migration.notice) + 4 * PAGE, cap, cap=cap)
            connection.execute(
                "INSERT OR REPLACE INTO cohort_bases (cohort, periods, serial, notice) VALUES (?, ?, ?, ?)",
                (cohort, text, migration.serial, migration.notice),
            )
            detail = {"from": migration.old, "to": migration.new, "serial": migration.serial}
            self._audit.record(connection, AuditedAct(actor, "cohort.migrate", cohort, detail), now=now)
        return periods

    def _exchange(
        self,
        connection: sqlite3.Connection,
        cohort: str,
        migration: Migration,
        periods: tuple[Period, ...],
        now: float,
    ) -> tuple[Period, ...]:
        self._control.check_free(connection, cohort)
        _rebase(connection, cohort, migration.new)
        if migration.again:
            connection.execute(
                "UPDATE cohorts SET cursor = min(cursor, coalesce((SELECT seq FROM samples WHERE cohort = ?1 "
                "ORDER BY seq DESC LIMIT 1 OFFSET ?2), 0)) WHERE name = ?1",
                (cohort, migration.again),
            )
        recount(connection, cohort)
        newest = connection.execute(
            "SELECT coalesce(max(version), 0) FROM updates WHERE cohort = ?", (cohort,)
        ).fetchone()[0]
        first = periods or (Period(base=migration.old, after=0),)
        return (*first, Period(base=migration.new, after=newest, at=now, path=migration.path))

    def _check_serial(self, connection: sqlite3.Connection, cohort: str, serial: int) -> None:
        last = connection.execute("SELECT serial FROM cohort_bases WHERE cohort = ?", (cohort,)).fetchone()
        if last is not None and serial <= last[0]:
            raise StoreError(f"notice {serial} of cohort {cohort!r} must follow notice {last[0]}; try again")

    def periods(self, cohort: str) -> tuple[Period, ...]:
        """Return the periods of a cohort, oldest first: one row is read."""
        if not self._there:
            return ()
        row = self._database.peek("SELECT periods FROM cohort_bases WHERE cohort = ?", (cohort,))
        return decode_periods(row)

    def notice(self, cohort: str) -> tuple[int, bytes] | None:
        """Return serial number and envelope of the newest notice, or None before the first."""
        if not self._there:
            return None
        row = self._database.peek("SELECT serial, notice FROM cohort_bases WHERE cohort = ?", (cohort,))
        return (row[0], bytes(row[1])) if row else None

    def newest_of(
        self, cohort: str, base: str, *, before: float | None = None, alive: float | None = None
    ) -> PublishedUpdate | None:
        """Return the newest kept version for a base."""
        where, values = self._where(cohort, base, alive)
        columns = "version, digest, envelope, data, created, expires"
        query = f"SELECT {columns} FROM updates JOIN artifacts USING (digest) WHERE cohort = ? AND {where}"  # noqa: S608
        with self._database.read() as connection:
            for more, extra in _choices(before):
                row = connection.execute(f"{query}{more}", (cohort, *values, *extra)).fetchone()
                if row is not None:
                    return PublishedUpdate(*row)
        return None

    def tag_of(
        self, cohort: str, base: str, *, before: float | None = None, alive: float | None = None
    ) -> UpdateTag | None:
        """Return version and digest of the newest kept version for a base."""
        where, values = self._where(cohort, base, alive)
        query = f"SELECT version, digest FROM updates WHERE cohort = ? AND {where}"  # noqa: S608
        for more, extra in _choices(before):
            row = self._database.peek(f"{query}{more}", (cohort, *values, *extra))
            if row is not None:
                return UpdateTag(*row)
        return None

    def _where(self, cohort: str, base: str, alive: float | None) -> tuple[str, list[float]]:
        """Return the condition for versions that are for a base, and for all of its devices."""
        where, values = _where(self.periods(cohort), base, alive)
        if self._offers.there:
            where += (
                " AND NOT EXISTS (SELECT 1 FROM restricted_versions r WHERE r.cohort = updates.cohort "
                "AND r.version = updates.version)"
            )
        return where, values

    def note_device_bases(self, notes: Sequence[DeviceBase]) -> None:
        """Keep which base each device has said last that it has."""
        if not self._there or not notes:
            return
        with self._database.write() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO device_bases (cohort, device, base, at) VALUES (?, ?, ?, ?)", notes
            )

    def device_bases(self, cohort: str) -> list[DeviceBase]:
        """Return what devices of a cohort have said last, by name."""
        if not self._there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT cohort, device, base, at FROM device_bases WHERE cohort = ? ORDER BY device",
                (cohort,),
            ).fetchall()
        return [DeviceBase(*row) for row in rows]

    def kept(self, connection: sqlite3.Connection, cohort: str) -> set[int]:
        """Return the last version of every base, which devices with it may need, and the first one of the newest.

        That one is offered, for an hour, to devices that name no base.
        """
        periods = read_periods(connection, cohort)
        if not periods:
            return set()
        rows = connection.execute("SELECT version FROM updates WHERE cohort = ?", (cohort,)).fetchall()
        versions = sorted(row[0] for row in rows)
        last = {base_at(periods, version): version for version in versions}
        return {*last.values(), *[version for version in versions if version > periods[-1].after][:1]}


def _rebase(connection: sqlite3.Connection, cohort: str, base: str) -> None:
    """Give a cohort another base model: what was learned goes, and whoever works on it is fenced."""
    connection.execute(
        "UPDATE cohorts SET base = ?, checkpoint = NULL, attempts = 0, epoch = epoch + 1 WHERE name = ?",
        (base, cohort),
    )


def _has_made_steps(connection: sqlite3.Connection, cohort: str) -> bool:
    return bool(
        connection.execute(
            "SELECT EXISTS (SELECT 1 FROM updates WHERE cohort = ?1) OR EXISTS (SELECT 1 FROM counters WHERE "
            "cohort = ?1 AND name = 'steps.count' AND value > 0)",
            (cohort,),
        ).fetchone()[0]
    )


def _where(periods: Sequence[Period], base: str, alive: float | None) -> tuple[str, list[float]]:
    """Return the condition for versions that are for a base: in one of its periods; and have not expired."""
    conditions: list[str] = []
    values: list[float] = []
    ends = [period.after for period in periods[1:]] + [2**63 - 1]
    for period, end in zip(periods, ends, strict=True):
        if period.base == base:
            conditions.append("(version > ? AND version <= ?)")
            values += [period.after, end]
    where = f"({' OR '.join(conditions)})" if conditions else "0"
    return (where, values) if alive is None else (f"{where} AND expires > ?", [*values, alive])


def _choices(before: float | None) -> list[tuple[str, tuple[float, ...]]]:
    """Return the ends of a query, the first of which counts that finds a version."""
    if before is None:
        return [(f" {_NEWEST}", ())]
    return [(f" AND created < ? {_NEWEST}", (before,)), (f" {_OLDEST}", ())]

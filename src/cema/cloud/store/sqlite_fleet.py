"""Acts on devices in the SQLite store, see `cema.cloud.store.fleet`."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import msgspec

from cema._util.events import report
from cema.cloud import events
from cema.cloud.store.control import ActRefused
from cema.cloud.store.devices import Device, DeviceLimits, Role, check_device, new_token, token_digest
from cema.cloud.store.fleet import (
    DeviceAct,
    DeviceTaken,
    Done,
    Expire,
    Limit,
    Move,
    NewDevice,
    Quarantine,
    Release,
    Remove,
    Renew,
    Revoke,
    UnknownDevice,
    Usage,
    check_act,
)
from cema.cloud.store.sqlite_audits import AuditTable
from cema.cloud.store.sqlite_database import PAGE, Database
from cema.cloud.store.sqlite_devices import SqliteDevices
from cema.cloud.store.sqlite_space import make_room
from cema.errors import StoreError

__all__ = ["SqliteFleet", "make_fleet_columns"]

# Columns beside those of the schema, so that a token is found with all that decides over it in one row. An older CEMA
# names the columns that it reads and writes, and so ignores these.
COLUMNS = {
    "expires_at": "REAL",
    "quarantined_at": "REAL",
    "quarantined_by": "TEXT",
    "limits": "TEXT",
    "older_hash": "BLOB",
    "older_until": "REAL",
    "taken_at": "REAL",
}
BESIDE = {
    "devices_older": "CREATE UNIQUE INDEX devices_older ON devices (older_hash) WHERE older_hash IS NOT NULL",
    "devices_quarantined": "CREATE INDEX devices_quarantined ON devices (quarantined_at) "
    "WHERE quarantined_at IS NOT NULL",
    "device_usage": "CREATE TABLE device_usage (device TEXT NOT NULL, name TEXT NOT NULL, used REAL NOT NULL, "
    "at REAL NOT NULL, PRIMARY KEY (device, name)) WITHOUT ROWID",
}
# Where else a device is known by its name; a store from before may have no such table.
OFFERED_IN = frozenset({"device_pins", "version_audience"})
KNOWN_IN = OFFERED_IN | {"device_usage", "device_activity", "device_reports", "device_bases", "fetches"}
# What a device takes in all tables, at most.
ROOM = 4 * PAGE

_OLD = ("name", "role", "cohort", "created_at", "revoked_at")
_ROW = ", ".join((*_OLD, *(name for name in COLUMNS if name != "older_hash")))
_BY_TOKEN = f"SELECT {_ROW}, 0 FROM devices WHERE token_hash = ?"  # noqa: S608
_BY_OLDER = f"SELECT {_ROW}, 1 FROM devices WHERE older_hash = ? AND older_until > ?"  # noqa: S608
_BY_NAME = f"SELECT {_ROW}, 0 FROM devices WHERE name = ?"  # noqa: S608
_ALL = f"SELECT {_ROW}, 0 FROM devices ORDER BY name"  # noqa: S608

log = logging.getLogger(__name__)


def make_fleet_columns(database: Database) -> bool:
    """Give a store from before what acts on devices need; tell whether it is there: a full store has no room."""
    with database.read() as connection:
        if not _missing(connection):
            return True
    try:
        with database.write() as connection:  # another process may have been first
            for statement in _missing(connection):
                connection.execute(statement)
    except StoreError as error:
        report(log, events.TABLES_NOT_KEPT, what="expiry, quarantine and limits of devices", error=str(error))
        return False
    return True


def _missing(connection: sqlite3.Connection) -> list[str]:
    """Return the statements that make what is not there."""
    columns = {row[1] for row in connection.execute("PRAGMA table_info(devices)").fetchall()}
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master").fetchall()}
    return [
        *(
            f"ALTER TABLE devices ADD COLUMN {name} {kind}"
            for name, kind in COLUMNS.items()
            if name not in columns
        ),
        *(statement for name, statement in BESIDE.items() if name not in names),
    ]


class SqliteFleet(SqliteDevices):
    """A `cema.cloud.store.fleet.FleetRegister` in the store's database.

    Parameters
    ----------
    database, cohorts, acts, actor
        As for `SqliteDevices`.
    there
        Whether the store has what it needs; without that it is a plain register, and refuses acts.
    """

    def __init__(
        self,
        database: Database,
        cohorts: Collection[str],
        *,
        acts: AuditTable | None = None,
        actor: str = "",
        there: bool = True,
    ) -> None:
        super().__init__(database, cohorts, acts=acts, actor=actor)
        self._there = there

    def of_digest(self, digest: bytes) -> Device | None:
        """Return whose token has this digest, revoked or expired or not, or None when nobody's."""
        if not self._there:
            return super().of_digest(digest)
        now = time.time()
        # The newest token is one indexed row, and what is none of those is looked for among the older ones.
        row = self._database.peek(_BY_TOKEN, (digest,)) or self._database.peek(_BY_OLDER, (digest, now))
        return _device(row, now) if row else None

    def list(self) -> tuple[Device, ...]:
        """Return all devices, revoked ones too, by name."""
        if not self._there:
            return super().list()
        now = time.time()
        with self._database.read() as connection:
            rows = connection.execute(_ALL).fetchall()
        return tuple(_device(row, now) for row in rows)

    def add(self, name: str, *, cohort: str | None, role: Role = "device", now: float | None = None) -> str:
        """Register a device and return its token, see `DeviceRegister.add`."""
        if not self._there:
            return super().add(name, cohort=cohort, role=role, now=now)
        token = new_token()
        self.add_all([NewDevice(name, cohort, role, token)], now=now)
        return token

    def renew(self, name: str) -> str:
        """Give a device a new token that ends all older ones, see `DeviceRegister.renew`."""
        if not self._there:
            return super().renew(name)
        return cast("str", self.act(name, Renew()).token)

    def add_all(self, devices: Sequence[NewDevice], *, now: float | None = None) -> None:
        """Register devices, all or none, see `FleetRegister.add_all`."""
        moment = time.time() if now is None else now
        for device in devices:
            check_device(device.name, device.cohort, device.role, self._cohorts)
            check_act(Expire(at=device.expires_at))
        with self._write(len(devices)) as connection:
            for device in devices:
                self._insert(connection, device, moment)

    def _insert(self, connection: sqlite3.Connection, device: NewDevice, now: float) -> None:
        try:
            connection.execute(
                "INSERT INTO devices (name, role, cohort, token_hash, created_at) VALUES (?, ?, ?, ?, ?)",
                (device.name, device.role, device.cohort, token_digest(device.token), now),
            )
        except sqlite3.IntegrityError as error:
            raise DeviceTaken(
                f"there is a device {device.name!r} already; choose another name, or give it a new token with renew"
            ) from error
        # A request that was under way when a device of this name was removed may have left something.
        _forget(connection, device.name)
        detail: dict[str, Any] = {"role": device.role, "cohort": device.cohort}
        if device.expires_at is not None:
            _expire(connection, device.name, device.expires_at)
            detail["expires_at"] = device.expires_at
        self._record(connection, "device.add", device.name, **detail)

    def act(self, name: str, act: DeviceAct, *, now: float | None = None) -> Done:
        """Do something with a device, see `FleetRegister.act`."""
        check_act(act)
        moment = time.time() if now is None else now
        token = new_token() if isinstance(act, Renew) else None
        with self._write(1) as connection:
            device = _named(connection, name, moment)
            detail = self._change(connection, device, act, moment, token)
            self._record(connection, f"device.{type(act).__struct_config__.tag}", name, **detail)
            return Done(None if isinstance(act, Remove) else _named(connection, name, moment), token)

    def _change(
        self, connection: sqlite3.Connection, device: Device, act: DeviceAct, now: float, token: str | None
    ) -> dict[str, Any]:
        """Make the change of an act in the caller's transaction, and return what is to be recorded of it."""
        detail: dict[str, Any] = {}
        match act:
            case Renew(overlap=overlap):
                _renew(connection, device, cast("str", token), overlap, now)
                detail = {"overlap": overlap} if overlap else {}
            case Revoke():
                connection.execute(
                    "UPDATE devices SET revoked_at = coalesce(revoked_at, ?) WHERE name = ?",
                    (now, device.name),
                )
            case Remove():
                connection.execute("DELETE FROM devices WHERE name = ?", (device.name,))
                _forget(connection, device.name)
                detail = {"role": device.role, "cohort": device.cohort}
            case Move(to=cohort):
                check_device(device.name, cohort, device.role, self._cohorts)
                connection.execute("UPDATE devices SET cohort = ? WHERE name = ?", (cohort, device.name))
                if cohort != device.cohort:  # what it was pinned to is the other cohort's
                    _forget(connection, device.name, OFFERED_IN)
                detail = {"from": device.cohort, "to": cohort}
            case Expire(at=at):
                _expire(connection, device.name, at)
                detail = {"at": at}
            case Quarantine():
                _quarantine(connection, device, self._actor, now)
            case Release():
                _release(connection, device)
            case Limit():
                limits = _limited(device, act)
                content = msgspec.json.encode(limits).decode()
                connection.execute("UPDATE devices SET limits = ? WHERE name = ?", (content, device.name))
                detail = msgspec.to_builtins(limits)
        return detail

    def quarantined(self) -> dict[str, str | None]:
        """Return the devices that operators have quarantined: the cohort of each by its name."""
        if not self._there:
            return {}
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT name, cohort FROM devices WHERE quarantined_at IS NOT NULL"
            ).fetchall()
        return dict(rows)

    def note_taken(self, names: Collection[str], *, now: float) -> None:
        """Keep that devices have used their newest token."""
        if not self._there or not names:
            return
        with self._database.write() as connection:
            connection.executemany(
                "UPDATE devices SET taken_at = coalesce(taken_at, ?) WHERE name = ?",
                [(now, name) for name in names],
            )

    def usage(self, name: str) -> dict[str, Usage]:
        """Return how much of each limit a device has used, as it was kept last."""
        if not self._there:
            return {}
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT name, used, at FROM device_usage WHERE device = ?", (name,)
            ).fetchall()
        return {row[0]: Usage(row[1], row[2]) for row in rows}

    def keep_usage(self, usage: Mapping[str, Mapping[str, Usage]]) -> None:
        """Keep how much devices have used, by their names."""
        if not self._there or not usage:
            return
        with self._database.write() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO device_usage (device, name, used, at) SELECT ?1, ?2, ?3, ?4 "
                "WHERE EXISTS (SELECT 1 FROM devices WHERE name = ?1)",
                [(device, name, *used) for device, of in usage.items() for name, used in of.items()],
            )

    @contextmanager
    def _write(self, devices: int) -> Iterator[sqlite3.Connection]:
        if not self._there:
            raise StoreError(
                "the store has no room for acts on devices; raise limits.store_bytes and start the cloud again"
            )
        with self._database.write() as connection:
            cap = self._database.max_bytes
            make_room(connection, devices * ROOM, cap, cap=cap)
            yield connection


def _device(row: tuple[Any, ...], now: float) -> Device:
    name, role, cohort, created, revoked, expires, quarantined, actor, limits, ends, taken, older = row
    two = ends is not None and ends > now
    return Device(
        name,
        cast("Role", role),
        cohort,
        created,
        revoked,
        expires_at=expires,
        quarantined_at=quarantined,
        quarantined_by=actor,
        limits=msgspec.json.decode(limits, type=DeviceLimits) if limits else DeviceLimits(),
        older_token_until=ends if two else None,
        taken_at=taken if two else None,
        by_older_token=bool(older),
    )


def _named(connection: sqlite3.Connection, name: str, now: float) -> Device:
    row = connection.execute(_BY_NAME, (name,)).fetchone()
    if row is None:
        raise UnknownDevice(f"there is no device {name!r}; list the devices to see their names")
    return _device(row, now)


def _forget(connection: sqlite3.Connection, name: str, tables: Collection[str] = KNOWN_IN) -> None:
    """Delete what is known of a device beside the register and the record of acts: all, or what is in some tables."""
    there = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in there:
        if table in tables:
            connection.execute(f"DELETE FROM {table} WHERE device = ?", (name,))  # noqa: S608


def _renew(connection: sqlite3.Connection, device: Device, token: str, overlap: float, now: float) -> None:
    if device.revoked_at is not None:
        raise ActRefused(f"the device {device.name!r} is revoked; add it anew under another name")
    unused = device.older_token_until is not None and device.taken_at is None
    if not overlap:
        connection.execute("UPDATE devices SET older_hash = NULL WHERE name = ?", (device.name,))
    elif not unused:
        connection.execute("UPDATE devices SET older_hash = token_hash WHERE name = ?", (device.name,))
    # Else the device still has the older one: nobody has ever used the one that is replaced now.
    connection.execute(
        "UPDATE devices SET token_hash = ?, older_until = ?, taken_at = NULL WHERE name = ?",
        (token_digest(token), now + overlap if overlap else None, device.name),
    )


def _expire(connection: sqlite3.Connection, name: str, at: float | None) -> None:
    connection.execute("UPDATE devices SET expires_at = ? WHERE name = ?", (at, name))


def _quarantine(connection: sqlite3.Connection, device: Device, actor: str, now: float) -> None:
    if device.role != "device":
        raise ActRefused(f"{device.name!r} is no device: it has the role {device.role} and sends no samples")
    if device.quarantined_at is None:
        connection.execute(
            "UPDATE devices SET quarantined_at = ?, quarantined_by = ? WHERE name = ?",
            (now, actor, device.name),
        )


def _release(connection: sqlite3.Connection, device: Device) -> None:
    if device.quarantined_at is None:
        raise ActRefused(
            f"{device.name!r} is not quarantined by an operator; where the worker has quarantined it, that ends once "
            "its images are like those of the other devices again"
        )
    connection.execute(
        "UPDATE devices SET quarantined_at = NULL, quarantined_by = NULL WHERE name = ?", (device.name,)
    )


def _limited(device: Device, act: Limit) -> DeviceLimits:
    if device.role != "device":
        raise ActRefused(f"{device.name!r} is no device: it has the role {device.role} and sends no samples")
    before = DeviceLimits() if act.as_configured else device.limits
    names = DeviceLimits.__struct_fields__
    said = {name: value for name in names if (value := getattr(act, name)) is not None}
    if not said and not act.as_configured:
        raise ActRefused(f"expected at least one of {', '.join(names)}, or as_configured; say one")
    return msgspec.structs.replace(before, **said)

"""The SQLite store's register of devices."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection
from typing import Any, cast

from cema.cloud.store.audits import AuditedAct
from cema.cloud.store.devices import Device, Role, check_device, new_token, token_digest
from cema.cloud.store.sqlite_audits import AuditTable
from cema.cloud.store.sqlite_database import Database
from cema.errors import StoreError

__all__ = ["SqliteDevices"]


class SqliteDevices:
    """A `DeviceRegister` in the store's database.

    Parameters
    ----------
    database
        The store's database.
    cohorts
        The cohorts that a new device may belong to.
    acts, actor
        Where it is kept what `actor` does with the register; nowhere when left out.
    """

    def __init__(
        self, database: Database, cohorts: Collection[str], *, acts: AuditTable | None = None, actor: str = ""
    ) -> None:
        self._database = database
        self._cohorts = frozenset(cohorts)
        self._acts = acts
        self._actor = actor

    def _record(self, connection: sqlite3.Connection, act: str, device: str, **detail: Any) -> None:
        if self._acts is not None:
            self._acts.record(connection, AuditedAct(self._actor, act, device, detail))

    def add(self, name: str, *, cohort: str | None, role: Role = "device", now: float | None = None) -> str:
        """Register a device and return its token, see `DeviceRegister.add`."""
        check_device(name, cohort, role, self._cohorts)
        token = new_token()
        row = (name, role, cohort, token_digest(token), time.time() if now is None else now)
        with self._database.write() as connection:
            try:
                connection.execute(
                    "INSERT INTO devices (name, role, cohort, token_hash, created_at) VALUES (?, ?, ?, ?, ?)",
                    row,
                )
            except sqlite3.IntegrityError as error:
                raise StoreError(
                    f"there is a device {name!r} already; choose another name, or give it a new token with renew"
                ) from error
            self._record(connection, "device.add", name, role=role, cohort=cohort)
        return token

    def revoke(self, name: str, *, now: float | None = None) -> None:
        """End a token's life, see `DeviceRegister.revoke`."""
        with self._database.write() as connection:
            known = connection.execute(
                "UPDATE devices SET revoked_at = coalesce(revoked_at, ?) WHERE name = ?",
                (time.time() if now is None else now, name),
            ).rowcount
            if not known:
                raise StoreError(f"there is no device {name!r}; list the devices to see their names")
            self._record(connection, "device.revoke", name)

    def renew(self, name: str) -> str:
        """Give a device a new token, see `DeviceRegister.renew`."""
        token = new_token()
        with self._database.write() as connection:
            row = connection.execute("SELECT revoked_at FROM devices WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise StoreError(f"there is no device {name!r}; list the devices to see their names")
            if row[0] is not None:
                raise StoreError(f"the device {name!r} is revoked; add it anew under another name")
            connection.execute(
                "UPDATE devices SET token_hash = ? WHERE name = ?", (token_digest(token), name)
            )
            self._record(connection, "device.renew", name)
        return token

    def list(self) -> tuple[Device, ...]:
        """Return all devices, revoked ones too, by name."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT name, role, cohort, created_at, revoked_at FROM devices ORDER BY name"
            ).fetchall()
        return tuple(Device(row[0], cast("Role", row[1]), *row[2:]) for row in rows)

    def authenticate(self, token: str) -> Device | None:
        """Return whose token this is, revoked or not, or None when nobody's."""
        return self.of_digest(token_digest(token))

    def of_digest(self, digest: bytes) -> Device | None:
        """Return whose token has this digest, see `cema.cloud.store.devices.token_digest`."""
        row = self._database.peek(
            "SELECT name, role, cohort, created_at, revoked_at FROM devices WHERE token_hash = ?", (digest,)
        )
        return Device(row[0], cast("Role", row[1]), *row[2:]) if row else None

"""Who may talk to the cloud: devices and operators, by bearer token."""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, cast

from cema.cloud.config import CloudConfig
from cema.cloud.store.sqlite_database import Database
from cema.errors import StoreError

__all__ = ["Device", "Devices", "Role"]

Role = Literal["device", "operator"]
TOKEN_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Device:
    """A holder of a token.

    Attributes
    ----------
    name
        Unique; letters, digits, ``.``, ``_`` and ``-``.
    role
        ``device``: uploads samples and fetches updates. ``operator``: reads status and metrics too, and
        changes nothing.
    cohort
        The only cohort it may speak for; None, for an operator, stands for all.
    created_at, revoked_at
        Unix seconds; `revoked_at` is None while the token is good.
    """

    name: str
    role: Role
    cohort: str | None
    created_at: float
    revoked_at: float | None


class Devices:
    """The register of devices, in the store's database.

    A token is 256 random bits. Only its SHA-256 is kept: at that entropy a slow hash would add nothing, and a
    look-up by hash leaks nothing useful through its timing.
    """

    def __init__(self, database: Database, cohorts: Collection[str]) -> None:
        self._database = database
        self._cohorts = frozenset(cohorts)

    @classmethod
    def open(cls, config: CloudConfig) -> Devices:
        """Open the register of a configured cloud, running or not."""
        database = Database(config.database, max_bytes=config.limits.store_bytes)
        return cls(database, [cohort.name for cohort in config.cohort])

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> Devices:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def add(self, name: str, *, cohort: str | None, role: Role = "device", now: float | None = None) -> str:
        """Register a device and return its token. It is not shown again: the store keeps only its hash.

        Parameters
        ----------
        name
            A name that nobody has or had.
        cohort
            The cohort it belongs to; an operator may have None, and then sees all.
        role
            What it may do, see `Device`.
        now
            Unix seconds; the clock's when None.

        Raises
        ------
        StoreError
            The name is taken or malformed, or there is no such cohort or role.
        """
        if not NAME.fullmatch(name):
            raise StoreError(
                f"device name must be 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or "
                f"digit, got {name!r}"
            )
        if role not in ("device", "operator"):
            raise StoreError(f"role must be 'device' or 'operator', got {role!r}")
        if cohort is None and role == "device":
            raise StoreError("a device belongs to one cohort; name it")
        if cohort is not None and cohort not in self._cohorts:
            raise StoreError(f"there is no cohort {cohort!r}; choose one of {sorted(self._cohorts)}")
        token = secrets.token_urlsafe(TOKEN_BYTES)
        try:
            with self._database.write() as connection:
                connection.execute(
                    "INSERT INTO devices (name, role, cohort, token_hash, created_at) VALUES (?, ?, ?, ?, ?)",
                    (name, role, cohort, _digest(token), time.time() if now is None else now),
                )
        except sqlite3.IntegrityError as error:
            raise StoreError(f"there is a device {name!r} already; choose another name") from error
        return token

    def revoke(self, name: str, *, now: float | None = None) -> None:
        """End a token's life, at once; the name stays taken.

        Raises
        ------
        StoreError
            There is no such device.
        """
        with self._database.write() as connection:
            known = connection.execute(
                "UPDATE devices SET revoked_at = coalesce(revoked_at, ?) WHERE name = ?",
                (time.time() if now is None else now, name),
            ).rowcount
        if not known:
            raise StoreError(f"there is no device {name!r}; list the devices to see their names")

    def list(self) -> tuple[Device, ...]:
        """Return all devices, revoked ones too, by name."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT name, role, cohort, created_at, revoked_at FROM devices ORDER BY name"
            ).fetchall()
        return tuple(Device(row[0], cast("Role", row[1]), *row[2:]) for row in rows)

    def authenticate(self, token: str) -> Device | None:
        """Return whose token this is, revoked or not, or None when nobody's."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT name, role, cohort, created_at, revoked_at FROM devices WHERE token_hash = ?",
                (_digest(token),),
            ).fetchone()
        return Device(row[0], cast("Role", row[1]), *row[2:]) if row else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()

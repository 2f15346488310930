"""Who may talk to the cloud: devices and operators, by bearer token."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import msgspec

from cema.errors import StoreError

__all__ = [
    "EXPIRES_SOON",
    "Device",
    "DeviceLimits",
    "DeviceRegister",
    "Role",
    "check_device",
    "new_token",
    "token_digest",
]

Role = Literal["device", "operator", "admin"]
EXPIRES_SOON = 14 * 86_400.0
"""From so many seconds before a token expires, the log, the metrics and the list of devices say so."""
TOKEN_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class DeviceLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one device may send, where that differs from what is configured for all.

    Attributes
    ----------
    samples_per_hour, samples_per_day, bytes_per_hour, bytes_per_day : int or None
        None: as configured; 0: no limit.
    """

    samples_per_hour: int | None = None
    samples_per_day: int | None = None
    bytes_per_hour: int | None = None
    bytes_per_day: int | None = None


AS_CONFIGURED = DeviceLimits()


@dataclass(frozen=True, slots=True)
class Device:
    """A holder of a token.

    Attributes
    ----------
    name
        Unique; letters, digits, ``.``, ``_`` and ``-``.
    role
        ``device``: uploads samples and fetches updates. ``operator``: reads status, versions, acts and metrics, and
        changes nothing. ``admin``: reads the same, and acts on versions and devices.
    cohort
        The only cohort it may speak for; None, for an operator or an admin, stands for all.
    created_at, revoked_at
        Unix seconds; `revoked_at` is None while the token is good.
    expires_at
        Unix seconds from which it may do nothing; None for never. This and what follows only a `FleetRegister`
        knows (`cema.cloud.store.fleet`).
    quarantined_at, quarantined_by
        When an operator has quarantined it, and who; None while nobody has.
    limits
        What it may send.
    older_token_until
        Until when the token before the newest one is good too; None where only the newest one is.
    taken_at
        When the newest token was first used beside an older one.
    by_older_token
        Whether `DeviceRegister.authenticate` was given that older token.
    """

    name: str
    role: Role
    cohort: str | None
    created_at: float
    revoked_at: float | None
    expires_at: float | None = None
    quarantined_at: float | None = None
    quarantined_by: str | None = None
    limits: DeviceLimits = AS_CONFIGURED
    older_token_until: float | None = None
    taken_at: float | None = None
    by_older_token: bool = False


class DeviceRegister(Protocol):
    """The register of devices, part of a store: `Store.devices` returns it, and it closes with the store.

    Only the SHA-256 of a token is kept, see `token_digest`. Like the store's own methods, those of the register may
    raise `StoreUnavailable`.
    """

    def add(self, name: str, *, cohort: str | None, role: Role = "device", now: float | None = None) -> str:
        """Register a device and return its token. It is not shown again: the store keeps only its hash.

        Parameters
        ----------
        name
            A name that nobody has or had, but for devices that were removed.
        cohort
            The cohort it belongs to; an operator or an admin may have None, and then all are meant.
        role
            What it may do, see `Device`.
        now
            Unix seconds; the clock's when None.

        Raises
        ------
        StoreError
            The name is taken or malformed, or there is no such cohort or role.
        """
        ...

    def revoke(self, name: str, *, now: float | None = None) -> None:
        """End a token's life, at once; the name stays taken, and the first time of revocation stays.

        Raises
        ------
        StoreError
            There is no such device.
        """
        ...

    def renew(self, name: str) -> str:
        """Give a device a new token and return it; the old one is nobody's from now on.

        For a token that was lost or seen by others. Name, cohort, role and time of registration stay.

        Raises
        ------
        StoreError
            There is no such device, or it is revoked: what was revoked stays so.
        """
        ...

    def list(self) -> tuple[Device, ...]:
        """Return all devices, revoked ones too, by name."""
        ...

    def authenticate(self, token: str) -> Device | None:
        """Return whose token this is, revoked or not, or None when nobody's."""
        ...


def check_device(name: str, cohort: str | None, role: Role, cohorts: Collection[str]) -> None:
    """Refuse a device that no register takes, whatever is in it already.

    Raises
    ------
    StoreError
        The name is malformed, or there is no such cohort or role.
    """
    if not NAME.fullmatch(name):
        raise StoreError(
            f"device name must be 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or "
            f"digit, got {name!r}"
        )
    if role not in get_args(Role):
        raise StoreError(f"role must be one of {', '.join(get_args(Role))}, got {role!r}")
    if cohort is None and role == "device":
        raise StoreError(f"a device belongs to one cohort; name it, out of {sorted(cohorts)}")
    if cohort is not None and cohort not in cohorts:
        raise StoreError(f"there is no cohort {cohort!r}; choose one of {sorted(cohorts)}")


def new_token() -> str:
    """Return a token of 256 random bits, in base64url.

    Examples
    --------
    >>> len(new_token())
    43
    """
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(token: str) -> bytes:
    """Return what a register keeps of a token: its SHA-256, 32 bytes.

    At 256 random bits a slow hash would add nothing, and a look-up by hash leaks nothing useful through its timing.

    Examples
    --------
    >>> len(token_digest("a token"))
    32
    """
    return hashlib.sha256(token.encode()).digest()

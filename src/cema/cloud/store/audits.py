"""What a store keeps of the acts of those who run the service: who did what, and when.

A back end may do without; `audits_of` tells. Acts are only ever added. An act is durable together with what it tells
of: a back end writes both in one transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from cema.cloud.store.base import Store
from cema.cloud.store.devices import DeviceRegister
from cema.errors import StoreError

__all__ = ["AuditStore", "AuditedAct", "RecordedAct", "audits_of"]


@dataclass(frozen=True, slots=True)
class AuditedAct:
    """Something that somebody does.

    Attributes
    ----------
    actor
        Who: ``os:NAME`` for a user of the operating system at the command line, ``token:NAME`` for the holder of a
        token.
    name
        What, with a dot: ``device.add``.
    subject
        To what or whom, such as a device's name.
    detail
        JSON-able, and never a secret.
    """

    actor: str
    name: str
    subject: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordedAct:
    """An act as it is kept.

    Attributes
    ----------
    seq
        Its place in the record, growing.
    at
        Unix seconds.
    act
        What was done.
    """

    seq: int
    at: float
    act: AuditedAct


@runtime_checkable
class AuditStore(Protocol):
    """The part of a store that keeps acts; see `cema.cloud.store.base.Store` for what every method may raise."""

    def record_act(self, act: AuditedAct, *, now: float | None = None) -> None:
        """Keep an act, durably.

        Parameters
        ----------
        act
            What was done.
        now
            Unix seconds; the clock's when None.
        """
        ...

    def audit(self, *, after: int = 0, limit: int) -> Sequence[RecordedAct]:
        """Return up to `limit` acts that follow `after` in the record, oldest first."""
        ...

    def newest_audit(self, limit: int) -> Sequence[RecordedAct]:
        """Return the newest acts, oldest first."""
        ...

    def audited_devices(self, cohorts: Collection[str], *, actor: str) -> DeviceRegister:
        """Return the register of devices, as `Store.devices` does, that keeps who adds, renews and revokes.

        The acts are ``device.add`` (detail: ``role``, ``cohort``), ``device.renew`` and ``device.revoke``, and of a
        `cema.cloud.store.fleet.FleetRegister` one for each of its acts, such as ``device.move``.
        """
        ...


def audits_of(store: Store) -> AuditStore:
    """Return a store that keeps acts as one.

    Raises
    ------
    StoreError
        Its back end keeps none.
    """
    if not isinstance(store, AuditStore):
        raise StoreError("this store keeps no record of acts; use the store that CEMA comes with (sqlite)")
    return store

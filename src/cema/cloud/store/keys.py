"""What a store keeps of the keys that devices trust: the signed keys documents of every cohort.

A back end may do without; `keys_of` tells. Devices of its cohorts trust the keys of their bundles then.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cema.cloud.store.audits import AuditedAct
from cema.cloud.store.base import Store
from cema.errors import StoreError

__all__ = ["KeysStore", "keys_of"]


@runtime_checkable
class KeysStore(Protocol):
    """The part of a store that keeps keys documents; see `cema.cloud.store.base.Store` for what a method may raise."""

    def keys_documents(self, cohort: str) -> list[bytes]:
        """Return the envelopes of a cohort's keys documents, by rising serial number."""
        ...

    def put_keys_document(
        self, cohort: str, serial: int, envelope: bytes, *, act: AuditedAct | None = None
    ) -> None:
        """Keep one more, durably; a serial number that is not above the last one is refused (StoreError).

        With `act`, where the store has a record of acts, both are kept or neither.
        """
        ...


def keys_of(store: Store) -> KeysStore:
    """Return a store that keeps keys documents as one.

    Raises
    ------
    StoreError
        Its back end keeps none.
    """
    if not isinstance(store, KeysStore):
        raise StoreError("this store keeps no keys documents; use the store that CEMA comes with (sqlite)")
    return store

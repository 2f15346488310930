"""What a store keeps of the way from samples to an update: a trace by version, for those who run the service.

A back end may do without; `traces_of` tells. A trace travels with its update (`PublishedUpdate.trace`) into the step's
commit, so that there is none of a version that was never published.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from cema.cloud.store.base import Store
from cema.errors import StoreError

__all__ = ["DEVICES_TRACED", "TRACES_KEPT", "Fetch", "TraceStore", "traces_of"]

# Versions whose traces are kept, at most, and one for so many bytes of the store's cap.
TRACES_KEPT = 1000
# Devices whose fetching of a version is noted: the first ones.
DEVICES_TRACED = 64


class Fetch(NamedTuple):
    """A device was given the envelope of a version: its cohort, the version, who, and when (unix seconds)."""

    cohort: str
    version: int
    device: str
    at: float


@runtime_checkable
class TraceStore(Protocol):
    """The part of a store that keeps traces; see `cema.cloud.store.base.Store` for what every method may raise."""

    def newest_versions(self, cohorts: Collection[str]) -> dict[str, int]:
        """Return the newest version by cohort, in one query; 0 before the first."""
        ...

    def note_fetches(self, fetches: Sequence[Fetch]) -> None:
        """Keep when devices were first given a version, of the `DEVICES_TRACED` first; other traces are ignored."""
        ...

    def traced(self, cohort: str) -> list[int]:
        """Return the versions whose traces are kept, oldest first."""
        ...

    def trace(self, cohort: str, version: int) -> dict[str, Any] | None:
        """Return the trace of a version; None where none is kept.

        Beside what the worker noted (`cema.cloud.worker.tracing`) there is ``devices``: by name ``fetched_at``, when
        the device was first given the version, and ``received_at`` and ``captured_at`` of the first stored sample that
        it predicted with this version or a newer one; each None where nothing is known. A device whose guard lets the
        source model predict reports no version.
        """
        ...


def traces_of(store: Store) -> TraceStore:
    """Return a store that keeps traces as one.

    Raises
    ------
    StoreError
        Its back end keeps none.
    """
    if not isinstance(store, TraceStore):
        raise StoreError("this store keeps no traces of updates; use the store that CEMA comes with (sqlite)")
    return store

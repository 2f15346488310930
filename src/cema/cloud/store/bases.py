"""What a store keeps of the base models that a cohort's devices have had, one after another.

A back end may do without; `bases_of` tells. Version numbers go on growing over all bases, so that a version belongs to
the base of the period in which it was published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from cema.cloud.store.base import PublishedUpdate, Store, UpdateTag
from cema.cloud.store.offers import offers_of
from cema.errors import StoreError

__all__ = ["BaseStore", "DeviceBase", "Migration", "Period", "base_at", "bases_of", "newest_of", "periods_of"]


class Period(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A time in which the devices of a cohort were to have one base model.

    Attributes
    ----------
    base : str
        The base model's digest.
    after : int
        The newest version before it: those above, up to that of the next period, are for this base.
    at : float
        When it began, unix seconds; 0 for the first, of which nobody noted it.
    path : str
        Where its bundle was then; empty where nobody noted it.
    """

    base: str
    after: int
    at: float = 0.0
    path: str = ""


class DeviceBase(NamedTuple):
    """A device has said which base model it has: its cohort, its name, the base, and when (unix seconds)."""

    cohort: str
    device: str
    base: str
    at: float


class Migration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of a cohort's base model.

    Attributes
    ----------
    old, new : str
        The digests of the base models. The same twice: only the notice is another.
    serial : int
        That of the notice.
    notice : bytes
        The signed notice for devices (`cema.formats.bundle_notice`).
    path : str
        Where the new bundle is, for people.
    again : int
        So many of the newest samples wait for the worker once more: what the new model learns from first.
    """

    old: str
    new: str
    serial: int
    notice: bytes
    path: str = ""
    again: int = 0


@runtime_checkable
class BaseStore(Protocol):
    """The part of a store that changes bases; see `cema.cloud.store.base.Store` for what every method may raise."""

    def periods(self, cohort: str) -> tuple[Period, ...]:
        """Return the periods of a cohort, oldest first; empty where it has had one base model only. One row is read."""
        ...

    def migrate(self, cohort: str, migration: Migration, *, actor: str, now: float) -> tuple[Period, ...]:
        """Give a cohort another base model, durably, all of it or nothing, and return its periods then.

        Samples, devices, versions and counters stay; what was learned goes, and whoever works on the cohort is fenced.

        Raises
        ------
        StoreError
            The cohort is unknown or has another base than `old`; the serial number does not follow the last one; or
            it is pinned to a version, or a worker has still to do an act.
        """
        ...

    def bundle_notice(self, cohort: str) -> tuple[int, bytes] | None:
        """Return serial number and envelope of the newest notice, or None before the first."""
        ...

    def newest_of(
        self, cohort: str, base: str, *, before: float | None = None, alive: float | None = None
    ) -> PublishedUpdate | None:
        """Return the newest kept version for a base.

        With `before` (unix seconds), the newest that was made before that, or else the oldest that is kept: the first
        version of the newest base is. With `alive` (unix seconds), none that has expired by then.
        """
        ...

    def tag_of(
        self, cohort: str, base: str, *, before: float | None = None, alive: float | None = None
    ) -> UpdateTag | None:
        """Return the tag of `newest_of`: one row is read."""
        ...

    def note_device_bases(self, notes: Sequence[DeviceBase]) -> None:
        """Keep which base each device has said last that it has."""
        ...

    def device_bases(self, cohort: str) -> list[DeviceBase]:
        """Return what devices of a cohort have said last, by name."""
        ...


def bases_of(store: Store) -> BaseStore:
    """Return a store that changes bases as one.

    Raises
    ------
    StoreError
        Its back end does not.
    """
    if not isinstance(store, BaseStore):
        raise StoreError(
            "this store cannot change a cohort's base; use the store that CEMA comes with (sqlite)"
        )
    return store


def periods_of(store: Store, cohort: str) -> tuple[Period, ...]:
    """Return the periods of a cohort; empty where it has had one base model only, or the store knows no others."""
    return store.periods(cohort) if isinstance(store, BaseStore) else ()


def newest_of(store: Store, cohort: str, base: str) -> PublishedUpdate | None:
    """Return the newest version that is for a base and all its devices; with one base only, the newest for all."""
    if isinstance(store, BaseStore) and store.periods(cohort):
        return store.newest_of(cohort, base)
    offers = offers_of(store)
    return store.latest_update(cohort) if offers is None else offers.for_all(cohort)


def base_at(periods: Sequence[Period], version: int) -> str | None:
    """Return the base that a version is for; None where there are no periods.

    Examples
    --------
    >>> periods = [Period(base="a", after=0), Period(base="b", after=4)]
    >>> base_at(periods, 4), base_at(periods, 5), base_at([], 5)
    ('a', 'b', None)
    """
    return next((period.base for period in reversed(periods) if version > period.after), None)

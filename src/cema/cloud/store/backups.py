"""Copies of a store, and stores made of them: what a back end may have for this.

A back end may do without. `backups_of` tells whether a store makes copies, `restorer_of` whether a back end takes them.
The versions that were published after a copy was made are not in it, but devices have seen their numbers and refuse
them. A restored store therefore has a floor for each cohort: the lowest number that the next version may have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cema.cloud.store.base import Backend, Store
from cema.errors import StoreError

__all__ = [
    "BackupStore",
    "Content",
    "Held",
    "Progress",
    "Restored",
    "RestoringBackend",
    "backups_of",
    "restorer_of",
    "version_floor",
]

Progress = Callable[[int, int], None]
"""Called with the bytes that are copied, and how many there are in all."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a store holds of one cohort.

    Attributes
    ----------
    version
        The newest version; 0 before the first.
    samples
        Stored samples.
    next_version
        The floor that the store had when it was copied; 0 for none.
    """

    version: int
    samples: int
    next_version: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """What a copy of a store holds.

    Attributes
    ----------
    cohorts
        By name.
    devices, revoked
        Holders of tokens, and how many of them are revoked.
    size
        Bytes of the copy.
    made_at
        When the copy was begun, unix seconds; None where that is not known: the file is no backup of ours.
    notes
        What was given to `BackupStore.backup`.
    """

    cohorts: Mapping[str, Held]
    devices: int
    revoked: int
    size: int
    made_at: float | None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done to restore a store.

    Attributes
    ----------
    kept
        What there was before, under its new names; empty when there was nothing.
    tokens_back
        Whose tokens are good in the restored store, and were not in the store of before: revoked or renewed since.
        None where there was no store, or none that could be read.
    """

    kept: tuple[Path, ...]
    tokens_back: tuple[str, ...] | None


@runtime_checkable
class BackupStore(Protocol):
    """The part of a store that makes copies; see `cema.cloud.store.base.Store` for what every method may raise."""

    def backup(
        self, path: Path, *, now: float, notes: Mapping[str, Any], progress: Progress | None = None
    ) -> Content:
        """Write a copy of the store, as it is at one moment, to a new file, and check the copy.

        Others may read and write the store meanwhile. The file appears under its name when it is whole and durable,
        and only its owner may read it.

        Parameters
        ----------
        path
            A file that does not exist.
        now
            Unix seconds; kept in the copy.
        notes
            JSON-able; kept in the copy.
        progress
            Told how far the copy is.

        Raises
        ------
        FileExistsError
            There is such a file.
        OSError
            It cannot be written.
        StoreError
            The copy is not whole: the store is damaged.
        """
        ...

    def version_floor(self, cohort: str) -> int:
        """Return the lowest number that the next version of a cohort may have; 0 where any will do."""
        ...


class RestoringBackend(Protocol):
    """The part of a back end that makes a store of a copy."""

    def inspect(self, backup: Path) -> Content:
        """Check a copy, and return what it holds.

        Raises
        ------
        StoreError
            It is damaged, or no copy of such a store.
        """
        ...

    def newest_versions_at(self, address: str) -> dict[str, int] | None:
        """Return by cohort the newest version of the store at an address, or its floor less 1 where that is higher.

        None where there is no store, or none that can be read.
        """
        ...

    def restore(
        self,
        address: str,
        backup: Path,
        *,
        floors: Mapping[str, int],
        replace: bool,
        progress: Progress | None = None,
    ) -> Restored:
        """Put a checked copy in the place of the store, all of it or nothing; what was there is kept beside it.

        Parameters
        ----------
        address
            Of the store.
        backup
            The copy; it stays as it is.
        floors
            By cohort, the lowest number that the next version may have; kept in the store.
        replace
            Whether there may be a store already.
        progress
            Told how far it is.

        Raises
        ------
        StoreError
            There is a store already, or a process is using it; or the copy is damaged.
        """
        ...


def backups_of(store: Store) -> BackupStore:
    """Return a store that makes copies as one.

    Raises
    ------
    StoreError
        Its back end makes none.
    """
    if not isinstance(store, BackupStore):
        raise StoreError("this store makes no backups; make them with the means of its database")
    return store


def restorer_of(backend: Backend) -> RestoringBackend:
    """Return a back end that makes stores of copies as one.

    Raises
    ------
    StoreError
        It does not.
    """
    missing = [name for name in ("inspect", "newest_versions_at", "restore") if not hasattr(backend, name)]
    if missing:
        raise StoreError("this store cannot be restored by CEMA; restore it with the means of its database")
    restoring: Any = backend
    return restoring  # type: ignore[no-any-return]


def version_floor(store: Store, cohort: str) -> int:
    """Return the lowest number that the next version of a cohort may have; 0 where the store knows of none."""
    return store.version_floor(cohort) if isinstance(store, BackupStore) else 0

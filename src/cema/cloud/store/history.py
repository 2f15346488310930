"""What a store keeps of measures over time: for each cohort, sums in bins of time that get wider as they get older.

A measure is a name with two sums: how many there were, and what they add up to. Bins are merged by addition, so that
several processes may note what they see at once, and a bin of an hour is the sum of its seconds. A back end may do
without; `history_of` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from cema.cloud.store.base import Store

__all__ = [
    "BIN_SECONDS",
    "LABELLED",
    "LEVELS",
    "MOST_LABELLED",
    "MOST_MEASURES",
    "DomainChange",
    "HistoryBin",
    "HistoryNote",
    "HistoryStore",
    "Level",
    "Measures",
    "Published",
    "added",
    "history_of",
    "merged",
    "width_at",
]

BIN_SECONDS = 10
"""The width of the newest bins."""
MOST_MEASURES = 96
"""Measures of one bin; those of more are not kept. The names come from the cloud, apart from what admins write."""
LABELLED = "labelled."
"""What the names of measures from outside begin with."""
MOST_LABELLED = 32
"""Of them so many are kept in a bin, so that there is room for the cloud's own."""

Measures: TypeAlias = Mapping[str, tuple[float, float]]
"""By name: how many there were, and what they add up to."""


class Level(NamedTuple):
    """Bins of `seconds`, until they are older than `age` seconds; `bins` of them are kept, at most."""

    seconds: int
    age: float
    bins: int


LEVELS = (
    Level(BIN_SECONDS, 3600.0, 3600 // BIN_SECONDS),
    Level(60, 25 * 3600.0, 24 * 60),
    Level(900, float("inf"), 31 * 96),
)
"""Seconds for an hour, minutes for a day more, and quarters of an hour for 31 days in which something happened."""


class HistoryNote(NamedTuple):
    """What was measured in a cohort at a moment (unix seconds)."""

    cohort: str
    at: float
    measures: Measures


class DomainChange(NamedTuple):
    """A moment at which the inputs of a cohort changed.

    Attributes
    ----------
    cohort : str
    at : float
        Unix seconds.
    distance : float or None
        Between what inputs look like now and before, where the learner tells.
    """

    cohort: str
    at: float
    distance: float | None = None


class Published(NamedTuple):
    """A version of a cohort.

    Attributes
    ----------
    version : int
    at : float
        When it was published, unix seconds.
    kind : str
        Why, as its trace says.
    domain : tuple of float or None
        What inputs looked like then: the means of their statistics.
    """

    version: int
    at: float
    kind: str
    domain: tuple[float, ...] | None = None


class HistoryBin(NamedTuple):
    """The sums of one bin, which began at `at` (unix seconds)."""

    at: int
    measures: dict[str, tuple[float, float]]


@runtime_checkable
class HistoryStore(Protocol):
    """The part of a store that keeps a history; see `cema.cloud.store.base.Store` for what every method may raise.

    Its `cema.cloud.store.base.Store.commit_step` keeps when a version was published, and why.
    """

    def note_history(self, notes: Sequence[HistoryNote], changes: Sequence[DomainChange] = ()) -> None:
        """Add measures to the bins of their moments, and keep changes: all or nothing."""
        ...

    def history(self, cohort: str, since: float, until: float, seconds: int) -> list[HistoryBin]:
        """Return the bins in which something is known, oldest first.

        Parameters
        ----------
        cohort
            The cohort.
        since, until
            Unix seconds: bins that begin at or after the one of `since`, and before `until`.
        seconds
            Their width, a multiple of `BIN_SECONDS`. What was kept in wider ones is in the bin of their beginning.
        """
        ...

    def domain_changes(self, cohort: str, since: float, until: float) -> list[DomainChange]:
        """Return the changes from `since` until before `until`, oldest first."""
        ...

    def published(self, cohort: str, since: float, until: float) -> list[Published]:
        """Return the versions that were published from `since` until before `until`, oldest first."""
        ...

    def fetched(self, cohort: str, device: str, *, limit: int) -> list[tuple[int, float]]:
        """Return the newest versions that a device has fetched, and when it first did (unix seconds), newest first.

        Of each version the first devices are noted alone, see `cema.cloud.store.traces.TraceStore.note_fetches`.
        """
        ...


def history_of(store: Store) -> HistoryStore | None:
    """Return a store that keeps a history as one, or None."""
    return store if isinstance(store, HistoryStore) else None


def added(one: Measures, *others: Measures) -> dict[str, tuple[float, float]]:
    """Return the sums of measures.

    Examples
    --------
    >>> added({"entropy": (2, 1.5)}, {"entropy": (1, 0.5), "samples": (1, 1)})
    {'entropy': (3, 2.0), 'samples': (1, 1)}
    """
    found = dict(one)
    for other in others:
        for name, (count, total) in other.items():
            known = found.get(name)
            if known is not None:
                found[name] = known[0] + count, known[1] + total
            elif len(found) < MOST_MEASURES and not (name.startswith(LABELLED) and _many_labelled(found)):
                found[name] = count, total
    return found


def _many_labelled(known: Measures) -> bool:
    return sum(name.startswith(LABELLED) for name in known) >= MOST_LABELLED


def merged(bins: Iterable[tuple[int, Measures]], seconds: int) -> list[HistoryBin]:
    """Return bins of another width; those given may come in any order."""
    found: dict[int, dict[str, tuple[float, float]]] = {}
    for at, measures in bins:
        start = at - at % seconds
        into = found.setdefault(start, {})
        for name, (count, total) in measures.items():
            known = into.get(name)
            into[name] = (count, total) if known is None else (known[0] + count, known[1] + total)
    return [HistoryBin(at, found[at]) for at in sorted(found)]


def width_at(age: float) -> int:
    """Return the width of the bins that are kept of a moment so many seconds ago.

    Examples
    --------
    >>> width_at(5), width_at(7200), width_at(1e6)
    (10, 60, 900)
    """
    return next(level.seconds for level in LEVELS if age <= level.age)

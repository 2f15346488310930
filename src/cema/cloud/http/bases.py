"""Which versions a device is to get: those for the base model that it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cema._util.checks import is_sha256
from cema.cloud.http.errors import ApiError
from cema.cloud.store.base import PublishedUpdate, Store, UpdateTag
from cema.cloud.store.bases import BaseStore

__all__ = ["BASE_HEADER", "Bases", "Line"]

BASE_HEADER = "CEMA-Base"
"""Names the base model that a cohort's devices are to have, in the answer to a device that named its own."""
# A device that names no base may be one that knows nothing of migrations, and logs each version that it must refuse.
# Until the end of an hour it is offered what was the newest at its beginning.
HOUR = 3600.0


class Line(NamedTuple):
    """The versions that a sender is to get.

    Attributes
    ----------
    base : str or None
        The base model that they are for; None where the cohort has had one only.
    waits : bool
        Whether a version that is published now would be one of them.
    after : int
        All versions up to this one are for others.
    before : float or None
        Where older ones are preferred: the moment (unix seconds) that they were made before.
    alive : float or None
        For a base of before, whose versions nobody signs anew: the moment at which they may not have expired. A device
        would refuse one that has, again and again.
    headers : mapping of str to str
        For the answer.
    """

    base: str | None = None
    waits: bool = True
    after: int = 0
    before: float | None = None
    alive: float | None = None
    headers: Mapping[str, str] = {}


class Bases:
    """The base models of every cohort.

    Parameters
    ----------
    store : Store
        One that changes no bases has a single line of versions for each cohort.
    latest_tag, latest_update : callable
        Return the newest version of a cohort that a device is offered, and its tag.
    """

    def __init__(
        self,
        store: Store,
        latest_tag: Callable[[str, str], UpdateTag | None],
        latest_update: Callable[[str, str], PublishedUpdate | None],
    ) -> None:
        self._latest_tag, self._latest_update = latest_tag, latest_update
        self._bases = store if isinstance(store, BaseStore) else None

    def line(self, cohort: str, base: str | None) -> Line:
        """Return what a sender is to get that has named a base, or none.

        Raises
        ------
        ApiError
            400: it is none.
        """
        if base is not None and not is_sha256(base):
            raise ApiError(
                "invalid_request",
                f"base: expected a SHA-256 in lowercase hex, got {base[:80]!r}",
                "leave it out, or send the base of the device's bundle",
            )
        periods = self._bases.periods(cohort) if self._bases else ()
        if not periods:
            return Line()
        newest, known, now = periods[-1], {period.base for period in periods}, time.time()
        if base is None:
            for period in reversed(periods):
                if self._bases and self._bases.tag_of(cohort, period.base) is not None:
                    break
            alive = None if period.base == newest.base else now
            return Line(period.base, waits=False, before=now // HOUR * HOUR, alive=alive)
        told = {BASE_HEADER: newest.base}
        if base in known - {newest.base}:
            return Line(base, waits=False, alive=now, headers=told)
        # Of another base altogether: it is offered what it must refuse, as ever, so that somebody sees it.
        return Line(newest.base, waits=base == newest.base, after=newest.after, headers=told)

    def tag(self, cohort: str, line: Line, device: str) -> UpdateTag | None:
        """Return the tag of the newest version of a line that a device is offered."""
        if line.waits or line.base is None or self._bases is None:
            tag = self._latest_tag(cohort, device)
            if line.base is None or self._bases is None or (tag is not None and tag.version > line.after):
                return tag
        return self._bases.tag_of(cohort, line.base, before=line.before, alive=line.alive)

    def latest(self, cohort: str, line: Line, device: str) -> PublishedUpdate | None:
        """Return the newest version of a line that a device is offered."""
        if line.waits or line.base is None or self._bases is None:
            update = self._latest_update(cohort, device)
            if line.base is None or self._bases is None or (update and update.version > line.after):
                return update
        return self._bases.newest_of(cohort, line.base, before=line.before, alive=line.alive)

    def still(self, cohort: str, line: Line) -> bool:
        """Tell whether what is published for a cohort is on a line still: its base may have changed meanwhile."""
        periods = self._bases.periods(cohort) if self._bases else ()
        return (periods[-1].base if periods else None) == line.base

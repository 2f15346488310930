"""Requests that wait for a new version: all of them are woken by one look at the store.

The worker that publishes is another process. So while anybody waits, one task reads the newest version of every cohort
a few times a second, whatever the number of those who wait, and reads an update once for all who wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from starlette.concurrency import run_in_threadpool

from cema._util.events import report
from cema.cloud import events
from cema.cloud.store.base import PublishedUpdate, Store
from cema.cloud.store.offers import Offers, offers_of
from cema.cloud.store.traces import TraceStore
from cema.errors import StoreError

__all__ = ["LONGEST_WAIT", "MOST_WAITING", "Announcements"]

log = logging.getLogger(__name__)

LONGEST_WAIT = 25.0
"""Seconds that a request may wait. Proxies in front often end an answer that has not begun after 30 or 60."""
MOST_WAITING = 4096
"""Requests that wait at one time, at most; a server with fewer connections lowers it to half of them."""
# Requests of one token that wait at one time: an agent has one, and one that a broken connection left behind.
MOST_OF_ONE = 2
TICK_SECONDS = 0.25


class Announcements:
    """Who waits for which cohort's next version. For one event loop.

    Parameters
    ----------
    store : Store
    cohorts : collection of str
    tick : float
        Seconds between two looks at the store.

    Attributes
    ----------
    most : int
        Requests that may wait at one time.
    """

    def __init__(self, store: Store, cohorts: frozenset[str], *, tick: float = TICK_SECONDS) -> None:
        self.most = MOST_WAITING
        self._store, self._cohorts, self._tick = store, cohorts, tick
        self._offers = offers_of(store)
        self._waiting: dict[asyncio.Future[PublishedUpdate | None], tuple[str, int, str]] = {}
        self._of: Counter[str] = Counter()
        self._watch: asyncio.Task[None] | None = None
        self._ended = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def newer(self, cohort: str, version: int, seconds: float, *, who: str) -> PublishedUpdate | None:
        """Wait for a version above one that the sender is offered, on the event loop.

        Parameters
        ----------
        cohort : str
        version : int
            The one that is known, 0 for none.
        seconds : float
            To wait, at most; never more than `LONGEST_WAIT`.
        who : str
            The name of the token.

        Returns
        -------
        PublishedUpdate or None
            None when none came in time; at once where too many wait already, or the server is stopping.
        """
        if self._ended or len(self._waiting) >= self.most or self._of[who] >= MOST_OF_ONE:
            return None
        future: asyncio.Future[PublishedUpdate | None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = cohort, version, who
        self._of[who] += 1
        if self._watch is None:
            self._watch = asyncio.create_task(self._look())
        try:
            return await asyncio.wait_for(future, min(seconds, LONGEST_WAIT))
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(future, None)
            self._of[who] -= 1
            self._of += Counter()  # tokens without any are dropped

    def end(self) -> None:
        """Answer all who wait, and let nobody wait any more: the server stops."""
        self._ended = True
        for future in self._waiting:
            _answer(future, None)

    async def _look(self) -> None:
        """Look for new versions for as long as anybody waits."""
        while self._waiting:
            await asyncio.sleep(self._tick)
            try:
                await self._announce()
            except StoreError as error:
                report(log, events.VERSIONS_NOT_READ, error=str(error))
        self._watch = None

    async def _announce(self) -> None:
        offers = await run_in_threadpool(self._read_offers)
        updates: dict[tuple[str, int], PublishedUpdate | None] = {}
        for future, (cohort, version, who) in list(self._waiting.items()):
            offered = offers[cohort].named.get(who, offers[cohort].version)
            if offered <= version:
                continue
            if (cohort, offered) not in updates:
                updates[cohort, offered] = await run_in_threadpool(self._update, cohort, offered)
            update = updates[cohort, offered]
            if update is not None and update.version > version:
                _answer(future, update)

    def _read_offers(self) -> dict[str, Offers]:
        if self._offers is not None:
            return self._offers.offers(self._cohorts)
        if isinstance(self._store, TraceStore):
            newest = self._store.newest_versions(self._cohorts)
            return {cohort: Offers(newest.get(cohort, 0), {}) for cohort in self._cohorts}
        updates = {cohort: self._store.latest_update(cohort) for cohort in self._cohorts}
        return {cohort: Offers(update.version if update else 0, {}) for cohort, update in updates.items()}

    def _update(self, cohort: str, version: int) -> PublishedUpdate | None:
        if self._offers is not None:
            return self._offers.update(cohort, version)
        return self._store.latest_update(cohort)


def _answer(future: asyncio.Future[PublishedUpdate | None], update: PublishedUpdate | None) -> None:
    if not future.done():
        future.set_result(update)

"""What those at the page are told as it happens: one look at the store for all who listen."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from starlette.concurrency import run_in_threadpool

from cema._util.events import report
from cema._util.version import __version__
from cema.cloud import events
from cema.cloud.http.readiness import Readiness
from cema.cloud.store.overview import Overview
from cema.errors import StoreError

__all__ = ["MOST_LISTENING", "Listener", "Live", "TooManyListen"]

log = logging.getLogger(__name__)

MOST_LISTENING = 256
"""Pages that are told at one time; a server with fewer connections lowers it to a quarter of them."""
# A person has some tabs; one token is shared by some people.
MOST_OF_ONE = 16
TICK_SECONDS = 1.0
# Where a look at the store takes long, it is looked at for so small a share of the time.
LOOK_SHARE = 10.0


class TooManyListen(Exception):  # noqa: N818 - a state, not a fault
    """Nobody else is told now."""


class Listener:
    """What one page has been told, and what it has still to be told: the newest of each cohort.

    Attributes
    ----------
    ended : bool
        The server stops.
    """

    def __init__(self, cohorts: Collection[str]) -> None:
        self.cohorts = frozenset(cohorts)
        self.told: dict[str, str] = {}
        self.waiting: dict[str, dict[str, Any]] = {}
        self.at = 0.0
        self.first = True
        self.ended = False
        self.woken = asyncio.Event()

    async def next(self, seconds: float) -> dict[str, Any] | None:
        """Wait for what has changed since the last call, at first for all; None where nothing did in time."""
        try:
            await asyncio.wait_for(self.woken.wait(), seconds)
        except TimeoutError:
            return None
        self.woken.clear()
        told, self.waiting = list(self.waiting.values()), {}
        if self.ended or not (told or self.first):
            return None
        self.first = False
        return _told(self.at, told)


class Live:
    """Reads the overview once a second while anybody listens, and tells each what has changed. For one event loop.

    Parameters
    ----------
    overview : Overview
    readiness : Readiness
        Knows what is wrong with the engine.
    cohorts : collection of str
    tick : float
        Seconds between two looks, at least.

    Attributes
    ----------
    most : int
        Pages that may listen at one time.
    """

    def __init__(
        self,
        overview: Overview,
        readiness: Readiness,
        cohorts: Collection[str],
        *,
        tick: float = TICK_SECONDS,
    ) -> None:
        self.most = MOST_LISTENING
        self._overview, self._readiness = overview, readiness
        self._cohorts, self._tick = sorted(cohorts), tick
        self._listening: dict[Listener, str] = {}
        self._of: Counter[str] = Counter()
        self._watch: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()
        self._ended = False
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._found: tuple[float, list[dict[str, Any]]] = (0.0, [])

    def __len__(self) -> int:
        return len(self._listening)

    def read(self, cohorts: Collection[str]) -> dict[str, Any]:
        """Return the overview of some cohorts now; blocks.

        It is read once for all who ask meanwhile: with many cohorts that takes its time.
        """
        asked = time.monotonic()
        with self._lock:
            if self._read_at <= asked:
                self._read_at = time.monotonic()
                self._found = self._overview.read(self._cohorts, self._wrong())
            at, told = self._found
        return _told(at, [one for one in told if one["cohort"] in cohorts])

    def _wrong(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for check in self._readiness.checks():
            # That a cohort's worker is not ready, the overview says itself.
            if not check.ok and not check.name.startswith("cohort "):
                found[""] = " ".join(filter(None, (found.get(""), f"{check.name}: {check.detail}.")))
        return found

    def check(self, who: str) -> None:
        """Tell whether one more page may listen.

        Raises
        ------
        TooManyListen
            So many do already, or so many of this name.
        """
        if self._ended or len(self._listening) >= self.most or self._of[who] >= MOST_OF_ONE:
            raise TooManyListen

    def join(self, who: str, cohorts: Collection[str]) -> Listener:
        """Begin to tell a page of some cohorts, on the event loop; it must be given to `leave` at the end."""
        listener = Listener(cohorts)
        listener.ended = self._ended
        self._listening[listener] = who
        self._of[who] += 1
        if self._watch is None or self._watch.done():
            self._joined = asyncio.Event()  # of the loop that runs now
            self._watch = asyncio.create_task(self._look())
        self._joined.set()
        return listener

    def leave(self, listener: Listener) -> None:
        """Tell a page nothing any more."""
        self._of[self._listening.pop(listener)] -= 1
        self._of += Counter()  # names without any are dropped

    def end(self) -> None:
        """Tell nobody anything any more: the server stops."""
        self._ended = True
        for listener in self._listening:
            listener.ended = True
            listener.woken.set()

    async def _look(self) -> None:
        """Look for as long as anybody listens."""
        loop = asyncio.get_running_loop()
        while self._listening and not self._ended:
            began = loop.time()
            try:
                found = await run_in_threadpool(self.read, self._cohorts)
            except StoreError as error:
                report(log, events.OVERVIEW_NOT_READ, error=str(error))
            except Exception as error:  # those who listen must be told again once it is over
                report(log, events.OVERVIEW_NOT_READ, exc_info=error, error=repr(error))
            else:
                self._tell(found)
            pause = max(self._tick, LOOK_SHARE * (loop.time() - began))
            with suppress(TimeoutError):  # whoever joins is told at once
                await asyncio.wait_for(self._joined.wait(), pause)
            self._joined.clear()
        self._watch = None

    def _tell(self, found: Mapping[str, Any]) -> None:
        for listener in self._listening:
            for cohort in found["cohorts"]:
                name = cohort["cohort"]
                if name in listener.cohorts and listener.told.get(name) != cohort["changed"]:
                    listener.told[name] = cohort["changed"]
                    listener.waiting[name] = cohort
            listener.at = found["at"]
            if listener.waiting or listener.first:
                listener.woken.set()


def _told(at: float, cohorts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"at": at, "version": __version__, "cohorts": cohorts}

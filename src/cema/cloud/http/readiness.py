"""Whether the service can do its work: what ``/readyz``, the status and the metrics say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cema._util.machine import EARLIEST, FREE_BYTES, free_bytes
from cema.cloud.worker.supervisor import Engine
from cema.errors import StoreError

__all__ = ["Check", "Readiness"]

# Anybody may ask, and one of the checks writes to the disk: that one is made no more often than this.
WRITE_SECONDS = 5.0
# A step may take a minute where models are large. With samples waiting, nothing for so long means that nothing goes on.
STALLED_SECONDS = 600.0
CLOCK_SLACK = 60.0


class Check(NamedTuple):
    """One thing that has to be well.

    Attributes
    ----------
    name : str
        ``worker``, ``store``, ``disk``, ``clock``, or ``cohort NAME``.
    ok : bool
        Whether it is.
    detail : str
        What was found, for people.
    """

    name: str
    ok: bool
    detail: str


class Readiness:
    """Checks one engine.

    Parameters
    ----------
    engine
        Whose store, worker, disk and clock are checked.
    clock
        Unix seconds.
    """

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._write_after = -1.0

    def checks(self) -> tuple[Check, ...]:
        """Return all checks."""
        return tuple(self._made())

    def healthy(self, cohort: str) -> bool:
        """Tell whether all is well that one cohort needs."""
        return all(c.ok for c in self.checks() if c.name in ("worker", "store", "disk", f"cohort {cohort}"))

    def _made(self) -> Iterator[Check]:
        running = self._engine.healthy()
        yield Check("worker", running, "it runs" if running else "the worker process is not running")
        yield self._disk()
        names = [cohort.name for cohort in self._engine.config.cohort]
        try:
            self._write(names[0])
            states = {name: self._engine.store.status(name) for name in names}
        except StoreError as error:
            yield Check("store", False, str(error))
            return
        yield Check("store", True, "it can be written")
        yield self._time(states)
        for name, status in states.items():
            yield self._cohort(name, status)

    def _write(self, cohort: str) -> None:
        """Write to the store, for a disk may be full or read-only and reading still work."""
        with self._lock:
            if time.monotonic() >= self._write_after:
                self._engine.store.count(cohort, {"server.checks": 1})
                self._write_after = time.monotonic() + WRITE_SECONDS

    def _disk(self) -> Check:
        folder = self._engine.config.data
        try:
            free = free_bytes(folder)
        except OSError as error:
            return Check("disk", False, f"the data folder cannot be looked at: {error}")
        return Check(
            "disk", free >= FREE_BYTES, f"{free // 2**20} MiB are free, {FREE_BYTES // 2**20} are needed"
        )

    def _time(self, states: dict[str, dict[str, Any]]) -> Check:
        now = self._clock()
        marks = [(status["update"] or {}).get("created", 0.0) for status in states.values()]
        marks += [status["committed_at"] or 0.0 for status in states.values()]
        behind = max(*marks, EARLIEST) - now
        if behind > CLOCK_SLACK:
            what = "the newest step or update" if max(marks) > EARLIEST else "this program"
            return Check("clock", False, f"it is {behind:.0f} s before {what} was made; set it")
        return Check("clock", True, "it is plausible")

    def _cohort(self, name: str, status: dict[str, Any]) -> Check:
        worker = status["worker"] or {}
        if not worker.get("ready"):
            return Check(f"cohort {name}", False, worker.get("error") or "its worker is not ready yet")
        silent = self._clock() - max(worker["seen_at"], status["committed_at"] or 0.0)
        detail = f"{status['backlog']} samples wait, the worker was last heard of {silent:.0f} s ago"
        return Check(f"cohort {name}", not (status["backlog"] and silent > STALLED_SECONDS), detail)

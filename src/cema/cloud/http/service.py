"""What all endpoints of one application share."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, ParamSpec, TypeVar

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from cema.cloud.config import CohortConfig
from cema.cloud.http.bases import Bases
from cema.cloud.http.bundle_facts import BundleFacts, BundlesRead
from cema.cloud.http.device_bases import DeviceBases
from cema.cloud.http.errors import ApiError
from cema.cloud.http.fetches import Fetches
from cema.cloud.http.history_noted import HistoryNotes
from cema.cloud.http.live import Live
from cema.cloud.http.metrics import Metrics
from cema.cloud.http.polls import Polls
from cema.cloud.http.rate import DeviceRates
from cema.cloud.http.readiness import Readiness
from cema.cloud.http.reports_noted import Reports
from cema.cloud.http.tokens import Tokens
from cema.cloud.http.waiting import Announcements
from cema.cloud.store.base import PublishedUpdate, UpdateTag
from cema.cloud.store.offers import offers_of
from cema.cloud.store.overview import Overview
from cema.cloud.worker.supervisor import Engine

__all__ = ["Service", "TheService"]

P = ParamSpec("P")
T = TypeVar("T")

# Uploads stored at one time, and the memory for those that arrive: so many bodies of the largest size. A small body on
# a slow connection takes little of it, so that many slow devices do not keep the others out.
UPLOADS_AT_ONCE = 32
# Those of one device among them: an agent sends one at a time, and nobody may take all places.
UPLOADS_OF_ONE = 4
# An upload that has arrived waits so long for a place; a device waits 10 s for its answer.
STORING_SECONDS = 5.0
# Images shown at one time: a raw one that is turned to PNG takes limits.image_pixels x 6 bytes.
IMAGES_AT_ONCE = 2


class Service:
    """One engine behind the endpoints, and the uploads that are in progress.

    Parameters
    ----------
    engine
        The store, the devices, and whatever adapts.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.store = engine.store
        self.limits = engine.config.limits
        self._configs = {cohort.name: cohort for cohort in engine.config.cohort}
        self.cohorts = frozenset(self._configs)
        self._bundles = BundlesRead()
        self.readiness = Readiness(engine)
        self.metrics = Metrics(engine.store, sorted(self.cohorts), self.limits, self.readiness)
        self.rates = DeviceRates(self.limits, engine.devices)
        # What a store may have, see `cema.cloud.store.base.Store`.
        self._instant: bool = getattr(engine.store, "instant", False)
        self._read_tag: Callable[[str], UpdateTag | None] | None = getattr(engine.store, "latest_tag", None)
        self._offers = offers_of(engine.store)
        self.bases = Bases(engine.store, self.latest_tag, self.latest_update)
        self.announcements = Announcements(engine.store, self.cohorts)
        traffic = engine.config.traffic
        overview = Overview(engine.store, price=traffic.price, currency=traffic.currency)
        self.live = Live(overview, self.readiness, self.cohorts)
        self.fetches = Fetches(engine.store)
        self.polls = Polls(engine.store)
        self.device_bases = DeviceBases(engine.store)
        self.history = HistoryNotes(engine.store)
        self.reports = Reports(engine.store, history=self.history)
        self.tokens = Tokens(engine.devices)
        self._uploads: Counter[str] = Counter()
        self._receiving = 0  # bytes of bodies
        self._places = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self.showing = asyncio.Semaphore(IMAGES_AT_ONCE)

    async def at_once(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read the newest tag or a token: here where the store never makes one wait for that, else in a thread."""
        if self._instant:
            return read(*args, **kwargs)
        return await run_in_threadpool(read, *args, **kwargs)

    def config(self, cohort: str) -> CohortConfig:
        """Return what a cohort is configured with."""
        return self._configs[cohort]

    def private(self, cohort: str) -> bool:
        """Return whether nobody may look at a cohort's images."""
        return self._configs[cohort].private

    def bundle_facts(self, cohort: str) -> BundleFacts:
        """Return what a cohort's bundle says; may read the disk."""
        return self._bundles.of(self._configs[cohort])

    def latest_tag(self, cohort: str, device: str) -> UpdateTag | None:
        """Return what tells the newest update that a device is offered from others, or None before the first."""
        if self._offers is not None:
            return self._offers.offered_tag(cohort, device)
        if self._read_tag is not None:
            return self._read_tag(cohort)
        update = self.store.latest_update(cohort)
        return None if update is None else UpdateTag(update.version, update.digest)

    def latest_update(self, cohort: str, device: str) -> PublishedUpdate | None:
        """Return the newest update that a device is offered, or None before the first."""
        if self._offers is not None:
            return self._offers.offered(cohort, device)
        return self.store.latest_update(cohort)

    @contextmanager
    def receiving(self, device: str, announced: int | None) -> Iterator[None]:
        """Take a place of this device and the memory of one body, on the event loop; 503 where there is none.

        Parameters
        ----------
        device
            Who sends.
        announced
            Bytes of the body; None when they are not known before they come.
        """
        limit = self.limits.body_bytes
        size = limit if announced is None else min(announced, limit)
        if self._uploads[device] >= UPLOADS_OF_ONE:
            raise self.later("busy", f"{UPLOADS_OF_ONE} uploads of {device!r} have not ended at this moment")
        if self._receiving + size > UPLOADS_AT_ONCE * limit:
            raise self.later("busy", f"{self._receiving} bytes of uploads are arriving at this moment")
        self._uploads[device] += 1
        self._receiving += size
        try:
            yield
        finally:
            self._receiving -= size
            self._uploads[device] -= 1
            self._uploads += Counter()  # devices without any are dropped

    @asynccontextmanager
    async def storing(self) -> AsyncIterator[None]:
        """Take one of the places for uploads that have arrived, when there is one; 503 when that takes too long.

        Who waits holds a place of its device and the memory of its body, and so only so many can.
        """
        if self._places.locked():
            try:
                async with asyncio.timeout(STORING_SECONDS):
                    await self._places.acquire()
            except TimeoutError:
                message = (
                    f"{UPLOADS_AT_ONCE} uploads are being stored, and others wait, for {STORING_SECONDS:g} s"
                )
                raise self.later("busy", message) from None
        else:
            await self._places.acquire()
        try:
            yield
        finally:
            self._places.release()

    def later(
        self,
        code: str,
        message: str,
        remedy: str = "keep the samples and send them again after Retry-After seconds",
        *,
        seconds: float = 0.0,
    ) -> ApiError:
        """Return an error with the configured ``Retry-After``, or a longer one."""
        wait = max(self.limits.retry_after_seconds, math.ceil(seconds))
        return ApiError(code, message, remedy, headers={"Retry-After": str(wait)})


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(_service)]
"""The application's `Service`, as a parameter of an endpoint or a dependency."""

"""What all endpoints of one application share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Request

from cema.cloud.http.errors import ApiError
from cema.cloud.http.metrics import Metrics
from cema.cloud.http.rate import RateLimit
from cema.cloud.http.readiness import Readiness
from cema.cloud.worker.supervisor import Engine

__all__ = ["Service", "TheService"]

# Uploads read or stored at one time: bounds memory at so many bodies.
UPLOADS_AT_ONCE = 32
# Those of one device among them: an agent sends one at a time, and nobody may take all places.
UPLOADS_OF_ONE = 4


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
        self.cohorts = frozenset(cohort.name for cohort in engine.config.cohort)
        self.readiness = Readiness(engine)
        self.metrics = Metrics(engine.store, sorted(self.cohorts), self.readiness)
        self.rate = RateLimit(self.limits.device_samples)
        self._uploads: Counter[str] = Counter()

    @contextmanager
    def one_upload(self, device: str) -> Iterator[None]:
        """Take one of the places for uploads, on the event loop; 503 when there is none, or not for this device."""
        if self._uploads[device] >= UPLOADS_OF_ONE:
            raise self.later(
                "busy", f"{UPLOADS_OF_ONE} uploads of {device!r} are being stored at this moment"
            )
        if self._uploads.total() >= UPLOADS_AT_ONCE:
            raise self.later("busy", f"{UPLOADS_AT_ONCE} uploads are being stored at this moment")
        self._uploads[device] += 1
        try:
            yield
        finally:
            self._uploads[device] -= 1
            self._uploads += Counter()  # devices without any are dropped

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

"""Metrics in Prometheus' text format.

What must not be lost is counted in the store, by the server and the worker alike, and read at each scrape:
the counters go on after a restart. Only what is known of requests lives in this process. Each application has a
registry of its own; nothing is global.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cema._util.version import __version__
from cema.cloud.config import LimitsConfig
from cema.cloud.http.errors import ERRORS
from cema.cloud.http.metrics_list import described
from cema.cloud.http.metrics_read import ReadinessCollector, StoreCollector
from cema.cloud.http.rate import LIMITS
from cema.cloud.http.readiness import Readiness
from cema.cloud.http.records import RequestRecord
from cema.cloud.store.base import Store

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["WAITED", "Metrics", "RequestTimer"]

WAITED = "cema.waited"
"""Where an endpoint puts into the scope the seconds that a request waited because it had asked to."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A label for each of these and one for all others: anybody may invent methods, and labels are never forgotten.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """One application's metrics.

    Parameters
    ----------
    store
        Where the durable counters are.
    cohorts
        The cohorts to report.
    limits
        What the cloud takes.
    readiness
        Says what is well.
    """

    def __init__(
        self, store: Store, cohorts: Sequence[str], limits: LimitsConfig, readiness: Readiness
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        seconds = described("cema_http_request_seconds")
        self._seconds = Histogram(seconds.name, seconds.text, seconds.labels, registry=self._registry)
        told = described("cema_http_requests_in_progress")
        self.in_progress = Gauge(told.name, told.text, registry=self._registry)
        limited = described("cema_uploads_limited")
        self._limited = Counter(limited.name, limited.text, limited.labels, registry=self._registry)
        for cohort in cohorts:
            for limit in LIMITS:  # a series that is there from the start shows its first increase
                self._limited.labels(cohort, limit)
        failed = described("cema_http_errors")
        self._failed = Counter(failed.name, failed.text, failed.labels, registry=self._registry)
        for code in (*ERRORS, "http_error"):
            self._failed.labels(code)
        self._registry.register(StoreCollector(store, cohorts, limits))
        build = described("cema_build_info")
        Gauge(build.name, build.text, build.labels, registry=self._registry).labels(__version__).set(1)
        self._registry.register(ReadinessCollector(readiness))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Book one answered request."""
        self._seconds.labels(method, route, str(status)).observe(seconds)

    def limited(self, cohort: str, limit: str) -> None:
        """Book one upload that was refused for a limit of its device."""
        self._limited.labels(cohort, limit).inc()

    def failed(self, code: str) -> None:
        """Book one request that was answered with an error."""
        self._failed.labels(code).inc()

    def render(self) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE


class RequestTimer:
    """ASGI middleware that books each request's latency by route, never by raw path, and writes its log record."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on and time it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        record = RequestRecord()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with self._metrics.in_progress.track_inprogress():
                await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if route != "unmatched" else "any"
            method = method if method in METHODS or method == "any" else "other"
            seconds = time.perf_counter() - begin - scope.get(WAITED, 0.0)
            self._metrics.observe(method, route, status, seconds)
            record.write(method, route, status, seconds)

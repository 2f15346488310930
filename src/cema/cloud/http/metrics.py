"""Metrics in Prometheus' text format.

What must not be lost is counted in the store, by the server and the worker alike, and read at each scrape:
the counters go on after a restart. Only request latencies live in this process. Each application has a
registry of its own; nothing is global.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from cema.cloud.http.rate import LIMITS
from cema.cloud.http.readiness import Readiness
from cema.cloud.http.records import RequestRecord
from cema.cloud.store.agreements import agreement_members
from cema.cloud.store.base import Store
from cema.cloud.store.draws import random_agreement_members
from cema.cloud.store.fleet import FleetRegister

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["METRICS", "WAITED", "Described", "Metrics", "RequestTimer"]

WAITED = "cema.waited"
"""Where an endpoint puts into the scope the seconds that a request waited because it had asked to."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Described(NamedTuple):
    """A metric, without its values.

    Attributes
    ----------
    name : str
        As it is made; what is served may have an ending, such as ``_total`` for a counter.
    kind : {"counter", "gauge", "histogram", "summary"}
        Its type.
    labels : tuple of str
        The names of its labels.
    text : str
        What it says.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    labels: tuple[str, ...]
    text: str


# Counter names in the store that begin so become one metric, labelled with the rest of the name.
FAMILIES = {
    "samples.rejected.": "cema_samples_rejected",
    "samples.": "cema_samples",
    "evicted.": "cema_samples_evicted",
    "worker.": "cema_worker_events",
    "updates.": "cema_updates",
    "bytes.": "cema_image_bytes",
    "reports.": "cema_reports",
    "drawn.": "cema_drawn_samples",
}
# Gauges that are members of a cohort's status.
GAUGES = {
    "samples": "cema_stored_samples",
    "backlog": "cema_backlog_samples",
    "version": "cema_update_version",
}
# Gauges that are members of each model's agreement.
AGREEMENT = {
    "samples": "cema_agreement_samples",
    "share": "cema_agreement_share",
    "standard_error": "cema_agreement_standard_error",
}
RANDOM_AGREEMENT = {
    "samples": "cema_random_agreement_samples",
    "share": "cema_random_agreement_share",
    "standard_error": "cema_random_agreement_standard_error",
    "low": "cema_random_agreement_low",
    "high": "cema_random_agreement_high",
}
METRICS = (
    Described(
        "cema_http_request_seconds",
        "histogram",
        ("method", "route", "status"),
        "Time from request to the end of its answer, without what it waited for a new version.",
    ),
    Described(
        "cema_samples_rejected", "counter", ("cohort", "reason"), "Samples refused at upload, by reason."
    ),
    Described("cema_samples", "counter", ("cohort", "verdict"), "Samples answered at upload, by verdict."),
    Described(
        "cema_uploads_limited",
        "counter",
        ("cohort", "limit"),
        "Uploads refused because the device had sent as much as it may, by limit; since the server was started.",
    ),
    Described(
        "cema_samples_evicted",
        "counter",
        ("cohort", "reason"),
        "Stored samples that left the store, by reason.",
    ),
    Described("cema_worker_events", "counter", ("cohort", "event"), "What the worker did, by event."),
    Described("cema_updates", "counter", ("cohort", "outcome"), "Candidates of an update, by outcome."),
    Described(
        "cema_image_bytes",
        "counter",
        ("cohort", "verdict"),
        "Encoded image bytes of samples answered at upload, by verdict.",
    ),
    Described(
        "cema_reports",
        "counter",
        ("cohort", "outcome"),
        "Reports of devices that came, and those that devices have numbered and that did not.",
    ),
    Described(
        "cema_drawn_samples",
        "counter",
        ("cohort", "event"),
        "Samples that devices drew at random, by what became of them.",
    ),
    Described("cema_step_seconds", "summary", ("cohort",), "Time of the worker's steps."),
    Described("cema_stored_samples", "gauge", ("cohort",), "Samples in the store."),
    Described("cema_backlog_samples", "gauge", ("cohort",), "Samples that wait for the worker."),
    Described("cema_update_version", "gauge", ("cohort",), "Newest published version; 0 before the first."),
    Described(
        "cema_quarantined_devices",
        "gauge",
        ("cohort",),
        "Devices that nothing is learned from: unlike all others, or quarantined by an operator.",
    ),
    Described("cema_seconds_since_commit", "gauge", ("cohort",), "Since the worker's last durable step."),
    Described(
        "cema_agreement_samples",
        "gauge",
        ("cohort", "model"),
        "New samples that the agreement with the foundation model is of, the newest.",
    ),
    Described(
        "cema_agreement_share",
        "gauge",
        ("cohort", "model"),
        "Share of them on which a model chose the foundation model's label.",
    ),
    Described("cema_agreement_standard_error", "gauge", ("cohort", "model"), "Standard error of that share."),
    Described(
        "cema_random_agreement_samples",
        "gauge",
        ("cohort", "model"),
        "Samples drawn at random that the agreement on all that devices see is of, the newest.",
    ),
    Described(
        "cema_random_agreement_share",
        "gauge",
        ("cohort", "model"),
        "Share of all that devices see on which a model chose the foundation model's label, estimated.",
    ),
    Described(
        "cema_random_agreement_standard_error", "gauge", ("cohort", "model"), "Standard error of that share."
    ),
    Described(
        "cema_random_agreement_low",
        "gauge",
        ("cohort", "model"),
        "Lower end of that share's interval of 95 %.",
    ),
    Described(
        "cema_random_agreement_high",
        "gauge",
        ("cohort", "model"),
        "Upper end of that share's interval of 95 %.",
    ),
    Described("cema_store_bytes", "gauge", (), "Bytes of the store in use."),
    Described("cema_ready", "gauge", ("check",), "1 where a check of /readyz is well, else 0."),
)
"""Every metric that is served."""
_BY_NAME = {metric.name: metric for metric in METRICS}
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
    readiness
        Says what is well.
    """

    def __init__(self, store: Store, cohorts: Sequence[str], readiness: Readiness) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        seconds = _BY_NAME["cema_http_request_seconds"]
        self._seconds = Histogram(seconds.name, seconds.text, seconds.labels, registry=self._registry)
        limited = _BY_NAME["cema_uploads_limited"]
        self._limited = Counter(limited.name, limited.text, limited.labels, registry=self._registry)
        for cohort in cohorts:
            for limit in LIMITS:  # a series that is there from the start shows its first increase
                self._limited.labels(cohort, limit)
        self._registry.register(_StoreCollector(store, cohorts))
        self._registry.register(_ReadinessCollector(readiness))

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Book one answered request."""
        self._seconds.labels(method, route, str(status)).observe(seconds)

    def limited(self, cohort: str, limit: str) -> None:
        """Book one upload that was refused for a limit of its device."""
        self._limited.labels(cohort, limit).inc()

    def render(self) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE


def _counter(name: str) -> CounterMetricFamily:
    told = _BY_NAME[name]
    return CounterMetricFamily(told.name, told.text, labels=told.labels)


def _gauge(name: str) -> GaugeMetricFamily:
    told = _BY_NAME[name]
    return GaugeMetricFamily(told.name, told.text, labels=told.labels)


class _StoreCollector(Collector):
    """Reads the store at each scrape."""

    def __init__(self, store: Store, cohorts: Sequence[str]) -> None:
        self._store = store
        self._cohorts = cohorts

    def collect(self) -> Iterable[Metric]:
        families = {prefix: _counter(name) for prefix, name in FAMILIES.items()}
        gauges = {key: _gauge(name) for key, name in GAUGES.items()}
        told = _BY_NAME["cema_step_seconds"]
        steps = SummaryMetricFamily(told.name, told.text, labels=told.labels)
        quarantined, since = _gauge("cema_quarantined_devices"), _gauge("cema_seconds_since_commit")
        agreement = {key: _gauge(name) for key, name in AGREEMENT.items()}
        register = self._store.devices(())
        by_operators = register.quarantined() if isinstance(register, FleetRegister) else {}
        at_random = {key: _gauge(name) for key, name in RANDOM_AGREEMENT.items()}
        for cohort in self._cohorts:
            for known, told_of in (
                (agreement_members(self._store, cohort), agreement),
                (random_agreement_members(self._store, cohort), at_random),
            ):
                for model, found in known.items():
                    for key, gauge in told_of.items():
                        gauge.add_metric((cohort, model), found[key])
            status = self._store.status(cohort)
            counts = status["counts"]
            for key, gauge in gauges.items():
                gauge.add_metric((cohort,), status[key])
            apart = {name for name, of in by_operators.items() if of == cohort}
            apart.update((status["worker"] or {}).get("quarantined", ()))
            quarantined.add_metric((cohort,), len(apart))
            if status["committed_at"] is not None:
                since.add_metric((cohort,), max(0.0, time.time() - status["committed_at"]))
            steps.add_metric((cohort,), counts.get("steps.count", 0.0), counts.get("steps.seconds", 0.0))
            for name, value in counts.items():
                prefix = next((p for p in FAMILIES if name.startswith(p)), None)
                if prefix:
                    families[prefix].add_metric((cohort, name.removeprefix(prefix)), value)
        used = _gauge("cema_store_bytes")
        used.add_metric((), self._store.used_bytes())
        yield from (
            *families.values(),
            steps,
            *gauges.values(),
            *agreement.values(),
            *at_random.values(),
            quarantined,
            since,
            used,
        )


class _ReadinessCollector(Collector):
    """Makes the checks at each scrape; it answers also where the store cannot be read."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def collect(self) -> Iterable[Metric]:
        ready = _gauge("cema_ready")
        for check in self._readiness.checks():
            ready.add_metric((check.name,), float(check.ok))
        yield ready


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
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if route != "unmatched" else "any"
            method = method if method in METHODS or method == "any" else "other"
            seconds = time.perf_counter() - begin - scope.get(WAITED, 0.0)
            self._metrics.observe(method, route, status, seconds)
            record.write(method, route, status, seconds)

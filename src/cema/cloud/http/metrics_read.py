"""What of the metrics is read from the store, and asked of its readiness, at each scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from cema.cloud.config import LimitsConfig
from cema.cloud.http.metrics_list import METRICS, described
from cema.cloud.http.readiness import Readiness
from cema.cloud.store.activity import activity_of
from cema.cloud.store.agreements import agreement_members
from cema.cloud.store.base import Store
from cema.cloud.store.control import ControlStore, Publishing
from cema.cloud.store.counts import COUNTERS, series_of
from cema.cloud.store.devices_counted import DeviceCounts, count_devices
from cema.cloud.store.draws import random_agreement_members
from cema.cloud.store.fleet import FleetRegister
from cema.cloud.store.offers import RolloutMode, offers_of
from cema.cloud.store.reports import reports_of

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["ReadinessCollector", "StoreCollector"]

# Members of a cohort's status that are gauges.
STATUS = {
    "samples": "cema_stored_samples",
    "backlog": "cema_backlog_samples",
    "version": "cema_update_version",
}
# Members of each model's agreement that are.
AGREEMENT = ("samples", "share", "standard_error")
RANDOM_AGREEMENT = (*AGREEMENT, "low", "high")
# Counters that move when the worker commits a step or has measured drawn samples: agreement moves at no other time.
OF_WORKER = ("steps.", "updates.", "worker.", "drawn.")

Members = Mapping[str, Mapping[str, Any]]


class StoreCollector(Collector):
    """Reads the store at each scrape.

    Parameters
    ----------
    store
        The store.
    cohorts
        The cohorts to report.
    limits
        What the cloud takes.
    """

    def __init__(self, store: Store, cohorts: Sequence[str], limits: LimitsConfig) -> None:
        self._store, self._cohorts, self._limits = store, cohorts, limits
        self._agreement = {cohort: _Agreement(store, cohort) for cohort in cohorts}

    def collect(self) -> Iterable[Metric]:
        """Return what the store knows now."""
        now = time.time()
        made = _Families()
        statuses = {cohort: self._store.status(cohort) for cohort in self._cohorts}
        register = self._store.devices(())
        quarantined = register.quarantined() if isinstance(register, FleetRegister) else {}
        counted = count_devices(
            register.list(),
            {cohort: status["version"] for cohort, status in statuses.items()},
            activity_of(self._store),
            reports_of(self._store),
            now=now,
        )
        for cohort, status in statuses.items():
            apart = {name for name, of in quarantined.items() if of == cohort}
            apart.update((status["worker"] or {}).get("quarantined", ()))
            made.add("cema_quarantined_devices", len(apart), cohort)
            _add_status(made, cohort, status, now)
            _add_counts(made, cohort, status["counts"])
            _add_devices(made, cohort, counted[cohort])
            self._agreement[cohort].add(made, status)
            self._add_waiting(made, cohort, status, now)
            self._add_control(made, cohort, now)
        made.add("cema_store_bytes", self._store.used_bytes())
        made.add("cema_store_max_bytes", self._limits.store_bytes)
        made.add("cema_backlog_max_samples", self._limits.backlog_samples)
        yield from made.families()

    def _add_waiting(self, made: _Families, cohort: str, status: Mapping[str, Any], now: float) -> None:
        oldest = self._store.backlog(cohort).oldest if status["backlog"] else None
        made.add("cema_backlog_age_seconds", 0.0 if oldest is None else max(0.0, now - oldest), cohort)

    def _add_control(self, made: _Families, cohort: str, now: float) -> None:
        """Add what operators have a cohort do, and whether a version is for some devices alone."""
        if isinstance(self._store, ControlStore):
            state = self._store.control(cohort).publishing
            for known in get_args(Publishing):
                made.add("cema_publishing", known == state, cohort, known)
            made.add("cema_act_waiting", self._store.waiting_act(cohort) is not None, cohort)
        offers = offers_of(self._store)
        if offers is not None:
            rollout = offers.rollout(cohort)
            is_open = rollout is not None and rollout.state == "open"
            for mode in get_args(RolloutMode):
                made.add(
                    "cema_rollout_open",
                    is_open and rollout is not None and rollout.mode == mode,
                    cohort,
                    mode,
                )
            age = max(0.0, now - rollout.began) if is_open and rollout is not None else 0.0
            made.add("cema_rollout_age_seconds", age, cohort)


class _Families:
    """The families of one scrape, made when the first series of each is added."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add a series of a gauge or counter."""
        self._family(name).add_metric(labels, float(value))

    def add_summary(self, name: str, count: float, total: float, *labels: str) -> None:
        """Add a series of a summary."""
        self._family(name).add_metric(labels, count, total)

    def families(self) -> Iterable[Metric]:
        """Return all, in the order in which they are described."""
        return [self._made[metric.name] for metric in METRICS if metric.name in self._made]

    def _family(self, name: str) -> Any:
        if name not in self._made:
            told = described(name)
            kinds: dict[str, Callable[..., Metric]] = {
                "counter": CounterMetricFamily,
                "gauge": GaugeMetricFamily,
                "summary": SummaryMetricFamily,
            }
            self._made[name] = kinds[told.kind](told.name, told.text, labels=told.labels)
        return self._made[name]


class _Agreement:
    """The agreement of one cohort, read anew only after the worker has done something.

    Up to 1,024 minutes are read for it: by far the longest part of a scrape of many cohorts.
    """

    def __init__(self, store: Store, cohort: str) -> None:
        self._store, self._cohort = store, cohort
        self._seen: object = None
        self._known: dict[str, Members] = {}

    def add(self, made: _Families, status: Mapping[str, Any]) -> None:
        """Add the series of this cohort."""
        counts = {name: value for name, value in status["counts"].items() if name.startswith(OF_WORKER)}
        seen = (status["committed_at"], status["cursor"], counts)
        if seen != self._seen:
            self._known = {
                "cema_agreement": agreement_members(self._store, self._cohort),
                "cema_random_agreement": random_agreement_members(self._store, self._cohort),
            }
            self._seen = seen
        for (prefix, members), names in zip(self._known.items(), (AGREEMENT, RANDOM_AGREEMENT), strict=True):
            for model, found in members.items():
                for name in names:
                    made.add(f"{prefix}_{name}", found[name], self._cohort, model)


def _add_status(made: _Families, cohort: str, status: Mapping[str, Any], now: float) -> None:
    """Add what a cohort's status says of its samples, its version and its worker."""
    for key, name in STATUS.items():
        made.add(name, status[key], cohort)
    if status["committed_at"] is not None:
        made.add("cema_seconds_since_commit", max(0.0, now - status["committed_at"]), cohort)
    if status["update"] is not None:
        made.add("cema_update_expiry_seconds", status["update"]["expires"] - now, cohort)
    worker = status["worker"] or {}
    made.add("cema_worker_ready", bool(worker.get("ready")), cohort)
    if worker:
        made.add("cema_seconds_since_worker_report", max(0.0, now - worker["seen_at"]), cohort)


def _add_counts(made: _Families, cohort: str, counts: Mapping[str, float]) -> None:
    """Add all counters of a cohort: those that are listed from 0 on, and what else the store has of their families."""
    for name, value in (dict.fromkeys(COUNTERS, 0.0) | dict(counts)).items():
        series = series_of(name)
        if series is not None:
            labels = (cohort,) if series.label is None else (cohort, series.label)
            made.add(series.metric, value, *labels)
    made.add_summary(
        "cema_step_seconds", counts.get("steps.count", 0.0), counts.get("steps.seconds", 0.0), cohort
    )


def _add_devices(made: _Families, cohort: str, counts: DeviceCounts) -> None:
    made.add("cema_registered_devices", counts.registered, cohort)
    made.add("cema_silent_devices", counts.silent, cohort)
    made.add("cema_expiring_devices", counts.expiring, cohort)
    made.add("cema_problem_devices", counts.problems, cohort)
    for name, by_label in (
        ("cema_seen_devices", counts.seen),
        ("cema_serving_devices", counts.serving),
        ("cema_reported_counts", counts.reported),
    ):
        for label, value in by_label.items():
            made.add(name, value, cohort, label)


class ReadinessCollector(Collector):
    """Makes the checks at each scrape; it answers also where the store cannot be read."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def collect(self) -> Iterable[Metric]:
        """Return the checks."""
        made = _Families()
        for check in self._readiness.checks():
            made.add("cema_ready", check.ok, check.name)
        yield from made.families()

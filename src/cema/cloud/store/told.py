"""What several parts of a store know about a cohort, put together as operators are told it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cema.cloud.store.agreements import VersionAgreement, agreement_members, agreements_of
from cema.cloud.store.base import Store
from cema.cloud.store.control import ControlStore, VersionRecord, control_of
from cema.cloud.store.draws import random_agreement_members
from cema.cloud.store.offers import Rollout, offers_of
from cema.cloud.store.reports import reports_of
from cema.cloud.store.traces import TraceStore

__all__ = ["more_status", "version_told", "versions_told"]


def more_status(store: Store, cohort: str) -> dict[str, Any]:
    """Return what a cohort's status has beside what `cema.cloud.store.base.Store.status` returns, JSON-able.

    Returns
    -------
    dict
        ``agreement`` and ``random_agreement``, by who answered; for a store that takes acts, ``publishing``,
        ``canary_first``, and ``act``, the first that waits for the worker or None; and for one that keeps offers
        ``rollout``, the newest one or None, and ``pinned``, the devices that are pinned.
    """
    found: dict[str, Any] = {
        "agreement": agreement_members(store, cohort),
        "random_agreement": random_agreement_members(store, cohort),
    }
    if isinstance(store, ControlStore):
        waiting = store.waiting_act(cohort)
        control = store.control(cohort)
        found["publishing"], found["canary_first"] = control.publishing, control.first
        found["act"] = None if waiting is None else msgspec.to_builtins(waiting)
    offers = offers_of(store)
    if offers is not None:
        found["rollout"] = _rollout_told(store, offers.rollout(cohort))
        found["pinned"] = {each.device: each.version for each in offers.pinned(cohort)}
    return found


def _rollout_told(store: Store, rollout: Rollout | None) -> dict[str, Any] | None:
    """Return a rollout with what its devices have last reported of the version."""
    if rollout is None:
        return None
    reports = reports_of(store, rollout.devices)
    serving = {device: told.report.serving for device, told in reports.items()}
    found: dict[str, Any] = msgspec.to_builtins(rollout)
    return found | {
        "serving": {
            device: msgspec.to_builtins(served)
            for device, served in serving.items()
            if served.version == rollout.version
        }
    }


def versions_told(store: Store, cohort: str) -> list[Mapping[str, Any]]:
    """Return the versions that are kept, oldest first, JSON-able: each with its agreement and its trace.

    Raises
    ------
    StoreError
        The store's back end takes no acts, and tells no versions.
    """
    agreement = _agreement(store, cohort)
    return [_version(store, cohort, record, agreement) for record in control_of(store).versions(cohort)]


def version_told(store: Store, cohort: str, version: int) -> Mapping[str, Any] | None:
    """Return one of `versions_told`; None where it is not kept."""
    records = control_of(store).versions(cohort)
    record = next((record for record in records if record.version == version), None)
    return None if record is None else _version(store, cohort, record, _agreement(store, cohort))


def _agreement(store: Store, cohort: str) -> Mapping[int, VersionAgreement]:
    keeps = agreements_of(store)
    return {known.version: known for known in keeps.agreement_by_version(cohort)} if keeps else {}


def _version(
    store: Store, cohort: str, record: VersionRecord, agreement: Mapping[int, VersionAgreement]
) -> dict[str, Any]:
    known = agreement.get(record.version)
    return {
        "version": record.version,
        "digest": record.digest,
        "created": record.created,
        "expires": record.expires,
        "payload_bytes": record.payload_bytes,
        "agreement": msgspec.to_builtins(dict(known.models)) if known else {},
        "trace": store.trace(cohort, record.version) if isinstance(store, TraceStore) else None,
    }

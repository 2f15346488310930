"""What the command line and the API tell of devices."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import msgspec

from cema.cloud.store.activity import activity_of
from cema.cloud.store.base import Store
from cema.cloud.store.device_problems import device_level, device_problems
from cema.cloud.store.devices import Device
from cema.cloud.store.reports import DeviceReports, reports_of
from cema.errors import StoreError

__all__ = ["device_told", "devices_told"]

# Devices up to which each one's report is looked up, rather than all reports read.
FEW = 200
_ACTIVITY = ("seen_at", "has", "ran", "samples", "bytes", "captured_at", "received_at")


def device_told(device: Device) -> dict[str, Any]:
    """Return what a register knows of a device, JSON-able; never a token."""
    return {
        "name": device.name,
        "role": device.role,
        "cohort": device.cohort,
        "created_at": device.created_at,
        "revoked_at": device.revoked_at,
        "expires_at": device.expires_at,
        "quarantined_at": device.quarantined_at,
        "quarantined_by": device.quarantined_by,
        "limits": {name: getattr(device.limits, name) for name in device.limits.__struct_fields__},
        "older_token_until": device.older_token_until,
        "taken_at": device.taken_at,
    }


def devices_told(
    store: Store, known: Collection[Device], cohorts: Collection[str], *, now: float | None = None
) -> list[dict[str, Any]]:
    """Return all that is known of devices, JSON-able: what they did, and ``level`` and ``problems``, in words.

    Parameters
    ----------
    store
        The store.
    known
        The devices, as the register lists them.
    cohorts
        The cohorts whose workers are asked which devices they have quarantined.
    now
        Unix seconds; the present when left out.
    """
    now = time.time() if now is None else now
    few = [device.name for device in known] if len(known) <= FEW else None
    activity, reports = activity_of(store), reports_of(store, few)
    apart = {cohort: _quarantined(store, cohort) for cohort in cohorts}
    told = (
        device_told(device)
        | {name: getattr(activity.get(device.name), name, None) for name in _ACTIVITY}
        | _reported(reports.get(device.name))
        | {"quarantined_by_worker": device.name in apart.get(device.cohort or "", ())}
        for device in known
    )
    return [one | _problems(one, now) for one in told]


def _problems(told: dict[str, Any], now: float) -> dict[str, Any]:
    problems = device_problems(told, now)
    return {"level": device_level(problems), "problems": [problem.text for problem in problems]}


def _reported(told: DeviceReports | None) -> dict[str, Any]:
    """Return what a device has last reported."""
    if told is None:
        return {"reported_at": None, "clock_offset": None, "reports": None, "report": None}
    return {
        "reported_at": told.at,
        "clock_offset": told.clock_offset,
        "reports": {"received": told.received, "lost": told.lost},
        "report": msgspec.to_builtins(told.report),
    }


def _quarantined(store: Store, cohort: str) -> Collection[str]:
    """Return the devices that a cohort's worker has quarantined, as it last said."""
    try:
        worker = store.status(cohort)["worker"] or {}
    except StoreError:  # the cloud has never run with it
        return ()
    found: Collection[str] = worker.get("quarantined", ())
    return found

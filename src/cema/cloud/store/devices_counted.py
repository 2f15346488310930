"""How many devices a cohort has, how they are, and what they say of themselves, in numbers: never by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias, get_args

import msgspec

from cema.cloud.store.activity import DeviceActivity
from cema.cloud.store.devices import EXPIRES_SOON, Device
from cema.cloud.store.reports import DeviceReports
from cema.formats.report import REPORTED_COUNTS

__all__ = ["SEEN", "DeviceCounts", "ServingVersion", "count_devices"]

DAY = 86_400.0
SEEN = {"1h": 3600.0, "1d": DAY}
"""Seconds in which a device was heard of, by their name."""

ServingVersion: TypeAlias = Literal["newest", "previous", "older", "source", "unknown"]
"""The version that serves on a device, beside the newest one: numbers would be a new series for every update."""


class DeviceCounts(msgspec.Struct, kw_only=True):
    """Of the devices of one cohort whose tokens are good.

    Attributes
    ----------
    registered : int
        All of them.
    seen : dict of str to int
        Those that were heard of in the last hour, and day.
    silent : int
        Those that were not heard of for a day, or never since they were added a day ago or earlier.
    expiring : int
        Those whose token ends within two weeks.
    problems : int
        Those that were heard of in the last day and have reported that something is wrong.
    serving : dict of str to int
        Those that were heard of in the last day, by `ServingVersion`.
    reported : dict of str to int
        Sums of what all of them have last reported, see `REPORTED_COUNTS`.
    """

    registered: int = 0
    seen: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(SEEN, 0))
    silent: int = 0
    expiring: int = 0
    problems: int = 0
    serving: dict[str, int] = msgspec.field(
        default_factory=lambda: dict.fromkeys(get_args(ServingVersion), 0)
    )
    reported: Counter[str] = msgspec.field(default_factory=lambda: Counter(dict.fromkeys(REPORTED_COUNTS, 0)))


def count_devices(
    devices: Iterable[Device],
    newest: Mapping[str, int],
    activity: Mapping[str, DeviceActivity],
    reports: Mapping[str, DeviceReports],
    *,
    now: float,
) -> dict[str, DeviceCounts]:
    """Count the devices of each cohort.

    Parameters
    ----------
    devices
        As the register lists them.
    newest
        The cohorts, and the newest version of each.
    activity, reports
        What is known of devices, by their names.
    now
        Unix seconds.
    """
    found = {cohort: DeviceCounts() for cohort in newest}
    for device in devices:
        if device.cohort in found and _good(device, now):
            known = activity.get(device.name), reports.get(device.name)
            _count(found[device.cohort], device, *known, newest=newest[device.cohort], now=now)
    return found


def _good(device: Device, now: float) -> bool:
    ended = device.expires_at is not None and device.expires_at <= now
    return device.role == "device" and device.revoked_at is None and not ended


def _count(
    counts: DeviceCounts,
    device: Device,
    activity: DeviceActivity | None,
    told: DeviceReports | None,
    *,
    newest: int,
    now: float,
) -> None:
    counts.registered += 1
    heard = max(activity.seen_at if activity else 0.0, told.at if told else 0.0)
    for window, seconds in SEEN.items():
        counts.seen[window] += now - heard < seconds
    counts.silent += now - max(heard, device.created_at) >= DAY
    counts.expiring += device.expires_at is not None and device.expires_at - now < EXPIRES_SOON
    if told is not None:
        for name in REPORTED_COUNTS:  # a device may report other names, and any number of them
            counts.reported[name] += told.report.counts.get(name, 0)
    if now - heard < DAY:
        counts.problems += told is not None and told.report.problem is not None
        counts.serving[_serving(device, newest, activity, told)] += 1


def _serving(
    device: Device, newest: int, activity: DeviceActivity | None, told: DeviceReports | None
) -> ServingVersion:
    """Return which version serves on a device; what it said of another cohort counts for nothing."""
    version: int | None = None
    if told is not None and told.cohort == device.cohort:
        version = told.report.serving.version
    elif activity is not None and activity.cohort == device.cohort:
        version = activity.ran
    if version is None:
        return "unknown"
    if version == 0:
        return "source"
    if version >= newest:
        return "newest"
    return "previous" if version == newest - 1 else "older"

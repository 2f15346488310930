"""What a store keeps of the reports of devices: the last one of each, and how many were lost.

A back end may do without; `reports_of` tells.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from cema.cloud.store.base import Store
from cema.formats.report import DeviceReport

__all__ = ["DeviceReports", "ReportStore", "Reported", "reports_of"]


class Reported(NamedTuple):
    """A report that came: for which cohort, of whom, when (unix seconds), and how many of its boot came with it."""

    cohort: str
    device: str
    at: float
    report: DeviceReport
    received: int = 1


class DeviceReports(NamedTuple):
    """What is known of one device's reports.

    Attributes
    ----------
    device, cohort : str
    at : float
        When the last one came, unix seconds.
    received, lost : int
        Reports that came, and those that the device has numbered and that did not.
    report : DeviceReport
        The last one.
    """

    device: str
    cohort: str
    at: float
    received: int
    lost: int
    report: DeviceReport

    @property
    def clock_offset(self) -> float | None:
        """Seconds by which the device's clock is ahead of the cloud's, with the way of the report; None: not told."""
        return None if self.report.sent_at is None else self.report.sent_at - self.at


@runtime_checkable
class ReportStore(Protocol):
    """The part of a store that keeps reports; see `cema.cloud.store.base.Store` for what every method may raise.

    ``reports.received`` and ``reports.lost`` are among the cohort's counters.
    """

    def note_reports(self, reports: Sequence[Reported]) -> None:
        """Keep reports; of one device the last one counts."""
        ...

    def reports(self, devices: Collection[str] | None = None) -> dict[str, DeviceReports]:
        """Return what is known of every device that has ever reported, by its name; or of some devices alone."""
        ...


def reports_of(store: Store, devices: Collection[str] | None = None) -> dict[str, DeviceReports]:
    """Return what devices have reported, all or some; nothing where the store's back end keeps no reports."""
    return store.reports(devices) if isinstance(store, ReportStore) else {}

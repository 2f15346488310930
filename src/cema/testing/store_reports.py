"""Tests of a store: reports of devices, if it keeps them."""

from __future__ import annotations

import pytest

from cema.cloud.store.base import Store
from cema.cloud.store.reports import DeviceReports, Reported, ReportStore, reports_of
from cema.formats.report import DeviceReport, Refused, Served
from cema.testing.store_case import StoreCase

__all__ = ["ReportTests"]


def _report(number: int, boot: int = 0, version: int = 1) -> DeviceReport:
    return DeviceReport(boot=f"{boot:016x}", number=number, serving=Served(version=version, predicted=9))


class ReportTests(StoreCase):
    """The last report of each device is kept, and what is missing among their numbers is counted."""

    @pytest.fixture
    def told(self, store: Store) -> ReportStore:
        """Return the store, if it keeps reports."""
        if not isinstance(store, ReportStore):
            pytest.skip("this store keeps no reports of devices")
        return store

    def test_the_last_report_of_each_device_is_kept(self, store: Store, told: ReportStore) -> None:
        assert reports_of(store) == {}
        last = DeviceReport(
            boot="a" * 16,
            number=2,
            serving=Served(version=4, predicted=9, guarded=3, entropy=0.25),
            before=Served(version=2),
            refused=Refused(version=3, reason="expired"),
            counts={"predicted": 70},
            problem="no link",
        )
        told.note_reports(
            [Reported("north", "cam", 10.0, _report(1)), Reported("north", "far", 11.0, _report(1))]
        )
        told.note_reports([Reported("north", "cam", 12.0, last)])
        found = told.reports()
        assert sorted(found) == ["cam", "far"]
        assert found["cam"] == DeviceReports("cam", "north", 12.0, 2, 1, last)
        assert told.reports(["cam", "nobody"]) == {"cam": found["cam"]}
        assert found["far"] == DeviceReports("far", "north", 11.0, 1, 0, _report(1))

    def test_lost_reports_are_counted(self, store: Store, told: ReportStore) -> None:
        told.note_reports([Reported("north", "cam", 10.0, _report(2))])  # the first one was lost
        told.note_reports([Reported("north", "cam", 11.0, _report(6), received=3)])  # one of 3, 4, 5 was
        assert (told.reports()["cam"].received, told.reports()["cam"].lost) == (4, 2)
        told.note_reports([Reported("north", "cam", 12.0, _report(5))])  # it was only overtaken
        assert (told.reports()["cam"].received, told.reports()["cam"].lost) == (5, 1)
        assert told.reports()["cam"].report.number == 6
        told.note_reports([Reported("north", "cam", 13.0, _report(1, boot=7))])  # a new start counts anew
        assert (told.reports()["cam"].received, told.reports()["cam"].lost) == (6, 1)
        told.note_reports([Reported("north", "cam", 14.0, _report(2**52, boot=7))])
        assert told.reports()["cam"].lost <= 1001, "one report cannot make any number of losses"
        counters = store.counters("north")
        assert (counters["reports.received"], counters["reports.lost"]) == (7, 2 + 1000)

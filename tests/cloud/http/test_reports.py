"""Devices report over HTTP, and what they say is kept."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from cloud_client import auth
from cloud_support import StillEngine, serving, write_config

from cema.cloud.config import CloudConfig
from cema.cloud.http import reports_noted
from cema.cloud.http.reports_noted import Reports
from cema.cloud.store.reports import Reported, reports_of
from cema.errors import StoreUnavailable
from cema.formats.report import DeviceReport, Served, encode_report


def _report(number: int, version: int = 1, boot: str = "a") -> DeviceReport:
    return DeviceReport(boot=boot * 16, number=number, serving=Served(version=version))


def test_reports_come_in_and_the_last_is_kept(tmp_path: Path) -> None:
    config = CloudConfig.load(write_config(tmp_path))
    engine = StillEngine(config)
    token = engine.devices.add("cam", cohort="north")
    operator = engine.devices.add("ops", cohort=None, role="operator")
    with serving(engine) as url:
        where = f"{url}/v1/cohorts/north/reports"
        for number in (1, 2, 4):
            answer = httpx2.post(where, headers=auth(token), content=encode_report(_report(number, number)))
            assert (answer.status_code, answer.content) == (204, b"")
        refused = httpx2.post(where, headers=auth(operator), content=encode_report(_report(9)))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_a_device")
        wrong = httpx2.post(where, headers=auth(token), content=b"{}")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_request")
        large = httpx2.post(where, headers=auth(token), content=b" " * 5000)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
    # What was noted is written when the service ends.
    with closing(config.open_store()) as store:
        found = reports_of(store)
        assert store.counters("north")["reports.received"] == 3
        assert store.counters("north")["reports.lost"] == 1
    assert list(found) == ["cam"]
    assert (found["cam"].cohort, found["cam"].report) == ("north", _report(4, 4))


class Kept:
    """A store that keeps what it is given."""

    def __init__(self) -> None:
        self.notes: list[Reported] = []

    def note_reports(self, notes: list[Reported]) -> None:
        self.notes += notes

    def reports(self) -> None:
        raise NotImplementedError


def test_reports_are_written_together_each_device_once_a_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    reports = Reports(kept)  # type: ignore[arg-type]
    monkeypatch.setattr(reports, "_write_later", lambda: None)
    monkeypatch.setattr(reports_noted, "MOST_NOTES", 3)
    for number, boot in ((1, "a"), (3, "a"), (2, "a"), (1, "b")):
        reports.note(Reported("north", "cam", 1.0, _report(number, boot=boot)))
    for device in ("far", "one too many"):
        reports.note(Reported("north", device, 1.0, _report(1)))
    reports.write()
    told = [(note.device, note.report.boot[0], note.report.number, note.received) for note in kept.notes]
    assert told == [("cam", "a", 3, 3), ("cam", "b", 1, 1), ("far", "a", 1, 1)]


def test_what_cannot_be_written_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> None:
        raise StoreUnavailable("locked")

    kept = Kept()
    kept.note_reports = refuse  # type: ignore[method-assign]
    reports = Reports(kept)  # type: ignore[arg-type]
    monkeypatch.setattr(reports, "_write_later", lambda: None)
    reports.note(Reported("north", "cam", 1.0, _report(1)))
    reports.write()
    reports.write()
    assert caplog.text.count("could not be noted: locked") == 1

"""Reports of devices in the SQLite store; see `cema.cloud.store.reports`."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from cema.cloud.store.reports import DeviceReports, Reported
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import Database, bump
from cema.formats.report import DeviceReport

__all__ = ["ReportTable"]

TABLES = {
    "device_reports": "CREATE TABLE device_reports (device TEXT PRIMARY KEY, cohort TEXT NOT NULL, at REAL NOT NULL, "
    "boot TEXT NOT NULL, number INTEGER NOT NULL, received INTEGER NOT NULL, lost INTEGER NOT NULL, "
    "content TEXT NOT NULL) WITHOUT ROWID",
}
COLUMNS = "device, cohort, at, received, lost, content"
# Reports that one gap stands for, at most: a device may write any number.
LONGEST_GAP = 1000
_decoder = msgspec.json.Decoder(DeviceReport)


class ReportTable:
    """One row for each device that has ever reported.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no table, and keeps nothing until it is opened with room.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._there = make_tables(database, TABLES, what="reports of devices")

    def note(self, reports: Sequence[Reported]) -> None:
        """Keep reports, in one transaction."""
        if not self._there or not reports:
            return
        with self._database.write() as connection:
            for reported in reports:
                _keep(connection, reported)

    def read(self, devices: Collection[str] | None) -> dict[str, DeviceReports]:
        """Return what is known of every device, by its name, or of some."""
        if not self._there:
            return {}
        with self._database.read() as connection:
            if devices is None:
                rows = connection.execute(f"SELECT {COLUMNS} FROM device_reports").fetchall()  # noqa: S608
            else:
                one = f"SELECT {COLUMNS} FROM device_reports WHERE device = ?"  # noqa: S608
                found = (connection.execute(one, (device,)).fetchone() for device in devices)
                rows = [row for row in found if row is not None]
        return {row[0]: _read(row) for row in rows}


def _read(row: tuple[Any, ...]) -> DeviceReports:
    device, cohort, at, received, lost, content = row
    return DeviceReports(device, cohort, at, received, lost, _decoder.decode(content))


def _keep(connection: sqlite3.Connection, reported: Reported) -> None:
    report = reported.report
    known = connection.execute(
        "SELECT boot, number, received, lost FROM device_reports WHERE device = ?", (reported.device,)
    ).fetchone()
    boot, number, received, lost = known or ("", 0, 0, 0)
    if boot != report.boot:
        number = 0
    # One that was overtaken by a later one was counted as lost then.
    gap = max(report.number - number, 0) - reported.received
    gap = min(gap, LONGEST_GAP) if gap > 0 else max(gap, -lost)
    newest = report.number > number
    connection.execute(
        "INSERT INTO device_reports (device, cohort, at, boot, number, received, lost, content) "
        "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (device) DO UPDATE SET cohort = ?2, at = max(at, ?3), "
        "boot = ?4, number = ?5, received = ?6, lost = ?7, content = CASE WHEN ?9 THEN ?8 ELSE content END",
        (
            reported.device,
            reported.cohort,
            reported.at,
            report.boot,
            max(number, report.number),
            received + reported.received,
            lost + gap,
            msgspec.json.encode(report).decode(),
            newest,
        ),
    )
    counts = {"reports.received": reported.received, "reports.lost": max(gap, 0)}
    bump(connection, reported.cohort, {name: count for name, count in counts.items() if count})

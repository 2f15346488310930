"""What the SQLite store offers beside the protocol of every store: traces, agreement, acts, keys, devices, copies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cema.cloud.store import sqlite_backup, sqlite_restore
from cema.cloud.store.activity import DeviceActivity, Poll
from cema.cloud.store.agreements import AgreementPoint, VersionAgreement
from cema.cloud.store.audits import AuditedAct, RecordedAct
from cema.cloud.store.backups import Content, Progress, Restored
from cema.cloud.store.base import PublishedUpdate, UpdateTag
from cema.cloud.store.bases import DeviceBase, Migration, Period
from cema.cloud.store.control import Act, Acted, Control, VersionRecord
from cema.cloud.store.devices import Device
from cema.cloud.store.draws import DrawnSample, RandomCount, RandomPoint, VersionRandomAgreement
from cema.cloud.store.history import DomainChange, HistoryBin, HistoryNote, Published
from cema.cloud.store.offers import Offers, PinnedDevice, Rollout
from cema.cloud.store.reports import DeviceReports, Reported
from cema.cloud.store.sqlite_activity import ActivityTable
from cema.cloud.store.sqlite_agreements import AgreementTable
from cema.cloud.store.sqlite_audits import AuditTable
from cema.cloud.store.sqlite_bases import BaseTable
from cema.cloud.store.sqlite_control import ControlTable
from cema.cloud.store.sqlite_draws import DrawTable
from cema.cloud.store.sqlite_fleet import SqliteFleet, make_fleet_columns
from cema.cloud.store.sqlite_history import HistoryTable
from cema.cloud.store.sqlite_keys import KeysTable
from cema.cloud.store.sqlite_offers import OfferTable
from cema.cloud.store.sqlite_reports import ReportTable
from cema.cloud.store.sqlite_rights import RightsMembers
from cema.cloud.store.sqlite_sessions import SessionTable
from cema.cloud.store.sqlite_traces import TraceTable
from cema.cloud.store.traces import Fetch
from cema.errors import ConfigError

__all__ = ["OptionalMembers", "path_of"]


class OptionalMembers(RightsMembers):
    """The optional members of `cema.cloud.store.sqlite.SqliteStore`, each by a table of its own beside the schema."""

    def _make_optional(self) -> None:
        self._activity = ActivityTable(self.database)
        self._traces = TraceTable(self.database)
        self._agreements = AgreementTable(self.database)
        self._draws = DrawTable(self.database)
        self._audit = AuditTable(self.database)
        self._offers = OfferTable(self.database)
        self._control = ControlTable(self.database, self._audit, self._offers)
        self._bases = BaseTable(self.database, self._audit, self._control, self._offers)
        self._reports = ReportTable(self.database)
        self._history = HistoryTable(self.database)
        self._keys = KeysTable(self.database, self._audit)
        self._fleet_there = make_fleet_columns(self.database)
        self._make_rights(self._audit, self._draws)
        self._sessions = SessionTable(self.database, self.devices(()))
        # Only a restore sets them, and that waits until nobody has the store open.
        with self.database.read() as connection:
            self._floors = sqlite_backup.read_floors(connection)

    @classmethod
    def inspect(cls, backup: Path) -> Content:
        """Check a copy and return what it holds, see `cema.cloud.store.backups.RestoringBackend.inspect`."""
        return sqlite_backup.read_content(backup)

    @classmethod
    def newest_versions_at(cls, address: str) -> dict[str, int] | None:
        """Return the newest version by cohort of the store at a path; None where none can be read."""
        return sqlite_restore.newest_versions_at(path_of(address))

    @classmethod
    def restore(
        cls,
        address: str,
        backup: Path,
        *,
        floors: Mapping[str, int],
        replace: bool,
        progress: Progress | None = None,
    ) -> Restored:
        """Put a copy in the place of the store, see `cema.cloud.store.backups.RestoringBackend.restore`."""
        return sqlite_restore.restore(
            path_of(address), backup, floors=floors, replace=replace, progress=progress
        )

    def backup(
        self, path: Path, *, now: float, notes: Mapping[str, Any], progress: Progress | None = None
    ) -> Content:
        """Write a checked copy of the store to a new file, see `cema.cloud.store.backups.BackupStore.backup`."""
        return sqlite_backup.make_backup(self.database.path, path, now=now, notes=notes, progress=progress)

    def version_floor(self, cohort: str) -> int:
        """Return the lowest number that the next version of a cohort may have; 0 where any will do."""
        return self._floors.get(cohort, 0)

    def devices(self, cohorts: Collection[str]) -> SqliteFleet:
        """Return the register of devices; it takes new ones of these cohorts."""
        return SqliteFleet(self.database, cohorts, there=self._fleet_there)

    def audited_devices(self, cohorts: Collection[str], *, actor: str) -> SqliteFleet:
        """Return the register of devices that keeps who does what with them."""
        return SqliteFleet(self.database, cohorts, acts=self._audit, actor=actor, there=self._fleet_there)

    def open_session(self, token: str, *, now: float) -> str | None:
        """Open a session for the holder of a token."""
        return self._sessions.open(token, now)

    def session(self, secret: str, *, now: float) -> Device | None:
        """Return whose session this is; None where it is none, or has ended."""
        return self._sessions.find(secret, now)

    def end_session(self, secret: str) -> None:
        """End a session."""
        self._sessions.end(secret)

    def record_act(self, act: AuditedAct, *, now: float | None = None) -> None:
        """Keep an act, durably."""
        self._audit.record_alone(act, now=now)

    def audit(self, *, after: int = 0, limit: int) -> list[RecordedAct]:
        """Return up to `limit` acts that follow `after` in the record, oldest first."""
        return self._audit.after(after, limit)

    def newest_audit(self, limit: int) -> list[RecordedAct]:
        """Return the newest acts, oldest first."""
        return self._audit.newest(limit)

    def act(self, cohort: str, act: Act, *, actor: str, now: float) -> Acted:
        """Write an operator's act down, durably."""
        return self._control.act(cohort, act, actor=actor, now=now)

    def control(self, cohort: str) -> Control:
        """Return what all acts on a cohort come to."""
        return self._control.control(cohort)

    def waiting_act(self, cohort: str) -> Acted | None:
        """Return the act that the worker has to do, if there is one."""
        return self._control.waiting(cohort)

    def acts(self, cohort: str, *, limit: int = 100) -> list[Acted]:
        """Return the newest acts on a cohort, newest first."""
        return self._control.acts(cohort, limit=limit)

    def versions(self, cohort: str) -> list[VersionRecord]:
        """Return the versions that are kept, oldest first."""
        return self._control.versions(cohort)

    def offered_tag(self, cohort: str, device: str) -> UpdateTag | None:
        """Return what tells the version that a device is offered from others."""
        return self._offers.tag(cohort, device)

    def offered(self, cohort: str, device: str) -> PublishedUpdate | None:
        """Return the version that a device is offered; None before the first."""
        tag = self._offers.tag(cohort, device)
        return None if tag is None else self._offers.update(cohort, tag.version)

    def update(self, cohort: str, version: int) -> PublishedUpdate | None:
        """Return a version; None where it is not kept."""
        return self._offers.update(cohort, version)

    def offers(self, cohorts: Collection[str]) -> dict[str, Offers]:
        """Return what devices are offered, by cohort."""
        return self._offers.offers(cohorts)

    def for_all(self, cohort: str) -> PublishedUpdate | None:
        """Return the newest version that is for all devices; None before the first."""
        return self._offers.update(cohort, self._offers.newest(cohort))

    def rollout(self, cohort: str) -> Rollout | None:
        """Return the newest rollout of a cohort, open or not."""
        return self._offers.rollout(cohort)

    def pinned(self, cohort: str) -> list[PinnedDevice]:
        """Return the devices that are pinned, by name."""
        return self._offers.pinned(cohort)

    def periods(self, cohort: str) -> tuple[Period, ...]:
        """Return the base models that a cohort has had, oldest first; empty where it has had one only."""
        return self._bases.periods(cohort)

    def migrate(self, cohort: str, migration: Migration, *, actor: str, now: float) -> tuple[Period, ...]:
        """Give a cohort another base model, durably."""
        return self._bases.migrate(cohort, migration, actor=actor, now=now)

    def bundle_notice(self, cohort: str) -> tuple[int, bytes] | None:
        """Return serial number and envelope of a cohort's newest bundle notice, or None."""
        return self._bases.notice(cohort)

    def newest_of(
        self, cohort: str, base: str, *, before: float | None = None, alive: float | None = None
    ) -> PublishedUpdate | None:
        """Return the newest kept version for a base model."""
        return self._bases.newest_of(cohort, base, before=before, alive=alive)

    def tag_of(
        self, cohort: str, base: str, *, before: float | None = None, alive: float | None = None
    ) -> UpdateTag | None:
        """Return version and digest of the newest kept version for a base model."""
        return self._bases.tag_of(cohort, base, before=before, alive=alive)

    def note_device_bases(self, notes: Sequence[DeviceBase]) -> None:
        """Keep which base model each device has said last that it has."""
        self._bases.note_device_bases(notes)

    def device_bases(self, cohort: str) -> list[DeviceBase]:
        """Return what devices of a cohort have said last, by name."""
        return self._bases.device_bases(cohort)

    def keys_documents(self, cohort: str) -> list[bytes]:
        """Return the envelopes of a cohort's keys documents, by rising serial number."""
        return self._keys.keys_documents(cohort)

    def put_keys_document(
        self, cohort: str, serial: int, envelope: bytes, *, act: AuditedAct | None = None
    ) -> None:
        """Keep one more keys document, durably, and who made it."""
        self._keys.put_keys_document(cohort, serial, envelope, act=act)

    def note_polls(self, polls: Sequence[Poll]) -> None:
        """Keep that devices have asked for updates."""
        self._activity.note_polls(polls)

    def activity(self) -> dict[str, DeviceActivity]:
        """Return what is known of every device that was ever heard of, by its name."""
        return self._activity.read()

    def note_reports(self, reports: Sequence[Reported]) -> None:
        """Keep reports of devices."""
        self._reports.note(reports)

    def reports(self, devices: Collection[str] | None = None) -> dict[str, DeviceReports]:
        """Return what is known of every device that has ever reported, by its name; or of some devices alone."""
        return self._reports.read(devices)

    def note_history(self, notes: Sequence[HistoryNote], changes: Sequence[DomainChange] = ()) -> None:
        """Add measures to the bins of their moments, and keep changes of the domain."""
        self._history.note(notes, changes)

    def history(self, cohort: str, since: float, until: float, seconds: int) -> list[HistoryBin]:
        """Return the bins in which something is known, oldest first."""
        return self._history.read(cohort, since, until, seconds)

    def domain_changes(self, cohort: str, since: float, until: float) -> list[DomainChange]:
        """Return the changes of the domain, oldest first."""
        return self._history.changes(cohort, since, until)

    def published(self, cohort: str, since: float, until: float) -> list[Published]:
        """Return the versions that were published, oldest first."""
        return self._history.published(cohort, since, until)

    def fetched(self, cohort: str, device: str, *, limit: int) -> list[tuple[int, float]]:
        """Return the newest versions that a device has fetched, newest first."""
        return self._traces.fetched(cohort, device, limit)

    def newest_versions(self, cohorts: Collection[str]) -> dict[str, int]:
        """Return the newest version by cohort, in one query; 0 before the first."""
        return self._traces.newest_versions(cohorts)

    def note_fetches(self, fetches: Sequence[Fetch]) -> None:
        """Keep when devices were first given a version."""
        self._traces.note_fetches(fetches)

    def traced(self, cohort: str) -> list[int]:
        """Return the versions whose traces are kept, oldest first."""
        return self._traces.traced(cohort)

    def trace(self, cohort: str, version: int) -> dict[str, Any] | None:
        """Return the trace of a version; None where none is kept."""
        return self._traces.trace(cohort, version)

    def agreement_by_version(self, cohort: str) -> list[VersionAgreement]:
        """Return the agreement with the foundation model by version, in ascending order."""
        return self._agreements.by_version(cohort)

    def agreement_over_time(
        self, cohort: str, *, since: float = 0.0, newest: int | None = None
    ) -> list[AgreementPoint]:
        """Return the agreement with the foundation model by minute and model, oldest first."""
        return self._agreements.over_time(cohort, since=since, newest=newest)

    def take_draws(self, cohort: str, limit: int) -> list[DrawnSample]:
        """Return the first samples to be measured that were drawn at random, and note that it was tried."""
        return self._draws.take(cohort, limit)

    def measured_draws(
        self,
        cohort: str,
        numbers: Sequence[int],
        counts: Sequence[RandomCount],
        *,
        now: float,
        unreadable: int = 0,
    ) -> bool:
        """Let drawn samples go and keep what was found of them, both or neither."""
        return self._draws.measured(cohort, numbers, counts, now=now, unreadable=unreadable)

    def random_agreement_by_version(self, cohort: str) -> list[VersionRandomAgreement]:
        """Return the agreement on all that devices see by version, in ascending order."""
        return self._draws.by_version(cohort)

    def random_agreement_over_time(
        self, cohort: str, *, since: float = 0.0, newest: int | None = None
    ) -> list[RandomPoint]:
        """Return the sums of drawn samples by minute and model, oldest first."""
        return self._draws.over_time(cohort, since=since, newest=newest)


def path_of(address: str) -> Path:
    """Return the path of a URL's address: what follows `sqlite:`, as it is, or after the `//` of an empty host."""
    if address.startswith("///"):
        address = "/" + address.lstrip("/")
    if not address or address == ":memory:" or address.startswith("//"):
        raise ConfigError(
            f"store: expected sqlite:PATH with a relative path, or sqlite:/PATH or sqlite:///PATH with an absolute "
            f"one, got 'sqlite:{address}'"
        )
    return Path(address)

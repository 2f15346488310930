"""What people may do with samples, as members of the SQLite store; see `cema.cloud.store.data`."""

from __future__ import annotations

from collections.abc import Mapping

from cema.cloud.store.audits import AuditedAct
from cema.cloud.store.data import (
    DataFilter,
    DataGroup,
    DataSample,
    LabelsTaken,
    NewestSample,
    Pending,
    Receipt,
    ToForget,
)
from cema.cloud.store.sqlite_audits import AuditTable
from cema.cloud.store.sqlite_data import LabelTables
from cema.cloud.store.sqlite_database import Database
from cema.cloud.store.sqlite_deletions import DeletionTables
from cema.cloud.store.sqlite_draws import DrawTable

__all__ = ["RightsMembers"]


class RightsMembers:
    """The members of `cema.cloud.store.data.DataStore`."""

    database: Database

    def _make_rights(self, audit: AuditTable, draws: DrawTable) -> None:
        self._audit_of_data, self._draws_of_data = audit, draws
        self._labels = LabelTables(self.database)
        self._deletions = DeletionTables(self.database, self._labels, audit, draws)

    def data_groups(self, cohort: str, which: DataFilter) -> list[DataGroup]:
        """Return samples counted by device and labels."""
        return self._labels.groups(cohort, which)

    def data_samples(self, cohort: str, which: DataFilter, *, after: int = 0, limit: int) -> list[DataSample]:
        """Return up to `limit` samples that follow `after` in the sequence, oldest first."""
        return self._labels.samples(cohort, which, after=after, limit=limit)

    def newest_samples(self, cohort: str, *, limit: int, device: str | None = None) -> list[NewestSample]:
        """Return the newest samples, newest first: of all devices, or of one among the newest of all."""
        return self._labels.newest(cohort, device, limit, draws=self._draws_of_data.there)

    def data_sample(self, cohort: str, id: str) -> DataSample | None:
        """Return one sample, by the digest of its image; None where it is not stored."""
        return self._labels.sample(cohort, id)

    def saved_checkpoint(self, cohort: str) -> bytes | None:
        """Return what the worker has committed last, without taking the cohort over."""
        with self.database.read() as connection:
            row = connection.execute("SELECT checkpoint FROM cohorts WHERE name = ?", (cohort,)).fetchone()
        return row[0] if row else None

    def delete_data(self, cohort: str, which: DataFilter, *, actor: str, now: float) -> Receipt:
        """Remove samples from the bytes of the store's files, and have the worker forget them."""
        return self._deletions.delete(cohort, which, actor=actor, now=now)

    def expire_data(self, cohort: str, *, until: float, now: float) -> Receipt | None:
        """Delete samples that arrived before a moment; None where there are none."""
        return self._deletions.expire(cohort, until=until, now=now)

    def receipts(self, cohort: str | None = None, *, limit: int = 100) -> list[Receipt]:
        """Return the newest deletions, of one cohort or all, newest first."""
        return self._deletions.receipts(cohort, limit=limit)

    def pending(self, cohort: str) -> Pending:
        """Return what the worker has to know, by reading two rows."""
        return Pending(self._deletions.open(cohort), self._labels.taken(cohort))

    def go_on_deleting(self, cohort: str, *, now: float) -> ToForget:
        """Finish deletions that were interrupted, and return what the worker is to forget."""
        return self._deletions.to_forget(cohort)

    def finish_deletions(self, cohort: str, *, now: float) -> list[Receipt]:
        """Erase what the store's files still hold of what was forgotten; return the deletions that are done now."""
        return self._deletions.finish(cohort, now=now)

    def put_labels(self, cohort: str, labels: Mapping[str, int], *, actor: str, now: float) -> LabelsTaken:
        """Keep the true classes of stored samples, by id, durably, and who gave them."""
        taken = self._labels.put(cohort, labels, actor=actor, now=now)
        if taken.new or taken.changed:
            detail = {"new": taken.new, "changed": taken.changed}
            self._audit_of_data.record_alone(AuditedAct(actor, "data.label", cohort, detail), now=now)
        return taken

    def true_labels(self, cohort: str) -> dict[int, int]:
        """Return the true classes that people have given, by sequence number."""
        return self._labels.truths(cohort)

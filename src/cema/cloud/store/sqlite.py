"""The store in one SQLite file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cema._util.toml import resolve_path
from cema.cloud.store import sqlite_samples
from cema.cloud.store.agreements import AgreementCount
from cema.cloud.store.base import (
    UPDATES_KEPT,
    Backlog,
    CohortState,
    Fenced,
    Limits,
    PublishedUpdate,
    StoredSample,
    UpdateTag,
    Waiting,
)
from cema.cloud.store.control import Acted
from cema.cloud.store.data import TeacherLabel
from cema.cloud.store.offers import Offer
from cema.cloud.store.retention import Aged, kept
from cema.cloud.store.sqlite_data import LABEL_BYTES
from cema.cloud.store.sqlite_database import PAGE, Database, bump
from cema.cloud.store.sqlite_optional import OptionalMembers, path_of
from cema.cloud.store.sqlite_space import make_room, shrink
from cema.cloud.store.sqlite_tallies import moved, recount, tally
from cema.cloud.store.sqlite_traces import dump_trace
from cema.errors import StoreError
from cema.formats.draw import Draw
from cema.formats.sample import Sample, Verdict

__all__ = ["SqliteStore"]

# The part of the cap that payloads of older versions may take, beside those of the newest.
OLDER_SHARE = 32


class SqliteStore(OptionalMembers):
    """A `cema.cloud.store.base.Store` in one SQLite file; what its methods promise is written there.

    Parameters
    ----------
    path
        The database file; it and its folder are created when absent.
    max_bytes
        Cap of the file, in bytes. A cap that was lowered is met as far as samples may be evicted.

    Raises
    ------
    StoreError
        The file cannot be opened, is no CEMA database, or `max_bytes` is under 256 KiB.
    """

    instant = True

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.database = Database(path, max_bytes=max_bytes)
        shrink(self.database)
        self._make_optional()
        self._samples = sqlite_samples.SampleTable(
            self.database, self._activity, self._draws, self._deletions.identities
        )

    @classmethod
    def open(cls, address: str, *, max_bytes: int) -> SqliteStore:
        """Open the file at a path, see `cema.cloud.store.base.Backend.open`."""
        return cls(path_of(address), max_bytes=max_bytes)

    @classmethod
    def absolute(cls, address: str, folder: Path) -> str:
        """Return the path, taken from a folder when it is relative."""
        return str(resolve_path(folder, str(path_of(address))))

    @classmethod
    def check_limits(cls, limits: Limits) -> None:
        """Check the cloud's limits, see `cema.cloud.store.base.Backend.check_limits`."""
        sqlite_samples.check_limits(limits)

    def put(
        self,
        cohort: str,
        samples: Sequence[Sample],
        *,
        device: str,
        now: float,
        max_backlog: int,
        rejected: Mapping[str, int] | None = None,
        draws: Mapping[int, Draw] | None = None,
    ) -> list[Verdict]:
        """Store what is new, durably: every verdict returned is on disk."""
        return self._samples.put(
            cohort, samples, device=device, now=now, max_backlog=max_backlog, rejected=rejected, draws=draws
        )

    def fresh(self, cohort: str, *, after: int, limit: int) -> list[StoredSample]:
        """Return up to `limit` samples of a cohort that follow `after` in the sequence, oldest first."""
        return self._samples.fresh(cohort, after=after, limit=limit)

    def sequence(self, cohort: str, *, after: int, limit: int) -> list[int]:
        """Return the sequence numbers alone of up to `limit` samples that follow `after`."""
        return self._samples.sequence(cohort, after=after, limit=limit)

    def waiting(self, cohort: str, *, after: int, limit: int) -> list[Waiting]:
        """Return who sent up to `limit` samples that follow `after` in the sequence, oldest first."""
        return self._samples.waiting(cohort, after=after, limit=limit)

    def samples(self, seqs: Sequence[int]) -> list[StoredSample]:
        """Return those samples that are still stored, in the order of their sequence numbers."""
        return self._samples.samples(seqs)

    def images(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the encoded images of those samples that are still stored, by sequence number."""
        return self._samples.images(seqs)

    def backlog(self, cohort: str) -> Backlog:
        """Return what of a cohort still waits for the worker."""
        return self._samples.backlog(cohort)

    def used_bytes(self) -> int:
        """Return the bytes of the database in use; its file may be larger, up to the cap."""
        return self._samples.used_bytes()

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def open_cohort(self, name: str, *, base: str) -> None:
        """Make a cohort known, for one base model; another one than it has is refused."""
        with self.database.write() as connection:
            connection.execute("INSERT OR IGNORE INTO cohorts (name, base) VALUES (?, ?)", (name, base))
            self._bases.tie(connection, name, base)

    def claim(self, cohort: str) -> CohortState:
        """Take a cohort over: from now on only commits under the returned epoch are accepted."""
        with self.database.write() as connection:
            _increase(connection, cohort, "epoch")
            # Once for each start of a worker: an older program may have written to the store meanwhile.
            recount(connection, cohort)
            row = connection.execute(
                "SELECT cursor, checkpoint, epoch, attempts FROM cohorts WHERE name = ?", (cohort,)
            ).fetchone()
        if row is None:
            raise StoreError(f"the store has no cohort {cohort!r}; open it first")
        return CohortState(*row)

    def mark_attempt(self, cohort: str) -> None:
        """Note that a step from the present cursor begins; the next commit clears the note."""
        with self.database.write() as connection:
            _increase(connection, cohort, "attempts")

    def commit_step(
        self,
        cohort: str,
        cursor: int,
        checkpoint: bytes,
        update: PublishedUpdate | None = None,
        *,
        epoch: int,
        now: float,
        counts: Mapping[str, float] | None = None,
        report: Mapping[str, Any] | None = None,
        measured: Sequence[AgreementCount] = (),
        control: int | None = None,
        acted: Acted | None = None,
        offer: Offer | None = None,
        taught: Sequence[TeacherLabel] = (),
        forgotten: Sequence[int] = (),
    ) -> None:
        """Commit a step whole: cursor, checkpoint, update if there is one, counters, labels. All or nothing."""
        with self.database.write() as connection:
            before = connection.execute("SELECT cursor FROM cohorts WHERE name = ?", (cohort,)).fetchone()
            changed = connection.execute(
                "UPDATE cohorts SET cursor = ?, attempts = 0, committed_at = ?, checkpoint = NULL "
                "WHERE name = ? AND epoch = ? AND cursor <= ?",
                (cursor, now, cohort, epoch, cursor),
            ).rowcount
            if changed != 1:
                raise self._refusal(connection, cohort, cursor, epoch)
            publishes = update is not None or (offer is not None and offer.offers_more)
            self._control.commit(connection, cohort, control=control, acted=acted, publishes=publishes)
            moved(connection, cohort, before[0], cursor)
            # After the cursor: what this step has processed, and the checkpoint before, make room for the new one.
            trace = dump_trace(update.trace if update else None)
            size = (
                len(checkpoint) + (len(update.payload) + len(update.envelope) if update else 0) + len(trace)
            )
            cap = self.database.max_bytes
            make_room(connection, size + LABEL_BYTES * len(taught) + 4 * PAGE, cap, cap=cap)
            connection.execute("UPDATE cohorts SET checkpoint = ? WHERE name = ?", (checkpoint, cohort))
            if update is not None:
                self._insert_update(connection, cohort, update)
                self._traces.insert(connection, cohort, update.version, trace)
                self._history.publish(connection, cohort, update)
            self._offers.commit(connection, cohort, offer, update.version if update else None)
            bump(connection, cohort, counts or {})
            self._agreements.insert(connection, cohort, measured, now)
            self._labels.insert(connection, taught)
            self._deletions.forgotten(connection, cohort, forgotten, now)
            if report is not None:
                _put_report(connection, cohort, report, now)

    @staticmethod
    def _refusal(connection: Any, cohort: str, cursor: int, epoch: int) -> StoreError:
        row = connection.execute("SELECT cursor, epoch FROM cohorts WHERE name = ?", (cohort,)).fetchone()
        if row is None:
            return StoreError(f"the store has no cohort {cohort!r}; open it first")
        if row[1] != epoch:
            return Fenced(f"cohort {cohort!r} was claimed by another worker (epoch {row[1]}, mine {epoch})")
        return StoreError(f"the cursor of cohort {cohort!r} is at {row[0]} and cannot go back to {cursor}")

    def _insert_update(self, connection: Any, cohort: str, update: PublishedUpdate) -> None:
        digest = hashlib.sha256(update.payload).hexdigest()
        if digest != update.digest:
            raise StoreError(
                f"update {update.version}: the payload's digest is {digest}, not {update.digest}"
            )
        last = connection.execute("SELECT max(version) FROM updates WHERE cohort = ?", (cohort,)).fetchone()[
            0
        ]
        if update.version <= (last or 0):
            raise StoreError(f"update {update.version} of cohort {cohort!r} must follow version {last or 0}")
        if update.version < self.version_floor(cohort):
            raise StoreError(
                f"update {update.version} of cohort {cohort!r} must have at least number {self.version_floor(cohort)}: "
                "the store was restored, and devices may have seen those below"
            )
        connection.execute(
            "INSERT OR IGNORE INTO artifacts (digest, data) VALUES (?, ?)", (digest, update.payload)
        )
        connection.execute(
            "INSERT INTO updates (cohort, version, digest, created, expires, envelope) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (cohort, update.version, digest, update.created, update.expires, update.envelope),
        )
        self._drop_updates(connection, cohort)

    def _drop_updates(self, connection: Any, cohort: str) -> None:
        """Delete the versions that are no longer kept, and payloads that no version has."""
        rows = connection.execute(
            "SELECT version, created, length(data), digest FROM updates JOIN artifacts USING (digest) "
            "WHERE cohort = ?",
            (cohort,),
        ).fetchall()
        stay = kept(
            (Aged(*row[:3]) for row in rows),
            newest=UPDATES_KEPT,
            older_bytes=self.database.max_bytes // OLDER_SHARE,
        )
        held = self._control.held(connection, cohort) | self._offers.held(connection, cohort)
        stay |= self._bases.kept(connection, cohort)
        connection.executemany(
            "DELETE FROM updates WHERE cohort = ? AND version = ?",
            [(cohort, row[0]) for row in rows if row[0] not in stay and row[3] not in held],
        )
        connection.execute("DELETE FROM artifacts WHERE digest NOT IN (SELECT digest FROM updates)")
        self._offers.forget(connection, cohort)

    def latest_update(self, cohort: str) -> PublishedUpdate | None:
        """Return the newest update of a cohort, or None before the first."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT version, digest, envelope, data, created, expires FROM updates "
                "JOIN artifacts USING (digest) WHERE cohort = ? ORDER BY version DESC LIMIT 1",
                (cohort,),
            ).fetchone()
        return PublishedUpdate(*row) if row else None

    def latest_tag(self, cohort: str) -> UpdateTag | None:
        """Return version and digest of the newest update of a cohort, or None before the first: one row is read."""
        row = self.database.peek(
            "SELECT version, digest FROM updates WHERE cohort = ? ORDER BY version DESC LIMIT 1", (cohort,)
        )
        return UpdateTag(*row) if row else None

    def artifact(self, cohort: str, digest: str) -> bytes | None:
        """Return a payload that was published to this cohort, or None."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT data FROM artifacts WHERE digest = ?1 AND EXISTS "
                "(SELECT 1 FROM updates WHERE digest = ?1 AND cohort = ?2)",
                (digest, cohort),
            ).fetchone()
        return row[0] if row else None

    def count(self, cohort: str, counts: Mapping[str, float]) -> None:
        """Add to a cohort's durable counters."""
        with self.database.write() as connection:
            bump(connection, cohort, counts)

    def counters(self, cohort: str) -> dict[str, float]:
        """Return a cohort's counters by name, e.g. ``samples.stored`` or ``evicted.byte_cap``."""
        with self.database.read() as connection:
            return dict(
                connection.execute("SELECT name, value FROM counters WHERE cohort = ?", (cohort,)).fetchall()
            )

    def put_report(self, cohort: str, report: Mapping[str, Any], *, now: float) -> None:
        """Say what the worker is doing; :meth:`status` shows the last such report and its time."""
        with self.database.write() as connection:
            _put_report(connection, cohort, report, now)

    def status(self, cohort: str) -> dict[str, Any]:
        """Return where a cohort stands, as one JSON-able snapshot."""
        with self.database.read() as connection:
            state = connection.execute(
                "SELECT cursor, base, committed_at FROM cohorts WHERE name = ?", (cohort,)
            ).fetchone()
            stored = tally(connection, cohort)
            last = connection.execute("SELECT max(seq) FROM samples WHERE cohort = ?", (cohort,)).fetchone()[
                0
            ]
            update = connection.execute(
                "SELECT version, digest, created, expires FROM updates WHERE cohort = ? "
                "ORDER BY version DESC LIMIT 1",
                (cohort,),
            ).fetchone()
            worker = connection.execute(
                "SELECT seen_at, report FROM workers WHERE cohort = ?", (cohort,)
            ).fetchone()
        if state is None:
            raise StoreError(f"the store has no cohort {cohort!r}; open it first")
        return {
            "cohort": cohort,
            "base": state[1],
            "cursor": state[0],
            "committed_at": state[2],
            "samples": stored.samples,
            "last_sample": last or 0,
            "backlog": stored.waiting,
            "used_bytes": self.used_bytes(),
            "version": update[0] if update else 0,
            "update": dict(zip(("version", "digest", "created", "expires"), update, strict=True))
            if update
            else None,
            "counts": self.counters(cohort),
            "worker": {"seen_at": worker[0], **json.loads(worker[1])} if worker else None,
        }


def _increase(connection: Any, cohort: str, column: Literal["epoch", "attempts"]) -> None:
    """Add 1, also in a full store: to change a row SQLite writes all of it before it frees what was there."""
    row = connection.execute("SELECT checkpoint FROM cohorts WHERE name = ?", (cohort,)).fetchone()
    if row is not None:
        change = f"{column} = {column} + 1"
        connection.execute(f"UPDATE cohorts SET checkpoint = NULL, {change} WHERE name = ?", (cohort,))  # noqa: S608
        connection.execute("UPDATE cohorts SET checkpoint = ? WHERE name = ?", (row[0], cohort))


def _put_report(connection: Any, cohort: str, report: Mapping[str, Any], now: float) -> None:
    connection.execute(
        "INSERT INTO workers (cohort, seen_at, report) VALUES (?, ?, ?) ON CONFLICT (cohort) DO UPDATE "
        "SET seen_at = excluded.seen_at, report = excluded.report",
        (cohort, now, json.dumps(report, allow_nan=False)),
    )

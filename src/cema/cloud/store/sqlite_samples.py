"""The store's samples: an append-only sequence per cohort, each image once, under a byte cap."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from cema.cloud.store.base import (
    STATE_SHARE,
    Backlog,
    BacklogFull,
    Limits,
    StoredSample,
    UploadTooLarge,
    Waiting,
)
from cema.cloud.store.sqlite_activity import ActivityTable
from cema.cloud.store.sqlite_database import PAGE, Database, bump
from cema.cloud.store.sqlite_draws import Arrived, DrawTable
from cema.cloud.store.sqlite_group import GroupCommit
from cema.cloud.store.sqlite_space import live_bytes, make_room
from cema.cloud.store.sqlite_tallies import came, tally
from cema.errors import ConfigError
from cema.formats.draw import Draw
from cema.formats.sample import Sample, Verdict

__all__ = ["SampleTable", "check_limits"]

# What a row costs beside its image: other columns, index entries, its share of half-filled pages.
ROW_BYTES = 512
# Pages that a transaction may need beside its rows: new index leaves and their parents.
SLACK_BYTES = 8 * PAGE
# What the tables and indexes of an empty database take.
EMPTY_BYTES = 60 * PAGE
# Identities looked up by one query; SQLite takes so many parameters everywhere.
KEYS_AT_ONCE = 500
# In the order of StoredSample.
COLUMNS = "seq, id, image, entropy, label, version, captured_at, received_at, device"


def check_limits(limits: Limits) -> None:
    """Refuse requests of so many samples that their rows alone would fill half of the store.

    Raises
    ------
    ConfigError
        `limits.batch_samples` is too large for `limits.store_bytes`.
    """
    most = limits.store_bytes // 2 // (ROW_BYTES + PAGE)
    if limits.batch_samples > most:
        raise ConfigError(
            f"batch_samples: expected at most {most} with a store of {limits.store_bytes} bytes (store_bytes), "
            f"got {limits.batch_samples}; the store could not take every request: lower batch_samples or raise "
            "store_bytes"
        )


class _Upload(NamedTuple):
    """What one request brings: samples with their identities, whose they are, when they came, and how some were drawn.

    What was drawn and not selected is in `alone`, by position; `drawn` has all that were drawn.
    """

    cohort: str
    samples: list[tuple[bytes, Sample]]
    device: str
    now: float
    drawn: Sequence[Arrived] = ()
    alone: Collection[int] = ()


class SampleTable:
    """Durable samples of every cohort; the methods are those of `cema.cloud.store.base.Store`.

    Parameters
    ----------
    database
        The store's database; its cap is the store's.
    activity
        Where it is noted who sends.
    draws
        Where samples go that were drawn at random.
    deleted
        Further tables of what was stored once and is not to be stored again, beside that of evicted samples.
    """

    def __init__(
        self, database: Database, activity: ActivityTable, draws: DrawTable, deleted: Sequence[str] = ()
    ) -> None:
        self._database = database
        self._activity = activity
        self._draws = draws
        self._deleted = tuple(deleted)
        self._group = GroupCommit(database)

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
        """Store what is new, all or nothing, and count what came; uploads that wait at one time share a commit."""
        keyed = [(bytes.fromhex(sample.id), sample) for sample in samples]
        roles = sorted((draws or {}).items()) if self._draws.there else []
        drawn = [Arrived(*keyed[at], draw.share) for at, draw in roles]
        alone = {at for at, draw in roles if not draw.selected}
        upload = _Upload(cohort, keyed, device, now, drawn, alone)

        def write(connection: sqlite3.Connection) -> list[Verdict]:
            return self._put(connection, upload, max_backlog, rejected or {})

        return self._group.run(write, size=sum(len(sample.image) + ROW_BYTES for sample in samples))

    def _put(
        self, connection: sqlite3.Connection, upload: _Upload, max_backlog: int, rejected: Mapping[str, int]
    ) -> list[Verdict]:
        cohort, device = upload.cohort, upload.device
        fresh = {key: sample for at, (key, sample) in enumerate(upload.samples) if at not in upload.alone}
        keys = [key for key, _ in upload.samples]
        gone = set(_known(connection, self._deleted, cohort, keys))
        known = gone | set(_known(connection, ("samples", "evicted"), cohort, keys))
        fresh = {key: sample for key, sample in fresh.items() if key not in known}
        known |= {one.key for one in upload.drawn if self._draws.holds(connection, cohort, one.key)}
        drawn = self._draws.new(connection, cohort, device, upload.drawn) if upload.drawn else []
        drawn = [one for one in drawn if one.key not in gone]
        if fresh or drawn:
            beside = self._draws.waiting(connection, cohort) if drawn else 0
            self._check_backlog(connection, cohort, len(fresh) + len(drawn), max_backlog, beside=beside)
            self._make_room_for(connection, [*fresh.values(), *(one.sample for one in drawn)])
        if fresh:
            connection.executemany(
                "INSERT INTO samples (cohort, id, device, entropy, label, version, captured_at, "
                "received_at, image) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (cohort, key, device, s.entropy, s.label, s.version, s.captured_at, upload.now, s.image)
                    for key, s in fresh.items()
                ],
            )
            came(connection, cohort, len(fresh))
        if drawn:
            self._draws.insert(connection, cohort, device, drawn)
        stored, verdicts = 0, []
        for at, (key, sample) in enumerate(upload.samples):
            new = key not in known if at in upload.alone else fresh.pop(key, None) is not None
            known.add(key)
            stored += new * len(sample.image)
            verdicts.append(Verdict(id=sample.id, verdict="stored" if new else "duplicate"))
        bump(connection, cohort, _counts(upload, verdicts, stored, rejected))
        self._activity.sent(connection, cohort, device, [sample for _, sample in upload.samples], upload.now)
        return verdicts

    @staticmethod
    def _check_backlog(
        connection: sqlite3.Connection, cohort: str, more: int, most: int, *, beside: int
    ) -> None:
        waiting = tally(connection, cohort).waiting + beside
        if waiting + more > most:
            raise BacklogFull(
                f"{waiting} samples of cohort {cohort!r} wait for the worker and {most} may "
                f"(limits.backlog_samples); {more} more came; send them again later"
            )

    def _make_room_for(self, connection: sqlite3.Connection, samples: Collection[Sample]) -> None:
        need = SLACK_BYTES + sum(_pages(len(sample.image) + ROW_BYTES) for sample in samples)
        cap = self._database.max_bytes
        limit = cap - cap // STATE_SHARE
        if EMPTY_BYTES + need > limit:
            raise UploadTooLarge(
                f"{len(samples)} samples need {need} bytes, and an empty store has room for "
                f"{max(0, limit - EMPTY_BYTES)} (limits.store_bytes)"
            )
        make_room(connection, need, limit, cap=cap)

    def fresh(self, cohort: str, *, after: int, limit: int) -> list[StoredSample]:
        """Return up to `limit` samples of a cohort that follow `after` in the sequence, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM samples WHERE cohort = ? AND seq > ? ORDER BY seq LIMIT ?",  # noqa: S608
                (cohort, after, limit),
            ).fetchall()
        return [StoredSample(row[0], row[1].hex(), *row[2:]) for row in rows]

    def waiting(self, cohort: str, *, after: int, limit: int) -> list[Waiting]:
        """Return who sent up to `limit` samples that follow `after` in the sequence, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT seq, device FROM samples WHERE cohort = ? AND seq > ? ORDER BY seq LIMIT ?",
                (cohort, after, limit),
            ).fetchall()
        return [Waiting(*row) for row in rows]

    def samples(self, seqs: Sequence[int]) -> list[StoredSample]:
        """Return those samples that are still stored, in the order of their sequence numbers."""
        with self._database.read() as connection:
            rows = [
                connection.execute(f"SELECT {COLUMNS} FROM samples WHERE seq = ?", (seq,)).fetchone()  # noqa: S608
                for seq in sorted(set(seqs))
            ]
        return [StoredSample(row[0], row[1].hex(), *row[2:]) for row in rows if row is not None]

    def sequence(self, cohort: str, *, after: int, limit: int) -> list[int]:
        """Return the sequence numbers alone of up to `limit` samples that follow `after`."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT seq FROM samples WHERE cohort = ? AND seq > ? ORDER BY seq LIMIT ?",
                (cohort, after, limit),
            ).fetchall()
        return [row[0] for row in rows]

    def images(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the encoded images of those samples that are still stored, by sequence number."""
        with self._database.read() as connection:
            rows = (
                connection.execute("SELECT seq, image FROM samples WHERE seq = ?", (seq,)).fetchone()
                for seq in dict.fromkeys(seqs)
            )
            return {row[0]: row[1] for row in rows if row is not None}

    def backlog(self, cohort: str) -> Backlog:
        """Return what of a cohort still waits for the worker."""
        with self._database.read() as connection:
            waiting = tally(connection, cohort).waiting
            row = connection.execute(
                "SELECT received_at FROM samples WHERE cohort = ?1 AND seq > "
                "coalesce((SELECT cursor FROM cohorts WHERE name = ?1), 0) ORDER BY seq LIMIT 1",
                (cohort,),
            ).fetchone()
        return Backlog(waiting, row[0] if row else None)

    def used_bytes(self) -> int:
        """Return the bytes of the database in use; its file may be larger, up to the cap."""
        with self._database.read() as connection:
            return live_bytes(connection)


def _known(
    connection: sqlite3.Connection, tables: Sequence[str], cohort: str, keys: Sequence[bytes]
) -> Iterator[bytes]:
    """Yield those of some identities that the cohort has, or had."""
    for i in range(0, len(keys), KEYS_AT_ONCE):
        some = keys[i : i + KEYS_AT_ONCE]
        places = ", ".join("?" * len(some))
        for table in tables:
            query = f"SELECT id FROM {table} WHERE cohort = ? AND id IN ({places})"  # noqa: S608
            yield from (row[0] for row in connection.execute(query, (cohort, *some)).fetchall())


def _counts(
    upload: _Upload, verdicts: Sequence[Verdict], stored_bytes: int, rejected: Mapping[str, int]
) -> dict[str, float]:
    """Return what one upload adds to the cohort's counters."""
    stored = sum(verdict.verdict == "stored" for verdict in verdicts)
    return {
        "samples.stored": stored,
        "samples.duplicate": len(verdicts) - stored,
        "bytes.stored": stored_bytes,
        "bytes.duplicate": sum(len(sample.image) for _, sample in upload.samples) - stored_bytes,
        **{f"samples.rejected.{reason}": n for reason, n in rejected.items()},
    }


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE

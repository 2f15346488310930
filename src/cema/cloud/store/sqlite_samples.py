"""The store's samples: an append-only sequence per cohort, each image once, under a byte cap."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cema.cloud.store.sqlite_database import PAGE, Database, bump
from cema.errors import StoreError, StoreFull
from cema.formats.sample import Sample, Verdict

__all__ = ["Backlog", "BacklogFull", "SampleTable", "StoredSample", "UploadTooLarge"]

# What a row costs beside its image: other columns, index entries, its share of half-filled pages.
ROW_BYTES = 512
# Pages that a transaction may need beside its rows: new index leaves and their parents.
SLACK_BYTES = 8 * PAGE
# The part of the cap that samples leave to checkpoints, updates and counters: the worker can always commit.
STATE_SHARE = 8
# What the tables and indexes of an empty database take.
EMPTY_BYTES = 32 * PAGE
# Identities kept of evicted samples, at most, and at most one for so many bytes of the cap.
EVICTED_IDS = 65_536
EVICTED_BYTES = PAGE
EVICT_AT_ONCE = 64


class BacklogFull(StoreError):  # noqa: N818 - a state, not a fault
    """The cohort's worker is too far behind to take more samples now."""


class UploadTooLarge(StoreFull):
    """The samples of one upload would not fit an empty store: waiting cannot help."""


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample as the worker reads it.

    Attributes
    ----------
    seq
        Its place in the store's sequence, growing, never given twice.
    id
        SHA-256 of `image`, hex.
    image
        The encoded image.
    entropy
        Entropy of the edge's prediction, in nats.
    label
        The class that the edge predicted.
    version
        Version of the norm state the edge predicted with.
    captured_at, received_at
        Unix seconds.
    """

    seq: int
    id: str
    image: bytes
    entropy: float
    label: int
    version: int
    captured_at: float
    received_at: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for the worker: the number of samples, and when the oldest came (unix seconds)."""

    samples: int
    oldest: float | None


class SampleTable:
    """Durable samples of every cohort.

    Parameters
    ----------
    path
        The database file.
    max_bytes
        Cap of the database file. When a new sample needs room, the oldest samples that the worker has already
        seen go first; those it has not seen are never dropped.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.database = Database(path, max_bytes=max_bytes)
        self._shrink()

    def _shrink(self) -> None:
        """Give back what a lowered cap no longer allows, as far as processed samples go."""
        with self.database.write() as connection:
            if _file_bytes(connection) <= self.database.max_bytes:
                return
            try:
                self._make_room(connection, 0, self.database.max_bytes)
            except StoreFull:
                return  # only unseen samples are left: keep them, and take no more
            # Each call gives back one page: the statement returns no rows, so Python steps it once.
            for _ in range(connection.execute("PRAGMA freelist_count").fetchone()[0]):
                connection.execute("PRAGMA incremental_vacuum")

    def put(
        self,
        cohort: str,
        samples: Sequence[Sample],
        *,
        device: str,
        now: float,
        max_backlog: int,
        rejected: Mapping[str, int] | None = None,
    ) -> list[Verdict]:
        """Store what is new, durably: every verdict returned is on disk.

        Parameters
        ----------
        cohort, device
            Where the samples belong and who sent them.
        samples
            Checked samples: the id is the digest of the image.
        now
            Time of arrival, unix seconds.
        max_backlog
            Most samples of the cohort that may wait for the worker.
        rejected
            Samples of the same upload that failed their check, by reason: only counted.

        Returns
        -------
        list of Verdict
            One a sample, in order: ``stored``, or ``duplicate`` when the cohort has, or had, the image.

        Raises
        ------
        BacklogFull
            The worker is too far behind. Nothing was stored.
        UploadTooLarge
            The samples would not fit even if the store were empty. Nothing was stored.
        StoreFull
            The cap is reached and nothing may be evicted. Nothing was stored.
        """
        with self.database.write() as connection:
            fresh = self._unknown(connection, cohort, samples)
            if fresh:
                waiting = _waiting(connection, cohort)
                if waiting + len(fresh) > max_backlog:
                    raise BacklogFull(
                        f"{waiting} samples of cohort {cohort!r} wait for the worker and {max_backlog} may "
                        f"(limits.backlog_samples); {len(fresh)} more came; send them again later"
                    )
                need = SLACK_BYTES + sum(_pages(len(sample.image) + ROW_BYTES) for sample in fresh.values())
                limit = self.database.max_bytes - self.database.max_bytes // STATE_SHARE
                if EMPTY_BYTES + need > limit:
                    raise UploadTooLarge(
                        f"{len(fresh)} samples need {need} bytes, and an empty store has room for "
                        f"{max(0, limit - EMPTY_BYTES)} (limits.store_bytes)"
                    )
                self._make_room(connection, need, limit)
                connection.executemany(
                    "INSERT INTO samples (cohort, id, device, entropy, label, version, captured_at, "
                    "received_at, image) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (cohort, key, device, s.entropy, s.label, s.version, s.captured_at, now, s.image)
                        for key, s in fresh.items()
                    ],
                )
            verdicts = []
            for sample in samples:
                new = fresh.pop(bytes.fromhex(sample.id), None) is not None
                verdicts.append(Verdict(id=sample.id, verdict="stored" if new else "duplicate"))
            stored = [s for s, v in zip(samples, verdicts, strict=True) if v.verdict == "stored"]
            counts: dict[str, float] = {
                "samples.stored": len(stored),
                "samples.duplicate": len(samples) - len(stored),
                "bytes.stored": (stored_bytes := sum(len(s.image) for s in stored)),
                "bytes.duplicate": sum(len(s.image) for s in samples) - stored_bytes,
            }
            counts |= {f"samples.rejected.{reason}": n for reason, n in (rejected or {}).items()}
            bump(connection, cohort, counts)
        return verdicts

    @staticmethod
    def _unknown(
        connection: sqlite3.Connection, cohort: str, samples: Sequence[Sample]
    ) -> dict[bytes, Sample]:
        fresh = {bytes.fromhex(sample.id): sample for sample in samples}
        for key in list(fresh):
            known = connection.execute(
                "SELECT 1 FROM samples WHERE cohort = ?1 AND id = ?2 "
                "UNION ALL SELECT 1 FROM evicted WHERE cohort = ?1 AND id = ?2 LIMIT 1",
                (cohort, key),
            ).fetchone()
            if known:
                del fresh[key]
        return fresh

    def fresh(self, cohort: str, *, after: int, limit: int) -> list[StoredSample]:
        """Return up to `limit` samples of a cohort that follow `after` in the sequence, oldest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT seq, id, image, entropy, label, version, captured_at, received_at FROM samples "
                "WHERE cohort = ? AND seq > ? ORDER BY seq LIMIT ?",
                (cohort, after, limit),
            ).fetchall()
        return [StoredSample(row[0], row[1].hex(), *row[2:]) for row in rows]

    def sequence(self, cohort: str, *, after: int, limit: int) -> list[int]:
        """Return the sequence numbers alone of up to `limit` samples that follow `after`."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT seq FROM samples WHERE cohort = ? AND seq > ? ORDER BY seq LIMIT ?",
                (cohort, after, limit),
            ).fetchall()
        return [row[0] for row in rows]

    def images(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the encoded images of those samples that are still stored, by sequence number."""
        with self.database.read() as connection:
            rows = (
                connection.execute("SELECT seq, image FROM samples WHERE seq = ?", (seq,)).fetchone()
                for seq in dict.fromkeys(seqs)
            )
            return {row[0]: row[1] for row in rows if row is not None}

    def present(self, cohort: str, seqs: Sequence[int]) -> set[int]:
        """Return which of the samples are still stored."""
        if not seqs:
            return set()
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT seq FROM samples WHERE cohort = ? AND seq BETWEEN ? AND ?",
                (cohort, min(seqs), max(seqs)),
            )
            return {row[0] for row in rows}.intersection(seqs)

    def backlog(self, cohort: str) -> Backlog:
        """Return what of a cohort still waits for the worker."""
        with self.database.read() as connection:
            waiting = _waiting(connection, cohort)
            row = connection.execute(
                "SELECT received_at FROM samples WHERE cohort = ?1 AND seq > "
                "coalesce((SELECT cursor FROM cohorts WHERE name = ?1), 0) ORDER BY seq LIMIT 1",
                (cohort,),
            ).fetchone()
        return Backlog(waiting, row[0] if row else None)

    def used_bytes(self) -> int:
        """Return the bytes of the database in use; its file may be larger, up to the cap."""
        with self.database.read() as connection:
            return _live_bytes(connection)

    def _make_room(self, connection: sqlite3.Connection, need: int, limit: int) -> None:
        """Evict processed samples, oldest first, until `need` bytes more fit under `limit`."""
        while _live_bytes(connection) + need > limit:
            victims = self._oldest_processed(connection)
            if not victims:
                raise StoreFull(
                    f"the store needs {need} bytes more than its cap leaves ({self.database.max_bytes}, "
                    "limits.store_bytes), and every sample in it still waits for the worker; send again "
                    "later, or raise the cap"
                )
            excess = _live_bytes(connection) + need - limit
            freed = 0
            dropped: dict[str, int] = {}
            for seq, cohort, key, size in victims:
                if freed >= excess:
                    break
                connection.execute("DELETE FROM samples WHERE seq = ?", (seq,))
                connection.execute(
                    "INSERT INTO evicted (seq, cohort, id) VALUES (?, ?, ?)", (seq, cohort, key)
                )
                freed += size
                dropped[cohort] = dropped.get(cohort, 0) + 1
            for cohort, count in dropped.items():
                bump(connection, cohort, {"evicted.byte_cap": count})
            keep = min(EVICTED_IDS, self.database.max_bytes // EVICTED_BYTES)
            connection.execute(
                "DELETE FROM evicted WHERE seq <= "
                "(SELECT seq FROM evicted ORDER BY seq DESC LIMIT 1 OFFSET ?)",
                (keep,),
            )

    @staticmethod
    def _oldest_processed(connection: sqlite3.Connection) -> list[tuple[int, str, bytes, int]]:
        victims: list[tuple[int, str, bytes, int]] = []
        for cohort, cursor in connection.execute("SELECT name, cursor FROM cohorts").fetchall():
            victims += connection.execute(
                "SELECT seq, cohort, id, length(image) FROM samples WHERE cohort = ? AND seq <= ? "
                "ORDER BY seq LIMIT ?",
                (cohort, cursor, EVICT_AT_ONCE),
            ).fetchall()
        return sorted(victims)[:EVICT_AT_ONCE]

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def _waiting(connection: sqlite3.Connection, cohort: str) -> int:
    row = connection.execute(
        "SELECT count(*) FROM samples WHERE cohort = ?1 AND seq > "
        "coalesce((SELECT cursor FROM cohorts WHERE name = ?1), 0)",
        (cohort,),
    ).fetchone()
    return int(row[0])


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _live_bytes(connection: sqlite3.Connection) -> int:
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return _file_bytes(connection) - int(free) * PAGE


def _file_bytes(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA page_count").fetchone()[0]) * PAGE

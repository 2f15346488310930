"""The device's durable queue of samples that were selected, or drawn at random.

One SQLite file in write-ahead mode with ``synchronous=FULL``: what :meth:`Spool.put_many` returned for
survives ``kill -9`` and power loss, and the files together never pass the byte cap.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import TypeAlias

from cema.edge.spool_database import PAGE_BYTES
from cema.edge.spool_order import SENT, SendOrder
from cema.edge.spool_sqlite import DRAWN_LOST, SAMPLE_BYTES, SAMPLES, SpoolFile
from cema.errors import SpoolError
from cema.formats.draw import SMALLEST_SHARE, Draw
from cema.formats.sample import Sample, Verdict

__all__ = ["MIN_SPOOL_BYTES", "Spool"]

_Data: TypeAlias = bytes  # in `Spool` that name is a property
_Waiting: TypeAlias = deque[tuple[Sample, Draw | None]]

logger = logging.getLogger(__name__)

MIN_SPOOL_BYTES = 1 << 20
"""The smallest cap a spool accepts: below it SQLite's own pages would be most of the file."""

_REMEMBERED = "CREATE TABLE IF NOT EXISTS sent (seq INTEGER PRIMARY KEY, signature BLOB NOT NULL) STRICT"
_REMEMBERED_AT_ONCE = 32  # in one transaction
_COLUMNS = "id, image, entropy, label, version, captured_at"


class Spool:
    """A queue of samples on disk, bounded in bytes, with the counters that live beside it; first in, first out.

    Every method may be called from any thread. Methods that touch the disk serialise on one lock;
    :meth:`count`, :meth:`counters`, :attr:`samples` and :attr:`bytes` never do, so that callers in a hurry
    never wait for a write.

    Parameters
    ----------
    path : Path
        The database file; created, with its folder, when absent.
    max_bytes : int
        Cap in bytes on the files together (database and write-ahead log), at least ``MIN_SPOOL_BYTES``.
    on_change : callable, optional
        Called without arguments, outside all locks, after samples were added or removed.
    order : SendOrder, optional
        Which samples are the first ones, if not the oldest. What makes room is always the oldest.

    Raises
    ------
    SpoolError
        When the cap is too small, another process has the file, or no file can have that path. A disk that is
        full or read-only shows in `problem`: then everything else raises, and tries to open the file again.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        on_change: Callable[[], None] | None = None,
        order: SendOrder | None = None,
    ) -> None:
        if max_bytes < MIN_SPOOL_BYTES:
            raise SpoolError(
                f"a spool needs at least {MIN_SPOOL_BYTES} bytes, got max_bytes={max_bytes}; "
                "raise upload.spool_bytes"
            )
        self._on_change = on_change or (lambda: None)
        self._order = order or SendOrder()
        self._file = SpoolFile(path, max_bytes, self._order.attach)

    @property
    def samples(self) -> int:
        """Number of samples waiting."""
        return self._file.counters().get(SAMPLES, 0)

    @property
    def bytes(self) -> int:
        """Encoded image bytes waiting."""
        return self._file.counters().get(SAMPLE_BYTES, 0)

    def counters(self) -> dict[str, int]:
        """Return every counter's value, those not on disk yet included."""
        return {name: n for name, n in self._file.counters().items() if not name.startswith(".")}

    def dropped(self) -> dict[str, int]:
        """Return the number of samples lost, by reason."""
        return self.grouped("dropped.")

    def grouped(self, prefix: str) -> dict[str, int]:
        """Return the counters whose names start with `prefix`, without it."""
        return {n.removeprefix(prefix): v for n, v in sorted(self.counters().items()) if n.startswith(prefix)}

    def count(self, name: str, n: int = 1) -> None:
        """Add `n` to a counter in memory; it reaches the disk with the next write or :meth:`save`."""
        if n:
            self._file.count(name, n)

    def disk_bytes(self) -> int:
        """Return the size of the spool's files together, in bytes."""
        return self._file.disk_bytes()

    def put_many(self, samples: Iterable[Sample], draws: Iterable[Draw | None] = repeat(None)) -> int:
        """Store samples; when this returns, they survive a crash of the process and of the device.

        The oldest samples make room for new ones (dropped, ``spool_full``). An image already waiting is not
        stored twice (``duplicate``), and one that no transaction could hold is not stored at all
        (``too_large``). Of those that are dropped, the ones that were drawn count in ``drawn_lost`` too.

        Parameters
        ----------
        samples : iterable of Sample
        draws : iterable of Draw or None, optional
            How each was drawn at random; None for one that was selected only. An image already waiting is then one
            sample in both roles, and stands for all predictions that it was drawn for.

        Returns
        -------
        int
            How many were stored.

        Raises
        ------
        SpoolError
            When the disk refuses; samples of earlier transactions of the same call stay stored.
        """
        waiting: _Waiting = deque(zip(samples, draws, strict=False))
        stored = 0
        try:
            while waiting:
                rest = deque(waiting)
                with self._file.transaction() as (db, changes):
                    added = self._fill(db, changes, rest)
                waiting, stored = rest, stored + added
        except Exception:
            self.count("dropped.disk_error", len(waiting))
            self.count(DRAWN_LOST, sum(draw is not None for _, draw in waiting))
            raise
        finally:
            self._on_change()
        return stored

    def peek(self, max_samples: int, max_bytes: int) -> list[Sample]:
        """Return the first samples without removing them: at least one when there is one.

        Parameters
        ----------
        max_samples : int
        max_bytes : int
            Encoded image bytes the samples may have together, unless the first alone has more.

        Returns
        -------
        list of Sample
        """
        found: list[Sample] = []
        size = 0
        with (
            self._file.reading() as db,
            closing(self._order.take(db, max_samples, self._file.counters())) as first,
        ):
            for seq in first:
                row = db.execute(f"SELECT {_COLUMNS} FROM samples WHERE seq = ?", (seq,)).fetchone()  # noqa: S608
                if row is None:
                    raise sqlite3.DatabaseError(f"the sample with the number {seq} is missing")
                digest, image, entropy, label, version, captured_at = row
                size += len(image)
                if found and size > max_bytes:
                    break
                found.append(
                    Sample(
                        id=digest.hex(),
                        image=image,
                        entropy=entropy,
                        label=label,
                        version=version,
                        captured_at=max(0.0, captured_at),  # negative: of a clock that was never set
                    )
                )
        return found

    def draws(self, ids: Iterable[str]) -> dict[str, Draw]:
        """Return how samples were drawn at random, by their ids; those that were not are left out.

        Raises
        ------
        SpoolError
            When the disk refuses.
        """
        query = "SELECT drawn, selected FROM samples WHERE id = ? AND drawn > 0"
        with self._file.reading() as db:
            rows = ((each, db.execute(query, (_digest(each),)).fetchone()) for each in ids)
            return {each: Draw(row[0], bool(row[1])) for each, row in rows if row is not None}

    def acknowledge(self, verdicts: Iterable[Verdict]) -> int:
        """Remove the samples the cloud has judged, and count them in the same transaction.

        ``stored`` and ``duplicate`` count as ``uploaded`` (and ``uploaded_bytes``; ``drawn_uploaded`` for those that
        were drawn at random), ``rejected`` as dropped.
        A verdict on a sample that is not here (a second one, for instance) changes nothing.

        Returns
        -------
        int
            How many samples were removed.
        """
        outcome: dict[str, str] = {}
        for verdict in verdicts:
            outcome.setdefault(
                verdict.id, "dropped.rejected" if verdict.verdict == "rejected" else "uploaded"
            )
        return self._remove(outcome)

    def drop(self, ids: Iterable[str], reason: str) -> int:
        """Remove samples that can never be delivered, counted under `reason`; return how many there were."""
        return self._remove(dict.fromkeys(ids, f"dropped.{reason}"))

    def remember(self, signatures: Sequence[_Data], most: int) -> None:
        """Keep what samples looked like that were sent, the latest `most`, beside the samples.

        Their table is made when it is first needed; an older CEMA ignores it. In a full spool the oldest samples make
        room for it.

        Raises
        ------
        SpoolError
            When the disk refuses, or the spool's files have no room.
        """
        latest = signatures[-most:]
        for start in range(0, len(latest), _REMEMBERED_AT_ONCE):
            group = [(signature,) for signature in latest[start : start + _REMEMBERED_AT_ONCE]]
            pages = math.ceil(sum(len(each) + 16 for (each,) in group) / (PAGE_BYTES - 200)) + 4
            with self._file.transaction() as (db, changes):
                for _ in range((self._file.budget - 2 * pages) // 4):
                    if self._file.free_pages(db) >= pages or not _evict(db, changes):
                        break
                db.execute(_REMEMBERED)
                db.executemany("INSERT INTO sent (signature) VALUES (?)", group)
                db.execute("DELETE FROM sent WHERE seq <= (SELECT max(seq) FROM sent) - ?", (most,))

    def remembered(self) -> list[_Data]:
        """Return what `remember` kept, the oldest first.

        Raises
        ------
        SpoolError
            When the disk refuses.
        """
        with self._file.reading() as db:
            if not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sent'").fetchone():
                return []
            return [row[0] for row in db.execute("SELECT signature FROM sent ORDER BY seq").fetchall()]

    @property
    def problem(self) -> str | None:
        """Why nothing can be kept now, although the disk may allow it later; None when the file is open."""
        return self._file.problem

    def save(self) -> None:
        """Write the counters that only memory has; open the file if that was not possible before.

        Raises
        ------
        SpoolError
            When the disk refuses.
        """
        if self._file.unsaved or self.problem is not None:
            with self._file.transaction():
                pass

    def close(self) -> None:
        """Save the counters and release the file, whatever the disk says. Closing twice is harmless."""
        if self._file.closed:
            return
        try:
            self.save()
        except SpoolError as error:
            logger.warning("the counts since the last write are lost: %s", error)
        finally:
            self._file.close()

    def _remove(self, outcome: Mapping[str, str]) -> int:
        removed = 0
        ids = list(outcome)
        step = max(
            1, self._file.budget // 4
        )  # a removed row dirties its leaf, its index leaf and rarely more
        for start in range(0, len(ids), step):
            with self._file.transaction() as (db, changes):
                for sample_id in ids[start : start + step]:
                    name = outcome[sample_id]
                    gone = db.execute(
                        "DELETE FROM samples WHERE id = ? RETURNING bytes, label, drawn",
                        (_digest(sample_id),),
                    )
                    for size, label, drawn in gone.fetchall():
                        changes.update({name: 1, SAMPLES: -1, SAMPLE_BYTES: -size})
                        if drawn:
                            changes["drawn_uploaded" if name == "uploaded" else DRAWN_LOST] += 1
                        if name == "uploaded":
                            changes["uploaded_bytes"] += size
                            if self._order.counts_classes:
                                changes[f"{SENT}{label}"] += 1
                        removed += 1
        self._on_change()
        return removed

    def _fill(self, db: sqlite3.Connection, changes: Counter[str], waiting: _Waiting) -> int:
        """Move samples from `waiting` into one transaction until its share of the log is used up."""
        budget = self._file.budget - 8
        largest = min(self._file.budget, self._file.max_pages) // 2 - 8
        stored = 0
        while waiting:
            pages = math.ceil(len(waiting[0][0].image) / (PAGE_BYTES - 4)) + 4
            if pages > largest:
                _refuse(changes, waiting.popleft()[1])
                continue
            while (short := self._file.free_pages(db) < pages + 4) and budget > pages:
                budget -= 4
                if not _evict(db, changes):
                    break
            if short and not self._file.counters().get(SAMPLES, 0) + changes[SAMPLES]:
                _refuse(changes, waiting.popleft()[1])  # even an empty spool has no room for it
                continue
            if short or budget < pages:
                break
            budget -= pages
            stored += _insert(db, changes, *waiting.popleft())
        return stored


def _refuse(changes: Counter[str], draw: Draw | None) -> None:
    changes["dropped.too_large"] += 1
    if draw is not None:
        changes[DRAWN_LOST] += 1


def _insert(db: sqlite3.Connection, changes: Counter[str], sample: Sample, draw: Draw | None) -> int:
    size = len(sample.image)
    role = Draw(0.0, True) if draw is None else draw
    done = db.execute(
        f"INSERT OR IGNORE INTO samples ({_COLUMNS}, drawn, selected, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (
            _digest(sample.id),
            sample.image,
            sample.entropy,
            sample.label,
            sample.version,
            sample.captured_at,
            role.share,
            role.selected,
            size,
        ),
    )
    if not done.rowcount:
        changes["dropped.duplicate"] += 1
        _merge(db, _digest(sample.id), role)
        return 0
    changes.update({SAMPLES: 1, SAMPLE_BYTES: size})
    return 1


def _merge(db: sqlite3.Connection, digest: bytes, role: Draw) -> None:
    """Give a sample that waits another role; drawn twice, it stands for the predictions of both draws."""
    share, selected = db.execute("SELECT drawn, selected FROM samples WHERE id = ?", (digest,)).fetchone()
    shares = [each for each in (share, role.share) if each]
    both = max(SMALLEST_SHARE, 1 / sum(1 / each for each in shares)) if shares else 0.0
    if (both, selected) != (share, selected | role.selected):
        change = "UPDATE samples SET drawn = ?, selected = ? WHERE id = ?"
        db.execute(change, (both, selected | role.selected, digest))


def _evict(db: sqlite3.Connection, changes: Counter[str]) -> bool:
    gone = db.execute(
        "DELETE FROM samples WHERE seq = (SELECT min(seq) FROM samples) RETURNING bytes, drawn"
    ).fetchall()
    for size, drawn in gone:
        changes.update({"dropped.spool_full": 1, SAMPLES: -1, SAMPLE_BYTES: -size})
        if drawn:
            changes[DRAWN_LOST] += 1
    return bool(gone)


def _digest(sample_id: str) -> bytes:
    try:
        return bytes.fromhex(sample_id)
    except ValueError as error:
        raise SpoolError(
            f"a sample's id is the hex sha256 of its encoded image, got {sample_id!r}"
        ) from error

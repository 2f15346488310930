"""What the SQLite store tells of its samples, and whose labels they have, see `cema.cloud.store.data`."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from cema.cloud.store.data import (
    SEARCHED,
    DataFilter,
    DataGroup,
    DataSample,
    LabelsTaken,
    NewestSample,
    TeacherLabel,
)
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import PAGE, Database, bump
from cema.cloud.store.sqlite_space import make_room
from cema.errors import StoreFull

__all__ = ["FROM", "LABEL_BYTES", "LabelTables", "conditions"]

# Of a sample that leaves the store its labels go too, also where an older CEMA evicts it.
TABLES = {
    "teacher_labels": "CREATE TABLE teacher_labels (seq INTEGER PRIMARY KEY, label INTEGER NOT NULL)",
    "true_labels": "CREATE TABLE true_labels (seq INTEGER PRIMARY KEY, label INTEGER NOT NULL, at REAL NOT NULL, "
    "actor TEXT NOT NULL)",
    "labels_go": "CREATE TRIGGER labels_go AFTER DELETE ON samples BEGIN "
    "DELETE FROM teacher_labels WHERE seq = OLD.seq; DELETE FROM true_labels WHERE seq = OLD.seq; END",
}
FROM = (
    "samples AS s LEFT JOIN teacher_labels AS t ON t.seq = s.seq LEFT JOIN true_labels AS u ON u.seq = s.seq"
)
# In the order of DataSample.
COLUMNS = (
    "s.seq, s.id, s.device, s.label, t.label, u.label, s.entropy, s.version, s.captured_at, s.received_at, "
    "length(s.image), s.seq > coalesce((SELECT cursor FROM cohorts WHERE name = s.cohort), 0)"
)
SAMPLE = tuple(DataSample.__struct_fields__)
GROUP = tuple(DataGroup.__struct_fields__)
# What a label takes, with its share of half-filled pages.
LABEL_BYTES = 128
LABELLED = "samples.labelled"


def conditions(cohort: str, which: DataFilter) -> tuple[str, list[object]]:
    """Return what follows WHERE in a query `FROM` samples and their labels, and its parameters."""
    parts, values = ["s.cohort = ?"], [cohort]  # type: tuple[list[str], list[object]]
    for condition, value in (
        ("s.device = ?", which.device),
        ("? IN (s.label, t.label, u.label)", which.label),
        ("s.received_at >= ?", which.since),
        ("s.received_at < ?", which.until),
    ):
        if value is not None:
            parts.append(condition)
            values.append(value)
    return " AND ".join(parts), values


class LabelTables:
    """Labels beside the samples: the foundation model's, and those that people give.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no tables, and keeps no labels until it is opened with room.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._there = make_tables(database, TABLES, what="labels of samples")

    def require(self, *, also: bool = True) -> None:
        """Refuse to work without the tables, and without what else is needed.

        Raises
        ------
        StoreFull
            They are not there.
        """
        if not (self._there and also):
            raise StoreFull(
                "the store had no room for the tables of labels and deletions when it was opened; raise "
                "limits.store_bytes, and open it again"
            )

    def insert(self, connection: sqlite3.Connection, taught: Sequence[TeacherLabel]) -> None:
        """Keep the foundation model's labels of samples that are still there, in the caller's transaction."""
        if self._there:
            connection.executemany(
                "INSERT OR REPLACE INTO teacher_labels (seq, label) SELECT seq, ?2 FROM samples WHERE seq = ?1",
                taught,
            )

    def groups(self, cohort: str, which: DataFilter) -> list[DataGroup]:
        """Return samples counted by device and labels."""
        self.require()
        where, values = conditions(cohort, which)
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT s.device, s.label, t.label, u.label, count(*), sum(length(s.image)), min(s.received_at), "  # noqa: S608
                f"max(s.received_at) FROM {FROM} WHERE {where} GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
                values,
            ).fetchall()
        return [DataGroup(**dict(zip(GROUP, row, strict=True))) for row in rows]

    def samples(self, cohort: str, which: DataFilter, *, after: int, limit: int) -> list[DataSample]:
        """Return samples that follow `after` in the sequence, oldest first."""
        where, values = conditions(cohort, which)
        return self._samples(f"{where} AND s.seq > ? ORDER BY s.seq LIMIT ?", [*values, after, limit])

    def newest(self, cohort: str, device: str | None, limit: int, *, draws: bool) -> list[NewestSample]:
        """Return the newest samples, newest first; with `draws`, the table of those that were drawn is there."""
        self.require()
        drawn = (
            "EXISTS (SELECT 1 FROM draws AS d WHERE d.cohort = s.cohort AND d.id = s.id AND d.device = s.device "
            "AND d.captured_at = s.captured_at)"
        )
        with self._database.read() as connection:
            seqs = connection.execute(
                # No index helps to find one device: its samples are searched for among the newest alone.
                "SELECT seq FROM (SELECT seq, device FROM samples WHERE cohort = ?1 ORDER BY seq DESC LIMIT ?2) "
                "WHERE ?3 IS NULL OR device = ?3 ORDER BY seq DESC LIMIT ?4",
                (cohort, limit if device is None else SEARCHED, device, limit),
            ).fetchall()
            rows = [
                connection.execute(
                    f"SELECT {drawn if draws else '0'}, {COLUMNS} FROM {FROM} WHERE s.seq = ?",  # noqa: S608
                    seq,
                ).fetchone()
                for seq in seqs
            ]
        return [NewestSample(_sample(row[1:]), bool(row[0])) for row in rows]

    def sample(self, cohort: str, key: str) -> DataSample | None:
        """Return one sample by its id, or None."""
        try:
            found = self._samples("s.cohort = ? AND s.id = ?", [cohort, bytes.fromhex(key)])
        except ValueError:
            return None
        return found[0] if found else None

    def _samples(self, where: str, values: Sequence[object]) -> list[DataSample]:
        self.require()
        with self._database.read() as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM {FROM} WHERE {where}", values).fetchall()  # noqa: S608
        return [_sample(row) for row in rows]

    def put(self, cohort: str, labels: Mapping[str, int], *, actor: str, now: float) -> LabelsTaken:
        """Keep the classes that people have given, in one transaction."""
        self.require()
        with self._database.write() as connection:
            return self._put(connection, cohort, labels, actor, now)

    def _put(
        self, connection: sqlite3.Connection, cohort: str, labels: Mapping[str, int], actor: str, now: float
    ) -> LabelsTaken:
        rows: list[tuple[int, int, float, str]] = []
        new = same = 0
        gone: list[str] = []
        unknown: list[str] = []
        for key, label in labels.items():
            found = connection.execute(
                "SELECT s.seq, u.label FROM samples AS s LEFT JOIN true_labels AS u ON u.seq = s.seq "
                "WHERE s.cohort = ? AND s.id = ?",
                (cohort, bytes.fromhex(key)),
            ).fetchone()
            if found is None:
                (gone if _was_there(connection, cohort, bytes.fromhex(key)) else unknown).append(key)
            elif found[1] == label:
                same += 1
            else:
                new += found[1] is None
                rows.append((found[0], label, now, actor))
        cap = self._database.max_bytes
        make_room(connection, len(rows) * LABEL_BYTES + 4 * PAGE, cap, cap=cap)
        # Not of one that has just made room.
        connection.executemany(
            "INSERT OR REPLACE INTO true_labels (seq, label, at, actor) SELECT seq, ?2, ?3, ?4 FROM samples "
            "WHERE seq = ?1",
            rows,
        )
        bump(connection, cohort, {LABELLED: len(rows)})
        return LabelsTaken(
            new=new, changed=len(rows) - new, same=same, deleted=tuple(gone), unknown=tuple(unknown)
        )

    def truths(self, cohort: str) -> dict[int, int]:
        """Return the classes that people have given, by sequence number."""
        if not self._there:
            return {}
        with self._database.read() as connection:
            return dict(
                connection.execute(
                    "SELECT u.seq, u.label FROM true_labels AS u JOIN samples AS s ON s.seq = u.seq WHERE s.cohort = ?",
                    (cohort,),
                ).fetchall()
            )

    def taken(self, cohort: str) -> int:
        """Return how many labels were taken so far."""
        row = self._database.peek(
            "SELECT value FROM counters WHERE cohort = ? AND name = ?", (cohort, LABELLED)
        )
        return int(row[0]) if row else 0


def _sample(row: tuple[Any, ...]) -> DataSample:
    return DataSample(**dict(zip(SAMPLE, (row[0], row[1].hex(), *row[2:-1], bool(row[-1])), strict=True)))


def _was_there(connection: sqlite3.Connection, cohort: str, key: bytes) -> bool:
    return any(
        connection.execute(f"SELECT 1 FROM {table} WHERE cohort = ? AND id = ?", (cohort, key)).fetchone()  # noqa: S608
        for table in ("evicted", "deleted")
    )

"""Deletions from the SQLite store, see `cema.cloud.store.data`.

A deletion is many transactions, so that uploads go on meanwhile and the log stays small. The first one writes it down;
who finds it unfinished goes on with it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection
from typing import Any

import msgspec

from cema.cloud.store.audits import AuditedAct
from cema.cloud.store.data import RETENTION, DataFilter, Receipt, ToForget
from cema.cloud.store.sqlite_audits import AuditTable
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_data import FROM, LabelTables, conditions
from cema.cloud.store.sqlite_database import PAGE, Database, bump
from cema.cloud.store.sqlite_draws import DrawTable
from cema.cloud.store.sqlite_erase import erase
from cema.cloud.store.sqlite_space import EVICTED_BYTES, forget_oldest_evicted, make_room
from cema.cloud.store.sqlite_tallies import removed

__all__ = ["DeletionTables"]

TABLES = {
    "deletions": "CREATE TABLE deletions (number INTEGER PRIMARY KEY AUTOINCREMENT, cohort TEXT NOT NULL, "
    "at REAL NOT NULL, actor TEXT NOT NULL, filter TEXT NOT NULL, last INTEGER NOT NULL, "
    "samples INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, ids_sha256 TEXT, state TEXT NOT NULL, "
    "forgotten_at REAL, done_at REAL, note TEXT NOT NULL DEFAULT '')",
    "deletions_open": "CREATE INDEX deletions_open ON deletions (cohort, number) WHERE state <> 'done'",
    # What was deleted is a duplicate when it is sent again. The image cannot be made of its digest.
    "deleted": "CREATE TABLE deleted (cohort TEXT NOT NULL, id BLOB NOT NULL, seq INTEGER NOT NULL, "
    "number INTEGER NOT NULL, PRIMARY KEY (cohort, id)) WITHOUT ROWID",
}
# In the order of Receipt.
COLUMNS = "number, cohort, at, actor, filter, samples, bytes, ids_sha256, state, forgotten_at, done_at, note"
# What one transaction deletes, at most.
AT_ONCE, BYTES_AT_ONCE = 256, 32 * 2**20
# What the identity of a deleted sample takes, with its share of half-filled pages.
RECORD_BYTES = 128
# Deletions by age that stay on record: there is one an hour, at most.
EXPIRIES_KEPT = 1000
OPEN = "SELECT number FROM deletions WHERE cohort = ? AND state <> 'done' ORDER BY number LIMIT 1"


class DeletionTables:
    """Deletions of every cohort.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no tables, and deletes nothing until it is opened with room.
    labels
        The tables that say which samples are meant.
    audit
        Where it is written who deletes.
    draws
        Where further samples are that were drawn at random, until they are measured.
    """

    def __init__(self, database: Database, labels: LabelTables, audit: AuditTable, draws: DrawTable) -> None:
        self._database = database
        self._draws = draws
        self._labels = labels
        self._audit = audit
        self._there = make_tables(database, TABLES, what="deletions of samples")

    @property
    def identities(self) -> tuple[str, ...]:
        """The tables of what was stored once and is not to be stored again."""
        return ("deleted",) if self._there else ()

    def delete(self, cohort: str, which: DataFilter, *, actor: str, now: float) -> Receipt:
        """Remove samples and the bytes of their images, and write down that the worker has to forget them."""
        self._labels.require(also=self._there)
        with self._database.write() as connection:
            number = self._begin(connection, cohort, which, actor, now)
        self._go_on(number)
        self._erase([number])
        return self.receipt(number)

    def _begin(
        self, connection: sqlite3.Connection, cohort: str, which: DataFilter, actor: str, now: float
    ) -> int:
        last = connection.execute(
            "SELECT coalesce(max(seq), 0) FROM samples WHERE cohort = ?", (cohort,)
        ).fetchone()[0]
        # First, as this makes room for the record.
        found = self._remove_some(connection, cohort, which, last)
        told = msgspec.json.encode(which).decode()
        number: int = connection.execute(
            "INSERT INTO deletions (cohort, at, actor, filter, last, state) VALUES (?, ?, ?, ?, ?, 'deleting') "
            "RETURNING number",
            (cohort, now, actor, told, last),
        ).fetchone()[0]
        _note_removed(connection, cohort, number, actor, found)
        self._remove_draws(connection, cohort, which, number, actor)
        if actor != RETENTION:
            detail = {"deletion": number, **msgspec.to_builtins(which)}
            self._audit.record(connection, AuditedAct(actor, "data.delete", cohort, detail), now=now)
        return number

    def _remove_some(
        self, connection: sqlite3.Connection, cohort: str, which: DataFilter, last: int
    ) -> list[tuple[int, bytes, int]]:
        """Remove the next samples that are meant; return their sequence numbers, identities and bytes."""
        where, values = conditions(cohort, which)
        rows = connection.execute(
            f"SELECT s.seq, s.id, length(s.image) FROM {FROM} WHERE {where} AND s.seq <= ? ORDER BY s.seq LIMIT ?",  # noqa: S608
            [*values, last, AT_ONCE],
        ).fetchall()
        found: list[tuple[int, bytes, int]] = []
        for row in rows:
            if found and sum(size for *_, size in found) + row[2] > BYTES_AT_ONCE:
                break
            found.append(row)
        connection.executemany("DELETE FROM samples WHERE seq = ?", [(row[0],) for row in found])
        cap = self._database.max_bytes
        make_room(connection, len(found) * RECORD_BYTES + 4 * PAGE, cap, cap=cap)
        return found

    def _remove_draws(
        self, connection: sqlite3.Connection, cohort: str, which: DataFilter, number: int, actor: str
    ) -> None:
        """Remove what was drawn at random, too; it is not known when it arrived, and seconds later it has gone."""
        before = which.until if actor == RETENTION else None
        gone = self._draws.remove(connection, cohort, device=which.device, label=which.label, before=before)
        cursor = connection.executemany(
            "INSERT OR IGNORE INTO deleted (cohort, id, seq, number) SELECT ?1, ?2, 0, ?3 WHERE NOT EXISTS "
            "(SELECT 1 FROM samples WHERE cohort = ?1 AND id = ?2)",
            [(cohort, key, number) for key in gone],
        )
        connection.execute(
            "UPDATE deletions SET samples = samples + ?, bytes = bytes + ? WHERE number = ?",
            (max(0, cursor.rowcount), sum(gone.values()), number),
        )

    def _go_on(self, number: int) -> None:
        """Delete what is left, some samples at a time, until the deletion waits for the worker."""
        ended = False
        while not ended:
            with self._database.write() as connection:
                cohort, actor, told, last, state = connection.execute(
                    "SELECT cohort, actor, filter, last, state FROM deletions WHERE number = ?", (number,)
                ).fetchone()
                if state != "deleting":  # another process went on with it too
                    return
                which = msgspec.json.decode(told, type=DataFilter)
                found = self._remove_some(connection, cohort, which, last)
                _note_removed(connection, cohort, number, actor, found)
                ended = not found
                if ended:
                    connection.execute(
                        "UPDATE deletions SET state = 'waiting', ids_sha256 = ? WHERE number = ?",
                        (_digest(connection, number), number),
                    )

    def expire(self, cohort: str, *, until: float, now: float) -> Receipt | None:
        """Delete what arrived before a moment; None where there is nothing."""
        if not self._there:
            return None
        with self._database.read() as connection:
            old = connection.execute(
                "SELECT 1 FROM samples WHERE cohort = ? AND received_at < ? LIMIT 1", (cohort, until)
            ).fetchone()
        if old is None:
            return None
        return self.delete(cohort, DataFilter(until=until), actor=RETENTION, now=now)

    def open(self, cohort: str) -> int:
        """Return the number of the oldest deletion that is not done; 0 for none."""
        row = self._database.peek(OPEN, (cohort,)) if self._there else None
        return row[0] if row else 0

    def to_forget(self, cohort: str) -> ToForget:
        """Finish deletions that were interrupted, and return what the worker is to forget."""
        if not self._there:
            return ToForget((), frozenset())
        with self._database.read() as connection:
            unfinished = _numbers(connection, cohort, "deleting")
        for number in unfinished:
            self._go_on(number)
        with self._database.read() as connection:
            numbers = _numbers(connection, cohort, "waiting")
            if not numbers:
                return ToForget((), frozenset())
            seqs: set[int] = set()
            # Those that were evicted, too: of whom they were, nobody knows any more.
            for table in ("deleted", "evicted"):
                query = f"SELECT seq FROM {table} WHERE cohort = ?"  # noqa: S608
                seqs.update(row[0] for row in connection.execute(query, (cohort,)))
        return ToForget(tuple(self.receipt(number) for number in numbers), frozenset(seqs))

    def forgotten(
        self, connection: sqlite3.Connection, cohort: str, numbers: Collection[int], now: float
    ) -> None:
        """Write down, in the caller's transaction, that the worker's state is free of deletions."""
        if numbers:
            connection.executemany(
                "UPDATE deletions SET state = 'forgotten', forgotten_at = ? WHERE number = ? AND cohort = ? "
                "AND state = 'waiting'",
                [(now, number, cohort) for number in numbers],
            )

    def finish(self, cohort: str, *, now: float) -> list[Receipt]:
        """Erase what was forgotten from the files, and return the deletions that are done now."""
        if not self._there:
            return []
        with self._database.read() as connection:
            numbers = _numbers(connection, cohort, "forgotten")
        if not numbers or not self._erase(numbers):
            return []
        with self._database.write() as connection:
            for number in numbers:
                connection.execute(
                    "UPDATE deletions SET state = 'done', done_at = ? WHERE number = ?", (now, number)
                )
            self._drop(connection, cohort)
        return [self.receipt(number) for number in numbers]

    def _drop(self, connection: sqlite3.Connection, cohort: str) -> None:
        """Treat what was done by age as evicted, and keep the records and the identities within their bounds."""
        done = "SELECT number FROM deletions WHERE state = 'done' AND actor = ?"
        expired = f"FROM deleted WHERE number IN ({done})"
        connection.execute(
            f"INSERT OR IGNORE INTO evicted (seq, cohort, id) SELECT seq, cohort, id {expired}", (RETENTION,)
        )
        connection.execute(f"DELETE {expired}", (RETENTION,))
        forget_oldest_evicted(connection, self._database.max_bytes)
        connection.execute(
            "DELETE FROM deletions WHERE number IN (SELECT number FROM deletions WHERE cohort = ? AND actor = ? "
            "AND state = 'done' ORDER BY number DESC LIMIT -1 OFFSET ?)",
            (cohort, RETENTION, EXPIRIES_KEPT),
        )
        most = self._database.max_bytes // EVICTED_BYTES
        excess = connection.execute("SELECT count(*) FROM deleted").fetchone()[0] - most
        if excess > 0:
            connection.execute(
                "DELETE FROM deleted WHERE (cohort, id) IN (SELECT cohort, id FROM deleted WHERE number IN "
                "(SELECT number FROM deletions WHERE state = 'done') ORDER BY number, seq LIMIT ?)",
                (excess,),
            )

    def _erase(self, numbers: Collection[int]) -> bool:
        note = erase(self._database)
        with self._database.write() as connection:
            connection.executemany(
                "UPDATE deletions SET note = ? WHERE number = ? AND note <> ?",
                [(note, number, note) for number in numbers],
            )
        return not note

    def receipt(self, number: int) -> Receipt:
        """Return one deletion."""
        return self._receipts("WHERE number = ?", (number,))[0]

    def receipts(self, cohort: str | None, *, limit: int) -> list[Receipt]:
        """Return the newest deletions, newest first."""
        if not self._there:
            return []
        return self._receipts(
            "WHERE ?1 IS NULL OR cohort = ?1 ORDER BY number DESC LIMIT ?2", (cohort, limit)
        )

    def _receipts(self, where: str, values: tuple[object, ...]) -> list[Receipt]:
        with self._database.read() as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM deletions {where}", values).fetchall()  # noqa: S608
        names = Receipt.__struct_fields__
        return [
            Receipt(
                **dict(zip(names, row, strict=True))
                | {"filter": msgspec.json.decode(row[4], type=DataFilter)}
            )
            for row in rows
        ]


def _numbers(connection: sqlite3.Connection, cohort: str, state: str) -> list[int]:
    query = "SELECT number FROM deletions WHERE cohort = ? AND state <> 'done' AND state = ? ORDER BY number"
    return [row[0] for row in connection.execute(query, (cohort, state))]


def _note_removed(
    connection: sqlite3.Connection, cohort: str, number: int, actor: str, found: list[tuple[int, bytes, int]]
) -> None:
    """Write down what was just removed."""
    cursor: Any = connection.execute("SELECT cursor FROM cohorts WHERE name = ?", (cohort,)).fetchone()
    at = cursor[0] if cursor else 0
    size = sum(row[2] for row in found)
    connection.executemany(
        "INSERT OR REPLACE INTO deleted (cohort, id, seq, number) VALUES (?, ?, ?, ?)",
        [(cohort, row[1], row[0], number) for row in found],
    )
    connection.execute(
        "UPDATE deletions SET samples = samples + ?, bytes = bytes + ? WHERE number = ?",
        (len(found), size, number),
    )
    removed(connection, cohort, len(found), sum(row[0] > at for row in found))
    bump(connection, cohort, {"samples.expired" if actor == RETENTION else "samples.deleted": len(found)})


def _digest(connection: sqlite3.Connection, number: int) -> str:
    """Return the digest of all identities of a deletion, see `Receipt.ids_sha256`."""
    digest = hashlib.sha256()
    for row in connection.execute("SELECT id FROM deleted WHERE number = ? ORDER BY id", (number,)):
        digest.update(f"{row[0].hex()}\n".encode())
    return digest.hexdigest()

"""The SQLite database under the store: connections, transactions, schema.

Everything is one database: samples, checkpoints, versions, artifacts, devices. A sample is some 13 KB, a size
at which SQLite is as quick as files; an upload of many samples costs one flush to disk instead of two a file
(content and directory); and a step's checkpoint, cursor and update can only be atomic inside one database.

WAL with ``synchronous=FULL``: a commit has reached the disk before it returns (4 to 8 ms), so what is
acknowledged survives power loss, and readers never wait for the writer.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from cema._util.files import sync_folder, unfinished
from cema.cloud.store.sqlite_tallies import TALLIES, recount_all
from cema.errors import StoreError, StoreFull, StoreUnavailable

__all__ = ["ERASES", "PAGE", "READERS", "Database", "bump"]

PAGE = 4096
BUSY_SECONDS = 30.0
# Readers at one moment; more wait, for milliseconds. Each has a connection with a page cache, and file handles that
# SQLite keeps for as long as any connection of the process is open: one busy moment would leave all of them behind.
READERS = 8
WAL_BYTES = 16 * 2**20
# Below this a database could not hold its own tables and indexes, let alone a batch of samples.
SMALLEST = 256 * 1024
SCHEMA_VERSION = 2
# The file's application_id when nothing is left in it of what was ever deleted ("CEM1"); older programs set none.
ERASES = 0x43454D31
# What is written into the file when it is made.
FILE_PRAGMAS = (f"page_size={PAGE}", "auto_vacuum=INCREMENTAL", "journal_mode=WAL")

SCHEMA = """
CREATE TABLE cohorts (
    name TEXT PRIMARY KEY, base TEXT, cursor INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, checkpoint BLOB, committed_at REAL
) WITHOUT ROWID;
-- AUTOINCREMENT: a sequence number is never given twice, not even after eviction.
CREATE TABLE samples (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, cohort TEXT NOT NULL, id BLOB NOT NULL, device TEXT NOT NULL,
    entropy REAL NOT NULL, label INTEGER NOT NULL, version INTEGER NOT NULL, captured_at REAL NOT NULL,
    received_at REAL NOT NULL, image BLOB NOT NULL
);
CREATE UNIQUE INDEX samples_id ON samples (cohort, id);
CREATE INDEX samples_seq ON samples (cohort, seq);
-- What was stored and then evicted: sent again, it is still a duplicate.
CREATE TABLE evicted (seq INTEGER PRIMARY KEY, cohort TEXT NOT NULL, id BLOB NOT NULL);
CREATE INDEX evicted_id ON evicted (cohort, id);
CREATE TABLE artifacts (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE updates (
    cohort TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, created REAL NOT NULL,
    expires REAL NOT NULL, envelope BLOB NOT NULL, PRIMARY KEY (cohort, version)
);
CREATE INDEX updates_digest ON updates (digest);
CREATE TABLE counters (
    cohort TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (cohort, name)
) WITHOUT ROWID;
CREATE TABLE workers (
    cohort TEXT PRIMARY KEY, seen_at REAL NOT NULL, report TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE devices (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, cohort TEXT, token_hash BLOB NOT NULL UNIQUE,
    created_at REAL NOT NULL, revoked_at REAL
) WITHOUT ROWID;
"""


class Database:
    """One SQLite file with one writer and `READERS` readers at a time.

    Parameters
    ----------
    path
        The database file; it and its folder are created when absent.
    max_bytes
        Hard cap of the database file, in bytes. SQLite itself refuses to grow past it. The write-ahead log
        beside it is truncated to at most 16 MiB after each of SQLite's own checkpoints.

    Raises
    ------
    StoreError
        The file cannot be opened, is no CEMA database, or `max_bytes` is under 256 KiB.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        if max_bytes < SMALLEST:
            raise StoreError(
                f"the store's byte cap must be at least {SMALLEST}, got {max_bytes}; raise limits.store_bytes"
            )
        self.path = path
        self.max_bytes = max_bytes
        self._writing = threading.Lock()
        self._reading = threading.BoundedSemaphore(READERS)
        self._pool = threading.Lock()
        self._peeking = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _create(path)
            _check_content(path)
            # What it holds is for the service alone; SQLite gives its log and index the same mode.
            path.chmod(0o600)
            self._writer = self._connect()
            try:
                _to_version_2(self._writer)
                self._check_version()
                self._peeker = self._connect()
            except BaseException:
                self._writer.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"cannot open the store {path}: {error}; check that the folder is writable and "
                "the file is a CEMA store"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in (
                *FILE_PRAGMAS,
                "synchronous=FULL",
                "fullfsync=ON",
                # What is deleted is overwritten: images must not stay behind in pages that are free.
                "secure_delete=ON",
                f"journal_size_limit={WAL_BYTES}",
                f"max_page_count={self.max_bytes // PAGE}",
            ):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_version(self) -> None:
        version = _version(self._writer)
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"the store {self.path} has schema version {version}, this CEMA reads {SCHEMA_VERSION}; "
                "use the CEMA version that wrote it, or another data folder"
            )

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction, on disk when the block ends; an exception undoes all of it.

        Raises
        ------
        StoreFull
            The database may not grow any further (its cap, or the disk).
        StoreUnavailable
            The database is closed, was locked by another process for too long, or cannot be written.
        StoreError
            SQLite failed in any other way.
        """
        with self._own_errors(), self._transaction() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing:
            self._check_open()
            connection = self._writer
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and _is_full(error):
                    raise StoreFull(
                        f"the store cannot grow past {self.max_bytes} bytes (or its disk is full); raise "
                        "limits.store_bytes, free disk space, or wait until the worker has caught up"
                    ) from error
                raise

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """Give the writer's connection without a transaction, for what cannot run in one; raises as `write` does."""
        with self._own_errors(), self._writing:
            self._check_open()
            yield self._writer

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Run the block on one consistent snapshot; it never waits for a writer.

        No block may hold another one inside: at most `READERS` run at one time, and the others wait for them.

        Raises
        ------
        StoreUnavailable
            The database is closed, or cannot be read.
        StoreError
            SQLite failed in any other way.
        """
        with self._own_errors(), self._reading, self._snapshot() as connection:
            yield connection

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        with self._pool:
            self._check_open()
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            with self._pool:
                keep = not self._closed
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def peek(self, query: str, parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the first row of a query that finds it by an index, or None; it waits for no other reader or writer.

        Raises
        ------
        StoreUnavailable, StoreError
            As for `read`.
        """
        with self._own_errors(), self._peeking:
            self._check_open()
            row: tuple[Any, ...] | None = self._peeker.execute(query, parameters).fetchone()
        return row

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed; open a new one")

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Let no error of SQLite leave the store: who uses it knows no SQLite."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(
                f"the store {self.path} cannot be used now: {error}; see whether another program holds it, and "
                "whether its disk works"
            ) from error
        except sqlite3.Error as error:
            raise StoreError(
                f"the store {self.path} failed: {error}; see whether its file is whole"
            ) from error

    def close(self) -> None:
        """Close every idle connection; those in use close when their block ends."""
        with self._writing, self._pool, self._peeking:
            if self._closed:
                return
            self._closed = True
            for connection in (*self._idle, self._peeker, self._writer):
                connection.close()
            self._idle.clear()


def bump(connection: sqlite3.Connection, cohort: str, counts: Mapping[str, float]) -> None:
    """Add to a cohort's durable counters, inside the caller's transaction."""
    connection.executemany(
        "INSERT INTO counters (cohort, name, value) VALUES (?, ?, ?) "
        "ON CONFLICT (cohort, name) DO UPDATE SET value = value + excluded.value",
        [(cohort, name, value) for name, value in counts.items() if value],
    )


def _create(path: Path) -> None:
    """Make an empty store. It appears under its name whole: a file of another content is a store that was damaged."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        raise StoreError(
            f"the store {path} is gone, but its log {log.name} is there: restore the store, or remove the log to begin "
            "with a new store, without the old samples, updates and devices"
        )
    with unfinished(path) as new:
        with closing(sqlite3.connect(new, isolation_level=None)) as connection:
            for pragma in (*FILE_PRAGMAS, "synchronous=FULL"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("BEGIN IMMEDIATE")
            for statement in (*_statements(SCHEMA), TALLIES):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.execute(f"PRAGMA application_id={ERASES}")
            connection.execute("COMMIT")
        # Not over a store that another process has made in the meantime.
        with suppress(FileExistsError):
            os.link(new, path)
    sync_folder(path.parent)


def _to_version_2(connection: sqlite3.Connection) -> None:
    """Count the samples of a store that was made before their number was kept."""
    if _version(connection) != 1:
        return
    # The new table takes a page, which a store at its cap does not have. Samples make room when the store is opened.
    cap = connection.execute("PRAGMA max_page_count").fetchone()[0]
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={max(cap, pages + 2)}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _version(connection) == 1:  # no other process has done it meanwhile
            connection.execute(TALLIES)
            recount_all(connection)
            connection.execute("PRAGMA user_version=2")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.execute(f"PRAGMA max_page_count={cap}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_content(path: Path) -> None:
    if path.stat().st_size == 0:
        raise StoreError(
            f"the store {path} is empty (0 bytes): what was in it is lost; restore a backup, or remove the file to "
            "begin with a new store, without the old samples, updates and devices"
        )


def _statements(script: str) -> list[str]:
    lines = [line for line in script.splitlines() if not line.lstrip().startswith("--")]
    return [statement for statement in "\n".join(lines).split(";") if statement.strip()]


def _is_full(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL

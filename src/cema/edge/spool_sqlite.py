"""The file under the spool: one SQLite connection, transactions that carry counters, and the byte cap.

The cap is about files, not about payloads: the main file's share is enforced by SQLite's own
``max_page_count``; the write-ahead log's is kept by bounding every transaction in pages and by emptying the
log in time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cema.errors import SpoolError

__all__ = ["PAGE_BYTES", "SpoolFile"]

logger = logging.getLogger(__name__)

PAGE_BYTES = 4096
SAMPLES, SAMPLE_BYTES = ".samples", ".bytes"  # gauges: counted again at every start, never stored

_FRAME_BYTES = PAGE_BYTES + 24  # a page and its header in the write-ahead log
_MAX_LOG_BYTES = 8 << 20
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS samples (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
    " entropy REAL NOT NULL, label INTEGER NOT NULL, version INTEGER NOT NULL,"
    " captured_at REAL NOT NULL, bytes INTEGER NOT NULL, image BLOB NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)"
    " STRICT, WITHOUT ROWID",
)
_PRAGMAS = (
    "locking_mode=EXCLUSIVE",  # no reader can hold the log back, and no second agent can share the file
    f"page_size={PAGE_BYTES}",
    "auto_vacuum=INCREMENTAL",
    "journal_mode=WAL",
    "synchronous=FULL",
    "fullfsync=ON",
    "checkpoint_fullfsync=ON",
    "wal_autocheckpoint=0",
    "secure_delete=OFF",
    "temp_store=MEMORY",
)
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SpoolFile:
    """One exclusively held database with a cap on the bytes of its files.

    Parameters
    ----------
    path : Path
        Created, with its folder, when absent.
    max_bytes : int
        Cap in bytes on the database and its write-ahead log together.

    Attributes
    ----------
    max_pages : int
        Pages the database may have.
    budget : int
        Pages one transaction may dirty, so that the log keeps its share.

    Raises
    ------
    SpoolError
        When another process holds the file or it cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._log_bytes = min(max_bytes // 4, _MAX_LOG_BYTES)
        self.max_pages = (max_bytes - self._log_bytes) // PAGE_BYTES
        self.budget = self._log_bytes // _FRAME_BYTES // 2
        self._lock = threading.Lock()  # the connection's: held over disk writes
        self._tally = threading.Lock()  # the numbers': never held over disk writes
        self._counters: Counter[str] = Counter()
        self._unsaved: set[str] = set()
        self._db: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._open()
        except OSError as error:
            raise SpoolError(
                f"the spool {path} cannot be opened: {error}; check that its folder exists and is writable"
            ) from error

    def counters(self) -> dict[str, int]:
        """Return every counter and gauge, never waiting for the disk."""
        with self._tally:
            return dict(self._counters)

    def count(self, name: str, n: int) -> None:
        """Add to a counter in memory; the next transaction takes it to the disk."""
        with self._tally:
            self._counters[name] += n
            self._unsaved.add(name)

    @property
    def unsaved(self) -> bool:
        """Whether some counter's value is in memory only."""
        return bool(self._unsaved)

    def disk_bytes(self) -> int:
        """Return the size of the files together, in bytes."""
        return sum(_size(f"{self.path}{suffix}") for suffix in _SUFFIXES)

    def free_pages(self, db: sqlite3.Connection) -> int:
        """Return how many pages of the database hold nothing yet (negative after the cap was lowered)."""
        return self.max_pages - (_number(db, "PRAGMA page_count") - _number(db, "PRAGMA freelist_count"))

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for queries."""
        with self._lock:
            db = self._connection()
            try:
                yield db
            except sqlite3.Error as error:
                raise self._failure(error) from error

    @contextmanager
    def transaction(self) -> Iterator[tuple[sqlite3.Connection, Counter[str]]]:
        """Yield the connection and a counter of changes; commit rows and counters together, or neither."""
        with self._lock:
            db = self._connection()
            changes: Counter[str] = Counter()
            values: list[tuple[str, int]] = []
            try:
                self._shorten_log(db)
                db.execute("BEGIN IMMEDIATE")
                yield db, changes
                with self._tally:
                    names = self._unsaved | {name for name in changes if not name.startswith(".")}
                    values = [(name, self._counters[name] + changes[name]) for name in sorted(names)]
                db.executemany("INSERT OR REPLACE INTO counters (name, value) VALUES (?, ?)", values)
                db.execute("COMMIT")
            except BaseException as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._failure(error) from error
                raise
            with self._tally:
                self._counters.update(changes)
                # A counter that moved while the transaction ran is still ahead of the disk.
                self._unsaved -= {name for name, value in values if self._counters[name] == value}

    def close(self) -> None:
        """Release the file. Closing twice is harmless."""
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db = None

    @property
    def closed(self) -> bool:
        """Whether the file was released."""
        return self._db is None

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise SpoolError(f"the spool {self.path} is closed; open a new one")
        return self._db

    def _open(self) -> None:
        try:
            self._db = _connect(self.path, self.max_pages)
            self._load(self._db)
        except sqlite3.Error as error:
            code = _code(error)
            if code == sqlite3.SQLITE_BUSY:
                raise SpoolError(
                    f"the spool {self.path} is in use by another process; stop that one, "
                    "or configure another `state`"
                ) from error
            if code not in _BROKEN:
                raise SpoolError(
                    f"the spool {self.path} cannot be opened: {error}; "
                    "check that its folder exists and is writable"
                ) from error
            self._rebuild()

    def _load(self, db: sqlite3.Connection) -> None:
        self._counters.update(dict(db.execute("SELECT name, value FROM counters").fetchall()))
        self._shrink(db)
        rows, size = db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM samples").fetchone()
        self._counters.update({SAMPLES: rows, SAMPLE_BYTES: size})

    def _failure(self, error: sqlite3.Error) -> SpoolError:
        """Say what went wrong; a damaged file is replaced, since nobody is there to mend it."""
        if _code(error) not in _BROKEN:
            return SpoolError(
                f"the spool {self.path} cannot be used: {error}; check the disk's space and health"
            )
        lost = self._rebuild()
        return SpoolError(
            f"the spool {self.path} was damaged ({error}): {lost} samples are lost, an empty one follows"
        )

    def _rebuild(self) -> int:
        lost = self._counters[SAMPLES]
        logger.error("the spool %s is damaged: starting an empty one, %d samples lost", self.path, lost)
        if self._db is not None:
            self._db.close()
            self._db = None
        for suffix in _SUFFIXES:
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self._db = _connect(self.path, self.max_pages)
        with self._tally:
            self._counters.update({"dropped.damaged": max(1, lost), SAMPLES: -lost})
            self._counters[SAMPLE_BYTES] = 0
            self._unsaved = {name for name in self._counters if not name.startswith(".")}
        return lost

    def _shrink(self, db: sqlite3.Connection) -> None:
        """Give pages back when the cap is lower than it was when the file grew: oldest samples first."""
        if _number(db, "PRAGMA page_count") <= self.max_pages:
            return
        dropped, step = 0, max(1, self.budget // 4)
        oldest = "DELETE FROM samples WHERE seq IN (SELECT seq FROM samples ORDER BY seq LIMIT ?) RETURNING 1"
        while self.free_pages(db) < 0 and (gone := db.execute(oldest, (step,)).fetchall()):
            dropped += len(gone)
            self._shorten_log(db)
        while _number(db, "PRAGMA page_count") > self.max_pages and _number(db, "PRAGMA freelist_count"):
            db.execute(f"PRAGMA incremental_vacuum({step})").fetchall()
            self._shorten_log(db)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute(f"PRAGMA max_page_count={self.max_pages}").fetchall()
        if dropped:
            self.count("dropped.spool_full", dropped)

    def _shorten_log(self, db: sqlite3.Connection) -> None:
        if _size(f"{self.path}-wal") > self._log_bytes // 2:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _connect(path: Path, max_pages: int) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (*_PRAGMAS, f"max_page_count={max_pages}"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except BaseException:
        db.close()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the file's name must survive a power loss as well as its content
    finally:
        os.close(folder)
    return db


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _number(db: sqlite3.Connection, query: str) -> int:
    return int(db.execute(query).fetchone()[0])


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0

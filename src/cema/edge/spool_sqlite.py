"""The file under the spool: one SQLite connection, transactions that carry counters, and the byte cap.

The cap is about files, not about payloads: the main file's share is enforced by SQLite's own
``max_page_count``; the write-ahead log's is kept by bounding every transaction in pages and by emptying the
log in time. The copy that is kept of a damaged file is not under the cap: there is one at most, no larger than it.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cema._util.toml import shown
from cema.edge.spool_database import (
    BROKEN,
    PAGE_BYTES,
    SUFFIXES,
    connect,
    error_code,
    file_size,
    first_page,
    number,
)
from cema.edge.spool_rescue import Wreck, open_wreck, pages_of, put_first, set_aside, take_pages
from cema.errors import SpoolError

__all__ = ["DRAWN_LOST", "SAMPLES", "SAMPLE_BYTES", "SpoolFile"]

logger = logging.getLogger(__name__)

_SPARE_PAGES = 8  # of the trees, that one more row may need
_DAMAGED = "dropped.damaged"
DRAWN_LOST = "drawn_lost"
"""The counter of samples that were drawn at random and dropped, for whatever reason."""
SAMPLES, SAMPLE_BYTES = ".samples", ".bytes"  # gauges: counted again at every start, never stored

_FRAME_BYTES = PAGE_BYTES + 24  # a page and its header in the write-ahead log
_MAX_LOG_BYTES = 8 << 20
# The file itself fails, or its file system has become read-only: it is opened anew at the next use.
_GONE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_MISTAKES = {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}  # no state of a disk: waiting does not help
_REMEDY = "check that its folder exists and is writable, and the disk's space and health"


class _UnusableError(SpoolError):
    """Waiting will not help: another process has the file, or there can be no such file."""


class SpoolFile:
    """One exclusively held database with a cap on the bytes of its files.

    A disk that is full or read-only does not keep it from existing: `problem` says so, every use tries to open
    the file again, and until then what is counted is kept in memory.

    Parameters
    ----------
    path : Path
        Created, with its folder, when absent; for this user only.
    max_bytes : int
        Cap in bytes on the database and its write-ahead log together.
    on_open : callable, optional
        Called with each connection before it is used; what it raises counts as the database's.

    Attributes
    ----------
    max_pages : int
        Pages the database may have.
    budget : int
        Pages one transaction may dirty, so that the log keeps its share.
    problem : str or None
        Why the file is not open now.

    Raises
    ------
    SpoolError
        When another process holds the file, or no file can have that path.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        on_open: Callable[[sqlite3.Connection], None] = lambda _: None,
    ) -> None:
        self.path = path
        self._on_open = on_open
        self._log_bytes = min(max_bytes // 4, _MAX_LOG_BYTES)
        self.max_pages = (max_bytes - self._log_bytes) // PAGE_BYTES
        self.budget = self._log_bytes // _FRAME_BYTES // 2
        self._lock = threading.Lock()  # the connection's: held over disk writes
        self._tally = threading.Lock()  # the numbers': never held over disk writes
        self._counters: Counter[str] = Counter()
        self._unsaved: set[str] = set()
        self._loaded = False  # whether what was counted before is among the counters
        # A damaged file: until its samples are saved, and afterwards.
        self._wreck, self._kept = Path(f"{path}.rescue"), Path(f"{path}.damaged")
        self._db: sqlite3.Connection | None = None
        self._closed = False
        self.problem: str | None = None
        try:
            with self._lock:
                self._connection()
        except _UnusableError:
            raise
        except SpoolError as error:
            logger.warning("%s; no sample is kept until it can be opened", error)

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
        return sum(file_size(f"{self.path}{suffix}") for suffix in SUFFIXES)

    def free_pages(self, db: sqlite3.Connection) -> int:
        """Return how many pages of the database hold nothing yet (negative after the cap was lowered)."""
        return self.max_pages - (number(db, "PRAGMA page_count") - number(db, "PRAGMA freelist_count"))

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
            try:
                with self._writing(db) as changes:
                    yield db, changes
            except sqlite3.Error as error:
                raise self._failure(error) from error

    def close(self) -> None:
        """Release the file. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            self._release()

    @property
    def closed(self) -> bool:
        """Whether the file was released for good."""
        return self._closed

    @contextmanager
    def _writing(self, db: sqlite3.Connection) -> Iterator[Counter[str]]:
        """Do as `transaction`, for those who hold the lock."""
        changes: Counter[str] = Counter()
        values: list[tuple[str, int]] = []
        try:
            self._shorten_log(db)
            db.execute("BEGIN IMMEDIATE")
            yield changes
            with self._tally:
                names = self._unsaved | {name for name in changes if not name.startswith(".")}
                values = [(name, self._counters[name] + changes[name]) for name in sorted(names)]
            db.executemany("INSERT OR REPLACE INTO counters (name, value) VALUES (?, ?)", values)
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # the first error is the one to tell
                if db.in_transaction:
                    db.execute("ROLLBACK")
            raise
        with self._tally:
            self._counters.update(changes)
            # A counter that moved while the transaction ran is still ahead of the disk.
            self._unsaved -= {name for name, value in values if self._counters[name] == value}

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise SpoolError(f"the spool {shown(self.path)} is closed; open a new one")
        if self._db is None:
            try:
                self._db = self._open()
            except SpoolError as error:
                self.problem = str(error)
                raise
            if self.problem is not None:
                logger.warning("the spool %s is open now", shown(self.path))
            self.problem = None
        return self._db

    def _release(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):  # what it could still say, nobody can act on
                self._db.close()
            self._db = None

    def _open(self) -> sqlite3.Connection:
        what = f"the spool {shown(self.path)}"
        try:
            try:
                db = self._load()
            except sqlite3.Error as error:
                if error_code(error) not in BROKEN:
                    raise
                db = self._replace(error)
            self._rescue(db)
        except sqlite3.Error as error:
            if error_code(error) == sqlite3.SQLITE_BUSY:
                raise _UnusableError(
                    f"{what} is in use by another process; stop that one, or configure another `state`"
                ) from error
            raise SpoolError(f"{what} cannot be opened: {error}; {_REMEDY}") from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            mistake = not isinstance(error, OSError) or error.errno in _MISTAKES
            kind = _UnusableError if mistake else SpoolError
            raise kind(f"{what} cannot be opened: {error}; {_REMEDY}") from error
        return db

    def _load(self) -> sqlite3.Connection:
        """Open the file and take over its numbers."""
        db = connect(self.path, self.max_pages)
        try:
            stored = dict(db.execute("SELECT name, value FROM counters").fetchall())
            dropped = self._shrink(db)
            self._on_open(db)
            rows, size = db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM samples").fetchone()
        except BaseException:
            db.close()
            raise
        with self._tally:
            if not self._loaded:
                self._counters.update(stored)  # adds: something may have been counted before the disk took it
            self._loaded = True
            self._counters[SAMPLES], self._counters[SAMPLE_BYTES] = rows, size
        if dropped:
            self.count("dropped.spool_full", dropped)
        return db

    def _failure(self, error: sqlite3.Error) -> SpoolError:
        """Say what went wrong; a damaged file is replaced, since nobody is there to mend it."""
        what = f"the spool {shown(self.path)}"
        if error_code(error) not in BROKEN:
            if error_code(error) in _GONE:
                self._release()
            return SpoolError(f"{what} cannot be used: {error}; check the disk's space and health")
        self._release()
        before = self.counters()
        try:
            self._db = self._replace(error)
            self._rescue(self._db, expected=before.get(SAMPLES, 0))
        except (sqlite3.Error, OSError) as problem:
            self._release()
            self.problem = f"{what} was damaged ({error}), a new one cannot be opened: {problem}; {_REMEDY}"
            return SpoolError(self.problem)
        now = self.counters()
        lost = now.get(_DAMAGED, 0) - before.get(_DAMAGED, 0)
        return SpoolError(f"{what} was damaged ({error}): {now[SAMPLES]} samples are saved, {lost} are lost")

    def _replace(self, error: sqlite3.Error) -> sqlite3.Connection:
        """Set the damaged file aside and begin a new one with the same counters."""
        logger.error("the spool %s is damaged (%s)", shown(self.path), error)
        if self._wreck.exists():
            set_aside(self._wreck, self._kept)
        set_aside(self.path, self._wreck)
        if not self._loaded:
            with suppress(sqlite3.Error, OSError), self._opened_wreck() as wreck:
                stored = wreck.counters()
                with self._tally:
                    self._counters.update(stored)
        self._loaded = True
        db = self._load()
        with self._tally:
            self._unsaved |= {name for name in self._counters if not name.startswith(".")}
        return db

    def _rescue(self, db: sqlite3.Connection, expected: int = 0) -> None:
        """Take over what can be read of a damaged file, if there is one; what fails now is done at the next start."""
        if not self._wreck.exists():
            return
        saved = dropped = 0
        try:
            with self._opened_wreck() as wreck:
                rows = wreck.newest_first()
                while group := list(take_pages(rows, self.budget // 2)):
                    with self._writing(db) as changes:
                        for row in group:
                            if self.free_pages(db) > pages_of(row) + _SPARE_PAGES:
                                if put_first(db, row):
                                    changes.update({SAMPLES: 1, SAMPLE_BYTES: len(row.image)})
                                saved += 1
                            else:
                                changes.update(["dropped.spool_full", *([DRAWN_LOST] if row.drawn else [])])
                                dropped += 1
                lost = max(wreck.lost, expected - saved - dropped) or int(not saved)
            if lost:
                with self._writing(db) as changes:
                    changes[_DAMAGED] += lost
            set_aside(self._wreck, self._kept)
        except (sqlite3.Error, OSError) as error:
            logger.error("the samples of %s cannot be saved now: %s", shown(self._wreck), error)
            return
        logger.error("%d samples are saved, %d are lost; %s is kept", saved, lost, shown(self._kept))

    @contextmanager
    def _opened_wreck(self) -> Iterator[Wreck]:
        with open_wreck(self._wreck, first_page(), self.max_pages * PAGE_BYTES) as wreck:
            yield wreck

    def _shrink(self, db: sqlite3.Connection) -> int:
        """Give pages back when the cap is lower than it was when the file grew: oldest samples first."""
        if number(db, "PRAGMA page_count") <= self.max_pages:
            return 0
        dropped, step = 0, max(1, self.budget // 4)
        oldest = "DELETE FROM samples WHERE seq IN (SELECT seq FROM samples ORDER BY seq LIMIT ?) RETURNING drawn > 0"
        while self.free_pages(db) < 0 and (gone := db.execute(oldest, (step,)).fetchall()):
            dropped += len(gone)
            if lost := sum(drawn for (drawn,) in gone):
                self.count(DRAWN_LOST, lost)
            self._shorten_log(db)
        while number(db, "PRAGMA page_count") > self.max_pages and number(db, "PRAGMA freelist_count"):
            db.execute(f"PRAGMA incremental_vacuum({step})").fetchall()
            self._shorten_log(db)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute(f"PRAGMA max_page_count={self.max_pages}").fetchall()
        return dropped

    def _shorten_log(self, db: sqlite3.Connection) -> None:
        if file_size(f"{self.path}-wal") > self._log_bytes // 2:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

"""The spool's SQLite database: its tables, and how it is opened."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from cema._util.files import keep_private, sync_folder

__all__ = [
    "BROKEN",
    "PAGE_BYTES",
    "SUFFIXES",
    "column_names",
    "connect",
    "error_code",
    "file_size",
    "first_page",
    "number",
]

PAGE_BYTES = 4096
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Result codes that say that the file is damaged."""
SUFFIXES = ("", "-wal", "-shm", "-journal")
"""What SQLite appends to a database's name for its files."""

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS samples (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
    " entropy REAL NOT NULL, label INTEGER NOT NULL, version INTEGER NOT NULL,"
    " captured_at REAL NOT NULL, bytes INTEGER NOT NULL, image BLOB NOT NULL,"
    " drawn REAL NOT NULL DEFAULT 0, selected INTEGER NOT NULL DEFAULT 1) STRICT",
    "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)"
    " STRICT, WITHOUT ROWID",
)
# Columns that spools from before lack: the probability with which a sample was drawn (0: it was not), and whether the
# selection chose it. An older CEMA ignores them.
_ADDED = {
    "drawn": "ALTER TABLE samples ADD COLUMN drawn REAL NOT NULL DEFAULT 0",
    "selected": "ALTER TABLE samples ADD COLUMN selected INTEGER NOT NULL DEFAULT 1",
}
_LAYOUT = (f"PRAGMA page_size={PAGE_BYTES}", "PRAGMA auto_vacuum=INCREMENTAL")
_PRAGMAS = (
    "PRAGMA locking_mode=EXCLUSIVE",  # no reader can hold the log back, and no second agent can share the file
    *_LAYOUT,
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",
    "PRAGMA checkpoint_fullfsync=ON",
    "PRAGMA wal_autocheckpoint=0",
    "PRAGMA secure_delete=OFF",
    "PRAGMA temp_store=MEMORY",
)


def connect(path: Path, max_pages: int) -> sqlite3.Connection:
    """Open a database, for this user only and for this process alone; create it, with its folder, when absent.

    Parameters
    ----------
    path : Path
    max_pages : int
        Pages that it may have.

    Raises
    ------
    OSError, sqlite3.Error
        When the disk refuses, the file is damaged, or another process has it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Of a new file only: to open and close one that exists would lose this process's lock on it. SQLite's other
    # files take over its mode.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    for suffix in (*SUFFIXES, ".damaged", ".damaged-wal"):
        keep_private(Path(f"{path}{suffix}"))
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        for statement in (*_PRAGMAS, f"PRAGMA max_page_count={max_pages}"):
            db.execute(statement).fetchall()
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            db.execute(statement)
        there = column_names(db)
        for name, statement in _ADDED.items():
            if name not in there:
                db.execute(statement)
        db.execute("COMMIT")
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            if error_code(error) in BROKEN:
                raise  # otherwise the disk is full: what is in the log can be read there
        sync_folder(path.parent)  # the file's name must survive a power loss as well as its content
    except BaseException:
        db.close()
        raise
    return db


def column_names(db: sqlite3.Connection) -> set[str]:
    """Return the names of the columns that a spool's samples have."""
    return {row[1] for row in db.execute("PRAGMA table_info(samples)").fetchall()}


def first_page() -> bytes:
    """Return the first page of an empty database: which tables there are, and where they begin."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement in (*_LAYOUT, *_SCHEMA):
            db.execute(statement)
        return db.serialize()[:PAGE_BYTES]


def error_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, or 0."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def number(db: sqlite3.Connection, query: str) -> int:
    """Return the one number that a query gives."""
    return int(db.execute(query).fetchone()[0])


def file_size(path: str) -> int:
    """Return a file's size in bytes; 0 when there is none to be read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0

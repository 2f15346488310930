"""Reading what can still be read of a damaged spool, row by row.

A damaged page costs the rows on it and no others. The candidates come from both trees of the table, the rows and
the index of their ids, and from what lies between the first and the last of them. A row counts as read when its
image is the one that its id is the hash of. The first page says where everything lies and is the same in every
spool: if it is gone, that of a new spool takes its place.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from cema.edge.spool_database import PAGE_BYTES, column_names

__all__ = ["Row", "Wreck", "open_wreck", "pages_of", "put_first", "set_aside", "take_pages"]

_WIDEST_GAP = 1_000_000  # numbers of rows that are tried one by one
_FORMAT_AT, _PAGES_AT = 18, 28  # offsets in the first page: see "The Database File Format" of SQLite
_WAL_FORMAT = b"\x02\x02"


class Row(NamedTuple):
    """A row of the table of samples, without its number and its size."""

    id: bytes
    image: bytes
    entropy: float
    label: int
    version: int
    captured_at: float
    drawn: float
    selected: int


def set_aside(path: Path, target: Path) -> None:
    """Give a database and its write-ahead log another name, in place of what has that name.

    Parameters
    ----------
    path, target : Path
        Of the database; in one folder.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    for suffix in ("-wal", ""):  # a log without its database is harmless; beside a new one it would not be
        new = Path(f"{target}{suffix}")
        new.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            os.replace(f"{path}{suffix}", new)
    for suffix in ("-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


class Wreck:
    """A damaged database that is open for reading; see `open_wreck`.

    Attributes
    ----------
    lost : int
        Rows that are known to have been there and could not be read so far.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.lost = 0

    def counters(self) -> dict[str, int]:
        """Return the counters that can be read."""
        found: dict[str, int] = {}
        with suppress(sqlite3.Error):
            for name, value in self._db.execute("SELECT name, value FROM counters"):
                if isinstance(name, str) and isinstance(value, int):
                    found[name] = value
        return found

    def newest_first(self) -> Iterator[Row]:
        """Yield the rows that can be read, the last that was stored first."""
        roles = "0.0, 1"  # of a spool from before
        with suppress(sqlite3.Error):
            roles = "drawn, selected" if "drawn" in column_names(self._db) else roles
        query = f"SELECT id, image, entropy, label, version, captured_at, {roles} FROM samples WHERE seq = ?"  # noqa: S608
        for seq in sorted(self._numbers(), reverse=True):
            try:
                found = self._db.execute(query, (seq,)).fetchone()
            except sqlite3.Error:
                self.lost += 1
                continue
            if found is None:
                continue  # a number that no row has
            row = Row(*found)
            if _is_whole(row):
                yield row
            else:
                self.lost += 1

    def _numbers(self) -> Iterable[int]:
        found: set[int] = set()
        for order in ("seq", "seq DESC", "id", "id DESC"):  # the latter two read the index only
            with suppress(sqlite3.Error):
                for (seq,) in self._db.execute(f"SELECT seq FROM samples ORDER BY {order}"):  # noqa: S608
                    if isinstance(seq, int):
                        found.add(seq)
        if found and max(found) - min(found) < _WIDEST_GAP:
            return range(min(found), max(found) + 1)
        return found


def _is_whole(row: Row) -> bool:
    return (
        isinstance(row.image, bytes)
        and hashlib.sha256(row.image).digest() == row.id
        and all(isinstance(value, float) for value in (row.entropy, row.captured_at, row.drawn))
        and all(isinstance(value, int) for value in (row.label, row.version))
        and 0 <= row.drawn <= 1
        and row.selected in (0, 1)
    )


@contextmanager
def open_wreck(path: Path, first_page: bytes, longest: int) -> Iterator[Wreck]:
    """Open a copy of a damaged database; the file itself stays as it is.

    Parameters
    ----------
    path : Path
        With its write-ahead log beside it, if it has one.
    first_page : bytes
        Of an empty database with the same tables; it takes the place of one that cannot be read.
    longest : int
        Bytes that no value can be longer than.

    Raises
    ------
    OSError, sqlite3.Error
        When the disk refuses.
    """
    copy = Path(f"{path}-copy")
    names = [Path(f"{copy}{suffix}") for suffix in ("", "-wal", "-shm", "-journal")]
    try:
        for name in names:
            name.unlink(missing_ok=True)
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                _copy_private(Path(f"{path}{suffix}"), Path(f"{copy}{suffix}"))
        if not _has_samples(copy):
            _mend_first_page(copy, first_page)
        with closing(_connect(copy)) as db:
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
            yield Wreck(db)
    finally:
        for name in names:
            with suppress(OSError):
                name.unlink(missing_ok=True)


def _copy_private(source: Path, target: Path) -> None:
    import shutil  # noqa: PLC0415 - slow to load, and rescues are rare

    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with source.open("rb") as old, os.fdopen(descriptor, "wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    with suppress(sqlite3.Error):
        db.execute(
            "PRAGMA locking_mode=EXCLUSIVE"
        ).fetchall()  # as the spool: without a file for shared memory
        db.execute("PRAGMA cell_size_check=ON").fetchall()
    return db


def _has_samples(path: Path) -> bool:
    with suppress(sqlite3.Error), closing(_connect(path)) as db:
        return bool(db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'samples'").fetchall())
    return False


def _mend_first_page(path: Path, first_page: bytes) -> None:
    page = bytearray(first_page)
    page[_FORMAT_AT : _FORMAT_AT + 2] = _WAL_FORMAT
    page[_PAGES_AT : _PAGES_AT + 4] = (path.stat().st_size // len(page)).to_bytes(4, "big")
    with path.open("r+b") as file:
        file.write(page)


def pages_of(row: Row) -> int:
    """Return how many pages storing a row takes, at most."""
    return math.ceil(len(row.image) / (PAGE_BYTES - 4)) + 4


def take_pages(rows: Iterator[Row], pages: int) -> Iterator[Row]:
    """Yield rows until they fill that many pages, at least one."""
    for row in rows:
        yield row
        pages -= pages_of(row)
        if pages <= 0:
            return


def put_first(db: sqlite3.Connection, row: Row) -> bool:
    """Insert a row before all others, unless its image waits already; return whether it did not."""
    done = db.execute(
        "INSERT OR IGNORE INTO samples (seq, id, image, entropy, label, version, captured_at, drawn, selected, bytes)"
        " VALUES ((SELECT coalesce(min(seq), 1) - 1 FROM samples), ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, len(row.image)),
    )
    return bool(done.rowcount)

"""Copies of the SQLite store: made of a store in use, and checked.

SQLite's online backup copies pages, so that everything goes along: tables of other modules, page size, vacuum mode. It
begins anew whenever another process writes, and under a steady stream of uploads would never end; inside one open read
transaction it sees one moment and goes through. Until it is done the write-ahead log of the store cannot begin anew,
and grows by what is written meanwhile.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from cema._util.files import sync_folder, unfinished, write_synced
from cema.cloud.store.backups import Content, Held, Progress
from cema.cloud.store.sqlite_database import SCHEMA_VERSION
from cema.errors import StoreError

__all__ = [
    "companions",
    "copy_file",
    "make_backup",
    "newest_versions",
    "read_content",
    "read_floors",
    "remove_database",
    "write_floors",
]

STEP_PAGES = 1024
BUSY_SECONDS = 30.0
NEEDED = frozenset({"cohorts", "samples", "updates", "artifacts", "counters", "devices"})
FLOORS = "CREATE TABLE IF NOT EXISTS version_floors (cohort TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"
RECORD = "CREATE TABLE backup (made_at REAL NOT NULL, notes TEXT NOT NULL)"


def make_backup(
    source: Path, path: Path, *, now: float, notes: Mapping[str, Any], progress: Progress | None
) -> Content:
    """Write a checked copy of a store to a new file, see `cema.cloud.store.backups.BackupStore.backup`."""
    if path.exists() or path.is_symlink():
        raise FileExistsError(path)
    with unfinished(path) as temporary:
        try:
            copy_file(source, temporary, progress)
            with _own_errors(temporary), _opened(temporary) as connection:
                connection.execute("DROP TABLE IF EXISTS backup")
                connection.execute(RECORD)
                connection.execute(
                    "INSERT INTO backup VALUES (?, ?)", (now, json.dumps(notes, allow_nan=False))
                )
            content = read_content(temporary)
            _sync(temporary)
            os.link(temporary, path)  # unlike rename, link refuses to replace
        finally:
            with suppress(OSError):  # why is said by the error that is on its way
                remove_database(temporary)
    sync_folder(path.parent)
    return content


def companions(path: Path) -> list[Path]:
    """Return the files beside a database that SQLite reads by their names: those of another one would damage it."""
    return [path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-shm", "-journal")]


def remove_database(path: Path) -> None:
    """Remove a database that nobody has open, as far as it is there."""
    for part in (path, *companions(path)):
        part.unlink(missing_ok=True)


def copy_file(source: Path, target: Path, progress: Progress | None, *, finished: bool = False) -> None:
    """Copy a database, as it is at one moment, to a new file; one file, without a log beside it.

    Parameters
    ----------
    source
        The database; it may be in use, unless it is a `finished` file.
    target
        A file that does not exist.
    progress
        Told the bytes copied, and those in all.
    finished
        Whether nobody writes to the source: it is read without locks and files beside it, also from a read-only disk.
    """
    write_synced(target, b"", mode=0o600)

    def tell(_: int, remaining: int, total: int) -> None:
        if progress is not None:
            progress((total - remaining) * size, total * size)

    uri = f"{source.absolute().as_uri()}?mode=ro{'&immutable=1' if finished else ''}"
    with (
        _own_errors(source),
        closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as reader,
        closing(sqlite3.connect(target, isolation_level=None)) as writer,
    ):
        # The file is of no use before all of it is written, and made durable then.
        writer.execute("PRAGMA synchronous=OFF")
        reader.execute("BEGIN")
        size = int(reader.execute("PRAGMA page_size").fetchone()[0])
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the moment that is copied
        reader.backup(writer, pages=STEP_PAGES, progress=tell)
    with _own_errors(target), _opened(target) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


def read_content(path: Path) -> Content:
    """Check a database file that nobody writes to, whole, and return what it holds.

    Raises
    ------
    StoreError
        It is damaged, no store, or one that a newer CEMA has made.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with (
        _own_errors(path),
        closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection,
    ):
        _check_whole(path, connection)
        names = _tables(connection)
        if not names >= NEEDED:
            raise StoreError(
                f"{path}: expected a copy of a CEMA store, got another database; name another file"
            )
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if not 1 <= version <= SCHEMA_VERSION:
            raise StoreError(
                f"{path}: expected schema version 1 to {SCHEMA_VERSION}, got {version}; use the CEMA version that "
                "wrote it"
            )
        floors, newest = read_floors(connection), newest_versions(connection)
        samples = dict(connection.execute("SELECT cohort, count(*) FROM samples GROUP BY cohort").fetchall())
        cohorts = [row[0] for row in connection.execute("SELECT name FROM cohorts ORDER BY name").fetchall()]
        devices, revoked = connection.execute("SELECT count(*), count(revoked_at) FROM devices").fetchone()
        record = (
            connection.execute("SELECT made_at, notes FROM backup").fetchone() if "backup" in names else None
        )
    return Content(
        cohorts={
            name: Held(newest.get(name, 0), samples.get(name, 0), floors.get(name, 0)) for name in cohorts
        },
        devices=devices,
        revoked=revoked,
        size=path.stat().st_size,
        made_at=record[0] if record else None,
        notes=json.loads(record[1]) if record else {},
    )


def _check_whole(path: Path, connection: sqlite3.Connection) -> None:
    found = [row[0] for row in connection.execute("PRAGMA integrity_check(3)").fetchall()]
    if found != ["ok"]:
        raise StoreError(f"{path}: the database is damaged ({'; '.join(found)}); use another backup")


def read_floors(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the lowest number of the next version by cohort, where there is one."""
    if "version_floors" not in _tables(connection):
        return {}
    return dict(connection.execute("SELECT cohort, version FROM version_floors").fetchall())


def newest_versions(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the newest version by cohort, where there is one."""
    return dict(connection.execute("SELECT cohort, max(version) FROM updates GROUP BY cohort").fetchall())


def write_floors(path: Path, floors: Mapping[str, int]) -> None:
    """Make a copy a store that begins at these numbers, and make it durable. Nobody else may have it open."""
    with _own_errors(path), _opened(path) as connection:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DROP TABLE IF EXISTS backup")
        if "sessions" in _tables(connection):  # of those that have ended since, nobody knows
            connection.execute("DELETE FROM sessions")
        connection.execute(FLOORS)
        connection.executemany(
            "INSERT INTO version_floors (cohort, version) VALUES (?, ?) ON CONFLICT (cohort) DO UPDATE "
            "SET version = max(version, excluded.version)",
            list(floors.items()),
        )
        connection.execute("COMMIT")
    _sync(path)


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    }


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _own_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"{path}: {error}; see whether the file is whole, and whether its disk has room and can be written"
        ) from error

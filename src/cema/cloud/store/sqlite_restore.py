"""A copy of the SQLite store becomes the store.

The file is made under a hidden name beside the store and takes its name in one step. What was there gets a second name
before: at every moment there is the old store or the new one, whole.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from cema._util.files import sync_folder
from cema.cloud.store.backups import Progress, Restored
from cema.cloud.store.sqlite_backup import (
    companions,
    copy_file,
    newest_versions,
    read_content,
    read_floors,
    remove_database,
    write_floors,
)
from cema.errors import StoreError

__all__ = ["newest_versions_at", "restore"]

# How a database begins. What does not is left as it is: SQLite would remove the log of an empty file that it opens.
HEADER = b"SQLite format 3\0"
# So long a short use of the store, such as adding a device, may take.
BUSY_SECONDS = 5.0


def newest_versions_at(path: Path) -> dict[str, int] | None:
    """Return by cohort the highest number that a version may have had; None where no store can be read."""
    if not _is_database(path):
        return None
    try:
        with _opened(path) as connection:
            newest = newest_versions(connection)
            for cohort, floor in read_floors(connection).items():
                newest[cohort] = max(newest.get(cohort, 0), floor - 1)
    except sqlite3.Error:
        return None
    return newest


def restore(
    path: Path, backup: Path, *, floors: Mapping[str, int], replace: bool, progress: Progress | None
) -> Restored:
    """Put a copy in the place of the store, see `cema.cloud.store.backups.RestoringBackend.restore`."""
    path = (
        path.resolve()
    )  # as SQLite does: what belongs to a store lies beside the file, not beside a link to it
    _refuse_what_is_there(path, replace=replace)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Always the same name, so that what a killed process has left is found and removed.
    new = path.with_name(f".{path.name}.restore.tmp")
    remove_database(new)
    try:
        copy_file(backup, new, progress, finished=True)
        read_content(new)
        write_floors(new, floors)
        good = _good_tokens(path) if _is_database(path) else None
        kept = tuple(_keep(path))
        if path.exists():
            os.replace(new, path)
        else:
            os.link(new, path)  # a store that appeared meanwhile is not overwritten
    except FileExistsError as error:
        raise StoreError(f"a store appeared at {path} meanwhile; see what uses it, and try again") from error
    finally:
        with suppress(OSError):  # why is said by the error that is on its way
            remove_database(new)
    sync_folder(path.parent)
    if good is None:
        return Restored(kept, None)
    return Restored(kept, tuple(sorted(name for name, _ in (_good_tokens(path) or frozenset()) - good)))


def _refuse_what_is_there(path: Path, *, replace: bool) -> None:
    if path.exists() and not path.is_file():
        raise StoreError(f"{path}: expected a store or nothing, got something that is no file; remove it")
    if path.exists() and not replace:
        raise StoreError(f"there is a store {path} already; add --replace to keep it under another name")


def _keep(path: Path) -> Iterator[Path]:
    """Give what is there a second name; afterwards nothing lies beside the store that SQLite would read."""
    if _is_database(path):
        _make_one_file(path)
    there = [part for part in (path, *companions(path)) if part.exists()]
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    base = path.with_name(f"{path.name}.replaced-{moment}")
    for part in there:
        name = base.with_name(base.name + part.name.removeprefix(path.name))
        os.link(part, name)
        yield name
    sync_folder(path.parent)
    for part in there:
        if part != path:
            part.unlink()


def _make_one_file(path: Path) -> None:
    """Write what is in the log into the database, and see that no process has it open. A damaged one stays as it is."""
    try:
        with _opened(path) as connection:
            # Only a connection that is alone may leave the mode with a log.
            mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return
        mode = "wal"
    except sqlite3.DatabaseError:
        return
    if mode == "wal":
        raise StoreError(
            f"a process is using the store {path}; end it (a cloud, its worker, a `cema` command), and try again"
        )


def _is_database(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        yield connection


def _good_tokens(path: Path) -> frozenset[tuple[str, bytes]] | None:
    """Return names and hashes of the tokens that are good; None where the store cannot be read."""
    try:
        with _opened(path) as connection:
            rows = connection.execute(
                "SELECT name, token_hash FROM devices WHERE revoked_at IS NULL"
            ).fetchall()
    except sqlite3.Error:
        return None
    return frozenset((row[0], row[1]) for row in rows)

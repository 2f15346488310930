"""Taking the bytes of what was deleted out of the files of the SQLite store.

Every connection overwrites with zeros what it deletes (``secure_delete``), so a page that is free, or half of one,
holds nothing of what was in it. What is left is the write-ahead log, which holds pages as they were before. Files that
an older CEMA has written may hold more: they are written anew, once.
"""

from __future__ import annotations

import sqlite3

from cema.cloud.store.sqlite_database import ERASES, Database
from cema.errors import StoreError

__all__ = ["erase"]

# While it waits for readers it keeps other writers out.
WAIT_MILLISECONDS = 2000


def erase(database: Database) -> str:
    """Empty the write-ahead log, and write a file from before anew.

    Returns
    -------
    str
        Empty when the files hold nothing any more that was deleted; else what stands in the way. A later call may do.
    """
    try:
        with database.alone() as connection:
            wait = connection.execute("PRAGMA busy_timeout").fetchone()[0]
            connection.execute(f"PRAGMA busy_timeout={WAIT_MILLISECONDS}")
            try:
                return _erase(connection)
            finally:
                connection.execute(f"PRAGMA busy_timeout={wait}")
    except StoreError as error:
        return f"the store's files cannot be rewritten now: {error}"


def _erase(connection: sqlite3.Connection) -> str:
    if connection.execute("PRAGMA application_id").fetchone()[0] != ERASES:
        connection.execute("VACUUM")
        connection.execute(f"PRAGMA application_id={ERASES}")
    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    return "the store's log is being read, by a backup for instance" if busy else ""

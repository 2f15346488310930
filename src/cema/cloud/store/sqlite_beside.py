"""Tables beside the schema of the SQLite store.

A store from before gets them when it is opened, and an older CEMA ignores them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from cema._util.events import report
from cema.cloud import events
from cema.cloud.store.sqlite_database import Database
from cema.errors import StoreError

__all__ = ["make_tables"]

log = logging.getLogger(__name__)


def make_tables(database: Database, tables: Mapping[str, str], *, what: str) -> bool:
    """Make tables that are not there.

    Parameters
    ----------
    database : Database
        The store's.
    tables : mapping of str to str
        The statement that makes a table or an index, by its name.
    what : str
        What the store does without when there is no room for them; for the log.

    Returns
    -------
    bool
        Whether all are there. A full store has no room; it gets them when it is opened with some.
    """
    places = ", ".join("?" * len(tables))
    with database.read() as connection:
        query = f"SELECT name FROM sqlite_master WHERE name IN ({places})"  # noqa: S608
        there = {row[0] for row in connection.execute(query, tuple(tables)).fetchall()}
    if len(there) == len(tables):
        return True
    try:
        with database.write() as connection:
            for name, statement in tables.items():
                if name not in there:
                    connection.execute(statement)
    except StoreError as error:
        report(log, events.TABLES_NOT_KEPT, what=what, error=str(error))
        return False
    return True

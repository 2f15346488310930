"""Sessions of operators in the SQLite store, see `cema.cloud.store.sessions`."""

from __future__ import annotations

from cema.cloud.store.devices import Device, new_token, token_digest
from cema.cloud.store.sessions import SESSION_SECONDS, SESSIONS_OF_ONE
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import PAGE, Database
from cema.cloud.store.sqlite_fleet import SqliteFleet
from cema.cloud.store.sqlite_space import make_room

__all__ = ["SessionTable"]

# The digest of the token stands for its holder: it is no token's any more once the operator has a new one.
TABLES = {
    "sessions": "CREATE TABLE sessions (digest BLOB PRIMARY KEY, token BLOB NOT NULL, expires REAL NOT NULL) "
    "WITHOUT ROWID",
}
# What a new row may take: a page, and another one where a page is split.
ROOM = 2 * PAGE
# Seconds that a clock may be set back without an end to the sessions that were just opened.
SLACK = 600.0


class SessionTable:
    """One row for each session.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no table: nobody can sign in until it is opened with room.
    register
        Knows whose token it is.
    """

    def __init__(self, database: Database, register: SqliteFleet) -> None:
        self._database, self._register = database, register
        self._there = make_tables(database, TABLES, what="sessions of operators")

    def open(self, token: str, now: float) -> str | None:
        """Open a session, and forget those that have ended."""
        holder = token_digest(token)
        if not self._there or self._register.of_digest(holder) is None:
            return None
        secret = new_token()
        with self._database.write() as connection:
            # None lasts longer, unless the clock was ahead.
            connection.execute(
                "DELETE FROM sessions WHERE expires <= ? OR expires > ?", (now, now + SESSION_SECONDS + SLACK)
            )
            # The page is wanted most where the store is full.
            make_room(connection, ROOM, self._database.max_bytes, cap=self._database.max_bytes)
            connection.execute(
                "DELETE FROM sessions WHERE digest IN (SELECT digest FROM sessions WHERE token = ? "
                "ORDER BY expires DESC LIMIT -1 OFFSET ?)",
                (holder, SESSIONS_OF_ONE - 1),
            )
            connection.execute(
                "INSERT INTO sessions VALUES (?, ?, ?)", (token_digest(secret), holder, now + SESSION_SECONDS)
            )
        return secret

    def find(self, secret: str, now: float) -> Device | None:
        """Return whose session it is: two rows are read, each by an index."""
        if not self._there:
            return None
        row = self._database.peek(
            "SELECT token FROM sessions WHERE digest = ? AND expires > ? AND expires <= ?",
            (token_digest(secret), now, now + SESSION_SECONDS + SLACK),
        )
        return self._register.of_digest(row[0]) if row else None

    def end(self, secret: str) -> None:
        """End a session."""
        if not self._there:
            return
        with self._database.write() as connection:
            connection.execute("DELETE FROM sessions WHERE digest = ?", (token_digest(secret),))

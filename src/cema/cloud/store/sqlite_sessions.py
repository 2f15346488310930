"""Sessions of operators in the SQLite store, see `cema.cloud.store.sessions`."""

from __future__ import annotations

from cema.cloud.store.devices import Device, new_token, token_digest
from cema.cloud.store.sessions import SESSION_SECONDS, SESSIONS_OF_ONE
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import Database
from cema.cloud.store.sqlite_fleet import SqliteFleet

__all__ = ["SessionTable"]

# The digest of the token stands for its holder: it is no token's any more once the operator has a new one.
TABLES = {
    "sessions": "CREATE TABLE sessions (digest BLOB PRIMARY KEY, token BLOB NOT NULL, expires REAL NOT NULL) "
    "WITHOUT ROWID",
}


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
            connection.execute("DELETE FROM sessions WHERE expires <= ?", (now,))
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
            "SELECT token FROM sessions WHERE digest = ? AND expires > ?", (token_digest(secret), now)
        )
        return self._register.of_digest(row[0]) if row else None

    def end(self, secret: str) -> None:
        """End a session."""
        if not self._there:
            return
        with self._database.write() as connection:
            connection.execute("DELETE FROM sessions WHERE digest = ?", (token_digest(secret),))

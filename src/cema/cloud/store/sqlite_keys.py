"""The keys documents in the SQLite store, see `cema.cloud.store.keys`."""

from __future__ import annotations

from cema.cloud.store.audits import AuditedAct
from cema.cloud.store.sqlite_audits import AuditTable
from cema.cloud.store.sqlite_database import Database
from cema.errors import StoreError

__all__ = ["KeysTable"]

# Beside the tables of the schema: a store gets it with its first document, and an older CEMA ignores it.
TABLE = (
    "CREATE TABLE IF NOT EXISTS keys_documents (cohort TEXT NOT NULL, serial INTEGER NOT NULL, envelope BLOB NOT NULL, "
    "PRIMARY KEY (cohort, serial))"
)


class KeysTable:
    """Keys documents of every cohort; the methods are those of `cema.cloud.store.keys.KeysStore`.

    Parameters
    ----------
    database
        The store's database.
    audit
        Where it is recorded who changes keys.
    """

    def __init__(self, database: Database, audit: AuditTable) -> None:
        self._database = database
        self._audit = audit

    def keys_documents(self, cohort: str) -> list[bytes]:
        """Return the envelopes of a cohort's keys documents, by rising serial number."""
        with self._database.read() as connection:
            there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'keys_documents'").fetchone()
            if there is None:
                return []
            rows = connection.execute(
                "SELECT envelope FROM keys_documents WHERE cohort = ? ORDER BY serial", (cohort,)
            ).fetchall()
        return [bytes(row[0]) for row in rows]

    def put_keys_document(
        self, cohort: str, serial: int, envelope: bytes, *, act: AuditedAct | None = None
    ) -> None:
        """Keep one more, durably; a serial number that is not above the last one is refused."""
        with self._database.write() as connection:
            connection.execute(TABLE)
            last = connection.execute(
                "SELECT max(serial) FROM keys_documents WHERE cohort = ?", (cohort,)
            ).fetchone()[0]
            if last is not None and serial <= last:
                raise StoreError(
                    f"keys document {serial} of cohort {cohort!r} must follow document {last}; make it again"
                )
            connection.execute(
                "INSERT INTO keys_documents (cohort, serial, envelope) VALUES (?, ?, ?)",
                (cohort, serial, envelope),
            )
            if act is not None:
                self._audit.record(connection, act)

"""Room under the SQLite store's byte cap: what is in use, and what is evicted to make more."""

from __future__ import annotations

import sqlite3

from cema.cloud.store.sqlite_database import PAGE, Database, bump
from cema.cloud.store.sqlite_tallies import left
from cema.errors import StoreFull

__all__ = ["EVICTED_BYTES", "forget_oldest_evicted", "live_bytes", "make_room", "shrink"]

# Identities kept of evicted samples, at most, and at most one for so many bytes of the cap.
EVICTED_IDS = 65_536
EVICTED_BYTES = PAGE
EVICT_AT_ONCE = 64


def live_bytes(connection: sqlite3.Connection) -> int:
    """Return the bytes of the database in use; its file may be larger, up to the cap."""
    free = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return _file_bytes(connection) - int(free) * PAGE


def make_room(connection: sqlite3.Connection, need: int, limit: int, *, cap: int) -> None:
    """Evict processed samples, oldest first, until `need` bytes more fit under `limit`.

    Parameters
    ----------
    connection
        In the caller's transaction.
    need, limit
        Bytes.
    cap
        The store's cap in bytes, of which `limit` is a part.

    Raises
    ------
    StoreFull
        There is not enough to evict.
    """
    while live_bytes(connection) + need > limit:
        victims = _oldest_processed(connection)
        if not victims:
            raise StoreFull(
                f"the store needs {need} bytes more than its cap leaves ({cap}, "
                "limits.store_bytes), and every sample in it still waits for the worker; send again "
                "later, or raise the cap"
            )
        _evict(connection, victims, live_bytes(connection) + need - limit)
        forget_oldest_evicted(connection, cap)


def forget_oldest_evicted(connection: sqlite3.Connection, cap: int) -> None:
    """Keep the identities of evicted samples within their bound, for a store of `cap` bytes."""
    connection.execute(
        "DELETE FROM evicted WHERE seq <= (SELECT seq FROM evicted ORDER BY seq DESC LIMIT 1 OFFSET ?)",
        (min(EVICTED_IDS, cap // EVICTED_BYTES),),
    )


def shrink(database: Database) -> None:
    """Give back what a lowered cap no longer allows, as far as processed samples go."""
    with database.write() as connection:
        if _file_bytes(connection) <= database.max_bytes:
            return
        try:
            make_room(connection, 0, database.max_bytes, cap=database.max_bytes)
        except StoreFull:
            return  # only unseen samples are left: keep them, and take no more
        # Each call gives back one page: the statement returns no rows, so Python steps it once.
        for _ in range(connection.execute("PRAGMA freelist_count").fetchone()[0]):
            connection.execute("PRAGMA incremental_vacuum")


def _evict(connection: sqlite3.Connection, victims: list[tuple[int, str, bytes, int]], excess: int) -> None:
    """Evict as many of the victims as free the excess, remember their identities, and count them."""
    freed = 0
    dropped: dict[str, int] = {}
    for seq, cohort, key, size in victims:
        if freed >= excess:
            break
        connection.execute("DELETE FROM samples WHERE seq = ?", (seq,))
        connection.execute("INSERT INTO evicted (seq, cohort, id) VALUES (?, ?, ?)", (seq, cohort, key))
        freed += size
        dropped[cohort] = dropped.get(cohort, 0) + 1
    for cohort, count in dropped.items():
        bump(connection, cohort, {"evicted.byte_cap": count})
        left(connection, cohort, count)


def _oldest_processed(connection: sqlite3.Connection) -> list[tuple[int, str, bytes, int]]:
    victims: list[tuple[int, str, bytes, int]] = []
    for cohort, cursor in connection.execute("SELECT name, cursor FROM cohorts").fetchall():
        victims += connection.execute(
            "SELECT seq, cohort, id, length(image) FROM samples WHERE cohort = ? AND seq <= ? "
            "ORDER BY seq LIMIT ?",
            (cohort, cursor, EVICT_AT_ONCE),
        ).fetchall()
    return sorted(victims)[:EVICT_AT_ONCE]


def _file_bytes(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA page_count").fetchone()[0]) * PAGE

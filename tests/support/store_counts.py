"""The numbers that the SQLite store keeps, against counting."""

from __future__ import annotations

from cema.cloud.store.base import Store
from cema.cloud.store.sqlite import SqliteStore

COUNTS = (
    "SELECT c.name, count(s.seq), coalesce(sum(s.seq > c.cursor), 0) FROM cohorts AS c "
    "LEFT JOIN samples AS s ON s.cohort = c.name GROUP BY c.name"
)


def check_tallies(store: Store) -> None:
    """Compare a store's numbers with those that counting gives."""
    assert isinstance(store, SqliteStore)
    with store.database.read() as connection:
        counted = connection.execute(COUNTS).fetchall()
    for cohort, samples, waiting in counted:
        status = store.status(cohort)
        assert (status["samples"], status["backlog"]) == (samples, waiting)
        assert store.backlog(cohort).samples == waiting

"""How many samples each cohort has and how many wait, kept as they come and go: counting them takes too long."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

__all__ = ["TALLIES", "Tally", "came", "left", "moved", "recount", "recount_all", "removed", "tally"]


TALLIES = """
CREATE TABLE tallies (
    cohort TEXT PRIMARY KEY, samples INTEGER NOT NULL, waiting INTEGER NOT NULL
) WITHOUT ROWID
"""


class Tally(NamedTuple):
    """One cohort's samples in the store, and those of them that wait for the worker."""

    samples: int
    waiting: int


def tally(connection: sqlite3.Connection, cohort: str) -> Tally:
    """Return a cohort's counts, by reading one row."""
    row = connection.execute("SELECT samples, waiting FROM tallies WHERE cohort = ?", (cohort,)).fetchone()
    return Tally(*row) if row else Tally(0, 0)


def came(connection: sqlite3.Connection, cohort: str, samples: int) -> None:
    """Count samples that were just stored: they wait, as their sequence numbers are beyond every cursor."""
    connection.execute(
        "INSERT INTO tallies (cohort, samples, waiting) VALUES (?1, ?2, ?2) ON CONFLICT (cohort) DO UPDATE "
        "SET samples = samples + excluded.samples, waiting = waiting + excluded.waiting",
        (cohort, samples),
    )


def left(connection: sqlite3.Connection, cohort: str, samples: int) -> None:
    """Count processed samples that were evicted."""
    connection.execute("UPDATE tallies SET samples = samples - ? WHERE cohort = ?", (samples, cohort))


def removed(connection: sqlite3.Connection, cohort: str, samples: int, waiting: int) -> None:
    """Count samples that were deleted, some of which waited."""
    connection.execute(
        "UPDATE tallies SET samples = samples - ?, waiting = waiting - ? WHERE cohort = ?",
        (samples, waiting, cohort),
    )


def moved(connection: sqlite3.Connection, cohort: str, before: int, after: int) -> None:
    """Count what a cursor has passed on its way from one sequence number to another."""
    connection.execute(
        "UPDATE tallies SET waiting = waiting - (SELECT count(*) FROM samples WHERE cohort = ?1 AND seq > ?2 "
        "AND seq <= ?3) WHERE cohort = ?1",
        (cohort, before, after),
    )


def recount(connection: sqlite3.Connection, cohort: str) -> None:
    """Count a cohort's samples one by one, whatever its counts were."""
    connection.execute(
        "INSERT INTO tallies (cohort, samples, waiting) SELECT ?1, count(*), "
        "coalesce(sum(seq > coalesce((SELECT cursor FROM cohorts WHERE name = ?1), 0)), 0) FROM samples "
        "WHERE cohort = ?1 ON CONFLICT (cohort) DO UPDATE SET samples = excluded.samples, waiting = excluded.waiting",
        (cohort,),
    )


def recount_all(connection: sqlite3.Connection) -> None:
    """Count the samples of every cohort one by one."""
    for (cohort,) in connection.execute("SELECT DISTINCT cohort FROM samples").fetchall():
        recount(connection, cohort)

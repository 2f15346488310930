"""Which base model a cohort is for, in the SQLite store."""

from __future__ import annotations

import sqlite3

from cema.cloud.store.base import OtherBase
from cema.cloud.store.sqlite_tallies import recount

__all__ = ["rebase", "tie"]


def tie(connection: sqlite3.Connection, cohort: str, base: str) -> None:
    """Give a cohort a base model, unless it has made steps with another one.

    Parameters
    ----------
    connection
        In the caller's transaction.
    cohort
        A cohort that the store knows.
    base
        The base model's digest.

    Raises
    ------
    OtherBase
        The cohort is tied to another base model.
    """
    known = connection.execute("SELECT base FROM cohorts WHERE name = ?", (cohort,)).fetchone()[0]
    if known == base:
        return
    if _has_made_steps(connection, cohort):
        raise OtherBase(
            f"cohort {cohort!r} has made steps with base model {known[:12]}, its bundle now has {base[:12]}: set "
            "`bundle` in its [[cohort]] table back to the bundle of before, and bring devices and store to the new one "
            f"with `cema cohort migrate {cohort} --bundle FOLDER`; or give the new bundle a cohort name of its own"
        )
    rebase(connection, cohort, base)


def rebase(connection: sqlite3.Connection, cohort: str, base: str) -> None:
    """Give a cohort another base model: what was learned goes, and whoever works on it is fenced."""
    connection.execute(
        "UPDATE cohorts SET base = ?, checkpoint = NULL, attempts = 0, epoch = epoch + 1 WHERE name = ?",
        (base, cohort),
    )
    recount(connection, cohort)


def _has_made_steps(connection: sqlite3.Connection, cohort: str) -> bool:
    return bool(
        connection.execute(
            "SELECT EXISTS (SELECT 1 FROM updates WHERE cohort = ?1) OR EXISTS (SELECT 1 FROM counters WHERE "
            "cohort = ?1 AND name = 'steps.count' AND value > 0)",
            (cohort,),
        ).fetchone()[0]
    )

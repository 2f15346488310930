"""Acts of operators in the SQLite store, see `cema.cloud.store.control`."""

from __future__ import annotations

import sqlite3
from typing import Any, cast

import msgspec

from cema.cloud.store.audits import AuditedAct
from cema.cloud.store.bases import base_at
from cema.cloud.store.control import (
    SOURCE,
    Act,
    Acted,
    ActRefused,
    Control,
    ControlChanged,
    Pin,
    Release,
    Resume,
    Rollback,
    State,
    Stop,
    VersionRecord,
    after,
    supersedes,
)
from cema.cloud.store.sqlite_audits import AuditTable
from cema.cloud.store.sqlite_beside import make_tables
from cema.cloud.store.sqlite_database import Database
from cema.cloud.store.sqlite_offers import OfferTable, newest_for_all
from cema.cloud.store.sqlite_periods import read_periods
from cema.errors import StoreError

__all__ = ["ControlTable"]

# Acts are never deleted: who did what is of use for years, and a person makes few.
TABLES = {
    "cohort_acts": "CREATE TABLE cohort_acts (number INTEGER PRIMARY KEY AUTOINCREMENT, cohort TEXT NOT NULL, "
    "at REAL NOT NULL, actor TEXT NOT NULL, act TEXT NOT NULL, content TEXT, state TEXT NOT NULL, done_at REAL, "
    "version INTEGER)",
    "cohort_acts_state": "CREATE INDEX cohort_acts_state ON cohort_acts (cohort, state)",
    "cohort_control": "CREATE TABLE cohort_control (cohort TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID",
}

_COLUMNS = "number, cohort, at, actor, act, content, state, done_at, version"
# Versions that a refusal names, the newest.
_NAMED = 10


class ControlTable:
    """Acts on every cohort; see `cema.cloud.store.control.ControlStore`.

    Parameters
    ----------
    database
        The store's database. A full one from before gets no tables, and refuses acts until it is opened with room.
    audit
        Where every act is recorded too, with what is done to devices and backups.
    offers
        Which devices a version is for.
    """

    def __init__(self, database: Database, audit: AuditTable, offers: OfferTable) -> None:
        self._database = database
        self._audit = audit
        self._offers = offers
        self._there = make_tables(database, TABLES, what="acts of operators")

    def act(self, cohort: str, act: Act, *, actor: str, now: float) -> Acted:
        """Write an act down, and what all of them come to."""
        if not (self._there and self._offers.there):
            raise StoreError(
                "the store has no room for acts; raise limits.store_bytes and start the cloud again"
            )
        with self._database.write() as connection:
            if connection.execute("SELECT 1 FROM cohorts WHERE name = ?", (cohort,)).fetchone() is None:
                raise StoreError(f"the store has no cohort {cohort!r}; start the cloud once with it")
            content = _content(connection, cohort, act)
            content = self._offer(connection, cohort, act, content, now)
            gone = [each.number for each in _all_waiting(connection, cohort) if supersedes(act, each.act)]
            connection.executemany(
                "UPDATE cohort_acts SET state = 'superseded', done_at = ? WHERE number = ?",
                [(now, each) for each in gone],
            )
            # What needs no signature is done at once.
            state: State = "done" if content is None else "waiting"
            done_at = now if content is None else None
            number = connection.execute(
                "INSERT INTO cohort_acts (cohort, at, actor, act, content, state, done_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (cohort, now, actor, msgspec.json.encode(act).decode(), content, state, done_at),
            ).lastrowid
            assert number is not None  # noqa: S101 - for the type; an INSERT has one
            control = after(_control(connection, cohort), act, number=number, content=content)
            connection.execute(
                "INSERT INTO cohort_control (cohort, state) VALUES (?, ?) ON CONFLICT (cohort) DO UPDATE "
                "SET state = excluded.state",
                (cohort, msgspec.json.encode(control).decode()),
            )
            detail = msgspec.to_builtins(act) | {"number": number}
            told = AuditedAct(actor, f"cohort.{detail.pop('type')}", cohort, detail)
            self._audit.record(connection, told, now=now)
        return Acted(
            number=number,
            cohort=cohort,
            at=now,
            actor=actor,
            act=act,
            content=content,
            state=state,
            done_at=done_at,
        )

    def _offer(
        self, connection: sqlite3.Connection, cohort: str, act: Act, content: str | None, now: float
    ) -> str | None:
        """Change who is offered what, as far as that needs no new version; return what is to be published."""
        match act:
            case Pin(device=str(device)):
                _check_device(connection, cohort, device)
                self._offers.pin(connection, cohort, device, content)
            case Resume(device=str(device)):
                if self._offers.pin(connection, cohort, device, None) is None:
                    raise ActRefused(
                        f"device {device!r} of cohort {cohort!r} is not pinned; there is nothing to end"
                    )
                # It has a higher number than the others: what they have needs one that is higher still.
                newest, digest = newest_for_all(connection, cohort, there=True)
                periods = read_periods(connection, cohort)
                return digest if digest and not (periods and newest <= periods[-1].after) else SOURCE
            case Release(to=version):
                newest = newest_for_all(connection, cohort, there=True)[0]
                if version <= newest:
                    raise ActRefused(
                        f"version {version} of cohort {cohort!r} cannot be released: version {newest} is for all "
                        "already; to give devices older content, roll back to it"
                    )
                self._offers.end(connection, cohort, version, now)
            case Stop():
                self._offers.unpin_all(connection, cohort)
            case _:
                pass
        return content

    def control(self, cohort: str) -> Control:
        """Return what all acts come to: one row is read."""
        if not self._there:
            return Control()
        row = self._database.peek("SELECT state FROM cohort_control WHERE cohort = ?", (cohort,))
        return msgspec.json.decode(row[0], type=Control) if row else Control()

    def waiting(self, cohort: str) -> Acted | None:
        """Return the act that the worker has to do, if there is one: one row is read."""
        if not self._there:
            return None
        row = self._database.peek(
            f"SELECT {_COLUMNS} FROM cohort_acts WHERE cohort = ? AND state = 'waiting' ORDER BY number LIMIT 1",  # noqa: S608
            (cohort,),
        )
        return _acted(row) if row else None

    def acts(self, cohort: str, *, limit: int) -> list[Acted]:
        """Return the newest acts on a cohort, newest first."""
        if not self._there:
            return []
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM cohort_acts WHERE cohort = ? ORDER BY number DESC LIMIT ?",  # noqa: S608
                (cohort, limit),
            ).fetchall()
        return [_acted(row) for row in rows]

    def versions(self, cohort: str) -> list[VersionRecord]:
        """Return the versions that are kept, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT version, digest, created, expires, length(data), envelope FROM updates "
                "JOIN artifacts USING (digest) WHERE cohort = ? ORDER BY version",
                (cohort,),
            ).fetchall()
        return [VersionRecord(*row) for row in rows]

    def commit(
        self,
        connection: sqlite3.Connection,
        cohort: str,
        *,
        control: int | None,
        acted: Acted | None,
        publishes: bool,
    ) -> None:
        """Check, in the transaction of a step, that nobody has acted since it began, and note what it has done.

        Parameters
        ----------
        control
            The serial that the step was made under; None checks nothing.
        acted
            The act that it has done, if any, as it is to be written down.
        publishes
            Whether the step has an update, or offers one to more devices.
        """
        if not self._there:
            return
        serial = _control(connection, cohort).serial
        if control is not None and publishes and serial != control:
            raise ControlChanged(
                f"cohort {cohort!r}: an operator acted while the step was made (act {serial}); make it again"
            )
        if acted is not None:
            connection.execute(
                "UPDATE cohort_acts SET state = ?, done_at = ?, version = ? WHERE number = ? AND state = 'waiting'",
                (acted.state, acted.done_at, acted.version, acted.number),
            )

    def check_free(self, connection: sqlite3.Connection, cohort: str) -> None:
        """Raise StoreError where devices are to have the content of a version, of the base model that they have now."""
        if not self._there:
            return
        waiting = [act.number for act in _all_waiting(connection, cohort) if act.content != SOURCE]
        if waiting:
            raise StoreError(
                f"cohort {cohort!r}: act {waiting[0]} waits for the worker, and its content is for the base model "
                "of now; wait until it is done (`cema cloud acts`), and try again"
            )
        pinned = self._offers.pinned_names(connection, cohort)
        if pinned:
            raise StoreError(
                f"cohort {cohort!r}: pinned to a version, which is for the base model of now: {', '.join(pinned)}; "
                "resume these devices first (`cema cloud resume --device NAME`)"
            )
        if _control(connection, cohort).publishing == "pinned":
            raise StoreError(
                f"cohort {cohort!r} is pinned to a version, which is for the base model of now; resume it first "
                f"(`cema cloud resume --cohort {cohort}`)"
            )

    def held(self, connection: sqlite3.Connection, cohort: str) -> set[str]:
        """Return the digests that may not be deleted: devices are to have them, now or soon."""
        if not self._there:
            return set()
        wanted = {
            _control(connection, cohort).content,
            *(a.content for a in _all_waiting(connection, cohort)),
        }
        return {digest for digest in wanted if digest is not None and digest != SOURCE}


def _check_device(connection: sqlite3.Connection, cohort: str, device: str) -> None:
    row = connection.execute(
        "SELECT cohort FROM devices WHERE name = ? AND role = 'device'", (device,)
    ).fetchone()
    if row is None or row[0] != cohort:
        raise ActRefused(f"cohort {cohort!r} has no device {device!r}; cema device list has all of them")


def _content(connection: sqlite3.Connection, cohort: str, act: Act) -> str | None:
    """Return what is to be published for an act."""
    match act:
        case Stop():
            return SOURCE
        case Rollback(to=version) | Pin(to=version) | Release(to=version):
            row = connection.execute(
                "SELECT digest FROM updates WHERE cohort = ? AND version = ?", (cohort, version)
            ).fetchone()
            if row is None:
                raise ActRefused(_not_kept(connection, cohort, version))
            periods = read_periods(connection, cohort)
            if periods and base_at(periods, version) != periods[-1].base:
                raise ActRefused(
                    f"version {version} of cohort {cohort!r} is for another base model than its devices are to have "
                    f"now; those after {periods[-1].after} are for that (cema cloud versions lists all)"
                )
            return None if isinstance(act, Release) else cast("str", row[0])
        case _:
            return None


def _not_kept(connection: sqlite3.Connection, cohort: str, version: int) -> str:
    rows = connection.execute(
        "SELECT version FROM updates WHERE cohort = ? ORDER BY version DESC LIMIT ?", (cohort, _NAMED)
    ).fetchall()
    newest = ", ".join(str(row[0]) for row in reversed(rows))
    have = f"the newest that are kept: {newest}" if rows else "none was published yet"
    return f"cohort {cohort!r} keeps no version {version}; {have} (cema cloud versions lists all)"


def _all_waiting(connection: sqlite3.Connection, cohort: str) -> list[Acted]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM cohort_acts WHERE cohort = ? AND state = 'waiting' ORDER BY number",  # noqa: S608
        (cohort,),
    ).fetchall()
    return [_acted(row) for row in rows]


def _control(connection: sqlite3.Connection, cohort: str) -> Control:
    row = connection.execute("SELECT state FROM cohort_control WHERE cohort = ?", (cohort,)).fetchone()
    return msgspec.json.decode(row[0], type=Control) if row else Control()


def _acted(row: tuple[Any, ...]) -> Acted:
    number, cohort, at, actor, act, content, state, done_at, version = row
    return Acted(
        number=number,
        cohort=cohort,
        at=at,
        actor=actor,
        act=msgspec.json.decode(act, type=Act),
        content=content,
        state=state,
        done_at=done_at,
        version=version,
    )

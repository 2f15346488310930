"""The record of acts in the SQLite store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from cloud_support import make_samples

from cema.cloud.store.audits import AuditedAct, AuditStore, audits_of
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import StoreError, StoreFull

CAP = 8 * 2**20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=CAP)) as store:
        store.open_cohort("north", base="b")
        yield store


def told(store: SqliteStore) -> list[tuple[str, str, str, object]]:
    return [(one.act.actor, one.act.name, one.act.subject, one.act.detail) for one in store.audit(limit=100)]


def test_acts_are_kept_in_their_order(store: SqliteStore) -> None:
    assert audits_of(store) is store
    assert isinstance(store, AuditStore)
    for number in range(5):
        store.record_act(AuditedAct("os:ann", "thing.do", f"{number}", {"n": number}), now=float(number))
    found = store.audit(limit=100)
    assert [(one.at, one.act.subject, one.act.detail) for one in found] == [
        (float(n), f"{n}", {"n": n}) for n in range(5)
    ]
    assert [one.act.subject for one in store.audit(after=found[1].seq, limit=2)] == ["2", "3"]
    assert [one.act.subject for one in store.newest_audit(2)] == ["3", "4"]


def test_what_is_done_with_devices_is_kept_and_what_fails_is_not(store: SqliteStore) -> None:
    devices = store.audited_devices(["north"], actor="os:ann")
    tokens = [devices.add("cam", cohort="north"), devices.add("boss", cohort=None, role="operator")]
    tokens.append(devices.renew("cam"))
    devices.revoke("cam")
    for fails in (
        lambda: devices.add("cam", cohort="north"),
        lambda: devices.renew("cam"),
        lambda: devices.revoke("nobody"),
    ):
        with pytest.raises(StoreError):
            fails()
    store.devices(["north"]).add("quiet", cohort="north")
    assert told(store) == [
        ("os:ann", "device.add", "cam", {"role": "device", "cohort": "north"}),
        ("os:ann", "device.add", "boss", {"role": "operator", "cohort": None}),
        ("os:ann", "device.renew", "cam", {}),
        ("os:ann", "device.revoke", "cam", {}),
    ]
    assert not [token for token in tokens if token in repr(store.audit(limit=100))]


def test_an_act_belongs_to_the_transaction_that_it_tells_of(store: SqliteStore) -> None:
    with suppress(RuntimeError), store.database.write() as connection:
        connection.execute("UPDATE cohorts SET base = 'c'")
        store._audit.record(connection, AuditedAct("os:ann", "cohort.change", "north"))
        raise RuntimeError
    assert told(store) == []
    with store.database.read() as connection:
        assert connection.execute("SELECT base FROM cohorts").fetchone() == ("b",)


def test_acts_can_be_neither_changed_nor_removed(store: SqliteStore) -> None:
    store.record_act(AuditedAct("os:ann", "thing.do", "x"))
    for statement in ("DELETE FROM audit", "UPDATE audit SET actor = 'os:bob'"):
        with pytest.raises(StoreError, match="acts stay"), store.database.write() as connection:
            connection.execute(statement)
    assert [one[0] for one in told(store)] == ["os:ann"]


def test_a_full_store_still_takes_acts(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=2**20)) as store:
        store.open_cohort("north", base="b")
        with suppress(StoreFull):
            for seed in range(100):
                store.put("north", make_samples(64, seed), device="d", now=1.0, max_backlog=10**6)
        devices = store.audited_devices(["north"], actor="os:ann")
        devices.add("cam", cohort="north")
        devices.revoke("cam")
        assert [one[1] for one in told(store)] == ["device.add", "device.revoke"]


def test_a_store_from_before_gets_its_record(tmp_path: Path) -> None:
    path = tmp_path / "cema.db"
    SqliteStore(path, max_bytes=CAP).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE audit")
    with closing(SqliteStore(path, max_bytes=CAP)) as store:
        assert told(store) == []
        store.record_act(AuditedAct("os:ann", "thing.do", "x"))
        assert len(told(store)) == 1


def test_a_store_that_cannot_have_it_works_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cema.cloud.store.sqlite_audits.TABLES", {"audit": "CREATE TABLE audit (no such thing"}
    )
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=CAP)) as store:
        store.audited_devices(["north"], actor="os:ann").add("cam", cohort="north")
        assert told(store) == store.newest_audit(3) == []


def test_a_back_end_may_do_without() -> None:
    with pytest.raises(StoreError, match="no record of acts"):
        audits_of(object())  # type: ignore[arg-type]

"""Traces of updates in the SQLite store."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cloud_support import make_samples

from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.store.traces import DEVICES_TRACED, Fetch, TraceStore, traces_of

CAP = 8 * 2**20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=CAP)) as store:
        store.open_cohort("north", base="b")
        yield store


def publish(store: SqliteStore, version: int, trace: dict[str, Any] | None) -> None:
    payload = b"payload"
    digest = hashlib.sha256(payload).hexdigest()
    update = PublishedUpdate(version, digest, b"{}", payload, 1.0, 2.0, trace)
    state = store.claim("north")
    store.commit_step("north", state.cursor, b"", update, epoch=state.epoch, now=1.0)


def test_a_trace_is_kept_with_its_update(store: SqliteStore) -> None:
    publish(store, 1, {"samples": 7})
    publish(store, 2, None)
    assert store.traced("north") == [1]
    assert store.trace("north", 1) == {"version": 1, "samples": 7, "devices": {}}
    assert store.trace("north", 2) is None
    assert store.trace("south", 1) is None
    assert store.newest_versions(["north", "south"]) == {"north": 2, "south": 0}


def test_the_oldest_traces_go(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=4 * 2**19)) as store:
        store.open_cohort("north", base="b")
        for version in range(1, 8):
            publish(store, version, {})
            store.note_fetches([Fetch("north", version, "d", 1.0)])
        assert store.traced("north") == [4, 5, 6, 7]
        with store.database.read() as connection:
            kept = connection.execute("SELECT version FROM fetches ORDER BY version").fetchall()
        assert kept == [(4,), (5,), (6,), (7,)]


def test_the_first_devices_that_fetched_and_ran_a_version(store: SqliteStore) -> None:
    def send(device: str, version: int, seed: int, now: float) -> None:
        samples = [
            msgspec.structs.replace(s, version=version, captured_at=now - 1) for s in make_samples(2, seed)
        ]
        store.put("north", samples, device=device, now=now, max_backlog=100)

    send("early", 3, 0, 5.0)  # a device may say anything: this came before there was a version 3
    publish(store, 3, {})
    store.note_fetches(
        [Fetch("north", 3, "a", 10.0), Fetch("north", 3, "b", 11.0), Fetch("north", 9, "a", 12.0)]
    )
    store.note_fetches([Fetch("north", 3, "a", 20.0)])
    send("a", 2, 1, 30.0)
    send("a", 3, 2, 40.0)
    send("a", 4, 3, 50.0)
    send("c", 5, 4, 60.0)
    found = store.trace("north", 3)
    assert found is not None
    assert found["devices"] == {
        "a": {"fetched_at": 10.0, "received_at": 40.0, "captured_at": 39.0},
        "b": {"fetched_at": 11.0, "received_at": None, "captured_at": None},
        "c": {"fetched_at": None, "received_at": 60.0, "captured_at": 59.0},
    }
    assert store.trace("north", 9) is None


def test_the_devices_of_a_trace_are_bounded(store: SqliteStore) -> None:
    publish(store, 1, {})
    store.note_fetches([Fetch("north", 1, f"d{i}", float(i)) for i in range(2 * DEVICES_TRACED)])
    found = store.trace("north", 1)
    assert found is not None
    assert list(found["devices"]) == [f"d{i}" for i in range(DEVICES_TRACED)]


def test_a_store_from_before_gets_its_traces(tmp_path: Path) -> None:
    path = tmp_path / "cema.db"
    with closing(SqliteStore(path, max_bytes=CAP)) as store:
        store.open_cohort("north", base="b")
        publish(store, 1, None)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE traces; DROP TABLE fetches;")
    with closing(SqliteStore(path, max_bytes=CAP)) as store:
        assert store.trace("north", 1) is None
        publish(store, 2, {"samples": 1})
        assert store.traced("north") == [2]


def test_a_store_that_cannot_have_them_works_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cema.cloud.store.sqlite_traces.TABLES", {"traces": "CREATE TABLE traces (no such thing"}
    )
    with closing(SqliteStore(tmp_path / "cema.db", max_bytes=CAP)) as store:
        store.open_cohort("north", base="b")
        publish(store, 1, {"samples": 1})
        store.note_fetches([Fetch("north", 1, "d", 1.0)])
        assert (store.traced("north"), store.trace("north", 1)) == ([], None)
        update = store.latest_update("north")
        assert update is not None
        assert update.version == 1


def test_the_store_keeps_traces(store: SqliteStore) -> None:
    assert isinstance(store, TraceStore)
    assert traces_of(store) is store

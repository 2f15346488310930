"""SQLite's store: what every store does, and what only a file can show."""

from __future__ import annotations

import itertools
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_counts import check_tallies

from cema.cloud.store.base import Store
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.store.sqlite_database import READERS
from cema.errors import StoreError, StoreFull, StoreUnavailable
from cema.testing.store_case import MANY, put
from cema.testing.store_data import numbered_sample, numbered_update
from cema.testing.stores import StoreSuite


class TestSqliteStore(StoreSuite):
    __test__ = True

    def url(self, folder: Path) -> str:
        return f"sqlite:{folder / 'cema.db'}"

    def check_size(self, folder: Path, store: Store, max_bytes: int) -> None:
        super().check_size(folder, store, max_bytes)
        assert (folder / "cema.db").stat().st_size <= max_bytes
        check_tallies(store)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "cema.db", max_bytes=16 * 2**20)
    opened.open_cohort("north", base="0" * 64)
    yield opened
    opened.close()


def test_every_commit_is_flushed_to_disk(store: SqliteStore) -> None:
    with store.database.write() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_many_readers_at_one_moment_leave_few_file_handles_behind(store: SqliteStore) -> None:
    group = threading.Barrier(READERS, timeout=20)  # so many read at one time
    before = handles_of(store)

    def read() -> None:
        with store.database.read() as connection:
            connection.execute("SELECT count(*) FROM samples").fetchone()
            group.wait()

    for _ in range(2):
        threads = [threading.Thread(target=read) for _ in range(5 * READERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not group.broken
    # The file and its log, for each connection.
    assert before < handles_of(store) <= before + 2 * READERS


def handles_of(store: SqliteStore) -> int:
    """Count the file handles that this process has on the store's files."""
    found = map(os.path.realpath, Path("/proc/self/fd").iterdir())
    return sum(path.startswith(str(store.database.path.resolve())) for path in found)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_the_file_stays_under_its_cap(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cap = data.draw(st.integers(300_000, 900_000))
    path = tmp_path_factory.mktemp("cap") / "cema.db"
    store = SqliteStore(path, max_bytes=cap)
    numbers = itertools.count(1)
    known: dict[str, set[str]] = {"a": set(), "b": set()}
    epochs = {}
    for name in known:
        store.open_cohort(name, base="0" * 64)
        epochs[name] = store.claim(name).epoch
    for _ in range(data.draw(st.integers(1, 12))):
        name = data.draw(st.sampled_from(["a", "b"]))
        if data.draw(st.booleans()):
            sizes = data.draw(st.lists(st.integers(8, 60_000), min_size=1, max_size=12))
            samples = [numbered_sample(next(numbers), size) for size in sizes]
            try:
                assert put(store, samples, name) == ["stored"] * len(samples)
                known[name].update(s.id for s in samples)
            except StoreFull:
                pass
        else:
            waiting = store.sequence(name, after=store.status(name)["cursor"], limit=MANY)
            seqs = [store.status(name)["cursor"], *waiting]
            store.commit_step(
                name, data.draw(st.sampled_from(seqs)), b"c" * 2000, epoch=epochs[name], now=1.0
            )
        assert path.stat().st_size <= cap
        assert store.used_bytes() <= cap
    for name, ids in known.items():
        counts = store.counters(name)
        here = {s.id for s in store.fresh(name, after=0, limit=MANY)}
        assert here <= ids
        assert len(here) == len(ids) - counts.get("evicted.byte_cap", 0)
    store.close()
    assert path.stat().st_size <= cap


def test_a_lowered_cap_is_met_when_the_store_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "cema.db"
    store = SqliteStore(path, max_bytes=4 * 2**20)
    store.open_cohort("north", base="0" * 64)
    put(store, [numbered_sample(i, 40_000) for i in range(1, 60)])
    state = store.claim("north")
    store.commit_step("north", 59, b"", epoch=state.epoch, now=1.0)
    store.close()
    SqliteStore(path, max_bytes=2**20).close()
    assert path.stat().st_size <= 2**20


def test_a_fault_in_the_middle_of_a_commit_undoes_all_of_it(store: SqliteStore) -> None:
    put(store, [numbered_sample(i) for i in range(4)])
    state = store.claim("north")
    store.commit_step("north", 1, b"first", numbered_update(1), epoch=state.epoch, now=1.0, counts={"n": 1})
    before = store.status("north")
    # The fault strikes after cursor and checkpoint were written, inside the transaction.
    with store.database.write() as connection:
        connection.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON updates BEGIN SELECT raise(ABORT, 'pulled plug'); END"
        )
    with pytest.raises(StoreError, match="pulled plug") as caught:
        store.commit_step(
            "north", 3, b"second", numbered_update(2), epoch=state.epoch, now=2.0, counts={"n": 1}
        )
    assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
    assert store.status("north") == before
    assert store.claim("north").checkpoint == b"first"
    assert store.artifact("north", numbered_update(2).digest) is None


def test_one_payload_under_two_versions_is_one_artifact(store: SqliteStore) -> None:
    epoch = store.claim("north").epoch
    for version in (1, 2):
        store.commit_step("north", 0, b"", numbered_update(version, b"same"), epoch=epoch, now=1.0)
    with store.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM artifacts").fetchone()[0] == 1


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cema.db"
    path.write_bytes(b"this is no database, by any means" * 200)
    with pytest.raises(StoreError, match="cannot open the store"):
        SqliteStore(path, max_bytes=2**20)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version=7")
    connection.close()
    with pytest.raises(StoreError, match="schema version 7"):
        SqliteStore(other, max_bytes=2**20)
    with pytest.raises(StoreError, match="at least"):
        SqliteStore(tmp_path / "small.db", max_bytes=1000)


def test_a_database_that_another_holds_for_too_long_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cema.cloud.store.sqlite_database.BUSY_SECONDS", 0.01)
    store = SqliteStore(tmp_path / "cema.db", max_bytes=2**20)
    store.open_cohort("north", base="0" * 64)
    assert store.backlog("north").samples == 0
    other = sqlite3.connect(tmp_path / "cema.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        put(store, [numbered_sample(1)])
    with pytest.raises(StoreUnavailable, match="locked"):
        store.devices(["north"]).add("cam", cohort="north")
    assert store.backlog("north").samples == 0  # readers do not wait for a writer
    other.execute("ROLLBACK")
    other.close()
    assert put(store, [numbered_sample(1)]) == ["stored"]
    store.close()


def test_no_error_of_sqlite_leaves_the_store(store: SqliteStore) -> None:
    with store.database.write() as connection:
        connection.execute("ALTER TABLE samples RENAME TO lost")
    with pytest.raises(StoreUnavailable, match="no such table") as caught:
        store.fresh("north", after=0, limit=1)
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    with pytest.raises(StoreError) as other, store.database.write() as connection:
        connection.execute("INSERT INTO cohorts (name) VALUES ('north')")
    assert not isinstance(other.value, StoreUnavailable)
    assert isinstance(other.value.__cause__, sqlite3.IntegrityError)


def test_a_reader_that_is_at_work_is_not_cut_off_by_the_close(store: SqliteStore) -> None:
    reading, closed = threading.Event(), threading.Event()
    seen: list[int] = []

    def read() -> None:
        with store.database.read() as connection:
            reading.set()
            closed.wait(20)
            seen.append(connection.execute("SELECT count(*) FROM cohorts").fetchone()[0])

    thread = threading.Thread(target=read)
    thread.start()
    assert reading.wait(20)
    store.close()
    closed.set()
    thread.join()
    assert seen == [1]


def test_only_the_hash_of_a_token_is_kept(store: SqliteStore, tmp_path: Path) -> None:
    devices = store.devices(["north"])
    tokens = {devices.add(f"d{i}", cohort="north") for i in range(20)}
    store.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"d19" in content
    assert not [token for token in tokens if token.encode() in content]


def test_only_the_owner_may_read_what_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cema.db"
    with closing(SqliteStore(path, max_bytes=2**20)) as store:
        store.open_cohort("north", base="0" * 64)
        modes = {p.name: p.stat().st_mode & 0o777 for p in path.parent.iterdir()}
        assert modes.keys() >= {"cema.db", "cema.db-wal", "cema.db-shm"}
        assert set(modes.values()) == {0o600}
        assert path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o644)
    with closing(SqliteStore(path, max_bytes=2**20)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_empty_file_is_a_lost_store_and_not_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "cema.db"
    path.touch()
    with pytest.raises(StoreError, match=r"is empty \(0 bytes\).*restore a backup"):
        SqliteStore(path, max_bytes=2**20)
    path.unlink()
    (tmp_path / "cema.db-wal").write_bytes(b"samples")
    with pytest.raises(StoreError, match=r"is gone, but its log cema.db-wal is there"):
        SqliteStore(path, max_bytes=2**20)
    assert not path.exists()


def test_a_store_that_could_not_be_made_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StoreError, match="No space left"):
        SqliteStore(tmp_path / "cema.db", max_bytes=2**20)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    SqliteStore(tmp_path / "cema.db", max_bytes=2**20).close()

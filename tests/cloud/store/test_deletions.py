"""What is deleted from the SQLite store is in none of its files, whenever its process ends."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cloud_process import PATIENCE
from file_bytes import found_in, marked_sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_counts import check_tallies

from cema.cloud.store import sqlite_deletions
from cema.cloud.store.data import DataFilter, all_samples
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.store.sqlite_erase import erase
from cema.errors import StoreFull, StoreUnavailable
from cema.testing.store_case import MANY, fill

CAP = 16 * 2**20
ALL = DataFilter()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with closing(opened(tmp_path)) as store:
        yield store


def opened(folder: Path, cap: int = CAP) -> SqliteStore:
    store = SqliteStore(folder / "cema.db", max_bytes=cap)
    store.open_cohort("north", base="b")
    return store


def send(store: SqliteStore, device: str, numbers: range, *, now: float = 1.0, size: int = 6000) -> None:
    samples = [marked_sample(number, size) for number in numbers]
    store.put("north", samples, device=device, now=now, max_backlog=MANY)


def images(numbers: range, size: int = 6000) -> list[bytes]:
    return [marked_sample(number, size).image for number in numbers]


def process_all(store: SqliteStore) -> None:
    seqs = store.sequence("north", after=0, limit=MANY)
    store.commit_step("north", seqs[-1], b"", epoch=store.claim("north").epoch, now=1.0)


def test_the_bytes_of_deleted_images_are_in_no_file(store: SqliteStore, tmp_path: Path) -> None:
    for device, numbers in (("a", range(20)), ("b", range(20, 40))):
        send(store, device, numbers)
    assert {number for _, number in found_in(tmp_path, images(range(20)))} == set(range(20))
    receipt = store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=2.0)
    assert (receipt.samples, receipt.bytes, receipt.note) == (20, 20 * 6000, "")
    assert found_in(tmp_path, images(range(20))) == set()
    assert {number for _, number in found_in(tmp_path, images(range(20, 40)))} == set(range(20))
    store.backup(tmp_path / "copy", now=3.0, notes={})
    assert found_in(tmp_path, images(range(20))) == set()


def test_images_that_were_evicted_before_are_in_no_file_either(tmp_path: Path) -> None:
    with closing(opened(tmp_path, 2**20)) as store:
        send(store, "a", range(60))
        process_all(store)
        send(store, "b", range(100, 160))
        assert store.counters("north")["evicted.byte_cap"] >= 10
        store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=2.0)
        assert found_in(tmp_path, images(range(60))) == set()


def test_a_file_of_an_older_program_is_written_anew_once(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        send(store, "a", range(30))
        send(store, "b", range(30, 40))
    older(tmp_path / "cema.db", "DELETE FROM samples WHERE device = 'a' AND seq % 2")
    assert found_in(tmp_path, images(range(30)))
    with closing(opened(tmp_path)) as store:
        assert store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=2.0).samples == 15
        assert found_in(tmp_path, images(range(30))) == set()
        assert len(store.fresh("north", after=0, limit=MANY)) == 10
        with store.database.read() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def older(path: Path, statement: str) -> None:
    """Do what a program did that left what it deleted behind."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete=OFF")
        connection.execute("PRAGMA application_id=0")
        connection.execute(statement)


def test_while_the_log_is_read_a_deletion_is_not_done(store: SqliteStore, tmp_path: Path) -> None:
    send(store, "a", range(5))
    with closing(sqlite3.connect(tmp_path / "cema.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM samples").fetchone()
        receipt = store.delete_data("north", ALL, actor="os:ann", now=2.0)
        assert "being read" in receipt.note
        found = store.go_on_deleting("north", now=3.0)
        epoch = store.claim("north").epoch
        store.commit_step("north", 0, b"", epoch=epoch, now=3.0, forgotten=found.deletions)
        assert store.finish_deletions("north", now=4.0) == []
        assert store.receipts("north")[0].state == "forgotten"
    (done,) = store.finish_deletions("north", now=5.0)
    assert (done.state, done.note) == ("done", "")
    assert found_in(tmp_path, images(range(5))) == set()


def test_a_full_store_of_samples_that_wait_can_be_deleted_from(tmp_path: Path) -> None:
    with closing(opened(tmp_path, 2**20)) as store:
        numbers = itertools.count()
        with pytest.raises(StoreFull):
            fill(store, numbers, 6000)
        before = store.backlog("north").samples
        receipt = store.delete_data("north", ALL, actor="os:ann", now=2.0)
        assert receipt.samples == before > 50
        assert store.backlog("north").samples == 0
        check_tallies(store)


def test_identities_of_deletions_that_are_done_are_bounded(tmp_path: Path) -> None:
    with closing(opened(tmp_path, 2**20)) as store:
        epoch = store.claim("north").epoch
        for first in range(0, 600, 50):
            send(store, "a", range(first, first + 50), size=64)
            store.delete_data("north", ALL, actor="os:ann", now=2.0)
            found = store.go_on_deleting("north", now=3.0)
            store.commit_step("north", 0, b"", epoch=epoch, now=3.0, forgotten=found.deletions)
            assert store.finish_deletions("north", now=4.0)
        with store.database.read() as connection:
            (kept,) = connection.execute("SELECT count(*) FROM deleted").fetchone()
        assert kept == 2**20 // 4096
        newest = store.put("north", [marked_sample(599, 64)], device="a", now=9.0, max_backlog=MANY)
        assert newest[0].verdict == "duplicate"


# A deletion whose process is killed at the N-th statement that changes something.
KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from cema.cloud.store import sqlite_deletions
from cema.cloud.store.data import DataFilter
from cema.cloud.store.sqlite import SqliteStore

sqlite_deletions.AT_ONCE = 5
left = int(sys.argv[2])
store = SqliteStore(Path(sys.argv[1]), max_bytes=16 * 2**20)

def count(statement):
    global left
    if statement.startswith(("UPDATE", "COMMIT", "PRAGMA wal_checkpoint")):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

store.database._writer.set_trace_callback(count)
store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=2.0)
"""


def test_a_deletion_that_is_killed_goes_on_with_the_next_worker(tmp_path: Path) -> None:
    point, unfinished, ended = 0, 0, False
    while not ended:
        folder = tmp_path / f"{point}"
        with closing(opened(folder)) as store:
            send(store, "a", range(12))
            send(store, "b", range(12, 16))
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder / "cema.db"), str(point)],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        ended = done.returncode == 0
        with closing(opened(folder)) as store:
            begun = bool(store.receipts("north"))
            unfinished += begun and store.receipts("north")[0].state == "deleting"
            # Before it was written down nobody was told that it was: it is asked for again.
            if not begun:
                assert len(list(all_samples(store, "north", ALL))) == 16
                store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=2.0)
            found = store.go_on_deleting("north", now=3.0)
            assert len(found.seqs) == 12
            epoch = store.claim("north").epoch
            store.commit_step("north", 0, b"", epoch=epoch, now=3.0, forgotten=found.deletions)
            (receipt,) = store.finish_deletions("north", now=4.0)
            assert (receipt.samples, receipt.state) == (12, "done")
            check_tallies(store)
            assert found_in(folder, images(range(12))) == set()
            assert len({number for _, number in found_in(folder, images(range(12, 16)))}) == 4
        point += 1
    assert point > 8
    assert unfinished > 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sent=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=12
    ),
    which=st.builds(
        DataFilter,
        device=st.none() | st.sampled_from("abc"),
        label=st.none() | st.integers(0, 4),
        since=st.none() | st.integers(0, 6).map(float),
        until=st.none() | st.integers(0, 6).map(float),
    ),
    cursor=st.integers(0, 12),
)
def test_exactly_what_is_listed_is_deleted(
    sent: list[tuple[str, int, int]],
    which: DataFilter,
    cursor: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with closing(opened(tmp_path_factory.mktemp("which"))) as store:
        for number, (device, label, at) in enumerate(sent):
            sample = marked_sample(4 * number + label, 64)
            store.put("north", [sample], device=device, now=float(at), max_backlog=MANY)
        epoch = store.claim("north").epoch
        store.commit_step("north", min(cursor, len(sent)), b"", epoch=epoch, now=1.0)
        listed = {s.id for s in all_samples(store, "north", which, at_once=3)}
        before = {s.id for s in all_samples(store, "north", ALL)}
        receipt = store.delete_data("north", which, actor="os:ann", now=9.0)
        assert receipt.samples == len(listed)
        assert {s.id for s in all_samples(store, "north", ALL)} == before - listed
        assert store.data_groups("north", which) == []
        check_tallies(store)


def test_many_samples_are_deleted_in_many_transactions(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_deletions, "AT_ONCE", 7)
    monkeypatch.setattr(sqlite_deletions, "BYTES_AT_ONCE", 13_000)
    send(store, "a", range(20))
    # While it goes on, samples come that nobody has asked to delete.
    receipt = store.delete_data("north", DataFilter(device="a"), actor="os:ann", now=2.0)
    assert receipt.samples == 20
    assert receipt.ids_sha256 is not None


def test_a_store_from_before_gets_its_tables(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        send(store, "a", range(3))
    drop = "DROP TABLE deletions; DROP TABLE deleted; DROP TRIGGER labels_go; DROP TABLE teacher_labels; "
    with closing(sqlite3.connect(tmp_path / "cema.db")) as connection:
        connection.executescript(f"{drop} DROP TABLE true_labels;")
    with closing(opened(tmp_path)) as store:
        assert store.delete_data("north", ALL, actor="os:ann", now=2.0).samples == 3


def test_a_store_that_cannot_have_them_says_so_and_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cema.cloud.store.sqlite_data.TABLES", {"teacher_labels": "CREATE TABLE no such"})
    monkeypatch.setattr("cema.cloud.store.sqlite_deletions.TABLES", {"deletions": "CREATE TABLE no such"})
    with closing(opened(tmp_path)) as store:
        send(store, "a", range(3))
        process_all(store)
        assert (store.pending("north"), store.true_labels("north"), store.receipts()) == ((0, 0), {}, [])
        assert store.go_on_deleting("north", now=1.0).deletions == ()
        assert store.finish_deletions("north", now=1.0) == []
        assert store.expire_data("north", until=9.0, now=9.0) is None
        for call in (
            lambda: store.delete_data("north", ALL, actor="os:ann", now=2.0),
            lambda: store.data_groups("north", ALL),
            lambda: store.put_labels("north", {}, actor="os:ann", now=2.0),
        ):
            with pytest.raises(StoreFull, match="store_bytes"):
                call()


def test_a_closed_store_erases_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.close()
    assert "cannot be rewritten now" in erase(store.database)
    with pytest.raises(StoreUnavailable):
        store.pending("north")

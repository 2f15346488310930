"""Uploads of many threads in one commit: how many commits there are, and whose failure is whose."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cema.cloud.store import sqlite_group
from cema.cloud.store.base import BacklogFull, UploadTooLarge
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import StoreError, StoreUnavailable
from cema.testing.store_case import MANY, put
from cema.testing.store_data import numbered_sample

PATIENCE = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "cema.db", max_bytes=16 * 2**20)
    opened.open_cohort("north", base="0" * 64)
    yield opened
    opened.close()


def together(store: SqliteStore, *calls: Callable[[], Any]) -> tuple[list[Any], list[str]]:
    """Make calls that all wait for the writer at one moment; return what each gave or raised, and the statements."""
    results: list[Any] = [None] * len(calls)
    statements: list[str] = []

    def run(i: int) -> None:
        try:
            results[i] = calls[i]()
        except StoreError as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    group = store._samples._group
    with store.database.write() as connection:  # nobody else writes
        waits = threading.Event()
        for i, thread in enumerate(threads):
            thread.start()
            while len(group) <= i and not waits.wait(0.001):
                assert thread.is_alive()
        connection.set_trace_callback(statements.append)
    for thread in threads:
        thread.join(PATIENCE)
    connection.set_trace_callback(None)
    return results, statements[1:]  # the first is the commit of the block above


def upload(store: SqliteStore, *numbers: int, size: int = 64, most: int = MANY) -> Callable[[], list[str]]:
    samples = [numbered_sample(number, size) for number in numbers]
    return lambda: put(store, samples, max_backlog=most)


def test_uploads_that_wait_at_one_time_share_a_commit(store: SqliteStore) -> None:
    results, statements = together(store, *(upload(store, 2 * i, 2 * i + 1) for i in range(10)))
    assert results == [["stored"] * 2] * 10
    assert statements.count("COMMIT") == 1
    assert store.backlog("north").samples == 20


def test_a_group_has_a_largest_size_and_the_next_one_follows(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_group, "GROUP_BYTES", 3000)
    results, statements = together(store, *(upload(store, i, size=800) for i in range(6)))
    assert results == [["stored"]] * 6
    assert statements.count("COMMIT") == 3  # two to a group, with what a row costs
    results, statements = together(store, *(upload(store, 100 + i, size=8000) for i in range(3)))
    assert (results, statements.count("COMMIT")) == ([["stored"]] * 3, 3)


def test_what_fails_in_a_group_fails_alone(store: SqliteStore) -> None:
    results, statements = together(
        store,
        upload(store, 1, 2),
        upload(store, 3, 4, 5, most=4),
        upload(store, 6, size=20 * 2**20),
        upload(store, 2, 7),
        upload(store, 3, 8),
    )
    assert isinstance(results[1], BacklogFull)
    assert isinstance(results[2], UploadTooLarge)
    assert [results[0], results[3], results[4]] == [["stored"] * 2, ["duplicate", "stored"], ["stored"] * 2]
    assert statements.count("COMMIT") == 2  # the large one does not fit into the others' group
    assert [s.id for s in store.fresh("north", after=0, limit=9)] == [
        numbered_sample(number).id for number in (1, 2, 7, 3, 8)
    ]
    assert store.counters("north")["samples.stored"] == 5


def test_where_a_whole_group_fails_each_is_tried_alone(store: SqliteStore) -> None:
    bad = numbered_sample(3).image.hex()
    with store.database.write() as connection:
        connection.execute(
            f"CREATE TRIGGER fault BEFORE INSERT ON samples WHEN new.image = x'{bad}' "
            "BEGIN SELECT raise(ROLLBACK, 'pulled plug'); END"
        )
    results, _ = together(store, *(upload(store, i) for i in range(6)))
    assert isinstance(results[3], StoreError)
    assert "pulled plug" in str(results[3])
    assert results[:3] + results[4:] == [["stored"]] * 5
    assert store.backlog("north").samples == 5


def test_a_fault_of_the_commit_itself_stores_nothing_that_is_answered_stored(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(BaseException):
        pass

    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted

    results, _ = together(store, upload(store, 1), upload(store, 2))
    assert results == [["stored"]] * 2
    monkeypatch.setattr(sqlite_group, "_work", interrupted)
    with pytest.raises(Interrupted):
        put(store, [numbered_sample(3)])
    monkeypatch.undo()
    # The next one leads all the same.
    assert put(store, [numbered_sample(3), numbered_sample(4)]) == ["stored"] * 2


def test_a_closed_store_answers_all_that_wait(store: SqliteStore) -> None:
    ended: list[Any] = []
    group = store._samples._group

    def close() -> None:
        store.database._closed = True

    with store.database.write():
        threads = [
            threading.Thread(target=lambda i=i: ended.append(raised(upload(store, i)))) for i in range(5)
        ]
        for i, thread in enumerate(threads):
            thread.start()
            while len(group) <= i:
                assert thread.is_alive()
        close()
    for thread in threads:
        thread.join(PATIENCE)
    store.database._closed = False
    assert [type(error) for error in ended] == [StoreUnavailable] * 5
    assert len(set(map(id, ended))) == 5
    assert put(store, [numbered_sample(1)]) == ["stored"]


def raised(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except StoreError as error:
        return error
    return None


# Eight threads that store one sample after another and say so, until the process is killed.
WRITERS = """
import sys, threading
from pathlib import Path
from cema.cloud.store.sqlite import SqliteStore
from cema.testing.store_data import numbered_sample

store = SqliteStore(Path(sys.argv[1]), max_bytes=2**26)
def write(first):
    for number in range(first, 10**9, 8):
        sample = numbered_sample(number)
        store.put("north", [sample], device="d", now=1.0, max_backlog=10**6)
        sys.stdout.write(sample.id + "\\n")
        sys.stdout.flush()
threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
for thread in threads: thread.start()
"""


def test_what_a_group_has_acknowledged_survives_the_kill_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "cema.db"
    store = SqliteStore(path, max_bytes=2**26)
    store.open_cohort("north", base="0" * 64)
    store.close()
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        acknowledged = {process.stdout.readline().strip() for _ in range(60)}
        process.kill()
        acknowledged |= {line.strip() for line in process.stdout if line.endswith("\n")}
    store = SqliteStore(path, max_bytes=2**26)
    stored = [s.id for s in store.fresh("north", after=0, limit=MANY)]
    assert len(stored) == len(set(stored))
    assert {name for name in acknowledged if len(name) == 64} <= set(stored)
    assert store.status("north")["samples"] == len(stored)
    store.close()

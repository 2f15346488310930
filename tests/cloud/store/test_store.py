from __future__ import annotations

import hashlib
import itertools
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_support import make_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cema.cloud.store.sqlite import UPDATES_KEPT, Fenced, PublishedUpdate, Store
from cema.cloud.store.sqlite_samples import STATE_SHARE, BacklogFull
from cema.errors import StoreError, StoreFull
from cema.formats.sample import Sample, Verdict

MANY = 10**6


def put(store: Store, samples: list[Sample], cohort: str = "north", max_backlog: int = MANY) -> list[str]:
    verdicts = store.put(cohort, samples, device="d", now=1.0, max_backlog=max_backlog)
    assert [v.id for v in verdicts] == [s.id for s in samples]
    return [v.verdict for v in verdicts]


def update(version: int, payload: bytes | None = None) -> PublishedUpdate:
    payload = payload or b"payload %d" % version
    digest = hashlib.sha256(payload).hexdigest()
    return PublishedUpdate(version, digest, b"envelope %d" % version, payload, float(version), 1e12)


def big(i: int, size: int) -> Sample:
    image = i.to_bytes(8, "little") * (size // 8)
    digest = hashlib.sha256(image).hexdigest()
    return Sample(id=digest, image=image, entropy=0.1, label=0, version=0, captured_at=0.0)


def fill(store: Store, numbers: Iterator[int], size: int) -> None:
    for i in numbers:
        put(store, [big(i, size)])


def test_every_commit_is_flushed_to_disk(store: Store) -> None:
    with store.database.write() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_sample_is_stored_once_per_cohort(store: Store) -> None:
    store.open_cohort("south", base="0" * 64)
    samples = make_samples(3)
    assert put(store, samples) == ["stored"] * 3
    assert put(store, [samples[1], *make_samples(1, seed=9), samples[2]]) == [
        "duplicate",
        "stored",
        "duplicate",
    ]
    assert put(store, samples, "south") == ["stored"] * 3
    assert put(store, [samples[0], samples[0]], "south") == ["duplicate"] * 2
    assert store.counters("north")["samples.duplicate"] == 2
    assert store.counters("north")["bytes.duplicate"] == len(samples[1].image) + len(samples[2].image)


def test_the_same_image_twice_in_one_upload_is_one_sample(store: Store) -> None:
    (sample,) = make_samples(1)
    assert sorted(put(store, [sample, sample])) == ["duplicate", "stored"]
    assert store.backlog("north").samples == 1


def test_samples_come_back_as_they_were_in_order_of_arrival(store: Store) -> None:
    samples = make_samples(5)
    put(store, samples)
    read = store.fresh("north", after=0, limit=10)
    assert [(r.id, r.image, r.entropy, r.label, r.version, r.captured_at) for r in read] == [
        (s.id, s.image, s.entropy, s.label, s.version, s.captured_at) for s in samples
    ]
    seqs = [r.seq for r in read]
    assert seqs == sorted(seqs)
    assert store.fresh("north", after=seqs[2], limit=1)[0].seq == seqs[3]
    assert store.images([seqs[0], 999]) == {seqs[0]: samples[0].image}
    assert store.present("north", [seqs[0], 999]) == {seqs[0]}


def test_a_full_backlog_refuses_all_or_nothing_but_still_knows_duplicates(store: Store) -> None:
    samples = make_samples(6)
    put(store, samples[:4], max_backlog=4)
    with pytest.raises(BacklogFull, match="backlog_samples"):
        put(store, samples[3:5], max_backlog=4)
    assert put(store, samples[:4], max_backlog=4) == ["duplicate"] * 4
    state = store.claim("north")
    store.commit_step("north", 2, b"", epoch=state.epoch, now=1.0)
    assert put(store, samples[4:], max_backlog=4) == ["stored"] * 2


def test_the_cap_evicts_the_oldest_processed_and_never_the_unseen(tmp_path: Path) -> None:
    store = Store(tmp_path / "cema.db", max_bytes=2**20)
    store.open_cohort("north", base="0" * 64)
    numbers = itertools.count(1)
    with pytest.raises(StoreFull, match="store_bytes"):
        fill(store, numbers, 20_000)
    stored = [s.seq for s in store.fresh("north", after=0, limit=MANY)]
    state = store.claim("north")
    store.commit_step("north", stored[9], b"c" * 1000, epoch=state.epoch, now=1.0)
    for _ in range(6):
        put(store, [big(next(numbers), 20_000)])
    left = [s.seq for s in store.fresh("north", after=0, limit=MANY)]
    evicted = int(store.counters("north")["evicted.byte_cap"])
    assert 6 <= evicted <= 10
    assert left[: len(stored) - evicted] == stored[evicted:]
    # What was evicted is known still.
    assert put(store, [big(1, 20_000)]) == ["duplicate"]
    store.close()


def test_a_worker_can_commit_into_a_store_that_is_full_of_unseen_samples(tmp_path: Path) -> None:
    store = Store(tmp_path / "cema.db", max_bytes=2**20)
    store.open_cohort("north", base="0" * 64)
    state = store.claim("north")
    with pytest.raises(StoreFull):
        fill(store, itertools.count(1), 30_000)
    store.commit_step("north", 0, b"c" * (2**20 // STATE_SHARE // 2), epoch=state.epoch, now=1.0)
    with pytest.raises(StoreFull):
        store.commit_step("north", 0, b"c" * 2**20, epoch=state.epoch, now=1.0)
    assert store.claim("north").checkpoint == b"c" * (2**20 // STATE_SHARE // 2)
    store.close()


def test_a_full_store_has_room_for_one_large_checkpoint_after_another(tmp_path: Path) -> None:
    store = Store(tmp_path / "cema.db", max_bytes=8 * 2**20)
    store.open_cohort("north", base="0" * 64)
    state = store.claim("north")
    store.commit_step("north", 0, b"a" * (3 * 2**20), epoch=state.epoch, now=1.0)
    with pytest.raises(StoreFull):
        fill(store, itertools.count(1), 60_000)
    store.commit_step("north", 1, b"b" * (3 * 2**20), epoch=state.epoch, now=1.0)
    # What does not fit leaves the checkpoint before it where it was.
    with pytest.raises(StoreFull):
        store.commit_step("north", 2, b"c" * (5 * 2**20), epoch=state.epoch, now=1.0)
    # Nor does a worker that starts, or begins a step, need room for a second one.
    store.mark_attempt("north")
    state = store.claim("north")
    assert (state.cursor, state.checkpoint, state.attempts) == (1, b"b" * (3 * 2**20), 1)
    store.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_the_file_stays_under_its_cap(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cap = data.draw(st.integers(300_000, 900_000))
    path = tmp_path_factory.mktemp("cap") / "cema.db"
    store = Store(path, max_bytes=cap)
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
            samples = [big(next(numbers), size) for size in sizes]
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
    store = Store(tmp_path / "cema.db", max_bytes=4 * 2**20)
    store.open_cohort("north", base="0" * 64)
    put(store, [big(i, 40_000) for i in range(1, 60)])
    state = store.claim("north")
    store.commit_step("north", 59, b"", epoch=state.epoch, now=1.0)
    store.close()
    store = Store(tmp_path / "cema.db", max_bytes=2**20)
    store.close()
    assert (tmp_path / "cema.db").stat().st_size <= 2**20


def test_a_step_is_committed_whole_or_not_at_all(store: Store) -> None:
    put(store, make_samples(4))
    state = store.claim("north")
    store.commit_step("north", 1, b"first", update(1), epoch=state.epoch, now=1.0, counts={"n": 1})
    before = store.status("north")
    # The fault strikes after cursor and checkpoint were written, inside the transaction.
    with store.database.write() as connection:
        connection.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON updates BEGIN SELECT raise(ABORT, 'pulled plug'); END"
        )
    with pytest.raises(sqlite3.IntegrityError, match="pulled plug"):
        store.commit_step("north", 3, b"second", update(2), epoch=state.epoch, now=2.0, counts={"n": 1})
    assert store.status("north") == before
    assert store.claim("north").checkpoint == b"first"
    assert store.artifact("north", update(2).digest) is None


def test_a_cursor_never_goes_back_and_versions_follow_each_other(store: Store) -> None:
    put(store, make_samples(4))
    epoch = store.claim("north").epoch
    store.commit_step("north", 3, b"", update(1), epoch=epoch, now=1.0)
    with pytest.raises(StoreError, match="cannot go back"):
        store.commit_step("north", 2, b"", epoch=epoch, now=1.0)
    for wrong in (1, 3):
        with pytest.raises(StoreError, match="must follow version 1"):
            store.commit_step("north", 3, b"", update(wrong), epoch=epoch, now=1.0)


def test_the_worker_that_claimed_last_is_the_only_one_that_commits(store: Store) -> None:
    old, new = store.claim("north"), store.claim("north")
    with pytest.raises(Fenced):
        store.commit_step("north", 0, b"old", epoch=old.epoch, now=1.0)
    store.commit_step("north", 0, b"new", epoch=new.epoch, now=1.0)


def test_attempts_are_counted_until_a_step_commits(store: Store) -> None:
    for expected in range(3):
        state = store.claim("north")
        assert state.attempts == expected
        store.mark_attempt("north")
    store.commit_step("north", 0, b"", epoch=state.epoch, now=1.0)
    assert store.claim("north").attempts == 0


def test_artifacts_belong_to_their_cohort_and_old_ones_go(store: Store) -> None:
    store.open_cohort("south", base="0" * 64)
    epoch = store.claim("north").epoch
    assert store.latest_update("north") is None
    for version in range(1, UPDATES_KEPT + 3):
        store.commit_step("north", 0, b"", update(version), epoch=epoch, now=1.0)
    latest = store.latest_update("north")
    assert latest == update(UPDATES_KEPT + 2)
    assert store.artifact("north", update(3).digest) == update(3).payload
    assert store.artifact("north", update(2).digest) is None
    assert store.artifact("south", update(3).digest) is None


def test_one_payload_under_two_versions_is_one_artifact(store: Store) -> None:
    epoch = store.claim("north").epoch
    for version in (1, 2):
        store.commit_step("north", 0, b"", update(version, b"same"), epoch=epoch, now=1.0)
    assert store.artifact("north", update(1, b"same").digest) == b"same"
    with store.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM artifacts").fetchone()[0] == 1


def test_a_cohort_keeps_its_base_model(store: Store) -> None:
    store.open_cohort("north", base="0" * 64)
    with pytest.raises(StoreError, match="cohort name of its own"):
        store.open_cohort("north", base="1" * 64)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cema.db"
    path.write_bytes(b"this is no database, by any means" * 200)
    with pytest.raises(StoreError, match="cannot open the store"):
        Store(path, max_bytes=2**20)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version=7")
    connection.close()
    with pytest.raises(StoreError, match="schema version 7"):
        Store(other, max_bytes=2**20)
    with pytest.raises(StoreError, match="at least"):
        Store(tmp_path / "small.db", max_bytes=1000)


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.backlog("north")
    with pytest.raises(StoreError, match="closed"):
        store.count("north", {"n": 1})


def test_threads_storing_the_same_samples_store_each_once(store: Store) -> None:
    samples = make_samples(40)
    verdicts: list[Verdict] = []
    barrier = threading.Barrier(4)

    def send() -> None:
        barrier.wait()
        for i in range(0, 40, 8):
            verdicts.extend(store.put("north", samples[i : i + 8], device="d", now=1.0, max_backlog=MANY))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(v.verdict == "stored" for v in verdicts) == 40
    assert len(verdicts) == 160
    assert store.backlog("north").samples == 40

"""Tests of a store: samples that are listed, deleted and labelled, if it does that."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cema.cloud.store.audits import AuditStore
from cema.cloud.store.base import Store
from cema.cloud.store.data import (
    RETENTION,
    DataFilter,
    DataStore,
    LabelsTaken,
    NewestStore,
    TeacherLabel,
    all_samples,
)
from cema.errors import StoreError
from cema.formats.sample import Sample
from cema.testing.store_case import BASE, MANY, StoreCase
from cema.testing.store_data import numbered_sample

__all__ = ["RightsTests"]

ALL = DataFilter()


class RightsTests(StoreCase):
    """What is deleted is gone, is not stored again, and waits until a worker has forgotten it."""

    @pytest.fixture
    def data(self, store: Store) -> DataStore:
        """Return the store, if it tells of its samples: six of two devices, and one of another cohort."""
        return _filled(store)

    def test_the_newest_samples_come_first_of_all_devices_or_of_one(self, data: DataStore) -> None:
        if not isinstance(data, NewestStore):
            pytest.skip("this store does not show what came last")
        ids = [numbered_sample(i).id for i in range(6)]
        assert [found.sample.id for found in data.newest_samples("north", limit=9)] == ids[::-1]
        assert [found.sample.id for found in data.newest_samples("north", limit=2)] == ids[:3:-1]
        mine = data.newest_samples("north", limit=2, device="cam-1")
        assert [found.sample.id for found in mine] == ids[2:0:-1]
        assert mine[0].sample == data.data_sample("north", ids[2])
        assert not any(found.drawn for found in mine)
        assert data.newest_samples("north", limit=2, device="nobody") == []
        assert data.newest_samples("west", limit=2) == []

    def test_samples_are_counted_and_listed_by_device_class_and_time(self, data: DataStore) -> None:
        groups = data.data_groups("north", ALL)
        assert [(g.device, g.label, g.teacher, g.truth, g.samples, g.oldest, g.newest) for g in groups] == [
            ("cam-1", 0, None, None, 1, 10.0, 10.0),
            ("cam-1", 1, None, None, 1, 10.0, 10.0),
            ("cam-1", 2, None, None, 1, 10.0, 10.0),
            ("cam-2", 0, None, None, 1, 20.0, 20.0),
            ("cam-2", 1, None, None, 1, 20.0, 20.0),
            ("cam-2", 3, None, None, 1, 20.0, 20.0),
        ]
        assert sum(group.bytes for group in groups) == 6 * 64
        for which, numbers in (
            (ALL, range(6)),
            (DataFilter(device="cam-2"), (3, 4, 5)),
            (DataFilter(label=1), (1, 5)),
            (DataFilter(device="cam-2", label=1), (5,)),
            (DataFilter(since=10.5), (3, 4, 5)),
            (DataFilter(until=20.0), (0, 1, 2)),
            (DataFilter(since=20.0, until=20.0), ()),
            (DataFilter(device="nobody"), ()),
        ):
            found = list(all_samples(data, "north", which, at_once=2))
            assert [sample.id for sample in found] == [numbered_sample(i).id for i in numbers], which
            assert sum(g.samples for g in data.data_groups("north", which)) == len(found)

    def test_one_sample_is_told_with_what_is_known_of_it(self, store: Any, data: DataStore) -> None:
        seqs = store.sequence("north", after=0, limit=MANY)
        epoch = store.claim("north").epoch
        taught = [TeacherLabel(seqs[1], 3), TeacherLabel(seqs[-1] + 1000, 2)]
        store.commit_step("north", seqs[1], b"a checkpoint", epoch=epoch, now=1.0, taught=taught)
        sample = numbered_sample(1)
        found = data.data_sample("north", sample.id)
        assert found is not None
        assert (found.seq, found.device, found.label, found.teacher, found.truth) == (
            seqs[1],
            "cam-1",
            1,
            3,
            None,
        )
        assert (found.entropy, found.version, found.captured_at, found.received_at) == (
            0.25,
            2,
            1e9 + 1,
            10.0,
        )
        assert (found.bytes, found.waiting) == (64, False)
        assert [s.waiting for s in data.data_samples("north", ALL, limit=3)] == [False, False, True]
        # What anybody takes to be of a class is of that class.
        assert [s.seq for s in data.data_samples("north", DataFilter(label=3), limit=9)] == [seqs[1], seqs[3]]
        assert data.data_sample("north", numbered_sample(9).id) is None
        assert data.data_sample("north", "no digest") is None
        assert data.saved_checkpoint("north") == b"a checkpoint"
        assert (data.saved_checkpoint("south"), data.saved_checkpoint("nowhere")) == (None, None)

    def test_what_is_deleted_is_gone_and_not_stored_again(self, store: Store, data: DataStore) -> None:
        seqs = store.sequence("north", after=0, limit=MANY)
        store.commit_step("north", seqs[3], b"", epoch=store.claim("north").epoch, now=1.0)
        receipt = data.delete_data("north", DataFilter(device="cam-2"), actor="os:ann", now=30.0)
        ids = sorted(numbered_sample(i).id for i in (3, 4, 5))
        assert (receipt.cohort, receipt.at, receipt.actor) == ("north", 30.0, "os:ann")
        assert (receipt.samples, receipt.bytes, receipt.state) == (3, 3 * 64, "waiting")
        assert receipt.ids_sha256 == hashlib.sha256("".join(f"{id}\n" for id in ids).encode()).hexdigest()
        assert (receipt.filter, receipt.note) == (DataFilter(device="cam-2"), "")
        assert [s.seq for s in all_samples(data, "north", ALL)] == seqs[:3]
        assert store.images(seqs[3:]) == {}
        assert (store.status("north")["samples"], store.backlog("north").samples) == (3, 0)
        assert store.counters("north")["samples.deleted"] == 3
        again = [numbered_sample(i) for i in (2, 3, 5, 6)]
        assert _put(store, again, "cam-2", 40.0) == ["duplicate", "duplicate", "duplicate", "stored"]
        assert _put(store, again[1:3], "cam-2", 40.0, "south") == ["stored"] * 2  # another cohort's own

    def test_a_worker_forgets_and_then_the_deletion_is_done(self, store: Any, data: DataStore) -> None:
        seqs = store.sequence("north", after=0, limit=MANY)
        assert data.pending("north").deletion == 0
        first = data.delete_data("north", DataFilter(device="cam-1", label=0), actor="os:ann", now=30.0)
        assert data.pending("north").deletion == first.number
        assert data.pending("south").deletion == 0
        found = data.go_on_deleting("north", now=31.0)
        assert (found.deletions, found.seqs) == ((first.number,), frozenset(seqs[:1]))
        second = data.delete_data("north", DataFilter(device="cam-2"), actor="os:bob", now=32.0)
        assert data.finish_deletions("north", now=32.5) == []
        epoch = store.claim("north").epoch
        store.commit_step("north", 0, b"", epoch=epoch, now=33.0, forgotten=found.deletions)
        states = {receipt.number: receipt.state for receipt in data.receipts("north")}
        assert states == {second.number: "waiting", first.number: "forgotten"}
        (done,) = data.finish_deletions("north", now=34.0)
        assert (done.number, done.state, done.forgotten_at, done.done_at) == (
            first.number,
            "done",
            33.0,
            34.0,
        )
        found = data.go_on_deleting("north", now=35.0)
        assert found.deletions == (second.number,)
        assert found.seqs >= set(seqs[3:])
        assert data.pending("north").deletion == second.number
        assert [r.number for r in data.receipts(limit=1)] == [second.number]
        assert data.receipts("south") == []

    def test_deletions_stay_on_record_over_restarts(self, tmp_path: Path) -> None:
        with closing(self.open_north(tmp_path)) as store:
            receipt = _filled(store).delete_data("north", ALL, actor="os:ann", now=30.0)
        with closing(self.open_north(tmp_path)) as store:
            assert isinstance(store, DataStore)
            assert store.receipts("north") == [receipt]
            assert store.pending("north").deletion == receipt.number
            assert _put(store, [numbered_sample(0)], "cam-1", 40.0) == ["duplicate"]
            if isinstance(store, AuditStore):
                (act,) = [one.act for one in store.audit(limit=9) if one.act.name == "data.delete"]
                assert (act.actor, act.subject) == ("os:ann", "north")
                assert act.detail["deletion"] == receipt.number

    def test_what_is_too_old_goes_and_is_counted_apart(self, store: Any, data: DataStore) -> None:
        assert data.expire_data("north", until=10.0, now=30.0) is None
        receipt = data.expire_data("north", until=20.0, now=30.0)
        assert receipt is not None
        assert (receipt.samples, receipt.actor) == (3, RETENTION)
        assert [s.received_at for s in all_samples(data, "north", ALL)] == [20.0] * 3
        counts = store.counters("north")
        assert (counts["samples.expired"], counts.get("samples.deleted")) == (3, None)
        for _ in range(2):
            assert _put(store, [numbered_sample(0)], "cam-1", 40.0) == ["duplicate"]
            found = data.go_on_deleting("north", now=40.0)
            epoch = store.claim("north").epoch
            store.commit_step("north", 0, b"", epoch=epoch, now=41.0, forgotten=found.deletions)
            data.finish_deletions("north", now=42.0)
        assert data.receipts("north")[0].state == "done"

    def test_labels_that_people_give_are_kept_and_the_last_one_counts(self, data: DataStore) -> None:
        ids = [numbered_sample(i).id for i in range(6)]
        before = data.pending("north").labels
        taken = data.put_labels("north", {ids[0]: 2, ids[1]: 1}, actor="os:ann", now=30.0)
        assert taken == LabelsTaken(new=2, changed=0, same=0, deleted=(), unknown=())
        after = data.pending("north").labels
        assert after > before
        again = data.put_labels("north", {ids[0]: 2, ids[1]: 1}, actor="os:ann", now=31.0)
        assert (again.new, again.changed, again.same) == (0, 0, 2)
        assert data.pending("north").labels == after
        data.delete_data("north", DataFilter(device="cam-2"), actor="os:ann", now=32.0)
        stranger = numbered_sample(99).id
        taken = data.put_labels("north", {ids[0]: 3, ids[4]: 0, stranger: 1}, actor="os:ann", now=33.0)
        assert taken == LabelsTaken(new=0, changed=1, same=0, deleted=(ids[4],), unknown=(stranger,))
        assert data.pending("north").labels > after
        seqs = {s.id: s.seq for s in all_samples(data, "north", ALL)}
        assert data.true_labels("north") == {seqs[ids[0]]: 3, seqs[ids[1]]: 1}
        assert data.true_labels("south") == {}
        assert [s.truth for s in all_samples(data, "north", ALL)] == [3, 1, None]

    def test_labels_go_with_their_sample(self, store: Any, data: DataStore) -> None:
        sample = numbered_sample(0)
        data.put_labels("north", {sample.id: 1}, actor="os:ann", now=30.0)
        seq = store.sequence("north", after=0, limit=1)[0]
        epoch = store.claim("north").epoch
        store.commit_step("north", seq, b"", epoch=epoch, now=1.0, taught=[TeacherLabel(seq, 1)])
        data.delete_data("north", DataFilter(device="cam-1"), actor="os:ann", now=31.0)
        assert data.true_labels("north") == {}
        # A step that was begun before: what it says of a sample that is gone is not kept.
        store.commit_step("north", seq, b"", epoch=epoch, now=2.0, taught=[TeacherLabel(seq, 1)])
        assert data.data_groups("north", DataFilter(label=1, device="cam-1")) == []

    def test_a_closed_store_neither_tells_nor_deletes(self, store: Store, data: DataStore) -> None:
        store.close()
        with pytest.raises(StoreError):
            data.data_groups("north", ALL)
        with pytest.raises(StoreError):
            data.delete_data("north", ALL, actor="os:ann", now=1.0)


def _filled(store: Store) -> DataStore:
    if not isinstance(store, DataStore):
        store.close()
        pytest.skip("this store neither tells of its samples nor deletes them")
    store.open_cohort("south", base=BASE)
    _put(store, [numbered_sample(i) for i in range(3)], "cam-1", 10.0)
    _put(store, [numbered_sample(i) for i in range(3, 6)], "cam-2", 20.0)
    _put(store, [numbered_sample(1)], "cam-3", 10.0, "south")
    return store


def _put(store: Any, samples: Sequence[Sample], device: str, now: float, cohort: str = "north") -> list[str]:
    verdicts = store.put(cohort, list(samples), device=device, now=now, max_backlog=MANY)
    return [verdict.verdict for verdict in verdicts]

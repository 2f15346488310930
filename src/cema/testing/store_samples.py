"""Tests of a store: samples, each stored once, in order, under a byte cap."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from cema.cloud.store.base import STATE_SHARE, BacklogFull, Store, UploadTooLarge
from cema.errors import StoreFull
from cema.testing.store_case import BASE, MANY, StoreCase, fill, put
from cema.testing.store_data import numbered_sample

__all__ = ["SampleTests"]


class SampleTests(StoreCase):
    """Uploads and evictions."""

    def test_a_sample_is_stored_once_per_cohort(self, store: Store) -> None:
        store.open_cohort("south", base=BASE)
        samples = [numbered_sample(i, 64 + 8 * i) for i in range(4)]
        assert put(store, samples[:3]) == ["stored"] * 3
        assert put(store, [samples[1], samples[3], samples[2]]) == ["duplicate", "stored", "duplicate"]
        assert put(store, samples[:3], "south") == ["stored"] * 3
        assert put(store, [samples[0], samples[0]], "south") == ["duplicate"] * 2
        assert store.counters("north") == {
            "samples.stored": 4,
            "samples.duplicate": 2,
            "bytes.stored": sum(len(s.image) for s in samples),
            "bytes.duplicate": len(samples[1].image) + len(samples[2].image),
        }

    def test_the_same_image_twice_in_one_upload_is_one_sample(self, store: Store) -> None:
        sample = numbered_sample(1)
        assert sorted(put(store, [sample, sample])) == ["duplicate", "stored"]
        assert store.backlog("north").samples == 1

    def test_samples_come_back_as_they_were_in_order_of_arrival(self, store: Store) -> None:
        samples = [numbered_sample(i) for i in range(5)]
        store.put("north", samples, device="d", now=7.5, max_backlog=MANY)
        read = store.fresh("north", after=0, limit=10)
        assert [(r.id, r.image, r.entropy, r.label, r.version, r.captured_at) for r in read] == [
            (s.id, s.image, s.entropy, s.label, s.version, s.captured_at) for s in samples
        ]
        assert {r.received_at for r in read} == {7.5}
        seqs = [r.seq for r in read]
        assert seqs == sorted(set(seqs))
        assert store.fresh("north", after=seqs[2], limit=1)[0].seq == seqs[3]
        assert store.sequence("north", after=seqs[0], limit=3) == seqs[1:4]
        assert store.images([seqs[0], seqs[0], seqs[-1] + 1]) == {seqs[0]: samples[0].image}

    def test_samples_say_who_sent_them(self, store: Store) -> None:
        first, second = [numbered_sample(i) for i in range(3)], [numbered_sample(i) for i in range(3, 5)]
        store.put("north", first, device="cam-1", now=1.0, max_backlog=MANY)
        store.put("north", second, device="cam-2", now=2.0, max_backlog=MANY)
        waiting = store.waiting("north", after=0, limit=10)
        assert [w.device for w in waiting] == ["cam-1"] * 3 + ["cam-2"] * 2
        assert store.waiting("north", after=waiting[1].seq, limit=2) == waiting[2:4]
        seqs = [waiting[4].seq, waiting[0].seq, waiting[0].seq, waiting[4].seq + 1]
        read = store.samples(seqs)
        assert [(r.seq, r.device, r.image) for r in read] == [
            (waiting[0].seq, "cam-1", first[0].image),
            (waiting[4].seq, "cam-2", second[1].image),
        ]
        assert read == [r for r in store.fresh("north", after=0, limit=10) if r.seq in seqs]

    def test_what_failed_its_check_is_only_counted(self, store: Store) -> None:
        assert store.put("north", [], device="d", now=1.0, max_backlog=MANY, rejected={"image": 2}) == []
        assert store.counters("north") == {"samples.rejected.image": 2}
        assert store.backlog("north").samples == 0

    def test_the_backlog_is_what_the_worker_has_not_done_and_its_oldest(self, store: Store) -> None:
        assert (store.backlog("north").samples, store.backlog("north").oldest) == (0, None)
        for i in range(4):
            store.put("north", [numbered_sample(i)], device="d", now=10.0 + i, max_backlog=MANY)
        seqs = store.sequence("north", after=0, limit=MANY)
        store.commit_step("north", seqs[1], b"", epoch=store.claim("north").epoch, now=1.0)
        assert (store.backlog("north").samples, store.backlog("north").oldest) == (2, 12.0)

    def test_a_full_backlog_refuses_all_or_nothing_but_still_knows_duplicates(self, store: Store) -> None:
        samples = [numbered_sample(i) for i in range(6)]
        put(store, samples[:4], max_backlog=4)
        with pytest.raises(BacklogFull, match="backlog_samples"):
            put(store, samples[3:5], max_backlog=4)
        assert put(store, samples[:4], max_backlog=4) == ["duplicate"] * 4
        second = store.sequence("north", after=0, limit=2)[-1]
        store.commit_step("north", second, b"", epoch=store.claim("north").epoch, now=1.0)
        assert put(store, samples[4:], max_backlog=4) == ["stored"] * 2

    def test_the_cap_evicts_the_oldest_processed_and_never_the_unseen(self, tmp_path: Path) -> None:
        store = self.open_north(tmp_path, max_bytes=3 * self.cap)
        size = self.cap // 20
        numbers = itertools.count(1)
        with pytest.raises(StoreFull, match="store_bytes"):
            fill(store, numbers, size)
        stored = store.sequence("north", after=0, limit=MANY)
        store.commit_step("north", stored[9], b"c" * 1000, epoch=store.claim("north").epoch, now=1.0)
        for _ in range(6):
            put(store, [numbered_sample(next(numbers), size)])
        left = store.sequence("north", after=0, limit=MANY)
        evicted = int(store.counters("north")["evicted.byte_cap"])
        assert 6 <= evicted <= 10
        assert left[: len(stored) - evicted] == stored[evicted:]
        assert store.images(stored[:evicted]) == {}
        self.check_size(tmp_path, store, 3 * self.cap)
        store.close()
        # What was evicted is known still, and no number is given twice.
        store = self.make_store(tmp_path, max_bytes=3 * self.cap)
        assert put(store, [numbered_sample(1, size)]) == ["duplicate"]
        put(store, [numbered_sample(next(numbers))])
        assert store.sequence("north", after=left[-1], limit=MANY)[0] > left[-1]
        store.close()

    def test_an_upload_that_could_never_fit_is_told_from_a_full_store(self, tmp_path: Path) -> None:
        store = self.open_north(tmp_path, max_bytes=self.cap)
        samples = [numbered_sample(i, self.cap // 2) for i in range(3)]
        with pytest.raises(UploadTooLarge, match="store_bytes"):
            put(store, samples)
        assert store.backlog("north").samples == 0
        store.close()

    def test_a_worker_can_commit_into_a_store_that_is_full_of_unseen_samples(self, tmp_path: Path) -> None:
        store = self.open_north(tmp_path, max_bytes=3 * self.cap)
        state = store.claim("north")
        with pytest.raises(StoreFull):
            fill(store, itertools.count(1), self.cap // 12)
        checkpoint = b"c" * (3 * self.cap // STATE_SHARE // 2)
        store.commit_step("north", 0, checkpoint, epoch=state.epoch, now=1.0)
        with pytest.raises(StoreFull):
            store.commit_step("north", 0, b"c" * (3 * self.cap), epoch=state.epoch, now=1.0)
        assert store.claim("north").checkpoint == checkpoint
        store.close()

    def test_a_full_store_has_room_for_one_large_checkpoint_after_another(self, tmp_path: Path) -> None:
        store = self.open_north(tmp_path, max_bytes=20 * self.cap)
        state = store.claim("north")
        large = 8 * self.cap
        store.commit_step("north", 0, b"a" * large, epoch=state.epoch, now=1.0)
        with pytest.raises(StoreFull):
            fill(store, itertools.count(1), self.cap // 6)
        seqs = store.sequence("north", after=0, limit=2)
        store.commit_step("north", seqs[0], b"b" * large, epoch=state.epoch, now=1.0)
        # What does not fit leaves the checkpoint before it where it was.
        with pytest.raises(StoreFull):
            store.commit_step("north", seqs[1], b"c" * (13 * self.cap), epoch=state.epoch, now=1.0)
        # Nor does a worker that starts, or begins a step, need room for a second one.
        store.mark_attempt("north")
        state = store.claim("north")
        assert (state.cursor, state.checkpoint, state.attempts) == (seqs[0], b"b" * large, 1)
        store.close()

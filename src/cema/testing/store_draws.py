"""Tests of a store: the samples that were drawn at random, if it keeps them apart."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cema._util.proportion import Weighted, proportion
from cema.cloud.store.agreements import MINUTE, VERSIONS_KEPT
from cema.cloud.store.base import BacklogFull, Store, UploadTooLarge
from cema.cloud.store.data import DataFilter, DataStore
from cema.cloud.store.draws import MOST_TRIES, DrawStore, RandomCount, RandomPoint, draws_of
from cema.formats.draw import Draw
from cema.testing.store_case import MANY, StoreCase
from cema.testing.store_data import numbered_sample

__all__ = ["DrawTests"]

ALONE, BOTH = Draw(0.01, False), Draw(0.25, True)


class DrawTests(StoreCase):
    """What was drawn waits in a queue of its own, and is measured once."""

    @pytest.fixture
    def keeps(self, store: Store) -> DrawStore:
        """Return the store, if it keeps drawn samples apart."""
        found = draws_of(store)
        if found is None:
            pytest.skip("this store keeps no samples that were drawn at random")
        return found

    def test_what_was_drawn_alone_does_not_wait_for_the_worker(self, store: Any, keeps: DrawStore) -> None:
        samples = [numbered_sample(i) for i in range(4)]
        verdicts = _put(store, samples, {1: ALONE, 2: BOTH})
        assert verdicts == ["stored"] * 4
        waiting = store.fresh("north", after=0, limit=9)
        assert [found.id for found in waiting] == [samples[i].id for i in (0, 2, 3)]
        assert store.backlog("north").samples == 3
        assert store.status("north")["samples"] == 3
        drawn = keeps.take_draws("north", 9)
        assert [(found.image, found.share) for found in drawn] == [
            (samples[1].image, 0.01),
            (samples[2].image, 0.25),
        ]
        assert [(found.label, found.version) for found in drawn] == [(1, 2), (2, 2)]
        counters = store.counters("north")
        assert (counters["samples.stored"], counters["bytes.stored"], counters["drawn.stored"]) == (4, 256, 2)
        assert keeps.take_draws("south", 9) == []

    def test_a_draw_that_comes_again_counts_once_and_another_of_the_same_image_counts(
        self, store: Any, keeps: DrawStore
    ) -> None:
        first, other = numbered_sample(1), numbered_sample(2)
        later = msgspec.structs.replace(first, captured_at=5.0, label=3)
        for _ in range(2):  # no answer came
            _put(store, [first, other], {0: ALONE, 1: BOTH})
        assert _put(store, [first, other], {0: ALONE, 1: BOTH}) == ["duplicate"] * 2
        assert _put(store, [later], {0: ALONE}) == ["duplicate"], "the cohort has the image"
        assert _put(store, [first], {0: ALONE}, device="other") == ["duplicate"]
        assert _put(store, [first, first], {0: ALONE, 1: ALONE}) == ["duplicate"] * 2
        taken = keeps.take_draws("north", 9)
        assert [found.label for found in taken] == [1, 2, 3, 1]
        assert keeps.measured_draws("north", [found.number for found in taken], [], now=1.0)
        assert _put(store, [first, later], {0: ALONE, 1: ALONE}) == ["duplicate"] * 2
        assert keeps.take_draws("north", 9) == [], "they were measured"
        # The selection chooses what was drawn alone before: it is learned from.
        assert _put(store, [first], {}) == ["stored"]
        assert [found.id for found in store.fresh("north", after=0, limit=9)] == [other.id, first.id]

    def test_an_image_twice_in_one_upload_is_stored_once(self, store: Any, keeps: DrawStore) -> None:
        sample = numbered_sample(1)
        assert _put(store, [sample, sample], {1: ALONE}) == ["stored", "duplicate"]
        assert len(keeps.take_draws("north", 9)) == 1
        assert len(store.fresh("north", after=0, limit=9)) == 1

    def test_what_fails_is_tried_alone_and_given_up(self, tmp_path: Path) -> None:
        store: Any = self.open_north(tmp_path)
        if draws_of(store) is None:
            store.close()
            pytest.skip("this store keeps no samples that were drawn at random")
        _put(store, [numbered_sample(i) for i in range(3)], dict.fromkeys(range(3), ALONE))
        first, second, third = store.take_draws("north", 9)
        store.close()  # a process that ended meanwhile
        store = self.open_north(tmp_path)
        for _ in range(MOST_TRIES - 1):
            assert store.take_draws("north", 9) == [first]
        assert store.take_draws("north", 9) == [second]
        assert store.measured_draws("north", [second.number], [], now=1.0, unreadable=1)
        assert store.take_draws("north", 9) == [third]
        assert store.measured_draws("north", [third.number], [], now=1.0)
        assert store.take_draws("north", 9) == []
        counters = store.counters("north")
        assert [counters[f"drawn.{name}"] for name in ("stored", "failed", "unreadable", "measured")] == [
            3, 1, 1, 1,
        ]  # fmt: skip
        store.close()

    def test_what_new_samples_come_is_taken_before_what_was_tried(self, store: Any, keeps: DrawStore) -> None:
        _put(store, [numbered_sample(1)], {0: ALONE})
        (tried,) = keeps.take_draws("north", 9)
        _put(store, [numbered_sample(2)], {0: ALONE})
        (new,) = keeps.take_draws("north", 9)
        assert new.number > tried.number

    def test_sums_are_kept_with_the_samples_that_go_or_not_at_all(self, store: Any, keeps: DrawStore) -> None:
        _put(store, [numbered_sample(i) for i in range(4)], dict.fromkeys(range(4), BOTH))
        numbers = [found.number for found in keeps.take_draws("north", 9)]
        half = Weighted.of([(0.25, True), (0.25, False)])
        counts = [RandomCount(3, "running", half), RandomCount(2, "device", half)]
        assert keeps.measured_draws("north", numbers[:2], counts, now=MINUTE)
        assert not keeps.measured_draws("north", numbers[1:], counts, now=MINUTE), "one is gone already"
        assert keeps.measured_draws("north", numbers[2:], counts[:1], now=2 * MINUTE + 1)
        assert keeps.random_agreement_over_time("north") == [
            RandomPoint(MINUTE, "device", half),
            RandomPoint(MINUTE, "running", half),
            RandomPoint(2 * MINUTE, "running", half),
        ]
        newest = [RandomPoint(2 * MINUTE, "running", half)]
        assert keeps.random_agreement_over_time("north", since=2 * MINUTE + 5) == newest
        assert keeps.random_agreement_over_time("north", newest=1) == newest
        second, third = keeps.random_agreement_by_version("north")
        assert (second.version, dict(second.models)) == (2, {"device": proportion(2, 1)})
        assert third.version == 3
        assert third.models["running"] == proportion(4, 2)
        assert keeps.random_agreement_by_version("south") == []
        assert keeps.random_agreement_over_time("south") == []

    def test_samples_that_wait_to_be_measured_count_among_those_that_may_wait(
        self, store: Any, keeps: DrawStore
    ) -> None:
        _put(store, [numbered_sample(i) for i in range(4)], {0: ALONE, 1: BOTH}, max_backlog=6)
        with pytest.raises(BacklogFull):
            _put(store, [numbered_sample(i) for i in range(4, 6)], {0: ALONE}, max_backlog=6)
        assert store.counters("north")["drawn.stored"] == 2
        _put(store, [numbered_sample(4)], {0: ALONE}, max_backlog=6)
        assert len(keeps.take_draws("north", 9)) == 3

    def test_drawn_samples_are_under_the_cap(self, tmp_path: Path) -> None:
        store: Any
        with closing(self.open_north(tmp_path, max_bytes=self.cap)) as store:
            if draws_of(store) is None:
                pytest.skip("this store keeps no samples that were drawn at random")
            with pytest.raises(UploadTooLarge):
                _put(store, [numbered_sample(1, self.cap)], {0: ALONE})
            assert store.take_draws("north", 1) == []
            for number in range(60):  # each is measured, and makes room for the others
                _put(store, [numbered_sample(number, self.cap // 16)], {0: ALONE})
                (found,) = store.take_draws("north", 9)
                assert store.measured_draws("north", [found.number], [], now=1.0)
                self.check_size(tmp_path, store, self.cap)

    def test_the_oldest_versions_of_what_was_drawn_go(self, store: Any, keeps: DrawStore) -> None:
        sums = Weighted.of([(0.5, True)])
        for version in range(VERSIONS_KEPT + 50):
            keeps.measured_draws("north", [], [RandomCount(version, "running", sums)], now=MINUTE * version)
        found = [known.version for known in keeps.random_agreement_by_version("north")]
        newest = VERSIONS_KEPT + 49
        assert found == list(range(newest + 1 - len(found), newest + 1))
        assert len(found) <= VERSIONS_KEPT

    def test_what_is_deleted_is_not_measured_and_not_drawn_again(self, store: Any, keeps: DrawStore) -> None:
        deletes = isinstance(store, DataStore)
        if not deletes:
            pytest.skip("this store deletes no samples")
        mine, both, other = (numbered_sample(i) for i in (1, 2, 3))
        _put(store, [mine, both], {0: ALONE, 1: BOTH})
        _put(store, [other], {0: ALONE}, device="far")
        receipt = store.delete_data("north", DataFilter(device="cam"), actor="ann", now=5.0)
        assert receipt.samples == 2, "what was drawn and selected is one sample"
        _put(store, [mine, both], {0: ALONE, 1: BOTH})  # no answer had come
        assert [found.image for found in keeps.take_draws("north", 9)] == [other.image]
        assert store.fresh("north", after=0, limit=9) == []
        store.delete_data("north", DataFilter(label=other.label), actor="ann", now=6.0)
        assert keeps.take_draws("north", 9) == []


def _put(
    store: Any, samples: list[Any], draws: dict[int, Draw], *, device: str = "cam", max_backlog: int = MANY
) -> list[str]:
    verdicts = store.put("north", samples, device=device, now=1.0, max_backlog=max_backlog, draws=draws)
    assert [verdict.id for verdict in verdicts] == [sample.id for sample in samples]
    return [verdict.verdict for verdict in verdicts]

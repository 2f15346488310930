"""Tests of a store: measures over time, if it keeps them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from cema.cloud.store.base import Store
from cema.cloud.store.history import (
    BIN_SECONDS,
    LABELLED,
    LEVELS,
    MOST_LABELLED,
    MOST_MEASURES,
    DomainChange,
    HistoryBin,
    HistoryNote,
    HistoryStore,
    Published,
    history_of,
)
from cema.errors import StoreError
from cema.testing.store_case import ROOMY, StoreCase, together
from cema.testing.store_data import numbered_update

__all__ = ["HistoryTests"]

NOW = 1_700_000_000.0
DAY = 86_400.0

# A process that notes one measure after another and says so, until it is killed.
WRITER = """
import itertools, sys
from cema.cloud.store.history import HistoryNote
from cema.cloud.store.open import open_store

store = open_store(sys.argv[1], max_bytes=int(sys.argv[2]))
for number in itertools.count(1):
    at = 1_700_000_000.0 + 7 * number
    store.note_history([HistoryNote("north", at, {"samples": (1, 2), "entropy": (1, 0.5)})])
    print(number, flush=True)
"""


class HistoryTests(StoreCase):
    """Measures are added up in bins, which get wider as they get older."""

    @pytest.fixture
    def keeps(self, store: Store) -> HistoryStore:
        """Return the store, if it keeps a history."""
        found = history_of(store)
        if found is None:
            pytest.skip("this store keeps no history")
        return found

    def test_what_is_noted_is_added_up_in_its_bin(self, keeps: HistoryStore) -> None:
        assert keeps.history("north", 0, 2 * NOW, 10) == []
        keeps.note_history(
            [
                HistoryNote("north", NOW + 1, {"entropy": (2, 1.5), "samples": (2, 2)}),
                HistoryNote("north", NOW + 9.9, {"entropy": (1, 0.25)}),
                HistoryNote("south", NOW, {"entropy": (7, 7)}),
            ]
        )
        keeps.note_history([HistoryNote("north", NOW + 10, {"entropy": (1, 1)})])
        keeps.note_history([])
        first = HistoryBin(int(NOW), {"entropy": (3, 1.75), "samples": (2, 2)})
        second = HistoryBin(int(NOW) + 10, {"entropy": (1, 1)})
        assert keeps.history("north", NOW, NOW + 60, 10) == [first, second]
        assert keeps.history("north", NOW, NOW + 10, 10) == [first], "`until` is not in"
        assert keeps.history("north", NOW + 10, NOW + 60, 10) == [second]
        assert keeps.history("north", NOW + 7, NOW + 60, 10) == [first, second], "the bin of `since` is in"
        (wide,) = keeps.history("north", NOW, NOW + 60, 40)
        assert wide == HistoryBin(int(NOW), {"entropy": (4, 2.75), "samples": (2, 2)})
        assert [found.measures for found in keeps.history("south", 0, 2 * NOW, 900)] == [{"entropy": (7, 7)}]

    def test_bins_get_wider_and_nothing_of_them_is_lost(self, keeps: HistoryStore) -> None:
        begin = NOW - 27 * 3600
        noted = Counter[str]()
        for at in range(int(begin), int(NOW), 100):  # a day of steps and more
            keeps.note_history([HistoryNote("north", at, {"samples": (1, 3)})])
            noted["samples"] += 1
        assert _sums(keeps.history("north", 0, NOW + 1, 10)) == {
            "samples": (noted["samples"], 3 * noted["samples"])
        }
        assert _sums(keeps.history("north", begin, NOW + 1, 3600)) == _sums(
            keeps.history("north", 0, NOW + 1, 10)
        )
        widths = {level.seconds for level in LEVELS}
        for since, until, seconds in (
            (NOW - 1800, NOW, BIN_SECONDS),
            (NOW - 20 * 3600, NOW - 3 * 3600, 60),
            (begin, NOW - 26 * 3600, 900),
        ):
            assert seconds in widths
            known = keeps.history("north", since, until, BIN_SECONDS)
            assert known
            assert all(found.at % seconds == 0 for found in known)

    def test_a_moment_whose_bin_is_wider_by_now_is_added_to_that(self, keeps: HistoryStore) -> None:
        keeps.note_history([HistoryNote("north", NOW - 3 * 3600, {"samples": (1, 1)})])
        keeps.note_history([HistoryNote("north", NOW, {"samples": (1, 1)})])
        keeps.note_history([HistoryNote("north", NOW - 3 * 3600 + 20, {"samples": (4, 4)})])
        keeps.note_history([HistoryNote("north", NOW + 1, {"samples": (1, 1)})])
        (old,) = keeps.history("north", 0, NOW - 3600, BIN_SECONDS)
        assert old.measures == {"samples": (5, 5)}

    @pytest.mark.parametrize(("prefix", "most"), [("selection.", MOST_MEASURES), (LABELLED, MOST_LABELLED)])
    def test_names_are_bounded(self, keeps: HistoryStore, prefix: str, most: int) -> None:
        for start in (0, MOST_MEASURES):
            names = {f"{prefix}m{number}": (1.0, 1.0) for number in range(start, start + MOST_MEASURES)}
            keeps.note_history([HistoryNote("north", NOW, names)])
        (found,) = keeps.history("north", 0, 2 * NOW, BIN_SECONDS)
        assert len(found.measures) == most

    def test_changes_of_the_domain_are_kept_and_bounded(self, keeps: HistoryStore) -> None:
        changes = [DomainChange("north", NOW + i, float(i) if i else None) for i in range(3)]
        keeps.note_history([], changes)
        keeps.note_history([], [changes[1], DomainChange("south", NOW, 1.0)])
        assert keeps.domain_changes("north", 0, 2 * NOW) == changes
        assert keeps.domain_changes("north", NOW + 1, NOW + 2) == [changes[1]]
        for i in range(90):
            keeps.note_history([], [DomainChange("north", NOW + 50 * i + k, 1.0) for k in range(50)])
        known = keeps.domain_changes("north", 0, 2 * NOW)
        assert len(known) <= 4000
        assert known[-1].at == NOW + 50 * 89 + 49

    def test_versions_are_kept_with_the_step_that_published_them(
        self, store: Store, keeps: HistoryStore
    ) -> None:
        epoch = store.claim("north").epoch
        for number, kind in ((1, None), (2, "rollback")):
            update = numbered_update(number)
            if kind:
                trace = {"kind": kind, "published_at": NOW + number, "domain": [0.5, -1.0]}
                update = replace(update, trace=trace)
            store.commit_step("north", 0, b"", update, epoch=epoch, now=NOW + number)
        with pytest.raises(StoreError):
            store.commit_step("north", 0, b"", numbered_update(2), epoch=epoch, now=NOW + 3)
        first, second = keeps.published("north", 0, 2 * NOW)
        assert first == Published(1, numbered_update(1).created, "learned")
        assert second == Published(2, NOW + 2, "rollback", (0.5, -1.0))
        assert keeps.published("north", NOW, NOW + 3) == [second]
        assert keeps.published("south", 0, 2 * NOW) == []

    def test_the_oldest_bins_go_where_the_cap_is_small(self, tmp_path: Path) -> None:
        store = self.open_north(tmp_path, max_bytes=self.cap)
        keeps = history_of(store)
        if keeps is None:
            store.close()
            pytest.skip("this store keeps no history")
        measures = {f"measure.number_{i}": (float(i), 0.5 * i) for i in range(40)}
        for number in range(300):
            keeps.note_history([HistoryNote("north", NOW + 20 * number, measures)])
            self.check_size(tmp_path, store, self.cap)
        known = keeps.history("north", 0, 2 * NOW, BIN_SECONDS)
        assert 1 <= len(known) < 300
        assert known[-1].at == int(NOW + 20 * 299)
        store.close()

    def test_writers_at_once_lose_nothing(self, tmp_path: Path) -> None:
        stores = [self.open_north(tmp_path), self.open_north(tmp_path)]
        keeps = [history_of(store) for store in stores]
        if keeps[0] is None:
            for store in stores:
                store.close()
            pytest.skip("this store keeps no history")

        def note(number: int) -> None:
            into = keeps[number % 2]
            assert into is not None
            for i in range(20):
                into.note_history(
                    [HistoryNote("north", NOW + 5 * i, {"samples": (1, number), "entropy": (2, 1)})]
                )

        together(*(lambda number=number: note(number) for number in range(4)))
        found = _sums(keeps[0].history("north", 0, 2 * NOW, BIN_SECONDS))
        assert found == {"samples": (80, 20 * (0 + 1 + 2 + 3)), "entropy": (160, 80)}
        for store in stores:
            store.close()

    def test_what_was_noted_survives_the_kill_of_the_process_whole(self, tmp_path: Path) -> None:
        if type(self).url is StoreCase.url:
            pytest.skip("another process cannot open this store: it has no URL")
        store = self.open_north(tmp_path)
        keeps = history_of(store)
        store.close()
        if keeps is None:
            pytest.skip("this store keeps no history")
        command = [sys.executable, "-c", WRITER, self.url(tmp_path), str(ROOMY * self.cap)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
            assert process.stdout is not None
            acknowledged = [next(process.stdout) for _ in range(40)]
            process.kill()
            acknowledged += [line for line in process.stdout if line.endswith("\n")]
        store = self.open_north(tmp_path)
        again = history_of(store)
        assert again is not None
        found = _sums(again.history("north", 0, 2 * NOW, BIN_SECONDS))
        count, total = found["samples"]
        assert count >= len(acknowledged)
        assert (total, found["entropy"]) == (2 * count, (count, 0.5 * count)), "each note is there whole"
        store.close()


def _sums(bins: Iterable[HistoryBin]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for each in bins:
        for name, (count, total) in each.measures.items():
            known = found.get(name, (0, 0))
            found[name] = known[0] + count, known[1] + total
    return found

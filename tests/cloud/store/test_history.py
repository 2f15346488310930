"""Measures over time in the SQLite store, beside what every store must do."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.cloud.store.base import UploadTooLarge
from cema.cloud.store.history import (
    BIN_SECONDS,
    LABELLED,
    LEVELS,
    MOST_LABELLED,
    MOST_MEASURES,
    DomainChange,
    HistoryNote,
    Measures,
    added,
    merged,
    width_at,
)
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.store.sqlite_history import MOST_THINNED
from cema.errors import StoreFull
from cema.testing.store_data import numbered_sample

NOW = 1_700_000_000.0


def opened(folder: Path, max_bytes: int = 64 * 2**20) -> SqliteStore:
    store = SqliteStore(folder / "cema.db", max_bytes=max_bytes)
    store.open_cohort("north", base="b")
    return store


def rows(store: SqliteStore) -> list[tuple[int, int]]:
    with store.database.read() as connection:
        return list(connection.execute("SELECT seconds, at FROM history ORDER BY at").fetchall())


# Sums of quarters are exact in floating point, in whatever order they are added.
quarters = st.integers(-4000, 4000).map(lambda number: number / 4)
measures = st.dictionaries(
    st.sampled_from(["entropy", "samples", "loss.kl", "agreement.source"]),
    st.tuples(st.integers(0, 1000), quarters),
    max_size=4,
)
moments = st.one_of(st.integers(0, 90 * 86_400), st.integers(89 * 86_400, 90 * 86_400)).map(
    lambda ago: NOW - ago / 2
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(moments, measures), max_size=60), st.sampled_from([10, 60, 300, 900, 86_400]))
def test_the_sums_of_all_bins_are_those_of_all_notes(
    notes: list[tuple[float, Measures]], seconds: int
) -> None:
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0])
    for _, noted in notes:
        for name, (count, total) in noted.items():
            sums[name][0] += count
            sums[name][1] += total
    with TemporaryDirectory() as folder, closing(opened(Path(folder))) as store:
        for at, noted in notes:
            store.note_history([HistoryNote("north", at, noted)])
        for _ in range(3):
            store.note_history([HistoryNote("north", NOW, {})])
            found: dict[str, list[float]] = defaultdict(lambda: [0, 0])
            for each in store.history("north", 0, 2 * NOW, seconds):
                assert each.at % seconds == 0
                for name, (count, total) in each.measures.items():
                    found[name][0] += count
                    found[name][1] += total
            assert found == sums
        for width, at in rows(store):  # each bin is as wide as its age says
            assert at % width == 0
            assert width >= width_at(NOW - at - 900)


@settings(max_examples=60, deadline=None)
@given(st.lists(measures, max_size=8), st.randoms())
def test_adding_does_not_depend_on_the_order(several: list[Measures], random: object) -> None:
    first = added({}, *several)
    random.shuffle(several)  # type: ignore[attr-defined]
    assert added({}, *several) == first
    parts = merged([(0, added({}, *several[:3])), (10, added({}, *several[3:]))], 20)
    assert parts[0].measures == first


def test_one_write_makes_only_so_many_bins_wider(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        store.note_history([HistoryNote("north", NOW + 10 * i, {"samples": (1, 1)}) for i in range(600)])
        late = NOW + 90_000
        before = len(rows(store))
        store.note_history([HistoryNote("north", late, {"samples": (1, 1)})])
        moved = [row for row in rows(store) if row[0] == BIN_SECONDS and row[1] < NOW + 20_000]
        assert before - 2 * MOST_THINNED <= len(moved) + 2 * MOST_THINNED
        for _ in range(10):
            store.note_history([HistoryNote("north", late, {})])
        assert [row[0] for row in rows(store) if row[1] < NOW + 20_000].count(BIN_SECONDS) == 0
        assert sum(b.measures["samples"][0] for b in store.history("north", 0, 2 * NOW, 10)) == 601


def test_a_year_takes_no_more_bins_than_a_month(tmp_path: Path) -> None:
    with closing(opened(tmp_path, 2**30)) as store:
        with store.database.write() as connection:  # quicker than a year of notes
            content = b"\x81\xa7samples\x92\x01\x01"
            connection.executemany(
                "INSERT INTO history (cohort, seconds, at, content) VALUES ('north', 900, ?, ?)",
                [(int(NOW) // 900 * 900 - 900 * i, content) for i in range(1, 365 * 96)],
            )
        last = LEVELS[-1].bins
        writes = 0
        while len(rows(store)) > last + 1:
            store.note_history([HistoryNote("north", NOW + 5, {"samples": (1, 1)})])
            writes += 1
        assert writes >= (365 * 96 - last) // MOST_THINNED
        assert min(at for _, at in rows(store)) >= NOW - 32 * 86_400


def test_the_histories_of_many_cohorts_leave_the_store_to_its_samples(tmp_path: Path) -> None:
    cap, cohorts = 4 * 2**20, [f"c{number}" for number in range(20)]
    many: Measures = {f"measure.{i}": (i + 0.1, i + 0.2) for i in range(40)}
    with closing(opened(tmp_path, cap)) as store:
        for cohort in cohorts:
            store.open_cohort(cohort, base="b")
        empty = store.used_bytes()
        for start in range(0, 900, 90):
            moments = [NOW + 900 * number for number in range(start, start + 90)]
            store.note_history([HistoryNote(cohort, at, many) for cohort in cohorts for at in moments])
        for _ in range(12):
            store.note_history([HistoryNote(cohort, NOW + 900 * 900, {}) for cohort in cohorts])
        assert store.used_bytes() - empty < cap / 2
        assert all(len(store.history(cohort, 0, 2 * NOW, 10)) >= 16 for cohort in cohorts)


def test_a_full_store_from_before_keeps_none_and_all_else_works(tmp_path: Path) -> None:
    cap = 400_000
    with closing(opened(tmp_path, cap)) as store:
        with store.database.write() as connection:
            for table in ("history", "history_changes", "history_versions"):
                connection.execute(f"DROP TABLE {table}")
        for number in range(10_000):
            try:
                store.put("north", [numbered_sample(number, 4000)], device="d", now=1.0, max_backlog=10**6)
            except StoreFull:
                break
        with closing(sqlite3.connect(tmp_path / "cema.db")) as connection:
            connection.execute("CREATE TABLE filler (content BLOB)")
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            free = cap // 4096 - pages
            connection.execute("INSERT INTO filler VALUES (zeroblob(?))", (max(0, free) * 4096,))
            connection.commit()
    with closing(opened(tmp_path, cap)) as store:
        store.note_history([HistoryNote("north", NOW, {"samples": (1, 1)})], [DomainChange("north", NOW)])
        assert store.history("north", 0, 2 * NOW, 10) == []
        assert store.domain_changes("north", 0, 2 * NOW) == []
        assert store.backlog("north").samples > 0
    with closing(opened(tmp_path, 4 * cap)) as store:
        store.note_history([HistoryNote("north", NOW, {"samples": (1, 1)})])
        assert len(store.history("north", 0, 2 * NOW, 10)) == 1


def test_bins_have_a_width_that_can_be_had(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        for seconds in (0, 5, 15, -10):
            with pytest.raises(ValueError, match="a multiple of 10"):
                store.history("north", 0, 1, seconds)


def test_no_more_names_than_allowed() -> None:
    many: Measures = {f"m{i}": (1, 1) for i in range(MOST_MEASURES)}
    assert added(many, {"more": (1, 1)}).keys() == many.keys()
    assert added(many, {"m0": (1, 1)})["m0"] == (2, 2)


def test_names_from_outside_leave_room_for_the_cloud_s_own(tmp_path: Path) -> None:
    outside: Measures = {f"{LABELLED}{i}": (1, 1) for i in range(MOST_MEASURES)}
    with closing(opened(tmp_path)) as store:
        for measures in (outside, {"threshold.low": (1, 0.5)}, outside):
            store.note_history([HistoryNote("north", NOW, measures)])
        (kept,) = store.history("north", 0, 2 * NOW, 10)
    assert kept.measures["threshold.low"] == (1, 0.5)
    assert kept.measures[f"{LABELLED}0"] == (2, 2)
    assert len(kept.measures) == MOST_LABELLED + 1


def test_the_smallest_store_still_takes_what_it_says(tmp_path: Path) -> None:
    with (
        closing(opened(tmp_path, 400_000)) as store,
        pytest.raises(UploadTooLarge, match="an empty store has room for"),
    ):
        store.put("north", [numbered_sample(1, 400_000)], device="d", now=1.0, max_backlog=9)


def test_a_copy_of_the_store_has_the_history(tmp_path: Path) -> None:
    change = DomainChange("north", NOW, 2.5)
    with closing(opened(tmp_path)) as store:
        store.note_history([HistoryNote("north", NOW, {"samples": (1, 1)})], [change])
        before = store.history("north", 0, 2 * NOW, 10)
        store.backup(tmp_path / "copy.db", now=NOW, notes={})
    copy = SqliteStore(tmp_path / "copy.db", max_bytes=64 * 2**20)
    with closing(copy):
        assert copy.history("north", 0, 2 * NOW, 10) == before != []
        assert copy.domain_changes("north", 0, 2 * NOW) == [change]

"""Agreement with the foundation model in the SQLite store, beside what every store must do."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from cema._util.proportion import proportion
from cema.cloud.store.agreements import (
    JUDGED,
    MINUTE,
    AgreementCount,
    AgreementPoint,
    agreement_members,
    recent_agreement,
)
from cema.cloud.store.sqlite import SqliteStore

CAP = 8 * 2**20


def commit(store: SqliteStore, at: float, *counts: AgreementCount) -> None:
    state = store.claim("north")
    store.commit_step("north", state.cursor, b"", epoch=state.epoch, now=at, measured=counts)


def opened(folder: Path, max_bytes: int = CAP) -> SqliteStore:
    store = SqliteStore(folder / "cema.db", max_bytes=max_bytes)
    store.open_cohort("north", base="b")
    return store


def test_the_newest_samples_of_each_model_count() -> None:
    points = [
        AgreementPoint(0.0, "source", 900, 0),
        AgreementPoint(60.0, "running", 10, 9),
        AgreementPoint(60.0, "source", 10, 5),
        AgreementPoint(120.0, "source", 10, 5),
    ]
    found = recent_agreement(points, samples=15)
    assert list(found) == ["running", "source"]
    assert (found["running"], found["source"]) == (proportion(10, 9), proportion(20, 10))
    assert recent_agreement([], samples=15) == {}


def test_old_minutes_go_where_the_cap_is_small(tmp_path: Path) -> None:
    with closing(opened(tmp_path, 2**20)) as store:
        for minute in range(200):
            commit(
                store, minute * MINUTE, AgreementCount(1, "running", 2, 1), AgreementCount(1, "source", 2, 0)
            )
        kept = sorted({point.at / MINUTE for point in store.agreement_over_time("north")})
        assert kept == list(range(200 - len(kept), 200))
        assert 64 <= len(kept) <= 66
        # What went was not forgotten of the version.
        assert store.agreement_by_version("north")[0].models["running"] == proportion(400, 200)


def test_a_store_from_before_gets_its_tables(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        commit(store, 1.0)
    with closing(sqlite3.connect(tmp_path / "cema.db")) as connection:
        connection.executescript("DROP TABLE agreement_minutes; DROP TABLE agreement_versions;")
    with closing(opened(tmp_path)) as store:
        assert agreement_members(store, "north") == {}
        commit(store, 60.0, AgreementCount(1, "running", 4, 3))
        assert agreement_members(store, "north")["running"]["share"] == 0.75


def test_a_store_that_cannot_have_them_works_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"agreement_minutes": "CREATE TABLE agreement_minutes (no such thing"}
    monkeypatch.setattr("cema.cloud.store.sqlite_agreements.TABLES", tables)
    with closing(opened(tmp_path)) as store:
        commit(store, 1.0, AgreementCount(1, "running", 4, 3))
        assert (store.agreement_by_version("north"), store.agreement_over_time("north")) == ([], [])
        assert agreement_members(store, "north") == {}


@pytest.mark.parametrize("samples", [8, 16, 17])
@pytest.mark.parametrize("absent", [None, "device"])
def test_the_agreement_on_the_newest_samples_is_that_of_all_minutes_however_few_are_read(
    tmp_path: Path, samples: int, absent: str | None
) -> None:
    with closing(opened(tmp_path)) as store:
        for minute in range(80):
            counts = [
                AgreementCount(1, model, samples, min(minute, samples))
                for model in JUDGED
                if model != absent or minute < 3
            ]
            commit(store, MINUTE * minute, *counts)
        everything = recent_agreement(store.agreement_over_time("north"))
        assert agreement_members(store, "north") == msgspec.to_builtins(everything)
        assert everything.keys() == set(JUDGED)

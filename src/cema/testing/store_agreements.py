"""Tests of a store: the agreement with the foundation model that it keeps, if it keeps any."""

from __future__ import annotations

from typing import Any

import pytest

from cema.cloud.store.agreements import (
    MINUTE,
    VERSIONS_KEPT,
    AgreementCount,
    AgreementPoint,
    AgreementStore,
    agreements_of,
)
from cema.cloud.store.base import Fenced, Store
from cema.testing.store_case import StoreCase

__all__ = ["AgreementTests"]


class AgreementTests(StoreCase):
    """Counts of agreement are added up by version and by minute, with the step that they are of."""

    @pytest.fixture
    def keeps(self, store: Store) -> AgreementStore:
        """Return the store, if it keeps agreement."""
        found = agreements_of(store)
        if found is None:
            pytest.skip("this store keeps no agreement")
        return found

    def test_agreement_is_added_up_by_version_and_by_minute(
        self, store: Store, keeps: AgreementStore
    ) -> None:
        assert (keeps.agreement_by_version("north"), keeps.agreement_over_time("north")) == ([], [])
        epoch = store.claim("north").epoch
        running, source = (
            AgreementCount(3, "running", 16, 12),
            AgreementCount(3, "source", 16, 4),
        )
        for at, counts in (
            (10 * MINUTE + 1, [running, source]),
            (10 * MINUTE + 2, [running]),
            (11 * MINUTE, [AgreementCount(4, "running", 8, 8)]),
        ):
            _commit(store, epoch, at, counts)
        third, fourth = keeps.agreement_by_version("north")
        assert (third.version, third.first, third.last) == (3, 10 * MINUTE + 1, 10 * MINUTE + 2)
        assert {name: (s.samples, s.share) for name, s in third.models.items()} == {
            "running": (32, 0.75),
            "source": (16, 0.25),
        }
        assert (fourth.version, fourth.models["running"].samples) == (4, 8)
        points = keeps.agreement_over_time("north")
        tenth = [AgreementPoint(10 * MINUTE, "running", 32, 24), AgreementPoint(10 * MINUTE, "source", 16, 4)]
        eleventh = [AgreementPoint(11 * MINUTE, "running", 8, 8)]
        assert sorted(points) == sorted([*tenth, *eleventh])
        assert points[-1:] == eleventh
        assert keeps.agreement_over_time("north", since=10 * MINUTE + 59) == points
        assert keeps.agreement_over_time("north", since=11 * MINUTE) == eleventh
        assert keeps.agreement_over_time("north", newest=1) == eleventh
        assert keeps.agreement_by_version("south") == []

    def test_agreement_is_kept_with_its_step_or_not_at_all(self, store: Store, keeps: AgreementStore) -> None:
        old = store.claim("north").epoch
        store.claim("north")
        with pytest.raises(Fenced):
            _commit(store, old, 1.0, [AgreementCount(1, "running", 4, 4)])
        assert (keeps.agreement_by_version("north"), keeps.agreement_over_time("north")) == ([], [])

    def test_the_oldest_versions_go(self, store: Store, keeps: AgreementStore) -> None:
        epoch = store.claim("north").epoch
        for version in range(VERSIONS_KEPT + 50):
            _commit(store, epoch, MINUTE * version, [AgreementCount(version, "running", 2, 1)])
        found = [known.version for known in keeps.agreement_by_version("north")]
        assert len(found) <= VERSIONS_KEPT + 1
        newest = VERSIONS_KEPT + 49
        assert found == list(range(newest + 1 - len(found), newest + 1))


def _commit(store: Any, epoch: int, at: float, measured: list[AgreementCount]) -> None:
    store.commit_step("north", 0, b"", epoch=epoch, now=at, measured=measured)

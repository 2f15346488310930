"""Which versions a store keeps."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.store.retention import PERIODS, Aged, kept

PLENTY = 10**9

# Seconds from one version to the next: of every size that makes a difference.
gaps = st.lists(st.one_of(*(st.floats(0, 2 * size) for size, _ in PERIODS)), min_size=1, max_size=150)


def versions(seconds: Sequence[float]) -> list[Aged]:
    found, now = [], 1e9
    for number, gap in enumerate(seconds, 1):
        now += gap
        found.append(Aged(number, now, 100))
    return found


@given(gaps, st.integers(1, 20))
def test_deleting_with_every_version_leaves_what_deleting_once_leaves(
    seconds: list[float], newest: int
) -> None:
    every = versions(seconds)
    there: list[Aged] = []
    for aged in every:
        there.append(aged)
        stay = kept(there, newest=newest, older_bytes=PLENTY)
        there = [known for known in there if known.version in stay]
    assert {known.version for known in there} == kept(every, newest=newest, older_bytes=PLENTY)


@given(gaps, st.integers(1, 20))
def test_the_newest_and_the_last_of_each_period_stay(seconds: list[float], newest: int) -> None:
    every = versions(seconds)
    stay = kept(every, newest=newest, older_bytes=PLENTY)
    assert stay >= {aged.version for aged in every[-newest:]}
    for size, count in PERIODS:
        periods = sorted({int(aged.created // size) for aged in every})[-count:]
        for period in periods:
            assert max(aged.version for aged in every if int(aged.created // size) == period) in stay
    assert len(stay) <= newest + sum(count for _, count in PERIODS)


@given(gaps, st.integers(1, 20), st.integers(0, 2000))
def test_older_ones_take_no_more_than_their_share(seconds: list[float], newest: int, room: int) -> None:
    every = versions(seconds)
    stay = kept(every, newest=newest, older_bytes=room)
    older = stay - {aged.version for aged in every[-newest:]}
    assert 100 * len(older) <= room
    # Newer ones first.
    full = kept(every, newest=newest, older_bytes=PLENTY)
    assert older == set(
        sorted(full - {aged.version for aged in every[-newest:]})[-len(older) :] if older else []
    )

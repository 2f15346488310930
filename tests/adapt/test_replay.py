"""The replay buffer."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cema.adapt.replay import ReplayBuffer


@given(st.integers(0, 12), st.lists(st.lists(st.integers(), max_size=9), max_size=12))
def test_it_is_a_bounded_queue(capacity: int, groups: list[list[int]]) -> None:
    buffer, model = ReplayBuffer[int](capacity), deque[int](maxlen=capacity)
    left: list[int] = []
    for group in groups:
        left += buffer.add(group)
        model.extend(group)
    everything = [item for group in groups for item in group]
    assert buffer.items() == tuple(model)
    assert left + list(buffer.items()) == everything  # first in, first out, and nothing is lost unseen


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 2**32))
def test_draws_are_distinct_and_seeded(stored: int, count: int, seed: int) -> None:
    buffer = ReplayBuffer[int](100)
    buffer.add(range(stored))
    drawn = buffer.draw(count, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn)) == min(count, stored)
    assert set(drawn) <= set(range(stored))
    assert drawn == buffer.draw(count, np.random.default_rng(seed))
    assert len(buffer) == stored


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**32))
def test_draws_may_be_confined_to_the_newest(stored: int, count: int, newest: int, seed: int) -> None:
    buffer = ReplayBuffer[int](20)
    buffer.add(range(stored))
    drawn = buffer.draw(count, np.random.default_rng(seed), newest=newest)
    assert len(drawn) == len(set(drawn)) == min(count, newest, stored, 20)
    assert set(drawn) <= set(range(max(0, stored - newest), stored))


def test_draws_are_uniform() -> None:
    buffer = ReplayBuffer[int](10)
    buffer.add(range(10))
    rng = np.random.default_rng(0)
    counts = np.bincount([i for _ in range(2000) for i in buffer.draw(3, rng)], minlength=10)
    # 600 expected each, standard deviation about 20.
    assert (abs(counts - 600) < 100).all()


def test_discard_forgets_the_very_objects_even_arrays() -> None:
    images = [np.zeros((2, 2, 3), np.uint8) for _ in range(4)]
    buffer = ReplayBuffer[np.ndarray](10)
    buffer.add(images)
    buffer.discard([images[1], np.zeros((2, 2, 3), np.uint8)])
    assert [id(item) for item in buffer.items()] == [id(images[i]) for i in (0, 2, 3)]


def test_load_replaces_the_content() -> None:
    buffer = ReplayBuffer[int](3)
    buffer.add([7])
    buffer.load([1, 2, 3, 4])
    assert buffer.items() == (2, 3, 4)


def test_a_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        ReplayBuffer[int](-1)

"""What makes one sample more useful than another, against references that count one by one."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.ondevice.selection.usefulness import (
    prototype_scores,
    quota_scores,
    rank_within,
    uniform_numbers,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0, 2.0])), max_size=30))
def test_ranks_are_counted(pairs: list[tuple[int, float]]) -> None:
    labels = np.array([label for label, _ in pairs], np.int64)
    values = np.array([value for _, value in pairs], np.float64)
    counted = [sum(other == label and more > value for other, more in pairs) for label, value in pairs]
    assert rank_within(values, labels).tolist() == counted
    # The rank is the whole part of the score, the entropy what is behind the comma.
    scores = quota_scores(values, labels, math.log(10))
    np.testing.assert_allclose(scores, 0.999 * values / math.log(10) - counted, rtol=1e-12, atol=1e-12)


def test_prototypes_are_ordered_by_hand() -> None:
    entropy = np.array([0.1, 0.2, 0.3, 2.0, 2.1, 0.1, 2.2])
    labels = np.array([1, 0, 1, 0, 1, 0, 1])
    likeness = np.array([0.8, 0.5, 0.9, 0.99, 0.1, 0.3, 0.2])
    # First the sure ones, not above the median of 0.3: the best of each class, then the second best. An unsure one of
    # the class that is more like the mean (the fourth) does not count against them.
    order = np.argsort(-prototype_scores(entropy, labels, likeness))
    assert order.tolist() == [2, 1, 0, 5, 3, 6, 4]
    assert prototype_scores(np.empty(0), np.empty(0, np.int64), np.empty(0)).shape == (0,)


def test_random_numbers_are_those_of_splitmix64() -> None:
    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    expected = [(mix((mix(5) + i * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53 for i in range(1000, 1008)]
    assert uniform_numbers(5, 1000, 8).tolist() == expected
    many = np.sort(uniform_numbers(0, 0, 20_000))
    assert np.abs(many - (np.arange(20_000) + 0.5) / 20_000).max() < 1.63 / math.sqrt(20_000)

"""What uploads look like, and when that changes."""

from __future__ import annotations

import numpy as np
import pytest

from cema.adapt.changes import ChangeDetector
from cema.data.corruptions import corrupt_images
from cema.data.digits import load_digits
from cema.models.digits import DIGITS_PREPROCESSING
from cema.ondevice.drift import Domain, input_statistics


def rows(n: int, seed: int, *, shift: float = 0.0, size: int = 6) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, size)) + shift).astype(np.float32)


def make(window: int = 96, limit: float = 36.0) -> ChangeDetector:
    return ChangeDetector(window=window, limit=limit, batch=32)


def test_the_batch_that_shows_a_change_goes_when_the_next_comes() -> None:
    surroundings = make()
    assert [surroundings.observe(rows(32, i)) for i in range(5)] == [False] * 5
    mixed = np.concatenate([rows(16, 5), rows(16, 6, shift=4)])
    assert surroundings.observe(mixed), "its end is of another environment"
    assert surroundings.changes == 1
    assert surroundings.observe(rows(32, 7, shift=4)), "the one before may have begun in the old one"
    assert not surroundings.observe(rows(32, 8, shift=4))
    assert surroundings.changes == 1
    known = surroundings.domain()
    assert known is not None
    expected = Domain.of(np.concatenate([rows(32, 7, shift=4), rows(32, 8, shift=4)]))
    np.testing.assert_array_equal(known.mean, expected.mean)


def test_as_many_of_the_newest_as_the_window_has() -> None:
    surroundings = make(window=64)
    for i in range(5):
        surroundings.observe(rows(32, i))
    known = surroundings.domain()
    assert known is not None
    np.testing.assert_allclose(
        known.mean, np.concatenate([rows(32, 3), rows(32, 4)]).mean(0), rtol=1e-5, atol=1e-6
    )


def test_a_handful_of_samples_shows_no_change_and_no_environment() -> None:
    surroundings = make()
    assert not surroundings.observe(rows(5, 0))
    assert surroundings.domain() is None, "nothing is known of how widely they lie"
    surroundings.observe(rows(32, 1))
    assert not surroundings.observe(rows(15, 2, shift=50))
    assert surroundings.changes == 0


def test_what_is_known_to_be_of_another_domain_is_a_change_but_not_right_after_one() -> None:
    surroundings = make()
    surroundings.observe(rows(32, 0))
    assert surroundings.observe(rows(32, 1), known=True)
    assert surroundings.observe(rows(32, 2), known=True), "the one before is forgotten"
    assert surroundings.changes == 1
    assert surroundings.observe(rows(32, 3), known=True)
    assert surroundings.changes == 2


def test_it_goes_on_with_what_was_known_of_a_domain() -> None:
    surroundings = make(window=64)
    for i in range(2):
        surroundings.observe(rows(32, i))
    surroundings.observe(rows(32, 2, shift=4))
    surroundings.remember(rows(64, 3, shift=4))
    expected = np.concatenate([rows(64, 3, shift=4), rows(32, 2, shift=4)])
    known = surroundings.rows()
    assert known is not None
    np.testing.assert_array_equal(known, expected)
    assert surroundings.observe(rows(32, 4, shift=4)), "the one before may mix both"
    surroundings.remember(rows(64, 3, shift=4))
    assert not surroundings.observe(rows(32, 5, shift=4))
    assert surroundings.changes == 1


def test_it_can_be_switched_off() -> None:
    surroundings = make(limit=0)
    surroundings.observe(rows(32, 1))
    assert not surroundings.observe(rows(32, 2, shift=50))


@pytest.mark.parametrize("moments", [range(1), range(4), range(6), range(7)])
def test_it_goes_on_where_it_was_saved(moments: range) -> None:
    def batch(i: int) -> np.ndarray:
        return rows(32, i, shift=4.0 * (i > 3))

    whole, begun, resumed = make(), make(), make()
    for i in moments:
        begun.observe(batch(i))
        whole.observe(batch(i))
    tensors, values = begun.state()
    resumed.load(tensors, values)
    for i in range(len(moments), 10):
        assert resumed.observe(batch(i)) == whole.observe(batch(i))
        one, other = resumed.domain(), whole.domain()
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.mean, other.mean)
    assert resumed.changes == whole.changes == 1


@pytest.mark.parametrize(
    ("corruption", "severity"), [("gaussian_noise", 4), ("motion_blur", 3), ("fog", 3), ("snow", 5)]
)
def test_it_tells_the_stretches_of_real_images_apart(corruption: str, severity: int) -> None:
    digits = load_digits().test_images
    surroundings = make()
    for i in range(6):
        surroundings.observe(input_statistics(DIGITS_PREPROCESSING(digits[32 * i : 32 * i + 32])))
    assert surroundings.changes == 0
    changed = corrupt_images(digits[200:296], corruption, severity, seed=1)
    for i in range(3):
        surroundings.observe(input_statistics(DIGITS_PREPROCESSING(changed[32 * i : 32 * i + 32])))
    assert surroundings.changes == 1

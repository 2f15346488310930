"""Views of what the model is unsure about."""

from __future__ import annotations

import numpy as np
import pytest

from cema.ondevice.unsure import UnsureViews, ViewsConfig
from cema.ondevice.views import make_views, view_of


def _run(inputs: np.ndarray) -> np.ndarray:
    """A model that depends on where things are."""
    flat = inputs.reshape(len(inputs), -1)
    weights = np.random.default_rng(7).normal(size=(flat.shape[1], 4)).astype(np.float32)
    logits: np.ndarray = flat @ weights
    return logits


def _softmax(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    softmax: np.ndarray = wide / wide.sum(axis=-1, keepdims=True)
    return softmax


def test_unsure_inputs_get_the_mean_of_their_views() -> None:
    inputs = np.random.default_rng(0).normal(size=(12, 1, 6, 6)).astype(np.float32) * 0.3
    inputs[::3] *= 20  # sure
    logits = _run(inputs)
    probabilities = _softmax(logits)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    unsure = entropy > 0.5 * entropy.mean()
    assert 0 < unsure.sum() < 12
    views = UnsureViews(ViewsConfig(count=3, shift=1, mirror=True, above=0.5))
    places = views.places(logits)
    np.testing.assert_array_equal(places, np.flatnonzero(unsure))
    averaged = views.average(inputs, logits, places, _run)
    expected = np.mean(
        [_softmax(_run(view_of(inputs, view))) for view in make_views(3, shift=1, mirror=True)], axis=0
    )
    np.testing.assert_allclose(_softmax(averaged[unsure]), expected[unsure], rtol=1e-4)
    np.testing.assert_array_equal(averaged[~unsure], logits[~unsure])
    np.testing.assert_array_equal(logits, _run(inputs))


def test_one_view_is_no_view() -> None:
    views = UnsureViews(ViewsConfig(count=1))
    logits = np.zeros((3, 2), np.float32)
    assert not views
    assert not len(views.places(logits))
    assert views.average(np.zeros((3, 1, 4, 4), np.float32), logits, views.places(logits), _run) is logits


def test_above_zero_is_for_all_and_the_mean_is_of_the_stream() -> None:
    inputs = np.random.default_rng(1).normal(size=(4, 1, 6, 6)).astype(np.float32)
    every = UnsureViews(ViewsConfig(count=2, shift=1, above=0.0))
    assert len(every.places(_run(inputs))) == 4
    calm = UnsureViews(ViewsConfig(count=2, shift=1, above=1.0))
    calm.places(np.tile(np.array([[9.0, 0, 0, 0]], np.float32), (4, 1)))
    # Twice as unsure as before, but less than some that came in between.
    calm.places(np.zeros((4, 4), np.float32))
    assert not len(calm.places(np.tile(np.array([[8.0, 0, 0, 0]], np.float32), (4, 1))))


def test_no_inputs() -> None:
    views = UnsureViews(ViewsConfig(count=3))
    empty = np.empty((0, 4), np.float32)
    assert views.places(empty).shape == (0,)


@pytest.mark.parametrize("settings", [{"count": 0}, {"shift": 0}, {"above": -1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ViewsConfig(**settings)  # type: ignore[arg-type]

"""Views of inputs against shifts written out pixel by pixel, and means of probabilities against softmax in float64."""

from __future__ import annotations

import numpy as np
import pytest

from cema.ondevice.views import View, make_views, mean_logits, view_of
from cema.testing.selectors import logits


def inputs(count: int = 2, height: int = 5, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, height, width)).astype(np.float32)


def by_loops(x: np.ndarray, view: View) -> np.ndarray:
    height, width = x.shape[2:]
    flipped = x[..., ::-1] if view.mirrored else x
    shown = np.empty_like(x)
    for row in range(height):
        for column in range(width):
            from_row = min(max(row - view.down, 0), height - 1)
            from_column = min(max(column - view.right, 0), width - 1)
            shown[:, :, row, column] = flipped[:, :, from_row, from_column]
    return shown


@pytest.mark.parametrize(
    "view",
    [
        View(),
        View(mirrored=True),
        View(2, 0),
        View(0, -1),
        View(-2, 3, True),
        View(1, 1, True),
        View(9, -9),
    ],
)
def test_a_view_is_the_input_mirrored_and_then_shifted(view: View) -> None:
    x = inputs()
    before = x.copy()
    shown = view_of(x, view)
    np.testing.assert_array_equal(shown, by_loops(x, view))
    assert (shown.dtype, shown.flags.c_contiguous, shown.flags.owndata) == (np.float32, True, True)
    np.testing.assert_array_equal(x, before)


def test_an_input_of_another_memory_layout_is_shown_the_same() -> None:
    x = inputs()
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(view_of(last, View(1, -1, True)), view_of(x, View(1, -1, True)))


def test_without_mirroring_the_first_views_are_the_input_and_its_neighbours() -> None:
    assert make_views(5, shift=3, mirror=False) == (View(), View(3), View(-3), View(0, 3), View(0, -3))


def test_every_second_view_is_mirrored_where_that_is_allowed() -> None:
    views = make_views(8, shift=2, mirror=True)
    assert [view.mirrored for view in views] == [False, True] * 4
    assert views[:3] == (View(), View(mirrored=True), View(2))
    assert not any(view.mirrored for view in make_views(40, shift=2, mirror=False))


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("count", [1, 2, 8, 9, 10, 17, 18, 40])
def test_there_are_as_many_views_as_asked_and_all_differ(count: int, mirror: bool) -> None:
    views = make_views(count, shift=1, mirror=mirror)
    assert len(set(views)) == len(views) == count
    assert views[0] == View()
    # Fewer views are the first of more.
    assert make_views(40, shift=1, mirror=mirror)[:count] == views


def test_more_views_than_directions_are_shifted_twice_as_far() -> None:
    views = make_views(17, shift=2, mirror=False)
    reach = [max(abs(view.right), abs(view.down)) for view in views]
    assert reach == [0] + [2] * 8 + [4] * 8


@pytest.mark.parametrize(("settings", "name"), [((0, 1), "count"), ((3, 0), "shift"), ((3, -1), "shift")])
def test_no_view_and_no_shift_are_refused(settings: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        make_views(settings[0], shift=settings[1], mirror=False)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_mean_is_that_of_probabilities(count: int) -> None:
    parts = [3 * logits(7, seed) for seed in range(count)]
    mean = mean_logits(parts)
    assert (mean.dtype, mean.shape) == (np.float32, parts[0].shape)
    expected = np.mean([softmax(part) for part in parts], axis=0)
    np.testing.assert_allclose(np.exp(mean.astype(np.float64)), expected, rtol=1e-5)
    # The logarithms themselves: their softmax is the mean as it stands.
    np.testing.assert_allclose(np.exp(mean).sum(axis=1), 1.0, rtol=1e-6)


def test_a_class_that_is_next_to_impossible_in_every_view_has_a_finite_logit() -> None:
    far = np.array([[2000.0, 0.0, -3000.0]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        mean = mean_logits([far, far + 7, far])
    np.testing.assert_allclose(mean, [[0.0, -2000.0, -5000.0]], atol=1e-3)

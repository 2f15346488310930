"""Mild views of inputs, whose predictions are averaged: shifts by a few pixels, and mirror images where allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cema._util.checks import require

__all__ = ["View", "make_views", "mean_logits", "view_of"]

Float32 = npt.NDArray[np.float32]

# Right and down, in the order in which they are taken: near ones first, each followed by its opposite.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))


class View(NamedTuple):
    """How a view differs from its input: mirrored or not, and then shifted.

    Attributes
    ----------
    right, down : int
        Pixels by which it is shifted; negative ones to the left and up.
    mirrored : bool
        Whether left and right have changed places before.
    """

    right: int = 0
    down: int = 0
    mirrored: bool = False


def make_views(count: int, *, shift: int, mirror: bool) -> tuple[View, ...]:
    """Return some views: the input itself first, and then others that are as unlike one another as may be.

    Parameters
    ----------
    count : int
        How many views, at least 1.
    shift : int
        Pixels, at least 1. Where there are more views than directions, the next ones are shifted twice as far.
    mirror : bool
        Whether every second view is a mirror image: not for digits, letters and signs.

    Returns
    -------
    tuple of View
        No two of them are equal.

    Raises
    ------
    ValueError
        When there is no view, or none is shifted.

    Examples
    --------
    >>> [tuple(view) for view in make_views(4, shift=2, mirror=True)]
    [(0, 0, False), (0, 0, True), (2, 0, False), (-2, 0, True)]
    """
    require(count >= 1, "count", "at least 1 view", count)
    require(shift >= 1, "shift", "a shift of at least 1 pixel", shift)
    places = [(0, 0)] * (2 if mirror else 1)
    for ring in range(1, count // len(_DIRECTIONS) + 2):
        places += [(ring * shift * right, ring * shift * down) for right, down in _DIRECTIONS]
    return tuple(View(*place, mirror and i % 2 == 1) for i, place in enumerate(places[:count]))


def view_of(inputs: Float32, view: View) -> Float32:
    """Return a batch as a view shows it; what comes in at the rim are the nearest pixels.

    Parameters
    ----------
    inputs : ndarray of float32 (N, C, H, W)
        A model's inputs.
    view : View
        What to do with them.

    Returns
    -------
    ndarray of float32 (N, C, H, W)
        A new C-contiguous array.

    Examples
    --------
    >>> view_of(np.array([[[[1, 2, 3]]]], np.float32), View(right=1)).tolist()
    [[[[1.0, 1.0, 2.0]]]]
    """
    height, width = inputs.shape[2:]
    rows = np.clip(np.arange(height) - view.down, 0, height - 1)
    columns = np.clip(np.arange(width) - view.right, 0, width - 1)
    if view.mirrored:
        columns = width - 1 - columns
    return np.ascontiguousarray(inputs[:, :, rows[:, None], columns])


def mean_logits(logits: Sequence[Float32]) -> Float32:
    """Return the logarithm of mean probabilities: logits whose softmax is the mean of several softmaxes.

    Parameters
    ----------
    logits : sequence of ndarray (N, C)
        One array for each view, at least one.

    Returns
    -------
    ndarray of float32 (N, C)
        At most 0, and finite where all of the logits are.

    Examples
    --------
    >>> views = [np.log(np.array([[0.9, 0.1]], np.float32)), np.log(np.array([[0.5, 0.5]], np.float32))]
    >>> np.exp(mean_logits(views)).astype(np.float64).round(3).tolist()
    [[0.7, 0.3]]
    """
    stacked = np.stack([np.asarray(part, np.float64) for part in logits])
    log_p = stacked - stacked.max(axis=2, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=2, keepdims=True))
    # Relative to the largest: a class that is next to impossible in every view has no probability in float64.
    largest = log_p.max(axis=0)
    mean: Float32 = (largest + np.log(np.exp(log_p - largest).mean(axis=0))).astype(np.float32)
    return mean

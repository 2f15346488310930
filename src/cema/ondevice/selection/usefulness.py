"""How useful a sample is, compared with others of late: the higher its score, the sooner it is sent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["prototype_scores", "quota_scores", "rank_within", "uniform_numbers"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# Below 1, so that the value that breaks ties never reaches the next rank.
_FRACTION = 0.999
# Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014: SplitMix64.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def rank_within(values: Float64, labels: Int64) -> Int64:
    """Count, for each value, the higher ones of the same label.

    Parameters
    ----------
    values : ndarray of float64 (N,)
        Finite.
    labels : ndarray of int64 (N,)

    Returns
    -------
    ndarray of int64 (N,)
        0 for the highest of a label; equal ones have the same rank.

    Examples
    --------
    >>> rank_within(np.array([0.5, 2.0, 1.0, 0.5]), np.array([0, 0, 1, 0])).tolist()
    [1, 0, 0, 1]
    """
    if not len(values):
        return np.empty(0, np.int64)
    order = np.lexsort((-values, labels))
    sorted_values, sorted_labels = values[order], labels[order]
    place = np.arange(len(values))
    other_label = np.concatenate([[True], sorted_labels[1:] != sorted_labels[:-1]])
    other_value = other_label | np.concatenate([[True], sorted_values[1:] != sorted_values[:-1]])
    first_of_label = np.maximum.accumulate(np.where(other_label, place, 0))
    first_of_value = np.maximum.accumulate(np.where(other_value, place, 0))
    ranks = np.empty(len(values), np.int64)
    ranks[order] = first_of_value - first_of_label
    return ranks


def quota_scores(entropy: Float64, labels: Int64, ceiling: float) -> Float64:
    """Prefer the highest entropy within each predicted class.

    The best of every class come first, then the second best of every class, and so on: taking the first k gives every
    class the same number, and what a rare class leaves goes to the others.

    Parameters
    ----------
    entropy : ndarray of float64 (N,)
        In nats.
    labels : ndarray of int64 (N,)
        The predicted classes.
    ceiling : float
        ln C, in nats.

    Returns
    -------
    ndarray of float64 (N,)
        ``-rank + 0.999 E / ln C``, with the rank within the class.
    """
    scores: Float64 = _FRACTION * entropy / ceiling - rank_within(entropy, labels)
    return scores


def prototype_scores(entropy: Float64, labels: Int64, likeness: Float64) -> Float64:
    """Prefer what is sure and most like the mean prediction, within each predicted class.

    Sure is what is not above the median entropy. Without the classes, those that the model predicts most often would
    take all: the mean prediction is most like them.

    Parameters
    ----------
    entropy : ndarray of float64 (N,)
        In nats.
    labels : ndarray of int64 (N,)
        The predicted classes.
    likeness : ndarray of float64 (N,)
        The cosine between prediction and mean prediction, in [0, 1].

    Returns
    -------
    ndarray of float64 (N,)
        ``-rank + 0.999 cos``, with the rank within the sure ones of the class; the unsure ones follow.
    """
    if not len(entropy):
        return np.empty(0)
    unsure = entropy > np.median(entropy)
    # Two labels for each class: the sure ones and the unsure ones are ranked apart.
    ranks = rank_within(likeness, 2 * labels + unsure) + len(entropy) * unsure
    scores: Float64 = _FRACTION * likeness - ranks
    return scores


def uniform_numbers(seed: int, first: int, count: int) -> Float64:
    """Return random numbers of a sequence in which each has its place, so that only the place need be remembered.

    SplitMix64 at its states ``mix(seed) + i * 0x9E3779B97F4A7C15``.

    Parameters
    ----------
    seed : int
        Of the sequence; from 0 to 2^64 - 1.
    first : int
        The place of the first; at least 0.
    count : int
        How many.

    Returns
    -------
    ndarray of float64 (count,)
        In [0, 1).

    Examples
    --------
    >>> bool((uniform_numbers(3, 0, 5)[2:] == uniform_numbers(3, 2, 3)).all())
    True
    """
    places = np.arange(count, dtype=np.uint64) + np.uint64(first % 2**64)
    start = _mix(np.array([seed], np.uint64))
    drawn = _mix(start + places * np.uint64(_STEP)) >> np.uint64(11)
    return drawn.astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed

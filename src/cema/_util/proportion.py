"""How sure a share is: of so many independent draws, alike or of different weights, so many were of a kind."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

__all__ = ["Proportion", "Weighted", "proportion", "weighted_proportion"]

# Of the standard normal distribution: 95 % lie between -Z and Z.
_Z = 1.959963984540054


class Proportion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share, with what its samples say about how sure it is.

    Attributes
    ----------
    samples : int
        How many were looked at.
    share : float
        Of them, those of the kind in question, in [0, 1]; 0 where there are no samples.
    standard_error : float
        sqrt(p (1 - p) / n) of independent samples; 0 where there are none.
    low, high : float
        Wilson's interval of 95 %; 0 and 1 where there are no samples.
    """

    samples: int
    share: float
    standard_error: float
    low: float
    high: float


def proportion(samples: int, matching: int) -> Proportion:
    """Return the share of `matching` in `samples`, and how sure it is.

    The interval is Wilson's score interval [1]_, which holds for few samples and for shares near 0 and 1 too, where
    the standard error says too little.

    Parameters
    ----------
    samples : int
        How many were looked at, at least 0.
    matching : int
        How many of them are of the kind in question.

    Raises
    ------
    ValueError
        When there are fewer samples than matching ones, or less than none.

    References
    ----------
    .. [1] E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the American
       Statistical Association 22, 1927.

    Examples
    --------
    >>> found = proportion(100, 90)
    >>> found.share, round(found.standard_error, 3), round(found.low, 3), round(found.high, 3)
    (0.9, 0.03, 0.826, 0.945)
    >>> proportion(0, 0).high
    1.0
    """
    if not 0 <= matching <= samples:
        raise ValueError(f"expected from 0 to {samples} matching samples, got {matching}")
    if not samples:
        return Proportion(samples=0, share=0.0, standard_error=0.0, low=0.0, high=1.0)
    return _wilson(samples, matching / samples, samples)


class Weighted(NamedTuple):
    """Sums over samples that were drawn with different probabilities: each weighs 1 / probability.

    Attributes
    ----------
    samples : int
    weight, square : float
        Of the weights and of their squares.
    matching, matching_square : float
        The same of the samples that are of the kind in question.
    """

    samples: int = 0
    weight: float = 0.0
    square: float = 0.0
    matching: float = 0.0
    matching_square: float = 0.0

    @classmethod
    def of(cls, draws: Iterable[tuple[float, bool]]) -> Weighted:
        """Sum up samples, given the probability of each, above 0, and whether it is of the kind in question."""
        found = cls()
        for share, matches in draws:
            weight = 1 / share
            found = found.plus(cls(1, weight, weight**2, matches * weight, matches * weight**2))
        return found

    def plus(self, other: Weighted) -> Weighted:
        """Return the sums over the samples of both."""
        return Weighted(
            self.samples + other.samples,
            self.weight + other.weight,
            self.square + other.square,
            self.matching + other.matching,
            self.matching_square + other.matching_square,
        )


def weighted_proportion(sums: Weighted) -> Proportion:
    """Return the share of a kind among all that samples were drawn from, and how sure it is.

    The share is the ratio of weights (Hájek's estimator), its variance that of a ratio, linearised. The interval is
    Wilson's for as many samples of equal weight as would have this variance, at most Kish's effective number
    ``weight^2 / square``: so it holds near 0 and 1 too, where a normal one does not [1]_. With equal weights all is as
    in `proportion`.

    Parameters
    ----------
    sums : Weighted

    References
    ----------
    .. [1] C. Franco, R. J. A. Little, T. A. Louis and E. V. Slud, "Comparative Study of Confidence Intervals for
       Proportions in Complex Sample Surveys", Journal of Survey Statistics and Methodology 7, 2019.

    Examples
    --------
    >>> found = weighted_proportion(Weighted.of([(0.01, True), (0.01, False), (0.5, True)]))
    >>> round(found.share, 3), found.samples
    (0.505, 3)
    """
    samples, weight, square, matching, matching_square = sums
    if not samples:
        return proportion(0, 0)
    share = min(1.0, max(0.0, matching / weight))
    effective = weight**2 / square
    variance = (matching_square * (1 - 2 * share) + share**2 * square) / weight**2
    spread = share * (1 - share)
    if variance > spread / effective:
        effective = spread / variance
    return _wilson(samples, share, effective)


def _wilson(samples: int, share: float, effective: float) -> Proportion:
    variance = share * (1 - share) / effective
    z2 = _Z**2 / effective  # z^2 / n
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(variance + z2 / (4 * effective)) / (1 + z2)
    return Proportion(
        samples=samples,
        share=share,
        standard_error=math.sqrt(variance),
        # Exactly so at both ends, where rounding would leave a little.
        low=max(0.0, middle - half) if share > 0 else 0.0,
        high=min(1.0, middle + half) if share < 1 else 1.0,
    )

"""How sure a share is: of so many independent draws, so many were of a kind."""

from __future__ import annotations

import math

import msgspec

__all__ = ["Proportion", "proportion"]

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
    share = matching / samples
    variance = share * (1 - share) / samples
    z2 = _Z**2 / samples  # z^2 / n
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(variance + z2 / (4 * samples)) / (1 + z2)
    return Proportion(
        samples=samples,
        share=share,
        standard_error=math.sqrt(variance),
        # Exactly so at both ends, where rounding would leave a little.
        low=max(0.0, middle - half) if matching else 0.0,
        high=min(1.0, middle + half) if matching < samples else 1.0,
    )

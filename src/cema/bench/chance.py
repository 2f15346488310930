"""How large a difference in a table must be to be more than chance, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["chance_sentence"]

# Two values differ by chance by up to so many of their standard errors (95 %).
_CHANCE = 1.96 * math.sqrt(2.0)


def chance_sentence(
    errors: Sequence[float], samples: float, columns: int, photographs: float | None = None
) -> str:
    r"""Return a sentence on how large a difference must be to be more than chance.

    Two accuracies p of N images each differ by chance by up to :math:`1.96 \sqrt{2 p (1 - p) / N}` (95 %), and
    averages over k corruptions by that divided by :math:`\sqrt{k}`. Of the table's accuracies the one nearest to 50 %
    counts, so that the numbers hold for all. Methods see the same images, which makes a difference between them surer
    than this says; further seeds show the same images again, and do not count.

    Where photographs gave several images each, :math:`1.96 \sqrt{2}` times the largest standard error over photographs
    (`cema.bench.standard_error`) takes its place. It is not divided: all columns show the same few photographs.

    Parameters
    ----------
    errors : sequence of float
        Standard errors of the accuracies in points, at least one.
    samples : float
        Images in a cell.
    columns : int
        Corruptions that an average is of.
    photographs : float, optional
        How many the images were cut from, where photographs gave several.

    Examples
    --------
    >>> chance_sentence([2.0, 1.0], 500, 4).partition(" may")[0]
    '500 images per cell: differences below 5.5 points, in the average below 2.8'
    >>> chance_sentence([2.0, 1.0], 5000, 4, 500).partition(" may")[0]
    '5000 images per cell, cut from 500 photographs: differences below 5.5 points, also in the average,'
    """
    points = _CHANCE * max(errors)
    if photographs is not None:
        return (
            f"{samples:.0f} images per cell, cut from {photographs:.0f} photographs: differences below {points:.1f} "
            "points, also in the average, may be chance (95 %, from standard errors over photographs of "
            f"{min(errors):.1f} to {max(errors):.1f} points)."
        )
    average = f", in the average below {points / math.sqrt(columns):.1f}" if columns > 1 else ""
    return (
        f"{samples:.0f} images per cell: differences below {points:.1f} points{average} may be chance (95 %, from "
        "the standard error of two independent proportions)."
    )

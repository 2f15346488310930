r"""How sure an accuracy is: of independent images, and of images of which several were cut from one photograph.

Images of one photograph are right or wrong together more often than others, so their number says nothing on its own.
For N images :math:`c_i \in \{0, 1\}` (right or wrong) of mean p from G photographs,

.. math:: \mathrm{SE}^2 = \frac{G}{G - 1} \frac{1}{N^2} \sum_g \Big( \sum_{i \in g} (c_i - p) \Big)^2

the cluster-robust variance of a mean [1]_. With as many images from every photograph it is the variance of the
photographs' own means over G; with one image each, that of a share, p (1 - p) / (G - 1).

References
----------
.. [1] A. C. Cameron and D. L. Miller, "A Practitioner's Guide to Cluster-Robust Inference", Journal of Human Resources
   50, 2015.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["binomial_error", "clustered_error"]


def binomial_error(accuracy: float, samples: float) -> float:
    """Return the standard error of an accuracy in percent that so many independent samples gave, in points.

    Examples
    --------
    >>> binomial_error(50.0, 100)
    5.0
    """
    p = accuracy / 100.0
    return 100.0 * math.sqrt(max(p * (1.0 - p), 0.0) / samples)


def clustered_error(correct: NDArray[np.bool_], origins: NDArray[np.int64]) -> float | None:
    """Return the standard error of an accuracy over photographs, in points.

    Parameters
    ----------
    correct : ndarray of bool, shape (N,)
        Whether each image was classified right, N at least 1.
    origins : ndarray of int64, shape (N,)
        The photograph that it was cut from.

    Returns
    -------
    float or None
        None where all are from one photograph, which says nothing of others.

    Examples
    --------
    >>> clustered_error(np.array([True, True, False, False]), np.array([7, 7, 9, 9]))
    50.0
    """
    _, photograph = np.unique(origins, return_inverse=True)
    sums = np.bincount(photograph, weights=correct - correct.mean())
    count = len(sums)
    if count < 2:
        return None
    return 100.0 * math.sqrt(count / (count - 1) * float(np.sum(sums**2))) / len(correct)

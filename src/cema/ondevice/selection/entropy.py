"""The softmax entropy, computed once for everybody."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cema.errors import LogitsError

__all__ = ["softmax_entropy"]

# exp() of this is exactly 0 in float64: terms below it vanish, and 0 * (-inf) never happens.
_VANISHING = -746.0


def softmax_entropy(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    r"""Return the entropy of the softmax of logits.

    .. math:: E = -\sum_c p_c \log p_c, \quad p = \mathrm{softmax}(z)

    Computed in float64 as ``log(1 + r) - sum(e * d) / (1 + r)`` with ``d = z - max z``, ``e = exp(d)`` over
    the classes other than one that attains the maximum, and ``r`` their sum. No term is negative, so nothing
    cancels and the result is accurate to a few units in the last place even where one class has all the mass.

    Parameters
    ----------
    logits : array_like of float (..., C)
        Finite logits of C >= 2 classes, in any real dtype.

    Returns
    -------
    ndarray of float64 (...)
        Entropies in nats, in [0, ln C].

    Raises
    ------
    LogitsError
        If `logits` is a scalar, is not real, has fewer than two classes, or holds NaN or infinity.

    Examples
    --------
    >>> softmax_entropy(np.zeros((1, 4))).round(4).tolist()
    [1.3863]
    """
    raw = np.asarray(logits)
    if raw.dtype.kind not in "fiu":
        raise LogitsError(
            f"expected real logits, got dtype {raw.dtype}: pass a float array of shape (..., C)"
        )
    if raw.ndim == 0 or raw.shape[-1] < 2:
        raise LogitsError(f"expected logits of shape (..., C) with C >= 2 classes, got shape {raw.shape}")
    with np.errstate(over="ignore", under="ignore"):
        values = raw.reshape(-1, raw.shape[-1]).astype(np.float64)
        finite = np.isfinite(values)
        if not np.logical_and.reduce(finite, axis=None):
            bad = int(np.count_nonzero(~finite.all(axis=1)))
            raise LogitsError(
                f"expected finite logits, got NaN or infinity in {bad} of {len(values)} samples: "
                f"the model's weights or input are damaged, or its float type overflows"
            )
        every = np.arange(len(values))
        top = values.argmax(axis=1)
        below = np.maximum(values - values[every, top, None], _VANISHING)
        mass = np.exp(below)
        mass[every, top] = 0.0
        # Not `sum`: on a few samples its way there takes longer than the sum itself.
        rest = np.add.reduce(mass, axis=1)
        entropy = np.log1p(rest) - np.add.reduce(mass * below, axis=1) / (1.0 + rest)
    inside = np.minimum(np.maximum(entropy, 0.0), math.log(raw.shape[-1]))
    return np.asarray(inside.reshape(raw.shape[:-1]))

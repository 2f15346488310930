"""What a version changed, and where domains lie: plain arithmetic on payloads, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cema.formats.payload import NormState, Payload

__all__ = ["MOST_MOVED", "Projection", "like", "moved", "project"]

MOST_MOVED = 20
# Below this a difference is none: payloads are rounded.
_TINY = 1e-12


def moved(payload: Payload, other: NormState | None) -> list[dict[str, Any]] | None:
    """Return how far each tensor of a payload is from another state's, the furthest first; at most `MOST_MOVED`.

    Parameters
    ----------
    payload : Payload
    other : dict of str to ndarray of float32 (size,) or None
        Of the same form: both with statistics folded in, or both weights and biases.

    Returns
    -------
    list of dict or None
        ``name``; ``relative``, the length of the difference as a share of the longer one of the two; ``rms``, the root
        of its mean square; ``size``. None where there is no other, or it has other tensors.

    Examples
    --------
    >>> state = {"bn.scale": np.array([6.0, 8.0], np.float32)}
    >>> before = {"bn.scale": np.array([6.0, 8.0], np.float32) / 2}
    >>> moved(Payload(state, np.zeros((1, 2), np.float32)), before)
    [{'name': 'bn.scale', 'relative': 0.5, 'rms': 3.5355339059327373, 'size': 2}]
    """
    state = payload.norm_state
    if other is None or {k: v.size for k, v in state.items()} != {k: v.size for k, v in other.items()}:
        return None
    found = []
    for key, now in state.items():
        wide, before = now.astype(np.float64), other[key].astype(np.float64)
        length = float(np.linalg.norm(wide - before))
        longest = max(float(np.linalg.norm(wide)), float(np.linalg.norm(before)))
        found.append(
            {
                "name": _name(key, unfolded=payload.unfolded),
                "relative": length / longest if longest > _TINY else 0.0,
                "rms": length / now.size**0.5,
                "size": now.size,
            }
        )
    found.sort(key=lambda one: (-one["relative"], one["name"]))
    return found[:MOST_MOVED]


def like(payload: Payload, other: Payload | None) -> NormState | None:
    """Return another payload's state where both are of one form, and can be compared."""
    return other.norm_state if other is not None and other.unfolded == payload.unfolded else None


def _name(key: str, *, unfolded: bool) -> str:
    """Return a tensor's name as people know it: what is not folded is a weight or a bias."""
    layer, _, part = key.rpartition(".")
    return f"{layer}.{ {'scale': 'weight', 'shift': 'bias'}[part] }" if unfolded else key


class Projection(NamedTuple):
    """Points (N, 2), and the shares of the variance that the two directions explain."""

    points: npt.NDArray[np.float64]
    explained: tuple[float, float]


def project(rows: Sequence[Sequence[float]]) -> Projection:
    """Return rows (N, F) in the two directions in which they differ most (principal components).

    Each column counts in units of its own spread: brightness and detail have different scales. The direction's sign is
    such that its largest part is positive, so that points stay where they are as rows are added.

    Examples
    --------
    >>> points, explained = project([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> points[:, 0].round(3).tolist(), explained
    ([-1.225, 0.0, 1.225], (1.0, 0.0))
    """
    values = np.asarray(rows, np.float64)
    if not len(values):
        return Projection(np.empty((0, 2)), (0.0, 0.0))
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    centred = centred / np.where(spread > _TINY, spread, 1.0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    count = min(2, len(sizes))
    kept = directions[:count]
    largest = np.abs(kept).argmax(axis=1)
    kept = kept * np.sign(kept[np.arange(count), largest])[:, None]
    points = np.zeros((len(values), 2))
    points[:, :count] = centred @ kept.T
    total = float((sizes**2).sum())
    shares = [float(size**2) / total if total > _TINY else 0.0 for size in sizes[:count]] + [0.0, 0.0]
    return Projection(points, (shares[0], shares[1]))

"""Affine parameters and statistics apart, and folded into one scale and one shift per channel.

A BatchNorm with running statistics computes

    y = weight * (x - mean) / sqrt(variance + eps) + bias = scale * x + shift,
    scale = weight / sqrt(variance + eps),  shift = bias - mean * scale.

A device that has statistics of its own gets weight and bias apart from statistics, and folds them itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cema.errors import FormatError

__all__ = ["StatisticsLayer", "check_statistics", "fold", "neutral_statistics", "statistics_shape", "unfold"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class StatisticsLayer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A normalisation layer with running statistics.

    Attributes
    ----------
    layer : str
        Its name; its parameters in a norm state are ``{layer}.scale`` and ``{layer}.shift``.
    size : int
        Channels, at least 1.
    eps : float
        What is added to the variance; above 0.

    Raises
    ------
    ValueError
        When a value is out of its range.
    """

    layer: str
    size: int
    eps: float

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if not self.layer or self.size < 1:
            raise ValueError(f"expected a layer with at least 1 channel, got {self.layer!r} with {self.size}")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"{self.layer}: expected a finite eps above 0, got {self.eps}")


def statistics_shape(layers: Sequence[StatisticsLayer]) -> tuple[int, int]:
    """Return the shape (2, K) of all layers' statistics: means and variances of all K channels, layer by layer."""
    return 2, sum(layer.size for layer in layers)


def neutral_statistics(layers: Sequence[StatisticsLayer]) -> Float32:
    """Return statistics (2, K) with which weight and bias are scale and shift: mean 0, variance 1 - eps."""
    parts = [np.full((2, layer.size), [[0.0], [1.0 - layer.eps]], np.float32) for layer in layers]
    return np.concatenate([np.empty((2, 0), np.float32), *parts], axis=1)


def check_statistics(statistics: npt.NDArray[Any], layers: Sequence[StatisticsLayer]) -> Float32:
    """Check statistics and return them as float32.

    Parameters
    ----------
    statistics : ndarray of float (2, K)
        Means, and variances.
    layers : sequence of StatisticsLayer
        Whose they are, in this order.

    Raises
    ------
    FormatError
        When they have another shape, are not finite, or a variance is negative.
    """
    checked = np.asarray(statistics)
    shape = statistics_shape(layers)
    if checked.shape != shape or checked.dtype.kind != "f":
        raise FormatError(f"expected statistics as floats {shape}, got {checked.dtype} {checked.shape}")
    with np.errstate(over="ignore"):
        checked = checked.astype(np.float32)
    if not np.isfinite(checked).all() or (checked[1] < 0).any():
        raise FormatError("expected finite statistics and no negative variance; read them again")
    return checked


def fold(
    affine: Mapping[str, npt.NDArray[Any]],
    statistics: npt.NDArray[Any],
    layers: Sequence[StatisticsLayer],
) -> dict[str, Float32]:
    """Fold statistics into the affine parameters of the layers that have them.

    Parameters
    ----------
    affine : mapping of str to ndarray (size,)
        ``{layer}.scale`` is a layer's weight and ``{layer}.shift`` its bias. Other layers' parameters stay as they are.
    statistics : ndarray of float (2, K)
        Means and variances, in the order of `layers`.
    layers : sequence of StatisticsLayer
        Those with running statistics.

    Returns
    -------
    dict of str to ndarray of float32 (size,)
        A folded norm state, computed in float64.

    Raises
    ------
    FormatError
        When a layer's parameters are absent or of another size, statistics do not fit, or a value is not finite.

    Examples
    --------
    >>> layers = [StatisticsLayer(layer="bn", size=1, eps=1.0)]
    >>> affine = {"bn.scale": np.array([4.0]), "bn.shift": np.array([1.0])}
    >>> {key: value.tolist() for key, value in fold(affine, np.array([[2.0], [3.0]]), layers).items()}
    {'bn.scale': [2.0], 'bn.shift': [-3.0]}
    """
    folded = {key: np.asarray(value, np.float32) for key, value in affine.items()}
    for scale_key, shift_key, mean, deviation in _parts(statistics, layers):
        scale = _values(affine, scale_key, mean.size) / deviation
        folded[scale_key] = _as_float32(scale_key, scale)
        folded[shift_key] = _as_float32(shift_key, _values(affine, shift_key, mean.size) - mean * scale)
    return folded


def unfold(
    folded: Mapping[str, npt.NDArray[Any]],
    statistics: npt.NDArray[Any],
    layers: Sequence[StatisticsLayer],
) -> dict[str, Float32]:
    """Return the affine parameters that `fold` makes a folded norm state of, with the same statistics.

    Parameters
    ----------
    folded : mapping of str to ndarray (size,)
        A folded norm state.
    statistics : ndarray of float (2, K)
        What was folded into it.
    layers : sequence of StatisticsLayer
        Those with running statistics.

    Returns
    -------
    dict of str to ndarray of float32 (size,)
        Weights and biases; other layers' parameters stay as they are.

    Raises
    ------
    FormatError
        As `fold`.
    """
    affine = {key: np.asarray(value, np.float32) for key, value in folded.items()}
    for scale_key, shift_key, mean, deviation in _parts(statistics, layers):
        scale = _values(folded, scale_key, mean.size)
        affine[scale_key] = _as_float32(scale_key, scale * deviation)
        affine[shift_key] = _as_float32(shift_key, _values(folded, shift_key, mean.size) + mean * scale)
    return affine


def _parts(
    statistics: npt.NDArray[Any], layers: Sequence[StatisticsLayer]
) -> list[tuple[str, str, Float64, Float64]]:
    """Return for each layer its two keys, its mean, and the square root that divides, in float64."""
    checked = check_statistics(statistics, layers).astype(np.float64)
    parts, start = [], 0
    for layer in layers:
        mean, variance = checked[:, start : start + layer.size]
        start += layer.size
        parts.append((f"{layer.layer}.scale", f"{layer.layer}.shift", mean, np.sqrt(variance + layer.eps)))
    return parts


def _values(norm_state: Mapping[str, npt.NDArray[Any]], key: str, size: int) -> Float64:
    value = norm_state.get(key)
    if value is None or np.asarray(value).shape != (size,):
        got = "none" if value is None else f"shape {np.asarray(value).shape}"
        raise FormatError(f"expected {size} values of {key!r}, got {got}: it was made for another model")
    return np.asarray(value, np.float64)


def _as_float32(key: str, values: Float64) -> Float32:
    with np.errstate(over="ignore"):
        short = values.astype(np.float32)
    if not np.isfinite(short).all():
        raise FormatError(f"expected finite values in {key!r} after folding, got NaN or infinity")
    return short

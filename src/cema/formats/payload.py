"""The payload of an update: a norm state and the predictions it must give, in safetensors.

One tensor per norm parameter (``{layer}.scale``, ``{layer}.shift``) and ``golden.logits``, each float16 or
float32, with the metadata ``{"format": "cema.payload/1"}``; and, where the update was made from some domain's
samples, ``environment.mean`` and ``environment.covariance`` in float32.

``cema.payload/2`` has the same tensors; but for the layers that the bundle's manifest lists in ``statistics``, scale
and shift are weight and bias: the device folds statistics into them (`cema.ondevice.folding`). It may have
``statistics.mean`` and ``statistics.variance``, those that the parameters were learned with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from cema.errors import FormatError
from cema.ondevice.drift import Domain

__all__ = ["NormState", "Payload", "check_norm_state", "decode_payload", "encode_payload", "round_norm_state"]

NormState = dict[str, npt.NDArray[np.float32]]
"""Norm parameters by key, ``{layer}.scale`` and ``{layer}.shift``: float32 (size,), finite."""

_FOLDED, _UNFOLDED, _GOLDEN = "cema.payload/1", "cema.payload/2", "golden.logits"
_MEAN, _COVARIANCE = "environment.mean", "environment.covariance"
_STATISTICS = ("statistics.mean", "statistics.variance")


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """A decoded payload.

    Attributes
    ----------
    norm_state : dict of str to ndarray of float32 (size,)
        The norm parameters.
    golden_logits : ndarray of float32 (G, C)
        What the model must predict for the bundle's golden images with these parameters.
    domain : Domain or None
        What the inputs looked like that it was made from; None for parameters that go with any.
    unfolded : bool
        Whether scale and shift of the bundle's layers with statistics are weight and bias; `golden_logits` are then
        those of the norm state with the bundle's own statistics folded into it.
    statistics : ndarray of float32 (2, K) or None
        The means and variances that the parameters were learned with, in the order of the bundle's layers with
        statistics; None where the update does not tell.
    """

    norm_state: NormState
    golden_logits: npt.NDArray[np.float32]
    domain: Domain | None = None
    unfolded: bool = False
    statistics: npt.NDArray[np.float32] | None = None


def check_norm_state(norm_state: Mapping[str, npt.NDArray[Any]]) -> NormState:
    """Check a norm state and return it as float32.

    Parameters
    ----------
    norm_state : mapping of str to ndarray (size,)
        Norm parameters by key.

    Returns
    -------
    dict of str to ndarray of float32 (size,)
        The same values, sorted by key; not copied where they are float32 already.

    Raises
    ------
    FormatError
        If it is empty, a key ends in neither ``.scale`` nor ``.shift``, or a tensor is not a vector of finite
        floats that float32 can hold.
    """
    if not norm_state:
        raise FormatError(
            "expected a norm state with at least one tensor, got none: the model has no norm layers"
        )
    checked: NormState = {}
    for key in sorted(norm_state):
        tensor = np.asarray(norm_state[key])
        if not key.endswith((".scale", ".shift")):
            raise FormatError(f"expected norm keys that end in .scale or .shift, got {key!r}")
        if tensor.dtype.kind != "f" or tensor.ndim != 1 or tensor.size == 0:
            raise FormatError(
                f"expected {key!r} to be a float vector, got {tensor.dtype} of shape {tensor.shape}"
            )
        checked[key] = _finite32(key, tensor)
    return checked


def encode_payload(
    norm_state: Mapping[str, npt.NDArray[Any]],
    golden_logits: npt.NDArray[Any],
    *,
    domain: Domain | None = None,
    tolerance: float = 1e-3,
    unfolded: bool = False,
    statistics: npt.NDArray[Any] | None = None,
) -> bytes:
    r"""Encode a norm state and the predictions it must give.

    A tensor is stored in float16 when rounding it there moves no element by more than ``tolerance / 2`` times
    the tensor's largest magnitude,

    .. math:: \max_i |x_i - \mathrm{f16}(x_i)| \le \tfrac{1}{2}\,\mathtt{tolerance} \cdot \max_i |x_i|,

    and in float32 otherwise, which is what happens to values beyond float16's range and to tensors so small
    that float16 holds them with few bits. Half, because the other half is for differences between runtimes
    when a device compares its logits with the golden ones. The default keeps every tensor of ordinary size in
    float16.

    The statistics of all layers are one tensor, and a channel may be far smaller than another. So they are stored
    in float16 only when that moves no variance by more than ``tolerance / 2`` of itself, or no mean by more than
    ``tolerance / 2`` times the larger of its magnitude and its standard deviation.

    Parameters
    ----------
    norm_state : mapping of str to ndarray (size,)
        Norm parameters by key.
    golden_logits : ndarray (G, C)
        The logits of the golden images, computed with `round_norm_state` of `norm_state`, into which, where it is
        `unfolded`, the bundle's own statistics are folded.
    domain : Domain, optional
        What the inputs looked like that it was made from.
    tolerance : float, default 1e-3
        As above; 0 stores in float16 only what it holds exactly.
    unfolded : bool, default False
        Whether scale and shift of the bundle's layers with statistics are weight and bias: ``cema.payload/2``.
    statistics : ndarray of float (2, K), optional
        The statistics that an unfolded norm state was learned with, in the order of these layers.

    Returns
    -------
    bytes
        The payload; the same input gives the same bytes.

    Raises
    ------
    FormatError
        If the norm state, the logits or the statistics are malformed or not finite, or there are statistics for a
        norm state that is folded.
    """
    golden = np.asarray(golden_logits)
    if golden.dtype.kind != "f" or golden.ndim != 2 or golden.size == 0:
        raise FormatError(
            f"expected golden logits as floats (G, C), got {golden.dtype} of shape {golden.shape}"
        )
    tensors = {key: _shortest(tensor, tolerance) for key, tensor in check_norm_state(norm_state).items()}
    tensors[_GOLDEN] = _shortest(_finite32(_GOLDEN, golden), tolerance)
    if domain is not None:
        tensors |= {_MEAN: domain.mean, _COVARIANCE: domain.covariance}
    if statistics is not None:
        if not unfolded:
            raise FormatError(
                "expected no statistics beside a folded norm state: they are in it; leave them out"
            )
        rows = zip(_STATISTICS, _shortest_statistics(_check_statistics(statistics), tolerance), strict=True)
        tensors |= dict(rows)
    return safetensors.numpy.save(tensors, metadata={"format": _UNFOLDED if unfolded else _FOLDED})


def decode_payload(data: bytes) -> Payload:
    """Decode a payload.

    Parameters
    ----------
    data : bytes
        What `encode_payload` returned.

    Returns
    -------
    Payload
        Everything in float32.

    Raises
    ------
    FormatError
        If `data` is not such a payload.
    """
    try:
        tensors = safetensors.numpy.load(data)
        header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")])
    # safetensors answers damaged bytes with errors of its own, of Rust and of numpy; all mean the same here.
    except Exception as error:
        raise FormatError(f"expected a payload in safetensors, got {len(data)} bytes: {error}") from error
    format_ = (header.get("__metadata__") or {}).get("format")
    if format_ not in (_FOLDED, _UNFOLDED):
        raise FormatError(
            f"expected the payload format {_FOLDED!r} or {_UNFOLDED!r}, got {format_!r}: upgrade the older side"
        )
    for key, tensor in tensors.items():
        if tensor.dtype not in (np.float16, np.float32):
            raise FormatError(f"expected {key!r} in float16 or float32, got {tensor.dtype}")
    golden = tensors.pop(_GOLDEN, None)
    if golden is None or golden.ndim != 2 or golden.size == 0:
        shape = "none" if golden is None else f"shape {golden.shape}"
        raise FormatError(f"expected a tensor {_GOLDEN!r} of shape (G, C), got {shape}")
    domain = _environment(tensors.pop(_MEAN, None), tensors.pop(_COVARIANCE, None))
    unfolded = format_ == _UNFOLDED
    statistics = _statistics(*(tensors.pop(key, None) for key in _STATISTICS)) if unfolded else None
    return Payload(check_norm_state(tensors), _finite32(_GOLDEN, golden), domain, unfolded, statistics)


def _statistics(
    mean: npt.NDArray[Any] | None, variance: npt.NDArray[Any] | None
) -> npt.NDArray[np.float32] | None:
    if mean is None and variance is None:
        return None
    if mean is None or variance is None or mean.ndim != 1 or mean.shape != variance.shape:
        shapes = [None if tensor is None else tensor.shape for tensor in (mean, variance)]
        raise FormatError(f"expected {' and '.join(_STATISTICS)} as vectors of one size, got {shapes}")
    return _check_statistics(np.stack([mean.astype(np.float32), variance.astype(np.float32)]))


def _check_statistics(statistics: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    values = np.asarray(statistics)
    if values.dtype.kind != "f" or values.ndim != 2 or len(values) != 2 or values.size == 0:
        raise FormatError(f"expected statistics as floats (2, K), got {values.dtype} of shape {values.shape}")
    checked = _finite32("statistics", values)
    if (checked[1] < 0).any():
        raise FormatError(f"expected no negative variance in the statistics, got {checked[1].min()}")
    return checked


def _shortest_statistics(statistics: npt.NDArray[np.float32], tolerance: float) -> list[npt.NDArray[Any]]:
    """Return means and variances in float16 where that is close enough (see `encode_payload`), else in float32."""
    exact = statistics.astype(np.float64)
    mean, variance = exact
    sizes = np.maximum(np.abs(mean), np.sqrt(variance)), variance
    with np.errstate(over="ignore", under="ignore"):
        short = statistics.astype(np.float16)
    loss = np.abs(exact - short.astype(np.float64))
    close = [(row <= 0.5 * tolerance * size).all() for row, size in zip(loss, sizes, strict=True)]
    return [short[i] if close[i] else statistics[i] for i in range(2)]


def _environment(mean: npt.NDArray[Any] | None, covariance: npt.NDArray[Any] | None) -> Domain | None:
    if mean is None and covariance is None:
        return None
    if mean is None or covariance is None:
        raise FormatError(f"expected both or neither of {_MEAN!r} and {_COVARIANCE!r}, got one")
    domain = Domain(_finite32(_MEAN, mean), _finite32(_COVARIANCE, covariance))
    domain.precision()  # refuses here what the guard could not use later
    return domain


def round_norm_state(norm_state: Mapping[str, npt.NDArray[Any]], tolerance: float = 1e-3) -> NormState:
    """Return the norm state that a device will run: what decoding its encoding gives.

    Parameters
    ----------
    norm_state : mapping of str to ndarray (size,)
        Norm parameters by key.
    tolerance : float, default 1e-3
        As in `encode_payload`.

    Returns
    -------
    dict of str to ndarray of float32 (size,)
        The rounded parameters. Rounding them again, or encoding them, changes nothing more.

    Raises
    ------
    FormatError
        If the norm state is malformed.
    """
    checked = check_norm_state(norm_state)
    return {key: _shortest(tensor, tolerance).astype(np.float32) for key, tensor in checked.items()}


def _finite32(key: str, tensor: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(tensor, dtype=np.float32)
    if not np.isfinite(converted).all():
        raise FormatError(f"expected finite values in {key!r}, got NaN, infinity or values beyond float32")
    return converted


def _shortest(tensor: npt.NDArray[np.float32], tolerance: float) -> npt.NDArray[Any]:
    """Return the tensor in float16 where that is close enough (see `encode_payload`), else in float32."""
    with np.errstate(over="ignore", under="ignore"):
        short = tensor.astype(np.float16)
    if not np.isfinite(short).all():
        return tensor
    exact = tensor.astype(np.float64)
    loss = np.abs(exact - short.astype(np.float64)).max()
    return short if loss <= 0.5 * tolerance * np.abs(exact).max() else tensor

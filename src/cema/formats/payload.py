"""The payload of an update: a norm state and the predictions it must give, in safetensors.

One tensor per norm parameter (``{layer}.scale``, ``{layer}.shift``) and ``golden.logits``, each float16 or
float32, with the metadata ``{"format": "cema.payload/1"}``; and, where the update was made from some domain's
samples, ``domain.mean`` and ``domain.covariance`` in float32.
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

_FORMAT, _GOLDEN = "cema.payload/1", "golden.logits"
_MEAN, _COVARIANCE = "environment.mean", "environment.covariance"


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
    """

    norm_state: NormState
    golden_logits: npt.NDArray[np.float32]
    domain: Domain | None = None


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
) -> bytes:
    r"""Encode a norm state and the predictions it must give.

    A tensor is stored in float16 when rounding it there moves no element by more than ``tolerance / 2`` times
    the tensor's largest magnitude,

    .. math:: \max_i |x_i - \mathrm{f16}(x_i)| \le \tfrac{1}{2}\,\mathtt{tolerance} \cdot \max_i |x_i|,

    and in float32 otherwise, which is what happens to values beyond float16's range and to tensors so small
    that float16 holds them with few bits. Half, because the other half is for differences between runtimes
    when a device compares its logits with the golden ones. The default keeps every tensor of ordinary size in
    float16.

    Parameters
    ----------
    norm_state : mapping of str to ndarray (size,)
        Norm parameters by key.
    golden_logits : ndarray (G, C)
        The logits of the golden images, computed with `round_norm_state` of `norm_state`.
    domain : Domain, optional
        What the inputs looked like that it was made from.
    tolerance : float, default 1e-3
        As above; 0 stores in float16 only what it holds exactly.

    Returns
    -------
    bytes
        The payload; the same input gives the same bytes.

    Raises
    ------
    FormatError
        If the norm state or the logits are malformed or not finite.
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
    return safetensors.numpy.save(tensors, metadata={"format": _FORMAT})


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
    if format_ != _FORMAT:
        raise FormatError(f"expected the payload format {_FORMAT!r}, got {format_!r}: upgrade the older side")
    for key, tensor in tensors.items():
        if tensor.dtype not in (np.float16, np.float32):
            raise FormatError(f"expected {key!r} in float16 or float32, got {tensor.dtype}")
    golden = tensors.pop(_GOLDEN, None)
    if golden is None or golden.ndim != 2 or golden.size == 0:
        shape = "none" if golden is None else f"shape {golden.shape}"
        raise FormatError(f"expected a tensor {_GOLDEN!r} of shape (G, C), got {shape}")
    domain = _environment(tensors.pop(_MEAN, None), tensors.pop(_COVARIANCE, None))
    return Payload(check_norm_state(tensors), _finite32(_GOLDEN, golden), domain)


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

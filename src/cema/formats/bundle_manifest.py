"""The manifest of a bundle, and the rules its parts must keep among themselves."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cema._util.checks import is_sha256
from cema._util.names import missing_and_unknown
from cema.errors import FormatError
from cema.formats.payload import check_norm_state
from cema.ondevice.folding import StatisticsLayer
from cema.ondevice.preprocess import Preprocessing

__all__ = [
    "BUNDLE_FORMAT",
    "NORM_FILE",
    "BundleManifest",
    "NormTensor",
    "base_digest",
    "check_golden_tensors",
    "layout_bytes",
    "pack_norm",
]

BUNDLE_FORMAT, NORM_FILE = "cema.bundle/2", "norm.bin"
# Without the members that only the present format has.
_OLDER_FORMAT = "cema.bundle/1"
_NEWER_MEMBERS = ("model_graph", "statistics", "statistics_graph", "mean_logits")
_BASE_CONTEXT = b"cema.bundle/2\0"


class NormTensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one norm parameter lies in ``norm.bin``.

    Attributes
    ----------
    key : str
        ``{layer}.scale`` or ``{layer}.shift``.
    offset, length : int
        In bytes.
    size : int
        In elements; ``length`` is four times as much.
    """

    key: str
    offset: int
    length: int
    size: int

    def __post_init__(self) -> None:
        if not self.key.endswith((".scale", ".shift")):
            raise ValueError(f"expected a norm key that ends in .scale or .shift, got {self.key!r}")
        if self.offset < 0 or self.size < 1 or self.length != 4 * self.size:
            raise ValueError(
                f"expected {self.key!r} at an offset >= 0 with a length of 4 bytes per element, got offset "
                f"{self.offset}, length {self.length}, size {self.size}"
            )


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle says about itself.

    Attributes
    ----------
    model : str
        The model's name.
    base : str
        What updates are made for: `base_digest` of the two graphs.
    norm : tuple of NormTensor
        Where each norm parameter lies; no two overlap.
    input_name, output_name : str
        The graph's input, float32 (N, channels, height, width), and output, float32 (N, classes).
    classes : int
        At least 2.
    labels : tuple of str, optional
        One name per class.
    preprocessing : Preprocessing
        From pixels to the input.
    upload_side : int, optional
        The shorter side, in pixels, beyond which an uploaded image is of no further use.
    tolerance : float
        How far, relative to the largest magnitude, logits may be from the golden ones (see `check_golden`).
    created_by : str
        The program and version that wrote it.
    norm_file : str
        ``"norm.bin"``; the graphs refer to it by this name.
    model_graph : str or None
        SHA-256 of ``model.onnx``; None in ``"cema.bundle/1"``, where it is `base`.
    statistics : tuple of StatisticsLayer, default ()
        The layers whose statistics a device can have of its own, in the order of their channels in ``statistics.bin``
        and in the graph that observes them.
    statistics_graph : str or None
        SHA-256 of ``statistics.onnx``, the graph that observes them; None without such layers.
    mean_logits : tuple of float or None
        The mean of the source model's logits over clean images, one per class; None where there were no such images.
    format : str
        ``"cema.bundle/2"``, or ``"cema.bundle/1"`` without the four members above; there is no default, so that a
        manifest without it is refused.

    Raises
    ------
    ValueError
        If a field is out of its range.
    """

    model: str
    base: str
    norm: tuple[NormTensor, ...]
    input_name: str
    output_name: str
    classes: int
    preprocessing: Preprocessing
    tolerance: float
    created_by: str
    labels: tuple[str, ...] | None = None
    upload_side: int | None = None
    norm_file: str = NORM_FILE
    model_graph: str | None = None
    statistics: tuple[StatisticsLayer, ...] = ()
    statistics_graph: str | None = None
    mean_logits: tuple[float, ...] | None = None
    format: str

    def __post_init__(self) -> None:
        if self.format not in (BUNDLE_FORMAT, _OLDER_FORMAT):
            raise ValueError(
                f"expected the format {BUNDLE_FORMAT!r} or {_OLDER_FORMAT!r}, got {self.format!r}: "
                "upgrade the older side"
            )
        if self.norm_file != NORM_FILE:
            raise ValueError(f"expected norm_file to be {NORM_FILE!r}, got {self.norm_file!r}")
        if not is_sha256(self.base):
            raise ValueError(f"expected base to be a SHA-256 in lowercase hex, got {self.base[:80]!r}")
        if self.format == _OLDER_FORMAT:
            newer = [name for name in _NEWER_MEMBERS if getattr(self, name) not in (None, ())]
            if newer:
                raise ValueError(
                    f"expected no member {newer[0]} in {_OLDER_FORMAT}: it came with {BUNDLE_FORMAT}"
                )
        else:
            self._check_graphs()
        if self.classes < 2:
            raise ValueError(f"expected at least 2 classes, got {self.classes}")
        if self.labels is not None and len(self.labels) != self.classes:
            raise ValueError(f"expected one label per class ({self.classes}), got {len(self.labels)}")
        if self.upload_side is not None and self.upload_side < 1:
            raise ValueError(f"expected upload_side of at least 1 pixel, got {self.upload_side}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"expected a tolerance in (0, 1), got {self.tolerance}")
        _check_layout(self.norm)
        _check_statistics_layers(self.statistics, self.norm)
        if self.mean_logits is not None:
            _check_mean_logits(self.mean_logits, self.classes)

    def _check_graphs(self) -> None:
        if bool(self.statistics) != (self.statistics_graph is not None):
            raise ValueError(
                "expected a statistics_graph exactly where there are layers with statistics, got "
                f"{self.statistics_graph!r} and {len(self.statistics)} of them"
            )
        model_graph, graphs = self.model_graph or "", {"model_graph": self.model_graph or ""}
        if self.statistics_graph is not None:
            graphs["statistics_graph"] = self.statistics_graph
        for name, digest in graphs.items():
            if not is_sha256(digest):
                raise ValueError(f"expected {name} to be a SHA-256 in lowercase hex, got {digest[:80]!r}")
        base = base_digest(model_graph, self.statistics_graph)
        if base != self.base:
            raise ValueError(f"expected the base {base}, which follows from the two graphs, got {self.base}")

    @property
    def model_digest(self) -> str:
        """SHA-256 of ``model.onnx``, in either format."""
        return self.base if self.model_graph is None else self.model_graph


def base_digest(model_graph: str, statistics_graph: str | None) -> str:
    r"""Return what updates name the model by that they are made for.

    Without a graph that observes statistics it is the digest of ``model.onnx``. With one it is

    .. math:: \mathrm{SHA256}(\text{"cema.bundle/2"} \,\Vert\, 0 \,\Vert\, m \,\Vert\, s)

    of 14 bytes of context and both digests, 32 bytes each: its devices need updates of another kind.

    Parameters
    ----------
    model_graph : str
        SHA-256 of ``model.onnx``, in hexadecimal.
    statistics_graph : str or None
        SHA-256 of ``statistics.onnx``.

    Returns
    -------
    str
        64 lowercase hexadecimal digits.

    Examples
    --------
    >>> base_digest("00" * 32, None) == "00" * 32
    True
    >>> base_digest("00" * 32, "11" * 32)[:16]
    'fde087825de5d91a'
    """
    if statistics_graph is None:
        return model_graph
    digests = bytes.fromhex(model_graph) + bytes.fromhex(statistics_graph)
    return hashlib.sha256(_BASE_CONTEXT + digests).hexdigest()


def _check_statistics_layers(layers: Sequence[StatisticsLayer], layout: Sequence[NormTensor]) -> None:
    """Check that every layer with statistics has a scale and a shift of its size, and is listed once."""
    sizes = {tensor.key: tensor.size for tensor in layout}
    seen = set()
    for layer in layers:
        if layer.layer in seen:
            raise ValueError(f"the layer {layer.layer!r} is listed twice in statistics")
        seen.add(layer.layer)
        for key in (f"{layer.layer}.scale", f"{layer.layer}.shift"):
            if sizes.get(key) != layer.size:
                got = f"one of {sizes[key]}" if key in sizes else "none"
                raise ValueError(f"expected a norm tensor {key!r} of {layer.size} elements, got {got}")


def _check_mean_logits(mean_logits: Sequence[float], classes: int) -> None:
    if len(mean_logits) != classes or not all(math.isfinite(value) for value in mean_logits):
        raise ValueError(
            f"expected {classes} finite mean_logits, got {len(mean_logits)}: {list(mean_logits)[:4]}"
        )


def _check_layout(layout: Sequence[NormTensor]) -> None:
    if not layout:
        raise FormatError(
            "expected at least one norm tensor, got none: the model has no norm layers to adapt"
        )
    end, seen = 0, set()
    for tensor in sorted(layout, key=lambda item: item.offset):
        if tensor.offset < end:
            raise FormatError(f"the norm tensor {tensor.key!r} overlaps the one before it in {NORM_FILE}")
        if tensor.key in seen:
            raise FormatError(f"the norm tensor {tensor.key!r} is listed twice")
        end = tensor.offset + tensor.length
        seen.add(tensor.key)


def layout_bytes(layout: Sequence[NormTensor]) -> int:
    """Return the size of ``norm.bin`` in bytes."""
    return max(tensor.offset + tensor.length for tensor in layout)


def pack_norm(layout: Sequence[NormTensor], norm_state: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return the bytes of ``norm.bin`` for a norm state; FormatError when it does not fit the layout."""
    checked = check_norm_state(norm_state)
    wanted = {tensor.key: tensor for tensor in layout}
    difference = missing_and_unknown(wanted, checked, unknown="unexpected")
    if difference:
        raise FormatError(
            f"the norm state does not fit the model: {difference}; it was made for another model"
        )
    data = bytearray(layout_bytes(layout))
    for key, tensor in wanted.items():
        if checked[key].size != tensor.size:
            raise FormatError(f"expected {tensor.size} elements in {key!r}, got {checked[key].size}")
        data[tensor.offset : tensor.offset + tensor.length] = checked[key].astype("<f4").tobytes()
    return bytes(data)


def check_golden_tensors(
    tensors: Mapping[str, npt.NDArray[Any]], manifest: BundleManifest, path: Path
) -> None:
    """Raise FormatError unless these are the golden batch that a manifest describes."""
    if set(tensors) != {"images", "logits"}:
        raise FormatError(f"{path}: expected the tensors images and logits, got {sorted(tensors)}")
    images, logits = tensors["images"], tensors["logits"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or images.size == 0:
        raise FormatError(
            f"{path}: expected images as uint8 (G, H, W, 1 or 3), got {images.dtype} {images.shape}"
        )
    if logits.dtype != np.float32 or logits.shape != (images.shape[0], manifest.classes):
        raise FormatError(
            f"{path}: expected logits as float32 {(images.shape[0], manifest.classes)}, "
            f"got {logits.dtype} {logits.shape}"
        )
    if not np.isfinite(logits).all():
        raise FormatError(f"{path}: expected finite logits, got NaN or infinity")

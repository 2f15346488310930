"""The manifest of a bundle, and the rules its parts must keep among themselves."""

from __future__ import annotations

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
from cema.ondevice.preprocess import Preprocessing

__all__ = [
    "BUNDLE_FORMAT",
    "NORM_FILE",
    "BundleManifest",
    "NormTensor",
    "check_golden_tensors",
    "layout_bytes",
    "pack_norm",
]

BUNDLE_FORMAT, NORM_FILE = "cema.bundle/1", "norm.bin"


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
        SHA-256 of ``model.onnx``: what updates are made for.
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
        ``"norm.bin"``; the graph refers to it by this name.
    format : str
        ``"cema.bundle/1"``; there is no default, so that a manifest without it is refused.

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
    format: str

    def __post_init__(self) -> None:
        if self.format != BUNDLE_FORMAT:
            raise ValueError(
                f"expected the format {BUNDLE_FORMAT!r}, got {self.format!r}: upgrade the older side"
            )
        if self.norm_file != NORM_FILE:
            raise ValueError(f"expected norm_file to be {NORM_FILE!r}, got {self.norm_file!r}")
        if not is_sha256(self.base):
            raise ValueError(f"expected base to be a SHA-256 in lowercase hex, got {self.base[:80]!r}")
        if self.classes < 2:
            raise ValueError(f"expected at least 2 classes, got {self.classes}")
        if self.labels is not None and len(self.labels) != self.classes:
            raise ValueError(f"expected one label per class ({self.classes}), got {len(self.labels)}")
        if self.upload_side is not None and self.upload_side < 1:
            raise ValueError(f"expected upload_side of at least 1 pixel, got {self.upload_side}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"expected a tolerance in (0, 1), got {self.tolerance}")
        _check_layout(self.norm)


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

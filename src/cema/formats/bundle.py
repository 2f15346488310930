"""What a device is provisioned with: a folder with the exported model and all it takes to run and update it.

::

    manifest.json         BundleManifest
    model.onnx            the graph and all weights but those of its normalisation layers
    norm.bin              those, float32 little endian, at the offsets that the manifest lists
    statistics.onnx       the graph that observes statistics; its weights are those in model.onnx
    statistics.bin        the source model's statistics, float32 little endian (2, K)
    golden.safetensors    images uint8 (G, H, W, C) and the logits float32 (G, classes) that they must give
    keys/*.pub            the Ed25519 public keys (PEM) whose updates the device accepts

The two files about statistics are there only if the model has BatchNorm layers whose statistics a device can observe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from cema.errors import ConfigError, ExportError, FormatError, LogitsError
from cema.formats.bundle_files import (
    GOLDEN_FILE,
    KEYS_FOLDER,
    MANIFEST_FILE,
    MODEL_FILE,
    SOURCE_STATISTICS_FILE,
    STATISTICS_FILE,
    check_digest,
    check_target,
    load_golden,
    read_exactly,
    read_file,
    write_folder,
)
from cema.formats.bundle_manifest import (
    BUNDLE_FORMAT,
    BundleManifest,
    NormTensor,
    base_digest,
    check_golden_tensors,
    layout_bytes,
    pack_norm,
)
from cema.formats.keys import key_id, load_public_keys, public_key_pem
from cema.formats.payload import NormState, check_norm_state
from cema.ondevice.folding import StatisticsLayer, check_statistics, statistics_shape, unfold
from cema.ondevice.preprocess import Preprocessing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["Bundle", "BundleStatistics", "check_golden", "norm_layout", "write_bundle"]

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True, eq=False)
class BundleStatistics:
    """What lets devices have statistics of their own.

    Attributes
    ----------
    layers : tuple of StatisticsLayer
        The layers that are observed; at least one.
    graph : bytes
        ``statistics.onnx``: inputs and outputs of ``model.onnx``, and beside them the inputs ``known`` (2, K),
        ``rate``, ``source_statistics`` (2, K) and ``source_share``, and the output ``observed`` (2, K). Older ones lack
        the two that begin with ``source``.
    source : ndarray of float (2, K)
        The source model's means and unbiased variances.
    """

    layers: tuple[StatisticsLayer, ...]
    graph: bytes
    source: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A bundle that was read and checked.

    Attributes
    ----------
    path : Path
        Its folder.
    manifest : BundleManifest
        What it says about itself.
    golden_images : ndarray of uint8 (G, H, W, C)
        Images that every version of the model is tried on before it serves.
    golden_logits : ndarray of float32 (G, classes)
        What the model gives with the norm state it was provisioned with.
    public_keys : dict of str to Ed25519PublicKey
        By `cema.formats.keys.key_id`; without any, every update is refused.
    """

    path: Path
    manifest: BundleManifest
    golden_images: npt.NDArray[np.uint8]
    golden_logits: npt.NDArray[np.float32]
    public_keys: dict[str, Ed25519PublicKey]

    @property
    def model_path(self) -> Path:
        """The exported model."""
        return self.path / MODEL_FILE

    @property
    def norm_path(self) -> Path:
        """The norm state that the device was provisioned with."""
        return self.path / self.manifest.norm_file

    @property
    def statistics_path(self) -> Path:
        """The graph that observes statistics; there is none where the manifest's `statistics` is empty."""
        return self.path / STATISTICS_FILE

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Read a bundle and check it.

        Parameters
        ----------
        path : Path
            Its folder.

        Returns
        -------
        Bundle
            Its content; the graphs are hashed and left on the disk.

        Raises
        ------
        FormatError
            If a file is missing or malformed, or the model is not the one that the manifest names.
        """
        path = Path(path)
        try:
            manifest = msgspec.json.decode(read_file(path / MANIFEST_FILE), type=BundleManifest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{path / MANIFEST_FILE}: does not follow {BUNDLE_FORMAT}: {error}") from error
        check_digest(path / MODEL_FILE, manifest.model_digest)
        if manifest.statistics_graph is not None:
            check_digest(path / STATISTICS_FILE, manifest.statistics_graph)
        images, logits = load_golden(path / GOLDEN_FILE, manifest)
        try:
            keys = load_public_keys(path / KEYS_FOLDER)
        except ConfigError as error:
            raise FormatError(str(error)) from error
        bundle = cls(path, manifest, images, logits, keys)
        bundle.affine_state()
        return bundle

    def norm_state(self) -> NormState:
        """Read the norm state that the device was provisioned with.

        Returns
        -------
        dict of str to ndarray of float32 (size,)
            From ``norm.bin``.

        Raises
        ------
        FormatError
            If the file is missing, has the wrong size, or holds NaN or infinity.
        """
        data = read_exactly(self.norm_path, layout_bytes(self.manifest.norm))
        tensors = {
            tensor.key: np.frombuffer(data, "<f4", tensor.size, tensor.offset).astype(np.float32)
            for tensor in self.manifest.norm
        }
        try:
            return check_norm_state(tensors)
        except FormatError as error:
            raise FormatError(f"{self.norm_path}: {error}: provision it again") from error

    def statistics(self) -> npt.NDArray[np.float32] | None:
        """Read the source model's statistics.

        Returns
        -------
        ndarray of float32 (2, K) or None
            Means and unbiased variances of the manifest's `statistics`, in their order; None where that is empty.

        Raises
        ------
        FormatError
            If ``statistics.bin`` is missing, has the wrong size, or holds NaN, infinity or a negative variance.
        """
        layers = self.manifest.statistics
        if not layers:
            return None
        path, shape = self.path / SOURCE_STATISTICS_FILE, statistics_shape(layers)
        data = read_exactly(path, 4 * shape[0] * shape[1])
        try:
            return check_statistics(np.frombuffer(data, "<f4").reshape(shape), layers)
        except FormatError as error:
            raise FormatError(f"{path}: {error}: provision it again") from error

    def affine_state(self) -> NormState:
        """Read the norm state with affine parameters and statistics apart.

        Returns
        -------
        dict of str to ndarray of float32 (size,)
            `norm_state`, with weights and biases in place of what `cema.ondevice.folding.fold` makes of them and
            `statistics`; `norm_state` itself where there are no statistics.

        Raises
        ------
        FormatError
            As `norm_state` and `statistics`, and if a parameter is not finite.
        """
        folded, statistics = self.norm_state(), self.statistics()
        if statistics is None:
            return folded
        try:
            return unfold(folded, statistics, self.manifest.statistics)
        except FormatError as error:
            raise FormatError(f"{self.norm_path}: {error}: provision it again") from error

    def pack_norm(self, norm_state: Mapping[str, npt.NDArray[Any]]) -> bytes:
        """Lay a norm state out as ``norm.bin``.

        Parameters
        ----------
        norm_state : mapping of str to ndarray (size,)
            One tensor for every key of the manifest.

        Returns
        -------
        bytes
            What takes the place of the external data file.

        Raises
        ------
        FormatError
            If a tensor is missing, extra, of the wrong size, or not finite.
        """
        return pack_norm(self.manifest.norm, norm_state)


def norm_layout(norm_state: Mapping[str, npt.NDArray[Any]]) -> tuple[NormTensor, ...]:
    """Give every norm parameter a place in ``norm.bin``.

    Parameters
    ----------
    norm_state : mapping of str to ndarray (size,)
        Norm parameters by key.

    Returns
    -------
    tuple of NormTensor
        In the order of the mapping, each at a multiple of 64 bytes.
    """
    layout, offset = [], 0
    for key, tensor in norm_state.items():
        layout.append(NormTensor(key=key, offset=offset, length=4 * tensor.size, size=tensor.size))
        offset += -(-4 * tensor.size // _ALIGNMENT) * _ALIGNMENT
    return tuple(layout)


def write_bundle(
    path: Path,
    *,
    model: str,
    model_bytes: bytes,
    norm_state: Mapping[str, npt.NDArray[Any]],
    golden_images: npt.NDArray[np.uint8],
    golden_logits: npt.NDArray[np.float32],
    preprocessing: Preprocessing,
    classes: int,
    input_name: str,
    output_name: str,
    created_by: str,
    public_keys: Iterable[Ed25519PublicKey] = (),
    norm: Sequence[NormTensor] | None = None,
    statistics: BundleStatistics | None = None,
    mean_logits: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    upload_side: int | None = None,
    tolerance: float = 1e-3,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle, whole or not at all, and read it back.

    Parameters
    ----------
    path : Path
        The folder to make; the one above it must exist.
    model_bytes : bytes
        The ONNX graph, its norm parameters in the external data file ``norm.bin``.
    norm_state : mapping of str to ndarray (size,)
        The norm parameters.
    norm : sequence of NormTensor, optional
        Where the graph expects each of them; `norm_layout` of `norm_state` when left out.
    statistics : BundleStatistics, optional
        What lets devices have statistics of their own; its graph finds the weights at their offsets in `model_bytes`.
    mean_logits : sequence of float, optional
        The mean of the source model's logits over clean images.
    public_keys : iterable of Ed25519PublicKey, default ()
        The keys whose updates the device accepts.
    overwrite : bool, default False
        Replace a bundle that is there already. A folder that holds anything but a bundle is never replaced.
    model, golden_images, golden_logits, preprocessing, classes, input_name, output_name, created_by, labels,
    \
upload_side, tolerance
        As in `BundleManifest` and `Bundle`.

    Returns
    -------
    Bundle
        As `Bundle.load` reads it.

    Raises
    ------
    FormatError
        If the parts do not fit each other.
    ExportError
        If `path` exists and may not be replaced, or cannot be written.
    """
    path = Path(path)
    layout = tuple(norm) if norm is not None else norm_layout(norm_state)
    model_graph = hashlib.sha256(model_bytes).hexdigest()
    statistics_graph = None if statistics is None else hashlib.sha256(statistics.graph).hexdigest()
    try:
        manifest = BundleManifest(
            model=model,
            base=base_digest(model_graph, statistics_graph),
            model_graph=model_graph,
            statistics=() if statistics is None else tuple(statistics.layers),
            statistics_graph=statistics_graph,
            mean_logits=None if mean_logits is None else tuple(float(value) for value in mean_logits),
            norm=layout,
            input_name=input_name,
            output_name=output_name,
            classes=classes,
            labels=None if labels is None else tuple(labels),
            preprocessing=preprocessing,
            upload_side=upload_side,
            tolerance=tolerance,
            created_by=created_by,
            format=BUNDLE_FORMAT,
        )
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(f"the bundle's manifest would be wrong: {error}") from error
    golden: dict[str, npt.NDArray[Any]] = {
        "images": np.ascontiguousarray(golden_images),
        "logits": np.ascontiguousarray(golden_logits, dtype=np.float32),
    }
    check_golden_tensors(golden, manifest, path / GOLDEN_FILE)
    files = {
        MANIFEST_FILE: msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n",
        MODEL_FILE: model_bytes,
        manifest.norm_file: pack_norm(layout, norm_state),
        GOLDEN_FILE: safetensors.numpy.save(golden),
    }
    if statistics is not None:
        source = check_statistics(statistics.source, manifest.statistics)
        unfold(norm_state, source, manifest.statistics)
        files |= {STATISTICS_FILE: statistics.graph, SOURCE_STATISTICS_FILE: source.astype("<f4").tobytes()}
    files |= {f"{KEYS_FOLDER}/{key_id(key)}.pub": public_key_pem(key) for key in public_keys}
    check_target(path, overwrite)
    try:
        write_folder(path, files)
    except OSError as error:
        raise ExportError(f"{path}: the bundle cannot be written: {error}") from error
    return Bundle.load(path)


def check_golden(got: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> float:
    r"""Compare logits with golden ones.

    .. math:: d = \frac{\max |got - expected|}{\max(1, \max |expected|)}

    Parameters
    ----------
    got, expected : ndarray (G, C)
        Logits.
    tolerance : float
        The largest `d` that passes.

    Returns
    -------
    float
        `d`.

    Raises
    ------
    LogitsError
        A `ValueError`: if `d` is larger, the shapes differ, or anything is not finite.
    """
    ours, golden = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if ours.shape != golden.shape or ours.size == 0:
        raise LogitsError(f"expected golden logits of shape {golden.shape}, got {ours.shape}")
    if not (np.isfinite(ours).all() and np.isfinite(golden).all()):
        raise LogitsError("expected finite logits on the golden images, got NaN or infinity")
    difference = float(np.abs(ours - golden).max() / max(1.0, np.abs(golden).max()))
    if difference > tolerance:
        raise LogitsError(
            f"the logits on the golden images differ by {difference:.3g} (relative), "
            f"at most {tolerance:.3g} is allowed"
        )
    return difference

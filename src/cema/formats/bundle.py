"""What a device is provisioned with: a folder with the exported model and all it takes to run and update it.

::

    manifest.json         BundleManifest
    model.onnx            the graph and all weights but those of its normalisation layers
    norm.bin              those, float32 little endian, at the offsets that the manifest lists
    golden.safetensors    images uint8 (G, H, W, C) and the logits float32 (G, classes) that they must give
    keys/*.pub            the Ed25519 public keys (PEM) whose updates the device accepts
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from cema._util.files import sync_folder, write_synced
from cema.errors import ConfigError, ExportError, FormatError, LogitsError
from cema.formats.bundle_manifest import (
    BUNDLE_FORMAT,
    NORM_FILE,
    BundleManifest,
    NormTensor,
    check_golden_tensors,
    layout_bytes,
    pack_norm,
)
from cema.formats.keys import key_id, load_public_keys, public_key_pem
from cema.formats.payload import NormState, check_norm_state
from cema.ondevice.preprocess import Preprocessing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["Bundle", "check_golden", "check_trust", "norm_layout", "write_bundle"]

_MANIFEST, _MODEL, _GOLDEN, _KEYS = "manifest.json", "model.onnx", "golden.safetensors", "keys"
_ALIGNMENT = 64


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
        return self.path / _MODEL

    @property
    def norm_path(self) -> Path:
        """The norm state that the device was provisioned with."""
        return self.path / self.manifest.norm_file

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
            Its content; the model itself is hashed and left on the disk.

        Raises
        ------
        FormatError
            If a file is missing or malformed, or the model is not the one that the manifest names.
        """
        path = Path(path)
        try:
            manifest = msgspec.json.decode(_read(path / _MANIFEST), type=BundleManifest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{path / _MANIFEST}: does not follow {BUNDLE_FORMAT}: {error}") from error
        digest = _digest(path / _MODEL)
        if digest != manifest.base:
            raise FormatError(
                f"{path / _MODEL}: hashes to {digest}, the manifest says {manifest.base}: "
                f"the bundle is damaged, provision it again"
            )
        images, logits = _load_golden(path / _GOLDEN, manifest)
        try:
            keys = load_public_keys(path / _KEYS)
        except ConfigError as error:
            raise FormatError(str(error)) from error
        bundle = cls(path, manifest, images, logits, keys)
        bundle.norm_state()
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
        data = _read(self.norm_path)
        expected = layout_bytes(self.manifest.norm)
        if len(data) != expected:
            raise FormatError(
                f"{self.norm_path}: expected {expected} bytes, got {len(data)}: provision it again"
            )
        tensors = {
            tensor.key: np.frombuffer(data, "<f4", tensor.size, tensor.offset).astype(np.float32)
            for tensor in self.manifest.norm
        }
        try:
            return check_norm_state(tensors)
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
    try:
        manifest = BundleManifest(
            model=model,
            base=hashlib.sha256(model_bytes).hexdigest(),
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
    check_golden_tensors(golden, manifest, path / _GOLDEN)
    files = {
        _MANIFEST: msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n",
        _MODEL: model_bytes,
        manifest.norm_file: pack_norm(layout, norm_state),
        _GOLDEN: safetensors.numpy.save(golden),
    }
    files |= {f"{_KEYS}/{key_id(key)}.pub": public_key_pem(key) for key in public_keys}
    _check_target(path, overwrite)
    try:
        _write_folder(path, files)
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


def check_trust(bundle: Bundle, key: Ed25519PrivateKey) -> None:
    """Check that devices with this bundle accept what a key signs.

    Raises
    ------
    ConfigError
        If the bundle does not hold the key's public half.
    """
    identity = key_id(key.public_key())
    if identity not in bundle.public_keys:
        raise ConfigError(
            f"the bundle {bundle.path} trusts the keys {sorted(bundle.public_keys)}, the signing key is {identity}: "
            "its devices would refuse every update; sign with a trusted key, or export the bundle with this one"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _digest(path: Path) -> str:
    """Return a file's SHA-256, read piece by piece: a device has no need of the whole model in its memory."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> FormatError:
    return FormatError(
        f"{path}: cannot be read: {error.strerror or error}; expected a bundle as `cema export` writes it"
    )


def _load_golden(
    path: Path, manifest: BundleManifest
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    data = _read(path)
    try:
        tensors = safetensors.numpy.load(data)
    # safetensors answers damaged bytes with errors of its own, of Rust and of numpy; all mean the same here.
    except Exception as error:
        raise FormatError(f"{path}: expected golden images and logits in safetensors: {error}") from error
    check_golden_tensors(tensors, manifest, path)
    return tensors["images"], tensors["logits"]


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink():
        raise ExportError(f"{path}: exists and is not a folder; choose another path")
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return
    if not overwrite:
        raise ExportError(f"{path}: exists and is not empty; choose another path, or ask to overwrite it")
    unknown = names - {_MANIFEST, _MODEL, NORM_FILE, _GOLDEN, _KEYS}
    if _MANIFEST not in names or unknown:
        raise ExportError(
            f"{path}: holds something that is not a bundle ({sorted(unknown)[:4]}) and is not overwritten; "
            f"choose another path"
        )


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write all files into a temporary folder beside `path`, then give it its name."""
    import shutil  # noqa: PLC0415 - slow to load, and a device writes no bundle

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    retired = path.with_name(f".{path.name}.{os.urandom(6).hex()}.old")
    try:
        temporary.mkdir()
        (temporary / _KEYS).mkdir()
        for name, data in files.items():
            write_synced(temporary / name, data)
        sync_folder(temporary / _KEYS)
        sync_folder(temporary)
        if path.exists() and any(path.iterdir()):
            os.rename(path, retired)
        os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)

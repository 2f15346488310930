"""The files of a bundle: their names, reading them, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from cema._util.files import sync_folder, write_synced
from cema.errors import ExportError, FormatError
from cema.formats.bundle_manifest import NORM_FILE, BundleManifest, check_golden_tensors

__all__ = [
    "GOLDEN_FILE",
    "KEYS_FOLDER",
    "MANIFEST_FILE",
    "MODEL_FILE",
    "SOURCE_STATISTICS_FILE",
    "STATISTICS_FILE",
    "check_digest",
    "check_target",
    "digest_of",
    "load_golden",
    "read_exactly",
    "read_file",
    "write_folder",
]

MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE, KEYS_FOLDER = (
    "manifest.json",
    "model.onnx",
    "golden.safetensors",
    "keys",
)
STATISTICS_FILE, SOURCE_STATISTICS_FILE = "statistics.onnx", "statistics.bin"
_NAMES = {
    MANIFEST_FILE,
    MODEL_FILE,
    NORM_FILE,
    STATISTICS_FILE,
    SOURCE_STATISTICS_FILE,
    GOLDEN_FILE,
    KEYS_FOLDER,
}


def read_file(path: Path) -> bytes:
    """Return what is in a file; FormatError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> FormatError:
    return FormatError(
        f"{path}: cannot be read: {error.strerror or error}; expected a bundle as `cema export` writes it"
    )


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, read piece by piece: a device need not hold a whole model."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def check_digest(path: Path, expected: str) -> None:
    """Raise FormatError unless a file has a digest."""
    digest = digest_of(path)
    if digest != expected:
        raise FormatError(
            f"{path}: hashes to {digest}, the manifest says {expected}: the bundle is damaged, provision it again"
        )


def read_exactly(path: Path, size: int) -> bytes:
    """Return what is in a file; FormatError when it has another size."""
    data = read_file(path)
    if len(data) != size:
        raise FormatError(f"{path}: expected {size} bytes, got {len(data)}: provision it again")
    return data


def load_golden(
    path: Path, manifest: BundleManifest
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return the golden images and logits; FormatError when they are not what the manifest describes."""
    data = read_file(path)
    try:
        tensors = safetensors.numpy.load(data)
    # safetensors answers damaged bytes with errors of its own, of Rust and of numpy; all mean the same here.
    except Exception as error:
        raise FormatError(f"{path}: expected golden images and logits in safetensors: {error}") from error
    check_golden_tensors(tensors, manifest, path)
    return tensors["images"], tensors["logits"]


def check_target(path: Path, overwrite: bool) -> None:
    """Raise ExportError when a bundle may not be written to a path: only to a new one, or over a bundle if asked."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink():
        raise ExportError(f"{path}: exists and is not a folder; choose another path")
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return
    if not overwrite:
        raise ExportError(f"{path}: exists and is not empty; choose another path, or ask to overwrite it")
    unknown = names - _NAMES
    if MANIFEST_FILE not in names or unknown:
        raise ExportError(
            f"{path}: holds something that is not a bundle ({sorted(unknown)[:4]}) and is not overwritten; "
            f"choose another path"
        )


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write all files into a temporary folder beside `path`, then give it its name."""
    import shutil  # noqa: PLC0415 - slow to load, and a device writes no bundle

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    retired = path.with_name(f".{path.name}.{os.urandom(6).hex()}.old")
    try:
        temporary.mkdir()
        (temporary / KEYS_FOLDER).mkdir()
        for name, data in files.items():
            write_synced(temporary / name, data)
        sync_folder(temporary / KEYS_FOLDER)
        sync_folder(temporary)
        if path.exists() and any(path.iterdir()):
            os.rename(path, retired)
        os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)

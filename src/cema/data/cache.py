"""Corrupted images on disk: made once, the same for every method and every run.

A file is found by what went into it: the pixels, the corruption, severity, seed and constants, this package's own
code of the corruptions, and the versions of the libraries that it stands on. Whatever of this changes, another file
is made, so a file is never out of date. None is ever removed either: to be rid of them, delete the folder; a run that
is reading them goes on undisturbed.

Each file is an ordinary ``.npy`` that `numpy.load` reads, followed by the digest of all that comes before.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

from cema._util.files import unfinished
from cema._util.folders import user_cache
from cema.data.corruptions import Constants, check_corruption, corrupted_chunks
from cema.errors import ConfigError, ImageError

__all__ = ["cache_folder", "cached_corruptions"]

_DIGEST = 32
_CODE = ("_c_bar_steps.py", "_cifar_steps.py", "c_bar.py", "cifar_corruptions.py", "corruptions.py")
_LIBRARIES = (
    ("imagecorruptions-imaug",),
    ("numba",),
    ("numpy",),
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    ("pillow",),
    ("scikit-image",),
    ("scipy",),
)


def cache_folder() -> Path:
    """Return the folder that corrupted images are kept in unless another is asked for.

    Returns
    -------
    Path
        ``$XDG_CACHE_HOME/cema/corruptions``, or ``~/.cache/cema/corruptions`` where that variable is not set. It
        need not exist.
    """
    return user_cache("corruptions")


def cached_corruptions(
    images: np.ndarray | Sequence[np.ndarray],
    name: str,
    severity: int,
    *,
    seed: int = 0,
    constants: Constants = "imagenet",
    folder: Path | None = None,
    processes: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """Corrupt images of one size, or fetch what was made of them before.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, H, W, C), or sequence of N ndarray of uint8, shape (H, W, C)
        All of one shape. A sequence may read its images when it is sliced; they need not fit in memory.
    name, severity, seed, constants, processes
        As for `cema.data.corruptions.corrupt_images`.
    folder : Path, optional
        Where the files are; made if it does not exist. By default `cache_folder`.
    progress : callable, optional
        Called with the number of images done and the number of all, from the calling thread. What is fetched
        is done at once.

    Returns
    -------
    ndarray of uint8, shape (N, H, W, C)
        Mapped from the file and read-only: copy what you want to change.

    Raises
    ------
    ValueError
        If the name, the severity or the name of the constants is unknown, or `processes` is below 1.
    ImageError
        If an image has a wrong dtype, shape or size, or another shape than the first; the message gives its place.
    ConfigError
        If the folder cannot be written, or the library of corruptions is missing.

    Notes
    -----
    A file that was cut short or has changed since it was written is made again. Processes that make the same file at
    the same time do not disturb each other: each writes its own and moves it into place whole.
    """
    check_corruption(name, severity, constants)
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if not len(images):
        return np.array(images, dtype=np.uint8)
    shape = (len(images), *np.shape(images[0]))
    request = f"{name}/{severity}/{seed}/{constants}/{shape}/{_versions()}/"
    path = (cache_folder() if folder is None else folder) / f"{name}-{severity}-{_key(images, request)}.npy"
    found = _fetched(path, shape)
    if found is None:
        chunks = corrupted_chunks(images, name, severity, seed=seed, constants=constants, processes=processes)
        _store(path, shape, _counted(chunks, len(images), progress))
        found = _mapped(path, shape)
    elif progress is not None:
        progress(len(images), len(images))
    return found


def _counted(
    chunks: Iterable[list[np.ndarray]], total: int, progress: Callable[[int, int], object] | None
) -> Iterator[np.ndarray]:
    done = 0
    for chunk in chunks:
        yield np.stack(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, total)


@cache
def _versions() -> str:
    def version(names: tuple[str, ...]) -> str:
        for name in names:
            try:
                return f"{name} {importlib.metadata.version(name)}"
            except importlib.metadata.PackageNotFoundError:
                continue
        return f"no {names[0]}"

    code = hashlib.blake2b(digest_size=16)
    for name in _CODE:
        code.update(importlib.resources.files("cema.data").joinpath(name).read_bytes())
    return "/".join([code.hexdigest(), *map(version, _LIBRARIES)])


def _key(images: np.ndarray | Sequence[np.ndarray], request: str) -> str:
    digest = hashlib.blake2b(request.encode(), digest_size=16)
    first = np.shape(images[0])
    for index, image in enumerate(images):
        if np.shape(image) != first:
            raise ImageError(
                f"image {index}: expected the shape of the first image, {first}, got {np.shape(image)}; "
                "crop or resize the images to one size"
            )
        digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(path, dtype=np.uint8, mode="r", offset=len(_header(shape)), shape=shape)


def _fetched(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map a file that is there and whole."""
    header = _header(shape)
    size = len(header) + math.prod(shape)
    try:
        if path.stat().st_size != size + _DIGEST:
            return None
        with path.open("rb") as file:
            digest, left = hashlib.blake2b(digest_size=_DIGEST), size
            while left:
                block = file.read(min(left, 1 << 20))
                if not block:
                    return None
                digest.update(block)
                left -= len(block)
            whole = file.read() == digest.digest()
        return _mapped(path, shape) if whole else None
    except (FileNotFoundError, NotADirectoryError):
        return None  # if the folder is wrong, writing will tell
    except OSError as error:
        raise ConfigError(
            f"{path}: corrupted images that were made before cannot be read ({error}); give another folder, or "
            "remove this one"
        ) from error


def _store(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    """Write a file that appears under its name when it is whole, and not before."""
    # Not made durable: what a power loss cut short is told by its digest, and made again. The name is this call's own.
    digest = hashlib.blake2b(digest_size=_DIGEST)
    with unfinished(path) as temporary:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("xb")
        with file:
            for block in chain([_header(shape)], map(np.ndarray.tobytes, blocks)):
                digest.update(block)
                with _explained(path):
                    file.write(block)
            with _explained(path):
                file.write(digest.digest())
                file.flush()
        with _explained(path):
            os.replace(temporary, path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path.parent}: corrupted images cannot be kept here ({error}); give another folder, set XDG_CACHE_HOME, "
            "or make room"
        ) from error

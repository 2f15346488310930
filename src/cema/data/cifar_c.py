"""CIFAR-10-C, CIFAR-100-C and CIFAR-10-C-bar in their published layout: ``<corruption>.npy`` and ``labels.npy``.

Each file holds the 10,000 test images at severity 1, then at severity 2, and so on to 5. It is mapped, not loaded, and
only what is asked for is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from cema.data.base import (
    Dataset,
    DatasetOptions,
    Family,
    LabelledImages,
    choose,
    files_digest,
    known_corruptions,
    required,
)
from cema.data.published import PublishedCorruptions
from cema.errors import ConfigError, ImageError

__all__ = ["CifarC", "CifarCReader", "is_cifar_c"]

_LABELS = "labels.npy"
_SEVERITIES = 5


class CifarC(PublishedCorruptions):
    """A folder of CIFAR-10-C or CIFAR-100-C.

    Parameters
    ----------
    root : Path
        Holds ``labels.npy`` (uint8, 50,000 or 10,000) and for each corruption a file (uint8, 50,000 x 32 x 32 x 3).
        Any number of images will do, as long as every file has five times as many.
    seed, limit
        As for `cema.data.dataset.open_dataset`.

    Attributes
    ----------
    name : str
        ``cifar10-c``, or ``cifar100-c`` where a label is above 9.
    digest, classes, family, logits, corruptions, cropped
        As in `cema.data.base.Dataset`.

    Raises
    ------
    ConfigError
        If the folder, its labels or all of its corruptions are missing.
    ImageError
        If a file is no array, or of another dtype or shape.
    """

    suffix = ".npy"
    clean_images = "CIFAR's test images as a .npz archive with x and y"

    def __init__(self, root: Path, *, seed: int = 0, limit: int | None = None) -> None:
        self.root = root
        names = known_corruptions()
        self.files = {name: path for name in names if (path := root / f"{name}.npy").is_file()}
        if not self.files:
            raise ConfigError(
                f"{root}: expected {_LABELS} and for each corruption a file such as {names[0]}.npy, found none of them"
            )
        first = next(iter(self.files.values()))
        self._labels = _read_labels(root / _LABELS, len(_map_images(first)), first)
        count = len(self._labels)
        # A shuffle only where it was asked for: in file order the images stay mapped.
        self._chosen = None if limit is None else choose(count, limit, seed)
        greatest = int(self._labels.max())
        if greatest > 99:
            raise ImageError(f"{root / _LABELS}: expected labels 0 to 9 or 0 to 99, got {greatest}")
        self.classes = 10 if greatest < 10 else 100
        self.family: Family = "cifar" if self.classes == 10 else "cifar100"
        self.name = f"cifar{self.classes}-c"
        self.digest = hashlib.sha256(
            files_digest(root, self.files.values()).encode() + self._labels.astype("<i8").tobytes()
        ).hexdigest()

    def read(self, path: Path, severity: int) -> LabelledImages:
        """Map the images of one severity; see `PublishedCorruptions.read`."""
        images = _map_images(path)
        count = len(self._labels)
        if len(images) != _SEVERITIES * count:
            raise ImageError(
                f"{path}: expected {_SEVERITIES * count} images, {count} for each severity, got {len(images)} in all; "
                + ("this looks like one severity only: " if len(images) == count else "")
                + "download it anew"
            )
        part = images[(severity - 1) * count : severity * count]
        if self._chosen is None:
            return LabelledImages(part, self._labels)
        return LabelledImages(part[self._chosen], self._labels[self._chosen])


def is_cifar_c(root: Path) -> bool:
    """Say whether a folder is laid out like CIFAR-10-C: with labels, or with a corruption, in a ``.npy`` file."""
    return any((root / f"{name}.npy").is_file() for name in ("labels", *known_corruptions()))


def _map(path: Path) -> np.ndarray:
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read as a .npy array ({error}); download it anew") from error
    if not isinstance(mapped, np.ndarray):
        raise ImageError(f"{path}: expected a .npy array, got an archive; download it anew")
    return mapped


def _map_images(path: Path) -> np.ndarray:
    images = _map(path)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ImageError(
            f"{path}: expected uint8 (images, height, width, 3), got {images.dtype} {images.shape}; download it anew"
        )
    return images


def _read_labels(path: Path, images: int, corruption: Path) -> np.ndarray:
    """Return the labels of one severity; the published file repeats them for each."""
    if not path.is_file():
        raise ConfigError(f"{path}: the labels are missing; download {_LABELS} beside the corruptions")
    labels = _map(path)
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or (labels < 0).any():
        raise ImageError(
            f"{path}: expected whole numbers (images,) from 0 on, got {labels.dtype} {labels.shape}"
        )
    count, rest = divmod(images, _SEVERITIES)
    rows = labels.reshape(-1, count) if not rest and len(labels) in (count, images) else None
    if rows is not None and (rows == rows[0]).all():
        return np.array(rows[0], dtype=np.int64)
    if len(labels) == images:
        raise ImageError(
            f"{path}: expected the same labels at each severity, for the images are the same; got as many labels as "
            f"{corruption.name} has images ({images}), which do not repeat: this looks like one severity only. "
            f"{_SEVERITIES} times as many images are expected, those of severity 1 first; to use one severity alone, "
            "save it with numpy.savez(path, x=images, y=labels), and give that file and --corruptions clean"
        )
    if rest:
        raise ImageError(
            f"{corruption}: expected as many images at each of {_SEVERITIES} severities, got {images} in all; "
            "download it anew"
        )
    raise ImageError(
        f"{path}: expected {images} or {count} labels to go with {corruption.name}, got {len(labels)}"
    )


class CifarCReader:
    """Opens a folder of CIFAR-10-C or CIFAR-100-C; see `cema.data.base.DatasetReader`."""

    name = "cifar-c"
    expects = "a folder of CIFAR-10-C or CIFAR-100-C"
    needs_path = True

    def matches(self, path: Path) -> bool:
        """Tell whether a path is of this kind."""
        return path.is_dir() and is_cifar_c(path)

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Open it."""
        return CifarC(required(self, path), seed=options.seed, limit=options.limit)

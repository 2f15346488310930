"""Data sets for the benchmark: what they offer, and how a name or a path becomes one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from cema.data._shared import Dataset
from cema.data.cifar_c import CifarC, is_cifar_c
from cema.data.corruptions import Constants
from cema.data.digits import load_digits
from cema.data.fashion_mnist import load_fashion_mnist
from cema.data.imagenet_c import ImageNetC, is_imagenet_c
from cema.data.imagenet_r import ImageNetR, is_imagenet_r
from cema.data.npz import array_dataset, open_npz
from cema.data.photographs import IMAGENET_SIDE, open_folder
from cema.errors import ConfigError

__all__ = ["LAYOUTS", "open_dataset"]

#: The layouts that a path may have, and how to say which: ``imagenet-r:PATH``.
LAYOUTS: tuple[str, ...] = ("cifar-c", "folder", "imagenet-c", "imagenet-r", "npz")


def open_dataset(
    spec: str,
    *,
    cache: Path | None,
    seed: int = 0,
    limit: int | None = None,
    wnids: Path | None = None,
    side: int = IMAGENET_SIDE,
    constants: Constants | None = None,
) -> Dataset:
    """Open a data set by name or path.

    Parameters
    ----------
    spec : str
        ``digits`` (embedded: the 2,000 test images), ``fashion-mnist`` (the 10,000 test images), or a path: a folder
        of ImageNet-C, ImageNet-R, CIFAR-10-C or CIFAR-100-C, any folder by class, or a ``.npz`` archive. What a path
        is shows in what it holds; where that is wrong, write the layout before it: ``folder:PATH``.
    cache : Path, optional
        The folder that keeps images corrupted on the fly, and Fashion-MNIST if it must be downloaded.
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

    Returns
    -------
    Dataset
        Nothing is corrupted, and of photographs at most one is read, before it is asked for.

    Raises
    ------
    ConfigError
        If there is no such data set or path, files are missing, or a class folder is unknown.
    ImageError
        If a file is not what it should be; the message names it.
    """
    layout, path = _split(spec)
    array = partial(array_dataset, classes=10, constants=constants, cache=cache, seed=seed, limit=limit)
    if layout == "digits":
        digits = load_digits()
        return array("digits", digits.test_images, digits.test_labels)
    if layout == "fashion-mnist":
        images, labels = load_fashion_mnist(download_to=None if cache is None else cache / "fashion-mnist")
        return array("fashion-mnist", images, labels)
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder; expected {_EXPECTED}")
    openers: dict[str, Callable[[], Dataset]] = {
        "npz": lambda: open_npz(path, constants=constants, cache=cache, seed=seed, limit=limit),
        "cifar-c": lambda: CifarC(path, seed=seed, limit=limit),
        "imagenet-c": lambda: ImageNetC(path, wnids=wnids, seed=seed, limit=limit),
        "imagenet-r": lambda: ImageNetR(path, wnids=wnids, seed=seed, limit=limit),
        "folder": lambda: open_folder(
            path, wnids=wnids, side=side, constants=constants, cache=cache, seed=seed, limit=limit
        ),
    }
    return openers[layout or _recognise(path)]()


_EXPECTED = (
    "digits, fashion-mnist, a .npz archive with x and y, or a folder of ImageNet-C, ImageNet-R, CIFAR-10-C, "
    "CIFAR-100-C or of images by class"
)


def _split(spec: str) -> tuple[str | None, Path]:
    """Take a data set's name, or a layout and a path, apart."""
    if spec in ("digits", "fashion-mnist"):
        return spec, Path()
    before, colon, after = spec.partition(":")
    if colon and before in LAYOUTS and after:
        return before, Path(after).expanduser()
    return None, Path(spec).expanduser()


def _recognise(path: Path) -> str:
    """Return the layout that the content of an existing path has."""
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return "npz"
        raise ConfigError(f"{path}: expected {_EXPECTED}; this file is none of them")
    if is_cifar_c(path):
        return "cifar-c"
    if is_imagenet_c(path):
        return "imagenet-c"
    return "imagenet-r" if is_imagenet_r(path) else "folder"

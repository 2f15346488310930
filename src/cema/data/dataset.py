"""Data sets for the benchmark: how a name or a path becomes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cema._util.names import is_object_name, load_object
from cema.data.base import IMAGENET_SIDE, Dataset, DatasetOptions, DatasetReader
from cema.data.cifar_c import CifarCReader
from cema.data.corruptions import Constants
from cema.data.digits import DigitsReader
from cema.data.fashion_mnist import FashionMnistReader
from cema.data.imagenet_c import ImageNetCReader
from cema.data.imagenet_r import ImageNetRReader
from cema.data.npz import NpzReader
from cema.data.photographs import FolderReader
from cema.errors import ConfigError

__all__ = ["READERS", "open_dataset"]

READERS: tuple[DatasetReader, ...] = (
    DigitsReader(),
    FashionMnistReader(),
    NpzReader(),
    CifarCReader(),
    ImageNetCReader(),
    ImageNetRReader(),
    FolderReader(),
)
"""The built-in kinds of data. Of those that recognise a path, the first opens it."""


def open_dataset(
    spec: str,
    *,
    cache: Path | None,
    seed: int = 0,
    limit: int | None = None,
    wnids: Path | None = None,
    side: int = IMAGENET_SIDE,
    constants: Constants | None = None,
    crops: int = 1,
) -> Dataset:
    """Open a data set by name or path.

    Parameters
    ----------
    spec : str
        ``digits`` (embedded: the 2,000 test images), ``fashion-mnist`` (the 10,000 test images), or a path: a folder
        of ImageNet-C, ImageNet-R, CIFAR-10-C or CIFAR-100-C, any folder by class, or a ``.npz`` archive. What a path
        is shows in what it holds; where that is wrong, write the layout before it: ``folder:PATH``. A reader of one's
        own (`cema.data.base.DatasetReader`) is ``package.module:Class`` or ``path/to/file.py:Class``, and ``@PATH``
        behind it what it opens.
    cache, seed, limit, wnids, side, constants, crops
        See `cema.data.base.DatasetOptions`.

    Returns
    -------
    Dataset
        Nothing is corrupted, and of photographs at most one is read, before it is asked for.

    Raises
    ------
    ConfigError
        If there is no such data set or path, files are missing, a class folder is unknown, or several crops are asked
        for of data that are not cut.
    ImageError
        If a file is not what it should be; the message names it.
    """
    options = DatasetOptions(
        cache=cache, seed=seed, limit=limit, wnids=wnids, side=side, constants=constants, crops=crops
    )
    if crops < 1:
        raise ConfigError(f"the number of crops of each photograph must be at least 1, got {crops}")
    reader, path = _find(spec)
    if crops > 1 and not getattr(reader, "takes_crops", False):
        raise ConfigError(
            f"{spec}: {crops} crops of each photograph were asked for, but {reader.name} has images that are not cut: "
            "published corruptions are corrupted already, and small images would change their meaning; ask for one "
            "crop, or give a folder of clean photographs by class"
        )
    return reader.open(path, options)


def _find(spec: str) -> tuple[DatasetReader, Path | None]:
    """Return who opens a data set, and the path that was named."""
    before, _, after = spec.partition(":")
    for reader in READERS:
        if spec == reader.name and not reader.needs_path:
            return reader, None
        if before == reader.name and after and reader.needs_path:
            return reader, _existing(after)
    name, at, rest = spec.partition("@")
    if is_object_name(name) and not Path(spec).expanduser().exists():
        return _own(name), Path(rest).expanduser() if at else None
    path = _existing(spec)
    for reader in READERS:
        if reader.matches(path):
            return reader, path
    raise ConfigError(f"{path}: expected {_expected()}; this file is none of them")


def _own(name: str) -> DatasetReader:
    """Make a reader of a class that a stranger names."""
    made: Any = load_object(name)
    reader: DatasetReader = made() if isinstance(made, type) else made
    missing = [member for member in ("name", "expects", "matches", "open") if not hasattr(reader, member)]
    if missing:
        raise ConfigError(
            f"{name}: expected a reader of data sets, got {type(reader).__name__} without {', '.join(missing)}; see "
            "cema.data.base.DatasetReader"
        )
    return reader


def _existing(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder; expected {_expected()}")
    return path


def _expected() -> str:
    kinds = [reader.expects for reader in READERS]
    return f"{', '.join(kinds[:-1])} or {kinds[-1]}"

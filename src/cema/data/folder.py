"""Labelled folders of photographs: ``DIR/<class>/<any name>.JPEG``, as ImageNet is laid out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from cema.errors import ConfigError, ImageError

__all__ = ["WNIDS_FILE", "LabelledFolder", "find_class_list", "read_photograph"]

#: Name of the list that gives each class folder its index: one name a line, the first line is class 0.
WNIDS_FILE = "imagenet_wnids.txt"

_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")


class LabelledFolder(Sequence[np.ndarray]):
    """The photographs below a folder, read when they are asked for.

    Parameters
    ----------
    root : Path
        Holds one folder for each class.
    classes : Path, optional
        The list of class names. By default ``imagenet_wnids.txt`` in `root` or beside it, if there is one;
        without any list, the classes are the folders that exist, in sorted order.

    Attributes
    ----------
    files : tuple of Path
        Sorted by class folder and then by name.
    labels : ndarray of int64, shape (N,)
        Index of the class of each file.
    classes : tuple of str
        The class names by index.

    Raises
    ------
    ConfigError
        If the folder or list is absent, empty or has a class folder that the list does not know.
    """

    def __init__(self, root: Path, *, classes: Path | None = None) -> None:
        if not root.is_dir():
            raise ConfigError(f"{root}: expected a folder with one folder of photographs for each class")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        listed = find_class_list(root) if classes is None else classes
        self.classes = tuple(folder.name for folder in folders) if listed is None else _read_list(listed)
        index = {name: number for number, name in enumerate(self.classes)}
        files, labels = [], []
        for folder in folders:
            if folder.name not in index:
                raise ConfigError(
                    f"{folder}: class {folder.name!r} is not in {listed}; add it there or remove the folder"
                )
            found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
            files += found
            labels += [index[folder.name]] * len(found)
        if not files:
            raise ConfigError(
                f"{root}: no photographs found; expected {root.name}/<class>/<name> ending in "
                f"{', '.join(_SUFFIXES)}"
            )
        self.files: tuple[Path, ...] = tuple(files)
        self.labels: np.ndarray = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """Read one photograph, or a list of them."""
        if isinstance(index, slice):
            return [read_photograph(path) for path in self.files[index]]
        return read_photograph(self.files[index])


def read_photograph(path: Path) -> np.ndarray:
    """Read a photograph as RGB pixels.

    Parameters
    ----------
    path : Path
        Any format that Pillow reads.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        Turned upright where the file says how the camera was held.

    Raises
    ------
    ImageError
        If the file is absent, truncated or no image; the message names it.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415 - only photographs need it

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return np.array(upright.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{path}: cannot be read as an image ({error}); replace or remove the file"
        ) from error


def find_class_list(root: Path) -> Path | None:
    """Find the list of class names that belongs to a folder.

    Parameters
    ----------
    root : Path
        A folder of photographs.

    Returns
    -------
    Path or None
        ``imagenet_wnids.txt`` in the folder or beside it, if there is one.
    """
    for folder in (root, root.resolve().parent):
        if (folder / WNIDS_FILE).is_file():
            return folder / WNIDS_FILE
    return None


def _read_list(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the list of classes cannot be read ({error}); one name a line is expected"
        ) from error
    # A line may go on after the name, as in ImageNet's "n01440764 tench, Tinca tinca".
    names = tuple(line.split()[0] for line in lines if line.strip())
    if not names:
        raise ConfigError(f"{path}: the list of classes is empty; one name a line is expected")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ConfigError(
            f"{path}: every class may be listed once, but {', '.join(twice)} come twice or more"
        )
    return names

"""Labelled folders of photographs: ``DIR/<class>/<any name>.JPEG``, as ImageNet is laid out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cema.data.image_sequence import ImageSequence
from cema.errors import ConfigError, ImageError
from cema.ondevice.image_file import IMAGE_SUFFIXES, read_image_file

__all__ = ["WNIDS_FILE", "LabelledFolder", "find_class_list", "read_photograph"]

#: Name of the list that gives each class folder its index: one name a line, the first line is class 0.
WNIDS_FILE = "imagenet_wnids.txt"


class LabelledFolder(ImageSequence):
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
            found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            files += found
            labels += [index[folder.name]] * len(found)
        if not files:
            raise ConfigError(
                f"{root}: no photographs found; expected {root.name}/<class>/<name> ending in "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        self.files: tuple[Path, ...] = tuple(files)
        self.labels: np.ndarray = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, place: int) -> np.ndarray:
        """Read one photograph, uint8 (H, W, 3); see `read_photograph`."""
        return read_photograph(self.files[place])


def read_photograph(path: Path) -> np.ndarray:
    """Read a photograph as RGB pixels.

    Parameters
    ----------
    path : Path
        Any format that Pillow reads.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        Turned upright where the file says how the camera was held; 16 bits per channel are scaled down to 8.

    Raises
    ------
    ImageError
        If the file is absent, truncated, no image, or has a range of pixels that is unknown; the message names it.
    """
    try:
        image = read_image_file(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{path}: cannot be read as an image ({error}); replace or remove the file"
        ) from error
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


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

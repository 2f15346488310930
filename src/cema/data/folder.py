"""Labelled folders of photographs: ``DIR/<class>/<any name>.JPEG``, as ImageNet is laid out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from cema.data.image_sequence import ImageSequence
from cema.errors import ConfigError
from cema.ondevice.image_file import IMAGE_SUFFIXES, read_image_file
from cema.ondevice.image_folder import list_images, subfolders

__all__ = [
    "WNIDS_FILE",
    "LabelledFolder",
    "as_numbers",
    "class_folders",
    "find_class_list",
    "in_order",
    "read_photograph",
]

#: Name of the list that gives each class folder its index: one name a line, the first line is class 0.
WNIDS_FILE = "imagenet_wnids.txt"


class LabelledFolder(ImageSequence):
    """The photographs below a folder, read when they are asked for.

    Which files are photographs, and which folders only accompany them, says `cema.ondevice.image_folder`.

    Parameters
    ----------
    root : Path
        Holds one folder for each class.
    classes : Path, optional
        The list of class names. By default ``imagenet_wnids.txt`` in `root` or beside it, if there is one;
        without any list, the classes are the folders that exist, in the order of `in_order`.

    Attributes
    ----------
    files : tuple of Path
        In the order of the class folders (`in_order`) and then by name.
    labels : ndarray of int64, shape (N,)
        Index of the class of each file.
    classes : tuple of str
        The class names by index.
    listed : Path or None
        The list that they are from.
    empty : tuple of str
        Class folders without photographs.
    passed_over : dict of str to int
        How many files in class folders were no images by their names, by ending.
    misplaced : int
        How many images lie beside the class folders or in folders below them: these are not used.

    Raises
    ------
    ConfigError
        If the folder or list is absent, empty or has a class folder that the list does not know.
    """

    def __init__(self, root: Path, *, classes: Path | None = None) -> None:
        if not root.is_dir():
            raise ConfigError(f"{root}: expected a folder with one folder of photographs for each class")
        folders = {path.name: path for path in class_folders(root)}
        ordered = in_order(tuple(folders), root)
        self.listed = find_class_list(root) if classes is None else classes
        if self.listed is None:
            self.classes, index = ordered, {name: number for number, name in enumerate(ordered)}
        else:
            self.classes, index = _read_list(self.listed)
        files: list[Path] = []
        labels: list[int] = []
        passed_over = Counter[str]()
        deeper = 0
        for name in ordered:
            if name not in index:
                raise ConfigError(
                    f"{folders[name]}: class {name!r} is not in {self.listed}; add it there or remove the folder"
                )
            found = list_images(folders[name])
            for path, error in found.unreadable:
                raise ConfigError(f"{path}: cannot be listed: {error}; check its permissions") from error
            own = [file for file in found.images if file.parent == folders[name]]
            files += own
            labels += [index[name]] * len(own)
            deeper += len(found.images) - len(own)
            passed_over.update(found.passed_over)
        if not files:
            raise ConfigError(
                f"{root}: no photographs found; expected {root.name}/<class>/<name> ending in "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        self.files: tuple[Path, ...] = tuple(files)
        self.labels: np.ndarray = np.array(labels, dtype=np.int64)
        present = set(labels)
        self.empty = tuple(name for name in ordered if index[name] not in present)
        self.passed_over = dict(sorted(passed_over.items()))
        self.misplaced = deeper + len(list_images(root, below=False).images)

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
        See `cema.ondevice.image_file.read_image_file`.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        As it reads them, grey repeated.

    Raises
    ------
    ImageError
        If the file is absent, damaged, no image, or has a range of pixels that is unknown; the message names it.
    """
    image = read_image_file(path)
    return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def class_folders(root: Path) -> list[Path]:
    """Return the folders in a folder that may be classes, sorted by name.

    Parameters
    ----------
    root : Path
        See `cema.ondevice.image_folder.subfolders`.

    Raises
    ------
    ConfigError
        If it cannot be listed.
    """
    try:
        return subfolders(root)
    except OSError as error:
        raise ConfigError(f"{root}: cannot be listed: {error}; check its permissions") from error


def as_numbers(names: Sequence[str]) -> tuple[int, ...] | None:
    """Return names as numbers if all are whole numbers, else None.

    Examples
    --------
    >>> as_numbers(["0", "007"]), as_numbers(["0", "cat"])
    ((0, 7), None)
    """
    if not all(name.isascii() and name.isdigit() for name in names):
        return None
    return tuple(map(int, names))


def in_order(names: Sequence[str], root: Path) -> tuple[str, ...]:
    """Return the names of class folders in their order: by number where all are whole numbers, else as text.

    Parameters
    ----------
    names : sequence of str
        Each once.
    root : Path
        The folder, for messages.

    Raises
    ------
    ConfigError
        If two folders have the same number.

    Examples
    --------
    >>> in_order(["10", "2", "0"], Path("digits"))
    ('0', '2', '10')
    """
    if as_numbers(names) is None:
        return tuple(sorted(names))
    ordered = tuple(sorted(names, key=int))
    for one, other in pairwise(ordered):
        if int(one) == int(other):
            raise ConfigError(
                f"{root}: class folders {one} and {other} are the same number; rename or join them"
            )
    return ordered


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


def _read_list(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of a list, and the place of each; a line may also be one name with spaces."""
    try:
        # Some editors put a mark before the first line, which utf-8-sig takes away.
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the list of classes cannot be read ({error}); one name a line is expected, saved as UTF-8"
        ) from error
    if not lines:
        raise ConfigError(f"{path}: the list of classes is empty; one name a line is expected")
    # A line may go on after the name, as in ImageNet's "n01440764 tench, Tinca tinca".
    words = Counter(line.split()[0] for line in lines)
    short = {line.split()[0]: number for number, line in enumerate(lines) if words[line.split()[0]] == 1}
    names = (
        tuple(lines)
        if len(short) < len(lines) == len(set(lines))
        else tuple(line.split()[0] for line in lines)
    )
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ConfigError(
            f"{path}: every class may be listed once, but {', '.join(twice)} come twice or more"
        )
    return names, {line: number for number, line in enumerate(lines)} | short

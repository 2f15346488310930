"""ImageNet-C in its published layout: ``<corruption>/<severity>/<wnid>/<name>.JPEG``."""

from __future__ import annotations

import re
from pathlib import Path

from cema.data.base import (
    Dataset,
    DatasetOptions,
    Family,
    LabelledImages,
    choose,
    files_digest,
    required,
)
from cema.data.class_order import FolderClasses
from cema.data.corruptions import CORRUPTIONS, FAMILIES, VALIDATION_CORRUPTIONS
from cema.data.folder import LabelledFolder, class_folders, find_class_list
from cema.data.photographs import Photographs
from cema.data.published import PublishedCorruptions
from cema.errors import ConfigError

__all__ = ["WNID", "ImageNetC", "ImageNetCReader", "is_imagenet_c"]

#: What the name of a WordNet noun looks like.
WNID = re.compile(r"n\d{8}")

# Not those of C-bar: the folders of its severities are named otherwise.
_PUBLISHED = (*CORRUPTIONS, *VALIDATION_CORRUPTIONS)

# The archives are named after the families; some people keep these names as folders.
_PARENTS = ("", *(family for family in FAMILIES if family != "validation"), "extra")


class ImageNetC(PublishedCorruptions):
    """A folder of ImageNet-C, whole or in part.

    The published images are 224 pixels a side; they are read when they are asked for.

    Parameters
    ----------
    root : Path
        Holds a folder for each corruption, or for each published archive (``noise``, ``blur``, ``weather``,
        ``digital``, ``extra``) with the corruptions below it.
    wnids : Path, optional
        The list of class names in the order of the model's logits. By default ``imagenet_wnids.txt`` in `root` or
        beside it; without any list the classes are the class folders in sorted order, which is ImageNet's own order
        where all 1,000 are present; of a part of them, no model of 1,000 logits can be scored without a list.
    seed, limit
        As for `cema.data.dataset.open_dataset`.

    Attributes
    ----------
    folder_classes : FolderClasses
        What decides which logits the class folders are scored on.
    name, digest, classes, family, logits, corruptions, cropped
        As in `cema.data.base.Dataset`. The digest is that of the images of the first corruption and severity there.

    Raises
    ------
    ConfigError
        If no corruption is present, or a class folder is no wnid or not in the list.
    """

    name = "imagenet-c"
    family: Family = "imagenet"
    clean_images = "the folder of ImageNet's validation images by class"

    def __init__(
        self, root: Path, *, wnids: Path | None = None, seed: int = 0, limit: int | None = None
    ) -> None:
        self.root = root
        self.files = _find_corruptions(root)
        if not self.files:
            raise ConfigError(
                f"{root}: expected a folder for each corruption, such as {_PUBLISHED[0]}/3/n01440764, "
                "found none"
            )
        reference = self._reference()
        check_wnids(reference)
        folder = LabelledFolder(reference, classes=wnids or find_class_list(root))
        self.classes = len(folder.classes)
        self.folder_classes = FolderClasses.of(folder, reference)
        self.digest = files_digest(reference, folder.files)
        chosen = choose(len(folder), limit, seed)
        self._names = tuple(folder.files[place].relative_to(reference) for place in chosen)
        self._labels = folder.labels[chosen]

    def _reference(self) -> Path:
        """Return the first severity present of the first corruption: it says which images there are."""
        for folder in self.files.values():
            for severity in _severities(folder):
                return folder / severity
        raise ConfigError(
            f"{next(iter(self.files.values()))}: expected folders 1 to 5, one for each severity, found none"
        )

    def read(self, path: Path, severity: int) -> LabelledImages:
        """Name the images of one severity, to be read when they are asked for; see `PublishedCorruptions.read`."""
        folder = path / str(severity)
        if not folder.is_dir():
            there = ", ".join(_severities(path)) or "none"
            raise ConfigError(f"{folder}: this severity is missing; of {path.name} there is {there}")
        files = [folder / name for name in self._names]
        missing = next((path for path in files if not path.is_file()), None)
        if missing is not None:
            raise ConfigError(
                f"{missing}: this image is missing, though {self._reference()} has it; every corruption and severity "
                "must hold the same images"
            )
        return LabelledImages(Photographs(files), self._labels)


def is_imagenet_c(root: Path) -> bool:
    """Say whether a folder is laid out like ImageNet-C: whether it holds a folder named after a corruption."""
    return bool(_find_corruptions(root))


def check_wnids(root: Path) -> None:
    """Check that every class folder is named by a wnid.

    Raises
    ------
    ConfigError
        If one is not; the message names it.
    """
    for folder in class_folders(root):
        if not WNID.fullmatch(folder.name):
            raise ConfigError(
                f"{folder}: expected a class folder named by its wnid, such as n01440764; rename or remove it"
            )


def _find_corruptions(root: Path) -> dict[str, Path]:
    found = {}
    for name in _PUBLISHED:
        for parent in _PARENTS:
            if (root / parent / name).is_dir():
                found[name] = root / parent / name
                break
    return found


def _severities(folder: Path) -> list[str]:
    return [name for name in "12345" if (folder / name).is_dir()]


class ImageNetCReader:
    """Opens a folder of ImageNet-C; see `cema.data.base.DatasetReader`."""

    name = "imagenet-c"
    expects = "a folder of ImageNet-C"
    needs_path = True

    def matches(self, path: Path) -> bool:
        """Tell whether a path is of this kind."""
        return path.is_dir() and is_imagenet_c(path)

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Open it."""
        return ImageNetC(required(self, path), wnids=options.wnids, seed=options.seed, limit=options.limit)

"""ImageNet-R in its published layout: ``<wnid>/<name>.jpg`` for 200 of ImageNet's 1,000 classes.

References
----------
.. [1] D. Hendrycks et al., "The Many Faces of Robustness: A Critical Analysis of Out-of-Distribution
   Generalization", ICCV 2021.
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
    Progress,
    choose,
    files_digest,
    required,
    shown_name,
)
from cema.data.class_order import FolderClasses
from cema.data.folder import WNIDS_FILE, LabelledFolder, class_folders, find_class_list
from cema.data.imagenet_c import check_wnids
from cema.data.photographs import Photographs
from cema.errors import ConfigError

__all__ = ["ImageNetR", "ImageNetRReader", "is_imagenet_r"]

_CLASSES = 200
_NAME = "imagenet-r"

# Of the sorted 200 wnids, one a line, without a newline at the end.
_WNIDS_SHA256 = "e19a59d84e3746fafd34d2ccf6ae604a44e9a0500a596f343c878a89e30ce624"


class ImageNetR:
    """A folder of ImageNet-R; also of ImageNet's own validation images of the same 200 classes.

    The images show art, cartoons, toys and the like in any size; they are the shift themselves, so none are
    corrupted. A model of 1,000 classes is scored on the logits of the 200 alone.

    Parameters
    ----------
    root : Path
        Holds a folder for each of the 200 wnids.
    wnids : Path, optional
        The list of all class names in the order of the model's logits; by default ``imagenet_wnids.txt`` in `root`
        or beside it.
    seed, limit
        As for `cema.data.dataset.open_dataset`.

    Attributes
    ----------
    name : str
        ``imagenet-r``, or the name of the folder where that says something else.
    logits : tuple of int
        The columns of the 200 classes in ascending order of their wnids; labels count these.
    folder_classes : FolderClasses
        What the list says of the model's logits.
    digest, classes, family, corruptions, cropped
        As in `cema.data.base.Dataset`.

    Raises
    ------
    ConfigError
        If the list or a class folder is missing, or a class folder is no wnid or not in the list.
    """

    family: Family = "imagenet"
    corruptions: tuple[str, ...] | None = ()
    cropped = False

    def __init__(
        self, root: Path, *, wnids: Path | None = None, seed: int = 0, limit: int | None = None
    ) -> None:
        if not root.is_dir():
            raise ConfigError(
                f"{root}: expected a folder with a folder of images for each of {_CLASSES} wnids"
            )
        self._root = root
        check_wnids(root)
        listed = wnids or find_class_list(root)
        if listed is None:
            raise ConfigError(
                f"{root}: ImageNet-R needs the list of the model's 1,000 classes to know which logits its 200 are; "
                f"put {WNIDS_FILE} (one wnid a line, in the order of the logits) in or beside this folder"
            )
        folder = LabelledFolder(root, classes=listed)
        present, labels = np.unique(folder.labels, return_inverse=True)
        if len(present) != _CLASSES:
            raise ConfigError(
                f"{root}: expected images in {_CLASSES} class folders, found them in {len(present)}; unpack the whole "
                "archive"
            )
        columns = sorted((folder.classes[column], int(column)) for column in present)
        self.logits: tuple[int, ...] | None = tuple(column for _, column in columns)
        place = {column: number for number, column in enumerate(self.logits)}
        order = np.array([place[int(column)] for column in present])
        self.name = _NAME if _is_named(root) else shown_name(root)
        self.classes = len(folder.classes)
        self.folder_classes = FolderClasses.of(folder, root)
        self.digest = files_digest(root, folder.files)
        chosen = choose(len(folder), limit, seed)
        self._files = [folder.files[index] for index in chosen]
        self._labels = order[labels][chosen].astype(np.int64)

    def clean(self) -> LabelledImages:
        """Return the images as they are published."""
        return LabelledImages(Photographs(self._files), self._labels)

    def corrupted(
        self, corruption: str, severity: int, *, processes: int = 1, progress: Progress | None = None
    ) -> LabelledImages:
        """Refuse: the images are the shift themselves.

        Raises
        ------
        ConfigError
            Always.
        """
        raise ConfigError(
            f"{self._root}: {self.name} has no {corruption} at severity {severity}: its images are the shift "
            "themselves; run it without corruptions"
        )


def is_imagenet_r(root: Path) -> bool:
    """Say whether a folder is ImageNet-R: by its name, or by its class folders."""
    if _is_named(root):
        return True
    names = [path.name for path in class_folders(root)]
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest() == _WNIDS_SHA256


def _is_named(root: Path) -> bool:
    return root.resolve().name.lower().replace("_", "-").startswith(_NAME)


class ImageNetRReader:
    """Opens a folder of ImageNet-R; see `cema.data.base.DatasetReader`."""

    name = "imagenet-r"
    expects = "a folder of ImageNet-R"
    needs_path = True

    def matches(self, path: Path) -> bool:
        """Tell whether a path is of this kind."""
        return path.is_dir() and is_imagenet_r(path)

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Open it."""
        return ImageNetR(required(self, path), wnids=options.wnids, seed=options.seed, limit=options.limit)

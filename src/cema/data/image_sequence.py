"""Sequences of images that are read when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from cema.errors import ConfigError
from cema.ondevice.image_file import IMAGE_SUFFIXES, read_image_file
from cema.ondevice.image_folder import list_images

__all__ = ["FolderImages", "ImageSequence"]


class ImageSequence(Sequence[np.ndarray]):
    """Images that are read one by one, also where a slice asks for several; write `__len__` and `read`."""

    @abstractmethod
    def read(self, place: int) -> np.ndarray:
        """Read the image at a place, uint8 (H, W, C); `place` may count from the end.

        Raises
        ------
        IndexError
            If there is no such place.
        ImageError
            If the image cannot be read; the message names its file.
        """

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """Read one image, or a list of them; raises what `read` raises."""
        if isinstance(index, slice):
            return [self.read(place) for place in range(len(self))[index]]
        return self.read(index)


class FolderImages(ImageSequence):
    """All images of a folder, its subfolders included, sorted by path.

    Parameters
    ----------
    folder : Path
        See `cema.ondevice.image_folder.list_images`.

    Raises
    ------
    ConfigError
        If it is no folder, cannot be listed, or has no images.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: expected a folder of images; check the path")
        listing = list_images(folder)
        for path, error in listing.unreadable:
            raise ConfigError(f"{path}: cannot be listed: {error}; check its permissions") from error
        if not listing.images:
            raise ConfigError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}) in it, found none")
        self.files = listing.images

    def __len__(self) -> int:
        return len(self.files)

    def read(self, place: int) -> np.ndarray:
        """Read an image, uint8 (H, W, 1 or 3); see `cema.ondevice.image_file.read_image_file`."""
        return read_image_file(self.files[place])

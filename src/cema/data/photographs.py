"""Photographs that are read, and brought to one size, when they are asked for."""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cema.data.base import Dataset, DatasetOptions, LabelledImages, choose, files_digest, required, shown_name
from cema.data.class_order import FolderClasses
from cema.data.clean import CleanDataset
from cema.data.corruptions import MIN_SIDE
from cema.data.folder import LabelledFolder, read_photograph
from cema.data.image_sequence import ImageSequence
from cema.data.npz import SMALL_SIDE, constants_for, family_of
from cema.errors import ConfigError, ImageError
from cema.ondevice.preprocess import resize_image

__all__ = ["KEPT", "DecodedOnce", "FolderReader", "Photographs", "centre_crop", "open_folder"]


#: ImageNet-C scales the shorter side to 256 pixels and keeps the 224 in the centre.
KEPT = 224 / 256


class Photographs(ImageSequence):
    """Photographs in files. Reading keeps no state, so several threads may read at once.

    Parameters
    ----------
    files : sequence of Path
        Where they are.
    side : int
        Bring each to a square of this side with `centre_crop`; 0 leaves them as they are.
    kept : float
        See `centre_crop`.
    size : tuple of int, optional
        The height and width that all must have after that.
    """

    def __init__(
        self, files: Sequence[Path], *, side: int = 0, kept: float = KEPT, size: tuple[int, int] | None = None
    ) -> None:
        self.files = tuple(files)
        self.side = side
        self.kept = kept
        self._size = size

    def __len__(self) -> int:
        return len(self.files)

    def read(self, place: int) -> np.ndarray:
        """Read one photograph, uint8 (H, W, 3).

        Raises
        ------
        ImageError
            If the file is absent, truncated, no image or of another size; the message names it.
        """
        path = self.files[place]
        image = read_photograph(path)
        if self.side:
            image = centre_crop(image, self.side, self.kept)
        if self._size is not None and image.shape[:2] != self._size:
            raise ImageError(
                f"{path}: expected {self._size[0]} x {self._size[1]} pixels like the first photograph, got "
                f"{image.shape[0]} x {image.shape[1]}; give a side that all are brought to"
            )
        return image


class DecodedOnce:
    """Photographs in one size, decoded when they are first asked for and mapped from a temporary file after that.

    Every corruption starts from the same pixels, and finding what was made of them before needs all of them too. The
    file has no name: it is gone with the process, however that ends.

    Parameters
    ----------
    photographs : Photographs
        All of one size.
    folder : Path, optional
        Where the file takes its space; by default the system's folder for temporary files.
    """

    def __init__(self, photographs: Photographs, folder: Path | None = None) -> None:
        self._photographs = photographs
        self._folder = folder
        self._lock = threading.Lock()
        self._pixels: np.ndarray | None = None

    def __call__(self, threads: int = 1) -> np.ndarray:
        """Return the photographs as an array of uint8, shape (N, H, W, 3).

        Parameters
        ----------
        threads : int
            How many share the decoding the first time.

        Raises
        ------
        ImageError
            If a file is absent, truncated, no image or of another size; the message names it.
        ConfigError
            If there is no space for them.
        """
        with self._lock:
            if self._pixels is None:
                self._pixels = self._decoded(threads)
            return self._pixels

    def _decoded(self, threads: int) -> np.ndarray:
        photographs = self._photographs
        shape = (len(photographs), *photographs[0].shape)
        pixels = _mapped_space(shape, self._folder)

        def decode(index: int) -> None:
            pixels[index] = photographs[index]

        with ThreadPoolExecutor(max(1, threads)) as pool:
            tasks = [pool.submit(decode, index) for index in range(len(photographs))]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        pixels.flags.writeable = False
        return pixels


def _mapped_space(shape: tuple[int, ...], folder: Path | None) -> np.ndarray:
    """Return an array in a file without a name."""
    size = math.prod(shape)
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # Space is taken now: where a mapped file finds the disk full later, the system ends the process.
            if hasattr(os, "posix_fallocate"):  # not everywhere
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)
    except OSError as error:
        raise ConfigError(
            f"{folder or tempfile.gettempdir()}: decoded photographs need {size / 1e9:.1f} GB here ({error}); make "
            "room, use fewer photographs, or choose another folder for the cache"
        ) from error


def centre_crop(image: np.ndarray, side: int, kept: float = KEPT) -> np.ndarray:
    """Scale the shorter side to ``side / kept`` and cut out the middle square.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, C)
        An image of any size.
    side : int
        Side of the square in pixels; 224 for ImageNet-C.
    kept : float
        The part of the shorter side that stays, in (0, 1]; by default as ImageNet-C was made.

    Returns
    -------
    ndarray of uint8, shape (side, side, C)
        The square.

    Examples
    --------
    >>> centre_crop(np.zeros((300, 500, 3), np.uint8), 224).shape
    (224, 224, 3)
    """
    height, width = image.shape[:2]
    scale = round(side / kept) / min(height, width)
    # A little is added, so that the shorter side never falls short by a rounding error.
    size = (int(height * scale + 1e-6), int(width * scale + 1e-6))
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    resized = resize_image(image, *size, interpolation="bilinear")
    return np.ascontiguousarray(resized[top : top + side, left : left + side])


def open_folder(root: Path, options: DatasetOptions) -> CleanDataset:
    """Open a folder of photographs by class as a data set named after the folder.

    Photographs whose shorter side is above 64 pixels are cut to one size before they are corrupted, as ImageNet-C was
    made, and clean they are cut in the same way, so that only the corruption makes a difference.

    Parameters
    ----------
    root : Path
        See `cema.data.folder.LabelledFolder`.
    options : DatasetOptions
        With a side of 0 photographs stay as they are, and to be corrupted must have one size.

    Returns
    -------
    CleanDataset
        Its corruptions are made on the fly, its clean photographs read when they are asked for.

    Raises
    ------
    ConfigError
        If the folder or the list is absent, empty or has a class folder that the list does not know, or `side` is
        too small.
    ImageError
        If the first photograph cannot be read.
    """
    side = options.side
    if side and side < MIN_SIDE:
        raise ConfigError(
            f"photographs can be cut to squares of at least {MIN_SIDE} pixels, got {side}; 0 keeps them"
        )
    folder = LabelledFolder(root, classes=options.wnids)
    chosen = choose(len(folder), options.limit, options.seed)
    files = [folder.files[place] for place in chosen]
    height, width, channels = read_photograph(files[0]).shape
    if min(height, width) <= SMALL_SIDE:
        side = 0
    size: tuple[int, int] = (side, side) if side else (height, width)
    return CleanDataset(
        name=shown_name(root),
        digest=files_digest(root, folder.files),
        classes=len(folder.classes),
        folder_classes=FolderClasses.of(folder, root),
        family=family_of(height, width, channels, len(folder.classes)),
        images=LabelledImages(Photographs(files, side=side), folder.labels[chosen]),
        constants=options.constants or constants_for(*size, channels),
        cache=options.cache,
        seed=options.seed,
        cropped=bool(side) or min(size) <= SMALL_SIDE,
        one_size=DecodedOnce(Photographs(files, side=side, size=size), options.cache),
    )


class FolderReader:
    """Opens a folder of images by class; see `cema.data.base.DatasetReader`."""

    name = "folder"
    expects = "a folder of images by class"
    needs_path = True

    def matches(self, path: Path) -> bool:
        """Tell whether a path is of this kind."""
        return path.is_dir()

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Open it."""
        return open_folder(required(self, path), options)

"""Photographs that are read, and brought to one size, when they are asked for."""

from __future__ import annotations

import hashlib
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
from cema.data.crops import KEPT, centre_crop, random_crop
from cema.data.folder import LabelledFolder, read_photograph
from cema.data.image_sequence import ImageSequence
from cema.data.npz import SMALL_SIDE, constants_for, family_of
from cema.errors import ConfigError, ImageError

__all__ = ["Crops", "DecodedOnce", "FolderReader", "Photographs", "open_folder"]


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


class Crops(ImageSequence):
    """Several squares of each photograph. Reading keeps no state, so several threads may read at once.

    Crop 0 of a photograph is what `Photographs` cuts out of it (`cema.data.crops.centre_crop`). Crop k > 0 is
    `cema.data.crops.random_crop` with a generator of its own, seeded by the seed, the photograph's place in the folder
    and k, so that no crop depends on which others there are.

    Parameters
    ----------
    files : sequence of Path
        All photographs of the folder.
    chosen : ndarray of int64, shape (P,)
        The places of those that are used.
    count : int
        How many squares each gives at most, at least 1.
    limit : int, optional
        Use the first so many: crop 0 of every photograph, then crop 1 of every one, and so on. So the first P images
        are those of `Photographs`, and a limit takes as many photographs as it can.
    side : int
        Of the squares, in pixels.
    seed : int
        Of the random squares, at least 0.

    Attributes
    ----------
    places : ndarray of int64, shape (N,)
        Which photograph each image is of.
    numbers : ndarray of int64, shape (N,)
        Which crop of it.
    """

    def __init__(
        self,
        files: Sequence[Path],
        chosen: np.ndarray,
        *,
        count: int,
        limit: int | None,
        side: int,
        seed: int,
    ) -> None:
        self.files = tuple(files)
        self.places: np.ndarray = np.tile(chosen, count)[:limit]
        self.numbers: np.ndarray = np.repeat(np.arange(count), len(chosen))[:limit]
        self.side = side
        self.seed = seed

    def __len__(self) -> int:
        return len(self.places)

    def read(self, place: int) -> np.ndarray:
        """Read one photograph and cut the square, uint8 (side, side, 3); raises what `Photographs.read` raises."""
        photograph, number = int(self.places[place]), int(self.numbers[place])
        image = read_photograph(self.files[photograph])
        if number == 0:
            return centre_crop(image, self.side)
        return random_crop(image, self.side, np.random.default_rng([self.seed, photograph, number]))


class DecodedOnce:
    """Photographs in one size, decoded when they are first asked for and mapped from a temporary file after that.

    Every corruption starts from the same pixels, and finding what was made of them before needs all of them too. The
    file has no name: it is gone with the process, however that ends.

    Parameters
    ----------
    photographs : ImageSequence
        All of one size.
    folder : Path, optional
        Where the file takes its space; by default the system's folder for temporary files.
    """

    def __init__(self, photographs: ImageSequence, folder: Path | None = None) -> None:
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
        If the folder or the list is absent, empty or has a class folder that the list does not know, `side` is too
        small, or several crops are asked for of what is not cut.
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
    height, width, channels = read_photograph(folder.files[chosen[0]]).shape
    if min(height, width) <= SMALL_SIDE:
        side = 0
    size: tuple[int, int] = (side, side) if side else (height, width)
    _check_cut(root, options, side)
    images, one_size = _images(folder, chosen, options, side, size)
    return CleanDataset(
        name=shown_name(root),
        digest=_digest(root, folder, options),
        classes=len(folder.classes),
        folder_classes=FolderClasses.of(folder, root),
        family=family_of(height, width, channels, len(folder.classes)),
        images=images,
        constants=options.constants or constants_for(*size, channels),
        cache=options.cache,
        seed=options.seed,
        cropped=bool(side) or min(size) <= SMALL_SIDE,
        one_size=DecodedOnce(one_size, options.cache),
    )


def _images(
    folder: LabelledFolder, chosen: np.ndarray, options: DatasetOptions, side: int, size: tuple[int, int]
) -> tuple[LabelledImages, ImageSequence]:
    """Return the images of a folder, and the same ones in one size."""
    if options.crops > 1:
        crops = Crops(
            folder.files, chosen, count=options.crops, limit=options.limit, side=side, seed=options.seed
        )
        return LabelledImages(crops, folder.labels[crops.places], crops.places), crops
    files = [folder.files[place] for place in chosen]
    labelled = LabelledImages(Photographs(files, side=side), folder.labels[chosen])
    return labelled, Photographs(files, side=side, size=size)


def _digest(root: Path, folder: LabelledFolder, options: DatasetOptions) -> str:
    digest = files_digest(root, folder.files)
    if options.crops == 1:
        return digest
    # Not the same data as the photographs themselves: results of the two must not come into one table.
    return hashlib.sha256(f"{digest}/crops/{options.crops}/{options.seed}".encode()).hexdigest()


def _check_cut(root: Path, options: DatasetOptions, side: int) -> None:
    """Refuse several crops of what is not cut."""
    if options.crops == 1 or side:
        return
    asked = f"{root}: {options.crops} crops of each photograph were asked for, but these"
    if options.side:
        raise ConfigError(f"{asked} are not above {SMALL_SIDE} pixels and are not cut; ask for one crop")
    raise ConfigError(f"{asked} stay as they are with a side of 0; give a side, or ask for one crop")


class FolderReader:
    """Opens a folder of images by class; see `cema.data.base.DatasetReader`."""

    name = "folder"
    expects = "a folder of images by class"
    needs_path = True
    takes_crops = True

    def matches(self, path: Path) -> bool:
        """Tell whether a path is of this kind."""
        return path.is_dir()

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Open it."""
        return open_folder(required(self, path), options)

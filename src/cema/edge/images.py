"""Where the images of ``cema edge run`` come from: the files of a folder, or the rows of an array on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cema.errors import ConfigError, ImageError
from cema.ondevice.image_file import IMAGE_SUFFIXES, read_image_file
from cema.ondevice.image_folder import ImageListing, list_images

__all__ = ["ImageSource", "Picture", "Unreadable", "open_source"]

# A file is complete when its size and time have not changed for so long.
_REST_SECONDS = 1.0
_LOOK_SECONDS = 0.25
# A folder is looked through for a tenth of the time at most, however many files it holds.
_LOOK_SHARE = 10

Unreadable: TypeAlias = Callable[[int | None, Path, Exception], None]
"""Called with the index of a file (None: a folder), its path, and why it cannot be read."""


@dataclass(frozen=True)
class Picture:
    """One image of a source.

    Attributes
    ----------
    index : int
        Its place among the files or rows, from 0; files that cannot be read keep theirs.
    file : Path or None
        Where it is from; None for a row of an array.
    pixels : ndarray of uint8, shape (H, W, 1 or 3)
    """

    index: int
    file: Path | None
    pixels: npt.NDArray[np.uint8]


class ImageSource(Protocol):
    """Images in order. Its length is how many there are, as far as that is known at the start."""

    @property
    def passed_over(self) -> Mapping[str, int]:
        """How many files are no images by their names, by ending; see `cema.ondevice.image_folder.ImageListing`."""

    def __len__(self) -> int: ...

    def read(self, unreadable: Unreadable) -> Iterator[Picture | None]:
        """Read one image after the other; None means that there is none now, but may be one later.

        Parameters
        ----------
        unreadable : callable
            See `Unreadable`; what cannot be read is skipped.
        """


class _Array:
    """The rows of an array."""

    passed_over: Mapping[str, int] = {}

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, unreadable: Unreadable) -> Iterator[Picture | None]:
        del unreadable  # every row can be read
        for index, row in enumerate(self._rows):
            yield Picture(index, None, np.array(row, np.uint8))


class _Folder:
    """The files that a folder holds at the start."""

    def __init__(self, listing: ImageListing) -> None:
        self._listing = listing
        self.passed_over: Mapping[str, int] = listing.passed_over

    def __len__(self) -> int:
        return len(self._listing.images)

    def read(self, unreadable: Unreadable) -> Iterator[Picture | None]:
        for folder, error in self._listing.unreadable:
            unreadable(None, folder, error)
        for index, file in enumerate(self._listing.images):
            picture = _read(index, file, unreadable)
            if picture is not None:
                yield picture


class _FollowedFolder(_Folder):
    """The files that a folder holds, and those that come later; it has no end."""

    def __init__(self, folder: Path, listing: ImageListing) -> None:
        super().__init__(listing)
        self._arrivals = _Arrivals(folder)

    def read(self, unreadable: Unreadable) -> Iterator[Picture | None]:
        index, due = 0, 0.0
        while True:
            began = time.monotonic()
            if began < due:
                yield None
                continue
            files = self._arrivals.look(unreadable)
            ended = time.monotonic()
            due = ended + max(_LOOK_SECONDS, _LOOK_SHARE * (ended - began))
            for file in files:
                picture = _read(index, file, unreadable)
                index += 1
                if picture is not None:
                    yield picture
            if not files:
                yield None


class _Arrivals:
    """Which files of a folder are new and complete; a file that is written anew is new again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: dict[Path, tuple[int, int]] = {}
        self._growing: dict[Path, tuple[tuple[int, int], float]] = {}
        self._told: set[tuple[Path, str]] = set()

    def look(self, unreadable: Unreadable) -> list[Path]:
        """Return the files that have become complete since the last look, those at the start sorted by path."""
        listing = list_images(self._folder)
        problems = {(folder, str(error)): error for folder, error in listing.unreadable}
        for (folder, text), error in problems.items():
            if (folder, text) not in self._told:
                unreadable(None, folder, error)
        self._told = set(problems)
        now = time.monotonic()
        first = not self._taken
        complete = [file for file in listing.images if self._is_complete(file, now)]
        if (
            listing.images and not problems
        ):  # a folder that is away for a while comes back with the same files
            present = set(listing.images)
            self._taken = {file: stamp for file, stamp in self._taken.items() if file in present}
            self._growing = {file: seen for file, seen in self._growing.items() if file in present}
        return complete if first else sorted(complete, key=lambda file: (self._taken[file][1], file))

    def _is_complete(self, file: Path, now: float) -> bool:
        """Tell whether a file is new and at rest, and take note of it."""
        try:
            status = file.stat()
        except OSError:  # gone again, or a link that leads nowhere yet
            return False
        stamp = (status.st_size, status.st_mtime_ns)
        if self._taken.get(file) == stamp:
            return False
        seen, since = self._growing.get(file, (None, now))
        if seen != stamp:
            self._growing[file] = (stamp, now)
            return False
        if not status.st_size or now - since < _REST_SECONDS:
            return False
        del self._growing[file]
        self._taken[file] = stamp
        return True


def _read(index: int, file: Path, unreadable: Unreadable) -> Picture | None:
    """Read a file, or report it."""
    try:
        return Picture(index, file, read_image_file(file))
    except ImageError as error:
        unreadable(index, file, error)
        return None


def open_source(source: Path, *, follow: bool = False) -> ImageSource:
    """Open a folder of images or an array on disk.

    Parameters
    ----------
    source : Path
        A folder of images, subfolders included, or a ``.npy`` file with uint8 (N, H, W, 1 or 3), which is mapped.
    follow : bool, default False
        Of a folder, also the files that come later, without end. Each is read when it has not changed for a second,
        and again when it is written anew.

    Returns
    -------
    ImageSource
        Of a folder, the files sorted by path; those that come later, in the order of their times.

    Raises
    ------
    ImageError
        When the source is neither of the two, or holds no images and is not followed.
    ConfigError
        When an array is to be followed.
    """
    try:
        folder = source.is_dir()
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error}; check its permissions") from error
    if not folder:
        rows = _mapped_rows(source)
        if follow:
            raise ConfigError(f"{source}: expected a folder to follow, got an array; leave out --follow")
        return _Array(rows)
    listing = list_images(source)
    for path, reason in listing.unreadable:
        if path == source:
            raise ImageError(f"{source}: cannot be read: {reason}; check its permissions") from reason
    if follow:
        return _FollowedFolder(source, listing)
    if not listing.images:
        raise ImageError(f"{source}: expected images ({', '.join(IMAGE_SUFFIXES)}) in it, {_found(listing)}")
    return _Folder(listing)


def _found(listing: ImageListing) -> str:
    """Say what a folder without images holds."""
    others = [f"{count} {ending or 'without ending'}" for ending, count in listing.passed_over.items()]
    others += [f"{folder}: {error}" for folder, error in listing.unreadable]
    return f"found none; passed over: {', '.join(others)}" if others else "found none"


def _mapped_rows(source: Path) -> npt.NDArray[Any]:
    """Map an array of images that is on disk."""
    if source.suffix != ".npy":
        raise ImageError(f"{source}: expected a folder of images or a .npy file; check the path")
    try:
        rows: npt.NDArray[Any] = np.load(source, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(
            f"{source}: cannot be read: {error}; expected a .npy file of uint8 images"
        ) from error
    if rows.dtype != np.uint8 or rows.ndim != 4 or rows.shape[3] not in {1, 3}:
        raise ImageError(
            f"{source}: expected uint8 (N, H, W, 1 or 3), got {rows.dtype} {rows.shape}; save the images so"
        )
    return rows

"""The image files of a folder, those that it holds and those that come into it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from cema.edge.images.base import Picture, Pictures, Unreadable
from cema.errors import ImageError
from cema.ondevice.image_file import IMAGE_SUFFIXES, read_image_file
from cema.ondevice.image_folder import ImageListing, list_images

__all__ = ["FolderSource", "FollowedFolder"]

# A file is complete when its size and time have not changed for so long.
_REST_SECONDS = 1.0
_LOOK_SECONDS = 0.25
# A folder is looked through for a tenth of the time at most, however many files it holds.
_LOOK_SHARE = 10
# How long a look that finds nothing new takes, waiting included: a signal is obeyed after it.
_WAIT_SECONDS = 0.2


class FolderSource:
    """The files that a folder holds at the start, sorted by path, subfolders included.

    Parameters
    ----------
    folder : Path
    may_be_empty : bool
        Whether a folder without images will do.

    Raises
    ------
    ImageError
        It cannot be looked into, or holds no images.
    """

    dropped = None

    def __init__(self, folder: Path, *, may_be_empty: bool = False) -> None:
        listing = list_images(folder)
        for path, reason in listing.unreadable:
            if path == folder:
                raise ImageError(f"{folder}: cannot be read: {reason}; check its permissions") from reason
        if not listing.images and not may_be_empty:
            raise ImageError(
                f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}) in it, {_found(listing)}"
            )
        self.name = str(folder)
        self.passed_over: Mapping[str, int] = listing.passed_over
        self._listing = listing

    def __len__(self) -> int:
        return len(self._listing.images)

    def read(self, unreadable: Unreadable) -> Pictures:
        """Read file after file."""
        for folder, error in self._listing.unreadable:
            unreadable(None, folder, error)
        for index, file in enumerate(self._listing.images):
            picture = _read(index, file, unreadable)
            if picture is not None:
                yield picture


class FollowedFolder(FolderSource):
    """The files that a folder holds, and those that come later, in the order of their times; it has no end.

    Each is read when it has not changed for a second, and again when it is written anew.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, may_be_empty=True)
        self._arrivals = _Arrivals(folder)

    def read(self, unreadable: Unreadable) -> Pictures:
        """Read file after file, without end."""
        index, due = 0, 0.0
        while True:
            began = time.monotonic()
            if began < due:
                time.sleep(min(_WAIT_SECONDS, due - began))
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
            yield None  # what is there is predicted before the next wait


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


def _found(listing: ImageListing) -> str:
    """Say what a folder without images holds."""
    others = [f"{count} {ending or 'without ending'}" for ending, count in listing.passed_over.items()]
    others += [f"{folder}: {error}" for folder, error in listing.unreadable]
    return f"found none; passed over: {', '.join(others)}" if others else "found none"

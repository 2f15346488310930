"""Which files of a folder are images: the same rules for a device's source and for a data set."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cema.ondevice.image_file import IMAGE_SUFFIXES

__all__ = ["ImageListing", "is_companion", "list_images", "subfolders"]

# What file systems, storage servers and archivers put beside pictures, in lower case: thumbnails, trash, snapshots.
_COMPANIONS = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "__macosx",
        "lost+found",
        "system volume information",
    }
)
# Endings that are counted one by one; numbered files may have one each.
_ENDINGS = 20


@dataclass(frozen=True)
class ImageListing:
    """What a folder holds.

    Attributes
    ----------
    images : tuple of Path
        The image files, sorted by path; a link that leads nowhere is one of them if its name says so.
    passed_over : dict of str to int
        How many files were no images by their names, by ending in lower case (``""``: none); above 20 endings, the
        rarest are counted together as ``"other"``. Hidden files and companions are not counted.
    unreadable : tuple of (Path, OSError)
        Folders that could not be listed, and why.
    """

    images: tuple[Path, ...]
    passed_over: dict[str, int]
    unreadable: tuple[tuple[Path, OSError], ...]


def is_companion(name: str) -> bool:
    """Tell whether a file or folder only accompanies pictures, and is skipped with all that is in it.

    Parameters
    ----------
    name : str
        The last part of its path.

    Returns
    -------
    bool
        True for hidden names, which begin with a dot (``._photo.jpg``, ``.thumbnails``), and for the folders of
        thumbnails, trash and metadata of storage servers, archivers and systems (``@eaDir``, ``__MACOSX``).

    Examples
    --------
    >>> [is_companion(name) for name in ("._a.jpg", "@eaDir", "a.jpg")]
    [True, True, False]
    """
    return name.startswith(".") or name.lower() in _COMPANIONS


def list_images(folder: Path, *, below: bool = True) -> ImageListing:
    """List the images of a folder.

    Parameters
    ----------
    folder : Path
        Links in it are followed; a folder that several links lead to is listed once.
    below : bool, default True
        Also in its subfolders.

    Returns
    -------
    ImageListing
        Nothing is raised for a folder that cannot be listed: see `ImageListing.unreadable`.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    unreadable: list[tuple[Path, OSError]] = []
    visited: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            entries = _unvisited_entries(here, visited)
        except OSError as error:
            unreadable.append((here, error))
            continue
        folders = []
        for entry in entries:
            ending = Path(entry.name).suffix.lower()
            if _is_folder(entry):
                folders.append(here / entry.name)
            elif ending in IMAGE_SUFFIXES and _is_file(entry):
                images.append(here / entry.name)
            else:
                others[ending] += 1
        if below:
            # The last is taken first: of two links to one folder, the first by name is the one that counts.
            waiting += reversed(folders)
    return ImageListing(tuple(sorted(images)), _by_ending(others), tuple(unreadable))


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones and companions.

    Parameters
    ----------
    folder : Path
        It must exist. Links are followed.

    Raises
    ------
    OSError
        When it cannot be listed.
    """
    return sorted(path for path in folder.iterdir() if not is_companion(path.name) and path.is_dir())


def _unvisited_entries(folder: Path, visited: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name, without companions; nothing when it was visited before."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in visited:
        return []
    visited.add(identity)
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not is_companion(e.name)), key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # such as a circle of links
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is to be read: no pipe or device, which might never end; who reads it sees what fails."""
    try:
        return entry.is_file() or not Path(entry.path).exists()
    except OSError:
        return True


def _by_ending(counts: Counter[str]) -> dict[str, int]:
    """Return the counts sorted by ending, the rarest of many as one."""
    if len(counts) <= _ENDINGS:
        return dict(sorted(counts.items()))
    common = dict(counts.most_common(_ENDINGS - 1))
    return {**dict(sorted(common.items())), "other": counts.total() - sum(common.values())}

"""Where the images of ``cema edge run`` come from: the files of a folder, or the rows of an array on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cema.errors import ImageError
from cema.ondevice.image_file import IMAGE_SUFFIXES, read_image_file

__all__ = ["ImageSource", "open_source"]

# A camera's folder may hold more formats than a data set.
_SUFFIXES = {*IMAGE_SUFFIXES, ".gif", ".tif", ".tiff"}


class ImageSource:
    """Images in order.

    Parameters
    ----------
    files : list of Path
        The files of a folder.
    rows : ndarray of uint8, shape (N, H, W, C), optional
        The images themselves, in place of files.
    """

    def __init__(self, files: list[Path], rows: npt.NDArray[Any] | None) -> None:
        self._files, self._rows = files, rows

    def __len__(self) -> int:
        return len(self._files) if self._rows is None else len(self._rows)

    def read(self, unreadable: Callable[[Path, Exception], None]) -> Iterator[npt.NDArray[np.uint8]]:
        """Read one image after the other.

        Parameters
        ----------
        unreadable : callable
            Called with a file that cannot be read, and why; it is skipped.

        Yields
        ------
        ndarray of uint8, shape (H, W, 1 or 3)
            The next image.
        """
        if self._rows is not None:
            for row in self._rows:
                yield np.array(row, np.uint8)
            return
        for file in self._files:
            try:
                image = read_image_file(file)
            # Pillow's decoders raise whatever a damaged file leads them into: OSError, SyntaxError and more.
            except Exception as error:
                unreadable(file, error)
                continue
            yield image


def open_source(source: Path) -> ImageSource:
    """Open a folder of images or an array on disk.

    Parameters
    ----------
    source : Path
        A folder of images, subfolders included, or a ``.npy`` file with uint8 (N, H, W, 1 or 3), which is mapped.

    Returns
    -------
    ImageSource
        Of a folder, the files sorted by path.

    Raises
    ------
    ImageError
        When the source is neither of the two, or holds no images.
    """
    try:
        folder = source.is_dir()
        files = _image_files(source) if folder else []
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error}; check its permissions") from error
    if folder:
        if not files:
            raise ImageError(f"{source}: expected images ({', '.join(sorted(_SUFFIXES))}) in it, found none")
        return ImageSource(files, None)
    return ImageSource([], _mapped_rows(source))


def _image_files(folder: Path) -> list[Path]:
    """List the image files below a folder."""
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())


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

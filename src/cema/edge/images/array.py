"""The rows of an array on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cema.edge.images.base import Picture, Pictures, Unreadable
from cema.errors import ImageError

__all__ = ["ArraySource"]


class ArraySource:
    """The rows of a ``.npy`` file, which is mapped, not read whole.

    Parameters
    ----------
    path : Path
        With uint8 (N, H, W, 1 or 3).

    Raises
    ------
    ImageError
        It cannot be read, or holds something else.
    """

    passed_over: Mapping[str, int] = {}
    dropped = None

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._rows = _mapped_rows(path)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, unreadable: Unreadable) -> Pictures:
        """Read row after row: every one can be read."""
        del unreadable
        for index, row in enumerate(self._rows):
            yield Picture(index, None, np.array(row, np.uint8))


def _mapped_rows(source: Path) -> npt.NDArray[Any]:
    """Map an array of images that is on disk."""
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

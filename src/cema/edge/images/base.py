"""What every source of images offers to ``cema edge run``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["ImageSource", "Picture", "Pictures", "Unreadable"]

Unreadable: TypeAlias = Callable[[int | None, Path | str, Exception], None]
"""Called with the index of an image (None: a folder or a stream), where it is from, and why it cannot be read."""


@dataclass(frozen=True)
class Picture:
    """One image of a source.

    Attributes
    ----------
    index : int
        Its place among the files, rows or frames, from 0; what cannot be read or is not taken keeps its place.
    file : Path, str or None
        Where it is from: a file, or the address of a stream, without what is secret in it; None for a row of an array.
    pixels : ndarray of uint8, shape (H, W, 1 or 3)
    position : float or None
        Of a frame of a video file, its seconds from the start.
    """

    index: int
    file: Path | str | None
    pixels: npt.NDArray[np.uint8]
    position: float | None = None


Pictures: TypeAlias = Generator[Picture | None, None, None]
"""One image after the other; None means that there is none now, but may be one later."""


class ImageSource(Protocol):
    """Images in order. Its length is how many there are, as far as that is known at the start."""

    @property
    def name(self) -> str:
        """What it is called where people read it: nothing secret is in it."""

    @property
    def passed_over(self) -> Mapping[str, int]:
        """How many files are no images by their names, by ending; see `cema.ondevice.image_folder.ImageListing`."""

    @property
    def dropped(self) -> int | None:
        """Of a live source, how many frames gave way to newer ones or were damaged; None where nothing ever is."""

    def __len__(self) -> int: ...

    def read(self, unreadable: Unreadable) -> Pictures:
        """Read one image after the other; before a None it has waited a moment by itself.

        Parameters
        ----------
        unreadable : callable
            See `Unreadable`; what cannot be read is skipped.
        """

"""A sequence of images that are read when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

import numpy as np

__all__ = ["ImageSequence"]


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

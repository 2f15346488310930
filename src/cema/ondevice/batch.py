"""A batch of images on its way through several models: each model's inputs are made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from cema.ondevice.drift import input_statistics
from cema.ondevice.preprocess import Preprocessing, check_images

__all__ = ["Batch"]


class Batch(Sequence[npt.NDArray[np.uint8]]):
    """Images, and what each model's preprocessing makes of them, made when it is first asked for.

    A step of the cloud shows the same images to three versions of the edge model and twice to the foundation model;
    preprocessing them costs about as much as a forward pass of a small network.

    Parameters
    ----------
    images : sequence of ndarray of uint8 (H, W, C)
        Of any sizes; C is 1 or 3. May be empty.
    parts : sequence of Batch, optional
        Batches that these images come from, in order: their inputs are put together and not made again.

    Raises
    ------
    ImageError
        When an image is not as above.

    Examples
    --------
    >>> batch = Batch([np.zeros((4, 4, 1), np.uint8)] * 2)
    >>> prepare = Preprocessing(height=2, width=2, channels=1, mean=(0.0,), std=(1.0,))
    >>> batch.inputs(prepare) is batch.inputs(prepare)
    True
    >>> len(Batch.joined(batch, batch))
    4
    """

    def __init__(self, images: Sequence[npt.NDArray[np.uint8]] = (), *, parts: Sequence[Batch] = ()) -> None:
        self._images = [image for part in parts for image in part] if parts else check_images(list(images))
        self._parts = tuple(parts)
        self._inputs: dict[Preprocessing, npt.NDArray[np.float32]] = {}
        self._statistics: dict[Preprocessing, npt.NDArray[np.float32]] = {}

    @classmethod
    def joined(cls, *parts: Batch) -> Batch:
        """Return the images of several batches as one."""
        return cls(parts=parts)

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> list[npt.NDArray[np.uint8]]: ...
    def __getitem__(self, index: int | slice) -> npt.NDArray[np.uint8] | list[npt.NDArray[np.uint8]]:
        return self._images[index]

    def inputs(self, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
        """Return the input (N, channels, height, width) of a model, not to be written to.

        Parameters
        ----------
        preprocessing : Preprocessing
            The model's.
        """
        if self._parts:  # not kept: who joins batches asks once for each model
            return np.concatenate([part.inputs(preprocessing) for part in self._parts if len(part)])
        if preprocessing not in self._inputs:
            self._inputs[preprocessing] = preprocessing(self._images)
        return self._inputs[preprocessing]

    def statistics(self, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
        """Return `cema.ondevice.drift.input_statistics` of the input of a model, one row an image.

        Parameters
        ----------
        preprocessing : Preprocessing
            The model's.
        """
        if preprocessing not in self._statistics:
            self._statistics[preprocessing] = input_statistics(self.inputs(preprocessing))
        return self._statistics[preprocessing]

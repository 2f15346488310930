"""Stored images on their way into a batch: decoded one by one, and never larger than models have use for."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from cema._util.events import report
from cema.cloud import events
from cema.cloud.store.base import StoredSample
from cema.errors import ImageError
from cema.formats.image import decode_image
from cema.ondevice.preprocess import Preprocessing, resize_image

__all__ = ["DecodedImages", "most_pixels", "read_image"]

log = logging.getLogger(__name__)

# A batch of a hundred images of a million pixels takes 300 MB.
LEAST_KEPT = 1_000_000
# Scaled down to 16 times a model's input first, an image looks the same to the model.
INPUTS_KEPT = 16
# A replay buffer of 10,000 small images, or some hundred photographs, whose decoding hardly counts.
KEPT_BYTES = 64 * 2**20


def most_pixels(*inputs: Preprocessing) -> int:
    """Return the most pixels of an image that models with these inputs have use for.

    Examples
    --------
    >>> most_pixels(Preprocessing(height=32, width=32, channels=1, mean=(0.0,), std=(1.0,)))
    1000000
    """
    return max(LEAST_KEPT, *(INPUTS_KEPT * model.height * model.width for model in inputs))


def read_image(data: bytes, most: int) -> npt.NDArray[np.uint8]:
    """Decode an image and scale it down to `most` pixels if it has more.

    Parameters
    ----------
    data : bytes
        An encoded image.
    most : int
        Pixels.

    Returns
    -------
    ndarray of uint8 (H, W, C)
        In its own proportions, where that leaves a pixel a side.

    Raises
    ------
    ImageError
        As `cema.formats.image.decode_image`.
    """
    image = decode_image(data)
    height, width = image.shape[:2]
    if height * width <= most:
        return image
    scale = (most / (height * width)) ** 0.5
    rows, columns = max(1, int(height * scale)), max(1, int(width * scale))
    # One line or column stays one, and is cut shorter instead.
    return resize_image(image, min(rows, most // columns or 1), min(columns, most // rows or 1))


class DecodedImages:
    """Decodes stored images, and keeps some of what it decoded: a replayed sample comes again.

    Parameters
    ----------
    most : int
        Pixels of an image, see `read_image`.
    most_bytes : int
        Memory for decoded images; those that were not asked for longest are let go first.
    """

    def __init__(self, most: int, *, most_bytes: int = KEPT_BYTES) -> None:
        self._most = most
        self._kept: LRUCache[int, npt.NDArray[np.uint8]] = LRUCache(most_bytes, lambda image: image.nbytes)

    def new(self, samples: Sequence[StoredSample]) -> list[npt.NDArray[np.uint8] | None]:
        """Decode the images of samples that are new.

        This is where a sample is decoded for the first time: what devices send is checked by its structure alone when
        it arrives.

        Parameters
        ----------
        samples : sequence of StoredSample
            As the store gave them.

        Returns
        -------
        list of ndarray of uint8 (H, W, C)
            One a sample, in order, not to be written to; None where one cannot be decoded. The log then has one line
            for each device that sent such samples.
        """
        images: list[npt.NDArray[np.uint8] | None] = []
        errors: defaultdict[str, list[ImageError]] = defaultdict(list)
        for sample in samples:
            try:
                images.append(self._image(sample.seq, sample.image))
            except ImageError as error:
                images.append(None)
                errors[sample.device].append(error)
        for device, found in errors.items():
            report(log, events.SAMPLES_UNREADABLE, samples=len(found), device=device, error=str(found[0]))
        return images

    def again(self, seq: int, data: bytes | None) -> npt.NDArray[np.uint8] | None:
        """Return a replayed sample's image (H, W, C), not to be written to; None where it is gone or unreadable."""
        if data is None:
            self._kept.pop(seq, None)
            return None
        try:
            return self._image(seq, data)
        except ImageError as error:
            report(log, events.SAMPLE_LOST, error=str(error))
            return None

    def forget(self, seqs: Iterable[int]) -> None:
        """Let go of images of samples that were deleted."""
        for seq in seqs:
            self._kept.pop(seq, None)

    def _image(self, seq: int, data: bytes) -> npt.NDArray[np.uint8]:
        image = self._kept.get(seq)
        if image is None:
            image = read_image(data, self._most)
            image.flags.writeable = False
            if image.nbytes <= self._kept.maxsize:
                self._kept[seq] = image
        return image

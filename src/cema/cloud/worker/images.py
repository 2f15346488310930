"""Stored images on their way into a batch: decoded one by one, and never larger than models have use for."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cema.cloud.store.base import StoredSample
from cema.errors import ImageError
from cema.formats.image import decode_image
from cema.ondevice.preprocess import Preprocessing, resize_image

__all__ = ["most_pixels", "read_image", "read_samples", "recalled_image"]

log = logging.getLogger(__name__)

# A batch of a hundred images of a million pixels takes 300 MB.
LEAST_KEPT = 1_000_000
# Scaled down to 16 times a model's input first, an image looks the same to the model.
INPUTS_KEPT = 16


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


def read_samples(samples: Sequence[StoredSample], most: int) -> list[npt.NDArray[np.uint8] | None]:
    """Decode the images of samples as `read_image`.

    This is where a sample is decoded for the first time: what devices send is checked by its structure alone when it
    arrives.

    Parameters
    ----------
    samples : sequence of StoredSample
        As the store gave them.
    most : int
        Pixels.

    Returns
    -------
    list of ndarray of uint8 (H, W, C)
        One a sample, in order; None where one cannot be decoded. The log then has one line for each device that sent
        such samples.
    """
    images: list[npt.NDArray[np.uint8] | None] = []
    errors: defaultdict[str, list[ImageError]] = defaultdict(list)
    for sample in samples:
        try:
            images.append(read_image(sample.image, most))
        except ImageError as error:
            images.append(None)
            errors[sample.device].append(error)
    for device, found in errors.items():
        log.warning("%d samples of device %r cannot be read, the first: %s", len(found), device, found[0])
    return images


def recalled_image(data: bytes | None, most: int) -> npt.NDArray[np.uint8] | None:
    """Return an image as `read_image`, or None where it is gone or cannot be read."""
    try:
        return None if data is None else read_image(data, most)
    except ImageError as error:
        log.warning("a stored sample cannot be read: %s", error)
        return None

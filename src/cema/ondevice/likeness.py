"""How alike two images are to the eye: a small grey picture of each, and the difference of two of these."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cema.ondevice.preprocess import check_images, resize_image

__all__ = ["SIGNATURE_BYTES", "likeness_distances", "likeness_signature"]

_SIDE = 16
SIGNATURE_BYTES = _SIDE * _SIDE
"""Bytes of a signature."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def likeness_signature(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return an image's luma, scaled to 16 by 16 pixels.

    Noise and the traces of compression are averaged away; what is left is where it is bright and where dark.

    Parameters
    ----------
    image : ndarray of uint8 (H, W, C)
        C is 1 or 3.

    Returns
    -------
    ndarray of uint8 (256,)

    Raises
    ------
    ImageError
        When it is no such image.

    Examples
    --------
    >>> likeness_signature(np.full((40, 60, 3), 200, np.uint8)).tolist() == [200] * SIGNATURE_BYTES
    True
    """
    (image,) = check_images([image])
    small = resize_image(image, _SIDE, _SIDE, interpolation="bilinear").astype(np.float32)
    grey = small[:, :, 0] if small.shape[2] == 1 else small @ _LUMA
    signature: npt.NDArray[np.uint8] = np.rint(grey).astype(np.uint8).reshape(-1)
    return signature


def likeness_distances(signature: npt.NDArray[np.uint8], others: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    r"""Return how far an image is from others, in grey levels.

    .. math:: d(a, b) = \sqrt{\tfrac{1}{256} \sum_i (a_i - b_i)^2}

    Parameters
    ----------
    signature : ndarray of uint8 (256,)
    others : ndarray of uint8 (N, 256)
        Signatures.

    Returns
    -------
    ndarray of float32 (N,)
        From 0 to 255.
    """
    difference = others.astype(np.float32) - signature.astype(np.float32)
    distances: npt.NDArray[np.float32] = np.sqrt(np.mean(difference * difference, axis=1))
    return distances

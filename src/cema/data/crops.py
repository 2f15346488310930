"""How a photograph is cut to a square: as ImageNet-C was made, or at random."""

from __future__ import annotations

import math

import numpy as np

from cema.ondevice.preprocess import resize_image

__all__ = ["AREAS", "KEPT", "centre_crop", "random_crop"]

#: ImageNet-C scales the shorter side to 256 pixels and keeps the 224 in the centre.
KEPT = 224 / 256

#: Area of a random crop, as a share of the largest square; that of `centre_crop`, 0.77, lies in the middle.
AREAS = (0.6, 1.0)


def centre_crop(image: np.ndarray, side: int, kept: float = KEPT) -> np.ndarray:
    """Scale the shorter side to ``side / kept`` and cut out the middle square.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, C)
        An image of any size.
    side : int
        Side of the square in pixels; 224 for ImageNet-C.
    kept : float
        The part of the shorter side that stays, in (0, 1]; by default as ImageNet-C was made.

    Returns
    -------
    ndarray of uint8, shape (side, side, C)
        The square.

    Examples
    --------
    >>> centre_crop(np.zeros((300, 500, 3), np.uint8), 224).shape
    (224, 224, 3)
    """
    height, width = image.shape[:2]
    scale = round(side / kept) / min(height, width)
    # A little is added, so that the shorter side never falls short by a rounding error.
    size = (int(height * scale + 1e-6), int(width * scale + 1e-6))
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    resized = resize_image(image, *size, interpolation="bilinear")
    return np.ascontiguousarray(resized[top : top + side, left : left + side])


def random_crop(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a random square out of the middle square, scale it, and mirror it in half of the cases.

    Its area is uniform in `AREAS`, and so is its place. It stays within the largest square in the middle: what a
    photograph shows is mostly there, and a square without it would have a wrong label.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, C)
        An image of any size.
    side : int
        Side of the result in pixels.
    rng : Generator
        What is drawn, and in this order: the area, the place down and to the right, whether it is mirrored.

    Returns
    -------
    ndarray of uint8, shape (side, side, C)
        The square.

    Examples
    --------
    >>> random_crop(np.zeros((300, 500, 3), np.uint8), 224, np.random.default_rng(0)).shape
    (224, 224, 3)
    """
    height, width = image.shape[:2]
    whole = min(height, width)
    size = max(1, round(whole * math.sqrt(rng.uniform(*AREAS))))
    down, right = rng.integers(0, whole - size, size=2, endpoint=True)
    top, left = (height - whole) // 2 + int(down), (width - whole) // 2 + int(right)
    square = image[top : top + size, left : left + size]
    if rng.random() < 0.5:
        square = square[:, ::-1]
    return np.ascontiguousarray(resize_image(square, side, side, interpolation="bilinear"))

"""What CIFAR-10-C does to images of 32 x 32 pixels: its constants, and the steps that go with them.

CIFAR-10-C and CIFAR-100-C [1]_ are milder than ImageNet's corruptions, and some are made in another way: frost
comes from pictures of a fifth of their size, and elastic transform has an affine part. Every number in `CONSTANTS`
and every step was read in the generator that its authors published [2]_. The steps are written anew here, for a
batch at a time: what is deterministic runs on all images at once, and only the draws are made image by image.

Where published pixels have a quirk, so have these:

* Pixels are truncated to whole numbers, not rounded.
* Glass blur copies a neighbour's pixel where it was meant to swap the two, because both sides of the generator's
  assignment are views of one array.
* Frost takes the first five of its six pictures.
* The first severity of elastic transform is affine only.
* Motion blur is ImageMagick's [3]_: a one-sided Gaussian along a line, sampled at whole pixels, and rounded to eight
  bits.

One is left out: a spatter without a single drop divides by zero and blackens the image; here it leaves it as it was.

This module needs the libraries of ``cema[bench]``. Use it through `cema.data.corruptions.corrupt_images`.

References
----------
.. [1] D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
   Perturbations", ICLR 2019.
.. [2] https://github.com/hendrycks/robustness, file ``ImageNet-C/create_c/make_cifar_c.py``, commit ca36008.
.. [3] https://github.com/ImageMagick/ImageMagick, function ``MotionBlurImage``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cema.data._cifar_steps import SIDE, STEPS, truncated

__all__ = ["CONSTANTS", "corrupt_batch"]

#: The constants of each corruption from severity 1 to 5. Lengths are in pixels; intensities are shares of the range.
CONSTANTS: dict[str, tuple[tuple[float, ...], ...]] = {
    # standard deviation
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.1,)),
    # photons at full intensity
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    # share of the values that turn black or white
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    # radius of the disk, standard deviation of what smooths its rim
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    # standard deviation of the blur before and after, largest distance of a move, rounds
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    # radius, standard deviation
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    # number of magnifications 1.00, 1.01, 1.02 ... that are averaged
    "zoom_blur": ((7,), (12,), (16,), (21,), (26,)),
    # mean and deviation of the flakes, magnification, threshold, radius and deviation of their motion, and share of
    # the image
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    # share of the image, share of the frost
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    # thickness, decay of the roughness from one scale to the next
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    # added to the value of HSV
    "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    # share of the distance to the mean that is kept
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    # length of the displacements before smoothing, standard deviation of the smoothing, largest affine move of a corner
    "elastic_transform": (
        (0, 0, SIDE * 0.08),
        (SIDE * 0.05, SIDE * 0.2, SIDE * 0.07),
        (SIDE * 0.08, SIDE * 0.06, SIDE * 0.06),
        (SIDE * 0.1, SIDE * 0.04, SIDE * 0.05),
        (SIDE * 0.1, SIDE * 0.03, SIDE * 0.03),
    ),
    # share of the side that is kept
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    # quality
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
    # standard deviation relative to the pixel
    "speckle_noise": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
    # standard deviation
    "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
    # mean and deviation of the liquid, its smoothing, threshold, strength (water) or smoothing (mud), 0 water or 1 mud
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    # factor and summand of the saturation of HSV
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}


def corrupt_batch(images: np.ndarray, name: str, severity: int, words: Sequence[np.ndarray]) -> np.ndarray:
    """Corrupt a batch as CIFAR-10-C does.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, 32, 32, 3)
        RGB.
    name : str
        One of `CONSTANTS`.
    severity : int
        1 to 5.
    words : sequence of N ndarray of uint32
        The seed of each image. An image with the same seed becomes the same in every batch.

    Returns
    -------
    ndarray of uint8, shape (N, 32, 32, 3)
        A new array.
    """
    if not len(images):
        return images.copy()
    # This generator's streams are frozen, unlike those of numpy's newer ones: the pixels outlive a release.
    generators = [np.random.RandomState(seed) for seed in words]
    return truncated(STEPS[name](images / 255, CONSTANTS[name][severity - 1], generators))

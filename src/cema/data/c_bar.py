"""The corruptions of C-bar: unlike those that benchmarks report, and so fit to tune on.

CIFAR-10-C-bar and ImageNet-C-bar [1]_ have ten corruptions each, five of them in both. Their authors chose them to be
far from the fifteen of CIFAR-10-C and ImageNet-C in what they do to a network's features, and as hard. Every number
here was read in the authors' generator [2]_; the steps, in `cema.data._c_bar_steps`, are written anew from what they
compute. Names are spelt as the published files are.

What follows the generator: lengths grow with the image, whose shorter side counts; pixels are truncated to whole
numbers, not rounded; what is fetched from outside the image is black. What does not: the images of ImageNet-C-bar are
compressed as JPEG once more, these are not.

The steps need the libraries of ``cema[bench]``. Use them through `cema.data.corruptions.corrupt_images`.

References
----------
.. [1] E. Mintun, A. Kirillov and S. Xie, "On Interaction Between Augmentations and Corruptions in Natural Corruption
   Robustness", NeurIPS 2021.
.. [2] https://github.com/facebookresearch/augmentation-corruption, folder ``imagenet_c_bar``, commit ba4d5a5.
"""

from __future__ import annotations

import numpy as np

__all__ = ["C_BAR_CORRUPTIONS", "LEVELS", "corrupt"]

#: The levels of the generator that severities 1 to 5 stand for, by whose constants; at level 10 a corruption has the
#: full strength that `cema.data._c_bar_steps` says.
LEVELS: dict[str, dict[str, tuple[float, ...]]] = {
    "imagenet": {
        "blue_noise_sample": (0.8, 1.6, 2.4, 4, 5.6),
        "plasma_noise": (4.75, 7, 8.5, 9.25, 10),
        "checkerboard_cutout": (2, 3, 4, 5, 6),
        "cocentric_sine_waves": (3, 5, 8, 9, 10),
        "single_frequency_greyscale": (1, 1.5, 2, 4.5, 5),
        "brownish_noise": (1, 2, 3, 4, 5),
        "perlin_noise": (4.6, 5.2, 5.8, 7.6, 8.8),
        "sparkles": (1, 2, 3, 5, 6),
        "inverse_sparkles": (1, 2, 4, 9, 10),
        "caustic_refraction": (2.35, 3.2, 4.9, 6.6, 9.15),
    },
    "cifar": {
        "blue_noise_sample": (0.7, 1.4, 2.1, 3.5, 4.2),
        "brownish_noise": (2.5, 4, 5.5, 6.5, 7),
        "checkerboard_cutout": (1, 2, 3, 4, 5),
        "inverse_sparkles": (1, 1.5, 2.5, 4.5, 5),
        "pinch_and_twirl": (5.5, 6, 6.5, 8.5, 10),
        "ripple": (5.5, 6, 6.5, 7.5, 8),
        "circular_motion_blur": (2.8, 3.6, 4.4, 5.2, 6),
        "lines": (0.5, 1, 1.5, 2, 2.5),
        "sparkles": (0.7, 3.5, 5.6, 6.3, 7),
        "transverse_chromatic_abberation": (1, 2, 5, 9, 10),
    },
}

#: The fifteen corruptions of both sets together.
C_BAR_CORRUPTIONS: tuple[str, ...] = tuple(dict.fromkeys([*LEVELS["imagenet"], *LEVELS["cifar"]]))


def corrupt(image: np.ndarray, name: str, severity: int, constants: str, words: np.ndarray) -> np.ndarray:
    """Corrupt one image as C-bar does.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB.
    name : str
        One of ``LEVELS[constants]``.
    severity : int
        1 to 5.
    constants : {"imagenet", "cifar"}
        As in ImageNet-C-bar, or as in CIFAR-10-C-bar.
    words : ndarray of uint32
        The seed. Another severity with the same seed has the same pattern, only stronger.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        A new image.
    """
    from cema.data._c_bar_steps import STEPS, truncated  # noqa: PLC0415 - imports the optional libraries

    # This generator's streams are frozen, unlike those of numpy's newer ones: the pixels outlive a release.
    generator = np.random.RandomState(words)
    share = LEVELS[constants][name][severity - 1] / 10
    return truncated(STEPS[name](image.astype(np.float64), share, generator))

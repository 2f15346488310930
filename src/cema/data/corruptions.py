"""The common corruptions of images: weather, noise, blur, and what cameras and codecs do.

The corruptions are those of Hendrycks and Dietterich [1]_. They come with two sets of constants: those of ImageNet-C,
as the library ``imagecorruptions-imaug`` has them, for images of any size, and those of CIFAR-10-C for images of
32 x 32 pixels, in `cema.data.cifar_corruptions`. Those of C-bar, in `cema.data.c_bar`, are to tune on. This module
makes all of them reproducible: what happens to an image depends on its pixels, the corruption and the seed, and neither
on its place in a batch nor on what was corrupted before it. It also keeps grey images grey.

References
----------
.. [1] D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
   Perturbations", ICLR 2019.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Literal, overload

import numpy as np

from cema.data import c_bar
from cema.data.c_bar import C_BAR_CORRUPTIONS
from cema.errors import ConfigError, ImageError

__all__ = [
    "CORRUPTIONS",
    "FAMILIES",
    "MIN_SIDE",
    "VALIDATION_CORRUPTIONS",
    "Constants",
    "check_corruption",
    "corrupt_image",
    "corrupt_images",
    "corrupted_chunks",
]

#: Whose constants: those of ImageNet-C for images of any size, or those of CIFAR-10-C for 32 x 32 pixels.
Constants = Literal["imagenet", "cifar"]

#: The corruptions by family: the fifteen that a benchmark reports, and four more to tune on.
FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "validation": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}

#: The fifteen corruptions of the benchmark.
CORRUPTIONS: tuple[str, ...] = tuple(
    name for family, names in FAMILIES.items() if family != "validation" for name in names
)

#: The four corruptions set aside for tuning.
VALIDATION_CORRUPTIONS: tuple[str, ...] = FAMILIES["validation"]

#: Smallest height and width in pixels that the corruptions are defined for.
MIN_SIDE = 32

_PER_CHANNEL_NOISE = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("brownish_noise", "plasma_noise"),
)
_OWN_GENERATOR = ("impulse_noise", "glass_blur")
_CHUNK = 64
_CHUNKS_AHEAD = 4  # for each process

# The library draws from numpy's global generator, which is one for the whole process.
_global_generator = threading.Lock()


def check_corruption(name: str, severity: int, constants: str | None = "imagenet") -> None:
    """Check the name and the severity of a corruption, and whose constants; needs no library.

    Parameters
    ----------
    name : str
        One of `CORRUPTIONS`, `VALIDATION_CORRUPTIONS` or `cema.data.c_bar.C_BAR_CORRUPTIONS`.
    severity : int
        1 (mild) to 5 (strong).
    constants : {"imagenet", "cifar"}, optional
        See `corrupt_image`; None where the images are made already.

    Raises
    ------
    ValueError
        If one of them is not, or a corruption of C-bar is not in the set of these constants.
    """
    known = CORRUPTIONS + VALIDATION_CORRUPTIONS + C_BAR_CORRUPTIONS
    if name not in known:
        raise ValueError(f"unknown corruption {name!r}; expected one of {', '.join(known)}")
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer) or not 1 <= severity <= 5:
        raise ValueError(
            f"severity of {name} must be a whole number from 1 (mild) to 5 (strong), got {severity!r}"
        )
    if constants is None:
        return
    if constants not in c_bar.LEVELS:
        raise ValueError(f"constants must be 'imagenet' or 'cifar', got {constants!r}")
    if name in C_BAR_CORRUPTIONS and name not in c_bar.LEVELS[constants]:
        raise ValueError(
            f"{name} has severities only among the other constants than {constants!r}; of C-bar, these have "
            f"{', '.join(c_bar.LEVELS[constants])}"
        )


def corrupt_image(
    image: np.ndarray, name: str, severity: int, *, seed: int = 0, constants: Constants = "imagenet"
) -> np.ndarray:
    """Corrupt one image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, C)
        C is 1 (grey) or 3 (RGB); H and W are at least 32.
    name : str
        One of `CORRUPTIONS`, `VALIDATION_CORRUPTIONS` or of C-bar's for the constants, ``c_bar.LEVELS[constants]``.
    severity : int
        1 (mild) to 5 (strong).
    seed : int
        With the pixels and the name, what the random part of the corruption follows from.
    constants : {"imagenet", "cifar"}
        How strong each severity is: as in ImageNet-C, or as in CIFAR-10-C. The latter are made for images of exactly
        32 x 32 pixels, and much milder; results on CIFAR-10-C compare only with them.

    Returns
    -------
    ndarray of uint8, shape (H, W, C)
        A new image. A grey one stays grey: of noise that is independent in each channel one channel is kept,
        of everything else the luminance.

    Raises
    ------
    ValueError
        If the name, the severity or the name of the constants is unknown.
    ImageError
        If the image has another dtype or shape, is too small, or is not of the size that the constants are made for.
    ConfigError
        If the library of corruptions, or the system library libGL that it needs, is missing.
    """
    check_corruption(name, severity, constants)
    _check_image(image, constants)
    _library()
    return _corrupt_chunk([image], name, int(severity), seed, constants)[0]


def _corrupt_chunk(
    images: list[np.ndarray], name: str, severity: int, seed: int, constants: Constants
) -> list[np.ndarray]:
    if name in C_BAR_CORRUPTIONS:
        return [_as_c_bar(image, name, severity, seed, constants) for image in images]
    if constants == "imagenet":
        return [_as_imagenet(image, name, severity, seed) for image in images]
    from cema.data.cifar_corruptions import corrupt_batch  # noqa: PLC0415 - imports the optional libraries

    words = [_random_words(image, name, seed) for image in images]
    corrupted = corrupt_batch(np.stack([_in_colour(image) for image in images]), name, severity, words)
    return [_grey_as_before(pixels, image, name) for pixels, image in zip(corrupted, images, strict=True)]


def _as_c_bar(image: np.ndarray, name: str, severity: int, seed: int, constants: Constants) -> np.ndarray:
    words = _random_words(image, name, seed)
    return _grey_as_before(c_bar.corrupt(_in_colour(image), name, severity, constants, words), image, name)


def _as_imagenet(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    corruption = _library()[name]
    words = _random_words(image, name, seed)
    # These two would otherwise draw from the operating system, which no seed reaches.
    own = {"seed": int(words[0])} if name in _OWN_GENERATOR else {}
    with _global_generator:
        before = np.random.get_state()
        np.random.seed(words)
        try:
            return _apply(corruption, image, name, severity, own)
        finally:
            np.random.set_state(before)


@overload
def corrupt_images(
    images: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int = ...,
    constants: Constants = ...,
    processes: int = ...,
    progress: Callable[[int, int], object] | None = ...,
) -> np.ndarray: ...
@overload
def corrupt_images(
    images: Sequence[np.ndarray],
    name: str,
    severity: int,
    *,
    seed: int = ...,
    constants: Constants = ...,
    processes: int = ...,
    progress: Callable[[int, int], object] | None = ...,
) -> list[np.ndarray]: ...
def corrupt_images(
    images: np.ndarray | Sequence[np.ndarray],
    name: str,
    severity: int,
    *,
    seed: int = 0,
    constants: Constants = "imagenet",
    processes: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Corrupt many images; each becomes what `corrupt_image` makes of it alone.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, H, W, C), or sequence of ndarray
        Images of one size in an array, or of any sizes in a sequence.
    name, severity, seed, constants
        As for `corrupt_image`.
    processes : int
        How many processes share the work. More than one starts new interpreters, so a script that asks for it
        must guard its main part with ``if __name__ == "__main__":``.
    progress : callable, optional
        Called with the number of images done and the number of all, from the calling thread.

    Returns
    -------
    ndarray or list of ndarray
        An array for an array, a list for a sequence, in the order of the input.

    Raises
    ------
    ValueError
        If the name, the severity or the name of the constants is unknown, or `processes` is below 1.
    ImageError
        If an image has another dtype or shape, is too small, or is not of the size that the constants are made for; the
        message gives its place.
    ConfigError
        If the library of corruptions is missing.
    """
    check_corruption(name, severity, constants)
    for index, image in enumerate(images):
        _check_image(image, constants, f"image {index}: ")
    done: list[np.ndarray] = []
    for chunk in corrupted_chunks(
        images, name, severity, seed=seed, constants=constants, processes=processes
    ):
        done += chunk
        if progress is not None:
            progress(len(done), len(images))
    if isinstance(images, np.ndarray):
        return np.stack(done) if done else images.copy()
    return done


def corrupted_chunks(
    images: np.ndarray | Sequence[np.ndarray],
    name: str,
    severity: int,
    *,
    seed: int = 0,
    constants: Constants = "imagenet",
    processes: int = 1,
) -> Iterator[list[np.ndarray]]:
    """Corrupt many images a few at a time, so that neither they nor what becomes of them need fit in memory.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, H, W, C), or sequence of ndarray
        A sequence may read its images when it is sliced.
    name, severity, seed, constants, processes
        As for `corrupt_images`.

    Yields
    ------
    list of ndarray
        The next images, in the order of the input. Each is what `corrupt_images` makes of it.

    Raises
    ------
    ValueError, ImageError, ConfigError
        As `corrupt_images` does, but a wrong image only when it is its turn.
    """
    check_corruption(name, severity, constants)
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if len(images):
        _library()
    rest = (name, int(severity), seed, constants)
    starts = range(0, len(images), _CHUNK)

    def chunk(start: int) -> list[np.ndarray]:
        chosen = list(images[start : start + _CHUNK])
        for index, image in enumerate(chosen, start):
            _check_image(image, constants, f"image {index}: ")
        return chosen

    if processes == 1 or len(starts) < 2:
        for start in starts:
            yield _corrupt_chunk(chunk(start), *rest)
        return
    # Fresh interpreters: a fork of a process with running threads (torch's, OpenCV's) can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(starts)), mp_context=context)
    tasks: deque[Future[list[np.ndarray]]] = deque()
    try:
        for start in starts:
            tasks.append(pool.submit(_corrupt_chunk, chunk(start), *rest))
            if len(tasks) >= _CHUNKS_AHEAD * processes:
                yield tasks.popleft().result()
        while tasks:
            yield tasks.popleft().result()
    finally:
        # Also when the caller goes away in the middle: nobody waits for what nobody will read.
        pool.shutdown(wait=not tasks, cancel_futures=True)


def _library() -> dict[str, Callable[..., Any]]:
    try:
        from imagecorruptions import corruption_dict  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        remedy = "pip install 'cema[bench]'"
        if "libGL" in str(error) or "libgthread" in str(error) or "libglib" in str(error):
            remedy = (
                "install it with the system's package manager, on Debian: apt-get install libgl1 libglib2.0-0"
            )
        raise ConfigError(
            f"image corruptions need imagecorruptions-imaug, and it failed to load: {error}; {remedy}"
        ) from error
    functions: dict[str, Callable[..., Any]] = corruption_dict
    return functions


def _check_image(image: np.ndarray, constants: Constants, where: str = "") -> None:
    expected = (
        f"{where}expected a uint8 array (height, width, 1 or 3) of at least {MIN_SIDE} pixels a side, got"
    )
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{expected} {type(image).__name__}; pass a numpy array")
    if image.dtype != np.uint8:
        raise ImageError(
            f"{expected} dtype {image.dtype}; scale to 0..255 and convert with astype(numpy.uint8)"
        )
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ImageError(f"{expected} shape {image.shape}; put channels last")
    if min(image.shape[:2]) < MIN_SIDE:
        raise ImageError(f"{expected} shape {image.shape}; pad or enlarge the image")
    if constants == "cifar" and image.shape[:2] != (MIN_SIDE, MIN_SIDE):
        raise ImageError(
            f"{where}the constants of CIFAR-10-C are made for images of {MIN_SIDE} x {MIN_SIDE} pixels, got shape "
            f"{image.shape}; use constants='imagenet', or resize the image"
        )


def _random_words(image: np.ndarray, name: str, seed: int) -> np.ndarray:
    # The severity is left out: the same image at another severity gets the same pattern, only stronger.
    digest = hashlib.blake2b(f"{name}/{seed}/{image.shape}/".encode(), digest_size=32)
    digest.update(np.ascontiguousarray(image).tobytes())
    return np.frombuffer(digest.digest(), dtype="<u4").astype(np.uint32)


def _apply(
    corruption: Callable[..., Any], image: np.ndarray, name: str, severity: int, own: dict[str, int]
) -> np.ndarray:
    from PIL import Image  # noqa: PLC0415 - with the library above

    colour = np.ascontiguousarray(_in_colour(image))
    try:
        with np.errstate(invalid="raise" if name == "spatter" else "ignore"):
            corrupted = corruption(Image.fromarray(colour), severity, **own)
    except FloatingPointError:
        # spatter divides by the strongest drop; where none fell there is none, and the image stays as it was.
        return image.copy()
    return _grey_as_before(np.asarray(corrupted).astype(np.uint8), image, name)


def _in_colour(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _grey_as_before(pixels: np.ndarray, image: np.ndarray, name: str) -> np.ndarray:
    if image.shape[2] == 3:
        return pixels
    if name in _PER_CHANNEL_NOISE:
        return pixels[:, :, :1].copy()
    luminance: np.ndarray = pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return np.round(luminance)[:, :, None].astype(np.uint8)

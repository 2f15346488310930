"""From pixels to a model's input, the same way on the edge, in the cloud and in the benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from cema.errors import ImageError

__all__ = ["Images", "Interpolation", "Preprocessing", "check_images", "resize_image"]

Image8: TypeAlias = npt.NDArray[np.uint8]
Images: TypeAlias = Image8 | Sequence[Image8]
"""A batch: one uint8 array (N, H, W, C), or a sequence of uint8 arrays (H, W, C) of any sizes; C: 1 or 3."""

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]

# Elements normalised at a time: 128 KiB of float32.
_PIECE = 32768
# How many times as long as the model's input an image may be, against its own width, before only its middle is resized.
_LONGEST = 32
_REMEDY = "pass uint8 pixels 0..255 as height x width x channels, with 1 (grey) or 3 (RGB) channels"


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one model wants its pixels: size, colour, crop and normalisation.

    An image is resized (antialiased, aspect ratio kept) so that it just covers
    ``round(height / crop) x round(width / crop)``, cropped at its centre to ``height x width``, and
    normalised to ``(pixel - mean) / std``. For a square input that is the usual evaluation transform: shorter
    side to ``round(size / crop)``, then a centre crop.

    Parameters
    ----------
    height, width : int
        The model's input size in pixels.
    channels : {1, 3}
        The model's input channels; grey images are repeated to RGB, RGB is turned into grey by ITU-R 601
        luma.
    mean, std : tuple of float
        One value per channel, in pixel units (0..255).
    crop : float, default 1.0
        The fraction of the resized shorter side that is kept, in (0, 1].
    interpolation : {"bilinear", "bicubic"}, default "bicubic"
        The resampling filter.

    Raises
    ------
    ValueError
        If a field is out of its range.

    Examples
    --------
    >>> prepare = Preprocessing(height=2, width=2, channels=1, mean=(127.5,), std=(127.5,))
    >>> prepare(np.full((1, 2, 2, 1), 255, np.uint8)).tolist()
    [[[[1.0, 1.0], [1.0, 1.0]]]]
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if not (1 <= self.height <= 65535 and 1 <= self.width <= 65535):
            raise ValueError(f"expected height and width in 1..65535, got {self.height} x {self.width}")
        if self.channels not in (1, 3):
            raise ValueError(f"expected 1 (grey) or 3 (RGB) channels, got {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"expected one mean and one std per channel ({self.channels}), "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if not all(map(math.isfinite, self.mean)) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise ValueError(
                f"expected finite means and finite positive stds in pixel units (0..255), "
                f"got mean {self.mean} and std {self.std}"
            )
        if not 0 < self.crop <= 1:
            raise ValueError(f"expected a crop in (0, 1], got {self.crop}")

    def __call__(self, images: Images) -> npt.NDArray[np.float32]:
        """Turn a batch of images into the model's input.

        Parameters
        ----------
        images : ndarray of uint8 (N, H, W, C), or sequence of ndarray of uint8 (H, W, C)
            A batch; N may be 0.

        Returns
        -------
        ndarray of float32 (N, channels, height, width)
            A fresh C-contiguous array.

        Raises
        ------
        ImageError
            If an image is not uint8, or not height x width x 1 or 3, or empty.
        """
        batch = self._same_size_batch(images)
        if batch is not None:
            out = np.empty((batch.shape[0], self.channels, self.height, self.width), np.float32)
            self._normalise(batch, out)
            return out
        checked = check_images(images)
        out = np.empty((len(checked), self.channels, self.height, self.width), np.float32)
        for index, image in enumerate(checked):
            self._normalise(self._fit(image)[None], out[index : index + 1])
        return out

    def _same_size_batch(self, images: Images) -> Image8 | None:
        """Return `images` when it is one array that needs neither checks nor resizing: the fast path."""
        if (
            isinstance(images, np.ndarray)
            and images.dtype == np.uint8
            and images.ndim == 4
            and images.shape[1:] == (self.height, self.width, self.channels)
            and self.crop == 1
        ):
            return images
        return None

    def _normalise(self, batch: Image8, out: npt.NDArray[np.float32]) -> None:
        """Write the normalised NHWC `batch` into the NCHW `out`."""
        mean, scale = _constants(self.mean, self.std)
        # In chunks that stay in the cache: three passes over them cost less than one table look-up per pixel.
        step = max(1, _PIECE // (self.height * self.width * self.channels))
        for start in range(0, batch.shape[0], step):
            chunk = out[start : start + step]
            np.copyto(chunk, batch[start : start + step].transpose(0, 3, 1, 2))
            chunk -= mean
            chunk *= scale

    def _fit(self, image: Image8) -> Image8:
        """Return `image` in the model's size and number of channels."""
        rows, columns = image.shape[:2]
        if self.crop != 1 or (rows, columns) != (self.height, self.width):
            cover = (round(self.height / self.crop), round(self.width / self.crop))
            image = _middle(image, cover[1] / cover[0])
            rows, columns = image.shape[:2]
            scale = max(cover[0] / rows, cover[1] / columns)
            size = (max(cover[0], int(rows * scale)), max(cover[1], int(columns * scale)))
            image = resize_image(image, *size, interpolation=self.interpolation)
            top, left = round((size[0] - self.height) / 2), round((size[1] - self.width) / 2)
            image = image[top : top + self.height, left : left + self.width]
        if image.shape[2] == self.channels:
            return image
        if self.channels == 3:
            return np.broadcast_to(image, (*image.shape[:2], 3))
        from PIL import Image  # noqa: PLC0415 - a camera that gives the model's own size and channels does without

        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))[:, :, None]


def _middle(image: Image8, aspect: float) -> Image8:
    """Cut an image that is very long to its middle: resized as a whole, a line of 20,000 pixels would take 10 GB."""
    rows, columns = image.shape[:2]
    kept_rows = _surplus_cut(rows, _LONGEST * max(1, math.ceil(columns / aspect)))
    kept_columns = _surplus_cut(columns, _LONGEST * max(1, math.ceil(rows * aspect)))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return image[top : top + kept_rows, left : left + kept_columns]


def _surplus_cut(length: int, limit: int) -> int:
    """Return a length of at most about `limit` that leaves as much on either side."""
    return length if length <= limit else limit + (length - limit) % 2


@lru_cache(maxsize=32)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and 1 / std as float32 (channels, 1, 1)."""
    shape = (len(mean), 1, 1)
    return np.array(mean, np.float32).reshape(shape), (1 / np.array(std)).astype(np.float32).reshape(shape)


def check_images(images: Images) -> list[Image8]:
    """Check a batch of images and return them one by one.

    Parameters
    ----------
    images : ndarray of uint8 (N, H, W, C), or sequence of ndarray of uint8 (H, W, C)
        A batch; N may be 0.

    Returns
    -------
    list of ndarray of uint8 (H, W, C)
        The images, not copied.

    Raises
    ------
    ImageError
        If an image is not uint8, or not height x width x 1 or 3, or has no pixels.

    Examples
    --------
    >>> [image.shape for image in check_images(np.zeros((2, 4, 4, 3), np.uint8))]
    [(4, 4, 3), (4, 4, 3)]
    """
    if isinstance(images, np.ndarray):
        if images.ndim != 4:
            hint = "; for a single image pass image[None]" if images.ndim == 3 else ""
            raise ImageError(
                f"expected a batch of images of shape (N, H, W, C), got an array of shape {images.shape}: "
                f"{_REMEDY}{hint}"
            )
        if images.shape[0] == 0:
            return []
        _check_image(images[0], 0)
        return list(images)
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
        raise ImageError(
            f"expected an array (N, H, W, C) or a sequence of arrays (H, W, C), "
            f"got {type(images).__name__}: {_REMEDY}"
        )
    for index, image in enumerate(images):
        _check_image(image, index)
    return list(images)


def _check_image(image: Any, index: int) -> None:
    if not isinstance(image, np.ndarray):
        raise ImageError(f"expected image {index} to be a numpy array, got {type(image).__name__}: {_REMEDY}")
    if image.dtype != np.uint8:
        hint = (
            "" if image.dtype.kind != "f" else "; floats in 0..1 become (image * 255).round().astype('uint8')"
        )
        raise ImageError(f"expected image {index} to be uint8, got {image.dtype}: {_REMEDY}{hint}")
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        hint = ""
        if image.ndim == 2:
            hint = "; a grey image becomes image[:, :, None]"
        elif image.ndim == 3 and image.shape[0] in (1, 3):
            hint = "; channels come last: image.transpose(1, 2, 0)"
        elif image.ndim == 3 and image.shape[2] == 4:
            hint = "; drop the alpha channel: image[:, :, :3]"
        raise ImageError(
            f"expected image {index} of shape (H, W, 1 or 3), got {image.shape}: {_REMEDY}{hint}"
        )
    if image.size == 0:
        raise ImageError(f"expected image {index} to have pixels, got shape {image.shape}: {_REMEDY}")


def resize_image(
    image: Image8, height: int, width: int, *, interpolation: Interpolation = "bicubic"
) -> Image8:
    """Resize one image with antialiasing.

    Parameters
    ----------
    image : ndarray of uint8 (H, W, C)
        The image; C is 1 or 3.
    height, width : int
        The new size in pixels.
    interpolation : {"bilinear", "bicubic"}, default "bicubic"
        The resampling filter.

    Returns
    -------
    ndarray of uint8 (height, width, C)
        The resized image, or `image` itself when it has that size already.
    """
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image  # noqa: PLC0415 - as above

    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    resized = np.asarray(picture.resize((width, height), filters[interpolation]))
    return resized.reshape(height, width, image.shape[2])

"""Images as bytes: JPEG, PNG, or deflated pixels behind a header of 13 bytes.

Each is recognised by its first bytes; the last is, in little endian::

    "CEMZ" | height u32 | width u32 | channels u8 | zlib stream of the pixels, row by row
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from cema.errors import ImageError
from cema.formats.image_header import RAW_HEADER, RAW_MAGIC, check_pixels, image_kind, png_shape, raw_shape
from cema.ondevice.preprocess import check_images, resize_image

__all__ = ["CodecConfig", "decode_image", "encode_image"]

_LOSSLESS_BELOW = 64 * 64
# Pillow is content once it has all rows; without this chunk something is missing all the same.
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_TARGETS = {"GRAY": "GRAY", "YCBCR": "RGB", "RGB": "RGB"}


class CodecConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How images are encoded for the way up.

    Parameters
    ----------
    codec : {"auto", "jpeg", "png", "raw"}, default "auto"
        ``auto`` takes the smaller of the two lossless codecs (``png``, ``raw``) for images of fewer than 64 x
        64 pixels, where JPEG saves little and costs accuracy, and ``jpeg`` for all others.
    quality : int, default 85
        JPEG quality, 1 to 100.
    subsampling : {"444", "420"}, default "444"
        JPEG chroma subsampling. ``420`` is smaller, by a sixth for clean photographs and by half for noisy
        ones, but what it leaves out is the noise itself, to which the cloud is meant to adapt.
    max_side : int, optional
        Images whose shorter side is longer than this are first downscaled to it, in pixels; the cloud's
        models need no more.

    Raises
    ------
    ValueError
        If a field is out of its range.
    """

    codec: Literal["auto", "jpeg", "png", "raw"] = "auto"
    quality: int = 85
    subsampling: Literal["444", "420"] = "444"
    max_side: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"expected a JPEG quality in 1..100, got {self.quality}")
        if self.max_side is not None and self.max_side < 1:
            raise ValueError(
                f"expected max_side of at least 1 pixel, got {self.max_side}; leave it out for no limit"
            )


def encode_image(image: npt.NDArray[np.uint8], config: CodecConfig) -> bytes:
    """Encode one image; the same pixels and settings give the same bytes.

    Parameters
    ----------
    image : ndarray of uint8 (H, W, C)
        Pixels, C is 1 (grey) or 3 (RGB).
    config : CodecConfig
        The codec and its settings.

    Returns
    -------
    bytes
        A self-describing encoding that `decode_image` reads.

    Raises
    ------
    ImageError
        If `image` is not such an array, has more than 64 million pixels, or is too long for JPEG (65,500 px).
    """
    (image,) = check_images([image])
    height, width = image.shape[:2]
    if config.max_side is not None and min(height, width) > config.max_side:
        scale = config.max_side / min(height, width)
        height, width = (max(config.max_side, round(side * scale)) for side in (height, width))
        image = resize_image(image, height, width)
    check_pixels(height, width)
    image = np.ascontiguousarray(image)
    codec = config.codec
    if codec == "auto":
        if height * width < _LOSSLESS_BELOW:
            return min(_encode_png(image), _encode_raw(image), key=len)
        codec = "jpeg"
    if codec == "png":
        return _encode_png(image)
    return _encode_raw(image) if codec == "raw" else _encode_jpeg(image, config)


def decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode what `encode_image`, or another JPEG or PNG encoder, made.

    Parameters
    ----------
    data : bytes
        An encoded image.

    Returns
    -------
    ndarray of uint8 (H, W, C)
        Pixels, C is 1 (grey) or 3 (RGB).

    Raises
    ------
    ImageError
        If the bytes are of no known kind, damaged, truncated, stand for more than 64 million pixels, or are
        anything but grey or RGB of 8 bits: a palette, alpha, CMYK or 16 bits are refused rather than guessed at.
        Nothing of that size is allocated before the check.
    """
    data = bytes(data)
    kind = image_kind(data)
    with _damage_is_an_image_error(kind):
        return _DECODERS[kind](data)


@contextmanager
def _damage_is_an_image_error(kind: str) -> Iterator[None]:
    """Turn whatever a damaged stream leads the libraries into to an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"the {kind} image is damaged or truncated ({error}): encode and send it again"
        ) from error


def _encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image  # noqa: PLC0415

    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(
        buffer, format="PNG", compress_level=9
    )
    return buffer.getvalue()


def _encode_raw(image: npt.NDArray[np.uint8]) -> bytes:
    return RAW_HEADER.pack(RAW_MAGIC, *image.shape) + zlib.compress(image.tobytes(), 9)


def _encode_jpeg(image: npt.NDArray[np.uint8], config: CodecConfig) -> bytes:
    import simplejpeg  # noqa: PLC0415

    if max(image.shape) > 65500:
        raise ImageError(
            f"JPEG holds at most 65500 pixels a side, got {image.shape}: set max_side, or codec png"
        )
    if image.shape[2] == 1:
        encoded = simplejpeg.encode_jpeg(
            image, quality=config.quality, colorspace="GRAY", colorsubsampling="Gray"
        )
    else:
        encoded = simplejpeg.encode_jpeg(
            image, quality=config.quality, colorspace="RGB", colorsubsampling=config.subsampling
        )
    return bytes(encoded)


def _decode_jpeg(data: bytes) -> npt.NDArray[np.uint8]:
    import simplejpeg  # noqa: PLC0415

    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    check_pixels(height, width)
    target = _JPEG_TARGETS.get(colorspace.upper())
    if target is None:
        raise ImageError(
            f"expected a grey or RGB JPEG, got {colorspace}: convert the image before encoding it"
        )
    pixels: Any = simplejpeg.decode_jpeg(data, colorspace=target)
    return np.asarray(pixels, np.uint8).reshape(height, width, 1 if target == "GRAY" else 3)


def _decode_png(data: bytes) -> npt.NDArray[np.uint8]:
    from PIL import Image  # noqa: PLC0415

    # The size is read by hand: Pillow warns about large images while it opens them.
    height, width, channels = png_shape(data)
    if _PNG_END not in data:
        raise ImageError("the PNG image breaks off before its end: encode and send it again")
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        if picture.size != (width, height):
            raise ImageError(f"the PNG says {width} x {height} in its first chunk and {picture.size} later")
        if "transparency" in picture.info:
            raise ImageError(
                "expected a PNG without transparency, got a tRNS chunk: remove it before encoding"
            )
        pixels = np.array(picture, np.uint8)
    return pixels.reshape(height, width, channels)


def _decode_raw(data: bytes) -> npt.NDArray[np.uint8]:
    height, width, channels = raw_shape(data)
    expected = height * width * channels
    stream = zlib.decompressobj()
    pixels = stream.decompress(data[RAW_HEADER.size :], expected + 1)
    if len(pixels) != expected or not stream.eof or stream.unused_data:
        raise ImageError(
            f"expected a zlib stream of exactly {expected} bytes of pixels, got {len(pixels)}"
            f"{'' if stream.eof else ' before it broke off'}: encode and send it again"
        )
    return np.frombuffer(bytearray(pixels), np.uint8).reshape(height, width, channels)


_DECODERS = {"JPEG": _decode_jpeg, "PNG": _decode_png, "raw": _decode_raw}

"""The first bytes of an encoded image: its kind and, of PNG and raw images, size and channels."""

from __future__ import annotations

import struct
from typing import Literal, TypeAlias

from cema.errors import ImageError

__all__ = [
    "MAX_PIXELS",
    "PNG_MAGIC",
    "RAW_HEADER",
    "RAW_MAGIC",
    "Kind",
    "check_pixels",
    "image_kind",
    "png_shape",
    "raw_shape",
]

MAX_PIXELS = 64_000_000
RAW_MAGIC, JPEG_MAGIC, PNG_MAGIC = b"CEMZ", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
RAW_HEADER = struct.Struct("<4sIIB")
_PNG_GREY, _PNG_RGB = 0, 2
_PNG_KINDS = {_PNG_GREY: "grey", _PNG_RGB: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_PNG_SHAPE = struct.Struct(">IIBB")

Kind: TypeAlias = Literal["JPEG", "PNG", "raw"]
_MAGIC: tuple[tuple[bytes, Kind], ...] = ((JPEG_MAGIC, "JPEG"), (PNG_MAGIC, "PNG"), (RAW_MAGIC, "raw"))


def image_kind(data: bytes) -> Kind:
    """Return the kind of an encoded image.

    Raises
    ------
    ImageError
        The bytes are of no known kind.
    """
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    raise ImageError(
        f"expected a JPEG, PNG or CEMA raw image, got {len(data)} bytes that begin with {data[:8]!r}: "
        f"encode the image with cema.formats.sample.encode_image"
    )


def check_pixels(height: int, width: int) -> None:
    """Refuse what no image of ours has: no pixels, or more than `MAX_PIXELS`.

    Raises
    ------
    ImageError
        It is so.
    """
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ImageError(
            f"expected an image of 1 to {MAX_PIXELS} pixels, got {height} x {width}: "
            "set max_side to downscale it"
        )


def png_shape(data: bytes) -> tuple[int, int, int]:
    """Return height, width and channels of a PNG by its header.

    Raises
    ------
    ImageError
        Too many pixels, or anything but grey or RGB of 8 bits.
    struct.error
        The header breaks off.
    """
    width, height, depth, kind = _PNG_SHAPE.unpack_from(data, 16)
    check_pixels(height, width)
    if depth != 8 or kind not in (_PNG_GREY, _PNG_RGB):
        raise ImageError(
            f"expected a PNG with 8 bits per channel, grey or RGB, got {depth} bits, "
            f"{_PNG_KINDS.get(kind, f'colour type {kind}')}: convert the image before encoding it"
        )
    return height, width, 1 if kind == _PNG_GREY else 3


def raw_shape(data: bytes) -> tuple[int, int, int]:
    """Return height, width and channels of a raw image by its header.

    Raises
    ------
    ImageError
        Too many pixels, or channels other than 1 and 3.
    struct.error
        The header breaks off.
    """
    _, height, width, channels = RAW_HEADER.unpack_from(data)
    check_pixels(height, width)
    if channels not in (1, 3):
        raise ImageError(f"expected 1 or 3 channels in the raw image's header, got {channels}")
    return height, width, channels

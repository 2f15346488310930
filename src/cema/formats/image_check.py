"""What can be said of an encoded image without decoding it: its header, its structure, and that it is whole.

A cloud looks at each upload in this way, at a fiftieth of what decoding costs, and decodes it once, where it learns.
Damage inside the compressed pixels is found only there; what decoding would allocate is bounded by what is checked
here.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from cema.errors import ImageError
from cema.formats.image_header import (
    PNG_MAGIC,
    RAW_HEADER,
    check_pixels,
    image_kind,
    png_shape,
    raw_shape,
)

__all__ = ["MOST_SCANS", "Inspected", "inspect_image"]

# A byte of a deflated stream stands for 1,032 at most: 258 for each two bits.
DEFLATED = 1032
# A deflated stream is longer than what it holds by some bytes in each block; much longer ones hold something else.
MOST_DEFLATED = 1024
# Segments of a JPEG before its first scan: photographs with a colour profile and notes have some twenty.
MOST_SEGMENTS = 1024
# Each scan of a progressive JPEG is another pass over all of its pixels. Encoders write about ten.
MOST_SCANS = 64
# Chunks of a PNG: so many, and one more for each KiB.
MOST_CHUNKS = 64

# Frames with Huffman codes, baseline, extended and progressive; others are lossless, arithmetic or hierarchical.
_JPEG_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_JPEG_OTHER_FRAMES = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_PROGRESSIVE, _SOS = 0xC2, 0xDA
# Restart, start and end of an image: they have no length, and no place before the pixels.
_ALONE = frozenset(range(0xD0, 0xDA))
_EOI, _SCAN = b"\xff\xd9", b"\xff\xda"
_JPEG_FRAME = struct.Struct(">BHHB")
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_CRC = struct.Struct(">I")
# Chunks of a few plain numbers, or of text as it is. Others may be compressed themselves.
_PNG_PLAIN = frozenset((b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"sBIT", b"bKGD", b"tIME", b"tEXt"))
_REMEDY = "encode and send it again"


class Inspected(NamedTuple):
    """What `inspect_image` found.

    Attributes
    ----------
    height, width : int
        Pixels, by the header.
    plain : bool
        Whether decoding it costs only what its size says. The other images are PNGs with chunks that hold compressed
        data of their own, or that nobody knows: decode such an image to check it.
    """

    height: int
    width: int
    plain: bool


def inspect_image(data: bytes) -> Inspected:
    """Check an encoded image as far as that can be done without decoding it.

    Checked are kind, size, channels and bits; that nothing is missing at its end; the segments of a JPEG up to its
    pixels, and how many scans it has; every chunk of a PNG, with its CRC; and that there are enough compressed bytes
    for so many pixels.

    Parameters
    ----------
    data : bytes
        An encoded image.

    Returns
    -------
    Inspected
        Its size, and whether that is all there is to know.

    Raises
    ------
    ImageError
        If `decode_image` would refuse the image, as far as that can be seen; or if a JPEG has more than `MOST_SCANS`
        scans, or other parts in such numbers that reading it would take absurdly long.

    Examples
    --------
    >>> import numpy as np
    >>> from cema.formats.image import CodecConfig, encode_image
    >>> inspect_image(encode_image(np.zeros((4, 6, 1), np.uint8), CodecConfig()))
    Inspected(height=4, width=6, plain=True)
    """
    kind = image_kind(data)
    try:
        return _CHECKS[kind](data)
    except (struct.error, IndexError):
        raise _broken(kind) from None


def _broken(kind: str) -> ImageError:
    return ImageError(f"the {kind} image breaks off before its end: {_REMEDY}")


def _inspect_raw(data: bytes) -> Inspected:
    height, width, channels = raw_shape(data)
    size = height * width * channels
    first, second = data[RAW_HEADER.size], data[RAW_HEADER.size + 1]
    if first & 15 != 8 or (first << 8 | second) % 31 or second & 32:
        raise ImageError(
            f"expected a zlib stream behind the raw image's header, got something else: {_REMEDY}"
        )
    stream = len(data) - RAW_HEADER.size
    _check_deflated("raw", stream, size)
    if stream > size + size // 8 + MOST_DEFLATED:
        raise ImageError(
            f"expected a zlib stream of {size} bytes of pixels, got {stream} bytes of it, which are too many: {_REMEDY}"
        )
    return Inspected(height, width, plain=True)


def _check_deflated(kind: str, deflated: int, size: int) -> None:
    if deflated * DEFLATED < size:
        raise ImageError(
            f"the {kind} image has {size} bytes of pixels by its header, and {deflated} deflated bytes cannot hold "
            f"them: {_REMEDY}"
        )


def _inspect_png(data: bytes) -> Inspected:
    height, width, channels = png_shape(data)
    at = len(PNG_MAGIC)
    kind, plain, pixels, chunks = b"", True, 0, 0
    most = MOST_CHUNKS + len(data) // 1024
    while kind != b"IEND":
        length, kind = _PNG_CHUNK.unpack_from(data, at)
        end = at + 8 + length
        (crc,) = _PNG_CRC.unpack_from(data, end)
        if crc != zlib.crc32(data[at + 4 : end]):
            raise ImageError(f"the PNG image is damaged: the checksum of a chunk is wrong: {_REMEDY}")
        _check_chunk(kind, length, first=chunks == 0)
        chunks += 1
        if chunks > most:
            raise ImageError(
                f"expected at most {most} chunks in a PNG of {len(data)} bytes, got more: {_REMEDY}"
            )
        if kind == b"IDAT":
            pixels += length
        elif chunks > 1 and kind != b"IEND":
            plain = plain and kind in _PNG_PLAIN
        at = end + 4
    _check_deflated("PNG", pixels, height * width * channels)
    return Inspected(height, width, plain)


def _check_chunk(kind: bytes, length: int, *, first: bool) -> None:
    """Refuse a chunk at a wrong place, or of what images of ours do not have."""
    if first != (kind == b"IHDR") or (first and length != 13):
        raise ImageError(f"expected one PNG header, in the first chunk, got {kind!r}: {_REMEDY}")
    if kind == b"tRNS":
        raise ImageError("expected a PNG without transparency, got a tRNS chunk: remove it before encoding")


class _Frame(NamedTuple):
    """What the header of a JPEG's frame says: its size, components, blocks of 8 x 8, and whether it has many scans."""

    height: int
    width: int
    components: int
    blocks: int
    progressive: bool


def _inspect_jpeg(data: bytes) -> Inspected:
    at, frame = 2, None
    for _ in range(MOST_SEGMENTS):
        # One loop without calls: this is done for every image that arrives.
        kind, begin = data[at + 1], at + 2
        while kind == 0xFF:  # any number of them may stand before a segment's kind
            kind, begin = data[begin], begin + 1
        length = data[begin] << 8 | data[begin + 1]
        if data[at] != 0xFF or kind < 0xC0 or kind in _ALONE or length < 2:
            raise ImageError(f"the JPEG image is damaged: no segment begins at byte {at}: {_REMEDY}")
        if kind == _SOS:
            break
        if kind in _JPEG_FRAMES:
            if frame is not None:
                raise ImageError(f"expected one frame in the JPEG image, got more: {_REMEDY}")
            frame = _jpeg_frame(data, begin + 2, progressive=kind == _PROGRESSIVE)
        elif kind in _JPEG_OTHER_FRAMES:
            raise ImageError(
                "expected a baseline or progressive JPEG with Huffman codes, got another: convert it"
            )
        at = begin + length
    else:
        raise ImageError(
            f"expected at most {MOST_SEGMENTS} segments before a JPEG's pixels, got more: {_REMEDY}"
        )
    if frame is None:
        raise ImageError(f"the JPEG image has no frame before its pixels: {_REMEDY}")
    _check_scans(data, begin + length, frame, together=data[begin + 2])
    return Inspected(frame.height, frame.width, plain=True)


def _jpeg_frame(data: bytes, at: int, *, progressive: bool) -> _Frame:
    depth, height, width, components = _JPEG_FRAME.unpack_from(data, at)
    check_pixels(height, width)
    if depth != 8 or components not in (1, 3):
        raise ImageError(
            f"expected a grey or RGB JPEG of 8 bits, got {components} components of {depth} bits: convert the image "
            "before encoding it"
        )
    factors = [(byte >> 4, byte & 15) for byte in data[at + 7 : at + 6 + 3 * components : 3]]
    across, down = max(x for x, _ in factors), max(y for _, y in factors)
    if len(factors) != components or not all(1 <= x <= 4 and 1 <= y <= 4 for x, y in factors):
        raise ImageError(f"the JPEG image is damaged: its components are sampled {factors}: {_REMEDY}")
    # The smallest number of blocks that the largest component can have.
    blocks = max((width * x // (8 * across) or 1) * (height * y // (8 * down) or 1) for x, y in factors)
    return _Frame(height, width, components, blocks, progressive)


def _check_scans(data: bytes, begin: int, frame: _Frame, *, together: int) -> None:
    """Check that a JPEG has an end, enough bytes before it, and not too many scans."""
    end = len(data) - 2 if data.endswith(_EOI) else data.rfind(_EOI, begin)
    if end < begin:
        raise _broken("JPEG")
    if 8 * (end - begin) < frame.blocks:  # each begins with a code of one bit at least
        raise ImageError(
            f"the JPEG image has {frame.height} x {frame.width} pixels by its header, and {end - begin} bytes cannot "
            f"hold them: {_REMEDY}"
        )
    if frame.progressive or together < frame.components:
        scans = 1 + data.count(_SCAN, begin)
        if scans > MOST_SCANS:
            raise ImageError(
                f"expected at most {MOST_SCANS} scans in a JPEG, got {scans}: encode it as a baseline JPEG"
            )


_CHECKS = {"JPEG": _inspect_jpeg, "PNG": _inspect_png, "raw": _inspect_raw}

"""What is seen of an encoded image without decoding it, against what decoding says."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cema.errors import ImageError
from cema.formats.image import CodecConfig, decode_image, encode_image
from cema.formats.image_check import MOST_CHUNKS, MOST_SCANS, MOST_SEGMENTS, inspect_image


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(height: int, width: int, *chunks: bytes, colour: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join((head, *chunks))


END = chunk(b"IEND", b"")
PIXELS = chunk(b"IDAT", zlib.compress(bytes(8 * 9)))
JPEG = encode_image(noise(80, 70), CodecConfig(codec="jpeg"))
PROGRESSIVE = saved(Image.fromarray(noise(80, 70)), "JPEG", progressive=True)
WHOLE = {
    "png": encode_image(noise(20, 30), CodecConfig(codec="png")),
    "raw": encode_image(noise(20, 30), CodecConfig(codec="raw")),
    "jpeg": JPEG,
    "grey jpeg": encode_image(noise(80, 70, 1), CodecConfig(codec="jpeg")),
    "progressive": PROGRESSIVE,
}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3])),
    codec=st.sampled_from(["png", "raw", "jpeg", "progressive"]),
    flat=st.booleans(),
    subsampling=st.sampled_from(["444", "420"]),
)
def test_what_can_be_decoded_passes_with_its_size(
    shape: tuple[int, int, int], codec: Any, flat: bool, subsampling: Any
) -> None:
    image = np.full(shape, 7, np.uint8) if flat else noise(*shape)
    if codec == "progressive":
        picture = Image.fromarray(image[:, :, 0] if shape[2] == 1 else image)
        encoded = saved(picture, "JPEG", progressive=True, subsampling=2 if subsampling == "420" else 0)
    else:
        encoded = encode_image(image, CodecConfig(codec=codec, subsampling=subsampling))
    assert decode_image(encoded).shape == shape
    assert inspect_image(encoded) == (*shape[:2], True)


def test_the_flattest_large_images_pass() -> None:
    """Their bytes are the fewest that so many pixels can have."""
    for shape in ((4000, 4000, 1), (1999, 2001, 3)):
        image = np.zeros(shape, np.uint8)
        for codec in ("png", "raw", "jpeg"):
            assert inspect_image(encode_image(image, CodecConfig(codec=codec)))[:2] == shape[:2]
        picture = Image.fromarray(image[:, :, 0] if shape[2] == 1 else image)
        assert inspect_image(saved(picture, "JPEG", progressive=True, quality=1))[:2] == shape[:2]


def test_real_photographs_pass(shared_data: Path) -> None:
    for path in sorted((shared_data / "imagenet_a").glob("*/0.JPEG"))[:40]:
        data = path.read_bytes()
        assert inspect_image(data)[:2] == decode_image(data).shape[:2]


@pytest.mark.parametrize("encoded", WHOLE.values(), ids=WHOLE)
def test_truncated_images_are_refused(encoded: bytes) -> None:
    # A raw image's end is known to its zlib stream alone.
    end = 13 if encoded.startswith(b"CEMZ") else len(encoded)
    for length in {*range(min(end, 40)), *range(0, end, 37), *range(end - 20, end)} - {-1}:
        if length >= 0:
            with pytest.raises(ImageError):
                inspect_image(encoded[:length])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damage_is_an_image_error_or_unseen_and_of_the_same_bounds(name: str, data: st.DataObject) -> None:
    encoded = bytearray(WHOLE[name])
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    try:
        seen = inspect_image(bytes(encoded))
    except ImageError:
        return
    assert name != "png"  # every byte of a PNG is under a checksum, a length, or the magic number
    try:
        decoded = decode_image(bytes(encoded))
    except ImageError:
        return
    assert decoded.shape[:2] == seen[:2]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"", b"CEMZ", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", JPEG[:200]]), st.binary(max_size=80)
)
def test_garbage_is_refused(magic: bytes, garbage: bytes) -> None:
    with pytest.raises(ImageError):
        inspect_image(magic + garbage)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG")],
)
def test_what_is_not_grey_or_rgb_of_8_bits_is_refused(mode: str, kind: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    else:
        picture = Image.fromarray(noise(20, 30)).convert(mode)
    with pytest.raises(ImageError, match="convert"):
        inspect_image(saved(picture, kind))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (png(8, 8, PIXELS), "breaks off"),
        (png(8, 8, PIXELS, chunk(b"IHDR", bytes(13)), END), "one PNG header"),
        (
            b"\x89PNG\r\n\x1a\n" + PIXELS + png(8, 8)[8:] + END,
            "expected an image of 1 to|8 bits|one PNG header",
        ),
        (png(8, 8, chunk(b"tRNS", b"\0\0"), PIXELS, END), "tRNS"),
        (png(4000, 4000, PIXELS, END), "cannot hold"),
        (png(8, 8, END), "cannot hold"),
        (png(8, 8, *[chunk(b"IDAT", b"")] * MOST_CHUNKS, PIXELS, END), "chunks"),
        (png(60000, 60000, PIXELS, END), "pixels"),
        (struct.pack("<4sIIB", b"CEMZ", 4000, 4000, 3) + zlib.compress(bytes(1000)), "cannot hold"),
        (struct.pack("<4sIIB", b"CEMZ", 10, 10, 3) + zlib.compress(bytes(10_000_000)), "too many"),
        (struct.pack("<4sIIB", b"CEMZ", 10, 10, 2) + zlib.compress(bytes(200)), "1 or 3 channels"),
        (struct.pack("<4sIIB", b"CEMZ", 2, 2, 3) + bytes(50), "zlib stream"),
    ],
)
def test_what_the_structure_shows_is_refused(image: bytes, told: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=told):
            inspect_image(image)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def frame_at(data: bytes) -> int:
    return data.index(b"\xff\xc2" if data is PROGRESSIVE else b"\xff\xc0")


def with_frame(data: bytes, place: int, content: bytes) -> bytes:
    at = frame_at(data) + place
    return data[:at] + content + data[at + len(content) :]


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated, so that it has so many."""
    last = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
    return PROGRESSIVE[:-2] + last * (count - PROGRESSIVE.count(b"\xff\xda")) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (with_frame(JPEG, 5, struct.pack(">HH", 60000, 60000)), "pixels"),
        (with_frame(JPEG, 5, struct.pack(">HH", 4000, 4000)), "cannot hold"),
        (with_frame(JPEG, 5, struct.pack(">HH", 0, 70)), "pixels"),
        (with_frame(JPEG, 4, b"\x0c"), "12 bits"),
        (with_frame(JPEG, 1, b"\xc9"), "Huffman"),
        (with_frame(JPEG, 11, b"\x05"), "sampled"),
        (with_frame(JPEG, 2, b"\0\0"), "damaged"),
        (with_frame(JPEG, 1, b"\xfe"), "no frame"),
        (
            JPEG[: frame_at(JPEG)] * 1 + JPEG[frame_at(JPEG) : frame_at(JPEG) + 19] + JPEG[frame_at(JPEG) :],
            "one frame",
        ),
        (JPEG[:2] + b"\xff\xfe\0\2" * MOST_SEGMENTS + JPEG[2:], "segments"),
        (JPEG[:2] + b"\xff\xd9" + JPEG[2:], "damaged"),
        (JPEG[:2] + b"x" + JPEG[2:], "known|kind|expected"),
        (scans(MOST_SCANS + 1), "scans"),
    ],
)
def test_what_the_segments_of_a_jpeg_show_is_refused(image: bytes, told: str) -> None:
    with pytest.raises(ImageError, match=told):
        inspect_image(image)


def test_as_many_scans_as_are_allowed_pass() -> None:
    assert inspect_image(scans(MOST_SCANS)) == (80, 70, True)
    assert decode_image(PROGRESSIVE).shape == (80, 70, 3)


def test_a_png_whose_chunks_may_hold_more_than_pixels_is_not_plain() -> None:
    assert inspect_image(png(8, 8, chunk(b"tEXt", b"a\0b"), PIXELS, END)).plain
    for kind in (b"zTXt", b"iCCP", b"iTXt", b"acTL", b"PLTE", b"abCd"):
        assert not inspect_image(png(8, 8, chunk(kind, b"a\0\0x"), PIXELS, END)).plain


def test_what_follows_the_end_changes_nothing() -> None:
    """Nobody reads it; it is hashed, and its bytes count."""
    for name in ("png", "jpeg", "progressive"):
        data = WHOLE[name] + b"PK\x03\x04" * 10
        assert inspect_image(data)[:2] == decode_image(data).shape[:2]

from __future__ import annotations

import hashlib
import io
import math
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cema.errors import CemaError, FormatError, ImageError
from cema.formats.image import CodecConfig, decode_image, encode_image
from cema.formats.sample import Sample, check_sample, decode_samples, encode_samples, sample_id

LOSSLESS = [CodecConfig(codec="png"), CodecConfig(codec="raw"), CodecConfig()]
images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3])))


def photograph(height: int, width: int, channels: int = 3) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(rows / (15 + k) + columns / (19 - k)) for k in range(channels)]
    return np.stack(waves, -1).astype(np.uint8)


def make(image: bytes | None = None, **changes: Any) -> Sample:
    image = encode_image(photograph(16, 16), CodecConfig()) if image is None else image
    fields = {
        "id": sample_id(image),
        "image": image,
        "entropy": 0.5,
        "label": 3,
        "version": 0,
        "captured_at": 1.7e9,
    }
    return Sample(**(fields | changes))


@settings(max_examples=60, deadline=None)
@given(images, st.sampled_from(LOSSLESS))
def test_lossless_codecs_give_the_pixels_back(image: np.ndarray, config: CodecConfig) -> None:
    encoded = encode_image(image, config)
    decoded = decode_image(encoded)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image)
    assert encode_image(image.copy(order="F"), config) == encoded
    assert sample_id(encoded) == hashlib.sha256(encoded).hexdigest()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (101, 67), (1, 300)])
def test_jpeg_keeps_shape_and_most_of_the_picture(size: tuple[int, int], channels: int) -> None:
    image = photograph(*size, channels)
    encoded = encode_image(image, CodecConfig(codec="jpeg", quality=95))
    assert encoded.startswith(b"\xff\xd8\xff")
    decoded = decode_image(encoded)
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).mean() < 3
    assert encode_image(image, CodecConfig(codec="jpeg", quality=95)) == encoded


def test_quality_changes_the_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    sizes = [len(encode_image(image, CodecConfig(quality=quality))) for quality in (30, 85, 100)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_full_chroma_keeps_the_noise_that_subsampling_smooths_away() -> None:
    rng = np.random.default_rng(0)
    clean = photograph(96, 96).astype(float)
    noisy = np.clip(clean + rng.normal(0, 40, clean.shape), 0, 255).astype(np.uint8)
    kept = {}
    for subsampling in ("444", "420"):
        decoded = decode_image(encode_image(noisy, CodecConfig(subsampling=subsampling)))
        kept[subsampling] = (decoded - clean).std() / (noisy - clean).std()
    assert kept["444"] == pytest.approx(1, abs=0.06)
    assert kept["420"] < 0.85


def test_auto_takes_the_smaller_lossless_codec_for_small_images_and_jpeg_for_others() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for image in (noise, photograph(32, 32), np.zeros((8, 8, 1), np.uint8)):
        candidates = [encode_image(image, CodecConfig(codec=codec)) for codec in ("png", "raw")]
        assert len(encode_image(image, CodecConfig())) == min(map(len, candidates))
    assert encode_image(photograph(63, 65), CodecConfig())[:3] != b"\xff\xd8\xff"
    assert encode_image(photograph(64, 64), CodecConfig())[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize(
    ("size", "expected"),
    [((300, 400), (100, 133)), ((400, 300), (133, 100)), ((100, 500), (100, 500)), ((60, 80), (60, 80))],
)
def test_the_shorter_side_is_limited(size: tuple[int, int], expected: tuple[int, int]) -> None:
    encoded = encode_image(photograph(*size), CodecConfig(codec="png", max_side=100))
    assert decode_image(encoded).shape == (*expected, 3)


def test_pictures_of_other_programs_are_read() -> None:
    picture = Image.fromarray(photograph(20, 30))
    for mode, channels in (("RGB", 3), ("L", 1)):
        expected = np.asarray(picture.convert(mode)).reshape(20, 30, channels)
        np.testing.assert_array_equal(decode_image(saved(picture.convert(mode), "PNG")), expected)
        for progressive in (False, True):
            jpeg = saved(picture.convert(mode), "JPEG", progressive=progressive)
            assert decode_image(jpeg).shape == (20, 30, channels)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("RGBA", "RGB with alpha"),
        ("LA", "grey with alpha"),
        ("P", "palette"),
        ("1", "got 1 bits"),
        ("I;16", "got 16 bits"),
        ("CMYK", "CMYK"),
    ],
)
def test_what_is_not_grey_or_rgb_of_8_bits_is_refused(mode: str, told: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
        assert picture.mode == mode
    else:
        picture = Image.fromarray(photograph(20, 30)).convert(mode)
    with pytest.raises(ImageError, match=told):
        decode_image(saved(picture, "JPEG" if mode == "CMYK" else "PNG"))


def test_16_bit_rgb_and_a_transparent_colour_are_refused() -> None:
    png = bytearray(saved(Image.fromarray(photograph(20, 30)), "PNG"))
    png[24] = 16  # Pillow writes no such file; the header alone decides
    with pytest.raises(ImageError, match="got 16 bits, RGB"):
        decode_image(bytes(png))
    with pytest.raises(ImageError, match="transparency"):
        decode_image(saved(Image.fromarray(photograph(20, 30)), "PNG", transparency=(1, 2, 3)))


def test_real_photographs_survive_jpeg(shared_data: Path) -> None:
    for path in sorted((shared_data / "imagenet_a").glob("*/0.JPEG"))[:20]:
        image = decode_image(path.read_bytes())
        again = decode_image(encode_image(image, CodecConfig(max_side=224)))
        assert min(again.shape[:2]) == min(224, *image.shape[:2])


ENCODED = [
    encode_image(photograph(20, 30), CodecConfig(codec="png")),
    encode_image(photograph(20, 30), CodecConfig(codec="raw")),
    encode_image(photograph(80, 70), CodecConfig(codec="jpeg")),
    encode_image(photograph(80, 70, 1), CodecConfig(codec="jpeg")),
]


@pytest.mark.parametrize("encoded", ENCODED, ids=["png", "raw", "jpeg", "grey jpeg"])
def test_truncated_images_are_refused(encoded: bytes) -> None:
    for length in {*range(40), *range(0, len(encoded), 37), *range(len(encoded) - 20, len(encoded))}:
        with pytest.raises(ImageError):
            decode_image(encoded[:length])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ENCODED), st.data())
def test_a_damaged_image_is_an_image_or_an_image_error(encoded: bytes, data: st.DataObject) -> None:
    damaged = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(damaged))
    except ImageError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3
    assert decoded.shape[2] in (1, 3)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", b"CEMZ", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]), st.binary(max_size=80))
def test_garbage_is_refused(magic: bytes, garbage: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(magic + garbage)


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    encoded = bytearray(simplejpeg.encode_jpeg(photograph(16, 16)))
    place = encoded.index(b"\xff\xc0")
    encoded[place + 5 : place + 9] = struct.pack(">HH", 60000, 60000)
    return bytes(encoded)


@pytest.mark.parametrize(
    "bomb",
    [
        png_bomb(60000, 60000),
        png_bomb(2**31 - 1, 2**31 - 1),
        jpeg_bomb(),
        struct.pack("<4sIIB", b"CEMZ", 2**32 - 1, 2**32 - 1, 3) + zlib.compress(bytes(1000)),
        struct.pack("<4sIIB", b"CEMZ", 10, 10, 3) + zlib.compress(bytes(100_000_000)),
    ],
    ids=["png", "larger png", "jpeg", "raw", "zlib"],
)
def test_bombs_do_not_go_off(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            decode_image(bomb)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_what_follows_a_raw_image_is_refused() -> None:
    encoded = encode_image(photograph(5, 5), CodecConfig(codec="raw"))
    with pytest.raises(ImageError):
        decode_image(encoded + b"x")


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), None]
)
def test_what_is_not_an_image_is_not_encoded(image: Any) -> None:
    with pytest.raises(ImageError):
        encode_image(image, CodecConfig())


def test_too_large_images_are_not_encoded() -> None:
    huge = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (9000, 9000, 1))
    with pytest.raises(ImageError, match="max_side"):
        encode_image(huge, CodecConfig())
    with pytest.raises(ImageError, match="65500"):
        encode_image(np.zeros((1, 65501, 1), np.uint8), CodecConfig())


@pytest.mark.parametrize("change", [{"quality": 0}, {"quality": 101}, {"max_side": 0}])
def test_codec_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        CodecConfig(**change)


floats = st.floats(allow_nan=False)
samples = st.builds(
    Sample,
    id=st.text("abc\u00e9\U0001f600/\0", max_size=70),
    image=st.binary(max_size=50),
    entropy=floats,
    label=st.integers(-(2**63), 2**63 - 1),
    version=st.integers(-(2**63), 2**63 - 1),
    captured_at=floats,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(samples, max_size=5))
def test_frames_survive_the_way(content: list[Sample]) -> None:
    frame = encode_samples(content)
    assert decode_samples(frame) == content
    assert encode_samples(decode_samples(frame)) == frame


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_frame_is_a_frame_or_a_format_error(data: st.DataObject) -> None:
    frame = bytearray(encode_samples([make(b"1"), make(b"22", label=70000)]))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_samples(bytes(frame))
    except FormatError:
        return
    for sample in decoded:
        with pytest.raises(CemaError):  # b"1" and b"22" are no images, whatever else is wrong
            check_sample(sample)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_garbage_is_not_a_frame(garbage: bytes) -> None:
    with pytest.raises(FormatError):
        decode_samples(garbage)


def test_truncated_and_foreign_frames_are_refused() -> None:
    frame = encode_samples([make()])
    for length in range(len(frame)):
        with pytest.raises(FormatError):
            decode_samples(frame[:length])
    with pytest.raises(FormatError):
        decode_samples(frame + b"\0")
    with pytest.raises(FormatError, match=r"cema\.samples/2"):
        decode_samples(msgspec.msgpack.encode({"format": "cema.samples/2", "samples": []}))
    with pytest.raises(FormatError):
        decode_samples(b"\x91" * 100_000)


def test_a_frame_has_a_largest_number_of_samples() -> None:
    frame = encode_samples([make(b"x")] * 3)
    assert len(decode_samples(frame, max_samples=3)) == 3
    with pytest.raises(FormatError, match="at most 2 samples"):
        decode_samples(frame, max_samples=2)


def test_a_good_sample_passes() -> None:
    check_sample(make())
    check_sample(make(encode_image(photograph(70, 70), CodecConfig())))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"id": "0" * 64}, FormatError, "hashes to"),
        ({"id": "../../etc/passwd"}, FormatError, "64 lowercase"),
        ({"id": "A" * 64}, FormatError, "64 lowercase"),
        ({"entropy": math.nan}, FormatError, "finite entropy"),
        ({"entropy": math.inf}, FormatError, "finite entropy"),
        ({"entropy": -0.1}, FormatError, "finite entropy"),
        ({"captured_at": math.nan}, FormatError, "finite captured_at"),
        ({"label": -1}, FormatError, "label"),
        ({"label": 2**31}, FormatError, "label"),
        ({"version": -1}, FormatError, "version"),
        ({"version": 2**63}, FormatError, "version"),
    ],
)
def test_a_sample_that_breaks_its_promise_is_refused(
    changes: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        check_sample(make(**changes))


def test_a_sample_whose_image_is_no_image_is_refused() -> None:
    with pytest.raises(ImageError):
        check_sample(make(b"not an image"))

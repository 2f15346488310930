"""Reading one image file."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from cema.errors import ImageError
from cema.ondevice.image_file import IMAGE_SUFFIXES, read_image_file


def test_files_of_16_bits_are_scaled_and_of_32_refused_and_alpha_is_ignored(tmp_path: Path) -> None:
    wide = np.array([[0, 128, 129, 257], [32768, 65280, 65406, 65535]], np.uint16)
    narrow = np.array([[0, 0, 1, 1], [128, 254, 254, 255]], np.uint8)
    for name in ("grey.png", "grey.tif", "grey.ppm"):
        Image.fromarray(wide).save(tmp_path / name)
        np.testing.assert_array_equal(read_image_file(tmp_path / name), narrow[:, :, None], err_msg=name)
    for dtype in (np.int32, np.float32):
        Image.fromarray(wide.astype(dtype)).save(tmp_path / "grey32.tif")
        with pytest.raises(ImageError, match="convert the file to 8 bits"):
            read_image_file(tmp_path / "grey32.tif")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image_file(tmp_path / "alpha.png"), pixels[:, :, :3])


def test_an_image_is_turned_upright_and_may_be_changed(tmp_path: Path) -> None:
    image, exif = Image.new("L", (48, 40)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpeg", exif=exif)
    pixels = read_image_file(tmp_path / "turned.jpeg")
    assert pixels.shape == (48, 40, 1)
    pixels[0] = 1


def jpeg_with_tags(*entries: bytes) -> bytes:
    """Return a JPEG, 48 wide and 40 high, that carries these EXIF tags."""
    out = io.BytesIO()
    Image.new("RGB", (48, 40), (200, 10, 10)).save(out, "JPEG")
    tags = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + b"\0" * 4
    data = out.getvalue()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags + data[2:]


def tag(number: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack(">HHI", number, kind, count) + value


def test_odd_tags_cost_neither_the_picture_nor_its_turn(tmp_path: Path) -> None:
    turned, odd = tag(0x112, 3, 1, b"\0\6\0\0"), tag(0x11A, 2, 2, b"72\0\0")
    (tmp_path / "odd.jpg").write_bytes(jpeg_with_tags(turned, odd))
    assert read_image_file(tmp_path / "odd.jpg").shape == (48, 40, 3)
    for name, entry in {
        "text": tag(0x112, 2, 2, b"6\0\0\0"),
        "several": tag(0x112, 3, 2, b"\0\6\0\6"),
        "unknown": tag(0x112, 3, 1, b"\0\x63\0\0"),
    }.items():
        (tmp_path / f"{name}.jpg").write_bytes(jpeg_with_tags(entry))
        assert read_image_file(tmp_path / f"{name}.jpg").shape == (40, 48, 3), name


def test_tags_that_cannot_be_read_at_all_leave_the_pixels(tmp_path: Path) -> None:
    data = jpeg_with_tags(tag(0x112, 3, 1, b"\0\6\0\0"))
    (tmp_path / "broken.jpg").write_bytes(data.replace(b"MM\0*", b"no!!"))
    assert read_image_file(tmp_path / "broken.jpg").shape == (40, 48, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_each_orientation_is_turned_as_pillow_does(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_image_file(path), expected)
    assert expected.shape[:2] == ((5, 4) if orientation < 5 else (4, 5))


@pytest.mark.parametrize(
    ("kind", "value", "compression"),
    [(2, "text", None), (4, 999_999_999, None), (4, 999_999_999, "tiff_deflate")],
)
def test_odd_tags_of_a_tiff_cost_neither_the_picture_nor_its_turn(
    tmp_path: Path, kind: int, value: object, compression: str | None
) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = 6
    for position_of_more in (0x8769, 0x8825):
        tags.tagtype[position_of_more] = kind
        tags[position_of_more] = value
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    picture.save(tmp_path / "a.tif", tiffinfo=tags, compression=compression)
    expected = np.asarray(picture.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(read_image_file(tmp_path / "a.tif")[:, :, 0], expected)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_ending_can_be_read(tmp_path: Path, suffix: str) -> None:
    grey = Image.fromarray(np.full((12, 16), 90, np.uint8))
    path = tmp_path / f"a{suffix}"
    (grey.convert("1") if suffix == ".pbm" else grey).save(path)
    assert read_image_file(path).shape[:2] == (12, 16)


def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"absent\.png: cannot be read as an image"):
        read_image_file(tmp_path / "absent.png")
    for raised in (TypeError("bad operand"), MemoryError(), RecursionError(), struct.error("unpack")):

        def fail(*_: object, error: Exception = raised) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr("PIL.ImageFile.ImageFile.load", fail)
            with pytest.raises(ImageError, match=rf"a\.png: .*{str(raised) or type(raised).__name__}"):
                read_image_file(tmp_path / "a.png")

"""Reading one image file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cema.errors import ImageError
from cema.ondevice.image_file import read_image_file


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

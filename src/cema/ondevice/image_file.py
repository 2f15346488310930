"""Reading one image file: what a device predicts and what a data set holds are the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cema.errors import ImageError

__all__ = ["IMAGE_SUFFIXES", "read_image_file"]

#: What the names of image files end in, in lower case.
IMAGE_SUFFIXES: tuple[str, ...] = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")


def read_image_file(file: Path) -> npt.NDArray[np.uint8]:
    """Read an image file as pixels of 8 bits.

    Parameters
    ----------
    file : Path
        Any format that Pillow reads.

    Returns
    -------
    ndarray of uint8, shape (H, W, 1 or 3)
        Grey or RGB, turned upright where the file says how the camera was held. 16 bits per channel are scaled down
        to 8; transparency is ignored.

    Raises
    ------
    ImageError
        If the range of the pixels is unknown: 32 bits, or floating point.
    Exception
        Whatever Pillow's decoders raise for a damaged file: OSError, SyntaxError and more.
    """
    with Image.open(file) as opened:
        upright = ImageOps.exif_transpose(opened)
        # Pillow has 16-bit grey as I;16, or (PNG in its older releases, PPM) as I; its own conversion clips.
        if upright.mode.startswith("I;16") or (upright.mode == "I" and opened.format in {"PNG", "PPM"}):
            wide = np.asarray(upright).astype(np.uint32)
            return ((wide + 128) // 257).astype(np.uint8)[:, :, None]
        if upright.mode in {"I", "F"}:
            raise ImageError(
                f"expected unsigned 8 or 16 bits per channel, got Pillow's mode {upright.mode}, whose range is "
                "unknown; convert the file to 8 bits"
            )
        grey = upright.mode in {"1", "L"}
        pixels = np.array(upright.convert("L" if grey else "RGB"), np.uint8)
    return pixels[:, :, None] if grey else pixels

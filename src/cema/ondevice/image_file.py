"""Reading one image file: what a device predicts and what a data set holds are the same pixels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from cema.errors import ImageError

__all__ = ["IMAGE_SUFFIXES", "read_image_file"]

_SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# Older releases of Pillow, and some builds, cannot read AVIF: such files are then passed over, and counted.
_HAS_AVIF = importlib.util.find_spec("PIL._avif") is not None

#: What the names of image files end in, in lower case, wherever images are read from files.
IMAGE_SUFFIXES: tuple[str, ...] = tuple(suffix for suffix in _SUFFIXES if suffix != ".avif" or _HAS_AVIF)

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image_file(file: Path) -> npt.NDArray[np.uint8]:
    """Read an image file as pixels of 8 bits.

    Parameters
    ----------
    file : Path
        Any format that Pillow reads; of several frames, the first.

    Returns
    -------
    ndarray of uint8, shape (H, W, 1 or 3)
        Grey or RGB, turned upright where the file says how the camera was held and this can be read. 16 bits per
        channel are scaled down to 8; transparency is ignored.

    Raises
    ------
    ImageError
        If the file is absent, damaged or no image, or the range of its pixels is unknown (32 bits, floating point);
        the message names the file.
    """
    try:
        # Of a named file Pillow maps the pixels of grey TIFFs, with height and width confused where these are turned.
        with file.open("rb") as stream, Image.open(stream) as opened:
            return _pixels(opened)
    except ImageError as error:
        raise ImageError(f"{file}: {error}") from error
    # Decoders raise whatever a damaged file leads them into: OSError, SyntaxError, struct.error, MemoryError and more.
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "it has no format that Pillow reads" if unknown else str(error) or type(error).__name__
        raise ImageError(
            f"{file}: cannot be read as an image ({reason}); replace or remove the file"
        ) from error


def _pixels(opened: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels of an open file as `read_image_file` does."""
    upright = _turned(opened)
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


def _turned(opened: Image.Image) -> Image.Image:
    """Return a picture upright; one whose EXIF cannot be read stays as it is, for its pixels are fine."""
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        orientation = opened.tag_v2.get(_ORIENTATION)
        # Loading a TIFF turns it, and reads all other tags for that, which odd ones make fail: it finds none here.
        opened.getexif = Image.Exif  # type: ignore[method-assign]
        opened.load()
    else:
        opened.load()
        try:
            # The number alone: ImageOps.exif_transpose also writes the other tags anew, and an odd one makes that fail.
            orientation = opened.getexif().get(_ORIENTATION)
        except Exception:  # what it raises for broken tags has no common base
            orientation = None
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return opened if turn is None else opened.transpose(turn)

"""Images of digits to try a fleet with, drawn by the program: no data set has to be there.

The shipped digits models read them nearly as well as handwriting. Under noise the edge model reads them much worse, and
the foundation model hardly worse: what a cloud can help with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

__all__ = ["draw_digit", "write_samples"]

Points = tuple[tuple[float, float], ...]
# The strokes of each digit on a square of 100: lines through points, and arcs (box, from, to in degrees, clockwise).
_LINES: dict[int, tuple[Points, ...]] = {
    1: (((50, 15), (50, 85)),),
    2: (((67, 45), (30, 85), (72, 85)),),
    4: (((36, 15), (32, 52), (70, 52)), ((66, 18), (62, 86))),
    5: (((68, 15), (36, 15), (34, 45)),),
    6: (((60, 12), (42, 35), (33, 60)),),
    7: (((30, 17), (70, 17), (45, 86)),),
    9: (((66, 32), (62, 86)),),
}
_ARCS: dict[int, tuple[tuple[tuple[float, float, float, float], float, float], ...]] = {
    0: (((30, 15, 70, 85), 0, 360),),
    2: (((30, 15, 70, 55), 180, 390),),
    3: (((32, 15, 68, 50), 200, 450), ((30, 50, 70, 85), 270, 520)),
    5: (((28, 42, 70, 85), 250, 510),),
    6: (((32, 45, 68, 85), 0, 360),),
    8: (((34, 15, 66, 50), 0, 360), ((31, 50, 69, 86), 0, 360)),
    9: (((32, 14, 66, 50), 0, 360),),
}
_SCALE = 2
_SIDE = 32
_CLEAN, _NOISY = 40, 360
_NOISE = 60.0


def draw_digit(digit: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one digit, white on black, with a width, slant, size and turn of its own.

    Returns
    -------
    ndarray of uint8, shape (32, 32)
    """
    side = 100 * _SCALE
    image = Image.new("L", (side, side), 0)
    pen, width = ImageDraw.Draw(image), int(rng.uniform(8, 13) * _SCALE)
    for line in _LINES.get(digit, ()):
        pen.line([(x * _SCALE, y * _SCALE) for x, y in line], fill=255, width=width, joint="curve")
    half = width // 2
    for (left, top, right, bottom), begin, end in _ARCS.get(digit, ()):
        box = (
            *(left * _SCALE - half, top * _SCALE - half),
            *(right * _SCALE + half, bottom * _SCALE + half),
        )
        pen.arc(box, begin, end, fill=255, width=width)
    slant, middle = rng.uniform(-0.05, 0.3), side / 2
    wide, high = rng.uniform(0.85, 1.15, 2)
    matrix = (1 / wide, slant, middle * (1 - 1 / wide - slant), 0.0, 1 / high, middle * (1 - 1 / high))
    image = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    image = image.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))


def write_samples(folder: Path, *, seed: int = 0) -> int:
    """Write images of digits: a few clean ones, then many with noise. The names say which digit each shows.

    Parameters
    ----------
    folder : Path
        Must not exist.

    Returns
    -------
    int
        How many there are.
    """
    rng = np.random.default_rng(seed)
    for name, count, noise in (("1-clean", _CLEAN, 0.0), ("2-noisy", _NOISY, _NOISE)):
        (folder / name).mkdir(parents=True)
        digits = rng.permutation(np.arange(count) % 10)
        for i, digit in enumerate(digits.tolist()):
            pixels = draw_digit(digit, rng) + noise * rng.standard_normal((_SIDE, _SIDE))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / name / f"{i:03d}-shows-{digit}.png")
    return _CLEAN + _NOISY

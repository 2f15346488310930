"""The steps of C-bar's corruptions, one function each; see `cema.data.c_bar`.

Each takes an image (H, W, 3) with values from 0 to 255, the share of its full strength (0 to 1), and a random
generator; it returns values that may leave that range. What is drawn does not depend on the share, so that more of it
is more of the same. Lengths are in pixels, angles in radians.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["STEPS", "truncated"]

_Values = NDArray[np.float64]
_Pixels = NDArray[np.uint8]
_Generator = np.random.RandomState

_GREY, _WHITE = 128.0, 255.0
# Keeps rounding errors, which differ from machine to machine, from turning a whole number into the one below it.
_TRUNCATION_SLACK = 1e-4


def truncated(x: _Values) -> _Pixels:
    """Turn values from 0 to 255 into pixels, rounded down; what lies outside is cut off."""
    return (np.clip(x, 0, 255) + _TRUNCATION_SLACK).astype(np.uint8)


def _side(x: _Values) -> int:
    return int(min(x.shape[:2]))


def _places(x: _Values) -> tuple[_Values, _Values]:
    """Return the row and the column of every pixel, each of shape (H, W)."""
    rows, columns = np.mgrid[: x.shape[0], : x.shape[1]].astype(np.float64)
    return rows, columns


# ---- what is added to the image ----------------------------------------------------------------------------------


def _single_frequency_greyscale(x: _Values, share: float, generator: _Generator) -> _Values:
    """Add one plane wave, at most half a period a pixel, with an amplitude of 196."""
    larger = generator.uniform(-np.pi, np.pi)
    smaller = generator.uniform(-abs(larger), abs(larger))
    down, right = generator.permutation([larger, smaller])
    phase = generator.uniform(0, 2 * np.pi)
    rows, columns = _places(x)
    wave: _Values = np.sin(down * rows + right * columns + phase)
    return x + 196 * share * wave[..., None]


def _cocentric_sine_waves(x: _Values, share: float, generator: _Generator) -> _Values:
    """Add rings whose radius swings with the angle; across each ring the value rises evenly by 128."""
    top, left = generator.uniform(0, x.shape[:2])
    frequency = generator.uniform(0, 10)
    swing, width = generator.uniform(0, _side(x) / 10, size=2)
    rows, columns = _places(x)
    angle = np.arctan2(columns - left, rows - top)
    radius = np.hypot(rows - top, columns - left) + swing * np.sin(frequency * angle)
    rise: _Values = np.mod(radius, width) / width - 0.5
    return x + 128 * share * rise[..., None]


def _plasma_noise(x: _Values, share: float, generator: _Generator) -> _Values:
    """Blend with coloured waves, of an amplitude of 64, along coordinates that waves have folded several times."""
    time = generator.uniform(0, 6 * np.pi)
    folds = generator.randint(4, 7)
    damping = 2.25 - generator.uniform(0.5, 1)
    scale = generator.uniform(0.075, 0.2) * _side(x)
    down, right = (places / scale for places in _places(x))
    for fold in range(folds):
        frequency, delay = 1.93**fold, time / 1.15**fold
        first = np.cos(down * frequency + delay) / damping**fold
        second = np.sin(right * frequency + delay) / damping**fold
        down, right = down + second + 0.3 * first, right + first - 0.3 * second
    red, green, blue = right - time, (right + down + np.sin(time)) / 2, down + time
    waves: _Values = np.sin(np.stack([red, green, blue], axis=2))
    strength = 64 * share
    return (1 - strength / 255) * x + strength * waves


def _perlin_noise(x: _Values, share: float, generator: _Generator) -> _Values:
    """Blend, at most half and half, with Perlin's turbulence: clouds of five octaves, seven to a side."""
    places = np.arange(x.shape[0])[:, None] * 7 / _side(x), np.arange(x.shape[1])[None] * 7 / _side(x)
    clouds = sum(
        np.abs(_gradient_noise(octave * places[0], octave * places[1], generator)) / octave
        for octave in (1, 2, 4, 8, 16)
    )
    alpha = 0.5 * share
    return (1 - alpha) * x + 255 * alpha * np.clip(0.5 + 0.5 * clouds, 0, 1)[..., None]


def _gradient_noise(rows: _Values, columns: _Values, generator: _Generator) -> _Values:
    """Return Perlin's noise times 1.5: at whole numbers 0, with the slope of a random direction.

    `rows` (H, 1) and `columns` (1, W) are from 0 on.
    """
    top, left = rows.astype(int), columns.astype(int)
    down, right = rows - top, columns - left
    slopes = generator.uniform(-1, 1, size=(top.max() + 2, left.max() + 2, 2))
    slopes /= np.linalg.norm(slopes, axis=2, keepdims=True)

    def corner(below: int, beside: int) -> _Values:
        slope = slopes[top + below, left + beside]
        rise: _Values = slope[..., 0] * (down - below) + slope[..., 1] * (right - beside)
        return rise

    def between(first: _Values, last: _Values, way: _Values) -> _Values:
        return first + way**2 * (3 - 2 * way) * (last - first)

    above, below = (between(corner(row, 0), corner(row, 1), right) for row in (0, 1))
    return 1.5 * between(above, below, down)


def _noise_of_spectrum(magnitudes: _Values, generator: _Generator) -> _Values:
    """Return noise of deviation 1, but for its mean, with random phases."""
    phases = generator.uniform(0, 2 * np.pi, size=magnitudes.shape)
    noise = np.fft.ifft2(magnitudes * np.exp(1j * phases)).real
    result: _Values = noise / noise.std()
    return result


def _frequencies(x: _Values) -> _Values:
    """Return how often each wave of the discrete Fourier transform repeats along the shorter side."""
    height, width = x.shape[:2]
    result: _Values = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) * _side(x)
    return result


def _brownish_noise(x: _Values, share: float, generator: _Generator) -> _Values:
    """Add noise that falls with the square of the frequency, of deviation 64, to each channel its own."""
    magnitudes = 1 / (_frequencies(x) ** 2 + 1)
    noise = np.stack([_noise_of_spectrum(magnitudes, generator) for _ in range(3)], axis=2)
    return x + 64 * share * noise


# ---- what hides a part of the image ------------------------------------------------------------------------------


def _blue_noise_sample(x: _Values, share: float, generator: _Generator) -> _Values:
    """Blacken the pixels where noise that rises with the frequency is below -2.5 deviations, or at most 0.5."""
    noise = _noise_of_spectrum(_frequencies(x), generator)
    return x * (noise > 3 * share - 2.5)[..., None]


def _checkerboard_cutout(x: _Values, share: float, generator: _Generator) -> _Values:
    """Turn the given share of the black squares of a tilted checkerboard to grey."""
    angle = generator.uniform(0, 2 * np.pi)
    width = generator.uniform(0.1, 0.25) * _side(x)
    rows, columns = _places(x)
    down = np.floor((np.cos(angle) * rows + np.sin(angle) * columns) / width).astype(int)
    right = np.floor((np.cos(angle) * columns - np.sin(angle) * rows) / width).astype(int)
    black = (down + right) % 2 == 0
    down, right = down - down.min(), right - right.min()
    draws = generator.uniform(size=(down.max() + 1, right.max() + 1))
    hidden = black & (draws[down, right] < share)
    result: _Values = np.where(hidden[..., None], _GREY, x)
    return result


def _lines(x: _Values, share: float, generator: _Generator) -> _Values:
    """Draw grey lines a pixel wide, as many as the side has pixels, each twice as long as the side."""
    angle = generator.uniform(0, 2 * np.pi)
    spread = generator.uniform(0.1, 1)
    side = _side(x)
    for down, right, turn in generator.uniform(size=(int(share * side), 3)):
        middle = np.array([down, right]) * x.shape[:2]
        direction = angle + 2 * np.pi * spread * (turn - 0.5)
        reach = side * np.array([np.cos(direction), np.sin(direction)])
        cover = _line(x, np.trunc(middle - reach), np.trunc(middle + reach))[..., None]
        x = (1 - cover) * x + cover * _GREY
    return x


def _line(x: _Values, start: _Values, end: _Values) -> _Values:
    """Return how much of each pixel a line covers: 1 less the distance of its middle from the line."""
    down, right = (places - first for places, first in zip(_places(x), start, strict=True))
    length = float(np.hypot(*(end - start)))
    ahead, aside = (end - start) / length
    along = down * ahead + right * aside
    across = np.abs(right * ahead - down * aside)
    return np.where((along >= 0) & (along <= length), np.clip(1 - across, 0, 1), 0)


def _sparkles(x: _Values, share: float, generator: _Generator) -> _Values:
    """Light five white stars with rays as long as a tenth of the side."""
    middles = generator.uniform(0, x.shape[:2], size=(5, 2))
    rays = generator.randint(50, 200, size=5)
    radius = 0.1 * share * _side(x)
    for middle, count in zip(middles, rays, strict=True):
        lengths = np.maximum(1, radius * (1 + 0.25 * generator.randn(count)))
        x = x + _star(x, middle, lengths, 1) * (_WHITE - x)
    return x


def _inverse_sparkles(x: _Values, share: float, generator: _Generator) -> _Values:
    """Leave the image in one star with rays as long as a quarter of the side; around it, it fades to white."""
    middle = generator.uniform(0.25, 0.75, size=2) * x.shape[:2]
    lengths = 0.25 * _side(x) * (1 + 0.25 * generator.randn(generator.randint(50, 200)))
    return _WHITE + _star(x, middle, lengths, 1.3 * share) * (x - _WHITE)


def _star(x: _Values, middle: _Values, lengths: _Values, exponent: float) -> _Values:
    """Return the light of a star, 0 to 1, shape (H, W, 1): beyond its rays it falls with the distance.

    The fall is that of the square of the distance, to the power of `exponent`.
    """
    rows, columns = _places(x)
    down, right = rows - middle[0], columns - middle[1]
    turn = (np.arctan2(right, down) + np.pi) / (2 * np.pi) * len(lengths)
    ray = turn.astype(int)
    between = turn - ray
    length = (1 - between) * lengths[ray % len(lengths)] + between * lengths[(ray + 1) % len(lengths)]
    light = (length**2 / (down**2 + right**2 + 1e-4)) ** exponent
    result: _Values = np.clip((1 - (between - 0.5) ** 2) * light, 0, 1)[..., None]
    return result


# ---- what moves the pixels ---------------------------------------------------------------------------------------


def _fetched(x: _Values, rows: _Values, columns: _Values) -> _Values:
    """Return the image at places between its pixels, by linear interpolation; outside it is black."""
    channels = [
        ndimage.map_coordinates(x[..., channel], (rows, columns), order=1, mode="grid-constant")
        for channel in range(x.shape[2])
    ]
    return np.stack(channels, axis=2)


def _caustic_refraction(x: _Values, share: float, generator: _Generator) -> _Values:
    """Show the image through rippled water that is lit from one side.

    The light on the ground is the water's height. A ray from above is bent where the water is steep (Snell's law, index
    4), by at most half the side; slopes turn brighter or darker by twice the range.
    """
    time = generator.uniform(0.5, 2)
    size = generator.uniform(0.75, 1.25) * _side(x)
    height = np.pad(ndimage.gaussian_filter(_caustics(x, time, size), 1), 1)
    down = height[2:, 1:-1] - height[:-2, 1:-1]
    right = height[1:-1, 2:] - height[1:-1, :-2]
    slope = np.hypot(down, right)
    tilt = np.arctan(slope)
    # As in the generator, what is all but level bends nothing.
    bend = np.where(np.cos(tilt) < 0.999, np.sin(tilt - np.arcsin(np.sin(tilt) / 4)), 0)
    reach = 0.5 * share * _side(x) * bend / np.where(slope > 0, slope, 1)
    rows, columns = _places(x)
    glint: _Values = 2 * 255 * share * (down - right)
    return _fetched(x, rows + reach * down, columns + reach * right) + glint[..., None]


def _caustics(x: _Values, time: float, size: float) -> _Values:
    """Return a pattern as of light under water, 0 to 1, shape (H, W), that repeats after `size` pixels."""
    down, right = (2 * np.pi * np.mod(places / size, 1) - 250 for places in _places(x))
    first, second, light = down, right, np.ones_like(down)
    for turn in range(1, 6):
        now = time * (1 - 3.5 / turn)
        first, second = (
            down + np.cos(now - first) + np.sin(now + second),
            right + np.sin(now - second) + np.cos(now + first),
        )
        with np.errstate(divide="ignore"):
            light += 200 / np.hypot(down / np.sin(first + now), right / np.cos(second + now))
    result: _Values = np.clip(np.abs(1.17 - (light / 5) ** 1.4) ** 8, 0, 1)
    return result


def _pinch_and_twirl(x: _Values, share: float, generator: _Generator) -> _Values:
    """Pull outwards and turn, by at most a quarter, what is in nine disks, three to a side."""
    turns = generator.choice([-1, 1], size=(3, 3)) * share * np.pi / 2
    width = _side(x) // 3
    rows, columns = _places(x)
    block_down, block_right = (np.minimum(places // width, 2).astype(int) for places in (rows, columns))
    top, left = (block * width + width / 2 for block in (block_down, block_right))
    down, right = rows - top, columns - left
    distance = np.hypot(down, right) / (width / 2)
    inside = (distance > 0) & (distance <= 1)
    distance = np.where(inside, distance, 1)  # at the rim nothing moves
    pull = np.sin(np.pi / 2 * distance) ** -(0.4 * share + 0.1)
    turn = turns[block_down, block_right] * (1 - distance) ** 2
    return _fetched(
        x,
        top + pull * (down * np.cos(turn) - right * np.sin(turn)),
        left + pull * (down * np.sin(turn) + right * np.cos(turn)),
    )


def _ripple(x: _Values, share: float, generator: _Generator) -> _Values:
    """Move rows up and down, and columns left and right, in waves that reach a fortieth of the side."""
    lengths = generator.uniform(0.1, 0.3, size=2) * _side(x)
    phases = generator.uniform(0, 2 * np.pi, size=2)
    reach = 0.025 * share * _side(x)
    rows, columns = (
        places + reach * np.sin(2 * np.pi * places / length + phase)
        for places, length, phase in zip(_places(x), lengths, phases, strict=True)
    )
    return _fetched(x, rows, columns)


def _circular_motion_blur(x: _Values, share: float, _: _Generator) -> _Values:
    """Average 21 images turned by up to 15 degrees to either side, the least turned with the largest weight."""
    turns = np.linspace(-1, 1, 21)
    weights = np.exp(-2 * turns**2)
    # Prepared once for the cubic interpolation, not for each turn.
    ready = ndimage.spline_filter1d(ndimage.spline_filter1d(x, axis=0), axis=1)
    total = np.zeros_like(x)
    for turn, weight in zip(turns, weights / weights.sum(), strict=True):
        total += weight * ndimage.rotate(ready, 15 * share * turn, reshape=False, prefilter=False)
    return total


def _transverse_chromatic_abberation(x: _Values, share: float, generator: _Generator) -> _Values:
    """Enlarge one channel by a half, another by a quarter, and the third not at all."""
    # Smoothed by the interpolation, and rounded, as in the generator.
    factors = generator.permutation([1, 1 + 0.25 * share, 1 + 0.5 * share])
    result = np.empty_like(x)
    for channel, factor in enumerate(factors):
        large = ndimage.zoom(x[..., channel], factor, prefilter=False)
        top, left = ((large.shape[axis] - x.shape[axis]) // 2 for axis in (0, 1))
        result[..., channel] = np.rint(large[top : top + x.shape[0], left : left + x.shape[1]])
    return result


#: What to do for each corruption.
STEPS: dict[str, Callable[[_Values, float, _Generator], _Values]] = {
    "blue_noise_sample": _blue_noise_sample,
    "plasma_noise": _plasma_noise,
    "checkerboard_cutout": _checkerboard_cutout,
    "cocentric_sine_waves": _cocentric_sine_waves,
    "single_frequency_greyscale": _single_frequency_greyscale,
    "brownish_noise": _brownish_noise,
    "perlin_noise": _perlin_noise,
    "sparkles": _sparkles,
    "inverse_sparkles": _inverse_sparkles,
    "caustic_refraction": _caustic_refraction,
    "pinch_and_twirl": _pinch_and_twirl,
    "ripple": _ripple,
    "circular_motion_blur": _circular_motion_blur,
    "lines": _lines,
    "transverse_chromatic_abberation": _transverse_chromatic_abberation,
}

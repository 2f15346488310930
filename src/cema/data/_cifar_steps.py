"""The steps of CIFAR-10-C's corruptions, on a batch of images of 32 x 32 pixels; see `cema.data.cifar_corruptions`.

Each takes intensities from 0 to 1, its constants, and a random generator for each image, and returns intensities that
may leave that range. What an image becomes never depends on the others of its batch.
"""

from __future__ import annotations

import importlib.resources
import io
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import cv2
import numpy as np
from imagecorruptions.corruptions import disk
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

__all__ = ["SIDE", "STEPS", "truncated"]

#: Height and width in pixels that the constants are made for.
SIDE = 32

_Constants = tuple[float, ...]
_Generators = list[np.random.RandomState]
_Intensities = NDArray[np.float64]
_Pixels = NDArray[np.uint8]

_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_FROST_PICTURES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
_FROST_SCALE = 0.2
_MAGNIFICATION_STEP = 0.01
# Keeps rounding errors, which differ from machine to machine, from turning a whole number into the one below it.
_TRUNCATION_SLACK = 1e-4


def truncated(x: _Intensities) -> _Pixels:
    """Turn intensities into pixels as the published generator does.

    Parameters
    ----------
    x : ndarray of float64
        0 is black and 1 white; what lies outside is cut off.

    Returns
    -------
    ndarray of uint8
        Of the same shape, rounded down.
    """
    return (np.clip(x, 0, 1) * 255 + _TRUNCATION_SLACK).astype(np.uint8)


def _rounded(x: _Intensities) -> _Pixels:
    pixels: _Pixels = np.rint(x * 255).astype(np.uint8)
    return pixels


# ---- noise -------------------------------------------------------------------------------------------------------


def _gaussian_noise(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    return x + np.stack([generator.normal(scale=c[0], size=x.shape[1:]) for generator in generators])


def _shot_noise(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    return np.stack([g.poisson(image * c[0]) for g, image in zip(generators, x, strict=True)]) / c[0]


def _impulse_noise(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    draws = np.stack([generator.uniform(size=(2, *x.shape[1:])) for generator in generators])
    struck, white = draws[:, 0] <= c[0], draws[:, 1] <= 0.5
    return np.where(struck, white.astype(np.float64), x)


def _speckle_noise(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    return x * (1 + np.stack([generator.normal(scale=c[0], size=x.shape[1:]) for generator in generators]))


# ---- blur --------------------------------------------------------------------------------------------------------


def _smoothed(x: _Intensities, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> _Intensities:
    """Blur axes 1 and 2 of a batch by a Gaussian."""
    sigmas = (0, sigma, sigma, *(0,) * (x.ndim - 3))
    result: _Intensities = ndimage.gaussian_filter(x, sigmas, mode=mode, truncate=truncate)
    return result


def _gaussian_blur(x: _Intensities, c: _Constants, _: _Generators) -> _Intensities:
    return _smoothed(x, c[0])


def _defocus_blur(x: _Intensities, c: _Constants, _: _Generators) -> _Intensities:
    kernel = disk(radius=c[0], alias_blur=c[1]).astype(np.float64)
    rows = np.flatnonzero(kernel.any(axis=1))  # the library pads the disk with zeros
    kernel = kernel[rows[0] : rows[-1] + 1, rows[0] : rows[-1] + 1]
    result: _Intensities = ndimage.correlate(x, kernel[None, :, :, None], mode="mirror")
    return result


def _glass_blur(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    sigma, distance, rounds = c[0], int(c[1]), int(c[2])
    shuffled = truncated(_smoothed(x, sigma))
    # From the last pixel to the first, each takes the pixel at a draw from -distance to distance - 1 down and right.
    # At a distance of 1 that is 0 or -1 both ways: a pixel that has not had its turn. The order of turns, and with it
    # the loop over the pixels, makes no difference.
    inner = np.arange(distance + 1, SIDE - distance + 1)
    image = np.arange(len(x))[:, None, None]
    for _ in range(rounds):
        size = (2, len(inner), len(inner))
        moves = np.stack([generator.randint(-distance, distance, size=size) for generator in generators])
        taken = shuffled[image, inner[:, None] + moves[:, 0], inner[None, :] + moves[:, 1]]
        shuffled[:, inner[0] :, inner[0] :] = taken
    return _smoothed(shuffled / 255, sigma)


def _motion_blur(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    return _moved(x, c[0], c[1], [generator.uniform(-45, 45) for generator in generators])


def _moved(x: _Intensities, radius: float, sigma: float, angles: Sequence[float]) -> _Intensities:
    """Blur each image of a batch along a line, angles in degrees, to eight bits."""
    taps = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(taps) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(x, ((0, 0), (taps, taps), (taps, taps), *((0, 0),) * (x.ndim - 3)), mode="edge")
    blurred = np.zeros_like(x)
    for index, angle in enumerate(angles):
        down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        for tap, weight in enumerate(weights):
            top, left = (taps + math.ceil(tap * along - 0.5) for along in (down, right))
            blurred[index] += weight * padded[index, top : top + SIDE, left : left + SIDE]
    return _rounded(blurred) / 255


def _zoom_blur(x: _Intensities, c: _Constants, _: _Generators) -> _Intensities:
    # As arange makes them, to the last bit: the greatest falls on a tie when the size is rounded.
    factors = np.arange(1, 1 + (c[0] - 0.5) * _MAGNIFICATION_STEP, _MAGNIFICATION_STEP)
    total = x.copy()
    for factor in factors:
        total += _magnified(x, float(factor))
    return total / (len(factors) + 1)


def _magnified(x: _Intensities, factor: float) -> _Intensities:
    """Magnify the middle of a batch of shape (N, 32, 32, C)."""
    matrix = _magnification(factor)
    for _ in range(2):  # rows, then columns; a turn changes places
        magnified: _Intensities = matrix @ x.reshape(len(x), SIDE, -1)
        x = magnified.reshape(x.shape).swapaxes(1, 2)
    return x


@lru_cache(maxsize=64)
def _magnification(factor: float) -> _Intensities:
    """Return the matrix that magnifies one axis: linear interpolation is separable, and the same for every image."""
    kept = math.ceil(SIDE / factor)
    first = (SIDE - kept) // 2
    magnified = ndimage.zoom(np.eye(SIDE)[first : first + kept], (factor, 1), order=1)
    surplus = (len(magnified) - SIDE) // 2
    result: _Intensities = magnified[surplus : surplus + SIDE]
    return result


# ---- weather -----------------------------------------------------------------------------------------------------


def _snow(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    mean, deviation, factor, threshold, radius, sigma, kept = c
    flakes = np.stack([g.normal(loc=mean, scale=deviation, size=(SIDE, SIDE)) for g in generators])
    flakes = _magnified(flakes[..., None], factor)
    flakes = truncated(np.where(flakes < threshold, 0, flakes)) / 255
    flakes = _moved(flakes, radius, sigma, [generator.uniform(-135, -45) for generator in generators])
    bleached = np.maximum(x, (x @ _LUMINANCE)[..., None] * 1.5 + 0.5)
    result: _Intensities = kept * x + (1 - kept) * bleached + flakes + flakes[:, ::-1, ::-1]
    return result


def _frost(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    pictures = _frost_pictures()
    crops = []
    for generator in generators:
        picture = pictures[generator.randint(len(pictures))]
        top, left = (generator.randint(0, side - SIDE) for side in picture.shape[:2])
        crops.append(picture[top : top + SIDE, left : left + SIDE])
    return c[0] * x + c[1] * np.stack(crops)


@lru_cache(maxsize=1)
def _frost_pictures() -> tuple[_Intensities, ...]:
    pictures = []
    for name in _FROST_PICTURES:
        content = importlib.resources.files("imagecorruptions").joinpath("frost", name).read_bytes()
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise OSError(f"the library imagecorruptions carries a damaged picture of frost: {name}")
        small = cv2.resize(picture, (0, 0), fx=_FROST_SCALE, fy=_FROST_SCALE)
        pictures.append(small[:, :, ::-1] / 255)
    return tuple(pictures)


def _fog(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    thickness, decay = c
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    result: _Intensities = x + thickness * _plasma(decay, generators)[..., None]
    result *= brightest / (brightest + thickness)
    return result


def _plasma(decay: float, generators: _Generators) -> _Intensities:
    """Make clouds of shape (N, 32, 32), 0 to 1, by the diamond-square algorithm on a torus."""
    draws = np.stack([generator.uniform(-1, 1, size=SIDE * SIDE - 1) for generator in generators])
    clouds = np.zeros((len(generators), SIDE, SIDE))
    drawn, step, roughness = 0, SIDE, 100.0

    def rough(neighbours: _Intensities) -> _Intensities:
        nonlocal drawn
        count = neighbours[0].size
        noise = draws[:, drawn : drawn + count].reshape(neighbours.shape)
        drawn += count
        return neighbours / 4 + roughness**2 * noise

    def and_next(points: _Intensities, axis: int) -> _Intensities:
        return points + np.roll(points, -1, axis=axis)

    def and_previous(points: _Intensities, axis: int) -> _Intensities:
        return points + np.roll(points, 1, axis=axis)

    while step > 1:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        centres = rough(and_next(and_next(corners, 1), 2))
        clouds[:, half::step, half::step] = centres
        clouds[:, ::step, half::step] = rough(and_previous(centres, 1) + and_next(corners, 2))
        clouds[:, half::step, ::step] = rough(and_previous(centres, 2) + and_next(corners, 1))
        step, roughness = half, roughness / decay
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    clouds /= clouds.max(axis=(1, 2), keepdims=True)
    return clouds


def _spatter(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    mean, deviation, sigma, threshold, strength, mud = c
    liquid = np.stack([g.normal(loc=mean, scale=deviation, size=(SIDE, SIDE)) for g in generators])
    liquid = _smoothed(liquid, sigma)
    if mud:
        cover = _smoothed((liquid > threshold).astype(np.float64), strength)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return x * (1 - cover) + cover * _MUD
    liquid[liquid < threshold] = 0
    drops = np.stack([_drops(layer) for layer in truncated(liquid)])
    return x + strength * drops[..., None] * _WATER


def _drops(liquid: _Pixels) -> _Intensities:
    """Shade one layer of liquid (uint8) as drops, 0 to 1: thick in the middle and lit from one side."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    depth = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)
    shade = cv2.blur(cv2.filter2D(depth, cv2.CV_8U, relief), (3, 3))
    drops: _Intensities = liquid.astype(np.float64) * shade
    strongest = float(drops.max())
    return drops / strongest if strongest > 0 else drops


# ---- colour, and what codecs do ----------------------------------------------------------------------------------


def _brightness(x: _Intensities, c: _Constants, _: _Generators) -> _Intensities:
    # Hue and saturation stay, so all channels grow in proportion; black has neither and turns grey.
    value = x.max(axis=3, keepdims=True)
    brighter = np.clip(value + c[0], 0, 1)
    result: _Intensities = np.where(value > 0, x / np.where(value > 0, value, 1), 1) * brighter
    return result


def _saturate(x: _Intensities, c: _Constants, _: _Generators) -> _Intensities:
    factor, summand = c
    value = x.max(axis=3, keepdims=True)
    spread = value - x.min(axis=3, keepdims=True)
    saturation = np.divide(spread, value, out=np.zeros_like(value), where=value > 0)
    wanted = np.clip(saturation * factor + summand, 0, 1)
    # A channel lies below the value by a share of the spread that only the hue decides. Grey has the hue of red.
    red = np.broadcast_to([0.0, 1.0, 1.0], x.shape).copy()
    below = np.divide(value - x, spread, out=red, where=spread > 0)
    result: _Intensities = value * (1 - wanted * below)
    return result


def _contrast(x: _Intensities, c: _Constants, _: _Generators) -> _Intensities:
    mean = x.mean(axis=(1, 2), keepdims=True)
    result: _Intensities = (x - mean) * c[0] + mean
    return result


def _pixelate(x: _Intensities, c: _Constants, _: _Generators) -> _Intensities:
    side = int(SIDE * c[0])

    def coarse(pixels: _Pixels) -> _Pixels:
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX)
        return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX))

    return np.stack([coarse(pixels) for pixels in _rounded(x)]) / 255


def _jpeg_compression(x: _Intensities, c: _Constants, _: _Generators) -> _Intensities:
    def coded(pixels: _Pixels) -> _Pixels:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=int(c[0]))
        return np.asarray(Image.open(buffer))

    return np.stack([coded(pixels) for pixels in _rounded(x)]) / 255


def _elastic_transform(x: _Intensities, c: _Constants, generators: _Generators) -> _Intensities:
    length, sigma, move = c
    middle, reach = SIDE // 2, SIDE // 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]], dtype=np.float32) * reach + middle
    moves = np.stack([generator.uniform(-move, move, size=(3, 2)) for generator in generators])
    warped = np.empty_like(x)
    for index, image in enumerate(x.astype(np.float32)):
        affine = cv2.getAffineTransform(corners, corners + moves[index].astype(np.float32))
        warped[index] = cv2.warpAffine(image, affine, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT_101)
    if not length:
        return warped
    draws = np.stack([generator.uniform(-1, 1, size=(2, SIDE, SIDE)) for generator in generators])
    across, down = (_smoothed(draws[:, i], sigma, mode="reflect", truncate=3) * length for i in range(2))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for index, image in enumerate(warped.copy()):
        places = (rows + down[index], columns + across[index])
        for channel in range(3):
            warped[index, :, :, channel] = ndimage.map_coordinates(
                image[:, :, channel], places, order=1, mode="reflect"
            )
    return warped


#: What to do for each corruption.
STEPS: dict[str, Callable[[_Intensities, _Constants, _Generators], _Intensities]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": _gaussian_blur,
    "spatter": _spatter,
    "saturate": _saturate,
}

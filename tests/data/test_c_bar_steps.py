"""The steps of C-bar's corruptions against slow references, written from the formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from c_bar_images import SEED, natural
from scipy import ndimage

from cema.data._c_bar_steps import STEPS


def drawn() -> np.random.RandomState:
    return np.random.RandomState(SEED)


def step(name: str, image: np.ndarray, share: float) -> np.ndarray:
    return STEPS[name](image.astype(np.float64), share, drawn())


def pixels(image: np.ndarray) -> list[tuple[int, int]]:
    return [(row, column) for row in range(image.shape[0]) for column in range(image.shape[1])]


def made(image: np.ndarray, value: Any) -> np.ndarray:
    """Call a function of row and column for every pixel."""
    values = [np.broadcast_to(value(row, column), (3,)) for row, column in pixels(image)]
    return np.reshape(np.array(values, dtype=np.float64), image.shape)


def at(image: np.ndarray, row: float, column: float) -> np.ndarray:
    """Interpolate between the four pixels around a place; those outside are black."""
    result = np.zeros(3)
    top, left = math.floor(row), math.floor(column)
    for y, x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
            result += (1 - abs(row - y)) * (1 - abs(column - x)) * image[y, x]
    return result


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    photograph: np.ndarray = natural(1, 34, 32)[0]
    return photograph


def test_plane_wave_pixel_by_pixel(image: np.ndarray) -> None:
    rng = drawn()
    larger = rng.uniform(-np.pi, np.pi)
    smaller = rng.uniform(-abs(larger), abs(larger))
    down, right = rng.permutation([larger, smaller])
    phase = rng.uniform(0, 2 * np.pi)
    expected = made(image, lambda r, c: image[r, c] + 19.6 * math.sin(down * r + right * c + phase))
    assert step("single_frequency_greyscale", image, 0.1) == pytest.approx(expected)


def test_rings_pixel_by_pixel(image: np.ndarray) -> None:
    rng = drawn()
    middle = rng.uniform(size=2) * [34, 32]
    frequency = rng.uniform(0, 10)
    swing, width = rng.uniform(0, 3.2, size=2)

    def ring(r: int, c: int) -> float:
        angle = math.atan2(c - middle[1], r - middle[0])
        radius = math.dist((r, c), middle) + swing * math.sin(angle * frequency)
        return (radius % width) / width - 0.5

    expected = made(image, lambda r, c: image[r, c] + 64 * ring(r, c))
    assert step("cocentric_sine_waves", image, 0.5) == pytest.approx(expected)


def test_plasma_pixel_by_pixel(image: np.ndarray) -> None:
    rng = drawn()
    time, folds = rng.uniform(0, 6 * np.pi), rng.randint(4, 7)
    sharpness, scale = rng.uniform(0.5, 1), rng.uniform(0.075, 0.2) * 32

    def colours(r: int, c: int) -> np.ndarray:
        x, y = c / scale, r / scale
        frequency, delay, damping = 1.0, 1.0, 1.0
        for _ in range(folds):
            a = math.cos(y * frequency + time / delay) / damping
            b = math.sin(x * frequency + time / delay) / damping
            x, y = x + a - 0.3 * b, y + b + 0.3 * a
            frequency, delay, damping = frequency * 1.93, delay * 1.15, damping * (2.25 - sharpness)
        return np.sin([x - time, (x + y + math.sin(time)) / 2, y + time])

    expected = made(image, lambda r, c: (1 - 32 / 255) * image[r, c] + 32 * colours(r, c))
    assert step("plasma_noise", image, 0.5) == pytest.approx(expected)


def test_perlin_noise_pixel_by_pixel(image: np.ndarray) -> None:
    rng = drawn()
    octaves = {}
    for octave in (1, 2, 4, 8, 16):
        cells = [int(octave * (size - 1) * 7 / 32) + 2 for size in (34, 32)]
        slopes = rng.uniform(-1, 1, size=(*cells, 2))
        octaves[octave] = slopes / np.sqrt((slopes**2).sum(axis=2, keepdims=True))

    def noise(slopes: np.ndarray, y: float, x: float) -> float:
        total = 0.0
        for i in (int(y), int(y) + 1):
            for j in (int(x), int(x) + 1):
                u, v = 1 - abs(y - i), 1 - abs(x - j)
                weight = u * u * (3 - 2 * u) * v * v * (3 - 2 * v)
                total += weight * float(slopes[i, j] @ [y - i, x - j])
        return 1.5 * total

    def cloud(r: int, c: int) -> float:
        parts = (abs(noise(s, o * r * 7 / 32, o * c * 7 / 32)) / o for o, s in octaves.items())
        return min(1.0, 0.5 + 0.5 * sum(parts))

    expected = made(image, lambda r, c: 0.75 * image[r, c] + 0.25 * 255 * cloud(r, c))
    assert step("perlin_noise", image, 0.5) == pytest.approx(expected)


def summed_waves(magnitude: Any, shape: tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
    """Return noise of deviation 1 as a sum of cosines, wave by wave."""
    phases = rng.uniform(0, 2 * np.pi, size=shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    noise = np.zeros(shape)
    for y in range(shape[0]):
        for x in range(shape[1]):
            wave = 2 * np.pi * (y * rows / shape[0] + x * columns / shape[1]) + phases[y, x]
            repeats = [min(k, size - k) * min(shape) / size for k, size in zip((y, x), shape, strict=True)]
            noise += magnitude(math.hypot(*repeats)) * np.cos(wave)
    return noise / noise.std()


def test_brownish_noise_wave_by_wave(image: np.ndarray) -> None:
    rng = drawn()
    noise = [summed_waves(lambda f: 1 / (f * f + 1), (34, 32), rng) for _ in range(3)]
    expected = image + 6.4 * np.stack(noise, axis=2)
    assert step("brownish_noise", image, 0.1) == pytest.approx(expected)


def test_blue_noise_sample_wave_by_wave(image: np.ndarray) -> None:
    noise = summed_waves(lambda f: f, (34, 32), drawn())
    expected = image * (noise > 1.5 - 2.5)[..., None]
    assert np.array_equal(step("blue_noise_sample", image, 0.5), expected)


def test_checkerboard_pixel_by_pixel(image: np.ndarray) -> None:
    rng = drawn()
    angle, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.25) * 32
    squares = {
        (r, c): (
            math.floor((r * math.cos(angle) + c * math.sin(angle)) / width),
            math.floor((c * math.cos(angle) - r * math.sin(angle)) / width),
        )
        for r, c in pixels(image)
    }
    first, last = (
        np.array([end(square[axis] for square in squares.values()) for axis in (0, 1)]) for end in (min, max)
    )
    draws = rng.uniform(size=last - first + 1)

    def seen(r: int, c: int) -> np.ndarray:
        i, j = squares[r, c]
        hidden = (i + j) % 2 == 0 and draws[i - first[0], j - first[1]] < 0.6
        return np.full(3, 128) if hidden else image[r, c]

    assert np.array_equal(step("checkerboard_cutout", image, 0.6), made(image, seen))


def test_lines_against_the_image_library(image: np.ndarray) -> None:
    from skimage.draw import line_aa

    rng = drawn()
    angle, spread = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 1)
    expected = image.astype(np.float64)
    for _ in range(8):
        middle = rng.uniform(size=2) * [34, 32]
        way = angle + 2 * np.pi * spread * (rng.uniform() - 0.5)
        reach = 32 * np.array([math.cos(way), math.sin(way)])
        start, end = (middle - reach).astype(int), (middle + reach).astype(int)
        rows, columns, cover = line_aa(*start, *end)
        there = (rows >= 0) & (rows < 34) & (columns >= 0) & (columns < 32)
        mask = np.zeros((34, 32, 1))
        mask[rows[there], columns[there], 0] = cover[there]
        expected = (1 - mask) * expected + mask * 128
    found = step("lines", image, 0.25)
    assert np.abs(found - expected).max() < 2  # the library counts covers in 255 steps
    assert np.abs(found - expected).mean() < 0.1


def light(place: tuple[int, int], middle: np.ndarray, lengths: list[float], exponent: float) -> float:
    dy, dx = place[0] - middle[0], place[1] - middle[1]
    turn = (math.atan2(dx, dy) + math.pi) / (2 * math.pi) * len(lengths)
    ray, between = int(turn), turn - int(turn)
    near, far = lengths[ray % len(lengths)], lengths[(ray + 1) % len(lengths)]
    length = near + between * (far - near)
    fall = (length**2 / (dy**2 + dx**2 + 1e-4)) ** exponent
    return min(1.0, (1 - (between - 0.5) ** 2) * fall)


def test_sparkles_pixel_by_pixel(image: np.ndarray) -> None:
    rng = drawn()
    middles = rng.uniform(size=(5, 2)) * [34, 32]
    expected = image.astype(np.float64)
    for middle, count in zip(middles, rng.randint(50, 200, size=5), strict=True):
        lengths = [max(1.0, 1.6 + 0.4 * rng.randn()) for _ in range(count)]
        shares = made(image, lambda r, c, m=middle, ls=lengths: light((r, c), m, ls, 1))
        expected += shares * (255 - expected)
    assert step("sparkles", image, 0.5) == pytest.approx(expected)


def test_inverse_sparkles_pixel_by_pixel(image: np.ndarray) -> None:
    rng = drawn()
    middle = rng.uniform(0.25, 0.75, size=2) * [34, 32]
    lengths = [8 + 2 * rng.randn() for _ in range(rng.randint(50, 200))]
    shares = made(image, lambda r, c: light((r, c), middle, lengths, 0.65))
    assert step("inverse_sparkles", image, 0.5) == pytest.approx(255 + shares * (image - 255.0))


def test_caustic_refraction_by_rays(image: np.ndarray) -> None:
    rng = drawn()
    time, size = rng.uniform(0.5, 2), rng.uniform(0.75, 1.25) * 32

    def caustic(r: int, c: int) -> float:
        p = [2 * math.pi * ((r / size) % 1) - 250, 2 * math.pi * ((c / size) % 1) - 250]
        i, total = list(p), 1.0
        for n in range(5):
            t = time * (1 - 3.5 / (n + 1))
            i = [
                p[0] + math.cos(t - i[0]) + math.sin(t + i[1]),
                p[1] + math.sin(t - i[1]) + math.cos(t + i[0]),
            ]
            total += 1 / math.hypot(p[0] * 0.005 / math.sin(i[0] + t), p[1] * 0.005 / math.cos(i[1] + t))
        return min(1.0, abs(1.17 - (total / 5) ** 1.4) ** 8)

    water = ndimage.gaussian_filter(made(image, caustic)[..., 0], 1)

    def level(r: int, c: int) -> float:
        return float(water[r, c]) if 0 <= r < 34 and 0 <= c < 32 else 0.0

    def seen(r: int, c: int) -> np.ndarray:
        down, right = level(r + 1, c) - level(r - 1, c), level(r, c + 1) - level(r, c - 1)
        normal = np.array([down, right, 1.0])
        normal /= np.linalg.norm(normal)
        ray = np.array([0.0, 0.0, 1.0])
        cosine = float(ray @ normal)
        if cosine < 0.999:  # Snell's law for vectors, index 4
            ray = ray / 4 + (math.sqrt(1 - (1 - cosine**2) / 16) - cosine / 4) * normal
        moved = at(image, r + 8 * ray[0], c + 8 * ray[1])
        return moved + 255 * (down - right)

    assert step("caustic_refraction", image, 0.5) == pytest.approx(made(image, seen))


def test_ripple_pixel_by_pixel(image: np.ndarray) -> None:
    rng = drawn()
    lengths, phases = rng.uniform(3.2, 9.6, size=2), rng.uniform(0, 2 * np.pi, size=2)

    def moved(place: int, axis: int) -> float:
        return place + 0.4 * math.sin(2 * math.pi * place / lengths[axis] + phases[axis])

    expected = made(image, lambda r, c: at(image, moved(r, 0), moved(c, 1)))
    assert step("ripple", image, 0.5) == pytest.approx(expected)


def test_pinch_and_twirl_pixel_by_pixel(image: np.ndarray) -> None:
    signs = drawn().choice([-1, 1], size=(3, 3))

    def seen(r: int, c: int) -> np.ndarray:
        block = (r // 10, c // 10)
        if max(block) > 2:
            return image[r, c]
        middle = (block[0] * 10 + 5, block[1] * 10 + 5)
        distance = math.dist((r, c), middle) / 5
        if distance == 0 or distance > 1:
            return image[r, c]
        way = complex(r - middle[0], c - middle[1]) * math.sin(math.pi / 2 * distance) ** -0.3
        way *= np.exp(1j * signs[block] * math.pi / 4 * (1 - distance) ** 2)
        return at(image, middle[0] + way.real, middle[1] + way.imag)

    assert step("pinch_and_twirl", image, 0.5) == pytest.approx(made(image, seen))


def test_circular_motion_blur_against_whole_turns(image: np.ndarray) -> None:
    total, weights = np.zeros(image.shape), 0.0
    for place in range(-10, 11):
        weight = math.exp(-2 * (place / 10) ** 2)
        turned = ndimage.rotate(image.astype(np.float64), 7.5 * place / 10, reshape=False)
        total += weight * turned
        weights += weight
    assert step("circular_motion_blur", image, 0.5) == pytest.approx(total / weights)


def test_chromatic_abberation_against_a_spline(image: np.ndarray) -> None:
    factors = drawn().permutation([1, 1.125, 1.25])
    found = step("transverse_chromatic_abberation", image, 0.5)

    def spline(distance: np.ndarray) -> np.ndarray:
        near, far = np.abs(distance), 2 - np.abs(distance)
        result: np.ndarray = np.where(near < 1, 2 / 3 - near**2 + near**3 / 2, np.clip(far, 0, None) ** 3 / 6)
        return result

    def weights(size: int, factor: float) -> np.ndarray:
        large = round(size * factor)
        places = np.arange(large) * (size - 1) / (large - 1)
        first = (large - size) // 2
        return spline(places[:, None] - np.arange(size)[None])[first : first + size]

    for channel, factor in enumerate(factors):
        expected = weights(34, factor) @ image[..., channel] @ weights(32, factor).T
        inner = np.abs(found[..., channel] - expected)[2:-2, 2:-2]  # at the rim the spline wants more pixels
        assert inner.max() < 0.5 + 1e-6

"""C-bar's corruptions: what they must do, and that they are used as the others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_bar_images import SEED, natural
from scipy import stats

from cema.data import cache
from cema.data._c_bar_steps import STEPS, truncated
from cema.data.c_bar import C_BAR_CORRUPTIONS, LEVELS, corrupt
from cema.data.cifar_c import CifarC
from cema.data.corruptions import (
    CORRUPTIONS,
    VALIDATION_CORRUPTIONS,
    check_corruption,
    corrupt_image,
    corrupt_images,
)
from cema.data.dataset import open_dataset
from cema.data.digits import load_digits
from cema.data.imagenet_c import is_imagenet_c
from cema.errors import ConfigError

ALL = [(constants, name) for constants, levels in LEVELS.items() for name in levels]
SEVERITIES = (1, 2, 3, 4, 5)

# Mean absolute change of 16 images at each severity, recorded.
RECORDED: dict[tuple[str, str], tuple[float, ...]] = {
    ("imagenet", "blue_noise_sample"): (1.45, 2.58, 4.62, 12.37, 27.47),
    ("imagenet", "plasma_noise"): (21.79, 31.87, 38.48, 41.73, 44.93),
    ("imagenet", "checkerboard_cutout"): (5.31, 7.52, 9.91, 12.38, 14.43),
    ("imagenet", "cocentric_sine_waves"): (9.40, 15.58, 24.69, 27.68, 30.62),
    ("imagenet", "single_frequency_greyscale"): (12.19, 18.21, 24.15, 51.87, 56.83),
    ("imagenet", "brownish_noise"): (6.12, 12.17, 18.13, 23.97, 29.63),
    ("imagenet", "perlin_noise"): (16.43, 18.61, 20.80, 27.35, 31.72),
    ("imagenet", "sparkles"): (9.53, 9.54, 10.86, 20.95, 27.32),
    ("imagenet", "inverse_sparkles"): (23.42, 34.83, 51.74, 73.96, 76.50),
    ("imagenet", "caustic_refraction"): (16.29, 21.63, 31.29, 39.79, 50.50),
    ("cifar", "blue_noise_sample"): (1.35, 2.26, 3.76, 9.24, 13.83),
    ("cifar", "brownish_noise"): (15.16, 23.97, 32.39, 37.73, 40.30),
    ("cifar", "checkerboard_cutout"): (2.54, 5.31, 7.52, 9.91, 12.38),
    ("cifar", "inverse_sparkles"): (23.42, 29.40, 39.72, 55.01, 57.97),
    ("cifar", "pinch_and_twirl"): (7.98, 8.61, 9.23, 11.24, 12.49),
    ("cifar", "ripple"): (15.73, 17.00, 18.25, 20.70, 21.90),
    ("cifar", "circular_motion_blur"): (12.07, 14.04, 15.88, 17.53, 19.05),
    ("cifar", "lines"): (1.27, 3.81, 5.12, 7.69, 9.96),
    ("cifar", "sparkles"): (9.53, 12.72, 24.74, 29.26, 33.85),
    ("cifar", "transverse_chromatic_abberation"): (19.88, 21.91, 28.26, 32.13, 32.91),
}


def change(corrupted: np.ndarray, image: np.ndarray) -> float:
    return float(np.abs(corrupted.astype(np.float64) - image).mean())


# ---- names and levels --------------------------------------------------------------------------------------------


def test_ten_corruptions_each_and_five_rising_severities() -> None:
    assert [len(levels) for levels in LEVELS.values()] == [10, 10]
    assert len(C_BAR_CORRUPTIONS) == len(set(C_BAR_CORRUPTIONS)) == 15
    assert set(STEPS) == set(C_BAR_CORRUPTIONS)
    assert not set(C_BAR_CORRUPTIONS) & {*CORRUPTIONS, *VALIDATION_CORRUPTIONS}
    for levels in LEVELS.values():
        for five in levels.values():
            assert len(five) == 5
            assert five[0] > 0
            assert five[-1] <= 10
            assert list(five) == sorted(set(five))


def test_a_corruption_of_the_other_set_is_refused() -> None:
    check_corruption("lines", 3, "cifar")
    check_corruption("lines", 3, None)
    with pytest.raises(ValueError, match=r"lines .* 'imagenet'; .*plasma_noise"):
        check_corruption("lines", 3)
    with pytest.raises(ValueError, match=r"plasma_noise .* 'cifar'; .*lines"):
        corrupt_image(np.zeros((32, 32, 3), np.uint8), "plasma_noise", 3, constants="cifar")
    with pytest.raises(ValueError, match=r"from 1 .* to 5"):
        check_corruption("lines", 6, "cifar")


def test_the_cache_knows_the_code() -> None:
    assert {"c_bar.py", "_c_bar_steps.py"} <= set(cache._CODE)


# ---- what all of them do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("constants", "name"), ALL)
def test_change_rises_with_the_severity_as_recorded(constants: str, name: str) -> None:
    images = natural(16)
    changes = []
    for severity in SEVERITIES:
        corrupted = [
            corrupt(image, name, severity, constants, SEED + place) for place, image in enumerate(images)
        ]
        changes.append(change(np.stack(corrupted), images))
    # Libraries below round differently from release to release; a broken corruption is further off than this.
    assert changes == pytest.approx(RECORDED[constants, name], rel=0.02, abs=0.05)
    rises = np.diff(changes)
    if (constants, name) == ("imagenet", "sparkles"):
        # On a small image most rays of both severities have the least length, one pixel.
        assert 0 <= rises[0] < 0.1
        rises = rises[1:]
    assert (rises > 0.1).all()


@pytest.mark.parametrize("name", LEVELS["imagenet"])
def test_change_rises_on_photographs(name: str) -> None:
    image = natural(1, 224, 200)[0]
    changes = [change(corrupt(image, name, severity, "imagenet", SEED), image) for severity in SEVERITIES]
    assert (np.diff(changes) > 0.1).all()


@pytest.mark.parametrize("name", C_BAR_CORRUPTIONS)
@pytest.mark.parametrize("shape", [(28, 28), (32, 45), (33, 32)])
def test_any_size_and_the_input_stays(name: str, shape: tuple[int, int]) -> None:
    image = natural(1, *shape)[0].astype(np.float64)
    before = image.copy()
    image.flags.writeable = False
    corrupted = STEPS[name](image, 0.4, np.random.RandomState(SEED))
    assert corrupted.shape == image.shape
    assert corrupted.dtype == np.float64
    assert np.isfinite(corrupted).all()
    assert np.array_equal(image, before)
    assert truncated(corrupted).dtype == np.uint8


@pytest.mark.parametrize(("constants", "name"), ALL)
def test_same_alone_in_another_order_and_with_another_seed(constants: Any, name: str) -> None:
    images = natural(4)
    together = corrupt_images(images, name, 4, seed=5, constants=constants)
    assert together.shape == images.shape
    assert together.dtype == np.uint8
    backwards = corrupt_images(images[::-1], name, 4, seed=5, constants=constants)
    assert np.array_equal(backwards, together[::-1])
    assert np.array_equal(corrupt_image(images[3], name, 4, seed=5, constants=constants), together[3])
    other = corrupt_images(images, name, 4, seed=6, constants=constants)
    assert np.array_equal(other, together) == (name == "circular_motion_blur")


@pytest.mark.parametrize(("constants", "name"), ALL)
def test_grey_stays_grey_and_suffers_more_with_the_severity(constants: Any, name: str) -> None:
    digits = load_digits().test_images[:12]
    changes = []
    for severity in SEVERITIES:
        corrupted = corrupt_images(digits, name, severity, constants=constants)
        assert corrupted.shape == digits.shape
        changes.append(change(corrupted, digits))
    assert changes[0] > 0
    assert (np.diff(changes) >= 0).all()
    assert changes[4] > 1.2 * changes[0]


def test_global_generator_is_left_as_it_was() -> None:
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    corrupt_images(natural(2), "brownish_noise", 5)
    assert np.array_equal(np.random.random(3), expected)


# ---- properties --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "level"), [*enumerate(LEVELS["imagenet"]["blue_noise_sample"], 1)])
def test_share_that_blue_noise_blackens(severity: int, level: float) -> None:
    white = np.full((128, 128, 3), 255, np.uint8)
    corrupted = corrupt(white, "blue_noise_sample", severity, "imagenet", SEED)
    assert set(np.unique(corrupted)) == {0, 255}
    assert (corrupted == 0).mean() == pytest.approx(stats.norm.cdf(0.3 * level - 2.5), rel=0.2)


@pytest.mark.parametrize(("severity", "level"), [*enumerate(LEVELS["cifar"]["checkerboard_cutout"], 1)])
def test_share_that_the_checkerboard_hides(severity: int, level: float) -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    seeds = [np.array([seed], np.uint32) for seed in range(200)]
    corrupted = np.stack([corrupt(white, "checkerboard_cutout", severity, "cifar", seed) for seed in seeds])
    assert set(np.unique(corrupted)) == {128, 255}
    assert (corrupted == 128).mean() == pytest.approx(level / 20, rel=0.2)


def test_brownish_noise_keeps_its_strength_on_grey_images() -> None:
    flat = np.full((64, 64, 1), 128, np.uint8)
    noisy = corrupt_image(flat, "brownish_noise", 2).astype(np.float64)
    # Level 2 is a deviation of 12.8; the luminance of three channels would show 8.6.
    assert noisy.std() == pytest.approx(12.8, rel=0.02)


def test_what_is_flat_stays_flat() -> None:
    flat = np.full((32, 32, 3), 200, np.uint8)
    for name in ("pinch_and_twirl", "transverse_chromatic_abberation"):
        assert np.array_equal(corrupt(flat, name, 5, "cifar", SEED), flat)
    for name in ("ripple", "circular_motion_blur"):  # black comes in from outside
        assert np.array_equal(corrupt(flat, name, 5, "cifar", SEED)[6:-6, 6:-6], flat[6:-6, 6:-6])


def test_white_stays_where_stars_shine_and_lines_are_grey() -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    for name in ("sparkles", "inverse_sparkles"):
        assert np.array_equal(corrupt(white, name, 5, "cifar", SEED), white)
    lined = corrupt(white, "lines", 5, "cifar", SEED)
    assert lined.min() == 128
    assert np.array_equal(lined[..., 0], lined[..., 2])


# ---- data sets ---------------------------------------------------------------------------------------------------


def test_made_for_a_data_set(tmp_path: Path) -> None:
    images = natural(3)
    np.savez(tmp_path / "some.npz", x=images, y=np.arange(3))
    data = open_dataset(str(tmp_path / "some.npz"), cache=tmp_path / "cache")
    found = data.corrupted("lines", 5)
    assert np.array_equal(found.images, corrupt_images(images, "lines", 5, constants="cifar"))
    with pytest.raises(ConfigError, match=r"plasma_noise .* 'cifar'"):
        data.corrupted("plasma_noise", 5)


def test_published_files_of_cifar_are_read(tmp_path: Path) -> None:
    made = np.repeat(natural(2), 5, axis=0)
    np.save(tmp_path / "lines.npy", made)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(2), 5))
    data = CifarC(tmp_path)
    assert data.corruptions == ("lines",)
    assert np.array_equal(data.corrupted("lines", 2).images, made[2:4])


def test_a_class_folder_is_not_taken_for_a_corruption(tmp_path: Path) -> None:
    (tmp_path / "lines").mkdir()
    assert not is_imagenet_c(tmp_path)

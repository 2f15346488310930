"""Corruptions: reproducible, independent of order, grey stays grey, and recorded statistics."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cema.data.corruptions import (
    CORRUPTIONS,
    FAMILIES,
    VALIDATION_CORRUPTIONS,
    corrupt_image,
    corrupt_images,
    corrupted_chunks,
)
from cema.data.digits import load_digits
from cema.errors import ConfigError, ImageError

ALL = CORRUPTIONS + VALIDATION_CORRUPTIONS

# Mean pixel and mean absolute change of the first 40 test digits at severity 3 with seed 0, recorded.
RECORDED: dict[str, tuple[float, float]] = {
    "gaussian_noise": (40.059, 19.610),
    "shot_noise": (23.443, 4.771),
    "impulse_noise": (34.586, 11.552),
    "defocus_blur": (25.064, 30.651),
    "glass_blur": (24.162, 31.113),
    "motion_blur": (23.769, 30.349),
    "zoom_blur": (30.037, 14.364),
    "snow": (82.260, 56.945),
    "frost": (113.224, 89.203),
    "fog": (99.367, 87.691),
    "brightness": (96.199, 70.883),
    "contrast": (24.854, 34.034),
    "elastic_transform": (24.971, 27.097),
    "pixelate": (25.335, 14.573),
    "jpeg_compression": (28.167, 6.639),
    "speckle_noise": (22.944, 4.730),
    "gaussian_blur": (24.809, 27.933),
    "spatter": (35.054, 9.739),
    "saturate": (25.315, 0.000),
}


@pytest.fixture(scope="module")
def grey() -> np.ndarray:
    return load_digits().test_images[:40]


@pytest.fixture(scope="module")
def colour() -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (3, 8, 10, 3)).repeat(6, axis=1).repeat(6, axis=2)
    return smooth.astype(np.uint8)


def test_names_are_those_of_the_library() -> None:
    imagecorruptions = pytest.importorskip("imagecorruptions")
    assert tuple(imagecorruptions.get_corruption_names("common")) == CORRUPTIONS
    assert tuple(imagecorruptions.get_corruption_names("validation")) == VALIDATION_CORRUPTIONS
    for family in ("noise", "blur", "weather", "digital"):
        assert tuple(imagecorruptions.get_corruption_names(family)) == FAMILIES[family]


@pytest.mark.parametrize("name", ALL)
def test_recorded_statistics(name: str, grey: np.ndarray) -> None:
    corrupted = corrupt_images(grey, name, 3)
    change = np.abs(corrupted.astype(np.float64) - grey).mean()
    # Libraries below round differently from release to release; a broken corruption is further off than this.
    assert (corrupted.mean(), change) == pytest.approx(RECORDED[name], rel=0.03, abs=0.05)


@pytest.mark.parametrize("name", ALL)
def test_same_alone_in_another_order_and_between_others(name: str, grey: np.ndarray) -> None:
    some = grey[:6]
    together = corrupt_images(some, name, 3, seed=5)
    assert together.shape == some.shape
    assert together.dtype == np.uint8
    assert np.array_equal(corrupt_images(some[::-1], name, 3, seed=5), together[::-1])
    assert np.array_equal(corrupt_image(some[4], name, 3, seed=5), together[4])


@pytest.mark.parametrize("name", ALL)
def test_colour_keeps_its_shape(name: str, colour: np.ndarray) -> None:
    first = corrupt_images(colour, name, 4, seed=1)
    assert first.shape == colour.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, corrupt_images(colour, name, 4, seed=1))


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "impulse_noise", "glass_blur", "motion_blur", "frost", "fog"]
)
def test_seed_matters(name: str, grey: np.ndarray) -> None:
    one, other = (corrupt_images(grey[:4], name, 4, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_global_generator_is_left_as_it_was(grey: np.ndarray) -> None:
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    corrupt_images(grey[:3], "gaussian_noise", 5)
    assert np.array_equal(np.random.random(3), expected)


def test_grey_noise_has_its_full_strength() -> None:
    flat = np.full((64, 64, 1), 128, np.uint8)
    noisy = corrupt_image(flat, "gaussian_noise", 1).astype(np.float64)
    # Severity 1 is a deviation of 0.08 of the range; the mean of three channels would show 0.046.
    assert noisy.std() / 255 == pytest.approx(0.08, rel=0.05)


def test_contrast_is_what_the_paper_says() -> None:
    image = np.zeros((32, 32, 1), np.uint8)
    image[:, 16:] = 200
    # Severity 3 keeps a fifth of the distance to the mean of 100.
    assert set(np.unique(corrupt_image(image, "contrast", 3))) <= {79, 80, 119, 120}


def test_spatter_without_a_drop_leaves_the_image(grey: np.ndarray) -> None:
    # With severity 1 some images catch no drop; the library alone turns those black.
    spattered = corrupt_images(grey, "spatter", 1)
    assert (spattered.reshape(len(grey), -1).max(1) >= 200).all()


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(32, 50),
    width=st.integers(32, 50),
    channels=st.sampled_from([1, 3]),
    name=st.sampled_from(ALL),
    severity=st.integers(1, 5),
)
def test_any_size_keeps_its_shape(height: int, width: int, channels: int, name: str, severity: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, channels)).astype(np.uint8)
    corrupted = corrupt_image(image, name, severity)
    assert corrupted.shape == image.shape
    assert corrupted.dtype == np.uint8


def test_chunks_come_one_by_one_and_may_be_left_early(grey: np.ndarray) -> None:
    images = np.concatenate([grey] * 4)
    read: list[int] = []

    class Lazy(list[np.ndarray]):
        def __getitem__(self, place: Any) -> Any:
            read.append(len(range(*place.indices(len(self)))))
            return super().__getitem__(place)

    chunks = corrupted_chunks(Lazy(images), "contrast", 3)
    assert read == []
    assert np.array_equal(next(chunks), corrupt_images(images[:64], "contrast", 3))
    assert read == [64]
    chunks.close()
    assert sum(map(len, corrupted_chunks(images, "contrast", 3))) == len(images)


def test_processes_make_no_difference_to_the_constants_of_cifar(grey: np.ndarray) -> None:
    images = np.concatenate([grey] * 2)
    parallel = corrupt_images(images, "glass_blur", 3, constants="cifar", processes=2)
    assert np.array_equal(parallel, corrupt_images(images, "glass_blur", 3, constants="cifar"))


def test_processes_make_no_difference_and_report(grey: np.ndarray) -> None:
    images = np.concatenate([grey, grey[::-1], grey])
    calls: list[tuple[int, int]] = []
    parallel = corrupt_images(
        images, "gaussian_noise", 3, processes=2, progress=lambda done, of: calls.append((done, of))
    )
    assert np.array_equal(parallel, corrupt_images(images, "gaussian_noise", 3))
    assert calls == [(64, 120), (120, 120)]


def test_a_sequence_of_sizes_and_an_empty_array(grey: np.ndarray, colour: np.ndarray) -> None:
    mixed = corrupt_images([grey[0], colour[0]], "pixelate", 2)
    assert isinstance(mixed, list)
    assert [image.shape for image in mixed] == [grey[0].shape, colour[0].shape]
    assert corrupt_images(grey[:0], "pixelate", 2).shape == (0, 32, 32, 1)


@pytest.mark.parametrize("severity", [0, 6, 2.5, "3", True])
def test_wrong_severity(severity: Any, grey: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"from 1 .* to 5"):
        corrupt_image(grey[0], "fog", severity)


def test_unknown_name_lists_the_known(grey: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"unknown corruption 'mist'.*fog"):
        corrupt_image(grey[0], "mist", 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((31, 32, 1), np.uint8), "at least 32"),
        (np.zeros((32, 32), np.uint8), "channels last"),
        (np.zeros((32, 32, 4), np.uint8), "shape"),
        (np.zeros((32, 32, 1), np.float32), "dtype float32"),
        ([[0]], "list"),
    ],
)
def test_wrong_images(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        corrupt_image(image, "fog", 3)


def test_wrong_image_in_a_batch_is_named(grey: np.ndarray) -> None:
    with pytest.raises(ImageError, match="image 1: "):
        corrupt_images([grey[0], grey[0][:20]], "fog", 3)
    with pytest.raises(ValueError, match="processes"):
        corrupt_images(grey, "fog", 3, processes=0)


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("No module named 'imagecorruptions'", r"cema\[bench\]"),
        ("libGL.so.1: cannot open shared object file", "libgl1"),
    ],
)
def test_missing_libraries(
    grey: np.ndarray, monkeypatch: pytest.MonkeyPatch, reason: str, remedy: str
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "imagecorruptions":
            raise ImportError(reason)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "imagecorruptions", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=remedy):
        corrupt_image(grey[0], "fog", 3)

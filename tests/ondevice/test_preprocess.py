from __future__ import annotations

import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cema.errors import ImageError
from cema.ondevice.preprocess import Preprocessing, check_images, resize_image

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def make(height: int, width: int, /, **changes: Any) -> Preprocessing:
    return Preprocessing(
        **({"height": height, "width": width, "channels": 3, "mean": MEAN, "std": STD} | changes)
    )


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return a smooth image with some noise on it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(rows / (5 + k) + columns / (9 - k)) for k in range(channels)]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 8, (height, width, channels)), 0, 255).astype(np.uint8)


def normalised(image: np.ndarray, mean: Any = MEAN, std: Any = STD) -> np.ndarray:
    return ((image.astype(np.float64) - np.array(mean)) / np.array(std)).transpose(2, 0, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 5),
    st.integers(1, 120),
    st.integers(1, 120),
    st.sampled_from([1, 3]),
    st.integers(0, 2**32 - 1),
)
def test_images_of_the_right_size_are_only_normalised(
    count: int, height: int, width: int, channels: int, seed: int
) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    prepare = make(height, width, channels=channels, mean=MEAN[:channels], std=STD[:channels])
    out = prepare(images)
    assert out.dtype == np.float32
    assert out.shape == (count, channels, height, width)
    assert out.flags.c_contiguous
    for image, got in zip(images, out, strict=True):
        np.testing.assert_allclose(got, normalised(image, prepare.mean, prepare.std), rtol=4e-7, atol=5e-7)
    np.testing.assert_array_equal(prepare(list(images)), out)


def test_the_fast_path_takes_views_and_leaves_its_input_alone() -> None:
    large = photograph(40, 60)
    view = np.stack([large, large[::-1]])[:, 4:36:1, 50:2:-2]
    before = view.copy()
    out = make(32, 24)(view)
    np.testing.assert_array_equal(view, before)
    np.testing.assert_array_equal(out, make(32, 24)(np.ascontiguousarray(view)))
    assert not np.shares_memory(out, view)


def test_many_images_at_once_are_the_same_as_one_by_one() -> None:
    images = np.random.default_rng(0).integers(0, 256, (37, 33, 31, 3), dtype=np.uint8)
    prepare = make(33, 31)
    np.testing.assert_array_equal(prepare(images), np.concatenate([prepare(image[None]) for image in images]))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "size", [(300, 400), (400, 300), (256, 256), (100, 57), (224, 224), (225, 224), (1, 1)]
)
def test_resizing_and_cropping_is_the_usual_evaluation_transform(
    size: tuple[int, int], interpolation: Any
) -> None:
    image = photograph(*size)
    got = make(224, 224, crop=0.875, interpolation=interpolation)([image])[0]

    # Shorter side to 256 with the longer one in proportion, then the central 224 x 224.
    height, width = size
    scaled = (256, int(256 * width / height)) if height <= width else (int(256 * height / width), 256)
    method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    resized = np.asarray(Image.fromarray(image).resize(scaled[::-1], method))
    top, left = round((scaled[0] - 224) / 2), round((scaled[1] - 224) / 2)
    np.testing.assert_allclose(
        got, normalised(resized[top : top + 224, left : left + 224]), rtol=4e-7, atol=5e-7
    )


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3])),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])),
    st.sampled_from([1.0, 0.9, 0.5]),
)
def test_any_size_becomes_the_model_s_size(
    source: tuple[int, int, int], target: tuple[int, int, int], crop: float
) -> None:
    height, width, channels = target
    prepare = make(height, width, crop=crop, channels=channels, mean=MEAN[:channels], std=STD[:channels])
    out = prepare([photograph(*source), photograph(height, width, source[2])])
    assert out.shape == (2, channels, height, width)
    assert np.isfinite(out).all()


def test_grey_becomes_rgb_and_rgb_becomes_grey() -> None:
    grey = photograph(8, 9, 1)
    np.testing.assert_allclose(
        make(8, 9)(grey[None])[0], normalised(np.repeat(grey, 3, 2)), rtol=4e-7, atol=5e-7
    )
    colour = photograph(8, 9)
    luma = colour.astype(np.float64) @ [0.299, 0.587, 0.114]
    got = make(8, 9, channels=1, mean=(0.0,), std=(1.0,))(colour[None])[0, 0]
    np.testing.assert_allclose(got, luma, atol=1.0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 4, 4, 3)), r"expected image 0 to be uint8, got float64: .*\* 255"),
        (np.zeros((2, 4, 4, 3), np.int64), "got int64"),
        (np.zeros((4, 4, 3), np.uint8), r"image\[None\]"),
        (np.zeros((4, 4), np.uint8), r"\(N, H, W, C\)"),
        (np.zeros((1, 3, 4, 4), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((1, 4, 4, 4), np.uint8), "alpha"),
        (np.zeros((1, 0, 4, 3), np.uint8), "to have pixels"),
        ([np.zeros((4, 4), np.uint8)], r"image\[:, :, None\]"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8)], "expected image 1"),
        ([[[0, 0], [0, 0]]], "numpy array, got list"),
        ("photo.jpg", "got str"),
        (None, "got NoneType"),
        (3, "got int"),
    ],
)
def test_wrong_images_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        make(8, 8)(images)
    with pytest.raises(ImageError, match=message):
        check_images(images)


def test_checking_does_not_copy() -> None:
    images = np.zeros((3, 4, 5, 3), np.uint8)
    assert all(np.shares_memory(image, images) for image in check_images(images))
    assert check_images([]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"width": 70000},
        {"channels": 4},
        {"channels": 1},
        {"mean": (0.0,)},
        {"std": (1.0, 1.0, 0.0)},
        {"std": (1.0, 1.0, float("nan"))},
        {"mean": (0.0, 0.0, float("inf"))},
        {"crop": 0.0},
        {"crop": 1.1},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make(8, 8, **change)


def test_settings_survive_json() -> None:
    prepare = make(224, 200, crop=0.875, interpolation="bilinear")
    assert msgspec.json.decode(msgspec.json.encode(prepare), type=Preprocessing) == prepare
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"hight": 1}', type=Preprocessing)


def test_resizing_to_the_same_size_is_free() -> None:
    image = photograph(8, 9)
    assert resize_image(image, 8, 9) is image
    assert resize_image(photograph(8, 9, 1), 4, 5).shape == (4, 5, 1)


@pytest.mark.parametrize("shape", [(1, 2001), (2000, 2), (7, 1000), (1001, 30)])
def test_of_a_very_long_image_only_the_middle_is_resized(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 1), dtype=np.uint8)
    prepare = Preprocessing(height=24, width=24, channels=1, mean=(0.0,), std=(1.0,))
    scale = max(24 / shape[0], 24 / shape[1])
    size = max(24, int(shape[0] * scale)), max(24, int(shape[1] * scale))
    whole = resize_image(image, *size)
    top, left = round((size[0] - 24) / 2), round((size[1] - 24) / 2)
    np.testing.assert_allclose(prepare([image])[0, 0], whole[top : top + 24, left : left + 24, 0], atol=2)


def test_a_very_long_image_takes_neither_minutes_nor_all_memory() -> None:
    prepare = Preprocessing(height=224, width=224, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    tracemalloc.start()
    try:
        assert prepare([np.zeros((1, 2000, 3), np.uint8)]).shape == (1, 3, 224, 224)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_an_image_of_one_line_takes_no_more_memory_than_it_has() -> None:
    prepare = Preprocessing(height=224, width=224, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = np.arange(16_000_000, dtype=np.uint8).reshape(1, -1, 1)
    tracemalloc.start()
    try:
        prepare([image])
        assert tracemalloc.get_traced_memory()[1] < 3 * image.nbytes
    finally:
        tracemalloc.stop()

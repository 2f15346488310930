"""What a name or a path opens as: archives of arrays, digits, folders by class, and the errors."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cema.data.base import LabelledImages
from cema.data.cache import cached_corruptions
from cema.data.corruptions import corrupt_images
from cema.data.crops import centre_crop
from cema.data.dataset import open_dataset
from cema.data.digits import load_digits
from cema.data.folder import WNIDS_FILE
from cema.data.photographs import DecodedOnce, Photographs
from cema.errors import ConfigError, ImageError

COUNT = 7


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def y() -> np.ndarray:
    return np.array([4, 0, 9, 1, 1, 2, 7])


@pytest.fixture
def archive(tmp_path: Path, x: np.ndarray, y: np.ndarray) -> Path:
    np.savez_compressed(tmp_path / "small.npz", x=x, y=y)
    return tmp_path / "small.npz"


def same(found: LabelledImages, images: np.ndarray, labels: np.ndarray) -> bool:
    return np.array_equal(np.stack(list(found.images)), images) and found.labels.tolist() == labels.tolist()


def test_archive(archive: Path, tmp_path: Path, x: np.ndarray, y: np.ndarray) -> None:
    data = open_dataset(str(archive), cache=tmp_path / "cache", seed=2)
    assert (data.name, data.classes, data.family, data.logits) == ("small", 10, "cifar", None)
    assert data.corruptions is None
    assert same(data.clean(), x, y)
    assert data.clean().labels.dtype == np.int64
    expected = corrupt_images(x, "gaussian_noise", 4, seed=2, constants="cifar")
    assert same(data.corrupted("gaussian_noise", 4), expected, y)
    assert any((tmp_path / "cache").iterdir())
    assert same(data.corrupted("gaussian_noise", 4), expected, y)


def test_archive_limited_before_it_is_corrupted(
    archive: Path, tmp_path: Path, x: np.ndarray, y: np.ndarray
) -> None:
    data = open_dataset(str(archive), cache=tmp_path, seed=5, limit=3)
    order = np.random.default_rng(5).permutation(COUNT)[:3]
    assert same(data.clean(), x[order], y[order])
    calls: list[tuple[int, int]] = []
    found = data.corrupted("contrast", 2, progress=lambda done, of: calls.append((done, of)))
    assert same(found, corrupt_images(x[order], "contrast", 2, seed=5, constants="cifar"), y[order])
    assert calls[-1] == (3, 3)
    whole = open_dataset(str(archive), cache=tmp_path)
    assert whole.digest == data.digest
    assert whole.classes == data.classes
    more = open_dataset(str(archive), cache=tmp_path, seed=5, limit=5).clean()
    assert np.array_equal(np.stack(list(more.images))[:3], x[order])


def test_archive_digest_is_of_the_content(archive: Path, x: np.ndarray, y: np.ndarray) -> None:
    before = open_dataset(str(archive), cache=None).digest
    np.savez(archive, x=x, y=y.astype(np.uint8))
    assert open_dataset(str(archive), cache=None).digest == before
    np.savez(archive, x=x, y=y[::-1])
    assert open_dataset(str(archive), cache=None).digest != before


@pytest.mark.parametrize(
    ("shape", "family", "constants"),
    [
        ((2, 32, 32, 1), "digits", "imagenet"),
        ((2, 32, 32, 3), "cifar", "cifar"),
        ((2, 64, 80, 3), "cifar", "imagenet"),
        ((2, 80, 80, 1), "imagenet", "imagenet"),
    ],
)
def test_archive_size_says_what_it_is_like(
    tmp_path: Path, shape: tuple[int, ...], family: str, constants: Any
) -> None:
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=images, y=[0, 1], classes=5)
    data = open_dataset(str(tmp_path / "a.npz"), cache=tmp_path)
    assert (data.family, data.classes) == (family, 5)
    expected = cached_corruptions(images, "shot_noise", 3, constants=constants, folder=tmp_path)
    assert np.array_equal(data.corrupted("shot_noise", 3).images, expected)


@pytest.mark.parametrize(
    ("channels", "classes", "family"), [(3, 100, "cifar100"), (3, 99, "cifar"), (1, 100, "digits")]
)
def test_a_hundred_classes_are_like_cifar_100(
    tmp_path: Path, channels: int, classes: int, family: str
) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 32, 32, channels), np.uint8), y=[0, 1], classes=classes)
    assert open_dataset(str(tmp_path / "a.npz"), cache=None).family == family


@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
def test_constants_may_be_said(archive: Path, tmp_path: Path, x: np.ndarray, constants: Any) -> None:
    for name in "ab":
        photograph(tmp_path / "set" / name / "0.png", (32, 32))
    data = open_dataset(str(archive), cache=tmp_path, constants=constants)
    expected = corrupt_images(x, "snow", 2, constants=constants)
    assert np.array_equal(data.corrupted("snow", 2).images, expected)
    data = open_dataset(str(tmp_path / "set"), cache=tmp_path, constants=constants)
    expected = corrupt_images(np.stack(list(data.clean().images)), "snow", 2, constants=constants)
    assert np.array_equal(data.corrupted("snow", 2).images, expected)
    few = open_dataset("digits", cache=tmp_path, constants=constants, limit=3)
    expected = corrupt_images(np.asarray(few.clean().images), "snow", 2, constants=constants)
    assert np.array_equal(few.corrupted("snow", 2).images, expected)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 32, 32, 3), np.uint8)}, "expected arrays x and y, got x;"),
        ({"x": np.zeros((2, 32, 32, 3)), "y": [0, 1]}, "float64; scale"),
        ({"x": np.zeros((2, 32, 32), np.uint8), "y": [0, 1]}, r"shape \(2, 32, 32\)"),
        ({"x": np.zeros((2, 3, 32, 32), np.uint8), "y": [0, 1]}, r"shape \(2, 3, 32, 32\)"),
        ({"x": np.zeros((0, 32, 32, 3), np.uint8), "y": []}, r"shape \(0, 32, 32, 3\)"),
        ({"x": np.zeros((2, 32, 32, 3), np.uint8), "y": [0.0, 1.0]}, "whole numbers in y, got float64"),
        ({"x": np.zeros((2, 32, 32, 3), np.uint8), "y": [0, 1, 2]}, r"each of 2 images, got shape \(3,\)"),
        ({"x": np.zeros((2, 32, 32, 3), np.uint8), "y": [[0], [1]]}, r"got shape \(2, 1\)"),
        ({"x": np.zeros((2, 32, 32, 3), np.uint8), "y": [0, -1]}, "from 0 on, got -1"),
        ({"x": np.zeros((2, 32, 32, 3), np.uint8), "y": [0, 4], "classes": 4}, "at least 5, .* got 4"),
        ({"x": np.zeros((2, 32, 32, 3), np.uint8), "y": [0, 4], "classes": [9]}, "one whole number"),
    ],
)
def test_wrong_archives(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ImageError, match=rf"wrong\.npz: .*{message}"):
        open_dataset(str(tmp_path / "wrong.npz"), cache=None)


def test_archives_that_are_none(tmp_path: Path, archive: Path, x: np.ndarray) -> None:
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(ImageError, match=r"small\.npz: cannot be read"):
        open_dataset(str(archive), cache=None)
    np.savez(archive, x=x, y=np.array([{}] * COUNT, dtype=object))
    with pytest.raises(ImageError, match=r"small\.npz: cannot be read"):
        open_dataset(str(archive), cache=None)
    with archive.open("wb") as file:
        np.save(file, x)
    with pytest.raises(ImageError, match=r"small\.npz: .*a single array"):
        open_dataset(str(archive), cache=None)
    with pytest.raises(ConfigError, match=r"absent\.npz: there is no such file"):
        open_dataset(f"npz:{tmp_path}/absent.npz", cache=None)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"notes\.txt: expected digits, fashion-mnist"):
        open_dataset(str(tmp_path / "notes.txt"), cache=None)


def test_digits(tmp_path: Path) -> None:
    digits = load_digits()
    data = open_dataset("digits", cache=tmp_path)
    assert (data.name, data.classes, data.family, data.corruptions) == ("digits", 10, "digits", None)
    assert data.logits is None
    assert same(data.clean(), digits.test_images, digits.test_labels)
    few = open_dataset("digits", cache=tmp_path, limit=4)
    assert few.digest == data.digest
    assert few.corrupted("fog", 3).images.shape == (4, 32, 32, 1)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="unknown corruption 'mist'"):
        few.corrupted("mist", 3)
    with pytest.raises(ConfigError, match="severity of fog"):
        few.corrupted("fog", 0)


def photograph(path: Path, size: tuple[int, int], shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    ramp = np.linspace(0, shade, height * width).reshape(height, width, 1).repeat(3, 2).astype(np.uint8)
    Image.fromarray(ramp).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "camera"
    photograph(root / "cat" / "a.png", (300, 260))
    photograph(root / "cat" / "b.png", (200, 340), 120)
    photograph(root / "dog" / "c.png", (260, 260), 240)
    return root


def test_folder_by_class(folder: Path, tmp_path: Path) -> None:
    data = open_dataset(str(folder), cache=tmp_path / "cache")
    assert (data.name, data.classes, data.family, data.logits) == ("camera", 2, "imagenet", None)
    assert data.corruptions is None
    assert data.cropped
    clean = data.clean()
    assert clean.labels.tolist() == [0, 0, 1]
    assert [image.shape for image in clean.images] == [(224, 224, 3)] * 3
    expected = corrupt_images(np.stack(list(clean.images)), "contrast", 3)
    assert same(data.corrupted("contrast", 3, processes=2), expected, clean.labels)


def test_folder_with_a_list(folder: Path, tmp_path: Path) -> None:
    (tmp_path / WNIDS_FILE).write_text("bird\ndog\ncow\ncat\n")
    data = open_dataset(str(folder), cache=None)
    assert data.classes == 4
    assert data.clean().labels.tolist() == [3, 3, 1]
    (tmp_path / "other.txt").write_text("cat\n")
    with pytest.raises(ConfigError, match=r"camera/dog: class 'dog' is not in .*other\.txt"):
        open_dataset(str(folder), cache=None, wnids=tmp_path / "other.txt")


def test_folder_limited(folder: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(6).permutation(3)[:2]
    data = open_dataset(str(folder), cache=tmp_path, limit=2, seed=6)
    assert data.clean().labels.tolist() == np.array([0, 0, 1])[order].tolist()
    assert data.corrupted("pixelate", 1).labels.tolist() == data.clean().labels.tolist()
    assert data.digest == open_dataset(str(folder), cache=None).digest


def test_folder_of_another_side_or_as_it_is(folder: Path, tmp_path: Path) -> None:
    small = open_dataset(str(folder), cache=tmp_path, side=48)
    assert small.clean().images[1].shape == (48, 48, 3)
    assert small.corrupted("brightness", 2).images[0].shape == (48, 48, 3)
    whole = open_dataset(str(folder), cache=tmp_path, side=0)
    assert not whole.cropped
    assert [image.shape[:2] for image in whole.clean().images] == [(260, 300), (340, 200), (260, 260)]
    with pytest.raises(ImageError, match=r"cat/b\.png: expected 260 x 300 .* got 340 x 200; give a side"):
        whole.corrupted("brightness", 2)
    with pytest.raises(ConfigError, match="at least 32 pixels, got 20"):
        open_dataset(str(folder), cache=tmp_path, side=20)


def test_folder_of_small_images_is_left_as_it_is(tmp_path: Path) -> None:
    for name in "abc":
        photograph(tmp_path / "set" / name / "0.png", (32, 32))
    data = open_dataset(str(tmp_path / "set"), cache=tmp_path / "cache")
    assert (data.family, data.cropped) == ("cifar", True)
    assert data.clean().images[2].shape == (32, 32, 3)
    clean = np.stack(list(data.clean().images))
    expected = corrupt_images(clean, "impulse_noise", 5, constants="cifar")
    assert np.array_equal(data.corrupted("impulse_noise", 5).images, expected)


def test_truncated_photograph_is_named_when_read(folder: Path, tmp_path: Path) -> None:
    path = folder / "dog" / "c.png"
    path.write_bytes(path.read_bytes()[:200])
    data = open_dataset(str(folder), cache=tmp_path)
    assert data.clean().images[0].shape == (224, 224, 3)
    with pytest.raises(ImageError, match=r"dog/c\.png: cannot be read"):
        data.clean().images[2]
    with pytest.raises(ImageError, match=r"dog/c\.png: cannot be read"):
        data.corrupted("fog", 1, processes=2)


def test_layout_may_be_said(tmp_path: Path) -> None:
    # A folder of photographs of fog looks like ImageNet-C.
    for name in ("fog", "sun"):
        photograph(tmp_path / "weather" / name / "0.png", (70, 70))
    with pytest.raises(ConfigError, match="fog: expected folders 1 to 5"):
        open_dataset(str(tmp_path / "weather"), cache=None)
    data = open_dataset(f"folder:{tmp_path / 'weather'}", cache=None)
    assert data.classes == 2


def test_no_such_data(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"digit: there is no such file or folder; expected digits, fashion-mnist"
    ):
        open_dataset("digit", cache=None)
    with pytest.raises(ConfigError, match="no photographs found"):
        open_dataset(str(tmp_path), cache=None)


def test_labels_go_with_images() -> None:
    with pytest.raises(ValueError, match="each of 2 images, got labels of shape"):
        LabelledImages(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(3, np.int64))


@pytest.mark.parametrize("size", [(224, 224), (260, 260), (500, 375), (375, 500), (257, 1001), (33, 35)])
def test_centre_crop_follows_the_published_recipe(size: tuple[int, int]) -> None:
    width, height = size
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # Shorter side to 256 with Pillow's bilinear filter, longer side rounded down, then the middle 224.
    wide, tall = (256, 256 * height // width) if width <= height else (256 * width // height, 256)
    resized = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR))
    left, top = round((wide - 224) / 2), round((tall - 224) / 2)
    assert np.array_equal(centre_crop(image, 224), resized[top : top + 224, left : left + 224])


def test_decoded_once_for_all_threads(folder: Path, tmp_path: Path) -> None:
    photographs = Photographs(sorted(folder.glob("*/*.png")), side=64)
    decoded, before = DecodedOnce(photographs, tmp_path / "space"), threading.active_count()
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(decoded, [1, 2, 1, 3]))
    assert all(array is arrays[0] for array in arrays)
    assert np.array_equal(arrays[0], np.stack(list(photographs)))
    assert not arrays[0].flags.writeable
    assert list((tmp_path / "space").iterdir()) == []
    assert threading.active_count() == before
    with pytest.raises(ConfigError, match=r"a\.png: decoded photographs need .* GB here"):
        DecodedOnce(photographs, folder / "cat" / "a.png")()


def test_real_photographs(shared_data: Path, tmp_path: Path) -> None:
    data = open_dataset(str(shared_data / "imagenet_a"), cache=tmp_path, limit=5)
    assert (data.name, data.classes, data.family, data.logits) == ("imagenet_a", 1000, "imagenet", None)
    found = data.corrupted("gaussian_noise", 1)
    assert found.images.shape == (5, 224, 224, 3)  # type: ignore[union-attr]
    clean = np.stack(list(data.clean().images)).astype(np.float64)
    # Severity 1 is a deviation of 0.08 of the range, a little less where it is clipped.
    assert 0.06 < np.std(np.asarray(found.images) - clean) / 255 < 0.085
    assert found.labels.tolist() == data.clean().labels.tolist()


def test_real_small_images(shared_data: Path, tmp_path: Path) -> None:
    data = open_dataset(str(shared_data / "cifar10_test_a.npz"), cache=tmp_path, limit=8)
    assert (data.name, data.classes, data.family) == ("cifar10_test_a", 10, "cifar")
    noise = np.asarray(data.corrupted("gaussian_noise", 1).images).astype(np.float64) - data.clean().images
    assert 0.03 < np.std(noise) / 255 < 0.045

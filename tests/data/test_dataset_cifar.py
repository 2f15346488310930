"""CIFAR-10-C and CIFAR-100-C in their published layout, small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cema.data.cifar_c import CifarC
from cema.data.dataset import open_dataset
from cema.errors import ConfigError, ImageError

COUNT = 6
SIDE = 32
LABELS = np.array([3, 8, 8, 0, 6, 1], np.uint8)


def pixels(seed: int, count: int = 5 * COUNT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "CIFAR-10-C"
    root.mkdir()
    for seed, name in enumerate(("gaussian_noise", "fog", "speckle_noise")):
        np.save(root / f"{name}.npy", pixels(seed))
    np.save(root / "labels.npy", np.tile(LABELS, 5))
    return root


def test_rows_of_each_severity(root: Path) -> None:
    data = open_dataset(str(root), cache=None)
    assert (data.name, data.classes, data.family, data.logits) == ("cifar10-c", 10, "cifar", None)
    assert data.corruptions == ("gaussian_noise", "fog", "speckle_noise")
    assert data.cropped
    for severity in range(1, 6):
        found = data.corrupted("fog", severity)
        assert np.array_equal(found.images, pixels(1)[(severity - 1) * COUNT : severity * COUNT])
        assert found.labels.tolist() == LABELS.tolist()
        assert found.labels.dtype == np.int64


def test_rows_are_mapped_not_loaded(root: Path) -> None:
    images = open_dataset(str(root), cache=None).corrupted("fog", 3).images
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable


def test_labels_of_one_severity_will_do(root: Path) -> None:
    whole = open_dataset(str(root), cache=None)
    np.save(root / "labels.npy", LABELS.astype(np.int64))
    short = open_dataset(str(root), cache=None)
    assert short.corrupted("fog", 5).labels.tolist() == LABELS.tolist()
    assert short.digest == whole.digest


def test_hundred_classes(root: Path) -> None:
    np.save(root / "labels.npy", np.tile(LABELS + 90, 5))
    data = open_dataset(str(root), cache=None)
    assert (data.name, data.classes, data.family) == ("cifar100-c", 100, "cifar100")


def test_limit_chooses_the_same_for_all(root: Path) -> None:
    data = open_dataset(str(root), cache=None, limit=4, seed=3)
    order = np.random.default_rng(3).permutation(COUNT)[:4]
    for name, seed, severity in (("gaussian_noise", 0, 1), ("fog", 1, 5), ("speckle_noise", 2, 2)):
        found = data.corrupted(name, severity)
        assert np.array_equal(found.images, pixels(seed)[(severity - 1) * COUNT :][order])
        assert found.labels.tolist() == LABELS[order].tolist()
    assert data.digest == open_dataset(str(root), cache=None).digest


def test_digest_tells_data_apart(root: Path) -> None:
    before = open_dataset(str(root), cache=None).digest
    np.save(root / "labels.npy", np.tile(LABELS[::-1], 5))
    assert open_dataset(str(root), cache=None).digest != before


def test_no_clean_images(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"CIFAR-10-C: cifar10-c holds corrupted images only"):
        open_dataset(str(root), cache=None).clean()


def test_missing_and_unknown(root: Path) -> None:
    data = open_dataset(str(root), cache=None)
    with pytest.raises(
        ConfigError, match=r"snow\.npy: .* missing; there are gaussian_noise, fog, speckle_noise"
    ):
        data.corrupted("snow", 3)
    with pytest.raises(ConfigError, match="unknown corruption 'mist'"):
        data.corrupted("mist", 3)
    with pytest.raises(ConfigError, match="severity of fog must be"):
        data.corrupted("fog", 6)


def test_missing_labels_and_folder(root: Path, tmp_path: Path) -> None:
    (root / "labels.npy").unlink()
    with pytest.raises(ConfigError, match=r"labels\.npy: the labels are missing"):
        open_dataset(str(root), cache=None)
    with pytest.raises(ConfigError, match=r"gaussian_noise\.npy, found none"):
        CifarC(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(7, np.uint8), r"expected 30 or 6 labels to go with gaussian_noise\.npy, got 7"),
        (np.zeros((30, 1), np.uint8), r"whole numbers .* got uint8 \(30, 1\)"),
        (np.zeros(30), "got float64"),
        (np.full(30, -1), "from 0 on"),
        (np.arange(30), "the same labels at each severity"),
        (np.full(30, 100), "0 to 99, got 100"),
    ],
)
def test_wrong_labels(root: Path, labels: np.ndarray, message: str) -> None:
    np.save(root / "labels.npy", labels)
    with pytest.raises(ImageError, match=rf"labels\.npy: .*{message}"):
        open_dataset(str(root), cache=None)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pixels(0).astype(np.float32), "got float32"),
        (pixels(0)[..., 0], r"got uint8 \(30, 32, 32\)"),
        (pixels(0).transpose(0, 3, 1, 2), r"got uint8 \(30, 3, 32, 32\)"),
        (pixels(0, 28), "got 28 in all"),
        (pixels(0, 25), "expected 30 images, 6 for each severity, got 25"),
    ],
)
def test_wrong_images(root: Path, array: np.ndarray, message: str) -> None:
    np.save(root / "fog.npy", array)
    with pytest.raises(ImageError, match=rf"fog\.npy: .*{message}"):
        open_dataset(str(root), cache=None).corrupted("fog", 1)


def test_truncated_and_foreign_files(root: Path) -> None:
    path = root / "fog.npy"
    data = open_dataset(str(root), cache=None)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match=r"fog\.npy: cannot be read"):
        data.corrupted("fog", 1)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"fog\.npy: cannot be read"):
        data.corrupted("fog", 1)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"fog\.npy: cannot be read"):
        data.corrupted("fog", 1)
    with path.open("wb") as file:
        np.savez(file, x=pixels(0))
    with pytest.raises(ImageError, match=r"fog\.npy: .*archive"):
        data.corrupted("fog", 1)


@pytest.mark.parametrize("count", [30, 28])
def test_one_severity_alone_is_recognised(root: Path, count: int) -> None:
    for path in root.glob("*.npy"):
        np.save(path, np.load(path)[:count])
    np.save(root / "labels.npy", np.arange(count) % 10)
    with pytest.raises(ImageError, match=rf"\({count}\).* looks like one severity only.* numpy\.savez"):
        open_dataset(str(root), cache=None)


def test_one_corruption_of_one_severity_is_recognised(root: Path) -> None:
    np.save(root / "fog.npy", np.load(root / "fog.npy")[:6])
    with pytest.raises(ImageError, match=r"fog\.npy: .*this looks like one severity only"):
        open_dataset(str(root), cache=None).corrupted("fog", 5)

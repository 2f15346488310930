"""What the benchmark relies on in every data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cema.data.base import Dataset, LabelledImages
from cema.data.dataset import open_dataset
from cema.errors import ConfigError

__all__ = ["DatasetSuite"]


class DatasetSuite:
    """The suite. A stranger runs it on his own reader.

    ::

        class TestMine(DatasetSuite):
            __test__ = True

            def spec(self, folder: Path) -> str:
                return "package.module:Mine"
    """

    __test__ = False

    def spec(self, folder: Path) -> str:
        """Return what ``--data`` says; small data may be made in the folder."""
        raise NotImplementedError

    def make(self, folder: Path, **options: Any) -> Dataset:
        """Open the data set, with a cache of its own."""
        (folder / "cache").mkdir(exist_ok=True)
        return open_dataset(self.spec(folder), cache=folder / "cache", **options)

    def images(self, dataset: Dataset) -> LabelledImages:
        """Return clean images, or where there are none those of the first corruption."""
        if dataset.corruptions is None:
            return dataset.clean()
        return dataset.corrupted(dataset.corruptions[0], 5)

    def test_images_and_labels_are_as_promised(self, tmp_path: Path) -> None:
        dataset = self.make(tmp_path)
        found = self.images(dataset)
        assert len(found) == len(found.images) == len(found.labels) > 0
        scored = dataset.classes if dataset.logits is None else len(dataset.logits)
        assert found.labels.dtype == np.int64
        assert 0 <= found.labels.min() <= found.labels.max() < scored
        for index in (0, len(found) - 1):
            image = np.asarray(found.images[index])
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] in (1, 3)

    def test_slices_are_the_images(self, tmp_path: Path) -> None:
        found = self.images(self.make(tmp_path))
        for index, image in enumerate(found.images[:2]):
            np.testing.assert_array_equal(image, found.images[index])

    def test_the_same_data_are_the_same(self, tmp_path: Path) -> None:
        first, second = (self.make(tmp_path, seed=3) for _ in range(2))
        assert (first.name, first.digest, first.classes, first.family) == (
            second.name,
            second.digest,
            second.classes,
            second.family,
        )
        np.testing.assert_array_equal(self.images(first).labels, self.images(second).labels)
        np.testing.assert_array_equal(self.images(first).images[0], self.images(second).images[0])

    def test_a_limit_chooses_and_leaves_the_digest(self, tmp_path: Path) -> None:
        whole, few = self.make(tmp_path), self.make(tmp_path, limit=3)
        assert len(self.images(few)) == 3
        assert few.digest == whole.digest

    def test_every_corruption_has_the_same_images_in_the_same_order(self, tmp_path: Path) -> None:
        dataset = self.make(tmp_path, limit=3)
        for corruption in (dataset.corruptions or ("fog", "brightness"))[:2]:
            found = dataset.corrupted(corruption, 5)
            assert len(found) == 3
            np.testing.assert_array_equal(found.labels, self.images(dataset).labels)

    def test_an_unknown_corruption_is_an_error_that_names_those_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"gaussian_noise|fog|brightness|expected"):
            self.make(tmp_path, limit=3).corrupted("glitter", 5)

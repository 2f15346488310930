"""A batch makes each model's inputs once, and they are what the model's preprocessing makes."""

from __future__ import annotations

import numpy as np
import pytest

from cema.errors import ImageError
from cema.ondevice.batch import Batch
from cema.ondevice.preprocess import Preprocessing
from cema.testing.networks import random_images

SMALL = Preprocessing(height=4, width=4, channels=1, mean=(10.0,), std=(2.0,))
SAME = Preprocessing(height=4, width=4, channels=1, mean=(10.0,), std=(2.0,))
LARGE = Preprocessing(height=16, width=16, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_inputs_are_the_preprocessings() -> None:
    images = random_images(5)
    batch = Batch(images)
    for preprocessing in (SMALL, LARGE):
        np.testing.assert_array_equal(batch.inputs(preprocessing), preprocessing(images))
    assert batch.inputs(SMALL) is batch.inputs(SAME)
    assert len(batch) == 5
    assert batch[1] is images[1]


def test_joined_batches_make_nothing_again() -> None:
    first, second, nothing = Batch(random_images(3, 1)), Batch(random_images(2, 2)), Batch()
    joined = Batch.joined(first, nothing, second)
    np.testing.assert_array_equal(
        joined.inputs(LARGE), np.concatenate([first.inputs(LARGE), second.inputs(LARGE)])
    )
    assert [image is other for image, other in zip(joined, [*first, *second], strict=True)] == [True] * 5


def test_wrong_images_are_refused_at_once() -> None:
    with pytest.raises(ImageError, match="uint8"):
        Batch([np.zeros((4, 4, 3), np.float32)])  # type: ignore[list-item]

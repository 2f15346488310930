"""Each baseline's accuracy on a small fixed stream: digits of low contrast, and a network that has BatchNorm."""

from __future__ import annotations

import numpy as np
import pytest

from cema.data.corruptions import corrupt_images
from cema.data.digits import load_digits
from cema.methods.base import MethodContext
from cema.methods.registry import make_adapter
from cema.models.registry import resolve

COUNT, BATCH = 640, 64
ETA_SETTINGS: dict[str, object] = {"lr": 0.02, "d_margin": 0.4}

# Measured with torch 2.13 on a CPU, in percent: 7.97, 83.44, 74.38, 83.91, 83.75, 84.84, 84.84.
BANDS: dict[str, tuple[dict[str, object], float, float]] = {
    "source": ({}, 7, 9),
    "bn": ({}, 82, 85),
    "onda": ({}, 72, 77),
    "pl": ({"lr": 0.02}, 82, 86),
    "tent": ({"lr": 0.02}, 82, 86),
    "eta": (ETA_SETTINGS, 83, 87),
    "eata": ({**ETA_SETTINGS, "fisher_alpha": 1.0}, 83, 87),
}


@pytest.fixture(scope="module")
def stream() -> tuple[list[np.ndarray], np.ndarray]:
    digits = load_digits()
    images = corrupt_images(list(digits.test_images[:COUNT]), "contrast", 4, seed=0)
    return list(images), digits.test_labels[:COUNT]


@pytest.mark.parametrize("name", BANDS)
def test_accuracy_on_digits_of_low_contrast(name: str, stream: tuple[list[np.ndarray], np.ndarray]) -> None:
    settings, low, high = BANDS[name]
    images, labels = stream
    context = MethodContext(source_images=load_digits().train_images[:256])
    adapter = make_adapter(name, resolve("digits-cnn"), settings, context)
    outcomes = [adapter.step(images[i : i + BATCH]) for i in range(0, COUNT, BATCH)]
    predicted = np.concatenate([outcome.logits for outcome in outcomes]).argmax(1)
    assert low <= 100 * (predicted == labels).mean() <= high

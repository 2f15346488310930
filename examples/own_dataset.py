"""A data set of one's own, in one file: rings and discs of many sizes, drawn when they are asked for.

    cema bench --data examples/own_dataset.py:Shapes --model digits-cnn --foundation digits-cnn-foundation \\
        --methods source --corruptions fog --severities 5

A reader that opens files gets their path from what stands behind ``@``: ``examples/own_dataset.py:Shapes@DIR``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cema.data.base import Dataset, DatasetOptions
from cema.data.npz import array_dataset

COUNT, SIDE, CLASSES = 400, 32, 10


class Shapes:
    """Ten classes: discs (even) and rings (odd) of five sizes."""

    name = "shapes"
    expects = "shapes"
    needs_path = False

    def matches(self, path: Path) -> bool:
        """No path is of this kind: its name is enough."""
        return False

    def open(self, path: Path | None, options: DatasetOptions) -> Dataset:
        """Draw the images; corruptions are made of them as of any other."""
        labels = np.arange(COUNT) % CLASSES
        images = np.stack([draw(label, seed) for seed, label in enumerate(labels)])
        return array_dataset(self.name, images, labels, classes=CLASSES, options=options)


def draw(label: int, seed: int) -> np.ndarray:
    """Return a grey image, uint8 (32, 32, 1)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + rng.normal(0, 2, (2, 1, 1))
    radius, size = np.hypot(rows, columns), 4 + 2.2 * (label // 2)
    inside = radius < size if label % 2 == 0 else np.abs(radius - size) < 1.5
    return (230 * inside + rng.integers(0, 25, (SIDE, SIDE)))[:, :, None].astype(np.uint8)

"""Two tiny BatchNorm networks for four classes: which quadrant of a 16 x 16 image is bright.

Their weights are the files beside this one, so that they do not depend on how torch draws random numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import nn

from cema import Model, Preprocessing

HERE = Path(__file__).resolve().parent
CLASSES = 4
SIDE = 16
WIDTHS = {"edge": 4, "foundation": 8}
PREPROCESSING = Preprocessing(height=SIDE, width=SIDE, channels=3, mean=(127.0,) * 3, std=(64.0,) * 3)


def network(width: int) -> nn.Sequential:
    """Return an untrained network."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 16, CLASSES),
    )


def edge() -> Model:
    """Return the edge model."""
    return _model("edge")


def foundation() -> Model:
    """Return the foundation model."""
    return _model("foundation")


def _model(name: str) -> Model:
    module = network(WIDTHS[name])
    module.load_state_dict(load_file(HERE / f"{name}.safetensors"))
    return Model(f"recorded_models:{name}", module.eval(), PREPROCESSING, CLASSES)


def quadrants(count: int, seed: int, *, drift: str = "none") -> tuple[np.ndarray, np.ndarray]:
    """Return images (count, 16, 16, 3) uint8 and labels; a drift is "none", "haze" or "blue"."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    pixels = np.repeat(np.repeat(rng.normal(90, 40, (count, SIDE // 2, SIDE // 2, 3)), 2, axis=1), 2, axis=2)
    half = SIDE // 2
    for i, label in enumerate(labels):
        row, column = divmod(int(label), 2)
        pixels[i, half * row : half * (row + 1), half * column : half * (column + 1)] += 40
    if drift == "haze":
        pixels = 0.6 * pixels + 70.0
    elif drift == "blue":
        pixels = 0.35 * pixels + np.array([10.0, 60.0, 150.0])
    return np.clip(pixels, 0, 255).astype(np.uint8), labels

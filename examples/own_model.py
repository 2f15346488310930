"""A model of one's own, in one file: a function without arguments that returns a `cema.Model`.

    cema export bundle --model examples/own_model.py:build --public-key keys/signing.pub
    cema bench --data digits --model examples/own_model.py:build --methods source,bn,cema --corruptions fog

A real one would load its weights from a file; this one learns the embedded digits in a few seconds.
"""

from __future__ import annotations

import torch
from torch import nn

from cema import Model, Preprocessing
from cema.data.digits import load_digits

PIXELS = Preprocessing(height=32, width=32, channels=1, mean=(127.5,), std=(127.5,))


def network() -> nn.Sequential:
    """Any torch classifier with BatchNorm, LayerNorm or GroupNorm will do."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10)),
    )


def build() -> Model:
    """Return the trained model, the same one at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, digits = network(), load_digits()
        inputs, labels = torch.from_numpy(PIXELS(digits.train_images)), torch.from_numpy(digits.train_labels)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(3):
            for chosen in torch.randperm(len(inputs)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inputs[chosen]), labels[chosen]).backward()
                optimizer.step()
    return Model(name="own-digits", module=net.eval(), preprocessing=PIXELS, classes=10)

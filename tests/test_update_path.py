"""From a step in the cloud to the logits on the edge: what devices run is what the cloud computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from cema.adapt.config import AdaptConfig
from cema.adapt.learner import CemaLearner
from cema.edge.runtime import build_runtime
from cema.export.bundle import export_bundle
from cema.formats.payload import decode_payload, encode_payload
from cema.models.spec import Model
from cema.ondevice.preprocess import Preprocessing

PIXELS = Preprocessing(height=16, width=16, channels=3, mean=(120.0,) * 3, std=(60.0,) * 3)


class Tokens(nn.Module):
    """A transformer block over patches: LayerNorm in front of attention, of the perceptron and of the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.before = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.between = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.after = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        normed = self.before(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.perceptron(self.between(tokens))
        return self.head(self.after(tokens).mean(1))


def convolutions(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.BatchNorm2d(width),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )  # fmt: skip


def groups(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2),
        nn.GroupNorm(4, width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def model(build: type[nn.Module], width: int, seed: int) -> Model:
    torch.manual_seed(seed)
    return Model(
        name=f"{build.__name__}-{width}", module=build(width).eval(), preprocessing=PIXELS, classes=4
    )


@pytest.mark.parametrize("build", [convolutions, groups, Tokens], ids=["BatchNorm", "GroupNorm", "LayerNorm"])
def test_the_edge_computes_what_the_cloud_published(build: type[nn.Module], tmp_path: Path) -> None:
    edge, foundation = model(build, 8, 0), model(build, 16, 1)
    key = Ed25519PrivateKey.generate()
    bundle = export_bundle(edge, tmp_path / "bundle", public_keys=[key.public_key()]).bundle
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(64)]
    adapter = CemaLearner(edge, foundation, AdaptConfig(edge_lr=0.05, fresh=16, replay_from=16))
    before = adapter.edge_logits(images)
    for start in range(0, 64, 16):
        adapter.learn(images[start : start + 16])
    expected = adapter.edge_logits(images)
    assert np.abs(expected - before).max() > 0.01, "the steps changed nothing, so the test would show nothing"

    payload = decode_payload(
        encode_payload(adapter.norm_state(), adapter.edge_logits(list(bundle.golden_images)))
    )
    runtime = build_runtime(bundle, bundle.pack_norm(payload.norm_state), payload.golden_logits)
    got = runtime.run(bundle.manifest.preprocessing(images))
    np.testing.assert_allclose(got, expected, atol=5e-3 * np.abs(expected).max())

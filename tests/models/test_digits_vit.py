"""The transformers for digits: what they compute, what ships, and that the rest of the system takes them."""

from __future__ import annotations

import hashlib
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn

from cema.adapt.learner import CemaLearner
from cema.data.corruptions import corrupt_images
from cema.data.digits import DIGITS_SHA256, SPLIT_SEED, load_digits
from cema.errors import ModelError
from cema.export.bundle import export_bundle
from cema.models.digits_vit import DigitsVit, VitShape, digits_vit_net
from cema.models.norm_state import folded_norm_state, norm_layers
from cema.models.registry import resolve
from cema.models.shipped import shipped_model, shipped_record
from cema.models.spec import Model
from cema.recipes.digits import DIGITS_RECIPES, accuracy

NAMES = ("digits-vit", "digits-vit-foundation")
WEIGHTS = Path(str(files("cema.models") / "weights"))
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
SMALL = VitShape(width=8, depth=2, heads=2, hidden=12)


def right(model: Model, images: np.ndarray, labels: np.ndarray) -> float:
    return accuracy(model.module, images, labels)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias


def reference(net: DigitsVit, images: np.ndarray, heads: int) -> np.ndarray:
    """Compute the logits of (N, 1, 32, 32) in float64, one head and one patch at a time."""
    p = {key: value.double().numpy() for key, value in net.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"])

    patches = [
        np.einsum("nij,wij->nw", images[:, 0, y : y + 4, x : x + 4], p["patches.weight"][:, 0])
        for y in range(0, 32, 4)
        for x in range(0, 32, 4)
    ]
    tokens = np.stack(patches, 1) + p["patches.bias"] + p["positions"]
    width = tokens.shape[2] // heads
    for block in range(len(net.blocks)):
        name = f"blocks.{block}"
        query, key, value = np.split(linear(f"{name}.attn.qkv", norm(f"{name}.norm1", tokens)), 3, -1)
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = np.exp(query[..., part] @ key[..., part].swapaxes(1, 2) / np.sqrt(width))
            mixed.append(scores / scores.sum(-1, keepdims=True) @ value[..., part])
        tokens = tokens + linear(f"{name}.attn.proj", np.concatenate(mixed, -1))
        hidden = linear(f"{name}.mlp.0", norm(f"{name}.norm2", tokens))
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))) / 2
        tokens = tokens + linear(f"{name}.mlp.2", hidden)
    return linear("head", norm("norm", tokens).mean(1))


def test_forward_is_a_vision_transformer() -> None:
    torch.manual_seed(3)
    net = DigitsVit(SMALL)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    images = torch.randn(3, 1, 32, 32)
    with torch.inference_mode():
        logits = net(images).numpy()
    np.testing.assert_allclose(logits, reference(net, images.double().numpy(), SMALL.heads), atol=1e-4)


def test_positions_begin_distinct_and_bounded() -> None:
    positions = DigitsVit(SMALL).positions[0]
    assert positions.shape == (64, 8)
    assert positions.abs().max() <= 1
    assert torch.pdist(positions.detach()).min() > 0.1


def test_an_image_is_answered_alike_alone_and_in_a_batch() -> None:
    model = shipped_model("digits-vit")
    inputs = torch.from_numpy(model.preprocessing(load_digits().test_images[:16]))
    with torch.inference_mode():
        together, alone = model.module(inputs), torch.cat([model.module(x[None]) for x in inputs])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_model_is_ready_to_use(name: str) -> None:
    model = resolve(name, classes=10)
    assert (model.name, model.classes, model.labels) == (name, 10, tuple("0123456789"))
    assert not model.module.training
    assert all(
        torch.equal(value, model.module.state_dict()[key])
        for key, value in shipped_model(name).module.state_dict().items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_record_matches_weights_recipe_and_split(name: str) -> None:
    record, data, model = shipped_record(name), load_digits(), shipped_model(name)
    content = (WEIGHTS / f"{name}.safetensors").read_bytes()
    recipe = DIGITS_RECIPES[name]
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert right(model, data.test_images, data.test_labels) == pytest.approx(
        record["clean_accuracy"], abs=0.1
    )
    assert record["clean_accuracy"] >= 95
    assert record["parameters"] == sum(parameter.numel() for parameter in model.module.parameters())
    assert record["recipe"] == {field: getattr(recipe, field) for field in recipe.__dataclass_fields__}
    assert (record["split"]["source_sha256"], record["split"]["seed"]) == (DIGITS_SHA256, SPLIT_SEED)
    assert record["split"] == shipped_record("digits-cnn")["split"]
    assert record["augmentations"]


def test_sizes_and_norm_layers() -> None:
    sizes = [sum(p.numel() for p in digits_vit_net(name).parameters()) for name in NAMES]
    assert 100_000 <= sizes[0] <= 200_000
    assert 700_000 <= sizes[1] <= 1_200_000
    assert sum((WEIGHTS / f"{name}.safetensors").stat().st_size for name in NAMES) < 6_000_000
    for name in NAMES:
        net = digits_vit_net(name)
        layers = norm_layers(net)
        assert all(type(layer) is nn.LayerNorm for layer in layers.values())
        assert len(layers) == 2 * len(net.blocks) + 1


@pytest.mark.parametrize("corruption", [("gaussian_noise", 4), ("fog", 3)])
def test_the_foundation_is_the_more_robust(corruption: tuple[str, int]) -> None:
    data = load_digits()
    images, labels = corrupt_images(data.test_images[:200], *corruption), data.test_labels[:200]
    edge, foundation = (right(shipped_model(name), images, labels) for name in NAMES)
    assert foundation >= edge + 5


@pytest.mark.parametrize("name", NAMES)
def test_export_agrees_with_torch(name: str, tmp_path: Path) -> None:
    model = shipped_model(name)
    report = export_bundle(model, tmp_path / "bundle", public_keys=[KEY])
    assert report.max_abs_difference < 1e-3
    assert report.norm_layers == len(norm_layers(model.module))
    assert report.bundle.manifest.classes == 10


def test_the_pair_adapts() -> None:
    data = load_digits()
    images, labels = corrupt_images(data.test_images[:256], "gaussian_noise", 4), data.test_labels[:256]
    edge = shipped_model("digits-vit")
    before = right(edge, images, labels)
    source = folded_norm_state(edge.module)
    adapter = CemaLearner(edge, shipped_model("digits-vit-foundation"), seed=0)
    reports = [adapter.learn(list(images[start : start + 32])) for start in range(0, 256, 32)]
    assert [report.skipped for report in reports] == [0] * 8
    moved = adapter.norm_state()
    assert moved.keys() == source.keys()
    assert all(np.abs(moved[key] - source[key]).max() > 0 for key in source)
    after = 100 * (adapter.edge_logits(list(images)).argmax(1) == labels).mean()
    assert after >= before


def test_unknown_names_and_shapes_are_explained() -> None:
    with pytest.raises(ModelError, match="digits-vit-foundation"):
        digits_vit_net("digits-cnn")
    with pytest.raises(ValueError, match="multiple of 4"):
        DigitsVit(VitShape(width=10, depth=1, heads=4, hidden=8))

"""A pass that reads statistics, against normalisation written out in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cema.adapt.adaptable import AdaptableModel
from cema.adapt.reading import read_statistics, statistics_layers, statistics_of
from cema.errors import FormatError
from cema.models.norm_state import folded_norm_state, load_affine
from cema.models.spec import Model
from cema.ondevice.folding import fold, unfold
from cema.ondevice.window import Blend

Photos = Callable[[int], list[np.ndarray]]


def reference(model: Model, inputs: np.ndarray, blend: Blend) -> tuple[np.ndarray, np.ndarray]:
    """The same pass in float64: every BatchNorm is given its blended statistics by hand, one after the other."""
    module = copy.deepcopy(model.module).double().eval()
    seen, start = [], [0]
    known, rate, source, share = blend
    assert source is not None

    def move(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        values = args[0].transpose(0, 1).reshape(args[0].shape[1], -1).numpy()
        place = slice(start[0], start[0] + len(values))
        start[0] = place.stop
        mean, variance = known[:, place].astype(np.float64)
        own = np.stack([mean, variance])
        if values.shape[1] > 1:
            own = np.stack([values.mean(axis=1), values.var(axis=1, ddof=1)])
            difference = own[0] - mean
            variance = variance + rate * (own[1] - variance) + rate * (1 - rate) * difference**2
            mean = mean + rate * difference
        mean, variance = (1 - share) * np.stack([mean, variance]) + share * source[:, place].astype(
            np.float64
        )
        layer.running_mean.copy_(torch.from_numpy(mean))  # type: ignore[operator]
        layer.running_var.copy_(torch.from_numpy(variance))  # type: ignore[operator]
        seen.append(own)

    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.register_forward_pre_hook(move)
    with torch.no_grad():
        logits: np.ndarray = module(torch.from_numpy(inputs.astype(np.float64))).numpy()
    return logits, np.concatenate(seen, axis=1)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_every_layer_normalises_with_the_blend(
    edge: Model, photos: Photos, rate: float, count: int, share: float
) -> None:
    model = AdaptableModel(edge)
    before = statistics_of(model.layers)
    rng = np.random.default_rng(0)
    known = np.stack([rng.normal(size=before.shape[1]), rng.uniform(0.5, 2, before.shape[1])])
    blend = Blend(known.astype(np.float32), rate, before, share)
    inputs = edge.preprocessing(photos(count))
    logits, observed = read_statistics(model, model.as_inputs(inputs), blend)
    expected, own = reference(edge, inputs, blend)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(observed, own, rtol=1e-3, atol=1e-4)
    # The model is as it was, and reads nothing in its next pass.
    np.testing.assert_array_equal(statistics_of(model.layers), before)
    assert {layer.mode for layer in model.layers.values()} == {"running"}


def test_affine_parameters_and_statistics_apart_are_the_folded_model(edge: Model, photos: Photos) -> None:
    model = AdaptableModel(edge)
    layers = statistics_layers(model.layers)
    assert [layer.layer for layer in layers] == ["bn1", "blocks.0.1", "bn2"]
    own = statistics_of(model.layers)
    affine = unfold(folded_norm_state(model.module), own, layers)
    np.testing.assert_allclose(affine["bn1.scale"], edge.module.bn1.weight.detach().numpy(), rtol=1e-5)
    other = own * np.float32(1.5)
    images = photos(4)
    load_affine(model.module, affine, other, layers)
    apart = model.forward(images).detach().numpy()
    load_affine(model.module, fold(affine, other, layers), np.empty((2, 0), np.float32), ())
    np.testing.assert_allclose(model.forward(images).detach().numpy(), apart, rtol=1e-4, atol=1e-5)
    load_affine(model.module, affine, own, layers)
    with torch.no_grad():
        source = copy.deepcopy(edge.module).eval()(torch.from_numpy(edge.preprocessing(images))).numpy()
    np.testing.assert_allclose(model.forward(images).detach().numpy(), source, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_changes_nothing(edge: Model, photos: Photos) -> None:
    model = AdaptableModel(edge)
    layers = statistics_layers(model.layers)
    own = statistics_of(model.layers)
    affine = unfold(folded_norm_state(model.module), own, layers)
    before = model.forward(photos(3)).detach()
    with pytest.raises(FormatError, match="statistics"):
        load_affine(model.module, affine, -own - 1, layers)
    with pytest.raises(FormatError, match="another model"):
        load_affine(model.module, affine | {"more.scale": np.ones(2, np.float32)}, own, layers)
    assert torch.equal(model.forward(photos(3)).detach(), before)


def test_a_model_without_batch_norm_has_no_statistics() -> None:
    assert statistics_of({}).shape == (2, 0)
    assert statistics_layers({}) == ()

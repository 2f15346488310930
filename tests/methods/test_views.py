"""Views against the formula written out in float64: every view with statistics of its own."""

from __future__ import annotations

import copy
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from two_layers import WIDTH, normalised, pictures, two_layers

from cema.methods.base import MethodContext
from cema.methods.registry import find_method, make_adapter
from cema.methods.views import Views, ViewsConfig
from cema.models.registry import resolve
from cema.models.spec import Model
from cema.ondevice.views import View


def shown(x: torch.Tensor, right: int, down: int, mirrored: bool) -> torch.Tensor:
    """Mirror, pad by the nearest pixels, and cut out the shifted middle."""
    x = x.flip(3) if mirrored else x
    rim = 4
    padded = nn.functional.pad(x, (rim, rim, rim, rim), mode="replicate")
    height, width = x.shape[2:]
    return padded[:, :, rim - down : rim - down + height, rim - right : rim - right + width]


def written(model: Model, x: torch.Tensor, prior: float) -> np.ndarray:
    """Return the softmax of one view in float64, its statistics mixed with the source's."""
    p = {key: value.double() for key, value in model.module.state_dict().items()}
    y = nn.functional.conv2d(x, p["conv.weight"], p.get("conv.bias"))
    values = y.transpose(0, 1).reshape(WIDTH, -1)
    share = prior / (prior + len(x))
    mean = share * p["norm.running_mean"] + (1 - share) * values.mean(1)
    # The batch's own variance is the unbiased one beside a prior, and torch's in training without.
    var = share * p["norm.running_var"] + (1 - share) * values.var(1, correction=1 if prior else 0)
    shape = (1, -1, 1, 1)
    y = (y - mean.reshape(shape)) / torch.sqrt(var.reshape(shape) + 1e-5)
    y = torch.relu(y * p["norm.weight"].reshape(shape) + p["norm.bias"].reshape(shape)).mean((2, 3))
    return (y @ p["linear.weight"].T + p["linear.bias"]).softmax(1).numpy()


@pytest.mark.parametrize("prior", [0.0, 5.0])
def test_the_logits_are_the_logarithm_of_the_mean_probabilities(prior: float) -> None:
    source = two_layers(1)
    views = Views(source, ViewsConfig(views=4, shift=1, prior=prior), context=MethodContext())
    for seed, count in enumerate((7, 9)):
        images = pictures(count, seed)
        outcome = views.step(images)
        x = normalised(images)
        ways = [(0, 0, False), (0, 0, True), (1, 0, False), (-1, 0, True)]
        parts = [written(source, shown(x, *way), prior) for way in ways]
        expected = np.mean(parts, axis=0)
        np.testing.assert_allclose(np.exp(outcome.logits), expected, rtol=1e-4, atol=1e-6)
        assert outcome.logits.dtype == np.float32
        assert (outcome.uploads, outcome.bytes_up, outcome.backwards) == (0, 0, 0)
        assert outcome.forwards == 4 * count
        assert np.abs(parts[0] - expected).max() > 0.01  # the views do not agree


@pytest.mark.parametrize("prior", [0.0, 16.0])
def test_one_view_is_bn_with_that_prior(prior: float, edge: Model) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    alone = make_adapter("views", edge, {"views": 1, "prior": prior}).step(images)
    bn = make_adapter("bn", edge, {"prior": prior}).step(images)
    log_p = torch.from_numpy(bn.logits).log_softmax(1).numpy()
    np.testing.assert_allclose(alone.logits, log_p, atol=1e-6)


def test_without_batch_norm_the_views_alone_are_averaged(edge: Model) -> None:
    module = copy.deepcopy(edge.module)
    module.bn1, module.bn2, module.blocks[0][1] = nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.GroupNorm(4, 8)  # type: ignore[operator, index, union-attr]
    source = replace(edge, module=module.eval())
    images = list(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    views = make_adapter("views", source, {"views": 3})
    together = views.step(images).logits
    x = torch.from_numpy(source.preprocessing(images))
    with torch.no_grad():
        parts = [
            module(shown(x, *way)).softmax(1).numpy() for way in ((0, 0, False), (0, 0, True), (1, 0, False))
        ]
    np.testing.assert_allclose(np.exp(together), np.mean(parts, axis=0), atol=1e-5)
    # Nothing of a batch matters to its images.
    one_by_one = np.concatenate([views.step([image]).logits for image in images])
    np.testing.assert_allclose(one_by_one, together, atol=1e-5)


def test_nothing_is_kept_from_batch_to_batch() -> None:
    views = Views(two_layers(1), context=MethodContext())
    layer = views.model.layers["norm"]
    before = layer.running_mean.clone(), layer.running_var.clone()
    first = views.step(pictures(6)).logits
    views.step(pictures(5, seed=4))
    np.testing.assert_array_equal(views.step(pictures(6)).logits, first)
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize(("width", "shift"), [(8, 1), (28, 1), (32, 2), (224, 14), (260, 16)])
def test_the_shift_is_a_share_of_the_width(width: int, shift: int, edge: Model) -> None:
    preprocessing = msgspec.structs.replace(edge.preprocessing, height=width, width=width)
    model = replace(edge, preprocessing=preprocessing)
    views = Views(model, context=MethodContext()).views
    assert {max(abs(view.right), abs(view.down)) for view in views} == {0, shift}
    assert len(views) == 8
    assert Views(model, ViewsConfig(views=3, shift=3), context=MethodContext()).views[2] == View(3)


def test_digits_are_not_mirrored_and_shifted_by_one_pixel() -> None:
    settings = find_method("views").rates("digits", "batchnorm")
    views = make_adapter("views", resolve("digits-cnn"), settings)
    assert views.views[:3] == (View(), View(1), View(-1))  # type: ignore[attr-defined]
    assert not any(view.mirrored for view in views.views)  # type: ignore[attr-defined]
    assert find_method("views").rates("cifar", "batchnorm") == {}


@pytest.mark.parametrize("settings", [{"views": 0}, {"shift": 0}, {"prior": -1.0}, {"prior": float("inf")}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected"):
        ViewsConfig(**settings)  # type: ignore[arg-type]

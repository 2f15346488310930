"""What every baseline promises, whatever its formula."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cema.formats.image import CodecConfig, encode_image
from cema.methods.base import Adapter, MethodContext, NotApplicable, Uplink
from cema.methods.registry import make_adapter
from cema.models.spec import Model

Photos = Callable[..., list[np.ndarray]]

MINE = ["source", "bn", "onda", "pl", "tent", "eta", "eata"]
LEARNING = ["pl", "tent", "eta", "eata"]
# Rates and margins at which a few images of noise teach something.
SETTINGS: dict[str, dict[str, object]] = {
    "pl": {"lr": 0.05},
    "tent": {"lr": 0.05},
    "eta": {"lr": 0.05, "e_margin": 0.9, "d_margin": 0.99},
    "eata": {"lr": 0.05, "e_margin": 0.9, "d_margin": 0.99, "fisher_alpha": 1.0, "fisher_batch": 4},
}


def make(name: str, edge: Model, photos: Photos, **changes: object) -> Adapter:
    context = replace(MethodContext(source_images=photos(9, seed=99)), **changes)  # type: ignore[arg-type]
    return make_adapter(name, edge, SETTINGS.get(name), context)


def parameters(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in adapter.model.parameters.items()}  # type: ignore[attr-defined]


def without_batch_norm(edge: Model) -> Model:
    module = copy.deepcopy(edge.module)
    module.bn1, module.bn2, module.blocks[0][1] = nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.GroupNorm(4, 8)
    with torch.no_grad():
        module.head.weight.mul_(4.0)  # sure enough for ETA's filter
    return replace(edge, module=module.eval())


@pytest.mark.parametrize("name", MINE)
def test_the_same_seed_gives_the_same_numbers_and_leaves_the_source_alone(
    name: str, edge: Model, photos: Photos
) -> None:
    before = copy.deepcopy(edge.module.state_dict())
    first, second = (make(name, edge, photos, seed=5) for _ in range(2))
    for seed in (1, 2, 3):
        a, b = (adapter.step(photos(7, seed=seed)) for adapter in (first, second))
        np.testing.assert_array_equal(a.logits, b.logits)
        assert (a.uploads, a.bytes_up, a.backwards) == (b.uploads, b.bytes_up, b.backwards)
    for key, value in edge.module.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", MINE)
def test_a_last_batch_of_one_image_is_predicted(name: str, edge: Model, photos: Photos) -> None:
    adapter = make(name, edge, photos)
    for count in (8, 1, 1):
        outcome = adapter.step(photos(count, seed=count))
        assert outcome.logits.shape == (count, 4)
        assert outcome.logits.dtype == np.float32
        assert np.isfinite(outcome.logits).all()
        assert outcome.forwards == count


@pytest.mark.parametrize("name", LEARNING)
def test_predictions_are_those_before_the_step(name: str, edge: Model, photos: Photos) -> None:
    adapter, images = make(name, edge, photos), photos(12)
    before = parameters(adapter)
    first = adapter.step(images).logits
    np.testing.assert_allclose(first, make("bn", edge, photos).step(images).logits, rtol=1e-6, atol=1e-6)
    assert any(not torch.equal(before[key], value) for key, value in parameters(adapter).items())
    assert not np.array_equal(first, adapter.step(images).logits)


@pytest.mark.parametrize("name", LEARNING)
def test_a_model_without_batch_norm_can_learn(name: str, edge: Model, photos: Photos) -> None:
    adapter = make(name, without_batch_norm(edge), photos)
    before = parameters(adapter)
    adapter.step(photos(12))
    assert any(not torch.equal(before[key], value) for key, value in parameters(adapter).items())


@pytest.mark.parametrize("name", ["bn", "onda"])
def test_methods_of_statistics_say_why_they_do_not_apply(name: str, edge: Model, photos: Photos) -> None:
    with pytest.raises(NotApplicable, match="statistics of BatchNorm layers and small has none"):
        make(name, without_batch_norm(edge), photos)


def test_eata_without_source_images_does_not_apply(edge: Model) -> None:
    with pytest.raises(NotApplicable, match="clean source images"):
        make_adapter("eata", edge)


@pytest.mark.parametrize("name", LEARNING)
def test_gradients_that_are_not_finite_change_nothing(name: str, edge: Model, photos: Photos) -> None:
    adapter = make(name, edge, photos)
    before = parameters(adapter)
    overflow = adapter.model.parameters["ln.bias"].register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[attr-defined]
    assert adapter.step(photos(12)).backwards
    for key, value in parameters(adapter).items():
        assert torch.equal(before[key], value)
    overflow.remove()
    adapter.step(photos(12))
    assert any(not torch.equal(before[key], value) for key, value in parameters(adapter).items())


@pytest.mark.parametrize("name", MINE)
def test_uploads_are_what_has_to_reach_the_cloud(name: str, edge: Model, photos: Photos) -> None:
    codec, images = CodecConfig(codec="raw"), photos(12)
    outcome = make(name, edge, photos, codec=codec).step(images)
    sizes = [len(encode_image(image, codec)) for image in images]
    if name in {"source", "bn", "onda"}:
        assert (outcome.uploads, outcome.bytes_up, outcome.backwards) == (0, 0, 0)
    elif name in {"pl", "tent"}:
        assert (outcome.uploads, outcome.bytes_up, outcome.backwards) == (12, sum(sizes), 12)
    else:
        assert 0 < outcome.uploads < 12
        assert outcome.uploads == outcome.backwards
        assert outcome.uploads * min(sizes) <= outcome.bytes_up <= outcome.uploads * max(sizes)


@pytest.mark.parametrize("name", MINE)
def test_a_caller_may_have_switched_gradients_off(name: str, edge: Model, photos: Photos) -> None:
    with_gradients, without = make(name, edge, photos), make(name, edge, photos)
    for seed in (1, 2):
        expected = with_gradients.step(photos(8, seed=seed)).logits
        with torch.no_grad():
            np.testing.assert_array_equal(without.step(photos(8, seed=seed)).logits, expected)


def test_pl_learns_nothing_from_unsure_predictions(edge: Model, photos: Photos) -> None:
    adapter = make_adapter("pl", edge, {"lr": 0.05, "threshold": 1.0})
    before = parameters(adapter)
    outcome = adapter.step(photos(6))
    assert (outcome.uploads, outcome.backwards) == (6, 0)
    assert all(torch.equal(before[key], value) for key, value in parameters(adapter).items())


def test_onda_waits_where_one_image_has_no_variance(edge: Model, photos: Photos) -> None:
    adapter = make_adapter("onda", edge, {"every": 1})
    layer = adapter.model.layers["bn2"]  # type: ignore[attr-defined]
    before = layer.running_mean.clone()
    adapter.step(photos(1, seed=1))
    assert torch.equal(layer.running_mean, before)
    adapter.step(photos(1, seed=2))
    assert not torch.equal(layer.running_mean, before)


def test_bn_with_a_prior_keeps_the_source_statistics(edge: Model, photos: Photos) -> None:
    adapter, images = make_adapter("bn", edge, {"prior": 16}), photos(6)
    first = adapter.step(images).logits
    adapter.step(photos(6, seed=4))
    np.testing.assert_array_equal(adapter.step(images).logits, first)
    for layer in adapter.model.layers.values():  # type: ignore[attr-defined]
        assert not layer._forward_pre_hooks


def test_fisher_information_is_worked_out_once_for_the_same_source_images(
    edge: Model, photos: Photos
) -> None:
    context = MethodContext(source_images=photos(9))
    first = make_adapter("eata", edge, context=context)
    again = make_adapter("eata", edge, {"lr": 0.1}, replace(context, batch=8))
    other = make_adapter("eata", edge, context=replace(context, source_images=photos(9, seed=3)))
    assert first.fisher is again.fisher  # type: ignore[attr-defined]
    assert first.fisher is not other.fisher  # type: ignore[attr-defined]


def test_the_uplink_counts_and_gives_what_the_cloud_decodes(photos: Photos) -> None:
    images = photos(3)
    lossless, lossy = Uplink(), Uplink(CodecConfig(codec="jpeg", quality=30))
    for sent, image in zip(lossless.send(images), images, strict=True):
        np.testing.assert_array_equal(sent, image)
    assert lossy.send([]) == []
    assert lossy.count(images) == lossy.bytes
    assert any(not np.array_equal(a, b) for a, b in zip(lossy.send(images), images, strict=True))
    assert (lossless.samples, lossy.samples) == (3, 6)
    assert lossy.bytes == 2 * sum(len(encode_image(i, CodecConfig(codec="jpeg", quality=30))) for i in images)

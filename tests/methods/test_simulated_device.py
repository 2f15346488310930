"""A device of the benchmark: own statistics, views and re-centring, against the pieces put together by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from cema.adapt.config import AdaptConfig
from cema.methods.base import MethodContext
from cema.methods.cema import Cema, CemaConfig
from cema.methods.registry import make_adapter
from cema.methods.simulated_device import Arrived, DeviceConfig, DeviceNetwork, SimulatedDevice
from cema.models.spec import Model
from cema.ondevice.drift import Domain, input_statistics
from cema.ondevice.label_runs import LabelRuns
from cema.ondevice.own_statistics import StatisticsConfig
from cema.ondevice.recentre import LogitCentre, RecentreConfig
from cema.ondevice.unsure import ViewsConfig

Photos = Callable[[int], list[np.ndarray]]
OWN = StatisticsConfig(source="own", prior=4.0, read=16, samples=16, every=48)


def network(edge: Model, clean: Sequence[np.ndarray] = ()) -> DeviceNetwork:
    return DeviceNetwork(edge, device="cpu", dtype="float32", clean=clean)


def device(edge: Model, shared: DeviceNetwork | None = None, **settings: object) -> SimulatedDevice:
    usual: dict[str, object] = {"change_limit": 0.0, "statistics": StatisticsConfig(source="update")}
    return SimulatedDevice(shared or network(edge), DeviceConfig(**(usual | settings)))  # type: ignore[arg-type]


def predict(model: Model, images: Sequence[np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = model.module(torch.from_numpy(model.preprocessing(images))).numpy()
    return logits


def with_statistics_of(edge: Model, images: Sequence[np.ndarray], prior: float) -> nn.Module:
    """The model, in float64, with statistics that blend the source's with those of the images, layer by layer."""
    module = copy.deepcopy(edge.module).double().eval()
    rate = len(images) / (len(images) + prior)

    def blend(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        values = args[0].transpose(0, 1).reshape(args[0].shape[1], -1)
        if values.shape[1] < 2:
            return
        mean, variance = layer.running_mean, layer.running_var
        difference = values.mean(1) - mean
        between = rate * (1 - rate) * difference**2
        layer.running_var.copy_(variance + rate * (values.var(1) - variance) + between)  # type: ignore[operator]
        layer.running_mean.copy_(mean + rate * difference)  # type: ignore[operator]

    layers = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(blend) for layer in layers]
    with torch.no_grad():
        module(torch.from_numpy(edge.preprocessing(images)).double())
    for hook in hooks:
        hook.remove()
    return module


def test_a_plain_device_is_the_source_model(edge: Model, photos: Photos) -> None:
    predicted = device(edge).predict(photos(9))
    np.testing.assert_allclose(predicted.logits, predict(edge, photos(9)), rtol=1e-4, atol=1e-5)
    assert predicted.forwards == 9


def test_a_first_batch_is_answered_with_its_own_statistics(edge: Model, photos: Photos) -> None:
    images = photos(16)
    predicted = device(edge, statistics=OWN).predict(images)
    module = with_statistics_of(edge, images, OWN.prior)
    with torch.no_grad():
        expected = module(torch.from_numpy(edge.preprocessing(images)).double()).numpy()
    np.testing.assert_allclose(predicted.logits, expected, rtol=1e-3, atol=1e-4)
    assert predicted.forwards == 16
    # As plain batch statistics with such a prior, but for the variance between the two means.
    plain = make_adapter("bn", edge, {"prior": 4.0}).step(images).logits
    assert not np.allclose(predicted.logits, plain, atol=1e-6)
    np.testing.assert_allclose(predicted.logits, plain, atol=0.2)


def test_what_was_read_serves_until_the_next_reading(edge: Model, photos: Photos) -> None:
    own, images = device(edge, statistics=OWN), photos(200)
    own.predict(images[:16])
    module = with_statistics_of(edge, images[:16], OWN.prior)
    for start in (16, 32):
        later = images[start : start + 16]
        with torch.no_grad():
            expected = module(torch.from_numpy(edge.preprocessing(later)).double()).numpy()
        np.testing.assert_allclose(own.predict(later).logits, expected, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        unread = module(torch.from_numpy(edge.preprocessing(images[48:64])).double()).numpy()
    assert not np.allclose(own.predict(images[48:64]).logits, unread, atol=1e-4)


def test_single_images_are_read_one_after_the_other(edge: Model, photos: Photos) -> None:
    own, images = device(edge, statistics=OWN), photos(20)
    answers = [own.predict([image]) for image in images[:16]]
    assert [predicted.forwards for predicted in answers] == [1] * 16
    # The first, with its own statistics for one of five parts.
    module = with_statistics_of(edge, images[:1], OWN.prior)
    with torch.no_grad():
        expected = module(torch.from_numpy(edge.preprocessing(images[:1])).double()).numpy()
    np.testing.assert_allclose(answers[0].logits, expected, rtol=1e-2, atol=1e-2)
    # After all sixteen, near to what they give at once.
    module = with_statistics_of(edge, images[:16], OWN.prior)
    with torch.no_grad():
        expected = module(torch.from_numpy(edge.preprocessing(images[16:])).double()).numpy()
    near = np.abs(own.predict(images[16:]).logits - expected).mean()
    far = np.abs(predict(edge, images[16:]) - expected).mean()
    assert near < 0.5 * far


def test_an_update_is_read_under_at_once(edge: Model, photos: Photos) -> None:
    shared = network(edge)
    own, images = device(edge, shared, statistics=OWN), photos(64)
    own.predict(images[:16])
    kept = own._statistics
    own.predict(images[16:24])
    assert own._statistics is kept
    affine = {key: value * np.float32(1.1) for key, value in shared.source.affine.items()}
    own.install(Arrived(affine, shared.source.statistics))
    own.predict(images[24:32])
    assert own._statistics is not kept
    assert not np.allclose(own._statistics, kept, rtol=1e-3)


def test_a_folded_update_runs_as_it_came(edge: Model, photos: Photos) -> None:
    shared = network(edge)
    own = device(edge, shared, statistics=OWN)
    own.install(Arrived(shared.source.affine, shared.source.statistics, folded=True))
    np.testing.assert_allclose(
        own.predict(photos(16)).logits, predict(edge, photos(16)), rtol=1e-4, atol=1e-5
    )


def test_devices_share_a_network_and_nothing_else(edge: Model, photos: Photos) -> None:
    shared, images = network(edge), photos(64)
    one, other = (device(edge, shared, statistics=OWN) for _ in range(2))
    alone = device(edge, statistics=OWN)
    dark = [image // 4 for image in images]
    for start in range(0, 64, 16):
        part = slice(start, start + 16)
        one.predict(images[part])
        np.testing.assert_array_equal(other.predict(dark[part]).logits, alone.predict(dark[part]).logits)


def test_logits_are_centred_by_those_of_clean_images(edge: Model, photos: Photos) -> None:
    with torch.no_grad():  # several labels are predicted, as of a model that was trained
        usual = torch.from_numpy(predict(edge, photos(64)).mean(0))
        edge.module.head.bias.sub_(usual).mul_(150.0)
        edge.module.head.weight.mul_(150.0)
    images, clean = photos(96), [image // 4 for image in photos(32)]
    centred = device(edge, network(edge, clean), recentre=RecentreConfig(mode="on", weight=8))
    raw = predict(edge, images)
    expected = LogitCentre(predict(edge, clean).astype(np.float64).mean(axis=0), weight=8)
    runs = LabelRuns(edge.classes)
    for start in (32, 64):
        part = raw[start : start + 32]
        expected.observe(part)
        runs.observe(part.argmax(axis=1))
        shift = expected.shift(runs.trust())
        predicted = centred.predict(images[start : start + 32]).logits
        np.testing.assert_allclose(predicted, part - shift, rtol=1e-3, atol=1e-3)
        assert start > 32 or np.abs(predicted - part).max() > 1e-2


def test_views_are_counted(edge: Model, photos: Photos) -> None:
    viewed = device(edge, views=ViewsConfig(count=4, shift=1, above=0.0)).predict(photos(8))
    assert viewed.forwards == 8 * 4
    assert not np.allclose(viewed.logits, predict(edge, photos(8)), atol=1e-3)


def test_a_stream_with_own_statistics_learns_and_publishes(
    edge: Model, foundation: Model, photos: Photos
) -> None:
    adapt = AdaptConfig(fresh=8, replayed=8, capacity=64, replay_from=16, window=24)
    config = CemaConfig(adapt=adapt, e_min=0.0, e_max=1.0, group=1000, guard=0.0, statistics=OWN)
    cema = Cema(edge, config, context=MethodContext(foundation=foundation))
    without = SimulatedDevice(network(edge), config.device)
    images = photos(64)
    for start in range(0, 64, 8):
        outcome = cema.step(images[start : start + 8])
        assert outcome.uploads == 8
        alone = without.predict(images[start : start + 8])
    assert cema.learner.steps == 8
    # The same statistics, but what was learned is on it.
    assert not np.allclose(outcome.logits, alone.logits, atol=1e-3)


def test_the_guard_keeps_own_statistics(edge: Model, photos: Photos) -> None:
    shared = network(edge)
    own = device(edge, shared, statistics=OWN, guard=36.0)
    dark = [image // 4 for image in photos(64)]

    domain = Domain.of(input_statistics(edge.preprocessing(dark)))
    affine = {key: value * np.float32(1.2) for key, value in shared.source.affine.items()}
    own.install(Arrived(affine, shared.source.statistics, domain))
    own.predict(dark[:32])
    assert not own.drifted
    bright = [255 - image // 4 for image in photos(32)]
    answers = own.predict(bright).logits
    assert own.drifted
    # Not the bare source model: its parameters, with statistics of these inputs.
    assert not np.allclose(answers, predict(edge, bright), atol=1e-3)


@pytest.mark.parametrize("guard", [-1.0, float("nan")])
def test_a_guard_out_of_range_is_refused(guard: float) -> None:
    with pytest.raises(ValueError, match="guard"):
        DeviceConfig(guard=guard)

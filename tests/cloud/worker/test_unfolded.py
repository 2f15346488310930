"""Cohorts whose devices have statistics of their own: what is published, compared and gone back to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cloud_tiny_models import PREPROCESSING, quadrants
from folding_learner import Folding, Narrow
from safetensors.numpy import load_file
from statistics_reference import Blending, convolve
from worker_cloud import Cloud, drain, rewrite_bundle

from cema.adapt.base import HasStatistics
from cema.adapt.learner import CemaLearner
from cema.cloud.config import PublishConfig
from cema.cloud.worker.cohort import CohortWorker
from cema.cloud.worker.gate import AgreementWindow, BatchAgreement
from cema.cloud.worker.learned import Learned, read_learned
from cema.cloud.worker.publisher import Candidate, Publisher
from cema.edge.runtime import Active, build_active, pack_payload
from cema.errors import ConfigError
from cema.formats.bundle import Bundle, BundleStatistics, check_golden
from cema.formats.keys import load_private_key
from cema.formats.payload import Payload, decode_payload, encode_payload, round_norm_state
from cema.formats.update import verify_payload, verify_update
from cema.models.norm_state import load_folded
from cema.models.registry import resolve
from cema.ondevice.batch import Batch
from cema.ondevice.drift import Domain
from cema.ondevice.folding import StatisticsLayer

GRAPH = b"observes nothing"


@pytest.fixture
def cloud(cloud: Cloud) -> Cloud:
    """A bundle that lists its layers, of one size, in another order than the model and the learner."""
    bundle = Bundle.load(cloud.folder / "bundle")
    layers, source = bundle.manifest.statistics, bundle.statistics()
    assert source is not None
    assert [layer.layer for layer in layers] == ["1", "4"]
    swapped = np.concatenate([source[:, layers[0].size :], source[:, : layers[0].size]], axis=1)
    rewrite_bundle(bundle.path, BundleStatistics(layers[::-1], GRAPH, swapped))
    return cloud


def bundle_of(cloud: Cloud) -> Bundle:
    return Bundle.load(cloud.folder / "bundle")


def make_publisher(cloud: Cloud, **values: Any) -> Publisher:
    return Publisher(
        resolve("cloud_tiny_models:edge", weights=cloud.folder / "edge.safetensors"),
        bundle_of(cloud),
        "north",
        load_private_key(cloud.folder / "signing.key"),
        PublishConfig(**values),
    )


def some_affine(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"{layer}.{kind}": rng.normal(base, 0.4, 4).astype(np.float32)
        for layer in ("1", "4")
        for kind, base in (("scale", 1.0), ("shift", 0.0))
    }


def some_statistics(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(0, 0.5, 8), rng.uniform(0.2, 3, 8)]).astype(np.float32)


def reference(
    cloud: Cloud, affine: dict[str, np.ndarray], statistics: np.ndarray, images: np.ndarray
) -> np.ndarray:
    """The edge model in float64, with weights, biases and statistics as they are."""
    weights = load_file(cloud.folder / "edge.safetensors")
    norm = Blending(affine, bundle_of(cloud).manifest.statistics, statistics, rate=0.0)
    x = PREPROCESSING(images).astype(np.float64)
    x = np.maximum(norm("1", convolve(x, weights["0.weight"])), 0)
    x = np.maximum(norm("4", convolve(x, weights["3.weight"], stride=2)), 0)
    return x.reshape(len(x), -1) @ weights["7.weight"].astype(np.float64).T + weights["7.bias"]


def source_affine(cloud: Cloud) -> dict[str, np.ndarray]:
    weights = load_file(cloud.folder / "edge.safetensors")
    return {
        f"{layer}.{kind}": weights[f"{layer}.{name}"]
        for layer in ("1", "4")
        for kind, name in (("scale", "weight"), ("shift", "bias"))
    }


def accepted(cloud: Cloud, running: int = 0) -> tuple[Payload, Active]:
    """Return the newest update as a device takes it: verified, and tried on the golden batch."""
    bundle, update = bundle_of(cloud), cloud.store.latest_update("north")
    assert update is not None
    manifest = verify_update(
        update.envelope,
        public_keys=bundle.public_keys,
        cohort="north",
        base=bundle.manifest.base,
        running_version=running,
        now=cloud.now,
    )
    payload = verify_payload(manifest, update.payload)
    return payload, build_active(bundle, manifest, payload, pack_payload(bundle, payload), behind=False)


def seen(adapted: int, running: int, source: int) -> AgreementWindow:
    batch = BatchAgreement(count=64, adapted=adapted, running=running, source=source)
    return AgreementWindow(batches=[batch])


def published(candidate: Candidate) -> Payload:
    assert candidate.update is not None
    return decode_payload(candidate.update.payload)


# --- what is published


def test_updates_carry_the_learners_weights_and_biases_and_devices_take_them(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, gate=1.0, statistics=False)
    worker = cloud.open()
    for version in range(1, 6):
        cloud.send(16)
        assert worker.run_once()
        payload, active = accepted(cloud, running=version - 1)
        assert (payload.unfolded, payload.statistics) == (True, None)
        assert active.version == version
        # As torch has them, not as they were unfolded.
        learner: Any = worker.learner
        for name, layer in learner.edge.layers.items():
            for kind, value in (("scale", layer.weight), ("shift", layer.bias)):
                got = payload.norm_state[f"{name}.{kind}"]
                np.testing.assert_allclose(got, value.detach().numpy(), rtol=2e-3, atol=2e-3)
        source = bundle_of(cloud).statistics()
        assert source is not None
        images = quadrants(20, 3)[0]
        got = active.runtime.run(PREPROCESSING(images))
        expected = reference(cloud, payload.norm_state, source, images)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
        assert active.affine is not None


def test_with_statistics_of_its_own_a_device_is_better_than_the_source_was(cloud: Cloud) -> None:
    cloud.send(160)
    drain(cloud.open())
    payload, _ = accepted(cloud)
    images, labels = quadrants(500, 5, drift=True)

    def accuracy(logits: np.ndarray) -> float:
        return float((logits.argmax(1) == labels).mean())

    source = bundle_of(cloud).statistics()
    assert source is not None
    frozen = accuracy(reference(cloud, source_affine(cloud), source, images))
    own = own_statistics(cloud, payload.norm_state, images)
    assert accuracy(reference(cloud, payload.norm_state, own, images)) > frozen + 0.1
    unadapted = own_statistics(cloud, source_affine(cloud), images)
    without = accuracy(reference(cloud, source_affine(cloud), unadapted, images))
    assert accuracy(reference(cloud, payload.norm_state, own, images)) >= without - 0.02


def own_statistics(cloud: Cloud, affine: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Statistics of a device's own inputs, by a training pass of torch, in the bundle's order."""
    module: Any = resolve("cloud_tiny_models:edge", weights=cloud.folder / "edge.safetensors").module
    load_folded(module, affine)
    for name in ("1", "4"):
        module[int(name)].momentum = 1.0
    module.train()(torch.from_numpy(PREPROCESSING(images)))
    parts = [
        torch.stack([module[int(layer.layer)].running_mean, module[int(layer.layer)].running_var]).numpy()
        for layer in bundle_of(cloud).manifest.statistics
    ]
    return np.concatenate(parts, axis=1)


def test_updates_carry_the_statistics_that_they_were_learned_with(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, gate=1.0)
    worker = cloud.open()
    cloud.send(48)
    drain(worker)
    payload, active = accepted(cloud)
    assert payload.statistics is not None
    learner: Any = worker.learner
    start = 0
    for layer in bundle_of(cloud).manifest.statistics:
        theirs = learner.edge.layers[layer.layer]
        mean, variance = payload.statistics[:, start : start + layer.size]
        start += layer.size
        np.testing.assert_allclose(mean, theirs.running_mean.numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(variance, theirs.running_var.numpy(), rtol=1e-3)
    images = quadrants(20, 3, drift=True)[0]
    got = active.runtime.run(PREPROCESSING(images))
    np.testing.assert_allclose(got, worker.learner.edge_logits(list(images)), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("told", [False, True])
def test_golden_logits_are_those_with_the_bundles_statistics(cloud: Cloud, told: bool) -> None:
    publisher = make_publisher(cloud, statistics=told)
    affine, learned = some_affine(1), some_statistics(2)
    domain = Domain.of(np.eye(8)[:, :4])
    payload = published(publisher.consider(affine, seen(64, 0, 0), 5.0, domain, learned))
    bundle = publisher.bundle
    source = bundle.statistics()
    assert source is not None
    rounded = round_norm_state(affine, bundle.manifest.tolerance)
    assert payload.unfolded
    assert all(np.array_equal(payload.norm_state[key], value) for key, value in rounded.items())
    expected = reference(cloud, rounded, source, bundle.golden_images)
    check_golden(payload.golden_logits, expected, bundle.manifest.tolerance)
    assert (payload.statistics is not None) == told
    assert payload.domain is not None


# --- the gate


def logits_by_hand(cloud: Cloud, states: list[dict[str, np.ndarray]], statistics: np.ndarray) -> np.ndarray:
    images = quadrants(64, 8, drift=True)[0]
    return np.stack([reference(cloud, state, statistics, images) for state in states])


def test_all_three_are_compared_with_one_set_of_statistics(cloud: Cloud) -> None:
    publisher = make_publisher(cloud)
    images = quadrants(64, 8, drift=True)[0]
    adapted, running = some_affine(1), some_affine(3)
    for seed in (2, 4):
        statistics = some_statistics(seed)
        states = [adapted, source_affine(cloud), source_affine(cloud)]
        if seed == 4:  # and devices run something by then, learned with other statistics
            update = publisher.consider(running, seen(64, 0, 0), 5.0, None, some_statistics(9)).update
            assert update is not None
            publisher.published(update)
            states[1] = running
        rounded = [round_norm_state(state, 1e-3) for state in states]
        expected = logits_by_hand(cloud, rounded, statistics)
        clear = np.sort(expected, axis=2)
        clear = clear[..., -1] - clear[..., -2] > 1e-2
        assert clear.mean() > 0.9
        got = np.stack(publisher.predictions(Batch(list(images)), adapted, statistics))
        np.testing.assert_array_equal(got[clear], expected.argmax(2)[clear])
        assert (got[0] != got[2]).any()
        assert (got[1] != got[2]).any() == (seed == 4)


def test_a_version_from_before_is_compared_as_devices_run_it(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, gate=1.0)
    cloud.adapt(algorithm="folding_learner:Folding")
    cloud.send(48)
    drain(cloud.open())
    before, _ = accepted(cloud)
    assert not before.unfolded
    cloud.adapt(algorithm="cema")
    worker = cloud.open()
    images = quadrants(64, 8, drift=True)[0]
    module = resolve("cloud_tiny_models:edge", weights=cloud.folder / "edge.safetensors").module
    load_folded(module, before.norm_state)
    with torch.inference_mode():
        expected = module(torch.from_numpy(PREPROCESSING(images))).argmax(1).numpy()
    for seed in (2, 4):  # whatever statistics the other two have
        labels = worker.publisher.predictions(Batch(list(images)), some_affine(1), some_statistics(seed))
        np.testing.assert_array_equal(labels[1], expected)
    cloud.send(16)
    assert worker.run_once()
    payload, _ = accepted(cloud)
    assert payload.unfolded


def test_two_that_are_the_same_make_one_pass(cloud: Cloud) -> None:
    publisher = make_publisher(cloud)
    passed: list[int] = []
    publisher._fast._module.register_forward_hook(lambda module, inputs, output: passed.append(len(output)))
    batch, statistics = Batch(list(quadrants(16, 8)[0])), some_statistics(2)
    publisher.predictions(batch, some_affine(1), statistics)
    assert passed == [16, 16]  # what devices run is the source model
    update = publisher.consider(some_affine(1), seen(64, 0, 0), 5.0, None, statistics).update
    assert update is not None
    publisher.published(update)
    passed.clear()
    publisher.predictions(batch, some_affine(1), some_statistics(3))
    assert passed == [16, 16]  # what devices run is the adapted model


def test_going_back_sends_the_source_models_weights(cloud: Cloud) -> None:
    publisher = make_publisher(cloud, statistics=True)
    first = publisher.consider(some_affine(1), seen(64, 0, 0), 5.0, None, some_statistics(2)).update
    assert first is not None
    publisher.published(first)
    candidate = publisher.consider(some_affine(3), seen(30, 40, 50), 6.0, None, some_statistics(4))
    assert candidate.outcome == "reverted"
    payload = published(candidate)
    bundle = publisher.bundle
    assert payload.unfolded
    assert (payload.statistics, payload.domain) == (None, None)  # its own are the bundle's
    for key, value in source_affine(cloud).items():
        np.testing.assert_allclose(payload.norm_state[key], value, rtol=1e-3, atol=1e-3)
    check_golden(payload.golden_logits, bundle.golden_logits, 2 * bundle.manifest.tolerance)
    assert candidate.update is not None
    cloud.store.open_cohort("north", base=bundle.manifest.base)
    cloud.store.commit_step(
        "north", 0, b"", candidate.update, epoch=cloud.store.claim("north").epoch, now=cloud.now
    )
    cloud.now = 10.0
    accepted(cloud, running=1)
    publisher.published(candidate.update)
    images = Batch(list(quadrants(64, 8, drift=True)[0]))
    _, running, source = publisher.predictions(images, some_affine(1), some_statistics(7))
    assert (running == source).mean() > 0.98


@pytest.mark.parametrize("gate", [0.02, 1.0])
@pytest.mark.parametrize("size", [3e38, 1e30])  # beyond float32 once it is folded; and the logits only
def test_weights_that_overflow_are_never_published(cloud: Cloud, gate: float, size: float) -> None:
    rewritten = bundle_of(cloud)
    tight = np.stack([np.zeros(8), np.full(8, 1e-6)])  # the standard deviation is far below 1
    rewrite_bundle(rewritten.path, BundleStatistics(rewritten.manifest.statistics, GRAPH, tight))
    publisher = make_publisher(cloud, gate=gate)
    state = {key: np.full_like(value, size) for key, value in some_affine(1).items()}
    assert publisher.consider(state, seen(64, 0, 0), 5.0, None, some_statistics(2)).outcome == "not_finite"


# --- the worker


def test_a_restart_goes_on_with_what_was_published(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, gate=1.0)
    first = cloud.open()
    cloud.send(48)
    drain(first)
    again = cloud.open()
    batch = Batch(list(quadrants(64, 8, drift=True)[0]))
    told = [
        worker.publisher.predictions(batch, *worker.publisher.learned(worker.learner))
        for worker in (first, again)
    ]
    for before, after in zip(*told, strict=True):
        np.testing.assert_array_equal(before, after)
    payload, _ = accepted(cloud)
    assert again.publisher._running.unfolded
    assert all(
        np.array_equal(again.publisher._running.norm_state[k], v) for k, v in payload.norm_state.items()
    )
    cloud.send(16)
    assert again.run_once()
    newer, active = accepted(cloud, running=3)
    assert newer.unfolded
    assert active.version == 4


def test_a_learner_that_tells_no_statistics_publishes_folded_updates(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, gate=1.0, statistics=True)
    cloud.adapt(algorithm="folding_learner:Folding")
    worker = cloud.open()
    assert isinstance(worker.learner, Folding)
    assert not isinstance(worker.learner, HasStatistics)
    cloud.send(48)
    drain(worker)
    payload, active = accepted(cloud)
    assert (payload.unfolded, payload.statistics, active.affine) == (False, None, None)
    expected = round_norm_state(worker.learner.norm_state(), 1e-3)
    assert all(np.array_equal(payload.norm_state[key], value) for key, value in expected.items())
    images = quadrants(20, 3, drift=True)[0]
    got = active.runtime.run(PREPROCESSING(images))
    np.testing.assert_allclose(got, worker.learner.edge_logits(list(images)), rtol=0.02, atol=0.02)


def test_a_cohort_without_statistics_publishes_the_bytes_that_it_always_did(plain_cloud: Cloud) -> None:
    plain_cloud.publish(every_steps=1, gate=1.0, statistics=True)
    worker = plain_cloud.open()
    plain_cloud.send(80)
    drain(worker)
    update = plain_cloud.store.latest_update("north")
    assert update is not None
    bundle, learner = bundle_of(plain_cloud), worker.learner
    state = round_norm_state(learner.norm_state(), tolerance=bundle.manifest.tolerance)
    assert update.payload == by_hand(plain_cloud.folder, bundle, state, learner.domain())
    source = bundle.norm_state()
    careful = make_publisher(plain_cloud, statistics=True)
    reverted = careful.consider(learner.norm_state(), seen(30, 40, 50), 5.0, learner.domain())
    assert reverted.update is not None
    assert reverted.update.payload == by_hand(plain_cloud.folder, bundle, source, None)


def by_hand(folder: Path, bundle: Bundle, state: dict[str, np.ndarray], domain: Domain | None) -> bytes:
    """A folded payload, made without the publisher."""
    module = resolve("cloud_tiny_models:edge", weights=folder / "edge.safetensors").module
    load_folded(module, state)
    with torch.inference_mode():
        golden = module(torch.from_numpy(PREPROCESSING(bundle.golden_images))).numpy()
    return encode_payload(state, golden, domain=domain, tolerance=bundle.manifest.tolerance)


def test_statistics_that_are_not_finite_undo_the_step(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = cloud.open()
    cloud.send(80)
    drain(worker)
    before, replay = worker.learner.dumps(), CemaLearner.replay

    def spoil(self: Any) -> Any:
        report = replay(self)
        next(iter(self.edge.layers.values())).running_var.fill_(torch.inf)  # folded, it is a scale of 0
        return report

    monkeypatch.setattr(CemaLearner, "replay", spoil)
    cloud.worker_config(idle_steps=1)
    worker = cloud.open()
    worker.progress.idle = 0
    drain(worker)
    assert cloud.counters()["worker.failed_steps"] == 1
    assert worker.learner.dumps() == before


# --- a bundle and a learner that do not fit


def with_layers(cloud: Cloud, *layers: StatisticsLayer) -> CohortWorker:
    total = sum(layer.size for layer in layers)
    statistics = np.stack([np.zeros(total), np.ones(total)])
    rewrite_bundle(cloud.folder / "bundle", BundleStatistics(layers, GRAPH, statistics))
    return cloud.open()


def test_layers_that_the_learner_has_otherwise_are_refused_at_the_start(cloud: Cloud) -> None:
    first, last = (StatisticsLayer(layer=name, size=4, eps=1e-5) for name in ("1", "4"))
    with pytest.raises(ConfigError, match=r"'4' with 4 channels and eps 0\.001.*export the bundle again"):
        with_layers(cloud, first, StatisticsLayer(layer="4", size=4, eps=1e-3))
    cloud.adapt(algorithm="folding_learner:Narrow")
    with pytest.raises(ConfigError, match="'1' with 4 channels and eps 1e-05, the algorithm has none"):
        with_layers(cloud, last, first)
    assert isinstance(with_layers(cloud, last).learner, Narrow)


def test_layers_that_the_bundle_does_not_list_stay_folded(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, gate=1.0)
    worker = with_layers(cloud, StatisticsLayer(layer="4", size=4, eps=1e-5))
    cloud.send(48)
    drain(worker)
    payload, _ = accepted(cloud)
    folded = worker.learner.norm_state()
    learner: Any = worker.learner
    for kind, value in (("scale", learner.edge.layers["4"].weight), ("shift", learner.edge.layers["4"].bias)):
        np.testing.assert_allclose(payload.norm_state[f"1.{kind}"], folded[f"1.{kind}"], rtol=2e-3, atol=2e-3)
        got = payload.norm_state[f"4.{kind}"]
        np.testing.assert_allclose(got, value.detach().numpy(), rtol=2e-3, atol=2e-3)


class Sized:
    """A learner of which only the norm state and statistics are asked."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes

    def norm_state(self) -> dict[str, np.ndarray]:
        return {
            f"{name}.{kind}": np.arange(1, size + 1, dtype=np.float32)
            for name, size in self.sizes.items()
            for kind in ("scale", "shift")
        }

    def statistics(self) -> np.ndarray:
        means = np.concatenate([np.full(size, i + 1.0) for i, size in enumerate(self.sizes.values())])
        return np.stack([means, means**2]).astype(np.float32)

    def statistics_layers(self) -> tuple[StatisticsLayer, ...]:
        return tuple(StatisticsLayer(layer=name, size=size, eps=1e-12) for name, size in self.sizes.items())


def test_each_layer_gets_its_own_statistics_in_whatever_order() -> None:
    learner: Any = Sized({"a": 2, "b": 3, "c": 1})
    wanted = [StatisticsLayer(layer=name, size=size, eps=1e-12) for name, size in (("c", 1), ("a", 2))]
    learned = read_learned(learner, wanted)
    assert isinstance(learned, Learned)
    assert learned.statistics is not None
    assert learned.statistics.tolist() == [[3, 1, 1], [9, 1, 1]]
    # Mean and deviation of layer i are i + 1: weight = scale (i + 1), bias = shift + scale (i + 1).
    assert {key: value.tolist() for key, value in learned.norm_state.items()} == {
        "a.scale": [1, 2],
        "a.shift": [2, 4],
        "b.scale": [1, 2, 3],
        "b.shift": [1, 2, 3],
        "c.scale": [3],
        "c.shift": [4],
    }
    with pytest.raises(ConfigError, match="one of 2 channels"):
        read_learned(learner, [StatisticsLayer(layer="a", size=3, eps=1e-12)])
    assert read_learned(learner, []).statistics is None

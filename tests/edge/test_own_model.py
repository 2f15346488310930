"""An agent with statistics of its own, against the same decisions in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import PREPROCESSING, Cloud, images, make_update, norm_state, reference, weights
from observing_bundle import TOTAL, observing_bundle
from statistics_reference import Blending, convolve

from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig, GuardConfig
from cema.errors import LogitsError
from cema.formats.bundle import Bundle
from cema.formats.payload import encode_payload, round_norm_state
from cema.ondevice.drift import Domain, input_statistics
from cema.ondevice.label_runs import LabelRuns
from cema.ondevice.own_statistics import StatisticsConfig
from cema.ondevice.recentre import RecentreConfig
from cema.ondevice.unsure import ViewsConfig
from cema.ondevice.window import StatisticsWindow

Make = Callable[..., EdgeConfig]
OWN = StatisticsConfig(prior=4.0, source_share=0.25, samples=24, read=8, every=40)


@pytest.fixture(scope="session")
def observing(tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey) -> Bundle:
    return observing_bundle(tmp_path_factory.mktemp("observing") / "bundle", key)


@pytest.fixture
def agent(make_config: Make, observing: Bundle) -> Iterator[Callable[..., EdgeAgent]]:
    agents: list[EdgeAgent] = []

    def start(cloud: Cloud | None = None, **changes: Any) -> EdgeAgent:
        settings = {"statistics": OWN, "guard": GuardConfig(change_limit=0.0)} | changes
        config = msgspec.structs.replace(make_config(cloud, **settings), bundle=str(observing.path))
        agents.append(EdgeAgent(config))
        return agents[-1]

    yield start
    for started in agents:
        started.close()


def answer(norm: Blending, batch: np.ndarray) -> np.ndarray:
    """The small model in float64."""
    w, x = weights(), batch.astype(np.float64)
    for i in range(2):
        x = np.maximum(norm(f"bn{i}", convolve(x, w[f"w{i}"])), 0)
    result: np.ndarray = 4 * x.mean((2, 3)) @ w["fc"].astype(np.float64).T
    return result


class Reference:
    """What a device does, in float64: read the first images, and then answer with what was read."""

    def __init__(self, bundle: Bundle, runs: LabelRuns | None = None) -> None:
        prior = bundle.statistics()
        assert prior is not None
        self.bundle, self.read, self.runs = bundle, 0, runs or LabelRuns(bundle.manifest.classes)
        self.window = StatisticsWindow(prior, weight=OWN.prior, size=OWN.samples, share=OWN.source_share)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        batch, layers = PREPROCESSING(pixels), self.bundle.manifest.statistics
        if self.read >= OWN.samples:
            return self._noted(
                answer(Blending(self.bundle.affine_state(), layers, self.window.current(), 0.0), batch)
            )
        self.window.trust(self.runs.trust())
        norm = Blending(self.bundle.affine_state(), layers, *self.window.blend(len(batch)))
        logits = answer(norm, batch)
        self.window.add(norm.observed(), len(batch))
        self.read += len(batch)
        return self._noted(logits)

    def _noted(self, logits: np.ndarray) -> np.ndarray:
        self.runs.observe(logits.argmax(axis=1))
        return logits


def folded(agent: EdgeAgent) -> bool:
    """Wait until what was read is folded into a session."""
    return agent._wait(lambda: agent._own is not None and agent._own.folded, 20)


@pytest.mark.parametrize("size", [1, 6])
def test_first_images_are_answered_with_their_own_statistics(
    agent: Callable[..., EdgeAgent], observing: Bundle, size: int
) -> None:
    device, reference, pixels = agent(), Reference(observing), images(48, 3) // 2
    for start in range(0, 48, size):
        if start == 24:
            assert folded(device)
        part = pixels[start : start + size]
        prediction = device.predict(part)
        np.testing.assert_allclose(prediction.logits, reference.predict(part), rtol=1e-3, atol=1e-3)
        assert prediction.version == 0
    status = device.status()
    assert (status.own_statistics, status.read, status.last_error) == (True, 24, None)


def test_it_is_read_again_from_time_to_time(agent: Callable[..., EdgeAgent]) -> None:
    device, pixels = agent(), images(8, 4)
    read = []
    for _ in range(16):
        device.predict(pixels)
        read.append(device.status().read)
    # 24 at first; the call with the fortieth image after is the next that is read.
    assert read == [8, 16, 24, 24, 24, 24, 24, 32, 32, 32, 32, 32, 40, 40, 40, 40]


def test_a_folded_session_is_used_and_is_the_same_model(agent: Callable[..., EdgeAgent]) -> None:
    device, pixels = agent(), images(24, 5)
    device.predict(pixels)
    assert device._own is not None
    before = device._own.again(device._active.affine, PREPROCESSING(pixels[:4]))  # type: ignore[arg-type]
    assert folded(device)
    after = device._own.again(device._active.affine, PREPROCESSING(pixels[:4]))  # type: ignore[arg-type]
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)


def test_a_change_of_domain_begins_anew(agent: Callable[..., EdgeAgent], observing: Bundle) -> None:
    statistics = msgspec.structs.replace(OWN, every=10_000)
    device = agent(guard=GuardConfig(change_limit=36.0), statistics=statistics)
    runs = LabelRuns(observing.manifest.classes)  # what labels are like is no matter of the domain
    for start in range(0, 160, 8):
        runs.observe(device.predict(images(8, start) // 3).labels)
    assert device.status().domain_changes == 0
    bright, reference = 255 - images(64, 1000) // 3, None
    for start in range(0, 64, 8):
        part = bright[start : start + 8]
        got = device.predict(part).logits
        if device.status().domain_changes and reference is None:
            assert start < 48
            reference = Reference(observing, runs)
        if reference is None:
            runs.observe(got.argmax(axis=1))
        else:
            np.testing.assert_allclose(got, reference.predict(part), rtol=1e-3, atol=1e-3)
    assert reference is not None
    assert device.status().domain_changes == 1


def test_statistics_of_updates_are_a_setting(agent: Callable[..., EdgeAgent], observing: Bundle) -> None:
    device, pixels = agent(statistics=StatisticsConfig(source="update")), images(6, 6)
    known = observing.statistics()
    norm = Blending(observing.affine_state(), observing.manifest.statistics, known, 0.0)
    expected = answer(norm, PREPROCESSING(pixels))
    np.testing.assert_allclose(device.predict(pixels).logits, expected, rtol=1e-3, atol=1e-3)
    assert (device.status().own_statistics, device.status().read) == (False, 0)


def test_many_threads_may_read(agent: Callable[..., EdgeAgent]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    device = agent(statistics=msgspec.structs.replace(OWN, every=10_000))
    with ThreadPoolExecutor(8) as pool:
        predictions = list(pool.map(lambda seed: device.predict(images(2, seed)), range(64)))
    assert all(np.isfinite(prediction.logits).all() for prediction in predictions)
    status = device.status()
    assert status.predicted == 128
    assert 24 <= status.read <= 24 + 2 * 8
    assert folded(device)


def test_a_session_that_answers_otherwise_never_serves(
    agent: Callable[..., EdgeAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, pixels = agent(), images(24, 7)

    class Wrong(onnxruntime.InferenceSession):
        def run(self, *args: Any) -> Any:
            return [result + 1.0 for result in super().run(*args)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    device.predict(pixels)
    assert device._wait(lambda: device.status().last_error is not None, 20)
    assert "statistics" in (device.status().last_error or "")
    assert device._own is not None
    assert not device._own.folded
    # The graph answers in its place.
    assert np.isfinite(device.predict(pixels[:2]).logits).all()
    monkeypatch.undo()


def test_images_that_break_the_model_break_nothing_else(agent: Callable[..., EdgeAgent]) -> None:
    device = agent()
    assert device._own is not None
    reading = device._serving.model.adaptation.before(
        np.full((2, *PREPROCESSING(images(1)).shape[1:]), 3e38, np.float32), None
    )
    assert reading is not None
    with pytest.raises(LogitsError, match="finite"):
        device._own.run(
            device._active.affine,  # type: ignore[arg-type]
            np.full((2, *PREPROCESSING(images(1)).shape[1:]), 3e38, np.float32),
            reading,
        )
    assert device._serving.model.adaptation.statistics().shape == (2, TOTAL)
    assert np.isfinite(device.predict(images(2)).logits).all()


def test_views_and_centred_logits_are_what_the_benchmark_computes(
    agent: Callable[..., EdgeAgent], observing: Bundle
) -> None:
    from cema.ondevice.adaptation import AdaptationConfig, DeviceAdaptation

    changes = {
        "statistics": StatisticsConfig(source="update"),
        "views": ViewsConfig(count=3, shift=1, above=0.0),
        "recentre": RecentreConfig(mode="on", weight=4.0),
    }
    device = agent(**changes)
    plain = agent_run(observing)
    same = DeviceAdaptation(
        AdaptationConfig(change_limit=0.0, **changes),  # type: ignore[arg-type]
        statistics=observing.statistics(),
        mean_logits=None,
        classes=observing.manifest.classes,
    )
    for seed in range(3):
        batch = PREPROCESSING(images(4, seed))
        expected = same.after(batch, plain(batch), plain)
        np.testing.assert_allclose(device.predict(images(4, seed)).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_update_serves_at_once_under_own_statistics(
    agent: Callable[..., EdgeAgent], observing: Bundle, cloud: Cloud, key: Ed25519PrivateKey
) -> None:
    every = msgspec.structs.replace(OWN, every=10_000)
    device = agent(statistics=every, cloud=cloud)
    for seed in range(3):
        device.predict(images(8, seed))
    assert folded(device)
    state = round_norm_state(norm_state(4, spread=0.4))
    golden = reference(unfolded_reference(state, observing), observing.golden_images).astype(np.float32)
    cloud.publish(make_update(observing, key, 3, payload=encode_payload(state, golden, unfolded=True)))
    assert device.wait_for_version(3, 20)
    assert device._active.runtime is None
    # It answers with the window so far and the images of the call, read under the new parameters.
    known = device._serving.model.adaptation._own.window.blend(8)  # type: ignore[union-attr]
    pixels = images(8, 9)
    prediction = device.predict(pixels)
    expected = answer(Blending(state, observing.manifest.statistics, *known), PREPROCESSING(pixels))
    np.testing.assert_allclose(prediction.logits, expected, rtol=1e-3, atol=1e-3)
    assert (prediction.version, device.status().read) == (3, 32)
    assert folded(device)
    assert device.predict(pixels).version == 3
    device.close()
    # The next start resumes it.
    again = agent(statistics=every, cloud=cloud)
    assert again.predict(pixels).version == 3


def test_an_update_that_does_not_give_its_golden_logits_never_serves(
    agent: Callable[..., EdgeAgent], observing: Bundle, cloud: Cloud, key: Ed25519PrivateKey
) -> None:
    device = agent(cloud=cloud)
    state = round_norm_state(norm_state(4, spread=0.4))
    wrong = encode_payload(state, observing.golden_logits, unfolded=True)
    cloud.publish(make_update(observing, key, 3, payload=wrong))
    assert device._wait(lambda: device.status().rejected_updates == {"golden_mismatch": 1}, 20)
    assert device.predict(images(8)).version == 0


def unfolded_reference(state: dict[str, np.ndarray], bundle: Bundle) -> dict[str, np.ndarray]:
    """Fold the bundle's statistics by the formula, in float64."""
    statistics, start = bundle.statistics(), 0
    assert statistics is not None
    result: dict[str, np.ndarray] = {}
    for layer in bundle.manifest.statistics:
        mean, variance = statistics[:, start : start + layer.size].astype(np.float64)
        start += layer.size
        scale = state[f"{layer.layer}.scale"] / np.sqrt(variance + layer.eps)
        result[f"{layer.layer}.scale"] = scale
        result[f"{layer.layer}.shift"] = state[f"{layer.layer}.shift"] - mean * scale
    return result


def agent_run(bundle: Bundle) -> Callable[[np.ndarray], np.ndarray]:
    known = bundle.statistics()

    def run(batch: np.ndarray) -> np.ndarray:
        norm = Blending(bundle.affine_state(), bundle.manifest.statistics, known, 0.0)
        return answer(norm, batch).astype(np.float32)

    return run


def test_inputs_are_described_once_for_the_guard_and_the_watch_of_the_own_domain(
    agent: Callable[..., EdgeAgent],
    observing: Bundle,
    key: Ed25519PrivateKey,
    cloud: Cloud,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described: list[int] = []

    def counting(batch: np.ndarray) -> np.ndarray:
        described.append(len(batch))
        return input_statistics(batch)

    device = agent(cloud, guard=GuardConfig())
    state = round_norm_state(norm_state(4, spread=0.4))
    golden = reference(unfolded_reference(state, observing), observing.golden_images).astype(np.float32)
    made_for = Domain.of(input_statistics(PREPROCESSING(images(96))))
    payload = encode_payload(state, golden, unfolded=True, domain=made_for)
    cloud.publish(make_update(observing, key, 1, payload=payload))
    assert device.wait_for_version(1, 20)
    device.predict(images(8, seed=1))
    for module in ("cema.edge.guard", "cema.ondevice.own_domain"):
        monkeypatch.setattr(f"{module}.input_statistics", counting)
    for seed in range(2, 14):
        assert not device.predict(images(8, seed=seed)).guarded
    assert described == 12 * [8]
    assert device.status().domain_changes == 0

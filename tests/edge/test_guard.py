"""The guard: the source model serves, at once, where an update was not made for what comes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import PREPROCESSING, SIDE, Cloud, Update, make_update, norm_state, reference

from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig, GuardConfig
from cema.edge.guard import Guard
from cema.edge.runtime import Active, Runtime
from cema.errors import ConfigError
from cema.formats.bundle import Bundle
from cema.formats.payload import encode_payload, round_norm_state
from cema.ondevice.drift import Domain, input_statistics
from cema.ondevice.selection.budget import Budget
from cema.ondevice.selection.config import SelectionConfig

Make = Callable[..., EdgeConfig]


def choose(guard: Guard, installed: Active, batch: np.ndarray) -> Active:
    return guard.consider(installed, batch)[0]


def scenes(n: int, seed: int, *, dark: bool = False) -> np.ndarray:
    """Smooth pictures, bright or dark."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(size=(n, 2, 1, 1, 3)) * np.arange(SIDE).reshape(1, 1, SIDE, 1, 1)
    picture = slopes[:, 0] + slopes[:, 1].transpose(0, 2, 1, 3) + rng.normal(150, 15, (n, 1, 1, 3))
    noisy = picture + rng.normal(0, 4, (n, SIDE, SIDE, 3))
    return (noisy * (0.2 if dark else 1.0)).clip(0, 255).astype(np.uint8)


def domain(images: np.ndarray) -> Domain:
    return Domain.of(input_statistics(PREPROCESSING(images)))


def update_for(bundle: Bundle, key: Ed25519PrivateKey, version: int, images: np.ndarray | None) -> Update:
    state = round_norm_state(norm_state(seed=version))
    golden = reference(state, bundle.golden_images).astype(np.float32)
    made_for = None if images is None else domain(images)
    payload = encode_payload(state, golden, domain=made_for)
    return make_update(bundle, key, version, payload=payload)


def test_it_leaves_and_returns(bundle: Bundle) -> None:
    source, installed = (
        Active(Runtime(bundle), version, None, made_for)
        for version, made_for in ((0, None), (1, domain(scenes(96, 0))))
    )
    guard = Guard(source, 36.0)
    for seed in (1, 2, 3):
        assert choose(guard, installed, PREPROCESSING(scenes(8, seed))) is installed
    assert choose(guard, installed, PREPROCESSING(scenes(8, 4, dark=True))) is source
    assert guard.drifted
    chosen = [choose(guard, installed, PREPROCESSING(scenes(8, seed))) for seed in range(5, 15)]
    assert chosen[-1] is installed
    assert not guard.drifted


def test_one_image_at_a_time_is_enough(bundle: Bundle) -> None:
    source = Active(Runtime(bundle))
    installed = Active(source.runtime, 1, None, domain(scenes(96, 0)))
    guard = Guard(source, 36.0)
    assert choose(guard, installed, PREPROCESSING(scenes(1, 1))) is installed
    dark = scenes(4, 2, dark=True)
    assert [choose(guard, installed, PREPROCESSING(dark[i : i + 1])) for i in range(4)][-1] is source


def test_an_update_without_an_environment_goes_with_any_input(bundle: Bundle) -> None:
    source = Active(Runtime(bundle))
    installed = Active(source.runtime, 1)
    guard = Guard(source, 36.0)
    for dark in (False, True, False):
        assert choose(guard, installed, PREPROCESSING(scenes(8, 1, dark=dark))) is installed


def test_an_update_for_what_comes_in_now_serves_at_once(bundle: Bundle) -> None:
    source = Active(Runtime(bundle))
    bright, dark = (Active(source.runtime, v, None, domain(scenes(96, v, dark=v == 2))) for v in (1, 2))
    guard = Guard(source, 36.0)
    choose(guard, bright, PREPROCESSING(scenes(32, 3)))
    for seed in range(4, 8):
        choose(guard, bright, PREPROCESSING(scenes(8, seed, dark=True)))
    assert guard.drifted
    assert choose(guard, dark, PREPROCESSING(scenes(1, 9, dark=True))) is dark
    assert choose(guard, bright, PREPROCESSING(scenes(1, 10, dark=True))) is source, (
        "known from what came before"
    )


def test_the_agent_falls_back_and_says_so(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    with EdgeAgent(make_config(cloud)) as agent:
        agent.predict(scenes(8, 1))
        cloud.publish(update_for(bundle, key, 1, scenes(96, 0)))
        assert agent.wait_for_version(1, 20)
        served = agent.predict(scenes(8, 2))
        assert (served.version, served.guarded) == (1, False)
        dark = scenes(8, 3, dark=True)
        guarded = agent.predict(dark)
        assert (guarded.version, guarded.guarded) == (0, True)
        np.testing.assert_allclose(guarded.logits, reference(norm_state(), dark), rtol=1e-3, atol=1e-3)
        status = agent.status()
        assert (status.version, status.drifted, status.guarded) == (1, True, 8)
        # A batch larger than the model takes at once: its first part chooses for all of it.
        assert agent.predict(scenes(100, 4, dark=True)).guarded
        assert agent.status().guarded == 108
    with EdgeAgent(make_config(cloud)) as agent:  # the environment is remembered with the update
        assert agent.predict(scenes(8, 5, dark=True)).guarded


def test_a_selector_is_told_once_where_the_guard_begins_to_act(
    make_config: Make,
    cloud: Cloud,
    bundle: Bundle,
    key: Ed25519PrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Budget] = []
    note = Budget.changed

    def changed(selector: Budget) -> None:
        told.append(selector)
        note(selector)

    monkeypatch.setattr(Budget, "changed", changed)
    options = {"share": 0.25, "order": "random", "burst": 2.0, "burst_for": 8}
    selection = SelectionConfig(rule="budget", options=options)
    with EdgeAgent(make_config(cloud, selection=selection)) as agent:
        for seed in (1, 2):  # another burst may begin 2 x 8 samples after the first
            agent.predict(scenes(8, seed))
        cloud.publish(update_for(bundle, key, 1, scenes(96, 0)))
        assert agent.wait_for_version(1, 20)
        assert not agent.predict(scenes(8, 3)).guarded
        assert not told
        guarded = [agent.predict(scenes(4, seed, dark=True)) for seed in (4, 5, 6, 7)]
        assert all(prediction.guarded for prediction in guarded)
        assert len(told) == 1
        # 8 x 0.5 + 16 x 0.25 samples' worth by then, and 8 x 0.5 + 8 x 0.25 after the change.
        status = agent.status()
        assert status.selection["tokens"] + status.selected == 4 + 4 + 4 + 2


def test_it_can_be_switched_off(
    make_config: Make, cloud: Cloud, bundle: Bundle, key: Ed25519PrivateKey
) -> None:
    with EdgeAgent(make_config(cloud, guard=GuardConfig(limit=0))) as agent:
        cloud.publish(update_for(bundle, key, 1, scenes(96, 0)))
        assert agent.wait_for_version(1, 20)
        assert agent.predict(scenes(8, 1, dark=True)).version == 1
    with pytest.raises(ValueError, match="limit"):
        GuardConfig(limit=-1)


def test_toml_knows_the_section(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text('bundle = "b"\nstate = "s"\n[guard]\nlimit = 50\n')
    assert EdgeConfig.load(path).guard.limit == 50
    path.write_text('bundle = "b"\nstate = "s"\n[guard]\nlimits = 50\n')
    with pytest.raises(ConfigError, match="limits"):
        EdgeConfig.load(path)


def counted_statistics(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many inputs each description of inputs on the device was of, from now on."""
    counts: list[int] = []

    def counting(batch: np.ndarray) -> np.ndarray:
        counts.append(len(batch))
        return input_statistics(batch)

    monkeypatch.setattr("cema.edge.guard.input_statistics", counting)
    return counts


def test_inputs_are_described_once_and_only_for_a_version_with_a_domain(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Active(Runtime(bundle))
    guard = Guard(source, 36.0)
    counts = counted_statistics(monkeypatch)
    for seed in range(20):
        choose(guard, source, PREPROCESSING(scenes(10, seed)))
    assert counts == []
    installed = Active(source.runtime, 1, None, domain(scenes(96, 0)))
    choose(guard, installed, PREPROCESSING(scenes(8, 1)))
    assert sorted(counts) == [8, *7 * [10]], "of what came in before, the latest 64 or a few more"
    counts.clear()
    for seed in range(3):
        choose(guard, installed, PREPROCESSING(scenes(8, seed)))
    assert counts == [8, 8, 8]


def test_what_came_in_before_a_version_with_a_domain_counts(bundle: Bundle) -> None:
    source = Active(Runtime(bundle))
    installed = Active(source.runtime, 1, None, domain(scenes(96, 0)))
    for dark in (False, True):
        guard = Guard(source, 36.0)
        for seed in range(12):
            choose(guard, source, PREPROCESSING(scenes(8, seed, dark=dark)))
        chosen = choose(guard, installed, PREPROCESSING(scenes(1, 50)))
        assert chosen is (source if dark else installed)


def test_of_large_inputs_the_statistics_wait(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Active(Runtime(bundle))
    guard = Guard(source, 36.0)
    counts = counted_statistics(monkeypatch)
    large = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    choose(guard, source, large)
    choose(guard, source, large[:0])
    assert counts == [3]
    made_for = Domain.of(input_statistics(np.random.default_rng(1).normal(size=(40, 3, 64, 64)).astype("f4")))
    choose(guard, Active(source.runtime, 1, None, made_for), large)
    assert counts == [3, 3]

"""A device that is killed while it installs an update with statistics, or folds its own, starts again and predicts."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_support import PREPROCESSING, Cloud, Update, images, make_update, norm_state, weights
from observing_bundle import observing_bundle, some_statistics
from statistics_reference import Blending, convolve

from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig, GuardConfig
from cema.formats.bundle import Bundle
from cema.formats.payload import Payload, decode_payload, encode_payload, round_norm_state
from cema.ondevice.own_statistics import StatisticsConfig
from cema.ondevice.window import Blend, StatisticsWindow

Make = Callable[..., EdgeConfig]
OWN = StatisticsConfig(prior=4.0, source_share=0.25, samples=24, read=8, every=10_000)

# An agent that is killed where it calls a function for the n-th time: before the call, or after it.
KILLED = """
import os, signal, sys
from importlib import import_module
from pathlib import Path
import msgspec
import numpy as np
from cema.edge.config import EdgeConfig
config, pixels, where, number, when = sys.argv[1:]
module, _, path = where.partition(":")
owner = import_module(module)
*names, name = path.split(".")
for part in names:
    owner = getattr(owner, part)
call, left = getattr(owner, name), int(number)

def killing(*args, **named):
    global left
    left -= 1
    if left == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = call(*args, **named)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, killing)
from cema.edge.agent import EdgeAgent
with EdgeAgent(msgspec.json.decode(config, type=EdgeConfig)) as agent:
    for _ in range(3):
        agent.predict(np.load(pixels))
    agent.wait_for_version(3, 30)
    for _ in range(1000):
        agent.predict(np.load(pixels))
        agent._wait(lambda: agent._own.folded, 0.02)
raise SystemExit("it was not killed")
"""


@pytest.fixture(scope="session")
def observing(tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey) -> Bundle:
    return observing_bundle(tmp_path_factory.mktemp("observing") / "bundle", key)


@dataclass
class Case:
    """A device's settings, a cloud, and an update with the statistics that it was learned with."""

    config: EdgeConfig
    cloud: Cloud
    update: Update
    pixels: Path

    @property
    def payload(self) -> Payload:
        return decode_payload(self.update.payload)

    def killed(self, where: str, number: int, when: str) -> None:
        """Run an agent until it is killed there."""
        np.save(self.pixels, images(8, seed=1))
        text = msgspec.json.encode(self.config).decode()
        done = subprocess.run(
            [sys.executable, "-c", KILLED, text, str(self.pixels), where, str(number), when],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def case(make_config: Make, observing: Bundle, cloud: Cloud, key: Ed25519PrivateKey, tmp_path: Path) -> Case:
    settings: dict[str, Any] = {"statistics": OWN, "guard": GuardConfig(change_limit=0.0)}
    config = msgspec.structs.replace(make_config(cloud, **settings), bundle=str(observing.path))
    state = round_norm_state(norm_state(4, spread=0.4))
    source = observing.statistics()
    assert source is not None
    golden = logits(observing, state, Blend(source, 0.0), observing.golden_images).astype(np.float32)
    payload = encode_payload(state, golden, unfolded=True, statistics=some_statistics(7))
    update = make_update(observing, key, 3, payload=payload)
    return Case(config, cloud, update, tmp_path / "pixels.npy")


def logits(bundle: Bundle, affine: dict[str, np.ndarray], blend: Blend, pixels: np.ndarray) -> np.ndarray:
    """The small model's in float64, under a blend with the statistics of the images."""
    norm = Blending(affine, bundle.manifest.statistics, *blend)
    w, x = weights(), PREPROCESSING(pixels).astype(np.float64)
    for i in range(2):
        x = np.maximum(norm(f"bn{i}", convolve(x, w[f"w{i}"])), 0)
    result: np.ndarray = 4 * x.mean((2, 3)) @ w["fc"].astype(np.float64).T
    return result


def serves(agent: EdgeAgent, payload: Payload | None, pixels: np.ndarray) -> None:
    """Check that first images are answered as the update, or the source model, answers them."""
    bundle = agent.bundle
    source, affine = bundle.statistics(), bundle.affine_state()
    assert source is not None
    window = StatisticsWindow(source, weight=OWN.prior, size=OWN.samples, share=OWN.source_share)
    if payload is not None:
        assert payload.statistics is not None
        affine = payload.norm_state
        window.begin_at(payload.statistics)
    expected = logits(bundle, affine, window.blend(len(pixels)), pixels)
    prediction = agent.predict(pixels)
    np.testing.assert_allclose(prediction.logits, expected, rtol=1e-3, atol=1e-3)
    assert prediction.version == (0 if payload is None else 3)


# What `StateFolder.save_update` does, step by step: the first file is the payload, the second says that it serves.
@pytest.mark.parametrize(
    ("point", "remembered"),
    [
        (("cema.edge.updater:verify_payload", 1, "after"), False),
        (("cema.edge.own_model:OwnModel.check", 2, "after"), False),
        (("os:replace", 1, "before"), False),
        (("os:replace", 1, "after"), False),
        (("os:replace", 2, "before"), False),
        (("os:replace", 2, "after"), True),
        (("cema.edge.state:StateFolder.save_update", 1, "after"), True),
        (("cema.edge.agent:EdgeAgent._activate", 1, "after"), True),
    ],
)
def test_killed_while_an_update_is_installed(
    case: Case, point: tuple[str, int, str], remembered: bool
) -> None:
    case.cloud.publish(case.update)
    case.killed(*point)
    with EdgeAgent(msgspec.structs.replace(case.config, cloud=None)) as agent:
        serves(agent, case.payload if remembered else None, images(8, seed=2))
        assert agent.status().last_error is None
        files = Path(case.config.state).iterdir()
        left = {file.name for file in files if file.suffix in {".tmp", ".bin"}}
        assert left <= {f"update-{case.update.manifest.payload}.bin"}, "what was half written is gone"
    # With its cloud it comes to the same in the end.
    with EdgeAgent(case.config) as agent:
        assert agent.wait_for_version(3, 20)
        serves(agent, case.payload, images(8, seed=2))
        assert agent.status().rejected_updates == {}


@pytest.mark.parametrize(
    ("point", "updated"),
    [
        (("cema.edge.own_model:Runtime", 1, "before"), False),
        (("cema.edge.own_model:Runtime", 1, "after"), False),
        (("cema.edge.own_model:OwnModel._fold", 1, "after"), False),
        (("cema.edge.own_model:Runtime", 1, "after"), True),
        (("cema.edge.own_model:OwnModel._fold", 2, "after"), True),
    ],
)
def test_killed_while_statistics_are_folded(case: Case, point: tuple[str, int, str], updated: bool) -> None:
    if updated:
        case.cloud.publish(case.update)
    case.killed(*point)
    with EdgeAgent(case.config) as agent:
        assert not updated or agent.wait_for_version(3, 20)
        pixels = images(8, seed=2)
        serves(agent, case.payload if updated else None, pixels)
        for seed in range(3, 6):
            agent.predict(images(8, seed=seed))
        assert agent._wait(lambda: agent._own is not None and agent._own.folded, 20)
        assert np.isfinite(agent.predict(pixels).logits).all()
        assert agent.status().last_error is None

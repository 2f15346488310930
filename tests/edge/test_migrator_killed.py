"""A device that is killed while it comes to another base model starts again with one of the two, and comes to it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_migration import make_other_bundle, offer, predicted_by
from edge_support import Cloud, images, make_update, norm_state, reference

from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig
from cema.edge.retry import Backoff
from cema.formats.bundle import Bundle
from cema.formats.payload import round_norm_state

Make = Callable[..., EdgeConfig]
PIXELS = images(4, seed=3)

# An agent that is killed where its process calls a function for the n-th time: before the call, or after it.
KILLED = """
import os, signal, sys
from importlib import import_module
import msgspec
import numpy as np
from cema.edge import migrator
from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig
config, where, number, when, base = sys.argv[1:]
migrator._PIECE = 2000
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

with EdgeAgent(msgspec.json.decode(config, type=EdgeConfig)) as agent:
    assert agent.wait_for_version(3, 30)
    setattr(owner, name, killing)
    print("begin", flush=True)
    agent._wait(lambda: agent.bundle.manifest.base == base, 60)
    agent._wait(lambda: False, 1)
raise SystemExit("it was not killed")
"""
BUNDLES = "cema.edge.fetched_bundles"
PLACES = [
    (f"{BUNDLES}:FetchedBundles.add", 1, "before"),
    (f"{BUNDLES}:FetchedBundles.add", 3, "after"),
    (f"{BUNDLES}:os.fsync", 1, "before"),
    (f"{BUNDLES}:os.replace", 1, "before"),
    (f"{BUNDLES}:os.replace", 4, "after"),
    (f"{BUNDLES}:sync_folder", 4, "before"),
    (f"{BUNDLES}:os.rename", 1, "before"),
    (f"{BUNDLES}:os.rename", 1, "after"),
    (f"{BUNDLES}:write_atomic", 1, "before"),
    (f"{BUNDLES}:write_atomic", 1, "after"),
    ("cema.edge.migrator:Migrator._make", 1, "before"),
    ("cema.edge.migrator:Migrator._hand_over", 1, "before"),
    ("cema.edge.state:StateFolder.put_update_aside", 1, "before"),
    ("cema.edge.state:StateFolder.put_update_aside", 1, "after"),
    ("cema.edge.updater:Updater._begin_with", 1, "before"),
    ("cema.edge.updater:Updater._begin_with", 1, "after"),
    (f"{BUNDLES}:FetchedBundles.clean", 2, "before"),
    (f"{BUNDLES}:FetchedBundles.clean", 2, "after"),
]


@pytest.mark.parametrize(
    "place", PLACES, ids=lambda place: f"{place[2]} {place[0].partition(':')[2]} {place[1]}"
)
def test_one_of_the_two_serves_after_a_kill(
    make_config: Make, cloud: Cloud, key: Ed25519PrivateKey, tmp_path: Path, place: tuple[str, int, str]
) -> None:
    where, number, when = place
    config = make_config(cloud)
    bundle, other = Bundle.load(Path(config.bundle)), make_other_bundle(tmp_path / "other", key)
    update = make_update(bundle, key, 3)
    cloud.publish(update)
    text = msgspec.json.encode(config).decode()
    command = [sys.executable, "-c", KILLED, text, where, str(number), when, other.manifest.base]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        cloud.updates[bundle.manifest.base] = update
        offer(cloud, other, key)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    with EdgeAgent(msgspec.structs.replace(config, cloud=None)) as agent:
        prediction = agent.predict(PIXELS)
        if prediction.base == bundle.manifest.base:
            state = round_norm_state(norm_state(3))
            assert prediction.version == 3
            np.testing.assert_allclose(prediction.logits, reference(state, PIXELS), rtol=1e-3, atol=1e-3)
        else:
            assert predicted_by(prediction, other, PIXELS)
    with EdgeAgent(config, backoff=Backoff(base=0.01, cap=0.05, slow=0.05)) as agent:
        assert agent._wait(lambda: agent.bundle.manifest.base == other.manifest.base, 30)
        assert predicted_by(agent.predict(PIXELS), other, PIXELS)
        assert agent._wait(lambda: agent.status().last_error is None, 20)

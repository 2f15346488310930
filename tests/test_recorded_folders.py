"""State folders of devices and data folders of clouds from an earlier version go on working."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from file_bytes import found_in
from recorded_folders import RECORDED, recorded

from cema.cloud.config import CloudConfig
from cema.cloud.store.data import DataFilter
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.worker.rounds import open_cohort
from cema.edge.agent import EdgeAgent
from cema.edge.config import EdgeConfig

__all__ = ["recorded"]

EXPECTED: dict[str, Any] = json.loads((RECORDED / "expected.json").read_text())
IMAGES = np.load(RECORDED / "images.npy")
# Another processor or version of the runtimes may round otherwise.
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


def test_a_device_goes_on(recorded: Path) -> None:
    expected = EXPECTED["device"]
    config = msgspec.structs.replace(EdgeConfig.load(recorded / "edge.toml"), cloud=None)
    with EdgeAgent(config) as agent:
        status = msgspec.to_builtins(agent.status())
        known = expected["status"]
        known["drifted"] = known.pop("away")
        assert {name: status[name] for name in known} == known
        prediction = agent.predict(IMAGES)
    np.testing.assert_allclose(prediction.logits, expected["predict"]["logits"], **CLOSE)
    assert prediction.labels.tolist() == expected["predict"]["labels"]
    assert prediction.version == expected["version"]


def test_a_cloud_goes_on(recorded: Path) -> None:
    expected = EXPECTED["cloud"]
    config = CloudConfig.load(recorded / "cloud.toml")
    store = config.open_store()
    device = store.devices(["north"]).authenticate((recorded / "camera.token").read_text().strip())
    assert device is not None
    assert (device.name, device.role, device.cohort) == ("camera", "device", "north")
    status = store.status("north")
    for name in (
        "cohort",
        "base",
        "cursor",
        "samples",
        "last_sample",
        "backlog",
        "version",
        "update",
        "counts",
    ):
        assert status[name] == expected["status"][name], name
    latest = store.latest_update("north")
    assert latest is not None
    assert hashlib.sha256(latest.envelope).hexdigest() == expected["envelope_sha256"]
    worker = open_cohort(store, config, config.cohort[0])
    assert (worker.cursor, worker.epoch) == (120, 2)
    assert worker.progress.rejected_in_a_row == expected["worker"]["held_back"]
    window = [msgspec.to_builtins(batch) for batch in worker.progress.window.batches]
    assert window == expected["worker"]["evidence_batches"]
    store.close()


def test_a_clouds_samples_can_be_deleted(recorded: Path) -> None:
    """The file is written anew, and what the old checkpoint keeps of them without their names goes too."""
    config = CloudConfig.load(recorded / "cloud.toml")
    store = config.open_store()
    assert isinstance(store, SqliteStore)
    images = [sample.image for sample in store.fresh("north", after=0, limit=1000)]
    assert len(images) == 123
    receipt = store.delete_data("north", DataFilter(device="camera"), actor="os:ann", now=1.0)
    assert receipt.samples == 123
    worker = open_cohort(store, config, config.cohort[0])
    learner: Any = worker.learner
    assert learner.changes.rows() is not None
    assert worker.run_once()
    assert (learner.replayable, learner.changes.rows()) == (0, None)
    assert store.receipts("north")[0].state == "done"
    assert found_in(recorded / "cloud", images) == set()
    store.close()


def test_a_learner_continues_exactly_where_its_checkpoint_was_taken(recorded: Path) -> None:
    expected = EXPECTED["cloud"]["adapter"]
    config = CloudConfig.load(recorded / "cloud.toml")
    store = config.open_store()
    worker = open_cohort(store, config, config.cohort[0])
    learner: Any = worker.learner
    assert (learner.steps, learner.since_change) == (expected["steps"], expected["since_change"])
    assert learner.counters == expected["counters"]
    assert list(learner.replay_buffer.items()) == expected["replay"]
    assert learner.changes.changes == expected["changes"]
    np.testing.assert_allclose(learner.domain().mean, expected["environment_mean"], **CLOSE)
    for key, value in learner.norm_state().items():
        np.testing.assert_allclose(value, expected["norm_state"][key], **CLOSE)
    np.testing.assert_allclose(learner.edge_logits(IMAGES), expected["edge_logits"], **CLOSE)
    # The same samples are drawn next, and the same is learned from them.
    continued = EXPECTED["cloud"]["continued"]
    samples, batch = worker._readable(store.fresh("north", after=worker.cursor, limit=3))
    seqs = [sample.seq for sample in samples]
    assert seqs == continued["learned_seqs"]
    for report, known in (
        (learner.replay(), continued["replay_step"]),
        (learner.learn(seqs, batch), continued["learn"]),
    ):
        made = asdict(report)
        made |= made.pop("losses")
        # Since then a step reads statistics and targets in the foundation model's training pass: not to the digit.
        for name, value in known.items():
            assert made.get(name) == (None if value is None else pytest.approx(value, rel=0.05)), name
    np.testing.assert_allclose(learner.edge_logits(IMAGES), continued["edge_logits"], rtol=0.02, atol=0.05)
    np.testing.assert_allclose(
        learner.foundation_logits(IMAGES), continued["foundation_logits"], rtol=0.02, atol=0.05
    )
    store.close()

"""`cema update trace`: from the store of a cloud, running or not."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cloud_toml import CLOUD
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cloud.config import CloudConfig
from cema.cloud.store.base import PublishedUpdate
from cema.cloud.store.traces import Fetch, traces_of
from cema.errors import CemaError, ConfigError

STEP = {
    "begin": 1000.0,
    "seconds": 0.25,
    "samples": 32,
    "devices": 2,
    "captured": [900.0, 1e300],  # a device's clock
    "received": [990.0, 999.0],
}
TRACE: dict[str, Any] = {
    "published_at": 1002.5,
    "since": 800.0,
    "evidence_at": 1002.0,
    "samples": 32,
    "steps": [STEP],
    "steps_left_out": 0,
    "replays": 3,
    "outcomes": {"waiting": 1, "published": 1},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(CLOUD)
    payload = b"payload"
    with closing(CloudConfig.load(path).open_store()) as store:
        store.open_cohort("yard", base="b")
        for version, trace in ((3, None), (4, TRACE)):
            update = PublishedUpdate(
                version, hashlib.sha256(payload).hexdigest(), b"{}", payload, 1.0, 2.0, trace
            )
            state = store.claim("yard")
            store.commit_step("yard", 0, b"", update, epoch=state.epoch, now=1.0)
        traces_of(store).note_fetches([Fetch("yard", 4, "camera", 1003.0)])
    return path


def trace(*arguments: str, config: Path) -> str:
    done = CliRunner().invoke(
        app, ["update", "trace", *arguments, "--config", str(config)], env={"COLUMNS": "160"}
    )
    if isinstance(done.exception, CemaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_trace_is_printed_for_people(config: Path) -> None:
    printed = trace("4", config=config)
    assert "Version 4 of yard" in printed
    assert "1970-01-01 00:16:42.500" in printed  # published
    assert "+0.500" in printed  # after the gate had its samples
    assert "1 waiting, 1 published" in printed
    assert "camera" in printed
    assert "devices' clocks, which may be wrong" in printed


def test_a_trace_is_printed_for_machines(config: Path) -> None:
    devices = {"camera": {"fetched_at": 1003.0, "received_at": None, "captured_at": None}}
    expected = {"cohort": "yard", "version": 4, **TRACE, "devices": devices}
    assert json.loads(trace("4", "--json", "--cohort", "yard", config=config)) == expected


def test_a_version_without_a_trace_is_an_error_that_names_those_with_one(config: Path) -> None:
    with pytest.raises(ConfigError, match="no trace of version 3 of cohort 'yard'; these are known: 4 "):
        trace("3", config=config)
    with pytest.raises(ConfigError, match="expected one of yard, got 'north'"):
        trace("4", "--cohort", "north", config=config)

"""`cema check`: the true accuracy of stored versions, as devices would have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloud_tiny_models import quadrants
from typer.testing import CliRunner
from worker_cloud import Cloud, cloud, drain

from cema.cli.app import app
from cema.cloud.signing.trust import change_keys
from cema.errors import CemaError, ConfigError
from cema.formats.bundle import Bundle
from cema.formats.keys import generate_key, load_private_key

__all__ = ["cloud"]


@pytest.fixture
def labels(tmp_path: Path) -> str:
    images, truth = quadrants(300, 77, drift=True)
    np.savez(tmp_path / "labelled.npz", x=np.stack(images), y=truth)
    return str(tmp_path / "labelled.npz")


def check(cloud: Cloud, labels: str, *arguments: str) -> str:
    options = ["--labels", labels, "--config", str(cloud.folder / "cloud.toml"), *arguments]
    done = CliRunner().invoke(app, ["check", *options], env={"COLUMNS": "120"})
    if isinstance(done.exception, CemaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def adapted(cloud: Cloud) -> None:
    cloud.publish(every_steps=1, min_seconds=0)
    worker = cloud.open()
    cloud.send(320)
    drain(worker)


def test_labels_show_that_versions_are_better_than_the_source(cloud: Cloud, labels: str) -> None:
    adapted(cloud)
    found: dict[str, Any] = json.loads(check(cloud, labels, "--json"))
    rows = {row["version"]: row for row in found["versions"]}
    assert list(rows) == [0, *(v.version for v in cloud.store.versions("north"))]
    assert {row["accuracy"]["samples"] for row in rows.values()} == {300}
    newest = rows[max(rows)]["accuracy"]
    assert newest["low"] > rows[0]["accuracy"]["share"]
    # One version alone, on fewer images, for people.
    printed = check(cloud, labels, "--version", str(max(rows)), "--samples", "50")
    shown = [line.replace("│", " ").split()[0] for line in printed.splitlines() if "50" in line.split()]
    assert (len(shown), "source" in printed) == (2, True)


def test_a_device_is_taken_as_it_is_configured(cloud: Cloud, labels: str) -> None:
    adapted(cloud)
    (cloud.folder / "edge.toml").write_text(
        'bundle = "bundle"\nstate = "state"\n[statistics]\nsource = "update"\n[guard]\nlimit = 0\n'
    )
    own = json.loads(check(cloud, labels, "--json"))["versions"]
    others = json.loads(check(cloud, labels, "--json", "--device", str(cloud.folder / "edge.toml")))[
        "versions"
    ]
    assert [row["accuracy"] for row in own] != [row["accuracy"] for row in others]
    assert {row["guarded"] for row in others} == {0}
    assert not (cloud.folder / "state").exists(), "the device's own state is left alone"


def test_versions_of_a_key_that_devices_learned_later_are_measured_too(cloud: Cloud, labels: str) -> None:
    bundle = Bundle.load(cloud.folder / "bundle")
    old, new = cloud.folder / "signing.key", cloud.folder / "second.key"
    key = generate_key(new)
    cloud.store.open_cohort("north", base=bundle.manifest.base)
    change_keys(
        cloud.store,
        "north",
        bundle,
        [load_private_key(old)],
        trust=[key.public_key()],
        now=cloud.now,
        days=1e4,
    )
    path = cloud.folder / "cloud.toml"
    path.write_text(path.read_text().replace("signing.key", "second.key"))
    cloud.config = type(cloud.config).load(path)
    cloud.worker_config(max_backlog=1000)
    adapted(cloud)
    assert len(json.loads(check(cloud, labels, "--json"))["versions"]) > 1


def test_what_cannot_be_measured_is_refused(cloud: Cloud, labels: str, tmp_path: Path) -> None:
    adapted(cloud)
    with pytest.raises(ConfigError, match=r"--version: expected one that is kept .*, got 99"):
        check(cloud, labels, "--version", "99")
    with pytest.raises(ConfigError, match="expected one of north, got 'south'"):
        check(cloud, labels, "--cohort", "south")
    with pytest.raises(CemaError):
        check(cloud, str(tmp_path / "nothing"))

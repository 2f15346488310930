"""`cema cloud versions`, `pause` and the like: what is printed, and what is refused."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from cloud_toml import CLOUD
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cloud.config import CloudConfig
from cema.cloud.store.agreements import AgreementCount
from cema.cloud.store.control import ActRefused
from cema.cloud.store.sqlite import SqliteStore
from cema.cloud.store.traces import Fetch
from cema.errors import CemaError
from cema.testing.store_data import numbered_update

TRACE = {"kind": "learned", "samples": 64, "gate": {"outcome": "published", "count": 64, "adapted": 0.875}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(CLOUD)
    with closing(CloudConfig.load(path).open_store()) as store:
        assert isinstance(store, SqliteStore)
        store.open_cohort("yard", base="b")
        epoch = store.claim("yard").epoch
        for version in (1, 2):
            update = numbered_update(version)
            object.__setattr__(update, "trace", TRACE if version == 2 else None)
            counts = [AgreementCount(version, "running", 100, 90), AgreementCount(version, "source", 100, 50)]
            store.commit_step("yard", 0, b"", update, epoch=epoch, now=60.0, measured=counts)
        store.note_fetches([Fetch("yard", 2, "camera", 61.0)])
    return path


def cloud(*arguments: str, config: Path) -> str:
    done = CliRunner().invoke(app, ["cloud", *arguments, "--config", str(config)], env={"COLUMNS": "180"})
    if isinstance(done.exception, CemaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_versions_are_listed_with_how_they_came_about_and_how_they_do(config: Path) -> None:
    printed = cloud("versions", config=config)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]
    first, second = numbered_update(1), numbered_update(2)
    shares = ["90.0 ± 3.0", "50.0 ± 5.0"]
    assert ["1", "1970-01-01 00:00:01", "", "", "", *shares, "0", first.digest[:12]] in rows
    assert [
        "2",
        "1970-01-01 00:00:02",
        "learned",
        "64",
        "87.5",
        *shares,
        "1",
        second.digest[:12],
    ] in rows
    assert "Publishing is on." in printed


def test_machines_get_everything_that_is_known_of_a_version(config: Path) -> None:
    found = json.loads(cloud("versions", "--json", config=config))
    assert (found["cohort"], found["publishing"]) == ("yard", "on")
    last = found["versions"][-1]
    assert last["agreement"]["running"]["share"] == 0.9
    assert last["trace"]["gate"] == TRACE["gate"]
    assert last["payload_bytes"] == len(numbered_update(2).payload)


def test_an_act_that_needs_the_worker_says_that_it_waits(config: Path) -> None:
    printed = cloud("rollback", "--to", "1", "--no-wait", config=config)
    assert "rollback of cohort yard: act 1, waiting" in printed
    assert "Devices get the content of version 1." in printed
    assert "or once the cloud runs" in printed
    assert "resume of cohort yard: act 2, done" in cloud("resume", config=config)
    acts = json.loads(cloud("acts", "--json", config=config))
    assert [(act["act"]["type"], act["state"]) for act in acts] == [
        ("resume", "done"),
        ("rollback", "waiting"),
    ]
    assert json.loads(cloud("acts", "--json", "--limit", "1", config=config)) == acts[:1]


def test_a_version_that_is_not_kept_is_refused(config: Path) -> None:
    with pytest.raises(ActRefused, match=r"keeps no version 7; the newest that are kept: 1, 2 "):
        cloud("pin", "--to", "7", config=config)
    assert json.loads(cloud("acts", "--json", config=config)) == []


def test_the_share_of_canary_devices_is_set_where_there_are_any(config: Path) -> None:
    with pytest.raises(ActRefused, match="by the mode 'immediate'; set mode = \"canary\""):
        cloud("canary", "--first", "0.2", config=config)
    assert json.loads(cloud("acts", "--json", config=config)) == []
    text = config.read_text().replace("[[cohort]]", '[[cohort]]\nrollout = {mode = "canary"}', 1)
    config.write_text(text)
    printed = cloud("canary", "--first", "0.25", config=config)
    assert "canary of cohort yard: act 1, done" in printed
    assert "From the next version on, 0.25 of the devices try it first." in printed
    assert "the configured share of the devices" in cloud("canary", config=config)
    assert "canary 0.25" in cloud("acts", config=config)
    for wrong in ("0", "-1", "2"):
        done = CliRunner().invoke(app, ["cloud", "canary", "--first", wrong, "--config", str(config)])
        assert done.exit_code != 0

"""`cema cloud status`: from the store of a cloud, running or not."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest
from cloud_toml import CLOUD
from typer.testing import CliRunner

from cema._util.proportion import Weighted
from cema.cli.app import app
from cema.cloud.config import CloudConfig
from cema.cloud.store.agreements import AgreementCount
from cema.cloud.store.draws import RandomCount
from cema.cloud.store.sqlite import SqliteStore
from cema.errors import CemaError, ConfigError
from cema.testing.store_data import numbered_sample, numbered_update

NORTH = '\n[[cohort]]\nname = "north"\nbundle = "b"\nmodel = "m"\nfoundation = "f"\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(CLOUD + NORTH)
    with closing(CloudConfig.load(path).open_store()) as store:
        assert isinstance(store, SqliteStore)
        store.open_cohort("yard", base="b")
        store.put("yard", [numbered_sample(i) for i in range(3)], device="d", now=1.0, max_backlog=10)
        store.commit_step(
            "yard",
            2,
            b"",
            numbered_update(4),
            epoch=store.claim("yard").epoch,
            now=time.time(),
            report={"ready": True, "error": "RuntimeError: no memory"},
            measured=[AgreementCount(4, "running", 400, 360), AgreementCount(4, "source", 400, 200)],
        )
    return path


def status(*arguments: str, config: Path) -> str:
    done = CliRunner().invoke(
        app, ["cloud", "status", *arguments, "--config", str(config)], env={"COLUMNS": "160"}
    )
    if isinstance(done.exception, CemaError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_people_are_told_whether_adaptation_helps(config: Path) -> None:
    printed = status(config=config)
    rows = [line.replace("│", " ").split() for line in printed.splitlines()]
    assert ["yard", "running", "90.0", "1.5", "400"] in rows
    assert ["yard", "source", "50.0", "2.5", "400"] in rows
    assert "agreement of the newest version minus that of the source model: +40.0 points." in printed
    assert "the last error of the worker: RuntimeError: no memory" in printed
    assert "never started" in printed  # the other cohort


def test_people_are_told_the_agreement_on_all_that_devices_see(config: Path) -> None:
    assert "agreement on all" not in status(config=config)
    with closing(CloudConfig.load(config).open_store()) as store:
        assert isinstance(store, SqliteStore)
        sums = Weighted.of([(0.01, i % 10 != 0) for i in range(400)])
        store.measured_draws("yard", [], [RandomCount(4, "device", sums)], now=time.time())
    printed = status(config=config)
    rows = [line.replace("│", " ").split() for line in printed.splitlines()]
    assert ["yard", "device", "90.0", "86.7", "to", "92.6", "400"] in rows
    (yard,) = json.loads(status("--json", "--cohort", "yard", config=config))["cohorts"]
    assert yard["random_agreement"]["device"]["samples"] == 400


def test_a_small_difference_is_told_as_chance(config: Path) -> None:
    with closing(CloudConfig.load(config).open_store()) as store:
        assert isinstance(store, SqliteStore)
        store.commit_step(
            "yard",
            2,
            b"",
            epoch=store.claim("yard").epoch,
            now=time.time() + 60,
            measured=[AgreementCount(4, "running", 5000, 2550), AgreementCount(4, "source", 5000, 2550)],
        )
    assert "points, which may be chance." in status(config=config)


def test_machines_get_what_the_api_tells(config: Path) -> None:
    found = json.loads(status("--json", "--cohort", "yard", config=config))
    (yard,) = found["cohorts"]
    assert (yard["cohort"], yard["version"], yard["samples"], yard["backlog"]) == ("yard", 4, 3, 1)
    assert yard["agreement"]["running"]["share"] == 0.9
    assert set(yard["agreement"]["source"]) == {"samples", "share", "standard_error", "low", "high"}
    assert found["store_bytes"] > found["used_bytes"] > 0
    north = json.loads(status("--json", config=config))["cohorts"][1]
    assert (north["cohort"], "no cohort 'north'" in north["error"]) == ("north", True)


def test_a_cohort_that_is_not_there_is_refused(config: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of yard, north, got 'south'"):
        status("--cohort", "south", config=config)


def test_watching_goes_on_until_it_is_stopped(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("cema.cli.cloud_status.time.sleep", sleep)
    lines = status("--watch", "--json", config=config).splitlines()
    assert [json.loads(line)["cohorts"][0]["version"] for line in lines] == [4, 4, 4]
    slept.clear()
    assert "+40.0 points" in status("--watch", config=config)

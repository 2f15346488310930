"""`cema cloud audit`: what was done at the command line."""

from __future__ import annotations

import getpass
import json
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from cloud_toml import CLOUD
from typer.testing import CliRunner

from cema.cli.actor import command_line_actor
from cema.cli.app import app
from cema.cloud.config import CloudConfig


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(CLOUD)
    with closing(CloudConfig.load(path).open_store()) as store:
        store.open_cohort("yard", base="b")
    return path


def cema(*arguments: str, config: Path) -> str:
    done = CliRunner().invoke(app, [*arguments, "--config", str(config)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_the_commands_leave_their_acts(config: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.db")
    token = cema("device", "add", "cam", "--cohort", "yard", config=config).strip()
    renewed = cema("device", "renew", "cam", config=config).strip()
    cema("cloud", "backup", "--out", out, config=config)
    cema("device", "revoke", "cam", config=config)
    printed = cema("cloud", "audit", "--json", config=config)
    acts = [json.loads(line) for line in printed.splitlines()]
    assert [(act["act"], act["subject"]) for act in acts] == [
        ("device.add", "cam"),
        ("device.renew", "cam"),
        ("store.backup", out),
        ("device.revoke", "cam"),
    ]
    assert {act["actor"] for act in acts} == {command_line_actor()}
    assert all(datetime.fromisoformat(act["time"]).tzinfo for act in acts)
    assert token not in printed
    assert renewed not in printed
    told = cema("cloud", "restore", out, "--replace", config=config)
    assert "tokens that are good again: cam" in told
    table = cema("cloud", "audit", config=config)
    assert "device.revoke" not in table  # the record, too, is that of the backup's moment
    assert "store.restore" in table
    assert "next_versions" in table
    assert len(cema("cloud", "audit", "--limit", "1", "--json", config=config).splitlines()) == 1


def test_the_actor_is_who_runs_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody-else")
    monkeypatch.setenv("USER", "somebody-else")
    assert getpass.getuser() == "somebody-else"
    assert command_line_actor().startswith("os:")
    assert "somebody-else" not in command_line_actor()

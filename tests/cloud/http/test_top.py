"""`cema top --url`: the same overview, from a cloud over HTTP."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cloud_client import Cloud
from typer.testing import CliRunner

from cema.cli.app import app
from cema.cli.top import _of_cloud
from cema.cloud.store.history import HistoryNote
from cema.errors import ConfigError


def test_a_cloud_tells_it_over_http(cloud: Cloud, tmp_path: Path) -> None:
    cloud.ready()
    cloud.store.note_history([HistoryNote("north", time.time(), {"agreement.running": (10, 9)})])
    (tmp_path / "token").write_text(cloud.operator + "\n")
    arguments = ["top", "--once", "--json", "--url", cloud.url, "--token-file", str(tmp_path / "token")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    north = next(one for one in json.loads(done.stdout)["cohorts"] if one["cohort"] == "north")
    assert (north["level"], north["devices"]["registered"]) == ("ok", 1)
    assert [share for share in north["trend"] if share is not None] == [0.9]


def test_who_may_not_is_told_why(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(cloud.token)
    with _of_cloud(cloud.url, tmp_path / "token") as read, pytest.raises(ConfigError, match="is a device"):
        read()


def test_what_was_known_stays_while_a_cloud_is_away(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(cloud.operator)
    with _of_cloud(cloud.url, tmp_path / "token") as read:
        before = read()
        cloud.engine.devices.revoke("ops")
        after = read()
    assert "revoked" in after.pop("error")
    assert after == before

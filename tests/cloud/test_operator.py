"""An operator's acts from the command line to the model that a device runs: real cloud, real agent, real commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cloud_process import PATIENCE, Server, cema, eventually
from operated_fleet import Fleet


@pytest.fixture
def fleet(factory: Path, tmp_path: Path) -> Iterator[Fleet]:
    shutil.copytree(factory, tmp_path / "f")
    fleet = Fleet(tmp_path / "f")
    yield fleet
    fleet.close()


def test_versions_are_rolled_back_pinned_stopped_and_go_on_while_the_device_predicts(fleet: Fleet) -> None:
    for _ in range(8):
        fleet.send(32)
    eventually(lambda: len(fleet.versions()) >= 3 and fleet.agent.status().version >= 3)
    paused = cema(fleet.config, "pause")
    assert (paused["act"], paused["state"]) == ({"type": "pause"}, "done")
    eventually(lambda: fleet.server.get("status").json()["backlog"] == 0)
    versions = fleet.versions()
    first, newest = versions[0], versions[-1]
    assert fleet.agent.wait_for_version(newest["version"], PATIENCE)

    pinned = cema(fleet.config, "pin", "--to", str(first["version"]))
    assert (pinned["state"], pinned["version"]) == ("done", newest["version"] + 1)
    assert fleet.agent.wait_for_version(pinned["version"], PATIENCE)
    assert fleet.agent.status().digest == first["digest"]
    fleet.send(64)
    eventually(lambda: fleet.server.get("status").json()["backlog"] == 0)
    assert fleet.versions()[-1]["version"] == pinned["version"]

    stopped = cema(fleet.config, "stop")
    assert fleet.agent.wait_for_version(stopped["version"], PATIENCE)
    source = fleet.bundle.affine_state()
    serving = fleet.agent._active
    assert serving.version == stopped["version"]
    assert serving.affine is not None
    for key, value in source.items():
        np.testing.assert_allclose(serving.affine[key], value, atol=2e-3)

    back = cema(fleet.config, "rollback", "--to", str(newest["version"]))
    assert fleet.agent.wait_for_version(back["version"], PATIENCE)
    assert fleet.agent.status().digest == newest["digest"]
    for _ in range(8):
        fleet.send(32)
    assert fleet.agent.wait_for_version(back["version"] + 1, PATIENCE), "it goes on after a rollback"

    acts = cema(fleet.config, "acts")
    assert [act["act"]["type"] for act in acts] == ["rollback", "stop", "pin", "pause"]
    assert {act["state"] for act in acts} == {"done"}
    assert fleet.failures == []
    assert fleet.predicted > 0
    assert fleet.agent.status().rejected_updates == {}


def test_an_act_on_a_cloud_that_does_not_run_is_done_once_it_does(fleet: Fleet) -> None:
    for _ in range(8):
        fleet.send(32)
    eventually(lambda: fleet.agent.status().version >= 1)
    fleet.server.close()  # killed
    waiting = cema(fleet.config, "stop", "--no-wait")
    assert (waiting["state"], waiting["version"]) == ("waiting", None)
    server = Server(fleet.config, fleet.token)
    try:
        eventually(lambda: cema(fleet.config, "acts")[0]["state"] == "done")
        version = cema(fleet.config, "acts")[0]["version"]
        assert server.get("status").json()["version"] == version
    finally:
        server.close()


def test_every_command_of_the_page_for_operators_does_what_it_says(fleet: Fleet) -> None:
    for _ in range(8):
        fleet.send(32)
    eventually(lambda: fleet.agent.status().version >= 3)
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    commands = [
        line.split()[1:]
        for block in page.split("```sh\n")[1:]
        for line in block.partition("```")[0].splitlines()
    ]
    assert len(commands) >= 17
    (listed,) = [block.partition("```")[0] for block in page.split("```csv\n")[1:]]
    (fleet.config.parent / "devices.csv").write_text(listed)
    printed: dict[str, str] = {}
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "cema", *command],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=fleet.config.parent,
            env={**os.environ, "COLUMNS": "160"},
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        printed.setdefault(command[1] if command[0] == "cloud" else command[0], done.stdout)
    assert "agreement of the newest version minus that of the source model" in printed["status"]
    assert "Devices get the content of version 2." in printed["rollback"]
    assert "Devices return to the source model" in printed["stop"]
    assert "all others with their next question" in printed["stop"]
    assert "100 devices" in printed["cost"]
    assert "trusted" in printed["keys"]
    assert (fleet.config.parent / "backup.cema").is_file()
    audit = printed["audit"]
    for act in ("cohort.stop", "device.add", "device.renew", "device.revoke", "device.move", "store.backup"):
        assert act in audit
    assert {path.name for path in (fleet.config.parent / "tokens").iterdir()} == {
        f"{line.partition(',')[0]}.token" for line in listed.splitlines()[1:]
    }
    rows = [line.replace("│", " ").split() for line in printed["acts"].splitlines()]
    done_acts = [
        [cell for cell in row if cell in {"rollback", "pin", "pause", "stop", "resume"}] for row in rows
    ]
    assert [cells[0] for cells in done_acts if cells] == [
        "resume",
        "pin",
        "resume",
        "stop",
        "resume",
        "pause",
        "pin",
        "rollback",
    ]


def test_a_device_that_is_quarantined_while_the_cloud_runs_teaches_nothing_until_it_is_released(
    fleet: Fleet,
) -> None:
    def device(act: str) -> None:
        command = [sys.executable, "-m", "cema", "device", act, "cam", "--config", str(fleet.config)]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)

    def counts(name: str) -> float:
        return float(fleet.server.get("status").json()["counts"].get(f"worker.{name}", 0.0))

    for _ in range(4):
        fleet.send(32)
    eventually(lambda: counts("fresh_steps") >= 2 and fleet.server.get("status").json()["backlog"] == 0)
    device("quarantine")
    fleet.send(32)  # the turn that had begun may still take some of these
    eventually(lambda: counts("left_out_samples") > 0)
    steps, left_out = counts("fresh_steps"), counts("left_out_samples")
    for _ in range(4):
        fleet.send(32)
    eventually(lambda: fleet.server.get("status").json()["backlog"] == 0)
    assert counts("fresh_steps") == steps
    assert counts("left_out_samples") >= left_out + 128
    assert fleet.agent.status().last_error is None, "it is served as before"
    device("release")
    fleet.send(64)
    eventually(lambda: counts("fresh_steps") > steps)

"""The units of systemd: right, tight, and about things that are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deployed_commands import check_options
from tools import tool

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = ("cema-cloud.service", "cema-edge.service")
# Of 10, by systemd's own reckoning.
MOST_EXPOSED = 2.0


def settings(name: str) -> list[tuple[str, str]]:
    """Return the settings of a unit."""
    return re.findall(r"^(\w+)=(.*)$", (FOLDER / name).read_text(), re.MULTILINE)


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit whose program is on this machine: only that is another one."""
    text = (FOLDER / request.param).read_text()
    assert "ExecStart=/opt/cema/bin/cema " in text
    path = tmp_path / request.param
    path.write_text(text.replace("/opt/cema/bin/cema ", f"{sys.executable} -m cema "))
    return path


def test_systemd_takes_it_without_a_word(unit: Path) -> None:
    command = [tool("systemd-analyze"), "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_little_exposed(unit: Path) -> None:
    limit = str(round(10 * MOST_EXPOSED))
    command = [
        tool("systemd-analyze"),
        "security",
        "--offline=true",
        "--no-pager",
        f"--threshold={limit}",
        str(unit),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    (level,) = re.findall(r"Overall exposure level for .*: ([\d.]+) ", done.stdout)
    assert float(level) <= MOST_EXPOSED, done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("name", UNITS)
def test_it_runs_a_command_with_these_options(name: str) -> None:
    command = dict(settings(name))["ExecStart"].split()[1:]
    check_options(command)


@pytest.mark.parametrize("name", UNITS)
def test_paths_that_its_comments_give_for_the_configuration_are_its_own(name: str) -> None:
    text, found = (FOLDER / name).read_text(), dict(settings(name))
    states = [f"/var/lib/{folder}" for folder in found["StateDirectory"].split()]
    credential = found["LoadCredential"].partition(":")[0]
    told = re.findall(r'"(/[^"]+)"', text)
    assert f"/run/credentials/{name}/{credential}" in told
    for path in set(told) - {f"/run/credentials/{name}/{credential}"}:
        assert any(path == state or path.startswith(f"{state}/") for state in states), path
    assert (
        found["User"] == re.findall(r"^u (\S+)", (FOLDER / "cema.sysusers.conf").read_text(), re.MULTILINE)[0]
    )

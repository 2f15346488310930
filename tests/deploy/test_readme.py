"""The page of the kit: its links lead somewhere, its commands are run, and its files of units are those."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import yaml
from cloud_support import write_config
from tools import tool

from cema.edge.config import CloudLink

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "deploy" / "README.md").read_text()
PROGRAMS = {"caddy", "promtool", "systemd-analyze"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE):
        assert (ROOT / "deploy" / target).exists(), target
    for page, heading in re.findall(r"\]\(\.\./([^)#]+)#([^)]*)\)", PAGE):
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
        assert heading in {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}, (
            heading
        )


def test_every_command_that_needs_no_machine_of_its_own_does_what_it_says(tmp_path: Path) -> None:
    write_config(tmp_path)
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 8
    for first, *rest in commands:
        program = {"cema": [sys.executable, "-m", "cema"], "python3": [sys.executable]}.get(first)
        if program is None:
            assert first in PROGRAMS
            program = [tool(first)]
        done = subprocess.run(
            [*program, *rest], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{first} {rest}: {done.stdout}{done.stderr}"
        if first == "systemd-analyze":
            unit = Path(rest[-1]).name
            (level,) = re.findall(r"Overall exposure level for .*: ([\d.]+) ", done.stdout)
            assert level in PAGE, f"{unit} has {level}; say so"
    assert (tmp_path / "camera-1.token").is_file()
    assert (tmp_path / "prometheus.token").is_file()


def test_files_that_are_copied_are_in_the_kit() -> None:
    named = {path for block in blocks("bash") for path in re.findall(r"\bdeploy/[\w./-]+", block)}
    assert len(named) >= 7
    for path in named:
        assert (ROOT / path).is_file(), path


def test_installed_paths_are_those_that_the_units_and_prometheus_read() -> None:
    installed = "\n".join(blocks("bash"))
    for unit in ("cema-cloud.service", "cema-edge.service"):
        text = (ROOT / "deploy" / "systemd" / unit).read_text()
        for path in re.findall(r"--config (\S+)|LoadCredential=\w[\w.]*:(\S+)", text):
            assert f" {''.join(path)}\n" in installed, path
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert f" {job['authorization']['credentials_file']}\n" in installed


def test_the_devices_configuration_is_one() -> None:
    (text,) = blocks("toml")
    link = msgspec.convert(tomllib.loads(text)["cloud"], CloudLink)
    assert f"install -D -m 644 root.crt {link.ca_file}\n" in "\n".join(blocks("bash"))
    assert link.token_file is not None
    unit = (ROOT / "deploy" / "systemd" / "cema-edge.service").read_text()
    assert f'token_file = "{link.token_file}"' in unit

"""The README's walk through a model of one's own is done as it stands, block by block, from an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).parents[1] / "README.md"


def section(heading: str) -> str:
    """Return what stands below a heading of the second level."""
    return README.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the fenced blocks, each as its language and its content."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_nothing_was_left_to_fill_in() -> None:
    assert "PLACEHOLDER" not in README.read_text()


class Reader:
    """A person with a shell in an empty folder, who pastes what is written.

    The `cema` command is the installed one: it does not find modules in the folder by Python's own rules.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        commands = folder / ".commands"
        commands.mkdir()
        for name, arguments in {"cema": "-P -m cema", "python": ""}.items():
            (commands / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
            (commands / name).chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}
        self.environment.pop("PYTHONSAFEPATH", None)
        self.servers: list[subprocess.Popen[str]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def paste(self, language: str, block: str) -> str:
        """Write a file that a block begins with the name of, or run its commands; return what they print."""
        if language == "sh":
            return "".join(self.run(line) for line in block.splitlines())
        name = block.partition("\n")[0].removeprefix("# ")
        # Only the port is another one: 8080 may be somebody's.
        block = block.replace(":8080", f":{self.port}")
        port = f"port = {self.port}\n" if name == "cloud.toml" else ""
        (self.folder / name).write_text(port + block)
        return ""

    def run(self, line: str) -> str:
        """Run a command to its end; a server goes on, and is waited for until it listens."""
        if line.startswith("cema cloud serve"):
            with (self.folder / "server.log").open("w") as log:
                server = subprocess.Popen(
                    shlex.split(line, comments=True),
                    cwd=self.folder,
                    env=self.environment,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            self.servers.append(server)
            assert server.stdout is not None
            listening = server.stdout.readline()
            assert "listening" in listening, (self.folder / "server.log").read_text()
            return listening
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def leave(self) -> None:
        """Stop what still runs."""
        for server in self.servers:
            server.terminate()
            server.communicate(timeout=60)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    made.leave()


def test_the_walk_works_as_it_is_written(reader: Reader) -> None:
    (reader.folder / "photographs").mkdir()  # what a reader brings
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (3, 80, 70, 3), np.uint8)):
        Image.fromarray(image).save(reader.folder / "photographs" / f"{i}.png")
    printed = [reader.paste(language, block) for language, block in blocks(section("On your own model"))]
    assert re.search(r"\[\d \d \d \d\] \[.*\] 0", printed[-1])
    events = [json.loads(line) for line in "".join(printed).splitlines() if line.startswith("{")]
    finished = next(event for event in events if event["event"] == "finished")
    assert (finished["images"], finished["predicted"]) == (3, 3)
    # What was selected has arrived: the token, the cohort and the address go together.
    assert finished["uploaded"] == finished["selected"]
    assert "camera-1" in reader.run("cema device list --config cloud.toml")
    reader.run("cema device revoke camera-1 --config cloud.toml")

"""A cohort comes to another base model: a real cloud, real devices that predict throughout, real commands."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloud_process import PATIENCE, Server, eventually
from cloud_support import samples_of
from cloud_tiny_models import quadrants

from cema.cloud.config import CloudConfig
from cema.formats.bundle import Bundle

# A program that uses an agent: it predicts until its standard input ends, and writes down every prediction.
PREDICTOR = """
import json, sys, threading, time
import numpy as np
from cema.edge.agent import EdgeAgent
from cema.edge.client import CloudClient
if sys.argv[3:] == ["old"]:  # a CEMA from before: it names no base, and knows nothing of another one
    ask = CloudClient.latest_update
    CloudClient.latest_update = lambda self, etag, *, wait=0.0, base=None: ask(self, etag, wait=wait)
end = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
images = np.load(sys.argv[2])
with EdgeAgent.from_config(sys.argv[1]) as agent:
    number = 0
    while not end.is_set():
        batch = images[number % len(images) :][:4]
        number += 4
        begin = time.monotonic()
        prediction = agent.predict(batch)
        seconds = time.monotonic() - begin
        assert np.isfinite(prediction.logits).all() and len(prediction.labels) == len(batch)
        told = {name: getattr(prediction, name) for name in ("base", "version", "guarded")}
        print(json.dumps(told | {"seconds": seconds}), flush=True)
        time.sleep(0.005)
    status = agent.status()
    told = {"bundles": status.rejected_bundles, "updates": status.rejected_updates, "error": status.last_error}
    print(json.dumps({"end": True} | told), flush=True)
"""
EDGE = """
bundle = "{bundle}"
state = "{name}-state"

[cloud]
url = "{url}"
cohort = "north"
token = "{token}"

[upload]
linger_seconds = 0.1

[update]
poll_seconds = 0.2
"""


class Lines:
    """A process that writes JSON lines, all of which are kept."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def end(self, number: int | None = None) -> int:
        """Let it end by a signal, or with its standard input; returns its status."""
        assert self.process.stdin is not None
        if number is not None:
            self.process.send_signal(number)
        self.process.stdin.close()
        status = self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status


class Fleet:
    """A cloud, a program with an agent in it, and `cema edge run`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "cloud.toml"
        # Every step makes a version: how good it is makes no difference here.
        text = self.config.read_text().replace("every_steps = 2", "every_steps = 1\ngate = 1.0")
        self.config.write_text(text.replace("[worker]", "[limits]\ndevice_samples = 0.0\n\n[worker]"))
        with closing(CloudConfig.load(self.config).open_store()) as store:
            devices = store.devices(["north"])
            self.tokens = {
                name: devices.add(name, cohort="north") for name in ("feed", "program", "runner", "old")
            }
        self.server = Server(self.config, self.tokens["feed"])
        self.old, self.new = (Bundle.load(folder / name).manifest.base for name in ("bundle", "newer"))
        np.save(folder / "images.npy", quadrants(20_000, 3, drift=True)[0])
        self.sent = 0
        self.program, self.old_device = self.start_program(), self.start_program("old", "old")
        self.runner = self.start_runner()

    def settings(self, name: str) -> str:
        path = self.folder / f"{name}.toml"
        path.write_text(
            EDGE.format(
                bundle=self.folder / "bundle", name=name, url=self.server.url, token=self.tokens[name]
            )
        )
        return str(path)

    def start_program(self, name: str = "program", *more: str) -> Lines:
        return Lines("-c", PREDICTOR, self.settings(name), str(self.folder / "images.npy"), *more)

    def start_runner(self) -> Lines:
        source = ("--source", str(self.folder / "images.npy"), "--rate", "50", "--batch", "2")
        return Lines("-m", "cema", "edge", "run", "--config", self.settings("runner"), *source)

    def feed(self) -> None:
        """Send samples until the devices run another version than now."""
        images, _ = quadrants(32, 100 + self.sent, drift=True)
        self.sent += 1
        assert set(self.server.send(samples_of(images))) == {"stored"}

    def cema(self, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "cema", *arguments, "--config", str(self.config), "--json"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get("status").json()
        return found

    def last_of_program(self) -> dict[str, Any]:
        return self.program.lines[-1] if self.program.lines else {}

    def last_of_runner(self, event: str = "status") -> dict[str, Any]:
        return next((line for line in reversed(self.runner.lines) if line["event"] == event), {})

    def both_run(self, base: str, version: int) -> bool:
        found = [self.last_of_program(), self.last_of_runner()]
        return all(line.get("base") == base and line.get("version", -1) >= version for line in found)

    def all_run_old(self) -> bool:
        old = self.old_device.lines[-1] if self.old_device.lines else {}
        return self.both_run(self.old, 1) and old.get("version", 0) >= 1

    def close(self) -> None:
        for lines in (self.program, self.runner, self.old_device):
            if lines.process.poll() is None:
                lines.process.kill()
                lines.end()
        self.server.close()


@pytest.fixture
def fleet(factory: Path, newer: Path, tmp_path: Path) -> Iterator[Fleet]:
    folder = tmp_path / "f"
    shutil.copytree(factory, folder)
    shutil.copytree(newer / "bundle", folder / "newer")
    shutil.copy(newer / "edge.safetensors", folder / "newer.safetensors")
    made = Fleet(folder)
    yield made
    made.close()


def change_configuration(fleet: Fleet, told: dict[str, Any]) -> None:
    """Do what the command has said: one line, and the model's below it."""
    lines = Path(told["change"]["file"]).read_text().splitlines()
    lines[told["change"]["line"] - 1] = f'bundle = "{told["change"]["bundle"]}"'
    text = "\n".join(lines).replace('"edge.safetensors"', '"newer.safetensors"')
    fleet.config.write_text(text)


def old_device_went_on(fleet: Fleet, before: int) -> None:
    """Check that a device which knows nothing of bases kept its model and its last update, and said so once."""
    assert fleet.old_device.end() == 0, fleet.old_device.errors
    *predictions, end = fleet.old_device.lines
    assert {line["base"] for line in predictions} == {fleet.old}
    assert 1 <= max(line["version"] for line in predictions) <= before
    assert "wrong_base" in end["error"]
    refused = [line for line in fleet.old_device.errors if "wrong_base" in line]
    assert 1 <= len(refused) <= 2, refused  # once, or twice where an hour ends in between
    assert len(refused) == end["updates"]["wrong_base"]


def devices_changed_once(fleet: Fleet, before: int) -> None:
    """Check that every prediction was made, by one model up to some moment, and by the other from then on."""
    assert fleet.program.end() == 0, fleet.program.errors
    assert fleet.runner.end(signal.SIGTERM) == 0, fleet.runner.errors
    *predictions, end = fleet.program.lines
    assert end == {"end": True, "bundles": {}, "updates": {}, "error": None}
    bases = [line["base"] for line in predictions]
    swap = bases.index(fleet.new)
    assert bases == [fleet.old] * swap + [fleet.new] * (len(bases) - swap)
    assert all(line["version"] <= before for line in predictions[:swap])
    assert all(line["version"] == 0 or line["version"] > before for line in predictions[swap:])
    events = [line["event"] for line in fleet.runner.lines]
    assert "error" not in events
    assert events.count("bundle") == 1
    finished = fleet.last_of_runner("finished")
    assert (finished["reason"], finished["base"], finished["rejected_bundles"]) == ("signal", fleet.new, {})
    assert (finished["rejected_updates"], finished["dropped"]) == ({}, {})


def test_devices_predict_throughout_while_their_cohort_comes_to_another_base_model(fleet: Fleet) -> None:
    while not fleet.all_run_old():
        fleet.feed()
        eventually(lambda: fleet.status()["backlog"] < 200)
        assert fleet.program.process.poll() is None, fleet.program.errors
        assert fleet.runner.process.poll() is None, fleet.runner.errors
    listed = fleet.cema("device", "list")

    told = fleet.cema("cohort", "migrate", "north", "--bundle", str(fleet.folder / "newer"))
    before = told["version"]
    assert (told["from"], told["to"], told["done"]) == (fleet.old, fleet.new, True)
    assert fleet.status()["base"] == fleet.new
    # The devices come to it at once; the cloud takes samples, and says what it lacks to learn.
    eventually(lambda: fleet.both_run(fleet.new, 0))
    fleet.feed()
    eventually(lambda: "migrated to base model" in fleet.status()["worker"].get("error", ""))
    assert fleet.server.process.poll() is None

    change_configuration(fleet, told)
    eventually(lambda: fleet.status()["worker"]["ready"])  # without a restart
    while not fleet.both_run(fleet.new, before + 1):
        fleet.feed()
        eventually(lambda: fleet.status()["backlog"] < 200)
    eventually(
        lambda: (
            [(found["base"], found["devices"]) for found in fleet.cema("cohort", "bases")["bases"]]
            == [(fleet.old, []), (fleet.new, ["program", "runner"])]
        )
    )
    assert [device["name"] for device in fleet.cema("device", "list")] == [d["name"] for d in listed]

    old_device_went_on(fleet, before)
    devices_changed_once(fleet, before)

    # Without a cloud the next start has the new model and its last update.
    fleet.server.end(signal.SIGKILL)
    fleet.program = fleet.start_program()
    eventually(lambda: len(fleet.program.lines) > 5)
    assert fleet.program.end() == 0, fleet.program.errors
    assert {line["base"] for line in fleet.program.lines[:-1]} == {fleet.new}
    assert all(line["version"] > before or line["guarded"] for line in fleet.program.lines[:-1])
    # And the cloud, killed and started again, goes on with the new base.
    fleet.server = Server(fleet.config, fleet.tokens["feed"])
    eventually(lambda: fleet.status()["worker"]["ready"])
    status = fleet.status()
    assert (status["base"], status["worker"]["version"]) == (fleet.new, status["version"])
    assert status["version"] > before
    assert status["worker"]["steps"] > 0  # of those on the new base, from its checkpoint

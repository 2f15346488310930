"""A device's images are deleted from a cloud that runs: real service, worker and commands, and the bytes of files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cloud_process import PATIENCE, Server, eventually, gone
from cloud_support import samples_of
from cloud_tiny_models import PREPROCESSING, quadrants
from file_bytes import found_in

from cema.cloud.config import CloudConfig
from cema.cloud.store.data import data_of
from cema.cloud.worker.replayed import replayed_seqs
from cema.formats.sample import Sample
from cema.ondevice.drift import input_statistics


def cema(config: Path, *arguments: str, status: int = 0) -> Any:
    """Run a command in a process of its own, and return the JSON that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cema", *arguments, "--config", str(config), "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


class Fleet:
    """A cloud that runs, and two devices that have sent what it has learned from."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "cloud.toml"
        self.data = folder / "data"
        with closing(CloudConfig.load(self.config).open_store()) as store:
            register = store.devices(["north"])
            self.tokens = {name: register.add(name, cohort="north") for name in ("cam-1", "cam-2")}
        self.sent: dict[str, list[Sample]] = {name: [] for name in self.tokens}
        self.rows: dict[str, list[bytes]] = {name: [] for name in self.tokens}
        self.server = Server(self.config, self.tokens["cam-1"])

    def send(self, device: str, count: int) -> None:
        seed = 1000 * (1 + list(self.tokens).index(device)) + len(self.sent[device])
        images, _ = quadrants(count, seed, drift=True)
        samples = samples_of(images)
        self.rows[device] += [row.tobytes() for row in input_statistics(PREPROCESSING(images))]
        assert set(self.again(device, samples)) == {"stored"}
        self.sent[device] += samples

    def again(self, device: str, samples: list[Sample]) -> list[str]:
        self.server.http.headers["Authorization"] = f"Bearer {self.tokens[device]}"
        return self.server.send(samples)

    def settle(self) -> None:
        eventually(lambda: self.server.get("status").json()["backlog"] == 0)

    def anywhere(self, device: str) -> set[str]:
        """Return the names of the cloud's files that hold anything of a device's images."""
        found = {name for name, _ in found_in(self.data, [sample.image for sample in self.sent[device]])}
        for path in self.data.iterdir():
            content = path.read_bytes()
            if any(row in content for row in self.rows[device]):
                found.add(path.name)
        return found

    def restart(self) -> None:
        self.server.close()
        self.server = Server(self.config, self.tokens["cam-1"])


@pytest.fixture
def fleet(factory: Path, tmp_path: Path) -> Iterator[Fleet]:
    shutil.copytree(factory, tmp_path / "f")
    fleet = Fleet(tmp_path / "f")
    for _ in range(4):
        for device in fleet.tokens:
            fleet.send(device, 16)
    fleet.settle()
    yield fleet
    fleet.server.close()


def test_a_deleted_devices_images_are_found_nowhere_and_not_taken_again(fleet: Fleet, tmp_path: Path) -> None:
    listed = cema(fleet.config, "data", "list", "--device", "cam-1")
    assert listed["samples"] == 64
    sample = fleet.sent["cam-1"][-1]
    shown = cema(fleet.config, "data", "show", sample.id)
    assert shown["replayed"] is True
    assert fleet.anywhere("cam-1")
    receipt = cema(fleet.config, "data", "delete", "--device", "cam-1", "--yes")
    assert (receipt["samples"], receipt["state"], receipt["note"]) == (64, "done", "")
    assert fleet.anywhere("cam-1") == set()
    assert "cema.db" in fleet.anywhere("cam-2")
    with closing(CloudConfig.load(fleet.config).open_store()) as store:
        checkpoint = data_of(store).saved_checkpoint("north")
        left = {s.seq for s in data_of(store).data_samples("north", receipt_filter("cam-2"), limit=1000)}
        assert replayed_seqs(checkpoint) == left
        assert len(left) == 64
    backup = tmp_path / "backups" / "copy.db"
    backup.parent.mkdir()
    cema(fleet.config, "cloud", "backup", "--out", str(backup))
    assert found_in(backup.parent, [sample.image for sample in fleet.sent["cam-1"]]) == set()
    assert found_in(backup.parent, [sample.image for sample in fleet.sent["cam-2"]])
    # The answer to its upload was lost, and the device sends it once more.
    assert fleet.again("cam-1", fleet.sent["cam-1"][:8]) == ["duplicate"] * 8
    assert cema(fleet.config, "data", "list", "--device", "cam-1")["samples"] == 0
    # What it sends after that is stored, and learned from.
    fleet.send("cam-1", 32)
    fleet.settle()
    assert cema(fleet.config, "data", "list", "--device", "cam-1")["samples"] == 32
    acts = subprocess.run(
        [sys.executable, "-m", "cema", "cloud", "audit", "--json", "--config", str(fleet.config)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert '"act": "data.delete"' in acts


def receipt_filter(device: str) -> Any:
    from cema.cloud.store.data import DataFilter

    return DataFilter(device=device)


def test_an_admin_deletes_and_labels_over_http(fleet: Fleet) -> None:
    with closing(CloudConfig.load(fleet.config).open_store()) as store:
        token = store.devices(["north"]).add("boss", cohort="north", role="admin")
    http, url = fleet.server.http, f"{fleet.server.url}/v1/cohorts/north"
    http.headers["Authorization"] = f"Bearer {token}"
    labelled = fleet.sent["cam-2"][-1].id
    answer = http.post(f"{url}/labels", json={"labels": {labelled: 2}})
    assert (answer.status_code, answer.json()["new"]) == (200, 1)
    assert fleet.server.get(f"data/{labelled}").json()["truth"] == 2
    answer = http.post(f"{url}/deletions", json={"device": "cam-1"})
    assert (answer.status_code, answer.json()["samples"]) == (202, 64)
    eventually(lambda: fleet.server.get("deletions").json()["deletions"][0]["state"] == "done")
    assert fleet.anywhere("cam-1") == set()
    assert fleet.server.get("data").json()["samples"] == 64


def test_a_deletion_from_a_cloud_that_does_not_run_is_done_once_it_does(fleet: Fleet) -> None:
    fleet.server.close()  # killed, and its worker with it
    receipt = cema(fleet.config, "data", "delete", "--device", "cam-1", "--yes", "--no-wait")
    assert receipt["state"] == "waiting"
    fleet.restart()
    eventually(lambda: cema(fleet.config, "data", "receipts")[0]["state"] == "done")
    assert fleet.anywhere("cam-1") == set()


def test_a_worker_that_is_killed_while_samples_are_deleted_ends_with_all_of_them_forgotten(
    fleet: Fleet,
) -> None:
    for number, device in enumerate(("cam-1", "cam-2")):
        worker = fleet.server.worker()
        assert worker is not None
        command = [sys.executable, "-m", "cema", "data", "delete", "--device", device, "--yes", "--no-wait"]
        with subprocess.Popen(
            [*command, "--config", str(fleet.config)], stdout=subprocess.DEVNULL, env=os.environ
        ) as deleting:
            if number:  # before it is asked, or as soon as it was
                deleting.wait(PATIENCE)
            worker.kill()
            assert deleting.wait(PATIENCE) == 0
        eventually(partial(gone, worker))
        eventually(lambda: cema(fleet.config, "data", "receipts")[0]["state"] == "done")
        assert fleet.anywhere(device) == set()
    assert cema(fleet.config, "data", "list")["samples"] == 0

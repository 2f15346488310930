"""Labels that people return are learned: a cohort whose foundation model is wrong, with real service and commands."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cloud_process import PATIENCE, Server, eventually
from cloud_support import samples_of
from cloud_tiny_models import PREPROCESSING, quadrants
from worker_cloud import rewrite_bundle
from wrong_teacher import swap_classes

from cema.cloud.config import CloudConfig
from cema.formats.payload import decode_payload
from cema.models.norm_state import load_folded
from cema.models.registry import resolve

FIRST, MORE, SIZE = 10, 14, 32


def cema(config: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "cema", "data", *arguments, "--config", str(config), "--json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def accuracy(folder: Path) -> float:
    """Return the accuracy of the newest version on drifted images that nobody has sent."""
    with closing(CloudConfig.load(folder / "cloud.toml").open_store()) as store:
        update = store.latest_update("north")
    assert update is not None
    module = resolve("cloud_tiny_models:edge", weights=folder / "edge.safetensors").module
    load_folded(module, decode_payload(update.payload).norm_state)
    images, labels = quadrants(1000, 5, drift=True)
    with torch.inference_mode():
        return float((module(torch.from_numpy(PREPROCESSING(images))).argmax(1).numpy() == labels).mean())


def cloud_of(factory: Path, folder: Path) -> Path:
    """A cloud whose foundation model takes two of four classes for each other, and which publishes all it learns."""
    shutil.copytree(factory, folder)
    swap_classes(folder / "foundation.safetensors", 0, 1)
    config = folder / "cloud.toml"
    text = config.read_text().replace("every_steps = 2", "every_steps = 1\ngate = 1.0")
    config.write_text(text.replace("[cohort.adapt]", "[cohort.adapt]\nedge_lr = 0.01"))
    # All that an update carries is folded then: what it does can be seen from it alone.
    rewrite_bundle(folder / "bundle", None)
    return config


def run(config: Path, *, label: bool) -> float:
    """Send what devices see, and label what came first if so asked; return the accuracy after that."""
    with closing(CloudConfig.load(config).open_store()) as store:
        token = store.devices(["north"]).add("cam", cohort="north")
    server = Server(config, token)
    truth: dict[str, int] = {}

    def send(number: int) -> None:
        images, labels = quadrants(SIZE, 100 + number, drift=True)
        samples = samples_of(images)
        truth.update({sample.id: int(label) for sample, label in zip(samples, labels, strict=True)})
        server.send(samples)

    def settle() -> None:
        eventually(lambda: server.get("status").json()["backlog"] == 0)

    try:
        for number in range(FIRST):
            send(number)
            settle()
        if label:
            fill_in(config, truth)
        for number in range(FIRST, FIRST + MORE):
            send(number)
            settle()
    finally:
        server.close()
    return accuracy(config.parent)


def fill_in(config: Path, truth: dict[str, int]) -> None:
    """Do what a person does with an export, and return the table."""
    out = config.parent / "to-label"
    assert cema(config, "export", str(out))["images"] == FIRST * SIZE
    table = out / "labels.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = np.mean([row["teacher"] != str(truth[row["id"]]) for row in rows])
    assert wrong > 0.4, "the foundation model is wrong about two of four classes"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"true_label": truth[row["id"]]} for row in rows)
    assert cema(config, "label", str(table)) == {
        "new": FIRST * SIZE,
        "changed": 0,
        "same": 0,
        "empty": 0,
        "refused": [],
    }
    assert cema(config, "label", str(table))["same"] == FIRST * SIZE


def test_returned_labels_raise_the_accuracy_where_the_foundation_model_is_wrong(
    factory: Path, tmp_path: Path
) -> None:
    without = run(cloud_of(factory, tmp_path / "without"), label=False)
    labelled = run(cloud_of(factory, tmp_path / "labelled"), label=True)
    assert labelled > without + 0.1, (labelled, without)

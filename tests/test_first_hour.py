"""The first hour of a stranger, from an empty folder, with real processes and nothing but what is printed to go by."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_videos import write_video

from cema.ondevice.image_file import read_image_file

CEMA = [sys.executable, "-m", "cema"]
# A device that was told of a version at its end has it at its next start, which is what README.md of a fleet says.
MOST_RUNS = 6


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def cema(folder: Path, *arguments: str) -> str:
    """Run a command to its end, where nobody answers questions."""
    done = subprocess.run(
        [*CEMA, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def cloud(folder: Path) -> Iterator[None]:
    """Serve the folder's cloud for the block."""
    log = folder.parent / f"{folder.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*CEMA, "cloud", "serve"], cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline() or "{}").get("event") == "listening", log.read_text()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def device(folder: Path, *arguments: str, until: str | None = None) -> list[dict[str, Any]]:
    """Run the folder's device, and return its events; once there is one of a kind, tell it to end."""
    with (
        (folder.parent / "edge.log").open("w") as errors,
        subprocess.Popen(
            [*CEMA, "edge", "run", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == until:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 0, (folder.parent / "edge.log").read_text()
    return events


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


@pytest.mark.usefixtures("environment")
def test_from_an_empty_folder_to_an_update_on_a_device_with_a_video(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    told = cema(folder, "init", "--port", free_port())
    assert "cema cloud serve" in told
    assert "cd " not in told, "it is this very folder"
    assert "✗" not in cema(folder, "check")
    files = sorted((folder / "images").rglob("*.png"))
    shown = np.array([int(file.stem[-1]) for file in files])
    frames = [np.repeat(read_image_file(file), 3, axis=2) for file in files]
    write_video(tmp_path / "camera.mp4", frames, rate=25)
    with cloud(folder):
        runs = []
        while not runs or (not of(runs[-1], "swap") and len(runs) < MOST_RUNS):
            pace = ["--rate", "25"]  # as fast as a camera: the worker learns meanwhile
            runs.append(device(folder, "--source", str(tmp_path / "camera.mp4"), *pace, until="swap"))
        (swap,) = of(runs[-1], "swap")[:1]
        assert swap["version"] >= 1
        labels = [label for event in of(runs[0], "prediction") for label in event["labels"]]
        if of(runs[0], "swap"):  # it was told to end
            shown = shown[: len(labels)]
        assert len(labels) == len(shown)
        assert (np.array(labels) == shown).mean() > 0.8
        after = device(folder, "--source", "images/1-clean")
        assert after[0]["version"] >= 1, "what was installed is there after a restart"
        last = after[-1]
        assert last["uploaded"] > 0
        assert (last["queued"], last["spooled"], last["last_error"]) == (0, 0, None)
        told = cema(folder, "check")
        assert "runs there already, and is well" in told
        assert "is ready" in told


@pytest.mark.usefixtures("environment")
def test_a_model_of_ones_own_through_model_py(tmp_path: Path) -> None:
    cema(tmp_path, "init", "first", "--port", free_port())
    models = ["--model", "first/model.py:build", "--foundation", "first/model.py:build_strong"]
    cema(tmp_path, "init", "mine", *models, "--cohort", "pets", "--device", "door", "--port", free_port())
    folder = tmp_path / "mine"
    assert "✗" not in cema(folder, "check")
    # These networks have learned nothing, so no image is worth sending: half of them are drawn at random.
    settings = (folder / "edge.toml").read_text()
    (folder / "edge.toml").write_text(settings.replace("[upload]\n", "[upload]\nrandom_share = 0.5\n"))
    with cloud(folder):
        events = device(folder, "--source", "images", "--batch", "16")
    assert set(of(events, "prediction")[0]["class_names"]) <= {"cat", "dog", "neither"}
    last = events[-1]
    assert last["drawn"] > 100
    assert last["uploaded"] >= last["drawn"]
    assert last["last_error"] is None

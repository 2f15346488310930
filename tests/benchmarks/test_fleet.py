"""The program that plays a fleet finds a cloud well, and says where one is not."""

from __future__ import annotations

import asyncio
import importlib
import json
import ssl
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cloud_support import StillEngine, serving, write_config

from cema.cloud.config import CloudConfig
from cema.cloud.http import service
from cema.formats.bundle import Bundle

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_a_small_fleet_is_served_well(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [
        sys.executable,
        str(FOLDER / "fleet.py"),
        "--devices",
        "5",
        "--seconds",
        "4",
        "--output",
        str(out),
    ]
    # The worker learns for the first time in these seconds, which takes memory once.
    command += ["--rate", "8", "--linger", "0.5", "--poll", "0.5", "--margin-mib", "256"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["problems"] == result["faults"] == []
    assert (result["uncured"], result["worker_restarts"]) == (0, 0)
    assert result["stored"] == result["stored_by_the_clouds_count"] > 0
    assert result["statuses"]["upload"]["200"] > 5
    for name in ("server", "worker"):
        assert result["processes"][name]["end"]["rss_mib"] > 10
        assert result["processes"][name]["end"]["handles"] > 3


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("fleet")


WELL: dict[str, Any] = {"growth": [], "faults": [], "uncured": 0, "worker_restarts": 0, "stored": 1}


@pytest.mark.parametrize(
    "spoilt",
    [{"growth": ["it grew"]}, {"faults": ["500"]}, {"uncured": 1}, {"worker_restarts": 1}, {"stored": 0}],
)
def test_what_makes_a_run_a_failure(fleet: ModuleType, spoilt: dict[str, Any]) -> None:
    assert fleet.problems(WELL) == []
    assert len(fleet.problems({**WELL, **spoilt})) == 1


@pytest.mark.parametrize(("key", "more"), [("rss_mib", 16.5), ("handles", 9)])
def test_growth_beyond_the_margin_is_found(fleet: ModuleType, key: str, more: float) -> None:
    before = {"rss_mib": 90.0, "handles": 20}
    still = {"server": {"quarter": before, "end": {"rss_mib": 106.0, "handles": 28}}}
    grown = {"server": {"quarter": before, "end": {**before, key: before[key] + more}}}
    assert fleet.growth(still, mebibytes=16, handles=8) == []
    assert len(fleet.growth(grown, mebibytes=16, handles=8)) == 1


@pytest.mark.parametrize(("retries", "cured"), [(0, False), (3, True)])
def test_a_refusal_is_cured_by_a_retry_or_not(
    fleet: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retries: int, cured: bool
) -> None:
    """The cloud refuses as long as all places of a device are taken; they are free again once it has been asked."""
    device = importlib.import_module("fleet_device")
    limits = "[limits]\nretry_after_seconds = 1\n"
    engine = StillEngine(CloudConfig.load(write_config(tmp_path, extra=limits)))
    token = engine.devices.add("cam", cohort="north")
    tally = device.Tally()
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    monkeypatch.setattr(service, "UPLOADS_OF_ONE", 0)

    async def send(url: str) -> None:
        made = device.Device(
            f"{url}/v1/cohorts/north", token, Bundle.load(tmp_path / "bundle"),
            device.Traffic(rate=1.0, linger=1.0, poll=1.0, retries=retries), tally,
            images=images, context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), seed=(0,),
        )  # fmt: skip
        upload = asyncio.create_task(made._upload(5.0))
        while not tally.refused:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(service, "UPLOADS_OF_ONE", 4)
        await upload
        await made.close()

    with serving(engine) as url:
        asyncio.run(send(url))
    assert (tally.refused, tally.cured, tally.uncured) == (1, int(cured), int(not cured))
    assert bool(tally.verdicts["stored"]) == cured
    assert tally.faults == []

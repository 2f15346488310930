"""Devices that were off while keys were exchanged: they come back and get updates, or say what has to be done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cloud_process import PATIENCE, eventually
from rotated_fleet import Fleet

OPTIONS = ["--config", "cloud.toml"]


@pytest.fixture
def fleet(factory: Path, tmp_path: Path) -> Fleet:
    """A cloud with a second key, and devices that have a version of the first key alone and are switched off."""
    shutil.copytree(factory, tmp_path / "f")
    config = tmp_path / "f" / "cloud.toml"
    config.write_text(config.read_text().replace("evidence = 16", "evidence = 16\ngate = 1.0"))
    fleet = Fleet(tmp_path / "f")
    fleet.cema("keys", "new", "next.key")
    with fleet.serving() as url:
        version = fleet.learn(url)
        for name in ("away", "away for long"):
            with fleet.device(url, name) as device:
                assert device.wait_for_version(version, PATIENCE)
    return fleet


def test_a_device_comes_back_at_any_point_of_an_exchange_and_gets_updates(fleet: Fleet) -> None:
    first, following = fleet.name("signing"), fleet.name("next")
    # Both sign: its own key is enough.
    fleet.sign_with("signing", "next")
    fleet.cema("keys", "rotate", "--trust", "next.pub", *OPTIONS)
    with fleet.serving() as url:
        version = fleet.learn(url)
        assert fleet.signers(url) == [first, following]
        with fleet.device(url, "away") as device:
            assert device.wait_for_version(version, PATIENCE)
            assert device.status().rejected_updates == {}
    # The first is revoked, and the other signs alone: who has missed all of it learns it from the documents.
    fleet.cema("keys", "revoke", first, *OPTIONS)
    fleet.sign_with("next")
    with fleet.serving() as url:
        version = fleet.learn(url)
        assert fleet.signers(url) == [following]
        for name in ("away", "away for long"):
            with fleet.device(url, name) as device:
                assert device.wait_for_version(version, PATIENCE), name
                eventually(lambda device=device: device.status().last_error is None)


def test_a_device_that_comes_back_when_the_documents_have_expired_says_what_to_do(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.sign_with("signing", "next")
    second = str(1 / 86_400)
    fleet.cema("keys", "rotate", "--trust", "next.pub", "--days", second, *OPTIONS)
    fleet.cema("keys", "revoke", fleet.name("signing"), "--days", second, *OPTIONS)
    fleet.sign_with("next")
    with fleet.serving() as url:
        version = fleet.learn(url)
        with fleet.device(url, "away") as device:
            eventually(lambda: device.status().rejected_updates == {"unknown_key": 1})
            before = device.status()
            assert f"signed by {fleet.name('next')}; this device trusts" in (before.last_error or "")
            assert "cema keys rotate" in (before.last_error or "")
            assert "have the cloud's operator make a newer one (cema keys rotate)" in caplog.text
            assert before.version < version, "what it has serves on"
        # What it says helps.
        fleet.cema("keys", "rotate", *OPTIONS)
        with fleet.device(url, "away") as device:
            assert device.wait_for_version(version, PATIENCE)
            eventually(lambda: device.status().last_error is None)

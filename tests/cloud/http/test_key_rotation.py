"""One key follows another while an old device, which was provisioned with the first, gets every update."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from cloud_process import PATIENCE, eventually
from cloud_tiny_models import quadrants
from rotated_fleet import Fleet


def test_an_old_device_gets_every_update_while_its_key_is_exchanged_and_revoked(
    factory: Path, tmp_path: Path
) -> None:
    shutil.copytree(factory, tmp_path / "f")
    fleet = Fleet(tmp_path / "f")
    fleet.config.write_text(fleet.text.replace("evidence = 16", "evidence = 16\ngate = 1.0"))
    fleet.text = fleet.config.read_text()
    fleet.cema("keys", "new", "next.key")
    first, following = fleet.name("signing"), fleet.name("next")
    options = ["--config", "cloud.toml"]

    # A alone.
    with fleet.serving() as url, fleet.device(url) as device:
        assert device.wait_for_version(fleet.learn(url), PATIENCE)
    # A and B: the old device needs nothing new, and learns of B when it asks.
    fleet.sign_with("signing", "next")
    told = fleet.cema("keys", "rotate", "--trust", "next.pub", *options)
    assert "document 1" in told
    with fleet.serving() as url, fleet.device(url) as device:
        assert device.wait_for_version(fleet.learn(url), PATIENCE)
        eventually(lambda: fleet.signers(url) == [first, following])
    assert [*(tmp_path / "f" / "device").glob("keys-*.json")]
    # B alone, A retired: what the device has goes on, and what comes is installed.
    fleet.cema("keys", "rotate", "--retire", first, *options)
    fleet.sign_with("next")
    with fleet.serving() as url:
        with fleet.device(url) as device:
            assert device.wait_for_version(fleet.learn(url), PATIENCE)
            assert fleet.signers(url) == [following]
            version = device.status().version
        # A revoked: nothing that only B has signed is lost.
        told = fleet.cema("keys", "revoke", first, *options)
        assert f"{first} revoked" in told
        with fleet.device(url) as device:
            assert device.wait_for_version(version, PATIENCE)
            assert device.wait_for_version(fleet.learn(url), PATIENCE)
            assert device.status().rejected_updates == {}
    assert fleet.cema("keys", "list", *options) == told
    # A cloud in the hands of whoever has A no longer starts by itself, nor does the device listen to it.
    fleet.sign_with("signing")
    ran = subprocess.run(
        [sys.executable, "-m", "cema", "cloud", "serve", *options], cwd=fleet.folder, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "would refuse every update" in ran.stderr


def test_a_device_that_runs_a_revoked_key_s_version_returns_to_its_source(
    factory: Path, tmp_path: Path
) -> None:
    shutil.copytree(factory, tmp_path / "f")
    fleet = Fleet(tmp_path / "f")
    fleet.config.write_text(fleet.text.replace("evidence = 16", "evidence = 16\ngate = 1.0"))
    fleet.text = fleet.config.read_text()
    fleet.cema("keys", "new", "next.key")
    first = fleet.name("signing")
    options = ["--config", "cloud.toml"]
    images = quadrants(8, 1, drift=True)[0]
    with fleet.serving() as url:
        with fleet.device(url) as device:
            source = device.predict(images).logits
            version = fleet.learn(url)
            assert device.wait_for_version(version, PATIENCE)
            assert not np.array_equal(device.predict(images).logits, source)
        # Revoked by the operator, while the cloud still serves and signs with the key.
        fleet.sign_with("signing", "next")
        fleet.cema("keys", "rotate", "--trust", "next.pub", *options)
        fleet.cema("keys", "revoke", first, *options)
        with fleet.device(url) as device:
            eventually(lambda: device.status().rejected_updates == {"revoked_key": 1})
            np.testing.assert_array_equal(device.predict(images).logits, source)
            assert device.status().version == 0
            assert "revoked_key" in (device.status().last_error or "")
        with fleet.device(url) as device:  # after a restart, too
            assert device.predict(images).version == 0
    # The next worker signs the last payload again, with the keys of now.
    fleet.sign_with("next")
    with fleet.serving() as url, fleet.device(url) as device:
        eventually(lambda: fleet.signers(url) == [fleet.name("next")])
        assert device.wait_for_version(version + 1, PATIENCE)
        assert not np.array_equal(device.predict(images).logits, source)
